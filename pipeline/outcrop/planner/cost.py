"""What a stage takes: seconds and memory, for a shape of its tiles."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..graph import RULES, Box, Graph
from ..graph.boxes import Shape, central_tile, count_tiles
from ..graph.graph import Ref
from ..graph.propagate import ancestors, lines, needed, overwritten
from .rates import Rates

# What the C allocator holds beyond the tensors in use, as blocks that fit no request: less where
# all tiles are one, more where kernels in double precision take and free memory beside the tensors.
_HELD_BACK, _ONE_TILE, _DOUBLE = 1.75, 1.55, 1.6
# A GPU's hands out what is asked for, rounded up a little.
_ON_GPU = 1.05
# Tensors that are shifted or mirrored against each other show where a tile is a small part of the
# volume: one at its end then spans more than one in its middle.
_PART, _WIDER = 8, 1.25


@dataclass(frozen=True)
class Part:
    """What one stage evaluates: its tiles aside.

    Attributes
    ----------
    outputs, reduces : tuple of str
        Tensors that it writes; global values that its tiles give states of.
    nodes : tuple of str
        Operators that it evaluates, in order.
    inputs : tuple of str
        Tensors that it reads.
    """

    outputs: tuple[str, ...]
    reduces: tuple[str, ...]
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]

    def __hash__(self) -> int:
        return hash((self.outputs, self.reduces, self.inputs))  # not the many nodes in between

    def kept(self, graph: Graph) -> tuple[str, ...]:
        """Tensors that are wanted on the tile itself."""
        reduced = (graph.nodes[name].operands[0] for name in self.reduces)
        return tuple(dict.fromkeys((*self.outputs, *reduced)))


@dataclass(frozen=True)
class Cost:
    """Predictions for a part that is evaluated in tiles of one shape.

    Attributes
    ----------
    tile : tuple of int
    seconds, operations, overhead, read, written
        Of all tiles, as in `Stage`.
    read_bytes, written_bytes, tile_bytes : int
        What one tile reads, writes, and takes while it is evaluated.
    rows : tuple of (int, int)
        What a tile in the middle takes of each input along the first axis: from where to where.
    """

    tile: Shape
    seconds: float
    operations: float
    overhead: float
    read: float
    written: float
    read_bytes: int
    written_bytes: int
    tile_bytes: int
    rows: tuple[tuple[int, int], ...]


class _Work(NamedTuple):
    """What the tiles of a part take, but for moving what they read and write."""

    seconds: float
    operations: float
    overhead: float
    inputs: tuple[int, ...]  # bytes of one tile, for each input
    written: int
    tiles: int
    tile_bytes: int
    rows: tuple[tuple[int, int], ...]


def part(graph: Graph, outputs: tuple[str, ...], reduces: tuple[str, ...], given: set[str]) -> Part:
    """Operators and inputs of a stage, when the tensors `given` are stored."""
    reduced = tuple(dict.fromkeys(graph.nodes[name].operands[0] for name in reduces))
    computed = [n for n in reduced if n in graph.nodes and n not in given]
    nodes = ancestors(graph, (*outputs, *computed), given)
    own = set(nodes)
    operands = [o for name in nodes for o in graph.nodes[name].operands]
    inputs = tuple(dict.fromkeys(o for o in (*operands, *reduced) if o not in own))
    return Part(outputs, reduces, nodes, inputs)


class Costs:
    """Predicts what parts of a graph take.

    Parameters
    ----------
    graph : Graph
    rates : Rates
        Of the device that computes.
    itemsize : int
        Bytes of a value.
    workers : int, optional
        Of a cluster, that evaluate tiles side by side and read and write nothing but the store.
    device : str
        What computes: "cpu" or "cuda".
    """

    def __init__(
        self,
        graph: Graph,
        rates: Rates,
        itemsize: int,
        workers: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.graph, self.rates, self.itemsize, self.workers = graph, rates, itemsize, workers
        self.device = device
        self.usual = "device" if workers is None else "disk"
        self.weight_bytes = itemsize * sum(map(math.prod, graph.weights.values()))
        self._point: dict[str, tuple[float, float]] = {}
        self._lines: dict[str, frozenset[int]] = {}
        self._bytes: dict[tuple[str, int | None], int] = {}
        self._works: dict[tuple[object, ...], _Work] = {}
        self._measured: dict[tuple[object, ...], _Work] = {}
        # What rules say of a node's boxes, which many stages and tiles have in common.
        self._needs: dict[tuple[str, Box, bool], dict[str, Box]] = {}
        self._workspaces: dict[tuple[str, Box], int] = {}
        self._numbers: dict[object, int] = {}  # of what tensors and parts look like
        self._looks: dict[str, int] = {}
        self._forms: dict[Part, int] = {}
        self.looked_at = 0  # operators, each as often as it was part of what was measured
        self._wrapping = {n for n, node in graph.nodes.items() if RULES[node.op].wraps(node)}
        self._wanders = _wanders(graph)

    def bytes(self, name: str, points: int | None = None) -> int:
        """Size of a tensor, or of `points` of its grid."""
        key = name, points
        if key not in self._bytes:
            layout = self.graph.layouts[name]
            count = math.prod(layout.grid) if points is None else points
            self._bytes[key] = self.graph.itemsize(name, self.itemsize) * layout.width * count
        return self._bytes[key]

    def point(self, name: str) -> tuple[float, float]:
        """Operations and seconds for one point of a node's grid."""
        if name not in self._point:
            graph, node = self.graph, self.graph.nodes[name]
            rule = RULES[node.op]
            operations = rule.operations(node, graph)
            if rule.is_view(node, graph):
                self._point[name] = operations, 0.0
            else:
                # What is taken whole is so for a tile, not for each of its points.
                one = graph.layouts[name].is_fixed
                operands = [o for o in node.operands if one or not graph.layouts[o].is_fixed]
                widths = [*map(graph.width, operands), graph.width(name)]
                moved = self.itemsize * sum(widths)
                arithmetic = operations / self.rates.operations(min(widths))
                self._point[name] = operations, max(arithmetic, moved / self.rates.bandwidth)
        return self._point[name]

    def seconds(self, name: str) -> float:
        """Seconds for all of a node's grid, alone."""
        return self.point(name)[1] * math.prod(self.graph.grid(name))

    def lines(self, *names: str) -> set[int]:
        """Axes of which some of these nodes take all points for every tile."""
        for name in names:
            if name not in self._lines:
                self._lines[name] = lines(self.graph, name)
        return set().union(*(self._lines[name] for name in names))

    def cost(
        self, part: Part, domain: Box, tile: Shape, places: Mapping[str, str] | None = None
    ) -> Cost:
        """Predict what `part` takes in tiles of the shape `tile` over `domain`."""
        places = places or {}
        work = self._work(part, domain, tile)
        seconds, read, written = work.seconds, 0.0, 0.0
        for name, size in zip(part.inputs, work.inputs, strict=True):
            read += size * work.tiles
            seconds += size * work.tiles / self.rates.read(places.get(name, self.usual))
        for name in part.outputs:
            moved = self.bytes(name, domain.size)
            written += moved
            seconds += moved / self.rates.write(places.get(name, self.usual))
        if work.tile_bytes > self.rates.cache:
            seconds *= self.rates.beyond_cache
        # Where the tiles are no multiple of the workers, some wait.
        seconds *= math.ceil(work.tiles / (self.workers or 1)) / work.tiles
        return Cost(
            tile,
            seconds,
            work.operations,
            work.overhead,
            read,
            written,
            sum(work.inputs),
            work.written,
            work.tile_bytes,
            work.rows,
        )

    def _work(self, part: Part, domain: Box, tile: Shape) -> _Work:
        """What is the same wherever the stored tensors lie; kept, as it takes long."""
        key = (part.outputs, part.reduces, part.inputs, domain, tile)
        if key not in self._works:
            self.looked_at += len(part.nodes)
            form = (self._form(part), domain, tile)
            if form not in self._measured:
                self._measured[form] = self._measure(part, domain, tile)
            self._works[key] = self._measured[form]
        return self._works[key]

    def _form(self, part: Part) -> int:
        """Number of a part: the same for parts that differ in names alone, as blocks in a row."""
        if part not in self._forms:
            nodes = self.graph.nodes
            number = {name: i for i, name in enumerate((*part.inputs, *part.nodes))}
            form = (
                tuple((self.graph.layouts[n], self.graph.kind(n)) for n in part.inputs),
                tuple((self._look(n), *map(number.get, nodes[n].operands)) for n in part.nodes),
                tuple(map(number.get, part.outputs)),
                tuple((self._look(n), number[nodes[n].operands[0]]) for n in part.reduces),
            )
            self._forms[part] = self._numbers.setdefault(form, len(self._numbers))
        return self._forms[part]

    def _look(self, name: str) -> int:
        """Number of all that the rule of a node is told, but for names."""
        if name not in self._looks:
            graph, node = self.graph, self.graph.nodes[name]
            operands = {operand: i for i, operand in enumerate(node.operands)}

            def nameless(value: object) -> object:
                if isinstance(value, Ref):
                    known = value.name in graph.weights
                    return graph.weights[value.name] if known else operands[value.name]
                if isinstance(value, (tuple, list)):
                    return tuple(map(nameless, value))
                return value

            args = repr({key: nameless(value) for key, value in node.args.items()})
            weights = tuple((graph.weights[w], graph.kind(w)) for w in node.weights)
            what = (node.op, node.overload, args, weights, node.shape, node.result, node.dtype)
            look = (*what, graph.layouts[name])
            self._looks[name] = self._numbers.setdefault(look, len(self._numbers))
        return self._looks[name]

    def _measure(self, part: Part, domain: Box, tile: Shape) -> _Work:
        graph = self.graph
        kept = part.kept(graph)
        middle = central_tile(domain, tile)
        # Every tile is evaluated on boxes of the same shape, but where an axis wraps around, or
        # tensors meet that are shifted or mirrored against each other.
        wraps = not self._wrapping.isdisjoint(part.nodes)
        spots = [middle, *(ends(domain, middle) if self._wanders else ())]
        known = self._needs
        every = [needed(graph, part.nodes, dict.fromkeys(kept, s), known=known) for s in spots]
        worst = every
        if wraps:
            worst = [
                needed(graph, part.nodes, dict.fromkeys(kept, s), at_worst=True, known=known)
                for s in spots
            ]
        most = {name: max((b[name] for b in worst), key=lambda b: b.size) for name in worst[0]}
        usual = {name: sum(b[name].size for b in every) / len(every) for name in every[0]}
        tiles = count_tiles(domain, tile)
        operations = seconds = once = 0.0
        for name in part.nodes:
            per_point, time = self.point(name)
            points = usual[name] * tiles
            operations += per_point * points
            once += per_point * min(points, math.prod(graph.grid(name)))
            seconds += time * points
        for name in part.reduces:
            size = self.bytes(graph.nodes[name].operands[0], middle.size)
            seconds += 2 * size * tiles / self.rates.bandwidth
        calls = sum(
            RULES[graph.nodes[name].op].calls(graph.nodes[name], graph) for name in part.nodes
        )
        seconds += tiles * (self.rates.tile + self.rates.call * calls)
        # oneDNN and cuDNN bring the kernels into layouts of their own, for every tile again.
        weights = (graph.weights[w] for name in part.nodes for w in graph.nodes[name].weights)
        seconds += tiles * self.itemsize * sum(map(math.prod, weights)) / self.rates.fresh
        tile_bytes = int(self._held_back(tiles) * self._tile_bytes(part, kept, most))
        seconds += tile_bytes / self.rates.fresh
        if not all(self._takes(name, most[name]) for name in (*part.nodes, *part.inputs)):
            tile_bytes = sys.maxsize
        return _Work(
            seconds,
            operations,
            operations / max(once, 1.0),
            tuple(self.bytes(name, most[name].size) for name in part.inputs),
            sum(self.bytes(name, middle.size) for name in part.outputs),
            tiles,
            tile_bytes,
            tuple((most[name].start[0], most[name].stop[0]) for name in part.inputs),
        )

    def _held_back(self, tiles: int) -> float:
        if self.device != "cpu":
            return _ON_GPU
        held_back = _HELD_BACK if tiles > 1 else _ONE_TILE
        return held_back * _DOUBLE if self.itemsize > 4 else held_back

    def _takes(self, name: str, box: Box) -> bool:
        """Whether there are kernels for so large a tensor; if not, none is there for a part."""
        layout = self.graph.layouts[name]
        return layout.is_fixed or layout.width * box.size <= self.rates.elements

    def _tile_bytes(self, part: Part, kept: Sequence[str], boxes: Mapping[str, Box]) -> int:
        """Peak of one tile: walk the nodes, hold what is still needed."""
        graph = self.graph
        owner: dict[str, str] = {}  # whose memory a tensor lies in
        last: dict[str, int] = {}
        spared = overwritten(graph, part.nodes, part.inputs, kept)
        for i, name in enumerate(part.nodes):
            node = graph.nodes[name]
            for operand in node.operands:
                last[owner.get(operand, operand)] = i
            if RULES[node.op].is_view(node, graph):
                source = node.operands[0] if node.operands else name
                owner[name] = owner.get(source, source)
            elif name in spared:
                owner[name] = owner.get(spared[name], spared[name])
                last[owner[name]] = i
        last.update(dict.fromkeys((owner.get(name, name) for name in kept), len(part.nodes)))
        ends: dict[int, list[str]] = {}
        for name, i in last.items():
            ends.setdefault(i, []).append(name)

        held = {name: self.bytes(name, boxes[name].size) for name in part.inputs}
        current = peak = sum(held.values())
        for i, name in enumerate(part.nodes):
            held[name] = 0 if name in owner else self.bytes(name, boxes[name].size)
            current += held[name]
            peak = max(peak, current + self._workspace(name, boxes[name]))
            current -= sum(held.pop(gone) for gone in ends.get(i, ()))
        for name in part.reduces:
            box = boxes[graph.nodes[name].operands[0]]
            peak = max(peak, current + self._workspace(name, box))
        return peak

    def _workspace(self, name: str, box: Box) -> int:
        key = name, box
        if key not in self._workspaces:
            node = self.graph.nodes[name]
            self._workspaces[key] = RULES[node.op].workspace(
                node, box, self.graph, self.itemsize, self.device
            )
        return self._workspaces[key]


def ends(domain: Box, tile: Box) -> tuple[Box, Box]:
    """Return the first and the last box of the shape of `tile`."""
    first = Box(domain.start, tuple(a + n for a, n in zip(domain.start, tile.shape, strict=True)))
    last = tuple(b - n for b, n in zip(domain.stop, tile.shape, strict=True))
    return first, Box(last, domain.stop)


def _wanders(graph: Graph) -> bool:
    """Whether boxes may span more at the ends of the volume than in its middle."""
    last = [n for n in graph.outputs if n in graph.nodes and not graph.layouts[n].is_fixed]
    wholes = {name: graph.whole(name) for name in last}
    middles = {
        n: central_tile(w, tuple(-(-e // _PART) for e in w.shape)) for n, w in wholes.items()
    }
    apart = {n: ends(wholes[n], middle) for n, middle in middles.items()}
    nodes = ancestors(graph, last, ())
    usual = needed(graph, nodes, middles)
    return any(
        box.size > _WIDER * usual[name].size
        for i in (0, 1)
        for name, box in needed(graph, nodes, {n: both[i] for n, both in apart.items()}).items()
    )


def balanced(extent: int, edge: int, step: int = 8) -> int:
    """Tile extent near `edge` that cuts `extent` into nearly equal multiples of `step`."""
    if edge >= extent:
        return extent
    parts = math.ceil(extent / edge)
    return min(extent, step * math.ceil(extent / parts / step))
