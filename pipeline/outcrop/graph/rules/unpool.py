"""Places of largest values, and what brings values back to them, as in SegNet."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import Box, Shape
from ..graph import Graph, Node
from ..layout import Layout
from .base import INDEX, Rule, Values, per_axis
from .kernels import padded
from .window import Pool, Window, op_rank

_POOLS = {2: F.max_pool2d, 3: F.max_pool3d}


class Places(Pool):
    """Where the largest value of each window lies: its number in the operand's whole grid."""

    def moves(self, node: Node, graph: Graph) -> None:
        return None

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        return box.start

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        x, extents = values[self.source(node)], graph.shape(self.source(node))[-op_rank(node) :]
        (low, high), (first, last) = self.reach(node, box, graph), self.held(node, box, graph)
        kernel, stride, _, dilation = self.geometry(node, graph)
        before = [max(0, h - r) for h, r in zip(first, low, strict=True)]
        after = [max(0, r - h) for h, r in zip(last, high, strict=True)]
        if any(before) or any(after):
            x = padded(x, before, after, -math.inf)
        origin = [h - b for h, b in zip(first, before, strict=True)]
        for i, (a, b) in enumerate(zip(low, high, strict=True)):  # what no window reaches
            x = x.narrow(i - len(low), a - origin[i], b - a)
        _, found = _POOLS[len(low)](
            x, kernel, stride, 0, dilation, ceil_mode=False, return_indices=True
        )
        return _renumbered(found, [b - a for a, b in zip(low, high, strict=True)], low, extents)

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        made = graph.width(node.name) * box.size
        copied = Window.workspace(self, node, box, graph, itemsize, device)
        return copied + (4 * INDEX + itemsize) * made


def _renumbered(index: Tensor, extents: list[int], start: Shape, whole: Shape) -> Tensor:
    """Numbers in a box of `extents` at `start`, as those of the same points of the whole grid."""
    made, step = torch.zeros_like(index), 1
    for extent, a, n in zip(extents[::-1], start[::-1], whole[::-1], strict=True):
        made += (index % extent + a) * step
        index, step = index // extent, step * n
    return made


class Unpool(Rule):
    """Values at places that a pool of windows which do not overlap has found, 0 elsewhere."""

    of_images = True

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        return Layout.image(node.shape, graph.rank)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        grid, start, stop = graph.shape(node.args["self"].name)[-graph.rank :], [], []
        window = (node.args[key] for key in ("kernel", "stride", "padding"))
        for a, b, n, k, s, p in zip(box.start, box.stop, grid, *window, strict=True):
            first = min(max(-(-(a + p - k + 1) // s), 0), n - 1)
            start.append(first)
            stop.append(max(min((b - 1 + p) // s + 1, n), first + 1))
        return dict.fromkeys(node.operands, Box(tuple(start), tuple(stop)))

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        x, index = (values[node.args[key].name] for key in ("self", "indices"))
        grid = graph.grid(node.name)
        local, step, rest = torch.zeros_like(index), 1, index
        inside = torch.ones_like(index, dtype=torch.bool)
        for a, b, n in zip(box.start[::-1], box.stop[::-1], grid[::-1], strict=True):
            at = rest % n - a
            inside &= (at >= 0) & (at < b - a)
            local += at * step
            rest, step = rest // n, step * (b - a)
        # What lies elsewhere goes to a place of its own, which is left out.
        local = torch.where(inside, local, step).flatten(2)
        made = x.new_zeros((*x.shape[:2], step + 1)).scatter_(2, local, x.flatten(2))
        return made[..., :-1].unflatten(2, box.shape)

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        (need, *_) = self.needs(node, box, graph).values()
        taken, made = (graph.width(o) for o in (node.operands[0], node.name))
        single = 4 * made * box.size if itemsize < 4 else 0  # in which halves are scattered
        return single + (3 * INDEX + 3 + itemsize) * taken * need.size


def windows(node: Node) -> dict[str, Shape] | None:
    """Kernel, stride and padding of a pool whose windows do not overlap; None if they do."""
    n = int(node.op[-2])
    kernel = per_axis(node.args["kernel_size"], n)
    stride = per_axis(node.args["stride"] or kernel, n)
    apart = all(k <= s for k, s in zip(kernel, stride, strict=True))
    if not apart or set(per_axis(node.args["dilation"], n)) != {1}:
        return None
    return {"kernel": kernel, "stride": stride, "padding": per_axis(node.args["padding"], n)}
