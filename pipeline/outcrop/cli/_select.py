"""`--select`: a part of a survey, or one volume of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
import typer

from ..errors import ArgumentError

if TYPE_CHECKING:
    import xarray as xr

    Data = TypeVar("Data", xr.Dataset, xr.DataArray)

_AXES = ("inline", "crossline", "twt", "depth")
Select = Annotated[
    list[str] | None,
    typer.Option(
        help="Part to take, such as inline=100:300 or twt=:1500, ends included; of a stack which "
        "volume, such as offset=500 or vintage=2019-06-01: the nearest. Again for another "
        "dimension."
    ),
]


def selected(data: Data, select: Sequence[str] | None, path: str) -> Data:
    """Take what `--select` says; `path` is named in messages.

    Raises
    ------
    ArgumentError
        If there is no such dimension, or nothing of it lies there.
    """
    from ..arrays import spoken

    for pair in select or []:
        dim, _, text = pair.partition("=")
        if dim not in data.dims:
            name = getattr(data, "name", None)
            has = f"{f'{name} ' if name else ''}has {', '.join(map(str, data.dims))}"
            raise ArgumentError(f"--select {pair}: {path}: {has}")
        if dim not in data.coords:  # then volumes are known by their numbers
            data = data.assign_coords({dim: range(data.sizes[dim])})
        values = data[dim].values
        if not values.size:
            raise ArgumentError(f"--select {pair}: {path}: is empty: {dict(data.sizes)}")
        several = ":" in text and values.dtype.kind not in "OUTM"  # names and times have colons
        try:
            at = _between(values, text) if several else _nearest(values, text)
        except (ValueError, TypeError):
            raise ArgumentError(f"--select {pair}: give {_takes(dim, values)}") from None
        if not at:
            has = f"{spoken(values[0])} to {spoken(values[-1])}"
            raise ArgumentError(f"--select {pair}: {path}: has {dim} {has}, nothing of it there")
        if several or dim in _AXES:
            # As a slice, if it is one: what is stored is then read by chunks.
            one = at[-1] - at[0] == len(at) - 1
            data = data.isel({dim: slice(at[0], at[-1] + 1) if one else at})
        else:
            data = data.isel({dim: at[0]})
    return data


def stacked(volume: xr.DataArray) -> list[str]:
    """Names of dimensions beside those of a section."""
    return [str(dim) for dim in volume.dims if dim not in _AXES]


def _nearest(values: np.ndarray, text: str) -> list[int]:
    """Position of the nearest, or of a name; none beyond the first and the last."""
    wanted: float | np.datetime64
    if values.dtype.kind in "OUT":
        return [[str(value) for value in values].index(text)]
    if values.dtype.kind == "M":
        wanted = np.datetime64(text)
        values = values.astype(wanted.dtype)  # to the year, where that is what is asked for
    else:
        wanted = float(text)
    if not values.min() <= wanted <= values.max():
        return []
    return [int(np.abs(values - wanted).argmin())]


def _between(values: np.ndarray, text: str) -> list[int]:
    """Positions from one number to another, both included."""
    first, _, last = text.partition(":")
    low = float(first) if first else -np.inf
    high = float(last) if last else np.inf
    # 300 times 0.1 ms is more than 30 ms, by rounding.
    room = 1e-3 * np.abs(np.diff(values.astype(float))).min(initial=1.0)
    return np.flatnonzero((values >= low - room) & (values <= high + room)).tolist()


def _takes(dim: str, values: np.ndarray) -> str:
    """What can be asked for."""
    from ..arrays import spoken

    if values.dtype.kind in "OUT":
        return f"one of {', '.join(map(str, values[:5]))}{', …' * (len(values) > 5)}"
    if values.dtype.kind == "M":
        return f"a date, such as {dim}={spoken(values[0])}"
    return f"a number, such as {dim}=500, or a part, such as {dim}=100:500"
