"""Operators whose results are weighted means of a few points along each axis."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..boxes import Box
from ..graph import Graph, Node
from ..layout import Layout
from .base import Rule, Values, rounds
from .kernels import COLUMNS
from .mixing import pays_as_product, product, suits_products
from .pointwise import channels_last
from .window import with_axes

# Positions that a result takes part in, and their shares: (results, positions) each.
Taps = tuple[np.ndarray, np.ndarray]
TapsOf = Callable[[int, int, int, int, bool, float | None], Taps]


class Separable(Rule):
    """Each result is a mean of a few points along each axis: resampling, adaptive means.

    Parameters
    ----------
    taps : callable
        From a dimension's extents before and after, the first and last of some results,
        `align_corners`, and the factor that was given, if any: the `Taps` of the results.
    """

    of_images = True
    is_mean = True

    def __init__(self, taps: TapsOf) -> None:
        self.taps = taps

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own = graph.layouts[node.operands[0]]
        lead = len(node.shape) - self._count(node)
        if rounds(node):
            return None
        if any(len(axes) > 1 for axes in own.dims[lead:]):
            return None
        grid = list(own.grid)
        for axes, extent in zip(own.dims[lead:], node.shape[lead:], strict=True):
            for a in axes:
                grid[a] = extent
        return Layout(node.shape, own.dims, tuple(grid))

    def _count(self, node: Node) -> int:
        return 3 if "3d" in node.op else 2 if "2d" in node.op or "bilinear" in node.op else 1

    def _taps(self, node: Node, box: Box, graph: Graph) -> dict[int, Taps]:
        own, layout = graph.layouts[node.operands[0]], graph.layouts[node.name]
        found = {}
        for i in range(len(node.shape) - self._count(node), len(node.shape)):
            axes = layout.dims[i]
            a, b = (box.start[axes[0]], box.stop[axes[0]]) if axes else (0, layout.shape[i])
            factors: Any = node.args.get("scale_factors")
            factor = factors[i - 2] if factors else None
            aligned = bool(node.args.get("align_corners"))
            found[i] = self.taps(own.shape[i], node.shape[i], a, b, aligned, factor)
        return found

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        own = graph.layouts[node.operands[0]]
        taps = self._taps(node, box, graph)
        return {
            node.operands[0]: with_axes(
                box,
                [own.dims[i] for i in taps],
                tuple(int(where.min()) for where, _ in taps.values()),
                tuple(int(where.max()) + 1 for where, _ in taps.values()),
            )
        }

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        held = self.needs(node, box, graph)[node.operands[0]]
        dims = graph.layouts[node.operands[0]].dims
        return tuple(
            (*(where - held.start[dims[i][0]] if dims[i] else where).ravel(), *share.ravel())
            for i, (where, share) in self._taps(node, box, graph).items()
        )

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        x = values[node.operands[0]]
        own = graph.layouts[node.operands[0]]
        held = self.needs(node, box, graph)[node.operands[0]]
        suits, taps = self.is_mean and suits_products(x), self._taps(node, box, graph)
        # In halves the last axis first, while there are the fewest lines: each takes a matrix.
        for i in reversed(taps) if suits and x.itemsize < 4 else taps:
            where, share = taps[i]
            at = where - (held.start[own.dims[i][0]] if own.dims[i] else 0)
            if suits and pays_as_product(x, i, at):
                x = product(x, i, at, share)
            else:
                x = self._by_points(x, i, at, share)
        return x

    def _by_points(self, x: Tensor, dim: int, where: np.ndarray, share: np.ndarray) -> Tensor:
        at = torch.from_numpy(where).to(x.device)
        shares = torch.from_numpy(share).to(x.device, x.dtype)
        last = channels_last(x)
        if last:
            x, dim = x.movedim(1, -1), dim - 1
        column = -1, *(1,) * (x.ndim - 1 - dim)
        made = x.new_empty((*x.shape[:dim], len(where), *x.shape[dim + 1 :]))
        rows = max(1, COLUMNS // max(1, x.itemsize * (x.numel() // x.shape[dim])))
        for a in range(0, len(where), rows):
            part = made.narrow(dim, a, min(rows, len(where) - a))
            for k in range(at.shape[1]):
                add = self.join if k else self.first
                some = slice(a, a + rows), k
                add(part, x.index_select(dim, at[some]), shares[some].view(column))
        return made.movedim(-1, 1) if last else made

    def first(self, made: Tensor, part: Tensor, share: Tensor) -> None:
        """Begin with one of the points."""
        torch.mul(part, share, out=made)

    def join(self, made: Tensor, part: Tensor, share: Tensor) -> None:
        """Add the next one."""
        made.addcmul_(part, share)

    def operations(self, node: Node, graph: Graph) -> float:
        return 8.0 * graph.width(node.name)

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        # Along each axis in turn: what it begins with, copied if need be, and what it makes.
        (need,) = self.needs(node, box, graph).values()
        given = graph.layouts[node.operands[0]].local(need)
        made, before, most = graph.layouts[node.name].local(box), math.prod(given), 0
        axes, shape = range(len(made) - self._count(node), len(made)), list(given)
        for i in axes:
            shape[i] = made[i]
            size = math.prod(shape)
            row = min(size, max(size // shape[i], COLUMNS // itemsize))
            most = max(most, before + row + size * (i < axes[-1]))
            before = size
        if itemsize < 4 and device == "cpu":  # or as products, with a matrix for each line
            shape, before = list(given), 0
            for i in reversed(axes):
                lines = math.prod(shape[: 1 if i == axes[-1] else 2]) * math.prod(shape[2:i])
                shape[i] = made[i]
                most = max(most, before + math.prod(shape) + lines * given[i] * made[i])
                before = math.prod(shape)
        return itemsize * most


class LargestOf(Separable):
    """Each result is the largest of a few points along each axis."""

    is_mean = False

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        return None if node.result else super().layout(node, graph)

    def first(self, made: Tensor, part: Tensor, share: Tensor) -> None:
        made.copy_(part)

    def join(self, made: Tensor, part: Tensor, share: Tensor) -> None:
        torch.maximum(made, part, out=made)


def _scale(n: int, m: int, align_corners: bool, factor: float | None) -> float:
    """Points of the operand for one of the result."""
    if align_corners:
        return (n - 1) / (m - 1) if m > 1 else 0.0
    return n / m if factor is None else 1.0 / factor


def _positions(
    n: int, m: int, first: int, last: int, align_corners: bool, factor: float | None
) -> np.ndarray:
    """Where results lie, in coordinates of the operand's whole dimension."""
    i, scale = np.arange(first, last), _scale(n, m, align_corners, factor)
    return i * scale if align_corners else (i + 0.5) * scale - 0.5


@functools.lru_cache(maxsize=4096)
def linear_taps(
    n: int, m: int, first: int, last: int, align_corners: bool, factor: float | None
) -> Taps:
    """Linear resampling: the two neighbours, in coordinates of the whole dimension."""
    at = _positions(n, m, first, last, align_corners, factor).clip(min=0.0)
    low = np.floor(at).astype(np.int64).clip(max=n - 1)
    high = (low + 1).clip(max=n - 1)
    share = at - low
    return np.stack((low, high), 1), np.stack((1 - share, share), 1)


@functools.lru_cache(maxsize=4096)
def adaptive_taps(
    n: int, m: int, first: int, last: int, align_corners: bool, factor: float | None
) -> Taps:
    """Adaptive mean: points floor(i·n/m) to ceil((i+1)·n/m), in equal shares."""
    i = np.arange(first, last)
    low, high = i * n // m, -(-(i + 1) * n // m)
    where = low[:, None] + np.arange(int((high - low).max()))
    inside = where < high[:, None]
    return np.minimum(where, high[:, None] - 1), inside / (high - low)[:, None]


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Cubic convolution (Keys 1981, doi 10.1109/TASSP.1981.1163711)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=4096)
def cubic_taps(
    n: int, m: int, first: int, last: int, align_corners: bool, factor: float | None
) -> Taps:
    """Cubic resampling: the four neighbours."""
    at = _positions(n, m, first, last, align_corners, factor)
    where = np.floor(at).astype(np.int64)[:, None] + np.arange(-1, 3)
    return where.clip(0, n - 1), _cubic(at[:, None] - where, -0.75)


def _smooth_taps(kernel: Callable[[np.ndarray], np.ndarray], reach: int) -> TapsOf:
    """Resampling by a kernel of `reach` points to either side, widened where points are left out.

    That is `antialias` of PyTorch, whose weights are those of Pillow.
    """

    @functools.lru_cache(maxsize=4096)
    def taps(
        n: int, m: int, first: int, last: int, align_corners: bool, factor: float | None
    ) -> Taps:
        scale = _scale(n, m, align_corners, factor)
        wide = max(scale, 1.0)
        centre = (np.arange(first, last) + 0.5) * scale
        low = (centre - reach * wide + 0.5).astype(np.int64).clip(min=0)
        high = (centre + reach * wide + 0.5).astype(np.int64).clip(max=n)
        where = low[:, None] + np.arange(int((high - low).max()))
        share = kernel((where - centre[:, None] + 0.5) / wide) * (where < high[:, None])
        return where.clip(max=n - 1), share / share.sum(1, keepdims=True)

    return taps


smooth_linear_taps = _smooth_taps(lambda x: (1.0 - np.abs(x)).clip(min=0.0), 1)
smooth_cubic_taps = _smooth_taps(lambda x: _cubic(x, -0.5), 2)
