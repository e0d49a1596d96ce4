"""Horizons on a section and as maps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from .save import save

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
        The volume that they were found in.
    horizons : xarray.Dataset
        From `outcrop.horizons.horizons`.
    path : path-like, optional
        Picture to write, in the format of its suffix.
    title : str, optional
        Above the panels.

    Returns
    -------
    matplotlib.figure.Figure
    """
    (name,) = horizons.data_vars
    times = horizons[name]
    vertical = "depth" if "depth" in seismic.dims else "twt"
    maps = times.isel(horizon=np.linspace(0, times.sizes["horizon"] - 1, _MAPS).round().astype(int))
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    axes = figure.subplots(1, 1 + _MAPS, width_ratios=(1.6, *(1,) * _MAPS))
    at = seismic.sizes["inline"] // 2
    section = seismic.isel(inline=at).transpose(vertical, "crossline")
    clip = float(np.nanpercentile(np.abs(section), 99)) or None
    down = seismic[vertical].to_numpy()
    across = seismic["crossline"].to_numpy()
    extent = (across[0], across[-1], down[-1], down[0])
    axes[0].imshow(
        section, cmap="gray", vmin=clip and -clip, vmax=clip, extent=extent, aspect="auto"
    )
    for line in times.isel(inline=at):
        axes[0].plot(across, line, lw=1.2)
    units = times.attrs["units"]
    axes[0].set_xlabel("crossline")
    axes[0].set_ylabel(f"{vertical} ({units})")
    axes[0].set_title(f"inline {seismic['inline'].to_numpy()[at]:g}", fontsize="medium")
    for ax, surface in zip(axes[1:], maps, strict=True):
        shown = ax.pcolormesh(
            surface["crossline"], surface["inline"], surface.transpose("inline", "crossline"),
            cmap="viridis_r", shading="nearest",
        )  # fmt: skip
        ax.set_xlabel("crossline")
        ax.set_ylabel("inline")
        ax.set_title(f"relative time {float(surface['horizon']):.2f}", fontsize="medium")
        figure.colorbar(shown, ax=ax, label=units, shrink=0.8)
    if title:
        figure.suptitle(title)
    if path is not None:
        save(figure, Path(path))
    return figure
