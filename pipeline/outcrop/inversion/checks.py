"""What is looked at before the first time step: each error is one line with a way out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from ..errors import ArgumentError, GeometryError, OutcropError, SurveyError
from .acquisition import check_acquisition, check_real, order, time_step
from .bands import highest_frequency, low_pass
from .gathers import Gathers
from .model import DIMS, Grid
from .physics import EQUATIONS, REACH, load_deepwave

# Shots whose positions are looked at together.
_PIECE = 64


class SamplingError(OutcropError):
    """A grid too coarse, or a time step too long, for velocities and frequencies."""


def check_model(model: xr.Dataset, equation: str) -> None:
    """Raise `SurveyError` unless a model has what an equation needs."""
    missing = [p for p in EQUATIONS[equation].parameters if p not in model]
    if missing:
        raise SurveyError(
            f"velocity: has no {' and no '.join(missing)}, which the {equation} equation needs; "
            "add it, or choose another equation"
        )
    if equation == "elastic" and is_no_solid(model["vp"].to_numpy(), model["vs"].to_numpy()):
        raise SurveyError(
            "velocity: vs is more than vp/√(4/3) somewhere, where no solid is; lower it"
        )


def is_no_solid(vp: np.ndarray, vs: np.ndarray) -> bool:
    """Whether some rock would swell when it is pressed."""
    return bool((vs > vp / math.sqrt(4 / 3)).any())


def largest_time_step(grid: Grid, velocity: float) -> float:
    """Longest time step, s, that is stable for a velocity: by Courant, Friedrichs and Lewy [1]_.

    References
    ----------
    .. [1] Courant, R., Friedrichs, K., and Lewy, H., 1928, Über die partiellen
       Differenzengleichungen der mathematischen Physik: Mathematische Annalen, 100, 32-74,
       https://doi.org/10.1007/BF01448839
    """
    courant = load_deepwave().DEFAULT_COURANT_NUMBER
    return courant / (velocity * math.sqrt(sum(1 / s**2 for s in grid.spacing)))


def check_sampling(
    model: xr.Dataset,
    grid: Grid,
    equation: str,
    wavelet: np.ndarray,
    corner: float | None,
    step: float,
    fastest: float,
    max_velocity: float,
    accuracy: int,
    substeps: bool,
) -> None:
    """Raise unless waves of these velocities and frequencies can be propagated on this grid.

    Parameters
    ----------
    model : xarray.Dataset
    grid : Grid
    equation : str
    wavelet : ndarray, (shot or 1, time)
    corner : float or None
        Of the low-pass filter on it, Hz.
    step : float
        Time step, s.
    fastest : float
        The highest vp that may occur, m/s.
    max_velocity : float
        From `highest_speed`.
    accuracy : int
        Order of the differences in space.
    substeps : bool
        Whether Deepwave may step in between samples of the traces.

    Raises
    ------
    SamplingError
        If the spacing gives fewer points per shortest wavelength than keep the error of the phase
        velocity below 1 %, or the time step is not stable.
    ArgumentError
        If a wavelet is silent, or cut off.
    """
    if not (np.isfinite(wavelet).all() and wavelet.any(axis=-1).all()):
        which = "wavelet" if len(wavelet) == 1 else "wavelet of a shot"
        raise ArgumentError(f"{which}: is zero, NaN or infinite; pass another")
    if (np.abs(wavelet[..., [0, -1]]).max(axis=-1) > 0.05 * np.abs(wavelet).max(axis=-1)).any():
        raise ArgumentError(
            "wavelet: is cut off at the start or the end of the traces; shift it, take a higher "
            "frequency, or more samples"
        )
    speeds = {name: model[name].to_numpy() for name in ("vp", "vs") if name in model}
    highest = highest_frequency(low_pass(wavelet, corner, step), step)
    check_dispersion(speeds, grid, equation, highest, accuracy)
    longest = largest_time_step(grid, max_velocity)
    if step > longest * (1 + 1e-9) and not substeps:
        wider, above, lower = step / longest, "", ""
        if fastest > float(model["vp"].max()):
            above = ", the upper bound (1.3 times the highest unless bounds are given),"
            lower = ", or pass lower bounds"
        if max_velocity > fastest * (1 + 1e-5):
            above += f" with contrasts of the model, which count as {max_velocity:.6g} m/s,"
        raise SamplingError(
            f"time step {1000 * step:g} ms: is not stable for {fastest:g} m/s{above} on a "
            f"spacing of {_list(grid.spacing)} m; take {_down(1000 * longest)} ms, or a spacing of "
            f"{_list([_up(s * wider) for s in grid.spacing])} m, or let Deepwave step in between "
            "with substeps=True (substeps: true)" + lower
        )


def check_dispersion(
    speeds: Mapping[str, np.ndarray],
    grid: Grid,
    equation: str,
    highest: float,
    accuracy: int,
) -> None:
    """Raise `SamplingError` if a grid is too coarse for the slowest waves: see `check_sampling`.

    Parameters
    ----------
    speeds : mapping of str to ndarray
        `vp`, and `vs` where the equation has it, m/s.
    grid : Grid
    equation : str
    highest : float
        Frequency that is propagated, Hz.
    accuracy : int
    """
    slowest, what = float(speeds["vp"].min()), "vp"
    if equation == "elastic" and (solid := speeds["vs"] > 0).any():
        slowest, what = float(speeds["vs"][solid].min()), "vs"
    needed = load_deepwave().suggest_discretisation(
        slowest, highest, len(grid.dims), accuracy, propagator=equation, min_points_per_wavelength=1
    )
    coarsest = max(grid.spacing)
    if coarsest > needed.grid_spacing[0] * (1 + 1e-6):
        points = slowest / highest / coarsest
        raise SamplingError(
            f"spacing {coarsest:g} m: {points:.2g} points in the shortest wavelength "
            f"({slowest:g} m/s of {what} at {highest:.3g} Hz), and accuracy {accuracy} needs "
            f"{needed.points_per_wavelength:g}; take a spacing of {_down(needed.grid_spacing[0])} "
            f"m, or nothing above {_down(highest * needed.grid_spacing[0] / coarsest)} Hz"
        )


def check_bands(bands: Sequence[float | None], step: float) -> None:
    """Raise `ArgumentError` unless every corner lies below the Nyquist frequency of a time step."""
    if not bands:
        raise ArgumentError("bands: is empty; pass one or more, None (null) for no filter")
    for corner in bands:
        if corner is not None and not 0 < corner < 0.5 / step:
            raise ArgumentError(
                f"bands: {corner:g} Hz is not between 0 and the Nyquist frequency, {0.5 / step:g} "
                "Hz"
            )


def check_gathers(gathers: Gathers, grid: Grid, name: str) -> tuple[bool, int]:
    """Look at every position, some shots at a time; warn where they look like other units.

    Returns
    -------
    between : bool
        Whether any is between samples.
    spread : int
        Samples that the receivers of a shot are spread over, at most, if they are interpolated.

    Raises
    ------
    GeometryError
        If a source or a receiver is outside the model, or two of a shot's receivers are at the
        same place.
    """
    between, spread, widest = False, 0, 0.0
    for start in range(0, gathers.count, _PIECE):
        shots = np.arange(start, min(start + _PIECE, gathers.count))
        sources = grid.cells(gathers.sources(shots))[:, None]
        receivers, live = gathers.receivers(shots)
        receivers = grid.cells(receivers)
        _check_inside(gathers, grid, sources, np.ones(sources.shape[:2], bool), shots, "source")
        _check_inside(gathers, grid, receivers, live, shots, "receiver")
        if not live.any(axis=1).all():
            shot = shots[~live.any(axis=1)][0]
            raise GeometryError(f"{name}: shot {shot} has no receiver; leave it out")
        for shot, row, here in zip(shots, receivers, live, strict=True):
            places, counts = np.unique(row[here], axis=0, return_counts=True)
            if (counts > 1).any():
                twice = np.flatnonzero((row == places[counts > 1][0]).all(axis=1))
                raise GeometryError(
                    f"{name}: receivers {twice[0]} and {twice[1]} of shot {shot} are at the same "
                    "place; leave one out"
                )
            window = 2 * REACH
            around = np.ptp(np.floor(row[here]), axis=0) + window
            widest = max(widest, np.ptp(row[here], axis=0).max() if here.sum() > 1 else 1.0)
            spread = max(spread, int(min(around.prod(), here.sum() * window**around.size)))
        between |= bool((sources % 1).any()) or bool((receivers[live] % 1).any())
        if gathers.has_common_spread:
            rest = np.arange(start, gathers.count)
            sources = grid.cells(gathers.sources(rest))[:, None]
            everywhere = np.ones(sources.shape[:2], bool)
            _check_inside(gathers, grid, sources, everywhere, rest, "source")
            between |= bool((sources % 1).any())
            break
    if widest < 1:
        warnings.warn(
            f"{name}: the receivers of every shot are less than a sample of the model apart; are "
            "positions in km, or scaled once too often?",
            stacklevel=4,
        )
    return between, spread


def check_line(shots: xr.Dataset, grid: Grid, name: str) -> None:
    """Warn if sources and receivers lie off a 2-D model, which knows no distance across it."""
    if len(grid.dims) == 3:
        return
    along = grid.dims[1]
    (across,) = set(DIMS[1:]) - {along}
    if f"source_{across}" not in shots or f"receiver_{across}" not in shots:
        return
    gathers, lost = Gathers(shots, (along, across)), 0.0
    for start in range(0, gathers.count, _PIECE):
        numbers = np.arange(start, min(start + _PIECE, gathers.count))
        apart = gathers.receivers(numbers)[0] - gathers.sources(numbers)[:, None]
        shorter = np.hypot(*np.moveaxis(apart, -1, 0)) - np.abs(apart[..., 0])
        lost = max(lost, float(np.nan_to_num(shorter).max()))
    if lost > grid.spacing[1]:
        warnings.warn(
            f"{name}: offsets are up to {lost:.4g} m longer than along {along}, all that a 2-D "
            "model knows of: modelled waves come too early; was the azimuth at ingest that of the "
            "line?",
            stacklevel=4,
        )


def check_surface(gathers: Gathers, grid: Grid, equation: str, vertical: bool) -> None:
    """Raise `GeometryError` if a position is too near to a free surface.

    On the surface itself there is no pressure. Where one lies between samples in depth it is spread
    over `REACH` of them, beyond the surface too; with the scalar equation Deepwave takes the
    image there.
    """
    for start in range(0, gathers.count, _PIECE):
        shots = np.arange(start, min(start + _PIECE, gathers.count))
        receivers, live = gathers.receivers(shots)
        sources = gathers.sources(shots)
        depths = np.concatenate([grid.cells(p)[:, 0] for p in (sources, receivers[live])])
        between = (depths % 1 > 0) | vertical
        near = (depths <= 0) | (between & (depths < REACH) & (equation != "scalar"))
        if near.any():
            depth = grid.origin[0] + depths[near].min() * grid.spacing[0]
            least = grid.origin[0] + REACH * grid.spacing[0]
            where = f"at {least:g} m or deeper"
            if equation == "scalar":
                where = "below it"
            elif not vertical:
                where = f"below it at samples of the model, or {where}"
            raise GeometryError(
                f"shots {shots[0]} to {shots[-1]}: a position at depth {depth:g} m is too near to "
                f"the free surface; put all {where}"
            )


def _check_inside(
    gathers: Gathers,
    grid: Grid,
    cells: np.ndarray,
    live: np.ndarray,
    shots: np.ndarray,
    what: str,
) -> None:
    if np.isnan(cells[live]).any():
        shot = shots[(np.isnan(cells).any(axis=-1) & live).any(axis=1)][0]
        raise GeometryError(f"shot {shot}: the {what} has no position (NaN)")
    outside = ((cells < 0) | (cells > np.array(grid.shape) - 1)) & live[..., None]
    if not outside.any():
        return
    n, k, axis = np.argwhere(outside)[0]
    dim, at = grid.dims[axis], grid.origin[axis] + cells[n, k, axis] * grid.spacing[axis]
    last = grid.origin[axis] + (grid.shape[axis] - 1) * grid.spacing[axis]
    which = f"shot {shots[n]}" if what == "source" else f"receiver {k} of shot {shots[n]}"
    raise GeometryError(
        f"{which}: the {what} is at {dim} {at:g} m, and the model goes from "
        f"{grid.origin[axis]:g} to {last:g} m there; extend the model, or leave it out"
    )


def check_times(shots: xr.Dataset, wavelet: xr.DataArray, name: str) -> tuple[float, int]:
    """Return time step (s) and number of samples of traces and wavelet, which must be the same.

    Raises
    ------
    SurveyError
        If they differ, or either is not evenly spaced or starts at another time than 0.
    """
    steps = []
    for label, array in ((name, shots), ("wavelet", wavelet)):
        if "time" not in array.coords:
            raise SurveyError(f"{label}: has no time coordinate; give it one, in s")
        steps.append(time_step(array["time"], label))
        if abs(float(array["time"][0])) > 1e-9:
            raise SurveyError(
                f"{label}: time starts at {float(array['time'][0]):g}; pad or cut it to start at "
                "0, when the source fires"
            )
    (step, own), samples = steps, shots.sizes["time"]
    if wavelet.sizes["time"] != samples or not math.isclose(step, own, rel_tol=1e-4):
        raise SurveyError(
            f"wavelet: has {wavelet.sizes['time']} samples of {1000 * own:g} ms, the traces "
            f"{samples} of {1000 * step:g} ms; make it like the traces, zeros at its end"
        )
    check_real(wavelet.rename("samples"), "wavelet")
    if not set(wavelet.dims) <= {"shot", "time"}:
        over = order(wavelet.dims)
        raise SurveyError(f"wavelet: is over {over} instead of (time) or (shot, time)")
    if "shot" in wavelet.dims and wavelet.sizes["shot"] != shots.sizes["shot"]:
        raise SurveyError(
            f"wavelet: has {wavelet.sizes['shot']} shots, {name} {shots.sizes['shot']}; pass one "
            "for each, or one for all"
        )
    return step, samples


def check_shots(shots: xr.Dataset, dims: tuple[str, ...], name: str, observed: bool) -> None:
    """Raise `SurveyError` unless a dataset has an acquisition, and traces if they are needed."""
    check_acquisition(shots, dims, name)
    if shots.sizes["shot"] == 0:
        raise SurveyError(f"{name}: has no shots; select some, or pass others")
    if not observed:
        return
    if "amplitude" not in shots:
        raise SurveyError(
            f"{name}: has no amplitude (shot, receiver, time); ingest it with outcrop ingest "
            "--shots, or model it with outcrop.inversion.model_shots"
        )
    if shots["amplitude"].dims != ("shot", "receiver", "time"):
        raise SurveyError(
            f"{name}: amplitude is over {shots['amplitude'].dims} instead of shot, receiver, time"
        )
    check_real(shots["amplitude"], name)
    if "weight" in shots:
        check_real(shots["weight"], name)
        if shots["weight"].dims not in (("shot", "receiver"), ("shot", "receiver", "time")):
            raise SurveyError(
                f"{name}: weight is over {order(shots['weight'].dims)} instead of (shot, receiver) "
                "or (shot, receiver, time); transpose it, or broadcast it to amplitude"
            )


def _down(value: float) -> str:
    """Three digits, not above the value."""
    scale = 10 ** (math.floor(math.log10(value)) - 2)
    return f"{math.floor(value / scale * (1 + 1e-12)) * scale:.3g}"


def _up(value: float) -> float:
    scale = 10 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / scale * (1 - 1e-12)) * scale


def _list(values: object) -> str:
    return " × ".join(f"{v:.6g}" for v in dict.fromkeys(values))  # type: ignore[call-overload]
