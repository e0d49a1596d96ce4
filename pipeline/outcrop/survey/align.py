"""A volume set beside a template: which of its traces and samples it has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from ..arrays import spoken
from ..errors import SurveyError
from .template import Template


@dataclass(frozen=True)
class Part:
    """A volume set beside a template.

    Attributes
    ----------
    volume : xarray.DataArray
        Its dimensions in the order inline, crossline, offset, twt or depth.
    traces : ndarray of int64
        Numbers of the template's traces that it has, ascending.
    cells : ndarray of int64
        Where each of them is in the volume: flat index over all dimensions but the last.
    first_sample : int
        Sample of the template at which it starts.
    """

    volume: xr.DataArray
    traces: np.ndarray
    cells: np.ndarray
    first_sample: int


def align(volume: xr.DataArray, template: Template) -> Part:
    """Find the traces and samples of a template that a volume has.

    Raises
    ------
    SurveyError
        If the volume has dimensions, lines or samples that the template has not, no trace, or runs
        along depth where the template runs along time, or the reverse.
    """
    lateral = list(template.numbers)
    for dim in (*lateral, "twt", "depth"):
        given = dim in volume.coords and volume[dim].ndim == 0
        known = dim not in volume.coords and np.size(template.axes.get(dim, ())) == 1
        if dim not in volume.dims and (given or known):
            volume = volume.expand_dims(dim)
    vertical = [str(d) for d in volume.dims if d not in lateral]
    if not set(lateral) < set(volume.dims) or vertical not in (["twt"], ["depth"]):
        raise SurveyError(
            f"dimensions {', '.join(map(str, volume.dims))} do not match {template.name}, whose "
            f"traces lie on {', '.join(lateral)} and twt or depth; select along the others first"
        )
    if template.dim not in (None, *vertical):
        raise SurveyError(
            f"the volume runs along {vertical[0]}, and {template.name} along {template.dim}; "
            f"convert it, or pass the survey that it was made from as like= (--like)"
        )
    volume = volume.transpose(*lateral, *vertical)

    cells = np.zeros(template.traces.size, dtype=np.int64)
    there = np.ones(template.traces.size, dtype=bool)
    for dim in lateral:
        index, found = _places(volume, dim, template)
        cells = cells * volume.sizes[dim] + index
        there &= found
    if not there.any():
        raise SurveyError(f"{template.name} has no trace on the lines of the volume")
    first = first_sample(volume, vertical[0], template.vertical, template.name)
    return Part(volume, template.traces[there], cells[there], first)


def _places(volume: xr.DataArray, dim: str, template: Template) -> tuple[np.ndarray, np.ndarray]:
    """Index of each of the template's traces along a dimension, and whether it is there."""
    numbers, axis = template.numbers[dim], template.axes[dim]
    if dim not in volume.coords:
        if volume.sizes[dim] != axis.size:
            raise SurveyError(
                f"{dim} has no coordinate and {volume.sizes[dim]} lines, {template.name} has "
                f"{span(axis)}; assign the coordinate"
            )
        at = axis
    else:
        at = volume[dim].to_numpy()
    lines, counts = np.unique(at, return_counts=True)
    if (counts > 1).any():
        raise SurveyError(
            f"{dim} {spoken(lines[counts > 1][0])} is in the volume more than once; keep one of "
            f"each, such as by volume.drop_duplicates({dim!r})"
        )
    strange = at[~np.isin(at, axis)]
    if strange.size:
        raise SurveyError(
            f"{dim} {span(strange)} of the volume is not in {template.name}, which has "
            f"{span(axis)}; pass the SEG-Y or survey that the volume was made from"
        )
    order = np.argsort(at, kind="stable")
    place = np.minimum(np.searchsorted(at, numbers, sorter=order), at.size - 1)
    index = order[place]
    return index, at[index] == numbers


def first_sample(volume: xr.DataArray, dim: str, known: np.ndarray, name: str) -> int:
    """Find at which of known times or depths a volume starts.

    Parameters
    ----------
    volume : xarray.DataArray
    dim : str
        "twt" or "depth".
    known : ndarray
        Two-way time in ms, or depth in m.
    name : str
        Of what has these, for messages.

    Raises
    ------
    SurveyError
        If the volume's are no run of these.
    """
    count = volume.sizes[dim]
    if dim not in volume.coords and count == known.size:
        return 0
    if dim in volume.coords:
        at = volume[dim].to_numpy().astype(np.float64)
        step = known[1] - known[0] if known.size > 1 else 1.0
        start = round((at[0] - known[0]) / step)
        inside = 0 <= start <= known.size - count
        if inside and np.allclose(at, known[start : start + count], rtol=0, atol=1e-3 * step):
            return start
        has = span(at)
    else:
        has = f"{count} samples without coordinate"
    raise SurveyError(
        f"{dim} {has} of the volume is no run of samples of {name}, which has "
        f"{span(known)}; pass the survey that it was made from as like= (--like), or resample it"
    )


def span(values: np.ndarray) -> str:
    """Name the ends and the step of an axis, as 111…133 or 4…300 by 4."""
    if values.size == 1:
        return spoken(values[0])
    if values.dtype.kind not in "iuf":
        return f"{values[0]}…{values[-1]}"
    step = values[1] - values[0]
    by = f" by {spoken(step)}" if step != 1 else ""
    return f"{spoken(values[0])}…{spoken(values[-1])}{by}"
