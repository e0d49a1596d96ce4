"""Layouts: which axes of the grid each dimension of a tensor holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from .boxes import Box, Shape

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a tensor lies on its grid.

    Attributes
    ----------
    shape : tuple of int
        Of the whole tensor.
    dims : tuple of tuple of int
        For each dimension the grid axes that it holds, the outermost first: one for the D of
        (N, C, D, H, W), three for the tokens of (N, D·H·W, C), none for batch and channels.
    grid : tuple of int
        Extent along each grid axis; 1 where no dimension holds it.
    """

    shape: Shape
    dims: tuple[Axes, ...]
    grid: Shape

    @classmethod
    def fixed(cls, shape: Iterable[int], rank: int) -> Layout:
        """No dimension holds an axis: the tensor is always taken whole."""
        shape = tuple(shape)
        return cls(shape, ((),) * len(shape), (1,) * rank)

    @classmethod
    def image(cls, shape: Iterable[int], rank: int) -> Layout:
        """The last dimensions are the grid's axes."""
        shape = tuple(shape)
        dims = ((),) * (len(shape) - rank) + tuple((a,) for a in range(rank))
        return cls(shape, dims, shape[len(shape) - rank :])

    @cached_property
    def is_fixed(self) -> bool:
        """Whether it is always taken whole."""
        return math.prod(self.grid) == 1

    @cached_property
    def width(self) -> int:
        """Number of values at one grid point."""
        return math.prod(self.shape) // math.prod(self.grid)

    @cached_property
    def held(self) -> Axes:
        """Axes that some dimension holds, in the order of the dimensions."""
        return tuple(a for axes in self.dims for a in axes)

    @cached_property
    def whole(self) -> Box:
        """The box of the whole grid."""
        return Box.whole(self.grid)

    @cached_property
    def stored(self) -> Shape:
        """Shape in a store: batch and channels first, then every axis of the grid."""
        return (*(n for n, axes in zip(self.shape, self.dims, strict=True) if not axes), *self.grid)

    def axis_dim(self, axis: int) -> int | None:
        """Dimension that holds this axis."""
        return next((i for i, axes in enumerate(self.dims) if axis in axes), None)

    def local(self, box: Box) -> list[int]:
        """Shape of the tensor on `box`."""
        extents = box.shape
        return [
            math.prod(extents[a] for a in axes) if axes else n
            for n, axes in zip(self.shape, self.dims, strict=True)
        ]

    def cut(self, value: Tensor, held: Box, box: Box) -> Tensor:
        """Take `box` out of the tensor on `held`: a view, where no dimension holds two axes."""
        if held == box:
            return value
        inside = box.within(held)
        slices = [slice(a, b) for a, b in zip(inside.start, inside.stop, strict=True)]
        if all(len(axes) < 2 for axes in self.dims):
            return value[tuple(slices[axes[0]] if axes else slice(None) for axes in self.dims)]
        index = tuple(slices[a] if a >= 0 else slice(None) for a in self._factors)
        return value.reshape(self._split(held))[index].reshape(self.local(box))

    def to_store(self, value: Tensor, box: Box) -> Tensor:
        """Bring the tensor on `box` into the form of a store."""
        if self.is_image:
            return value
        factors = self._factors
        split = value.reshape(self._split(box))
        split = split.permute(sorted(range(split.ndim), key=factors.__getitem__))
        return split.reshape(*self.stored[: -len(self.grid)], *box.shape)

    def from_store(self, value: Tensor, box: Box) -> Tensor:
        """Undo `to_store`."""
        if self.is_image:
            return value
        rank = len(self.grid)
        missing = [value.ndim - rank + a for a in range(rank) if a not in self.held]
        factors = self._factors
        order = sorted(range(len(factors)), key=factors.__getitem__)
        back = [order.index(i) for i in range(len(order))]
        return value.squeeze(missing).permute(back).reshape(self.local(box))

    @property
    def is_image(self) -> bool:
        """Whether it is stored as it is: the axes of the grid last, in their order."""
        rank = len(self.grid)
        return self.dims[-rank:] == tuple((a,) for a in range(rank)) and not any(self.dims[:-rank])

    @property
    def _factors(self) -> list[int]:
        """For each part of a split dimension its axis, or -1 where it holds none."""
        return [a for axes in self.dims for a in (axes or (-1,))]

    def _split(self, box: Box) -> list[int]:
        """Local shape with a dimension of its own for every axis."""
        extents = box.shape
        return [
            extents[a] if a >= 0 else n
            for n, axes in zip(self.shape, self.dims, strict=True)
            for a in (axes or (-1,))
        ]
