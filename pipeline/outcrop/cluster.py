"""Where the work runs: a Dask client from what the user names."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MemoryBudgetError, OutcropError

if TYPE_CHECKING:
    from distributed import Client

    from .planner import Plan


@contextlib.contextmanager
def connect(cluster: str | None, workers: int | None = None) -> Iterator[Client | None]:
    """Yield a Dask client, or None for work in this process.

    Parameters
    ----------
    cluster : str or None
        None: this process. "local": worker processes on this machine, one thread each,
        bound to the loopback address. Otherwise a scheduler's address (``tcp://...``) or the
        path of a scheduler file.
    workers : int, optional
        Number of local workers; the number of cores unless given.

    Yields
    ------
    client : distributed.Client or None

    Raises
    ------
    OutcropError
        If the cluster cannot be reached.
    """
    if cluster is None:
        yield None
        return

    from distributed import Client, LocalCluster

    if cluster == "local":
        with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
            ) as local,
            Client(local) as client,
        ):
            yield client
        return

    as_file = "://" not in cluster
    if as_file and not Path(cluster).is_file():
        raise OutcropError(
            f"--cluster {cluster}: neither 'local', nor an address such as tcp://host:8786, "
            "nor an existing scheduler file"
        )
    try:
        client = Client(scheduler_file=cluster) if as_file else Client(cluster, timeout="10s")
    except (OSError, ValueError) as error:
        raise OutcropError(
            f"--cluster {cluster}: no scheduler answers there ({error}); start one with "
            "`dask scheduler`, or use --cluster local"
        ) from error
    with client:
        yield client


def versions() -> dict[str, str]:
    """Versions that must be the same wherever tiles are evaluated; builds of one may differ."""
    return {p: importlib.metadata.version(p).split("+")[0] for p in ("outcrop", "torch")}


def check_workers(client: Client, plan: Plan) -> None:
    """Raise before the start if a worker could not run its share of a plan.

    Raises
    ------
    OutcropError
        If a worker has another version of outcrop or torch, or none.
    MemoryBudgetError
        If the plan takes more memory than a worker may.
    """
    from .planner import format_bytes

    ours = versions()
    for worker, found in client.run(_facts, plan.device, on_error="return").items():
        if isinstance(found, OutcropError):
            raise OutcropError(f"worker {worker}: {found}")
        if not isinstance(found, dict):
            raise OutcropError(
                f"worker {worker}: cannot load outcrop {ours['outcrop']} "
                f"({type(found).__name__}: {found}); install the same version there"
            )
        for package, version in ours.items():
            if found[package] != version:
                raise OutcropError(
                    f"worker {worker}: has {package} {found[package]}, here it is {version}; "
                    "install the same version there"
                )
        room = found["memory"]
        if room is not None and room < plan.peak_memory:
            raise MemoryBudgetError(
                f"worker {worker}: has {format_bytes(room)} of memory to give, the plan takes "
                f"{format_bytes(plan.peak_memory)}; pass a smaller memory (--memory), or start "
                "workers with more"
            )


def _facts(device: str) -> dict[str, Any]:
    """What the client wants to know of this worker."""
    import psutil
    import torch
    from distributed import get_worker

    if device != "cpu":
        if not torch.cuda.is_available():
            raise OutcropError("no GPU is visible")
        return {**versions(), "memory": torch.cuda.mem_get_info()[0]}
    manager = get_worker().memory_manager
    if not manager.memory_limit:
        return {**versions(), "memory": None}
    # Above that a worker takes no more tasks, and there is nothing that it could free.
    limit = manager.memory_limit * (manager.memory_pause_fraction or 1.0)
    return {**versions(), "memory": max(0.0, limit - psutil.Process().memory_info().rss)}
