"""What sources of training data give: volumes by number."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import TrainingDataError
from ..models.normalization import Statistics

Array = np.ndarray
QUANTITIES = ("rgt", "dhr", "fault_dip", "fault_strike")  # other labels: probabilities
AXES = {"inline": 0, "crossline": 1, "trace": 1, "z": 2}  # of a network, in a volume
Extents = tuple[int, ...]  # inlines, crosslines, samples


class Volume(NamedTuple):
    """A volume to take crops from.

    Attributes
    ----------
    values : mapping of str to array-like
        `amplitude` and the labels: (inlines, crosslines, samples), sliced when they are needed.
        What they are where there is no trace does not matter; labels are NaN where not known.
    statistics : Statistics
        Of the amplitudes of the live traces.
    live : numpy.ndarray or None
        (inlines, crosslines), bool: where there are traces.
    labelled : numpy.ndarray or None
        (inlines, crosslines), bool: which of them, at least one, have labels; all unless given.
    start : tuple of int
        Where it begins in the survey that it is a part of.
    whole : tuple of int or None
        Extents of that survey; its own unless given.
    """

    values: Mapping[str, Any]
    statistics: Statistics
    live: Array | None = None
    labelled: Array | None = None
    start: Extents = (0, 0, 0)
    whole: Extents | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of inlines, crosslines and samples."""
        return tuple(self.values["amplitude"].shape)


class Source(Protocol):
    """Volumes by number, each the same whenever it is asked for.

    Attributes
    ----------
    volumes : int or None
        How many there are; None where there is no end.
    shape : tuple of int
        Of the smallest volume.
    description : dict
        What to write down so that the same volumes can be had again.
    """

    volumes: int | None
    shape: Extents
    description: dict[str, Any]

    def read(self, number: int) -> Volume:
        """Return a volume."""
        ...


def places_of(description: Mapping[str, Any]) -> list[str]:
    """Folders and surveys that a source of this description reads, or "synthetic"."""
    parts = description.get("sources", [description])
    return [part.get("folder") or part.get("survey") or "synthetic" for part in parts]


def there(amplitude: Array) -> Array:
    """(inlines, crosslines), bool: which traces are not zero throughout, as `predict` has it.

    All of a volume whose samples have one sign, where zeros say something.
    """
    live = np.asarray(amplitude.any(2))
    return live if amplitude.min() < 0 < amplitude.max() else np.ones_like(live)


def statistics_of(amplitude: Array) -> Statistics:
    """Statistics of samples in memory."""
    return Statistics(
        float(amplitude.mean(dtype=np.float64)),
        float(amplitude.std(dtype=np.float64)) or 1.0,
        float(amplitude.min()),
        float(amplitude.max()),
    )


def check_differ(statistics: Statistics, where: str) -> None:
    """Raise `TrainingDataError` if amplitudes are all equal: nothing normalises them."""
    if statistics.lowest == statistics.highest:
        raise TrainingDataError(
            f"{where}: all samples are {statistics.lowest:g}; is this the right file?"
        )


def check_finite(values: Array, where: str, start: Sequence[int] = (0, 0, 0)) -> None:
    """Raise `TrainingDataError` that says at which sample a value is NaN or infinite.

    Parameters
    ----------
    values : numpy.ndarray
        (inlines, crosslines, samples).
    where : str
        What they are, for the message.
    start : sequence of int
        Where they begin in the volume.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        at = ", ".join(str(i) for i in np.argwhere(bad)[0] + start)
        raise TrainingDataError(
            f"{where}: {int(bad.sum()):,} values are NaN or infinite, the first at (inline, "
            f"crossline, sample) ({at}), from 0; repair this file, or leave it out"
        )


def known(label: str, values: Array) -> Array:
    """Where a label is known: not NaN. Of rgt all is, as its range is that of the whole crop."""
    return np.ones(values.shape, bool) if label == "rgt" else ~np.isnan(values)


def with_labels(traces: Sequence[Any]) -> Array:
    """Traces that have all labels or, if none has, some; for each label those that have it."""
    every = np.all(traces, 0)
    return every if every.any() else np.any(traces, 0)


def tell_unknown(where: str, count: int) -> None:
    """Warn of labels that are not known: they may have been lost, too."""
    if count:
        warnings.warn(
            f"{where}: {count:,} values are NaN: not known, and not learnt from", stacklevel=2
        )


def check_range(
    label: str, lowest: float, highest: float, where: str, half_turn: float = 180.0
) -> None:
    """Raise `TrainingDataError` unless labels of probabilities or angles are what they can be.

    Parameters
    ----------
    label : str
        Its name. Of others than angles, times and images, values are from 0 to 1.
    lowest, highest : float
        Of its values.
    where : str
        What they are, for the message.
    half_turn : float
        Of angles, the largest.
    """
    if label in ("rgt", "dhr"):
        return
    most = half_turn if label in QUANTITIES else 1.0
    if lowest < 0 or highest > most:
        how = "make them 0 to 1, NaN where not known"
        if lowest >= 0:
            how = f"divide by {highest:g}, or make that NaN if it means not known"
        if label in QUANTITIES:
            how = (
                "divide degrees by 180"
                if half_turn == 1
                else ("turn strikes beyond by 180, and take 180 less the dip there")
            )
        raise TrainingDataError(
            f"{where}: labels from {lowest:g} to {highest:g}, not from 0 to {most:g}; {how}"
        )
