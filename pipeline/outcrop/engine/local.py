"""The local executor: every tile of every stage, in this process."""

from __future__ import annotations

import contextlib
import mmap
from collections import Counter
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from ..graph import Graph
from ..pages import reusing
from ..planner import Plan
from .chunks import held_chunks
from .freeing import Freeing, removed, room_left
from .globals import GlobalStore, to_merge
from .memory import (
    ALL,
    USUAL,
    Watch,
    check_room,
    keep_freed_memory,
    return_freed_memory,
)
from .overlap import run_tiles
from .spent import Peak, Spent
from .stores import Store
from .tile import StageRunner, naming_lack_of_memory

# Called with the index of a stage and of a tile in it, when that tile is written, and what it took.
OnTile = Callable[[int, int, Spent], None]


def run_local(
    graph: Graph,
    plan: Plan,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Store],
    make: Callable[[str], Store],
    finished: Collection[tuple[int, int]] = (),
    on_tile: OnTile | None = None,
    device: torch.device | str = "cpu",
    compile: bool = False,
    before_stage: Callable[[int], None] | None = None,
    on_stage: Callable[[int], None] | None = None,
    before_removal: Callable[[], None] | None = None,
) -> None:
    """Run a plan in this process, on all its threads.

    While one tile is computed, the next is read and the one before is written, where that takes
    time: from and to disk, between host and device.

    Parameters
    ----------
    graph, plan, weights
        As for `StageRunner`.
    inputs : mapping of str to Store
        The network's inputs.
    make : callable
        Makes the store of a tensor that is about to be written, by its name.
    finished : collection of (stage, tile)
        Tiles that an earlier run has written.
    on_tile : callable, optional
        Told of every tile that is written.
    device : torch.device or str
        What computes.
    compile : bool
        Compile what many tiles have in common.
    before_stage, on_stage : callable, optional
        Told of every stage that is about to run, or to go on, and that is written.
    before_removal : callable, optional
        Called before tensors are removed, or written over: that their readers are done has to be
        noted by then.

    Raises
    ------
    MemoryBudgetError
        If the memory is used up even by the smallest part of a tile, or a GPU has less than the
        plan takes.
    """
    check_room(plan.peak_memory, device)
    stores = dict(inputs)
    done = Counter(i for i, _ in finished)
    written = {i for i, stage in enumerate(plan.stages) if done[i] == stage.count}
    keep_freed_memory(ALL)
    with contextlib.ExitStack() as stack, torch.inference_mode():
        stack.callback(keep_freed_memory, USUAL)
        on_cpu = torch.device(device).type == "cpu"
        # Chunks may be there from the section before.
        there = held_chunks() + sum(w.nbytes for w in weights.values())
        watch = Watch(plan.peak_memory, there) if on_cpu else None
        peak = Peak(device)
        runners: dict[int, StageRunner] = {}
        used = plan.used()
        spare: list[mmap.mmap] = []
        for k, step in enumerate(plan.order):
            i, stage = step.stage, plan.stages[step.stage]
            if before_stage is not None:
                before_stage(i)
            spent = [name for name in plan.places if name in used and used[name][1] == k]
            room = room_left(plan, i, spent)
            if room < 0:
                spare.clear()
            if step.first == 0:
                if watch is not None:  # of what the stage before has freed
                    reused = sum(map(len, spare))
                    watch.make_room(0, stage.tile_bytes + max(0, int(stage.written) - reused))
                with naming_lack_of_memory(), reusing(spare):
                    stores.update({name: make(name) for name in (*stage.outputs, *stage.reduces)})
                runners[i] = StageRunner(graph, stage, weights, stores, device, compile, watch)
            elif before_removal is not None:  # tiles are written over others
                before_removal()
            if sum(map(len, spare)) > room:
                spare.clear()
            todo = ((n, tile) for n, tile in plan.tiles(step) if (i, n) not in finished)
            given = spent if room < 0 else []
            freeing = Freeing(graph, stage, {name: stores[name] for name in given})
            for n, took in run_tiles(runners[i], todo, peak):
                if on_tile is not None:
                    on_tile(i, n, took)
                freeing.after(n)
            if step.stop < stage.lattice.counts[plan.axis]:
                continue
            del runners[i]
            written.add(i)
            finish_globals(stores, to_merge(plan, i, written.__contains__), stage.count)
            if spent and before_removal is not None:
                before_removal()
            for name in spent:
                spare += removed(stores.pop(name))
            if watch is None:
                return_freed_memory()
            if on_stage is not None:
                on_stage(i)


def finish_globals(stores: Mapping[str, Store], names: Collection[str], count: int) -> None:
    """Merge what the `count` tiles of a stage gave into its global values."""
    for name in names:
        store = stores[name]
        assert isinstance(store, GlobalStore)
        store.finish(count)
