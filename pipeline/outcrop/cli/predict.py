"""`outcrop predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._shared import (
    Cluster,
    Device,
    HostMemory,
    Memory,
    Overwrite,
    Precision,
    StorageCompression,
    StorageMode,
    StoragePath,
    Workers,
)


def command(
    survey: Annotated[Path, typer.Argument(help="Survey: a Zarr written by `outcrop ingest`.")],
    out: Annotated[Path, typer.Argument(help="Zarr to write.")],
    model: Annotated[str, typer.Option(help="Network of the zoo.")],
    weights: Annotated[
        str, typer.Option(help="File of weights (.pth, .safetensors), or 'seeded' for random ones.")
    ],
    version: Annotated[
        str | None, typer.Option(help="Version of the network, where it has several.")
    ] = None,
    memory: Memory = "2GB",
    host_memory: HostMemory = None,
    storage_mode: StorageMode = "auto",
    storage_path: StoragePath = None,
    storage_compression: StorageCompression = False,
    precision: Precision = "float32",
    device: Device = "cpu",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile what many tiles have in common.")
    ] = False,
    cluster: Cluster = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate a network over a whole survey: exact, seamless, within --memory.

    Interrupted, the same command goes on where it stopped.

    Example: outcrop predict f3.zarr faults.zarr --model faultseg3d --weights w.pth --memory 2GB
    """
    from .. import models
    from ..cluster import connect
    from ..engine import predict
    from ..output import check_free

    check_free(out, overwrite)
    network = models.load(model, weights=weights, **({"version": version} if version else {}))
    with connect(cluster, workers) as client:
        if client is not None:
            typer.echo(f"Dask dashboard: {client.dashboard_link}", err=True)
        result = predict(
            network,
            survey,
            out,
            memory=memory,
            host_memory=host_memory,
            storage_mode=storage_mode,  # type: ignore[arg-type]
            storage_path=storage_path,
            storage_compression=storage_compression,
            precision=precision,
            device=device,
            compile=compile,
            client=client,
            overwrite=overwrite,
            progress=True,
        )
    sizes = " × ".join(f"{n} {d}" for d, n in result.sizes.items())
    typer.echo(f"{out}: {', '.join(map(str, result.data_vars))}, {sizes}")
