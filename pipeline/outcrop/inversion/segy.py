"""SEG-Y shot gathers in: a Zarr (shot, receiver, time) with the acquisition."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dask.array
import numpy as np
import xarray as xr

from .. import __version__
from ..arrays import encodings, open_for_writing
from ..errors import GeometryError, SurveyError
from ..locks import check_untaken
from ..output import Output
from ..progress import track
from ..storage import goes_on, naming_refusal, on_disk
from ..survey.checks import check_intervals, some_samples, warn_of_format, warn_of_weights
from ..survey.decode import decode
from ..survey.encode import format_code
from ..survey.geometry import check_choice, scaled, vertical_axis
from ..survey.parts import count_replaced, finish, run, threads
from ..survey.segy import FIELDS, SegyFile, field
from ..targets import check_apart, check_free, check_goes_on
from .gathers import open_shots
from .kinds import check_kinds
from .model import DIMS

if TYPE_CHECKING:
    from distributed import Client

# Trace identification codes of traces that hold no seismic signal: dead, dummy, time break, gun
# signatures, and those of vibrators.
_SILENT = (*range(2, 11), *range(18, 23))
_SENSORS = range(11, 18)  # of hydrophones, and of each component of geophones
_FOOT = 0.3048  # m
_CHUNK = 32 << 20  # bytes of a chunk of traces


def ingest_shots(
    segy: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    azimuth: float = 90.0,
    interval: float | None = None,
    format: str | None = None,
    truncate: bool = False,
    nonfinite: Literal["error", "zero"] = "error",
    overwrite: bool = False,
    client: Client | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Turn SEG-Y shot gathers into a Zarr of shots, receivers and time.

    Traces with the same field record and source position are a shot, in the order of the file,
    and shots in the order of their first traces. Positions are those of the headers, with their
    scalars, turned into the model's axes. Depths count down from the elevation 0: minus the group
    elevation for receivers, source depth minus source elevation for sources. Traces that say that
    they hold no signal (dead, dummy, auxiliary) are left out.

    Parameters
    ----------
    segy : path-like
        With a client, its workers must see it, and the output, under the same path.
    path : path-like
        Zarr to write.
    origin : (float, float)
        Coordinates x and y of the point where inline and crossline of the model are 0, in m.
    azimuth : float
        Of the inline axis, degrees clockwise from the y axis (north); the crossline axis points
        90 degrees to the left of it. 90: inline is x - x0 and crossline y - y0.
    interval : float, optional
        Of the samples in ms, instead of the one in the headers.
    format : str, optional
        Sample format, instead of the one in the header, as for `outcrop.ingest`.
    truncate : bool
        Of a file that ends in the middle of a trace, take the whole traces.
    nonfinite : {"error", "zero"}
        What to do with NaN and infinite samples: raise, or make them 0.
    overwrite : bool
        Replace what lies at `path`: it is deleted first, before the samples are read.
    client : distributed.Client, optional
    progress : bool
        Show progress bars.

    Returns
    -------
    xarray.Dataset
        `amplitude` (shot, receiver, time), 0 where a shot has fewer receivers than others, and
        positions NaN; `source_DIM` (shot), `receiver_DIM` (shot, receiver) in m; `field_record`.

    Raises
    ------
    SegyError
        If the file is not SEG-Y, ends in the middle of a trace, or has traces of several lengths.
    GeometryError
        If headers hold no positions, or angles instead of lengths, the delay or the sample
        interval varies, traces are of several kinds of sensors, or all say that they hold no
        signal.
    SurveyError
        If samples are not finite, or were so in an interrupted call that made them 0.
    OutputExistsError, ResumeError
        If something else lies at `path`.
    ArgumentError
        If origin, azimuth or interval are no numbers, or the SEG-Y is what lies at `path` or in
        it.
    """
    check_choice("nonfinite", nonfinite, ("error", "zero"))
    check_kinds({"origin": origin, "azimuth": azimuth, "interval": interval})
    origin, azimuth = (float(origin[0]), float(origin[1])), float(azimuth)
    interval = None if interval is None else float(interval)
    code = format_code(format)
    path = on_disk(path)
    check_apart(segy, path, what="the SEG-Y")
    target = check_free(path, overwrite)
    file = SegyFile.open(segy, truncate, code)
    status = file.path.stat()
    record = {
        "command": "ingest shots",
        "segy": [file.path.name, status.st_size, status.st_mtime_ns],
        "origin": list(origin),
        "azimuth": azimuth,
        "interval": interval,
        "format": format,
    }
    check_untaken(target)
    if not overwrite:
        check_goes_on(target, record)
    with track(f"scan {file.path.name}", file.traces * file.trace_bytes, "B", progress) as advance:
        headers = _read_headers(file, advance)
    if code is None:
        warn_of_format(file, some_samples(file))
    places = _positions(file, headers, origin, azimuth)
    numbers = _gathers(headers, places)
    template, encoding = _template(file, headers, numbers, places, interval)
    template.attrs |= {"origin": list(origin), "azimuth": azimuth}
    shot_bytes = numbers.shape[1] * file.samples * 4
    with (
        naming_refusal(path, goes_on(overwrite)),
        Output.begin(path, template, encoding, record, overwrite) as output,
        track(f"ingest {file.path.name}", numbers.size, "traces", progress) as advance,
    ):
        count_replaced(output, nonfinite)
        left = [n for n in range(len(numbers)) if str(n) not in output.finished]

        def done(shot: int, bad: int) -> None:
            finish(output, str(shot), bad)
            advance(numbers.shape[1])

        advance(numbers.size - len(left) * numbers.shape[1])
        there = replace(file, path=file.path.absolute())  # workers have folders of their own
        job = _Job(there, path.absolute(), nonfinite)
        items = ((n, numbers[n]) for n in left)
        run(
            functools.partial(_write, job),
            items,
            lambda item, result: done(item[0], result),
            threads(shot_bytes),
            client,
        )
        told = {"truncate": truncate, "nonfinite": nonfinite}
        replaced = count_replaced(output, nonfinite)
        output.commit({"ingested_with": {**record, **told, "replaced_samples": replaced}})
    return open_shots(path)


@dataclass(frozen=True)
class _Job:
    """What the writing of all shots shares."""

    file: SegyFile
    path: Path
    nonfinite: str


def _write(job: _Job, item: tuple[int, np.ndarray]) -> int:
    """Write one shot and return how many samples were not finite. Twice does no harm."""
    shot, traces = item
    array = open_for_writing(job.path / "amplitude")
    gather = np.zeros(array.shape[1:], dtype=array.dtype)
    there = np.flatnonzero(traces >= 0)
    order = there[np.argsort(traces[there])]
    count = 0
    for which, raw in job.file.read(traces[order]):
        values = decode(raw, job.file.format).astype(array.dtype)
        bad = ~np.isfinite(values)
        if bad.any() and job.nonfinite == "error":
            trace, sample = np.argwhere(bad)[0]
            raise SurveyError(
                f"{job.file.path}: trace {traces[order[which]][trace] + 1}, sample {sample + 1}: "
                "NaN or infinite; pass nonfinite='zero' (--nonfinite zero) to make such 0"
            )
        values[bad] = 0
        count += int(np.count_nonzero(bad))
        gather[order[which]] = values
    array[shot] = gather
    return count


def _read_headers(file: SegyFile, advance: Callable[[float], None]) -> dict[str, np.ndarray]:
    """Fields of all traces that say where they belong, and what they should have in common."""
    names = (
        "FieldRecord", "SourceX", "SourceY", "GroupX", "GroupY", "SourceDepth",
        "SourceSurfaceElevation", "ReceiverGroupElevation", "SourceGroupScalar", "ElevationScalar",
        "CoordinateUnits", "TraceIdentificationCode", "DelayRecordingTime", "ScalarTraceHeader",
        "TRACE_SAMPLE_INTERVAL", "TraceWeightingFactor",
    )  # fmt: skip
    found = {name: np.empty(file.traces, dtype=np.int32) for name in names}
    for start, headers in file.scan():
        for name in names:
            values = field(headers, FIELDS[name][0], file.order)
            found[name][start : start + len(headers)] = values
        advance(len(headers) * file.trace_bytes)
    kept = ~np.isin(found["TraceIdentificationCode"], _SILENT)
    if not kept.any():
        raise GeometryError(
            f"{file.path}: all traces say that they hold no signal (header bytes 29-30 from 2 to "
            "10 or 18 to 22); correct these"
        )
    kinds = np.intersect1d(found["TraceIdentificationCode"][kept], _SENSORS)
    if kinds.size > 1:
        raise GeometryError(
            f"{file.path}: traces of several kinds of sensors (header bytes 29-30 are "
            f"{', '.join(map(str, kinds))}); write those of one to a SEG-Y of their own"
        )
    delays = scaled(found["DelayRecordingTime"][kept], found["ScalarTraceHeader"][kept])
    if np.unique(delays).size > 1:
        raise GeometryError(
            f"{file.path}: the recording delay varies (header bytes 109-110, its scalar in "
            "215-216); shift the traces to one start"
        )
    angles = kept & np.isin(found["CoordinateUnits"], (2, 3, 4))
    if angles.any():
        raise GeometryError(
            f"{file.path}: trace {int(angles.argmax()) + 1:,}: coordinates are angles (header "
            "bytes 89-90); project them to metres first"
        )
    return found


def _positions(
    file: SegyFile, headers: dict[str, np.ndarray], origin: tuple[float, float], azimuth: float
) -> dict[str, np.ndarray]:
    """Where each trace's source and receiver are, m along the model's axes."""
    unit = _FOOT if file.binary(3255) == 2 else 1.0
    angle = math.radians(azimuth)
    along, across = math.sin(angle), math.cos(angle)
    places = {}
    for what, x, y in (("source", "SourceX", "SourceY"), ("receiver", "GroupX", "GroupY")):
        east, north = (
            unit * scaled(headers[name], headers["SourceGroupScalar"]) - start
            for name, start in ((x, origin[0]), (y, origin[1]))
        )
        # Rounded: the sine of 180 degrees is not quite 0.
        places[f"{what}_inline"] = np.round(east * along + north * across, 6)
        places[f"{what}_crossline"] = np.round(north * along - east * across, 6)
    heights = {
        name: unit * scaled(headers[name], headers["ElevationScalar"])
        for name in ("SourceDepth", "SourceSurfaceElevation", "ReceiverGroupElevation")
    }
    depths = heights["SourceDepth"] - heights["SourceSurfaceElevation"]
    places["source_depth"] = np.round(depths, 6)
    places["receiver_depth"] = -heights["ReceiverGroupElevation"]
    if not any(headers[name].any() for name in ("SourceX", "SourceY", "GroupX", "GroupY")):
        raise GeometryError(
            f"{file.path}: source and group coordinates (header bytes 73-88) are all 0; is it a "
            "file of shot gathers? Fill them in"
        )
    return places


def _gathers(headers: dict[str, np.ndarray], places: dict[str, np.ndarray]) -> np.ndarray:
    """Numbers of the traces of each shot, (shot, receiver); -1 where it has fewer."""
    kept = np.flatnonzero(~np.isin(headers["TraceIdentificationCode"], _SILENT))
    told = headers["FieldRecord"], *(places[f"source_{dim}"] for dim in DIMS)
    keys = np.stack([each[kept] for each in told], axis=1)
    _, first, shot = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # shots in the order of the file
    shot = rank[shot.reshape(-1)]
    order = np.argsort(shot, kind="stable")
    counts = np.bincount(shot)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    column = np.arange(kept.size) - np.repeat(starts, counts)
    numbers = np.full((counts.size, counts.max()), -1, dtype=np.int64)
    numbers[shot[order], column] = kept[order]
    return numbers


def _template(
    file: SegyFile,
    headers: dict[str, np.ndarray],
    numbers: np.ndarray,
    places: dict[str, np.ndarray],
    interval: float | None,
) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    first = numbers[:, 0]
    live = numbers >= 0
    vertical = vertical_axis(file, interval, trace=int(first[0]))
    told = np.zeros(file.traces, dtype=np.int32)  # by the traces that are left out: nothing
    told[numbers[live]] = headers["TRACE_SAMPLE_INTERVAL"][numbers[live]] & 0xFFFF
    check_intervals(file, told, vertical, interval)
    weights = headers["TraceWeightingFactor"][numbers[live]]
    warn_of_weights(file, int(weights[0]), bool((weights != weights[0]).any()))
    coords: dict[str, Any] = {
        "time": ("time", vertical / 1000, {"units": "s", "long_name": "recording time"}),
        "field_record": ("shot", headers["FieldRecord"][first], {"long_name": "field record"}),
        "trace_index": (
            ("shot", "receiver"),
            numbers,
            {"long_name": "number of the trace in the SEG-Y, from 0; -1: none"},
        ),
    }
    for dim in DIMS:
        attrs = {"units": "m", "long_name": f"source position along {dim}"}
        coords[f"source_{dim}"] = ("shot", places[f"source_{dim}"][first], attrs)
        attrs = {"units": "m", "long_name": f"receiver position along {dim}"}
        at = np.where(live, places[f"receiver_{dim}"][np.maximum(numbers, 0)], np.nan)
        coords[f"receiver_{dim}"] = (("shot", "receiver"), at, attrs)
    shape = (*numbers.shape, file.samples)
    traces = dask.array.zeros(shape, dtype=np.float32, chunks=-1)
    attrs = {"units": "1", "long_name": "seismic amplitude"}
    dataset = xr.Dataset({"amplitude": (("shot", "receiver", "time"), traces, attrs)}, coords)
    dataset.attrs = {"Conventions": "CF-1.11", "outcrop_version": __version__}
    chunk = min(numbers.shape[1], max(1, _CHUNK // (4 * file.samples)))
    encoding = encodings(dataset)
    encoding["amplitude"] |= {"chunks": (1, chunk, file.samples), "_FillValue": None}
    for name in coords:
        if name.startswith("receiver_") or name == "trace_index":
            encoding[name]["chunks"] = (min(64, len(numbers)), numbers.shape[1])
    return dataset, encoding
