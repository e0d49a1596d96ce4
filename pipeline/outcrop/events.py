"""What happens while a prediction is made, told to whoever listens.

Executors know nothing of progress bars, logs and reports: they tell events to listeners.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import ArgumentError, OutcropError
from .storage import on_disk


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened.

    Attributes
    ----------
    output : str
        The prediction that it concerns: where it is written.
    time : float
        When, in seconds since 1970.
    """

    output: str
    time: float = field(default_factory=time.time)


# What is told of every event.
Listener = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Begin(Event):
    """A prediction is begun, or taken up again.

    Attributes
    ----------
    tiles, finished : int
        Of all stages and volumes; and how many of them an earlier run has written.
    share : float
        Of the whole work that those are.
    voxels : int
        Of all volumes.
    volumes : int
        That are evaluated one by one: sections, offsets, vintages.
    peak_memory : int
        Bytes that the plan promises not to exceed in any process.
    stages : sequence of mapping
        For each `writes`, `tiles` (of one volume), `tile`, `operations`, `seconds`.
    provenance : mapping
        As in the output's attributes.
    """

    tiles: int
    finished: int
    share: float
    voxels: int
    volumes: int
    peak_memory: int
    stages: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Workers(Event):
    """The number of workers is known, or another one than before.

    Attributes
    ----------
    workers : int
    """

    workers: int


@dataclass(frozen=True, kw_only=True)
class Tile(Event):
    """A tile is written.

    Attributes
    ----------
    volume, stage, tile : int
        Which: volumes and tiles count from 0, stages from 1.
    worker : str
        Who evaluated it.
    start, stop : float
        Between what times that took up the worker, in seconds since 1970 by the clock of whoever
        tells.
    reading, computing, writing : float
        Seconds of it; the next tile is read and the one before written beside the computing.
    read, written : int
        Bytes from and to the survey, the output and stores on disk, before compression.
    memory : int
        Bytes by which the worker has grown at its highest since it began; 0 where the system does
        not say.
    share : float
        Of the whole work that the tile is.
    """

    volume: int
    stage: int
    tile: int
    worker: str
    start: float
    stop: float
    reading: float
    computing: float
    writing: float
    read: int
    written: int
    memory: int
    share: float


@dataclass(frozen=True, kw_only=True)
class Stage(Event):
    """All tiles of a stage are written.

    Attributes
    ----------
    volume, stage : int
        As for `Tile`.
    """

    volume: int
    stage: int


@dataclass(frozen=True, kw_only=True)
class Retry(Event):
    """Something is done again: storage had refused, or a worker was lost.

    Attributes
    ----------
    message : str
    tiles : int
        That are evaluated again; 0 where it is reading or writing alone.
    """

    message: str
    tiles: int = 0


@dataclass(frozen=True, kw_only=True)
class Warn(Event):
    """Something that the user should know of.

    Attributes
    ----------
    message : str
    """

    message: str


@dataclass(frozen=True, kw_only=True)
class End(Event):
    """The prediction is whole, or has stopped.

    Attributes
    ----------
    error : str or None
        What stopped it.
    """

    error: str | None = None


def tell(listeners: Sequence[Listener], event: Event) -> None:
    """Tell an event to every listener."""
    for listener in listeners:
        listener(event)


class JsonLog:
    """A listener that writes a line of JSON for every event, for batch systems.

    Each line is an object: `event` is the name of the kind in lower case ("begin", "workers",
    "tile", "stage", "retry", "warn", "end"), the other fields are those of its class.

    Parameters
    ----------
    path : path-like
        File to append to; "-" for what is the standard output now.

    Raises
    ------
    ArgumentError
        If something else than such a log lies there.
    OutcropError
        If it cannot be written, now or later.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = None if str(path) == "-" else on_disk(path)
        self._stream = sys.stdout
        self._write("" if self.path is None else self._seam(self.path))

    def __call__(self, event: Event) -> None:
        """Write one event."""
        self._write(json.dumps({"event": type(event).__name__.lower(), **asdict(event)}) + "\n")

    def _seam(self, path: Path) -> str:
        """Return what goes before the next line, where a full disk has cut the last one off."""
        if not (path.is_file() and os.access(path, os.R_OK) and path.stat().st_size):
            return ""
        with open(path, "rb") as log:
            first = log.read(1)
            log.seek(-1, os.SEEK_END)
            last = log.read(1)
        if first != b"{":
            raise ArgumentError(f"{path}: holds something else; log to another file")
        return "" if last == b"\n" else "\n"

    def _write(self, text: str) -> None:
        try:
            if self.path is None:
                print(text, end="", flush=True, file=self._stream)
                return
            with open(self.path, "a") as log:
                log.write(text)
        except OSError as error:
            raise OutcropError(
                f"{self.path or 'the standard output'}: cannot be written ({error.strerror}); "
                "see to it, or log elsewhere"
            ) from None
