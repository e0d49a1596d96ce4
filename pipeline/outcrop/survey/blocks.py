"""A lazy volume written to one file, block by block, and the file put in place when it is whole."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import xarray as xr

from ..errors import OutcropError, OutputExistsError
from ..storage import put_whole
from .reading import naming_bad_chunk

if TYPE_CHECKING:
    from distributed import Client

Block = tuple[slice, ...]
Result = TypeVar("Result")

TARGET = 64 << 20  # bytes of a block: a few of them fit any machine
LIMIT = 256 << 20  # bytes above which even a chunk is cut, and then read more than once
RUN = 64 << 10  # bytes that are worth a write of their own


def blocks(
    volume: xr.DataArray, order: Sequence[int], whole: Sequence[int] = (), beside: int = 0
) -> list[Block]:
    """Cut a volume into blocks of whole chunks.

    Parameters
    ----------
    volume : xarray.DataArray
        Lazy or in memory.
    order : sequence of int
        Axes by how fast they vary in the file, the fastest first: blocks grow along these first,
        so that what is written in one piece is long.
    whole : sequence of int
        Axes that are not cut.
    beside : int
        Bytes that go with each of the others' positions, such as a trace's header.

    Returns
    -------
    list of tuple of slice
        In the order of the volume's axes; about `TARGET` bytes each, or one chunk.
    """
    shape, itemsize = volume.shape, volume.dtype.itemsize
    free = [axis for axis in order if axis not in whole]

    def size(extents: list[int]) -> int:
        return math.prod(extents) * itemsize + math.prod(extents[axis] for axis in free) * beside

    def grown(unit: Sequence[int]) -> list[int]:
        extents = [
            n if axis in whole else min(c, n)
            for axis, (c, n) in enumerate(zip(unit, shape, strict=True))
        ]
        for axis in free:
            while extents[axis] < shape[axis] and 2 * size(extents) <= TARGET:
                extents[axis] = min(2 * extents[axis], shape[axis])
        for axis in reversed(free):
            while extents[axis] > 1 and size(extents) > LIMIT:
                extents[axis] = -(-extents[axis] // 2)
        return extents

    def run(extents: list[int]) -> int:
        """Bytes that lie side by side in the file."""
        length = itemsize * math.prod(extents[axis] for axis in whole)
        for axis in free:
            length *= extents[axis]
            if extents[axis] < shape[axis]:
                break
        return length

    candidates = [grown(unit) for unit in _units(volume)]
    extents = next((c for c in candidates if run(c) >= RUN), candidates[-1])
    ranges = (
        [slice(i, min(i + e, n)) for i in range(0, n, e)]
        for e, n in zip(extents, shape, strict=True)
    )
    return list(itertools.product(*ranges))


def _units(volume: xr.DataArray) -> list[Sequence[int]]:
    """What is read in one piece: blocks of Dask, and the chunks that they may be read by."""
    units: list[Sequence[int]] = []
    if volume.chunks is not None:
        units.append([max(c) for c in volume.chunks])
    stored = volume.encoding.get("preferred_chunks", {})  # by name: true of a transposed volume too
    units.append([stored.get(dim, 1) for dim in volume.dims])
    return units


def read(volume: xr.DataArray, block: Block, client: Client | None = None) -> np.ndarray:
    """Load one block; on the workers of `client`, if the volume is a Dask array."""
    part = volume[block]
    with naming_bad_chunk(volume, block):
        if part.chunks is None:
            return part.to_numpy()
        if client is not None:
            from ..tasks import gather

            return np.asarray(gather(client, [client.compute(part.data)])[0])
        return np.asarray(part.data.compute(scheduler="synchronous"))


def in_threads(work: Callable[[Any], Result], items: Iterable[Any]) -> Iterator[Result]:
    """Map in threads, one per core up to four, with no more items under way than threads."""
    threads = min(4, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    running: set[Future[Result]] = set()
    try:
        for item in items:
            if len(running) == threads:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
            running.add(pool.submit(work, item))
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class WholeFile:
    """A file being written, at any place, from several threads."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._lock = threading.Lock()

    def write(self, offset: int, data: bytes | np.ndarray) -> None:
        """Write bytes at an offset from the start of the file."""
        with self._lock:
            self._file.seek(offset)
            self._file.write(data)


def check_path(path: Path, overwrite: bool) -> None:
    """Raise if a file cannot be put at `path`, or one there would be lost."""
    if path.is_dir():
        raise OutputExistsError(f"{path}: is a directory; choose another path")
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path}: already exists; choose another path or pass overwrite=True (--overwrite)"
        )
    parent = path.absolute().parent
    if not parent.is_dir():
        raise OutcropError(f"{path}: there is no folder {parent}; create it first")


@contextlib.contextmanager
def whole_file(path: Path, size: int) -> Iterator[WholeFile]:
    """Write a file of a known size beside `path`, and move it there once it is whole.

    Parameters
    ----------
    path : pathlib.Path
        Where the file will be; until the block ends without an error, what lies there stays.
    size : int
        Bytes.

    Raises
    ------
    OutcropError
        If there is no space for it, now or later, or the folder cannot be written.
    """
    free = shutil.disk_usage(path.absolute().parent).free
    if size > free:
        raise OutcropError(
            f"{path}: no space left: it takes {size / 1e9:.3g} GB and {free / 1e9:.3g} GB are "
            "free; free some, or write elsewhere"
        )
    try:
        with put_whole(path) as part, _opened(part, path) as file:
            file.truncate(size)
            yield WholeFile(file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OutcropError(
            f"{path}: no space left after part of {size / 1e9:.3g} GB ({error.strerror}); "
            "nothing was kept; free some, or write elsewhere"
        ) from error


def _opened(part: Path, path: Path) -> BinaryIO:
    try:
        return part.open("wb")
    except OSError as error:
        raise OutcropError(f"{path}: cannot be written: {error.strerror}") from error
