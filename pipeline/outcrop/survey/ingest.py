"""SEG-Y in: a labelled Zarr, written part by part."""

from __future__ import annotations

import functools
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
import zarr
from dask.system import CPU_COUNT
from zarr.abc.codec import BytesBytesCodec
from zarr.storage import MemoryStore

from .. import __version__
from ..arrays import spoken
from ..errors import OutcropError, OutputExistsError, SegyError, SurveyError
from ..locks import check_untaken
from ..output import Output
from ..progress import track
from ..storage import Options, Place, Remote, goes_on, naming_refusal, on_disk, place, size
from ..targets import PathLike, begun_with, check_apart, check_free, check_goes_on, is_complete
from . import schema
from .checks import (
    check_intervals,
    some_samples,
    warn_of_coordinates,
    warn_of_format,
    warn_of_weights,
)
from .decode import decode
from .encode import format_code
from .geometry import HeaderBytes, check_choice, make_grid, read_headers, vertical_axis
from .parts import (
    Job,
    NonFiniteSampleError,
    Part,
    count_nonfinite,
    count_replaced,
    counted,
    cut,
    finish,
    run,
    threads,
    write,
)
from .reading import open as open_survey
from .segy import FIELDS, SegyFile, field, number

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


def ingest(
    segy: str | os.PathLike[str],
    zarr: PathLike,
    *,
    iline_byte: int = 189,
    xline_byte: int = 193,
    offset_byte: int = 37,
    cdp_x_byte: int = 181,
    cdp_y_byte: int = 185,
    domain: Literal["time", "depth"] = "time",
    interval: float | None = None,
    format: str | None = None,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    compressor: str | BytesBytesCodec | None = "zstd:3",
    truncate: bool = False,
    duplicates: Literal["error", "first", "last", "mean"] = "error",
    sparse: bool = False,
    nonfinite: Literal["error", "zero"] = "error",
    overwrite: bool = False,
    client: Client | None = None,
    storage_options: Options | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Turn a SEG-Y file into a survey: a labelled Zarr that plain `xarray.open_zarr` reads.

    The traces may be sorted in any way, lines may be numbered in steps and backwards, and
    traces may be missing. Byte order and sample format are found in the file, and so is whether
    it is prestack: then many traces share inline and crossline, and the offset tells them apart.
    What is on disk is described in docs/survey.md.

    The file is read twice: its headers, before anything is written, and then everything, by
    parts of at most 64 MiB of samples. Memory grows by some 30 bytes for each trace, and not with
    their length. Until the last part is written the output does not open; the same call,
    interrupted, goes on from the parts that were finished.

    NaN and infinite samples are looked for in a few hundred traces before anything is written,
    and in all others while they are written, for a search of its own would read the whole file
    once more. If there are any, all are then counted, the output is left unfinished, and the
    same call with `nonfinite="zero"` goes on from there.

    Parameters
    ----------
    segy : path-like
        SEG-Y file. With a client, its workers must see it, and the output, under the same path.
    zarr : path-like
        Zarr group to write, here or in an object store ("s3://bucket/key").
    iline_byte, xline_byte, offset_byte, cdp_x_byte, cdp_y_byte : int
        First bytes, from 1, of the trace header fields that hold the inline, the crossline, the
        offset and the coordinates; `outcrop.info` shows which would make sense.
    domain : {"time", "depth"}
        What the samples run along: two-way time in ms, or depth in m.
    interval : float, optional
        Of the samples in ms, or m (feet, where the file says so), instead of that in the headers.
    format : str, optional
        Sample format, instead of the one in the header where that is wrong: "ibm", "ieee", or
        another one that `outcrop.export` writes.
    chunks, shards : sequence of int, optional
        Extents of the pieces of `amplitude` that are compressed one by one, and of the objects
        they are stored in: multiples of the chunks. Equal: no shards.
    compressor : str, codec of zarr, or None
        "NAME:LEVEL" is Blosc with shuffle: "zstd:5", "lz4:5", ...
    truncate : bool
        Of a file that ends in the middle of a trace, take the whole traces.
    duplicates : {"error", "first", "last", "mean"}
        Which of several traces at the same position to keep.
    sparse : bool
        Accept a grid more than twice as large as the traces, and say nothing of lines without any.
    nonfinite : {"error", "zero"}
        What to do with NaN and infinite samples: raise, or make them 0.
    overwrite : bool
        Replace what lies at `zarr`: it is deleted first, before the samples are read.
    client : distributed.Client, optional
        Its workers do the work; threads of this process unless given.
    storage_options : mapping, optional
        As for `outcrop.open`.
    progress : bool
        Show progress bars.

    Returns
    -------
    xarray.Dataset
        The survey, lazy, as `outcrop.open` opens it.

    Raises
    ------
    SegyError
        If the file is not SEG-Y, ends in the middle of a trace, or has traces of several lengths.
    GeometryError
        If the traces give no grid, a sparse one, share positions, or have several sample
        intervals.
    SurveyError
        If samples are NaN or infinite, or were so in an interrupted call that made them 0.
    OutputExistsError, ResumeError
        If something else lies at `zarr`, or an unfinished output of other options.
    ArgumentError
        If an option has no such value, or the SEG-Y is what lies at `zarr` or in it.
    OutcropError
        If there is no space left, or an object store refuses.
    """
    check_choice("domain", domain, ("time", "depth"))
    check_choice("duplicates", duplicates, ("error", "first", "last", "mean"))
    check_choice("nonfinite", nonfinite, ("error", "zero"))
    code = format_code(format)
    path = place(zarr, storage_options)
    check_apart(segy, path, what="the SEG-Y")
    target = check_free(path, overwrite)
    schema.check_layout(chunks, shards)
    codec = schema.codec(compressor)
    at = HeaderBytes(iline_byte, xline_byte, offset_byte, cdp_x_byte, cdp_y_byte)

    file = SegyFile.open(segy, truncate, code)
    vertical = vertical_axis(file, interval)
    known: dict[str, Any] = {
        "command": "ingest",
        "outcrop_version": __version__,
        "segy": _seen(file.path),
        "domain": domain,
        "interval": interval,
        "format": format,
        "compressor": None if codec is None else codec.to_dict(),
        "traces": file.traces,
        "duplicates": duplicates,
    }
    check_untaken(target)
    if not overwrite:  # before headers are read, on which the rest of the record depends
        check_goes_on(target, {**begun_with(target), **known})
    sample = some_samples(file)
    if code is None:
        warn_of_format(file, sample)
    sample = decode(sample, file.format)
    if nonfinite == "error" and not np.isfinite(sample).all():
        raise _nonfinite_error(file, at, vertical, client)
    dtype = schema.amplitude_dtype(file.format)
    _check_space(path, dtype.itemsize * file.samples * file.traces, sample, codec)
    length = file.traces * file.trace_bytes
    with track(f"scan {file.path.name}", length, "B", progress) as advance:
        headers = read_headers(file, at, advance)
    grid = make_grid(file, headers, at, duplicates, sparse)
    check_intervals(file, headers.intervals, vertical, interval)
    fields = tuple(headers.varying())
    late = vertical[0] != 0 and "ScalarTraceHeader" in fields
    if late or "DelayRecordingTime" in fields:
        log.warning(
            "%s: the recording delay varies (header bytes 109-110, its scalar in 215-216); the "
            "vertical axis starts at that of the first trace",
            file.path,
        )
    warn_of_coordinates(file, headers.varies, at)
    weight = int(field(headers.first, FIELDS["TraceWeightingFactor"][0], file.order)[0])
    warn_of_weights(file, weight, "TraceWeightingFactor" in fields)
    shape = (*grid.trace_index.shape, file.samples)
    chunk, shard = schema.layout(shape, dtype, chunks, shards)
    template, encoding = schema.template(
        file, headers, grid, at, vertical, domain, chunk, shard, codec
    )
    record = {
        **known,
        "bytes": template.attrs["segy"]["bytes"],
        "chunks": chunk,
        "shards": shard,
    }
    try:
        shard_bytes = math.prod(shard) * dtype.itemsize
        window = shard[-1] * max(1, schema.SHARD // shard_bytes)
        part_bytes = shard_bytes * min(window, file.samples) // shard[-1]
        coordinates = "cdp_x" in template
        parts = cut(grid, shard[:-1], file.trace_bytes, duplicates == "mean")
        del grid
        with (
            naming_refusal(path, goes_on(overwrite)),
            Output.begin(path, template, encoding, record, overwrite) as output,
            track(
                f"ingest {file.path.name}", sum(part.size for part in parts), "B", progress
            ) as advance,
        ):
            fence = output.fence
            there = replace(file, path=file.path.absolute())  # workers have folders of their own
            job = Job(there, path.absolute(), at, fields, coordinates, window, nonfinite, fence)
            replaced = _write(job, output, parts, part_bytes, client, advance)
            told = record | {"truncate": truncate, "sparse": sparse, "nonfinite": nonfinite}
            told["replaced_samples"] = replaced
            output.commit({"segy": {**template.attrs["segy"], "ingested_with": told}})
    except NonFiniteSampleError:
        raise _nonfinite_error(file, at, vertical, client) from None
    except OSError as error:
        what = f"{error.strerror}: {error.filename or segy}"
        raise OutcropError(
            f"{path}: cannot be written ({what}); choose another path, or see to that one"
        ) from error
    if replaced:
        log.warning("%s: %s NaN or infinite samples are now 0", file.path, f"{replaced:,}")
    return open_survey(path)


def is_ingested(segy: str | os.PathLike[str], zarr: PathLike) -> bool:
    """Whether a finished survey lies at `zarr`, made of this SEG-Y file as it is now.

    Parameters
    ----------
    segy : path-like
        SEG-Y file.
    zarr : path-like
        Zarr group of `ingest`.

    Returns
    -------
    bool
        False if nothing finished lies there.

    Raises
    ------
    SegyError
        If there is no such file.
    OutputExistsError
        If what lies there was made of another file: its name, size or time of change differ.
    """
    if not is_complete(zarr):
        return False
    path = on_disk(segy)
    if not path.is_file():
        raise SegyError(f"{segy}: no such file")
    made_of = open_survey(zarr).attrs.get("segy", {}).get("ingested_with", {}).get("segy")
    if made_of != _seen(path):
        what = f"made of {made_of[0]}, of {made_of[1]:,} bytes" if made_of else "no SEG-Y's"
        raise OutputExistsError(
            f"{zarr}: is {what}, not {segy} as it is now; remove it, or choose another folder"
        )
    return True


def _seen(path: Path) -> list[Any]:
    """What tells one SEG-Y file from another without reading it."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _write(
    job: Job,
    output: Output,
    parts: list[Part],
    part_bytes: int,
    client: Client | None,
    advance: Callable[[float], None],
) -> int:
    """Write the parts that are not yet written, and return how many samples were replaced."""
    count_replaced(output, job.nonfinite)

    def done(part: Part, bad: int) -> None:
        finish(output, part.key, bad)
        advance(part.size)

    advance(sum(part.size for part in parts if part.key in output.finished))
    left = [part for part in parts if part.key not in output.finished]
    run(functools.partial(write, job), left, done, threads(part_bytes), client)
    return count_replaced(output, job.nonfinite)


def _check_space(
    path: Place, samples: int, sample: np.ndarray, codec: BytesBytesCodec | None
) -> None:
    """Raise `OutcropError` if the output will hardly fit the disk, by how the sample compresses."""
    if isinstance(path, Remote):
        return
    store = MemoryStore()
    array = zarr.create_array(
        store,
        shape=sample.shape,
        chunks=(1, *sample.shape[1:]),
        dtype=sample.dtype,
        compressors=codec,
    )
    array[...] = sample
    need = samples * array.nbytes_stored() / sample.nbytes
    there = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if path.exists():  # an unfinished output goes on, another is replaced
        free += size(path)
    if 0.8 * need > free:
        raise OutcropError(
            f"{path}: no space left: the survey takes about {need / 1e9:,.3g} GB and "
            f"{free / 1e9:,.3g} GB are free; free some, or write elsewhere"
        )


def _nonfinite_error(
    file: SegyFile, at: HeaderBytes, vertical: np.ndarray, client: Client | None
) -> SurveyError:
    """Count NaN and infinite samples, and say where the first are."""
    total = 0
    found: list[tuple[int, int]] = []

    def done(_: range, result: tuple[int, list[tuple[int, int]]]) -> None:
        nonlocal total
        total += result[0]
        found.extend(result[1])

    run(functools.partial(count_nonfinite, file), counted(file), done, CPU_COUNT, client)
    first = sorted(found)[:3]
    headers = file.read_headers(np.array([trace for trace, _ in first]))
    inlines, crosslines = (number(headers, b, file.order) for b in (at.inline, at.crossline))
    places = [
        f"inline {i} crossline {x} at {spoken(vertical[sample])} in trace {trace + 1:,}"
        for i, x, (trace, sample) in zip(inlines, crosslines, first, strict=True)
    ]
    return SurveyError(
        f"{file.path}: {total:,} samples are NaN or infinite (first: {'; '.join(places)}); "
        "pass nonfinite='zero' (--nonfinite zero) to make them 0"
    )
