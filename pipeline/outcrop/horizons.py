"""Horizons as surfaces of equal relative geological time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import numpy as np
import xarray as xr

from .errors import ArgumentError, SurveyError
from .storage import naming_refusal, on_disk, put_whole
from .survey.blocks import Block, blocks, in_threads, read

_POINTS = 1 << 18  # of a horizon in a part of the table that is held at a time


def horizons(rgt: xr.DataArray, levels: float | Sequence[float]) -> xr.Dataset:
    """Where each trace first reaches given relative geological times.

    Between samples the time is interpolated linearly. The volume is read by blocks of traces.

    Parameters
    ----------
    rgt : xarray.DataArray
        Over inline, crossline and twt (ms) or depth (m), larger downwards.
    levels : float or sequence of float
        Relative geological times, in the units of `rgt`.

    Returns
    -------
    xarray.Dataset
        `horizon_twt` or `horizon_depth` over (horizon, inline, crossline), float32, in the units
        of that coordinate; NaN where a trace is missing, or its numbers begin above the level or
        never reach it. The coordinate `horizon` holds the levels.

    Raises
    ------
    ArgumentError
        If the levels are no numbers, there is none, or `rgt` is no DataArray.
    SurveyError
        If the dimensions are others, or one is empty; if there is no horizon as the numbers fall
        downwards.
    """
    if not isinstance(rgt, xr.DataArray):
        raise ArgumentError(
            f"rgt: is a {type(rgt).__name__}; pass a DataArray, such as prediction.rgt"
        )
    try:
        wanted = np.atleast_1d(np.asarray(levels, np.float64))
    except (TypeError, ValueError):
        wanted = np.array([np.nan])
    if wanted.ndim > 1 or not wanted.size or not np.isfinite(wanted).all():
        raise ArgumentError(f"levels {levels!r}: give one or more relative geological times")
    vertical = "depth" if "depth" in rgt.dims else "twt"
    if set(rgt.dims) != {"inline", "crossline", vertical}:
        raise SurveyError(
            f"rgt: has dimensions {tuple(map(str, rgt.dims))} instead of inline, crossline and "
            "twt or depth"
        )
    if 0 in rgt.shape:
        raise SurveyError(f"rgt: is empty: {dict(rgt.sizes)}; see what was selected")
    if rgt[vertical][0] > rgt[vertical][-1]:
        rgt = rgt.isel({vertical: slice(None, None, -1)})
    at = rgt[vertical].to_numpy().astype(np.float64)
    volume = rgt.transpose("inline", "crossline", vertical)
    surfaces = np.empty((len(wanted), *volume.shape[:-1]), np.float32)

    def find(block: Block) -> int:
        values = read(volume, block)
        surfaces[:, *block[:-1]] = _crossings(values, at, wanted)
        first, last = values[..., 0], values[..., -1]
        return int((last > first).sum()) - int((last < first).sum())

    grows = sum(in_threads(find, blocks(volume, order=[1, 0], whole=[2])))
    if grows < 0 and np.isnan(surfaces).all():
        raise SurveyError(
            "rgt: falls downwards, so that no trace reaches a level from above; pass it with its "
            "sign changed, -rgt, and so the levels"
        )
    coords = {name: c for name, c in rgt.coords.items() if vertical not in c.dims}
    dims = ("horizon", "inline", "crossline")
    found = xr.DataArray(surfaces, {"horizon": wanted, **coords}, dims).compute()
    if "live" in rgt.coords:
        found = found.where(found["live"])
    found.attrs = {
        "long_name": f"{rgt[vertical].attrs.get('long_name', vertical)} of the horizon",
        "units": rgt[vertical].attrs.get("units", {"twt": "ms", "depth": "m"}[vertical]),
    }
    return found.to_dataset(name=f"horizon_{vertical}")


def _crossings(values: np.ndarray, at: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """First crossing of each level along the last axis; the levels come first."""
    found = np.empty((len(levels), *values.shape[:-1]), np.float32)
    for i, level in enumerate(levels):
        reached = values >= level
        first = reached.argmax(axis=-1)
        before = np.maximum(first - 1, 0)
        low, high = (
            np.take_along_axis(values, k[..., None], -1)[..., 0].astype(np.float64)
            for k in (before, first)
        )
        there = (low < level) & (high >= level) | (high == level)
        share = np.divide(level - low, high - low, out=np.ones_like(low), where=high > low)
        found[i] = np.where(there, at[before] + share * (at[first] - at[before]), np.nan)
    return found


def checked(surfaces: xr.Dataset) -> tuple[str, xr.Dataset]:
    """Return the variable of horizons, and these over all dimensions though one was selected.

    Raises
    ------
    ArgumentError
        If they are none.
    """
    held = surfaces.data_vars if isinstance(surfaces, xr.Dataset) else ()
    name = next((n for n in ("horizon_twt", "horizon_depth") if n in held), None)
    if name is None or "horizon" not in surfaces.coords:
        raise ArgumentError("horizons: are none; pass what outcrop.horizons.horizons finds")
    for dim in ("horizon", "inline", "crossline"):
        if dim not in {*surfaces.dims, *surfaces.coords}:
            raise ArgumentError(f"horizons: have lost their {dim}; select it without drop=True")
        if dim not in surfaces.dims:
            surfaces = surfaces.expand_dims(dim)
    if not surfaces.sizes["horizon"]:
        raise ArgumentError("horizons: select at least one of them")
    return name, surfaces


def write_table(surfaces: xr.Dataset, path: str | os.PathLike[str]) -> int:
    """Write horizons as a table that interpretation systems import: one line a point.

    Parameters
    ----------
    surfaces : xarray.Dataset
        From `horizons`; one of them (`surfaces.isel(horizon=0)`), too.
    path : path-like
        CSV with the columns horizon, inline, crossline, cdp_x and cdp_y (where there are any), and
        the horizon's time or depth to the third decimal; with their units, where they are known, as
        in ``horizon_twt (ms)``.

    Returns
    -------
    int
        Number of points.

    Raises
    ------
    ArgumentError
        If `surfaces` are no horizons.
    """
    name, surfaces = checked(surfaces)
    positions = [c for c in ("cdp_x", "cdp_y") if c in surfaces.coords]
    columns = ["horizon", "inline", "crossline", *positions, name]
    units = [surfaces[each].attrs.get("units", "1") for each in columns]
    heads = [c if u == "1" else f"{c} ({u})" for c, u in zip(columns, units, strict=True)]
    path = on_disk(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    step = max(1, _POINTS // surfaces.sizes["crossline"])
    count = 0
    with (
        naming_refusal(path, "write the table elsewhere"),
        put_whole(path) as aside,
        open(aside, "w", encoding="utf-8", newline="") as file,
    ):
        starts = range(0, surfaces.sizes["inline"], step)
        for horizon, start in itertools.product(range(surfaces.sizes["horizon"]), starts):
            part = surfaces[[name]].isel(horizon=[horizon], inline=slice(start, start + step))
            part = part.astype(np.float64).round(3)  # without the noise of float32
            table = part.reset_coords(positions).to_dataframe().dropna(subset=[str(name)])
            table = table.reset_index()[columns]
            header = False if horizon or start else heads
            table.to_csv(file, header=header, index=False, float_format="%.10g")  # to the cm
            count += len(table)
    return count
