"""Convolutions, plain and transposed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from ..boxes import Box, Shape
from ..graph import Graph, Node
from ..layout import Layout
from .base import Values, per_axis, resolve
from .kernels import FEW, channels_at_once, convolve, rows_of_columns
from .transposed import bytes_of_phases, has_phases, rows_to_spread, spread_over, transposed
from .window import Window, op_rank


class Convolution(Window):
    """Convolution with any stride, padding, dilation and groups."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        n = op_rank(node)
        if self.source(node) not in graph.layouts or graph.layouts[self.source(node)].dims[-n - 1]:
            return None
        if not all(graph.layouts[name].is_fixed for name in self._computed(node)):
            return None
        return super().layout(node, graph)

    def source(self, node: Node) -> str:
        return node.args["input"].name

    def geometry(self, node: Node, graph: Graph) -> tuple[Shape, Shape, Shape, Shape]:
        kernel, n = self._kernel(node, graph), op_rank(node)
        dilation = per_axis(node.args["dilation"], n)
        padding = node.args["padding"]
        if padding == "same":  # an odd point, where there is one, goes to the end
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        elif padding == "valid":
            padding = 0
        return kernel, per_axis(node.args["stride"], n), per_axis(padding, n), dilation

    def outside_value(self, node: Node, graph: Graph) -> float | None:
        if node.args["padding"] != "same":
            return super().outside_value(node, graph)
        return self.outside if max(self._kernel(node, graph)) > 1 else None

    def reach(self, node: Node, box: Box, graph: Graph) -> tuple[Shape, Shape]:
        low, high = super().reach(node, box, graph)
        kernel, _, _, dilation = self.geometry(node, graph)
        ends = self.taps(node, box, graph)
        return (
            tuple(a + f * d for a, (f, _), d in zip(low, ends, dilation, strict=True)),
            tuple(
                b - (k - e) * d
                for b, (_, e), k, d in zip(high, ends, kernel, dilation, strict=True)
            ),
        )

    def taps(self, node: Node, box: Box, graph: Graph) -> tuple[tuple[int, int], ...]:
        """First and last-but-one tap along each dimension that meets the grid anywhere in `box`.

        The others meet nothing but padding, as most do where dilations exceed the grid. One is
        kept where none meets it.
        """
        own, layout, n = graph.layouts[self.source(node)], graph.layouts[node.name], op_rank(node)
        found = []
        for i, (k, s, p, d) in enumerate(zip(*self.geometry(node, graph), strict=True)):
            axes, extent = layout.dims[i - n], own.shape[i - n]
            if k == 1 or p == 0:
                found.append((0, k))
                continue
            a, b = (box.start[axes[0]], box.stop[axes[0]]) if axes else (0, layout.shape[i - n])
            first = min(max(0, -(((b - 1) * s - p) // d)), k - 1)
            last = min(k, (extent - 1 + p - a * s) // d + 1)
            found.append((first, max(last, first + 1)))
        return tuple(found)

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        return super().position(node, box, graph), self.taps(node, box, graph)

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        taps = self.taps(node, box, graph)
        if any(e - f < k for (f, e), k in zip(taps, self._kernel(node, graph), strict=True)):
            node = replace(node, args={**node.args, "taps": taps})
        return super().evaluate(node, box, values, graph)

    def apply(self, node: Node, x: Tensor, padding: Shape, values: Values, graph: Graph) -> Tensor:
        _, stride, _, dilation = self.geometry(node, graph)
        weight, bias = (resolve(node.args[k], values) for k in ("weight", "bias"))
        for i, (a, b) in enumerate(node.args.get("taps", ()), start=2):
            weight = weight.narrow(i, a, b - a)
        return convolve(
            x,
            weight,
            bias,
            stride,
            padding,
            dilation,
            node.args.get("groups", 1),
            onto=resolve(node.args.get("onto"), values),
            in_place="in_place" in node.args,
            relu=node.args.get("activation") == "relu",
        )

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        onto = {node.args["onto"].name: box} if "onto" in node.args else {}
        computed = {name: graph.whole(name) for name in self._computed(node)}
        return super().needs(node, box, graph) | onto | computed

    def _computed(self, node: Node) -> list[str]:
        """Kernel and bias, if the network computes them: global values."""
        names = [node.args[key].name for key in ("weight", "bias") if node.args[key] is not None]
        return [name for name in names if name in node.operands]

    def spared(self, node: Node, graph: Graph) -> str | None:
        return node.args["onto"].name if "onto" in node.args else None

    def overwrite(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        node = replace(node, args={**node.args, "in_place": True})
        return self.evaluate(node, box, values, graph)

    def operations(self, node: Node, graph: Graph) -> float:
        taps = math.prod(e - f for f, e in self.taps(node, graph.whole(node.name), graph))
        channels = graph.layout(node.args["weight"].name).shape[1]
        return 2.0 * taps * channels * graph.width(node.name)

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        source, made = self.source(node), graph.width(node.name) * box.size
        copied = super().workspace(node, box, graph, itemsize, device)
        weight, groups = self._used(node, box, graph), node.args.get("groups", 1)
        if device != "cpu":
            if weight[2:] != self._kernel(node, graph):
                copied += itemsize * math.prod(weight)
            # cuDNN copies what it reads, but for halves, and what it writes in full single
            # precision; a sum of halves it writes anew.
            if itemsize < 4:
                return copied + itemsize * made * ("onto" in node.args)
            read = graph.width(source) * self.needs(node, box, graph)[source].size
            full = itemsize == 4 and not torch.backends.cudnn.allow_tf32
            return copied + itemsize * (read + made * full)
        read = graph.width(source) * self.needs(node, box, graph)[source].size
        read = max(read, copied // itemsize)  # padded
        again = 0
        if itemsize < 4 and graph.width(source) < FEW:  # both may be held in single precision
            again = 4 * (made + read)
        if op_rank(node) == 1 and itemsize < 8:  # with channels last
            again += itemsize * read
        part = channels_at_once(weight, groups, itemsize)
        if part < weight[1] * groups:
            again += itemsize * read * part // (weight[1] * groups)
        columns = self._columns(node, box, graph, itemsize)
        # oneDNN, which has no kernels in double precision, has a layout of its own for weights.
        return copied + again + columns + itemsize * math.prod(weight) * (itemsize < 8)

    def _used(self, node: Node, box: Box, graph: Graph) -> Shape:
        """Shape of the kernel's part that is used."""
        taps = (e - f for f, e in self.taps(node, box, graph))
        return *graph.layout(node.args["weight"].name).shape[:2], *taps

    def _columns(self, node: Node, box: Box, graph: Graph, itemsize: int) -> int:
        """Bytes of the windows side by side, as ATen holds them where oneDNN has no kernel.

        And of the slabs that are cut for it, and what comes of them.
        """
        weight, groups = self._used(node, box, graph), node.args.get("groups", 1)
        if itemsize < 8 or math.prod(weight[2:]) == 1:
            return 0
        n, (_, stride, padding, dilation) = op_rank(node), self.geometry(node, graph)
        source, made = self._given(node, box, graph), graph.layouts[node.name].local(box)
        windows = math.prod(made[: -n - 1]) * math.prod(made[len(made) - n + 1 :])
        rows = min(rows_of_columns(weight, groups, windows, itemsize), made[-n])
        columns = math.prod(weight[1:]) * groups * windows * rows
        slab = (rows - 1) * stride[0] + (weight[2] - 1) * dilation[0] + 1
        read, written = math.prod(source), math.prod(made)
        if rows < made[-n]:
            # The first axis is padded before it is cut.
            again = (source[-n] + 2 * padding[0]) * (padding[0] > 0) + slab
            return itemsize * (columns + read // source[-n] * again + written // made[-n] * rows)
        return itemsize * (columns + read)

    def _local(self, name: str, node: Node, box: Box, graph: Graph) -> list[int]:
        """Shape that a tensor has where a box of the node is computed."""
        held = box if name == node.name else self.needs(node, box, graph)[name]
        return graph.layouts[name].local(held)

    def _kernel(self, node: Node, graph: Graph) -> Shape:
        return graph.layout(node.args["weight"].name).shape[2:]


class TransposedConvolution(Convolution):
    """Transposed convolution: input i adds to the outputs i·stride - padding + k·dilation."""

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        made = super().layout(node, graph)
        several = made is not None and any(len(axes) > 1 for axes in made.dims[-op_rank(node) :])
        return None if several else made

    def geometry(self, node: Node, graph: Graph) -> tuple[Shape, Shape, Shape, Shape]:
        n = op_rank(node)
        stride, padding, dilation = (
            per_axis(node.args[k], n) for k in ("stride", "padding", "dilation")
        )
        return self._kernel(node, graph), stride, padding, dilation

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        back = super().moves(node, graph)
        return None if back is None else tuple(1 / step for step in back)

    def taps(self, node: Node, box: Box, graph: Graph) -> tuple[tuple[int, int], ...]:
        return tuple((0, k) for k in self._kernel(node, graph))

    def outside_value(self, node: Node, graph: Graph) -> float | None:
        return self.outside

    def held(self, node: Node, box: Box, graph: Graph) -> tuple[Shape, Shape]:
        own, layout, n = graph.layouts[self.source(node)], graph.layouts[node.name], op_rank(node)
        first, last = [], []
        for i, (k, s, p, d) in enumerate(zip(*self.geometry(node, graph), strict=True)):
            axes, extent = own.dims[i - n], own.shape[i - n]
            a, b = (box.start[axes[0]], box.stop[axes[0]]) if axes else (0, layout.shape[i - n])
            # The first that reaches the box, but none after its first point: between points that
            # are reached lie some that are not.
            low = min(-((p - a + (k - 1) * d) // s), (a + p) // s)
            low = min(max(low, 0), extent - 1)
            first.append(low if axes else 0)
            last.append(max(low + 1, min(extent, (b - 1 + p) // s + 1)) if axes else extent)
        return tuple(first), tuple(last)

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        _, stride, _, _ = self.geometry(node, graph)
        first, last = self.held(node, box, graph)
        axes = graph.layouts[node.name].dims[-len(first) :]
        return tuple(
            (box.start[a[0]] - f * s if a else 0, e - f)
            for a, f, e, s in zip(axes, first, last, stride, strict=True)
        )

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        x = values[self.source(node)]
        layout, n = graph.layouts[node.name], op_rank(node)
        weight, bias = (resolve(node.args[k], values) for k in ("weight", "bias"))
        _, stride, padding, dilation = self.geometry(node, graph)
        first, _ = self.held(node, box, graph)
        made = transposed(x, weight, bias, stride, dilation, node.args["groups"])
        for i, axes in enumerate(layout.dims[-n:]):
            a, b = (box.start[axes[0]], box.stop[axes[0]]) if axes else (0, layout.shape[i - n])
            offset = a + padding[i] - first[i] * stride[i]
            missing = offset + (b - a) - made.shape[i - n]
            if missing > 0:  # beyond the last kernel: nothing but the bias
                end = list(made.shape)
                end[i - n] = missing
                fill = made.new_zeros(()) if bias is None else bias.view(-1, *(1,) * n)
                made = torch.cat((made, fill.expand(end)), i - n)
            made = made.narrow(i - n, offset, b - a)
        return made

    def operations(self, node: Node, graph: Graph) -> float:
        shape = graph.layout(node.args["weight"].name).shape
        _, stride, _, _ = self.geometry(node, graph)
        taps = math.prod(shape[2:]) / math.prod(stride)
        return 2.0 * taps * shape[0] * shape[1]

    def _copied(self, node: Node, box: Box, graph: Graph) -> int:
        source = self.source(node)
        return graph.width(source) * self.needs(node, box, graph)[source].size

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        n, (kernel, stride, _, dilation) = op_rank(node), self.geometry(node, graph)
        source = self._local(self.source(node), node, box, graph)
        own = self._local(node.name, node, box, graph)
        extents = spread_over(source[-n:], kernel, stride, dilation)
        made = math.prod(own[:-n]) * math.prod(extents)
        # The result is a part of it, or a copy where the box reaches beyond the last window.
        beside = made if self._reaches_beyond(node, box, graph, extents) else 0
        beside += max(0, made - math.prod(own))
        if node.args["groups"] > 1:
            beside += made * max(1, 4 // itemsize)
        weight = graph.layout(node.args["weight"].name).shape
        if n == 1 and not has_phases(weight, stride, dilation, node.args["groups"], itemsize):
            beside += made + math.prod(source)  # turned to two dimensions and back
        return super().workspace(node, box, graph, itemsize, device) + itemsize * beside

    def _reaches_beyond(self, node: Node, box: Box, graph: Graph, extents: Sequence[int]) -> bool:
        layout, n = graph.layouts[node.name], op_rank(node)
        _, stride, padding, _ = self.geometry(node, graph)
        first, _ = self.held(node, box, graph)
        stops = (
            box.stop[axes[0]] if axes else extent
            for axes, extent in zip(layout.dims[-n:], layout.shape[-n:], strict=True)
        )
        ends = zip(stops, padding, first, stride, extents, strict=True)
        return any(stop + p - f * s > e for stop, p, f, s, e in ends)

    def _columns(self, node: Node, box: Box, graph: Graph, itemsize: int) -> int:
        weight = graph.layout(node.args["weight"].name).shape
        n, (kernel, stride, _, dilation) = op_rank(node), self.geometry(node, graph)
        source = self._local(self.source(node), node, box, graph)
        if has_phases(weight, stride, dilation, node.args["groups"], itemsize):
            batch = math.prod(source[: -n - 1])
            return bytes_of_phases(source[-n:], batch, weight, stride, itemsize)
        if itemsize < 4:
            return 0
        windows = math.prod(source[: -n - 1]) * math.prod(source[len(source) - n + 1 :])
        most = rows_to_spread(weight, stride, dilation, windows, itemsize)
        rows = int(min(most, source[-n]))
        columns = math.prod(weight[1:]) * windows * rows
        part = spread_over([rows, *source[len(source) - n + 1 :]], kernel, stride, dilation)
        read = math.prod(source) // source[-n] * rows
        slab = math.prod(self._local(node.name, node, box, graph)[:-n]) * math.prod(part)
        return itemsize * (columns + read + slab * (rows < source[-n]))
