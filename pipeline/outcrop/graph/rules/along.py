"""Operators that mix the values along some dimensions, and tables that are looked up."""

from __future__ import annotations

import math
from collections.abc import Hashable
from fractions import Fraction

import torch
from torch import Tensor

from ..boxes import Box
from ..graph import Graph, Node
from ..layout import Layout
from .base import Rule, Values, call, normalized, refs, resolve
from .pointwise import Linear, Pointwise, channels_last


class Along(Pointwise):
    """Values are mixed along the dimensions of the argument "dim", as a softmax does.

    Axes of the grid that these hold are taken whole.
    """

    def mixed(self, node: Node) -> tuple[int, ...]:
        """Return the dimensions along which values are mixed."""
        return normalized(node.args["dim"], len(node.shape))

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        mixed, n = self.mixed(node), len(node.shape)
        names = tuple(refs(tuple(node.args.values())))
        for own in map(graph.layout, names):
            if len(own.shape) != n:
                return None
            for d, extent in enumerate(own.shape):
                if extent != node.shape[d] and (d not in mixed or own.dims[d]):
                    return None
        made = super().layout(node, graph)
        # A dimension that holds an axis for one tensor does so, or has all points, for all.
        if made is not None and any(
            made.dims[d] and graph.layout(name).shape[d] != node.shape[d]
            for d in mixed
            for name in names
        ):
            return None
        return made

    def _full(self, node: Node, box: Box, graph: Graph) -> Box:
        """Return `box` with all of the axes along which values are mixed."""
        layout = graph.layouts[node.name]
        axes = {a for d in self.mixed(node) for a in layout.dims[d]}
        return box.spanning(axes, layout.grid)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        return super().needs(node, self._full(node, box, graph), graph)

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        full, cut = self._full(node, box, graph), super().position(node, box, graph)
        return cut if full == box else (cut, box.within(full))

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        return None if self._holds(node, graph) else super().moves(node, graph)

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        full = self._full(node, box, graph)
        made = self.apply(node, self._cut(node, full, values, graph))
        return made if full == box else graph.layouts[node.name].cut(made, full, box).clone()

    def apply(self, node: Node, values: Values) -> Tensor:
        """Apply the operator to all points along those dimensions."""
        return call(node, values)

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        full = self._full(node, box, graph)
        last = self.mixed(node) == (len(node.shape) - 1,)  # kernels then make no copies
        taken = (
            0
            if last and node.result is None
            else super().workspace(node, full, graph, itemsize, device)
        )
        return taken + (0 if full == box else itemsize * graph.width(node.name) * full.size)

    def spared(self, node: Node, graph: Graph) -> str | None:
        return None if self._holds(node, graph) else super().spared(node, graph)

    def _holds(self, node: Node, graph: Graph) -> bool:
        return any(graph.layouts[node.name].dims[d] for d in self.mixed(node))


class Concatenate(Along):
    """Channels side by side."""

    def apply(self, node: Node, values: Values) -> Tensor:
        parts = resolve(node.args["tensors"], values)
        dim = int(node.args["dim"]) % len(node.shape)
        if not any(channels_last(part) for part in parts):
            return torch.cat(parts, dim)
        # ATen's kernel for this layout is slow by an order of magnitude; on the same memory, seen
        # with the channels as its last axis, it copies long runs.
        return torch.cat([part.movedim(dim, -1) for part in parts], -1).movedim(-1, dim)


class Scatter(Along):
    """Values go to places along a dimension."""

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        taken = super().workspace(node, box, graph, itemsize, device)
        if itemsize < 4:  # in single precision
            taken += 4 * graph.width(node.name) * self._full(node, box, graph).size
        return taken


class Fourier(Along):
    """Fourier transforms along some dimensions, where others hold axes too."""

    def operations(self, node: Node, graph: Graph) -> float:
        points = math.prod(node.shape[d] for d in self.mixed(node))
        return 5 * graph.width(node.name) * math.log2(max(2, points))

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own, mixed = graph.layouts[node.operands[0]], self.mixed(node)
        if not {a for a in own.held if own.grid[a] > 1} - {a for d in mixed for a in own.dims[d]}:
            return None
        dims, grid = list(own.dims), list(own.grid)
        for d, axes in enumerate(own.dims):
            if node.shape[d] != own.shape[d]:
                dims[d] = axes if len(axes) == 1 else ()
                for a in axes:
                    grid[a] = node.shape[d] if dims[d] else 1
        return Layout(node.shape, tuple(dims), tuple(grid))

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        own = graph.layouts[node.operands[0]]
        axes = {a for d in self.mixed(node) for a in own.dims[d]}
        return {node.operands[0]: box.spanning(axes, own.grid)}

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        return None

    def spared(self, node: Node, graph: Graph) -> str | None:
        return None

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        full = self._full(node, box, graph)
        return 3 * 16 * graph.width(node.name) * full.size  # complex copies


class Spectrogram(Linear):
    """Fourier transforms of windows that slide along lines, and of these back to lines."""

    def _windows(self, node: Node, graph: Graph) -> int:
        """Values of all windows of a line."""
        shape = node.shape if node.op == "stft" else graph.shape(node.args["self"].name)
        count = shape[-1 if node.args["return_complex"] or node.op == "istft" else -2]
        return int(node.args["n_fft"]) * count

    def operations(self, node: Node, graph: Graph) -> float:
        return 5.0 * self._windows(node, graph) * math.log2(max(2, node.args["n_fft"]))

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        copies = 1 if node.op == "stft" else 3
        return copies * itemsize * self._windows(node, graph) * box.size


# As many times the matrices their kernels take, with all results.
_TAKEN = {
    "cholesky_solve": 2.2,
    "linalg_cholesky": 1.1,
    "linalg_eig": 4.5,
    "linalg_eigvals": 1.9,
    "linalg_matrix_exp": 12.5,
    "linalg_pinv": 5.0,
    "linalg_solve_triangular": 1.1,
    "linalg_svd": 3.5,
    **dict.fromkeys(("linalg_cond", "linalg_eigh", "linalg_eigvalsh", "linalg_svdvals"), 1.5),
}


class Matrices(Pointwise):
    """Linear algebra of small matrices, one at each point: they are the last two dimensions."""

    cuts = False

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own, *others = (graph.layouts[name] for name in node.operands)
        lead, single = own.dims[:-2], all(len(graph.weights[name]) < 3 for name in node.weights)
        # A vector for each matrix has a dimension less; weights are one matrix for all points.
        alike = all(
            x.grid == own.grid and x.dims[: len(lead)] == lead and not any(x.dims[len(lead) :])
            for x in others
        )
        if not alike or not single or any(own.dims[-2:]):
            return None
        return Layout(node.shape, (*lead, *((),) * (len(node.shape) - len(lead))), own.grid)

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        return None  # beyond the edges matrices may have no inverse

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        if node.op == "linalg_matrix_exp":  # which takes no part of a larger tensor as it lies
            values = {**values, **{name: values[name].contiguous() for name in node.operands}}
        return super().evaluate(node, box, values, graph)

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        width = _TAKEN.get(node.op, 2.5) * max(map(graph.width, node.operands))
        return int(itemsize * box.size * max(0.0, width - graph.width(node.name)))


class Lookup(Rule):
    """Rows of a table of weights, by their numbers."""

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own = graph.layouts[node.args["index"].name]
        more = ((),) * (len(node.shape) - len(own.shape))
        return Layout(node.shape, (*own.dims, *more), own.grid)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        return {node.args["index"].name: box}

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        return None

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return values[node.args["self"].name][values[node.args["index"].name]]


class Sampled(Rule):
    """A tensor that is looked up at positions, any of its points at any: it is taken whole."""

    def off_grid(self, node: Node, graph: Graph) -> tuple[str, ...]:
        return tuple(n for n in node.operands if n == node.args["input"].name)

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own = graph.layout(node.args["grid"].name)
        if own.dims[0] or own.dims[-1]:
            return None
        return Layout(node.shape, ((), (), *own.dims[1:-1]), own.grid)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        at = node.args["grid"].name
        return {name: box if name == at else graph.whole(name) for name in node.operands}

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        return None

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return call(node, values)

    def operations(self, node: Node, graph: Graph) -> float:
        axes = len(node.shape) - 2
        return 2.0**axes * (axes + 2 * graph.width(node.name))


class Beside(Pointwise):
    """Each point is compared with all of a table of weights."""

    cuts = False

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        one = len(node.operands) == 1 and graph.shape(node.operands[0]) == node.shape
        flat = all(len(graph.weights[name]) == 1 for name in node.weights)
        return graph.layouts[node.operands[0]] if one and flat else None
