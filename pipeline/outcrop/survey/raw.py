"""Files of raw samples, as simulators and research codes read and write them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import xarray as xr

from ..models.card import Card
from ..storage import naming_refusal, on_disk, put_whole
from .reading import loaded

_BLOCK = 64 << 20  # bytes that are held at a time


def raw_paths(card: Card, stem: str | os.PathLike[str]) -> list[Path]:
    """Files that `write_raw` writes, in the card's order."""
    return [on_disk(f"{stem}.{o.suffix or o.name}") for o in card.outputs if o is not None]


def write_raw(
    prediction: xr.Dataset,
    card: Card,
    stem: str | os.PathLike[str],
    kept: Collection[Path] = (),
) -> list[Path]:
    """Write each variable of a prediction as float32, the samples of a trace side by side.

    Values are in the network's own units, angles in half turns: what another code of the same
    network would have written. A file appears whole or not at all.

    Parameters
    ----------
    prediction : xarray.Dataset
        Over inline, crossline and twt or depth.
    card : Card
        Of the network: names each file's suffix.
    stem : path-like
        To which ".rgt", ".dhr", ... are appended.
    kept : collection of pathlib.Path
        Files that are there, and stay as they are.

    Returns
    -------
    list of pathlib.Path
        The files, in the card's order.
    """
    paths = raw_paths(card, stem)
    for output, path in zip(filter(None, card.outputs), paths, strict=True):
        if path in kept:
            continue
        vertical = "twt" if "twt" in prediction.dims else "depth"
        values = prediction[output.name].transpose("inline", "crossline", vertical)
        step = max(1, _BLOCK // max(4 * values[0].size, 1))
        with (
            naming_refusal(path, "see to it, and run the same command again"),
            put_whole(path) as part,
            open(part, "wb") as file,
        ):
            for first in range(0, values.sizes["inline"], step):
                block = loaded(values, [slice(first, first + step)])
                (block / output.scale).astype("<f4", order="C").tofile(file)
    return paths
