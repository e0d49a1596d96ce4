"""Operators that take each result from named points of the operand, axis by axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from fractions import Fraction

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..boxes import Box
from ..graph import Graph, Node
from ..layout import Layout
from .base import Rule, Values
from .kernels import padded
from .picked import beside, picked
from .window import with_axes

# From positions along a dimension of the result to positions along that of the operand, -1 where
# the result has a constant. In NumPy: what is known beforehand is no part of a traced evaluation.
Map = Callable[[np.ndarray], np.ndarray]


class Gather(Rule):
    """Each result is a copy of one point of the operand, or a constant: pads, slices, flips.

    Parameters
    ----------
    maps : callable
        From a node and the operand's shape to the `Map` of every dimension that changes.
    """

    may_share = True  # a tile may need nothing but a part of the operand

    def __init__(self, maps: Callable[[Node, tuple[int, ...]], dict[int, Map]]) -> None:
        self.maps = maps

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own = graph.layouts[node.operands[0]]
        if node.args.get("mode") == "circular" and min(node.args["pad"]) < 0:
            return None  # ATen wraps around what is left
        changed = self.maps(node, own.shape)
        if len(node.shape) != len(own.shape) or any(len(own.dims[i]) > 1 for i in changed):
            return None
        grid = list(own.grid)
        for i in changed:
            for a in own.dims[i]:
                grid[a] = node.shape[i]
        return Layout(node.shape, own.dims, tuple(grid))

    def _index(self, node: Node, box: Box, graph: Graph) -> dict[int, np.ndarray]:
        layout, own = graph.layouts[node.name], graph.layouts[node.operands[0]]
        found = {}
        for i, where in self.maps(node, own.shape).items():
            axes = layout.dims[i]
            a, b = (box.start[axes[0]], box.stop[axes[0]]) if axes else (0, layout.shape[i])
            found[i] = where(np.arange(a, b))
        return found

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        own = graph.layouts[node.operands[0]]
        index = self._index(node, box, graph)
        dims, first, last = [], [], []
        for i, where in index.items():
            inside = where[where >= 0]
            dims.append(own.dims[i])
            first.append(int(inside.min()) if len(inside) else 0)
            last.append(int(inside.max()) + 1 if len(inside) else 1)
        return {node.operands[0]: with_axes(box, dims, tuple(first), tuple(last))}

    def wraps(self, node: Node) -> bool:
        return node.op in ("roll", "repeat", "spread", "at") or node.args.get("mode") == "circular"

    def at_worst(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        own, needs = graph.layouts[node.operands[0]], self.needs(node, box, graph)
        if not self.wraps(node):
            return needs
        if node.op == "spread":
            (held,), (axes,) = needs.values(), (own.dims[node.args["dim"]],)
            most = [min(own.grid[a], (box.shape[a] - 1) // node.args["step"] + 2) for a in axes]
            first = [min(held.start[a], own.grid[a] - n) for a, n in zip(axes, most, strict=True)]
            last = [a + n for a, n in zip(first, most, strict=True)]
            return {node.operands[0]: with_axes(box, [axes] * len(axes), tuple(first), tuple(last))}
        dims = [own.dims[i] for i in self.maps(node, own.shape) if own.dims[i]]
        whole = [own.grid[axes[0]] for axes in dims]
        return {node.operands[0]: with_axes(box, dims, (0,) * len(dims), tuple(whole))}

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        held = self.needs(node, box, graph)[node.operands[0]]
        dims = graph.layouts[node.operands[0]].dims
        return tuple(
            tuple(np.where(at < 0, at, at - held.start[dims[i][0]] if dims[i] else at).tolist())
            for i, at in self._index(node, box, graph).items()
        )

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        x = values[node.operands[0]]
        held = self.needs(node, box, graph)[node.operands[0]]
        own = graph.layouts[node.operands[0]]
        before, after = [0] * x.ndim, [0] * x.ndim
        index = {}
        for i, where in self._index(node, box, graph).items():
            start = held.start[own.dims[i][0]] if own.dims[i] else 0
            inside = np.flatnonzero(where >= 0)
            if not len(inside):  # all of it constant
                before[i], x = len(where), x.narrow(i, 0, 0)
                continue
            low, high = int(inside[0]), int(inside[-1]) + 1
            before[i], after[i] = low, len(where) - high
            index[i] = where[low:high] - start
        x = picked(x, index)
        if any(before) or any(after):
            lead = next(i for i in range(x.ndim) if before[i] or after[i])
            constant = float(node.args.get("value") or 0.0)
            x = padded(x, before[lead:], after[lead:], constant)
        return x

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        own = graph.layouts[node.operands[0]]
        index = {i: at[at >= 0] for i, at in self._index(node, box, graph).items()}
        if not all(map(len, index.values())):
            return 0
        (held,) = self.needs(node, box, graph).values()
        return itemsize * beside(tuple(own.local(held)), index)

    def is_view(self, node: Node, graph: Graph) -> bool:
        return node.op == "slice"


def slice_maps(node: Node, shape: tuple[int, ...]) -> dict[int, Map]:
    """Slice: first + i · step."""
    dim = node.args["dim"] % len(shape)
    n, step = shape[dim], node.args["step"]
    start = node.args["start"] or 0
    start = min(max(start + n if start < 0 else start, 0), n)
    return {dim: lambda i: start + i * step}


def flip_maps(node: Node, shape: tuple[int, ...]) -> dict[int, Map]:
    """Flip: backwards."""

    def backwards(n: int) -> Map:
        return lambda i: n - 1 - i

    return {d % len(shape): backwards(shape[d]) for d in node.args["dims"]}


def roll_maps(node: Node, shape: tuple[int, ...]) -> dict[int, Map]:
    """Roll: around the end."""
    by: dict[int, int] = {}
    for d, shift in zip(node.args["dims"], node.args["shifts"], strict=True):
        by[d % len(shape)] = by.get(d % len(shape), 0) + shift
    return {d: _around(shape[d], shift) for d, shift in by.items()}


def repeat_maps(node: Node, shape: tuple[int, ...]) -> dict[int, Map]:
    """Repeat: from the start again."""
    return {d: _around(shape[d], 0) for d, r in enumerate(node.args["repeats"]) if r != 1}


def spread_maps(node: Node, shape: tuple[int, ...]) -> dict[int, Map]:
    """Spread: the point before, `step` apart from `start` on."""
    dim, start, step = (node.args[key] for key in ("dim", "start", "step"))
    n = shape[dim]
    return {dim: lambda i: ((i - start) // step).clip(0, n - 1)}


def at_maps(node: Node, shape: tuple[int, ...]) -> dict[int, Map]:
    """At: fixed positions."""
    where = np.array(node.args["index"])
    return {node.args["dim"]: lambda i: where[i]}


def _around(n: int, shift: int) -> Map:
    return lambda i: (i - shift) % n


def pad_maps(node: Node, shape: tuple[int, ...]) -> dict[int, Map]:
    """Pad: a constant, the nearest point, the mirrored one, or that of the other end."""
    mode, pad = node.args.get("mode", "constant"), node.args["pad"]
    found: dict[int, Map] = {}
    for k in range(len(pad) // 2):
        dim, before, after = len(shape) - 1 - k, pad[2 * k], pad[2 * k + 1]
        if not before and not after:
            continue

        def where(i: np.ndarray, n: int = shape[dim], p: int = before) -> np.ndarray:
            i = i - p
            if mode == "constant":
                return np.where((i >= 0) & (i < n), i, -1)
            if mode == "replicate":
                return i.clip(0, n - 1)
            if mode == "circular":
                return i % n
            i = np.abs(i)
            return np.where(i < n, i, 2 * (n - 1) - i)

        found[dim] = where
    return found


def nearest_maps(node: Node, shape: tuple[int, ...]) -> dict[int, Map]:
    """Nearest neighbour: floor(i · scale), in float32 as ATen computes it, or of i + 1/2."""
    shift = np.float32(0.5 if "exact" in node.op else 0.0)
    found: dict[int, Map] = {}
    n = len(node.shape) - 2
    factors = node.args.get("scale_factors") or (None,) * n
    for dim, factor in enumerate(factors, start=2):
        if not shift and n == 2 and node.shape[dim] in (shape[dim], 2 * shape[dim]):
            factor = None  # in 2-D ATen then goes by the sizes, whatever was asked for
        ratio = shape[dim] / node.shape[dim] if factor is None else 1.0 / factor

        def where(i: np.ndarray, n: int = shape[dim], ratio: float = ratio) -> np.ndarray:
            scaled = (i.astype(np.float32) + shift) * np.float32(ratio)
            return scaled.astype(np.int64).clip(max=n - 1)

        found[dim] = where
    return found


def whole_factors(node: Node, graph: Graph) -> tuple[int, ...] | None:
    """Factors of nearest upsampling along all dimensions but two, each of which holds an axis.

    None if any is not whole.
    """
    own = graph.layouts[node.operands[0]]
    ratios = [m / n for n, m in zip(own.shape[2:], node.shape[2:], strict=True)]
    given = node.args.get("scale_factors") or ratios
    by_size = (1.0, 2.0) if len(ratios) == 2 and "exact" not in node.op else ()
    whole = all(
        r == int(r) and (r == f or r in by_size) for r, f in zip(ratios, given, strict=True)
    )
    return tuple(map(int, ratios)) if whole and all(own.dims[2:]) else None


class Nearest(Gather):
    """Nearest-neighbour resampling, with a fast path for whole factors."""

    of_images = True

    def __init__(self) -> None:
        super().__init__(nearest_maps)

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        ratios = whole_factors(node, graph)
        if ratios is None:
            return None
        found = [Fraction(1)] * graph.rank
        for axes, ratio in zip(graph.layouts[node.name].dims[2:], ratios, strict=True):
            for a in axes:
                found[a] = Fraction(1, ratio)
        return tuple(found)

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        source = node.operands[0]
        x, layout, ratios = values[source], graph.layouts[node.name], whole_factors(node, graph)
        if ratios is None:
            return super().evaluate(node, box, values, graph)
        big = F.interpolate(x, scale_factor=tuple(map(float, ratios)), mode="nearest")
        held = self.needs(node, box, graph)[source]
        for i, r in enumerate(ratios, start=2):
            (a,) = layout.dims[i]
            big = big.narrow(i, box.start[a] - held.start[a] * r, box.shape[a])
        return big

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        if whole_factors(node, graph) is None:
            return super().workspace(node, box, graph, itemsize, device)
        # Input points at the rim may have results outside of the box.
        rim = math.prod(n + 2 for n in box.shape) - box.size
        return itemsize * graph.width(node.name) * rim + sum(
            itemsize * graph.width(name) * need.size
            for name, need in self.needs(node, box, graph).items()
        )
