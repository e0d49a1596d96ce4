"""Operators that rearrange dimensions and leave the values as they are."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from ..boxes import Box
from ..graph import Graph, Node
from ..layout import Axes, Layout
from .base import Rule, Values, aligned, broadcast_cut


class Rearrange(Rule):
    """A view under which every axis keeps its extent: permutations, new dimensions of one."""

    may_share = True

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        grid = graph.grid(node.name)
        return {name: aligned(box, graph.grid(name), grid) for name in node.operands}

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        return None

    def operations(self, node: Node, graph: Graph) -> float:
        return 0.0

    def is_view(self, node: Node, graph: Graph) -> bool:
        return True


class Permute(Rearrange):
    """Dimensions in another order."""

    def order(self, node: Node) -> list[int]:
        """Return the operand's dimension for each of the result's."""
        n = len(node.shape)
        if node.op == "permute":
            return [d % n for d in node.args["dims"]]
        order = list(range(n))
        if node.op == "numpy_T":
            return order[::-1]
        a, b = (0, 1) if node.op == "t" else (node.args["dim0"] % n, node.args["dim1"] % n)
        if n > 1:
            order[a], order[b] = order[b], order[a]
        return order

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own = graph.layouts[node.operands[0]]
        return Layout(node.shape, tuple(own.dims[i] for i in self.order(node)), own.grid)

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return values[node.operands[0]].permute(self.order(node))


class Unsqueeze(Rearrange):
    """A new dimension of extent one."""

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own, dim = graph.layouts[node.operands[0]], node.args["dim"] % len(node.shape)
        return Layout(node.shape, (*own.dims[:dim], (), *own.dims[dim:]), own.grid)

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return values[node.operands[0]].unsqueeze(node.args["dim"])


class Drop(Rearrange):
    """Dimensions left out: those of extent one, or all but one point of one of them."""

    def dropped(self, node: Node, graph: Graph) -> tuple[int, ...]:
        """Return the operand's dimensions that the result lacks."""
        own = graph.layouts[node.operands[0]].shape
        if node.op == "select":
            return (node.args["dim"] % len(own),)
        dims = node.args.get("dim", range(len(own)))
        dims = (dims,) if isinstance(dims, int) else dims
        return tuple(d % len(own) for d in dims if own[d] == 1)

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own, gone = graph.layouts[node.operands[0]], self.dropped(node, graph)
        if any(len(own.dims[d]) > 1 for d in gone):
            return None
        axes = {a for d in gone for a in own.dims[d]}
        return Layout(
            node.shape,
            tuple(held for i, held in enumerate(own.dims) if i not in gone),
            tuple(1 if a in axes else n for a, n in enumerate(own.grid)),
        )

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        own = graph.layouts[node.operands[0]]
        start, stop = list(box.start), list(box.stop)
        if node.op == "select":
            (dim,) = self.dropped(node, graph)
            for a in own.dims[dim]:
                start[a] = node.args["index"] % own.shape[dim]
                stop[a] = start[a] + 1
        return {node.operands[0]: Box(tuple(start), tuple(stop))}

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        x, own = values[node.operands[0]], graph.layouts[node.operands[0]]
        gone = self.dropped(node, graph)
        if node.op == "select" and not own.dims[gone[0]]:
            return x.select(gone[0], node.args["index"])
        return x.squeeze(gone)


class View(Rearrange):
    """The same values in other dimensions.

    Dimensions are split and joined as lists of factors, each an axis of the grid or a plain
    extent. An axis that is split keeps its outer part, on a coarser grid (windows, patches); a
    plain extent that is joined to the axis before it makes that grid finer again.
    """

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own = graph.layouts[node.operands[0]]
        if node.overload == "dtype":
            return None  # other values, of the same bits
        factors: list[tuple[int, int]] = []  # extent, and axis or -1
        for n, axes in zip(own.shape, own.dims, strict=True):
            factors += [(own.grid[a], a) for a in axes] or [(n, -1)]
        factors = [f for f in factors if f[0] > 1][::-1]
        dims: list[Axes] = []
        grid = [1] * graph.rank
        for extent in node.shape:
            held: list[int] = []
            plain, left = 1, extent
            while left > 1:
                n, axis = factors.pop()
                if left % n:  # only a part of this factor
                    if n % left:
                        return None
                    factors.append((n // left, -1))
                    n = left
                left //= n
                if axis >= 0:
                    if plain > 1 and not held:
                        return None  # a plain extent outside of an axis
                    held.append(axis)
                    grid[axis] = n
                elif held:
                    grid[held[-1]] *= n
                else:
                    plain *= n
            dims.append(tuple(held))
        flat = [a for axes in dims for a in axes]
        if len(set(flat)) < len(flat):
            return None
        return Layout(node.shape, tuple(dims), tuple(grid))

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        own, grid = graph.layouts[node.operands[0]], graph.grid(node.name)
        start, stop = [], []
        for a, b, n, m in zip(box.start, box.stop, own.grid, grid, strict=True):
            start.append(a * n // m)
            stop.append(-(-b * n // m))
        return {node.operands[0]: Box(tuple(start), tuple(stop))}

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        return box.within(self._full(node, box, graph))

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        layout, full = graph.layouts[node.name], self._full(node, box, graph)
        made = values[node.operands[0]].reshape(layout.local(full))
        return layout.cut(made, full, box)

    def _full(self, node: Node, box: Box, graph: Graph) -> Box:
        """All of the result that the part of the operand that `box` needs gives."""
        held = self.needs(node, box, graph)[node.operands[0]]
        own, grid = graph.layouts[node.operands[0]].grid, graph.grid(node.name)
        return Box(
            tuple(a * m // n for a, n, m in zip(held.start, own, grid, strict=True)),
            tuple(b * m // n for b, n, m in zip(held.stop, own, grid, strict=True)),
        )


class Whole(Rearrange):
    """A tensor taken off the grid, so that what follows has all of it."""

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        return Layout.fixed(node.shape, graph.rank)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        return {node.operands[0]: graph.whole(node.operands[0])}

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return values[node.operands[0]]


class OnGrid(Rearrange):
    """A tensor that was taken whole, or along some axes, on the grid of its last dimensions."""

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        return Layout.image(node.shape, graph.rank)

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        return box.start

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        own = graph.layouts[node.operands[0]]
        return broadcast_cut(values[node.operands[0]], own, graph.layouts[node.name], box)


class Stack(Rule):
    """Tensors side by side along a new dimension."""

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own = {graph.layouts[name] for name in node.operands}
        if len(own) > 1 or node.weights:
            return None
        (one,) = own
        dim = node.args["dim"] % len(node.shape)
        return Layout(node.shape, (*one.dims[:dim], (), *one.dims[dim:]), one.grid)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        return dict.fromkeys(node.operands, box)

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        return None

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return torch.stack([values[r.name] for r in node.args["tensors"]], node.args["dim"])
