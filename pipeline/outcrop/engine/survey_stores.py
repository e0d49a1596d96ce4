"""Stores on labelled data: the survey as a network reads it, the prediction as it is written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import dask
import numpy as np
import torch
import zarr
from torch import Tensor

from ..arrays import located, open_for_writing
from ..errors import NonFiniteError
from ..gaps import Index, near_traces, neighbours
from ..graph import Box
from ..locks import Fence
from ..models.card import ACTIVATIONS, InputCard
from ..models.normalization import NORMALIZATIONS, Statistics, absent
from ..storage import Place
from .chunks import DecodedChunks
from .labelled import Framed
from .stores import to_host


class SurveyStore:
    """Variables of a survey as a network's input: turned, normalised and padded as they are read.

    Parameters
    ----------
    framed : Framed
    inputs : sequence of InputCard
        One per channel.
    statistics : mapping
        Of each variable, by name.
    dtype : torch.dtype
    chunks : DecodedChunks
        Of its volumes.
    section : int, optional
        Which of the volumes or sections that the network takes one by one.
    """

    slow = True

    def __init__(
        self,
        framed: Framed,
        inputs: Sequence[InputCard],
        statistics: Mapping[str, Statistics],
        dtype: torch.dtype,
        chunks: DecodedChunks,
        section: int | None = None,
    ) -> None:
        here = framed.at(section)
        self.framed, self.here, self.chunks = framed, here, chunks
        wanted = {each.name for each in inputs if each.name}
        self.names = [name for name in framed.volumes if name in wanted]
        self.shape = tuple(framed.volume.sizes[a] for a in framed.axes)
        self.traces, self.live = _live(framed, here)
        self.before, self.inputs, self.statistics = framed.before, tuple(inputs), dict(statistics)
        self.dtype = dtype
        self.absent = [
            0.0 if i.blank else absent(i.normalization, self.statistics[i.name])
            for i in self.inputs
        ]

    def read(self, box: Box) -> Tensor:
        own_box = box.shifted(tuple(-b for b in self.before))
        mirrored = [_mirrored(s, n) for s, n in zip(own_box.slices, self.shape, strict=True)]
        inside = Box(
            tuple(int(i.min()) for i in mirrored), tuple(int(i.max()) + 1 for i in mirrored)
        )
        around, missing, nearest = self._gaps(inside)
        x = torch.empty((1, len(self.inputs), *box.shape), dtype=self.dtype)
        samples, placed = {}, dict(zip(self.framed.axes, around.slices, strict=True))
        placed.update({d: slice(i, i + 1) for d, i in self.here.items()})
        dims = [str(d) for d in self.framed.volume.dims]
        own = Box(tuple(placed[d].start for d in dims), tuple(placed[d].stop for d in dims))
        fixed = tuple(dims.index(d) for d in self.here)
        order = [a for a in dims if a not in self.here]
        turn = [order.index(a) for a in self.framed.axes]
        for name in self.names:
            samples[name] = self.chunks.read(name, own).squeeze(fixed).transpose(turn)
        exact = np.dtype("float64" if self.dtype == torch.float64 else "float32")
        for channel, each, nothing in zip(x[0], self.inputs, self.absent, strict=True):
            if each.normalization == "position":
                position = np.arange(self.shape[each.axis]) / max(self.shape[each.axis] - 1, 1)
                part = position[inside.slices[each.axis]].astype(exact)
                others = [i for i in range(len(self.shape)) if i != each.axis]
                part = np.broadcast_to(np.expand_dims(part, others), inside.shape)
            else:
                normalize = NORMALIZATIONS[each.normalization]
                part = normalize(samples[each.name].astype(exact), self.statistics[each.name])
                if self.live is not None:
                    last = np.moveaxis(part, self.traces, range(-len(self.traces), 0))
                    live = self.live[tuple(around.slices[i] for i in self.traces)]
                    last[..., ~live] = nothing
                    if not each.blank:
                        gaps: Any = (..., *missing)
                        there: Any = (..., *nearest)
                        last[gaps] = last[there]
                part = part[inside.within(around).slices]
            if inside != own_box:
                for axis, index in enumerate(mirrored):
                    part = part.take(index - inside.start[axis], axis)
            channel[...] = torch.from_numpy(np.array(part, exact))
        return x

    def _gaps(self, inside: Box) -> tuple[Box, Index, Index]:
        """What to read, and where in that missing traces are, and those that stand for them."""
        if self.live is None or all(each.blank for each in self.inputs):
            return inside, (), ()
        gaps = neighbours(self.live, [inside.slices[i] for i in self.traces])
        start, stop = list(inside.start), list(inside.stop)
        for axis, at in zip(self.traces, gaps[1], strict=True):
            if at.size:
                start[axis] = min(start[axis], int(at.min()))
                stop[axis] = max(stop[axis], int(at.max()) + 1)
        missing, nearest = (
            tuple(at - start[axis] for axis, at in zip(self.traces, each, strict=True))
            for each in gaps
        )
        return Box(tuple(start), tuple(stop)), missing, nearest

    def write(self, box: Box, value: Tensor) -> None:
        raise NotImplementedError("a survey is only read")

    def remove(self) -> None:
        """Do nothing: the survey is not ours to delete."""


def _live(framed: Framed, here: Mapping[str, int]) -> tuple[list[int], np.ndarray | None]:
    """Axes of the network along which there are traces, and where they are; None: everywhere."""
    # In the survey's order, whatever the network's: of traces as near one is the same for all.
    traces = [framed.axes.index(a) for a in ("inline", "crossline") if a in framed.axes]
    if "live" not in framed.volume.coords:
        return traces, None
    live = framed.volume.coords["live"].isel(here, missing_dims="ignore")
    # Not on a cluster, whose worker this may be: it would wait for itself.
    with dask.config.set(scheduler="synchronous"):
        return traces, live.transpose(*(framed.axes[i] for i in traces)).to_numpy()


def _mirrored(places: slice, extent: int) -> np.ndarray:
    """Where on an axis what lies at some places is, or what is its mirror image beyond an end.

    The sample at the end is there twice: without it, or with the mean beyond, networks see a fault
    along the survey's edge.
    """
    index = np.arange(places.start, places.stop) % (2 * extent)
    return np.minimum(index, 2 * extent - 1 - index)


class PredictionStore:
    """The network's output, cropped and turned to the survey's dimensions, as Zarr arrays.

    It is 0 where all traces are so far away that the network saw the mean instead.

    Parameters
    ----------
    paths : sequence of pathlib.Path, Remote or None
        One array per output channel; None for one that is not kept.
    framed : Framed
    masks : sequence of pathlib.Path, Remote or None
        Arrays of 1 where the channel reaches the threshold, 0 elsewhere.
    threshold : float
    activation : str
        As of `Card`.
    section : int, optional
        Which of the volumes or sections that the network takes one by one.
    nonfinite : {"error", "warn"}
        What to do with NaN and infinite values.
    fence : Fence, optional
        Asked before something is written.
    """

    slow = True

    def __init__(
        self,
        paths: Sequence[Place | None],
        framed: Framed,
        masks: Sequence[Place | None],
        threshold: float = 0.5,
        activation: str = "none",
        section: int | None = None,
        nonfinite: str = "error",
        fence: Fence | None = None,
    ) -> None:
        self.fence = fence
        self.paths, self.masks = list(paths), list(masks)
        self.threshold, self.activation = threshold, activation
        self.nonfinite = nonfinite
        self.arrays: dict[Place, zarr.Array] = {}
        self.labels = [framed.volume[d].reset_coords(drop=True) for d in framed.volume.dims]
        dims = [str(d) for d in framed.volume.dims]
        self.turn = tuple(framed.axes.index(d) for d in dims if d in framed.axes)
        self.fixed = [(dims.index(d), i) for d, i in framed.at(section).items()]
        self.before = framed.before
        self.framed, self.section = framed, section
        self.near: tuple[Box, np.ndarray] | None = None

    @cached_property
    def _live(self) -> tuple[list[int], np.ndarray | None]:
        return _live(self.framed, self.framed.at(self.section))

    def is_blank(self, box: Box) -> bool:
        """Whether there is nothing to write in a box, as all traces are far away."""
        far = self._far(box)
        return far is not None and bool(far.all())

    def _far(self, box: Box) -> np.ndarray | None:
        """Where in a box all traces are far away, along the survey's axes; None: nowhere."""
        traces, live = self._live
        if live is None or all(each.blank for each in self.framed.card.inputs):
            return None
        region = box.shifted(tuple(-b for b in self.before))
        across = Box(*(tuple(ends[i] for i in traces) for ends in (region.start, region.stop)))
        known = self.near
        if known is None or known[0] != across:
            known = self.near = across, near_traces(live, across.slices)
        if known[1].all():
            return None
        rest = [i for i in range(len(box.shape)) if i not in traces]
        far = ~known[1].transpose(np.argsort(traces))
        return np.expand_dims(far, rest).transpose(self.turn)

    def read(self, box: Box) -> Tensor:
        raise NotImplementedError("a prediction is only written")

    def write(self, box: Box, value: Tensor) -> None:
        if self.fence is not None:
            self.fence.check()
        index = self._index(box)
        # A class map, such as `argmax` returns, has no dimension of channels.
        channels = value.detach().float().reshape(-1, *box.shape)
        channels = ACTIVATIONS[self.activation](channels)
        far = self._far(box)
        for path, mask, channel in zip(self.paths, self.masks, channels, strict=True):
            turned = to_host(channel).permute(self.turn).contiguous().numpy()
            if far is not None:
                turned = np.where(far, np.float32(0), turned)
            if path is not None and not np.isfinite(turned).all():
                self._nonfinite(path.name, turned, index)
            if path is not None:
                self._array(path)[index] = turned
            if mask is not None:
                reached = (turned >= self.threshold).astype(np.uint8)
                self._array(mask)[index] = reached

    def fill_far(self, box: Box, variable: str, value: float) -> None:
        """Write a value where all traces are far away, into one of the variables."""
        far = self._far(box)
        if far is None:
            return
        if self.fence is not None:
            self.fence.check()
        (path,) = (path for path in self.paths if path is not None and path.name == variable)
        array, index = self._array(path), self._index(box)
        array[index] = np.where(far, np.float32(value), array[index])

    def _index(self, box: Box) -> tuple[slice | int, ...]:
        """Where a box lies in the variables."""
        slices = box.shifted(tuple(-b for b in self.before)).slices
        index: list[slice | int] = [slices[i] for i in self.turn]
        for i, section in self.fixed:
            index.insert(i, section)
        return tuple(index)

    def _array(self, path: Place) -> zarr.Array:
        if path not in self.arrays:
            self.arrays[path] = open_for_writing(path)
        return self.arrays[path]

    def _nonfinite(self, name: str, values: np.ndarray, index: Sequence[slice | int]) -> None:
        """Say where values are not finite."""
        bad = np.argwhere(~np.isfinite(values))
        within = iter(bad[0].tolist())
        first = tuple(i if isinstance(i, int) else i.start + next(within) for i in index)
        place = located(self.labels, first, [i + 1 for i in first])
        what = f"{name}: NaN or infinite at {place}, and at {len(bad) - 1} more voxels of that tile"
        if self.nonfinite == "error":
            raise NonFiniteError(
                f"{what}; look at the samples and weights there, take another precision, or write "
                "them as they are with nonfinite='warn' (--nonfinite warn)"
            )
        warnings.warn(what, stacklevel=2)

    def remove(self) -> None:
        """Do nothing: the prediction stays."""
