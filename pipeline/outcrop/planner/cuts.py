"""Where to cut a graph: which tensors are stored between stages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property

from ..graph import RULES, Box, Graph, Reduce
from ..graph.boxes import Shape
from ..graph.graph import COMPLEX
from .cost import Costs, Part, part

# Kinds of tensors that are worth storing: not masks and places, which are cheap to make again.
_KEPT = (None, COMPLEX)
# How often every tensor is looked at.
_ROUNDS = 2
# Operators of a stage that the search begins with, at most.
_LONG = 100
# Operators whose tiles are measured before the search ends: of networks with very many branches,
# each look takes as long as they are many. Twice what any network of the zoo takes.
_MEASURED = 60_000


def forced(graph: Graph) -> set[str]:
    """Tensors that no plan can do without: what is needed whole, and what is about all of it."""
    found = {n.name for n in graph.nodes.values() if isinstance(RULES[n.op], Reduce)}
    uses = Counter(name for node in graph.nodes.values() for name in node.operands)
    for node in graph.nodes.values():
        between = node.op == "on_grid" and node.name not in graph.outputs
        if between:  # where its boxes can be read
            found.add(node.name)
        for name in node.operands:
            if name not in graph.nodes or (between and uses[name] == 1):
                continue
            small = graph.layouts[name].is_fixed and not graph.layouts[node.name].is_fixed
            if node.op in ("whole", "on_grid") or (small and graph.nodes[name].op != "whole"):
                found.add(name)
    return found


def changes(graph: Graph) -> set[str]:
    """The smaller side of every change of the grid.

    A tensor on the finer side of a change is cheap to recompute for the few points of a halo and
    large to keep; one on the coarser side is the other way round.
    """
    found = set()
    for node in graph.nodes.values():
        for operand in node.operands:
            if math.prod(graph.grid(operand)) in (1, math.prod(graph.grid(node.name))):
                continue
            if math.prod(graph.grid(node.name)) == 1:
                continue
            found.add(min(operand, node.name, key=lambda n: math.prod(graph.shape(n))))
    return found & graph.nodes.keys()


class Cuts:
    """A choice of stored tensors, and the stages it makes.

    Parameters
    ----------
    costs : Costs
        Of the graph.
    outputs : tuple of str
        The network's outputs that are computed.
    place : str
        Where stored tensors are.
    """

    def __init__(self, costs: Costs, outputs: tuple[str, ...], place: str) -> None:
        self.costs, self.graph, self.outputs = costs, costs.graph, outputs
        self.places = {n: place for n in self.graph.nodes if n not in outputs}
        self.limit: float = math.inf
        self.shapes: Callable[[Part, Box], Iterable[Shape]] = lambda p, domain: [domain.shape]
        self.measured = 0  # operators, each as often as it was
        self._seconds: dict[Part, float] = {}
        self._parts: dict[frozenset[str], list[Part]] = {}

    def lines(self) -> set[str]:
        """Tensors of which every point depends on whole lines, as a Fourier transform's do."""
        nodes, layouts = self.graph.nodes, self.graph.layouts
        kept = (n for n in nodes if nodes[n].dtype in _KEPT and not layouts[n].is_fixed)
        return {n for n in kept if self.costs.lines(n)}

    def parts(self, stored: set[str]) -> list[Part]:
        """Stages for these stored tensors, each after those whose results it reads."""
        key = frozenset(stored)
        if key not in self._parts:
            self._parts[key] = self._divided(stored)
        return self._parts[key]

    def _divided(self, stored: set[str]) -> list[Part]:
        graph = self.graph
        groups: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        plain = {n for n in stored if not self._reduces(n)} - set(self.outputs)
        with_tile: dict[str, list[str]] = {}
        alone: dict[tuple[Shape, int], list[str]] = {}
        for name in graph.nodes:
            if self._reduces(name) and name in stored:
                operand = graph.nodes[name].operands[0]
                if operand in plain:
                    with_tile.setdefault(operand, []).append(name)
                else:  # those that are ready at the same time share a pass
                    key = (graph.grid(operand), self.levels[name])
                    alone.setdefault(key, []).append(name)
        groups += [((name,), tuple(with_tile.get(name, ()))) for name in plain]
        groups += [((), tuple(names)) for names in alone.values()]
        by_grid: dict[Shape, list[str]] = {}
        for name in self.outputs:
            if not self._reduces(name):
                by_grid.setdefault(graph.grid(name), []).append(name)
        groups += [(tuple(names), ()) for names in by_grid.values()]
        return self._sorted([part(graph, *group, stored - set(self.outputs)) for group in groups])

    @cached_property
    def levels(self) -> dict[str, int]:
        """For each node, how many passes over the volume must come before it."""
        levels: dict[str, int] = {}
        for name, node in self.graph.nodes.items():
            above = [levels[o] + self._reduces(o) for o in node.operands if o in levels]
            levels[name] = max(above, default=0)
        return levels

    def _reduces(self, name: str) -> bool:
        return isinstance(RULES[self.graph.nodes[name].op], Reduce)

    def _sorted(self, parts: list[Part]) -> list[Part]:
        writer = {name: p for p in parts for name in (*p.outputs, *p.reduces)}
        order, done = [], set()

        def visit(first: Part) -> None:
            stack = [(first, False)]
            while stack:
                p, ready = stack.pop()
                if p in done:
                    continue
                if ready:
                    done.add(p)
                    order.append(p)
                    continue
                stack.append((p, True))
                stack += [(writer[n], False) for n in p.inputs if n in writer]

        position = self.graph.order
        for p in sorted(parts, key=lambda p: min(position[n] for n in (*p.outputs, *p.reduces))):
            visit(p)
        return order

    def seconds(self, p: Part) -> float:
        """Predicted seconds of a stage, in the best of a few tile shapes."""
        if p not in self._seconds:
            domain = Box.whole(self.graph.grid(p.kept(self.graph)[0]))
            tiles = list(self.shapes(p, domain))
            self.measured += len(p.nodes) * len(tiles)
            found = [self.costs.cost(p, domain, tile, self.places) for tile in tiles]
            # What does not fit is not forbidden yet, as smaller tiles might, but dear.
            self._seconds[p] = min(c.seconds * max(1.0, c.tile_bytes / self.limit) for c in found)
        return self._seconds[p]

    def choose(self, limit: float, shapes: Callable[[Part, Box], Iterable[Shape]]) -> set[str]:
        """Stored tensors for which the predicted time is short: a local search.

        It starts from the changes of the grid, the operands of reductions and what many stages
        share, and takes one tensor away, or adds one, as long as that saves time.

        Parameters
        ----------
        limit : float
            Bytes that a tile may take.
        shapes : callable
            Gives the shapes of tiles to look at for a stage and its domain.
        """
        self.limit, self.shapes = limit, shapes
        self._seconds.clear()
        self.measured = 0
        graph = self.graph
        fixed = forced(graph)
        start = {graph.nodes[n].operands[0] for n in fixed if self._reduces(n)} & graph.nodes.keys()
        stored = fixed | changes(graph) | start
        stored |= self._shared(stored)
        stored |= self._along(stored)
        stored -= {n for n in stored if graph.nodes[n].dtype not in _KEPT and n not in fixed}
        candidates = [n for n in graph.nodes if n not in fixed and self.worth(n, stored)]
        for _ in range(_ROUNDS):
            changed = False
            for name in candidates:
                if self.measured > _MEASURED:
                    return stored
                other = stored ^ {name}
                if self._saved(stored, other, name) > 0:
                    stored, changed = other, True
            if not changed:
                break
        return stored

    def _shared(self, stored: set[str]) -> set[str]:
        """Branching points that several stages would compute anew, such as a residual stream."""
        parts = self.parts(stored)
        times = Counter(name for p in parts for name in p.nodes)
        return {n for n, k in times.items() if k > 2 and len(self.users.get(n, ())) > 1}

    def _along(self, stored: set[str]) -> set[str]:
        """Where to cut stages of very many operators, each of which takes long to look at.

        Now and then, where least is held: in a residual network the stream, not what is added.
        """
        found: set[str] = set()
        for p in self.parts(stored):
            if len(p.nodes) <= _LONG:
                continue
            last = {o: i for i, n in enumerate(p.nodes) for o in self.graph.nodes[n].operands}
            held: list[set[str]] = []
            for i, name in enumerate(p.nodes):
                before = held[-1] if held else set()
                held.append({n for n in (*before, name) if last.get(n, -1) > i})
            step = _LONG // 4
            at = 0
            while at + step < len(p.nodes):
                near = range(at + step, min(at + 2 * step, len(p.nodes)))
                at = min(near, key=lambda i: len(held[i]))
                found |= {n for n in held[at] if not self.graph.layouts[n].is_fixed}
        return found

    def worth(self, name: str, stored: set[str]) -> bool:
        """Whether a tensor is looked at: results of heavy operators, and what is stored now."""
        graph, node = self.graph, self.graph.nodes[name]
        if name in stored:
            return True
        heavy = RULES[node.op].operations(node, graph) > 8 * graph.width(name)
        branches = len(self.users.get(name, ())) > 1
        return (
            (heavy or branches or bool(self.costs.lines(name)))
            and node.dtype in _KEPT
            and not graph.layouts[name].is_fixed
        )

    def _saved(self, stored: set[str], other: set[str], name: str) -> float:
        """Seconds that `other` saves; they differ in `name`."""
        before = self._touched(stored, name)
        after = self._touched(other, name)
        return sum(map(self.seconds, before)) - sum(map(self.seconds, after))

    def _touched(self, stored: set[str], name: str) -> list[Part]:
        """Stages that compute or read a tensor."""
        parts = (self._stage(target, stored) for target in self._targets(stored, name))
        return list(dict.fromkeys(parts))

    def _targets(self, stored: set[str], name: str) -> Iterable[str]:
        """Stored tensors and outputs that are computed from `name` without another in between."""
        found, stack, seen = [], [name], set()
        while stack:
            n = stack.pop()
            if n in seen:
                continue
            seen.add(n)
            ends = n in stored or n in self.outputs
            if ends:
                found.append(n)
            if not ends or n == name:
                stack.extend(self.users.get(n, ()))
        return found

    @cached_property
    def users(self) -> dict[str, list[str]]:
        """Nodes that take each tensor."""
        users: dict[str, list[str]] = {}
        for node in self.graph.nodes.values():
            for operand in node.operands:
                users.setdefault(operand, []).append(node.name)
        return users

    def _stage(self, target: str, stored: set[str]) -> Part:
        given = stored - set(self.outputs)
        if not self._reduces(target):
            reduces = tuple(u for u in self.users.get(target, ()) if self._reduces(u))
            return part(self.graph, (target,), reduces if target in given else (), given)
        operand = self.graph.nodes[target].operands[0]
        return (
            self._stage(operand, stored)
            if operand in given
            else part(self.graph, (), (target,), given)
        )
