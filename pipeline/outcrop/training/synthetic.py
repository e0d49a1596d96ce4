"""Synthetic surveys: folded, faulted layers whose faults and geological time are known.

A sample of the seismic image is traced back through the geological history, the youngest
event first: its place before each fault slipped, then before the layers were folded. What is
left is the depth at which it was laid down, its relative geological time, and a layered
reflectivity is looked up there. The wavelet comes last, so that it is not deformed.

The recipe is that of Wu, Liang, Shi & Fomel (2019), FaultSeg3D, Geophysics 84(3), IM35-IM45,
https://doi.org/10.1190/geo2018-0646.1, and Wu, Geng, Shi, Pham, Fomel & Caumon (2020), Building
realistic structure models to train convolutional neural networks for seismic structural
interpretation, Geophysics 85(4), WA27-WA39, https://doi.org/10.1190/geo2019-0375.1; the
labels beyond faults are those of Gao (2024), Geophysical Journal International 236(1), 565-592,
https://doi.org/10.1093/gji/ggad424. Slip dies out towards an elliptic tip line, as in Walsh &
Watterson (1987), Journal of Structural Geology 9(8), 1039-1046, and away from the fault on both
sides, as in Barnett et al. (1987), AAPG Bulletin 71(8), 925-937.
"""

from __future__ import annotations

import cmath
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from numbers import Integral
from pathlib import Path

import numpy as np
import xarray as xr

from ..errors import ArgumentError, OutputExistsError
from .geology import FINE, Array, Fault, Fold, draw_faults, reflectivity, sine_cosine
from .noise import coherent_noise as plane_events
from .noise import footprint as stripes
from .noise import random_noise, smooth, smooth_field, unit
from .wavelets import SAMPLE_INTERVAL, WAVELETS, filter_traces, ricker_spectrum

LABELS = ("fault", "fault_dip", "fault_strike", "rgt", "dhr")

_SLAB = 4  # inlines at a time, so that what is in work stays in the processor's cache
_START = 1000.0  # ms
_FEWEST = 2  # samples
_NYQUIST = 500.0 / SAMPLE_INTERVAL  # Hz
_SHARPER = 2.0  # peak frequency of the high-resolution image over that of the image


def synthetic_survey(
    shape: tuple[int, int, int] = (192, 192, 192),
    seed: int = 0,
    *,
    faults: int | Sequence[Fault] = 8,
    folding: float = 1.0,
    tilt: float = 0.12,
    layer_thickness: float = 3.0,
    peak_frequency: float | tuple[float, float] = 32.0,
    wavelet: str = "ricker",
    phase: float = 0.0,
    lateral_smoothing: int = 0,
    amplitude_variation: float = 0.0,
    noise: float = 0.2,
    noise_smoothing: int = 1,
    coherent_noise: float = 0.0,
    footprint: float = 0.0,
    labels: Sequence[str] = LABELS,
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
    folding : float
        Scales the heights of the folds.
    tilt : float
        By how much of the survey's depth layers rise or fall, at most, over its width.
    layer_thickness : float
        Mean, in samples.
    peak_frequency : float or tuple of float
        Of the wavelet, in Hz; of two, the first at the top, the second at the bottom.
    wavelet : {"ricker", "ormsby"}
        Its kind.
    phase : float
        Of the wavelet, in degrees.
    lateral_smoothing : int
        How often the image is averaged with its neighbouring traces: n times widen a break to
        about 2.4 √(n/2) traces, as the lateral resolution of migration does.
    amplitude_variation : float
        Standard deviation of the logarithm of a gain that varies smoothly through the volume.
    noise, coherent_noise : float
        Root mean square of band-limited random noise and of crossing plane events, as fractions
        of the signal's.
    noise_smoothing : int
        How often the random noise is averaged with that of its neighbouring traces.
    footprint : float
        Largest change of amplitude from line to line, as a fraction.
    labels : sequence of str
        Which of `LABELS` to return.

    Returns
    -------
    xarray.Dataset
        Over (inline, crossline, twt), 4 ms apart: `amplitude`, float32, of unit standard
        deviation, and of the labels those asked for: `fault`, bool, one or two samples thick;
        `fault_dip` and `fault_strike`, float32, degrees from 0 to 180, 0 where no fault is (the
        strike from the direction of increasing inlines towards that of increasing crosslines; a
        dip beyond 90 is to the left of the strike); `rgt`, float32, relative geological time
        from 0 (the youngest layer) to 1; `dhr`, float32, the image without noise, through a
        Ricker wavelet of twice the peak frequency and the same phase. The faults are in the
        attributes.

    Raises
    ------
    ArgumentError
        If a label or the wavelet is unknown, a frequency or the thickness of layers is not
        positive, or the shape, the seed or the number of faults is not possible.
    """
    check_shape(shape)
    peaks = [peak_frequency] if isinstance(peak_frequency, (int, float)) else [*peak_frequency]
    if strange := [name for name in labels if name not in LABELS]:
        raise ArgumentError(f"labels: {strange[0]!r} is none of {', '.join(LABELS)}")
    if wavelet not in WAVELETS:
        raise ArgumentError(f"wavelet {wavelet!r}: choose one of {', '.join(WAVELETS)}")
    if len(peaks) not in (1, 2) or not all(0 < peak < _NYQUIST for peak in peaks):
        raise ArgumentError(
            f"peak_frequency {peak_frequency}: give one or two, above 0 and below {_NYQUIST:g} Hz"
        )
    if not layer_thickness > 0:
        raise ArgumentError(f"layer_thickness {layer_thickness}: choose more than 0 samples")
    rng = seeded(seed)
    if not isinstance(faults, Sequence):
        if not isinstance(faults, Integral) or faults < 0:
            raise ArgumentError(f"faults {faults}: choose how many, 0 or more, or give them")
        faults = draw_faults(rng, shape, faults)
    fold = Fold.draw(rng, shape, folding, tilt)
    first, table = reflectivity(rng, shape[2], layer_thickness)
    attitude = {"fault_dip", "fault_strike"} & set(labels)
    made: dict[str, Array] = {
        name: np.zeros(shape, bool if name == "fault" else np.float32)
        for name in {"fault", "rgt", *attitude}
    }
    amplitude = np.empty(shape, np.float32)

    y = np.arange(shape[1], dtype=np.float32)[:, None]
    z = np.arange(shape[2], dtype=np.float32)
    for start in range(0, shape[0], _SLAB):
        slab = slice(start, min(start + _SLAB, shape[0]))
        x = np.arange(slab.start, slab.stop, dtype=np.float32)[:, None, None]
        x0, y0, z0 = x, y, z
        on = made["fault"][slab]
        for one in reversed(faults):
            before = x0, y0, z0
            x0, y0, z0, here = one.undo(*before)
            if attitude:
                new = here & ~on
                points = (np.broadcast_to(a, on.shape)[new] for a in before)
                for name, angle in zip(LABELS[1:3], one.attitude(*points), strict=True):
                    if name in attitude:
                        made[name][slab][new] = angle
            on |= here
        age = fold.undo(x0, y0, z0)
        made["rgt"][slab] = age
        where = ((age - first) * FINE).astype(np.int32)
        amplitude[slab] = table.take(where, mode="clip")

    turn, kind = cmath.exp(1j * math.radians(phase)), WAVELETS[wavelet]

    def signal(frequency: Array, peak_frequency: float) -> Array:
        return turn * kind(frequency, peak_frequency)

    def sharp(frequency: Array, peak_frequency: float) -> Array:
        return turn * ricker_spectrum(frequency, _SHARPER * peak_frequency)

    if "dhr" in labels:
        made["dhr"] = amplitude.copy()
        filter_traces(made["dhr"], [partial(sharp, peak_frequency=p) for p in peaks])
        unit(made["dhr"])
    filter_traces(amplitude, [partial(signal, peak_frequency=p) for p in peaks])
    smooth(amplitude, lateral_smoothing)
    if amplitude_variation:
        amplitude *= np.exp(amplitude_variation * smooth_field(rng, shape, 4))
    unit(amplitude)

    def band(frequency: Array) -> Array:
        return kind(frequency, sum(peaks) / len(peaks))

    if noise:
        amplitude += noise * random_noise(rng, shape, band, noise_smoothing)
    if coherent_noise:
        amplitude += coherent_noise * plane_events(rng, shape, band)
    if footprint:
        amplitude *= stripes(rng, shape, footprint)
    unit(amplitude)
    made["rgt"] -= made["rgt"].min()
    made["rgt"] /= made["rgt"].max()
    return _labelled(
        amplitude,
        {name: made[name] for name in LABELS if name in labels},
        seed=seed,
        peak_frequency=json.dumps(peak_frequency),
        noise=noise,
        faults=json.dumps([asdict(f) for f in faults]),
    )


def check_shape(shape: Sequence[int]) -> None:
    """Raise `ArgumentError` unless a survey can have this shape."""
    whole = isinstance(shape, Sequence) and all(isinstance(n, Integral) for n in shape)
    if not whole or len(shape) != 3 or min(shape) < 1 or shape[2] < _FEWEST:
        raise ArgumentError(
            f"shape {shape}: give inlines, crosslines and samples, of which at least {_FEWEST}"
        )


def seeded(seed: int | Sequence[int]) -> np.random.Generator:
    """Return a generator of random numbers; raise `ArgumentError` if this seeds none."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"seed {seed!r}: choose a whole number, 0 or more") from error


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


_ATTRIBUTES = {
    "fault": {"long_name": "fault"},
    "fault_dip": {"long_name": "fault dip", "units": "degree"},
    "fault_strike": {"long_name": "fault strike", "units": "degree"},
    "rgt": {"long_name": "relative geological time", "units": "1"},
    "dhr": {"long_name": "high-resolution seismic amplitude"},
}


def _labelled(amplitude: Array, labels: dict[str, Array], **attributes: float | str) -> xr.Dataset:
    dims = ("inline", "crossline", "twt")
    ni, nc, nt = amplitude.shape
    return xr.Dataset(
        {
            "amplitude": (dims, amplitude, {"long_name": "seismic amplitude"}),
            **{name: (dims, label, _ATTRIBUTES[name]) for name, label in labels.items()},
        },
        {
            "inline": ("inline", np.arange(1001, 1001 + ni, dtype=np.int32)),
            "crossline": ("crossline", np.arange(2001, 2001 + 2 * nc, 2, dtype=np.int32)),
            "twt": (
                "twt",
                _START + SAMPLE_INTERVAL * np.arange(nt),
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

    step = crosslines[1] - crosslines[0] if len(crosslines) > 1 else 0
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
