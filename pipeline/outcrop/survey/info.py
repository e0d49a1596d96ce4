"""What is in a SEG-Y file or a survey, told in plain data."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..arrays import spoken
from ..errors import GeometryError, SurveyError
from ..progress import track
from ..storage import Options, Place, Remote, place, size
from . import geometry
from .bins import Bin, fitted_bins
from .candidates import Candidate, candidates
from .checks import check_intervals, warn_of_format
from .decode import FORMATS, decode
from .encode import format_code
from .reading import loaded
from .reading import open as open_survey
from .schema import coordinate_unit, vertical_units
from .segy import FIELDS, SegyFile, number
from .segy import field as header_field

if TYPE_CHECKING:
    from ..targets import PathLike

_TRACES = 1024  # that the statistics are made of, at most
_SAMPLES = 1 << 22  # of them, at most
_LENGTHS = ("m", "ft")
_LINES = 64  # of each direction, whose coordinates are looked at
_BLOCK = 32 << 20  # bytes of a survey that are loaded at a time


@dataclass(frozen=True)
class Axis:
    """Numbers along one dimension; `step` is None where they are not regular."""

    first: float
    last: float
    step: float | None
    count: int


@dataclass(frozen=True)
class Statistics:
    """Amplitudes of some traces from all over the survey, but for NaN and infinite ones.

    As networks see them: but for dead traces, too, unless all samples have one sign.
    """

    traces: int
    minimum: float
    maximum: float
    mean: float
    standard_deviation: float
    dead_traces: int
    nonfinite: int


@dataclass(frozen=True)
class SurveyInfo:
    """What `outcrop.info` tells.

    Attributes
    ----------
    path : str
    kind : str
        "SEG-Y" or "Zarr".
    size : int
        Bytes.
    axes : dict of str to Axis
        By dimension; of a SEG-Y without a grid the vertical one alone.
    stack : dict of str to list of str
        Names of the volumes of a stack, by dimension (`vintage`, ...); of a part of one that of the
        volume that was taken.
    units : str
        Of the vertical axis.
    traces : int
    live_fraction : float or None
        Part of the positions that has a trace.
    volume : str
        The variable that `amplitudes` are of: in a Zarr the first one, and of a stack (`vintage`,
        ...) the first volume.
    amplitudes : Statistics or None
    problem : str or None
        Why the SEG-Y cannot be ingested as it is, and what to do.
    candidates : list of Candidate
        With a problem: pairs of header bytes that would give a regular grid, the likeliest first.
    format, byte_order, sorting, text : str or None
        Of the SEG-Y, or of the one that the survey was made from.
    bytes : dict of str to int
        First bytes of the header fields that gave the geometry.
    coordinates : dict of str to tuple of float
        Least and greatest `cdp_x` and `cdp_y`, where there are any; of a SEG-Y those of the traces
        that `amplitudes` tells of, and of others there may be some beyond.
    bins : dict of str to Bin
        From inline to inline and from crossline to crossline, where these are lengths and of a
        regular grid; of a SEG-Y by the same traces.
    variables : dict of str to str
        Of a Zarr: dimensions, type, chunks and shards by name.
    provenance : dict of str to str or float
        Of a prediction: its network, weights and precision, what it was made of, ...
    """

    path: str
    kind: str
    size: int
    axes: dict[str, Axis]
    units: str
    traces: int
    stack: dict[str, list[str]] = field(default_factory=dict)
    live_fraction: float | None = None
    volume: str = "amplitude"
    amplitudes: Statistics | None = None
    problem: str | None = None
    candidates: list[Candidate] = field(default_factory=list)
    format: str | None = None
    byte_order: str | None = None
    sorting: str | None = None
    bytes: dict[str, int] = field(default_factory=dict)
    coordinates: dict[str, tuple[float, float]] = field(default_factory=dict)
    bins: dict[str, Bin] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    text: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-serialisable dictionaries, lists, text and numbers."""
        return asdict(self)


def info(
    path: PathLike,
    *,
    iline_byte: int = 189,
    xline_byte: int = 193,
    offset_byte: int = 37,
    cdp_x_byte: int = 181,
    cdp_y_byte: int = 185,
    domain: str = "time",
    truncate: bool = False,
    format: str | None = None,
    storage_options: Options | None = None,
    progress: bool = False,
) -> SurveyInfo:
    """Tell what is in a SEG-Y file or a survey.

    Of a SEG-Y all trace headers are read, and the samples of some traces.

    Parameters
    ----------
    path : path-like
        SEG-Y file, or Zarr, here or in an object store.
    iline_byte, xline_byte, offset_byte, cdp_x_byte, cdp_y_byte, domain, truncate, format
        As for `outcrop.ingest`.
    storage_options : mapping, optional
        As for `outcrop.open`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    SurveyInfo
        Where the header bytes give no grid, its `problem` says so and `candidates` which would.

    Raises
    ------
    SegyError
        If it is a file, but not SEG-Y.
    SurveyError
        If it is something else.
    """
    geometry.check_choice("domain", domain, ("time", "depth"))
    where = place(path, storage_options)
    if isinstance(where, Remote) or where.is_dir() or not where.exists():
        return _of_zarr(where)
    at = geometry.HeaderBytes(iline_byte, xline_byte, offset_byte, cdp_x_byte, cdp_y_byte)
    return _of_segy(where, at, domain, truncate, format, progress)


def _of_segy(
    path: Path,
    at: geometry.HeaderBytes,
    domain: str,
    truncate: bool,
    format: str | None,
    progress: bool,
) -> SurveyInfo:
    file = SegyFile.open(path, truncate, format_code(format))
    with track(f"scan {path.name}", file.traces * file.trace_bytes, "B", progress) as advance:
        headers = geometry.read_headers(file, at, advance)
    problem, axes, live, found, lines = None, {}, None, [], {}
    try:
        grid = geometry.make_grid(file, headers, at)
        axes = {name: _axis(np.array(axis)) for name, axis in grid.axes.items()}
        lines = {name: axis for name, axis in grid.axes.items() if name != "offset"}
        live = float((grid.trace_index >= 0).mean())
    except GeometryError as error:
        problem, found = str(error), candidates(file, at.offset)
    vertical = "depth" if domain == "depth" else "twt"
    try:
        samples_at = geometry.vertical_axis(file)
        axes[vertical] = _axis(samples_at)
        check_intervals(file, headers.intervals, samples_at, None)
    except GeometryError as error:
        problem = problem or str(error)
    some = _spread(file.traces, _most(file.samples))
    stored = np.concatenate([raw for _, raw in file.read(some)])
    if format is None:
        warn_of_format(file, stored)
    samples = decode(stored, file.format)
    bad = samples.size - int(np.count_nonzero(np.isfinite(samples)))
    if bad and not problem:
        problem = (
            f"{path}: {bad:,} of the {samples.size:,} samples looked at are NaN or infinite; "
            "ingest it with nonfinite='zero' (--nonfinite zero) to make them 0"
        )
    extent, bins = _coordinates_of(file, at, some, lines)
    return SurveyInfo(
        path=str(path),
        kind="SEG-Y",
        size=path.stat().st_size,
        axes=axes,
        units=vertical_units(file, domain),
        traces=file.traces,
        live_fraction=live,
        amplitudes=_statistics(samples),
        problem=problem,
        candidates=found,
        format=f"{file.format} ({FORMATS[file.format]})",
        byte_order="big" if file.order == ">" else "little",
        sorting=geometry.sorting(headers),
        bytes=asdict(at),
        coordinates=extent,
        bins=bins,
        text="\n".join(file.text()),
    )


def _coordinates_of(
    file: SegyFile, at: geometry.HeaderBytes, traces: np.ndarray, lines: Mapping[str, range]
) -> tuple[dict[str, tuple[float, float]], dict[str, Bin]]:
    """Least and greatest coordinates of some traces, if they differ, and the bins."""
    if at.hold_lines(at.cdp_x, at.cdp_y):
        return {}, {}
    headers = file.read_headers(traces)
    scalar = header_field(headers, FIELDS["SourceGroupScalar"][0], file.order)
    values = {
        name: geometry.scaled(number(headers, byte, file.order), scalar)
        for name, byte in (("cdp_x", at.cdp_x), ("cdp_y", at.cdp_y))
    }
    found = {name: (float(each.min()), float(each.max())) for name, each in values.items()}
    if not any(low < high for low, high in found.values()):
        return {}, {}
    if (unit := coordinate_unit(file, headers)) not in _LENGTHS:
        return found, {}
    places = {
        name: (number(headers, getattr(at, name), file.order) - axis.start) // axis.step
        for name, axis in lines.items()
    }
    return found, fitted_bins(places, values["cdp_x"], values["cdp_y"], unit)


def _of_zarr(path: Place) -> SurveyInfo:
    survey = open_survey(path)
    if 0 in survey.sizes.values():
        raise SurveyError(f"{path}: is empty: {dict(survey.sizes)}; see what was selected")
    kept = survey.attrs.get("segy", {})
    vertical = next((d for d in ("twt", "depth") if d in survey.dims), None)
    lateral = [d for d in ("inline", "crossline", "offset") if d in survey.dims]
    first = survey.isel({d: 0 for d in survey.dims if d not in (*lateral, vertical)})
    everywhere = np.ones([survey.sizes[d] for d in lateral], dtype=bool)
    live = xr.DataArray(everywhere, dims=lateral)
    if "live" in first:
        live = live & xr.Variable(first["live"].dims, loaded(first["live"]))
    name = next((str(n) for n, v in survey.data_vars.items() if vertical in v.dims), None)
    amplitudes, stack = None, {}
    if name is not None:
        stack = _stack(survey[name], (*lateral, vertical))
        volume = first[name].transpose(*lateral, ...)
        amplitudes = _statistics(_some_traces(volume, live.to_numpy()))
    return SurveyInfo(
        path=str(path),
        kind="Zarr",
        size=size(path),
        axes={d: _axis(survey[d].to_numpy()) for d in (*lateral, vertical) if d},
        units=survey[vertical].attrs.get("units", "") if vertical else "",
        traces=int(live.sum()),
        stack=stack,
        live_fraction=float(live.mean()),
        volume=name or "amplitude",
        amplitudes=amplitudes,
        format=f"{kept['format']} ({FORMATS[kept['format']]})" if kept else None,
        byte_order=kept.get("byte_order"),
        bytes=kept.get("bytes", {}),
        coordinates={
            n: (float(np.nanmin(values)), float(np.nanmax(values)))
            for n in ("cdp_x", "cdp_y")
            if n in survey and not np.isnan(values := loaded(survey[n])).all()
        },
        bins=_bins_of(first),
        variables={str(n): _describe(v) for n, v in survey.variables.items()},
        provenance=dict(survey.attrs) if "weights_sha256" in survey.attrs else {},
        text="\n".join(kept["text"]) if kept else None,
    )


def _stack(volume: xr.DataArray, own: Collection[str | None]) -> dict[str, list[str]]:
    names = [
        *(d for d in volume.dims if d not in own),
        *(n for n, c in volume.coords.items() if not c.ndim),
    ]
    return {str(n): [spoken(value) for value in np.atleast_1d(volume[n].values)] for n in names}


def _bins_of(survey: xr.Dataset) -> dict[str, Bin]:
    """Of the coordinates of some traces of a survey, if they are lengths."""
    lateral = ("inline", "crossline")
    unit = (
        survey["cdp_x"].attrs.get("units") if {"cdp_x", "cdp_y"} <= survey.coords.keys() else None
    )
    if unit not in _LENGTHS:
        return {}
    survey = survey[["cdp_x", "cdp_y"]].isel(offset=0, missing_dims="ignore")
    if set(survey["cdp_x"].dims) != set(lateral):
        return {}
    some = [_spread(survey.sizes[d], _LINES) for d in lateral]
    seen = survey.isel(dict(zip(lateral, some, strict=True)))
    x, y = (loaded(seen[name].transpose(*lateral)).ravel() for name in ("cdp_x", "cdp_y"))
    places = (at.ravel() for at in np.meshgrid(*some, indexing="ij"))
    return fitted_bins(dict(zip(lateral, places, strict=True)), x, y, unit)


def _some_traces(volume: xr.DataArray, live: np.ndarray) -> np.ndarray:
    """Live traces of columns of chunks, up to three along each dimension, or of parts of them."""
    stored = volume.encoding.get("preferred_chunks", {})
    chunks = [stored.get(d, n) for d, n in volume.sizes.items()]
    spread = (
        np.unique(np.linspace(0, (n - 1) // c, 3).astype(int)) * c
        for n, c in zip(live.shape, chunks, strict=False)
    )
    found = [np.empty((0, volume.shape[-1]), dtype=volume.dtype)]
    corners = list(itertools.product(*spread))
    for corner in corners:
        region = [slice(s, s + c) for s, c in zip(corner, chunks, strict=False)]
        if not live[tuple(region)].any():
            continue
        for axis in range(live.ndim):
            there = live[tuple(region)]
            size = volume.dtype.itemsize * volume.shape[-1] * there.size // there.shape[axis]
            few = max(1, _BLOCK // size)
            if few < there.shape[axis]:
                others = tuple(d for d in range(live.ndim) if d != axis)
                lines = region[axis].start + np.flatnonzero(there.any(axis=others))
                first = max(region[axis].start, int(lines[lines.size // 2]) - few // 2)
                region[axis] = slice(first, min(first + few, region[axis].stop))
        traces = loaded(volume, region)[live[tuple(region)]]
        most = -(-_most(volume.shape[-1]) // len(corners))
        found.append(traces[_spread(len(traces), most)])
    return np.concatenate(found)


def _most(samples: int) -> int:
    """Return how many traces of that length are looked at."""
    return max(1, min(_TRACES, _SAMPLES // samples))


def _spread(count: int, most: int) -> np.ndarray:
    """Indices from all over, ascending, no more than `most`."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _statistics(traces: np.ndarray) -> Statistics | None:
    """Summarise traces: (traces, samples)."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        values = traces.astype(np.float64)
    known, dead = np.isfinite(values), (values == 0).all(axis=-1)
    finite = values[known]
    if not finite.size:
        return None
    if finite.min() < 0 < finite.max():
        finite = values[known & ~dead[:, None]]
    return Statistics(
        traces=len(traces),
        minimum=float(finite.min()),
        maximum=float(finite.max()),
        mean=float(finite.mean()),
        standard_deviation=float(finite.std()),
        dead_traces=int(np.count_nonzero(dead)),
        nonfinite=int(np.count_nonzero(~known)),
    )


def _axis(numbers: np.ndarray) -> Axis:
    first, last = numbers[0].item(), numbers[-1].item()
    step = (last - first) / (numbers.size - 1) if numbers.size > 1 else 0
    if not np.allclose(np.diff(numbers), step, rtol=0.01, atol=0):
        return Axis(first, last, None, numbers.size)
    return Axis(first, last, int(step) if isinstance(first, int) else step, numbers.size)


def _describe(variable: xr.Variable) -> str:
    text = f"({', '.join(map(str, variable.dims))}) {variable.dtype}"
    for name in ("chunks", "shards"):
        if extents := variable.encoding.get(name):
            text += f", {name} {' × '.join(map(str, extents))}"
    return text
