"""Positions of the voxels that a prediction picks."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import xarray as xr

from .errors import ArgumentError
from .storage import naming_refusal, on_disk, put_whole


def check_picks(path: str | os.PathLike[str], shape: Sequence[int]) -> None:
    """Raise what `write_picks` would, before there is anything to write."""
    where = on_disk(path)
    if where.suffix != ".npz":
        raise ArgumentError(f"{path}: picks are written as .npz; choose such a name")
    if not where.absolute().parent.is_dir():
        raise ArgumentError(f"{path}: no such folder; make it first")
    if max(shape) > 2**16:
        raise ArgumentError(f"picks: extents {tuple(shape)} do not fit into uint16")


def write_picks(
    probability: xr.DataArray,
    path: str | os.PathLike[str],
    *,
    threshold: float = 0.5,
    minimum: int = 0,
) -> int:
    """Write the indices of all voxels at or above a threshold, where there is a trace.

    The volume is read inline block by inline block.

    Parameters
    ----------
    probability : xarray.DataArray
        Over inline, crossline and twt or depth.
    path : path-like
        ``.npz`` with `positions`, uint16, (voxels, 3): index along each dimension, in the order
        that `dims` names.
    threshold : float
        Smallest value that counts.
    minimum : int
        With fewer voxels than this, none is written.

    Returns
    -------
    int
        Number of voxels written.

    Raises
    ------
    ArgumentError
        If an extent does not fit into uint16, the path does not end in ``.npz``, or its folder is
        not there.
    """
    check_picks(path, probability.shape)
    first = probability.dims[0]
    step = max(1, (64 << 20) // max(probability[0].size * 4, 1))
    found = []
    for start in range(0, probability.sizes[first], step):
        part = probability.isel({first: slice(start, start + step)})
        if "live" in part.coords:
            part = part.where(part["live"])
        positions = np.argwhere(part.to_numpy() >= threshold)
        positions[:, 0] += start
        found.append(positions.astype(np.uint16))
    positions = np.concatenate(found)
    if len(positions) < minimum:
        positions = positions[:0]
    path = on_disk(path)
    dims = np.array([str(d) for d in probability.dims])
    with (
        naming_refusal(path, "write them elsewhere, by outcrop.picks.write_picks"),
        put_whole(path) as aside,
        open(aside, "wb") as file,
    ):
        np.savez_compressed(file, positions=positions, dims=dims)
    return len(positions)
