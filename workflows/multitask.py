"""Relative geological time, a cleaner image and fault attributes, refined again and again.

    python multitask.py survey.sgy results --weights infer.ckpt --refine-weights r.ckpt

Copy it and change what you like. Interrupted, the same command goes on where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

import outcrop
from outcrop.output import is_complete
from outcrop.survey import is_ingested


def main(
    segy: Annotated[Path, typer.Argument(help="Post-stack 3-D survey, SEG-Y.")],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    weights: Annotated[str, typer.Option(help="File of weights, or 'seeded' for random ones.")],
    refine_weights: Annotated[str, typer.Option(help="Weights of the refinement network.")],
    iterations: Annotated[int, typer.Option(help="How often to refine.")] = 2,
    memory: Annotated[str, typer.Option(help="Memory for one process, such as 4GB.")] = "2GB",
) -> None:
    """Relative geological time, a cleaner image and fault attributes, refined again and again."""
    store, predicted = out / "survey.zarr", out / "attributes.zarr"
    infer = outcrop.models.load("mtl-infer-3d", weights=weights)
    refiner = outcrop.models.load("mtl-refine-3d", weights=refine_weights)
    if not is_ingested(segy, store):
        outcrop.ingest(segy, store, progress=True)
    survey = outcrop.open(store)
    if not is_complete(predicted):
        outcrop.refine(
            infer,
            refiner,
            survey,
            predicted,
            iterations=iterations,
            memory=memory,
            progress=True,
        )
    found = outcrop.open(predicted)
    names = [
        f"{network.card.name} {outcrop.models.weights.digest(network)[:12]}"
        for network in (infer, *[refiner] * iterations)
    ]
    if found.attrs["lineage"] != " > ".join(names):
        raise outcrop.errors.OutputExistsError(
            f"{predicted}: was made by {found.attrs['lineage']}, not by {' > '.join(names)}; "
            "remove it, or choose another folder"
        )
    for name in found.data_vars:
        outcrop.export(found[name], out / f"{name}.sgy", like=segy, overwrite=True)
    outcrop.view.sections(
        survey.amplitude, found.fault_probability, path=out / "faults.png", title=segy.name
    )
    files = [*(f"{name}.sgy" for name in found.data_vars), "faults.png"]
    print(f"written: {predicted}, {', '.join(str(out / file) for file in files)}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except outcrop.OutcropError as error:
        raise SystemExit(f"error: {error}") from None
