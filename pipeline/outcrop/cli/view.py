"""`outcrop view`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ArgumentError, SurveyError
from ._select import Select, selected, stacked
from ._shared import Shape, survey_of

if TYPE_CHECKING:
    import xarray as xr


def command(
    survey: Annotated[
        str,
        typer.Argument(help="Zarr: a survey or a prediction; or raw samples; s3://bucket/key too."),
    ],
    picture: Annotated[
        str, typer.Argument(help="Picture to write, in the format of its suffix: .png, .pdf, .svg.")
    ],
    overlay: Annotated[
        str | None, typer.Option(help="Zarr with what is drawn on top: a prediction of the survey.")
    ] = None,
    variable: Annotated[
        str | None,
        typer.Option(help="Of the survey; the amplitude or the only volume unless given."),
    ] = None,
    overlay_variable: Annotated[
        str | None,
        typer.Option(help="Of the overlay; the only probability or volume unless given."),
    ] = None,
    inline: Annotated[
        float | None, typer.Option(help="Where to cut; in the middle unless given.")
    ] = None,
    crossline: Annotated[
        float | None, typer.Option(help="Where to cut; in the middle unless given.")
    ] = None,
    twt: Annotated[
        float | None, typer.Option(help="Where to cut, in ms; in the middle unless given.")
    ] = None,
    depth: Annotated[
        float | None, typer.Option(help="The same of a volume in depth, in its units.")
    ] = None,
    select: Select = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Smallest value of the overlay that is drawn; 0.5 unless given."),
    ] = None,
    cmap: Annotated[
        str | None,
        typer.Option(help="Matplotlib's colours; gray of amplitudes, else viridis unless given."),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(help="Above the sections; what --select found unless given."),
    ] = None,
    shape: Shape = None,
) -> None:
    """Draw an inline, a crossline and a time or depth slice, with a prediction on top.

    Just these three sections are read.

    Example: outcrop view f3.zarr faults.png --overlay faults.zarr --inline 300 --twt 1200
    """
    from ..arrays import spoken
    from ..survey.export import select_volume
    from ..view import sections
    from ..view.save import check_format

    check_format(picture)
    for name, given in (("overlay-variable", overlay_variable), ("threshold", threshold)):
        if given is not None and overlay is None:
            raise ArgumentError(f"--{name}: only with --overlay")
    data = survey_of(survey, shape)
    if variable is None and "amplitude" in data:
        variable = "amplitude"
    every = select_volume(data, variable, survey)
    volume = _one(selected(every, select, survey), survey)
    if title is None:  # which need not be what was asked for
        found = (f"{dim} {spoken(volume[dim].values)}" for dim in stacked(every))
        title = ", ".join(found) or None
    top = None
    if overlay is not None:
        data = survey_of(overlay, None)
        volumes = [str(n) for n, v in data.data_vars.items() if {"twt", "depth"} & set(v.dims)]
        names = [name for name in volumes if name.endswith("_probability")] or volumes
        if overlay_variable is None and len(names) > 1:
            raise ArgumentError(
                f"--overlay {overlay}: has {', '.join(names)}; choose one with --overlay-variable"
            )
        overlay_variable = overlay_variable or next(iter(names), None)
        top = select_volume(data, overlay_variable, overlay)
        own = [pair for pair in select or [] if pair.partition("=")[0] in top.dims]
        top = _one(selected(top, own, overlay), overlay)
    sections(
        volume,
        top,
        inline=inline,
        crossline=crossline,
        twt=twt,
        depth=depth,
        threshold=0.5 if threshold is None else threshold,
        cmap=cmap or ("gray" if volume.name == "amplitude" else "viridis"),
        path=picture,
        title=title,
    )
    typer.echo(picture)


def _one(volume: xr.DataArray, path: str) -> xr.DataArray:
    """Raise `SurveyError` if it is a stack of volumes still."""
    from ..arrays import spoken

    for dim in stacked(volume):
        has = f"{spoken(volume[dim].values[0])} to {spoken(volume[dim].values[-1])}"
        raise SurveyError(
            f"{path}: {volume.name} is a stack over {dim}, {has}; choose one with --select {dim}=…"
        )
    return volume
