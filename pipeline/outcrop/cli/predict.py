"""`outcrop predict`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ArgumentError, OutcropError
from ..storage import check_takes_files, on_disk, place
from ._select import Select, selected
from ._shared import (
    Cluster,
    Device,
    Direction,
    HostMemory,
    Memory,
    Model,
    Option,
    Overwrite,
    Precision,
    Shape,
    StorageCompression,
    StorageMode,
    StoragePath,
    Tasks,
    TlsCa,
    TlsCert,
    TlsKey,
    Workers,
    check_used,
    device_of,
    options_of,
    survey_of,
    tls_of,
)

if TYPE_CHECKING:
    from ..models.card import Card

_VIEWS = "--angles, --resolutions or --direction both"
# What windows do without: they are evaluated here, in float32, in whatever memory that takes.
_NOT_OF_WINDOWS = (
    "memory", "host_memory", "storage_mode", "storage_path", "storage_compression", "precision",
    "device", "compile", "nonfinite", "cluster", "workers", "tls_ca", "tls_cert", "tls_key",
    "log_json", "report",
)  # fmt: skip


def command(
    context: typer.Context,
    survey: Annotated[
        list[str],
        typer.Argument(
            help="Survey: a Zarr written by `outcrop ingest`, or raw samples; s3://bucket/key too. "
            "Several share the workers."
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            help="Zarr to write, s3://bucket/key too; with --shape the stem of raw files; of "
            "several surveys the folder where each gets a Zarr of its name."
        ),
    ],
    model: Model,
    weights: Annotated[
        str,
        typer.Option(
            help="File of weights (.pth, .ckpt, .safetensors, .hdf5); or the name of weights that "
            "come with outcrop, such as synthetic-v1; or 'seeded' for random ones."
        ),
    ],
    option: Option = None,
    tasks: Tasks = None,
    memory: Memory = "2GB",
    host_memory: HostMemory = None,
    storage_mode: StorageMode = "auto",
    storage_path: StoragePath = None,
    storage_compression: StorageCompression = False,
    precision: Precision = "float32",
    device: Device = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile what many tiles have in common.")
    ] = False,
    direction: Direction = None,
    angles: Annotated[
        bool,
        typer.Option(
            "--angles", help="Also turned by 90, 180 and 270 degrees about the time axis."
        ),
    ] = False,
    resolutions: Annotated[
        bool,
        typer.Option(
            "--resolutions", help="Also every second inline, every second crossline and sample."
        ),
    ] = False,
    merge: Annotated[
        str | None, typer.Option(help="Of these views, at every voxel: max, unless mean is given.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Also write where a probability reaches this.")
    ] = None,
    minimum: Annotated[
        int | None, typer.Option(help="With fewer voxels than this at the threshold, pick none.")
    ] = None,
    picks: Annotated[
        Path | None,
        typer.Option(
            help=".npz for the positions of voxels at the threshold, and the coordinates."
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Of networks of sections: windows of this extent. Not exact."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Samples that windows share; 0 unless given.")
    ] = None,
    refine_weights: Annotated[
        str | None, typer.Option(help="Weights of the refinement network, for mtl-infer.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="How often to refine; once unless given.")
    ] = None,
    nonfinite: Annotated[
        str, typer.Option(help="Where the prediction is NaN or infinite: error, or warn.")
    ] = "error",
    shape: Shape = None,
    select: Select = None,
    cluster: Cluster = None,
    workers: Workers = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    log_json: Annotated[
        str | None,
        typer.Option(
            help="File for a line of JSON on everything that happens, appended; '-' for the "
            "standard output."
        ),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            help="Page to write about the run: OUT with .report.html instead of .zarr unless "
            "given; 'none' for none."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate a network over a whole survey: exact, seamless, within --memory.

    Interrupted, the same command goes on where it stopped.

    Example: outcrop predict f3.zarr faults.zarr --model faultseg3d --weights w.pth --memory 2GB
    """
    from .. import models, view
    from ..cluster import connect
    from ..engine import predict, predict_all, predict_views, predict_windows, refine
    from ..events import JsonLog, Listener
    from ..picks import check_picks, write_picks
    from ..record import Record
    from ..survey.blocks import check_path
    from ..survey.raw import raw_paths, write_raw
    from ..targets import check_apart, check_free, is_complete

    log = None
    if log_json == "-":  # JSON alone, whatever a network of one's own prints
        log = JsonLog(log_json)
        context.with_resource(contextlib.redirect_stdout(sys.stderr))
    views = (angles or resolutions or direction == "both") or None
    ways = {"--refine-weights": refine_weights, "--window": window, _VIEWS: views}
    asked = [way for way, value in ways.items() if value is not None]
    if len(asked) > 1:
        raise ArgumentError(f"{'; '.join(asked)}: choose one")
    for name, value, way in (
        ("--iterations", iterations, "--refine-weights"),
        ("--overlap", overlap, "--window"),
        ("--merge", merge, _VIEWS),
        ("--minimum", minimum, "--picks"),
    ):
        if value is not None and {**ways, "--picks": picks}[way] is None:
            raise ArgumentError(f"{name}: only with {way}")
    if window is not None:
        heeded = {"report"} if report == "none" else set()
        check_used(context, set(_NOT_OF_WINDOWS) - heeded, "not with --window")
    several = len(survey) > 1
    if several:
        alone = {"--shape": shape, "--select": select, "--picks": picks}
        if what := [*asked, *(way for way, value in alone.items() if value is not None)]:
            raise ArgumentError(f"{what[0]}: not with {len(survey)} surveys; name one at a time")
    store = out if shape is None else f"{out}.zarr"
    # A run that was stopped after it was whole: what is written beside it may be missing.
    whole = not (several or asked or overwrite) and is_complete(store)
    if not (several or whole):
        check_free(store, overwrite)
    options = options_of(option, tasks)
    network = models.load(model, weights=weights, **options)
    files = [] if shape is None else raw_paths(models.card(network), out)
    # What was written beside a prediction once it was whole stays. Picks, which no file says the
    # options of, stay where the run that wrote them was stopped just after.
    kept = {file for file in files if whole and _is_later(file, store)}
    if whole and picks is not None and len(kept) < len(files) and on_disk(picks).is_file():
        kept.add(on_disk(picks))
    for file in files:
        check_apart(survey[0], file)
        check_path(file, overwrite or file in kept)
    refiner = None
    if refine_weights is not None:
        if not model.startswith("mtl-infer"):
            raise ArgumentError(f"--refine-weights: not with {model}; take mtl-infer-3d or -2d")
        refiner = models.load(model.replace("infer", "refine"), weights=refine_weights, **options)
    data: Any = None if several else selected(survey_of(survey[0], shape), select, survey[0])
    if picks is not None:
        check_picks(picks, tuple(data.sizes[d] for d in ("inline", "crossline")))
        check_path(on_disk(picks), overwrite or on_disk(picks) in kept)
        picked = _picked(models.card(network))
    if report not in (None, "none"):
        _check_page(report, survey, store)
    record = Record()
    listeners: list[Listener] = [record]
    if log_json is not None:
        listeners.append(log or JsonLog(log_json))

    def tell(result: Any = None) -> None:
        if record.begun and report != "none":
            page = report or f"{store.rstrip('/').removesuffix('.zarr')}.report.html"
            read = [survey_of(each, None) for each in survey] if several else data
            view.report(record, page, read, result)
            typer.echo(page)

    with (
        _in_any_case(tell),
        connect(cluster, workers, tls_of(tls_ca, tls_cert, tls_key)) as client,
    ):
        if client is not None:
            typer.echo(f"Dask dashboard: {client.dashboard_link}", err=True)
        how: dict[str, Any] = {
            "memory": memory,
            "host_memory": host_memory,
            "storage_mode": storage_mode,
            "storage_path": storage_path,
            "storage_compression": storage_compression,
            "precision": precision,
            "device": device_of(device, cluster),
            "compile": compile,
            "nonfinite": nonfinite,
            "client": client,
            "overwrite": overwrite,
            "progress": True,
            "listeners": listeners,
        }
        result: Any
        if refiner is not None:
            result = refine(
                network,
                refiner,
                data,
                store,
                iterations=1 if iterations is None else iterations,
                direction=direction,
                threshold=threshold,
                **how,
            )
        elif window is not None:
            result = predict_windows(
                network,
                data,
                store,
                window=window,
                overlap=overlap or 0,
                direction=direction,
                threshold=threshold,
                overwrite=overwrite,
                progress=True,
            )
        elif views:
            both = direction == "both"
            if not both:
                how["direction"] = direction
            result = predict_views(
                network,
                data,
                store,
                angles=angles,
                resolutions=resolutions,
                directions=both,
                merge=merge or "max",  # type: ignore[arg-type]
                threshold=threshold,
                **how,
            )
        elif several:
            how.update(direction=direction, threshold=threshold)
            result = predict_all(network, survey, out, **how)
        elif whole:
            # Which looks whether it is the same.
            how.update(direction=direction, threshold=threshold)
            (result,) = predict_all(network, [data], [store], **how)
        else:
            result = predict(network, data, store, direction=direction, threshold=threshold, **how)
    if several:
        typer.echo(f"{out}: {len(survey)} predictions")
        tell(result)
        return
    sizes = " × ".join(f"{n} {d}" for d, n in result.sizes.items())
    typer.echo(f"{store}: {', '.join(map(str, result.data_vars))}, {sizes}")
    if effect := result.attrs.get("storage_compression_effect"):
        typer.echo(f"what storage compression does: {effect}")
    # Takes its time: interrupted, the same command writes what follows.
    tell(result)
    if picks is not None and on_disk(picks) not in kept:
        least = 0.5 if threshold is None else threshold
        count = write_picks(result[picked], picks, threshold=least, minimum=minimum or 0)
        typer.echo(f"{picks}: {count} voxels")
    if shape is not None:
        for path in write_raw(result, models.card(network), out, kept):
            typer.echo(str(path))


def _check_page(page: str, surveys: Sequence[str], store: str) -> None:
    """Raise before hours of work if the page could not be written, or would replace data."""
    from ..targets import check_apart

    where = place(page)
    for read in surveys:
        check_apart(read, where)
    output, at = f"{place(store).absolute()}/", f"{where.absolute()}/"
    # That of several surveys is a folder, in which a page may lie.
    if at == output or (len(surveys) == 1 and at.startswith(output)):
        raise ArgumentError(f"--report {page}: lies within the output; choose another path")
    if isinstance(where, Path) and where.is_dir():
        raise OutcropError(f"--report {page}: is a folder; name a file")
    if not where.name.lower().endswith((".html", ".htm")):  # it takes the place of what is there
        raise ArgumentError(f"--report {page}: pages are written as .html; choose such a name")
    if isinstance(where, Path):
        check_takes_files(f"--report {page}", where.parent)


@contextlib.contextmanager
def _in_any_case(tell: Callable[[], None]) -> Iterator[None]:
    """Tell of what stops, too, which is what is raised whatever becomes of the telling."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            tell()
        raise


def _is_later(file: Path, store: str) -> bool:
    """Whether a file is there that was written after a prediction was whole."""
    made = Path(store, "zarr.json").stat().st_mtime_ns
    return file.is_file() and file.stat().st_mtime_ns >= made


def _picked(card: Card) -> str:
    """Name of the one probability that a network predicts."""
    names = [o.name for o in card.outputs if o is not None and o.name.endswith("_probability")]
    if len(names) != 1:
        raise ArgumentError(
            f"--picks: {card.name} predicts {' and '.join(names) or 'no probability'}; picks are "
            "of one, which outcrop.picks.write_picks takes from the result"
        )
    return names[0]
