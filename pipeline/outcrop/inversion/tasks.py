"""Batches of shots as tasks: in this process, or on the workers of a Dask cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from distributed import WorkerPlugin, get_worker

from ..engine.crew import check_versions
from ..engine.memory import USUAL, keep_freed_memory
from ..errors import OutcropError
from ..tasks import Window, forget_the_dead, name_of_plugin, register, unregister

if TYPE_CHECKING:
    from distributed import Client

# A method of the job, and its arguments.
Task = tuple[Any, ...]


class Job(WorkerPlugin):
    """What every worker needs once; its methods are the tasks, which carry little.

    A task may run twice, when a worker is lost after it and before it said so: it must do no harm.
    """

    def setup(self, worker: Any) -> None:
        """Prepare a worker: its share of the cores, one batch at a time."""
        keep_freed_memory(USUAL)
        self.threads = max(1, worker.state.nthreads)
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
        self.name = "" if client is None else name_of_plugin(client)

    def __enter__(self) -> Team:
        if self.client is not None:
            check_versions(self.client, "deepwave")
            forget_the_dead(self.client)
            register(self.client, self.name, self.job)
        return self

    def __exit__(self, *error: object) -> None:
        if self.client is not None:
            unregister(self.client, self.name)

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
        todo = iter(tasks)
        with Window(self.client) as window:
            following: Task | None = next(todo, None)
            while following is not None or window:
                while following is not None and window.has_room():
                    window.submit(self.name, following, _call, self.name, *following)
                    following = next(todo, None)
                if finished := window.take(lambda task: f"a batch of shots ({task[0]})"):
                    told(*finished)


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
        torch.set_num_threads(plugin.threads)  # which OpenMP knows of each thread by itself
        return getattr(plugin, method)(*arguments)
