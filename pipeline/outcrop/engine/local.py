"""The local executor: every tile of every stage, in this process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from ..graph import Graph
from ..planner import Plan
from .memory import keep_freed_memory
from .stores import Store
from .tile import run_tile

# Called with the index of a stage and of a tile in it, when that tile is written.
OnTile = Callable[[int, int], None]


def run_local(
    graph: Graph,
    plan: Plan,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Store],
    make: Callable[[str], Store],
    finished: Collection[tuple[int, int]] = (),
    on_tile: OnTile | None = None,
) -> None:
    """Run a plan in this process, on all its threads.

    Parameters
    ----------
    graph, plan, weights
        As for `run_tile`.
    inputs : mapping of str to Store
        The network's inputs.
    make : callable
        Makes the store of a tensor that is about to be written, by its name.
    finished : collection of (stage, tile)
        Tiles that an earlier run has written.
    on_tile : callable, optional
        Told of every tile that is written.
    """
    keep_freed_memory(plan.keeps_freed)
    stores = dict(inputs)
    with torch.inference_mode():
        for i, stage in enumerate(plan.stages):
            stores.update({name: make(name) for name in stage.outputs})
            for n, tile in enumerate(stage.tiles()):
                if (i, n) in finished:
                    continue
                run_tile(graph, stage, tile, weights, stores)
                if on_tile is not None:
                    on_tile(i, n)
            for name in unused_after(plan, i) & stores.keys() - inputs.keys():
                if name in plan.places:
                    stores.pop(name).remove()


def unused_after(plan: Plan, i: int) -> set[str]:
    """Tensors that stages up to `i` read or wrote and no later stage reads."""
    later = {name for stage in plan.stages[i + 1 :] for name in stage.inputs}
    return {name for s in plan.stages[: i + 1] for name in (*s.inputs, *s.outputs)} - later
