"""The planner: where to cut, how large a tile, and where stored tensors live."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from ..errors import ArgumentError, MemoryBudgetError
from ..graph import RULES, Box, Graph
from ..graph.boxes import Shape, count_tiles
from ..graph.propagate import ancestors, last_uses, needed
from .plan import Plan, Stage, format_bytes

StorageMode = Literal["auto", "device", "cpu", "disk", "none"]

_EDGES = (8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
# What a tile costs beside its arithmetic, in operations: launching kernels, reading, writing.
_TILE_OPERATIONS = 2e8
# What the C allocator keeps of freed memory beside that, where it may.
_KEPT_BYTES = 512 * 10**6
# On CPUs, tensors far larger than the caches are slower to compute on and to allocate.
_LARGE_TILE_BYTES = 300 * 10**6
_LARGE_TILE_SLOWDOWN = 1.25
# What libraries keep for themselves once convolutions have run.
_RUNTIME_BYTES = 64 * 10**6
# Blocks of a few megabytes stay with the C allocator for a while after they are freed.
_HELD_BACK = 1.3


def make_plan(
    graph: Graph,
    *,
    memory: int,
    storage_mode: StorageMode = "auto",
    dtype: str = "float32",
    domain: Box | None = None,
    tile: Sequence[int] | None = None,
    holds_output: bool = True,
) -> Plan:
    """Plan the evaluation of a graph within a memory budget.

    Parameters
    ----------
    graph : Graph
    memory : int
        Bytes that one process may take, the network's inputs aside.
    storage_mode : {"auto", "device", "cpu", "disk", "none"}
        Where the tensors between stages live; "none" keeps none and evaluates the whole network
        for each tile. "auto" takes "device" where it fits, else "disk".
    dtype : str
        Precision of arithmetic and stored tensors.
    domain : Box, optional
        Part of the output that is wanted; all of it unless given.
    tile : sequence of int, optional
        Shape of the tiles of every stage, instead of the planner's own choice.
    holds_output : bool
        Whether the process that evaluates the tiles also holds the whole output in memory.

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
    modes = ("device", "disk") if storage_mode == "auto" else (storage_mode,)
    smallest = math.inf
    for mode in modes:
        planner = _Planner(graph, mode, dtype, domain, tile, holds_output)
        plan = planner.plan(memory)
        if plan is not None:
            return plan
        smallest = min(smallest, planner.smallest())
    raise MemoryBudgetError(
        f"memory {format_bytes(memory)} is too small for storage_mode={storage_mode!r}: "
        f"this network on this volume needs at least {math.ceil(smallest / 1e6)}MB"
    )


class _Planner:
    def __init__(
        self,
        graph: Graph,
        mode: str,
        dtype: str,
        domain: Box | None,
        tile: Sequence[int] | None,
        holds_output: bool,
    ) -> None:
        self.graph, self.mode, self.dtype = graph, mode, dtype
        self.itemsize = {"float64": 8, "float32": 4}.get(dtype, 2)
        self.domain, self.fixed, self.holds_output = domain, tile, holds_output
        self.outputs = tuple(n for n in dict.fromkeys(graph.outputs) if n in graph.nodes)
        self.stored = () if mode == "none" else cuts(graph)
        self.place = "disk" if mode == "disk" else "device"
        self.weight_bytes = self.itemsize * sum(map(math.prod, graph.weights.values()))
        self.parts = self._parts()
        self._sized: dict[tuple[int, Shape], Stage] = {}

    def _parts(self) -> list[tuple[str, ...]]:
        """Outputs of each stage: stored tensors singly, the network's outputs by grid."""
        by_grid: dict[Shape, list[str]] = {}
        for name in self.outputs:
            if name not in self.stored:
                by_grid.setdefault(self.graph.grid(name), []).append(name)
        singles = [(name,) for name in self.stored]
        order = {name: i for i, name in enumerate(self.graph.nodes)}
        groups = singles + [tuple(names) for names in by_grid.values()]
        return sorted(groups, key=lambda names: max(order[n] for n in names))

    def plan(self, memory: int) -> Plan | None:
        """Cheapest plan that fits, or None."""
        chosen = []
        for i in range(len(self.parts)):
            room = memory - self._resident(i)
            fitting = [s for s in self._candidates(i) if s.tile_bytes <= room]
            if not fitting:
                return None
            chosen.append(min(fitting, key=_cost))
        peak = max(self._resident(i) + s.tile_bytes for i, s in enumerate(chosen))
        keeps_freed = peak + _KEPT_BYTES <= memory
        return Plan(
            stages=tuple(chosen),
            places={name: self.place for name in self.stored if name not in self.outputs},
            stored_bytes={name: self._bytes(name) for name in self.stored},
            weight_bytes=self.weight_bytes,
            peak_memory=peak + _KEPT_BYTES * keeps_freed,
            memory=memory,
            keeps_freed=keeps_freed,
            dtype=self.dtype,
            graph=self.graph.digest(),
        )

    def smallest(self) -> float:
        """Smallest budget for which there is a plan, in bytes."""
        return max(
            self._resident(i) + min(s.tile_bytes for s in self._candidates(i))
            for i in range(len(self.parts))
        )

    def _bytes(self, name: str) -> int:
        return self.itemsize * math.prod(self.graph.shape(name))

    def _resident(self, i: int) -> int:
        """Bytes held while stage `i` runs: weights, live stored tensors, the output."""
        written = {name for names in self.parts[: i + 1] for name in names}
        read_later = {
            name
            for names in self.parts[i:]
            for name in self._inputs(ancestors(self.graph, names, self.stored))
        }
        live = written & (read_later | set(self.parts[i]))
        held = sum(
            self._bytes(name)
            for name in live
            if self.place == "device" and name in self.stored and name not in self.outputs
        )
        if self.holds_output:  # in single precision at least, whatever that of the arithmetic
            held += sum(
                max(4, self.itemsize) * math.prod(self.graph.shape(n))
                for n in self.outputs
                if n in written
            )
        return _RUNTIME_BYTES + self.weight_bytes + held

    def _inputs(self, nodes: Sequence[str]) -> tuple[str, ...]:
        own = set(nodes)
        operands = (o for name in nodes for o in self.graph.nodes[name].operands)
        return tuple(dict.fromkeys(o for o in operands if o not in own))

    def _candidates(self, i: int) -> list[Stage]:
        grid = self.graph.grid(self.parts[i][0])
        is_output = self.parts[i][0] in self.outputs
        domain = self.domain if self.domain is not None and is_output else Box.whole(grid)
        if self.fixed is not None:
            # On a coarser grid a tile shrinks with it.
            full = [self.graph.grid(name) for name in self.outputs]
            finest = tuple(map(max, *full)) if len(full) > 1 else full[0]
            shapes = [
                tuple(
                    min(n, max(1, t * n // f))
                    for t, n, f in zip(self.fixed, grid, finest, strict=True)
                )
            ]
        else:
            shapes = list(
                dict.fromkeys(tuple(_balanced(n, edge) for n in domain.shape) for edge in _EDGES)
            )
        return [self._stage(i, domain, shape) for shape in shapes]

    def _stage(self, i: int, domain: Box, tile: Shape) -> Stage:
        if (i, tile) in self._sized:
            return self._sized[i, tile]
        graph, outputs = self.graph, self.parts[i]
        nodes = ancestors(graph, outputs, self.stored)
        count = count_tiles(domain, tile)
        middle = _middle(domain, tile)
        boxes = needed(graph, nodes, dict.fromkeys(outputs, middle))
        whole = needed(graph, nodes, dict.fromkeys(outputs, domain))
        per_point = {n: RULES[graph.nodes[n].op].operations(graph.nodes[n], graph) for n in nodes}
        once = sum(per_point[n] * whole[n].size for n in nodes)
        # An average tile: those at the edge of the volume have a part of the halo only.
        share = domain.size / (count * middle.size)
        tiled = sum(per_point[n] * boxes[n].size for n in nodes) * count * share
        stage = Stage(
            outputs=outputs,
            inputs=self._inputs(nodes),
            nodes=nodes,
            domain=domain,
            tile=tile,
            operations=max(tiled, once),
            overhead=max(tiled / once, 1.0) if once else 1.0,
            tile_bytes=self._tile_bytes(nodes, outputs, boxes),
        )
        self._sized[i, tile] = stage
        return stage

    def _tile_bytes(
        self, nodes: Sequence[str], outputs: Sequence[str], boxes: dict[str, Box]
    ) -> int:
        """Peak of one tile: walk the nodes, hold what is still needed."""

        def size(name: str) -> int:
            return self.itemsize * self.graph.width(name) * boxes[name].size

        last = last_uses(self.graph, nodes, outputs)
        held: dict[str, int] = {}
        peak = 0
        for name in nodes:
            operands = self.graph.nodes[name].operands
            for operand in operands:  # read when first used
                held.setdefault(operand, size(operand))
            held[name] = size(name)
            node = self.graph.nodes[name]
            workspace = RULES[node.op].workspace(node, boxes[name], self.graph, self.itemsize)
            peak = max(peak, sum(held.values()) + workspace)
            for operand in last[name]:
                held.pop(operand, None)
        return int(_HELD_BACK * peak)


def cuts(graph: Graph) -> tuple[str, ...]:
    """Tensors to store between stages: the smaller side of every change of the grid.

    A tensor on the finer side of a change is cheap to recompute for the few points of a halo and
    large to keep; one on the coarser side is the other way round.
    """
    stored = []
    for node in graph.nodes.values():
        for operand in node.operands:
            if math.prod(graph.grid(operand)) in (1, math.prod(graph.grid(node.name))):
                continue
            smaller = min(operand, node.name, key=lambda n: math.prod(graph.shape(n)))
            if smaller in graph.nodes and smaller not in stored:
                stored.append(smaller)
    return tuple(name for name in graph.nodes if name in stored and name not in graph.outputs)


def _balanced(extent: int, edge: int) -> int:
    """Tile extent near `edge` that cuts `extent` into nearly equal parts, in multiples of 8."""
    if edge >= extent:
        return extent
    parts = math.ceil(extent / edge)
    return min(extent, 8 * math.ceil(extent / parts / 8))


def _middle(domain: Box, tile: Shape) -> Box:
    """A tile with as much of its halo inside the volume as any."""
    start = tuple(
        a + (math.ceil(n / t) // 2) * t if math.ceil(n / t) > 2 else a
        for a, n, t in zip(domain.start, domain.shape, tile, strict=True)
    )
    return Box(start, tuple(a + t for a, t in zip(start, tile, strict=True))) & domain


def _cost(stage: Stage) -> float:
    slower = _LARGE_TILE_SLOWDOWN if stage.tile_bytes > _LARGE_TILE_BYTES else 1.0
    return slower * stage.operations + stage.count * _TILE_OPERATIONS
