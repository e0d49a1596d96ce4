"""Convolutions on a CPU that take little memory beside their operands.

oneDNN, which evaluates them, works on copies of input, output and their gradients in a layout of
its own: as much memory again as the operands take. Here these copies are of a slab at a time. Of
operands with channels last it makes none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..pages import forget_pages

_LARGE = 2**25  # bytes of an input
_SLAB = 2**23  # of it at a time
_INTERVAL = 0.005  # seconds
_aten = torch.ops.aten


class LeanConvolutions(TorchDispatchMode):
    """Inside this context large convolutions are evaluated slab by slab along the first axis.

    Each element of a result is the same sum as without. The weights' gradient, whose sums run over
    all slabs, is evaluated whole, but an input mapped from disk is kept from staying in memory.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is _aten.convolution.default:
            x, weight, bias, stride, padding, dilation, transposed, _, groups = args
            if not transposed and _is_large(x) and x.is_contiguous():
                return _forward(x, weight, bias, stride, padding, dilation, groups)
        if func is _aten.convolution_backward.default:
            _, x, _, _, stride, *_, transposed, _, _, mask = args
            if not transposed and all(mask[:2]) and stride[0] == 1 and _is_large(x):
                return _backward(*args)
        return func(*args, **(kwargs or {}))


def _is_large(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.ndim not in (4, 5) or x.nbytes < _LARGE:
        return False
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.is_contiguous() or x.is_contiguous(memory_format=last)


def _slabs(x: Tensor, extent: int) -> Iterator[tuple[int, int]]:
    """Cut an axis of that extent as finely as `x` asks for."""
    thick = -(-extent // -(-x.nbytes // _SLAB))
    for start in range(0, extent, thick):
        yield start, min(extent, start + thick)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    reach, rest = dilation[0] * (weight.shape[2] - 1), [0] * (2 * (x.ndim - 3))
    shape = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    out = x.new_empty(x.shape[0], weight.shape[0], *shape)
    for a, b in _slabs(x, shape[0]):
        first, last = a * stride[0] - padding[0], (b - 1) * stride[0] + reach + 1 - padding[0]
        inside = x[:, :, max(0, first) : last]
        before = max(0, -first)
        part = F.pad(inside, [*rest, before, last - first - before - inside.shape[2]])
        out[:, :, a:b] = _aten.convolution(
            part,
            weight,
            bias,
            stride,
            [0, *padding[1:]],
            dilation,
            False,
            [0] * len(stride),
            groups,
        )
    return out


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_shape: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor | None]:
    backward = _aten.convolution_backward
    with _Forgetting(x):
        _, weight_grad, bias_grad = backward(
            grad,
            x,
            weight,
            bias_shape,
            stride,
            padding,
            dilation,
            transposed,
            output_padding,
            groups,
            [False, *mask[1:]],
        )
    if not x.is_contiguous():
        how = stride, padding, dilation, transposed, output_padding, groups
        x_grad, _, _ = backward(grad, x, weight, None, *how, [True, False, False])
        return x_grad, weight_grad, bias_grad
    reach = dilation[0] * (weight.shape[2] - 1)
    x_grad = torch.empty_like(x)
    one = x.new_zeros(())  # only the shape of the input matters for its gradient
    for a, b in _slabs(x, x.shape[2]):
        # Outputs that these inputs reach, and all the inputs that reach those.
        first, last = max(0, a + padding[0] - reach), min(grad.shape[2], b + padding[0])
        start = first - padding[0]
        shape = (*x.shape[:2], last - first + reach, *x.shape[3:])
        part, _, _ = backward(
            grad[:, :, first:last],
            one.expand(shape),
            weight,
            None,
            stride,
            [0, *padding[1:]],
            dilation,
            transposed,
            output_padding,
            groups,
            [True, False, False],
        )
        x_grad[:, :, a:b] = part[:, :, a - start : b - start]
    return x_grad, weight_grad, bias_grad


class _Forgetting:
    """Inside this context the pages of a mapped tensor do not pile up as they are read."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.done = x, threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.done.wait(_INTERVAL):
            forget_pages(self.x)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        forget_pages(self.x)
