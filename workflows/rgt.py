"""Relative geological time of a survey, and horizons as surfaces of equal time.

    python rgt.py survey.sgy results --weights bi21rgt3d.pth --memory 4GB

Copy it and change what you like. Interrupted, the same command goes on where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

import outcrop
from outcrop.horizons import horizons, write_table
from outcrop.survey import is_ingested


def main(
    segy: Annotated[Path, typer.Argument(help="Post-stack 3-D survey, SEG-Y.")],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    weights: Annotated[str, typer.Option(help="File of weights, or 'seeded' for random ones.")],
    model: Annotated[str, typer.Option(help="Network that predicts rgt.")] = "bi21rgt3d",
    count: Annotated[int, typer.Option(min=1, help="Number of horizons.")] = 7,
    memory: Annotated[str, typer.Option(help="Memory for one process, such as 4GB.")] = "2GB",
) -> None:
    """Relative geological time of a survey, and horizons as surfaces of equal time."""
    store, predicted = out / "survey.zarr", out / "rgt.zarr"
    network = outcrop.models.load(model, weights=weights)
    if not any(o and o.name == "rgt" for o in outcrop.models.card(network).outputs):
        raise outcrop.errors.ArgumentError(f"--model {model}: predicts no rgt")
    if not is_ingested(segy, store):
        outcrop.ingest(segy, store, progress=True)
    survey = outcrop.open(store)
    outcrop.predict_all(network, [survey], [predicted], memory=memory, progress=True)
    rgt = outcrop.open(predicted).rgt
    outcrop.export(rgt, out / "rgt.sgy", like=segy, overwrite=True)
    levels = [(i + 1) / (count + 1) for i in range(count)]
    surfaces = horizons(rgt, levels)
    points = write_table(surfaces, out / "horizons.csv")
    outcrop.view.surfaces(survey.amplitude, surfaces, path=out / "horizons.png", title=segy.name)
    print(
        f"written: {predicted}, {out / 'rgt.sgy'}, {out / 'horizons.csv'} ({points} points), "
        f"{out / 'horizons.png'}"
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except outcrop.OutcropError as error:
        raise SystemExit(f"error: {error}") from None
