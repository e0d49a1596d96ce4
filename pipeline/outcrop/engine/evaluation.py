"""A plan carried out between a survey and an unfinished prediction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import dask
import dask.array
import torch
from torch import Tensor

from ..errors import ResumeError
from ..graph import RULES, Graph, Reduce
from ..models.card import OutputCard
from ..models.normalization import Statistics
from ..output import Output
from ..planner import Plan
from .globals import GlobalStore
from .labelled import Framed
from .local import run_local
from .stores import Store
from .tiled_stores import make_store
from .whole import to_compute, to_dtype
from .zarr_stores import PredictionStore, SurveyStore, ZarrStore

if TYPE_CHECKING:
    from distributed import Client


@dataclass
class Evaluation:
    """What a prediction's tiles need: where they read, where they write, what is done.

    Attributes
    ----------
    graph, plan, weights
        Of the network.
    framed : Framed
        The survey on the network's grid.
    statistics : mapping
        Of the variables that go in.
    cards : mapping
        Of each output's channels.
    output : Output
        Where tiles are written and noted.
    folder : pathlib.Path
        For what is stored between stages on disk.
    device : torch.device
        What computes.
    compile : bool
        Compile what many tiles have in common.
    threshold : float, optional
        Of the masks that are written beside probabilities.
    client : distributed.Client, optional
        Evaluate on its workers.
    """

    graph: Graph
    plan: Plan
    weights: Mapping[str, Tensor]
    framed: Framed
    statistics: Mapping[str, Statistics]
    cards: Mapping[str, tuple[OutputCard | None, ...]]
    output: Output
    folder: Path
    device: torch.device
    compile: bool = False
    threshold: float | None = None
    client: Client | None = None

    def __post_init__(self) -> None:
        self.dtype = to_dtype(self.plan.dtype)
        self.kept = set(self.plan.places.values()) <= {"disk", "global"}
        self.writers = {name: stage for stage in self.plan.stages for name in stage.outputs}

    def run(self, advance: Callable[[float], None]) -> None:
        """Evaluate every tile that is not done.

        Parameters
        ----------
        advance : callable
            Told of the share of the whole that was just done.
        """
        weights = to_compute(self.weights, self.dtype, self.device)
        across = self.framed.across
        count = 1 if across is None else self.framed.volume.sizes[across]
        for section in range(count):
            self._section(None if across is None else section, count, weights, advance)
        if self.folder.exists():
            self.folder.rmdir()

    def _section(
        self,
        section: int | None,
        count: int,
        weights: Mapping[str, Tensor],
        advance: Callable[[float], None],
    ) -> None:
        """Evaluate one section, or the whole volume at once."""
        plan, prefix = self.plan, f"{section or 0}:"
        keys = (key.removeprefix(prefix) for key in self.output.finished if key.startswith(prefix))
        finished = {(int(i), int(n)) for i, n in (key.split(":") for key in keys)}
        total = sum(stage.count for stage in plan.stages)
        if not self.kept and len(finished) < total:
            finished = set()  # what lay in memory between stages is gone

        def on_tile(i: int, n: int) -> None:
            self.output.finish(f"{prefix}{i}:{n}")
            advance(plan.stages[i].operations / plan.operations / plan.stages[i].count / count)

        for i, _ in finished:
            advance(plan.stages[i].operations / plan.operations / plan.stages[i].count / count)
        if len(finished) == total:
            return
        _check_stored(plan, finished, self.folder)
        run = run_local
        if self.client is not None:
            from .dask_executor import run_dask

            run = partial(run_dask, self.client)
        make = partial(self._make, section)
        inputs = self._inputs(section)
        run(self.graph, plan, weights, inputs, make, finished, on_tile, self.device, self.compile)

    def _inputs(self, section: int | None) -> dict[str, Store]:
        cards = self.framed.card.inputs
        groups = [(card,) for card in cards] if self.framed.card.separate else [cards]
        return {
            name: SurveyStore(self.framed, group, self.statistics, self.dtype, section)
            for name, group in zip(self.graph.inputs, groups, strict=True)
        }

    def _make(self, section: int | None, name: str) -> Store:
        if name in self.cards:
            kept = [c.name if c else None for c in self.cards[name]]
            masks = [n and n.removesuffix("_probability") for n in kept]
            if self.threshold is None:
                masks = kept
            folder = self.output.path
            return PredictionStore(
                [folder / n if n else None for n in kept],
                self.framed,
                [folder / m if m and m != n else None for n, m in zip(kept, masks, strict=True)],
                self.threshold or 0.0,
                self.framed.card.activation,
                section,
            )
        graph, plan, writer = self.graph, self.plan, self.writers.get(name)
        node, stored = graph.nodes[name], graph.layouts[name].stored
        path = self.folder / name
        if isinstance(RULES[node.op], Reduce):
            shared = self.client is not None or self.kept
            return GlobalStore(node, self.dtype, self.device, path if shared else None)
        assert writer is not None
        kind = getattr(torch, node.dtype) if node.dtype else self.dtype
        if plan.places[name] == "disk":
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.client is not None:
            return ZarrStore(path, stored, graph.rank, kind, writer.tile)
        return make_store(
            plan.places[name],
            stored,
            graph.rank,
            kind,
            writer.tile,
            domain=writer.domain,
            device=self.device,
            compression=plan.compressed,
            path=path,
            keep=self.kept,
        )

    def bring_to_own_range(self) -> None:
        """Label the outputs whose card asks for it, so that they read as 0…1.

        What is stored stays as it is: `scale_factor` and `add_offset`, which xarray applies when
        it reads, come from the smallest and the largest value of live traces.
        """
        live = self.framed.volume.coords.get("live")
        for card in (c for cards in self.cards.values() for c in cards if c and c.own_range):
            array = self.output.array(card.name)
            values = dask.array.from_zarr(array)
            ends = [dask.array.nanmin(values), dask.array.nanmax(values)]
            if live is not None and not bool(live.all()):
                dims = self.framed.volume.dims
                traces = [d for d in dims if d in live.dims]
                mask = live.transpose(*traces).to_numpy()
                mask = mask[tuple(slice(None) if d in traces else None for d in dims)]
                ends = [
                    dask.array.where(mask, values, float("inf")).min(),
                    dask.array.where(mask, values, -float("inf")).max(),
                ]
            lowest, highest = (float(v) for v in dask.compute(*ends, scheduler="threads"))
            if highest > lowest:
                array.attrs["scale_factor"] = 1.0 / (highest - lowest)
                array.attrs["add_offset"] = -lowest / (highest - lowest)


def _check_stored(plan: Plan, finished: Collection[tuple[int, int]], folder: Path) -> None:
    """Refuse to go on if what finished tiles stored, and others will read, is gone."""
    done = Counter(i for i, _ in finished)
    for i, stage in enumerate(plan.stages):
        for name in (*stage.outputs, *stage.reduces):
            readers = (k for k, later in enumerate(plan.stages) if name in later.inputs)
            wanted = any(done[k] < plan.stages[k].count for k in readers)
            if done[i] and wanted and name in plan.places and not (folder / name).exists():
                raise ResumeError(
                    f"{folder / name}: gone, though the unfinished prediction needs it; put it "
                    "back, or begin anew with overwrite (--overwrite)"
                )
