"""Memory of tensors that no other stage will read: given back meanwhile, or used again after."""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Mapping

from ..graph import Graph
from ..pages import LARGE, memory_of
from ..planner import Plan, Stage
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


def room_left(plan: Plan, index: int, spent: Collection[str]) -> int:
    """Bytes that a stage leaves if it holds to its end what it is the last to read.

    Less than none if it has to give it back meanwhile. Else what comes after takes the same pages,
    as fresh ones are slow.
    """
    stage = plan.stages[index]
    chunks = max(plan.chunk_bytes, stage.chunk_bytes)
    held = sum(plan.stored_bytes[name] for name in spent if plan.places[name] == "device")
    return plan.peak_memory - stage.peak - chunks - held


def removed(store: Store) -> list[mmap.mmap]:
    """Remove a store that nothing reads any more; return the pages that can be used again."""
    left = memory_of(store.tensor) if isinstance(store, MemoryStore) else []
    store.remove()
    return left
