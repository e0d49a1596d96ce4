"""Operators whose result at a point depends on the same point of the operands alone."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ..boxes import Box
from ..graph import Graph, Node, Ref
from ..layout import Layout
from .base import (
    Rule,
    Values,
    aligned,
    beside,
    broadcast_cut,
    call,
    is_cut,
    merge,
    refs,
    resolve,
)

# Points that a kernel has at most.
_KERNEL = 11**3
# Channels last, by the number of dimensions.
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
# Minus infinity in halves, read as a whole number: above it are what is positive or not a number.
_LEAST = {torch.bfloat16: -0x80, torch.float16: -0x400}


class Pointwise(Rule):
    """Each point depends on the same point of every operand, which may broadcast.

    Parameters
    ----------
    copies : int
        Tensors as large as the operand that kernels make and drop again.
    """

    cuts = True  # what holds no axes, such as a learned position, is cut to the box

    def __init__(self, copies: int = 0) -> None:
        self.copies = copies

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        owns, n = [graph.layouts[name] for name in node.operands], len(node.shape)
        if any(len(own.shape) > n for own in owns):
            return None
        return merge(node.shape, graph.rank, [(own, n - len(own.shape)) for own in owns])

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        grid = graph.grid(node.name)
        return {name: aligned(box, graph.grid(name), grid) for name in node.operands}

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        layout = graph.layouts[node.name]
        names = refs(tuple(node.args.values())) if self.cuts else ()
        return box.start if any(is_cut(graph.layout(n), layout) for n in names) else None

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        cut = self.position(node, graph.whole(node.name), graph)
        return (Fraction(1),) * graph.rank if cut is None else None

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return call(node, self._cut(node, box, values, graph))

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        size = graph.width(node.name) * box.size
        return self.copies * itemsize * size + beside(node, size, itemsize)

    def spared(self, node: Node, graph: Graph) -> str | None:
        in_place = getattr(torch.ops.aten, node.op + "_", None)
        if (
            in_place is None
            or len(node.operands) != 1
            or node.overload not in in_place.overloads()
            or graph.shape(node.operands[0]) != node.shape
            or node.dtype is not None
            or graph.kind(node.operands[0]) is not None
            or node.args[next(iter(node.args))] != Ref(node.operands[0])
        ):
            return None
        return node.operands[0]

    def overwrite(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        in_place = getattr(torch.ops.aten, node.op + "_")
        return call(node, self._cut(node, box, values, graph), in_place)

    def _cut(self, node: Node, box: Box, values: Values, graph: Graph) -> Values:
        layout = graph.layouts[node.name]
        if layout.is_fixed or not self.cuts:
            return values
        local = dict(values)
        for name in refs(tuple(node.args.values())):
            local[name] = broadcast_cut(values[name], graph.layout(name), layout, box)
        return local


class Component(Pointwise):
    """The real or the imaginary part, which lies in the operand's memory."""

    may_share = True


class Rectify(Pointwise):
    """ReLU."""

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return rectified(resolve(node.args["self"], values), in_place=False)

    def overwrite(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return rectified(resolve(node.args["self"], values), in_place=True)


def rectified(x: Tensor, in_place: bool) -> Tensor:
    """ReLU; of halves on a CPU as whole numbers, which ATen compares four times as fast."""
    if x.dtype not in _LEAST or x.device.type != "cpu" or get_proxy_mode() is not None:
        return x.relu_() if in_place else x.relu()
    threshold = torch.threshold_ if in_place else torch.threshold
    return threshold(x.view(torch.int16), _LEAST[x.dtype], 0).view(x.dtype)


class PerChannel(Pointwise):
    """An operator with a weight for each channel: along dimension 1, which may hold no axis."""

    cuts = False

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        made = super().layout(node, graph)
        differ = any(math.prod(graph.weights[name]) > 1 for name in node.weights)
        return None if made is not None and differ and any(made.dims[1:2]) else made


def channels_last(x: Tensor) -> bool:
    """Whether the channels of an image lie next to each other."""
    return x.ndim in (4, 5) and x.stride(1) == 1 and x.shape[1] > 1


def empty_as(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Allocate a tensor of another shape whose channels lie as those of `x` do."""
    layout = LAYOUTS[x.ndim] if channels_last(x) else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=x.dtype, device=x.device, memory_format=layout)


def _scaled(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """F.batch_norm, but of what is cut out of a larger tensor ATen's kernels are slow."""
    if x.is_cuda or _is_dense(x) or get_proxy_mode() is not None:
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)
    if x.element_size() < 4:
        made = x.contiguous(
            memory_format=LAYOUTS[x.ndim] if channels_last(x) else torch.contiguous_format
        )
        none = mean.new_empty(0), mean.new_empty(0)
        how = (weight, bias, mean, var, False, 0.0, eps)
        return torch.ops.aten.native_batch_norm.out(
            made, *how, out=made, save_mean=none[0], save_invstd=none[1]
        )[0]
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    ones = (1,) * (x.ndim - 2)
    return torch.addcmul(shift.view(1, -1, *ones), x, scale.view(1, -1, *ones))


def _is_dense(x: Tensor) -> bool:
    layout = LAYOUTS.get(x.ndim)
    return x.is_contiguous() or (layout is not None and x.is_contiguous(memory_format=layout))


class BatchNorm(PerChannel):
    """Normalisation by stored statistics."""

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        a = {key: resolve(value, values) for key, value in node.args.items()}
        return _scaled(
            a["input"], a["running_mean"], a["running_var"], a["weight"], a["bias"], a["eps"]
        )

    def workspace(
        self, node: Node, box: Box, graph: Graph, itemsize: int, device: str = "cpu"
    ) -> int:
        # Of its other results, statistics, nothing is kept; a GPU's kernel may copy what it reads.
        return 0 if device == "cpu" else itemsize * graph.width(node.name) * box.size


class Normalize(Pointwise):
    """Normalisation of groups of channels by their `moments`, then weight and bias."""

    cuts = False

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        return graph.layouts[node.args["input"].name]

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        a = {key: resolve(value, values) for key, value in node.args.items()}
        x: Tensor = a["input"]
        batch, channels = x.shape[:2]
        mean, var = (m.repeat_interleave(channels // m.shape[1], 1) for m in a["moments"])
        if batch == 1 and (x.ndim > 2):  # one fast kernel, also channels last
            like = mean.dtype
            weight, bias = (None if w is None else w.to(like) for w in (a["weight"], a["bias"]))
            return _scaled(x, mean[0], var[0], weight, bias, a["eps"])
        scale = (var + a["eps"]).rsqrt()
        scale = scale if a["weight"] is None else scale * a["weight"]
        shift = -mean * scale if a["bias"] is None else a["bias"] - mean * scale
        ones = (1,) * (x.ndim - 2)
        return torch.addcmul(
            shift.to(x.dtype).view(batch, channels, *ones),
            x,
            scale.to(x.dtype).view(batch, channels, *ones),
        )


class LayerNorm(Pointwise):
    """Normalisation over the last dimensions, none of which holds an axis."""

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        layout = graph.layouts[node.args["input"].name]
        over = len(node.args["normalized_shape"])
        return None if any(layout.dims[-over:]) else layout


class Linear(Pointwise):
    """A matrix of weights applied to the last dimension; an axis that it holds is taken in full."""

    cuts = False

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        x = next(refs(tuple(node.args.values())))
        own = graph.layout(x)
        *lines, last = own.dims
        if node.operands != (x,) or (last and not any(lines)):
            return None
        grid = tuple(1 if a in last else n for a, n in enumerate(own.grid))
        return Layout(node.shape, (*lines, *((),) * (len(node.shape) - len(lines))), grid)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        own = graph.layouts[node.operands[0]]
        return {node.operands[0]: box.spanning(own.dims[-1], own.grid)}

    def moves(self, node: Node, graph: Graph) -> tuple[Fraction, ...] | None:
        along = graph.layouts[node.operands[0]].dims[-1]
        return None if along else (Fraction(1),) * graph.rank

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return call(node, values)

    def operations(self, node: Node, graph: Graph) -> float:
        return 2.0 * graph.weights[node.args["weight"].name][-1] * graph.width(node.name)


class Convert(Pointwise):
    """A change of dtype; to the module's own, it is one to the precision of the computation."""

    cuts = False
    may_share = True

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        (x,) = (values[name] for name in node.operands)
        target: Any = node.args["dtype"]
        return x.to(values[target.name].dtype if isinstance(target, Ref) else target)

    def is_view(self, node: Node, graph: Graph) -> bool:
        return graph.kind(node.operands[0]) == node.dtype


class Expand(Rule):
    """A tensor repeated along dimensions of extent one, which holds no memory."""

    may_share = True

    def layout(self, node: Node, graph: Graph) -> Layout | None:
        if not node.operands:  # a weight that is spread over the volume
            return Layout.image(node.shape, graph.rank)
        own = graph.layout(node.args["self"].name)
        offset = len(node.shape) - len(own.shape)
        new = [
            i
            for i, n in enumerate(node.shape)
            if n > 1 and (i < offset or own.shape[i - offset] != n)
        ]
        lead = len(node.shape) - graph.rank
        if lead < 1 or own.held or any(n > 1 for n in own.shape[max(0, lead - offset) :]):
            return merge(node.shape, graph.rank, [(own, offset)])
        # What is spread over a volume may as well lie on its grid; a kernel may not.
        spread = new and math.prod(node.shape[lead:]) > _KERNEL
        image = Layout.image(node.shape, graph.rank)
        return image if spread else Layout.fixed(node.shape, graph.rank)

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        grid = graph.grid(node.name)
        return {name: aligned(box, graph.grid(name), grid) for name in node.operands}

    def position(self, node: Node, box: Box, graph: Graph) -> Hashable:
        layout = graph.layouts[node.name]
        return box.start if is_cut(graph.layout(node.args["self"].name), layout) else None

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        name, layout = node.args["self"].name, graph.layouts[node.name]
        value = broadcast_cut(values[name], graph.layout(name), layout, box)
        return value.expand(layout.local(box))

    def is_view(self, node: Node, graph: Graph) -> bool:
        return True
