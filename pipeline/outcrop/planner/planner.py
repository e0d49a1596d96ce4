"""The planner: where to cut, how large a tile, and where stored tensors live."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import ArgumentError, MemoryBudgetError
from ..graph import RULES, Box, Graph
from ..graph.boxes import Shape
from .cost import Cost, Costs, Part, balanced
from .cuts import Cuts, forced
from .plan import Plan, Stage, format_bytes
from .rates import rates

StorageMode = Literal["auto", "device", "cpu", "disk", "none"]

_EDGES = (1, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
# What the C allocator keeps of freed memory beside what is in use, where it may.
_KEPT_BYTES = 128 * 10**6
# What libraries keep for themselves once convolutions have run.
_RUNTIME_BYTES = 64 * 10**6


def make_plan(
    graph: Graph,
    *,
    memory: int,
    storage_mode: StorageMode = "auto",
    dtype: str = "float32",
    domain: Box | None = None,
    tile: Sequence[int] | None = None,
    holds_output: bool = True,
    device: str = "cpu",
    host_memory: int | None = None,
    compressed: bool = False,
) -> Plan:
    """Plan the evaluation of a graph within a memory budget.

    Parameters
    ----------
    graph : Graph
    memory : int
        Bytes that one process may take on the device that computes, the network's inputs aside.
    storage_mode : {"auto", "device", "cpu", "disk", "none"}
        Where the tensors between stages live; "none" keeps global values alone and evaluates all
        else anew for each tile. "auto" keeps on the device what fits, then takes "cpu" where that
        is another, then "disk".
    dtype : str
        Precision of arithmetic and stored tensors.
    domain : Box, optional
        Part of the output that is wanted; all of it unless given.
    tile : sequence of int, optional
        Shape of the tiles of every stage, instead of the planner's own choice.
    holds_output : bool
        Whether the process that evaluates the tiles also holds the whole output in memory.
    device : str
        "cpu" or "cuda".
    host_memory : int, optional
        Bytes of tensors that may be kept in host memory, where the device is another.
    compressed : bool
        Keep stored tensors in 8 bits a value.

    Returns
    -------
    Plan

    Raises
    ------
    MemoryBudgetError
        If nothing fits; the message names the smallest budget that would.
    ArgumentError
        If `storage_mode` is unknown, or `tile` has another number of axes than the grid.
    """
    if storage_mode not in get_args(StorageMode):
        raise ArgumentError(
            f"storage_mode {storage_mode!r}: choose one of {', '.join(get_args(StorageMode))}"
        )
    if tile is not None and (len(tile) != graph.rank or min(tile) < 1):
        raise ArgumentError(f"tile {tuple(tile)}: give {graph.rank} positive extents")
    task = _Task(graph, memory, dtype, domain, tile, holds_output, device, host_memory, compressed)
    planner = _Planner(task, storage_mode)
    plan = planner.plan()
    if plan is None:
        least, where = planner.smallest()
        raise MemoryBudgetError(
            f"memory {format_bytes(memory)} is too small for storage_mode={storage_mode!r}: "
            f"this network on this volume needs at least {math.ceil(least / 1e6)}MB{where}"
        )
    return plan


@dataclass(frozen=True)
class _Task:
    graph: Graph
    memory: int
    dtype: str
    domain: Box | None
    tile: Sequence[int] | None
    holds_output: bool
    device: str
    host_memory: int | None
    compressed: bool


class _Planner:
    def __init__(self, task: _Task, mode: StorageMode) -> None:
        self.task, self.graph, self.mode = task, task.graph, mode
        self.itemsize = {"float64": 8, "float32": 4}.get(task.dtype, 2)
        self.costs = Costs(self.graph, rates(task.device, task.dtype), self.itemsize)
        self.outputs = tuple(n for n in dict.fromkeys(self.graph.outputs) if n in self.graph.nodes)
        self.weight_bytes = self.itemsize * sum(map(math.prod, self.graph.weights.values()))
        cuts = Cuts(self.costs, self.outputs, task.memory / 2)
        self.stored = forced(self.graph) if mode == "none" else cuts.choose()
        self.parts = cuts.parts(self.stored)
        self.kept = [n for p in self.parts for n in p.outputs if n not in self.outputs]
        self.globals = [n for p in self.parts for n in p.reduces]
        self.last = {n: i for i, p in enumerate(self.parts) for n in p.inputs}
        self.sized: dict[tuple[int, tuple[str, ...]], list[Cost]] = {}

    def plan(self) -> Plan | None:
        """Cheapest plan that fits, or None."""
        places = dict.fromkeys(self.kept, self._first_place())
        while True:
            chosen, short = self._chosen(places)
            if short is None:
                return self._made(chosen, places)
            spill = [n for n in self._live(short) if places[n] == "device"]
            if self.mode != "auto" or not spill:
                return None
            # What is read least for its size goes first.
            name = max(spill, key=lambda n: self._bytes(n) / self._readers(n))
            places[name] = self._next_place(name, places)

    def _chosen(self, places: dict[str, str]) -> tuple[list[Cost], int | None]:
        """Tiles of every stage, or the first stage for which none fits."""
        chosen: list[Cost] = []
        for i in range(len(self.parts)):
            room = self.task.memory - self._resident(i, places)
            fitting = [
                c for c in self._costs(i, places) if self._with_buffers(i, c, places) <= room
            ]
            if not fitting:
                return chosen, i
            chosen.append(min(fitting, key=lambda c: c.seconds))
        return chosen, None

    def smallest(self) -> tuple[float, str]:
        """Smallest budget for which there is a plan, in bytes, and what asks for it."""
        spilled = "disk" if self.mode in ("auto", "disk") else self._first_place()
        places = dict.fromkeys(self.kept, spilled)
        least, at = 0.0, 0
        for i in range(len(self.parts)):
            found = min(self._with_buffers(i, c, places) for c in self._costs(i, places))
            if self._resident(i, places) + found > least:
                least, at = self._resident(i, places) + found, i
        for name in self.parts[at].nodes:
            node = self.graph.nodes[name]
            if node.op == "whole" or node.op not in RULES:
                return least, f"; {node} is evaluated in one piece"
        return least, ""

    def _made(self, chosen: list[Cost], places: dict[str, str]) -> Plan:
        used = [
            self._resident(i, places) + self._with_buffers(i, c, places)
            for i, c in enumerate(chosen)
        ]
        peak = max(used, default=0)
        # Tiles of a few megabytes are handed out again and again by the allocator anyway.
        slack = min(_KEPT_BYTES, max((c.tile_bytes for c in chosen), default=0))
        keeps_freed = peak + slack <= self.task.memory
        every = {**places, **dict.fromkeys(self.globals, "device")}
        return Plan(
            stages=tuple(
                Stage(
                    outputs=p.outputs,
                    reduces=p.reduces,
                    inputs=p.inputs,
                    nodes=p.nodes,
                    domain=self._domain(p),
                    tile=c.tile,
                    operations=c.operations,
                    overhead=c.overhead,
                    tile_bytes=c.tile_bytes,
                    read=c.read,
                    written=c.written,
                    seconds=c.seconds,
                )
                for p, c in zip(self.parts, chosen, strict=True)
            ),
            places={n: p for n, p in every.items() if n not in self.outputs},
            stored_bytes={n: self._bytes(n) for n in every},
            weight_bytes=self.weight_bytes,
            peak_memory=peak + slack * keeps_freed,
            memory=self.task.memory,
            keeps_freed=keeps_freed,
            dtype=self.task.dtype,
            graph=self.graph.digest(),
            device=self.task.device,
            host_memory=self.task.host_memory,
            compressed=self.task.compressed,
        )

    def _first_place(self) -> str:
        if self.mode in ("auto", "none"):
            return "device"
        on_cpu = self.mode == "cpu" and self.task.device == "cpu"
        return "device" if on_cpu else self.mode

    def _next_place(self, name: str, places: dict[str, str]) -> str:
        host = self.task.host_memory
        if self.task.device == "cpu":
            return "disk"
        there = sum(self._bytes(n) for n, place in places.items() if place == "cpu")
        return "cpu" if host is None or there + self._bytes(name) <= host else "disk"

    def _readers(self, name: str) -> int:
        return 1 + sum(name in p.inputs for p in self.parts)

    def _bytes(self, name: str) -> int:
        size = self.costs.bytes(name)
        if not self.task.compressed or name in self.globals:
            return size
        return size // self.itemsize + size // 128

    def _live(self, i: int) -> list[str]:
        """Stored tensors that are held while stage `i` runs."""
        written = [n for p in self.parts[: i + 1] for n in p.outputs if n not in self.outputs]
        return [n for n in written if self.last.get(n, -1) >= i or n in self.parts[i].outputs]

    def _resident(self, i: int, places: dict[str, str]) -> int:
        """Bytes held while stage `i` runs: weights, live stored tensors, the output."""
        held = sum(self._bytes(n) for n in self._live(i) if places[n] == "device")
        if self.task.holds_output:  # in single precision at least
            done = {n for p in self.parts[: i + 1] for n in p.outputs}
            held += sum(
                max(4, self.itemsize) * math.prod(self.graph.shape(n))
                for n in self.outputs
                if n in done
            )
        return _RUNTIME_BYTES + self.weight_bytes + held

    def _with_buffers(self, i: int, cost: Cost, places: dict[str, str]) -> int:
        """Bytes of a tile, with what is read ahead and written behind."""
        part, count = self.parts[i], max(1, self._count(i, cost.tile))
        slow = [n for n in part.inputs if places.get(n) in ("disk", "cpu")]
        slow_in = sum(self._bytes(n) for n in slow) if slow else 0
        ahead = cost.read / count if slow_in or not self.task.holds_output else 0.0
        behind = (
            2 * cost.written / count
            if any(places.get(n, "output") in ("disk", "cpu", "output") for n in part.outputs)
            and (not self.task.holds_output or any(n in places for n in part.outputs))
            else 0.0
        )
        return int(cost.tile_bytes + ahead + behind)

    def _count(self, i: int, tile: Shape) -> int:
        domain = self._domain(self.parts[i])
        return math.prod(-(-n // t) for n, t in zip(domain.shape, tile, strict=True))

    def _domain(self, part: Part) -> Box:
        name = part.kept(self.graph)[0]
        is_output = bool(set(part.outputs) & set(self.outputs)) and not part.reduces
        if self.task.domain is not None and is_output:
            return self.task.domain
        return self.graph.whole(name)

    def _costs(self, i: int, places: dict[str, str]) -> list[Cost]:
        part = self.parts[i]
        key = i, tuple(places.get(n, "") for n in (*part.inputs, *part.outputs))
        if key not in self.sized:
            domain = self._domain(part)
            self.sized[key] = [
                self.costs.cost(part, domain, tile, places) for tile in self._tiles(part, domain)
            ]
        return self.sized[key]

    def _tiles(self, part: Part, domain: Box) -> list[Shape]:
        grid = self.graph.grid(part.kept(self.graph)[0])
        if self.task.tile is None:
            shapes = (tuple(balanced(n, edge) for n in domain.shape) for edge in _EDGES)
            return list(dict.fromkeys(shapes))
        # On a coarser grid a tile shrinks with it.
        images = [self.graph.grid(n) for n in (*self.outputs, *self.graph.inputs)]
        finest = tuple(map(max, *images)) if len(images) > 1 else images[0]
        return [
            tuple(
                min(n, max(1, t * n // f))
                for t, n, f in zip(self.task.tile, grid, finest, strict=True)
            )
        ]
