"""Statistics of a survey's samples, which normalise them, and its fingerprint."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import dask
import dask.array
import numpy as np
import xarray as xr

from ..errors import SurveyError
from ..models.normalization import Statistics
from ..patience import patiently
from ..storage import naming_refusal
from ..survey.reading import naming_bad_chunk
from .labelled import Framed

if TYPE_CHECKING:
    from distributed import Client

# Normalizations that do without the statistics of the volume.
_LOCAL = ("none", "mask", "half-turn", "position")


def statistics(volume: xr.DataArray, client: Client | None = None) -> tuple[Statistics, str]:
    """Return statistics of the live traces, and a fingerprint of the volume.

    Two passes over the samples with Dask, summed in float64. The fingerprint knows of every sample
    where it is, whatever the blocks that they are stored in.

    Parameters
    ----------
    volume : xarray.DataArray
        0 where its coordinate `live`, if it has one, is false.
    client : distributed.Client, optional
        Sums on its workers.

    Returns
    -------
    Statistics
    fingerprint : str
        SHA-256 of the coordinates, of the sums, and of a sum that each sample's place weights.

    Raises
    ------
    SurveyError
        If a sample is NaN or infinite, or a chunk cannot be decoded.
    """
    lazy = volume.chunk({}).data if volume.chunks is None else volume.data
    live = volume.coords.get("live")
    share = 1.0 if live is None else float(live.mean())
    samples = volume.size * share
    missing = volume.size - samples

    def compute(*values: Any) -> list[Any]:
        def read() -> list[Any]:
            if client is not None:
                return client.gather(client.compute(list(values)))
            return list(dask.compute(*values, scheduler="threads"))

        name = volume.name or "the survey"
        then = "once that is mended, run the same command again"
        with naming_bad_chunk(volume), naming_refusal(name, then):
            if client is None:
                return patiently(read)
            from ..tasks import naming_loss

            with naming_loss(f"statistics of {name}"):
                return patiently(read)

    seen = lazy
    if live is not None and missing and samples:
        # Where there is no trace, a sample that changes neither the lowest nor the highest.
        traces = [d for d in volume.dims if d in live.dims]
        mask = live.transpose(*traces).to_numpy()
        first = dict(zip(traces, np.argwhere(mask)[0], strict=True))
        other = lazy[tuple(first.get(d, 0) for d in volume.dims)]
        mask = mask[tuple(slice(None) if d in traces else None for d in volume.dims)]
        seen = dask.array.where(mask, lazy, other)
    *ends, placed = compute(lazy.sum(dtype=np.float64), seen.min(), seen.max(), _placed_sum(lazy))
    total, lowest, highest = map(float, ends)
    mean = total / max(samples, 1.0)
    if not math.isfinite(mean):
        raise SurveyError(
            f"{volume.name or 'the survey'}: has samples that are NaN or infinite; ingest it again "
            "with nonfinite='zero' (--nonfinite zero)"
        )
    squares = float(*compute(((lazy.astype(np.float64) - mean) ** 2).sum()))
    variance = (squares - missing * mean**2) / max(samples, 1.0)
    found = Statistics(mean, math.sqrt(max(variance, 0.0)), lowest, highest)

    sha = hashlib.sha256(repr((volume.dims, volume.shape, str(volume.dtype))).encode())
    for dim in volume.dims:
        sha.update(np.ascontiguousarray(volume[dim].to_numpy()).tobytes())
    if live is not None:
        sha.update(np.ascontiguousarray(live.to_numpy()).tobytes())
    sha.update(repr((found, int(placed))).encode())
    return found, sha.hexdigest()


def _placed_sum(samples: dask.array.Array) -> dask.array.Array:
    """Sum of the bits of all samples, each times a weight of its place, modulo 2⁶⁴.

    Exact, so that it is the same for any blocks.
    """
    none = np.empty((0,) * samples.ndim, np.uint64)
    chunks = (1,) * samples.ndim
    parts = samples.map_blocks(_placed, dtype=np.uint64, chunks=chunks, meta=none)
    return parts.sum(dtype=np.uint64)


def _placed(block: np.ndarray, block_info: Any = None) -> np.ndarray:
    """That sum over one block."""
    places = block_info[0]["array-location"]
    found = np.asarray(block).view(f"u{block.dtype.itemsize}")
    for axis in reversed(range(block.ndim)):
        # Not @, which is several times slower for integers.
        found = np.einsum("...i,i->...", found, _weights(places[axis], axis))
    return found.reshape((1,) * block.ndim)


def _weights(place: tuple[int, int], axis: int) -> np.ndarray:
    """Odd numbers, far from any order, for the places along an axis: SplitMix64."""
    z = np.arange(place[0] + 1, place[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(axis << 40)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


def all_statistics(
    framed: Framed, client: Client | None = None
) -> tuple[list[dict[str, Statistics]], str]:
    """Return the statistics of every variable that goes in, and one fingerprint of them all.

    Returns
    -------
    list of dict
        For each volume: offsets and vintages are normalised by statistics of their own.
    fingerprint : str

    Raises
    ------
    SurveyError
        If a sample is NaN or infinite, or all are equal where the network's normalization divides
        by what they differ.
    """
    found: list[dict[str, Statistics]] = []
    prints = []
    for volumes in framed.volumes_apart():
        found.append({})
        for name, volume in volumes.items():
            found[-1][name], fingerprint = statistics(volume, client)
            prints.append(fingerprint)
            kinds = {each.normalization for each in framed.card.inputs if each.name == name}
            if kinds - set(_LOCAL) and found[-1][name].highest == found[-1][name].lowest:
                at = [f"{d} {volume[d].item():g}" for d in framed.stacked if d in volume.coords]
                raise SurveyError(
                    f"{' at '.join([name, *at])}: the live samples are all equal; is this the "
                    "right variable?"
                )
    prints += [str(framed.volume[d].to_numpy().tolist()) for d in framed.stacked]
    whole = prints[0] if len(prints) == 1 else hashlib.sha256("".join(prints).encode()).hexdigest()
    return found, whole
