"""`outcrop plan`."""

from __future__ import annotations

import contextlib
import json as json_format
import sys
from typing import Annotated

import typer

from ._select import Select, selected
from ._shared import (
    Cluster,
    Device,
    Direction,
    HostMemory,
    Memory,
    Model,
    Option,
    Precision,
    Shape,
    StorageCompression,
    StorageMode,
    Tasks,
    TlsCa,
    TlsCert,
    TlsKey,
    Workers,
    device_of,
    options_of,
    survey_of,
    tls_of,
)


def command(
    survey: Annotated[
        str, typer.Argument(help="Survey: a Zarr written by `outcrop ingest`; s3://bucket/key too.")
    ],
    model: Model,
    option: Option = None,
    tasks: Tasks = None,
    direction: Direction = None,
    shape: Shape = None,
    select: Select = None,
    memory: Memory = "2GB",
    host_memory: HostMemory = None,
    storage_mode: StorageMode = "auto",
    storage_compression: StorageCompression = False,
    precision: Precision = "float32",
    device: Device = None,
    storage_path: Annotated[
        str | None,
        typer.Option(
            help="Where tensors between stages would be; with a cluster it is measured how fast "
            "that is. The folder for temporary files unless given."
        ),
    ] = None,
    cluster: Cluster = None,
    workers: Workers = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    draw: Annotated[
        str | None, typer.Option(help="Picture of the plan to write, such as plan.png.")
    ] = None,
) -> None:
    """Show how `outcrop predict` would run, and what it would take: nothing is evaluated.

    Example: outcrop plan f3.zarr --model faultseg3d --memory 2GB --draw plan.png
    """
    from .. import models
    from ..cluster import connect
    from ..engine import plan

    if draw is not None:
        from ..storage import place
        from ..targets import check_apart
        from ..view.save import check_format

        check_format(draw)
        check_apart(survey, place(draw))
    # A network of one's own may print.
    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        network = models.load(model, weights="seeded", **options_of(option, tasks))
        with connect(cluster, workers, tls_of(tls_ca, tls_cert, tls_key)) as client:
            made = plan(
                network,
                selected(survey_of(survey, shape), select, survey),
                memory=memory,
                host_memory=host_memory,
                storage_mode=storage_mode,  # type: ignore[arg-type]
                storage_compression=storage_compression,
                precision=precision,
                device=device_of(device, cluster),
                direction=direction,
                storage_path=storage_path,
                client=client,
            )
    typer.echo(json_format.dumps(made.to_dict(), indent=1) if json else str(made))
    if draw is not None:
        from ..view import draw_plan

        draw_plan(made, draw)
        typer.echo(draw, err=True)
