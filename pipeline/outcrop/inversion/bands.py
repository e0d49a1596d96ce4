"""Frequency bands: inversion from low frequencies to high ones."""

from __future__ import annotations

import numpy as np

_ORDER = 6
_PIECE = 1 << 20  # bytes of padded traces that are filtered at a time


def low_pass(traces: np.ndarray, corner: float | None, time_step: float) -> np.ndarray:
    """Butterworth low-pass along the last axis.

    It is causal, so that a record that is filtered and then cut off is what a filtered source
    gives: the same filter on the wavelet and on the traces leaves the experiment consistent.

    Parameters
    ----------
    traces : ndarray, (..., time)
    corner : float or None
        Frequency at which the amplitude has fallen by 3 dB, Hz; None: no filter.
    time_step : float
        In seconds.

    Returns
    -------
    ndarray of the same dtype
    """
    if corner is None:
        return traces
    samples = traces.shape[-1]
    ringing = int(np.ceil(4 * _ORDER / (corner * time_step)))
    length = samples + ringing
    # Poles on the half circle, and the bilinear transform with its frequencies warped back.
    angles = np.pi * (2 * np.arange(_ORDER) + 1 + _ORDER) / (2 * _ORDER)
    tangents = np.tan(np.pi * np.fft.rfftfreq(length)[:, None])
    s = 1j * tangents / np.tan(np.pi * corner * time_step)
    response = 1 / np.prod(s - np.exp(1j * angles), axis=1)
    response[~np.isfinite(response)] = 0  # at the Nyquist frequency, where the tangent has a pole
    rows, filtered = traces.reshape(-1, samples), np.empty(traces.shape, traces.dtype)
    out = filtered.reshape(-1, samples)
    count = max(1, _PIECE // (16 * length))
    for start in range(0, len(rows), count):
        some = slice(start, start + count)
        spectrum = np.fft.rfft(rows[some], length, axis=-1) * response
        out[some] = np.fft.irfft(spectrum, length, axis=-1)[:, :samples]
    return filtered


def highest_frequency(wavelet: np.ndarray, time_step: float) -> float:
    """Highest frequency, Hz, at which a wavelet's spectrum has a tenth of its peak.

    Parameters
    ----------
    wavelet : ndarray, (..., time)
    time_step : float
    """
    length = max(4096, 4 * wavelet.shape[-1])
    rows, amplitude = wavelet.reshape(-1, wavelet.shape[-1]), np.zeros(length // 2 + 1)
    count = max(1, _PIECE // (16 * length))
    for start in range(0, len(rows), count):
        spectrum = np.abs(np.fft.rfft(rows[start : start + count], length, axis=-1))
        amplitude = np.maximum(amplitude, spectrum.max(axis=0))
    above = np.flatnonzero(amplitude >= 0.1 * amplitude.max())
    return float(np.fft.rfftfreq(length, time_step)[above[-1]])
