"""How far, and which way, it is from one line of a survey to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ASTRAY = 0.1  # of a bin: what coordinates may lie beside a regular grid, in the root mean square


@dataclass(frozen=True)
class Bin:
    """From one line to the next, in the order of the volume.

    Attributes
    ----------
    distance : float
    azimuth : float
        Degrees, clockwise from the coordinates' north (y).
    units : str
        Of the distance: those of the coordinates.
    """

    distance: float
    azimuth: float
    units: str


def fitted_bins(
    places: Mapping[str, NDArray[np.integer]],
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    units: str,
) -> dict[str, Bin]:
    """Fit a regular grid to the coordinates of traces.

    Parameters
    ----------
    places : mapping of str to array
        Of each trace along "inline" and "crossline", counted in lines.
    x, y : array
        Of each trace.
    units : str
        Of these.

    Returns
    -------
    dict of str to Bin
        By dimension, without those of one line; empty where the coordinates are of no regular
        grid, or the traces do not tell.
    """
    known = np.isfinite(x) & np.isfinite(y)
    columns = {d: at[known] - at[known].mean() for d, at in places.items() if known.any()}
    columns = {d: at for d, at in columns.items() if at.any()}
    if not columns:
        return {}
    lines = np.stack(list(columns.values()), axis=1)
    found = np.stack([x[known] - x[known].mean(), y[known] - y[known].mean()], axis=1)
    steps, _, rank, _ = np.linalg.lstsq(lines, found)
    distances = np.hypot(*steps.T)
    astray = np.sqrt(((lines @ steps - found) ** 2).sum(axis=1).mean())
    if rank < len(columns) or not astray <= _ASTRAY * distances.min():
        return {}
    azimuths = np.degrees(np.arctan2(*steps.T)).round(9) % 360  # 0, not a hair less than 360
    return {
        d: Bin(float(far), float(azimuth), units)
        for d, far, azimuth in zip(columns, distances, azimuths, strict=True)
    }
