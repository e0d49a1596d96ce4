"""Options that several commands have."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..cluster import Tls
from ..errors import ArgumentError

if TYPE_CHECKING:
    import xarray as xr

Model = Annotated[
    str, typer.Option(help="Network of the zoo, or FILE.py:NAME: a class or function of your own.")
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        help="Option of the network's constructor, such as version=2018 or mode=precision; again "
        "for another.",
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(help="Of the multi-task networks: what to predict, of rgt,dhr,fault."),
]
Direction = Annotated[
    str | None,
    typer.Option(help="Of networks of sections: inline, crossline, or (predict) both."),
]
Shape = Annotated[
    str | None,
    typer.Option(
        help="Of a file of raw float32 samples, the fastest axis first: samples,crosslines,inlines."
    ),
]
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
Device = Annotated[
    str | None,
    typer.Option(help="What computes: cpu or cuda; with --cluster cuda that, else cpu."),
]
Precision = Annotated[
    str, typer.Option(help="float32, bfloat16, float16 or float64: of the arithmetic.")
]
StoragePath = Annotated[
    str | None,
    typer.Option(
        help="Folder for 'disk', or place in an object store; inside the output unless given."
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Where to run: nothing for this process, 'local' for worker processes here, 'cuda' "
        "for one on each GPU here, a Dask scheduler's address, or a scheduler file."
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(help="With a cluster over TLS: certificate of the authority, in PEM."),
]
TlsCert = Annotated[
    Path | None, typer.Option(help="With a cluster over TLS: certificate to show, in PEM.")
]
TlsKey = Annotated[Path | None, typer.Option(help="With a cluster over TLS: its key, in PEM.")]
Workers = Annotated[
    int | None, typer.Option(help="Number of local workers; one per core unless given.")
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace what lies at the output: it is deleted first, for good."
    ),
]


def check_used(context: typer.Context, ignored: Collection[str], why: str) -> None:
    """Raise `ArgumentError` if one of these parameters is given, which nothing would heed."""
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in ignored and source is not None and source.name != "DEFAULT":
            raise ArgumentError(f"{option.opts[0]}: {why}; leave one of them out")


def tls_of(ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    """All three files, or none."""
    if ca is None and cert is None and key is None:
        return None
    if ca is None or cert is None or key is None:
        raise ArgumentError("--tls-ca, --tls-cert and --tls-key: give all three, or none")
    return Tls(ca, cert, key)


def options_of(given: list[str] | None, tasks: str | None = None) -> dict[str, Any]:
    """Read `key=value` pairs, values as JSON or Python where they are; and the tasks, if any."""
    options: dict[str, Any] = {}
    for pair in given or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ArgumentError(f"--option {pair}: give it as name=value, such as mode=precision")
        options[key] = value
        if key == "version":  # a word to its constructor, though it looks like a number
            continue
        for read in (ast.literal_eval, json.loads):
            with contextlib.suppress(ValueError, SyntaxError):
                options[key] = read(value)
    if tasks is not None:
        options["tasks"] = tuple(tasks.split(","))
    return options


def survey_of(path: str, shape: str | None) -> xr.Dataset:
    """Open a survey in Zarr, or raw samples of a shape with the fastest axis first."""
    from ..survey import open as open_survey

    return open_survey(path, None if shape is None else extents_of(shape))


def extents_of(shape: str) -> tuple[int, ...]:
    """(inlines, crosslines, samples) of a shape with the fastest axis first."""
    try:
        extents = [int(n) for n in shape.split(",")]
    except ValueError:
        extents = []
    if len(extents) not in (2, 3):
        raise ArgumentError(
            f"--shape {shape}: give samples,crosslines,inlines (2-D: samples,traces)"
        )
    return (*(1,) * (3 - len(extents)), *reversed(extents))


def device_of(device: str | None, cluster: str | None) -> str:
    """What computes, where it is not said."""
    return device or ("cuda" if cluster == "cuda" else "cpu")
