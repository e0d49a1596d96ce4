"""Positions of the voxels that a prediction picks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from .errors import ArgumentError
from .storage import check_takes_files, naming_refusal, on_disk, put_whole
from .survey.blocks import Block, blocks, in_threads, read


def check_picks(path: str | os.PathLike[str], shape: Sequence[int]) -> None:
    """Raise what `write_picks` would, before there is anything to write."""
    where = on_disk(path)
    if where.suffix != ".npz":
        raise ArgumentError(f"{path}: picks are written as .npz; choose such a name")
    if not where.absolute().parent.is_dir():
        raise ArgumentError(f"{path}: no such folder; make it first")
    check_takes_files(path, where.absolute().parent)
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

    The volume is read by blocks.

    Parameters
    ----------
    probability : xarray.DataArray
        Over inline, crossline and twt or depth.
    path : path-like
        ``.npz`` with `positions`, uint16, (voxels, 3): index along each dimension, in the order
        that `dims` names; and the coordinates of each, such as `inline`, which the indices count.
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
        If an extent does not fit into uint16, the path does not end in ``.npz``, its folder is
        not there or takes no files, or `probability` is no DataArray.
    """
    if not isinstance(probability, xr.DataArray):
        raise ArgumentError(
            f"probability: is a {type(probability).__name__}; pass a DataArray, such as "
            "prediction.fault_probability"
        )
    check_picks(path, probability.shape)
    live = probability.coords.get("live", xr.DataArray(True)).compute()
    there = live.broadcast_like(probability).transpose(*probability.dims)

    def pick(block: Block) -> np.ndarray:
        picked = np.argwhere((read(probability, block) >= threshold) & there[block].to_numpy())
        return (picked + [s.start for s in block]).astype(np.uint16)

    axes = range(probability.ndim)
    positions = np.concatenate(list(in_threads(pick, blocks(probability, order=axes[::-1]))))
    positions = positions[np.lexsort(positions.T[::-1])]  # blocks come in any order
    if len(positions) < minimum:
        positions = positions[:0]
    path = on_disk(path)
    dims = np.array([str(d) for d in probability.dims])
    with (
        naming_refusal(path, "write them elsewhere, by outcrop.picks.write_picks"),
        put_whole(path) as aside,
        open(aside, "wb") as file,
    ):
        lines: dict[str, Any] = {str(d): probability[d].to_numpy() for d in probability.dims}
        np.savez_compressed(file, positions=positions, dims=dims, **lines)
    return len(positions)
