"""Horizons on a section and as maps."""

from __future__ import annotations

import os

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..arrays import spoken
from ..errors import ArgumentError, SurveyError
from ..horizons import checked
from .save import save
from .sections import (
    BLANK,
    check_regular,
    check_volume,
    edges,
    label_of,
    number_axes,
    plain,
    slice_at,
    vertical_of,
)

_MAPS = 3
_NAMED = 8  # horizons in the legend, at most


def surfaces(
    seismic: xr.DataArray,
    horizons: xr.Dataset,
    *,
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw horizons on the middle inline, and up to three of them as maps.

    Where a trace is missing (`live` is false), nothing is drawn. Of a volume of one crossline that
    is drawn in place of an inline.

    Parameters
    ----------
    seismic : xarray.DataArray
        The volume that they were found in, or part of it.
    horizons : xarray.Dataset
        From `outcrop.horizons.horizons`; one of them (`found.isel(horizon=0)`), too.
    path : path-like, optional
        Picture to write, in the format of its suffix.
    title : str, optional
        Above the panels.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    SurveyError
        If the volume has other dimensions, an axis of it does not go in equal steps, or the
        horizons are not those of a volume with these axes.
    ArgumentError
        If the volume is no DataArray or empty, or `horizons` are none.
    """
    check_volume(seismic, "seismic")
    vertical = vertical_of(seismic)
    name, horizons = checked(horizons)
    if name != f"horizon_{vertical}":
        raise ArgumentError(
            f"horizons: have no horizon_{vertical}; pass what outcrop.horizons.horizons finds in a "
            f"volume with the seismic's {vertical}"
        )
    times = horizons[name]
    check_regular(seismic, ("inline", "crossline", vertical))
    for dim in ("inline", "crossline"):
        missing = np.setdiff1d(seismic[dim], times[dim])
        if missing.size:
            raise SurveyError(
                f"horizons: have no {dim} {spoken(missing[0])}, which the seismic has; draw them "
                "on the volume that they were found in"
            )
    times = times.sel(inline=seismic["inline"], crossline=seismic["crossline"])
    mapped = np.unique(np.linspace(0, times.sizes["horizon"] - 1, _MAPS).round().astype(int))
    figure = Figure(figsize=(6 + 3 * len(mapped), 4.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(mapped), width_ratios=(1.6, *(1,) * len(mapped)))
    cut, across = "inline", "crossline"
    if seismic.sizes[across] == 1:
        cut, across = across, cut
    at = {d: seismic[d].to_numpy()[seismic.sizes[d] // 2] for d in (cut, across)}
    section = slice_at(seismic, cut, at[cut], (vertical, across))
    drawn = np.abs(section.compressed())
    clip = float(np.percentile(drawn, 99)) or None if drawn.size else None
    low, high = edges(seismic, vertical)
    axes[0].imshow(
        section,
        cmap="gray",
        vmin=clip and -clip,
        vmax=clip,
        extent=(*edges(seismic, across), high, low),
        aspect="auto",
        interpolation="bilinear",
    )
    colours = colormaps["plasma"](np.linspace(0.1, 0.95, times.sizes["horizon"]))
    every = -(-len(colours) // _NAMED)
    for i, line in enumerate(times.sel({cut: at[cut]})):
        level = None if i % every else f"{float(line['horizon']):.6g}"
        axes[0].plot(seismic[across], line, lw=1.4, color=colours[i], label=level)
    axes[0].set_xlabel(across)
    axes[0].set_ylabel(label_of(seismic, vertical))
    axes[0].set_title(label_of(seismic, cut, at[cut]), fontsize="medium")
    axes[0].set_facecolor(BLANK)
    number_axes(axes[0], 2.8, 6)
    axes[0].legend(
        title="relative time",
        fontsize="x-small",
        title_fontsize="x-small",
        loc="upper right",
    )
    for ax, surface in zip(axes[1:], times.isel(horizon=mapped), strict=True):
        what = f"relative time {float(surface['horizon']):.6g}"
        shown = ax.imshow(
            surface.transpose("inline", "crossline"),
            cmap="viridis_r",
            extent=(*edges(seismic, "crossline"), *edges(seismic, "inline")),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
        )
        if surface.notnull().any():
            bar = figure.colorbar(shown, ax=ax, label=label_of(seismic, vertical), shrink=0.8)
            bar.ax.invert_yaxis()  # downwards, as in the section
        else:
            what += ": nowhere"
        ax.set_xlabel("crossline")
        ax.set_ylabel("inline")
        ax.set_title(what, fontsize="medium")
        number_axes(ax, 1.8, 3)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        if seismic.sizes["inline"] == 1:
            ax.set_yticks([at["inline"]])
        if seismic.sizes["crossline"] == 1:
            ax.set_xticks([at["crossline"]])
    if title:
        figure.suptitle(plain(title))
    if path is not None:
        save(figure, path, seismic)
    return figure
