"""What lies over the signal of a synthetic survey: noise, footprints, uneven amplitudes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .wavelets import filter_traces

Array = np.ndarray
Spectrum = Callable[[Array], Array]


def random_noise(
    rng: np.random.Generator, shape: Sequence[int], spectrum: Spectrum, smoothing: int
) -> Array:
    """Noise in the band of the signal, of unit standard deviation.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : sequence of int
        (inlines, crosslines, samples).
    spectrum : callable
        Amplitude spectrum of the signal, of the frequency in Hz; the noise is whitened: it has
        the square root of it.
    smoothing : int
        As for `smooth`.

    Returns
    -------
    numpy.ndarray
        float32.
    """
    grain = rng.standard_normal(tuple(shape), dtype=np.float32)
    smooth(grain, smoothing)
    filter_traces(grain, [lambda f: np.sqrt(np.abs(spectrum(f)))])
    return unit(grain)


def coherent_noise(rng: np.random.Generator, shape: Sequence[int], spectrum: Spectrum) -> Array:
    """Plane dipping events that cross the signal, as multiples and migration smiles do.

    Three wavefronts of one dip each, strong where a smooth random field says. Parameters and
    result as for `random_noise`.
    """
    nx, ny, nz = shape
    x, y = np.arange(nx)[:, None, None], np.arange(ny)[:, None]
    z = np.arange(nz)
    total = np.zeros(tuple(shape), np.float32)
    for _ in range(3):
        slope, azimuth = rng.uniform(0.2, 1.2), rng.uniform(0, math.tau)
        dip_x, dip_y = slope * math.cos(azimuth), slope * math.sin(azimuth)
        reach = math.ceil(abs(dip_x) * nx + abs(dip_y) * ny) + 1
        trace = rng.standard_normal(nz + 2 * reach, dtype=np.float32)[None, None]
        filter_traces(trace, [spectrum])
        arrival = (z + dip_x * x + dip_y * y).astype(np.int32) + reach
        total += trace[0, 0].take(arrival, mode="clip") * smooth_field(rng, shape, 3)
    return unit(total)


def footprint(rng: np.random.Generator, shape: Sequence[int], strength: float) -> Array:
    """Gain that alternates from line to line, as an acquisition geometry leaves it.

    Marfurt, K. J. et al. (1998). Suppression of the acquisition footprint for seismic sequence
    attribute mapping. Geophysics, 63(3), 1024-1035. https://doi.org/10.1190/1.1444380

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : sequence of int
        (inlines, crosslines, samples).
    strength : float
        Largest change of the amplitude, as a fraction, at the top; it halves down to the bottom.

    Returns
    -------
    numpy.ndarray
        float32; broadcasts to the shape.
    """
    stripes = []
    for extent in shape[:2]:
        period, phase = rng.uniform(4, 16), rng.uniform(0, math.tau)
        stripes.append(np.cos(math.tau * np.arange(extent) / period + phase))
    weight = rng.uniform(0, 1)
    pattern = weight * stripes[0][:, None] + (1 - weight) * stripes[1]
    fading = np.linspace(1.0, 0.5, shape[2])
    return (1 + strength * pattern[:, :, None] * fading).astype(np.float32)


def smooth_field(rng: np.random.Generator, shape: Sequence[int], nodes: int) -> Array:
    """Random numbers, standard normal at some nodes along each axis, linear in between.

    Returns
    -------
    numpy.ndarray
        float32, of `shape`.
    """
    field = rng.standard_normal((nodes,) * len(shape)).astype(np.float32)
    for axis, extent in enumerate(shape):
        at = np.linspace(0, nodes - 1, extent)
        weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(nodes))).astype(np.float32)
        field = np.moveaxis(np.tensordot(weights, field, (1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def smooth(volume: Array, times: int) -> None:
    """Average every trace with its neighbours (1/4, 1/2, 1/4) along both axes, in place."""
    for _ in range(times):
        for axis in (0, 1):
            inner = np.moveaxis(volume, axis, 0)
            inner[1:-1] = 0.5 * inner[1:-1] + 0.25 * (inner[:-2] + inner[2:])


def unit(volume: Array) -> Array:
    """Scale a volume, in place, to unit standard deviation."""
    volume /= volume.std(dtype=np.float64) or 1.0
    return volume
