"""A draft of a plan: stages for a choice of stored tensors and places, with the tiles that fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from ..graph import Box, Graph
from ..graph.boxes import Shape
from ..pages import LARGE, TAKES_BACK
from .cost import Cost, Costs, Part, balanced
from .cuts import Cuts
from .freed import Freed

# What libraries keep for themselves once convolutions have run.
_RUNTIME_BYTES = 40 * 10**6
# On a GPU convolutions keep nothing; nor does what is pointwise.
_KEEP_NOTHING = (
    "conv",
    "upsampled_conv",
    "max_pool",
    "avg_pool",
    "upsample_",
    "relu",
    "sigmoid",
    "cat",
    "add",
    "mul",
)

# What other threads' heaps hold beyond the tensors in use.
_HELD_BACK = 1.5

_EDGES = (8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512)
# Bytes of a tensor at each point of a stage's grid from which on tiles of fewer points are looked
# at, such as single windows of a transformer.
_WIDE = 2**17


@dataclass(frozen=True)
class Task:
    """What is to be planned; see `make_plan`."""

    graph: Graph
    outputs: tuple[str, ...]
    memory: int
    dtype: str
    domain: Box | None
    tile: Sequence[int] | None
    holds_output: bool
    output_itemsize: int
    device: str
    host_memory: int | None
    compressed: bool

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return {"float64": 8, "float32": 4}.get(self.dtype, 2)

    def shapes(
        self, costs: Costs, part: Part, domain: Box, edges: Sequence[int] = _EDGES
    ) -> list[Shape]:
        """Shapes of tiles to consider for a stage: with these edges, or the one that is asked for.

        Those with edges are cubes, and slabs or columns of all points along the lines that are
        computed whole. On a coarser grid the one that is asked for shrinks with it.
        """
        between = set(part.outputs) - set(self.outputs)
        if any(self.graph.nodes[name].op == "on_grid" for name in between):
            return [domain.shape]  # what is evaluated whole
        if self.tile is None:
            layouts, step = (self.graph.layouts[n] for n in part.nodes), 8
            widest = max((math.prod(own.shape) for own in layouts if own.held), default=0)
            if widest * self.itemsize > _WIDE * domain.size:
                edges, step = [edge // 8 for edge in edges], 1
            shapes = [tuple(balanced(n, edge, step) for n in domain.shape) for edge in edges]
            lines = costs.lines(*part.nodes)
            if lines and any(n > 1 for a, n in enumerate(domain.shape) if a not in lines):
                shapes += [
                    tuple(
                        n if a in lines else balanced(n, edge, 1)
                        for a, n in enumerate(domain.shape)
                    )
                    for edge in sorted({e for edge in edges for e in (edge // 8, edge)} - {0})
                ]
            return list(dict.fromkeys(shapes))
        grid = self.graph.grid(part.kept(self.graph)[0])
        images = [self.graph.grid(n) for n in (*self.outputs, *self.graph.inputs)]
        finest = tuple(map(max, *images)) if len(images) > 1 else images[0]
        return [
            tuple(
                min(n, max(1, t * n // f)) for t, n, f in zip(self.tile, grid, finest, strict=True)
            )
        ]


class Offer(NamedTuple):
    """Tiles to choose from for a stage: what each costs, and the bytes that it needs.

    Beside all that is stored while the stage runs; what it frees meanwhile is taken off.

    Attributes
    ----------
    fastest : list
        All of them, the fastest first.
    smallest : tuple
        The one that needs least.
    """

    fastest: list[tuple[Cost, int]]
    smallest: tuple[Cost, int]


class Draft:
    """Stages, tiles and memory for one choice of what is stored, and where.

    Parameters
    ----------
    task : Task
    costs : Costs
        Of the task's graph.
    cuts : Cuts
    places : mapping of str to str
        Of every stored tensor.
    reductions : set of str
        Global values.
    offers : dict
        Of stages, that drafts share whose tasks differ in their budgets alone.
    freed : Freed
        Of the task's graph.

    Attributes
    ----------
    parts : list of Part
        Stages in the order in which they run.
    chosen : list of Cost
        For each stage the fastest tiles that fit; where none does, those that take least.
    excess : int
        Bytes by which stages go beyond the budget, all together, and host memory beyond its own.
    """

    def __init__(
        self,
        task: Task,
        costs: Costs,
        cuts: Cuts,
        places: Mapping[str, str],
        reductions: set[str],
        offers: dict[tuple[object, ...], Offer],
        freed: Freed,
    ) -> None:
        self.task, self.graph, self.costs, self.places = task, task.graph, costs, dict(places)
        self.reductions, self.freed = reductions, freed
        self.parts = cuts.parts({*places, *reductions})
        self.last = {n: i for i, p in enumerate(self.parts) for n in p.inputs}
        self.resident = self._resident()
        self.offers = [self._offer(i, part, offers) for i, part in enumerate(self.parts)]
        self.chosen: list[Cost] = []
        self.needs: list[int] = []
        self.excess = 0
        if task.host_memory is not None and task.device != "cpu":
            self.excess = max(0, self.host - task.host_memory)
        for offer, resident in zip(self.offers, self.resident, strict=True):
            room = task.memory - resident
            fitting = (option for option in offer.fastest if option[1] <= room)
            cost, need = next(fitting, offer.smallest)
            self.excess += max(0, need - room)
            self.chosen.append(cost)
            self.needs.append(need)

    @property
    def seconds(self) -> float:
        """Predicted time."""
        return sum(c.seconds for c in self.chosen)

    @property
    def tightest(self) -> int:
        """The stage that loses most by the lack of memory."""
        lost = [
            (max(0, self.used(i) - self.task.memory), c.seconds - offer.fastest[0][0].seconds)
            for i, (c, offer) in enumerate(zip(self.chosen, self.offers, strict=True))
        ]
        return max(range(len(lost)), key=lost.__getitem__)

    @property
    def peak(self) -> int:
        """Largest memory of any stage."""
        return max(map(self.used, range(len(self.parts))), default=0)

    @property
    def host(self) -> int:
        """Largest memory that stored tensors take beside the device."""
        return max(self._stored("cpu"), default=0)

    @property
    def least(self) -> tuple[int, int]:
        """Smallest budget that these stages could do with, and the stage that asks for it."""
        found = [
            resident + offer.smallest[1]
            for offer, resident in zip(self.offers, self.resident, strict=True)
        ]
        return max((n, i) for i, n in enumerate(found))

    def used(self, i: int) -> int:
        """Memory while stage `i` runs."""
        return self.resident[i] + self.needs[i]

    def bytes(self, name: str) -> int:
        """Room that a stored tensor takes."""
        size = self.costs.bytes(name)
        if not self.task.compressed or name in self.reductions or self.graph.kind(name):
            return size
        return size // self.task.itemsize + size // 128

    def live(self, i: int) -> list[str]:
        """Stored tensors that are held while stage `i` runs."""
        written = [n for p in self.parts[: i + 1] for n in p.outputs if n in self.places]
        return [n for n in written if self.last.get(n, -1) >= i or n in self.parts[i].outputs]

    def readers(self, name: str) -> int:
        """Number of stages that read a tensor."""
        return sum(name in p.inputs for p in self.parts)

    def _resident(self) -> list[int]:
        """Bytes held while each stage runs: weights, live stored tensors, the output."""
        ops = {node.op for node in self.graph.nodes.values()}
        plain = self.task.device != "cpu" and all(op.startswith(_KEEP_NOTHING) for op in ops)
        every = self.costs.weight_bytes + (0 if plain else _RUNTIME_BYTES)
        outputs = set(self.task.outputs)
        held, made = self._stored("device"), 0
        for i, part in enumerate(self.parts):
            if self.task.holds_output:
                made += sum(map(self._output_bytes, outputs.intersection(part.outputs)))
            held[i] += every + made
        return held

    def _output_bytes(self, name: str) -> int:
        size = self.graph.itemsize(name, self.task.output_itemsize)
        return size * math.prod(self.graph.shape(name))

    def _stored(self, place: str) -> list[int]:
        """Bytes of stored tensors that lie at a place while each stage runs."""
        more = [0] * (len(self.parts) + 1)
        for i, part in enumerate(self.parts):
            for name in part.outputs:
                if self.places.get(name) == place:
                    size = self.bytes(name)
                    more[i] += size
                    more[max(i, self.last.get(name, i)) + 1] -= size
        return list(accumulate(more))[:-1]

    def with_buffers(self, part: Part, cost: Cost) -> int:
        """Bytes of a tile, with what is read ahead and written behind."""
        outside = not self.task.holds_output

        def is_slow(name: str) -> bool:
            if name in self.graph.inputs or name in self.task.outputs:
                return outside
            place = self.places.get(name, "device")
            return place == "disk" or (place == "cpu" and self.task.device != "cpu")

        # A read holds what it copies from beside the copy, a write what it packs.
        ahead = 2 * cost.read_bytes if any(map(is_slow, part.inputs)) else 0
        behind = 2 * cost.written_bytes if any(map(is_slow, part.outputs)) else 0
        held_back = _HELD_BACK if self.task.device == "cpu" else 1.0
        if cost.tile == self.domain(part).shape:  # read, computed and written one after the other
            return max(cost.tile_bytes, int(held_back * behind))
        return int(cost.tile_bytes + held_back * (ahead + behind))

    def domain(self, part: Part) -> Box:
        """The part of the grid that a stage produces."""
        is_output = bool(set(part.outputs) & set(self.task.outputs)) and not part.reduces
        if self.task.domain is not None and is_output:
            return self.task.domain
        return self.graph.whole(part.kept(self.graph)[0])

    def _offer(self, i: int, part: Part, known: dict[tuple[object, ...], Offer]) -> Offer:
        """Every shape of tile that is considered for a stage."""
        spent = {n: self.bytes(n) for n in part.inputs if self.last[n] == i and self._is_paged(n)}
        key = part, *(self.places.get(n) for n in (*part.inputs, *part.outputs)), *spent
        if key not in known:
            domain = self.domain(part)
            made = {n: self.bytes(n) for n in part.outputs if self._is_paged(n)}
            if self.task.holds_output:
                images = (n for n in self.task.outputs if self.graph.layouts[n].is_image)
                sizes = {n: self._output_bytes(n) for n in images if n in part.outputs}
                made |= {n: size for n, size in sizes.items() if size >= LARGE}
            costs = (
                self.costs.cost(part, domain, tile, self.places)
                for tile in self.task.shapes(self.costs, part, domain)
            )
            options = [
                (c, self.with_buffers(part, c) - self.freed.bytes(part, domain, c, spent, made))
                for c in costs
            ]
            known[key] = Offer(
                sorted(options, key=lambda option: option[0].seconds),
                min(options, key=lambda option: option[1]),
            )
        return known[key]

    def _is_paged(self, name: str) -> bool:
        """Whether a stored tensor lies in pages that are taken and given back row by row."""
        return (
            TAKES_BACK
            and self.task.device == "cpu"
            and self.places.get(name) == "device"
            and not self.task.compressed
            and self.bytes(name) >= LARGE
        )
