"""Velocity and what goes with it, as labelled arrays on a regular grid in metres."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..arrays import naming_damage, open_dataset, spoken
from ..errors import ArgumentError, SurveyError
from ..targets import is_complete
from .kinds import check_kinds, numbers_of

# Axes of a model, the slowest first. Positions are in metres along the same axes.
DIMS = ("depth", "crossline", "inline")
# What a model may hold: units, their names, and the least that a value may be.
PARAMETERS = {
    "vp": ("m/s", "P-wave velocity", 1.0),
    "vs": ("m/s", "S-wave velocity", 0.0),
    "density": ("kg/m3", "density", 1.0),
}
_UNITS = {
    "m/s": {"m/s", "m s-1", "m s**-1", "m.s-1"},
    "kg/m3": {"kg/m3", "kg m-3", "kg/m^3", "kg m**-3"},
}
_METRES = {"m", "metre", "metres", "meter", "meters"}

Model = xr.DataArray | xr.Dataset | str | os.PathLike[str]


def velocity(
    vp: np.ndarray,
    spacing: float | Sequence[float],
    *,
    origin: float | Sequence[float] = 0.0,
    dims: Sequence[str] | None = None,
    **others: np.ndarray,
) -> xr.Dataset:
    """Label a model.

    Parameters
    ----------
    vp : ndarray, (depth, crossline, inline) or (depth, inline)
        P-wave velocity, m/s.
    spacing, origin : float or sequence of float
        From one sample to the next, and position of the first, m; along each axis.
    dims : sequence of str, optional
        Names of the axes, if they are others.
    **others : ndarray
        `vs` (m/s), `density` (kg/m3), of the same shape.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    ArgumentError
        If shapes do not fit each other, a parameter is unknown, or something is no number.
    """
    check_kinds({"velocity: dims": dims})
    vp = numbers_of(vp, "vp")
    names = tuple(dims) if dims is not None else (DIMS if vp.ndim == 3 else ("depth", "inline"))
    if vp.ndim != len(names) or len(set(names)) < len(names):
        raise ArgumentError(f"vp: has shape {vp.shape}; pass values over {', '.join(names)}")
    for name, given in (("spacing", spacing), ("origin", origin)):
        values = numbers_of(given, name)
        if values.shape not in ((), (vp.ndim,)) or not np.isfinite(values).all():
            raise ArgumentError(f"{name}={given!r}: pass one number, or one for each axis")
        if name == "spacing" and values.min() <= 0:
            raise ArgumentError(f"spacing={given!r}: pass metres above 0")
    steps, starts = (np.broadcast_to(a, (vp.ndim,)) for a in (spacing, origin))
    coords = {
        dim: (dim, float(start) + float(step) * np.arange(n), _axis(dim))
        for dim, n, step, start in zip(names, vp.shape, steps, starts, strict=True)
    }
    variables = {}
    for name, values in {"vp": vp, **others}.items():
        if name not in PARAMETERS:
            raise ArgumentError(f"{name}: no such parameter; there are {', '.join(PARAMETERS)}")
        values = numbers_of(values, name)
        if values.shape != vp.shape:
            raise ArgumentError(f"{name}: has shape {values.shape}, vp has {vp.shape}")
        units, long_name, _ = PARAMETERS[name]
        variables[name] = (names, values, {"units": units, "long_name": long_name})
    return xr.Dataset(variables, coords)


def _axis(dim: str) -> dict[str, str]:
    if dim == "depth":
        return {"units": "m", "long_name": "depth", "positive": "down", "standard_name": "depth"}
    return {"units": "m", "long_name": f"distance along the {dim} axis"}


@dataclass(frozen=True)
class Grid:
    """The lattice of a model.

    Attributes
    ----------
    dims : tuple of str
        depth first.
    shape : tuple of int
    spacing, origin : tuple of float
        In metres.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]

    def cells(self, positions: np.ndarray) -> np.ndarray:
        """Positions (..., axis) in metres as fractional indices; on a sample exactly a whole."""
        found = (positions - np.array(self.origin)) / np.array(self.spacing)
        whole = np.rint(found)
        return np.where(np.abs(found - whole) < 1e-4, whole, found)


def open_model(model: Model, name: str = "velocity") -> xr.Dataset:
    """Return a model as a Dataset in memory, depth the first axis, checked.

    Parameters
    ----------
    model : xarray.DataArray, xarray.Dataset or path
        `vp` in m/s over depth, crossline and inline in m, or depth and one of them; perhaps `vs`
        and `density`.
    name : str
        In messages.

    Raises
    ------
    SurveyError
        If something is missing, damaged, in other units, not evenly spaced, or not finite.
    """
    if isinstance(model, (str, os.PathLike)):
        path, name = Path(model), str(model)
        if not is_complete(path):
            raise SurveyError(f"{path}: is no Zarr group; write one with .to_zarr({str(path)!r})")
        found = open_dataset(path)
    else:
        found = model.rename("vp").to_dataset() if isinstance(model, xr.DataArray) else model
    return _checked(found, name)


def _checked(model: xr.Dataset, name: str) -> xr.Dataset:
    if "vp" not in model:
        raise SurveyError(f"{name}: has no vp, the P-wave velocity in m/s")
    dims = tuple(d for d in DIMS if d in model["vp"].dims)
    if "depth" not in dims or len(dims) < 2 or set(dims) != set(model["vp"].dims):
        raise SurveyError(
            f"{name}: vp has dimensions {tuple(map(str, model['vp'].dims))} instead of depth, "
            "crossline and inline, or depth and one of them"
        )
    kept = {}
    for parameter, (units, long_name, least) in PARAMETERS.items():
        if parameter not in model:
            continue
        values = model[parameter]
        if set(values.dims) != set(dims):
            raise SurveyError(f"{name}: {parameter} has dimensions {values.dims}, vp has {dims}")
        has = values.attrs.get("units", units)
        if has not in _UNITS[units]:
            raise SurveyError(f"{name}: {parameter} is in {has}; convert it to {units}")
        with naming_damage(name, f"{parameter} cannot be read"):
            array = values.transpose(*dims).to_numpy()
        if array.dtype.kind not in "iuf":
            raise SurveyError(f"{name}: {parameter} is {array.dtype}; make it real numbers")
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        bad = ~np.isfinite(array)
        if bad.any():
            where = _place(model, dims, np.argwhere(bad)[0])
            raise SurveyError(f"{name}: {parameter} is NaN or infinite at {where}; fill it")
        if array.min() < least:
            where = _place(model, dims, np.unravel_index(array.argmin(), array.shape))
            raise SurveyError(
                f"{name}: {parameter} is {array.min():g} {units} at {where}; it must be positive"
            )
        kept[parameter] = (dims, array, {"units": units, "long_name": long_name})
    if kept["vp"][1].max() < 50:
        raise SurveyError(
            f"{name}: vp is at most {kept['vp'][1].max():g}; it looks like km/s: multiply by 1000"
        )
    return xr.Dataset(kept, {d: model[d] for d in dims if d in model.coords})


def grid_of(model: xr.Dataset, name: str = "velocity") -> Grid:
    """Spacing and origin of a model, from its coordinates.

    Raises
    ------
    SurveyError
        If an axis has no coordinates in m, or is not evenly spaced and ascending.
    """
    dims = tuple(map(str, model["vp"].dims))
    spacing, origin = [], []
    for dim in dims:
        if dim not in model.coords:
            raise SurveyError(f"{name}: {dim} has no coordinates; give it some, in m")
        if model[dim].attrs.get("long_name") == f"{dim} number":  # of a survey
            raise SurveyError(
                f"{name}: {dim} holds the numbers of lines; give it positions in m, as "
                "outcrop.inversion.velocity does"
            )
        units = model[dim].attrs.get("units", "m")
        if units not in _METRES:
            raise SurveyError(f"{name}: {dim} is in {units}; convert it to m")
        at = model[dim].to_numpy().astype(np.float64)
        if at.size < 2:
            raise SurveyError(
                f"{name}: {dim} has a single sample; give it more, or, for a model in 2-D, take it "
                f"out, such as by .isel({dim}=0)"
            )
        steps = np.diff(at)
        if steps[0] <= 0 or not np.allclose(steps, steps[0], rtol=1e-3):
            raise SurveyError(f"{name}: {dim} is not evenly spaced and ascending; resample it")
        spacing.append(float(f"{(at[-1] - at[0]) / (at.size - 1):.9g}"))
        origin.append(float(at[0]))
    return Grid(dims, tuple(model["vp"].shape), tuple(spacing), tuple(origin))


def _place(model: xr.Dataset, dims: tuple[str, ...], index: Any) -> str:
    at = [
        f"{d} {spoken(model[d].values[i])} m" if d in model.coords else f"{d} {i}"
        for d, i in zip(dims, index, strict=True)
    ]
    return ", ".join(at)
