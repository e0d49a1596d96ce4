"""Evaluating one tile of a stage: the one thing that every executor does."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from ..graph import RULES, Box, Graph, Node, Reduce, Rule, tiles
from ..graph.boxes import Shape, central_tile
from ..graph.propagate import last_uses, needed
from ..planner import Stage
from .compiled import Compiled
from .globals import GlobalStore
from .stores import Store, to_device


@dataclass(frozen=True)
class _Step:
    """One operator, with what to do once it is evaluated."""

    node: Node
    rule: Rule
    spent: tuple[str, ...]  # tensors that nothing after it uses
    spare: bool  # its only operand may be overwritten


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
    """

    def __init__(
        self,
        graph: Graph,
        stage: Stage,
        weights: Mapping[str, Tensor],
        stores: Mapping[str, Store],
        device: torch.device | str = "cpu",
        compile: bool = False,
    ) -> None:
        self.graph, self.stage, self.stores = graph, stage, stores
        self.device = torch.device(device)
        # The tensors that a global value reduces, each on the tile.
        self.reducing = {name: graph.nodes[name].operands[0] for name in stage.reduces}
        self.kept = tuple(dict.fromkeys((*stage.outputs, *self.reducing.values())))
        last = last_uses(graph, stage.nodes, self.kept)
        views: dict[str, str] = {}  # whose memory a tensor shares
        self.halvings = 0  # of every tile, since memory ran out
        middle = central_tile(stage.domain, stage.tile)
        self.extents = {name: box.shape for name, box in self._needed(middle).items()}
        self.steps = []
        for name in stage.nodes:
            node, rule = graph.nodes[name], RULES[graph.nodes[name].op]
            if rule.is_view(node, graph) and node.operands:
                views[name] = views.get(node.operands[0], node.operands[0])
            source = node.operands[0] if node.operands else ""
            # Not what was read, which may be a view of a store, nor what another shares.
            spare = (
                node.operands == (source,)
                and source in last[name]
                and source not in stage.inputs
                and source not in views
                and source not in views.values()
            )
            self.steps.append(_Step(node, rule, tuple(last[name]), spare))
        own = {w: weights[w] for step in self.steps for w in step.node.weights}
        self.weights = own
        self.compiled = Compiled((*stage.inputs, *own)) if compile else None

    def boxes(self, tile: Box) -> dict[str, Box]:
        """Box of every tensor on which it is computed, or read, for the tile.

        They are of the same shape for every tile, so that kernels and memory are used again: one
        at the edge of the volume holds more than it needs.
        """
        return self._needed(tile, None if self.halvings else self.extents)

    def _needed(self, tile: Box, extents: Mapping[str, Shape] | None = None) -> dict[str, Box]:
        outputs = dict.fromkeys(self.kept, tile)
        return needed(self.graph, self.stage.nodes, outputs, extents)

    def read(self, tile: Box) -> dict[str, Tensor]:
        """Fetch the stage's inputs on the boxes that the tile needs."""
        boxes = self.boxes(tile)
        held = {}
        for name in self.stage.inputs:
            value = to_device(self.stores[name].read(boxes[name]), self.device)
            held[name] = self.graph.layouts[name].from_store(value, boxes[name])
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
        pieces = [tile]
        for _ in range(self.halvings):
            pieces = [half for piece in pieces for half in _halves(piece)]
        while pieces:
            piece = pieces.pop(0)
            whole = piece == tile and inputs is not None
            try:
                self._evaluate(piece, inputs if whole and inputs else self.read(piece), results)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
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
        return results

    def _evaluate(self, tile: Box, inputs: dict[str, Tensor], results: Results) -> None:
        graph, boxes = self.graph, self.boxes(tile)
        values = {**self.weights, **inputs}
        inputs.clear()
        found: Sequence[Tensor]
        if self.compiled is None:
            found = self._kept(tile, boxes, values)
        else:
            kept_of = partial(self._kept, tile, boxes)
            found = self.compiled.call(self._signature(tile, boxes), kept_of, values)
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

    def _kept(self, tile: Box, boxes: Mapping[str, Box], values: dict[str, Tensor]) -> list[Tensor]:
        """Compute what is kept, on the tile, from inputs, which are used up, and weights."""
        layouts, held = self.graph.layouts, {n: values.pop(n) for n in self.stage.inputs}
        kept = {
            name: layouts[name].cut(held[name], boxes[name], tile)
            for name in self.kept
            if name in held
        }
        for step in self.steps:
            node, box = step.node, boxes[step.node.name]
            operands = {name: values[name] for name in node.weights}
            for name, need in step.rule.needs(node, box, self.graph).items():
                operands[name] = layouts[name].cut(held[name], boxes[name], need)
            for name in step.spent:
                del held[name]
            evaluate = step.rule.overwrite if step.spare else step.rule.evaluate
            held[node.name] = evaluate(node, box, operands, self.graph)
            if node.name in self.kept:
                kept[node.name] = layouts[node.name].cut(held[node.name], box, tile)
        return [kept[name] for name in self.kept]

    def _signature(self, tile: Box, boxes: Mapping[str, Box]) -> Hashable:
        """Equal for tiles for which `_kept` makes the same calls."""
        calls: list[Hashable] = [tile.within(boxes[name]) for name in self.kept]
        calls += [boxes[name].shape for name in self.stage.inputs]
        for step in self.steps:
            node, box = step.node, boxes[step.node.name]
            needs = step.rule.needs(node, box, self.graph).items()
            calls.append((box.shape, step.rule.position(node, box, self.graph)))
            calls += [need.within(boxes[name]) for name, need in needs]
        return tuple(calls)

    def write(self, number: int, results: Results) -> None:
        """Put what a tile gave where it belongs."""
        for name, box, part in results.parts:
            self.stores[name].write(box, part)
        for name, state in results.states.items():
            store = self.stores[name]
            assert isinstance(store, GlobalStore)
            store.put(number, state)

    def run(self, number: int, tile: Box) -> None:
        """Read, compute and write one tile."""
        self.write(number, self.compute(tile, self.read(tile)))


def _halves(box: Box) -> list[Box]:
    """Cut a box across its longest axis."""
    axis = max(range(len(box.shape)), key=box.shape.__getitem__)
    half = tuple(-(-n // 2) if i == axis else n for i, n in enumerate(box.shape))
    return list(tiles(box, half))


def _out_of_memory(error: BaseException) -> bool:
    # The CPU's allocator raises a plain RuntimeError.
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)
