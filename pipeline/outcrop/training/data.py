"""What `fit` is given to train and to validate with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError, TrainingDataError
from ..models.card import Card
from ..storage import on_disk
from ..targets import is_complete, is_unfinished
from .objectives import Objective
from .sources import Part, RawFolder, Several, Synthetic
from .surveys import Survey
from .volumes import Source, places_of

Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_HELD_OUT = 1_000_000  # between the seeds of synthetic surveys to train and to validate with


def sources_of(
    data: Data,
    validation: Data | None,
    objective: Objective,
    card: Card,
    extents: Sequence[int],
    shape: Sequence[int] | None,
    size: int,
    seed: int,
) -> tuple[Source, Source]:
    """Return what to train and to validate with, checked; arguments as of `fit`."""
    given = [data] if validation is None else [data, validation]
    raw = [is_raw(place) for each in given for place in each_of(each)]
    if shape is not None and not any(raw):
        raise ArgumentError(
            f"shape {tuple(shape)}: of raw samples, which {data} is not; leave it out (--shape)"
        )

    def read(places: Data, seed: int) -> Source:
        labels = list(objective.labels)
        apparent = [is_raw(p) and shape is not None and shape[0] == 1 for p in each_of(places)]
        if card.sections and "fault_dip" in labels and not all(apparent):
            labels.append("fault_strike")  # for the dip that a section shows
        return source_of(places, labels, shape=shape, size=size, seed=seed)

    training = read(data, seed)
    if validation is None:
        training, held_out = split(training, extents)
    else:
        held_out = read(validation, seed + _HELD_OUT)
        both = set(places_of(training.description)) & set(places_of(held_out.description))
        if shared := sorted(both - {"synthetic"}):
            warnings.warn(
                f"{', '.join(shared)}: to train and to validate with: the scores say little of "
                "other data; leave out validation (--validation), and a part is held out",
                stacklevel=3,
            )
    for source in (training, held_out):
        for each in source.sources if isinstance(source, Several) else [source]:
            if any(n < c for n, c in zip(each.shape, extents, strict=True)):
                (where,) = places_of(each.description)
                raise TrainingDataError(
                    f"{f'{where}, size {size}' if where == 'synthetic' else where}: "
                    f"{' × '.join(map(str, each.shape))} samples are less than a crop of "
                    f"{' × '.join(map(str, extents))}; take smaller crops"
                )
    return training, held_out


def is_raw(data: str | os.PathLike[str]) -> bool:
    """Whether data are a folder of raw samples.

    Raises
    ------
    TrainingDataError
        If there is no such data.
    """
    if not isinstance(data, (str, os.PathLike)):
        raise TrainingDataError(
            f"data: is a {type(data).__name__}; pass synthetic, a folder of raw samples, or the "
            "path of a survey in Zarr"
        )
    if data == "synthetic":
        return False
    path = on_disk(data)
    if not path.is_dir():
        raise TrainingDataError(
            f"{path}: no such folder; pass synthetic, a folder of raw samples or a survey in Zarr"
        )
    old = (path / ".zgroup").is_file()  # which opening the survey explains
    return not (old or is_complete(path) or is_unfinished(path))


def source_of(
    data: Data,
    labels: Sequence[str],
    *,
    shape: Sequence[int] | None = None,
    size: int = 128,
    seed: int = 0,
) -> Source:
    """Source of training volumes.

    Parameters
    ----------
    data : path-like or "synthetic", or a sequence of paths
        A folder of raw samples, a survey in Zarr, several of them, or the generator.
    labels : sequence of str
    shape : sequence of int, optional
        Of raw samples: (inlines, crosslines, samples).
    size, seed : int
        Of synthetic surveys.

    Raises
    ------
    TrainingDataError
        If there is no such data, or it is of no use.
    """
    places = each_of(data)

    def read(place: str | os.PathLike[str]) -> Source:
        if is_raw(place):
            return RawFolder(place, labels, shape)
        if place == "synthetic":
            return Synthetic(labels, size, seed)
        return Survey(place, labels, 1 / len(places))

    if len(places) == 1:
        return read(places[0])
    if "synthetic" in places:
        raise TrainingDataError("synthetic: has no end; train on it alone, or on the others alone")
    if len({on_disk(place).resolve() for place in places}) < len(places):
        raise TrainingDataError(f"data {', '.join(map(str, places))}: one of them is there twice")
    sources = [read(place) for place in places]
    intervals = {s.interval for s in sources if isinstance(s, Survey)}
    if len(intervals) > 1:
        warnings.warn(
            f"{', '.join(map(str, places))}: are sampled every {', '.join(sorted(intervals))}; to "
            "a network a sample is a sample: resample them alike where that matters",
            stacklevel=2,
        )
    return Several(sources)


def each_of(data: Data) -> list[Any]:
    """Return the places of data, of which there may be one or several."""
    places = [*data] if isinstance(data, (list, tuple)) else [data]
    if not places:
        raise TrainingDataError("data: there are none; pass one or several")
    return places


def split(source: Source, crop: Sequence[int]) -> tuple[Source, Source]:
    """Hold out a part of a source to validate with.

    The generator's is drawn from another seed; of a folder it is the last tenth of the samples.

    Parameters
    ----------
    source : Source
    crop : sequence of int
        (inlines, crosslines, samples) that either part must have.

    Raises
    ------
    TrainingDataError
        If there is too little to hold some out.
    """
    if isinstance(source, Synthetic):
        seed = source.seed + _HELD_OUT
        return source, Synthetic(source.labels, source.shape[0], seed, source.ranges)
    if isinstance(source, Several):
        parts, held_out = zip(*(split(each, crop) for each in source.sources), strict=True)
        return Several(parts), Several(held_out)
    if isinstance(source, Survey):
        return source.split(crop)
    assert source.volumes is not None
    if source.volumes < 2:
        raise TrainingDataError(
            f"{source.description['folder']}: has a single sample, and one must be held out; pass "
            "validation data"
        )
    cut = source.volumes - max(source.volumes // 10, 1)
    return Part(source, range(cut)), Part(source, range(cut, source.volumes))
