"""Stores that keep a tensor as tiles: compressed, in a file, in pinned host memory."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..graph.boxes import Box, Lattice, Shape
from ..pages import pages, pin, to_whole_pages, unpin
from .compress import EDGE, blocks, compressed_bytes, decode, encode, scale_type
from .disk import ScratchFile
from .rooms import Rooms
from .stores import MemoryStore, Store, channels_last, channels_last_order, to_device, to_host

# Every tile begins at a multiple of this, so that its bytes can be seen as any dtype.
_ALIGNMENT = 64


class TileFormat:
    """How a tile lies in bytes: channels last, either as it is or compressed.

    Parameters
    ----------
    shape : tuple of int
        Full shape of the tensor; the grid axes last.
    rank : int
        Number of grid axes.
    dtype : torch.dtype
    compression : bool
        Compress, which is lossy; integers and booleans stay as they are.
    """

    def __init__(self, shape: Shape, rank: int, dtype: torch.dtype, compression: bool) -> None:
        self.lead, self.rank, self.dtype = shape[: len(shape) - rank], rank, dtype
        self.order, self.back = channels_last_order(len(shape), rank)
        self.compression = compression and dtype.is_floating_point

    def bytes(self, grid: Shape) -> int:
        """Room that a tile takes."""
        shape = (*self.lead, *grid)
        if self.compression:
            size = compressed_bytes(shape, self.rank, self.dtype)
        else:
            size = math.prod(shape) * self.dtype.itemsize
        return -(-size // _ALIGNMENT) * _ALIGNMENT

    def pack(self, value: Tensor) -> Tensor:
        """Turn a tile into bytes (1-D uint8) on its own device."""
        grid = tuple(value.shape[value.ndim - self.rank :])
        data = torch.empty(self.bytes(grid), dtype=torch.uint8, device=value.device)
        if self.compression:
            codes, scales = self._compressed(data, grid)
            made = encode(value, self.rank)
            codes.copy_(made[0].permute(self.order))
            scales.copy_(made[1].permute(self.order))
        else:
            self._plain(data, grid).copy_(value.permute(self.order))
        return data

    def unpack(self, data: Tensor, grid: Shape, part: Box, device: torch.device) -> Tensor:
        """Return `part` (counted from the tile's start) of a tile, on `device`.

        Only that part is touched and, where the bytes lie elsewhere, copied.
        """
        if not self.compression:
            return to_device(self._cut(self._plain(data, grid), part), device).permute(self.back)
        touched = Box(tuple(a // EDGE for a in part.start), blocks(part.stop))
        whole = Box.whole(grid) & Box(
            tuple(a * EDGE for a in touched.start), tuple(b * EDGE for b in touched.stop)
        )
        codes, scales = self._compressed(data, grid)
        values = decode(
            to_device(self._cut(codes, whole), device).permute(self.back),
            to_device(self._cut(scales, touched), device).permute(self.back),
            self.rank,
        )
        return values[part.within(whole).index]

    def _stored(self, grid: Shape) -> Shape:
        shape = (*self.lead, *grid)
        return tuple(shape[i] for i in self.order)

    def _plain(self, data: Tensor, grid: Shape) -> Tensor:
        stored = self._stored(grid)
        return data[: math.prod(stored) * self.dtype.itemsize].view(self.dtype).view(stored)

    def _compressed(self, data: Tensor, grid: Shape) -> tuple[Tensor, Tensor]:
        scale, stored, block = (
            scale_type(self.dtype),
            self._stored(grid),
            self._stored(blocks(grid)),
        )
        end = math.prod(block) * scale.itemsize
        codes = data[end : end + math.prod(stored)].view(torch.int8).view(stored)
        return codes, data[:end].view(scale).view(block)

    def _cut(self, stored: Tensor, box: Box) -> Tensor:
        return stored[(slice(None),) * max(0, len(self.lead) - 1) + box.slices]


class TiledStore:
    """A tensor kept tile by tile; each is written in one piece, boxes of any place are read.

    Parameters
    ----------
    shape : tuple of int
        Full shape of the tensor; the grid axes last.
    rank : int
        Number of grid axes.
    dtype : torch.dtype
    tile : tuple of int
        Shape of the tiles that are written.
    domain : Box, optional
        The part of the grid that the tiles cover; all of it unless given.
    device : torch.device or str
        Where tensors are read.
    compression : bool
        Keep 8 bits a value, which is lossy; see `outcrop.engine.compress`.
    """

    slow = True

    def __init__(
        self,
        shape: Shape,
        rank: int,
        dtype: torch.dtype,
        tile: Shape,
        *,
        domain: Box | None = None,
        device: torch.device | str = "cpu",
        compression: bool = False,
    ) -> None:
        self.shape, self.rank, self.dtype = shape, rank, dtype
        self.device = torch.device(device)
        domain = domain or Box.whole(shape[len(shape) - rank :])
        self.lattice = Lattice(domain, tile)
        self.format = TileFormat(shape, rank, dtype, compression)

    def read(self, box: Box) -> Tensor:
        shape = (*self.shape[: len(self.shape) - self.rank], *box.shape)
        value = channels_last(shape, self.rank, self.dtype, self.device)
        for number, tile in self.lattice.touching(box):
            part = box & tile
            value[part.within(box).index] = self.format.unpack(
                self._load(number), tile.shape, part.within(tile), self.device
            )
        return value

    def write(self, box: Box, value: Tensor) -> None:
        self._save(self.lattice.number(box), self.format.pack(value.detach()))

    def remove(self) -> None:
        raise NotImplementedError

    def _load(self, number: int) -> Tensor:
        """Bytes of a tile, wherever they lie."""
        raise NotImplementedError

    def _save(self, number: int, data: Tensor) -> None:
        """Keep the bytes of a tile; they are nobody else's."""
        raise NotImplementedError


class CompressedStore(TiledStore):
    """Compressed tiles in the memory of the device that computes; parameters as `TiledStore`."""

    slow = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, compression=True, **options)
        self.tiles: dict[int, Tensor] = {}

    def remove(self) -> None:
        self.tiles.clear()

    def _load(self, number: int) -> Tensor:
        return self.tiles[number]

    def _save(self, number: int, data: Tensor) -> None:
        self.tiles[number] = data


class FileStore(TiledStore):
    """Tiles one after the other in a scratch file.

    To write a tile is one sequential write; to read a box maps, tile by tile, the pages that it
    touches. So nothing of the file stays resident, and nothing stays on disk when the store is
    removed or, unless it is kept, the process ends in whatever way.

    Parameters
    ----------
    path : path-like
        Where to make the file. Its room is reserved now.
    shape, rank, dtype, tile, domain, device, compression
        As for `TiledStore`.
    keep : bool
        Go on with what an earlier process left at `path`, and leave it there for a later one.
    layers : int, optional
        How many layers of tiles are wanted at once; each is written over the one that many before
        it. All of them unless given.
    axis : int
        The one across which the layers lie.

    Raises
    ------
    OSError
        If the file cannot be made or the disk is full; it names `path`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: Shape,
        rank: int,
        dtype: torch.dtype,
        tile: Shape,
        *,
        domain: Box | None = None,
        device: torch.device | str = "cpu",
        compression: bool = False,
        keep: bool = False,
        layers: int | None = None,
        axis: int = 0,
    ) -> None:
        super().__init__(
            shape, rank, dtype, tile, domain=domain, device=device, compression=compression
        )
        self.rooms = Rooms(self.lattice, self.format.bytes, layers, axis)
        self.held: dict[int, int] = {}
        self.file = ScratchFile(path, keep)
        self.file.reserve(0, self.rooms.bytes)

    def remove(self) -> None:
        self.file.remove()

    def _load(self, number: int) -> Tensor:
        layer, place = self.rooms.layer(number)
        held = self.held.get(place, layer if self.file.keep else None)
        assert held == layer, f"layer {layer} is read where layer {held} lies"
        return self.file.map(*self.rooms.of(number))

    def _save(self, number: int, data: Tensor) -> None:
        layer, place = self.rooms.layer(number)
        self.held[place] = layer
        self.file.write(self.rooms.of(number)[0], to_host(data))


def file_bytes(
    shape: Shape,
    rank: int,
    dtype: torch.dtype,
    tile: Shape,
    *,
    domain: Box,
    compression: bool,
    layers: int | None,
    axis: int,
) -> int:
    """Size of the file of a `FileStore`, from when it is made on; parameters as there."""
    like = TiledStore(shape, rank, dtype, tile, domain=domain, compression=compression)
    return Rooms(like.lattice, like.format.bytes, layers, axis).bytes


class PinnedStore(TiledStore):
    """Tiles of a GPU's tensor in pinned host memory.

    Tiles are packed on the GPU, copied as bytes, and copied back part by part. A call returns
    when its copies are done; they run on the current stream, so that calls from a `SideThread`
    overlap with what the GPU computes. One call stages what it reads in pinned memory once more.
    Memory is pinned tile by tile, as they are written, which overlaps likewise.

    Parameters
    ----------
    *args, **options
        As for `TiledStore`; `device` is a GPU.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rooms = Rooms(self.lattice, lambda grid: to_whole_pages(self.format.bytes(grid)))
        self.memory = pages(self.rooms.bytes)
        self.pinned: set[int] = set()

    def remove(self) -> None:
        torch.cuda.synchronize(self.device)
        while self.pinned:
            unpin(self._load(self.pinned.pop()))
        del self.memory

    def read(self, box: Box) -> Tensor:
        value = super().read(box)
        torch.cuda.current_stream(self.device).synchronize()
        return value

    def _load(self, number: int) -> Tensor:
        start, size = self.rooms.of(number)
        return self.memory[start : start + size]

    def _save(self, number: int, data: Tensor) -> None:
        slot = self._load(number)
        if number not in self.pinned:
            pin(slot)
            self.pinned.add(number)
        slot[: len(data)].copy_(data, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()


def make_store(
    place: str,
    shape: Shape,
    rank: int,
    dtype: torch.dtype,
    tile: Shape,
    *,
    domain: Box | None = None,
    device: torch.device | str = "cpu",
    compression: bool = False,
    path: str | os.PathLike[str] | None = None,
    keep: bool = False,
    layers: int | None = None,
    axis: int = 0,
) -> Store:
    """Make the store of a tensor between stages.

    Parameters
    ----------
    place : {"device", "cpu", "disk"}
        In the memory of the device; in pinned host memory (the same if the device is the CPU);
        in a file.
    shape, rank, dtype, tile, domain, device, compression
        As for `TiledStore`.
    path : path-like, optional
        The file, for "disk".
    keep, layers, axis
        As for `FileStore`.

    Returns
    -------
    Store

    Raises
    ------
    ArgumentError
        If `place` is none of these, or `path` is missing.
    OSError
        If the disk is full; it names `path`.
    """
    device = torch.device(device)
    options: dict[str, Any] = {"domain": domain, "device": device, "compression": compression}
    if place == "disk" and path is not None:
        options |= {"keep": keep, "layers": layers, "axis": axis}
        return FileStore(path, shape, rank, dtype, tile, **options)
    if place == "cpu" and device.type == "cuda":
        return PinnedStore(shape, rank, dtype, tile, **options)
    if place not in ("device", "cpu"):
        raise ArgumentError(f"place {place!r}: choose device, cpu, or disk with a path")
    if compression and dtype.is_floating_point:
        return CompressedStore(shape, rank, dtype, tile, domain=domain, device=device)
    return MemoryStore(channels_last(shape, rank, dtype, device))
