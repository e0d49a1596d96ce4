"""Stores on labelled and chunked data: the survey, tensors between stages, the prediction."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch
import xarray as xr
import zarr
from torch import Tensor

from ..graph import Box
from ..graph.boxes import Shape
from .stores import ArrayStore


class ZarrStore(ArrayStore):
    """A tensor between stages, one chunk per tile, so that no two tiles share a chunk."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: Shape,
        rank: int,
        dtype: torch.dtype,
        tile: Shape,
    ) -> None:
        super().__init__(shape, rank, dtype)
        self.path = str(path)
        if not (Path(self.path) / "zarr.json").exists():
            zarr.create_array(
                self.path,
                shape=self.stored,
                chunks=(*self.stored[: self.batch], *tile, *self.stored[self.batch + rank :]),
                dtype=self.raw,
                compressors=None,
                fill_value=0,
            )

    def open(self, mode: Any) -> zarr.Array:
        return zarr.open_array(self.path, mode=mode)

    def remove(self) -> None:
        shutil.rmtree(self.path)


class SurveyStore:
    """A labelled volume as the network's input: turned, normalised and padded as it is read.

    Parameters
    ----------
    volume : xarray.DataArray
        In memory or lazy, with the survey's three dimensions in any order.
    axes : sequence of str
        Its dimensions in the order of the network's axes.
    before : tuple of int
        Zeros to put before the first sample of each of the network's axes.
    grid : tuple of int
        Extents of the padded grid.
    mean, scale : float
        Amplitudes become (amplitude - mean) · scale; where there is no trace, 0.
    dtype : torch.dtype
    """

    slow = True

    def __init__(
        self,
        volume: xr.DataArray,
        axes: Sequence[str],
        before: Shape,
        grid: Shape,
        mean: float,
        scale: float,
        dtype: torch.dtype,
    ) -> None:
        self.volume = volume.transpose(*axes)
        self.traces = tuple(i for i, a in enumerate(axes) if a in ("inline", "crossline"))
        self.live = None
        if "live" in volume.coords:
            live = volume.coords["live"].transpose(*(axes[i] for i in self.traces))
            self.live = live.to_numpy()
        self.before, self.grid = before, grid
        self.mean, self.scale, self.dtype = mean, scale, dtype

    def read(self, box: Box) -> Tensor:
        data = Box.whole(self.volume.shape)
        inside = box.shifted(tuple(-b for b in self.before)) & data
        x = torch.zeros((1, 1, *box.shape), dtype=self.dtype)
        if min(inside.shape) <= 0:
            return x
        with dask.config.set(scheduler="synchronous"):
            part = self.volume[inside.slices].to_numpy()
        exact = "float64" if self.dtype == torch.float64 else "float32"
        part = (part.astype(exact) - self.mean) * self.scale
        if self.live is not None:
            (time,) = {0, 1, 2} - set(self.traces)
            part *= np.expand_dims(self.live[tuple(inside.slices[i] for i in self.traces)], time)
        target = inside.shifted(self.before).within(box)
        x[0, 0][target.index] = torch.from_numpy(np.ascontiguousarray(part))
        return x

    def write(self, box: Box, value: Tensor) -> None:
        raise NotImplementedError("a survey is only read")

    def remove(self) -> None:
        """Do nothing: the survey is not ours to delete."""


class PredictionStore:
    """The network's output, cropped and turned to the survey's dimensions, as Zarr arrays.

    Parameters
    ----------
    paths : sequence of path-like
        One array per output channel.
    turn : tuple of int
        Position of each survey dimension among the network's axes.
    before : tuple of int
        Padding to leave out before the first sample of each of the network's axes.
    """

    slow = True

    def __init__(self, paths: Sequence[str | os.PathLike[str]], turn: Shape, before: Shape) -> None:
        self.paths, self.turn, self.before = [str(p) for p in paths], turn, before

    def read(self, box: Box) -> Tensor:
        raise NotImplementedError("a prediction is only written")

    def write(self, box: Box, value: Tensor) -> None:
        slices = box.shifted(tuple(-b for b in self.before)).slices
        for path, channel in zip(self.paths, value[0], strict=True):
            array = zarr.open_array(path, mode="r+")
            array[tuple(slices[i] for i in self.turn)] = (
                channel.detach().float().cpu().permute(self.turn).contiguous().numpy()
            )

    def remove(self) -> None:
        """Do nothing: the prediction stays."""
