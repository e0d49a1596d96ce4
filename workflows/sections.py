"""Fault probability by a network of sections, along inlines and crosslines, merged.

    python sections.py survey.sgy results --weights unet25d.ckpt --memory 4GB

Copy it and change what you like. Interrupted, the same command goes on where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

import outcrop
from outcrop.output import is_complete
from outcrop.picks import write_picks
from outcrop.survey import is_ingested


def main(
    segy: Annotated[Path, typer.Argument(help="Post-stack 3-D survey, SEG-Y.")],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    weights: Annotated[str, typer.Option(help="File of weights, or 'seeded' for random ones.")],
    threshold: Annotated[float, typer.Option(help="Smallest probability of a fault.")] = 0.5,
    minimum: Annotated[int, typer.Option(help="Fewer voxels than this are none.")] = 0,
    memory: Annotated[str, typer.Option(help="Memory for one process, such as 4GB.")] = "2GB",
) -> None:
    """Fault probability by a network of sections, along inlines and crosslines, merged."""
    store, predicted = out / "survey.zarr", out / "faults.zarr"
    network = outcrop.models.load("unet25d", weights=weights)
    if not is_ingested(segy, store):
        outcrop.ingest(segy, store, progress=True)
    survey = outcrop.open(store)
    if not is_complete(predicted):
        outcrop.predict_views(
            network, survey, predicted, directions=True, merge="mean", memory=memory
        )
    found = outcrop.open(predicted).fault_probability
    if outcrop.open(predicted).weights_sha256 != outcrop.models.weights.digest(network):
        raise outcrop.errors.OutputExistsError(
            f"{predicted}: was made with other weights; remove it, or choose another folder"
        )
    outcrop.export(found, out / "faults.sgy", like=segy, overwrite=True)
    count = write_picks(found, out / "faults.npz", threshold=threshold, minimum=minimum)
    outcrop.view.sections(
        survey.amplitude, found, threshold=threshold, path=out / "faults.png", title=segy.name
    )
    print(
        f"written: {predicted}, {out / 'faults.sgy'}, {out / 'faults.npz'} ({count} voxels), "
        f"{out / 'faults.png'}"
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except outcrop.OutcropError as error:
        raise SystemExit(f"error: {error}") from None
