"""A plan: stages, their tiles, and where each stored tensor is kept. Pure data."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from ..errors import MemoryBudgetError
from ..graph.boxes import Box, Lattice, Shape, count_tiles, tiles

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
# Stages that are printed; of more than that the middle is left out.
_ROWS = 40
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str | int | float) -> int:
    """Number of bytes in "2GB", "512 MiB", "1e9" or a number.

    Raises
    ------
    MemoryBudgetError
        If it is none of these, or not positive.
    """
    number = r"\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,2})?)\s*([kmgt]?i?)b?\s*"
    match = re.fullmatch(number, str(text), re.IGNORECASE)
    scale = {**_UNITS, **_BINARY}.get(match[2].upper()) if match else None
    if match is None or scale is None or float(match[1]) * scale < 1:
        raise MemoryBudgetError(
            f"memory {text!r}: not an amount of memory; write it as 2GB or 512MiB"
        )
    return int(float(match[1]) * scale)


def format_bytes(amount: float) -> str:
    """Readable amount of memory, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:  # which is 1000 in three digits
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.4g} TB"


def format_seconds(seconds: float) -> str:
    """Readable time, in seconds, minutes or hours."""
    if seconds < 59.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class Stage:
    """A part of the graph that is evaluated tile by tile, nothing stored in between.

    Attributes
    ----------
    outputs : tuple of str
        Tensors that it writes, all on the same grid.
    reduces : tuple of str
        Global values of which its tiles give states.
    inputs : tuple of str
        Stored tensors, global values and inputs of the network that it reads.
    nodes : tuple of str
        Operators that it evaluates, in order.
    domain : Box
        The part of the grid that is produced, or reduced.
    tile : tuple of int
        Extent of a tile along each axis.
    operations : float
        Arithmetic operations of all tiles, halos included.
    overhead : float
        Those operations as a multiple of what they would be in one piece.
    tile_bytes : int
        Largest memory that one tile takes while it is evaluated.
    read, written : float
        Bytes from and to stores, all tiles together.
    seconds : float
        Predicted.
    peak : int
        Predicted largest memory of one process while it runs.
    chunk_bytes : int
        Of decoded chunks of the survey that are kept meanwhile, where there is room for more than
        `Plan.chunk_bytes`.
    """

    outputs: tuple[str, ...]
    reduces: tuple[str, ...]
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]
    domain: Box
    tile: Shape
    operations: float
    overhead: float
    tile_bytes: int
    read: float = 0.0
    written: float = 0.0
    seconds: float = 0.0
    peak: int = 0
    chunk_bytes: int = 0

    @property
    def count(self) -> int:
        """Number of tiles."""
        return count_tiles(self.domain, self.tile)

    @property
    def lattice(self) -> Lattice:
        """The tiles, by their numbers and places."""
        return Lattice(self.domain, self.tile)

    def tiles(self) -> Iterator[Box]:
        """Yield the tiles, in C order."""
        return tiles(self.domain, self.tile)


class Step(NamedTuple):
    """Tiles of a stage that run together: layers from `first` to just before `stop`."""

    stage: int
    first: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """How a graph is evaluated.

    Attributes
    ----------
    stages : tuple of Stage
        In the order in which they run.
    places : mapping of str to str
        "device", "cpu" or "disk" for each tensor stored between stages; "global" for each global
        value, which every process that needs it holds.
    stored_bytes : mapping of str to int
        Size of each of them.
    weight_bytes : int
        Size of the network's parameters and buffers.
    peak_memory : int
        Predicted largest memory, in bytes, of one process that runs it.
    memory : int
        The budget, in bytes.
    host_memory : int, optional
        That for tensors in host memory, where the device is another.
    device : str
        What computes: "cpu" or "cuda".
    dtype : str
        Precision of the stored tensors and of the arithmetic.
    graph : str
        Digest of the graph that it is for.
    compressed : bool
        Whether stored tensors are kept in 8 bits a value, which is lossy.
    chunk_bytes : int
        Of decoded chunks of the survey that are kept in host memory, for the tiles that follow.
    steps : tuple of Step
        The order in which one process runs the tiles; stage after stage if there are none.
    axis : int
        The one across which tiles lie in layers.
    layers : mapping of str to int
        Of tensors on disk: how many layers are kept at once; all of those that are not named.
    volumes : int
        Of how many sections or volumes each is evaluated so.
    """

    stages: tuple[Stage, ...]
    places: Mapping[str, str]
    stored_bytes: Mapping[str, int]
    weight_bytes: int
    peak_memory: int
    memory: int
    dtype: str
    graph: str
    device: str = "cpu"
    host_memory: int | None = None
    compressed: bool = False
    chunk_bytes: int = 0
    steps: tuple[Step, ...] = ()
    axis: int = 0
    layers: Mapping[str, int] = field(default_factory=dict)
    volumes: int = 1

    @property
    def order(self) -> tuple[Step, ...]:
        """The order in which one process runs the tiles."""
        return self.steps or tuple(
            Step(i, 0, stage.lattice.counts[self.axis]) for i, stage in enumerate(self.stages)
        )

    def tiles(self, step: Step) -> Iterator[tuple[int, Box]]:
        """Yield number and box of every tile of a step."""
        return self.stages[step.stage].lattice.layers(self.axis, step.first, step.stop)

    def used(self) -> dict[str, tuple[int, int]]:
        """Return the first and the last step, by number, that writes or reads each tensor."""
        found: dict[str, tuple[int, int]] = {}
        for k, step in enumerate(self.order):
            stage = self.stages[step.stage]
            for name in (*stage.outputs, *stage.inputs):
                found[name] = found.get(name, (k,))[0], k
        return found

    @property
    def disk_bytes(self) -> int:
        """Room on disk that tensors between stages take at once, at most."""
        used, change = self.used(), [0] * (len(self.order) + 1)
        for stage in self.stages:
            for name in stage.outputs:
                if self.places.get(name) == "disk":
                    extent, edge = stage.domain.shape[self.axis], stage.tile[self.axis]
                    kept = min(self.layers.get(name, extent) * edge, extent) / extent
                    size = math.ceil(self.stored_bytes[name] * kept)
                    first, last = used[name]
                    change[first] += size
                    change[last + 1] -= size
        return max(accumulate(change))

    @property
    def operations(self) -> float:
        """Arithmetic operations of all stages."""
        return sum(stage.operations for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Predicted time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data, ready for JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Undo `to_dict`."""
        stages = []
        for stage in data["stages"]:
            values: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in stage.items()
            }
            box = stage["domain"]
            values["domain"] = Box(tuple(box["start"]), tuple(box["stop"]))
            stages.append(Stage(**values))
        steps = tuple(Step(*step) for step in data.get("steps", ()))
        return cls(**{**data, "stages": tuple(stages), "steps": steps})

    def digest(self) -> str:
        """SHA-256 of what the plan does: stages, tiles, places, precision, and their order."""
        does = [
            (s.outputs, s.reduces, s.inputs, s.nodes, s.domain.start, s.domain.stop, s.tile)
            for s in self.stages
        ]
        facts = does, sorted(self.places.items()), self.dtype, self.compressed, self.graph
        # Nothing is added for stage after stage: so it was before there were other orders.
        order = (self.steps, self.axis, sorted(self.layers.items())) if self.steps else ()
        text = repr((*facts, *order))
        return hashlib.sha256(text.encode()).hexdigest()

    def __str__(self) -> str:
        head = "stage", "writes", "grid", "tile", "tiles", "operations", "halo", "a tile", "time"
        rows = [head, *(self._row(i, stage) for i, stage in enumerate(self.stages, start=1))]
        if len(rows) > _ROWS:
            hidden = len(rows) - _ROWS
            more = ("…", f"{hidden} more stages", *[""] * (len(head) - 2))
            rows = [*rows[: _ROWS // 2], more, *rows[-_ROWS // 2 :]]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        table = "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )
        at: dict[str, int] = {}
        for name, place in self.places.items():
            if place != "global":
                at[place] = at.get(place, 0) + self.stored_bytes[name]
        held = {place: f"{format_bytes(n)} on {place}" for place, n in at.items()}
        if self.disk_bytes < at.get("disk", 0):
            held["disk"] += f" ({format_bytes(self.disk_bytes)} at once)"
        stored = ", ".join(held.values())
        kept = max([self.chunk_bytes, *(stage.chunk_bytes for stage in self.stages)])
        chunks = f"chunks of the survey {format_bytes(kept)}; " if kept else ""
        in_all = f"\n{self.in_all}" if self.in_all else ""
        return (
            f"{table}\n{self.dtype} on {self.device}: {self.operations:.3g} operations, "
            f"{format_bytes(sum(s.read for s in self.stages))} read, "
            f"{format_bytes(sum(s.written for s in self.stages))} written, about "
            f"{format_seconds(self.seconds)}\nstored in all: {stored or 'nothing'}; weights "
            f"{format_bytes(self.weight_bytes)}; {chunks}predicted peak "
            f"{format_bytes(self.peak_memory)} of {format_bytes(self.memory)}{in_all}"
        )

    @property
    def in_all(self) -> str:
        """What it takes where sections or volumes are evaluated one by one; empty elsewhere."""
        if self.volumes == 1:
            return ""
        return (
            f"each of {self.volumes:,} sections or volumes so: about "
            f"{format_seconds(self.seconds * self.volumes)} one after the other"
        )

    def _row(self, i: int, stage: Stage) -> tuple[str, ...]:
        writes = [
            f"{n} ({self.places[n]}, {format_bytes(self.stored_bytes[n])})"
            if n in self.places
            else f"{n} (output)"
            for n in stage.outputs
        ]
        writes += [f"{n} (global)" for n in stage.reduces]
        return (
            str(i),
            ", ".join(writes[:2]) + (f" and {len(writes) - 2} more" if len(writes) > 2 else ""),
            "×".join(map(str, stage.domain.shape)),
            "×".join(map(str, stage.tile)),
            f"{stage.count:,}",
            f"{stage.operations:.3g}",
            f"×{stage.overhead:.2f}",
            format_bytes(stage.tile_bytes),
            format_seconds(stage.seconds),
        )
