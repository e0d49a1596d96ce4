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

    Two passes over the samples with Dask, summed in float64.

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
        SHA-256 of the coordinates and of the sums.

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

    def compute(*values: Any) -> list[float]:
        def read() -> list[float]:
            if client is not None:
                return [float(v) for v in client.gather(client.compute(list(values)))]
            return [float(v) for v in dask.compute(*values, scheduler="threads")]

        then = "once that is mended, run the same command again"
        with naming_bad_chunk(volume), naming_refusal(volume.name or "the survey", then):
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
    total, lowest, highest = compute(lazy.sum(dtype=np.float64), seen.min(), seen.max())
    mean = total / max(samples, 1.0)
    if not math.isfinite(mean):
        raise SurveyError(
            f"{volume.name or 'the survey'}: has samples that are NaN or infinite; ingest it again "
            "with nonfinite='zero' (--nonfinite zero)"
        )
    (squares,) = compute(((lazy.astype(np.float64) - mean) ** 2).sum())
    variance = (squares - missing * mean**2) / max(samples, 1.0)
    found = Statistics(mean, math.sqrt(max(variance, 0.0)), lowest, highest)

    sha = hashlib.sha256(repr((volume.dims, volume.shape, str(volume.dtype))).encode())
    for dim in volume.dims:
        sha.update(np.ascontiguousarray(volume[dim].to_numpy()).tobytes())
    if live is not None:
        sha.update(np.ascontiguousarray(live.to_numpy()).tobytes())
    sha.update(repr(found).encode())
    return found, sha.hexdigest()


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
