"""Where the work runs: a Dask client from what the user names."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .errors import MemoryBudgetError, OutcropError

if TYPE_CHECKING:
    from distributed import Client


class Tls(NamedTuple):
    """Files, in PEM, that scheduler, workers and client show each other."""

    ca: Path
    cert: Path
    key: Path


@contextlib.contextmanager
def connect(
    cluster: str | None, workers: int | None = None, tls: Tls | None = None
) -> Iterator[Client | None]:
    """Yield a Dask client, or None for work in this process.

    Parameters
    ----------
    cluster : str or None
        None: this process. "local": worker processes on this machine, one thread each,
        bound to the loopback address. "cuda": one for each GPU of this machine, likewise.
        Otherwise a scheduler's address (``tcp://...``, ``tls://...``) or the path of a scheduler
        file.
    workers : int, optional
        Number of local workers; that of the cores, or of the GPUs, unless given.
    tls : Tls, optional
        Encrypt what goes over the network, and talk to nobody who shows no certificate.

    Yields
    ------
    client : distributed.Client or None

    Raises
    ------
    OutcropError
        If the cluster cannot be reached, or "cuda" is asked for and dask-cuda is not there.
    """
    if cluster is None:
        yield None
        return

    from distributed import Client, LocalCluster

    secure = _security(tls)
    if cluster in ("local", "cuda"):
        how: dict[str, Any] = {
            "n_workers": workers,
            "threads_per_worker": 1,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            "security": secure,
            "protocol": None if secure is None else "tls://",
        }
        with (
            _on_gpus(how) if cluster == "cuda" else LocalCluster(processes=True, **how) as local,
            Client(local, security=secure) as client,
        ):
            yield client
        return

    as_file = "://" not in cluster
    if as_file and not Path(cluster).is_file():
        raise OutcropError(
            f"--cluster {cluster}: neither 'local' nor 'cuda', nor an address such as "
            "tcp://host:8786, nor an existing scheduler file"
        )
    if cluster.startswith("tls://") and tls is None:
        raise OutcropError(f"--cluster {cluster}: pass --tls-ca, --tls-cert and --tls-key too")
    where = {"scheduler_file": cluster} if as_file else {"address": cluster}
    try:
        client = Client(**where, security=secure, timeout="10s")
    except (OSError, ValueError) as error:
        raise OutcropError(
            f"--cluster {cluster}: no scheduler answers there ({error}); start one with "
            "`dask scheduler`, or use --cluster local"
        ) from error
    with client:
        yield client


def _security(tls: Tls | None) -> Any:
    """What Dask wants to know, for every role the same."""
    if tls is None:
        return None
    for file in tls:
        if not file.is_file():
            raise OutcropError(f"{file}: not found; --tls-ca, --tls-cert and --tls-key are files")
    from distributed.security import Security

    shown = {
        f"tls_{role}_{what}": str(file)
        for role in ("client", "scheduler", "worker")
        for what, file in (("cert", tls.cert), ("key", tls.key))
    }
    return Security(tls_ca_file=str(tls.ca), require_encryption=True, **shown)


def _on_gpus(how: dict[str, Any]) -> Any:
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise OutcropError(
            f"--cluster cuda: needs dask-cuda ({error}); install it with "
            'pip install "outcrop[gpu]", or start workers by hand and name their scheduler'
        ) from None
    return LocalCUDACluster(resources={"GPU": 1}, **how)


def versions() -> dict[str, str]:
    """Versions that must be the same wherever tiles are evaluated; builds of one may differ."""
    return {p: importlib.metadata.version(p).split("+")[0] for p in ("outcrop", "torch")}


class Needs(Protocol):
    """What is known of work before it starts, such as a plan: where it runs, and its peak."""

    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def peak_memory(self) -> int: ...  # noqa: D102


def check_workers(client: Client, plan: Needs) -> None:
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


def _facts(device: str, dask_worker: Any) -> dict[str, Any]:
    """What the client wants to know of a worker, which Dask hands over by this name."""
    import psutil
    import torch

    if device != "cpu":
        if not torch.cuda.is_available():
            raise OutcropError("no GPU is visible")
        return {**versions(), "memory": torch.cuda.mem_get_info()[0]}
    manager = dask_worker.memory_manager
    if not manager.memory_limit:
        return {**versions(), "memory": None}
    # Above that a worker takes no more tasks, and there is nothing that it could free.
    limit = manager.memory_limit * (manager.memory_pause_fraction or 1.0)
    return {**versions(), "memory": max(0.0, limit - psutil.Process().memory_info().rss)}


def least_room(client: Client, device: str) -> int | None:
    """Bytes of memory that every worker has to give; None where they know no limit."""
    found = client.run(_facts, device, on_error="ignore").values()
    rooms = [facts["memory"] for facts in found if facts["memory"] is not None]
    return int(min(rooms)) if rooms else None
