"""Operators that move a window over the grid, and pools; convolutions are in `convolution`."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..boxes import Box, Shape
from ..graph import Graph, Node
from ..layout import Axes, Layout
from .base import Rule, Values, per_axis, rounds
from .kernels import expressible, largest, mean, padded


def op_rank(node: Node) -> int:
    """Number of dimensions that the window has: the digit in the operator's name."""
    return int(node.op[-2])


class Window(Rule):
    """A window of `kernel` points, `dilation` apart, moved by `stride` over a padded grid.

    It moves along the last dimensions of an operand, each of which holds one axis of the grid or
    none; one that holds none is always taken whole. One along which the window is a single point
    may hold several.

    Parameters
    ----------
    outside : float
        The value of points beyond the grid.
    """

    of_images = True

    def __init__(self, outside: float) -> None:
        self.outside = outside

    def geometry(self, node: Node, graph: Graph) -> tuple[Shape, Shape, Shape, Shape]:
        """Kernel, stride, padding at the start, and dilation of each dimension."""
        raise NotImplementedError

    def apply(self, node: Node, x: Tensor, padding: Shape, values: Values, graph: Graph) -> Tensor:
        """Apply the operator to `x` with the same `padding` at both ends of a dimension."""
        raise NotImplementedError

    def source(self, node: Node) -> str:
        """Name of the operand over which the window moves."""
        return next(iter(node.operands))

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own = graph.layouts[self.source(node)]
        n = op_rank(node)
        if len(own.shape) <= n:
            return None
        grid, (*how, _) = list(own.grid), self.geometry(node, graph)
        for i, (axes, *window) in enumerate(zip(own.dims[-n:], *how, strict=True)):
            if len(axes) > 1 and window != [1, 1, 0]:
                return None
            if len(axes) == 1:
                grid[axes[0]] = node.shape[i - n]
        return Layout(node.shape, own.dims, tuple(grid))

    def reach(self, node: Node, box: Box, graph: Graph) -> tuple[Shape, Shape]:
        """First and last-but-one point of every dimension that the box's windows cover."""
        layout, n = graph.layouts[node.name], op_rank(node)
        kernel, stride, padding, dilation = self.geometry(node, graph)
        start, stop = [], []
        for i, axes in enumerate(layout.dims[-n:]):
            a, b = _range(axes, box, layout.shape[i - n])
            start.append(a * stride[i] - padding[i])
            stop.append((b - 1) * stride[i] - padding[i] + (kernel[i] - 1) * dilation[i] + 1)
        return tuple(start), tuple(stop)

    def held(self, node: Node, box: Box, graph: Graph) -> tuple[Shape, Shape]:
        """As `reach`, cut to the grid; a window in the padding still names one point."""
        own, n = graph.layouts[self.source(node)], op_rank(node)
        start, stop = [], []
        for i, (a, b) in enumerate(zip(*self.reach(node, box, graph), strict=True)):
            axes, extent = own.dims[i - n], own.shape[i - n]
            if axes:
                extent = b if len(axes) > 1 else extent
                first = min(max(a, 0), extent - 1)
                start.append(first)
                stop.append(max(min(b, extent), first + 1))
            else:
                start.append(0)
                stop.append(extent)
        return tuple(start), tuple(stop)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        source, n = self.source(node), op_rank(node)
        first, last = self.held(node, box, graph)
        return {source: with_axes(box, graph.layouts[source].dims[-n:], first, last)}

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        _, stride, _, _ = self.geometry(node, graph)
        found = [Fraction(1)] * graph.rank
        for axes, step in zip(graph.layouts[node.name].dims[-len(stride) :], stride, strict=True):
            for a in axes:
                found[a] = Fraction(step)
        return tuple(found)

    def outside_value(self, node: Node, graph: Graph) -> float | None:
        _, _, padding, _ = self.geometry(node, graph)
        return self.outside if any(padding) or node.args.get("ceil_mode") else None

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        (low, high), (first, last) = self.reach(node, box, graph), self.held(node, box, graph)
        starts = tuple(f - a for f, a in zip(first, low, strict=True))
        return starts, tuple(b - e for b, e in zip(high, last, strict=True))

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        x = values[self.source(node)]
        (low, high), (first, last) = self.reach(node, box, graph), self.held(node, box, graph)
        before = tuple(h - r for h, r in zip(first, low, strict=True))
        after = tuple(r - h for h, r in zip(last, high, strict=True))
        n = len(before)
        if any(b <= f or a >= e for a, b, f, e in zip(low, high, first, last, strict=True)):
            extents = [b - a for a, b in zip(low, high, strict=True)]
            x = x.new_full((*x.shape[:-n], *extents), expressible(self.outside, x.dtype))
            return self.apply(node, x, (0,) * n, values, graph)
        # A dimension that is padded by the same amount at both ends is left to the operator; one
        # that is taken whole may reach less far than it is held.
        both = tuple(a if a == b and a > 0 else 0 for a, b in zip(before, after, strict=True))
        before = tuple(a - p for a, p in zip(before, both, strict=True))
        after = tuple(a - p for a, p in zip(after, both, strict=True))
        for i in range(n):
            if before[i] < 0 or after[i] < 0:
                cut = max(0, -before[i])
                keep = x.shape[i - n] - cut - max(0, -after[i])
                x = x.narrow(i - n, cut, keep)
        if max(before) > 0 or max(after) > 0:
            x = padded(x, [max(0, a) for a in before], [max(0, a) for a in after], self.outside)
        return self.apply(node, x, both, values, graph)

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        return itemsize * self._copied(node, box, graph)

    def _copied(self, node: Node, box: Box, graph: Graph) -> int:
        """Values of what the kernel is given, if that is not the operand as it is."""
        source, given = self.source(node), self._given(node, box, graph)
        same = self.needs(node, box, graph)[source] == graph.whole(source)
        return 0 if same and given == list(graph.shape(source)) else math.prod(given)

    def _given(self, node: Node, box: Box, graph: Graph) -> list[int]:
        """Shape of what the kernel is given: the operand where windows reach, padded at one end."""
        source = self.source(node)
        given = graph.layouts[source].local(self.needs(node, box, graph)[source])
        ends = zip(*self.reach(node, box, graph), *self.held(node, box, graph), strict=True)
        for i, (a, b, first, last) in enumerate(ends, start=-op_rank(node)):
            both = max(0, first - a) if first - a == b - last else 0  # there the kernel pads
            given[i] = b - a - 2 * both
        return given


def _range(axes: Axes, box: Box, extent: int) -> tuple[int, int]:
    """First and last-but-one point of a box along a dimension that holds these axes.

    Of several the points are counted within the box.
    """
    if len(axes) == 1:
        return box.start[axes[0]], box.stop[axes[0]]
    return 0, math.prod(box.shape[a] for a in axes) if axes else extent


def with_axes(box: Box, dims: Sequence[Axes], first: Shape, last: Shape) -> Box:
    """Return `box` with other ranges along axes that are alone in one of `dims`."""
    start, stop = list(box.start), list(box.stop)
    for axes, a, b in zip(dims, first, last, strict=True):
        if len(axes) == 1:
            start[axes[0]], stop[axes[0]] = a, b
    return Box(tuple(start), tuple(stop))


class Pool(Window):
    """Largest or mean value of each window."""

    def geometry(self, node: Node, graph: Graph) -> tuple[Shape, Shape, Shape, Shape]:
        n = op_rank(node)
        kernel = per_axis(node.args["kernel_size"], n)
        return (
            kernel,
            per_axis(node.args["stride"] or kernel, n),
            per_axis(node.args["padding"], n),
            per_axis(node.args.get("dilation", 1), n),
        )

    def apply(self, node: Node, x: Tensor, padding: Shape, values: Values, graph: Graph) -> Tensor:
        kernel, stride, _, dilation = self.geometry(node, graph)
        return largest(x, kernel, stride, padding, dilation)

    def operations(self, node: Node, graph: Graph) -> float:
        return float(math.prod(self.geometry(node, graph)[0]) * graph.width(node.name))

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        made = graph.width(node.name) * box.size
        if device != "cpu":  # there ATen finds the place of each largest value too, as an int64
            return super().workspace(node, box, graph, itemsize, device) + 8 * made
        copied, left = self._by_axis(node, box, graph)
        return itemsize * (copied + max(map(sum, pairwise((0, *left[1:]))), default=made) - made)

    def _by_axis(self, node: Node, box: Box, graph: Graph) -> tuple[int, list[int]]:
        """Values of the padded copy, if there is one; of what is read, and each axis leaves."""
        (low, high), (first, last) = self.reach(node, box, graph), self.held(node, box, graph)
        kernel, _, _, _ = self.geometry(node, graph)
        made, n = graph.layouts[node.name].local(box), len(kernel)
        extents = [b - a for a, b in zip(low, high, strict=True)]
        lead = math.prod(made[:-n])
        left = [lead * math.prod(extents)]
        for i, k in enumerate(kernel):
            extents[i] = made[i - n]
            if k > 1:
                left.append(lead * math.prod(extents))
        ends = zip(low, high, first, last, strict=True)
        copied = left[0] if any(a < f or b > e for a, b, f, e in ends) else 0
        return copied, left


class AveragePool(Pool):
    """Mean of each window, over as many points as ATen counts in it."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        return None if rounds(node) else super().layout(node, graph)

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        # Windows at the edge may have another divisor.
        at_edge = self.outside_value(node, graph) is not None
        return None if at_edge else super().moves(node, graph)

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        made = graph.width(node.name) * box.size  # anew, where there is another divisor
        if device != "cpu":
            return Window.workspace(self, node, box, graph, itemsize, device) + itemsize * made
        copied, left = self._by_axis(node, box, graph)
        if itemsize < 4:  # in single precision
            return itemsize * copied + 4 * max(map(sum, pairwise(left)), default=2 * made)
        return max(Pool.workspace(self, node, box, graph, itemsize), itemsize * (copied + made))

    def apply(self, node: Node, x: Tensor, padding: Shape, values: Values, graph: Graph) -> Tensor:
        kernel, stride, _, _ = self.geometry(node, graph)
        if any(padding):
            x = padded(x, padding, padding, 0.0)
        return mean(x, kernel, stride)

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        made = super().evaluate(node, box, values, graph)
        source, layout, n = self.source(node), graph.layouts[node.name], op_rank(node)
        kernel, stride, padding, _ = self.geometry(node, graph)
        divisor = node.args.get("divisor_override")
        if divisor:
            return made * (math.prod(kernel) / divisor)
        for i, (k, s, p) in enumerate(zip(kernel, stride, padding, strict=True)):
            extent = graph.layouts[source].shape[i - n]
            a, b = _range(layout.dims[i - n], box, layout.shape[i - n])
            low = np.arange(a, b) * s - p
            if node.args["count_include_pad"]:
                count = (low + k).clip(max=extent + p) - low
            else:
                count = (low + k).clip(max=extent) - low.clip(min=0)
            if (count != k).any():
                factor = torch.from_numpy(k / count).to(made.device, made.dtype)
                made = made * factor.view(-1, *(1,) * (n - 1 - i))
        return made
