"""Crops of a source's volumes: every sample is a function of the seed and its number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..errors import TrainingDataError
from ..gaps import neighbours
from ..models.card import Card
from ..models.normalization import NORMALIZATIONS, Statistics, absent
from .augment import apparent_dip, augmented, draw_stretch, rescaled, stretched
from .volumes import AXES, Array, Source, Volume, places_of

_LEAST = 0.25  # traces of a crop that are there
_DRAWS = 32  # of a crop, until it has every label somewhere


class Crops(Dataset[dict[str, Tensor]]):
    """Random crops, as a network wants them.

    They are taken where at least a quarter of their traces are there, or as many as there are, and
    where each label is known somewhere.

    Parameters
    ----------
    source : Source
    card : Card
        Of the network: its axes, and what becomes of the amplitudes.
    labels : dict of str to float
        Names of what it learns, and by what to divide it.
    size : sequence of int
        Inlines, crosslines and samples of a crop.
    per_volume : int
        Crops in turn from each volume.
    seed : int
    augment : bool
        Mirror, turn and stretch crops, and scale their amplitudes.
    keep : int
        Volumes kept in memory.
    """

    def __init__(
        self,
        source: Source,
        card: Card,
        labels: dict[str, float],
        size: Sequence[int],
        *,
        per_volume: int = 8,
        seed: int = 0,
        augment: bool = True,
        keep: int = 4,
    ) -> None:
        self.source, self.card, self.labels, self.size = source, card, labels, tuple(size)
        self.per_volume, self.seed, self.augment, self.keep = per_volume, seed, augment, keep
        self.volumes: OrderedDict[int, tuple[Volume, _Corners | None]] = OrderedDict()

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Return sample `number`.

        Returns
        -------
        dict of str to torch.Tensor
            float32, over the network's axes: `input`, (channels, ...), and the labels, (1, ...).
            Labels are NaN where they are not known. Of surveys that lack traces also `live`, bool,
            (1, ...): where it is false `input` is as `predict` has it, and labels are NaN.
        """
        rng = np.random.default_rng((self.seed, number))
        volume, corners = self._volume(number // self.per_volume)
        extents = volume.shape
        samples = round(self.size[2] / draw_stretch(rng)) if self.augment else self.size[2]
        sizes = (*self.size[:2], min(samples, extents[2]))
        for _ in range(_DRAWS):
            starts = [int(rng.integers(n - s + 1)) for n, s in zip(extents, sizes, strict=True)]
            if corners is not None:
                starts[:2] = corners.draw(rng)
            box = tuple(slice(a, a + s) for a, s in zip(starts, sizes, strict=True))
            crop = self._read(volume, box)
            if not any(np.isnan(values).all() for values in crop.values()):
                break
        statistics = volume.statistics
        if self.augment:
            crop = augmented(stretched(crop, self.size[2]), rng)
            crop, statistics = rescaled(crop, statistics, rng)
        # Where the crop's voxels are, as a share of the survey.
        places = [
            (first + np.linspace(a, a + s - 1, size)) / max(n - 1, 1)
            for first, a, s, size, n in zip(
                volume.start, starts, sizes, self.size, volume.whole or extents, strict=True
            )
        ]
        return self._tensors(crop, statistics, places)

    def _read(self, volume: Volume, box: tuple[slice, ...]) -> dict[str, Array]:
        def read(name: str, box: tuple[slice, ...]) -> Array:
            with self._naming_loss():
                return np.asarray(volume.values[name][box], np.float32)

        crop = {name: read(name, box) for name in volume.values}
        if volume.live is not None:
            live = volume.live[box[:2]][:, :, None]
            crop = {name: np.where(live, v, np.float32(np.nan)) for name, v in crop.items()}
            missing, nearest = neighbours(volume.live, box[:2])
            if missing[0].size:  # as `predict` shows them, by traces around the crop too
                first = [int(at.min()) for at in nearest]
                around = (slice(a, int(at.max()) + 1) for a, at in zip(first, nearest, strict=True))
                into = tuple(at - s.start for at, s in zip(missing, box[:2], strict=True))
                of = tuple(at - a for at, a in zip(nearest, first, strict=True))
                crop["amplitude"][into] = read("amplitude", (*around, box[2]))[of]
            crop["live"] = np.broadcast_to(live, crop["amplitude"].shape)
        return crop

    def _tensors(
        self, crop: dict[str, Array], statistics: Statistics, places: Sequence[Array]
    ) -> dict[str, Tensor]:
        axes = self._axes()
        channels = []
        for card in self.card.inputs:
            if card.normalization == "position":
                axis = axes[card.axis]
                extents = [-1 if a == axis else 1 for a in range(3)]
                value = np.broadcast_to(places[axis].reshape(extents), self.size)
            else:
                how = NORMALIZATIONS[card.normalization]
                nothing = 0.0 if card.blank else absent(card.normalization, statistics)
                value = np.nan_to_num(how(crop["amplitude"], statistics), nan=nothing)
                if "live" in crop and card.blank:
                    value = np.where(crop["live"], value, np.float32(nothing))
            channels.append(self._turned(value))
        if "rgt" in crop:  # its range is the crop's own, as it is the whole volume's in prediction
            low, high = np.nanmin(crop["rgt"]), np.nanmax(crop["rgt"])
            crop["rgt"] = (crop["rgt"] - low) / max(high - low, 1e-12)
        if "dhr" in crop:
            crop["dhr"] = crop["dhr"] / np.hypot(*statistics[:2])
        if self.card.sections and "fault_strike" in crop:
            angles = crop["fault_dip"], crop["fault_strike"]
            crop["fault_dip"] = apparent_dip(*angles, self.card.direction)
        tensors = {"input": torch.from_numpy(np.stack(channels).astype(np.float32))}
        for name, scale in self.labels.items():
            label = self._turned(crop[name] / np.float32(scale))[None]
            tensors[name] = torch.from_numpy(np.ascontiguousarray(label, dtype=np.float32))
        if "live" in crop:
            tensors["live"] = torch.from_numpy(self._turned(crop["live"])[None].copy())
        return tensors

    def _axes(self) -> tuple[int, ...]:
        """Axis of the volume for each of the network's."""
        return tuple(AXES[name] for name in self.card.axes)

    def _turned(self, values: Array) -> Array:
        axes = self._axes()
        others = sorted({0, 1, 2} - set(axes))
        return values.transpose(*axes, *others).reshape([self.size[a] for a in axes])

    def _volume(self, number: int) -> tuple[Volume, _Corners | None]:
        """Return a volume and, unless it has all traces, where crops may begin."""
        count = self.source.volumes
        if count is not None:
            turn, place = divmod(number, count)
            if self.augment:  # each of them once, then again in another order
                place = int(np.random.default_rng((self.seed, turn)).permutation(count)[place])
            number = place
        if number not in self.volumes:
            with self._naming_loss():
                volume = self.source.read(number)
            live = np.ones(volume.shape[:2], bool) if volume.live is None else volume.live
            labelled = live if volume.labelled is None else volume.labelled
            corners = None if labelled.all() else _Corners(live, labelled, self.size)
            self.volumes[number] = volume, corners
            while len(self.volumes) > self.keep:
                self.volumes.popitem(last=False)
        return self.volumes[number]

    @contextmanager
    def _naming_loss(self) -> Iterator[None]:
        """Say in one line that data which were there before the first step cannot be read."""
        try:
            yield
        except Exception as error:  # storage and codecs raise anything
            where = ", ".join(places_of(self.source.description))
            reason = " ".join(str(error).split())
            raise TrainingDataError(
                f"{where}: cannot be read any more ({reason}); restore it, and go on by resume "
                "(--resume)"
            ) from error


class _Corners:
    """First (inline, crossline) of every crop of a size that has enough traces, some with labels.

    A byte for each trace: surveys have tens of millions, and every process keeps this.
    """

    def __init__(self, live: Array, labelled: Array, size: Sequence[int]) -> None:
        traces, some = _counted(live, size), _counted(labelled, size) > 0
        self.enough = some & (traces >= min(_LEAST * size[0] * size[1], traces[some].max()))
        self.ends = np.count_nonzero(self.enough, axis=1).cumsum()

    def draw(self, rng: np.random.Generator) -> list[int]:
        """Draw one of them."""
        number = int(rng.integers(self.ends[-1]))
        inline = int(np.searchsorted(self.ends, number, "right"))
        crosslines = np.flatnonzero(self.enough[inline])
        return [inline, int(crosslines[number - self.ends[inline]])]


def _counted(traces: Array, size: Sequence[int]) -> Array:
    """Count the traces in every crop."""
    m, n = size[:2]
    count = np.zeros([extent + 1 for extent in traces.shape], np.int32)
    np.cumsum(traces, 0, out=count[1:, 1:])
    np.cumsum(count[1:, 1:], 1, out=count[1:, 1:])
    found = count[m:, n:] - count[:-m, n:]
    found -= count[m:, :-n]
    found += count[:-m, :-n]
    return found


class Numbers(Sampler[int]):
    """Numbers of the samples of an epoch, those of several volumes by turns.

    Of several processes that train together, each takes every so many-th volume.

    Parameters
    ----------
    length : int
        Samples in an epoch, of all processes.
    per_volume : int
        As of the crops.
    lanes : int
        Volumes taken by turns.
    """

    def __init__(self, length: int, per_volume: int, lanes: int) -> None:
        self.length, self.per_volume, self.lanes, self.epoch = length, per_volume, lanes, 0

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch comes next; called by Lightning."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // _processes()[1]

    def __iter__(self) -> Iterator[int]:
        rank, processes = _processes()
        block = self.per_volume * self.lanes
        for n in range(self.epoch * len(self), (self.epoch + 1) * len(self)):
            turn, lane = divmod(n % block, self.lanes)
            volume = (n // block * self.lanes + lane) * processes + rank
            yield volume * self.per_volume + turn


def _processes() -> tuple[int, int]:
    """Rank of this process, and how many train together."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
