"""Kernels: what ATen and oneDNN do best on which tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ..boxes import Box, Shape
from .pairs import apart, can_pair, in_pairs, kernel_of_pairs, pays_in_pairs
from .pointwise import LAYOUTS, channels_last, empty_as, rectified

# Bytes of windows that are laid side by side at once.
COLUMNS = 2**23
# Channels from which on oneDNN is faster in half precision than in single.
FEW = 4
# Products that a sum has, beyond which oneDNN is faster by parts of so many channels: the weights
# that they share stay in caches.
_LONG, _PART = 12_000, 96
_ONEDNN = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
# Halves that oneDNN convolves on this processor: with AVX512 or AMX, or as few have.
_ABLE = {
    torch.bfloat16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}
HALVES = frozenset(kind for kind, able in _ABLE.items() if able)
# Whether it does so in bfloat16 by tiles of registers.
AMX = torch.bfloat16 in HALVES and torch.cpu._is_amx_tile_supported()


def is_fast(x: Tensor) -> bool:
    """Whether oneDNN convolves and multiplies values of this precision on this processor.

    Not while a trace is made, which has no values.
    """
    fast = x.dtype == torch.float32 or x.dtype in HALVES
    return x.device.type == "cpu" and fast and get_proxy_mode() is None


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    groups: int,
    *,
    onto: Tensor | None = None,
    in_place: bool = False,
    relu: bool = False,
) -> Tensor:
    """Convolve, add `onto`, which may be overwritten if `in_place`, and apply a ReLU if `relu`."""
    n = len(stride)
    fast = x.device.type == "cpu" and x.dtype in (torch.float32, *_ABLE) and _ONEDNN
    if x.device.type == "cpu" and weight.shape[1] == 1 and stride[-1] > 1:
        x, stride, padding = _one_window(x, weight, stride, padding, dilation)
    if x.ndim == n + 2 > 3 and x.shape[1] == 1:
        # Any order of axes describes it: have the result's channels last.
        x = x.as_strided(x.shape, (x.stride(0), 1, *x.stride()[2:]))
    if relu and x.is_cuda and x.ndim == n + 2 > 3:
        done = _on_gpu(x, weight, bias, onto, (stride, padding, dilation, groups))
        if done is not None:
            return done
    if fast and n == 1 and x.ndim == 3 and get_proxy_mode() is None:
        how = (1, *stride), (0, *padding), (1, *dilation), groups
        onto = None if onto is None else onto.unsqueeze(2)
        x, weight = as_image(x), weight.unsqueeze(2)
        return convolve(x, weight, bias, *how, onto=onto, in_place=in_place, relu=relu).squeeze(2)
    if not fast or n == 1 or x.ndim != n + 2:
        made = _in_slabs(x, weight, bias, stride, padding, dilation, groups)
        if onto is not None:
            made = onto.add_(made) if in_place else made.add_(onto)
        return rectified(made, in_place=True) if relu else made
    # F.conv3d has a kernel of its own, up to four times slower, where channels are few.
    kind, how = x.dtype, (padding, stride, dilation, groups)
    if kind in _ABLE and kind not in HALVES:
        return _in_single(x, weight, bias, how, onto, onto if in_place else None, relu)
    if kind == torch.bfloat16 and AMX:
        done = _by_pairs(x, weight, bias, how, onto, in_place, relu)
        if done is not None:
            return done
    part = channels_at_once(weight.shape, groups, x.element_size())
    if part < x.shape[1] and channels_last(x) and get_proxy_mode() is None:
        return _by_parts(x, weight, bias, how, onto, in_place, relu, part)
    few = x.shape[1] < (2 if AMX else FEW)
    if few and get_proxy_mode() is None:  # torch.compile fuses the conversions, and fails
        x, weight = x.float(), weight.float()
        bias = None if bias is None else bias.float()
        onto = None if onto is None else onto.float()
    if onto is None:
        made = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *how, "none", [], "")
    else:
        after: Any = ("add", 1, None, [], "")
        if in_place:
            made = torch.ops.mkldnn._convolution_pointwise_.binary(
                onto, x, weight, bias, *how, *after
            )
        else:
            made = torch.ops.mkldnn._convolution_pointwise.binary(
                x, onto, weight, bias, *how, *after
            )
    if relu:  # not oneDNN's own, which makes zeros of what is not a number
        made = rectified(made, in_place=True)
    return made.to(kind)


def as_image(lines: Tensor) -> Tensor:
    """Give lines a second axis, of one row, with channels last.

    For lines themselves oneDNN copies them, and the result, with channels padded to 16.
    """
    return lines.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def _one_window(
    x: Tensor, weight: Tensor, stride: Shape, padding: Shape, dilation: Shape
) -> tuple[Tensor, Shape, Shape]:
    """Take no more than the window, where there is one along a line, and no stride.

    Of one channel, or one a group, and with a stride, oneDNN reads beyond the tensor there.
    """
    if _extents(x, weight.shape[2:], stride, padding, dilation)[-1] > 1:
        return x, stride, padding
    reach, low = dilation[-1] * (weight.shape[-1] - 1) + 1, padding[-1]
    none = [0] * (len(stride) - 1)
    high = max(0, reach - low - x.shape[-1])
    if low or high:
        x = padded(x, [*none, low], [*none, high], 0.0)
    return x.narrow(-1, 0, reach), (*stride[:-1], 1), (*padding[:-1], 0)


def _by_pairs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    how: tuple[Shape, Shape, Shape, int],
    onto: Tensor | None,
    in_place: bool,
    relu: bool,
) -> Tensor | None:
    """Convolve pairs of points along the last axis; None where that cannot be, or is no faster."""
    padding, stride, dilation, groups = how
    if padding[-1] and x.shape[1] < FEW:  # little to copy
        ends = (*[0] * (len(stride) - 1), padding[-1])
        x, padding = padded(x, ends, ends, 0.0), (*padding[:-1], 0)
    suits = groups == 1 and not padding[-1] and (onto is None or can_pair(onto))
    if not suits or not pays_in_pairs(x, weight, stride, dilation):
        return None
    bias = None if bias is None else bias.repeat(2)
    onto = None if onto is None else in_pairs(onto)
    x, weight = in_pairs(x), kernel_of_pairs(weight)
    how = stride, padding, dilation, groups
    made = convolve(x, weight, bias, *how, onto=onto, in_place=in_place, relu=relu)
    if not can_pair(made):  # as `x` lies in memory in another order of axes
        made = made.contiguous(memory_format=LAYOUTS[made.ndim])
    return apart(made)


def channels_at_once(weight: Sequence[int], groups: int, itemsize: int) -> int:
    """Channels of the operand that are summed over at once on a CPU, in single precision.

    In halves each part would be rounded.
    """
    if itemsize != 4 or groups > 1 or math.prod(weight[1:]) <= _LONG:
        return weight[1] * groups
    return math.ceil(weight[1] / math.ceil(weight[1] / _PART) / 16) * 16


def _by_parts(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    how: tuple[Shape, Shape, Shape, int],
    onto: Tensor | None,
    in_place: bool,
    relu: bool,
    part: int,
) -> Tensor:
    """Convolve some channels after others, each onto the sum so far."""
    padding, stride, dilation, _ = how
    made = onto
    for a in range(0, x.shape[1], part):
        b = min(x.shape[1], a + part)
        made = convolve(
            x[:, a:b].contiguous(memory_format=LAYOUTS[x.ndim]),
            weight[:, a:b],
            None if a else bias,
            stride,
            padding,
            dilation,
            1,
            onto=made,
            in_place=in_place or a > 0,
            relu=relu and b == x.shape[1],
        )
    assert made is not None
    return made


def _on_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    onto: Tensor | None,
    how: tuple[Shape, Shape, Shape, int],
) -> Tensor | None:
    """Let cuDNN add and apply a ReLU as it convolves; None if it cannot, or no faster."""
    single = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    # For other numbers of channels its kernels are slow.
    suits = (x.element_size() == 2 or single) and weight.shape[0] % 8 == 0 and how[-1] == 1
    if not suits or not torch.backends.cudnn.is_acceptable(x):
        return None
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    try:
        if onto is None:
            return torch.ops.aten.cudnn_convolution_relu(x, weight, bias, *how)
        return torch.ops.aten.cudnn_convolution_add_relu(x, weight, onto, 1, bias, *how)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return None  # there is no such kernel for this shape


def _in_single(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    how: tuple[Shape, Shape, Shape, int],
    onto: Tensor | None,
    made: Tensor | None,
    relu: bool,
) -> Tensor:
    """Convolve in single precision, slab by slab, so that little is held twice."""
    padding, stride, dilation, groups = how
    n, (pad, step) = len(stride), (padding[0], stride[0])
    extents = _extents(x, weight.shape[2:], stride, padding, dilation)
    if made is None:
        layout = LAYOUTS[n + 2]
        shape = (x.shape[0], weight.shape[0], *extents)
        made = torch.empty(shape, dtype=x.dtype, memory_format=layout)
    weight, bias = weight.float(), None if bias is None else bias.float()
    row = step * math.prod(x.shape[1:]) // x.shape[2] + math.prod(made.shape[1:]) // extents[0]
    rows = max(1, COLUMNS // (4 * row))
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    for a in range(0, extents[0], rows):
        b = min(extents[0], a + rows)
        low, high = a * step - pad, (b - 1) * step - pad + reach
        first, last = max(low, 0), min(high, x.shape[2])
        slab = x.narrow(2, first, max(last - first, 0)).float()
        if low < first or high > last:
            none = [0] * (n - 1)
            slab = padded(slab, [first - low, *none], [high - max(last, first), *none], 0.0)
        part = convolve(
            slab,
            weight,
            bias,
            stride,
            (0, *padding[1:]),
            dilation,
            groups,
            onto=None if onto is None else onto.narrow(2, a, b - a).float(),
            in_place=True,
            relu=relu,
        )
        made.narrow(2, a, b - a).copy_(part)
    return made


def _extents(
    x: Tensor, kernel: Sequence[int], stride: Shape, padding: Shape, dilation: Shape
) -> list[int]:
    """How many windows there are along each axis."""
    n = len(stride)
    sizes = zip(x.shape[-n:], kernel, stride, padding, dilation, strict=True)
    return [(e + 2 * p - d * (k - 1) - 1) // s + 1 for e, k, s, p, d in sizes]


def _in_slabs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    groups: int,
) -> Tensor:
    """Convolve; in double precision on a CPU by slabs, as ATen lays all windows side by side."""
    n = len(stride)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n]
    extents = _extents(x, weight.shape[2:], stride, padding, dilation)
    windows = math.prod(x.shape[: -n - 1]) * math.prod(extents[1:])
    rows = rows_of_columns(weight.shape, groups, windows, x.element_size())
    if x.element_size() < 8 or x.device.type != "cpu" or rows >= extents[0]:
        return convolve(x, weight, bias, stride, padding, dilation, groups)
    if padding[0]:
        none = [0] * (n - 1)
        x = padded(x, [padding[0], *none], [padding[0], *none], 0.0)
    made = x.new_empty((*x.shape[: -n - 1], weight.shape[0], *extents))
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    for a in range(0, extents[0], rows):
        b = min(extents[0], a + rows)
        slab = x.narrow(-n, a * stride[0], (b - a - 1) * stride[0] + reach)
        made.narrow(-n, a, b - a).copy_(
            convolve(slab, weight, bias, stride, (0, *padding[1:]), dilation, groups)
        )
    return made


def rows_of_columns(weight: Sequence[int], groups: int, windows: int, itemsize: int) -> int:
    """How many rows of so many windows ATen or oneDNN may lay side by side."""
    row = itemsize * math.prod(weight[1:]) * groups * windows
    return max(1, COLUMNS // max(1, row))


def largest(x: Tensor, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape) -> Tensor:
    """Take the largest value of each window."""
    if x.device.type != "cpu":
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
        return pool(x, kernel, stride, padding, dilation)
    if any(padding):
        x = padded(x, padding, padding, -math.inf)
    return _by_axis(torch.maximum, x, kernel, stride, dilation)


def mean(x: Tensor, kernel: Shape, stride: Shape) -> Tensor:
    """Take the mean of each window, in halves as well: sums are in single precision at least."""
    if x.device.type != "cpu":
        return {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)](x, kernel, stride)
    sums = _by_axis(
        torch.add, x.float() if x.itemsize < 4 else x, kernel, stride, (1,) * len(kernel)
    )
    return sums.div_(math.prod(kernel)).to(x.dtype)


def _by_axis(
    join: Callable[..., Tensor],
    x: Tensor,
    kernel: Shape,
    stride: Shape,
    dilation: Shape,
) -> Tensor:
    """Join the points of each window, along one axis after the other.

    ATen's kernels join all of a window at once: up to 70 times slower.
    """
    n = len(kernel)
    extents = _extents(x, kernel, stride, (0,) * n, dilation)
    for axis, (k, s, d, extent) in enumerate(
        zip(kernel, stride, dilation, extents, strict=True), start=-n
    ):
        first, *others = (
            x.narrow(axis, i * d, (extent - 1) * s + 1).unfold(axis, 1, s).squeeze(-1)
            for i in range(k)
        )
        x = first
        for i, other in enumerate(others):
            x = join(x, other, out=x) if i else join(x, other)
    return x.clone() if max(kernel) == 1 else x


def expressible(value: float, dtype: torch.dtype) -> float:
    """Return a value of padding, or the least whole number in place of minus infinity."""
    least = value == -math.inf and not dtype.is_floating_point and dtype != torch.bool
    return torch.iinfo(dtype).min if least else value


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float) -> Tensor:
    """F.pad, but each point is written once and the memory layout stays."""
    rank, value = len(before), expressible(value, x.dtype)
    extents = [a + n + b for a, n, b in zip(before, x.shape[-rank:], after, strict=True)]
    made = empty_as(x, (*x.shape[:-rank], *extents))
    for axis, (a, b) in enumerate(zip(before, after, strict=True), start=-rank):
        made.narrow(axis, 0, a).fill_(value)
        made.narrow(axis, made.shape[axis] - b, b).fill_(value)
    inside = Box(tuple(before), tuple(a + n for a, n in zip(before, x.shape[-rank:], strict=True)))
    made[inside.index] = x
    return made
