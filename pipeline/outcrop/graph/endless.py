"""Part of a graph on a grid without edges, so that every tile is evaluated by the same calls."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from torch import Tensor

from .boxes import Box, Shape, central_tile
from .graph import Graph
from .propagate import needed
from .rules import RULES
from .rules.kernels import expressible, padded

# Points between the first tile and the edge of the grid on which it is evaluated: more than any
# halo, and divisible by most factors between resolutions. Nothing of that size is allocated.
_FAR = 2**8 * 3 * 5 * 7


@dataclass(frozen=True)
class Endless:
    """How to evaluate any tile of a stage as if it lay in the middle of a larger volume.

    What lies beyond the true edge is filled, after every operator, with what its users take for
    padding.

    Attributes
    ----------
    graph : Graph
        The part, on grids with room beyond every edge.
    tile : Box
        The first tile, there.
    boxes : mapping of str to Box
        What it needs of every tensor, there.
    fills : mapping of str to float
        Tensors whose values beyond the edge matter, and those values.
    """

    graph: Graph
    tile: Box
    boxes: dict[str, Box]
    fills: dict[str, float]
    _true: Graph
    _offsets: dict[str, Shape]
    _scales: dict[str, tuple[Fraction, ...]]
    _start: Shape

    def place(self, name: str, tile: Box) -> Box:
        """Box that `tile` needs of a tensor, on the true grid or beyond its edges."""
        shift = (
            int((t - s) * scale) - o
            for t, s, scale, o in zip(
                tile.start, self._start, self._scales[name], self._offsets[name], strict=True
            )
        )
        return self.boxes[name].shifted(tuple(shift))

    def fill(self, name: str, value: Tensor, tile: Box) -> None:
        """Set what `value`, on the box of `tile`, has beyond the edge."""
        box, grid = self.place(name, tile), self._true.grid(name)
        for axis, (a, b, n) in enumerate(zip(box.start, box.stop, grid, strict=True)):
            dim = self._true.layouts[name].axis_dim(axis)
            if dim is None or (a >= 0 and b <= n):
                continue
            before, after = min(b - a, max(0, -a)), min(b - a, max(0, b - n))
            beyond = expressible(self.fills[name], value.dtype)
            value.narrow(dim, 0, before).fill_(beyond)
            value.narrow(dim, b - a - after, after).fill_(beyond)

    def beyond(self, tile: Box) -> tuple[tuple[str, Box], ...]:
        """What `fill` changes: tensors, and what of each lies inside."""
        found = []
        for name in self.fills:
            box, whole = self.place(name, tile), self._true.whole(name)
            if box not in whole:
                found.append((name, (box & whole).within(box)))
        return tuple(found)

    def extended(self, name: str, value: Tensor, tile: Box) -> Tensor:
        """Add what lies beyond the edge to a tensor that was read, in the form of a store."""
        box, grid = self.place(name, tile), self._true.grid(name)
        ends = list(zip(box.start, box.stop, grid, strict=True))
        before = [min(b - a, max(0, -a)) for a, b, _ in ends]
        after = [min(b - a, max(0, b - n)) for a, b, n in ends]
        if not any(before) and not any(after):
            return value
        return padded(value, before, after, self.fills.get(name, 0.0))


def open_axes(
    graph: Graph, nodes: Sequence[str], kept: Sequence[str], domain: Box, tile: Shape
) -> frozenset[int]:
    """Axes of several tiles along which the middle one needs nothing at the edge.

    Elsewhere a tile in the middle of a larger volume would need more than any does.
    """
    boxes = needed(graph, nodes, dict.fromkeys(kept, central_tile(domain, tile)))

    def inside(name: str, a: int) -> bool:
        n, box = graph.grid(name)[a], boxes[name]
        return n == 1 or 0 < box.start[a] < box.stop[a] < n

    several = [a for a, (n, t) in enumerate(zip(domain.shape, tile, strict=True)) if n > 2 * t]
    return frozenset(a for a in several if all(inside(name, a) for name in boxes))


def endless(
    graph: Graph,
    nodes: Sequence[str],
    kept: Sequence[str],
    domain: Box,
    tile: Shape,
    extents: Mapping[str, Shape],
) -> Endless | None:
    """Put a part of a graph on a grid without edges, along axes that are cut into several tiles.

    Parameters
    ----------
    graph : Graph
    nodes : sequence of str
        Operators of the part, in order.
    kept : sequence of str
        What is wanted of it, all on one grid.
    domain : Box
        The part of that grid that the tiles cover.
    tile : tuple of int
    extents : mapping of str to tuple of int
        To which boxes are grown along the other axes.

    Returns
    -------
    Endless or None
        None if an operator has more to do with the edges than padding by a constant, if tiles lie
        differently on coarser grids, or if there is one tile alone.
    """
    axes = {a for a, (n, t) in enumerate(zip(domain.shape, tile, strict=True)) if n > t}
    found = _moves(graph, nodes, kept, axes) if axes and nodes else None
    if found is None:
        return None
    scales, fills = found
    steps = [s * t for scale in scales.values() for s, t in zip(scale, tile, strict=True)]
    begins = [s * a for scale in scales.values() for s, a in zip(scale, domain.start, strict=True)]
    if any(x.denominator > 1 for x in (*steps, *begins)):
        return None
    far = math.lcm(_FAR, *(s.denominator for scale in scales.values() for s in scale))
    offsets = {name: tuple(int(far * s) for s in scale) for name, scale in scales.items()}
    enlarged = _enlarged(graph, nodes, offsets)
    if enlarged is None:
        return None
    start = tuple(far if a in axes else first for a, first in enumerate(domain.start))
    stop = (min(a + t, a + n) for a, t, n in zip(start, tile, domain.shape, strict=True))
    first = Box(start, tuple(stop))
    boxes = needed(enlarged, nodes, dict.fromkeys(kept, first), extents)
    # Offsets of the first tile: it begins where the domain does.
    offsets = {
        name: tuple(
            o - int(s * d)
            for o, s, d in zip(offsets[name], scales[name], domain.start, strict=True)
        )
        for name in offsets
    }
    return Endless(enlarged, first, boxes, fills, graph, offsets, scales, domain.start)


def _moves(
    graph: Graph, nodes: Sequence[str], kept: Sequence[str], axes: Collection[int]
) -> tuple[dict[str, tuple[Fraction, ...]], dict[str, float]] | None:
    """How far each tensor's box moves with the tile, and what lies beyond the edges of some."""
    one = tuple(Fraction(a in axes) for a in range(graph.rank))
    scales = dict.fromkeys(kept, one)
    fills: dict[str, float] = {}
    for name in reversed(nodes):
        node, rule = graph.nodes[name], RULES[graph.nodes[name].op]
        moves = rule.moves(node, graph)
        if moves is None:
            return None
        value = rule.outside_value(node, graph)
        for operand in node.operands:
            if value is not None and fills.setdefault(operand, value) != value:
                return None
            scale = tuple(
                s * m if n > 1 else Fraction(0)
                for s, m, n in zip(scales[name], moves, graph.grid(operand), strict=True)
            )
            if scales.setdefault(operand, scale) != scale:
                return None
    for name in nodes:  # two names of one memory
        node = graph.nodes[name]
        if node.operands and RULES[node.op].may_share:
            other = node.operands[0]
            if fills.get(name, fills.get(other)) != fills.get(other, fills.get(name)):
                return None
    return scales, fills


def _enlarged(graph: Graph, nodes: Collection[str], offsets: dict[str, Shape]) -> Graph | None:
    """The same operators on grids with that much room at either end of each axis."""
    layouts = {}
    for name, offset in offsets.items():
        layout = graph.layouts[name]
        if any(len(axes) > 1 for axes in layout.dims):
            return None
        room = [2 * o for o in offset]
        shape = tuple(
            n + sum(room[a] for a in axes)
            for n, axes in zip(layout.shape, layout.dims, strict=True)
        )
        grid = tuple(n + r for n, r in zip(layout.grid, room, strict=True))
        if math.prod(layout.grid) > 1 and any(
            n == 1 and not o and a in layout.held
            for a, (n, o) in enumerate(zip(layout.grid, offset, strict=True))
        ):
            return None
        layouts[name] = replace(layout, shape=shape, grid=grid)
    changed = {name: replace(graph.nodes[name], shape=layouts[name].shape) for name in nodes}
    return replace(graph, nodes=changed, layouts=layouts)
