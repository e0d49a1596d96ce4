"""Memory that is given back while a stage runs: of tensors that no other stage will read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..graph import Graph
from ..pages import LARGE
from ..planner import Stage
from ..planner.rolling import Advance
from .stores import MemoryStore, Store


class Freeing:
    """Gives back, layer by layer across the first axis, what no tile that is left will read.

    Parameters
    ----------
    graph : Graph
    stage : Stage
        Of a plan for that graph.
    spent : mapping of str to Store
        Tensors that the stage is the last to read.
    """

    def __init__(self, graph: Graph, stage: Stage, spent: Mapping[str, Store]) -> None:
        self.stores = {
            name: store
            for name, store in spent.items()
            if isinstance(store, MemoryStore)
            and store.tensor.nbytes >= LARGE
            and not store.tensor.is_cuda
        }
        self.advance = Advance(graph, stage, 0, self.stores)
        self.rank, self.layer = graph.rank, math.prod(stage.lattice.counts[1:])

    def after(self, number: int) -> None:
        """Look, after this tile and all before it are written."""
        done = (number + 1) // self.layer
        if done == self.advance.done:
            return
        self.advance.done = done
        if self.advance.rest:  # else all of it goes
            for name, store in self.stores.items():
                store.forget(store.tensor.ndim - self.rank, self.advance.begins(name))
