"""Where the work runs: a Dask client from what the user names."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ArgumentError, OutcropError

if TYPE_CHECKING:
    from distributed import Client


# Of worker processes with one thread: Zarr's own threads would be beyond their share of the cores.
_ALONE = {"ZARR_THREADING__MAX_WORKERS": "1"}
# How closely Dask watches a process. As it does unasked, that takes 4 to 7 % of a core in a worker,
# and a tenth of one in the process that holds the scheduler and a nanny for each worker. And Dask
# gives up a worker for good that is not back 15 s after it was lost: a busy machine takes longer.
_LOCAL = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.deploy.lost-worker-timeout": "365 days",
}
# What each worker process runs before all else: Ctrl-C in a terminal goes to workers too, which
# are stopped by this process instead; and what fails there is told in one line here.
_FIRST = """
import logging, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
told = logging.getLogger("distributed.worker")
told.addFilter(lambda record: not record.getMessage().startswith("Compute Failed"))
"""


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
        Number of local workers, with "local" or "cuda"; that of the cores, or of the GPUs, unless
        given.
    tls : Tls, optional
        Encrypt what goes over the network, and talk to nobody who shows no certificate.

    Yields
    ------
    client : distributed.Client or None

    Raises
    ------
    ArgumentError
        If `workers` is less than 1, or given where no workers are started, or `tls` where nothing
        goes over a network.
    OutcropError
        If the cluster cannot be reached, its workers do not start, or "cuda" is asked for and
        dask-cuda is not there.
    """
    check_count(workers)
    if workers is not None and cluster not in ("local", "cuda"):
        raise ArgumentError(
            f"workers {workers}: only local ones are started; pass cluster 'local' or 'cuda' "
            "(--cluster) too, or leave it out"
        )
    if cluster is None:
        if tls is not None:
            raise ArgumentError("tls: is for a cluster; pass one (--cluster) too, or leave it out")
        yield None
        return

    import dask
    from distributed import Client

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
            dask.config.set(_LOCAL),
            _started(cluster, how) as local,
            Client(local, security=secure) as client,
        ):
            yield client
        return

    as_file = "://" not in cluster
    cluster = os.path.expanduser(cluster) if as_file else cluster
    if as_file and not Path(cluster).is_file():
        raise OutcropError(
            f"--cluster {cluster}: neither 'local' nor 'cuda', nor an address such as "
            "tcp://host:8786, nor an existing scheduler file"
        )
    where = {"scheduler_file": cluster} if as_file else {"address": cluster}
    try:
        address = json.loads(Path(cluster).read_text())["address"] if as_file else cluster
        if not isinstance(address, str):
            raise TypeError("it names no address")
        _check_tls(cluster, address, tls)
        client = Client(**where, security=secure, timeout="10s")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutcropError(
            f"--cluster {cluster}: no scheduler answers there ({error}); start one with "
            "`dask scheduler`, or use --cluster local"
        ) from error
    with client:
        yield client


def workers_there(client: Client) -> dict[str, dict[str, Any]]:
    """Return what the scheduler knows of each worker, by its address.

    Not `client.scheduler_info`, in whose answer all workers are missing where it crosses with what
    the client asks every two seconds on its own account.
    """
    found: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=-1)
    return found["workers"]


def check_count(workers: int | None) -> None:
    """Raise `ArgumentError` if this is no number of workers."""
    if workers is not None and workers < 1:
        raise ArgumentError(f"workers {workers}: choose 1 or more (--workers)")


def _check_tls(cluster: str, address: str, tls: Tls | None) -> None:
    """Raise if client and scheduler do not both encrypt."""
    if address.startswith("tls://") and tls is None:
        raise OutcropError(f"--cluster {cluster}: pass --tls-ca, --tls-cert and --tls-key too")
    if address.startswith("tcp://") and tls is not None:
        raise OutcropError(
            f"--cluster {cluster}: its scheduler, at {address}, does not encrypt; start it with "
            "--tls-ca-file, --tls-cert and --tls-key, or leave out those options here"
        )


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


def _started(cluster: str, how: dict[str, Any]) -> Any:
    """Workers on this machine."""
    try:
        return _on_gpus(how) if cluster == "cuda" else _on_cores(how)
    except RuntimeError as error:  # such as where they are killed for lack of memory
        raise OutcropError(
            f"--cluster {cluster}: its workers do not start ({error}); look at what they say, or "
            "start fewer (--workers); a script of your own has to start them below "
            "if __name__ == '__main__'"
        ) from error


def _on_cores(how: dict[str, Any]) -> Any:
    from distributed import LocalCluster

    return LocalCluster(env=_ALONE, config=_LOCAL, preload=[_FIRST], **how)


def _on_gpus(how: dict[str, Any]) -> Any:
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise OutcropError(
            f"--cluster cuda: needs dask-cuda ({error}); install it with "
            'pip install "outcrop[gpu]", or start workers by hand and name their scheduler'
        ) from None
    return LocalCUDACluster(resources={"GPU": 1}, **how)
