"""What a Dask worker holds and does: the network once, jobs, and their tiles."""

from __future__ import annotations

import platform
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zarr
from distributed import WorkerPlugin, get_worker
from torch import Tensor

from ..errors import OutcropError
from ..graph import Box
from ..patience import refuses
from .chunks import held_chunks, keep_only
from .crew import versions
from .globals import GlobalStore
from .memory import (
    ALL,
    USUAL,
    Watch,
    keep_freed_memory,
    reset_highest_resident,
    return_freed_memory,
)
from .overlap import run_tiles
from .places import Places, Section
from .spent import Peak, Spent
from .stores import Store
from .tile import StageRunner

# What a tile warned of: message and category.
Warned = tuple[str, type[Warning]]


@dataclass
class Network(WorkerPlugin):
    """Weights, which several jobs share; and the worker's turn: one tile at a time, on its threads.

    Registered with the scheduler, so that a worker that joins later has it too.
    """

    name: str
    weights: Mapping[str, Tensor]
    device: torch.device
    versions: Mapping[str, str] = field(default_factory=versions)

    def setup(self, worker: Any) -> None:
        """Prepare a worker: its share of the cores."""
        keep_freed_memory(ALL)
        self.threads = max(1, worker.state.nthreads)
        torch.set_num_threads(self.threads)
        zarr.config.set({"threading.max_workers": self.threads})
        self.address = worker.address
        self.turn = threading.Lock()
        self.latest: tuple[str, int] | None = None
        reset_highest_resident()
        held = sum(w.nbytes for w in self.weights.values()) if self.device.type == "cpu" else 0
        self.peak = Peak(self.device, held)

    def teardown(self, worker: Any) -> None:
        """Leave the worker as it was."""
        keep_freed_memory(USUAL)


@dataclass
class Job(WorkerPlugin):
    """A plan over one survey: graph and plan, and where data lies.

    Registered likewise; a task then carries just the name of its job and some boxes.
    """

    name: str
    network: str
    places: Places
    compile: bool = False

    def setup(self, worker: Any) -> None:
        """Nothing is open yet."""
        self.stores: dict[Section, dict[str, Store]] = {}
        self.runners: dict[int, StageRunner] = {}
        self.watch: Watch | None = None

    def teardown(self, worker: Any) -> None:
        """Keep nothing of the survey."""
        self.places.chunks.clear()

    def run(
        self, network: Network, section: Section, stage: int, tiles: Sequence[tuple[int, Box]]
    ) -> tuple[str, list[Spent], list[Warned]]:
        """Evaluate some tiles on this worker; return its name, what they took and warned of."""
        if network.versions != versions():
            raise OutcropError(
                f"worker {network.address}: has {versions()}, the client {network.versions}; "
                "install the same versions there"
            )
        with network.turn, torch.inference_mode(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            torch.set_num_threads(network.threads)  # which OpenMP knows of each thread by itself
            if network.latest is None:
                network.weights = {k: v.to(network.device) for k, v in network.weights.items()}
            keep_only(self.places.chunks)  # no plan counts on those of another job
            if self.watch is None and self.places.device.type == "cpu":
                there = held_chunks() + sum(w.nbytes for w in network.weights.values())
                self.watch = Watch(self.places.plan.peak_memory, there)
            if network.latest != (self.name, stage):
                return_freed_memory()
                network.latest = self.name, stage
            if stage not in self.runners:
                places = self.places
                self.runners[stage] = StageRunner(
                    places.graph,
                    places.plan.stages[stage],
                    network.weights,
                    {},
                    places.device,
                    self.compile,
                    self.watch,
                )
            runner = self.runners[stage]
            names = (*runner.stage.inputs, *runner.stage.outputs, *runner.stage.reduces)
            runner.stores = {name: self._store(section, name) for name in names}
            spent = [found for _, found in run_tiles(runner, iter(tiles), network.peak)]
        ours = [w for w in caught if issubclass(w.category, UserWarning)]
        return network.address, spent, [(str(w.message), w.category) for w in ours]

    def merge(
        self, network: Network, section: Section, name: str, level: int, group: range
    ) -> None:
        """Merge a group of the states of a global value."""
        store = self._store(section, name)
        assert isinstance(store, GlobalStore)
        store.merge(level, group)

    def _store(self, section: Section, name: str) -> Store:
        """Return one that a task needs; others are not made, since they may be spent by now."""
        if section not in self.stores:
            check_seen(self.places)
            while len(self.stores) >= 4:
                del self.stores[next(iter(self.stores))]
            self.stores[section] = dict(self.places.inputs(section))
        stores = self.stores[section]
        if name not in stores:
            stores[name] = self.places.make(name, section)
        return stores[name]


def check_seen(places: Places) -> None:
    """Raise `OutcropError` unless what lies between stages is where this worker sees it."""
    # The client has made that folder; one that a worker made would be another, as on its own disk.
    if places.plan.places and isinstance(places.folder, Path) and not places.folder.exists():
        raise OutcropError(
            f"{places.folder}: is not to be seen from {platform.node()}; take a path that is the "
            "same on every machine"
        )


def call(network: str, job: str, method: str, *arguments: Any) -> Any:
    """Call a method of a job on this worker."""
    worker = get_worker()
    try:
        held = worker.plugins[job], worker.plugins[network]
    except KeyError:
        raise OutcropError(
            f"worker {worker.address} could not load what it needs; does it have another version "
            "of outcrop?"
        ) from None
    try:
        return getattr(held[0], method)(held[1], *arguments)
    except Exception as error:
        if refuses(error):
            error.worker = worker.address  # type: ignore[attr-defined]
        raise
