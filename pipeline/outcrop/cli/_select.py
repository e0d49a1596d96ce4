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
        "volume, such as offset=500: the nearest. Again for another dimension."
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
            what = getattr(data, "name", None)
            has = (
                f"{what} has {', '.join(map(str, data.dims))}"
                if what
                else (f"has {', '.join(map(str, data.dims))}")
            )
            raise ArgumentError(f"--select {pair}: {path}: {has}")
        values = data[dim].values
        first, colon, last = text.partition(":")
        try:
            if not colon:
                at = [_nearest(values, text)]
            else:
                low = float(first) if first else -np.inf
                high = float(last) if last else np.inf
                at = np.flatnonzero((values >= low) & (values <= high)).tolist()
        except (ValueError, TypeError):
            give = (
                f"one of {', '.join(map(str, values[:5]))}"
                if values.dtype.kind in "OUT"
                else (f"a number, such as {dim}=500, or a part, such as {dim}=100:500")
            )
            raise ArgumentError(f"--select {pair}: give {give}") from None
        if not at:
            has = f"{spoken(values[0])} to {spoken(values[-1])}"
            raise ArgumentError(f"--select {pair}: {path}: has {dim} {has}, nothing of it there")
        # As a slice: what is stored is then read by chunks.
        part = slice(at[0], at[-1] + 1)
        data = data.isel({dim: part if colon or dim in _AXES else at[0]})
    return data


def stacked(volume: xr.DataArray) -> list[str]:
    """Names of dimensions beside those of a section."""
    return [str(dim) for dim in volume.dims if dim not in _AXES]


def _nearest(values: np.ndarray, text: str) -> int:
    if values.dtype.kind in "OUT":
        return [str(value) for value in values].index(text)
    return int(np.abs(values - float(text)).argmin())
