"""Of what kind each argument is: a table, looked at before anything is read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import xarray as xr

from ..errors import ArgumentError

# A test, and what to pass if it fails.
Kind = tuple[Callable[[Any], bool], str]


def is_number(value: Any) -> bool:
    """Whether it is a finite number, of whatever library."""
    if isinstance(value, (str, bytes, bool)):
        return False
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def numbers_of(given: Any, name: str) -> np.ndarray:
    """Return what was given as an array of real numbers, or raise `ArgumentError`."""
    try:
        found = np.asarray(given)
        if found.dtype.kind not in "iuf":
            raise ValueError(f"of type {found.dtype}")
        return found
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name}: no array of numbers: {error}") from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))


def _is_pair(value: Any) -> bool:
    return _is_list(value) and len(value) == 2 and all(map(is_number, value))


def _whole_from(least: int) -> Kind:
    return lambda v: _is_whole(v) and v >= least, f"a whole number, {least} or more"


def _each(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A value, or a mapping of such to parameters."""
    return lambda v: all(map(test, v.values())) if isinstance(v, Mapping) else test(v)


_NUMBER: Kind = is_number, "a number"
_NOT_NEGATIVE: Kind = lambda v: is_number(v) and v >= 0, "a number, 0 or more"
_POSITIVE: Kind = lambda v: is_number(v) and v > 0, "a number above 0"
_PATH: Kind = lambda v: isinstance(v, (str, os.PathLike)), "a path"
_COUNTS: Kind = (
    lambda v: _is_list(v) and all(_is_whole(n) and n >= 1 for n in v),
    "how many along each lateral axis, 1 or more",
)
_SWITCH: Kind = lambda v: isinstance(v, (bool, np.bool_)), "true or false"

_OPTIONAL = {
    "optimiser_options", "step", "bounds", "subset", "encoding", "storage_path",
    "checkpoint_segments", "batch_size", "wavelet", "mask", "interval", "shots",
    "velocity: dims", "surface_grid: depth", "streamer: source_depth", "streamer: receiver_depth",
}  # fmt: skip
_KINDS: dict[str, Kind] = {
    "parameters": (
        lambda v: isinstance(v, str) or (_is_list(v) and all(isinstance(p, str) for p in v)),
        "a name, or a list of names",
    ),
    "iterations": _whole_from(1),
    "optimiser_options": (lambda v: isinstance(v, Mapping), "names and their values"),
    "step": (_each(is_number), "a number, or one for each parameter"),
    "bands": (
        lambda v: _is_list(v) and all(b is None or is_number(b) for b in v),
        "a list of corners in Hz, None (null) for no filter",
    ),
    "bounds": (_each(_is_pair), "the lower and the upper one, or both for each parameter"),
    "smoothing": _NOT_NEGATIVE,
    "subset": _whole_from(1),
    "encoding": _whole_from(1),
    "seed": _whole_from(0),
    "pml_width": _whole_from(0),
    "free_surface": _SWITCH,
    "substeps": _SWITCH,
    "storage_path": _PATH,
    "storage_compression": _SWITCH,
    "checkpoint_segments": _whole_from(1),
    "batch_size": _whole_from(1),
    "wavelet": (lambda v: isinstance(v, xr.DataArray), "a DataArray, such as ricker gives"),
    "mask": (lambda v: isinstance(v, xr.DataArray), "a DataArray, such as mask gives"),
    "shots": (lambda v: isinstance(v, xr.Dataset), "a Dataset, such as open_shots gives"),
    "acquisition": (lambda v: isinstance(v, xr.Dataset), "a Dataset, such as positions gives"),
    "velocity": (
        lambda v: isinstance(v, (str, os.PathLike, xr.DataArray, xr.Dataset)),
        "a path, or a Dataset such as outcrop.inversion.velocity gives",
    ),
    "observed": (
        lambda v: isinstance(v, (str, os.PathLike, xr.Dataset)),
        "a path, or a Dataset such as open_shots gives",
    ),
    "velocity: dims": (
        lambda v: _is_list(v) and all(d in ("depth", "crossline", "inline") for d in v),
        "a list of depth, crossline, inline, or two of them",
    ),
    "history_size": _whole_from(1),
    "max_eval": _whole_from(2),  # by 1 there is no line search, and no step
    "tolerance_change": _NOT_NEGATIVE,
    "dampening": _NUMBER,
    "nesterov": _SWITCH,
    "amsgrad": _SWITCH,
    "laplacian": _SWITCH,
    "origin": (_is_pair, "two numbers, x and y in m"),
    "azimuth": _NUMBER,
    "interval": _POSITIVE,
    "device": (lambda v: re.fullmatch(r"cpu|cuda(:\d+)?", str(v)) is not None, "cpu or cuda"),
    # Of acquisitions.
    "surface_grid: sources": _COUNTS,
    "surface_grid: receivers": _COUNTS,
    "surface_grid: depth": _NUMBER,
    "surface_grid: inset": _whole_from(0),
    "streamer: first": (
        lambda v: _is_list(v) and all(map(is_number, v)),
        "a number for each lateral axis, m",
    ),
    "streamer: shots": _whole_from(1),
    "streamer: shot_spacing": _NUMBER,
    "streamer: receivers": _whole_from(1),
    "streamer: receiver_spacing": _NUMBER,
    "streamer: offset": _NUMBER,
    "streamer: cables": _whole_from(1),
    "streamer: cable_spacing": _NUMBER,
    "streamer: source_depth": _NUMBER,
    "streamer: receiver_depth": _NUMBER,
    "ricker: frequency": (lambda v: isinstance(v, Real), "a number, Hz"),
    "ricker: time_step": (lambda v: isinstance(v, Real), "a number, s"),
    "ricker: samples": _whole_from(1),
    "wavelet: time_step": _POSITIVE,
    # What a run file alone holds.
    "output": _PATH,
    "true": _PATH,
    "pictures": _PATH,
    "wavelet: ricker": _POSITIVE,
    "wavelet: file": _PATH,
    "mask: water_bottom": _NUMBER,
    "mask: radius": _NOT_NEGATIVE,
}


def check_kinds(given: Mapping[str, Any], where: str = "") -> None:
    """Raise `ArgumentError` if an argument is of another kind than it must be.

    Parameters
    ----------
    given : mapping
        Values by name; names that the table does not hold are not looked at.
    where : str
        What comes before the name in the message.
    """
    for name, value in given.items():
        if name not in _KINDS or (value is None and name in _OPTIONAL):
            continue
        test, wanted = _KINDS[name]
        if not test(value):
            raise ArgumentError(f"{where}{name}={_shown(value)}: pass {wanted}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"<{type(value).__name__}>"
