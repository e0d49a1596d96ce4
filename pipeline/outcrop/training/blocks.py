"""Slices of a Dask array, its blocks kept once they are read."""

from __future__ import annotations

from collections import OrderedDict

import dask.array
import numpy as np

from ..patience import patiently

Array = np.ndarray


class Blocks:
    """A Dask array that is sliced again and again at random.

    Parameters
    ----------
    array : dask.array.Array
    cache : int
        Bytes of its blocks to keep; those used last, and at least one.
    """

    def __init__(self, array: dask.array.Array, cache: int) -> None:
        self.array, self.shape, self.cache = array, array.shape, cache
        self.starts = [np.cumsum((0, *chunks)) for chunks in array.chunks]
        self.kept: OrderedDict[tuple[int, ...], Array] = OrderedDict()
        self.size = 0

    def __getitem__(self, box: tuple[slice, ...]) -> Array:
        """Read a box: a slice with start and stop for every axis."""
        out = np.empty([s.stop - s.start for s in box], self.array.dtype)
        ranges = [
            range(
                int(np.searchsorted(starts, s.start, "right")) - 1,
                int(np.searchsorted(starts, s.stop, "left")),
            )
            for starts, s in zip(self.starts, box, strict=True)
        ]
        for offset in np.ndindex(*(len(r) for r in ranges)):
            index = tuple(r[i] for r, i in zip(ranges, offset, strict=True))
            block, first = (
                self._block(index),
                [s[i] for s, i in zip(self.starts, index, strict=True)],
            )
            source, target = [], []
            for s, a, n in zip(box, first, block.shape, strict=True):
                low, high = max(s.start, a), min(s.stop, a + n)
                source.append(slice(low - a, high - a))
                target.append(slice(low - s.start, high - s.start))
            out[tuple(target)] = block[tuple(source)]
        return out

    def _block(self, index: tuple[int, ...]) -> Array:
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        # In this thread: each of the loader's workers is a process of its own.
        block = patiently(lambda: self.array.blocks[index].compute(scheduler="synchronous"))
        self.kept[index] = block
        self.size += block.nbytes
        while self.size > self.cache and len(self.kept) > 1:
            self.size -= self.kept.popitem(last=False)[1].nbytes
        return block
