"""The work of an ingest: parts that any process does from the SEG-Y and the Zarr alone."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import dask.threaded
import numpy as np
import zarr
from dask.callbacks import Callback
from dask.system import CPU_COUNT

from ..arrays import dask_threads, open_for_writing
from ..errors import SurveyError
from ..locks import Fence
from ..output import Output
from ..patience import patiently
from ..storage import Place
from .decode import decode
from .geometry import Grid, HeaderBytes, scaled
from .schema import Shape, header_chunks
from .segy import FIELDS, SegyFile, field, number

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
Result = TypeVar("Result")

_MEMORY = 640 << 20  # bytes that parts at work in one process may take together
_COPIES = 4  # of a part's samples, compressed ones included, while it is written
_COUNTED = 64 << 20  # bytes of the file in a part that only counts
_REPLACED = "replaced"  # first word of a note in the journal


class NonFiniteSampleError(Exception):
    """A part has NaN or infinite samples."""


@dataclass(frozen=True)
class Job:
    """What all parts of an ingest share.

    Attributes
    ----------
    file : SegyFile
    path : pathlib.Path or Remote
        Zarr group, with `trace_index` in it.
    at : HeaderBytes
    fields : tuple of str
        Header fields that vary.
    coordinates : bool
        Whether there are `cdp_x` and `cdp_y`.
    window : int
        Samples that are written at a time.
    nonfinite : str
        "zero" writes 0 for NaN and infinite samples, "error" raises `NonFiniteSampleError`.
    fence : Fence
        Asked before something is written.
    """

    file: SegyFile
    path: Place
    at: HeaderBytes
    fields: tuple[str, ...]
    coordinates: bool
    window: int
    nonfinite: str
    fence: Fence

    def array(self, name: str) -> zarr.Array:
        """Open one variable."""
        return open_for_writing(self.path / name)

    def traces(self, region: tuple[slice, ...]) -> tuple[Shape, np.ndarray, np.ndarray]:
        """Return a region's shape, its traces in the order of the file, and their flat places."""
        index = np.asarray(self.array("trace_index")[region])
        flat = index.reshape(-1)
        cells = np.flatnonzero(flat >= 0)
        cells = cells[np.argsort(flat[cells])]
        return index.shape, flat[cells], cells


@dataclass(frozen=True)
class Part:
    """Some lateral positions: either their headers or their samples.

    Attributes
    ----------
    key : str
        Its name in the journal.
    region : tuple of slice
        Of the lateral dimensions.
    headers : bool
        Whether the headers are meant, or else the samples.
    size : int
        Bytes of its traces in the SEG-Y, for progress.
    extra : ndarray of int64, (n, 2)
        Traces to average with the ones in `trace_index`: flat place in the region, number.
    """

    key: str
    region: tuple[slice, ...]
    headers: bool
    size: int
    extra: np.ndarray


def cut(grid: Grid, lateral: Shape, trace_bytes: int, mean: bool) -> list[Part]:
    """Cut a survey into parts: each block of headers, then the samples that lie below it.

    Parameters
    ----------
    grid : Grid
    lateral : tuple of int
        Lateral extents of a shard.
    trace_bytes : int
        Of a trace in the SEG-Y.
    mean : bool
        Whether to average traces at the same position.
    """
    shape = grid.trace_index.shape
    extra = grid.extra if mean else grid.extra[:0]
    places = np.unravel_index(extra[:, 0], shape)
    counts = [-(-n // e) for n, e in zip(shape, lateral, strict=True)]
    of_part = np.ravel_multi_index([p // e for p, e in zip(places, lateral, strict=True)], counts)
    order = np.argsort(of_part, kind="stable")
    ends = np.searchsorted(of_part[order], np.arange(1, math.prod(counts)))

    def key(kind: str, region: tuple[slice, ...]) -> str:
        return " ".join([kind, *(str(s.start) for s in region)])

    def samples(region: tuple[slice, ...], which: np.ndarray) -> Part:
        size = int(np.count_nonzero(grid.trace_index[region] >= 0)) * trace_bytes
        local = [p[which] - s.start for p, s in zip(places, region, strict=True)]
        cells = np.ravel_multi_index(local, [s.stop - s.start for s in region])
        own = np.stack([cells, extra[which, 1]], axis=1)
        return Part(key("samples", region), region, False, size, own)

    parts = [
        Part(key("headers", region), region, True, 0, extra[:0])
        for region in _regions(shape, header_chunks(shape))
    ]
    parts += map(samples, _regions(shape, lateral), np.split(order, ends))
    # Headers first, so that the samples after them are read from the system's cache.
    block = header_chunks(shape)
    return sorted(
        parts,
        key=lambda p: (
            [s.start // b for s, b in zip(p.region, block, strict=True)],
            not p.headers,
            [s.start for s in p.region],
        ),
    )


def _regions(shape: Shape, extents: Shape) -> Iterator[tuple[slice, ...]]:
    ranges = (
        [slice(i, min(i + e, n)) for i in range(0, n, e)]
        for n, e in zip(shape, extents, strict=True)
    )
    return itertools.product(*ranges)


def write(job: Job, part: Part) -> int:
    """Write one part and return how many samples were not finite. Twice does no harm."""
    if part.headers:
        patiently(functools.partial(_write_headers, job, part.region))
        return 0
    return patiently(functools.partial(_write_samples, job, part))


def _write_headers(job: Job, region: tuple[slice, ...]) -> None:
    shape, traces, cells = job.traces(region)
    headers = job.file.read_headers(traces)
    order = job.file.order

    def put(name: str, values: np.ndarray, missing: float) -> None:
        block = np.full(np.prod(shape, dtype=np.int64), missing, dtype=values.dtype)
        block[cells] = values
        job.fence.check()
        job.array(name)[region] = block.reshape(shape)

    for name in job.fields:
        put(f"header_{name}", field(headers, FIELDS[name][0], order), 0)
    if job.coordinates:
        scalar = field(headers, FIELDS["SourceGroupScalar"][0], order)
        for name, byte in (("cdp_x", job.at.cdp_x), ("cdp_y", job.at.cdp_y)):
            put(name, scaled(number(headers, byte, order), scalar), np.nan)


def _write_samples(job: Job, part: Part) -> int:
    shape, traces, cells = job.traces(part.region)
    amplitude = job.array("amplitude")
    bad = 0
    for start in range(0, job.file.samples, job.window):
        window = slice(start, min(start + job.window, job.file.samples))
        block = np.zeros((int(np.prod(shape)), window.stop - start), dtype=amplitude.dtype)
        for which, raw in job.file.read(traces, window):
            values = decode(raw, job.file.format)
            bad += _make_finite(values, job.nonfinite)
            block[cells[which]] = values
        if part.extra.size:
            bad += _average(job, part.extra, window, block)
        job.fence.check()
        amplitude[(*part.region, window)] = block.reshape(*shape, -1)
    return bad


def _average(job: Job, extra: np.ndarray, window: slice, block: np.ndarray) -> int:
    """Replace traces by the mean of all at the same position."""
    bad = 0
    cells, of_extra = np.unique(extra[:, 0], return_inverse=True)
    total = block[cells].astype(np.float64)
    order = np.argsort(extra[:, 1])
    for which, raw in job.file.read(extra[order, 1], window):
        values = decode(raw, job.file.format)
        bad += _make_finite(values, job.nonfinite)
        for cell, trace in zip(of_extra[order[which]], values, strict=True):
            total[cell] += trace  # np.add.at adds sample by sample
    total /= 1 + np.bincount(of_extra)[:, None]
    block[cells] = total if block.dtype.kind == "f" else np.rint(total)
    return bad


def _make_finite(values: np.ndarray, nonfinite: str) -> int:
    """Make NaN and infinite samples 0, and count them."""
    finite = np.isfinite(values)
    if finite.all():
        return 0
    if nonfinite == "error":
        raise NonFiniteSampleError
    values[~finite] = 0
    return values.size - int(np.count_nonzero(finite))


def finish(output: Output, key: str, bad: int) -> None:
    """Note that a part is written, and how many of its samples are 0 for NaN or infinite ones."""
    if bad:
        output.finish(f"{_REPLACED} {bad} {key}")
    output.finish(key)


def count_replaced(output: Output, nonfinite: str) -> int:
    """Count the samples that were made 0, those of an interrupted call included.

    Raises
    ------
    SurveyError
        If there are any and NaN and infinite samples are an "error" now.
    """
    notes = (key.split() for key in output.finished)
    count = sum(int(note[1]) for note in notes if note[0] == _REPLACED)
    if count and nonfinite == "error":
        raise SurveyError(
            f"{output.path}: was begun with nonfinite='zero' (--nonfinite zero), by which "
            f"{count:,} samples are 0 that were NaN or infinite; pass it again, or "
            "overwrite=True (--overwrite)"
        )
    return count


def count_nonfinite(file: SegyFile, traces: range) -> tuple[int, list[tuple[int, int]]]:
    """Count NaN and infinite samples of consecutive traces.

    Returns
    -------
    count : int
    first : list of tuple of int
        Trace and sample of the first three.
    """
    count = 0
    first: list[tuple[int, int]] = []
    for which, raw in file.read(np.arange(traces.start, traces.stop)):
        bad = ~np.isfinite(decode(raw, file.format))
        if bad.any():
            count += int(np.count_nonzero(bad))
            for trace, sample in np.argwhere(bad)[: 3 - len(first)].tolist():
                first.append((traces.start + which.start + trace, sample))
    return count, first


def counted(file: SegyFile) -> list[range]:
    """Cut a file into ranges of traces for `count_nonfinite`."""
    step = max(1, _COUNTED // file.trace_bytes)
    return [range(i, min(i + step, file.traces)) for i in range(0, file.traces, step)]


def threads(part_bytes: int) -> int:
    """Return how many parts of that many bytes may be at work in one process."""
    return max(1, min(CPU_COUNT, _MEMORY // (_COPIES * part_bytes)))


def run(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    done: Callable[[Item, Result], None],
    number: int,
    client: Client | None = None,
) -> None:
    """Do independent work by Dask.

    Parameters
    ----------
    work : callable
    items : iterable
    done : callable
        Called in this thread with each item and its result.
    number : int
        Threads in this process, unless a client is given.
    client : distributed.Client, optional
        Its workers do the work, two items ahead for each of their threads.
    """
    if client is not None:
        return _run_on(client, work, items, done)
    named = {f"{work} {number}": item for number, item in enumerate(items)}
    tasks = {key: (work, item) for key, item in named.items()}
    with (
        dask_threads(number) as pool,
        Callback(posttask=lambda key, result, *_: done(named[key], result)),
    ):
        dask.threaded.get(tasks, list(tasks), pool=pool)


def _run_on(
    client: Client,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    done: Callable[[Item, Result], None],
) -> None:
    from distributed import as_completed

    left = iter(items)
    running = {}
    finished = as_completed()

    def submit(count: int) -> None:
        for item in itertools.islice(left, count):
            future = client.submit(work, item, pure=False)
            running[future.key] = (future, item)
            finished.add(future)

    submit(2 * max(1, sum(client.nthreads().values())))
    try:
        for future in finished:
            done(running.pop(future.key)[1], future.result())
            submit(1)
    finally:
        client.cancel([future for future, _ in running.values()])
