"""Between labelled volumes and the network's grid: axes, padding, statistics, labels."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import dask.array
import numpy as np
import xarray as xr
from torch import nn

from ..errors import SurveyError
from ..graph import Box, Graph
from ..graph.boxes import Shape
from ..models.card import Card, OutputCard
from ..planner import Plan

if TYPE_CHECKING:
    from distributed import Client

Volume = xr.DataArray | xr.Dataset | str | os.PathLike[str]

# For a module that brings no card.
_PLAIN = Card(
    name="",
    task="",
    paper="",
    doi="",
    axes=("z", "crossline", "inline"),
    normalization="none",
    multiple=1,
    outputs=(),
)


@dataclass(frozen=True)
class Framed:
    """A volume set into the network's padded grid.

    Attributes
    ----------
    volume : xarray.DataArray
        The amplitudes.
    card : Card
        Of the network.
    axes : tuple of str
        The volume's dimensions in the order of the network's axes.
    before : tuple of int
        Zeros before the first sample along each of them.
    grid : tuple of int
        Extents of the padded grid.
    """

    volume: xr.DataArray
    card: Card
    axes: tuple[str, ...]
    before: Shape
    grid: Shape

    @property
    def domain(self) -> Box:
        """Where the volume's own samples lie on the grid."""
        return Box.whole([self.volume.sizes[a] for a in self.axes]).shifted(self.before)


def frame(model: nn.Module, data: Volume) -> Framed:
    """Set a survey's amplitudes into the grid of a network, as its card says.

    Parameters
    ----------
    model : torch.nn.Module
        Its `card`, if it has one, gives axes and padding.
    data : xarray.DataArray, xarray.Dataset or path
        Of a dataset, or of the Zarr at a path, its `amplitude`.

    Raises
    ------
    SurveyError
        If there is no `amplitude`, or the dimensions are not inline, crossline and twt or depth.
    """
    name, source = "the survey", data
    if isinstance(source, (str, os.PathLike)):
        from ..survey import open as open_survey

        name, source = str(source), open_survey(source)
    if isinstance(source, xr.DataArray):
        volume = source
    elif "amplitude" in source:
        volume = source["amplitude"]
    else:
        has = ", ".join(map(str, source.data_vars)) or "no variable"
        raise SurveyError(
            f"{name}: has no variable 'amplitude' ({has}); ingest the SEG-Y with outcrop "
            "ingest, or pass one variable as a DataArray"
        )
    vertical = [d for d in ("twt", "depth") if d in volume.dims]
    if set(volume.dims) != {"inline", "crossline", *vertical[:1]} or not vertical:
        raise SurveyError(
            f"{name}: has dimensions {tuple(map(str, volume.dims))} instead of inline, crossline "
            "and twt or depth; select along others first, such as survey.amplitude.sel(offset=...)"
        )
    card = getattr(model, "card", None) or _PLAIN
    axes = tuple(vertical[0] if a == "z" else a for a in card.axes)
    extents = [volume.sizes[a] for a in axes]
    grid = tuple(-(-n // card.multiple) * card.multiple for n in extents)
    before = tuple((g - n) // 2 for g, n in zip(grid, extents, strict=True))
    return Framed(volume, card, axes, before, grid)


def statistics(volume: xr.DataArray, client: Client | None = None) -> tuple[float, float, str]:
    """Mean and standard deviation of the live traces, and a fingerprint of the volume.

    Two passes over the samples with Dask, summed in float64.

    Parameters
    ----------
    volume : xarray.DataArray
        0 where its coordinate `live`, if it has one, is false.
    client : distributed.Client, optional
        Sums on its workers.

    Returns
    -------
    mean, deviation : float
    fingerprint : str
        SHA-256 of the coordinates and of both sums.

    Raises
    ------
    SurveyError
        If a sample is NaN or infinite, or all are equal.
    """
    lazy = volume.chunk({}).data if volume.chunks is None else volume.data
    live = volume.coords["live"].to_numpy() if "live" in volume.coords else np.ones(1, bool)
    samples = volume.size * float(live.mean())
    missing = volume.size - samples

    def compute(value: Any) -> float:
        if client is not None:
            return float(client.compute(value).result())
        return float(dask.compute(value, scheduler="threads")[0])

    mean = compute(lazy.sum(dtype=np.float64)) / max(samples, 1.0)
    if not math.isfinite(mean):
        raise SurveyError(
            "the survey has samples that are NaN or infinite; ingest it again with "
            "nonfinite='zero' (--nonfinite zero)"
        )
    squares = compute(((lazy.astype(np.float64) - mean) ** 2).sum())
    variance = (squares - missing * mean**2) / max(samples, 1.0)
    if variance <= 0:
        raise SurveyError("the survey's live samples are all equal; is this the right variable?")
    deviation = math.sqrt(variance)

    sha = hashlib.sha256(repr((volume.dims, volume.shape, str(volume.dtype))).encode())
    for dim in volume.dims:
        sha.update(np.ascontiguousarray(volume[dim].to_numpy()).tobytes())
    sha.update(np.ascontiguousarray(live).tobytes())
    sha.update(repr((mean, deviation)).encode())
    return mean, deviation, sha.hexdigest()


def output_cards(graph: Graph, card: Card) -> dict[str, tuple[OutputCard, ...]]:
    """Name each channel of each of the network's outputs.

    Raises
    ------
    SurveyError
        If an output lies on another grid than the volume, or their number is not the card's.
    """
    grid = graph.grid(graph.inputs[0])
    for name in graph.outputs:
        if graph.grid(name) != grid:
            raise SurveyError(
                f"the network's output {name} has extents {graph.grid(name)} instead of the "
                f"volume's {grid}; use whole_volume, which returns them without labels"
            )
    count = sum(graph.width(name) for name in graph.outputs)
    cards = list(card.outputs)
    if not cards:
        names = ["prediction"] if count == 1 else [f"prediction_{i}" for i in range(count)]
        cards = [OutputCard(n, n.replace("_", " "), "1", (-math.inf, math.inf)) for n in names]
    if len(cards) != count:
        raise SurveyError(f"the network has {count} output channels, its card names {len(cards)}")
    split, first = {}, 0
    for name in graph.outputs:
        split[name] = tuple(cards[first : first + graph.width(name)])
        first += graph.width(name)
    return split


def template(
    framed: Framed, plan: Plan, cards: Mapping[str, Sequence[OutputCard]]
) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Return the empty prediction, labelled, and its Zarr encoding: one object per tile."""
    volume = framed.volume
    variables, encoding = {}, {}
    for stage in plan.stages:
        for name in set(stage.outputs) & cards.keys():
            by_axis = dict(zip(framed.axes, stage.tile, strict=True))
            shard = tuple(min(by_axis[str(d)], volume.sizes[d]) for d in volume.dims)
            chunk = tuple(map(_chunk, shard))
            for card in cards[name]:
                data = dask.array.zeros(volume.shape, dtype=np.float32, chunks=shard)
                attrs: dict[str, Any] = {"long_name": card.long_name, "units": card.units}
                if all(map(math.isfinite, card.valid_range)):
                    attrs["valid_range"] = list(card.valid_range)
                variables[card.name] = (volume.dims, data, attrs)
                encoding[card.name] = {"chunks": chunk}
                if chunk != shard:
                    encoding[card.name]["shards"] = shard
    coords = {k: (v.dims, v.to_numpy(), v.attrs) for k, v in volume.coords.items()}
    return xr.Dataset(variables, coords=coords), encoding


def _chunk(extent: int) -> int:
    """Part of a tile's extent that is compressed on its own, so that one section reads fast."""
    while extent > 128 and extent % 2 == 0:
        extent //= 2
    return extent
