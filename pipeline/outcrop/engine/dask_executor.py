"""The Dask executor: tiles as tasks on worker processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from distributed import WorkerPlugin, as_completed, get_worker
from torch import Tensor

from ..cluster import check_workers, versions
from ..errors import OutcropError
from ..graph import Box
from ..patience import refuses
from .globals import GlobalStore
from .memory import ALL, USUAL, keep_freed_memory, return_freed_memory
from .places import Places
from .schedule import Schedule
from .stores import Store
from .tile import StageRunner

if TYPE_CHECKING:
    from distributed import Client

# Of a network of sections: which one; None for one that takes the whole volume.
Section = int | None
# Called with a section and the index of a stage and of a tile in it, when that tile is written.
OnTile = Callable[[Section, int, int], None]
# What calls to a scheduler end with that is not there any more.
_GONE = (OSError, asyncio.CancelledError, concurrent.futures.CancelledError)
_LOST = "the scheduler was lost, and the same command goes on where it stopped"
# What a tile warned of: message and category.
Warned = tuple[str, type[Warning]]
# Tasks that a worker is given before the first of them is done.
_AHEAD = 2
# Seconds between looks at which workers there are.
_LOOK = 2.0


@dataclass
class Job(WorkerPlugin):
    """What every worker needs once: the graph, the plan, the weights, and where data lies.

    Registered with the scheduler, so that a worker that joins later has it too; a task then
    carries just the name of its job and a box.
    """

    name: str
    places: Places
    weights: Mapping[str, Tensor]
    compile: bool = False
    versions: Mapping[str, str] = field(default_factory=versions)

    def setup(self, worker: Any) -> None:
        """Prepare a worker: its share of the cores, one tile at a time."""
        keep_freed_memory(ALL)
        torch.set_num_threads(max(1, worker.state.nthreads))
        self.turn = threading.Lock()
        self.stores: dict[Section, dict[str, Store]] = {}
        self.runners: dict[int, StageRunner] = {}
        self.latest: int | None = None

    def teardown(self, worker: Any) -> None:
        """Leave the worker as it was."""
        keep_freed_memory(USUAL)

    def run(self, section: Section, stage: int, number: int, tile: Box) -> list[Warned]:
        """Evaluate one tile on this worker; return what it warned of."""
        if self.versions != versions():
            raise OutcropError(f"this worker has {versions()}, the client {dict(self.versions)}")
        with self.turn, torch.inference_mode(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            if stage != self.latest:
                return_freed_memory()
                self.latest = stage
            if stage not in self.runners:
                places, device = self.places, self.places.device
                if not self.runners:
                    self.weights = {k: v.to(device) for k, v in self.weights.items()}
                self.runners[stage] = StageRunner(
                    places.graph,
                    places.plan.stages[stage],
                    self.weights,
                    {},
                    device,
                    self.compile,
                )
            runner = self.runners[stage]
            runner.stores = self._stores(section)
            runner.run(number, tile)
        ours = [w for w in caught if issubclass(w.category, UserWarning)]
        return [(str(w.message), w.category) for w in ours]

    def merge(self, section: Section, name: str, level: int, group: int) -> None:
        """Merge a group of the states of a global value."""
        store = self._stores(section)[name]
        assert isinstance(store, GlobalStore)
        store.merge(level, group)

    def _stores(self, section: Section) -> dict[str, Store]:
        if section not in self.stores:
            while len(self.stores) >= 4:
                del self.stores[next(iter(self.stores))]
            self.stores[section] = all_stores(self.places, section)
        return self.stores[section]


def all_stores(places: Places, section: Section) -> dict[str, Store]:
    """Stores of all that the tiles of a plan read and write."""
    written = (name for s in places.plan.stages for name in (*s.outputs, *s.reduces))
    return {**places.inputs(section), **{name: places.make(name, section) for name in written}}


def _call(job: str, method: str, *arguments: Any) -> Any:
    worker = get_worker()
    try:
        plugin = worker.plugins[job]
    except KeyError:
        raise OutcropError(
            f"worker {worker.address} could not load what it needs; does it have another version "
            "of outcrop?"
        ) from None
    return getattr(plugin, method)(*arguments)


def run_dask(
    client: Client,
    places: Places,
    weights: Mapping[str, Tensor],
    todo: Mapping[Section, Collection[tuple[int, int]]],
    on_tile: OnTile | None = None,
    compile: bool = False,
) -> None:
    """Run a plan on the workers of `client`.

    A tile starts as soon as the tiles that it reads are written. A few tasks per worker are
    submitted at a time, so that neither the client nor the scheduler grows with the number of
    tiles. A worker that dies loses its running tile alone: Dask runs it again elsewhere.

    Parameters
    ----------
    client : distributed.Client
    places : Places
        Reachable from every worker.
    weights : mapping of str to torch.Tensor
    todo : mapping of section to collection of (stage, tile)
        For each section, or None for the whole volume, the tiles that an earlier run has written.
    on_tile : callable, optional
        Told of every tile that is written.
    compile : bool
        Compile what many tiles have in common.

    Raises
    ------
    OutcropError
        If a worker does not suit, if the same tile has killed several workers, or if the
        scheduler is lost.
    """
    check_workers(client, places.plan)
    # How outputs are nested concerns the caller alone.
    places = replace(places, graph=replace(places.graph, structure=None))
    name = f"outcrop-{places.plan.digest()[:16]}-{id(places):x}"
    job = Job(name, places, dict(weights), compile)
    client.register_plugin(job, name=name)
    try:
        _Run(client, job, todo, on_tile).all()
    except _GONE as error:
        if getattr(error, "errno", None) is not None:  # of a disk
            raise
        raise OutcropError(f"{type(error).__name__}: {_LOST}") from error
    finally:
        with contextlib.suppress(*_GONE):
            client.unregister_worker_plugin(name)


class _Work:
    """The tiles of one section."""

    def __init__(self, job: Job, section: Section, finished: Collection[tuple[int, int]]) -> None:
        self.job, self.section, self.plan = job, section, job.places.plan
        self.stores = all_stores(job.places, section)
        self.runners: dict[int, StageRunner] = {}
        self.schedule = Schedule(self.plan, self._reads, finished)

    def _reads(self, i: int, tile: Box) -> Mapping[str, Box]:
        stage, places = self.plan.stages[i], self.job.places
        if not any(name in self.plan.places for name in stage.inputs):
            return {}
        if i not in self.runners:
            self.runners[i] = StageRunner(places.graph, stage, self.job.weights, {})
        return self.runners[i].reads(tile)

    def complete(self, i: int) -> None:
        """Free what stage `i` was the last to need."""
        self.runners.pop(i, None)
        for name in self.schedule.spent(i) & self.plan.places.keys() & self.stores.keys():
            self.stores.pop(name).remove()


class _Run:
    """A job under way."""

    def __init__(
        self,
        client: Client,
        job: Job,
        todo: Mapping[Section, Collection[tuple[int, int]]],
        on_tile: OnTile | None,
    ) -> None:
        self.client, self.job, self.on_tile = client, job, on_tile
        self.stages = job.places.plan.stages
        self.waiting = iter(todo.items())
        self.open: dict[Section, _Work] = {}
        self.given: dict[str, tuple[Section, int, int]] = {}
        self.resources: dict[str, int] | None = None
        self.count, self.looked = 0, 0.0

    def all(self) -> None:
        """Run every tile."""
        running = as_completed()
        try:
            while True:
                for future in self._submitted():
                    running.add(future)
                if running.is_empty():
                    if not self.open:
                        return
                    time.sleep(0.1)  # no worker is there, for the moment
                    continue
                self._take_in(next(running))
        finally:
            with contextlib.suppress(*_GONE):
                self.client.cancel(list(running.futures))

    def _submitted(self) -> Iterator[Any]:
        """Submit tiles while workers have room and a tile can run."""
        while len(self.given) < _AHEAD * self._workers() and (found := self._take()):
            section, i, n, tile = found
            key = f"{self.job.name}-{section or 0}-{i}-{n}"
            self.given[key] = section, i, n
            yield self.client.submit(
                _call, self.job.name, "run", section, i, n, tile,
                key=key, pure=False, resources=self.resources,
            )  # fmt: skip

    def _take(self) -> tuple[Section, int, int, Box] | None:
        for section, work in self.open.items():
            found = work.schedule.take()
            if found is not None:
                return section, *found
        for section, finished in self.waiting:
            work = self.open[section] = _Work(self.job, section, finished)
            for i in range(len(self.stages)):
                if work.schedule.is_written(i):
                    self._complete(work, i)
            found = work.schedule.take()
            if found is not None:
                return section, *found
        return None

    def _workers(self) -> int:
        """Number of workers there are: those with a GPU, where any has one."""
        if time.monotonic() > self.looked + _LOOK or not self.count:
            workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
            on_gpu = sum("GPU" in facts["resources"] for facts in workers)
            self.count, self.looked = on_gpu or len(workers), time.monotonic()
            self.resources = {"GPU": 1} if on_gpu else None
        return self.count

    def _take_in(self, future: Any) -> None:
        """Note a tile that is written."""
        section, i, n = self.given.pop(future.key)
        if future.status != "finished":
            _raise(future, i, n)
        for message, category in future.result():
            warnings.warn(f"stage {i + 1}, tile {n}: {message}", category, stacklevel=2)
        future.release()
        if self.on_tile is not None:
            self.on_tile(section, i, n)
        work = self.open[section]
        work.schedule.write(i, n)
        if work.schedule.is_written(i):
            self._complete(work, i)

    def _complete(self, work: _Work, i: int) -> None:
        """Merge the global values of a stage that is written, and free what is not read again."""
        for name in self.stages[i].reduces:
            store = work.stores[name]
            assert isinstance(store, GlobalStore)
            for level, groups in store.levels(self.stages[i].count):
                self.client.gather(
                    [
                        self.client.submit(
                            _call, self.job.name, "merge", work.section, name, level, group,
                            pure=False,
                        )
                        for group in groups
                    ]
                )  # fmt: skip
            store.finish()
        work.schedule.merge(i)
        work.complete(i)
        if all(work.schedule.is_written(k) for k in range(len(self.stages))):
            del self.open[work.section]


def _raise(future: Any, i: int, n: int) -> None:
    """Say what went wrong with a tile."""
    if future.status != "error":
        raise OutcropError(f"stage {i + 1}, tile {n}: {future.status}; {_LOST}")
    error = future.exception()
    of_store = refuses(error) and not isinstance(error, OSError)
    if isinstance(error, OutcropError) or getattr(error, "errno", None) is not None or of_store:
        raise error
    raise OutcropError(
        f"stage {i + 1}, tile {n}: {type(error).__name__}: {error}; "
        "if workers were killed for lack of memory, pass a smaller memory (--memory)"
    ) from error
