"""Fault probability of a survey: SEG-Y in, labelled Zarr, SEG-Y and a picture out.

    python faults.py survey.sgy results --weights faultseg3d.pth --memory 4GB --cluster local

Copy it and change what you like. Interrupted, the same command goes on where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

import outcrop
from outcrop.cluster import connect
from outcrop.survey import is_ingested


def main(
    segy: Annotated[
        Path, typer.Argument(help="3-D survey, SEG-Y; of a prestack one the first offset is drawn.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    weights: Annotated[
        str, typer.Option(help="File of weights (.pth, .safetensors), or 'seeded' for random ones.")
    ],
    model: Annotated[str, typer.Option(help="Network: see `outcrop models`.")] = "faultseg3d",
    memory: Annotated[str, typer.Option(help="Memory for one process, such as 4GB.")] = "2GB",
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Where to run: nothing for this process, 'local' for worker processes here, "
            "a Dask scheduler's address, or a scheduler file. Other machines must see the results' "
            "folder under the same path."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Number of local workers.")] = None,
) -> None:
    """Find the faults of a survey with a network of the zoo."""
    out = out.absolute()  # as the workers of a cluster see it
    store, faults_store = out / "survey.zarr", out / "faults.zarr"
    network = outcrop.models.load(model, weights=weights)
    if not any(o and o.name == "fault_probability" for o in outcrop.models.card(network).outputs):
        raise outcrop.errors.ArgumentError(f"--model {model}: predicts no fault_probability")

    if not is_ingested(segy, store):
        outcrop.ingest(segy, store, progress=True)
    survey = outcrop.open(store)

    with connect(cluster, workers) as client:
        if client is not None:
            print(f"Dask dashboard: {client.dashboard_link}")
        outcrop.predict_all(
            network, [survey], [faults_store], memory=memory, client=client, progress=True
        )
    probability = outcrop.open(faults_store).fault_probability

    outcrop.export(probability, out / "faults.sgy", like=segy, overwrite=True)
    drawn = survey.amplitude.isel(offset=0, missing_dims="ignore")
    shown = probability.isel(offset=0, missing_dims="ignore")
    outcrop.view.sections(drawn, shown, path=out / "faults.png", title=f"{segy.name}, {model}")
    print(f"written: {store}, {faults_store}, {out / 'faults.sgy'}, {out / 'faults.png'}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except outcrop.OutcropError as error:
        raise SystemExit(f"error: {error}") from None
