"""An inline, a crossline and a time slice, side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ..arrays import spoken
from ..errors import ArgumentError, SurveyError
from ..survey.formats import step_of
from .save import save

_HEIGHT = 4.6  # inches, of a panel at most
_WIDTH = 14.0  # inches, of all three at most
_PIXELS = 400  # of a panel's height, at least
_DEGREES = {"degree": 1.0, "arcsecond": 1 / 3600}
_CLASSES = 64  # the largest number of one, at most
_NARROW = 0.02  # of a map: of its width to its length, at least
BLANK = "#cfe3cf"  # pale green: no amplitude is drawn in it
_WARM = LinearSegmentedColormap.from_list(
    "warm", [(1.0, 0.85, 0.1, 0.45), (1.0, 0.45, 0.0, 0.8), (0.85, 0.0, 0.0, 0.95)]
)


def sections(
    seismic: xr.DataArray,
    overlay: xr.DataArray | None = None,
    *,
    inline: float | None = None,
    crossline: float | None = None,
    twt: float | None = None,
    depth: float | None = None,
    threshold: float = 0.5,
    cmap: str | Colormap = "gray",
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw three sections of a volume, and of a prediction on top of it.

    Just these three sections are read. Where a trace is missing (`live` is false), nothing is
    drawn and the pale green ground shows. One horizontal scale holds in all panels, from the
    CDP coordinates if there are any, or the axes of a model; but no map is narrower than a
    fiftieth of its length.

    Parameters
    ----------
    seismic : xarray.DataArray
        (inline, crossline, twt) in ms or (inline, crossline, depth) in m, in any order. The
        colours go over its `valid_range`, if what is drawn keeps to one; over what is drawn, if
        nothing of that is negative; otherwise to the 99th percentile of the magnitudes drawn, on
        both sides of 0. Where many samples share a pixel, that is their mean; of numbers of
        classes, which are few and whole, one of them.
    overlay : xarray.DataArray, optional
        From 0 to 1 or bool, over the same coordinates or a part of them: drawn where it is
        `threshold` or more, and the volume is drawn; a dashed line is where a part ends. Where
        several samples share a pixel, the largest is.
    inline, crossline, twt, depth : float, optional
        Where to cut, in the units of the coordinates: at the nearest there is, in the middle,
        that of the overlay if there is one, unless given.
    threshold : float
        Smallest value of `overlay` that is drawn.
    cmap : str or matplotlib.colors.Colormap
        Colours of the amplitudes, such as "gray" or "RdBu".
    path : path-like, optional
        Picture to write, in the format of its suffix (.png, .pdf, .svg).
    title : str, optional
        Above the panels.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot: nothing to close.

    Raises
    ------
    SurveyError
        If a volume has other dimensions, an axis that does not go in equal steps, the overlay
        lies elsewhere, or a place to cut is outside the survey.
    ArgumentError
        If there is no such `cmap`, `threshold` or the overlay is above 1, or a volume is no
        DataArray or empty.
    OutcropError
        If no picture can be written in the format of `path`.
    """
    check_volume(seismic, "seismic")
    if overlay is not None:
        check_volume(overlay, "overlay")
        if not threshold <= 1:
            raise ArgumentError(f"threshold {threshold:g}: an overlay is from 0 to 1")
    if isinstance(cmap, str) and cmap not in colormaps:
        raise ArgumentError(f"cmap {cmap!r}: Matplotlib has no such colours; take gray, RdBu, ...")
    vertical = vertical_of(seismic)
    check_regular(seismic, ("inline", "crossline", vertical))
    if overlay is not None:
        _check_same_place(seismic, overlay)
    wanted = {"inline": inline, "crossline": crossline, "twt": twt, "depth": depth}
    at = {}
    for d in ("inline", "crossline", vertical):
        where = wanted.pop(d)
        at[d] = _nearest(seismic if overlay is None or where is not None else overlay, d, where)
    if any(value is not None for value in wanted.values()):
        raise SurveyError(f"{next(iter(wanted))}: the vertical axis of this volume is {vertical}")

    # Each panel is named by the dimension it is cut across, with its rows and columns.
    panels = {
        "inline": (vertical, "crossline"),
        "crossline": (vertical, "inline"),
        vertical: ("inline", "crossline"),
    }
    bins = bins_of(seismic)
    extents = {d: seismic.sizes[d] * size for d, size in bins.items()}
    tallest = max(extents["inline"], 0.25 * extents["crossline"])
    widths = [
        float(np.clip(extents[columns] / tallest, 0.45, 2.0)) for _, columns in panels.values()
    ]
    height = min(_HEIGHT, _WIDTH / sum(widths))
    images, hidden, shown_as, classes = {}, {}, {}, {}
    for width, (cut, (rows, columns)) in zip(widths, panels.items(), strict=True):
        tall = 1.0 if rows == vertical else min(1.0, width * extents[rows] / extents[columns])
        wide = width if rows == vertical else tall * extents[columns] / extents[rows]
        shown_as[cut] = tall * height / _HEIGHT, wide * height / _HEIGHT
        section = slice_at(seismic, cut, at[cut], (rows, columns))
        hidden[cut], classes[cut] = section.mask, _are_classes(section)
        images[cut] = averaged(section, shown_as[cut], one=classes[cut])
    limits = _limits(seismic, np.concatenate([image.compressed() for image in images.values()]))

    figure = Figure(figsize=(height * sum(widths) + 4.2, height + 1.0), layout="constrained")
    all_axes = figure.subplots(1, 3, width_ratios=widths, gridspec_kw={"wspace": 0.06})
    for ax, width, (cut, (rows, columns)) in zip(all_axes, widths, panels.items(), strict=True):
        low, high = edges(seismic, rows)
        down = rows == vertical
        tall, wide = shown_as[cut]
        extent = (*edges(seismic, columns), *((high, low) if down else (low, high)))
        amplitudes = ax.imshow(
            images[cut],
            cmap=cmap,
            vmin=limits and limits[0],
            vmax=limits and limits[1],
            extent=extent,
            origin="upper" if down else "lower",
            aspect="auto",
            interpolation="nearest" if classes[cut] else between(images[cut], (tall, wide)),
        )
        if overlay is not None:
            values = np.full(hidden[cut].shape, -np.inf, np.float32)
            if at[cut] in overlay[cut].values:
                part = np.ix_(*(_shared(seismic, overlay, dim) for dim in (rows, columns)))
                values[part] = slice_at(overlay, cut, at[cut], (rows, columns)).filled(-np.inf)
            values[hidden[cut]] = -np.inf
            if values.max() > 1 + 1e-3:
                raise ArgumentError(
                    f"overlay: holds {spoken(values.max())}; one is from 0 to 1: scale it, or draw "
                    "it in place of the seismic"
                )
            shown = ax.imshow(
                np.ma.masked_less(_to_pixels(values, (tall, wide)), threshold),
                cmap=_WARM,
                vmin=threshold if threshold < 1 else 0.0,
                vmax=1.0,
                extent=extent,
                origin="upper" if down else "lower",
                aspect="auto",
                interpolation="nearest",
            )
            if at[cut] in overlay[cut].values:
                outline(ax, seismic, overlay, (rows, columns))
        ax.set_facecolor(BLANK)
        number_axes(ax, height * width, 3 + round(3 * width))
        if not down:
            ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if seismic.sizes[columns] == 1 or wide < 0.3:
            ax.set_xticks([at[columns]])
        if seismic.sizes[rows] == 1 or tall < 0.08:
            ax.set_yticks([at[rows]])
        ax.set_xlabel(label_of(seismic, columns))
        ax.set_ylabel(label_of(seismic, rows))
        ax.set_title(label_of(seismic, cut, at[cut]), fontsize="medium")
        ax.axhline(at[rows], color="tab:cyan", lw=0.7, alpha=0.7)
        ax.axvline(at[columns], color="tab:cyan", lw=0.7, alpha=0.7)
    to_scale(all_axes[2], extents)
    if overlay is not None and overlay.dtype.kind == "f":  # a mask has one colour
        name = _named(overlay, "overlay")
        figure.colorbar(shown, ax=all_axes, label=name, shrink=0.7, aspect=30, pad=0.01)
    name = _named(seismic, "amplitude")
    bar = figure.colorbar(amplitudes, ax=all_axes, label=name, shrink=0.7, aspect=30, pad=0.01)
    if any(classes.values()):
        bar.locator = MaxNLocator(integer=True)
    if title:
        figure.suptitle(plain(title))
    if path is not None:
        save(figure, path, seismic, overlay)
    return figure


def _nearest(volume: xr.DataArray, dim: str, wanted: float | None) -> float:
    values = volume[dim].to_numpy()
    if wanted is None:
        return values[len(values) // 2].item()
    low, high = values.min().item(), values.max().item()
    if not low <= wanted <= high:
        raise SurveyError(
            f"{dim} {spoken(wanted)}: outside the volume, which has {spoken(low)} to {spoken(high)}"
        )
    return values[np.abs(values - wanted).argmin()].item()


def slice_at(volume: xr.DataArray, cut: str, at: float, axes: tuple[str, str]) -> np.ma.MaskedArray:
    """Read one section, float32, masked where there is no trace."""
    section = volume.sel({cut: at}).transpose(*axes)
    values = np.asarray(section, np.float32)
    hidden = ~np.isfinite(values)
    if "live" in section.coords:
        live = section["live"]
        hidden |= ~live.broadcast_like(section).transpose(*axes).to_numpy()
    return np.ma.masked_array(values, hidden)


def _are_classes(section: np.ma.MaskedArray) -> bool:
    """Whether there are numbers of classes: few and whole, and more than 0 and 1."""
    values = section.compressed()
    if not values.size or not 1 < np.ptp(values) <= _CLASSES:
        return False
    return all((part == part.round()).all() for part in (values[:: 1 + values.size // 999], values))


def averaged(
    section: np.ma.MaskedArray, size: tuple[float, float], one: bool = False
) -> np.ma.MaskedArray:
    """Means of samples, where a pixel of a panel has many: two of them are left for each, or so.

    Or one of them, which has no value that is not there.
    """
    shares = zip(section.shape, size, strict=True)
    steps = [n // max(1, round(2 * _PIXELS * share)) for n, share in shares]
    if max(steps) < 2:
        return section
    if one:
        rows, columns = (slice(max(0, every // 2), None, max(1, every)) for every in steps)
        return section[rows, columns]
    values: np.ndarray = section.filled(0.0)
    count: np.ndarray = ~np.ma.getmaskarray(section)
    for axis, every in enumerate(steps):
        if every > 1:
            starts = np.arange(0, section.shape[axis], every)
            values = np.add.reduceat(values, starts, axis)
            count = np.add.reduceat(count, starts, axis, dtype=np.float32)
    return np.ma.masked_array(values / np.maximum(count, 1), count == 0)


def between(image: np.ma.MaskedArray, size: tuple[float, float]) -> str:
    """How to draw between samples: bilinear hides half of those beside what is masked."""
    # Where that is more than two pixels.
    seen = any(n < _PIXELS / 4 * share for n, share in zip(image.shape, size, strict=True))
    return "nearest" if seen and np.ma.is_masked(image) else "bilinear"


def _to_pixels(values: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Largest values where several share a pixel of a panel: a thin fault would be left out."""
    for axis, share in enumerate(size):
        cells = max(1, round(_PIXELS * share))
        if cells < values.shape[axis]:
            starts = np.arange(cells) * values.shape[axis] // cells
            values = np.maximum.reduceat(values, starts, axis)
    return values


def _named(volume: xr.DataArray, otherwise: str) -> str:
    """Name of the values of a volume, with their unit."""
    unit = volume.attrs.get("units", "1")
    name = volume.attrs.get("long_name") or volume.name or otherwise
    return plain(f"{name}" if unit in ("1", "") else f"{name} ({unit})")


def _limits(volume: xr.DataArray, drawn: np.ndarray) -> tuple[float, float] | None:
    """Values at both ends of the colours; none where nothing is drawn."""
    if "valid_range" in volume.attrs:  # of what is stored, as the CF conventions have it
        factor = volume.encoding.get("scale_factor", 1.0)
        low, high = np.multiply(volume.attrs["valid_range"], factor).tolist()
        if not drawn.size or max(low - drawn.min(), drawn.max() - high) <= 1e-3 * (high - low):
            return low, high
        # It holds no more: attributes outlive computing with a volume, and the factor does not.
    if not drawn.size:
        return None
    low, high = float(drawn.min()), float(drawn.max())
    usual = float(np.percentile(np.abs(drawn), 99)) or max(-low, high)
    if low < -1e-6 * usual:  # by more than rounding
        low, high = -usual, usual
    return (low, high) if low < high else (low - 1.0, low + 1.0)  # all equal


def _check_same_place(seismic: xr.DataArray, overlay: xr.DataArray) -> None:
    for dim in seismic.dims:
        if dim not in overlay.dims or not np.array_equal(
            overlay[dim], seismic[dim][_shared(seismic, overlay, str(dim))]
        ):
            raise SurveyError(
                f"overlay: its {dim} is not the seismic's; draw a prediction on the volume that "
                "it was made from"
            )
    if overlay.ndim != seismic.ndim:
        raise SurveyError(f"overlay: has dimensions {overlay.dims}, the seismic {seismic.dims}")


def _shared(seismic: xr.DataArray, overlay: xr.DataArray, dim: str) -> np.ndarray:
    """Positions in the seismic of what the overlay covers."""
    return np.flatnonzero(np.isin(seismic[dim], overlay[dim]))


def check_volume(volume: object, name: str) -> None:
    """Raise `ArgumentError` unless this is an array with coordinates that holds something."""
    if not isinstance(volume, xr.DataArray):
        raise ArgumentError(
            f"{name}: is a {type(volume).__name__}; pass a DataArray, such as survey.amplitude"
        )
    if not volume.size:
        raise ArgumentError(f"{name}: holds nothing, {dict(volume.sizes)}; select something")


def vertical_of(seismic: xr.DataArray) -> str:
    """Return "depth" or "twt"; SurveyError if a volume has dimensions beside it and the lines."""
    vertical = "depth" if "depth" in seismic.dims else "twt"
    if set(seismic.dims) != {"inline", "crossline", vertical}:
        raise SurveyError(
            f"seismic: has dimensions {tuple(map(str, seismic.dims))} instead of inline, "
            "crossline and twt or depth; select along others first"
        )
    return vertical


def check_regular(volume: xr.DataArray, dims: Iterable[str]) -> None:
    """Raise `SurveyError` unless axes go in equal steps, as the pixels of an image do."""
    for dim in dims:
        if step_of(volume, dim) is None:
            raise SurveyError(
                f"{dim}: does not go in equal steps, as a picture needs; select with a step, "
                f"such as isel({dim}=slice(None, None, 2))"
            )


def bins_of(volume: xr.DataArray) -> dict[str, float]:
    """Distance from one line to the next; square bins where one of the two is not known."""
    dims = ("inline", "crossline")
    sizes = {
        dim: abs(float(np.diff(volume[dim][:2])[0]))
        for dim in dims
        if volume.sizes[dim] > 1 and volume[dim].attrs.get("units", "1") != "1"  # of a model
    }
    if {"cdp_x", "cdp_y"} <= volume.coords.keys():
        x, y = (volume[name].transpose(*dims).to_numpy() for name in ("cdp_x", "cdp_y"))
        if (angle := _DEGREES.get(volume["cdp_x"].attrs.get("units", ""))) and np.isfinite(y).any():
            x = x * np.cos(np.radians(np.nanmean(y) * angle))  # a degree of longitude
        for axis, dim in enumerate(dims):
            steps = np.hypot(np.diff(x, axis=axis), np.diff(y, axis=axis))
            steps = steps[np.isfinite(steps) & (steps > 0)]
            if steps.size:
                sizes[dim] = float(np.median(steps))
    known = next(iter(sizes.values()), 1.0)
    return {dim: sizes.get(dim, known) for dim in dims}


def edges(volume: xr.DataArray, dim: str) -> tuple[float, float]:
    """Coordinates of an axis half a sample before its first and beyond its last sample."""
    values = volume[dim].to_numpy().astype(float)
    half = (values[-1] - values[0]) / (2 * (len(values) - 1)) if len(values) > 1 else 0.5
    return values[0] - half, values[-1] + half


def outline(ax: Axes, seismic: xr.DataArray, overlay: xr.DataArray, axes: tuple[str, str]) -> None:
    """Draw where an overlay of a part ends: there is none beyond, whatever it would be."""
    if any(overlay.sizes[dim] < seismic.sizes[dim] for dim in axes):
        steps = (float(np.diff(edges(seismic, dim))[0]) / seismic.sizes[dim] for dim in axes)
        (y, top), (x, right) = (
            overlay[dim].values[[0, -1]] + np.array([-step, step]) / 2
            for dim, step in zip(axes, steps, strict=True)
        )
        ax.add_patch(Rectangle((x, y), right - x, top - y, fill=False, ls="--", ec="tab:orange"))


def to_scale(ax: Axes, extents: dict[str, float]) -> None:
    """Make a metre as long along the inlines of a map as along its crosslines, if that is seen."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    shown = np.clip(extents["inline"] / extents["crossline"], _NARROW, 1 / _NARROW)
    ax.set_aspect(float(shown) * abs(right - left) / abs(top - bottom), anchor="N")


def label_of(volume: xr.DataArray, dim: str, value: float | None = None) -> str:
    """Name of an axis with its unit, or of a place on it."""
    name = {"twt": "TWT", "depth": "depth"}.get(dim, dim)
    unit = volume[dim].attrs.get("units", {"twt": "ms", "depth": "m"}.get(dim, "1"))
    if unit == "1":  # of lines, and of raw samples
        name, unit = name if dim in ("inline", "crossline") else "sample", None
    if value is None:
        return f"{name} ({unit})" if unit else name
    return f"{name} {spoken(value)}" + (f" {unit}" if unit else "")


def plain(text: str) -> str:
    """Return a text from outside so that Matplotlib takes no $ in it for mathematics."""
    return text.replace("$", r"\$")


def number_axes(ax: Axes, room: float, most: int) -> None:
    """Write numbers in full, at most so many across, and as many as fit into `room` inches."""
    longest = max(len(f"{edge:.0f}") for edge in ax.get_xlim())
    across = int(np.clip(room / (0.085 * longest + 0.3), 1, most))
    ax.xaxis.set_major_locator(MaxNLocator(across, integer=True))
    ax.ticklabel_format(useOffset=False, style="plain")
