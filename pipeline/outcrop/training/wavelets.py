"""Wavelets by their spectra, and filters of traces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray

SAMPLE_INTERVAL = 4.0  # ms, of every synthetic survey

_ROWS = 2048  # traces at a time, so that their spectra stay in the processor's cache


def ricker_spectrum(frequency: Array, peak_frequency: float) -> Array:
    """Amplitude spectrum of a zero-phase Ricker wavelet, 1 at its peak.

    Ricker, N. (1953). The form and laws of propagation of seismic wavelets. Geophysics, 18(1),
    10-40. https://doi.org/10.1190/1.1437843

    Parameters
    ----------
    frequency : numpy.ndarray
        Where to evaluate it, in Hz.
    peak_frequency : float
        In Hz.

    Returns
    -------
    numpy.ndarray
        Of the shape of `frequency`.
    """
    ratio = (frequency / peak_frequency) ** 2
    return ratio * np.exp(1 - ratio)


def ormsby_spectrum(frequency: Array, peak_frequency: float) -> Array:
    """Amplitude spectrum of a zero-phase Ormsby wavelet, 1 over its pass band.

    A trapezium that is 0 up to 0.3 and 1 from 0.6 times the peak frequency, 1 up to 1.3 and 0
    from 1.9 times. Ryan, H. (1994). Ricker, Ormsby, Klauder, Butterworth: a choice of wavelets.
    CSEG Recorder, 19(7), 8-9.

    Parameters
    ----------
    frequency : numpy.ndarray
        Where to evaluate it, in Hz.
    peak_frequency : float
        In Hz.

    Returns
    -------
    numpy.ndarray
        Of the shape of `frequency`.
    """
    corners = np.array([0.3, 0.6, 1.3, 1.9]) * peak_frequency
    return np.interp(frequency, corners, [0.0, 1.0, 1.0, 0.0])


WAVELETS: dict[str, Callable[[Array, float], Array]] = {
    "ricker": ricker_spectrum,
    "ormsby": ormsby_spectrum,
}


def filter_traces(volume: Array, spectra: Sequence[Callable[[Array], Array]]) -> None:
    """Multiply the spectrum of every trace, in place.

    Parameters
    ----------
    volume : numpy.ndarray
        (inlines, crosslines, samples), float32.
    spectra : sequence of callable
        One or two functions of the frequency in Hz, real or complex. Of two, the first holds at
        the top, the second at the bottom, and in between what they give is mixed linearly.
    """
    samples = volume.shape[2]
    padded = 2 * samples  # the end does not wrap round to the start
    frequency = np.fft.rfftfreq(padded, SAMPLE_INTERVAL / 1000)
    factors = [s(frequency).astype(np.complex64) for s in spectra]
    depth = np.linspace(0, 1, samples, dtype=np.float32)
    traces = volume.reshape(-1, samples)
    for start in range(0, len(traces), _ROWS):
        rows = traces[start : start + _ROWS]
        spectrum = np.fft.rfft(rows, padded)
        top, *bottom = (np.fft.irfft(spectrum * f, padded)[:, :samples] for f in factors)
        rows[:] = top + depth * (bottom[0] - top) if bottom else top
