"""What an update of the model may look like: smooth, kept out of some places, within bounds.

The optimiser moves x, and the model is v = clamp(b + u·D·G·x): b where the iteration starts, u a
unit, D the square root of the mask, G a Gaussian smoothing. Its gradient with respect to x is
u·Gᵀ·D·g, that of the very function which the optimiser sees, so that line searches are sound; a
step along it changes the model by D·G·Gᵀ·D·g, the gradient smoothed and masked.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..errors import ArgumentError, SurveyError
from .acquisition import check_acquisition, order
from .gathers import Gathers
from .kinds import check_kinds
from .model import Grid, Model, grid_of, open_model


def mask(
    velocity: Model,
    shots: xr.Dataset | None = None,
    *,
    water_bottom: float | xr.DataArray | None = None,
    radius: float = 0.0,
) -> xr.DataArray:
    """Say where an inversion may change the model: 1 everywhere, but 0 in the water and at sources.

    Parameters
    ----------
    velocity : xarray.DataArray, xarray.Dataset or path
    shots : xarray.Dataset, optional
        With the source positions.
    water_bottom : float or xarray.DataArray, optional
        Depth in m down to which the model stays, the same everywhere or over the lateral axes.
    radius : float
        In metres: from 0 at a source the mask rises to 1 at this distance, as a squared sine does.

    Returns
    -------
    xarray.DataArray
        float32, over the model.

    Raises
    ------
    ArgumentError
        If `water_bottom` is not known over the whole model, or `radius` comes without `shots`.
    SurveyError
        If the shots do not say where the sources are, in m.
    """
    check_kinds({"mask: radius": radius, "shots": shots})
    model = open_model(velocity)
    grid = grid_of(model)
    allowed = xr.ones_like(model["vp"], dtype=np.float32)
    if water_bottom is not None:
        bottom = _over(allowed, grid, water_bottom)
        allowed = allowed.where(model["depth"] > bottom, 0.0).transpose(*grid.dims)
    if radius > 0:
        if shots is None:
            raise ArgumentError("mask: radius needs the shots, for the positions of the sources")
        check_acquisition(shots, grid.dims, "shots")
        gathers = Gathers(shots, grid.dims)
        sources = gathers.sources(np.arange(gathers.count))
        if np.isnan(sources).any():
            raise SurveyError("shots: a source has no position (NaN); leave its shot out")
        values = allowed.to_numpy().copy()
        for source in sources:
            _lower(values, grid, source, radius)
        allowed = allowed.copy(data=values)
    allowed.attrs = {"long_name": "where the model may change", "units": "1"}
    return allowed.rename("mask")


def _over(allowed: xr.DataArray, grid: Grid, bottom: float | xr.DataArray) -> float | xr.DataArray:
    """The water bottom at the places of the model."""
    if not isinstance(bottom, xr.DataArray):
        check_kinds({"mask: water_bottom": bottom})
        return bottom
    dims = grid.dims[1:]
    try:
        if not set(bottom.dims) <= set(dims):
            raise ValueError(f"it is over {order(bottom.dims)}")
        near = 0.01 * min(grid.spacing[1:])
        bottom = bottom.reindex_like(allowed[0], method="nearest", tolerance=near)
        if bottom.isnull().any():
            raise ValueError("it is NaN, or has no value, somewhere")
    except ValueError as error:
        told = str(error).partition("\n")[0]
        raise ArgumentError(
            f"mask: water_bottom: {told}; pass a depth in m everywhere along {' and '.join(dims)}"
        ) from None
    return bottom


def _lower(values: np.ndarray, grid: Grid, source: np.ndarray, radius: float) -> None:
    """Lower the mask around a source."""
    reach = [radius / s for s in grid.spacing]
    middle = grid.cells(source)
    box = tuple(
        slice(max(0, int(np.ceil(m - r))), max(0, min(n, int(m + r) + 1)))
        for m, r, n in zip(middle, reach, grid.shape, strict=True)
    )
    axes = np.ogrid[box]
    squared = sum(
        ((axis - m) * s) ** 2 for axis, m, s in zip(axes, middle, grid.spacing, strict=True)
    )
    taper = np.sin(0.5 * np.pi * np.minimum(np.sqrt(squared) / radius, 1.0)) ** 2
    values[box] = np.minimum(values[box], taper)


class Shape:
    """From what the optimiser moves to the model, and from the model's gradient back.

    Parameters
    ----------
    grid : Grid
    smoothing : float
        Standard deviation in m of the Gaussian that smooths the gradient; 0: none.
    allowed : ndarray, optional
        The mask, from 0 to 1.
    bounds : mapping of str to (float, float)
        Of each parameter.
    """

    def __init__(
        self,
        grid: Grid,
        smoothing: float,
        allowed: np.ndarray | None,
        bounds: Mapping[str, tuple[float, float]],
    ) -> None:
        self.bounds = bounds
        # Applied twice on the way, once there and once back.
        deviation = smoothing / np.sqrt(2)
        self.kernels = [
            _gaussian(n, deviation / s) if smoothing > 0 else None
            for n, s in zip(grid.shape, grid.spacing, strict=True)
        ]
        self.root = None if allowed is None else torch.as_tensor(np.sqrt(allowed.astype(float)))

    def update(self, x: Tensor) -> Tensor:
        """D·G·x."""
        return self._masked(self._smoothed(x))

    def back(self, gradient: Tensor) -> Tensor:
        """Gᵀ·D·g, of which G is its own transpose."""
        return self._smoothed(self._masked(gradient))

    def clamp(self, name: str, values: Tensor) -> Tensor:
        """Values within the bounds of a parameter."""
        return values.clamp(*self.bounds[name])

    def free(self, name: str, values: Tensor, gradient: Tensor) -> Tensor:
        """Where a step down the gradient changes the clamped values: not on a bound and out of it.

        Without that, L-BFGS would learn of steps that `clamp` takes back.
        """
        low, high = self.bounds[name]
        falls, rises = (values <= low) & (gradient > 0), (values >= high) & (gradient < 0)
        return (values >= low) & (values <= high) & ~falls & ~rises

    def _masked(self, values: Tensor) -> Tensor:
        return values if self.root is None else values * self.root

    def _smoothed(self, values: Tensor) -> Tensor:
        for axis, kernel in enumerate(self.kernels):
            if kernel is not None:
                values = torch.tensordot(kernel, values, dims=([1], [axis])).movedim(0, axis)
        return values


def _gaussian(count: int, deviation: float) -> Tensor:
    """Smoothing along one axis as a matrix, symmetric: what leaves at an end comes in again."""
    at = np.arange(count)[:, None]
    to = np.arange(count)[None]
    kernel = np.zeros((count, count))
    for turn in (-1, 0, 1):
        for distance in (at - to + 2 * turn * count, at + to + 1 + 2 * turn * count):
            kernel += np.exp(-0.5 * (distance / deviation) ** 2)
    return torch.as_tensor(kernel / kernel.sum(axis=1).max())
