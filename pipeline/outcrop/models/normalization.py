"""How a network wants its input: every sample by statistics of the whole survey."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.floating]


class Statistics(NamedTuple):
    """Of all samples of a volume's live traces.

    Attributes
    ----------
    mean, deviation : float
    lowest, highest : float
    """

    mean: float
    deviation: float
    lowest: float
    highest: float


_CLIP = 3.2


def _none(a: Samples, _: Statistics) -> Samples:
    return a


def _zscore(a: Samples, s: Statistics) -> Samples:
    return (a - s.mean) * (1.0 / s.deviation)


def _clipped(a: Samples, s: Statistics) -> Samples:
    reach = max(abs(s.lowest - s.mean), abs(s.highest - s.mean)) / s.deviation
    return np.clip(_zscore(a, s), -_CLIP, _CLIP) / min(reach, _CLIP)


def _clipped_to_one(a: Samples, s: Statistics) -> Samples:
    lowest = max((s.lowest - s.mean) / s.deviation, -_CLIP)
    highest = min((s.highest - s.mean) / s.deviation, _CLIP)
    return (np.clip(_zscore(a, s), -_CLIP, _CLIP) - lowest) / (highest - lowest)


def _rms(a: Samples, s: Statistics) -> Samples:
    return a * (1.0 / np.hypot(s.mean, s.deviation))


def _minmax(a: Samples, s: Statistics) -> Samples:
    return (a - s.lowest) * (1.0 / (s.highest - s.lowest))


def _minmax_255(a: Samples, s: Statistics) -> Samples:
    return _minmax(a, s) * 255.0


def _logarithm(a: Samples) -> Samples:
    return np.sign(a) * np.log1p(np.abs(a))


def _log8(a: Samples, s: Statistics) -> Samples:
    low, high = _logarithm(np.array([s.lowest, s.highest])).tolist()
    levels = np.floor((_logarithm(a) - low) * (255.0 / (high - low)))
    return np.clip(levels, 0.0, 255.0) / 255.0


def _mask(a: Samples, _: Statistics) -> Samples:
    return (a != 0).astype(a.dtype)


def _half_turn(a: Samples, _: Statistics) -> Samples:
    return a * (1.0 / 180.0)


# By name: from samples and the statistics of their volume to what the network wants.
NORMALIZATIONS: dict[str, Callable[[Samples, Statistics], Samples]] = {
    "none": _none,
    "zscore": _zscore,  # zero mean, unit standard deviation
    "zscore-clip": _clipped,  # that, clipped to ±3.2, divided by the largest magnitude
    "zscore-clip-01": _clipped_to_one,  # that, clipped to ±3.2, brought to 0…1
    "rms": _rms,  # divided by the root mean square
    "minmax": _minmax,  # brought to 0…1
    "minmax-255": _minmax_255,  # brought to 0…255
    "log8": _log8,  # sign · log(1 + magnitude), brought to 256 levels from 0 to 1
    "mask": _mask,  # 1 where it is not 0
    "half-turn": _half_turn,  # degrees, in half turns
    "position": _none,
}

# Those that take samples as they are, without statistics.
PLAIN = ("none", "mask", "half-turn", "position")


def absent(kind: str, statistics: Statistics) -> float:
    """What a network sees where there is no sample of what is no `InputCard.blank`: the mean."""
    return float(NORMALIZATIONS[kind](np.array(statistics.mean), statistics))
