"""A plan carried out between a survey and an unfinished prediction."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import dask
import dask.array
import torch
from torch import Tensor

from ..errors import ResumeError
from ..output import Output
from ..storage import remove
from .local import run_local
from .places import Places
from .whole import to_compute, to_dtype

if TYPE_CHECKING:
    from distributed import Client


@dataclass
class Evaluation:
    """A prediction under way: what is done, and what computes the rest.

    Attributes
    ----------
    places : Places
        Where tiles read and write.
    weights : mapping
        Of the network.
    output : Output
        Where tiles are noted.
    compile : bool
        Compile what many tiles have in common.
    client : distributed.Client, optional
        Evaluate on its workers.
    """

    places: Places
    weights: Mapping[str, Tensor]
    output: Output
    compile: bool = False
    client: Client | None = None

    def run(self, advance: Callable[[float], None]) -> None:
        """Evaluate every tile that is not done.

        Parameters
        ----------
        advance : callable
            Told of the share of the whole that was just done.
        """
        places = self.places
        graph, plan, device = places.graph, places.plan, places.device
        # The client of a cluster may have no GPU.
        here = torch.device("cpu") if self.client is not None else device
        weights = to_compute(self.weights, to_dtype(plan.dtype), here)
        sections = [None] if places.sections is None else list(range(places.sections))
        total = sum(stage.count for stage in plan.stages)

        def on_tile(section: int | None, i: int, n: int, new: bool = True) -> None:
            if new:
                self.output.finish(f"{section or 0}:{i}:{n}")
            stage = plan.stages[i]
            advance(stage.operations / plan.operations / stage.count / len(sections))

        finished: dict[int | None, set[tuple[int, int]]] = defaultdict(set)
        for key in self.output.finished:
            first, i, n = map(int, key.split(":"))
            finished[None if places.sections is None else first].add((i, n))
        for section, tiles in finished.items():
            if not places.kept and len(tiles) < total:
                tiles.clear()  # what lay in memory between stages is gone
            for i, n in tiles:
                on_tile(section, i, n, new=False)
            if len(tiles) < total:
                self._check_stored(section, tiles)
        todo = {s: finished[s] for s in sections if len(finished[s]) < total}
        if self.client is not None:
            from .dask_executor import run_dask

            run_dask(self.client, places, weights, todo, on_tile, self.compile)
        else:
            for section, tiles in todo.items():
                run_local(
                    graph,
                    plan,
                    weights,
                    places.inputs(section),
                    partial(places.make, section=section),
                    tiles,
                    partial(on_tile, section),
                    device,
                    self.compile,
                )
        remove(places.folder)

    def _check_stored(self, section: int | None, finished: set[tuple[int, int]]) -> None:
        """Refuse to go on if what finished tiles stored, and others will read, is gone."""
        plan, done = self.places.plan, Counter(i for i, _ in finished)
        for i, stage in enumerate(plan.stages):
            for name in (*stage.outputs, *stage.reduces):
                readers = (k for k, later in enumerate(plan.stages) if name in later.inputs)
                wanted = any(done[k] < plan.stages[k].count for k in readers)
                path = self.places.path(name, section)
                if done[i] and wanted and name in plan.places and not path.exists():
                    raise ResumeError(
                        f"{path}: gone, though the unfinished prediction needs it; put it "
                        "back, or begin anew with overwrite (--overwrite)"
                    )

    def bring_to_own_range(self) -> None:
        """Label the outputs whose card asks for it, so that they read as 0…1.

        What is stored stays as it is: `scale_factor` and `add_offset`, which xarray applies when
        it reads, come from the smallest and the largest value of live traces.
        """
        volume = self.places.framed.volume
        live = volume.coords.get("live")
        for card in (c for cards in self.places.cards.values() for c in cards if c and c.own_range):
            array = self.output.array(card.name)
            values = dask.array.from_zarr(array)
            ends = [dask.array.nanmin(values), dask.array.nanmax(values)]
            if live is not None and not bool(live.all()):
                traces = [d for d in volume.dims if d in live.dims]
                mask = live.transpose(*traces).to_numpy()
                mask = mask[tuple(slice(None) if d in traces else None for d in volume.dims)]
                ends = [
                    dask.array.where(mask, values, float("inf")).min(),
                    dask.array.where(mask, values, -float("inf")).max(),
                ]
            lowest, highest = (float(v) for v in dask.compute(*ends, scheduler="threads"))
            if highest > lowest:
                array.attrs["scale_factor"] = 1.0 / (highest - lowest)
                array.attrs["add_offset"] = -lowest / (highest - lowest)
