"""Products of matrices that the network computes: attention and its kin."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from string import ascii_letters

import torch.nn.functional as F
from torch import Tensor

from ..boxes import Box
from ..graph import Graph, Node, Ref
from ..layout import Axes, Layout
from .base import Rule, Values, aligned, broadcast_cut, call, merge, resolve


class MatMul(Rule):
    """Batches of matrix products.

    Where both sides hold axes, the right one is taken whole, and where axes are summed over, the
    one that holds them; of batches that hold axes too, those of the box.
    """

    def _sides(self, node: Node) -> tuple[str, str]:
        names = [v.name for v in node.args.values() if isinstance(v, Ref)]
        return names[0], names[1]

    def off_grid(self, node: Node, graph: Graph) -> tuple[str, ...]:
        (a, left), (b, right) = ((name, graph.layout(name)) for name in self._sides(node))
        if len(left.dims) < 2 or len(right.dims) < 2:
            return node.operands
        # Neither may hold an axis that is summed over, nor both one in the result.
        found = [a] if left.dims[-1] and (a == b or not any(left.dims[:-1])) else []
        columns = right.dims[-1] and not left.dims[-2]
        if right.dims[-2] or (right.dims[-1] and not columns):
            found += [b] if a == b or not (columns or any(right.dims[:-2])) else []
        return tuple(dict.fromkeys(found))

    def _in_full(self, node: Node, graph: Graph) -> dict[str, Axes]:
        """Axes of which each operand is taken in full."""
        (a, left), (b, right) = ((name, graph.layout(name)) for name in self._sides(node))
        beside = right.dims[-1] if left.dims[-2] else ()
        return {a: left.dims[-1], b: (*right.dims[-2], *beside)}

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        left, right = (graph.layout(name) for name in self._sides(node))
        if len(left.dims) < 2 or len(right.dims) < 2:
            return None
        n = len(node.shape)
        columns = () if left.dims[-2] else right.dims[-1]
        parts = [
            (Layout(o.shape, (*o.dims[:-2], *inner), o.grid), n - len(o.shape))
            for o, inner in ((left, (left.dims[-2], ())), (right, ((), columns)))
        ]
        return merge(node.shape, graph.rank, parts)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        return _boxes(node, box, graph, self._in_full(node, graph))

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        layout, local = graph.layouts[node.name], dict(values)
        batch, (rows, columns) = layout.dims[:-2], layout.dims[-2:]
        for name, over in zip(self._sides(node), ((rows, ()), ((), columns)), strict=True):
            local[name] = _cut(local[name], name, layout, (*batch, *over), box, graph)
        return call(node, local)

    def operations(self, node: Node, graph: Graph) -> float:
        left = graph.layout(self._sides(node)[0])
        return 2.0 * left.shape[-1] * graph.width(node.name)


def _cut(
    value: Tensor, name: str, layout: Layout, dims: tuple[Axes, ...], box: Box, graph: Graph
) -> Tensor:
    return broadcast_cut(value, graph.layout(name), Layout(layout.shape, dims, layout.grid), box)


def _boxes(node: Node, box: Box, graph: Graph, in_full: Mapping[str, Axes]) -> dict[str, Box]:
    """Boxes of operands at `box` of the result, which take some axes in full."""
    made = {}
    for name in node.operands:
        own = graph.grid(name)
        here = aligned(box, own, graph.grid(node.name))
        made[name] = here.spanning(in_full.get(name, ()), own)
    return made


class Einsum(Rule):
    """A sum of products over named dimensions; an axis that it sums over is taken in full."""

    may_share = True  # where it does nothing but rearrange

    def _labels(self, node: Node, graph: Graph) -> tuple[list[tuple[str, str]], str]:
        """Return each operand with its labels, and those of the result, one for each dimension."""
        names = [ref.name for ref in node.args["tensors"]]
        equation = node.args["equation"].replace(" ", "")
        left, arrow, output = equation.partition("->")
        inputs = left.split(",")
        # What the dots stand for, from the right.
        more = [
            len(graph.layout(n).shape) - len(i.replace("...", "")) if "." in i else 0
            for n, i in zip(names, inputs, strict=True)
        ]
        free = [c for c in ascii_letters if c not in equation][: max(more)]
        dots = "".join(free)
        parts = [i.replace("...", dots[len(dots) - k :]) for i, k in zip(inputs, more, strict=True)]
        if not arrow:
            once = [c for c, k in Counter(left).items() if k == 1 and c.isalpha()]
            output = "..." + "".join(sorted(once))
        return list(zip(names, parts, strict=True)), output.replace("...", dots)

    def _is_plain(self, node: Node, graph: Graph) -> bool:
        """Whether no two dimensions of an operand have the same label."""
        parts, _ = self._labels(node, graph)
        return all(len(set(labels)) == len(labels) for _, labels in parts)

    def off_grid(self, node: Node, graph: Graph) -> tuple[str, ...]:
        if not self._is_plain(node, graph):
            return node.operands
        every = [name for name, _ in self._labels(node, graph)[0]]
        return tuple(
            name
            for name, full in self._in_full(node, graph).items()
            if full and (every.count(name) > 1 or set(full) == set(graph.layout(name).held))
        )

    def _in_full(self, node: Node, graph: Graph) -> dict[str, Axes]:
        """Axes of which each operand is taken in full: those summed over, or seen before."""
        parts, output = self._labels(node, graph)
        seen: dict[int, str] = {}  # which label has an axis
        made: dict[str, Axes] = {}
        for name, labels in parts:
            for label, axes in zip(labels, graph.layout(name).dims, strict=True):
                if label not in output or any(seen.setdefault(a, label) != label for a in axes):
                    made[name] = (*made.get(name, ()), *axes)
        return made

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        parts, output = self._labels(node, graph)
        if not self._is_plain(node, graph):
            return None if any(graph.layout(n).held for n, _ in parts) else _fixed(node, graph)
        rows, in_full = [], self._in_full(node, graph)
        for name, labels in parts:
            own, full = graph.layout(name), in_full.get(name, ())
            held = {c: axes for c, axes in zip(labels, own.dims, strict=True) if axes}
            dims = [held.get(c, ()) for c in output]
            dims = [() if set(axes) & set(full) else axes for axes in dims]
            shape = tuple(n if axes else 1 for n, axes in zip(node.shape, dims, strict=True))
            rows.append((Layout(shape, tuple(dims), own.grid), 0))
        return merge(node.shape, graph.rank, rows)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        plain = self._is_plain(node, graph)
        return _boxes(node, box, graph, self._in_full(node, graph) if plain else {})

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        layout, local = graph.layouts[node.name], dict(values)
        parts, output = self._labels(node, graph)
        for name, labels in parts:
            if not layout.is_fixed:
                dims = tuple(layout.dims[output.index(c)] if c in output else () for c in labels)
                own = graph.layout(name)
                over = Layout(own.shape, dims, layout.grid)
                local[name] = broadcast_cut(local[name], own, over, box)
        return call(node, local)

    def operations(self, node: Node, graph: Graph) -> float:
        parts, output = self._labels(node, graph)
        sizes = {
            c: n for name, cs in parts for c, n in zip(cs, graph.layout(name).shape, strict=True)
        }
        summed = math.prod(n for c, n in sizes.items() if c not in output)
        return 2.0 * summed * graph.width(node.name)


def _fixed(node: Node, graph: Graph) -> Layout:
    return Layout.fixed(node.shape, graph.rank)


class Distances(Rule):
    """Distances of points, by tile, to all points of another set, such as a codebook."""

    def off_grid(self, node: Node, graph: Graph) -> tuple[str, ...]:
        first, second = node.args["x1"].name, node.args["x2"].name
        own, other = graph.layout(first).dims, graph.layout(second).dims
        found = [first] if own[-1] else []
        if other[-1] or (other[-2] and (first == second or not any(other[:-2]))):
            found.append(second)
        return tuple(dict.fromkeys(found))

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        parts = []
        for key, points in (("x1", -1), ("x2", -2)):
            own = graph.layout(node.args[key].name)
            dims = (*own.dims[:points], *((),) * -points)
            parts.append((Layout(own.shape, dims, own.grid), len(node.shape) - len(own.shape)))
        return merge(node.shape, graph.rank, parts)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        other = node.args["x2"].name
        return _boxes(node, box, graph, {other: graph.layout(other).dims[-2]})

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        layout, local, name = graph.layouts[node.name], dict(values), node.args["x2"].name
        dims = (*layout.dims[:-2], (), ())
        local[name] = _cut(local[name], name, layout, dims, box, graph)
        return call(node, local)

    def _features(self, node: Node, graph: Graph) -> int:
        return graph.layout(node.args["x1"].name).shape[-1]

    def operations(self, node: Node, graph: Graph) -> float:
        return 2.0 * self._features(node, graph) * graph.width(node.name)

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        points = box.size * graph.width(node.name) // node.shape[-1]
        return itemsize * 2 * (self._features(node, graph) + 2) * points  # copies, longer by two


class Attention(Rule):
    """Scaled dot-product attention: queries by tile against all keys and values of a batch."""

    def off_grid(self, node: Node, graph: Graph) -> tuple[str, ...]:
        found = []
        query = node.args["query"].name
        if graph.layout(query).dims[-1]:
            return node.operands
        for key in ("key", "value"):
            name = node.args[key].name
            own = graph.layout(name).dims
            if own[-1] or (own[-2] and (name == query or not any(own[:-2]))):
                found.append(name)
        mask = node.args["attn_mask"]
        if mask is not None and graph.layout(mask.name).held:
            found.append(mask.name)
        return tuple(dict.fromkeys(found))

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        if node.args["is_causal"] or node.args["enable_gqa"]:
            return None
        query = graph.layout(node.args["query"].name)
        parts = [(query, len(node.shape) - len(query.shape))]
        for key in ("key", "value"):
            own = graph.layout(node.args[key].name)
            batch = Layout(own.shape, (*own.dims[:-2], (), ()), own.grid)
            parts.append((batch, len(node.shape) - len(own.shape)))
        return merge(node.shape, graph.rank, parts)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        tokens = {
            node.args[key].name: graph.layout(node.args[key].name).dims[-2]
            for key in ("key", "value")
        }
        return _boxes(node, box, graph, tokens)

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        layout, local = graph.layouts[node.name], dict(values)
        over = {"query": layout.dims, "attn_mask": (*layout.dims[:-1], ())}
        for key in ("query", "key", "value", "attn_mask"):
            ref = node.args[key]
            if ref is not None:
                dims = over.get(key, (*layout.dims[:-2], (), ()))
                local[ref.name] = _cut(local[ref.name], ref.name, layout, dims, box, graph)
        a = {key: resolve(value, local) for key, value in node.args.items()}
        if a["query"].is_cuda:  # kernels that hold no products take channels side by side
            for key in ("query", "key", "value"):
                a[key] = a[key] if a[key].stride(-1) == 1 else a[key].contiguous()
        return F.scaled_dot_product_attention(
            a["query"], a["key"], a["value"], a["attn_mask"], scale=a["scale"]
        )

    def _pairs(self, node: Node, graph: Graph) -> int:
        keys = graph.layout(node.args["key"].name).shape[-2]
        return keys * graph.width(node.name) // node.shape[-1]

    def operations(self, node: Node, graph: Graph) -> float:
        return 4.0 * self._pairs(node, graph) * node.shape[-1]

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        boxes = self.needs(node, box, graph)
        names = [node.args[key].name for key in ("key", "value")]
        keys = sum(
            math.prod(graph.layout(n).local(boxes[n]) if n in boxes else graph.weights[n])
            for n in names
        )
        # Of other numbers of dimensions ATen holds all products, in halves in single precision too.
        copies = 2.0 if len(node.shape) == 4 else 2.25
        if copies > 2 and itemsize < 4:
            copies, keys = 5.0, 3 * keys
        return int(itemsize * (copies * self._pairs(node, graph) * box.size + keys))
