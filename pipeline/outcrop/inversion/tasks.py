"""Batches of shots as tasks: in this process, or on the workers of a Dask cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.metadata
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from distributed import WorkerPlugin, as_completed, get_worker

from ..cluster import versions
from ..engine.memory import USUAL, keep_freed_memory
from ..errors import OutcropError

if TYPE_CHECKING:
    from distributed import Client

# A method of the job, and its arguments.
Task = tuple[Any, ...]
# What calls to a scheduler end with that is not there any more.
_GONE = (OSError, asyncio.CancelledError, concurrent.futures.CancelledError)
_LOST = "the scheduler was lost, and the same command goes on where it stopped"
# Tasks that a worker is given before the first of them is done.
_AHEAD = 2
# Seconds between looks at which workers there are.
_LOOK = 2.0


def all_versions() -> dict[str, str]:
    """Versions that must be the same on every worker."""
    return {**versions(), "deepwave": importlib.metadata.version("deepwave")}


class Job(WorkerPlugin):
    """What every worker needs once; its methods are the tasks, which carry little.

    A task may run twice, when a worker is lost after it and before it said so: it must do no harm.
    """

    def setup(self, worker: Any) -> None:
        """Prepare a worker: its share of the cores, one batch at a time."""
        keep_freed_memory(USUAL)
        torch.set_num_threads(max(1, worker.state.nthreads))
        self.turn = threading.Lock()


class Team:
    """Who does the tasks of a job: this process without a client, or the client's workers.

    A context: on a cluster the job reaches each worker once, on entering, and leaves on the way
    out.

    Parameters
    ----------
    job : Job
    client : distributed.Client or None
    """

    def __init__(self, job: Job, client: Client | None) -> None:
        self.job, self.client = job, client
        self.name = f"outcrop-inversion-{uuid.uuid4().hex[:16]}"
        self._count, self._looked = 0, 0.0
        self._resources: dict[str, int] | None = None

    def __enter__(self) -> Team:
        if self.client is not None:
            _check_versions(self.client)
            self.client.register_plugin(self.job, name=self.name)
        return self

    def __exit__(self, *error: object) -> None:
        if self.client is not None:
            with contextlib.suppress(*_GONE):
                self.client.unregister_worker_plugin(self.name)

    def run(self, tasks: Iterable[Task], done: Callable[[Task, Any], None] | None = None) -> None:
        """Do tasks, in any order, a few per worker at a time.

        Parameters
        ----------
        tasks : iterable of tuple
            Name of a method of the job, and its arguments.
        done : callable, optional
            Told of each task and what it returned, in this process.

        Raises
        ------
        OutcropError
            If one fails, has killed several workers, or the scheduler is lost.
        """
        told = done or (lambda task, result: None)
        if self.client is None:
            for task in tasks:
                told(task, getattr(self.job, task[0])(*task[1:]))
            return
        try:
            self._run(self.client, iter(tasks), told)
        except _GONE as error:
            if getattr(error, "errno", None) is not None:  # of a disk
                raise
            raise OutcropError(f"{type(error).__name__}: {_LOST}") from error

    def _run(
        self, client: Client, tasks: Iterator[Task], done: Callable[[Task, Any], None]
    ) -> None:
        given: dict[str, Task] = {}
        running = as_completed()
        more = True
        try:
            while True:
                while more and len(given) < _AHEAD * self._workers(client):
                    task = next(tasks, None)
                    if task is None:
                        more = False
                        break
                    key = f"{self.name}-{uuid.uuid4().hex}"
                    given[key] = task
                    running.add(
                        client.submit(
                            _call, self.name, *task,
                            key=key, pure=False, resources=self._resources,
                        )
                    )  # fmt: skip
                if running.is_empty():
                    if not more:
                        return
                    time.sleep(0.1)  # no worker is there, for the moment
                    continue
                future = next(running)
                task = given.pop(future.key)
                if future.status != "finished":
                    _raise(future)
                done(task, future.result())
                future.release()
        finally:
            with contextlib.suppress(*_GONE):
                client.cancel(list(running.futures))

    def _workers(self, client: Client) -> int:
        if time.monotonic() > self._looked + _LOOK or not self._count:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            on_gpu = sum("GPU" in facts["resources"] for facts in workers)
            self._count, self._looked = on_gpu or len(workers), time.monotonic()
            self._resources = {"GPU": 1} if on_gpu else None
        return self._count


def _call(job: str, method: str, *arguments: Any) -> Any:
    worker = get_worker()
    try:
        plugin = worker.plugins[job]
    except KeyError:
        raise OutcropError(
            f"worker {worker.address} could not load what it needs; does it have another version "
            "of outcrop?"
        ) from None
    with plugin.turn:
        return getattr(plugin, method)(*arguments)


def _check_versions(client: Client) -> None:
    ours = all_versions()
    for worker, found in client.run(all_versions, on_error="return").items():
        if not isinstance(found, dict):
            raise OutcropError(
                f"worker {worker}: cannot load outcrop or deepwave ({found}); install the same "
                'there: pip install "outcrop[inversion]"'
            )
        for package, version in ours.items():
            if found[package] != version:
                raise OutcropError(
                    f"worker {worker}: has {package} {found[package]}, here it is {version}; "
                    "install the same version there"
                )


def _raise(future: Any) -> None:
    """Say what went wrong with a task."""
    if future.status != "error":
        raise OutcropError(f"a batch of shots: {future.status}; {_LOST}")
    error = future.exception()
    if isinstance(error, OutcropError) or getattr(error, "errno", None) is not None:
        raise error
    raise OutcropError(
        f"a batch of shots: {type(error).__name__}: {error}; if workers were killed for lack of "
        "memory, pass a smaller memory (memory:)"
    ) from error
