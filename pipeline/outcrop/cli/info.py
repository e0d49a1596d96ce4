"""`outcrop info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ._segy import CdpXByte, CdpYByte, Format, IlineByte, OffsetByte, Truncate, XlineByte

if TYPE_CHECKING:
    from ..survey.info import SurveyInfo


def command(
    path: Annotated[str, typer.Argument(help="SEG-Y file, or Zarr; s3://bucket/key too.")],
    iline_byte: IlineByte = 189,
    xline_byte: XlineByte = 193,
    offset_byte: OffsetByte = 37,
    cdp_x_byte: CdpXByte = 181,
    cdp_y_byte: CdpYByte = 185,
    domain: Annotated[
        str, typer.Option(help="What samples of a SEG-Y run along: time or depth.")
    ] = "time",
    truncate: Truncate = False,
    format: Format = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what is in a SEG-Y file or a survey: geometry, samples, amplitudes, header bytes.

    Where the header bytes give no regular grid, it shows which would.

    Example: outcrop info f3.sgy
    """
    import json

    from ..survey import info

    found = info(
        path,
        iline_byte=iline_byte,
        xline_byte=xline_byte,
        offset_byte=offset_byte,
        cdp_x_byte=cdp_x_byte,
        cdp_y_byte=cdp_y_byte,
        domain=domain,
        truncate=truncate,
        format=format,
        progress=not as_json,
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        _print(found)


def _print(found: SurveyInfo) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..survey.candidates import SOME

    table = Table(title=escape(found.path), show_header=False, title_justify="left")
    for name, value in _rows(found):
        table.add_row(name, escape(value))
    console = Console()
    console.print(table)
    if found.variables:
        variables = Table("variable", "dimensions, type, chunks")
        for name, value in found.variables.items():
            variables.add_row(name, escape(value))
        console.print(variables)
    if found.text:
        lines = [line for line in found.text.splitlines() if line[3:].strip()]
        seen = ["".join(c if c.isprintable() else " " for c in line) for line in lines]
        console.print("\n".join(seen), markup=False, highlight=False)
    if found.candidates:
        table = Table(
            "--iline-byte",
            "--xline-byte",
            "grid" if found.traces <= SOME else f"grid of the first {SOME:,} traces",
            "filled",
            title="Regular grids by other bytes",
        )
        for c in found.candidates:
            grid = f"{c.inlines:,} × {c.crosslines:,}"
            table.add_row(str(c.inline_byte), str(c.crossline_byte), grid, f"{c.filled:.1%}")
        console.print(table)
    if found.problem:
        console.print(f"problem: {found.problem}", markup=False, style="bold", soft_wrap=True)


def _rows(found: SurveyInfo) -> list[tuple[str, str]]:
    from ..arrays import spoken

    kind = f"{found.kind}, {found.size / 1e6:,.1f} MB"
    rows = [("kind", kind)]
    if made := found.provenance:
        words = [made.get("lineage"), made.get("precision")]
        if made.get("storage_compression", "none") != "none":
            words.append("compressed between stages")
        rows.append(("made by", ", ".join(str(word) for word in words if word)))
    if found.format:
        rows.append(("samples in SEG-Y", f"format {found.format}, {found.byte_order}-endian"))
    for name, axis in found.axes.items():
        known = name in ("twt", "depth") and found.units not in (None, "", "1")
        units = f" {found.units}" if known else ""
        step = "in unequal steps" if axis.step is None else f"by {spoken(axis.step)}{units}"
        span = f"{spoken(axis.first)} … {spoken(axis.last)} {step}"
        if axis.count == 1:
            span = f"{spoken(axis.first)}{units}"
        rows.append((name, f"{axis.count:,}: {span}"))
    for name, values in found.stack.items():
        more = ", …" if len(values) > 8 else ""
        rows.append((name, f"{len(values):,}: {', '.join(values[:8])}{more}"))
    live = "" if found.live_fraction is None else f", {found.live_fraction:.2%} of the positions"
    rows.append(("traces", f"{found.traces:,}{live}"))
    if found.sorting:
        rows.append(
            (
                "sorted",
                {"not": "neither by inline nor by crossline"}.get(
                    found.sorting, f"by {found.sorting}"
                ),
            )
        )
    for name, (low, high) in found.coordinates.items():
        of = " of the traces looked at" if found.kind == "SEG-Y" else ""
        rows.append((name, f"{low:,.2f} … {high:,.2f}{of}"))
    if found.bins:
        far = [
            f"{d}s {b.distance:,.2f} {b.units} apart, towards {round(b.azimuth, 1) % 360:.1f}°"
            for d, b in found.bins.items()
        ]
        rows.append(("bins", f"{'; '.join(far)} from north"))
    if a := found.amplitudes:
        rows.append(
            (
                found.volume,
                f"{a.minimum:.5g} … {a.maximum:.5g}, mean {a.mean:.5g}, "
                f"standard deviation {a.standard_deviation:.5g}",
            )
        )
        rows.append(
            (
                "looked at",
                f"{a.traces:,} traces: {a.dead_traces:,} dead, {a.nonfinite:,} samples NaN or "
                "infinite",
            )
        )
    if found.bytes:
        rows.append(("header bytes", ", ".join(f"{k} {v}" for k, v in found.bytes.items())))
    return rows
