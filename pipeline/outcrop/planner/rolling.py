"""The order in which tiles run, so that of tensors on disk a few layers are kept at a time."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import reduce
from itertools import accumulate
from operator import or_

from ..graph import Graph
from .frames import Frames
from .plan import Plan, Stage, Step

# Tiles that run one after the other before those of another stage do: from one stage to the next
# nothing is read ahead and nothing written behind.
_TILES = 16
# Of what stages one after the other take on disk, to be worth that.
_WORTH = 0.9


def rolling(plan: Plan, graph: Graph) -> Plan:
    """Return the same plan with an order of its tiles in which the disk holds less at once.

    Tiles lie in layers across one of the axes. A layer of a later stage runs as soon as the layers
    that it reads are written; what none will read any more gives its room to those that follow.
    So what is on disk depends on the network's receptive field, and no longer on the extent of
    the survey along that axis. Plans that keep tensors elsewhere too stay as they are: in memory
    all stages would be there at once.

    Parameters
    ----------
    plan : Plan
        For one process.
    graph : Graph
        That it is for.
    """
    if set(plan.places.values()) - {"global"} != {"disk"}:
        return plan
    found = [_along(axis, plan, graph) for axis in range(graph.rank)]
    best = min(found, key=lambda rolled: rolled.disk_bytes)
    return best if best.disk_bytes <= _WORTH * plan.disk_bytes else plan


def _along(axis: int, plan: Plan, graph: Graph) -> Plan:
    """The same with layers across this axis."""
    stored = {name for name, place in plan.places.items() if place == "disk"}
    advances = [Advance(graph, stage, axis, stored) for stage in plan.stages]
    if max(advance.count / advance.band for advance in advances) <= 1:
        return plan
    writers = {n: a for a in advances for n in a.stage.outputs if plan.places.get(n) == "disk"}
    whole = {n: a for a in advances for n in (*a.stage.outputs, *a.stage.reduces)}
    readers = {n: [k for k, s in enumerate(plan.stages) if n in s.inputs] for n in whole}
    steps: list[Step] = []
    layers = dict.fromkeys(writers, 0)

    def may_run(advance: Advance) -> bool:
        return advance.rest > 0 and all(
            advance.reaches(name) <= writers[name].edge
            if name in writers
            else name not in whole or not whole[name].rest
            for name in advance.stage.inputs
        )

    def spent(name: str) -> int:
        """Layers of a tensor that no tile will read any more."""
        lowest = min((advances[k].begins(name) for k in readers[name]), default=sys.maxsize)
        writer = writers[name]
        return min(writer.done, max(0, lowest - writer.start) // writer.extent)

    last = len(advances) - 1
    # Of those behind the last one that could run, just what reads its output may be able to now.
    while (i := next((i for i in range(last, -1, -1) if may_run(advances[i])), None)) is not None:
        advance = advances[i]
        before, advance.done = advance.done, advance.done + advance.next
        steps.append(Step(i, before, advance.done))
        for name in writers.keys() & set(advance.stage.outputs):
            layers[name] = max(layers[name], advance.done - min(before, spent(name)))
        made = *advance.stage.outputs, *advance.stage.reduces
        last = max([i, *(k for name in made for k in readers[name])])
    return replace(plan, steps=tuple(steps), axis=axis, layers=layers)


def overtaken(plan: Plan, finished: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
    """Finished tiles that are to be run again since one that ran before them is.

    What that one reads, or what is read of it, may have been written over; of what lay between
    stages nothing is taken for granted then.

    Parameters
    ----------
    plan : Plan
    finished : collection of (stage, tile)
    """
    gap = False
    for step in plan.order:
        done = [(step.stage, n) in finished for n, _ in plan.tiles(step)]
        if gap and any(done) and plan.layers.keys() & {*plan.stages[step.stage].outputs}:
            stored = [plan.places.keys() & {*s.outputs, *s.reduces} for s in plan.stages]
            return {(i, n) for i, n in finished if stored[i]}
        gap |= not all(done)
    return set()


class Advance:
    """How far a stage is, in layers of tiles across an axis.

    Parameters
    ----------
    graph : Graph
    stage : Stage
        Of a plan for that graph.
    axis : int
        Of the grid.
    stored : collection of str
        Tensors of which is looked at what each layer reads.
    """

    def __init__(self, graph: Graph, stage: Stage, axis: int, stored: Collection[str]) -> None:
        self.stage, self.axis, self.done = stage, axis, 0
        self.start, self.extent = stage.domain.start[axis], stage.tile[axis]
        self.count = stage.lattice.counts[axis]
        self.band = min(self.count, math.ceil(_TILES * self.count / stage.count))
        self._reads: dict[str, list[tuple[int, int]]] = {
            name: [] for name in stage.inputs if name in stored
        }
        for layer in self._layers(graph):
            for name, found in self._reads.items():
                found.append(layer[name])
        # Of what is left to read where it begins, from each layer on: the last layers may be grown
        # inwards, and networks may turn an axis around.
        self._begins = {
            name: list(accumulate((a for a, _ in reversed(found)), min))[::-1]
            for name, found in self._reads.items()
        }

    def _layers(self, graph: Graph) -> Iterator[dict[str, tuple[int, int]]]:
        """What each layer reads of those tensors, along the axis."""
        if not self._reads:
            return
        frames, lattice, axis = Frames(graph, self.stage), self.stage.lattice, self.axis
        corners = [0] * graph.rank, [n - 1 for n in lattice.counts]
        for i in range(self.count):
            for corner in corners:
                corner[axis] = i
            ends = [lattice.at(corner) for corner in corners]
            # What tiles take for the sake of equal shapes they take at the ends of a layer.
            found = [frames.needed(ends[0] | ends[1]), *map(frames.reads, ends)]
            boxes = {name: reduce(or_, (f[name] for f in found)) for name in self._reads}
            yield {name: (box.start[axis], box.stop[axis]) for name, box in boxes.items()}

    @property
    def rest(self) -> int:
        """Layers that are left."""
        return self.count - self.done

    @property
    def next(self) -> int:
        """Layers that run next."""
        return min(self.band, self.rest)

    @property
    def edge(self) -> int:
        """Where what is written ends; beyond all once it is whole."""
        return self.start + self.done * self.extent if self.rest else sys.maxsize

    def reaches(self, name: str) -> int:
        """How far the layers that run next read a tensor."""
        return max(stop for _, stop in self._reads[name][self.done : self.done + self.next])

    def begins(self, name: str) -> int:
        """Where what all layers that are left read of a tensor begins."""
        return self._begins[name][self.done] if self.rest else sys.maxsize
