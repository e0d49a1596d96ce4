"""Where training volumes come from: the generator, folders of raw samples, surveys in Zarr."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError, TrainingDataError
from ..output import is_complete, is_unfinished
from ..storage import on_disk
from .recipes import RANGES, Ranges, random_survey
from .surveys import Survey
from .synthetic import LABELS
from .volumes import (
    Array,
    Extents,
    Source,
    Volume,
    check_differ,
    check_finite,
    check_range,
    known,
    statistics_of,
    tell_unknown,
    with_labels,
)

# Labels by the suffixes of the multi-task networks' files, and what their values are times.
_RAW = {"fault": "fsem", "fault_dip": "fdip", "fault_strike": "fstrike"}
Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_HALF_TURNS = ("fault_dip", "fault_strike")
HELD_OUT = 1_000_000  # between the seeds of synthetic surveys to train and to validate with


class Synthetic:
    """Synthetic surveys without end.

    Parameters
    ----------
    labels : sequence of str
        Of `synthetic.LABELS`.
    size : int
        Of each survey, along each axis.
    seed : int
    ranges : mapping, optional
        As for `recipes.random_survey`.
    """

    volumes: int | None = None

    def __init__(
        self, labels: Sequence[str], size: int = 128, seed: int = 0, ranges: Ranges = RANGES
    ) -> None:
        strange = [name for name in labels if name not in LABELS]
        if strange:
            raise ArgumentError(
                f"synthetic: has no label {strange[0]}, only {', '.join(LABELS)}; pass data that "
                "have it"
            )
        self.labels, self.seed, self.ranges = tuple(labels), seed, ranges
        self.shape: Extents = (size, size, size)
        self.description: dict[str, Any] = {
            "synthetic": {**RANGES, **ranges},
            "size": size,
            "seed": seed,
        }

    def read(self, number: int) -> Volume:
        """Make survey `number`."""
        n = self.shape[0]
        made = random_survey((n, n, n), (self.seed, number), ranges=self.ranges, labels=self.labels)
        values = {name: made[name].to_numpy() for name in ("amplitude", *self.labels)}
        return Volume(values, statistics_of(values["amplitude"]))


class RawFolder:
    """A folder of raw samples: ``0.bin`` and its labels ``0_fsem.bin``, ``0_rgt.bin``, ...

    Float32, little-endian, the samples of a trace side by side, traces along crosslines and then
    inlines; angles in half turns. So are the data sets of Gao (2024), Geophysical Journal
    International 236(1), 565-592, https://doi.org/10.1093/gji/ggad424.

    Parameters
    ----------
    folder : path-like
    labels : sequence of str
        fault (``_fsem``), fault_dip (``_fdip``), fault_strike (``_fstrike``), or any other by its
        own name (``_rgt``, ``_dhr``, ``_karst``).
    shape : sequence of int, optional
        (inlines, crosslines, samples) of every file; a cube unless given.

    Raises
    ------
    TrainingDataError
        If there are no samples, a label is missing, or a file has another size, values that are
        not finite (but for labels that are not known: NaN), or labels of a probability or angle
        beyond what these can be.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        labels: Sequence[str],
        shape: Sequence[int] | None = None,
    ) -> None:
        self.folder, self.labels = Path(folder), tuple(labels)
        names = [p.stem for p in self.folder.iterdir() if re.fullmatch(r"\d+\.bin", p.name)]
        if not names:
            raise TrainingDataError(
                f"{self.folder}: has no files named 0.bin, 1.bin, ...; pass their folder"
            )
        self.names = sorted(names, key=lambda name: (int(name), name))
        self.volumes: int | None = len(names)
        first = self.folder / f"{self.names[0]}.bin"
        count = first.stat().st_size // 4
        cube = round(count ** (1 / 3))
        self.shape: Extents = tuple(shape) if shape else (cube,) * 3
        if count == 0:
            raise TrainingDataError(f"{first}: holds no samples; copy it again, or leave it out")
        if not shape and cube**3 != count:
            raise TrainingDataError(
                f"{first}: {count:,} samples are no cube; say their shape (--shape)"
            )
        sha = hashlib.sha256()
        self.unknown = 0
        for name in self.names:
            for variable in ("amplitude", *self.labels):
                sha.update(self._check(name, variable))
        tell_unknown(f"{self.folder}: labels", self.unknown)
        self.description: dict[str, Any] = {
            "folder": str(self.folder.absolute()),
            "shape": list(self.shape),
            "fingerprint": sha.hexdigest(),
        }

    def read(self, number: int) -> Volume:
        """Read the files of the sample at place `number` of all."""
        name = self.names[number]
        values = {"amplitude": self._load(name, "amplitude")}
        for label in self.labels:
            values[label] = self._load(name, label)
            if label in _HALF_TURNS:
                values[label] = values[label] * 180
        labelled = with_labels([known(n, values[n]).any(2) for n in self.labels])
        return Volume(values, statistics_of(values["amplitude"]), labelled=labelled)

    def _path(self, name: str, variable: str) -> Path:
        suffix = "" if variable == "amplitude" else f"_{_RAW.get(variable, variable)}"
        return self.folder / f"{name}{suffix}.bin"

    def _load(self, name: str, variable: str) -> Array:
        return np.fromfile(self._path(name, variable), "<f4").reshape(self.shape)

    def _check(self, name: str, variable: str) -> bytes:
        path = self._path(name, variable)
        if not path.is_file():
            raise TrainingDataError(f"{path}: is missing; the network learns {variable} from it")
        need = 4 * int(np.prod(self.shape))
        if path.stat().st_size != need:
            raise TrainingDataError(
                f"{path}: has {path.stat().st_size:,} bytes, and "
                f"{' × '.join(map(str, self.shape))} float32 samples are {need:,}"
            )
        values = self._load(name, variable)
        digest = hashlib.sha256(values.tobytes()).digest()
        if variable == "amplitude":
            check_finite(values, str(path))
            check_differ(statistics_of(values), str(path))
        else:
            where = known(variable, values)
            if not where.any():
                raise TrainingDataError(f"{path}: is NaN everywhere; leave out sample {name}")
            self.unknown += where.size - int(where.sum())
            values = np.where(where, values, 0)
            check_finite(values, str(path))
            check_range(variable, float(values.min()), float(values.max()), str(path), half_turn=1)
        return digest


class Part:
    """Some of a source's volumes.

    Parameters
    ----------
    source : Source
    numbers : sequence of int
        Which.
    """

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self.source, self.numbers = source, tuple(numbers)
        self.volumes: int | None = len(numbers)
        self.shape = source.shape
        self.description: dict[str, Any] = {**source.description, "volumes": list(numbers)}

    def read(self, number: int) -> Volume:
        """Return the volume at place `number` of these."""
        return self.source.read(self.numbers[number])


class Several:
    """Volumes of several sources, each as often as any other, whatever its size.

    Parameters
    ----------
    sources : sequence of Source
        Each with an end.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self.places = [(each, n) for each in sources for n in range(each.volumes or 0)]
        self.volumes: int | None = len(self.places)
        self.shape: Extents = tuple(map(min, *(each.shape for each in sources)))
        self.description: dict[str, Any] = {"sources": [each.description for each in sources]}

    def read(self, number: int) -> Volume:
        """Read the volume at place `number` of all."""
        source, place = self.places[number]
        volume = source.read(place)
        if volume.live is None:  # those of a batch are alike
            volume = volume._replace(live=np.ones(volume.shape[:2], bool))
        return volume


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
        seed = source.seed + HELD_OUT
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
