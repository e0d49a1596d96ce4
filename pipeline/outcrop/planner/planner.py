"""The planner: where to cut, how large a tile, and where stored tensors live."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Literal, get_args

from ..errors import ArgumentError, MemoryBudgetError
from ..graph import RULES, Box, Graph, Reduce
from ..heap import collected_later
from .cost import Costs
from .cuts import Cuts, changes, forced
from .draft import Draft, Offer, Task
from .freed import Freed
from .plan import Plan, Stage, format_bytes
from .rates import Crew, rates
from .rolling import rolling

StorageMode = Literal["auto", "device", "cpu", "disk", "none"]

# Edges of the tiles that the search for cuts looks at; those where memory is scarce.
_SEARCHED = (32, 64, 128)
_SMALL = (16,)
# Tensors of a stage that does not fit that are looked at, the largest first: so many, but fewer
# in networks of many operators, where each look takes longer.
_TRIED, _LOOKED_AT = 8, 2000
# Operators that are looked at, each as often as it is, before a plan that fits is taken: more than
# all but deep chains at full resolution take, whose plans hardly become better.
_ENOUGH = 60_000
# Those that are looked at before a plan that does not fit is given up for one that needs little
# memory: more than any network of the zoo takes, and minutes less than chains of very many steps.
_GIVEN_UP = 300_000
# Of two plans of which one takes no longer than this times the other, that which takes less disk.
_AS_FAST = 1.03


@collected_later()
def make_plan(
    graph: Graph,
    *,
    memory: int,
    storage_mode: StorageMode = "auto",
    dtype: str = "float32",
    domain: Box | None = None,
    tile: Sequence[int] | None = None,
    holds_output: bool = True,
    output_itemsize: int = 4,
    device: str = "cpu",
    host_memory: int | None = None,
    compressed: bool = False,
    crew: Crew | None = None,
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
    output_itemsize : int
        Bytes of a value of that output.
    device : str
        "cpu" or "cuda".
    host_memory : int, optional
        Bytes of tensors that may be kept in host memory, where the device is another.
    compressed : bool
        Keep stored tensors in 8 bits a value.
    crew : Crew, optional
        The workers of a cluster that the plan is for: it fits into what each has to give, and
        "auto" is "disk" or "none", whichever is predicted to be done first.

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
    if not graph.nodes:
        raise ArgumentError("the network computes nothing: what it returns is its input")
    if any(0 in graph.shape(name) for name in graph.outputs):
        raise ArgumentError("the network returns a tensor without values; is the volume too small?")
    empty = next((node for name, node in graph.nodes.items() if 0 in graph.grid(name)), None)
    if empty is not None:
        raise ArgumentError(f"{empty}: gives a tensor without values; is the volume too small?")
    if tile is not None:
        try:
            extents = tuple(map(operator.index, tile))
        except TypeError:  # no sequence, or not of whole numbers
            extents = ()
        if len(extents) != graph.rank or min(extents) < 1:
            raise ArgumentError(f"tile {tile}: give {graph.rank} positive extents")
        tile = extents
    task = Task(
        graph,
        tuple(n for n in dict.fromkeys(graph.outputs) if n in graph.nodes),
        memory if crew is None or crew.memory is None else min(memory, crew.memory),
        dtype,
        domain,
        tile,
        holds_output,
        output_itemsize,
        device,
        host_memory,
        compressed,
    )
    if crew is not None and storage_mode == "auto":
        storage_mode = "disk"
        planner = _Planner(task, storage_mode, crew=crew)
        stored, anew = planner.search(), _Planner(task, "none", planner).search()
        draft = min(stored, anew, key=lambda d: (d.excess > 0, d.seconds))
    else:
        planner = _Planner(task, storage_mode, crew=crew)
        draft = planner.search()
    if draft.excess and host_memory is not None:
        free = _Planner(replace(task, host_memory=None), storage_mode, planner).search()
        if not free.excess:
            raise MemoryBudgetError(
                f"host_memory {format_bytes(host_memory)} is too small for "
                f"storage_mode={storage_mode!r}: {math.ceil(free.host / 1e6)}MB would do"
            )
    if draft.excess:
        least, where = planner.smallest(draft)
        raise MemoryBudgetError(
            f"memory {format_bytes(task.memory)} is too small for storage_mode={storage_mode!r}: "
            f"this network on this volume needs at least {least // 10**6}MB{where}"
        )
    if crew is not None:
        return _finished(draft)
    plans = [rolling(_finished(draft), graph)]
    if storage_mode == "auto" and "disk" in draft.places.values():
        other = _Planner(task, "disk", planner).search()
        if not other.excess and other.seconds <= _AS_FAST * draft.seconds:
            plans.append(rolling(_finished(other), graph))
    return min(plans, key=lambda plan: plan.disk_bytes)


def like(plan: Plan, graph: Graph, memory: int) -> Plan:
    """Plan a network on another volume, with the same tensors stored, all on the device.

    Parameters
    ----------
    plan : Plan
    graph : Graph
        Of the same network.
    memory : int
        Bytes that it may take.

    Raises
    ------
    MemoryBudgetError
        If that does not fit.
    ArgumentError
        If a tensor that `plan` stores is not there.
    """
    stored = {n for n, place in plan.places.items() if place != "global"}
    if not stored <= graph.nodes.keys():
        raise ArgumentError("the network evaluates other operators on another volume")
    outputs = tuple(n for n in dict.fromkeys(graph.outputs) if n in graph.nodes)
    task = Task(
        graph,
        outputs,
        memory,
        plan.dtype,
        domain=None,
        tile=None,
        holds_output=True,
        output_itemsize=4,
        device=plan.device,
        host_memory=plan.host_memory,
        compressed=plan.compressed,
    )
    planner = _Planner(task, "device")
    draft = planner.draft(dict.fromkeys(planner._kept(planner.fixed | stored), "device"))
    if draft.excess:
        raise MemoryBudgetError(f"memory {format_bytes(task.memory)} is too small")
    return _finished(draft)


class _Planner:
    """The search for stored tensors and their places."""

    def __init__(
        self,
        task: Task,
        mode: StorageMode,
        like: _Planner | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.task, self.graph, self.mode = task, task.graph, mode
        there = mode == "cpu" and task.device == "cpu"  # host and device are one
        self.first = mode if mode in ("cpu", "disk") and not there else "device"
        if crew is not None and mode == "none":  # what must be stored all workers have to reach
            self.first = "disk"
        # What is known of the same task with another budget holds for this one too.
        self.costs: Costs
        if like is not None:
            self.costs = like.costs
            self.first = like.first if mode == "none" else self.first
        elif crew is not None:
            self.costs = Costs(task.graph, crew.rates, task.itemsize, crew.workers, task.device)
        else:
            known = rates(task.device, task.dtype)
            self.costs = Costs(task.graph, known, task.itemsize, device=task.device)
        self.fixed = forced(task.graph)
        self.reductions = {
            n for n in self.fixed if isinstance(RULES[task.graph.nodes[n].op], Reduce)
        }
        self.like = like if like is not None and like.first == self.first else None
        self.cuts: Cuts
        self.cuts = self.like.cuts if self.like else Cuts(self.costs, task.outputs, self.first)
        self.offers: dict[tuple[object, ...], Offer] = like.offers if like else {}
        self.freed: Freed = like.freed if like else Freed(self.costs)

    def draft(self, places: Mapping[str, str]) -> Draft:
        known = self.reductions, self.offers, self.freed
        return Draft(self.task, self.costs, self.cuts, places, *known)

    def search(self, any_that_fits: bool = False) -> Draft:
        """The fastest plan found, or the first that fits; one with an excess if none does."""
        if self.mode == "none":
            return self.draft(dict.fromkeys(self._kept(self.fixed), self.first))
        stored = self.cuts.choose(
            self.task.memory / 2, partial(self.task.shapes, self.costs, edges=_SEARCHED)
        )
        draft = self.draft(dict.fromkeys(self._kept(stored), self.first))
        before = self.costs.looked_at
        while draft.excess or not (any_that_fits or self.costs.looked_at > before + _ENOUGH):
            given_up = before + (_ENOUGH if any_that_fits else _GIVEN_UP)
            if draft.excess and (self.hopeless or self.costs.looked_at > given_up):
                break
            tried = [self.draft(places) for places in self._relieved(draft)]
            if draft.excess:
                tried = [d for d in tried if d.excess < draft.excess]
                if not tried:
                    break
                of = draft  # seconds that it costs for each byte that it frees
                draft = min(tried, key=lambda d: (d.seconds - of.seconds) / (of.excess - d.excess))
            else:
                tried += [self._promoted(self.draft(places)) for places in self._restored(draft)]
                best = min(tried, key=lambda d: (d.excess > 0, d.seconds), default=draft)
                if best.excess or best.seconds >= draft.seconds:
                    break
                draft = best
        if draft.excess:
            draft = min([draft, *self.lean], key=lambda d: (d.excess > 0, d.seconds))
        return draft

    @cached_property
    def hopeless(self) -> bool:
        """Whether the budget is far below what tiles take, though nothing is kept beside them."""
        drafts = [self.draft(dict.fromkeys(self._kept({*s}), "disk")) for s in self.small]
        return self.task.memory < min(d.least for d in drafts)[0] // 2

    @cached_property
    def lean(self) -> list[Draft]:
        """Drafts that need little memory."""
        place = self.order[-1]
        return [self.draft(dict.fromkeys(self._kept({*s}), place)) for s in self.small]

    @cached_property
    def small(self) -> list[frozenset[str]]:
        """Stored tensors of these drafts, the same for every budget."""
        if self.like:
            return self.like.small
        few = self.cuts.choose(math.inf, partial(self.task.shapes, self.costs, edges=_SMALL))
        cut = self.fixed | changes(self.graph)
        return list(dict.fromkeys(map(frozenset, (few, self.fixed, cut, cut | self.cuts.lines()))))

    def smallest(self, tried: Draft) -> tuple[int, str]:
        """Smallest budget found for which there is a plan, in bytes, and what asks for it."""

        def planned(memory: int) -> Draft:
            return _Planner(replace(self.task, memory=memory), self.mode, self).search(
                any_that_fits=True
            )

        # As it is printed, so that what is named is what was tried.
        least = _megabytes(min(d.least for d in [tried, *self.lean][self.mode != "none" :])[0])
        while (draft := planned(least)).excess:
            least = _megabytes(1.02 * least)
        low = max(least // 2, self.task.memory)
        while self.mode != "none":
            # Halving finds one end; as there may be gaps, what is just below is tried too.
            below = _megabytes(0.9 * least) - 10**6
            middle = _megabytes((low + least) / 2) if least > 1.06 * low else below
            if not self.task.memory < middle < least:
                break
            found = planned(middle)
            if not found.excess:
                draft, least = found, middle
            elif middle == below:
                break
            else:
                low = middle
        for name in draft.parts[draft.tightest].nodes:
            node = self.graph.nodes[name]
            if node.op == "whole" or node.op not in RULES:
                return least, f"; {node} is evaluated in one piece"
        return least, ""

    def _kept(self, stored: set[str]) -> list[str]:
        """Those that are tensors between stages, in the order in which they are made."""
        kept = stored - self.reductions - set(self.task.outputs)
        return sorted(kept, key=self.graph.order.__getitem__)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Places of stored tensors, the fastest first."""
        if self.mode != "auto":
            return (self.first,)
        return ("device", "disk") if self.task.device == "cpu" else ("device", "cpu", "disk")

    @cached_property
    def tried(self) -> int:
        """Number of tensors that are looked at in each round."""
        return min(_TRIED, max(2, _LOOKED_AT // len(self.graph.nodes)))

    def _relieved(self, draft: Draft) -> Iterator[dict[str, str]]:
        """Choices that keep one tensor less, or in a larger place."""
        away = [n for n, place in draft.places.items() if place != "device"]
        held = [n for n in draft.live(draft.tightest) if n not in away]
        for names in (held, away):
            for name in sorted(names, key=draft.bytes, reverse=True)[: self.tried]:
                for place in self.order[self.order.index(draft.places[name]) + 1 :]:
                    yield {**draft.places, name: place}
                if name not in self.fixed:
                    yield {n: place for n, place in draft.places.items() if n != name}

    def _restored(self, draft: Draft) -> Iterator[dict[str, str]]:
        """Choices that keep one tensor more, of those that several stages compute."""
        stages = Counter(name for p in draft.parts for name in p.nodes)
        stored = {*draft.places, *self.task.outputs}
        again = [n for n, k in stages.items() if k > 1 and self.cuts.worth(n, stored)]
        for name in sorted(set(again) - stored, key=self.costs.seconds, reverse=True)[: self.tried]:
            places = {**draft.places, name: self.first}
            kept = self._kept({*places})
            for place in self.order:
                yield {n: place if n == name else places[n] for n in kept}

    def _promoted(self, draft: Draft) -> Draft:
        """The same tensors, each in a faster place where there is room for it."""
        for name in sorted(draft.places, key=draft.bytes, reverse=True):
            for place in self.order[: self.order.index(draft.places[name])]:
                other = self.draft({**draft.places, name: place})
                if not other.excess and other.seconds < draft.seconds:
                    draft = other
                    break
        return draft


def _megabytes(amount: float) -> int:
    """Round up to a whole number of megabytes."""
    return math.ceil(amount / 1e6) * 10**6


def _finished(draft: Draft) -> Plan:
    task, costs = draft.task, draft.costs
    every = {**draft.places, **dict.fromkeys(sorted(draft.reductions), "global")}
    return Plan(
        stages=tuple(
            Stage(
                outputs=p.outputs,
                reduces=p.reduces,
                inputs=p.inputs,
                nodes=p.nodes,
                domain=draft.domain(p),
                tile=c.tile,
                operations=c.operations,
                overhead=c.overhead,
                tile_bytes=c.tile_bytes,
                read=c.read,
                written=c.written,
                seconds=c.seconds,
                peak=draft.used(i),
            )
            for i, (p, c) in enumerate(zip(draft.parts, draft.chosen, strict=True))
        ),
        places={n: place for n, place in every.items() if n not in task.outputs},
        stored_bytes={n: draft.bytes(n) for n in every},
        weight_bytes=costs.weight_bytes,
        peak_memory=draft.peak,
        memory=task.memory,
        dtype=task.dtype,
        graph=task.graph.digest(),
        device=task.device,
        host_memory=task.host_memory,
        compressed=task.compressed,
    )
