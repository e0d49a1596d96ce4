"""Convolutions of nearest-neighbour upsampling, on the coarse grid; see `graph.polyphase`."""

from __future__ import annotations

import math
from collections.abc import Hashable
from fractions import Fraction

from torch import Tensor

from ..boxes import Box, Shape
from ..graph import Graph, Node
from .base import Values
from .convolution import Convolution


class UpsampledConvolution(Convolution):
    """Points padding + r·i + j of the result, j below r, all see the coarse points from i on."""

    def geometry(self, node: Node, graph: Graph) -> tuple[Shape, Shape, Shape, Shape]:
        kernel = self._kernel(node, graph)
        ones = (1,) * len(kernel)
        return kernel, ones, (0,) * len(kernel), ones

    def reach(self, node: Node, box: Box, graph: Graph) -> tuple[Shape, Shape]:
        first, last = self._windows(node, box, graph)
        kernel = self._kernel(node, graph)
        return first, tuple(b + k - 1 for b, k in zip(last, kernel, strict=True))

    def _windows(self, node: Node, box: Box, graph: Graph) -> tuple[Shape, Shape]:
        """First window that the box takes part in along each dimension, and the one after all."""
        factors, padding = node.args["factors"], node.args["padding"]
        dims = graph.layouts[node.name].dims[-len(factors) :]
        ends = [
            ((box.start[a] - p) // r, (box.stop[a] - 1 - p) // r + 1)
            for (a,), r, p in zip(dims, factors, padding, strict=True)
        ]
        return tuple(a for a, _ in ends), tuple(b for _, b in ends)

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        factors = node.args["factors"]
        found = [Fraction(1)] * graph.rank
        for (a,), r in zip(graph.layouts[node.name].dims[-len(factors) :], factors, strict=True):
            found[a] = Fraction(1, r)
        return tuple(found)

    def outside_value(self, node: Node, graph: Graph) -> float | None:
        return self.outside

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        return super().position(node, box, graph), self._offsets(node, box, graph)

    def _offsets(self, node: Node, box: Box, graph: Graph) -> Shape:
        """Points between the first window's first and that of the box."""
        factors, padding = node.args["factors"], node.args["padding"]
        dims, (first, _) = graph.layouts[node.name].dims, self._windows(node, box, graph)
        dims = dims[-len(factors) :]
        return tuple(
            box.start[a] - p - r * f
            for (a,), r, p, f in zip(dims, factors, padding, first, strict=True)
        )

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        factors, n = node.args["factors"], len(node.args["factors"])
        made = super().evaluate(node, box, values, graph).movedim(1, -1)
        windows = made.shape[1:-1]
        made = made.unflatten(-1, (*factors, -1))
        pairs = [axis for i in range(1, n + 1) for axis in (i, i + n)]
        made = made.permute(0, *pairs, 2 * n + 1)
        points = [m * r for m, r in zip(windows, factors, strict=True)]
        made = made.reshape(made.shape[0], *points, made.shape[-1])
        dims, offsets = graph.layouts[node.name].dims[-n:], self._offsets(node, box, graph)
        for i, ((a,), offset) in enumerate(zip(dims, offsets, strict=True), start=1):
            made = made.narrow(i, offset, box.shape[a])
        return made.contiguous().movedim(-1, 1)

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        # The phases are held beside the result, or that with what the box cuts off.
        first, last = self._windows(node, box, graph)
        windows = math.prod(b - a for a, b in zip(first, last, strict=True))
        points = windows * math.prod(node.args["factors"])
        return (
            super().workspace(node, box, graph, itemsize, device)
            + itemsize * graph.width(node.name) * points
        )
