"""Augmentation of crops: what a survey could also have looked like."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..models.normalization import Statistics

Array = np.ndarray
Crop = Mapping[str, Array]

STRETCH = 1.25  # time by at most this factor
_GAIN = 1.25  # amplitudes by at most this factor


def draw_stretch(rng: np.random.Generator) -> float:
    """By which factor to stretch time."""
    return float(np.exp(rng.uniform(-1, 1) * np.log(STRETCH)))


def stretched(crop: Crop, samples: int) -> dict[str, Array]:
    """Stretch or squeeze time to so many samples; probabilities and angles take the nearest one."""
    extent = next(iter(crop.values())).shape[2]
    if extent == samples:
        return dict(crop)
    at = np.linspace(0, extent - 1, samples)
    nearest = np.rint(at).astype(int)
    below = np.minimum(at.astype(int), extent - 2)
    share = (at - below).astype(np.float32)
    result = {
        name: values[..., below] * (1 - share) + values[..., below + 1] * share
        if name in ("amplitude", "rgt", "dhr")
        else values[..., nearest]
        for name, values in crop.items()
    }
    return _turned(result, lambda x, y, z: (x, y, z * extent / samples))


def augmented(crop: Crop, rng: np.random.Generator) -> dict[str, Array]:
    """Turn a crop about the time axis, and mirror it.

    Parameters
    ----------
    crop : mapping of str to numpy.ndarray
        (inlines, crosslines, samples): `amplitude` and labels named as in `synthetic.LABELS`.
        Unless there are as many inlines as crosslines, it is turned by 180 degrees alone.
    rng : numpy.random.Generator

    Returns
    -------
    dict of str to numpy.ndarray
        Fault angles are turned along. A `fault_dip` without `fault_strike` is that which an
        inline section shows, from 0 to 180, as of `apparent_dip`.
    """
    result = dict(crop)
    if rng.random() < 0.5:
        result = {name: values[::-1] for name, values in result.items()}
        result = _turned(result, lambda x, y, z: (-x, y, z))
    inlines, crosslines, _ = result["amplitude"].shape
    square = inlines == crosslines
    quarters = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
    if quarters:
        result = {name: np.rot90(values, quarters) for name, values in result.items()}
        cos, sin = ((0, 1), (-1, 0), (0, -1))[quarters - 1]
        result = _turned(result, lambda x, y, z: (x * cos - y * sin, x * sin + y * cos, z))
    return result


def rescaled(
    crop: Crop, statistics: Statistics, rng: np.random.Generator
) -> tuple[dict[str, Array], Statistics]:
    """Change amplitudes and their sign, about the mean of the volume.

    Parameters
    ----------
    crop : mapping of str to numpy.ndarray
        With `amplitude`; `dhr` is changed along.
    statistics : Statistics
        Of the volume.
    rng : numpy.random.Generator

    Returns
    -------
    crop : dict of str to numpy.ndarray
    statistics : Statistics
        Of a volume of the new sign; a gain is not to be normalised away.
    """
    gain = np.float32(_GAIN ** rng.uniform(-1, 1) * rng.choice([-1.0, 1.0]))
    mean = np.float32(statistics.mean)
    result = dict(crop)
    for name in {"amplitude", "dhr"} & result.keys():
        result[name] = (result[name] - mean) * gain + mean
    if gain < 0:
        lowest, highest = (2 * statistics.mean - a for a in (statistics.highest, statistics.lowest))
        statistics = statistics._replace(lowest=lowest, highest=highest)
    return result, statistics


def apparent_dip(dip: Array, strike: Array, direction: str = "inline") -> Array:
    """Dip as a section shows it, from dip and strike, all in degrees.

    From 0 to 180, as in the 2-D data sets of Gao (2024): more than 90 where the fault dips towards
    increasing crosslines; of a section that is a crossline, towards increasing inlines. 0 where
    `dip` is, NaN where one of them is.
    """
    x, y, z = _normal(dip, strike)
    along = y if direction == "inline" else x
    off = (dip + strike) * 0  # not a number where one of them is none
    return np.where(dip > 0, np.degrees(np.arctan2(-along, z)) % 180, off).astype(np.float32)


def _normal(dip: Array, strike: Array) -> tuple[Array, Array, Array]:
    """Unit normal: along inlines and crosslines, and upwards."""
    dip, strike = np.radians(dip), np.radians(strike)
    return -np.sin(strike) * np.sin(dip), np.cos(strike) * np.sin(dip), np.cos(dip)


def _turned(crop: dict[str, Array], turn: Callable[..., tuple[Array, ...]]) -> dict[str, Array]:
    """Apply a function to the normals of the faults, whose dip and strike are in degrees.

    An apparent dip is that of a fault at right angles to the section, whose strike is 0 (or 180,
    which is mirrored all along).
    """
    if "fault_dip" not in crop:
        return crop
    before = crop["fault_dip"], crop.get("fault_strike", np.zeros_like(crop["fault_dip"]))
    x, y, z = turn(*_normal(*before))
    strike = np.degrees(np.arctan2(-x, y)) % 360
    dip = np.degrees(np.arctan2(np.hypot(x, y), z))
    turned = {"fault_dip": np.where(strike >= 180, 180 - dip, dip), "fault_strike": strike % 180}
    off = (before[0] + before[1]) * 0  # not a number where one of them is none
    for name in turned.keys() & crop.keys():
        crop[name] = np.where(before[0] > 0, turned[name], off).astype(np.float32)
    return crop
