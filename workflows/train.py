"""Train a fault network on an interpreted survey, then find its faults with it.

    python train.py survey.zarr results --epochs 30 --precision bf16-mixed

The survey, in Zarr, has a variable `fault` (1 on interpreted faults, 0 elsewhere) beside its
amplitudes. Training starts from the weights that outcrop ships. Copy it and change what you like.
Interrupted, the same command goes on where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

import outcrop
from outcrop.models.weights import digest
from outcrop.output import is_complete


def main(
    survey: Annotated[Path, typer.Argument(help="Survey in Zarr with a variable `fault`.")],
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    weights: Annotated[
        str, typer.Option(help="To start from: a name, a file, or 'seeded'.")
    ] = "synthetic-v1",
    epochs: Annotated[int, typer.Option(help="How many.")] = 30,
    samples: Annotated[int, typer.Option(help="Crops in an epoch.")] = 200,
    crop: Annotated[int, typer.Option(help="Of crops, along each axis.")] = 64,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed, ...")] = "32-true",
    activations: Annotated[
        str, typer.Option(help="Where activations are kept for backward: device, cpu or disk.")
    ] = "device",
    memory: Annotated[str, typer.Option(help="Memory to predict in, such as 4GB.")] = "2GB",
) -> None:
    """Train faultseg3d on a survey and predict the whole of it."""
    run, faults = out / "run", out / "faults.zarr"
    network = outcrop.training.fit(
        "faultseg3d",
        survey,
        out=run,
        weights=weights,
        epochs=epochs,
        samples=samples,
        crop=crop,
        precision=precision,
        activations=activations,
        learning_rate=2e-4,  # small: what the weights know already is not to be forgotten
        resume=(run / "checkpoints" / "last.ckpt").is_file(),
        overwrite=True,  # of a run that has no checkpoint yet
        progress=True,
    )
    data = outcrop.open(survey)
    # What weights of fewer epochs have found is found anew.
    stale = is_complete(faults) and outcrop.open(faults).weights_sha256 != digest(network)
    outcrop.predict_all(network, [data], [faults], memory=memory, overwrite=stale, progress=True)
    probability = outcrop.open(faults).fault_probability
    outcrop.view.sections(data.amplitude, probability, path=out / "faults.png", title=survey.name)
    print(f"written: {run / 'weights.safetensors'}, {faults}, {out / 'faults.png'}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except outcrop.OutcropError as error:
        raise SystemExit(f"error: {error}") from None
