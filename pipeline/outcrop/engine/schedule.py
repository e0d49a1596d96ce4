"""Which tile can run next: one waits for the tiles that it reads, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from ..graph import Box
from ..graph.boxes import Lattice
from ..planner import Plan

# Boxes of the stored tensors that a tile of a stage reads.
Reads = Callable[[int, Box], Mapping[str, Box]]


class Schedule:
    """The tiles of a plan, in an order in which what each reads is written before.

    Tiles of earlier stages go first; where none of them is left, or what they read is still being
    written, those of later stages follow.

    Parameters
    ----------
    plan : Plan
    reads : callable
        Takes the index of a stage and a tile.
    finished : collection of (stage, tile)
        Tiles that are written already.
    """

    def __init__(
        self, plan: Plan, reads: Reads, finished: Collection[tuple[int, int]] = ()
    ) -> None:
        self.plan, self._reads = plan, reads
        self._lattices = [Lattice(stage.domain, stage.tile) for stage in plan.stages]
        self._written = [bytearray(stage.count) for stage in plan.stages]
        for i, n in finished:
            self._written[i][n] = True
        self._left = [written.count(False) for written in self._written]
        self._writers = {name: i for i, stage in enumerate(plan.stages) for name in stage.outputs}
        self._mergers = {name: i for i, stage in enumerate(plan.stages) for name in stage.reduces}
        self._merged: set[int] = set()
        self._todo = [self._unwritten(i) for i in range(len(plan.stages))]
        self._next = [next(todo, None) for todo in self._todo]
        # Of each stage the tile that its next one waits for, as far as is known.
        self._awaited: list[tuple[int, int] | None] = [None] * len(plan.stages)

    def _unwritten(self, i: int) -> Iterator[tuple[int, Box]]:
        for n, tile in enumerate(self.plan.stages[i].tiles()):
            if not self._written[i][n]:
                yield n, tile

    def take(self, stage: int | None = None) -> tuple[int, int, Box] | None:
        """Return stage, number and box of a tile that can run now; None if there is none.

        Parameters
        ----------
        stage : int, optional
            Of this stage alone.
        """
        for i in range(len(self._next)) if stage is None else (stage,):
            following = self._next[i]
            if following is not None and self._can_run(i, following[1]):
                self._next[i] = next(self._todo[i], None)
                return i, *following
        return None

    def _can_run(self, i: int, tile: Box) -> bool:
        awaited = self._awaited[i]
        if awaited is not None and not self._written[awaited[0]][awaited[1]]:
            return False
        self._awaited[i] = None
        for name in self.plan.stages[i].inputs:
            if name in self._mergers and self._mergers[name] not in self._merged:
                return False
        for name, box in self._reads(i, tile).items():
            k = self._writers.get(name)
            if k is None or not self._left[k]:
                continue
            lattice = self._lattices[k]
            for n, _ in lattice.touching(box & lattice.domain):
                if not self._written[k][n]:
                    self._awaited[i] = k, n
                    return False
        return True

    def write(self, i: int, n: int) -> None:
        """Note that a tile is written."""
        self._written[i][n] = True
        self._left[i] -= 1

    def left(self, i: int) -> int:
        """Number of tiles of a stage that are not written."""
        return self._left[i]

    def is_written(self, i: int) -> bool:
        """Whether all tiles of a stage are."""
        return not self._left[i]

    def merge(self, i: int) -> None:
        """Note that the global values of a stage are there."""
        self._merged.add(i)

    def spent(self, i: int) -> set[str]:
        """Tensors, read or written by stage `i`, that no tile will read any more."""
        stage = self.plan.stages[i]
        waiting = [s for k, s in enumerate(self.plan.stages) if self._left[k]]
        later = {name for s in waiting for name in (*s.inputs, *s.outputs, *s.reduces)}
        return {*stage.inputs, *stage.outputs, *stage.reduces} - later
