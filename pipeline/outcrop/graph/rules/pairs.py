"""Convolutions of few channels in bfloat16, by pairs of points: as suits AMX.

With channels last, the channels of two neighbours along the last axis lie side by side: they are
the channels of a pair, and nothing is copied. A kernel of 3 points reaches 2 pairs, and a quarter
of its weights are zero.
"""

from __future__ import annotations

from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ..boxes import Shape

# Channels of points that AMX is better at by pairs: hardly any, or half of what fills its tiles.
_PAIRED = (1, 2, 3, 16)


def pays_in_pairs(x: Tensor, weight: Tensor, stride: Shape, dilation: Shape) -> bool:
    """Whether a convolution without padding along the last axis is evaluated faster by pairs.

    Not if a value is not finite: times a weight of zero that would spread to where it is not seen.
    """
    taps = weight.shape[-1]
    return (
        x.shape[1] in _PAIRED
        and taps % 2 == 1 < taps < x.shape[-1]
        and x.shape[-1] % 2 == 0
        and stride[-1] == dilation[-1] == 1
        and can_pair(x)
        and get_proxy_mode() is None  # a trace has no values
        and bool(x.sum().isfinite())
    )


def can_pair(x: Tensor) -> bool:
    """Whether the channels of neighbours along the last axis lie side by side."""
    channels = x.shape[1]
    return x.stride(-1) == channels and (channels == 1 or x.stride(1) == 1)


def in_pairs(x: Tensor) -> Tensor:
    """Return pairs of points along the last axis, in the memory of the points."""
    channels = 2 * x.shape[1]
    shape = (x.shape[0], channels, *x.shape[2:-1], x.shape[-1] // 2)
    return x.as_strided(shape, (x.stride(0), 1, *x.stride()[2:-1], channels))


def apart(x: Tensor) -> Tensor:
    """Return the points of pairs, in the memory of the pairs, whose channels are last."""
    channels = x.shape[1] // 2
    shape = (x.shape[0], channels, *x.shape[2:-1], 2 * x.shape[-1])
    return x.as_strided(shape, (x.stride(0), 1, *x.stride()[2:-1], channels))


def kernel_of_pairs(weight: Tensor) -> Tensor:
    """Return the kernel that does to pairs what `weight`, of an odd number of taps, to points."""
    made, taken, *others, taps = weight.shape
    kernel = weight.new_zeros(2, made, taps + 1, taken, *others)
    for first in (0, 1):
        kernel[first, :, first : first + taps] = weight.movedim(-1, 1)
    return kernel.reshape(2 * made, (taps + 1) // 2, 2 * taken, *others).movedim(1, -1)
