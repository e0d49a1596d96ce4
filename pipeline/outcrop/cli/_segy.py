"""Options of commands that read SEG-Y."""

from __future__ import annotations

from typing import Annotated

import typer

IlineByte = Annotated[
    int, typer.Option(help="First byte of the inline number in the trace headers.")
]
XlineByte = Annotated[int, typer.Option(help="First byte of the crossline number.")]
OffsetByte = Annotated[int, typer.Option(help="First byte of the offset, for prestack files.")]
CdpXByte = Annotated[int, typer.Option(help="First byte of the coordinate x.")]
CdpYByte = Annotated[int, typer.Option(help="First byte of the coordinate y.")]
Format = Annotated[
    str | None,
    typer.Option(
        help="Sample format, instead of the one in the header where that is wrong: ibm, ieee, "
        "float64, int8, int16, int32, int64, uint8, uint16, uint32 or uint64."
    ),
]
Truncate = Annotated[
    bool,
    typer.Option("--truncate", help="Of a file cut off in a trace, take the whole traces."),
]
