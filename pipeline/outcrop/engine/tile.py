"""Evaluating one tile of a stage: the one thing that every executor does."""

from __future__ import annotations

import contextlib
import errno
import math
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import MemoryBudgetError, UnsupportedOperatorError
from ..graph import RULES, Box, Graph, Reduce, Rule, tiles
from ..graph.propagate import last_uses, overwritten
from ..pages import HUGE
from ..patience import patiently
from ..planner import Stage
from ..planner.frames import Frame, Frames
from .compiled import Compiled
from .globals import GlobalStore
from .memory import Watch
from .stores import MemoryStore, Store, to_device
from .survey_stores import PredictionStore


@dataclass(frozen=True)
class _Step:
    """One operator, with what to do once it is evaluated."""

    name: str
    rule: Rule
    spent: tuple[str, ...]  # tensors that nothing after it uses
    spare: bool  # an operand may be overwritten
    takes: int  # bytes, on a tile far from the edges


@dataclass
class Results:
    """What one tile gives: parts of the stage's outputs, and states of its global values."""

    parts: list[tuple[str, Box, Tensor]]
    states: dict[str, Tensor]


class StageRunner:
    """A stage made ready to be run tile by tile.

    Idempotent: the same tile run again writes the same values to the same place.

    Parameters
    ----------
    graph : Graph
    stage : Stage
        Of a plan for that graph.
    weights : mapping of str to torch.Tensor
        The network's own tensors by their names in the graph, on the device that computes.
    stores : mapping of str to Store
        Where the stage's inputs are read and its outputs written; a `GlobalStore` for each
        global value.
    device : torch.device or str
        What computes.
    compile : bool
        Compile what many tiles have in common.
    watch : Watch, optional
        Asked for room before each operator.
    """

    def __init__(
        self,
        graph: Graph,
        stage: Stage,
        weights: Mapping[str, Tensor],
        stores: Mapping[str, Store],
        device: torch.device | str = "cpu",
        compile: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.graph, self.stage, self.stores, self.watch = graph, stage, stores, watch
        self.device = torch.device(device)
        self.frames = Frames(graph, stage)
        self.reducing, self.kept = self.frames.reducing, self.frames.kept
        last = last_uses(graph, stage.nodes, self.kept)
        # Bytes of outputs in memory, and of layers of them.
        self.unwritten: dict[tuple[str, int | None], int] = {}
        self.halvings = 0  # of every tile, since memory ran out
        spare = overwritten(graph, stage.nodes, stage.inputs, self.kept)
        central = self.frames.central
        size = next((w.element_size() for w in weights.values() if w.is_floating_point()), 4)
        self.itemsize = size
        self.steps = [
            _Step(
                name,
                RULES[graph.nodes[name].op],
                tuple(last[name]),
                name in spare,
                0 if watch is None else _taken(graph, name, central[name], size, name in spare),
            )
            for name in stage.nodes
        ]
        own = {w: weights[w] for name in stage.nodes for w in graph.nodes[name].weights}
        self.weights = own
        self.compiled = Compiled((*stage.inputs, *own)) if compile else None

    def _frame(self, tile: Box) -> Frame:
        """How to evaluate a tile; kept while one is read, another computed."""
        return self.frames.of(tile, self.halvings > 0)

    def reads(self, tile: Box) -> dict[str, Box]:
        """Return the box of each of the stage's inputs that `read` fetches."""
        return self.frames.reads(tile, self.halvings > 0)

    def is_blank(self, tile: Box) -> bool:
        """Whether the tile writes nothing but parts of a prediction without a trace nearby."""
        stores = [self.stores[name] for name in (*self.stage.outputs, *self.stage.reduces)]
        return all(isinstance(store, PredictionStore) and store.is_blank(tile) for store in stores)

    def read(self, tile: Box) -> dict[str, Tensor]:
        """Fetch the stage's inputs on the boxes that the tile needs: none if it is blank."""
        if self.is_blank(tile):
            return {}
        anywhere, held = self._frame(tile).anywhere, {}
        for name, box in self.reads(tile).items():
            store = self.stores[name]
            if self.watch is not None:
                self.watch.make_room(self.itemsize * self.graph.layouts[name].width * box.size)
            part = patiently(partial(store.read, box)) if store.slow else store.read(box)
            value = to_device(part, self.device)
            del part
            if anywhere is not None:
                value, box = anywhere.extended(name, value, tile), anywhere.place(name, tile)
            held[name] = self.graph.layouts[name].from_store(value, box)
        return held

    def compute(self, tile: Box, inputs: dict[str, Tensor] | None = None) -> Results:
        """Evaluate the stage on one tile; in parts, if the memory turns out not to suffice.

        `inputs`, from `read`, are freed as they are used up.

        Raises
        ------
        MemoryBudgetError
            If it does not suffice for a single point either.
        """
        results = Results([], {})
        if self.is_blank(tile):
            for name in self.stage.outputs:
                width = self.graph.layouts[name].width
                nothing = torch.zeros(()).expand(width, *tile.shape)
                results.parts.append((name, tile, nothing))
            return results
        pieces = [tile]
        for _ in range(self.halvings):
            pieces = [half for piece in pieces for half in _halves(piece)]
        while pieces:
            piece = pieces.pop(0)
            whole = piece == tile and inputs is not None
            try:
                self._evaluate(piece, inputs if whole and inputs else self.read(piece), results)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                halves = _halves(piece)
                if len(halves) < 2:
                    raise MemoryBudgetError(
                        f"out of memory on a tile of one point ({error}); close other programs, or "
                        "pass a smaller memory (--memory) so that less is kept"
                    ) from None
                shape = "×".join(map(str, halves[0].shape))
            else:
                continue
            # Outside of the handler, which holds on to the tensors of the evaluation.
            inputs = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.halvings += 1
            warnings.warn(
                f"out of memory on a tile; going on with tiles of {shape} in this stage",
                stacklevel=2,
            )
            pieces = [half for rest in (piece, *pieces) for half in _halves(rest)]
        if len(results.parts) > len(self.stage.outputs):
            results.parts = [self._joined(name, tile, results.parts) for name in self.stage.outputs]
        return results

    def _joined(
        self, name: str, tile: Box, parts: Sequence[tuple[str, Box, Tensor]]
    ) -> tuple[str, Box, Tensor]:
        """Make one part of those of a tensor: stores take a tile in one piece."""
        own = [(box, part) for other, box, part in parts if other == name]
        first, rank = own[0][1], len(tile.shape)
        made = first.new_empty((*first.shape[: first.ndim - rank], *tile.shape))
        for box, part in own:
            made[box.within(tile).index] = part
        return name, tile, made

    def _evaluate(self, tile: Box, inputs: dict[str, Tensor], results: Results) -> None:
        graph, frame = self.graph, self._frame(tile)
        values = {**self.weights, **inputs}
        inputs.clear()
        found: Sequence[Tensor]
        if self.compiled is None:
            found = self._kept(tile, frame, values)
        else:
            if self.watch is not None:
                self.watch.make_room(max((step.takes for step in self.steps), default=0))
            key = self._signature(tile, frame)
            found = self.compiled.call(key, partial(self._kept, tile, frame), values)
        kept = dict(zip(self.kept, found, strict=True))
        states = {}
        for reduce, operand in self.reducing.items():
            rule, node = RULES[graph.nodes[reduce].op], graph.nodes[reduce]
            assert isinstance(rule, Reduce)
            states[reduce] = rule.state(node, kept[operand])
            if reduce in results.states:
                states[reduce] = rule.merge(results.states[reduce], states[reduce])
        results.states.update(states)
        for name in self.stage.outputs:
            results.parts.append((name, tile, graph.layouts[name].to_store(kept[name], tile)))

    def _kept(self, tile: Box, frame: Frame, values: dict[str, Tensor]) -> list[Tensor]:
        """Compute what is kept, on the tile, from inputs, which are used up, and weights."""
        layouts, boxes = frame.graph.layouts, frame.boxes
        held = {name: values.pop(name) for name in self.stage.inputs}
        kept = {
            name: layouts[name].cut(held[name], boxes[name], frame.tile)
            for name in self.kept
            if name in held
        }
        for step in self.steps:
            name, box = step.name, boxes[step.name]
            node = frame.graph.nodes[name]
            operands = {weight: values[weight] for weight in node.weights}
            for operand, need in step.rule.needs(node, box, frame.graph).items():
                operands[operand] = layouts[operand].cut(held[operand], boxes[operand], need)
            for gone in step.spent:
                del held[gone]
            if self.watch is not None:
                self.watch.make_room(step.takes)
            evaluate = step.rule.overwrite if step.spare else step.rule.evaluate
            try:
                held[name] = evaluate(node, box, operands, frame.graph)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                known = "not implemented for" in reason or "Unsupported dtype" in reason
                halves = any(x.is_floating_point() and x.itemsize < 4 for x in operands.values())
                if not known and (not halves or is_out_of_memory(error)):
                    raise
                where = f"{node.op} in {node.module}" if node.module else node.op
                raise UnsupportedOperatorError(
                    f"{where}: torch does not compute it in this precision ({reason}); take another"
                    ", such as precision='float32' (--precision float32)"
                ) from error
            if name in self.kept:
                kept[name] = layouts[name].cut(held[name], box, frame.tile)
            if frame.anywhere is not None and name in frame.anywhere.fills:
                frame.anywhere.fill(name, held[name], tile)
        return [kept[name] for name in self.kept]

    def _signature(self, tile: Box, frame: Frame) -> Hashable:
        """Equal for tiles for which `_kept` makes the same calls."""
        if frame.anywhere is not None:
            return frame.tile, frame.anywhere.beyond(tile)
        graph, boxes = frame.graph, frame.boxes
        calls: list[Hashable] = [tile.within(boxes[name]) for name in self.kept]
        calls += [boxes[name].shape for name in self.stage.inputs]
        for step in self.steps:
            node, box = graph.nodes[step.name], boxes[step.name]
            calls.append((box.shape, step.rule.position(node, box, graph)))
            needs = step.rule.needs(node, box, graph).items()
            calls += [need.within(boxes[name]) for name, need in needs]
        return tuple(calls)

    def write(self, number: int, results: Results) -> None:
        """Put what a tile gave where it belongs."""
        for name, box, part in results.parts:
            store = self.stores[name]
            if self.watch is not None:
                self.watch.make_room(0, self._fresh(name, box, part))
            if store.slow:
                patiently(partial(store.write, box, part))
            else:
                store.write(box, part)
        for name, state in results.states.items():
            target = self.stores[name]
            assert isinstance(target, GlobalStore)
            patiently(partial(target.put, number, state, self.stage.count))

    def _fresh(self, name: str, box: Box, part: Tensor) -> int:
        """Bytes that may be taken to write a part: in huge pages all of its layer comes with it."""
        store = self.stores[name]
        if not isinstance(store, MemoryStore):
            return part.nbytes
        domain = self.stage.domain
        layer = box.spanning(range(1, len(box.shape)), domain.shape)
        width = self.graph.layouts[name].width * part.itemsize
        left = []
        for key, size in ((name, None), domain.size), ((name, box.start[0]), layer.size):
            left.append(self.unwritten.setdefault(key, width * size))
            self.unwritten[key] = max(0, left[-1] - part.nbytes)
        ends = 2 * HUGE * math.prod(store.outer(store.tensor.ndim - self.graph.rank))
        return min(left[0], left[1] + ends)

    def moved(self, tensors: Iterable[tuple[str, Tensor]]) -> int:
        """Bytes of those tensors that lie outside of the memory of what computes."""
        return sum(tensor.nbytes for name, tensor in tensors if self.stores[name].slow)


def _taken(graph: Graph, name: str, box: Box, itemsize: int, spare: bool) -> int:
    """Bytes that are asked for while a node is evaluated on a box."""
    node = graph.nodes[name]
    rule = RULES[node.op]
    own = 0 if spare or rule.is_view(node, graph) else graph.layouts[name].width * box.size
    return itemsize * own + rule.workspace(node, box, graph, itemsize)


def _halves(box: Box) -> list[Box]:
    """Cut a box across its longest axis."""
    axis = max(range(len(box.shape)), key=box.shape.__getitem__)
    half = tuple(-(-n // 2) if i == axis else n for i, n in enumerate(box.shape))
    return list(tiles(box, half))


@contextlib.contextmanager
def naming_lack_of_memory() -> Iterator[None]:
    """Turn an error that says that memory ran out into one that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).split("\n")[0].split(". ")[0]
        raise MemoryBudgetError(
            f"out of memory ({reason}); close other programs, or pass a smaller memory (--memory) "
            "so that less is kept"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    # The CPU's allocator raises a plain RuntimeError, mmap an OSError.
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
