"""The Dask executor: tiles as tasks on worker processes."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import OutcropError
from ..graph import Box
from ..planner.frames import Frames
from ..storage import goes_on, naming_refusal
from ..tasks import (
    AHEAD,
    Window,
    forget_the_dead,
    gather,
    name_of_plugin,
    naming_loss,
    register,
    unregister,
)
from .globals import GlobalStore, to_merge
from .places import Places, Section
from .schedule import Schedule
from .spent import Spent
from .worker import Job, Network, call

if TYPE_CHECKING:
    from distributed import Client

    from .evaluation import Evaluation

# Tiles that go as one task, in which reading and writing overlap with computing: of so many seconds
# in all, but a few of longer ones too; never more than so many.
_TASK, _LONG_TASK, _FEW, _MOST = 4.0, 60.0, 4, 256


def run_dask(client: Client, evaluations: Iterable[Evaluation], several: bool = False) -> None:
    """Evaluate what is left of some predictions on the workers of `client`.

    A tile starts as soon as the tiles that it reads are written. A few tasks per worker are
    submitted at a time, so that neither the client nor the scheduler grows with the number of
    tiles. A worker that dies loses its running task alone: Dask runs it again elsewhere.

    Parameters
    ----------
    client : distributed.Client
    evaluations : iterable of Evaluation
        Whose places are reachable from every worker. The next one is asked for when the tiles
        of those before do not keep the workers busy.
    several : bool
        Whether there may be more than one, so that errors have to say which.

    Raises
    ------
    OutcropError
        If a worker does not suit, if the same tile has killed several workers, or if the
        scheduler is lost; once those before it are whole, if an evaluation cannot be begun.
    """
    forget_the_dead(client)
    run = _Run(client, evaluations, several)
    try:
        with run.window:
            run.all()
    finally:
        for name in run.registered:
            unregister(client, name)


class _Work:
    """The tiles of one evaluation in one volume or section."""

    def __init__(
        self, task: _Begun, section: Section, finished: Collection[tuple[int, int]]
    ) -> None:
        self.task, self.section = task, section
        self.places, self.plan = task.job.places, task.job.places.plan
        written = (n for s in self.plan.stages for n in (*s.outputs, *s.reduces))
        self.stores = {name: self.places.make(name, section) for name in written}
        self.frames: dict[int, Frames] = {}
        self.schedule = Schedule(self.plan, self._reads, finished)

    def _reads(self, i: int, tile: Box) -> Mapping[str, Box]:
        stage = self.plan.stages[i]
        if not any(name in self.plan.places for name in stage.inputs):
            return {}
        if i not in self.frames:
            self.frames[i] = Frames(self.places.graph, stage)
        return self.frames[i].reads(tile)

    def complete(self, i: int) -> None:
        """Free what stage `i` was the last to need."""
        self.frames.pop(i, None)
        spent = self.schedule.spent(i) & self.plan.places.keys() & self.stores.keys()
        if spent:
            self.task.evaluation.output.flush()
        for name in spent:
            self.stores.pop(name).remove()

    @property
    def is_done(self) -> bool:
        """Whether every tile is written."""
        return all(map(self.schedule.is_written, range(len(self.plan.stages))))


@dataclass
class _Begun:
    """An evaluation that is begun: its names on the workers, and how long its tiles take."""

    evaluation: Evaluation
    job: Job
    seconds: dict[int, float]
    left: int  # volumes and sections

    def batch(self, stage: int) -> int:
        """How many tiles of a stage go as one task."""
        taken = self.seconds.get(stage)
        if taken is None:
            return 1
        short, long = (int(most / max(taken, 1e-9)) for most in (_TASK, _LONG_TASK))
        return max(1, min(short, _MOST), min(long, _FEW))


class _Given(NamedTuple):
    """Tiles of one stage that were given to a worker as one task, and when."""

    work: _Work
    stage: int
    numbers: list[int]
    time: float

    def __str__(self) -> str:
        first, last, section = self.numbers[0], self.numbers[-1], self.work.section
        stage = f"{'' if section is None else f'volume {section}, '}stage {self.stage + 1}"
        if len(self.numbers) > 1 and self.numbers == list(range(first, last + 1)):
            return f"{stage}, tiles {first} to {last}"
        return f"{stage}, tile {', '.join(map(str, self.numbers))}"


class _Run:
    """Evaluations under way."""

    def __init__(self, client: Client, evaluations: Iterable[Evaluation], several: bool) -> None:
        self.client = client
        self.registered: list[str] = []
        self.networks: dict[str, str] = {}
        self.waiting = self._begun(evaluations)
        self.more = True  # evaluations that are not begun
        self.failed: Exception | None = None  # what kept one from being begun
        self.open: list[_Work] = []
        self.window = Window(client, self._note_workers)
        self.lost: deque[Mapping[str, Any]] = deque()
        self.several = several
        # Of each worker, how many seconds its clock is behind, at least and at most.
        self.clocks: dict[str, tuple[float, float]] = {}

    def all(self) -> None:
        """Run every tile."""
        self.client.subscribe_topic("all", self._hear)
        try:
            while True:
                self._submit()
                if not (self.window or self.open or self.more):
                    break
                done = self._next_done()
                while self.lost:
                    self._lose(self.lost.popleft())
                if done is not None:
                    self._take_in(*done)
            if self.failed is not None:
                raise self.failed
        finally:
            with contextlib.suppress(Exception):  # of a client that is closed, all kinds
                self.client.unsubscribe_topic("all")

    def _next_done(self) -> tuple[_Given, Any] | None:
        """As `Window.take`; an error says which output it is about."""
        failed: list[_Given] = []

        def where(given: _Given) -> str:
            failed.append(given)
            return str(given)

        try:
            return self.window.take(where)
        except Exception as error:
            if not failed:
                raise
            output = failed[0].work.task.evaluation.output.path
            if self.several and isinstance(error, OutcropError):
                raise type(error)(f"{output}: {error}") from error
            with naming_refusal(output, goes_on()):
                raise

    def _begun(self, evaluations: Iterable[Evaluation]) -> Iterator[_Work]:
        """Make one evaluation after the other known to the workers; yield its volumes."""
        for evaluation in evaluations:
            places = evaluation.places
            # How outputs are nested concerns the caller alone.
            places = replace(places, graph=replace(places.graph, structure=None))
            weights = evaluation.weights_on("cpu")  # the client of a cluster may have no GPU
            job = Job(
                name_of_plugin(self.client),
                self._network(weights, places),
                places,
                evaluation.compile,
            )
            self._register(job)
            todo = evaluation.todo()
            task = _Begun(evaluation, job, {}, len(todo))
            evaluation.note_workers(self.window.workers())
            for section, finished in todo.items():
                yield _Work(task, section, finished)
            if not todo:
                evaluation.finish()

    def _network(self, weights: Mapping[str, Tensor], places: Places) -> str:
        """Send weights, unless those are there already; return their name on the workers."""
        sha = hashlib.sha256(repr((str(places.device), sorted(weights))).encode())
        for _, value in sorted(weights.items()):
            sha.update(repr((value.dtype, value.shape)).encode())
            sha.update(value.detach().flatten().view(torch.uint8).numpy().tobytes())
        digest = sha.hexdigest()
        if digest not in self.networks:
            self.networks[digest] = name_of_plugin(self.client)
            self._register(Network(self.networks[digest], dict(weights), places.device))
        return self.networks[digest]

    def _register(self, plugin: Job | Network) -> None:
        self.registered.append(plugin.name)
        register(self.client, plugin.name, plugin)

    def _submit(self) -> None:
        """Submit tiles while workers have room and a tile can run."""
        while self.window.has_room() and (found := self._take()):
            work, i, tiles = found
            job, given = work.task.job, _Given(work, i, [n for n, _ in tiles], time.time())
            task = job.network, job.name, "run", work.section, i, tiles
            self.window.submit(job.name, given, call, *task)

    def _take(self) -> tuple[_Work, int, list[tuple[int, Box]]] | None:
        """Some tiles of one stage that can run now."""
        for work in self.open:
            if found := self._some(work):
                return found
        for work in iter(self._next, None):
            self.open.append(work)
            for i in range(len(work.plan.stages)):
                if work.schedule.is_written(i):
                    self._complete(work, i)
            if work in self.open and (found := self._some(work)):
                return found
        self.more = False
        return None

    def _next(self) -> _Work | None:
        """Return what is begun next; None after the last, or where that fails."""
        try:
            return next(self.waiting, None)
        except Exception as error:  # those that are under way are finished first
            self.failed = error
            return None

    def _some(self, work: _Work) -> tuple[_Work, int, list[tuple[int, Box]]] | None:
        first = work.schedule.take()
        if first is None:
            return None
        i, n, tile = first
        tiles = [(n, tile)]
        # Towards the end of a stage smaller tasks, so that all workers have some.
        share = work.schedule.left(i) // (2 * AHEAD * max(1, self.window.workers()))
        for _ in range(min(work.task.batch(i), share) - 1):
            following = work.schedule.take(i)
            if following is None:
                break
            tiles.append(following[1:])
        return work, i, tiles

    def _note_workers(self, count: int) -> None:
        for evaluation in self._evaluations():
            evaluation.note_workers(count)

    def _evaluations(self) -> list[Evaluation]:
        return list({id(w.task): w.task.evaluation for w in self.open}.values())

    def _hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Note, in a thread of Dask's, that a worker was lost."""
        if event[1].get("action") == "remove-worker" and not event[1].get("expected"):
            self.lost.append(event[1])

    def _take_in(self, given: _Given, result: Any) -> None:
        """Note tiles that are written."""
        work, i, numbers, _ = given
        worker, spent, warned = result
        spent = self._by_our_clock(worker, given.time, spent)
        evaluation, task = work.task.evaluation, work.task
        for message, category in warned:
            place = f"{given}: {message}"
            evaluation.warned(place, category)
            warnings.warn(place, category, stacklevel=2)
        taken = sum(s.stop - s.start for s in spent) / len(spent)
        task.seconds[i] = taken if i not in task.seconds else (3 * task.seconds[i] + taken) / 4
        for n, each in zip(numbers, spent, strict=True):
            evaluation.on_tile(work.section, i, n, each, worker)
            work.schedule.write(i, n)
        if work.schedule.is_written(i):
            self._complete(work, i)

    def _by_our_clock(self, worker: str, given: float, spent: list[Spent]) -> list[Spent]:
        """Shift the times of a worker whose clock cannot be right, by as little as it takes.

        What it does lies between when a task is given to it and when the result is here.
        """
        least, most = self.clocks.get(worker, (-math.inf, math.inf))
        least, most = max(least, given - spent[0].start), min(most, time.time() - spent[-1].stop)
        self.clocks[worker] = least, most
        behind = min(max(0.0, least), most)
        return [s._replace(start=s.start + behind, stop=s.stop + behind) for s in spent]

    def _lose(self, event: Mapping[str, Any]) -> None:
        """Tell whose tiles were on a worker that was lost."""
        self.window.look_again()
        again: dict[int, int] = {}
        for key in (*event["processing-tasks"], *event["lost-computed-tasks"]):
            if key in self.window.given:
                given: _Given = self.window.given[key]
                task = id(given.work.task)
                again[task] = again.get(task, 0) + len(given.numbers)
        for work in {id(w.task): w for w in self.open}.values():
            count = again.get(id(work.task), 0)
            message = f"worker {event['worker']} was lost; {count} tiles are evaluated again"
            work.task.evaluation.retry(message, count)

    def _complete(self, work: _Work, i: int) -> None:
        """Merge the global values of a stage that is written, and free what is not read again."""
        stage, job = work.plan.stages[i], work.task.job
        for name in to_merge(work.plan, i, work.schedule.is_written):
            store = work.stores[name]
            assert isinstance(store, GlobalStore)
            for level, groups in store.levels(stage.count):
                merges = [
                    self.client.submit(
                        call, job.network, job.name, "merge", work.section, name, level, group,
                        pure=False,
                    )
                    for group in groups
                ]  # fmt: skip
                with naming_loss(f"global values of stage {i + 1}"):
                    gather(self.client, merges)
            store.finish(stage.count)
        work.schedule.merge(i)
        work.complete(i)
        work.task.evaluation.on_stage(work.section, i)
        if work.is_done:
            self.open.remove(work)
            work.task.left -= 1
            if not work.task.left:
                work.task.evaluation.finish()
                self.registered.remove(job.name)
                unregister(self.client, job.name)
