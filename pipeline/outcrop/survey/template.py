"""What a written SEG-Y keeps: file header, trace headers and trace order of a file or a survey."""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import GeometryError, SegyError, SurveyError
from ..progress import track
from .geometry import HeaderBytes, make_grid, read_headers, scaled, vertical_axis
from .layout import TRACE_HEADER, Order
from .reading import loaded
from .segy import FIELDS, SegyFile
from .text import edited, slices

log = logging.getLogger(__name__)

LATERAL = ("inline", "crossline", "offset")
_LOOK = 1 << 20  # traces whose headers are compared at a time
_SURVEY = "pass the survey that was ingested from it as like= (--like)"

Read = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Template:
    """The SEG-Y file that a written one resembles.

    Attributes
    ----------
    name : str
        For messages.
    order : str
        Byte order, ">" or "<".
    format : int
        Sample format.
    file_header : bytes
        Everything before the first trace.
    vertical : ndarray of float64
        Two-way time in ms, or depth in m, of the samples.
    dim : str or None
        Which of them, "twt" or "depth", if that is known.
    count : int
        Traces of the file.
    traces : ndarray of int64
        Numbers from 0 of those that are at hand, ascending.
    numbers : dict of str to ndarray of int
        Inline, crossline and, prestack, offset of each of them.
    axes : dict of str to ndarray of int
        Every number that these may have.
    headers : callable
        Numbers of traces, ascending -> their headers, uint8 (traces, 240).
    raw : callable or None
        Numbers of traces, ascending -> their samples as they lie in the file, if they are at hand.
    """

    name: str
    order: Order
    format: int
    file_header: bytes
    vertical: np.ndarray
    dim: str | None
    count: int
    traces: np.ndarray
    numbers: dict[str, np.ndarray]
    axes: dict[str, np.ndarray]
    headers: Read
    raw: Read | None


def of_file(
    path: Path, at: HeaderBytes, check: Callable[[np.ndarray], object], progress: bool = False
) -> Template:
    """Keep what a SEG-Y file has.

    Parameters
    ----------
    path : pathlib.Path
    at : HeaderBytes
        Where its inline and crossline numbers are.
    check : callable
        Called with the times or depths of its samples, before all of its trace headers are read.
    progress : bool
        Show a progress bar.

    Raises
    ------
    SegyError
        If it is not SEG-Y.
    SurveyError
        If its traces lie on no grid.
    """
    try:
        file = SegyFile.open(path)
        vertical = vertical_axis(file)
        check(vertical)
        size = file.traces * file.trace_bytes
        with track(f"scan {path.name}", size, "B", progress) as advance:
            found = read_headers(file, at, advance)
        axes = make_grid(file, found, at, duplicates="first", sparse=True).axes
    except (SegyError, GeometryError) as error:
        if "(--" not in str(error) and isinstance(error, SegyError):
            raise
        fact = str(error).partition("; ")[0]  # its remedies are for reading
        kind = SegyError if isinstance(error, SegyError) else SurveyError
        raise kind(f"{fact}; {_SURVEY}") from error

    def raw(traces: np.ndarray) -> np.ndarray:
        return np.concatenate([raw for _, raw in file.read(traces)])

    return Template(
        name=str(path),
        order=file.order,
        format=file.format,
        file_header=file.file_header,
        vertical=vertical,
        dim=None,
        count=file.traces,
        traces=np.arange(file.traces),
        numbers={d: found.numbers[d] for d in axes},
        axes={d: np.array(axis) for d, axis in axes.items()},
        headers=file.read_headers,
        raw=raw,
    )


def of_survey(survey: xr.Dataset, name: str) -> Template:
    """Keep what a survey keeps of the SEG-Y that it came from, edited headers included.

    Parameters
    ----------
    survey : xarray.Dataset
        As `outcrop.ingest` writes it, or a part of it.
    name : str
        For messages.

    Raises
    ------
    SurveyError
        If it keeps no headers, or not all that vary, or not those of each of its traces, or one of
        its header variables is no header field. Line numbers that differ from those in the headers
        are logged.
    """
    kept = survey.attrs.get("segy")
    if kept is None or "trace_index" not in survey:
        raise SurveyError(
            f"{name}: keeps no SEG-Y headers; pass like= (--like) the SEG-Y or the survey that it "
            "was made from"
            + (", or drop its attribute segy for headers made of its coordinates" if kept else "")
        )
    one = [d for d in LATERAL if d in survey.coords and not survey[d].ndim]
    survey = survey.reset_coords("trace_index").expand_dims(one)
    first, step = kept["vertical"][0], np.diff(kept["vertical"]).sum()
    lateral = [d for d in LATERAL if d in survey["trace_index"].dims]
    if len(lateral) < survey["trace_index"].ndim:
        raise SurveyError(
            f"{name}: trace_index lies on {', '.join(map(str, survey['trace_index'].dims))}, and "
            "traces on inline, crossline and offset; unstack it"
        )
    index = survey["trace_index"].transpose(*lateral)
    shape = index.shape
    flat = loaded(index).ravel()
    cells = np.flatnonzero(flat >= 0)
    cells = cells[np.argsort(flat[cells], kind="stable")]
    traces = flat[cells].astype(np.int64)  # floats where lines were added, as by reindex
    again = np.flatnonzero(np.diff(traces) == 0)
    if again.size or (traces.size and traces[-1] >= kept["traces"]):
        fact = f"goes to {traces[-1]:,}, and its SEG-Y has {kept['traces']:,} traces"
        if again.size:
            fact = f"has {traces[again[0]]:,} more than once"
        raise SurveyError(
            f"{name}: trace_index {fact}: it is joined of several surveys, or has a line twice; "
            "export them one by one, or pass a survey with every line once as like= (--like)"
        )
    places = np.unravel_index(cells, shape)
    axes = {d: survey[d].to_numpy() for d in lateral}
    order: Order = ">" if kept["byte_order"] == "big" else "<"
    constant = np.zeros((1, TRACE_HEADER), dtype=np.uint8)
    for field, value in kept["trace_header"].items():
        put(constant, field, np.array([value]), order, name)
    varying = {
        str(v).removeprefix("header_"): survey[v].transpose(*lateral)
        for v in survey.data_vars
        if str(v).startswith("header_")
    }
    if gone := [field for field in kept.get("varying", ()) if field not in varying]:
        raise SurveyError(
            f"{name}: has no header_{', header_'.join(gone[:3])}{', …' if gone[3:] else ''}, which "
            "the SEG-Y's traces need; pass the SEG-Y or the survey with all of its headers as "
            "like= (--like)"
        )
    for field, values in varying.items():
        if field not in FIELDS:
            raise SurveyError(f"{name}: header_{field} is no SEG-Y trace header field; drop it")
        if not np.can_cast(values.dtype, FIELDS[field][1]):  # found out now rather than midway
            check_field(field, loaded(values).ravel()[cells], name)
    numbers = {d: axes[d][i] for d, i in zip(lateral, places, strict=True)}
    _warn_of_edits(survey, kept, varying, index, name)
    if interval := kept.get("ingested_with", {}).get("interval"):
        log.warning(
            "%s: was ingested with interval=%g; the sample interval in the headers is written as "
            "it was",
            name,
            interval,
        )

    def headers(wanted: np.ndarray) -> np.ndarray:
        at = np.unravel_index(cells[np.searchsorted(traces, wanted)], shape)
        # The part of the grid that holds them all: a block's own, as traces are asked for so.
        box = [slice(int(i.min()), int(i.max()) + 1) for i in at]
        inside = tuple(i - s.start for i, s in zip(at, box, strict=True))
        rows = np.repeat(constant, wanted.size, axis=0)
        for field, values in varying.items():
            put(rows, field, loaded(values, box)[inside], order, name)
        return rows

    return Template(
        name=name,
        order=order,
        format=kept["format"],
        file_header=_file_header(kept, name),
        vertical=first + step * np.arange(kept["samples"]),
        dim=next((d for d in ("twt", "depth") if d in survey.dims), None),
        count=kept["traces"],
        traces=traces,
        numbers=numbers,
        axes=axes,
        headers=headers,
        raw=None,
    )


def _file_header(kept: Mapping[str, Any], name: str) -> bytes:
    """File header that a survey keeps, with the texts as they are now."""
    header = bytearray(base64.b64decode(kept["file_header"]))
    there, texts = slices(header), kept["text"]
    if len(texts) != len(there):
        raise SurveyError(
            f"{name}: its attribute segy has {len(texts)} text headers, and the SEG-Y has "
            f"{len(there)}; edit these, and add or drop none"
        )
    for place, text in zip(there, texts, strict=True):
        header[place] = edited(bytes(header[place]), text, name)
    return bytes(header)


def _warn_of_edits(
    survey: xr.Dataset,
    kept: Mapping[str, Any],
    varying: Mapping[str, xr.DataArray],
    index: xr.DataArray,
    name: str,
) -> None:
    """Log line numbers and coordinates of traces that are not those in their headers."""
    fields = {first: field for field, (first, kind) in FIELDS.items() if kind == "i4"}
    step = max(1, _LOOK // math.prod(index.shape[1:]))
    boxes = [slice(start, start + step) for start in range(0, len(index), step)]
    for d, byte in kept.get("bytes", {}).items():
        field = fields.get(byte)
        if field is None or d not in survey.variables or survey[d].dtype.kind not in "iuf":
            continue  # none: of parts of fields
        meant = survey[d].broadcast_like(index).transpose(*index.dims)
        count, example = 0, (0.0, 0.0)
        for box in boxes:

            def written(name: str, box: slice = box) -> Any:
                constant = kept["trace_header"].get(name, 0)
                return loaded(varying[name], [box]) if name in varying else np.int32(constant)

            there, near = written(field), np.float64(0)
            if d not in LATERAL:
                scalar = written("SourceGroupScalar")
                there, near = scaled(there, scalar), scaled(0.5, scalar)
            at = loaded(meant, [box])
            odd = (loaded(index, [box]) >= 0) & ~(np.abs(at - there) <= near)
            if not count and odd.any():
                where = tuple(axis[0] for axis in np.nonzero(odd))
                example = at[where], np.broadcast_to(there, at.shape)[where]
            count += int(np.count_nonzero(odd))
        if count:
            log.warning(
                "%s: %s %s is %s in header_%s, which is written (%s such traces); correct one of "
                "the two",
                name,
                d,
                *example,
                field,
                f"{count:,}",
            )


def check_field(name: str, values: np.ndarray, where: str) -> None:
    """Raise `SurveyError` if a trace header field, by its name, does not hold the values."""
    if not values.size:
        return
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise SurveyError(
            f"{where}: header_{name} would not be a number in all traces; mask the volume alone, "
            "correct its coordinates, or pass like= (--like)"
        )
    first, kind = FIELDS[name]
    limits = np.iinfo(kind)
    low, high = values.min(), values.max()
    if not (limits.min <= low and high <= limits.max) or (values != np.rint(values)).any():
        raise SurveyError(
            f"{where}: header_{name} runs from {low} to {high}, and bytes {first}-"
            f"{first + limits.bits // 8 - 1} hold whole numbers from {limits.min} to {limits.max}"
        )


def put(headers: np.ndarray, name: str, values: np.ndarray, order: Order, where: str) -> None:
    """Set one field of many trace headers, by its name; raise what `check_field` does."""
    check_field(name, values, where)
    first, kind = FIELDS[name]
    dtype = np.dtype(kind).newbyteorder(order)
    stored = np.ascontiguousarray(values.astype(dtype))[:, None].view(np.uint8)
    headers[:, first - 1 : first - 1 + dtype.itemsize] = stored
