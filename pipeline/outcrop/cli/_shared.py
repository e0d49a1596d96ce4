"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Memory = Annotated[
    str, typer.Option(help="Memory that one process may take, such as 2GB or 512MiB.")
]
StorageMode = Annotated[
    str,
    typer.Option(help="Where tensors between stages live: auto, device, cpu, disk or none."),
]
HostMemory = Annotated[
    str | None,
    typer.Option(
        help="Host memory for tensors between stages, where the device is a GPU; no limit unless "
        "given."
    ),
]
StorageCompression = Annotated[
    bool,
    typer.Option(
        "--storage-compression",
        help="Keep tensors between stages in 8 bits a value: lossy, and recorded in the output.",
    ),
]
Device = Annotated[str, typer.Option(help="What computes: cpu or cuda.")]
Precision = Annotated[
    str, typer.Option(help="float32, bfloat16, float16 or float64: of the arithmetic.")
]
StoragePath = Annotated[
    Path | None, typer.Option(help="Folder for 'disk'; inside the output unless given.")
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Where to run: nothing for this process, 'local' for worker processes here, "
        "a Dask scheduler's address, or a scheduler file."
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Number of local workers; one per core unless given.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what lies at the output.")]
