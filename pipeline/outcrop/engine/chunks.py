"""Chunks of a survey, decoded once for the many tiles that read a part of them."""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import dask
import numpy as np
import torch
import xarray as xr
import zarr

from ..graph.boxes import Shape
from ..pages import pages
from ..survey.reading import naming_bad_chunk
from .labelled import Framed

# Chunks of a survey that are read at a time: each is in memory twice, stored and decoded. At least,
# at most, and their share of what is read.
_FEW, _MANY, _SHARE = 4, 32, 16

Region = tuple[slice, ...]


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
        sizes = [
            math.prod(int(np.diff(along).max()) for along in edges) * volume.dtype.itemsize
            for volume, edges in zip(self.volumes.values(), self._edges.values(), strict=True)
            if edges is not None
        ]
        # Of the largest chunk, in memory of their own: in between the tiles' they would scatter it.
        self._slot = max(sizes, default=1)
        self._lock = threading.Lock()
        self._clear()
        _EVERY.add(self)

    def _clear(self) -> None:
        self._room: torch.Tensor | None = None
        self._free = list(range(self.limit // self._slot))
        self._kept: OrderedDict[tuple[str, Shape], int] = OrderedDict()

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._clear()

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return self._slot * len(self._kept)

    def __getstate__(self) -> dict[str, object]:
        return {"volumes": self.volumes, "limit": self.limit}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, name: str, region: Region) -> np.ndarray:
        """Return a region of a variable, its dimensions in their own order.

        Raises
        ------
        SurveyError
            If a chunk cannot be decoded, or is gone.
        """
        edges = self._edges[name]
        if edges is None:
            return self._load(name, region)
        touched = _touched(edges, region)
        if 2 * math.prod(map(len, touched)) > self.limit // self._slot:
            return self._load(name, region)
        values = np.empty([s.stop - s.start for s in region], self.volumes[name].dtype)
        with self._lock:
            self._decode(name, edges, touched)
            for number in itertools.product(*touched):
                whole = _region(edges, [range(i, i + 1) for i in number])
                both = _common(region, whole)
                chunk = self._chunk(name, self._kept[name, number], whole)
                values[_within(both, region)] = chunk[_within(both, whole)]
        return values

    def _decode(self, name: str, edges: Sequence[np.ndarray], touched: Sequence[range]) -> None:
        """Have these chunks, of which those that are not kept are read in one go."""
        numbers = list(itertools.product(*touched))
        missing = {n for n in numbers if (name, n) not in self._kept}
        for number in set(numbers) - missing:
            self._kept.move_to_end((name, number))
        if not missing:
            return
        around = [range(min(along), max(along) + 1) for along in zip(*missing, strict=True)]
        # What is read is there twice, for a moment.
        while self._kept and len(self._free) < len(missing) + math.prod(map(len, around)):
            self._free.append(self._kept.popitem(last=False)[1])
        origin = _region(edges, around)
        loaded = self._load(name, origin)
        for number in missing:
            whole = _region(edges, [range(i, i + 1) for i in number])
            slot = self._free.pop()
            self._chunk(name, slot, whole)[...] = loaded[_within(whole, origin)]
            self._kept[name, number] = slot

    def _chunk(self, name: str, slot: int, whole: Region) -> np.ndarray:
        """The memory of a chunk."""
        if self._room is None:
            self._room = pages(self.limit)
        shape, dtype = [s.stop - s.start for s in whole], self.volumes[name].dtype
        start = slot * self._slot
        part = self._room.numpy()[start : start + math.prod(shape) * dtype.itemsize]
        return part.view(dtype).reshape(shape)

    def _load(self, name: str, region: Region) -> np.ndarray:
        volume = self.volumes[name]
        with (
            naming_bad_chunk(volume, region),
            dask.config.set(scheduler="synchronous"),
            zarr.config.set({"async.concurrency": _at_a_time(volume.variable, region)}),
        ):
            return np.asarray(volume.variable[region].values)


_EVERY: weakref.WeakSet[DecodedChunks] = weakref.WeakSet()


def held_chunks() -> int:
    """Bytes of chunks that are kept in this process."""
    return sum(chunks.held for chunks in _EVERY)


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


def _touched(edges: Sequence[np.ndarray], region: Region) -> list[range]:
    """Numbers of the chunks along each dimension that hold a part of a region."""
    return [
        range(
            int(np.searchsorted(along, part.start, "right")) - 1,
            int(np.searchsorted(along, part.stop, "left")),
        )
        for along, part in zip(edges, region, strict=True)
    ]


def _common(a: Region, b: Region) -> Region:
    """What both regions hold."""
    pairs = zip(a, b, strict=True)
    return tuple(slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in pairs)


def _within(region: Region, whole: Region) -> Region:
    """A region as an index into an array that holds `whole`."""
    pairs = zip(region, whole, strict=True)
    return tuple(slice(s.start - w.start, s.stop - w.start) for s, w in pairs)


def _region(edges: Sequence[np.ndarray], numbers: Sequence[range]) -> Region:
    """What these chunks hold."""
    return tuple(
        slice(int(along[n.start]), int(along[n.stop]))
        for along, n in zip(edges, numbers, strict=True)
    )


def _at_a_time(volume: xr.Variable, region: Sequence[slice]) -> int:
    """Chunks of a variable to read at a time for a region of it."""
    chunks = volume.encoding.get("chunks") or volume.shape
    held = [-(-(s.stop - s.start) // c) for s, c in zip(region, chunks, strict=True)]
    return min(_MANY, max(_FEW, math.prod(held) // _SHARE))


def worth_keeping(framed: Framed, read: Shape) -> list[int]:
    """Bytes of decoded chunks that it pays to keep for tiles in C order, the most first.

    Enough that a tile finds what the last layer of tiles read, the last row, or the last tile; the
    sections that a network takes one by one what the last section did.

    Parameters
    ----------
    framed : Framed
    read : tuple of int
        Extents along the network's axes that a tile reads.
    """
    found = [0] * (len(read) + bool(framed.apart))
    for volume in framed.volumes.values():
        edges = chunk_edges(volume)
        if edges is None:
            continue
        along = dict(zip(map(str, volume.dims), edges, strict=True))
        one = math.prod(int(np.diff(along[d]).max()) for d in framed.apart)
        extents = [int(np.diff(along[a]).max()) for a in framed.axes]
        every = [len(along[a]) - 1 for a in framed.axes]
        parts = list(zip(read, extents, every, strict=True))
        touched = [min(n, -(-(e - 1) // c) + 1) for e, c, n in parts]
        two = [min(n, t + -(-e // c)) for t, (e, c, n) in zip(touched, parts, strict=True)]
        counts = [
            math.prod(touched[:k]) * two[k] * math.prod(every[k + 1 :]) for k in range(len(read))
        ]
        if framed.apart:
            counts.insert(0, math.prod(every))
        size = one * math.prod(extents) * volume.dtype.itemsize
        # Those that are read are there twice, for a moment.
        found = [
            total + size * (count + math.prod(touched))
            for total, count in zip(found, counts, strict=True)
        ]
    return found
