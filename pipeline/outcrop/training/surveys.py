"""Surveys in Zarr with label variables, to take crops from."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import xarray as xr

from ..engine.statistics import place_sum, statistics
from ..errors import SurveyError, TrainingDataError
from ..storage import naming_refusal
from ..survey.reading import naming_bad_chunk
from .blocks import Blocks
from .volumes import (
    Array,
    Extents,
    Volume,
    check_differ,
    check_finite,
    check_range,
    known,
    tell_unknown,
    with_labels,
)

_CACHE = 1 << 30  # bytes of surveys' blocks that each process keeps


class Survey:
    """A survey in Zarr that has label variables beside `amplitude`.

    Parameters
    ----------
    path : path-like
        Opened by `outcrop.open`; blocks that were read are kept.
    labels : sequence of str
        Names of the variables.
    share : float
        Of what a process keeps of surveys.

    Raises
    ------
    TrainingDataError
        If a variable is missing, has other dimensions or, at the traces that are there, values
        that are not finite (but for labels that are not known: NaN), beyond what a probability or
        an angle can be, or all the same.
    """

    volumes: int | None = 1

    def __init__(
        self, path: str | os.PathLike[str], labels: Sequence[str], share: float = 1.0
    ) -> None:
        from ..survey import open as open_survey

        try:
            survey = open_survey(path)
        except SurveyError as error:
            raise TrainingDataError(str(error)) from error
        names = ("amplitude", *labels)
        missing = [name for name in names if name not in survey]
        if missing:
            has = ", ".join(map(str, survey.data_vars))
            raise TrainingDataError(f"{path}: has no variable {missing[0]}; it has {has}")
        dims = ("inline", "crossline", "twt" if "twt" in survey.dims else "depth")
        for name in names:
            if set(survey[name].dims) != set(dims):
                raise TrainingDataError(
                    f"{path}: {name} has dimensions {', '.join(map(str, survey[name].dims))} "
                    f"instead of {', '.join(dims)}"
                )
            if survey[name].dtype.kind not in "biuf":
                raise TrainingDataError(
                    f"{path}: {name} is {survey[name].dtype}; make it real numbers"
                )
        self.dataset = survey[list(names)].transpose(*dims, ...)
        self.cache = int(_CACHE * share) // len(names)
        steps = np.diff(self.dataset[dims[2]].to_numpy()[:2])
        self.interval = f"{steps.sum():g} {self.dataset[dims[2]].attrs.get('units', '')}".strip()
        try:
            self.statistics, fingerprint, dead = statistics(self.dataset["amplitude"])
            if dead.any():
                live = ~dead
                if "live" in self.dataset.coords:
                    live &= self.dataset.coords["live"].transpose(*dims[:2]).to_numpy()
                self.dataset.coords["live"] = dims[:2], live
            found = [_check_lazily(self.dataset[name], f"{path}: {name}") for name in labels]
        except SurveyError as error:
            raise TrainingDataError(f"{path}: {error}") from error
        check_differ(self.statistics, f"{path}: amplitude")
        sums, some = zip(*found, strict=True)
        self.dataset.coords["labelled"] = dims[:2], with_labels(some)
        self.description: dict[str, Any] = {
            "survey": str(Path(path).absolute()),
            "fingerprint": hashlib.sha256(repr((fingerprint, sums)).encode()).hexdigest(),
        }
        self.start, self.whole = (0, 0, 0), self.dataset["amplitude"].shape
        self._open()

    def _open(self) -> None:
        self.shape: Extents = self.dataset["amplitude"].shape
        live = self.dataset.coords.get("live")
        self.volume = Volume(
            {
                str(name): Blocks(variable.data, self.cache)
                for name, variable in self.dataset.data_vars.items()
            },
            self.statistics,
            None if live is None else live.to_numpy(),
            self.dataset["labelled"].to_numpy(),
            self.start,
            self.whole,
        )

    def part(self, dim: str, start: int, stop: int) -> Survey:
        """Return the same survey between two positions along a dimension, its statistics kept."""
        other = copy.copy(self)
        other.dataset = self.dataset.isel({dim: slice(start, stop)})
        first, last = other.dataset[dim].to_numpy()[[0, -1]].tolist()
        other.description = {**self.description, dim: [first, last]}
        other.start = (start, 0, 0) if dim == "inline" else (0, start, 0)
        other._open()
        return other

    def split(self, crop: Sequence[int]) -> tuple[Survey, Survey]:
        """Hold out the last tenth of the inlines or crosslines, whichever are more.

        It is the last tenth of those with labels, and what lies beyond.

        Raises
        ------
        TrainingDataError
            If what is left, or what is held out, is less than a crop of (inlines, crosslines,
            samples).
        """
        axis = 0 if self.shape[0] >= self.shape[1] else 1
        dim, extent = ("inline", "crossline")[axis], self.shape[axis]
        found = np.flatnonzero(self.dataset["labelled"].to_numpy().any(1 - axis))
        first, end = int(found[0]), int(found[-1]) + 1
        cut = end - max((end - first) // 10, crop[axis])
        if cut < crop[axis]:
            lines = f"{end} {dim}s" + (" up to the last with labels" if end < extent else "")
            raise TrainingDataError(
                f"{self.description['survey']}: {lines} are too few to hold some out beside crops "
                f"of {crop[axis]}; pass validation data or take smaller crops"
            )
        parts = self.part(dim, 0, cut), self.part(dim, cut, extent)
        if first >= cut:
            begin, last = parts[0].description[dim]
            raise TrainingDataError(
                f"{self.description['survey']}: no labelled traces from {dim} {begin} to {last}, "
                "the part to train with; pass validation data, or take smaller crops"
            )
        return parts

    def read(self, number: int) -> Volume:
        """Return the survey, whatever the number."""
        return self.volume


def _check_lazily(label: xr.DataArray, where: str) -> tuple[int, Array]:
    """Check labels block by block, as they may not fit into memory.

    Returns
    -------
    int
        A sum of all of them that others would not give.
    numpy.ndarray
        (inlines, crosslines), bool: traces that are there with labels that are known.
    """
    lowest, highest, total = np.inf, -np.inf, 0
    live = label.coords["live"].to_numpy() if "live" in label.coords else None
    some, unknown = np.zeros(label.shape[:2], bool), 0
    blocks = Blocks(label.data, 0)
    for box in dask.array.core.slices_from_chunks(label.data.chunks):
        with naming_bad_chunk(label, box), naming_refusal(where, "then run the same command again"):
            values = blocks[box]
        there = np.True_ if live is None else live[box[:2]][:, :, None]
        values = np.where(there, values, 0)  # what is elsewhere is not learnt from
        total += int(place_sum(values, [(s.start, s.stop) for s in box]))
        total %= 2**64
        learnt = known(str(label.name), values)
        unknown += learnt.size - int(learnt.sum())
        some[box[:2]] |= (learnt & there).any(2)
        values = np.where(learnt, values, 0)
        check_finite(values, where, [s.start for s in box])
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
    if not some.any():
        raise TrainingDataError(f"{where}: is NaN everywhere; is this the right label?")
    check_range(str(label.name), lowest, highest, where)
    tell_unknown(where, unknown)
    if lowest == highest:
        raise TrainingDataError(f"{where}: is {lowest:g} everywhere; is this the right label?")
    return total, some
