"""Synthetic surveys: folded, faulted layers whose faults and geological time are known.

A sample of the seismic image is traced back through the geological history, the youngest
event first: its place before each fault slipped, then before the layers were folded. What is
left is the depth at which it was laid down, its relative geological time, and a layered
reflectivity is looked up there. The wavelet comes last, so that it is not deformed.

The recipe is that of Wu, Liang, Shi & Fomel (2019), FaultSeg3D, Geophysics 84(3), IM35-IM45,
https://doi.org/10.1190/geo2018-0646.1, and Wu, Geng, Shi, Pham, Fomel & Caumon (2020), Building
realistic structure models to train convolutional neural networks for seismic structural
interpretation, Geophysics 85(4), WA27-WA39, https://doi.org/10.1190/geo2019-0375.1. Slip dies
out towards an elliptic tip line, as in Walsh & Watterson (1987), Journal of Structural Geology
9(8), 1039-1046, and away from the fault on both sides, as in Barnett et al. (1987), AAPG
Bulletin 71(8), 925-937.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import xarray as xr

from ..errors import OutputExistsError
from .geology import FINE, Array, Fault, Fold, draw_faults, reflectivity, sine_cosine

_SLAB = 4  # inlines at a time, so that what is in work stays in the processor's cache
_SAMPLE_INTERVAL = 4.0  # ms
_START = 1000.0  # ms


def synthetic_survey(
    shape: tuple[int, int, int] = (192, 192, 192),
    seed: int = 0,
    *,
    faults: int | Sequence[Fault] = 8,
    peak_frequency: float = 32.0,
    layer_thickness: float = 3.0,
    noise: float = 0.2,
) -> xr.Dataset:
    """Make a seismic image of folded, faulted layers, with its labels.

    Parameters
    ----------
    shape : tuple of int
        Numbers of inlines, crosslines and samples.
    seed : int
        Of everything random; the same seed gives the same survey.
    faults : int or sequence of Fault
        How many to draw, or the faults themselves, the oldest first.
    peak_frequency : float
        Of the Ricker wavelet, in Hz.
    layer_thickness : float
        Mean, in samples.
    noise : float
        Root mean square of the noise, as a fraction of the signal's.

    Returns
    -------
    xarray.Dataset
        Over (inline, crossline, twt): `amplitude`, float32, of unit standard deviation; `fault`,
        bool, one or two samples thick; `rgt`, float32, relative geological time from 0 (the
        youngest layer) to 1. The sample interval is 4 ms. The faults are in the attributes.
    """
    rng = np.random.default_rng(seed)
    if isinstance(faults, int):
        faults = draw_faults(rng, shape, faults)
    fold = Fold.draw(rng, shape)
    first, table = reflectivity(rng, shape[2], layer_thickness)
    fault = np.empty(shape, bool)
    rgt = np.empty(shape, np.float32)
    amplitude = np.empty(shape, np.float32)

    y = np.arange(shape[1], dtype=np.float32)[:, None]
    z = np.arange(shape[2], dtype=np.float32)
    for start in range(0, shape[0], _SLAB):
        slab = slice(start, min(start + _SLAB, shape[0]))
        x = np.arange(slab.start, slab.stop, dtype=np.float32)[:, None, None]
        x0, y0, z0, on = x, y, z, np.zeros(1, bool)
        for one in reversed(faults):
            x0, y0, z0, here = one.undo(x0, y0, z0)
            on = on | here
        age = fold.undo(x0, y0, z0)
        fault[slab], rgt[slab] = on, age
        where = ((age - first) * FINE).astype(np.int32)
        amplitude[slab] = table.take(where, mode="clip")

    _filter(amplitude, lambda f: ricker_spectrum(f, peak_frequency))
    amplitude /= amplitude.std(dtype=np.float64)
    if noise:
        grain = rng.standard_normal(shape, dtype=np.float32)
        for axis in (0, 1):
            inner = np.moveaxis(grain, axis, 0)
            inner[1:-1] = 0.5 * inner[1:-1] + 0.25 * (inner[:-2] + inner[2:])
        _filter(grain, lambda f: np.sqrt(ricker_spectrum(f, peak_frequency)))
        grain *= noise / grain.std(dtype=np.float64)
        amplitude += grain
        amplitude /= amplitude.std(dtype=np.float64)
    rgt -= rgt.min()
    rgt /= rgt.max()
    return _labelled(
        amplitude,
        fault,
        rgt,
        seed=seed,
        peak_frequency=peak_frequency,
        noise=noise,
        faults=json.dumps([asdict(f) for f in faults]),
    )


def write_segy(
    survey: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    sample_format: int = 1,
    holes: bool = True,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write the amplitudes of a synthetic survey as SEG-Y, with what real files have.

    Inline and crossline numbers as in the survey (bytes 189 and 193), CDP coordinates of bins of
    25 m by 12.5 m, turned by 30 degrees, in centimetres with a scalar of -100 (bytes 181 and
    185), the recording delay, a text header.

    Parameters
    ----------
    survey : xarray.Dataset
        From `synthetic_survey`.
    path : path-like
        File to write.
    sample_format : {1, 5}
        IBM or IEEE 4-byte floating point.
    holes : bool
        Leave out the traces of a small rectangle, as around a platform, and a few scattered
        ones; and write a few dead traces, all zero.
    seed : int
        Of where the scattered ones lie.
    overwrite : bool
        Replace the file at `path`.

    Raises
    ------
    OutputExistsError
        If `path` is taken.
    """
    import segyio
    from segyio import TraceField as T

    if Path(path).exists() and not overwrite:
        raise OutputExistsError(f"{path}: already exists; choose another path or overwrite it")
    amplitude = survey["amplitude"].transpose("inline", "crossline", "twt")
    samples = np.ascontiguousarray(amplitude.to_numpy(), dtype=np.float32)
    inlines, crosslines = (amplitude[d].to_numpy() for d in ("inline", "crossline"))
    twt = amplitude["twt"].to_numpy()
    ni, nc = len(inlines), len(crosslines)
    written, dead = np.ones((ni, nc), bool), np.zeros((ni, nc), bool)
    if holes:
        written[ni * 5 // 8 : ni * 5 // 8 + ni // 14, nc // 8 : nc // 8 + nc // 14] = False
        some = np.random.default_rng(seed).permutation(written.size)[: max(4, written.size // 1000)]
        written.flat[some[::2]] = False
        dead.flat[some[1::2]] = True

    interval = round(float(twt[1] - twt[0]) * 1000)
    spec = segyio.spec()
    spec.format, spec.samples, spec.tracecount = sample_format, twt, int(written.sum())
    with segyio.create(os.fspath(path), spec) as file:
        file.text[0] = _text_header(inlines, crosslines, twt)
        file.bin.update(
            {
                segyio.BinField.Interval: interval,
                segyio.BinField.Samples: len(twt),
                segyio.BinField.Format: sample_format,
                segyio.BinField.MeasurementSystem: 1,
                segyio.BinField.SEGYRevision: 1,
                segyio.BinField.TraceFlag: 1,
            }
        )
        x, y = _bin_centres(ni, nc)
        for n, (i, j) in enumerate(np.argwhere(written)):
            file.header[n] = {
                T.TRACE_SEQUENCE_LINE: int(j) + 1,
                T.TRACE_SEQUENCE_FILE: n + 1,
                T.CDP: int(crosslines[j]),
                T.TraceIdentificationCode: 2 if dead[i, j] else 1,
                T.SourceGroupScalar: -100,
                T.CDP_X: round(100 * x[i, j]),
                T.CDP_Y: round(100 * y[i, j]),
                T.INLINE_3D: int(inlines[i]),
                T.CROSSLINE_3D: int(crosslines[j]),
                T.CoordinateUnits: 1,
                T.DelayRecordingTime: round(twt[0]),
                T.TRACE_SAMPLE_COUNT: len(twt),
                T.TRACE_SAMPLE_INTERVAL: interval,
            }
            file.trace[n] = np.zeros_like(twt, np.float32) if dead[i, j] else samples[i, j]


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


def _filter(volume: Array, spectrum: Callable[[Array], Array]) -> None:
    """Multiply the spectrum of every trace, in place, by a function of the frequency in Hz."""
    samples = volume.shape[2]
    padded = 2 * samples  # the end does not wrap round to the start
    factor = spectrum(np.fft.rfftfreq(padded, _SAMPLE_INTERVAL / 1000)).astype(np.float32)
    for section in volume:
        section[:] = np.fft.irfft(np.fft.rfft(section, padded) * factor, padded)[:, :samples]


def _labelled(
    amplitude: Array,
    fault: Array,
    rgt: Array,
    **attributes: float | str,
) -> xr.Dataset:
    dims = ("inline", "crossline", "twt")
    ni, nc, nt = amplitude.shape
    return xr.Dataset(
        {
            "amplitude": (dims, amplitude, {"long_name": "seismic amplitude"}),
            "fault": (dims, fault, {"long_name": "fault"}),
            "rgt": (dims, rgt, {"long_name": "relative geological time", "units": "1"}),
        },
        {
            "inline": ("inline", np.arange(1001, 1001 + ni, dtype=np.int32)),
            "crossline": ("crossline", np.arange(2001, 2001 + 2 * nc, 2, dtype=np.int32)),
            "twt": (
                "twt",
                _START + _SAMPLE_INTERVAL * np.arange(nt),
                {"long_name": "two-way time", "units": "ms"},
            ),
        },
        {"title": "synthetic survey", **attributes},
    )


def _bin_centres(inlines: int, crosslines: int) -> tuple[Array, Array]:
    """Easting and northing in metres, (inlines, crosslines)."""
    sine, cosine = sine_cosine(30.0)
    along = 25.0 * np.arange(inlines)[:, None]
    across = 12.5 * np.arange(crosslines)
    return 431_250.0 + cosine * across + sine * along, 6_348_750.0 - sine * across + cosine * along


def _text_header(inlines: Array, crosslines: Array, twt: Array) -> str:
    import segyio

    step = crosslines[1] - crosslines[0]
    return segyio.tools.create_text_header(
        {
            1: "SYNTHETIC SURVEY, WRITTEN BY OUTCROP",
            2: "FOLDED AND FAULTED LAYERS, RICKER WAVELET, BAND-LIMITED NOISE",
            4: f"INLINES    {inlines[0]} TO {inlines[-1]}   BYTES 189-192",
            5: f"CROSSLINES {crosslines[0]} TO {crosslines[-1]} STEP {step}   BYTES 193-196",
            6: f"TWT        {twt[0]:g} TO {twt[-1]:g} MS STEP {twt[1] - twt[0]:g} MS",
            7: "CDP X, Y   BYTES 181-184, 185-188, CENTIMETRES (SCALAR -100)",
            8: "BINS       25 M ALONG INLINE NUMBERS, 12.5 M ALONG CROSSLINE NUMBERS",
            9: "DATUM      NONE: THE PLACE IS INVENTED",
            39: "SEG Y REV1",
            40: "END TEXTUAL HEADER",
        }
    )
