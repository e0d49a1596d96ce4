"""Statistics of a survey's samples, which normalise them, and its fingerprint."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import dask.array
import numpy as np
import xarray as xr
from dask.system import CPU_COUNT

from ..arrays import dask_threads, spoken
from ..errors import SurveyError
from ..models.normalization import PLAIN, Statistics
from ..patience import patiently
from ..storage import naming_refusal
from ..survey.reading import loaded, naming_bad_chunk
from .labelled import VERTICAL, Framed

if TYPE_CHECKING:
    from distributed import Client

# A block takes so many times its bytes; so many samples of it are made float64 at a time.
_COPIES, _PART = 3, 1 << 20
# Standard deviations from the mean beyond which no seismic amplitude should be.
_SPIKE = 100
# What is found of one block: of the samples of live traces that are not zero throughout it number,
# mean, sum of squared differences from it and extremes; of all samples the sum of `place_sum`; the
# traces that are zero throughout it, in bits.
_STATE = np.dtype(
    [
        *((name, np.float64) for name in ("count", "mean", "squares", "lowest", "highest")),
        ("placed", np.uint64),
        ("silent", object),
    ]
)


class Found(NamedTuple):
    """What one pass over a volume finds.

    Attributes
    ----------
    statistics : Statistics
        Of the traces that are live and not dead.
    fingerprint : str
        SHA-256 of the coordinates and of a sum that each sample's place weights.
    dead : numpy.ndarray of bool
        Of each trace, whether it is live and zero throughout; of none in a volume whose samples
        have one sign, such as of probabilities, where zeros say something.
    """

    statistics: Statistics
    fingerprint: str
    dead: np.ndarray


def statistics(
    volume: xr.DataArray, client: Client | None = None, memory: int | None = None
) -> Found:
    """Find a volume's statistics, its fingerprint and its dead traces.

    One pass over the samples with Dask, in float64: means and variances of blocks are merged [1]_.
    The fingerprint knows of every sample where it is, whatever the blocks that they are stored in.

    Parameters
    ----------
    volume : xarray.DataArray
        Along twt or depth and other dimensions. Where its coordinate `live`, if it has one, is
        false, samples do not matter.
    client : distributed.Client, optional
        Sums on its workers.
    memory : int, optional
        Bytes that blocks may take in this process; one block is looked at even so.

    Returns
    -------
    Found

    Raises
    ------
    SurveyError
        If a sample is NaN or infinite, or a chunk cannot be decoded.

    References
    ----------
    .. [1] Chan, T. F., Golub, G. H., and LeVeque, R. J., 1983, Algorithms for computing the sample
       variance: The American Statistician, 37, 242-247, https://doi.org/10.2307/2683386
    """
    lazy = volume.chunk({}).data if volume.chunks is None else volume.data
    axis = next(i for i, d in enumerate(volume.dims) if d in VERTICAL)
    live = volume.coords.get("live")
    blocks = [lazy]
    mask = np.ones([1] * volume.ndim, bool)
    if live is not None and not loaded(live).all():
        traces = [d for d in volume.dims if d in live.dims]
        mask = loaded(live.transpose(*traces))
        mask = mask[tuple(slice(None) if d in traces else None for d in volume.dims)]
        chunks = tuple(
            c if d in traces else (1,) for c, d in zip(lazy.chunks, volume.dims, strict=True)
        )
        blocks.append(dask.array.from_array(mask, chunks=chunks))
    states = dask.array.map_blocks(
        _state,
        *blocks,
        axis=axis,
        dtype=_STATE,
        chunks=(1,) * lazy.ndim,
        meta=np.empty((0,) * lazy.ndim, _STATE),
    )
    name = volume.name or "the survey"

    def read() -> np.ndarray:
        if client is not None:
            from ..tasks import gather

            return gather(client, [client.compute(states)])[0]
        block = _COPIES * lazy.dtype.itemsize * math.prod(max(c, default=1) for c in lazy.chunks)
        most = CPU_COUNT if memory is None else min(CPU_COUNT, memory // max(1, block))
        with dask_threads(max(1, most)) as pool:
            return states.compute(scheduler="threads", pool=pool)

    with (
        naming_bad_chunk(volume),
        naming_refusal(name, "once that is mended, run the same command again"),
    ):
        if client is None:
            found = patiently(read)
        else:
            from ..tasks import naming_loss

            with naming_loss(f"statistics of {name}"):
                found = patiently(read)
    if not np.isfinite(found["mean"]).all():
        # Such as of prompts that are aligned with the survey.
        advice = f"make them 0, such as by survey[{name!r}].fillna(0)"
        if name == "amplitude":
            advice = f"ingest it again with nonfinite='zero' (--nonfinite zero), or {advice}"
        raise SurveyError(f"{name}: has samples that are NaN or infinite; {advice}")
    whole, dead = _merged(found, lazy.chunks, axis, np.broadcast_to(mask, volume.shape))

    sha = hashlib.sha256(repr((volume.dims, volume.shape, str(volume.dtype))).encode())
    for dim in volume.dims:
        sha.update(np.ascontiguousarray(volume[dim].to_numpy()).tobytes())
    if live is not None:
        sha.update(np.ascontiguousarray(loaded(live)).tobytes())
    sha.update(repr(int(found["placed"].sum(dtype=np.uint64))).encode())
    return Found(whole, sha.hexdigest(), dead)


def _state(
    block: np.ndarray, live: np.ndarray | None = None, *, axis: int, block_info: Any = None
) -> np.ndarray:
    """What is found of one block, alone in an array."""
    found = np.zeros((1,) * block.ndim, _STATE)
    found["placed"] = place_sum(block, block_info[0]["array-location"])
    there = _silent(block, axis)
    found["silent"][(0,) * block.ndim] = np.packbits(there)
    there = ~np.expand_dims(there, axis)
    if live is not None:
        there = there & live
    samples = block if there.all() else block[np.broadcast_to(there, block.shape)]
    with np.errstate(invalid="ignore", over="ignore"):  # the mean tells what is not finite
        if samples.size:
            found["count"], found["mean"] = samples.size, samples.mean(dtype=np.float64)
            found["lowest"], found["highest"] = samples.min(), samples.max()
            found["squares"] = math.fsum(_squares(samples.reshape(-1), found["mean"].item()))
    return found


def _squares(samples: np.ndarray, mean: float) -> Iterator[float]:
    """Yield sums of squared differences from a mean, some samples at a time."""
    for i in range(0, samples.size, _PART):
        from_mean = np.subtract(samples[i : i + _PART], mean, dtype=np.float64)
        yield np.square(from_mean, out=from_mean).sum()


def _silent(block: np.ndarray, axis: int) -> np.ndarray:
    """Which traces of a block are zero throughout it."""
    traces = np.moveaxis(block, axis, -1)
    silent = (traces[..., 0] == 0) & (traces[..., -1] == 0)
    if silent.any():
        silent[silent] = ~traces[silent].any(-1)
    return silent


def _merged(
    found: np.ndarray, chunks: Any, axis: int, live: np.ndarray
) -> tuple[Statistics, np.ndarray]:
    """Statistics of all blocks together, and which traces are dead."""
    live = live[(slice(None),) * axis + (0,)]  # not by take, which copies the whole of it
    regions = dask.array.core.slices_from_chunks(chunks)
    blocks = list(zip(found.reshape(-1), regions, strict=True))

    def silent(state: np.void, region: tuple[slice, ...]) -> tuple[tuple[slice, ...], np.ndarray]:
        traces = region[:axis] + region[axis + 1 :]
        there = live[traces]
        bits = np.unpackbits(state["silent"], count=there.size)
        return traces, bits.reshape(there.shape) & there

    dead = live.copy()
    for block in blocks:
        traces, zero = silent(*block)
        dead[traces] &= zero.astype(bool)
    states = found[found["count"] > 0]
    if not (states.size and states["lowest"].min() < 0 < states["highest"].max()):
        dead[...] = False
    rest = np.zeros(1, _STATE)  # the zeros of the others
    for state, region in blocks:
        traces, zero = silent(state, region)
        samples = region[axis].stop - region[axis].start
        rest["count"] += np.count_nonzero(zero & ~dead[traces]) * samples
    return _together(np.concatenate([states, rest[rest["count"] > 0]])), dead


def _together(states: np.ndarray) -> Statistics:
    """Statistics of all samples that states are of."""
    if not states.size:
        return Statistics(0.0, 0.0, 0.0, 0.0)
    count = states["count"].sum()
    mean = math.fsum(states["count"] * states["mean"]) / count
    between = states["count"] * (states["mean"] - mean) ** 2
    deviation = math.sqrt(math.fsum([*states["squares"], *between]) / count)
    return Statistics(
        mean, deviation, float(states["lowest"].min()), float(states["highest"].max())
    )


def place_sum(block: np.ndarray, places: Any) -> np.uint64:
    """Sum of the bits of all samples, each times a weight of its place, modulo 2⁶⁴.

    `places` are the start and stop of the block along each axis. Exact, so that the sum of all is
    the same for any blocks.
    """
    found = np.asarray(block).view(f"u{block.dtype.itemsize}")
    for axis in reversed(range(block.ndim)):
        # Not @, which is several times slower for integers.
        found = np.einsum("...i,i->...", found, _weights(places[axis], axis))
    return np.uint64(found)


def _weights(place: tuple[int, int], axis: int) -> np.ndarray:
    """Odd numbers, far from any order, for the places along an axis: SplitMix64."""
    z = np.arange(place[0] + 1, place[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(axis << 40)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


def _warn_of_spikes(name: str, found: Statistics) -> None:
    """Warn of samples beside which all others are as good as equal once they are normalised."""
    worst = max(found.lowest, found.highest, key=lambda sample: abs(sample - found.mean))
    if abs(worst - found.mean) > _SPIKE * found.deviation:
        warnings.warn(
            f"{name}: {worst:.6g} is {abs(worst - found.mean) / found.deviation:,.0f} standard "
            "deviations from the mean, and the network's input is scaled by such samples; if they "
            f"are spikes, clip them, such as by survey[{name!r}].clip(lowest, highest)",
            stacklevel=3,
        )


def all_statistics(
    framed: Framed, client: Client | None = None, memory: int | None = None
) -> tuple[Framed, list[dict[str, Statistics]], str]:
    """Return the statistics of every variable that goes in, and one fingerprint of them all.

    Where an amplitude, or what else is normalised, has a dead trace, none is live any more.

    Parameters
    ----------
    framed : Framed
    client, memory
        As for `statistics`.

    Returns
    -------
    Framed
        With what is live now.
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
    traces = [d for d in framed.volume.dims if d not in VERTICAL]
    dead = xr.DataArray(np.zeros([framed.volume.sizes[d] for d in traces], bool), dims=traces)
    for here, volumes in framed.volumes_apart():
        found.append({})
        for name, volume in volumes.items():
            found[-1][name], fingerprint, silent = statistics(volume, client, memory)
            prints.append(fingerprint)
            inputs = [each for each in framed.card.inputs if each.name == name]
            kinds = {each.normalization for each in inputs}
            if any(each.is_signal for each in inputs):
                dead[here] |= xr.DataArray(silent, dims=[d for d in volume.dims if d in traces])
            # A mask is of something, too.
            if (
                kinds - set(PLAIN) | kinds & {"mask"}
                and found[-1][name].highest == found[-1][name].lowest
            ):
                at = [
                    f"{d} {spoken(volume[d].values)}" for d in framed.stacked if d in volume.coords
                ]
                live = volume.coords.get("live")
                none = live is not None and not loaded(live).any()
                what = "no trace is live" if none else "the live samples are all equal"
                raise SurveyError(
                    f"{' at '.join([name, *at])}: {what}; is this the right variable?"
                )
            if kinds - set(PLAIN):
                _warn_of_spikes(name, found[-1][name])
    if dead.any():
        framed = framed.without(dead)
    prints += [str(framed.volume[d].to_numpy().tolist()) for d in framed.stacked]
    whole = prints[0] if len(prints) == 1 else hashlib.sha256("".join(prints).encode()).hexdigest()
    return framed, found, whole
