"""The variables that a prediction has: what is returned, by the card, and how it is labelled."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import dask.array
import numpy as np
import xarray as xr
from zarr.codecs import ZstdCodec

from ..arrays import ASIDE
from ..arrays import encoding as encoded
from ..errors import ArgumentError, SurveyError
from ..graph import Graph
from ..graph.boxes import Shape
from ..models.card import Card, OutputCard
from ..survey.reading import loaded
from ..survey.schema import CONVENTIONS
from .labelled import Framed

# Operators whose values may be any.
_UNBOUNDED = ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d", "batch_norm", "normalize")
_INFERENCE = "_legit_no_training"
# Outputs that no card names.
_UNNAMED = r"prediction(_\d+)?"


def check_outputs(framed: Framed, threshold: float | None) -> None:
    """Raise unless what the card names can be predicted of this survey, with this threshold.

    Raises
    ------
    ArgumentError
        If there is a threshold, but no probability, or none from 0 to 1, or an output or mask has
        the name of a coordinate, or one that no variable can have.
    SurveyError
        If the range of each volume would scale an output, and several go into one variable.
    """
    cards = [card for card in framed.card.outputs if card is not None]
    names = [card.name for card in cards]
    for name in names:
        if not name or "/" in name or name.startswith((".", "__")) or name == ASIDE:
            raise ArgumentError(
                f"output {name!r} of {framed.card.name or 'the card'}: no variable of a Zarr can "
                "have this name; take letters, digits and underscores"
            )
    if threshold is not None and not any(name.endswith("_probability") for name in names):
        raise ArgumentError(
            f"threshold {threshold:g}: is for probabilities, and the network predicts "
            f"{', '.join(names) or 'what no card names'}; leave it out"
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise ArgumentError(f"threshold {threshold:g}: probabilities run from 0 to 1")
    later = [card.name for card in cards if card.own_range and card.name != _mask(card.name)]
    if threshold is not None and later:
        raise ArgumentError(
            f"threshold {threshold:g}: {later[0]} is brought to 0…1 only once all of it is "
            f"predicted; leave it out, and compare the result, such as by found.{later[0]} >= 0.5"
        )
    masks = set() if threshold is None else {_mask(n) for n in names if n != _mask(n)}
    if both := masks & set(names):
        raise ArgumentError(
            f"threshold {threshold:g}: the network predicts {min(both)}, so that the mask beside "
            "its probability needs another name; rename the output in the card"
        )
    written = {*names, *masks}
    for name in map(str, framed.volume.coords):
        # Without a card how many there are is known only once the network is captured.
        if name in written or (not framed.card.outputs and re.fullmatch(_UNNAMED, name)):
            raise ArgumentError(
                f"{name}: a variable that is written and a coordinate of the survey have this "
                "name; rename the coordinate, such as by survey.rename"
            )
    own = [card.name for card in cards if card.own_range]
    if own and math.prod(framed.stacked.values()) > 1:
        raise SurveyError(
            f"{own[0]}: is brought to 0…1 by the range of a whole volume, and the survey has "
            f"several along {', '.join(framed.stacked)}; select one at a time, such as by "
            f"survey.isel({next(iter(framed.stacked))}=0), or pass all to predict_all"
        )


def output_cards(graph: Graph, card: Card) -> dict[str, tuple[OutputCard | None, ...]]:
    """Name each channel of each of the network's outputs; None for those that are not kept.

    Raises
    ------
    SurveyError
        If an output is the input, another one again, lies on another grid than the volume, is
        complex or has a single channel for a softmax, or their number or order is not the card's.
    """
    if len(set(graph.outputs)) < len(graph.outputs):
        raise SurveyError("the network returns one tensor twice; return it once")
    returned = graph.nest({name: name for name in graph.outputs})
    names = [output.name for output in card.outputs if output is not None]
    if isinstance(returned, dict) and set(returned) == set(names) and list(returned) != names:
        raise SurveyError(
            f"the network returns {', '.join(returned)}, and its card names {', '.join(names)}; "
            "put them into one order, as channels go by that"
        )
    if card.activation == "softmax" and any(graph.width(name) == 1 for name in graph.outputs):
        raise SurveyError(
            "activation 'softmax': goes across the channels of an output, and the network has one "
            "of a single channel, where it would be 1 everywhere; return all classes as channels "
            "of one tensor, or take 'sigmoid'"
        )
    grid = graph.grid(graph.inputs[0])
    for name in graph.outputs:
        if name in graph.inputs:
            raise SurveyError(
                "the network returns its input among its outputs; leave it out of what forward "
                "returns, or use whole_volume, which returns it as it is"
            )
        if graph.grid(name) != grid:
            raise SurveyError(
                f"the network's output {name} has extents {graph.grid(name)} instead of the "
                f"volume's {grid}; use whole_volume, which returns them without labels"
            )
        if "complex" in (graph.nodes[name].dtype or ""):
            raise SurveyError(
                f"the network's output {name} is complex; return its parts as channels, or use "
                "whole_volume, which returns it as it is"
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
        last = graph.nodes[name].op.strip("_").removeprefix("native_").removesuffix(_INFERENCE)
        if card.activation == "none" and last in _UNBOUNDED:
            _warn_of_logits(split[name], last)
    return split


def _warn_of_logits(outputs: Iterable[OutputCard | None], last: str) -> None:
    for output in filter(None, outputs):
        if output.name != _mask(output.name):
            warnings.warn(
                f"{output.name}: the network ends with {last}, so that its values are not from 0 "
                "to 1; if they are logits, say so in its card, such as by activation='sigmoid'",
                stacklevel=3,
            )


def template(
    framed: Framed,
    outputs: Iterable[tuple[Shape, Sequence[OutputCard | None]]],
    threshold: float | None = None,
) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Return the empty prediction, labelled, and its Zarr encoding: one object for each tile.

    Parameters
    ----------
    framed : Framed
    outputs : iterable of (tile, cards)
        Shape of the tiles in which some channels are written.
    threshold : float, optional
        Of the masks beside probabilities.
    """
    volume = framed.volume
    variables, encoding = {}, {}
    for tile, cards in outputs:
        by_axis = dict(zip(framed.axes, tile, strict=True))
        shard = tuple(min(by_axis.get(str(d), 1), volume.sizes[d]) for d in volume.dims)
        chunk = tuple(map(_chunk, shard))
        layout: dict[str, Any] = {"chunks": chunk}
        if chunk != shard:
            layout["shards"] = shard
        data = dask.array.zeros(volume.shape, dtype=np.float32, chunks=shard)
        for card in filter(None, cards):
            attrs: dict[str, Any] = {"long_name": card.long_name, "units": card.units}
            if all(map(math.isfinite, card.valid_range)) and not card.own_range:
                # In the units of what is stored, as the CF conventions want it.
                attrs["valid_range"] = [bound / card.scale for bound in card.valid_range]
            if card.scale != 1.0:
                attrs["scale_factor"] = card.scale
            if card.comment:
                attrs["comment"] = card.comment
            variables[card.name] = (volume.dims, data, attrs)
            encoding[card.name] = layout | encoded(np.float32, ZstdCodec())
            if threshold is not None and card.name.endswith("_probability"):
                mask, attrs = mask_of(card.name, card.long_name, threshold)
                variables[mask] = (volume.dims, data.astype(np.uint8), attrs)
                encoding[mask] = layout | encoded(np.uint8, ZstdCodec())
    # Texts, such as names of vintages, as they have a specification in Zarr: of any length.
    coords = {
        k: (v.dims, loaded(v).astype(object if v.dtype.kind == "U" else v.dtype), v.attrs)
        for k, v in volume.coords.items()
    }
    encoding |= {str(k): encoded(v.dtype, ZstdCodec()) for k, v in volume.coords.items()}
    return xr.Dataset(variables, coords, {"Conventions": CONVENTIONS}), encoding


def mask_of(name: str, long_name: str, threshold: float) -> tuple[str, dict[str, Any]]:
    """Name and attributes of the variable that says where a probability reaches the threshold."""
    mask = _mask(name)
    return mask, {
        "long_name": f"{long_name} at least {threshold:g}",
        "flag_values": [0, 1],
        "flag_meanings": f"no_{mask} {mask}",
    }


def masks_of(names: Sequence[str | None], threshold: float | None) -> list[str | None]:
    """Names of the masks beside variables; None beside those that are no probability."""
    beside = [None if name is None or _mask(name) == name else _mask(name) for name in names]
    return beside if threshold is not None else [None] * len(beside)


def _mask(name: str) -> str:
    return name.removesuffix("_probability")


def _chunk(extent: int) -> int:
    """Part of a tile's extent that is compressed on its own, so that one section reads fast."""
    while extent > 128 and extent % 2 == 0:
        extent //= 2
    return extent
