"""What a rule is, and what rules share."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..boxes import Box, Shape
from ..graph import Graph, Node, Ref, dtype_of
from ..layout import Axes, Layout

Values = Mapping[str, Tensor]

INDEX = 8  # bytes


class Rule:
    """How one operator is evaluated on boxes.

    `needs` and `evaluate` agree: given the operands on exactly the boxes that `needs` names,
    `evaluate` returns what the operator on the whole grids has in `box`.
    """

    of_images = False  # whether the first operand is an image: batch, channels, then the grid
    may_share = False  # whether the result may lie in the memory of any operand

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        """How the result lies on the grid; None if the rule cannot evaluate it by boxes."""
        raise NotImplementedError

    def off_grid(self, node: Node, graph: Graph) -> tuple[str, ...]:
        """Operands that the rule takes whole, whatever the box."""
        return ()

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        """Box of each operand that `box` of the result depends on, cut to its grid."""
        raise NotImplementedError

    def wraps(self, node: Node) -> bool:
        """Whether some box needs both ends of an axis, and so all of it, though others do not."""
        return False

    def at_worst(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        """As `needs`, for the box of this shape that needs most."""
        return self.needs(node, box, graph)

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        """Compute the result on `box` from the operands on the boxes they are needed on.

        `values` holds those operands by name, and the node's weights whole.
        """
        raise NotImplementedError

    def spared(self, node: Node, graph: Graph) -> str | None:
        """Return the operand, if any, in whose memory `overwrite` puts the result."""
        return None

    def overwrite(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        """As `evaluate`, when the operand that is `spared` is not needed any more."""
        return self.evaluate(node, box, values, graph)

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        """Return what `evaluate` depends on beside the shapes of `box` and of the operands' boxes.

        Where it is equal, two boxes of one shape are evaluated by the same calls. Unless a rule
        knows better that is all of the position.
        """
        return box.start

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        """Return how far the operands' boxes move, axis by axis, when `box` moves by one point.

        None, unless all that the rule has to do with the edges of the grid is to take constants
        for points beyond them.
        """
        return None

    def outside_value(self, node: Node, graph: Graph) -> float | None:
        """Value that points of the operands have beyond the edges; None if none is looked at."""
        return None

    def operations(self, node: Node, graph: Graph) -> float:
        """Arithmetic operations per point of the result's grid."""
        return float(graph.width(node.name))

    def calls(self, node: Node, graph: Graph) -> int:
        """Kernels that are called for a tile, one after the other."""
        return 1

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        """Bytes taken beside operands and result while `box` of the result is computed."""
        return 0

    def is_view(self, node: Node, graph: Graph) -> bool:
        """Whether the result takes no memory of its own, as it lies in its first operand's."""
        return False


def refs(value: Any) -> Iterator[str]:
    """Names of the tensors that an argument refers to."""
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from refs(item)


def resolve(value: Any, values: Values) -> Any:
    """Put tensors where an argument refers to them."""
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, tuple):
        return [resolve(item, values) for item in value]
    return value


def call(node: Node, values: Values, op: Any = None) -> Tensor:
    """Apply the node's own operator, or `op` of the same overload, to `values`."""
    packet = op or getattr(torch.ops.aten, node.op)
    made = getattr(packet, node.overload)(**{k: resolve(v, values) for k, v in node.args.items()})
    return made if node.result is None else made[node.result]


def per_axis(value: Any, rank: int) -> Shape:
    """One integer for each axis: ATen repeats a single one."""
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * rank if len(given) == 1 else given


def aligned(box: Box, own: Shape, grid: Shape) -> Box:
    """Return `box` of `grid` on a grid that is the same, or one point, along each axis."""
    start = tuple(a if n == g else 0 for a, n, g in zip(box.start, own, grid, strict=True))
    stop = tuple(b if n == g else 1 for b, n, g in zip(box.stop, own, grid, strict=True))
    return Box(start, stop)


def merge(shape: Shape, rank: int, parts: list[tuple[Layout, int]]) -> Layout | None:
    """Layout of `shape` over operands whose first dimension is its dimension `offset`.

    None if two operands hold different axes in one dimension, or one axis in two dimensions.
    """
    dims: list[Axes] = [()] * len(shape)
    grid = [1] * rank
    for layout, offset in parts:
        for i, axes in enumerate(layout.dims):
            if not axes or layout.shape[i] != shape[offset + i] or layout.shape[i] == 1:
                continue
            if dims[offset + i] not in ((), axes):
                return None
            dims[offset + i] = axes
            for a in axes:
                if grid[a] not in (1, layout.grid[a]):
                    return None
                grid[a] = layout.grid[a]
    held = [a for axes in dims for a in axes]
    whole = all(
        not axes or math.prod(grid[a] for a in axes) == n
        for n, axes in zip(shape, dims, strict=True)
    )
    return (
        Layout(shape, tuple(dims), tuple(grid)) if whole and len(set(held)) == len(held) else None
    )


def is_cut(own: Layout, layout: Layout) -> bool:
    """Whether `broadcast_cut` cuts anything."""
    offset = len(layout.shape) - len(own.shape)
    return any(
        layout.dims[offset + i] and not own.dims[i] and n > 1 for i, n in enumerate(own.shape)
    )


def broadcast_cut(value: Tensor, own: Layout, layout: Layout, box: Box) -> Tensor:
    """Cut those dimensions of a tensor that hold no axes to `box` of what it is broadcast over."""
    offset = len(layout.shape) - value.ndim
    for i in range(value.ndim):
        axes = layout.dims[offset + i]
        if not axes or own.dims[i] or value.shape[i] == 1:
            continue
        if len(axes) == 1:
            value = value.narrow(i, box.start[axes[0]], box.shape[axes[0]])
        else:
            extents = [layout.grid[a] for a in axes]
            split = value.unflatten(i, extents)
            for k, a in enumerate(axes):
                split = split.narrow(i + k, box.start[a], box.shape[a])
            value = split.flatten(i, i + len(axes) - 1)
    return value


def rounds(node: Node) -> bool:
    """Whether a result is of whole numbers, each rounded once, as no sum of shares is."""
    return not dtype_of(node.dtype, torch.float32).is_floating_point


def normalized(dims: Any, rank: int) -> tuple[int, ...]:
    """Dimensions counted from the first, sorted; all of them where none is named."""
    if dims is None or dims == ():
        return tuple(range(rank))
    return tuple(sorted(d % rank for d in ((dims,) if isinstance(dims, int) else dims)))


def beside(node: Node, size: int, itemsize: int) -> int:
    """Bytes of a result of `size` elements that an operator returns beside the node's own.

    Where there are two, one holds values and one their indices.
    """
    if node.result is None:
        return 0
    return size * (INDEX if node.dtype is None else itemsize)


class Opaque(Rule):
    """An operator without a rule: evaluated in one piece, on operands that are taken whole."""

    may_share = True

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        fixed = not any(graph.layouts[name].held for name in node.operands)
        return Layout.fixed(node.shape, graph.rank) if fixed else None

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        return {name: graph.whole(name) for name in node.operands}

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        name = node.op.removeprefix("aten:")
        if name in ("_unsafe_view", "as_strided", "view"):  # depends on the order in memory
            values = {key: value.contiguous() for key, value in values.items()}
        space, _, op = name.rpartition("::")
        return call(node, values, getattr(getattr(torch.ops, space or "aten"), op))

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        size = sum(math.prod(graph.shape(name)) for name in node.operands)
        return itemsize * size + beside(node, size + math.prod(node.shape), itemsize)
