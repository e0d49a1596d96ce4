"""A store of tensors between stages, in Zarr: on a disk or in an object store."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from ..arrays import open_whole, store_of
from ..errors import MissingChunkError
from ..graph import Box
from ..graph.boxes import Lattice, Shape
from ..locks import Fence
from ..storage import Place, Remote, files, place, remove
from .stores import ArrayStore


class ZarrStore(ArrayStore):
    """A tensor between stages, one chunk per tile, so that no two tiles share a chunk.

    A tile reads a margin of many chunks. On a file system just the pages with it are mapped; of an
    object store Zarr reads whole chunks.

    Parameters
    ----------
    path : path-like or Remote
    shape : tuple of int
        Full shape of the tensor; the grid axes last.
    rank : int
        Number of grid axes.
    dtype : torch.dtype
    domain : Box
        The part of the grid that is written and read.
    tile : tuple of int
    fence : Fence, optional
        Asked before something is written.
    """

    def __init__(
        self,
        path: Place,
        shape: Shape,
        rank: int,
        dtype: torch.dtype,
        domain: Box,
        tile: Shape,
        fence: Fence | None = None,
    ) -> None:
        self.fence = fence
        super().__init__((*shape[: len(shape) - rank], *domain.shape), rank, dtype)
        self.path, self.domain = place(path), domain
        self.lattice = Lattice(domain, tile)
        self.chunk = (*self.stored[: self.batch], *tile, *self.stored[self.batch + rank :])
        self.arrays: dict[str, zarr.Array] = {}
        if not (self.path / "zarr.json").exists():
            self._create()

    def _create(self) -> None:
        # Other workers create it, too.
        with contextlib.suppress(zarr.errors.ContainsArrayError):
            zarr.create_array(
                store_of(self.path),
                shape=self.stored,
                chunks=self.chunk,
                dtype=self.raw,
                compressors=None,
                fill_value=0,
            )

    def open(self, mode: Any) -> zarr.Array:
        if mode not in self.arrays:
            self.arrays[mode] = open_whole(self.path, mode)
        return self.arrays[mode]

    def read(self, box: Box) -> Tensor:
        if isinstance(self.path, Remote):
            return super().read(box.within(self.domain))
        first, last = self.batch, self.batch + len(box.shape)
        values = np.empty((*self.stored[:first], *box.shape, *self.stored[last:]), self.raw)
        for _, tile in self.lattice.touching(box):
            part = box & tile
            values[self._index(part.within(box))] = self._mapped(tile)[
                self._index(part.within(tile))
            ]
        return torch.from_numpy(values).view(self.dtype).permute(self.back)

    def _name(self, tile: Box) -> str:
        """Of the chunk of a tile."""
        number = [0] * len(self.chunk)
        start = tile.within(self.domain).start
        number[self.batch : self.batch + len(start)] = (
            a // n for a, n in zip(start, self.lattice.tile, strict=True)
        )
        return "/".join(map(str, ("c", *number)))

    def _mapped(self, tile: Box) -> np.ndarray:
        """The chunk of a tile, of which nothing is read yet."""
        name = self._name(tile)
        try:
            return np.memmap(str(self.path / name), self.raw, "r", shape=self.chunk)
        except (FileNotFoundError, ValueError) as error:  # of a file that is too short
            what = "is missing" if isinstance(error, FileNotFoundError) else "is cut off"
            raise MissingChunkError(
                f"{self.path}: chunk {name} {what}; run the same command again, which evaluates "
                "anew what it held"
            ) from None

    def lost(self, tiles: Iterable[tuple[int, Box]]) -> set[int]:
        """Numbers of those tiles, of all that were written, whose chunks are gone.

        What is cut off is deleted: a chunk that is written in parts would be read before.
        """
        size = math.prod(self.chunk) * self.dtype.itemsize
        whole = set()
        for name, found in files(self.path).items():
            if found == size or (name == "zarr.json" and found):
                whole.add(name)
            else:
                (self.path / name).unlink(missing_ok=True)
        if "zarr.json" not in whole:
            self._create()
        return {n for n, tile in tiles if self._name(tile) not in whole}

    def write(self, box: Box, value: Tensor) -> None:
        if self.fence is not None:
            self.fence.check()
        try:
            super().write(box.within(self.domain), value)
        except OSError as error:
            if error.filename is None:  # such as of a full disk, which need not be the output's
                error.filename = str(self.path)
            raise

    def remove(self) -> None:
        remove(self.path)
