"""Building a graph node by node: layouts, and what has no layout taken whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .boxes import Shape
from .graph import COMPLEX, Graph, Node, Ref
from .layout import Layout
from .rules import RULES
from .rules.base import refs, resolve

# Results of operators on weights alone, such as tables of positions, up to this many values are
# computed once.
FOLDED = 10**7


@dataclass
class Builder:
    """A graph that grows, and the tensors of its weights."""

    rank: int
    dtype: torch.dtype
    weights: dict[str, Tensor]
    nodes: dict[str, Node] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)  # of the weights
    kinds: dict[str, str] = field(default_factory=dict)  # of inputs in another dtype
    graph: Graph = field(init=False)

    def __post_init__(self) -> None:
        self.shapes.update({k: tuple(v.shape) for k, v in self.weights.items()})
        self.graph = Graph(self.rank, (), (), self.nodes, self.layouts, self.shapes, self.kinds)

    def shape(self, name: str) -> Shape:
        """Shape of a tensor or a weight."""
        return self.layouts[name].shape if name in self.layouts else self.shapes[name]

    def kind_of(self, dtype: torch.dtype) -> str | None:
        """Name of a dtype; None if it is that of the module's own arithmetic."""
        if dtype == self.dtype:
            return None
        own = self.dtype.to_complex()
        return COMPLEX if dtype == own else str(dtype).removeprefix("torch.")

    def constant(self, name: str, value: Tensor) -> Ref:
        """Add a tensor that the module did not bring as a parameter or buffer."""
        self.weights[name], self.shapes[name] = value, tuple(value.shape)
        return Ref(name)

    def add(
        self,
        name: str,
        op: str,
        args: Mapping[str, Any],
        shape: Shape,
        module: str,
        overload: str = "default",
        result: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Ref:
        """Add a node and tell how its result lies on the grid.

        Where its rule cannot tell, or it has none, its operands are taken whole: all of them, or
        those alone that are smaller than the result.
        """
        used = tuple(dict.fromkeys(refs(tuple(args.values()))))
        other = None if dtype is None else self.kind_of(dtype)
        node = Node(
            name=name,
            op=op,
            overload=overload,
            args=dict(args),
            operands=tuple(n for n in used if n in self.layouts),
            weights=tuple(n for n in used if n not in self.layouts),
            shape=tuple(shape),
            module=module,
            result=result,
            dtype=other,
        )
        if not node.operands and hasattr(torch.ops.aten, op) and not self._covers(node):
            if math.prod(shape) <= max([FOLDED, *(self.weights[n].numel() for n in node.weights)]):
                return self._fold(node)
            op = "aten:" + op
            node = replace(node, op=op)
        rule = RULES[op]
        node = self._taken_whole(node, rule.off_grid(node, self.graph))
        if rule.of_images and node.operands:
            node = self._swap(node, {node.operands[0]: self.image(node.operands[0])})
        layout = rule.layout(node, self.graph)
        size = math.prod(node.shape)
        smaller = tuple(n for n in node.operands if math.prod(self.shape(n)) < size)
        for names in (smaller, node.operands):
            if layout is None:
                node = self._taken_whole(node, names)
                layout = rule.layout(node, self.graph)
        if layout is None:
            node = replace(node, op="aten:" + op.removeprefix("aten:"))
            layout = Layout.fixed(node.shape, self.rank)
        self.nodes[name], self.layouts[name] = node, layout
        return Ref(name)

    def _covers(self, node: Node) -> bool:
        """Whether a weight is spread over a grid that some tensor lies on."""
        grid = node.shape[len(node.shape) - self.rank :]
        smaller = [n for n in node.weights if math.prod(self.shapes[n]) < math.prod(node.shape)]
        return (
            node.op == "expand"
            and bool(smaller)
            and len(node.shape) >= self.rank
            and any(layout.grid == grid for layout in self.layouts.values())
        )

    def image(self, name: str) -> str:
        """Put a tensor in the shape of an image on those axes of the grid again that it lost."""
        layout = self.layouts[name]
        axes = Layout.image(layout.shape, self.rank).dims[-self.rank - 2 :]
        fits = len(layout.shape) == len(axes) and all(
            own in ((), at) for own, at in zip(layout.dims, axes, strict=True)
        )
        spread = zip(layout.shape[2:], layout.dims[2:], strict=True)
        lost = fits and any(n > 1 and not own for n, own in spread)
        op = "on_grid" if layout.is_fixed else "regained"
        return self._step(op, name).name if lost else name

    def _step(self, op: str, name: str) -> Ref:
        """Take a tensor off the grid ("whole") or put it there ("on_grid", "regained")."""
        made = f"{name}.{op}"
        if made not in self.nodes:
            source, path = self.layouts[name], ""
            if name in self.nodes:
                path = self.nodes[name].module
            args, kind = {"self": Ref(name)}, self.graph.kind(name)
            node = Node(made, op, "", args, (name,), (), source.shape, path, dtype=kind)
            layout = RULES[op].layout(node, self.graph)
            assert layout is not None
            self.nodes[made], self.layouts[made] = node, layout
        return Ref(made)

    def _taken_whole(self, node: Node, names: tuple[str, ...]) -> Node:
        other = {}
        for name in names:
            if name in self.nodes and self.nodes[name].op == "on_grid":
                other[name] = self.nodes[name].operands[0]
            elif not self.layouts[name].is_fixed or self.layouts[name].held:
                other[name] = self._step("whole", name).name
        return self._swap(node, other) if other else node

    def _fold(self, node: Node) -> Ref:
        """Evaluate what depends on weights alone."""
        with torch.no_grad():
            op = getattr(getattr(torch.ops.aten, node.op), node.overload)
            made = op(**{k: resolve(v, self.weights) for k, v in node.args.items()})
        made = made if node.result is None else made[node.result]
        return self.constant(node.name, made.contiguous())  # a copy may have been left out

    def _swap(self, node: Node, other: Mapping[str, str]) -> Node:
        def swap(value: Any) -> Any:
            if isinstance(value, Ref):
                return Ref(other.get(value.name, value.name))
            if isinstance(value, tuple):
                return tuple(map(swap, value))
            return value

        return replace(
            node,
            args={k: swap(v) for k, v in node.args.items()},
            operands=tuple(dict.fromkeys(other.get(n, n) for n in node.operands)),
        )
