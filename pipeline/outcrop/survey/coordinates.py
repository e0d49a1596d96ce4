"""Headers for a volume that comes from no SEG-Y: made of its coordinates."""

from __future__ import annotations

import logging
import struct

import numpy as np
import xarray as xr
from segyio.tools import create_text_header

from .. import __version__
from ..arrays import spoken
from ..errors import SurveyError
from .checks import TINY
from .layout import TRACE_HEADER
from .reading import loaded
from .template import LATERAL, Template, put

log = logging.getLogger(__name__)

_VERTICAL = ("twt", "depth")
_FIELDS = {"offset": "offset", "inline": "INLINE_3D", "crossline": "CROSSLINE_3D"}
_IEEE = 5
_LENGTHS = {"m": 1, "ft": 2}  # by the measurement system of the binary header
_LOOK = 1 << 16  # traces
_COUNT = 0xFFFF  # samples that headers of revision 1 can count
_LONGEST = 0x7FFFFFFF  # number in four bytes
_PARTS = (100, 10)  # of a metre or foot, in which positions are written where they fit


def of_coordinates(volume: xr.DataArray, name: str) -> Template:
    """Make headers of the coordinates of a volume: a revision 1 file, in the order of its lines.

    Traces of more than 65,535 samples, which its headers cannot count, make it a revision 2 file.

    Numbers of inlines and crosslines lie in bytes 189 and 193, positions in 181 and 185: those
    of `cdp_x` and `cdp_y`, or, of a model, along its axes; in hundredths, or tenths or whole ones
    where those do not fit. An axis that holds positions, or nothing, is numbered from 1. Where
    `live` is false there is no trace.

    Parameters
    ----------
    volume : xarray.DataArray
        (inline, crossline or offset, any of these, twt or depth).
    name : str
        For messages.

    Raises
    ------
    SurveyError
        If it does not lie along time or depth, at an interval and from a start that headers
        hold, or has numbers or positions that they do not.
    """
    one = [d for d in (*LATERAL, *_VERTICAL) if d in volume.coords and not volume[d].ndim]
    volume = volume.expand_dims(one)
    vertical = [d for d in _VERTICAL if d in volume.dims]
    lateral = [d for d in LATERAL if d in volume.dims]
    if len(vertical) != 1 or len(lateral) + 1 != volume.ndim or not lateral:
        raise SurveyError(
            f"{name}: dimensions {', '.join(map(str, volume.dims))}: a SEG-Y has traces along twt "
            "or depth, on inline, crossline and offset; select along the others, or rename them"
        )
    (dim,) = vertical
    at, interval = _samples(volume, dim, name)
    shape = tuple(volume.sizes[d] for d in lateral)
    live = np.ones(shape, dtype=bool)
    if "live" in volume.coords:
        live = loaded(_over(volume["live"], volume, lateral)).astype(bool)
    if not live.any():
        raise SurveyError(f"{name}: no trace is live; there is nothing to write")
    traces = np.flatnonzero(live)
    places = np.unravel_index(traces, shape)
    axes = {d: _axis(volume, d) for d in lateral}
    positions, unit = _positions(volume, lateral, name)
    deep = volume[dim].attrs.get("units", unit)
    if positions and deep in _LENGTHS and deep != unit:
        log.warning(
            "%s: positions are in %s and depths in %s, and headers have one unit for both: they "
            "say ft; convert one of the two",
            name,
            unit,
            deep,
        )
    farthest = max((float(np.abs(v.ravel()[traces]).max()) for v in positions), default=0.0)
    parts = next((n for n in _PARTS if positions and n * farthest < _LONGEST), 1)
    scalar = -parts if parts > 1 else 1
    alike = {
        "TraceIdentificationCode": 1,
        "SourceGroupScalar": scalar,
        "CoordinateUnits": 1,
        "DelayRecordingTime": at[0],
        # Unsigned fields, which segyio's table of fields takes for signed ones.
        "TRACE_SAMPLE_COUNT": np.uint16(at.size if at.size <= _COUNT else 0).view(np.int16),
        "TRACE_SAMPLE_INTERVAL": np.uint16(interval).view(np.int16),
    }
    fields = {
        "TRACE_SEQUENCE_LINE": places[-1] + 1,
        "TRACE_SEQUENCE_FILE": np.arange(1, traces.size + 1),
    }
    for d, index in zip(lateral, places, strict=True):
        fields[_FIELDS[d]] = (index + 1) if _is_place(volume, d) else axes[d][index]
    fields["CDP"] = next(fields[f] for f in reversed(_FIELDS.values()) if f in fields)
    for field, values in zip(("CDP_X", "CDP_Y"), positions, strict=False):
        fields[field] = np.rint(values.ravel()[traces] * parts)
    constant = np.zeros((1, TRACE_HEADER), dtype=np.uint8)
    for field, value in alike.items():
        put(constant, field, np.array([value]), ">", name)

    def headers(wanted: np.ndarray) -> np.ndarray:
        rows = np.repeat(constant, wanted.size, axis=0)
        for field, values in fields.items():
            put(rows, field, values[np.searchsorted(traces, wanted)], ">", name)
        return rows

    for start in range(0, traces.size, _LOOK):  # whether headers hold all, before anything is done
        headers(traces[start : start + _LOOK])
    return Template(
        name=name,
        order=">",
        format=_IEEE,
        file_header=_file_header(volume, lateral, dim, at, interval, unit, scalar),
        vertical=at,
        dim=dim,
        count=traces.size,
        traces=traces,
        numbers={d: axes[d][i] for d, i in zip(lateral, places, strict=True)},
        axes=axes,
        headers=headers,
        raw=None,
    )


def _samples(volume: xr.DataArray, dim: str, name: str) -> tuple[np.ndarray, int]:
    """Times or depths of the samples, and their interval in µs or mm."""
    if dim not in volume.coords:
        raise SurveyError(f"{name}: {dim} has no coordinate; give it times in ms, or depths in m")
    at = volume[dim].to_numpy().astype(np.float64)
    step = (at[-1] - at[0]) / (at.size - 1) if at.size > 1 else 1.0
    interval = round(1000 * step) if np.isfinite(step) else 0
    later = interval / 1000 * np.arange(at.size)
    unit = "ms" if dim == "twt" else "m"
    if not 0 < interval <= 0xFFFF or not np.allclose(at - at[0], later, rtol=0, atol=1e-3 * step):
        raise SurveyError(
            f"{name}: {dim} {spoken(at[0])}…{spoken(at[-1])}: headers hold one interval, of at "
            f"most 65.535 {unit} and of whole thousandths; resample it"
        )
    start = round(float(at[0]))
    if abs(at[0] - start) > 1e-6 or abs(start) > 0x7FFF:
        raise SurveyError(
            f"{name}: {dim} starts at {spoken(at[0])}, and headers hold whole {unit} up to 32767; "
            "start at another sample, or resample it"
        )
    if at.size > 1 and step < TINY:
        log.warning(
            "%s: %s has a sample every %g %s, and is written so; if it is not in %s, convert it",
            name,
            dim,
            step,
            unit,
            unit,
        )
    return start + later, interval


def _axis(volume: xr.DataArray, dim: str) -> np.ndarray:
    if dim in volume.coords:
        return volume[dim].to_numpy()
    return np.arange(volume.sizes[dim])


def _is_place(volume: xr.DataArray, dim: str) -> bool:
    """Whether an axis holds positions, or nothing, rather than the numbers of lines."""
    known = dim in volume.coords
    return dim != "offset" and (not known or volume[dim].attrs.get("units") in _LENGTHS)


def _over(values: xr.DataArray, volume: xr.DataArray, lateral: list[str]) -> xr.DataArray:
    """A coordinate, over all lateral dimensions."""
    like = volume.isel({d: 0 for d in volume.dims if d not in lateral}, drop=True)
    return values.broadcast_like(like).transpose(*lateral)


def _positions(volume: xr.DataArray, lateral: list[str], name: str) -> tuple[list[np.ndarray], str]:
    """X and y of each trace, if they are known as lengths, and their unit."""
    along = [d for d in lateral if d in volume.coords and _is_place(volume, d)]
    if {"cdp_x", "cdp_y"} <= set(volume.coords):
        along = ["cdp_x", "cdp_y"]
    units = [volume[d].attrs.get("units", "m") for d in along] or ["m"]
    if units[0] not in _LENGTHS:
        log.warning("%s: %s is in %s, no length, and left out", name, along[0], units[0])
        return [], "m"
    return [loaded(_over(volume[d], volume, lateral)) for d in along], units[0]


def _file_header(
    volume: xr.DataArray,
    lateral: list[str],
    dim: str,
    at: np.ndarray,
    interval: int,
    unit: str,
    scalar: int,
) -> bytes:
    words = {1: f"{volume.name or 'VOLUME'}, WRITTEN BY OUTCROP {__version__}".upper()}
    for n, d in enumerate(lateral, 3):
        axis = _axis(volume, d)
        words[n] = f"{d.upper():9s} {spoken(axis[0])} TO {spoken(axis[-1])}, {axis.size} OF THEM"
    vertical = "ms" if dim == "twt" else volume[dim].attrs.get("units", "m")
    words[6] = f"{dim.upper():9s} {at[0]:g} TO {at[-1]:g} BY {interval / 1000:g} {vertical}".upper()
    words |= {
        8: "INLINE NUMBER BYTES 189-192, CROSSLINE NUMBER 193-196",
        9: f"CDP X, Y BYTES 181-184, 185-188, SCALAR {scalar} IN BYTES 71-72",
        39: "SEG Y REV1" if at.size <= _COUNT else "SEG-Y_REV2.0",
        40: "END TEXTUAL HEADER",
    }
    text = create_text_header({n: line[:76] for n, line in words.items()})
    binary = bytearray(400)
    for byte, value in (
        (3217, interval),
        (3221, at.size if at.size <= _COUNT else 0),
        (3225, _IEEE),
        (3255, max(_LENGTHS[unit], _LENGTHS.get(vertical, 1))),
        (3501, 0x0100),
        (3503, 1),
    ):
        struct.pack_into(">H", binary, byte - 3201, value)
    if at.size > _COUNT:
        struct.pack_into(">H", binary, 3501 - 3201, 0x0200)
        struct.pack_into(">I", binary, 3269 - 3201, at.size)
    return text.encode("cp500", "replace") + bytes(binary)
