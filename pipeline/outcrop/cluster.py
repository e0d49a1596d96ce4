"""Where the work runs: a Dask client from what the user names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import OutcropError

if TYPE_CHECKING:
    from distributed import Client


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
