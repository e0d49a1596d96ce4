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
    averaged,
    between,
    bins_of,
    check_regular,
    check_volume,
    edges,
    label_of,
    number_axes,
    outline,
    plain,
    slice_at,
    to_scale,
    vertical_of,
)

_MAPS = 3
_TALL = 3.6  # inches, of a map at most
_LOW = 2.0  # inches: lower maps lie below one another
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
    is drawn in place of an inline. Maps are to scale, as in `sections`; those of a volume that is
    much longer along its inlines lie below one another.

    Parameters
    ----------
    seismic : xarray.DataArray
        The volume that they were found in, part of it, or one that this is part of: then the
        section is the middle one of the part, and a dashed line in the maps is where it ends.
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
        if missing.size and not np.isin(times[dim], seismic[dim]).all():
            raise SurveyError(
                f"horizons: have no {dim} {spoken(missing[0])}, which the seismic has; draw them "
                "on the volume that they were found in"
            )
        times = times.isel({dim: np.isin(times[dim], seismic[dim])})
    part = times
    times = times.drop_vars(times.coords.keys() - set(times.dims))
    times = times.reindex(inline=seismic["inline"], crossline=seismic["crossline"])
    mapped = np.unique(np.linspace(0, times.sizes["horizon"] - 1, _MAPS).round().astype(int))
    extents = {dim: seismic.sizes[dim] * size for dim, size in bins_of(seismic).items()}
    ratio = extents["crossline"] / extents["inline"]
    room = float(np.clip(_TALL * ratio, 1.4, 5.0))  # inches, across
    wide, tall = min(room, _TALL * ratio), min(_TALL, room / ratio)
    beside, beneath = (1, len(mapped)) if tall < _LOW else (len(mapped), 1)
    size = 5.4 + (room + 1.3) * beside, max(4.6, (tall + 0.9) * beneath)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(beneath, 1 + beside, width_ratios=(4.5, *(room + 0.9,) * beside))
    places = [grid[:, 0], *(grid[i, 1 + j] for i in range(beneath) for j in range(beside))]
    axes = [figure.add_subplot(place) for place in places]
    cut, across = "inline", "crossline"
    if seismic.sizes[across] == 1:
        cut, across = across, cut
    middle = {d: part[d].to_numpy()[part.sizes[d] // 2] for d in (cut, across)}
    section = averaged(slice_at(seismic, cut, middle[cut], (vertical, across)), (1.0, 1.0))
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
        interpolation=between(section, (1.0, 1.0)),
    )
    colours = colormaps["plasma"](np.linspace(0.1, 0.95, times.sizes["horizon"]))
    every = -(-len(colours) // _NAMED)
    for i, line in enumerate(times.sel({cut: middle[cut]})):
        level = None if i % every else f"{float(line['horizon']):.6g}"
        axes[0].plot(seismic[across], line, lw=1.4, color=colours[i], label=level)
    axes[0].set_xlabel(across)
    axes[0].set_ylabel(label_of(seismic, vertical))
    axes[0].set_title(label_of(seismic, cut, middle[cut]), fontsize="medium")
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
            label = label_of(seismic, vertical)
            bar = figure.colorbar(shown, ax=ax, label=label, shrink=0.8)
            bar.ax.invert_yaxis()  # downwards, as in the section
        else:
            what += ": nowhere"
        outline(ax, seismic, part, ("inline", "crossline"))
        ax.set_xlabel("crossline")
        ax.set_ylabel("inline")
        ax.set_title(what, fontsize="medium")
        ax.set_facecolor(BLANK)
        number_axes(ax, wide, 2 + round(wide))
        to_scale(ax, extents)
        ax.yaxis.set_major_locator(MaxNLocator(int(np.clip(3 * tall, 1, 9)), integer=True))
        if seismic.sizes["inline"] == 1 or tall < 0.3:
            ax.set_yticks([middle["inline"]])
        if seismic.sizes["crossline"] == 1 or wide < 0.6:
            ax.set_xticks([middle["crossline"]])
    if title:
        figure.suptitle(plain(title))
    if path is not None:
        save(figure, path, seismic)
    return figure
