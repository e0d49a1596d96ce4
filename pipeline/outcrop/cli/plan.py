"""`outcrop plan`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from ._shared import Memory, StorageMode


def command(
    survey: Annotated[Path, typer.Argument(help="Survey: a Zarr written by `outcrop ingest`.")],
    model: Annotated[str, typer.Option(help="Network of the zoo.")],
    version: Annotated[
        str | None, typer.Option(help="Version of the network, where it has several.")
    ] = None,
    memory: Memory = "2GB",
    storage_mode: StorageMode = "auto",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, float16 or float64: of the arithmetic.")
    ] = "float32",
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show how `outcrop predict` would run, and what it would take: nothing is evaluated.

    Example: outcrop plan f3.zarr --model faultseg3d --memory 2GB
    """
    from .. import models
    from ..engine import plan

    network = models.load(model, weights="seeded", **({"version": version} if version else {}))
    made = plan(
        network,
        survey,
        memory=memory,
        storage_mode=storage_mode,  # type: ignore[arg-type]
        precision=precision,
    )
    typer.echo(json_format.dumps(made.to_dict(), indent=1) if json else str(made))
