"""`outcrop ingest`."""

from __future__ import annotations

from typing import Annotated

import typer

from ._segy import CdpXByte, CdpYByte, Format, IlineByte, OffsetByte, Truncate, XlineByte
from ._shared import Cluster, Overwrite, TlsCa, TlsCert, TlsKey, Workers, check_used, tls_of

# Options that go with a survey alone, and with shot gathers alone.
_SURVEY = (
    "iline_byte", "xline_byte", "offset_byte", "cdp_x_byte", "cdp_y_byte", "domain", "chunks",
    "shards", "compressor", "duplicates", "sparse",
)  # fmt: skip
_SHOTS = ("origin", "azimuth")


def command(
    context: typer.Context,
    segy: Annotated[str, typer.Argument(help="SEG-Y file.")],
    zarr: Annotated[str, typer.Argument(help="Zarr to write; s3://bucket/key too.")],
    iline_byte: IlineByte = 189,
    xline_byte: XlineByte = 193,
    offset_byte: OffsetByte = 37,
    cdp_x_byte: CdpXByte = 181,
    cdp_y_byte: CdpYByte = 185,
    domain: Annotated[
        str, typer.Option(help="What samples run along: time (ms) or depth (m).")
    ] = "time",
    interval: Annotated[
        float | None,
        typer.Option(help="Sample interval in ms or m, instead of the one in the headers."),
    ] = None,
    format: Format = None,
    chunks: Annotated[
        str | None,
        typer.Option(help="Samples compressed together, such as 128,128,128 (time last)."),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(help="Samples in one object: multiples of the chunks; the same: no shards."),
    ] = None,
    compressor: Annotated[
        str, typer.Option(help="Of Blosc: zstd:5, lz4:5, ... (name:level), or none.")
    ] = "zstd:3",
    truncate: Truncate = False,
    duplicates: Annotated[
        str, typer.Option(help="Of traces at the same position: error, first, last or mean.")
    ] = "error",
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Accept a grid over twice as large as the traces.")
    ] = False,
    nonfinite: Annotated[
        str, typer.Option(help="NaN and infinite samples: error, or zero to make them 0.")
    ] = "error",
    shots: Annotated[
        bool,
        typer.Option(
            "--shots",
            help="The file holds shot gathers: write (shot, receiver, time) with the positions of "
            "sources and receivers, for outcrop invert.",
        ),
    ] = False,
    origin: Annotated[
        str | None,
        typer.Option(help="With --shots: x,y in m where the model's inline and crossline are 0."),
    ] = None,
    azimuth: Annotated[
        float,
        typer.Option(help="With --shots: of the model's inline axis, degrees clockwise from y."),
    ] = 90.0,
    overwrite: Overwrite = False,
    cluster: Cluster = None,
    workers: Workers = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Turn a SEG-Y file into a survey: a labelled Zarr that xarray reads.

    Traces may come in any order, in steps, with gaps, prestack too. Interrupted, the same command
    goes on where it stopped; until it is done the output does not open.

    Example: outcrop ingest f3.sgy f3.zarr
    """
    from ..cluster import connect
    from ..survey import ingest
    from ..targets import check_free

    check_used(context, _SURVEY if shots else _SHOTS, f"{'not' if shots else 'only'} with --shots")
    check_free(zarr, overwrite)
    with connect(cluster, workers, tls_of(tls_ca, tls_cert, tls_key)) as client:
        if client is not None:
            typer.echo(f"Dask dashboard: {client.dashboard_link}", err=True)
        if shots:
            from ..inversion import ingest_shots

            found = ingest_shots(
                segy,
                zarr,
                origin=_origin(origin),
                azimuth=azimuth,
                interval=interval,
                format=format,
                truncate=truncate,
                nonfinite=nonfinite,  # type: ignore[arg-type]
                overwrite=overwrite,
                client=client,
                progress=True,
            )
            sizes = " × ".join(f"{n:,} {d}" for d, n in found["amplitude"].sizes.items())
            typer.echo(f"{zarr}: amplitude, {sizes}")
            return
        survey = ingest(
            segy,
            zarr,
            iline_byte=iline_byte,
            xline_byte=xline_byte,
            offset_byte=offset_byte,
            cdp_x_byte=cdp_x_byte,
            cdp_y_byte=cdp_y_byte,
            domain=domain,  # type: ignore[arg-type]
            interval=interval,
            format=format,
            chunks=_extents("--chunks", chunks),
            shards=_extents("--shards", shards),
            compressor=compressor,
            truncate=truncate,
            duplicates=duplicates,  # type: ignore[arg-type]
            sparse=sparse,
            nonfinite=nonfinite,  # type: ignore[arg-type]
            overwrite=overwrite,
            client=client,
            progress=True,
        )
        live = 100 * survey["live"].to_numpy().mean()
    sizes = " × ".join(f"{n:,} {d}" for d, n in survey["amplitude"].sizes.items())
    dtype = survey["amplitude"].dtype
    typer.echo(f"{zarr}: amplitude, {sizes}, {dtype}, {live:.4g} % of traces live")


def _extents(option: str, text: str | None) -> tuple[int, ...] | None:
    from ..errors import ArgumentError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentError(
            f"{option} {text}: pass whole numbers with commas, such as 128,128,128"
        ) from None


def _origin(text: str | None) -> tuple[float, float]:
    from ..errors import ArgumentError

    try:
        x, y = (float(part) for part in (text or "0,0").split(","))
    except ValueError:
        raise ArgumentError(f"--origin {text}: pass x,y in m, such as 605000,6073000") from None
    return x, y
