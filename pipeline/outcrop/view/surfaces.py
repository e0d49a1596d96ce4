"""Horizons on a section and as maps."""

from __future__ import annotations

import os

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import SurveyError
from .save import save
from .sections import check_regular, edges

_MAPS = 3


def surfaces(
    seismic: xr.DataArray,
    horizons: xr.Dataset,
    *,
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw horizons on the middle inline, and up to three of them as maps.

    Parameters
    ----------
    seismic : xarray.DataArray
        The volume that they were found in, or part of it.
    horizons : xarray.Dataset
        From `outcrop.horizons.horizons`.
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
        If the crosslines, or the samples of a trace, do not go in equal steps, or the horizons are
        not those of a volume with these lines.
    """
    (name,) = horizons.data_vars
    times = horizons[name]
    vertical = "depth" if "depth" in seismic.dims else "twt"
    check_regular(seismic, ("crossline", vertical))
    for dim in ("inline", "crossline"):
        missing = np.setdiff1d(seismic[dim], times[dim])
        if missing.size:
            raise SurveyError(
                f"horizons: have no {dim} {missing[0]:g}, which the seismic has; draw them on the "
                "volume that they were found in"
            )
    times = times.sel(inline=seismic["inline"], crossline=seismic["crossline"])
    maps = times.isel(horizon=np.linspace(0, times.sizes["horizon"] - 1, _MAPS).round().astype(int))
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    axes = figure.subplots(1, 1 + _MAPS, width_ratios=(1.6, *(1,) * _MAPS))
    at = seismic.sizes["inline"] // 2
    section = seismic.isel(inline=at).transpose(vertical, "crossline")
    clip = float(np.nanpercentile(np.abs(section), 99)) or None
    low, high = edges(seismic, vertical)
    axes[0].imshow(
        section,
        cmap="gray",
        vmin=clip and -clip,
        vmax=clip,
        extent=(*edges(seismic, "crossline"), high, low),
        aspect="auto",
        interpolation="bilinear",
    )
    for line in times.isel(inline=at):
        axes[0].plot(seismic["crossline"], line, lw=1.2, label=f"{float(line['horizon']):.2f}")
    units = times.attrs["units"]
    axes[0].set_xlabel("crossline")
    axes[0].set_ylabel(f"{vertical} ({units})")
    axes[0].set_title(f"inline {seismic['inline'].to_numpy()[at]:g}", fontsize="medium")
    axes[0].legend(title="relative time", fontsize="x-small", title_fontsize="x-small")
    for ax, surface in zip(axes[1:], maps, strict=True):
        what = f"relative time {float(surface['horizon']):.2f}"
        if surface.notnull().any():
            shown = ax.pcolormesh(
                surface["crossline"], surface["inline"], surface.transpose("inline", "crossline"),
                cmap="viridis_r", shading="nearest",
            )  # fmt: skip
            figure.colorbar(shown, ax=ax, label=units, shrink=0.8)
        else:
            what += ": nowhere"
            ax.set_xlim(edges(seismic, "crossline"))
            ax.set_ylim(edges(seismic, "inline"))
        ax.set_xlabel("crossline")
        ax.set_ylabel("inline")
        ax.set_title(what, fontsize="medium")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if title:
        figure.suptitle(title)
    if path is not None:
        save(figure, path)
    return figure
