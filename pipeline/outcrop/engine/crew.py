"""The workers of a cluster: whether they suit, what memory they have, how fast they are."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import torch

from ..cluster import workers_there
from ..errors import ArgumentError, MemoryBudgetError, OutcropError
from ..planner import format_bytes
from ..planner.rates import Crew, Rates, rates, remembered, rounded
from ..storage import Place, Remote
from .chunks import held_chunks
from .memory import return_freed_memory

if TYPE_CHECKING:
    from distributed import Client, Future

# Bytes that each worker writes and reads to measure a store.
_SAMPLE = 2**24
# Seconds between looks at whether they still are there.
_LOOK = 2.0
# Bytes that a worker held when it was last looked at and in no task; known in its process alone.
_AT_REST: dict[tuple[str, str], int] = {}
# Seconds without an answer after which a worker is told of; the first may take some to load torch.
_SILENT = 30.0
# How often workers are measured anew when one is lost meanwhile.
_ATTEMPTS = 3
# Seconds that a worker takes for a tile beside all else: Dask's task, opening Zarr arrays.
_TILE = 5e-3
# How often samples that are sent to a worker are there at once.
_COPIES = 3


def versions(*more: str) -> dict[str, str]:
    """Versions that must be the same on all machines, of `more` packages too; builds may differ."""
    return {p: importlib.metadata.version(p).split("+")[0] for p in ("outcrop", "torch", *more)}


class Needs(Protocol):
    """What is known of work before it starts, such as a plan: where it runs, and its peak."""

    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def peak_memory(self) -> int: ...  # noqa: D102


def crew_of(client: Client, device: str, dtype: str, folder: Place) -> Crew:
    """Return what a planner wants to know of the workers of a cluster.

    The rates of one worker are measured there, and the bandwidth of the store by up to 16 workers
    at once; both are kept, the latter for a day, in the folder that OUTCROP_CACHE names.

    Parameters
    ----------
    client : distributed.Client
    device, dtype : str
        What computes, in which precision.
    folder : pathlib.Path or Remote
        A folder, which may still have to be made, of the store.

    Raises
    ------
    ArgumentError
        If it is no client, or closed.
    OutcropError
        If a worker does not suit, or cannot write there.
    """
    from ..tasks import wait_for

    check_client(client)
    for _ in range(_ATTEMPTS):
        if not workers_there(client):
            # By a task: where the cluster scales by itself, nothing else makes it start a worker.
            wait_for(client, [client.submit(versions, pure=False)])
        try:
            return _measured(client, device, dtype, folder)
        except _WorkerLostError as error:
            lost = error
    raise OutcropError(
        f"worker {lost}: was lost while it was measured, as others were before; look at its log "
        "(was it short of memory?), or pass a plan"
    )


class _WorkerLostError(Exception):
    """Holds the address of a worker."""


def _measured(client: Client, device: str, dtype: str, folder: Place) -> Crew:
    """The workers there are now."""
    facts = _suitable(client, device)
    workers = workers_there(client)
    there = [w for w in facts if w in workers]
    if not there:
        raise _WorkerLostError(next(iter(facts), "unknown"))
    rooms = [facts[w]["memory"] for w in there if facts[w]["memory"] is not None]
    if 0 in rooms:
        full = next(w for w in there if facts[w]["memory"] == 0)
        raise MemoryBudgetError(
            f"worker {full}: has no memory to give, and would take no task; start workers with a "
            "higher memory limit"
        )
    resources = {"GPU": 1} if "GPU" in workers[there[0]]["resources"] else None

    def gather(function: Callable[..., Any], *args: Any, on: list[str]) -> list[Any]:
        options = {"pure": False, "allow_other_workers": False, "resources": resources}
        tasks = {w: client.submit(function, *args, workers=w, **options) for w in on}
        _wait_for(client, tasks)
        return client.gather(list(tasks.values()))

    def measure() -> float:
        some = there[:16]
        seconds = max(gather(_store_seconds, folder, on=some))
        # More workers than that get no more together.
        return rounded(2 * _SAMPLE / seconds * len(some) / len(there))

    today = time.strftime("%Y-%m-%d")
    key = f"{_store_name(folder)}, {len(there)} workers, {today}"
    disk = remembered("stores.json", key, measure, lambda found: isinstance(found, float))
    (known,) = gather(_rates, device, dtype, on=there[:1])
    known = replace(known, disk=disk, tile=max(known.tile, _TILE))
    return Crew(len(there), int(min(rooms)) if rooms else None, known)


def _wait_for(client: Client, tasks: Mapping[str, Future]) -> None:
    """Wait for a task on each of some workers; Dask itself waits for a lost one to come back."""
    from distributed import wait

    from ..tasks import is_paused

    told: set[str] = set()
    while not all(task.done() for task in tasks.values()):
        with contextlib.suppress(TimeoutError):
            wait(list(tasks.values()), timeout=_LOOK)
        there = workers_there(client)
        for worker, task in tasks.items():
            if task.done():
                continue
            if worker not in there:
                client.cancel(list(tasks.values()))
                raise _WorkerLostError(worker)
            if is_paused(there[worker]) and worker not in told:
                told.add(worker)
                warnings.warn(
                    f"worker {worker}: takes no task, since it holds more memory than Dask lets "
                    "it: waiting; start workers with a higher memory limit",
                    stacklevel=2,
                )


def _store_name(folder: Place) -> str:
    """Name of the file system or bucket that a folder lies in."""
    if isinstance(folder, Remote):
        return "/".join(str(folder).split("/")[:3])
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    return f"{platform.node()}, device {path.stat().st_dev}"


def _store_seconds(folder: Place) -> float:
    """Seconds to write some bytes and to read them again, on a worker."""
    from distributed import get_worker

    sample, data = folder / f".outcrop-{uuid.uuid4().hex}", os.urandom(_SAMPLE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        sample.write_bytes(data)
        if isinstance(sample, Path):
            _forget(sample)
        sample.read_bytes()
        return time.perf_counter() - start
    except OutcropError as error:  # of an object store
        raise OutcropError(f"worker {get_worker().address}: {error}") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutcropError(
                f"worker {get_worker().address}: no space left in {folder} ({error.strerror}); "
                "make room there, or pass another storage_path (--storage-path)"
            ) from None
        raise OutcropError(
            f"worker {get_worker().address}: cannot write in {folder} ({error}); it must be "
            "reachable under this path from every worker"
        ) from None
    finally:
        with contextlib.suppress(OSError, OutcropError):
            sample.unlink(missing_ok=True)


def _forget(path: Path) -> None:
    """Have a file on disk, and not in memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _rates(device: str, dtype: str) -> Rates:
    """Rates of this worker, with its share of the cores."""
    from distributed import get_worker

    torch.set_num_threads(max(1, get_worker().state.nthreads))
    return rates(device, dtype)


def check_client(client: object) -> None:
    """Raise `ArgumentError` unless it is a Dask client that is connected."""
    from distributed import Client

    if not isinstance(client, Client):
        raise ArgumentError(
            f"client: is a {type(client).__name__}; pass a distributed.Client, such as of "
            "outcrop.cluster.connect, or leave it out"
        )
    if client.status != "running":
        raise ArgumentError(f"client: is {client.status}; connect anew")
    if client.asynchronous:
        raise ArgumentError(
            "client: is asynchronous; pass one that is made without asynchronous=True"
        )


def check_workers(client: Client, plan: Needs, sent: int = 0) -> None:
    """Raise before the start if a worker could not run its share of a plan.

    Parameters
    ----------
    client : distributed.Client
    plan : Needs
    sent : int
        Bytes of samples that lie in memory here, and go to each worker.

    Raises
    ------
    OutcropError
        If a worker has another version of outcrop or torch, or none.
    MemoryBudgetError
        If the plan takes more memory than a worker may, or these samples do.
    """
    # As they arrive, and their statistics are found, there are copies.
    most = max(sent + plan.peak_memory, _COPIES * sent)
    for worker, found in _suitable(client, plan.device).items():
        room = found["memory"]
        if room is not None and room < plan.peak_memory:
            raise MemoryBudgetError(
                f"worker {worker}: has {format_bytes(room)} of memory to give, the plan takes "
                f"{format_bytes(plan.peak_memory)}; pass a smaller memory (--memory), or start "
                "workers with more"
            )
        if sent and room is not None and room < most:
            raise MemoryBudgetError(
                f"worker {worker}: has {format_bytes(room)} of memory to give; the survey is in "
                f"memory here, and to send its {format_bytes(sent)} to each worker takes "
                f"{format_bytes(most)} there; pass the path of its Zarr, or write it to one"
            )


def _suitable(client: Client, device: str) -> dict[str, dict[str, Any]]:
    """Facts of all who get tasks, all of which have our versions; OutcropError otherwise."""
    facts = _asked(client, _facts, device)
    _check_versions(facts)
    return facts


def _asked(client: Client, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """What a function returns or raises on each worker."""
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt * _LOOK)
        # As `client.run`.
        how = {"on_error": "return", "workers": _with_gpu(client)}
        ask = partial(client.sync, client._run, function, *args, **how)
        try:
            found: dict[str, Any] = ask(callback_timeout=_SILENT)
        except TimeoutError:
            warnings.warn(
                f"worker {_longest_silent(client)}: gives no answer: waiting; stop it, and the "
                "others are taken alone",
                stacklevel=2,
            )
            found = ask()
        # One that is lost meanwhile is such an error, and not among those asked next.
        if not any(isinstance(each, OSError) for each in found.values()):
            break
    return found


def _longest_silent(client: Client) -> str:
    workers = workers_there(client)
    return min(workers, key=lambda worker: workers[worker]["last_seen"], default="unknown")


def _with_gpu(client: Client) -> list[str] | None:
    """Workers with the resource GPU, which then get all tasks; None where none has it."""
    workers = workers_there(client)
    return [w for w, facts in workers.items() if "GPU" in facts["resources"]] or None


def check_versions(client: Client, *more: str) -> None:
    """Raise `OutcropError` if a worker has other versions of outcrop, torch, and more packages."""
    _check_versions(_asked(client, versions, *more), *more)


def _check_versions(facts: Mapping[str, Any], *more: str) -> None:
    ours = versions(*more)
    for worker, found in facts.items():
        if isinstance(found, OutcropError):
            raise OutcropError(f"worker {worker}: {found}")
        if isinstance(found, OSError):
            raise OutcropError(
                f"worker {worker}: was lost while it was asked, as others were before; look at its "
                "log, and run the same command again"
            )
        if not isinstance(found, dict):
            wanted = " and ".join(f"{p} {ours[p]}" for p in ("outcrop", *more))
            raise OutcropError(
                f"worker {worker}: cannot load {wanted} ({type(found).__name__}: {found}); "
                "install the same versions there"
            )
        for package, version in ours.items():
            if found[package] != version:
                raise OutcropError(
                    f"worker {worker}: has {package} {found[package]}, here it is {version}; "
                    "install the same version there"
                )


def _facts(device: str, dask_worker: Any) -> dict[str, Any]:
    """What the client wants to know of a worker, which Dask hands over by this name."""
    if device != "cpu":
        if not torch.cuda.is_available():
            raise OutcropError("no GPU is visible")
        # What PyTorch has taken from the GPU and not given back is used again.
        limit = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        held = _held_at_rest(dask_worker, device, torch.cuda.memory_allocated)
        return {**versions(), "memory": max(0, limit - held)}
    manager = dask_worker.memory_manager
    if not manager.memory_limit:
        return {**versions(), "memory": None}
    # Above that a worker takes no more tasks, and there is nothing that it could free.
    limit = manager.memory_limit * (manager.memory_pause_fraction or 1.0)
    held = _held_at_rest(
        dask_worker, device, lambda: psutil.Process().memory_info().rss - held_chunks()
    )
    return {**versions(), "memory": max(0.0, limit - held)}


def _held_at_rest(dask_worker: Any, device: str, look: Callable[[], int]) -> int:
    """Bytes that a worker holds; what a task holds that it is in is free again after it."""
    at_rest = not dask_worker.state.all_running_tasks
    if at_rest:
        return_freed_memory()
    held, key = look(), (dask_worker.address, device)
    if not at_rest:
        return min(held, _AT_REST.get(key, held))
    _AT_REST[key] = held
    return held


def least_room(client: Client, device: str) -> int | None:
    """Bytes of memory that every worker has to give; None where they know no limit."""
    found = client.run(_facts, device, on_error="ignore", workers=_with_gpu(client)).values()
    rooms = [facts["memory"] for facts in found if facts["memory"] is not None]
    return int(min(rooms)) if rooms else None
