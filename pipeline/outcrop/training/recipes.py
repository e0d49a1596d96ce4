"""Recipes of synthetic surveys: the parameters of each are drawn from ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from ..errors import ArgumentError
from .geology import Fault
from .synthetic import LABELS, check_shape, seeded, synthetic_survey

Ranges = Mapping[str, tuple[float, float]]

# Lowest and highest value; of numbers of faults, slips and frequencies the logarithm is drawn
# evenly. Extents are fractions of the survey's, slip is in samples for every 128 of the survey,
# curvature in radians from the centre of a fault to its tip.
RANGES: Ranges = {
    "faults": (3, 30),
    "dip": (35.0, 88.0),
    "slip": (3.0, 20.0),
    "reverse": (0.0, 0.6),  # share of reverse faults
    "strike_scatter": (3.0, 35.0),  # degrees about the strike of each of two sets
    "length": (0.25, 1.2),
    "height": (0.3, 1.2),
    "strike_curvature": (-0.25, 0.25),
    "dip_curvature": (-0.15, 0.15),
    "listric": (0.2, 0.5),  # dip curvature of one fault in five
    "folding": (0.1, 1.4),
    "tilt": (0.0, 0.4),
    "layer_thickness": (1.5, 4.0),
    "peak_frequency": (18.0, 48.0),
    "loss": (0.65, 1.0),  # peak frequency at the bottom over that at the top
    "lateral_smoothing": (-3, 5),  # times; below 0 is never
    "amplitude_variation": (0.0, 0.5),
    "noise": (0.0, 0.5),
    "coherent_noise": (0.0, 0.3),
    "footprint": (0.0, 0.25),
}
_LOGARITHMIC = ("faults", "slip", "peak_frequency")


def random_survey(
    shape: tuple[int, int, int] = (128, 128, 128),
    seed: int | Sequence[int] = 0,
    *,
    ranges: Ranges = RANGES,
    labels: Sequence[str] = LABELS,
) -> xr.Dataset:
    """Make a synthetic survey whose parameters are drawn, too.

    Parameters
    ----------
    shape : tuple of int
        Numbers of inlines, crosslines and samples.
    seed : int or sequence of int
        Of everything random.
    ranges : mapping of str to (float, float)
        From which to draw; those left out are as in `RANGES`.
    labels : sequence of str
        Which of `synthetic.LABELS` to return.

    Returns
    -------
    xarray.Dataset
        As `synthetic_survey` returns it.

    Raises
    ------
    ArgumentError
        If a range has a name that is none of `RANGES`, or is none, or the shape or the seed is not
        possible.
    """
    rng = seeded(seed)
    check_shape(shape)
    ranges = _checked({**RANGES, **ranges})

    def draw(name: str) -> float:
        return float(rng.uniform(*ranges[name]))

    blur = max(0, round(draw("lateral_smoothing")))
    peak = math.exp(rng.uniform(*np.log(ranges["peak_frequency"])))
    return synthetic_survey(
        shape,
        int(rng.integers(2**63)),
        faults=_faults(rng, shape, ranges),
        folding=draw("folding"),
        tilt=draw("tilt"),
        layer_thickness=draw("layer_thickness"),
        peak_frequency=(peak, peak * draw("loss")),
        wavelet=str(rng.choice(["ricker", "ormsby"], p=[0.7, 0.3])),
        phase=float(rng.choice([0.0, rng.uniform(-180, 180)])),
        amplitude_variation=draw("amplitude_variation"),
        noise=draw("noise"),
        lateral_smoothing=blur,
        noise_smoothing=blur + int(rng.integers(5)),
        coherent_noise=draw("coherent_noise") * float(rng.integers(2)),
        footprint=draw("footprint") * float(rng.integers(2)),
        labels=labels,
    )


def _checked(ranges: Ranges) -> Ranges:
    for name, pair in ranges.items():
        if name not in RANGES:
            raise ArgumentError(f"ranges: {name!r} is none of {', '.join(RANGES)}")
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ArgumentError(f"ranges: {name} {pair}; give the lowest and the highest value")
        low, high = pair
        if not -math.inf < low <= high < math.inf:
            raise ArgumentError(f"ranges: {name} {pair}; give the lowest and the highest value")
        if name in _LOGARITHMIC and low <= 0:
            raise ArgumentError(f"ranges: {name} {pair}; its logarithm is drawn: begin above 0")
    return ranges


def _faults(rng: np.random.Generator, shape: Sequence[int], ranges: Ranges) -> list[Fault]:
    def draw(name: str) -> float:
        return float(rng.uniform(*ranges[name]))

    count = round(math.exp(rng.uniform(*np.log(ranges["faults"]))))
    nx, ny, nz = shape
    width, unit = min(nx, ny), nz / 128
    sets = rng.uniform(0, 360) + np.array([0.0, rng.uniform(30, 90)])
    second, scatter, reverse = rng.uniform(0, 0.5), draw("strike_scatter"), draw("reverse")
    shift = rng.uniform(-0.5, 0.5)  # of all dips: surveys differ more than the faults of one
    drawn = []
    for _ in range(count):
        length, height = draw("length") * width, draw("height") * nz
        steep, shallow = ranges["dip"][1], ranges["dip"][0]
        dip = shallow + (steep - shallow) * float(np.clip(rng.beta(2.5, 1.5) + 0.4 * shift, 0, 1))
        bend = draw("dip_curvature")
        if rng.random() < 0.2:  # listric; flatter than 25 degrees it would look like a layer
            bend = min(draw("listric"), math.radians(dip - 25))
        slip = math.exp(rng.uniform(*np.log(ranges["slip"]))) * unit
        strike = rng.choice(sets, p=[1 - second, second]) + 180 * rng.integers(2)
        drawn.append(
            Fault(
                centre=tuple((rng.uniform(0.0, 1.0, 3) * np.array(shape)).tolist()),
                strike=float((strike + rng.normal(0, scatter)) % 360),
                dip=dip,
                half_length=length,
                half_height=height,
                slip=-slip if rng.random() < reverse else slip,
                strike_curvature=draw("strike_curvature") / length,
                dip_curvature=bend / height,
            )
        )
    return drawn
