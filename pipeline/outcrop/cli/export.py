"""`outcrop export`."""

from __future__ import annotations

from typing import Annotated

import typer

from ._select import Select, selected


def command(
    source: Annotated[
        str, typer.Argument(help="Zarr: a survey, a prediction or a model; s3://bucket/key too.")
    ],
    out: Annotated[
        str,
        typer.Argument(
            help="File to write; its suffix says how: .sgy or .segy; .bin, .raw or .dat (float32, "
            "little-endian, C order); .npy; .vti (VTK image data, for ParaView)."
        ),
    ],
    variable: Annotated[
        str | None, typer.Option(help="Which variable; the only volume unless given.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="For SEG-Y: the SEG-Y or survey whose headers and trace order to keep; the "
            "source's own unless given, made of its coordinates if it has none."
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="For SEG-Y: sample format: same, ibm, ieee, float64, int8, int16, int32, int64, "
            "uint8, uint16, uint32 or uint64."
        ),
    ] = "same",
    scale: Annotated[
        float | None,
        typer.Option(
            help="For integer formats: multiply by this and round; where needed and not given, "
            "the largest power of two that fits (kept in trace header bytes 169-170)."
        ),
    ] = None,
    select: Select = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace what lies at the output, once the new is whole."),
    ] = False,
) -> None:
    """Write one volume as SEG-Y, with the headers it came with, or as a plain array.

    A part of the inlines, crosslines or samples gives a SEG-Y of that part. The file appears
    under its name only when it is whole.

    Example: outcrop export faults.zarr faults.sgy --variable fault_probability --like f3.sgy
    """
    from ..survey import export
    from ..survey.export import select_volume
    from ..survey.reading import open_any

    part = selected(open_any(source), select, source) if select else None
    path = export(
        source if part is None else part,
        out,
        like=like,
        variable=variable,
        format=format,
        scale=scale,
        overwrite=overwrite,
        progress=True,
    )
    volume = select_volume(open_any(source) if part is None else part, variable, source)
    sizes = " × ".join(f"{n} {d}" for d, n in volume.sizes.items())
    typer.echo(f"{out}: {volume.name}, {sizes}, {path.stat().st_size / 1e6:,.1f} MB")
