"""Pictures of an inversion: models on three sections, the misfit, gathers before and after."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from ..arrays import spoken
from ..errors import OutcropError, SurveyError
from .save import save
from .sections import BLANK, edges, number_axes, plain

_WIDTH, _HEIGHT = 3.0, 2.3  # inches, of a panel


def draw_inversion(
    found: xr.Dataset,
    observed: xr.Dataset,
    folder: str | os.PathLike[str],
    true: xr.DataArray | None = None,
    wavelet: xr.DataArray | None = None,
    *,
    shot: int | None = None,
    **options: Any,
) -> list[Path]:
    """Draw an inversion into `models.png`, `misfit.png` and `gathers.png`.

    Of other parameters than vp that changed there is a `models-NAME.png` each. Gathers are drawn as
    the last band has them. If they cannot be modelled over one of the models, such as for a spacing
    that is too wide for what became slower, a warning says so.

    Parameters
    ----------
    found : xarray.Dataset
        From `outcrop.inversion.invert`.
    observed : xarray.Dataset
        The gathers.
    folder : path-like
    true : xarray.DataArray, optional
        P-wave velocity, where it is known.
    wavelet : xarray.DataArray, optional
        The one in `observed` unless given.
    shot : int, optional
        Whose gather is drawn; the middle one unless given. It is modelled over both models.
    **options
        Of propagation, as `invert` was called with.

    Returns
    -------
    list of pathlib.Path
        What was drawn.
    """
    folder = Path(folder)
    start, last = (_model(found, iteration) for iteration in (0, -1))
    paths = []
    for name in start:
        if f"{name}_history" not in found:
            continue
        models = {"start": start[name]}
        if true is not None and name == "vp":
            models["true"] = true
        models["inverted"] = last[name]
        paths.append(folder / ("models.png" if name == "vp" else f"models-{name}.png"))
        draw_models(models, path=paths[-1])
    paths += [folder / "misfit.png", folder / "gathers.png"]
    draw_misfit(found, path=paths[-2])
    number = observed.sizes["shot"] // 2 if shot is None else shot
    one = observed.isel(shot=[number]).load()
    if wavelet is not None:
        own = wavelet.isel(shot=[number]) if "shot" in wavelet.dims else wavelet
        one["wavelet"] = own.dims, own.to_numpy()  # their times may differ by rounding
    try:
        gathers = _gathers(one, {"start": start, "inverted": last}, found, options)
    except OutcropError as error:
        warnings.warn(f"{paths[-1]}: is not drawn: {error}", stacklevel=2)
        return paths[:-1]
    draw_gathers(gathers, path=paths[-1], title=f"shot {number}")
    return paths


def _gathers(
    observed: xr.Dataset,
    models: Mapping[str, xr.Dataset],
    found: xr.Dataset,
    options: Mapping[str, Any],
) -> dict[str, xr.DataArray]:
    """The gather of a shot, as it was observed and over models, by titles."""
    from ..inversion import model_shots
    from ..inversion.acquisition import time_step
    from ..inversion.bands import low_pass

    corner = float(found["corner"][-1])
    if not np.isnan(corner):
        step = time_step(observed["time"], "observed")
        for name in ("amplitude", "wavelet"):
            filtered = low_pass(observed[name].to_numpy().astype(float), corner, step)
            observed[name] = observed[name].copy(data=filtered)
    plan = observed.drop_vars("amplitude")
    gathers = {"observed": observed["amplitude"][0]}
    for title, model in models.items():
        gathers[f"modelled, {title}"] = model_shots(model, plan, **options)["amplitude"][0]
    return gathers


def draw_models(
    models: Mapping[str, xr.DataArray],
    *,
    at: Mapping[str, float] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw models side by side, on three sections in 3-D, and what the last changed of the first.

    Depth goes downwards, whatever the order of the axes.

    Parameters
    ----------
    models : mapping of str to xarray.DataArray
        By their titles, over the same axes; all but the change in the same colours.
    at : mapping of str to float, optional
        Where to cut, in m by axis; where the last changed the first most unless given.
    path : path-like, optional
        Picture to write.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    SurveyError
        If models have different shapes.
    """
    titles = list(models)
    first, last = models[titles[0]], models[titles[-1]]
    for title, model in models.items():
        if model.sizes != first.sizes:
            raise SurveyError(f"{title}: has {dict(model.sizes)}, others {dict(first.sizes)}")
    change = last.transpose(*first.dims).astype(float) - first.to_numpy()
    dims = [str(d) for d in first.dims]
    most = np.unravel_index(np.nan_to_num(np.abs(change.to_numpy())).argmax(), change.shape)
    index = {dim: int(i) for dim, i in zip(dims, most, strict=True)}
    for dim, value in (at or {}).items():
        index[dim] = int(np.abs(first[dim].to_numpy() - value).argmin())
    cuts = [d for d in ("inline", "crossline", "depth") if d in dims] if len(dims) == 3 else [None]
    columns = [*models.items()]
    if len(columns) > 1:
        columns.append((f"{titles[-1]} − {titles[0]}", change))
    low = min(float(m.min()) for m in models.values())
    high = max(float(m.max()) for m in models.values())
    widest = float(np.abs(change).max()) or 1.0
    figure = Figure(
        figsize=(_WIDTH * len(columns) + 1.0, _HEIGHT * len(cuts) + 0.4), layout="constrained"
    )
    axes = figure.subplots(len(cuts), len(columns), squeeze=False)
    for row, cut in zip(axes, cuts, strict=True):
        down, across = sorted((d for d in dims if d != cut), key=lambda dim: dim != "depth")
        is_map = down != "depth"
        for ax, (title, model) in zip(row, columns, strict=True):
            section = model if cut is None else model.isel({cut: index[cut]})
            changed = title not in models
            drawn = ax.imshow(
                section.transpose(down, across),
                cmap="RdBu_r" if changed else "viridis",
                vmin=-widest if changed else low,
                vmax=widest if changed else high,
                extent=(*edges(first, across), *sorted(edges(first, down), reverse=not is_map)),
                origin="lower" if is_map else "upper",
                aspect="equal",
            )
            where = "" if cut is None else f", {cut} {spoken(first[cut].values[index[cut]])} m"
            ax.set_title(plain(f"{title}{where}"), fontsize="small")
            number_axes(ax, _WIDTH, 7)
            ax.tick_params(labelsize="x-small")
            ax.set_xlabel(f"{across} (m)", fontsize="small")
            if ax is row[0]:
                ax.set_ylabel(f"{down} (m)", fontsize="small")
            if title == titles[-1] or changed:
                _colour_bar(figure, drawn, ax, first.attrs.get("units", ""))
    return _saved(figure, path)


def draw_misfit(found: xr.Dataset, *, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the misfit of each iteration, relative to the first of its frequency band.

    Parameters
    ----------
    found : xarray.Dataset
        From `outcrop.inversion.invert`.
    path : path-like, optional
        Picture to write.

    Returns
    -------
    matplotlib.figure.Figure
    """
    misfit, corner = found["misfit"].to_numpy(), found["corner"].to_numpy()
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    ax = figure.subplots()
    starts = [0, *(np.flatnonzero(~_same(corner[1:], corner[:-1])) + 1), len(misfit)]
    for begin, end in itertools.pairwise(starts):
        label = "all frequencies" if np.isnan(corner[begin]) else f"below {corner[begin]:g} Hz"
        part = misfit[begin:end]
        ax.semilogy(np.arange(begin, end), part / part[0], "o-", ms=3, label=label)
    ax.set_xlabel("iteration")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("misfit / first of its band")
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize="small")
    return _saved(figure, path)


def draw_gathers(
    gathers: Mapping[str, xr.DataArray],
    *,
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw gathers of one shot, and how far the others are from the first.

    The differences have colours of their own, the same for all of them. A trace that is zero
    throughout, of a dead channel or where a shot has no receiver, is left blank.

    Parameters
    ----------
    gathers : mapping of str to xarray.DataArray
        (receiver, time) by their titles.
    path : path-like, optional
        Picture to write.
    title : str, optional

    Returns
    -------
    matplotlib.figure.Figure
    """
    gathers = {title: gather.where((gather != 0).any("time")) for title, gather in gathers.items()}
    observed, *others = gathers.items()
    apart = {f"{observed[0]} − {t}": observed[1] - g.to_numpy() for t, g in others}
    clips = {name: _clip(*gathers.values()) for name in gathers}
    clips |= {name: _clip(*apart.values()) for name in apart}
    columns = {**gathers, **apart}
    figure = Figure(figsize=(2.4 * len(columns) + 0.6, 4.0), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, (name, gather) in zip(axes, columns.items(), strict=True):
        time = gather["time"].to_numpy()
        drawn = ax.imshow(
            gather.transpose("time", "receiver"),
            cmap="gray",
            vmin=-clips[name],
            vmax=clips[name],
            extent=(-0.5, gather.sizes["receiver"] - 0.5, float(time[-1]), float(time[0])),
            aspect="auto",
        )
        ax.set_facecolor(BLANK)
        ax.set_title(plain(name), fontsize="small")
        ax.set_xlabel("receiver", fontsize="small")
        ax.tick_params(labelsize="x-small")
        if name in (list(gathers)[-1], list(columns)[-1]):
            _colour_bar(figure, drawn, ax)
    figure.axes[0].set_ylabel("time (s)", fontsize="small")
    if title:
        figure.suptitle(plain(title))
    return _saved(figure, path)


def _colour_bar(figure: Figure, drawn: AxesImage, ax: Axes, units: str = "") -> None:
    bar = figure.colorbar(drawn, ax=ax, shrink=0.8)
    bar.ax.tick_params(labelsize="x-small")
    bar.set_label(units, fontsize="x-small")


def _clip(*gathers: xr.DataArray) -> float:
    """Amplitude that the colours end at."""
    there = [values[np.isfinite(values)] for values in (np.abs(g.to_numpy()) for g in gathers)]
    return max((float(np.percentile(v, 99)) for v in there if v.size), default=0.0) or 1.0


def _model(found: xr.Dataset, iteration: int) -> xr.Dataset:
    """The model at the start of an iteration, parameters that did not change included."""
    parameters = [name for name in ("vp", "vs", "density") if name in found]
    model = {}
    for name in parameters:
        kept = f"{name}_history"
        values = found[kept].isel(iteration=iteration) if kept in found else found[name]
        model[name] = values.drop_vars("iteration", errors="ignore")
    return xr.Dataset(model).load()


def _saved(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    if path is not None:
        save(figure, path)
    return figure


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a == b) | (np.isnan(a) & np.isnan(b))
