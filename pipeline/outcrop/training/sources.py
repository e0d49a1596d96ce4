"""Where training volumes come from: the generator, folders of raw samples, surveys in Zarr."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArgumentError, TrainingDataError
from .recipes import RANGES, Ranges, random_survey
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
    there,
    with_labels,
)

# Labels by the suffixes of the multi-task networks' files, and what their values are times.
_RAW = {"fault": "fsem", "fault_dip": "fdip", "fault_strike": "fstrike"}
_HALF_TURNS = ("fault_dip", "fault_strike")


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
    International 236(1), 565-592, https://doi.org/10.1093/gji/ggad424. Traces of amplitudes that
    are zero throughout are missing ones.

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
        self.unknown, self.gaps = 0, False
        for name in self.names:
            live = None
            for variable in ("amplitude", *self.labels):
                values = self._checked(name, variable, live)
                sha.update(hashlib.sha256(values.tobytes()).digest())
                live = there(values) if live is None else live
            self.gaps |= not np.all(live)
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
        live = there(values["amplitude"])
        labelled = with_labels([known(n, values[n]).any(2) & live for n in self.labels])
        statistics = statistics_of(values["amplitude"][live])
        # Those of a batch are alike.
        return Volume(values, statistics, live if self.gaps else None, labelled)

    def _path(self, name: str, variable: str) -> Path:
        suffix = "" if variable == "amplitude" else f"_{_RAW.get(variable, variable)}"
        return self.folder / f"{name}{suffix}.bin"

    def _load(self, name: str, variable: str) -> Array:
        return np.fromfile(self._path(name, variable), "<f4").reshape(self.shape)

    def _checked(self, name: str, variable: str, live: Array | None) -> Array:
        """Read a file, and raise if it is of no use; labels count where traces are live."""
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
        if live is None:
            check_finite(values, str(path))
            check_differ(statistics_of(values), str(path))
        else:
            learnt = np.where(live[:, :, None], values, 0)
            where = known(variable, learnt)
            if not (where & live[:, :, None]).any():
                raise TrainingDataError(f"{path}: is NaN everywhere; leave out sample {name}")
            self.unknown += where.size - int(where.sum())
            learnt = np.where(where, learnt, 0)
            check_finite(learnt, str(path))
            check_range(variable, float(learnt.min()), float(learnt.max()), str(path), half_turn=1)
        return values


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
