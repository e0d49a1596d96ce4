"""Where tensors live outside a tile: read a box, write a box."""

from __future__ import annotations

import itertools
import operator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..graph import Box
from ..graph.boxes import Shape
from ..pages import forget_pages
from .memory import empty


def channels_last_order(ndim: int, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Order that puts the axis before the grid's last, and the order that undoes it."""
    lead = ndim - rank
    order = (*range(lead - 1), *range(lead, ndim), *range(max(0, lead - 1), lead))
    return order, tuple(order.index(i) for i in range(ndim))


def channels_last(
    shape: Shape, rank: int, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Allocate a tensor whose channels lie next to each other in memory."""
    order, back = channels_last_order(len(shape), rank)
    return empty([shape[i] for i in order], dtype, device).permute(back)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy from host to GPU through pinned memory; leave what is there already."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    if not (x.is_contiguous() and x.is_pinned()):
        x = torch.empty_like(x, pin_memory=True).copy_(x)
    return x.to(device, non_blocking=True)


def to_host(x: Tensor) -> Tensor:
    """Copy from GPU to host through pinned memory; leave what is there already."""
    if not x.is_cuda:
        return x
    staged = torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return staged


class Store(Protocol):
    """A tensor that is read and written by boxes of its grid.

    Attributes
    ----------
    slow : bool
        Whether to read ahead and write behind, while something is computed.
    """

    slow: bool

    def read(self, box: Box) -> Tensor:
        """Return the tensor on `box`: leading axes whole, grid axes cut."""

    def write(self, box: Box, value: Tensor) -> None:
        """Put `value` where `box` lies."""

    def remove(self) -> None:
        """Free what the store takes; nothing reads it any more."""


class MemoryStore:
    """A tensor in memory; what is read is a view where no conversion is needed.

    Parameters
    ----------
    tensor : torch.Tensor
        The whole tensor.
    dtype : torch.dtype, optional
        Precision in which it is read, if another than its own.
    slow : bool
        Whether another device reads and writes it.
    """

    def __init__(
        self, tensor: Tensor, dtype: torch.dtype | None = None, slow: bool = False
    ) -> None:
        self.tensor = tensor
        self.dtype = dtype or tensor.dtype
        self.slow = slow

    def read(self, box: Box) -> Tensor:
        return self.tensor[box.index].to(self.dtype)

    def write(self, box: Box, value: Tensor) -> None:
        self.tensor[box.index] = value if self.tensor.is_cuda else to_host(value)

    def remove(self) -> None:
        del self.tensor

    def outer(self, dim: int) -> list[int]:
        """For each dimension, its extent if it lies outside of this one in memory, else 1."""
        shape, strides = self.tensor.shape, self.tensor.stride()
        return [n if s > strides[dim] else 1 for n, s in zip(shape, strides, strict=True)]

    def forget(self, dim: int, before: int) -> None:
        """Give back the memory of what lies before a point along a dimension.

        Nothing reads it any more.
        """
        strides = self.tensor.stride()
        for index in itertools.product(*map(range, self.outer(dim))):
            start = sum(map(operator.mul, index, strides))
            ends = start, start + before * strides[dim]
            forget_pages(self.tensor, *(self.tensor.itemsize * end for end in ends))


class ArrayStore:
    """A tensor in an array on disk, channels last, as kernels like it.

    Parameters
    ----------
    shape : tuple of int
        Full shape of the tensor; the grid axes last.
    rank : int
        Number of grid axes.
    dtype : torch.dtype
    """

    slow = True

    def __init__(self, shape: Shape, rank: int, dtype: torch.dtype) -> None:
        self.order, self.back = channels_last_order(len(shape), rank)
        self.stored = tuple(shape[i] for i in self.order)
        self.batch = max(0, len(shape) - rank - 1)
        self.dtype = dtype
        # NumPy has no bfloat16: bits travel as integers.
        self.bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        self.raw = str(self.bits).removeprefix("torch.")

    def open(self, mode: str) -> Any:
        """Open the array for reading ("r") or for writing too ("r+")."""
        raise NotImplementedError

    def remove(self) -> None:
        """Delete the array."""
        raise NotImplementedError

    def _index(self, box: Box) -> tuple[slice, ...]:
        return (slice(None),) * self.batch + box.slices

    def read(self, box: Box) -> Tensor:
        values = torch.from_numpy(np.array(self.open("r")[self._index(box)]))
        return values.view(self.dtype).permute(self.back)

    def write(self, box: Box, value: Tensor) -> None:
        ordered = to_host(value.detach()).to(self.dtype).permute(self.order).contiguous()
        self.open("r+")[self._index(box)] = ordered.view(self.bits).numpy()
