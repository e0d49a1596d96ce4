"""Boxes: half-open integer ranges on a grid, one per axis."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """The grid points from `start` to just before `stop`, axis by axis."""

    start: Shape
    stop: Shape

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """Every point of a grid."""
        return cls((0,) * len(shape), tuple(shape))

    @cached_property
    def shape(self) -> Shape:
        """Extent along each axis."""
        return tuple(map(operator.sub, self.stop, self.start))

    @cached_property
    def size(self) -> int:
        """Number of grid points."""
        return math.prod(max(0, n) for n in self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of this box in an array that holds the whole grid."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def index(self) -> Any:
        """Index of this box in a tensor whose last axes are the grid's."""
        return (..., *self.slices)

    def __and__(self, other: Box) -> Box:
        """Intersection; of boxes that lie apart, one of no points."""
        start = tuple(map(max, self.start, other.start))
        return Box(start, tuple(map(max, start, map(min, self.stop, other.stop))))

    def __or__(self, other: Box) -> Box:
        """Smallest box that holds both."""
        return Box(tuple(map(min, self.start, other.start)), tuple(map(max, self.stop, other.stop)))

    def __contains__(self, other: Box) -> bool:
        return self & other == other

    def shifted(self, by: Sequence[int]) -> Box:
        """The same box, `by` further along each axis."""
        return Box(
            tuple(a + d for a, d in zip(self.start, by, strict=True)),
            tuple(b + d for b, d in zip(self.stop, by, strict=True)),
        )

    def grown(self, shape: Sequence[int], domain: Box) -> Box:
        """Grow to at least `shape` where `domain`, which holds the box, has room for it."""
        start, stop = [], []
        for a, b, n, low, high in zip(
            self.start, self.stop, shape, domain.start, domain.stop, strict=True
        ):
            first = max(low, min(a, high - max(n, b - a)))
            start.append(first)
            stop.append(min(high, max(b, first + n)))
        return Box(tuple(start), tuple(stop))

    def spanning(self, axes: Container[int], grid: Shape) -> Box:
        """Return this box with all of `grid` along some axes."""
        ends = enumerate(zip(self.start, self.stop, grid, strict=True))
        ranges = [(0, n) if axis in axes else (a, b) for axis, (a, b, n) in ends]
        return Box(tuple(a for a, _ in ranges), tuple(b for _, b in ranges))

    def within(self, other: Box) -> Box:
        """Return this box as counted from the start of `other`."""
        return self.shifted(tuple(-a for a in other.start))


def tiles(domain: Box, tile: Sequence[int]) -> Iterator[Box]:
    """Cut `domain` into boxes of at most the shape `tile`, in C order."""
    starts = (range(a, b, t) for a, b, t in zip(domain.start, domain.stop, tile, strict=True))
    for start in itertools.product(*starts):
        stop = tuple(a + t for a, t in zip(start, tile, strict=True))
        yield Box(start, stop) & domain


def count_tiles(domain: Box, tile: Sequence[int]) -> int:
    """How many boxes `tiles` yields."""
    return math.prod(-(-n // t) for n, t in zip(domain.shape, tile, strict=True))


def central_tile(domain: Box, tile: Sequence[int]) -> Box:
    """Return the tile with as much of its surroundings inside of `domain` as any."""
    start = tuple(
        a + (math.ceil(n / t) // 2) * t if math.ceil(n / t) > 2 else a
        for a, n, t in zip(domain.start, domain.shape, tile, strict=True)
    )
    return Box(start, tuple(a + t for a, t in zip(start, tile, strict=True))) & domain


@dataclass(frozen=True)
class Lattice:
    """Tiles of one shape over a domain, in C order; those at its end may be smaller."""

    domain: Box
    tile: Shape

    def number(self, box: Box) -> int:
        """Place of a tile in the order; ValueError if `box` is none of them."""
        index = [
            (a - d) // t for a, d, t in zip(box.start, self.domain.start, self.tile, strict=True)
        ]
        if box not in self.domain or self.at(index) != box:
            raise ValueError(f"{box} is not a tile of {self}")
        return self._number(index)

    def at(self, index: Sequence[int]) -> Box:
        """Return the tile that comes after so many others along each axis."""
        start = tuple(
            d + i * t for d, i, t in zip(self.domain.start, index, self.tile, strict=True)
        )
        stop = tuple(a + t for a, t in zip(start, self.tile, strict=True))
        return Box(start, stop) & self.domain

    @cached_property
    def counts(self) -> Shape:
        """How many tiles there are along each axis."""
        return tuple(-(-n // t) for n, t in zip(self.domain.shape, self.tile, strict=True))

    def layers(self, axis: int, first: int, stop: int) -> Iterator[tuple[int, Box]]:
        """Yield number and box of every tile in some layers across an axis."""
        ranges = [range(n) for n in self.counts]
        ranges[axis] = range(first, stop)
        for index in itertools.product(*ranges):
            yield self._number(index), self.at(index)

    def touching(self, box: Box) -> Iterator[tuple[int, Box]]:
        """Yield number and box of every tile that overlaps `box`."""
        if not box.size:  # of points in padding alone
            return
        if box not in self.domain:
            raise ValueError(f"{box} is not within {self.domain}, where the tensor was computed")
        inside = box.within(self.domain)
        spans = zip(inside.start, inside.stop, self.tile, strict=True)
        for index in itertools.product(*(range(a // t, -(-b // t)) for a, b, t in spans)):
            yield self._number(index), self.at(index)

    def _number(self, index: Sequence[int]) -> int:
        number = 0
        for i, count in zip(index, self.counts, strict=True):
            number = number * count + i
        return number
