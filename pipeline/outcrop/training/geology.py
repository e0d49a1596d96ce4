"""The geology of a synthetic survey: layers, folds and faults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

FINE = 64  # places per sample at which the reflectivity is tabulated
_VISIBLE = 1.5  # samples; a fault with less slip than this leaves no break to see
_THIN = 1.0  # samples on each side of a fault are labelled


@dataclass(frozen=True)
class Fault:
    """A fault surface and how far its two sides slipped past each other.

    Lengths are in samples, the same along all three axes.

    Attributes
    ----------
    centre : tuple of float
        Place of the largest slip: (inline, crossline, sample), from 0.
    strike : float
        Degrees from the direction of increasing inlines towards that of increasing crosslines;
        at 0 the fault dips towards increasing crosslines.
    dip : float
        Degrees from the horizontal.
    half_length, half_height : float
        From the centre to the tip, along the strike and down the dip.
    slip : float
        At the centre: positive for a normal, negative for a reverse fault.
    strike_curvature, dip_curvature : float
        Of the surface, in 1/samples.
    """

    centre: tuple[float, float, float]
    strike: float
    dip: float
    half_length: float
    half_height: float
    slip: float
    strike_curvature: float = 0.0
    dip_curvature: float = 0.0

    def undo(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array, Array]:
        """Where rock lay before this fault slipped, and whether it lies on the fault.

        Parameters
        ----------
        x, y, z : numpy.ndarray
            Inline, crossline and sample, float32, broadcastable to one shape.

        Returns
        -------
        x, y, z : numpy.ndarray
            The same rock before the slip.
        on : numpy.ndarray
            bool, true within a sample of the surface where it slipped visibly.
        """
        sin_s, cos_s = sine_cosine(self.strike)
        sin_d, cos_d = sine_cosine(self.dip)
        dx, dy, dz = (a - c for a, c in zip((x, y, z), self.centre, strict=True))
        across = cos_s * dy - sin_s * dx
        u = cos_s * dx + sin_s * dy  # along the strike
        v = cos_d * across + sin_d * dz  # down the dip
        bend_u, bend_v = self.strike_curvature / 2, self.dip_curvature / 2
        w = sin_d * across - cos_d * dz - bend_u * u**2 - bend_v * v**2  # into the hanging wall

        slip = 1 - (u / self.half_length) ** 2 - (v / self.half_height) ** 2
        slip = np.maximum(slip, 0) * self.slip
        on = (np.abs(w) < _THIN) & (np.abs(slip) >= _VISIBLE)

        # Each side moves by half the slip, and by less the further it is from the fault.
        move = slip * (0.5 * np.exp(-((w / self.half_height) ** 2)))
        move = np.where(w > 0, -move, move)
        # Up or down the dip by `move`, and aside so as to stay on its side of a bent surface.
        aside = bend_v * move * (2 * v + move)
        level = cos_d * move + sin_d * aside
        return x - sin_s * level, y + cos_s * level, z + sin_d * move - cos_d * aside, on

    def attitude(self, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        """Dip and strike of the surface beside points on it.

        Parameters
        ----------
        x, y, z : numpy.ndarray
            Inline, crossline and sample.

        Returns
        -------
        dip, strike : numpy.ndarray
            Degrees, both from 0 to 180: where the surface dips to the left of its strike, the dip
            is more than 90.
        """
        sin_s, cos_s = sine_cosine(self.strike)
        sin_d, cos_d = sine_cosine(self.dip)
        dx, dy, dz = (a - c for a, c in zip((x, y, z), self.centre, strict=True))
        along = -self.strike_curvature * (cos_s * dx + sin_s * dy)
        down = -self.dip_curvature * (cos_d * (cos_s * dy - sin_s * dx) + sin_d * dz)
        across, up = sin_d + cos_d * down, cos_d - sin_d * down  # the normal, with `along`
        dip = np.degrees(np.arctan2(np.hypot(along, across), up))
        strike = (self.strike + np.degrees(np.arctan2(-along, across))) % 360
        return np.where(strike < 180, dip, 180 - dip), strike % 180


@dataclass(frozen=True)
class Fold:
    """Vertical shears that grow with depth: a tilt, domes and basins, and waves."""

    tilt: tuple[float, float]
    domes: Array  # rows of: height, inline, crossline, radius
    waves: Array  # rows of: height, wavenumber along inline and crossline, phase
    samples: int

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        shape: Sequence[int],
        folding: float = 1.0,
        tilt: float = 0.12,
    ) -> Fold:
        """Draw the folds of a survey of (inlines, crosslines, samples).

        `folding` scales their heights; layers rise by at most `tilt` of the depth over the width.
        """
        nx, ny, nz = shape
        width = min(nx, ny)
        tall = folding * nz
        domes = [
            (
                rng.uniform(-0.13, 0.13) * tall,
                rng.uniform(0, nx),
                rng.uniform(0, ny),
                rng.uniform(0.12, 0.35) * width,
            )
            for _ in range(6)
        ]
        waves = []
        for _ in range(3):
            length, direction = rng.uniform(0.5, 1.6) * width, rng.uniform(0, math.tau)
            number = math.tau / length
            waves.append(
                (
                    rng.uniform(0.2, 1.0) * 0.02 * length * tall / width,
                    number * math.cos(direction),
                    number * math.sin(direction),
                    rng.uniform(0, math.tau),
                )
            )
        along, across = rng.uniform(-tilt, tilt, 2) * nz / np.array([nx, ny])
        return cls((float(along), float(across)), np.array(domes), np.array(waves), nz)

    def undo(self, x: Array, y: Array, z: Array) -> Array:
        """Depth at which a sample was laid down; parameters as for `Fault.undo`."""
        shear = self.tilt[0] * x + self.tilt[1] * y
        for height, cx, cy, radius in self.domes.tolist():
            shear = shear + height * np.exp(((x - cx) ** 2 + (y - cy) ** 2) * (-0.5 / radius**2))
        for height, kx, ky, phase in self.waves.tolist():
            shear = shear + height * np.sin(kx * x + ky * y + phase)
        # A layer laid down at depth t lies at t + shear * (0.3 + 0.8 * t / samples).
        return (z - 0.3 * shear) / (1 + shear * (0.8 / self.samples))


def reflectivity(rng: np.random.Generator, samples: int, thickness: float) -> tuple[float, Array]:
    """Tabulate a layered reflectivity over three times the depth of the survey.

    The log of impedance is an autoregressive walk from layer to layer, so that the spectrum of
    its steps rises with frequency, as in wells: Walden & Hosken (1985), Geophysical Prospecting
    33(3), 400-435, https://doi.org/10.1111/j.1365-2478.1985.tb00443.x. Packages of strong and
    of weak reflectors follow each other, half evened out, as gain control does.

    Returns
    -------
    first : float
        Depth of the first entry, in samples.
    table : numpy.ndarray
        float32, `FINE` entries to a sample, free of what the sampling would alias.
    """
    extent = 3 * samples
    count = math.ceil(2 * extent / thickness)
    tops = np.cumsum(rng.gamma(2.0, thickness / 2.0, count))
    knots = np.arange(0, extent, 12 * thickness)
    packages = np.interp(tops, knots, rng.standard_normal(len(knots)))
    impedance = rng.standard_normal(count + 1)
    for i in range(1, count + 1):
        impedance[i] += 0.5 * impedance[i - 1]
    steps = np.diff(impedance) * np.exp(0.3 * packages)
    inside = tops < extent
    spikes = np.bincount((tops[inside] * FINE).astype(int), steps[inside], minlength=extent * FINE)
    sigma = 0.6 * FINE
    bell = np.exp(-0.5 * (np.arange(-4 * FINE, 4 * FINE + 1) / sigma) ** 2)
    length = 1 << (len(spikes) + len(bell)).bit_length()
    smooth = np.fft.irfft(np.fft.rfft(spikes, length) * np.fft.rfft(bell, length), length)
    smooth = smooth[4 * FINE :][: len(spikes)]
    window = 32 * FINE
    power = np.cumsum(np.pad(smooth**2, (window // 2 + 1, window // 2), mode="reflect"))
    power = (power[window:] - power[:-window])[: len(smooth)] / window
    smooth /= np.sqrt(np.sqrt(power) + 1e-3 * np.sqrt(power.mean()))
    return -float(samples), smooth.astype(np.float32)


def draw_faults(rng: np.random.Generator, shape: Sequence[int], count: int) -> list[Fault]:
    """Draw faults of two sets, spread over the survey."""
    nx, ny, nz = shape
    width = min(nx, ny)
    extents = np.array([nx, ny, nz])
    sets = rng.uniform(0, 360) + np.array([0.0, rng.uniform(40, 90)])
    centres = np.empty((0, 3))
    drawn = []
    for _ in range(count):
        # The candidate farthest from the faults there are, seen from above.
        candidates = rng.uniform(0.08, 0.92, (8, 3)) * extents
        if len(centres):
            apart = np.linalg.norm(candidates[:, None, :2] - centres[None, :, :2], axis=2).min(1)
            candidates = candidates[[apart.argmax()]]
        centres = np.vstack((centres, candidates[:1]))
        half_length = rng.uniform(0.3, 0.8) * width
        half_height = rng.uniform(0.4, 0.9) * nz
        towards = 180.0 * rng.integers(2)  # conjugate faults dip towards each other
        drawn.append(
            Fault(
                centre=tuple(centres[-1].tolist()),
                strike=float(
                    (rng.choice(sets, p=[0.75, 0.25]) + towards + rng.normal(0, 10)) % 360
                ),
                dip=float(rng.uniform(58, 80)),
                half_length=float(half_length),
                half_height=float(half_height),
                slip=float(rng.uniform(0.05, 0.13) * nz * rng.choice([1, -1], p=[0.85, 0.15])),
                strike_curvature=float(rng.uniform(-0.16, 0.16) / half_length),
                dip_curvature=float(rng.uniform(-0.16, 0.16) / half_height),
            )
        )
    return drawn


def sine_cosine(degrees: float) -> tuple[float, float]:
    """Sine and cosine of an angle in degrees."""
    return math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
