"""Between labelled volumes and the network's grid: variables, axes, padding."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from torch import nn

from ..arrays import spoken
from ..errors import ArgumentError, SurveyError
from ..graph import Box
from ..graph.boxes import Shape
from ..models.card import Card, InputCard
from ..storage import Options
from ..survey.reading import in_blocks, loaded, open_unchunked

# Dimensions along which a trace runs.
VERTICAL = ("twt", "depth")

Volume = xr.DataArray | xr.Dataset | str | os.PathLike[str]

# For a module that brings no card.
_PLAIN = Card(
    name="",
    task="",
    paper="",
    doi="",
    published="",
    inputs=(InputCard("amplitude", "seismic amplitude", "none"),),
    outputs=(),
)


@dataclass(frozen=True)
class Framed:
    """A survey set into the network's padded grid.

    Attributes
    ----------
    volumes : dict of str to xarray.DataArray
        The variables that go in, by name.
    card : Card
        Of the network.
    axes : tuple of str
        The volume's dimensions in the order of the network's axes.
    before : tuple of int
        Padding before the first sample along each of them.
    grid : tuple of int
        Extents of the padded grid.
    lineage : str
        The networks that the volumes come from; empty for a survey.
    """

    volumes: Mapping[str, xr.DataArray]
    card: Card
    axes: tuple[str, ...]
    before: Shape
    grid: Shape
    lineage: str = ""

    @property
    def volume(self) -> xr.DataArray:
        """The first variable: all have its coordinates."""
        return next(iter(self.volumes.values()))

    @property
    def apart(self) -> tuple[str, ...]:
        """Dimensions along which the network takes what is there one by one."""
        return tuple(str(d) for d in self.volume.dims if d not in self.axes)

    def at(self, section: int | None) -> dict[str, int]:
        """Where along them the volume or section of a number lies."""
        apart = self.apart
        where = np.unravel_index(section or 0, [self.volume.sizes[d] for d in apart])
        return {d: int(i) for d, i in zip(apart, where, strict=True)}

    @property
    def stacked(self) -> dict[str, int]:
        """Extents along the dimensions that are none of a volume's own: offsets, vintages."""
        own = ("inline", "crossline", *VERTICAL)
        return {d: self.volume.sizes[d] for d in self.apart if d not in own}

    def volume_of(self, section: int | None) -> int:
        """Which of the volumes, counted along `stacked`, a number belongs to."""
        where, stacked = self.at(section), self.stacked
        if not stacked:
            return 0
        return int(np.ravel_multi_index([where[d] for d in stacked], list(stacked.values())))

    def volumes_apart(self) -> Iterator[tuple[dict[str, int], dict[str, xr.DataArray]]]:
        """Yield place and variables of one volume after the other, as `volume_of` counts them."""
        extents = self.stacked
        for where in np.ndindex(*extents.values()):
            here = dict(zip(extents, where, strict=True))
            yield here, {n: in_blocks(volume).isel(here) for n, volume in self.volumes.items()}

    def without(self, dead: xr.DataArray) -> Framed:
        """Return the same, where dead traces are not live."""
        live = ~dead
        if "live" in self.volume.coords:
            there = self.volume.coords["live"]
            live = (live & xr.DataArray(loaded(there), dims=there.dims)).transpose(*dead.dims)
        live.attrs["long_name"] = "there is a trace here that is not zero throughout"
        volumes = {name: v.assign_coords(live=live) for name, v in self.volumes.items()}
        return replace(self, volumes=volumes)

    @property
    def domain(self) -> Box:
        """Where the volume's own samples lie on the grid."""
        return Box.whole([self.volume.sizes[a] for a in self.axes]).shifted(self.before)


def frame(
    model: nn.Module,
    data: Volume,
    direction: str | None = None,
    storage_options: Options | None = None,
    stacked: bool = False,
) -> Framed:
    """Set a survey into the grid of a network, as its card says.

    Parameters
    ----------
    model : torch.nn.Module
        Its `card`, if it has one, gives variables, axes and padding.
    data : xarray.DataArray, xarray.Dataset or path
        A dataset, or the Zarr at a path, with the variables that the card names; a DataArray
        where it names one alone.
    direction : {"inline", "crossline"}, optional
        Of the sections, for a network of sections; unless given the card's, or that of the only
        inline or crossline that there is.
    storage_options : mapping, optional
        For the survey, if `data` is where it lies in an object store.
    stacked : bool
        Whether there may be further dimensions: offsets, vintages.

    Raises
    ------
    SurveyError
        If a variable is missing, the dimensions are not inline, crossline and twt or depth, one of
        them is empty, time or depth falls, or `live` does not say of each trace if it is there.
    ArgumentError
        If `model` is no network, its card is no card or that of a part of it, or has inputs in
        another order than its forward; if it is none of sections but `direction` is given, or that
        is neither; if `data` is something else.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model: is a {type(model).__name__}; pass a network, such as outcrop.models.load gives"
        )
    card = getattr(model, "card", None)
    if card is None:
        _check_no_card_within(model)
        card = _PLAIN
    if not isinstance(card, Card):
        raise ArgumentError(
            f"model: its card is a {type(card).__name__}; give it an outcrop.models.Card, or none"
        )
    if card.separate:
        _check_order(model, card)
    if direction not in (None, "inline", "crossline"):
        raise ArgumentError(f"direction {direction!r}: choose 'inline' or 'crossline'")
    if direction is not None and not card.sections:
        raise ArgumentError(f"direction: {card.name or 'the network'} is no network of sections")
    if isinstance(data, (str, os.PathLike)):
        where, data = str(data), open_unchunked(data, storage_options)
    elif isinstance(data, (xr.DataArray, xr.Dataset)):
        where = "the survey"
    else:
        raise ArgumentError(
            f"data: is a {type(data).__name__}; pass a Dataset, a DataArray or the path of a "
            "survey, or use whole_volume, which takes tensors and NumPy arrays"
        )
    volumes = _variables(card, data, where)
    _check_unpersisted(volumes)
    name, volume = next(iter(volumes.items()))
    vertical = [d for d in VERTICAL if d in volume.dims]
    others = set(volume.dims) - {"inline", "crossline", *vertical[:1]}
    if volume.ndim - len(others) != 3 or (others and not stacked):
        raise SurveyError(
            f"{name}: has dimensions {tuple(map(str, volume.dims))} instead of inline, crossline "
            "and twt or depth; select along others first, such as survey.amplitude.sel(offset=...)"
        )
    first, last = volume[vertical[0]].to_numpy()[[0, -1]].tolist() if volume.size else (0, 0)
    if last < first:
        raise SurveyError(
            f"{vertical[0]}: falls from {spoken(first)} to {spoken(last)}, as if the survey lay "
            f"upside down; pass survey.sortby({vertical[0]!r}), or depths that grow downwards"
        )
    for each, values in volumes.items():
        if values.dtype.kind not in "biuf":
            raise SurveyError(f"{each}: is {values.dtype}; pass real numbers")
    if card.sections:
        card = card.along(direction or _wider(volume) or card.direction)
    axes = tuple(vertical[0] if a == "z" else a for a in card.axes)
    extents = [volume.sizes[a] for a in axes]
    if 0 in volume.shape:
        raise SurveyError(f"{name}: is empty: {dict(volume.sizes)}; see what was selected")
    live = volume.coords.get("live")
    traces = set(volume.dims) - set(vertical)
    if live is not None and not (
        live.dtype == bool and {"inline", "crossline"} <= set(live.dims) <= traces
    ):
        raise SurveyError(
            f"live: is {live.dtype} over {', '.join(map(str, live.dims))}; it says of each trace "
            "whether it is there, so make it bool, over inline and crossline, or drop it"
        )
    grid = tuple(
        -(-max(n, card.smallest) // m) * m for n, m in zip(extents, card.multiple, strict=True)
    )
    before = tuple((g - n) // 2 for g, n in zip(grid, extents, strict=True))
    return Framed(volumes, card, axes, before, grid, data.attrs.get("lineage", ""))


def _wider(volume: xr.DataArray) -> str | None:
    """Direction of the sections of a survey that is a single one; None of any other."""
    inlines, crosslines = volume.sizes["inline"], volume.sizes["crossline"]
    if (inlines == 1) == (crosslines == 1):
        return None
    return "inline" if inlines == 1 else "crossline"


def _check_no_card_within(model: nn.Module) -> None:
    """Raise if a wrapper hides how its network is to be fed."""
    for name, part in model.named_modules():
        card = getattr(part, "card", None)
        if isinstance(card, Card):
            raise ArgumentError(
                f"model: has no card, and would get the amplitudes as they are, but {name} in it "
                f"has one, of {card.name or 'no name'}; give the model one, such as model.card = "
                f"model.get_submodule({name!r}).card, or take that one away"
            )


def _check_order(model: nn.Module, card: Card) -> None:
    """Raise if forward has the inputs by the card's names, in another order."""
    names = [each.name for each in card.inputs]
    taken = [name for name in inspect.signature(model.forward).parameters if name in names]
    if sorted(taken) == sorted(names) and taken != names:
        raise ArgumentError(
            f"model: its forward takes {', '.join(taken)}, and its card has {', '.join(names)}; "
            "put the card's inputs into that order"
        )


def _check_unpersisted(volumes: Mapping[str, xr.DataArray]) -> None:
    """Raise unless each process can compute the volumes by itself."""
    if "distributed" not in sys.modules:
        return
    from distributed import futures_of

    for name, volume in volumes.items():
        if futures_of([v for v in (volume, *volume.coords.values()) if v.chunks is not None]):
            raise SurveyError(
                f"{name}: is persisted on a cluster, where other tasks cannot read it; pass it as "
                "it was before persist(), or .load() it"
            )


def _variables(
    card: Card, source: xr.Dataset | xr.DataArray, where: str
) -> dict[str, xr.DataArray]:
    """The variables that a card names, from what the user gave."""
    wanted = {each.name: each for each in reversed(card.inputs) if each.name}
    wanted = dict(reversed(wanted.items()))
    if isinstance(source, xr.DataArray):
        if len(wanted) > 1:
            names = ", ".join(wanted)
            raise SurveyError(
                f"{card.name} takes {len(wanted)} variables ({names}); pass a Dataset that has them"
            )
        return dict.fromkeys(wanted, source)
    missing = [
        f"{name!r} ({each.long_name})" for name, each in wanted.items() if name not in source
    ]
    if missing:
        has = ", ".join(map(str, source.data_vars)) or "no variable"
        advice = "ingest the SEG-Y with outcrop ingest, or pass one variable as a DataArray"
        if set(wanted) != {"amplitude"}:
            advice = "add it with survey.assign, or rename the one that you have"
        raise SurveyError(f"{where}: has no variable {', '.join(missing)}, but {has}; {advice}")
    volumes = {name: source[name] for name in wanted}
    first = next(iter(volumes.values()))
    for name, volume in volumes.items():
        if dict(volume.sizes) != dict(first.sizes):
            raise SurveyError(
                f"{where}: {name} has extents {dict(volume.sizes)} instead of {dict(first.sizes)}; "
                "all variables that go in must have the same"
            )
        if volume.dims != first.dims:
            volumes[name] = in_blocks(volume).transpose(*first.dims)
    return volumes
