"""`outcrop demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._shared import Memory, Workers


def command(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo"),
    size: Annotated[
        int, typer.Option(help="Number of inlines, of crosslines and of samples.")
    ] = 192,
    memory: Memory = "2GB",
    workers: Workers = None,
    weights: Annotated[
        str,
        typer.Option(help="Weights of faultseg3d: synthetic-v1, a file, or 'seeded' for random."),
    ] = "synthetic-v1",
) -> None:
    """Take a synthetic survey through the whole path: SEG-Y, Zarr, faults, SEG-Y, pictures.

    Prints rates, peak memory, and the largest difference from evaluating the network on a part
    in one piece. Writes into a folder of its own, and replaces what an earlier demo left there.

    Example: outcrop demo --out demo --size 192 --memory 2GB
    """
    from ..demo import run

    run(out, size=size, memory=memory, workers=workers, weights=weights)
