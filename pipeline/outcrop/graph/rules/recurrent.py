"""Recurrent layers, and single steps of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..boxes import Box, Shape
from ..graph import Graph, Node
from ..layout import Axes, Layout
from .base import Rule, Values, aligned, broadcast_cut, call, refs

_CALLS = 8  # of kernels for a step of one layer


class Recurrent(Rule):
    """Lines that are gone along, each on its own, by an LSTM, a GRU or a plain recurrent layer.

    The dimension that counts the lines holds axes of the grid. So may that along the lines, of
    which all points are taken. A cell has none such: it takes one step. A state ("hx") of one line
    is that of all.
    """

    def _dims(self, node: Node) -> tuple[int, int | None]:
        """Dimension that counts the lines, and that along them."""
        if "batch_first" not in node.args:
            return 0, None
        return (0, 1) if node.args["batch_first"] else (1, 0)

    def _axes(self, node: Node, graph: Graph) -> tuple[Axes, Axes]:
        """Axes of the grid that these hold."""
        dims, (lines, along) = graph.layout(node.args["input"].name).dims, self._dims(node)
        return dims[lines], () if along is None else dims[along]

    def _state(self, shape: Shape, node: Node, graph: Graph) -> Layout:
        """Layout of one state for each line."""
        own, (lines, along) = graph.layout(node.args["input"].name), self._axes(node, graph)
        grid = tuple(1 if a in along else n for a, n in enumerate(own.grid))
        return Layout(shape, (*((),) * (len(shape) - 2), lines, ()), grid)

    def _matrices(self, node: Node, graph: Graph) -> list[Layout]:
        """Matrices of weights, which the network may also compute."""
        given = tuple(node.args.get(key) for key in ("params", "w_ih", "w_hh"))
        return [own for own in map(graph.layout, refs(given)) if len(own.shape) == 2]

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        own = graph.layout(node.args["input"].name)
        states = [graph.layout(name) for name in refs(node.args["hx"])]
        if own.is_fixed and all(state.is_fixed for state in states):
            return Layout.fixed(node.shape, graph.rank)
        if own.dims[-1] or not all(matrix.is_fixed for matrix in self._matrices(node, graph)):
            return None
        if math.prod(own.grid[a] for a in self._axes(node, graph)[0]) == 1:
            return None
        for state in states:
            due = self._state(state.shape, node, graph)
            if not state.is_fixed and (state.dims, state.grid) != (due.dims, due.grid):
                return None
        if self._dims(node)[1] is not None and not node.result:
            return Layout(node.shape, own.dims, own.grid)
        return self._state(node.shape, node, graph)

    def _full(self, node: Node, box: Box, graph: Graph) -> Box:
        return box.spanning(self._axes(node, graph)[1], graph.grid(node.name))

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        along, here = self._axes(node, graph)[1], graph.grid(node.name)
        return {
            name: aligned(box, graph.grid(name), here).spanning(along, graph.grid(name))
            for name in node.operands
        }

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        layout, full, local = graph.layouts[node.name], self._full(node, box, graph), dict(values)
        lines = values[node.args["input"].name].shape[self._dims(node)[0]]
        for name in refs(node.args["hx"]):
            own = graph.layout(name)
            state = values[name]
            if not layout.is_fixed:
                state = broadcast_cut(state, own, self._state(own.shape, node, graph), full)
            local[name] = state.expand(*state.shape[:-2], lines, -1)
        made = call(node, local)
        return made if full == box else layout.cut(made, full, box).clone()

    def operations(self, node: Node, graph: Graph) -> float:
        steps = 2.0 * sum(math.prod(matrix.shape) for matrix in self._matrices(node, graph))
        own, (lines, along) = graph.layout(node.args["input"].name), self._dims(node)
        if along is not None and (node.result or not own.dims[along]):
            steps *= own.shape[along]
        return steps * own.shape[lines] / math.prod(own.grid[a] for a in own.dims[lines])

    def calls(self, node: Node, graph: Graph) -> int:
        along = self._dims(node)[1]
        steps = 1 if along is None else graph.layout(node.args["input"].name).shape[along]
        return _CALLS * steps * len(self._matrices(node, graph)) // 2

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        own, (_, along) = graph.layout(node.args["input"].name), self._dims(node)
        read = self.needs(node, box, graph).get(node.args["input"].name, box)
        points = itemsize * math.prod(own.local(read)[:-1])
        (_, enters), (gates, leaves), *_ = (m.shape for m in self._matrices(node, graph))
        if along is None:
            return points * (2 * gates + leaves)
        both = node.args["bidirectional"]
        leaves *= 1 + both
        held = -(-gates // own.shape[along])  # for one step
        if node.args["num_layers"] > 1:
            held += leaves  # of the layer before
        if node.result or self._full(node, box, graph) != box:
            held += leaves  # what all points of the lines give, of which the result is a part
        lstm = node.op == "lstm" and gates * (1 + both) == 4 * leaves  # without projections
        onednn = device == "cpu" and itemsize < 8 and torch.backends.mkldnn.is_available()
        if lstm and onednn:  # which keeps no gates
            return points * (held + enters + (3 if both else 1) * leaves)
        return points * (held + max(gates + (1 + both) * leaves, (1 + both) * gates + enters))
