"""What `invert` is asked for, checked against the model and the shots."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from ..errors import ArgumentError
from .experiment import Experiment

Bounds = tuple[float, float] | Mapping[str, tuple[float, float]]


def bounds_of(
    model: xr.Dataset, parameters: Sequence[str], given: Bounds | None
) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest value that each parameter may take."""
    named = dict(given) if isinstance(given, Mapping) else {} if given is None else {"vp": given}
    limits = {}
    for name in parameters:
        if name not in model:
            continue
        low, high = float(model[name].min()), float(model[name].max())
        limits[name] = tuple(map(float, named.pop(name, (0.7 * low, 1.3 * high))))
        if not 0 <= limits[name][0] < limits[name][1]:
            raise ArgumentError(f"bounds {limits[name]} of {name}: pass the lower one first")
        if low < limits[name][0] or high > limits[name][1]:
            raise ArgumentError(
                f"bounds {limits[name]} of {name}: the model starts with {low:g} to {high:g}; "
                "widen them"
            )
    if named:
        raise ArgumentError(f"bounds: {next(iter(named))} is none of the parameters to change")
    return limits  # type: ignore[return-value]


def steps_of(
    model: xr.Dataset,
    parameters: Sequence[str],
    given: float | Mapping[str, float] | None,
    share: float,
) -> dict[str, float]:
    """Return by how much each parameter may change in the first step."""
    named = dict(given) if isinstance(given, Mapping) else {} if given is None else {"vp": given}
    steps = {p: float(named.pop(p, share * float(model[p].max()))) for p in parameters}
    if named or min(steps.values()) <= 0:
        raise ArgumentError(f"step={given!r}: pass a positive number for vp, or for each parameter")
    return steps


def check_parameters(experiment: Experiment, parameters: Sequence[str]) -> None:
    """Raise `ArgumentError` unless the equation has all of the parameters."""
    known = experiment.physics.parameters
    if (
        not parameters
        or not set(parameters) <= set(known)
        or len(set(parameters)) < len(parameters)
    ):
        raise ArgumentError(
            f"parameters {tuple(parameters)}: the {experiment.physics.equation} equation has "
            f"{', '.join(known)}; choose some of them"
        )


def mask_weights(mask: xr.DataArray | None, experiment: Experiment) -> np.ndarray | None:
    """Return how much of the gradient each cell keeps, 0 to 1; None for all of it.

    With compressed wavefields that is nothing in a block with a source in it: there the Laplacian
    of the wavefield and the source cancel but for a little, which 8 bits do not hold.
    """
    values = None if mask is None else _checked(mask, experiment)
    if not experiment.physics.storage_compression:
        return values
    before = np.ones(experiment.grid.shape) if values is None else values
    values, cells = before.copy(), experiment.physics.garbled
    sources = experiment.gathers.sources(np.arange(experiment.gathers.count))
    for middle in experiment.grid.cells(sources):
        starts = np.maximum(np.floor(middle - cells) + 1, 0).astype(int)
        values[tuple(map(slice, starts, np.ceil(middle + cells).astype(int)))] = 0.0
    where = f"closer than {cells} cells to sources, where the gradient is worth nothing then"
    if not values.any():
        raise ArgumentError(
            f"storage_compression: nothing of the model could change, as it may not {where}; keep "
            'wavefields as they are, with storage_mode="disk" or checkpoint_segments'
        )
    if (values < before).any():
        warnings.warn(f"storage_compression: the model stays as it is {where}", stacklevel=3)
    return values


def _checked(mask: xr.DataArray, experiment: Experiment) -> np.ndarray:
    grid = experiment.grid
    if set(mask.dims) != set(grid.dims):
        raise ArgumentError(f"mask: has dimensions {mask.dims}, the model {grid.dims}")
    values = mask.transpose(*grid.dims).to_numpy().astype(np.float64)
    if values.shape != grid.shape:
        raise ArgumentError(f"mask: has shape {values.shape}, the model {grid.shape}")
    for dim, spacing in zip(grid.dims, grid.spacing, strict=True):
        if dim not in mask.coords:
            continue
        own, its = mask[dim].to_numpy(), experiment.model[dim].to_numpy()
        if not np.allclose(own, its, rtol=0, atol=0.01 * spacing):
            raise ArgumentError(
                f"mask: {dim} goes from {own[0]:g} to {own[-1]:g} m, in the model from {its[0]:g} "
                f"to {its[-1]:g} m; make the mask for that model"
            )
    if not (np.isfinite(values).all() and values.min() >= 0 and 0 < values.max() <= 1):
        raise ArgumentError("mask: pass values from 0 to 1, some of them above 0")
    return values
