"""Where sources fire and receivers listen, and what the sources emit."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import xarray as xr

from ..errors import ArgumentError, SurveyError
from .kinds import check_kinds, numbers_of
from .model import DIMS, Model, grid_of, open_model


def ricker(frequency: float, time_step: float, samples: int) -> xr.DataArray:
    """Return a Ricker wavelet [1]_, its peak one period and a half after the first sample.

    Parameters
    ----------
    frequency : float
        Of the peak of its spectrum, Hz.
    time_step : float
        In seconds.
    samples : int

    Returns
    -------
    xarray.DataArray
        float64, (time,).

    Raises
    ------
    ArgumentError
        If the frequency is not between 0 and the Nyquist frequency, or one is no number.

    References
    ----------
    .. [1] Ricker, N., 1953, The form and laws of propagation of seismic wavelets: Geophysics,
       18, 10-40, https://doi.org/10.1190/1.1437843
    """
    check_kinds(
        {
            "ricker: frequency": frequency,
            "ricker: time_step": time_step,
            "ricker: samples": samples,
        }
    )
    if not (time_step > 0 and 0 < frequency < 0.5 / time_step):
        raise ArgumentError(
            f"ricker: {frequency:g} Hz is not between 0 and the Nyquist frequency of a time step "
            f"of {1000 * time_step:g} ms; pass a lower one above 0, or a shorter time step"
        )
    time = time_step * np.arange(samples)
    phase = (np.pi * frequency * (time - 1.5 / frequency)) ** 2
    return wavelet((1 - 2 * phase) * np.exp(-phase), time_step)


def wavelet(values: Sequence[float] | np.ndarray, time_step: float) -> xr.DataArray:
    """Label the samples of a wavelet: (time,), or (shot, time) where sources differ.

    Parameters
    ----------
    values : array_like
    time_step : float
        In seconds.

    Raises
    ------
    ArgumentError
        If they are no numbers over one or two axes.
    """
    check_kinds({"wavelet: time_step": time_step})
    values = numbers_of(values, "wavelet").astype(np.float64)
    if values.ndim not in (1, 2) or not values.size:
        raise ArgumentError(f"wavelet: has shape {values.shape}; pass samples, ([shot,] time)")
    time = time_step * np.arange(values.shape[-1])
    return xr.DataArray(
        values,
        dims=("shot", "time")[-values.ndim :],
        coords={"time": ("time", time, {"units": "s", "long_name": "recording time"})},
        name="wavelet",
        attrs={"units": "1", "long_name": "source time function"},
    )


def positions(
    sources: np.ndarray,
    receivers: np.ndarray,
    wavelet: xr.DataArray,
    dims: Sequence[str] = DIMS,
) -> xr.Dataset:
    """Build an acquisition from positions.

    Parameters
    ----------
    sources : array_like, (shot, axis)
        In metres along `dims`.
    receivers : array_like, (receiver, axis) or (shot, receiver, axis)
        In metres: the same for all shots, or those of each. NaN where a shot has fewer.
    wavelet : xarray.DataArray, (time,) or (shot, time)
        From `ricker` or `outcrop.inversion.wavelet`.
    dims : sequence of str
        Axes of the model: depth, crossline, inline; depth and one of the others in 2-D.

    Returns
    -------
    xarray.Dataset
        `source_DIM` (shot), `receiver_DIM` ([shot,] receiver) in m, `wavelet`, `time` in s.

    Raises
    ------
    ArgumentError
        If the shapes do not fit each other, or something is no number or no axis of a model.
    """
    if isinstance(dims, str) or len({*dims} & {*DIMS}) < len(dims):
        raise ArgumentError(f"dims={dims!r}: pass some of {', '.join(DIMS)}")
    if not isinstance(wavelet, xr.DataArray):
        raise ArgumentError(f"wavelet: is a {type(wavelet).__name__}; pass what ricker gives")
    sources = numbers_of(sources, "sources").astype(np.float64)
    receivers = numbers_of(receivers, "receivers").astype(np.float64)
    if sources.ndim != 2 or receivers.ndim not in (2, 3) or sources.shape[-1] != len(dims):
        raise ArgumentError(
            f"sources {sources.shape}, receivers {receivers.shape}: pass (shot, {len(dims)}) and "
            f"([shot,] receiver, {len(dims)}), metres along {', '.join(dims)}"
        )
    if receivers.shape[-1] != len(dims) or (receivers.ndim == 3 and len(receivers) != len(sources)):
        raise ArgumentError(
            f"receivers {receivers.shape}: do not fit sources {sources.shape}; pass "
            f"({len(sources)}, receiver, {len(dims)}), or (receiver, {len(dims)}) for all shots"
        )
    if wavelet.sizes.get("shot", len(sources)) != len(sources):
        raise ArgumentError(
            f"wavelet: has {wavelet.sizes['shot']} shots, and there are {len(sources)} sources; "
            "pass one for each, or one for all"
        )
    spread = ("shot", "receiver")[-(receivers.ndim - 1) :]
    variables: dict[str, tuple] = {}
    for axis, dim in enumerate(dims):
        attrs = {"units": "m", "long_name": f"source position along {dim}"}
        variables[f"source_{dim}"] = ("shot", sources[:, axis], attrs)
        attrs = {"units": "m", "long_name": f"receiver position along {dim}"}
        variables[f"receiver_{dim}"] = (spread, receivers[..., axis], attrs)
    return xr.Dataset({"wavelet": wavelet}, coords=variables)


def surface_grid(
    velocity: Model,
    *,
    sources: tuple[int, ...],
    receivers: tuple[int, ...],
    wavelet: xr.DataArray,
    depth: float | None = None,
    inset: int = 2,
) -> xr.Dataset:
    """Sources and receivers on regular grids at one depth; all receivers listen to every shot.

    Parameters
    ----------
    velocity : xarray.DataArray, xarray.Dataset or path
        The model that they lie on.
    sources, receivers : tuple of int
        How many along crossline and inline; along the line in 2-D.
    wavelet : xarray.DataArray
    depth : float, optional
        In metres; that of the second sample of the model unless given.
    inset : int
        Samples between the outermost of them and the edge of the model.

    Returns
    -------
    xarray.Dataset
        As `positions` gives. Positions are those of samples of the model.

    Raises
    ------
    ArgumentError
        If an argument is of another kind, or the model has no room for so many.
    SurveyError
        If the model lacks something.
    """
    check_kinds(
        {
            "velocity": velocity,
            "surface_grid: sources": sources,
            "surface_grid: receivers": receivers,
            "surface_grid: depth": depth,
            "surface_grid: inset": inset,
        }
    )
    model = open_model(velocity)
    dims = grid_of(model).dims
    lateral = dims[1:]
    for name, counts in (("sources", sources), ("receivers", receivers)):
        if len(counts) != len(lateral):
            raise ArgumentError(f"{name} {counts}: pass how many along {', '.join(lateral)}")
    level = float(model["depth"][1]) if depth is None else float(depth)

    def spread(counts: tuple[int, ...]) -> np.ndarray:
        axes = [np.array([level])]
        for dim, count in zip(lateral, counts, strict=True):
            at = model[dim].to_numpy().astype(np.float64)
            if at.size < count + 2 * inset:
                raise ArgumentError(
                    f"{count} positions along {dim}: the model has {at.size} samples there, "
                    f"{inset} of them left free at either end; choose fewer, or a smaller inset"
                )
            middle = count == 1
            low, high = inset, at.size - 1 - inset
            where = [(low + high) / 2] if middle else np.linspace(low, high, count)
            axes.append(at[np.rint(where).astype(int)])
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(dims))

    return positions(spread(sources), spread(receivers), wavelet, dims)


def streamer(
    velocity: Model,
    *,
    first: tuple[float, ...],
    shots: int,
    shot_spacing: float,
    receivers: int,
    receiver_spacing: float,
    offset: float,
    wavelet: xr.DataArray,
    cables: int = 1,
    cable_spacing: float = 0.0,
    source_depth: float | None = None,
    receiver_depth: float | None = None,
) -> xr.Dataset:
    """A vessel that sails along the inline axis and tows streamers behind it.

    Parameters
    ----------
    velocity : xarray.DataArray, xarray.Dataset or path
        The model.
    first : tuple of float
        First source position in metres: (crossline, inline), or (inline,) in 2-D.
    shots : int
    shot_spacing : float
        From one shot to the next, m; negative to sail towards smaller coordinates.
    receivers : int
        On each cable.
    receiver_spacing, offset : float
        Between receivers, and from the source to the nearest ones, m.
    wavelet : xarray.DataArray
    cables : int
    cable_spacing : float
        Across, m; the cables lie on either side of the source. 3-D alone.
    source_depth, receiver_depth : float, optional
        In metres; that of the second sample of the model unless given.

    Returns
    -------
    xarray.Dataset
        As `positions` gives, with receivers of each shot.

    Raises
    ------
    ArgumentError
        If an argument is of another kind, or does not fit the model.
    SurveyError
        If the model lacks something.
    """
    check_kinds(
        {
            "velocity": velocity,
            "streamer: first": first,
            "streamer: shots": shots,
            "streamer: shot_spacing": shot_spacing,
            "streamer: receivers": receivers,
            "streamer: receiver_spacing": receiver_spacing,
            "streamer: offset": offset,
            "streamer: cables": cables,
            "streamer: cable_spacing": cable_spacing,
            "streamer: source_depth": source_depth,
            "streamer: receiver_depth": receiver_depth,
        }
    )
    model = open_model(velocity)
    dims = grid_of(model).dims
    if len(first) != len(dims) - 1 or (len(dims) == 2 and cables != 1):
        raise ArgumentError(
            f"first {first}, {cables} cables: pass the position along {', '.join(dims[1:])}"
            + ("" if len(dims) == 3 else " and one cable")
        )
    sails = 1.0 if shot_spacing >= 0 else -1.0
    level = float(model["depth"][1])
    sources = np.tile(np.array([level, *first], dtype=np.float64), (shots, 1))
    if source_depth is not None:
        sources[:, 0] = source_depth
    sources[:, -1] += shot_spacing * np.arange(shots)
    behind = sails * (offset + receiver_spacing * np.arange(receivers))
    spread = np.tile(sources[:, None, None, :], (1, cables, receivers, 1))
    spread[..., 0] = level if receiver_depth is None else receiver_depth
    spread[..., -1] -= behind
    if len(dims) == 3:
        across = cable_spacing * (np.arange(cables) - (cables - 1) / 2)
        spread[..., 1] += across[:, None]
    return positions(sources, spread.reshape(shots, -1, len(dims)), wavelet, dims)


def check_acquisition(acquisition: xr.Dataset, dims: Sequence[str], name: str) -> None:
    """Raise `SurveyError` unless a dataset says where sources and receivers are, in metres."""
    for dim in dims:
        for variable, orders in (
            (f"source_{dim}", (("shot",),)),
            (f"receiver_{dim}", (("receiver",), ("shot", "receiver"))),
        ):
            if variable not in acquisition.variables:
                raise SurveyError(
                    f"{name}: has no {variable}, the position along the model's {dim} in m; build "
                    "it with outcrop.inversion.positions or outcrop ingest --shots"
                )
            found = acquisition[variable]
            if found.dims not in orders:
                raise SurveyError(
                    f"{name}: {variable} is over {order(found.dims)} instead of "
                    f"{' or '.join(map(order, orders))}; transpose it"
                )
            units = found.attrs.get("units", "m")
            if units not in ("m", "metre", "metres", "meter", "meters"):
                raise SurveyError(f"{name}: {variable} is in {units}; convert it to m")
            check_real(found, name)
    laid = {acquisition[f"receiver_{dim}"].dims for dim in dims}
    if len(laid) != 1:
        raise SurveyError(f"{name}: receiver positions have different dimensions: {laid}")


def check_real(array: xr.DataArray, name: str) -> None:
    """Raise `SurveyError` if a variable holds something else than real numbers."""
    if array.dtype.kind not in "iuf":
        raise SurveyError(f"{name}: {array.name} is {array.dtype}; make it real numbers")


def order(dims: Iterable[Hashable]) -> str:
    """Dimensions, as messages name them."""
    return f"({', '.join(map(str, dims))})"


def time_step(time: xr.DataArray, name: str) -> float:
    """Seconds from one sample to the next.

    Raises
    ------
    SurveyError
        If samples are not evenly spaced, or in another unit than s or ms.
    """
    units = time.attrs.get("units", "s")
    scale = {"s": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "millisecond": 1e-3}.get(units)
    if scale is None:
        raise SurveyError(f"{name}: time is in {units}; convert it to s or ms")
    at = time.to_numpy().astype(np.float64) * scale
    steps = np.diff(at)
    if at.size < 2 or steps[0] <= 0 or not np.allclose(steps, steps[0], rtol=1e-4):
        raise SurveyError(f"{name}: time is not evenly spaced and ascending; resample the traces")
    return float(f"{(at[-1] - at[0]) / (at.size - 1):.9g}")
