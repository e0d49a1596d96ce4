"""`outcrop verify`."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    path: Annotated[
        str, typer.Argument(help="Zarr that outcrop wrote: a survey or a prediction; s3:// too.")
    ],
) -> None:
    """Check that all of a survey or prediction is there, decodable, and as it was written.

    Every object is read. What is damaged is named: array, chunk, inlines, crosslines, time.

    Example: outcrop verify faults.zarr
    """
    from ..errors import SurveyError
    from ..verification import verify

    found = verify(path, progress=True)
    if found.others:
        typer.echo(f"{path}: not looked at, as another program wrote it: {', '.join(found.others)}")
    if found.damage:
        for each in found.damage:
            typer.echo(f"{path}: {each}")
        raise SurveyError(
            f"{path}: {len(found.damage)} damaged; restore them, or write it again (--overwrite)"
        )
    typer.echo(
        f"{path}: {found.objects:,} objects, {found.size / 1e6:,.1f} MB: all there, decodable and "
        "as they were written"
    )
