"""Tasks on the workers of a cluster: a few per worker under way at a time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from distributed import as_completed

from .errors import OutcropError
from .patience import refuses

if TYPE_CHECKING:
    from distributed import Client

# What calls to a scheduler end with that is not there any more.
_GONE = (OSError, asyncio.CancelledError, concurrent.futures.CancelledError)
_LOST = "the scheduler was lost, and the same command goes on where it stopped"
# Tasks that a worker is given before the first of them is done.
AHEAD = 2
# Seconds between looks at which workers there are.
_LOOK = 2.0


class Window:
    """Tasks under way, so few that neither client nor scheduler grows with the number of all.

    A context: leaving it cancels what is under way, and a scheduler that is lost meanwhile is an
    `OutcropError`.

    Parameters
    ----------
    client : distributed.Client
    on_count : callable, optional
        Told of the number of workers whenever it is another.
    """

    def __init__(self, client: Client, on_count: Callable[[int], None] | None = None) -> None:
        self.client, self.on_count = client, on_count
        self.given: dict[Any, Any] = {}
        self.count, self._number, self._looked = 0, 0, 0.0
        self._resources: dict[str, int] | None = None
        self._running = as_completed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with quietly():
            self.client.cancel(list(self._running.futures))
        # An OSError with a number is that of a disk.
        if isinstance(error, _GONE) and getattr(error, "errno", None) is None:
            raise OutcropError(f"{type(error).__name__}: {_LOST}") from error

    def __len__(self) -> int:
        return len(self.given)

    def has_room(self) -> bool:
        """Whether workers can be given one more task."""
        return len(self.given) < AHEAD * self.workers()

    def workers(self) -> int:
        """Number of workers there are: those with a GPU, where any has one."""
        if time.monotonic() > self._looked + _LOOK or not self.count:
            workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
            on_gpu = sum("GPU" in facts["resources"] for facts in workers)
            count, self._looked = on_gpu or len(workers), time.monotonic()
            self._resources = {"GPU": 1} if on_gpu else None
            if count != self.count:
                self.count = count
                if self.on_count is not None:
                    self.on_count(count)
        return self.count

    def look_again(self) -> None:
        """Count the workers anew, since one was lost."""
        self._looked = 0.0

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
        self._running.add(
            self.client.submit(function, *arguments, key=key, pure=False, resources=self._resources)
        )

    def take(self, where: Callable[[Any], str]) -> tuple[Any, Any] | None:
        """Wait for the next task that is done; return what it was and its result.

        None, after a moment, if there is none, since no worker is there.

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
        future = next(self._running)
        what = self.given.pop(future.key)
        if future.status != "finished":
            _raise(future, where(what))
        result = future.result()
        future.release()
        return what, result


def quietly() -> contextlib.suppress:
    """Suppress what calls to a scheduler end with that is not there any more."""
    return contextlib.suppress(*_GONE)


def _raise(future: Any, where: str) -> None:
    """Say what went wrong with a task."""
    if future.status != "error":
        raise OutcropError(f"{where}: {future.status}; {_LOST}")
    error = future.exception()
    of_store = refuses(error) and not isinstance(error, OSError)
    if isinstance(error, OutcropError) or getattr(error, "errno", None) is not None or of_store:
        raise error
    raise OutcropError(
        f"{where}: {type(error).__name__}: {error}; "
        "if workers were killed for lack of memory, pass a smaller memory (--memory)"
    ) from error
