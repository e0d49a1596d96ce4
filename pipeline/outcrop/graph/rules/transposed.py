"""Transposed convolutions, without padding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import Shape
from .kernels import as_image, convolve, is_fast, rows_of_columns
from .pointwise import LAYOUTS, channels_last


def transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Shape, dilation: Shape, groups: int
) -> Tensor:
    """Convolve transposed; on a CPU by phases or slabs, as what windows give is laid out."""
    n = len(stride)
    if is_fast(x) and has_phases(weight.shape, stride, dilation, groups, x.element_size()):
        if n > 1:
            return _by_phases(x, weight, bias, stride)
        return _by_phases(as_image(x), weight.unsqueeze(2), bias, (1, *stride)).squeeze(2)
    spread = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[n]
    windows = math.prod((*x.shape[: -n - 1], *x.shape[x.ndim - n + 1 :]))
    rows = rows_to_spread(weight.shape, stride, dilation, windows, x.element_size())
    if x.device.type != "cpu" or rows >= x.shape[-n]:
        return spread(x, weight, bias, stride, 0, 0, groups, dilation)
    extents = spread_over(x.shape[-n:], weight.shape[2:], stride, dilation)
    shape = (*x.shape[: -n - 1], groups * weight.shape[1], *extents)
    layout = LAYOUTS[x.ndim] if channels_last(x) else torch.contiguous_format
    made = torch.empty(shape, dtype=x.dtype, memory_format=layout)
    made[...] = 0.0 if bias is None else bias.view(-1, *(1,) * n)
    for a in range(0, x.shape[-n], int(rows)):
        slab = x.narrow(-n, a, min(int(rows), x.shape[-n] - a))
        part = spread(slab, weight, None, stride, 0, 0, groups, dilation)
        made.narrow(-n, a * stride[0], part.shape[-n]).add_(part)
        del part  # before the next is made
    return made


def spread_over(
    extents: Sequence[int], kernel: Sequence[int], stride: Shape, dilation: Shape
) -> list[int]:
    """Extents of a transposed convolution's result, without padding."""
    sizes = zip(extents, kernel, stride, dilation, strict=True)
    return [(e - 1) * s + (k - 1) * d + 1 for e, k, s, d in sizes]


def has_phases(
    weight: Sequence[int], stride: Shape, dilation: Shape, groups: int, itemsize: int
) -> bool:
    """Whether a CPU is faster by phases: where oneDNN's kernel, two to 20 times slower, is worst.

    There windows overlap; in halves in part: some results are sums over more of them than others.
    Of lines it copies all, with channels padded to 16.
    """
    pairs = list(zip(weight[2:], stride, strict=True))
    worst = len(pairs) == 1 or any(k % s or (itemsize == 4 and k > s) for k, s in pairs)
    return worst and max(dilation) == groups == 1 and itemsize < 8


def _phases(weight: Sequence[int], stride: Shape) -> dict[Shape, list[Shape]]:
    """For each number of taps along the axes the phases that have it.

    A phase are all results of the same remainders by the stride: each sees the same taps.
    """
    found: dict[Shape, list[Shape]] = {}
    for phase in itertools.product(*map(range, stride)):
        ends = zip(weight[2:], phase, stride, strict=True)
        taps = tuple(-(-(k - p) // s) for k, p, s in ends)
        found.setdefault(taps, []).append(phase)
    return found


def bytes_of_phases(
    extents: Sequence[int], batch: int, weight: Sequence[int], stride: Shape, itemsize: int
) -> int:
    """Bytes of the phases that are evaluated at once, and of their kernel."""
    return max(
        itemsize
        * len(phases)
        * weight[1]
        * (math.prod(taps) * weight[0] + batch * math.prod(windows))
        for taps, phases in _phases(weight, stride).items()
        for windows in [[e + t - 1 for e, t in zip(extents, taps, strict=True)]]
    )


def _by_phases(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Shape) -> Tensor:
    """Convolve for each phase of the results, on the grid of the operand."""
    n = len(stride)
    ones, axes = (1,) * n, tuple(range(2, 2 + n))
    extents = spread_over(x.shape[2:], weight.shape[2:], stride, ones)
    shape = (x.shape[0], weight.shape[1], *extents)
    layout = LAYOUTS[x.ndim] if channels_last(x) else torch.contiguous_format
    made = torch.empty(shape, dtype=x.dtype, memory_format=layout)

    def of(tensor: Tensor, phase: Shape) -> Tensor:
        steps = [slice(p, None, s) for p, s in zip(phase, stride, strict=True)]
        return tensor[:, :, *steps]

    for taps, phases in _phases(weight.shape, stride).items():
        if min(taps) < 1:  # between windows: nothing but the bias
            for phase in phases:
                of(made, phase)[...] = 0.0 if bias is None else bias.view(-1, *ones)
            continue
        kernel = torch.cat([of(weight, p).flip(axes).transpose(0, 1) for p in phases])
        several = None if bias is None else bias.repeat(len(phases))
        reach = tuple(t - 1 for t in taps)
        parts = convolve(x, kernel, several, ones, reach, ones, 1).chunk(len(phases), 1)
        for phase, part in zip(phases, parts, strict=True):
            of(made, phase).copy_(part)
    return made


def rows_to_spread(
    weight: Sequence[int], stride: Shape, dilation: Shape, windows: int, itemsize: int
) -> int | float:
    """How many rows a transposed convolution takes at once; infinity for all of them.

    In single precision by slabs only where windows overlap, as what they give is no larger than the
    result else, and to copy it takes longer.
    """
    reach = ((k - 1) * d + 1 for k, d in zip(weight[2:], dilation, strict=True))
    overlap = any(r > s for r, s in zip(reach, stride, strict=True))
    if itemsize < 4 or (itemsize < 8 and not overlap):
        return math.inf
    return rows_of_columns(weight, 1, windows, itemsize)
