"""On which boxes the tensors of a stage are evaluated, for each of its tiles."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

from ..graph import Box, Graph
from ..graph.boxes import Shape, central_tile
from ..graph.endless import Endless, endless, open_axes
from ..graph.propagate import needed
from .plan import Stage


@dataclass(frozen=True)
class Frame:
    """A tile, and the boxes on which all else is computed for it, on the grids of a graph."""

    graph: Graph
    tile: Box
    boxes: Mapping[str, Box]
    anywhere: Endless | None = None


class Frames:
    """The frames of a stage's tiles.

    Parameters
    ----------
    graph : Graph
    stage : Stage
        Of a plan for that graph.

    Attributes
    ----------
    reducing : dict of str to str
        The tensors that the stage's global values reduce, each on the tile.
    kept : tuple of str
        What is wanted on the tile: the stage's outputs, and these.
    central : dict of str to Box
        Boxes of a tile far from the edges.
    """

    def __init__(self, graph: Graph, stage: Stage) -> None:
        self.graph, self.stage = graph, stage
        self.reducing = {name: graph.nodes[name].operands[0] for name in stage.reduces}
        self.kept = tuple(dict.fromkeys((*stage.outputs, *self.reducing.values())))
        self.central = self.needed(central_tile(stage.domain, stage.tile))
        self._extents = {name: box.shape for name, box in self.central.items()}
        self._open = open_axes(graph, stage.nodes, self.kept, stage.domain, stage.tile)
        self._endless: dict[Box, Endless | None] = {}
        # By a proxy: in a circle of references tensors would outlive the run.
        self.of = lru_cache(maxsize=4)(partial(Frames._of, weakref.proxy(self)))

    def _of(self, tile: Box, halved: bool = False) -> Frame:
        """Where possible a tile is evaluated as any other is, far from the edges."""
        anywhere = None if halved else self._anywhere(tile)
        if anywhere is not None:
            start = anywhere.tile.start
            stop = tuple(a + n for a, n in zip(start, tile.shape, strict=True))
            return Frame(anywhere.graph, Box(start, stop), anywhere.boxes, anywhere)
        # Grown to one shape, so that kernels and memory are used again.
        extents = None if halved else self._extents
        return Frame(self.graph, tile, self.needed(tile, extents))

    def _anywhere(self, tile: Box) -> Endless | None:
        """The same for all tiles in a row along the open axes."""
        stage, axes = self.stage, range(self.graph.rank)
        if not self._open:
            return None
        ends = [stage.domain if a in self._open else tile for a in axes]
        row = Box(
            tuple(box.start[a] for a, box in enumerate(ends)),
            tuple(box.stop[a] for a, box in enumerate(ends)),
        )
        if row not in self._endless:
            self._endless[row] = endless(
                self.graph, stage.nodes, self.kept, row, stage.tile, self._extents
            )
        return self._endless[row]

    def needed(self, tile: Box, extents: Mapping[str, Shape] | None = None) -> dict[str, Box]:
        """Boxes of all tensors that a tile, or several in one box, cannot do without."""
        return needed(self.graph, self.stage.nodes, dict.fromkeys(self.kept, tile), extents)

    def reads(self, tile: Box, halved: bool = False) -> dict[str, Box]:
        """Return the box of each of the stage's inputs that a tile takes."""
        frame, inputs = self.of(tile, halved), self.stage.inputs
        if frame.anywhere is None:
            return {name: frame.boxes[name] for name in inputs}
        return {name: frame.anywhere.place(name, tile) & self.graph.whole(name) for name in inputs}
