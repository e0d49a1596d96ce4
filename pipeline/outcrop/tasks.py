"""Tasks on the workers of a cluster: a few per worker under way at a time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from distributed import WorkerPlugin, as_completed, wait
from distributed.scheduler import KilledWorker

from .cluster import workers_there
from .errors import OutcropError
from .patience import kind, refuses
from .storage import goes_on

if TYPE_CHECKING:
    from distributed import Client, Future

# What calls to a scheduler end with that is not there any more.
_GONE = (OSError, asyncio.CancelledError, concurrent.futures.CancelledError)
_LOST = "the scheduler was lost, and the same command goes on where it stopped"
_PAUSED = (
    "no worker takes tasks, since each holds more memory than Dask lets it: waiting; "
    "start workers with a higher memory limit"
)
_MEMORY = "if workers were killed for lack of memory, pass a smaller memory (--memory)"
# Tasks that a worker is given before the first of them is done.
AHEAD = 2
# Seconds between looks at which workers there are.
_LOOK = 2.0
# Seconds that workers get to end what they do when nobody wants it any more.
_END = 30.0
# How often workers are told of a plugin when one is lost meanwhile.
_ATTEMPTS = 5


def name_of_plugin(client: Client) -> str:
    """Return a new name for a plugin of workers, which says whose it is."""
    return f"outcrop/{client.id}/{uuid.uuid4().hex}"


def register(client: Client, name: str, plugin: WorkerPlugin) -> None:
    """Have a plugin on all workers, those that join later too.

    Raises
    ------
    OutcropError
        If workers are lost again and again meanwhile.
    """
    for _ in range(_ATTEMPTS):
        try:
            client.register_plugin(plugin, name=name)
            return
        except OSError as error:  # of a worker that is about to be missed, or the scheduler
            if client.status != "running":
                raise
            lost = error
            time.sleep(_LOOK)
    raise OutcropError(f"workers are lost again and again ({lost}); look at their logs")


def unregister(client: Client, name: str) -> None:
    """Take a plugin from all workers; wait for none that gives no answer."""
    with quietly():
        client.sync(client._unregister_worker_plugin, name, callback_timeout=_LOOK)


def forget_the_dead(client: Client) -> None:
    """Take from the workers what clients that were killed have left there: weights, chunks."""
    with quietly():
        left = client.run_on_scheduler(  # as a lambda, since the scheduler may have no outcrop
            lambda dask_scheduler: [
                name
                for name in dask_scheduler.worker_plugins
                if name.startswith("outcrop/") and name.split("/")[1] not in dask_scheduler.clients
            ]
        )
        for name in left:
            unregister(client, name)


class Workers:
    """The workers of a cluster that get tasks: those with a GPU, where any has one.

    Parameters
    ----------
    client : distributed.Client

    Attributes
    ----------
    count : int
        Number of them at the last look.
    resources : dict or None
        What their tasks ask for.
    """

    def __init__(self, client: Client) -> None:
        self.client, self.count = client, 0
        self.resources: dict[str, int] | None = None
        self._looked, self._warned = 0.0, False

    def look(self) -> int:
        """Count them, if that is some time ago; warn once if none is there or all are paused."""
        if time.monotonic() > self._looked + _LOOK or not self.count:
            found = list(workers_there(self.client).values())
            on_gpu = [facts for facts in found if "GPU" in facts["resources"]]
            if on_gpu or self.resources:  # others do not take over from those that had one
                found, self.resources = on_gpu, {"GPU": 1}
            self.count, self._looked = len(found), time.monotonic()
            idle = all(is_paused(facts) for facts in found)
            if idle and not self._warned:
                message = _PAUSED if found else "no worker is there: waiting for one"
                warnings.warn(message, stacklevel=2)
            self._warned = idle
        return self.count

    def look_again(self) -> None:
        """Count them anew at the next look, since one was lost."""
        self._looked = 0.0


def is_paused(facts: Mapping[str, Any]) -> bool:
    """Whether a worker, by what its scheduler says of it, is in no task and takes none."""
    return facts["status"] == "paused" and not facts["metrics"]["task_counts"].get("executing")


def gather(client: Client, tasks: Sequence[Future]) -> list[Any]:
    """Return the results of tasks, with a warning while no worker takes any."""
    wait_for(client, tasks)
    return client.gather(list(tasks))


def wait_for(client: Client, tasks: Sequence[Future]) -> None:
    """Wait for tasks, with a warning while no worker takes any."""
    workers = Workers(client)
    while not all(task.done() for task in tasks):
        with contextlib.suppress(TimeoutError):
            wait(tasks, timeout=_LOOK)
            break
        workers.look()


class Window:
    """Tasks under way, so few that neither client nor scheduler grows with the number of all.

    A context: leaving it cancels what is under way, waits a while for tasks that a worker is in the
    middle of, and a scheduler that is lost meanwhile is an `OutcropError`.

    Parameters
    ----------
    client : distributed.Client
    on_count : callable, optional
        Told of the number of workers whenever it is another.
    """

    def __init__(self, client: Client, on_count: Callable[[int], None] | None = None) -> None:
        self.client, self.on_count = client, on_count
        self.given: dict[Any, Any] = {}
        self._number, self._told = 0, 0
        self._failed: BaseException | None = None  # what a task ended with
        self._workers = Workers(client)
        self._running = as_completed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        # An OSError with a number is that of a disk.
        lost = isinstance(error, _GONE) and getattr(error, "errno", None) is None
        lost &= error is not self._failed
        if isinstance(error, Exception) and not isinstance(error, OutcropError):
            lost |= self.client.status != "running"  # which many kinds of errors come of
        with quietly():
            self.client.cancel(list(self._running.futures))
            if self.given and not lost and self.client.status == "running":
                self._wait_for_the_last()
        if lost:
            raise OutcropError(f"{type(error).__name__}: {_LOST}") from error

    def _wait_for_the_last(self) -> None:
        """Wait until no worker is in the middle of a task: Dask cannot stop one that runs."""
        names, until = {name for name, _ in self.given}, time.monotonic() + _END
        while (left := until - time.monotonic()) > 0:
            # As `client.run`, but for a limited time.
            busy = self.client.sync(
                self.client._run, _is_busy, names, on_error="ignore", callback_timeout=left
            )
            if not any(busy.values()):
                return
            time.sleep(0.05)

    def __len__(self) -> int:
        return len(self.given)

    def has_room(self) -> bool:
        """Whether workers can be given one more task; those that start for one, too."""
        return len(self.given) < AHEAD * max(1, self.workers())

    def workers(self) -> int:
        """Number of workers that get tasks."""
        count = self._workers.look()
        if count != self._told:
            self._told = count
            if self.on_count is not None:
                self.on_count(count)
        return count

    def look_again(self) -> None:
        """Count the workers anew, since one was lost."""
        self._workers.look_again()

    def submit(self, name: str, what: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Give one more task to the workers.

        Parameters
        ----------
        name : str
            Of all tasks of the kind: Dask keeps what it knows of tasks by it.
        what : Any
            What `take` tells the task by.
        function : callable
        *arguments
        """
        self._number += 1
        key = name, self._number
        self.given[key] = what
        how: dict[str, Any] = {"key": key, "pure": False, "resources": self._workers.resources}
        self._running.add(self.client.submit(function, *arguments, **how))

    def take(self, where: Callable[[Any], str]) -> tuple[Any, Any] | None:
        """Wait for the next task that is done; return what it was and its result.

        None, after a moment, if there is none yet: the caller may look what became of the workers.

        Parameters
        ----------
        where : callable
            Says, of what a task was, which it is, for errors.

        Raises
        ------
        OutcropError
            If the task failed, or has killed several workers.
        """
        if not self.given:
            time.sleep(0.1)
            return None
        condition = self._running.thread_condition
        with condition:
            ready = condition.wait_for(self._running.has_ready, timeout=_LOOK)
        if not ready:  # and not within: Dask waits for that lock to tell of a task that is done
            self.workers()
            return None
        future = next(self._running)
        if future.status in ("lost", "pending"):  # its worker died with the result: it runs again
            self._running.add(future)
            return None
        what = self.given.pop(future.key)
        if future.status != "finished":
            self._failed = _failure(future, where(what))
            raise self._failed
        result = future.result()
        future.release()
        return what, result


@contextlib.contextmanager
def naming_loss(where: str) -> Iterator[None]:
    """Turn what is raised when the scheduler or workers are lost into one line.

    Parameters
    ----------
    where : str
        What is computed in the block.

    Raises
    ------
    OutcropError
    """
    try:
        yield
    except KilledWorker as error:
        raise OutcropError(f"{where}: {_killed(error)}") from error
    except _GONE as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise OutcropError(f"{where}: {type(error).__name__}: {_LOST}") from error


def _is_busy(names: set[str], dask_worker: Any) -> bool:
    """Whether a worker, which Dask hands over by this name, runs one of our tasks."""
    running = dask_worker.state.all_running_tasks
    return any(isinstance(task.key, tuple) and task.key[0] in names for task in running)


def quietly() -> contextlib.suppress:
    """Suppress what calls end with whose scheduler is not there any more, or client is closed."""
    return contextlib.suppress(Exception, asyncio.CancelledError)


def _killed(error: KilledWorker) -> str:
    """Say what became of the workers that a task was given to."""
    return (
        f"{error.allowed_failures + 1} workers were lost while they had it, the last of them "
        f"{error.last_worker.address}; look at their logs; {_MEMORY}"
    )


def _failure(future: Any, where: str) -> BaseException:
    """Return an error that says what went wrong with a task; a store's own as it is."""
    if future.status != "error":
        return OutcropError(f"{where}: {future.status}; {_LOST}")
    error: BaseException = future.exception()
    absent = isinstance(error, FileNotFoundError)
    if isinstance(error, OutcropError) or (refuses(error) and not absent):
        return error
    if isinstance(error, KilledWorker):
        said = _killed(error)
    else:
        what = str(error).strip().partition("\n")[0]
        said = f"{kind(error)}: {what}; {goes_on() if absent else _MEMORY}"
    made = OutcropError(f"{where}: {said}")
    made.__cause__ = error
    return made
