"""Chunks of a survey, decoded once for the many tiles that read a part of them."""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import xarray as xr
import zarr

from ..graph import Box
from ..graph.boxes import Shape
from ..pages import pages
from ..survey.reading import naming_bad_chunk
from .labelled import Framed

# Chunks of a survey that are read at a time: each is in memory twice, stored and decoded. At least,
# at most, and their share of what is read; those of which each is kept.
_FEW, _MANY, _SHARE = 4, 32, 16
_AT_ONCE = 4


class _Kept:
    """Decoded chunks, the latest last.

    Each in pages of its own: between tiles they would scatter the memory that those use again.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.chunks: OrderedDict[tuple[str, Shape], np.ndarray] = OrderedDict()
        self.held = 0

    def drop_for(self, need: int, limit: int) -> None:
        """Drop the earliest, until there is room for some bytes."""
        while self.chunks and self.held + need > limit:
            self.held -= self.chunks.popitem(last=False)[1].nbytes

    def put(self, key: tuple[str, Shape], chunk: np.ndarray) -> None:
        own = pages(chunk.nbytes).numpy().view(chunk.dtype).reshape(chunk.shape)
        own[...] = chunk
        self.chunks[key] = own
        self.held += own.nbytes


class DecodedChunks:
    """Reads regions of a survey's variables, and keeps the chunks that were last decoded for them.

    A tile with its halo touches up to 27 chunks, each of which 26 other tiles touch too; a section
    touches chunks that some 64 others do.

    Parameters
    ----------
    volumes : mapping of str to xarray.DataArray
        The variables, by name.
    limit : int
        Bytes that decoded chunks take, those that are being read too.
    """

    def __init__(self, volumes: Mapping[str, xr.DataArray], limit: int) -> None:
        self.volumes, self.limit = dict(volumes), limit
        self._open()

    def _open(self) -> None:
        self._edges = {name: chunk_edges(volume) for name, volume in self.volumes.items()}
        self._kept = _Kept()
        self.allow(self.limit)
        _EVERY.add(self)

    def allow(self, limit: int) -> None:
        """Set the limit anew, and drop what goes beyond it."""
        self.limit, self._room = limit, limit - 2 * _AT_ONCE * _largest(self.volumes)
        with self._kept.lock:
            self._kept.drop_for(0, self._room)

    def clear(self) -> None:
        """Forget all; what is being read is still brought to its end."""
        self._kept = _Kept()

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return self._kept.held

    def __getstate__(self) -> dict[str, object]:
        return {"volumes": self.volumes, "limit": self.limit}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, name: str, box: Box) -> np.ndarray:
        """Return a variable on a box of its own dimensions, in their order.

        Raises
        ------
        SurveyError
            If a chunk cannot be decoded, or is gone.
        """
        volume, edges, kept = self.volumes[name], self._edges[name], self._kept
        chunks = {} if edges is None else _touched(edges, box)
        with (
            naming_bad_chunk(volume, box.slices),
            dask.config.set(scheduler="synchronous"),
            zarr.config.set({"async.concurrency": min(_MANY, max(_FEW, len(chunks) // _SHARE))}),
        ):
            size = volume.dtype.itemsize * sum(chunk.size for chunk in chunks.values())
            if edges is None or size > self._room:
                return _load(volume, box)
            values = np.empty(box.shape, volume.dtype)
            with kept.lock:
                self._decode(name, chunks, kept)
                for number, chunk in chunks.items():
                    part = box & chunk
                    found = kept.chunks[name, number][part.within(chunk).slices]
                    values[part.within(box).slices] = found
        return values

    def _decode(self, name: str, chunks: Mapping[Shape, Box], kept: _Kept) -> None:
        """Have these chunks, of which those that are not kept are read."""
        volume, missing = self.volumes[name], []
        for number in chunks:
            if (name, number) in kept.chunks:
                kept.chunks.move_to_end((name, number))
            else:
                missing.append(number)
        size = volume.dtype.itemsize * sum(chunks[number].size for number in missing)
        kept.drop_for(size, self._room)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for i in range(0, len(missing), _AT_ONCE):
                some = missing[i : i + _AT_ONCE]
                loaded = pool.map(lambda number: _load(volume, chunks[number]), some)
                for number, values in zip(some, loaded, strict=True):
                    kept.put((name, number), values)


_EVERY: weakref.WeakSet[DecodedChunks] = weakref.WeakSet()


def held_chunks() -> int:
    """Bytes of chunks that are kept in this process."""
    return sum(chunks.held for chunks in _EVERY)


def keep_only(chunks: DecodedChunks) -> None:
    """Forget what all others in this process keep."""
    for each in list(_EVERY):
        if each is not chunks:
            each.clear()


def _load(volume: xr.DataArray, box: Box) -> np.ndarray:
    return np.asarray(volume.variable[box.slices].values)


def _largest(volumes: Mapping[str, xr.DataArray]) -> int:
    """Bytes of the largest chunk of some variables."""
    sizes = [0]
    for volume in volumes.values():
        edges = chunk_edges(volume)
        if edges is not None:
            extents = (int(np.diff(along).max()) for along in edges)
            sizes.append(volume.dtype.itemsize * math.prod(extents))
    return max(sizes)


def chunk_edges(volume: xr.DataArray) -> list[np.ndarray] | None:
    """Where the chunks of a variable begin and end along each dimension; None if it has none."""
    if volume.chunks is not None:
        return [np.cumsum([0, *extents]) for extents in volume.chunks]
    if "chunks" not in volume.encoding or volume.variable._in_memory:
        return None
    # By name: true of a volume that was transposed.
    names = volume.encoding.get("preferred_chunks", volume.dims)
    extents = dict(zip(names, volume.encoding["chunks"], strict=False))
    return [np.array([*range(0, n, extents.get(dim, n)), n]) for dim, n in volume.sizes.items()]


def _touched(edges: Sequence[np.ndarray], box: Box) -> dict[Shape, Box]:
    """The chunks that hold a part of a box, by their numbers along each dimension."""
    ranges = (
        range(
            int(np.searchsorted(along, start, "right")) - 1,
            int(np.searchsorted(along, stop, "left")),
        )
        for along, start, stop in zip(edges, box.start, box.stop, strict=True)
    )
    return {
        number: Box(
            tuple(int(along[i]) for along, i in zip(edges, number, strict=True)),
            tuple(int(along[i + 1]) for along, i in zip(edges, number, strict=True)),
        )
        for number in itertools.product(*ranges)
    }


def worth_keeping(framed: Framed, read: Shape, steps: Shape, axis: int = 0) -> list[int]:
    """Bytes of decoded chunks that it pays to keep for tiles in C order, the most first.

    Enough that a tile finds what the last layer of tiles read, the last row, or the last tile; the
    sections that a network takes one by one what the last section did.

    Parameters
    ----------
    framed : Framed
    read : tuple of int
        Extents along the network's axes that a tile reads.
    steps : tuple of int
        From one tile to the next.
    axis : int
        The one across which layers of tiles lie.
    """
    order = [axis, *(a for a in range(len(read)) if a != axis)]
    found = [0] * (len(read) + 1)
    for volume in framed.volumes.values():
        edges = chunk_edges(volume)
        if edges is None:
            continue
        along = dict(zip(map(str, volume.dims), edges, strict=True))
        extents = {name: int(np.diff(ends).max()) for name, ends in along.items()}
        axes = [framed.axes[a] for a in order]
        every = [len(along[a]) - 1 for a in axes]
        extent = [read[a] for a in order]
        parts = [(e, extents[a], n) for e, a, n in zip(extent, axes, every, strict=True)]
        touched = [min(n, -(-(e - 1) // c) + 1) for e, c, n in parts]
        two = [
            min(n, t + -(-step // c))
            for t, step, (_, c, n) in zip(touched, (steps[a] for a in order), parts, strict=True)
        ]
        counts = [
            math.prod(touched[:k]) * two[k] * math.prod(every[k + 1 :]) for k in range(len(read))
        ]
        # All of a section, and of those that come before the next one in the same chunks.
        beside = [len(along[d]) - 1 for d in framed.apart[1:]]
        shared = any(extents[d] > 1 for d in framed.apart)
        counts.insert(0, math.prod(every) * math.prod(beside) if shared else 0)
        size = volume.dtype.itemsize * math.prod(extents.values())
        found = [total + size * count for total, count in zip(found, counts, strict=True)]
    more = 2 * _AT_ONCE * _largest(framed.volumes)
    return [total + more if total else 0 for total in found]
