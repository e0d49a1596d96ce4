"""Operators that reduce the grid: to global values tile by tile, or along some of its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..boxes import Box
from ..graph import Graph, Node, dtype_of
from ..layout import Layout
from .base import INDEX, Rule, Values, beside, call, normalized

# Values of which deviations from a mean are held at once.
_SLAB = 2**19


class Reduction(Rule):
    """Reduction over channels, or over some axes of the grid, which are then taken whole.

    Parameters
    ----------
    copies : int
        Tensors as large as the operand, each with one as large as the result, that kernels make
        and drop again.
    ranks : bool
        Whether they also make the place of each of the operand's values.
    """

    def __init__(self, copies: int = 0, ranks: bool = False) -> None:
        self.copies, self.ranks = copies, ranks

    def dims(self, node: Node, graph: Graph) -> tuple[int, ...]:
        """Return the operand's dimensions that are reduced."""
        return normalized(node.args.get("dim"), len(graph.shape(node.operands[0])))

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own, dims = graph.layouts[node.operands[0]], self.dims(node, graph)
        gone = {a for d in dims for a in own.dims[d]}
        kept = [() if d in dims else axes for d, axes in enumerate(own.dims)]
        if len(node.shape) != len(kept):
            kept = [axes for d, axes in enumerate(kept) if d not in dims]
        grid = tuple(1 if a in gone else n for a, n in enumerate(own.grid))
        return Layout(node.shape, tuple(kept), grid) if len(kept) == len(node.shape) else None

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        own = graph.layouts[node.operands[0]]
        gone = {a for d in self.dims(node, graph) for a in own.dims[d]}
        return {node.operands[0]: box.spanning(gone, own.grid)}

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return call(node, values)

    def operations(self, node: Node, graph: Graph) -> float:
        own = graph.layouts[node.operands[0]]
        return math.prod(own.shape) / math.prod(graph.grid(node.name))

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        ((name, read),) = self.needs(node, box, graph).items()
        own = graph.width(node.name) * box.size
        taken = graph.width(name) * read.size
        copied = self.copies * itemsize * (taken + own) + INDEX * taken * self.ranks
        if node.op == "mean" and itemsize < 4 and device == "cpu":  # of single precision
            copied += 4 * (taken + own)
        return copied + beside(node, own, itemsize)


class Reduce(Rule):
    """Reduction over every axis of the grid, to a global value.

    Tiles of the operand give states, which are merged two by two in float64, or as the whole
    numbers that they are; the last one gives the result. A state is `(count, mean, M2)` for moments
    (Chan, Golub & LeVeque 1983, doi 10.1080/00031305.1983.10483115), else a sum or a largest value.
    """

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        return Layout.fixed(node.shape, graph.rank)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        return {node.operands[0]: graph.whole(node.operands[0])}

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        x = values[node.operands[0]]
        return self.result(node, self.state(node, x), dtype_of(node.dtype, x.dtype))

    def operations(self, node: Node, graph: Graph) -> float:
        return float(math.prod(graph.shape(node.operands[0])))

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        # Half precision is summed in single. `box` is that of the operand.
        return 4 * graph.width(node.operands[0]) * box.size if itemsize < 4 else 0

    def state(self, node: Node, x: Tensor) -> Tensor:
        """Reduce the operand on one tile, or on any part of the grid."""
        raise NotImplementedError

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        """Join the states of two parts."""
        raise NotImplementedError

    def result(self, node: Node, state: Tensor, dtype: torch.dtype) -> Tensor:
        """Make the global value from the state of the whole grid."""
        raise NotImplementedError


def _accurate(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x.double()
    return x if x.dtype == torch.float64 else x.float()


class Extreme(Reduce):
    """Largest or smallest value."""

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def state(self, node: Node, x: Tensor) -> Tensor:
        dims, keep = node.args["dims"], node.args["keepdim"]
        found: Tensor = (x.amax if self.sign > 0 else x.amin)(dims, keep)
        return found.double() if found.is_floating_point() else found

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b) if self.sign > 0 else torch.minimum(a, b)

    def result(self, node: Node, state: Tensor, dtype: torch.dtype) -> Tensor:
        return state.to(dtype)


class Sum(Reduce):
    """Sum, mean (the sum over `count`), or root of the sum of squares."""

    def __init__(self, what: str) -> None:
        self.what = what

    def state(self, node: Node, x: Tensor) -> Tensor:
        if self.what == "sum" and not x.is_floating_point():
            return x.sum(node.args["dims"], node.args["keepdim"])  # whole numbers are exact
        x = x.double() if "double" in node.args else _accurate(x)
        x = x.square() if self.what == "norm" else x
        return x.sum(node.args["dims"], node.args["keepdim"]).double()

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def result(self, node: Node, state: Tensor, dtype: torch.dtype) -> Tensor:
        if self.what == "mean":
            state = state / node.args["count"]
        return (state.sqrt() if self.what == "norm" else state).to(dtype)


class Moments(Reduce):
    """Count, mean and variance of each of `groups` of channels, or over `dims`."""

    def state(self, node: Node, x: Tensor) -> Tensor:
        x, groups = _accurate(x), node.args.get("groups")
        if groups is None:
            return self._state(x, node.args["dims"], node.args["keepdim"])
        # By channels, then of groups of them: several to fifty times faster with channels last.
        count, mean, m2 = self._state(x, range(2, x.ndim), keep=False).unflatten(-1, (groups, -1))
        middle = mean.mean(-1, keepdim=True)
        m2 = m2 + count * (mean - middle).square()
        return torch.stack((count.sum(-1), middle.squeeze(-1), m2.sum(-1)))

    def _state(self, x: Tensor, dims: Sequence[int], keep: bool) -> Tensor:
        dims = tuple(dims)
        mean = x.mean(dims, keepdim=True)
        # Sum by sum, slab by slab: several times faster than torch.var_mean on a CPU.
        axis = next((d for d in dims if x.shape[d] > 1), dims[0])
        rows = max(1, _SLAB * x.shape[axis] // max(1, x.numel()))
        slabs = x.split(rows, axis) if x.device.type == "cpu" else (x,)
        squares = [(slab - mean).square_().sum(dims, keep).double() for slab in slabs]
        mean = (mean if keep else mean.squeeze(dims)).double()
        count = x.numel() // max(1, mean.numel())
        return torch.stack((torch.full_like(mean, count), mean, torch.stack(squares).sum(0)))

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        size = graph.width(node.operands[0]) * box.size
        single = super().workspace(node, box, graph, itemsize, device)
        return single + max(4, itemsize) * (2 * min(size, _SLAB) if device == "cpu" else size)

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        (n, mean, m2), (k, other, more) = a, b
        delta = other - mean
        total = n + k
        return torch.stack(
            (total, mean + delta * (k / total), m2 + more + delta.square() * (n * k / total))
        )

    def result(self, node: Node, state: Tensor, dtype: torch.dtype) -> Tensor:
        count, mean, m2 = state
        if "groups" in node.args:  # for a norm, which computes with them in single precision
            made = torch.stack((mean, m2 / count))
            return made.to(dtype if dtype == torch.float64 else torch.float32)
        var = m2 / (count - node.args["correction"]).clamp(min=0)
        return (var.sqrt() if node.args["root"] else var).to(dtype)


class Gram(Reduce):
    """Products of the first `rows` rows with all that follow, summed over every point."""

    def state(self, node: Node, x: Tensor) -> Tensor:
        x, rows = _accurate(x), node.args["rows"]
        return (x[..., :rows, :] @ x[..., rows:, :].mT).double()

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def result(self, node: Node, state: Tensor, dtype: torch.dtype) -> Tensor:
        return state.to(dtype)

    def operations(self, node: Node, graph: Graph) -> float:
        points = graph.shape(node.operands[0])[-1]
        return 2.0 * math.prod(node.shape) * points
