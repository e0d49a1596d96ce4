"""`outcrop train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ArgumentError
from ._shared import Option, Overwrite, Shape, Tasks, extents_of, options_of


def command(
    network: Annotated[
        str,
        typer.Argument(
            help="Network of the zoo: see outcrop models; or FILE.py:NAME of your own, with a card."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder for checkpoints, weights and the record.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="'synthetic' (default), a folder of raw samples (0.bin, 0_fsem.bin, ...), or a "
            "survey in Zarr with label variables; several times for several of them."
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="To start from: a file, 'seeded', or weights that outcrop ships.")
    ] = "seeded",
    option: Option = None,
    tasks: Tasks = None,
    infer_weights: Annotated[
        str | None, typer.Option(help="Of mtl-infer, whose outputs mtl-refine refines.")
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(help="Data to validate with, as --data; a part is held out unless given."),
    ] = None,
    shape: Shape = None,
    size: Annotated[int, typer.Option(help="Of synthetic surveys, along each axis.")] = 128,
    crop: Annotated[
        str,
        typer.Option(
            help="Of crops: one number, or inlines,crosslines,samples: not the order of --shape, "
            "which is that of raw files."
        ),
    ] = "64",
    per_volume: Annotated[int, typer.Option(help="Crops in turn from each volume.")] = 8,
    augment: Annotated[
        bool, typer.Option(help="Mirror, turn, stretch and scale the crops.")
    ] = True,
    epochs: Annotated[int, typer.Option(help="How many; it is validated after each.")] = 100,
    samples: Annotated[int, typer.Option(help="Crops in an epoch.")] = 400,
    validation_samples: Annotated[
        int, typer.Option("--val-samples", help="Crops to validate with.")
    ] = 8,
    batch: Annotated[int, typer.Option(help="Crops at a time on each device.")] = 1,
    accumulate: Annotated[int, typer.Option(help="Batches to a step.")] = 1,
    loss: Annotated[
        str, typer.Option(help="Of probabilities: dice-bce, balanced-bce or dice.")
    ] = "dice-bce",
    learning_rate: Annotated[float, typer.Option(help="Of Adam, at most.")] = 1e-3,
    schedule: Annotated[
        str, typer.Option(help="Of the learning rate: cosine, plateau or constant.")
    ] = "cosine",
    patience: Annotated[
        int | None,
        typer.Option(help="End after so many epochs without a better validation loss."),
    ] = None,
    averaging: Annotated[
        float, typer.Option(help="Decay of the moving average of the weights; 0 for none.")
    ] = 0.995,
    precision: Annotated[
        str, typer.Option(help="Lightning's: 32-true, bf16-mixed, 16-mixed, ...")
    ] = "32-true",
    activations: Annotated[
        str, typer.Option(help="Where activations are kept for backward: device, cpu or disk.")
    ] = "device",
    activations_path: Annotated[
        Path | None, typer.Option(help="Folder for 'disk'; that for temporary files unless given.")
    ] = None,
    compress: Annotated[
        bool, typer.Option("--compress", help="Keep them at 8 bits a value: lossy.")
    ] = False,
    max_time: Annotated[
        str | None, typer.Option(help="hours:minutes:seconds; end with the epoch it is up in.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the data and everything random.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that make or read crops.")] = 1,
    accelerator: Annotated[str, typer.Option(help="Lightning's: auto, cpu or gpu.")] = "auto",
    devices: Annotated[str, typer.Option(help="Lightning's: how many, or auto.")] = "1",
    nodes: Annotated[int, typer.Option(help="Machines that train together.")] = 1,
    strategy: Annotated[
        str, typer.Option(help="Lightning's: auto, ddp, fsdp, ...: how devices share the work.")
    ] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run in --out stopped.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a network of the zoo on synthetic surveys or on your own.

    Leaves checkpoints, weights.safetensors for `outcrop predict`, training.json with all that is
    needed to repeat it, a picture of predictions, and logs for TensorBoard.

    Example: outcrop train faultseg3d --data synthetic --epochs 20 --out runs/faults
    """
    from .. import training

    training.fit(
        network,
        data or "synthetic",
        out=out,
        weights=weights,
        options=options_of(option, tasks),
        infer_weights=infer_weights,
        validation=validation or None,
        shape=None if shape is None else extents_of(shape),
        size=size,
        crop=_numbers(crop),
        per_volume=per_volume,
        augment=augment,
        epochs=epochs,
        samples=samples,
        validation_samples=validation_samples,
        batch=batch,
        accumulate=accumulate,
        loss=loss,
        learning_rate=learning_rate,
        schedule=schedule,
        patience=patience,
        averaging=averaging,
        precision=precision,
        activations=activations,
        activations_path=activations_path,
        compress=compress,
        max_time=max_time,
        seed=seed,
        workers=workers,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        strategy=strategy,
        resume=resume,
        overwrite=overwrite,
        progress=True,
    )
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # once, of several processes
        folder = Path(out)
        best, record = folder / "weights.safetensors", folder / "training.json"
        typer.echo(f"{best}: the best weights; {record}: how")


def _numbers(crop: str) -> int | tuple[int, ...]:
    try:
        numbers = tuple(int(n) for n in crop.split(","))
    except ValueError:
        raise ArgumentError(
            f"--crop {crop}: give one number, or inlines,crosslines,samples"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers
