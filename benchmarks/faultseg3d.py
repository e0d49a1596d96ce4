"""Train faultseg3d on synthetic surveys as its shipped weights were, and score weights.

    python benchmarks/faultseg3d.py train runs/faultseg3d --epochs 24
    python benchmarks/faultseg3d.py score --weights runs/faultseg3d/weights.safetensors

`train` with `--weights synthetic-v1` goes on from the shipped ones. `score` evaluates whole
volumes that were never trained on: 20 synthetic surveys of another seed, drawn as for training; 20
of another shape and other parameters; and an image of another group's simulator. The threshold,
0.5, was fixed before the first score. Writes a table and benchmarks/results/faultseg3d.json.
"""

import json
import platform
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torchmetrics.functional.classification import binary_average_precision

import outcrop
from outcrop.models.weights import digest
from outcrop.training.recipes import RANGES, random_survey

ROOT = Path(__file__).parents[1]
THRESHOLD = 0.5
SEED = 20_261_124
OTHER = {
    "faults": (4, 12),
    "dip": (45.0, 82.0),
    "slip": (4.0, 24.0),
    "folding": (0.3, 1.2),
    "layer_thickness": (2.0, 3.5),
    "peak_frequency": (20.0, 40.0),
    "noise": (0.1, 0.5),
}
OTHER_SHAPE = (112, 128, 144)

app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Folder of the run.")],
    epochs: Annotated[int, typer.Option(help="Of as many voxels as 200 crops of 64³.")] = 24,
    crop: Annotated[int, typer.Option(help="Samples along each axis.")] = 64,
    max_time: Annotated[str | None, typer.Option(help="hours:minutes:seconds.")] = None,
    weights: Annotated[str, typer.Option(help="To start from.")] = "seeded",
    learning_rate: Annotated[float, typer.Option(help="At most.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the surveys; not that of the scores.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on.")] = False,
) -> None:
    """Train: on one core about a second a crop, in bfloat16."""
    outcrop.training.fit(
        "faultseg3d",
        "synthetic",
        out=out,
        weights=weights,
        crop=crop,
        epochs=epochs,
        samples=round(200 * (64 / crop) ** 3),
        validation_samples=16,
        max_time=max_time,
        learning_rate=learning_rate,
        precision="bf16-mixed",
        seed=seed,
        resume=resume,
        progress=True,
    )


@app.command()
def score(
    weights: Annotated[str, typer.Option(help="File, or a name.")] = "synthetic-v1",
    count: Annotated[int, typer.Option(help="Synthetic surveys of either kind.")] = 20,
    results: Annotated[Path, typer.Option(help="JSON to write.")] = ROOT
    / "benchmarks/results/faultseg3d.json",
) -> None:
    """Score weights on what they were not trained on."""
    model = outcrop.models.load("faultseg3d", weights=weights)
    mtl = ROOT / "tests/data/mtl"
    image, label = (
        np.fromfile(mtl / f"0{s}.bin", "<f4").reshape(64, 64, 64) for s in ("", "_fsem")
    )
    found = {
        "as for training": _score(model, _synthetic(count, SEED, RANGES, (128, 128, 128))),
        "other parameters": _score(model, _synthetic(count, SEED + 1, OTHER, OTHER_SHAPE)),
        "another simulator (mtl)": _score(model, [(image, label > 0.5)]),
    }
    heads = "dice", "mean", "iou", "prec.", "recall", "AP"
    print(f"{'data':26}{'volumes':>8}" + "".join(f"{head:>8}" for head in heads))
    for name, each in found.items():
        keys = "dice", "mean dice", "iou", "precision", "recall", "average_precision"
        row = (each[k] for k in keys)
        print(f"{name:26}{each['volumes']:8d}" + "".join(f"{v:8.3f}" for v in row))
    results.write_text(
        json.dumps(
            {
                "weights": weights,
                "sha256": digest(model),
                "threshold": THRESHOLD,
                "other parameters": {**OTHER, "shape": OTHER_SHAPE},
                "scores": found,
                "machine": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "date": time.strftime("%Y-%m-%d"),
            },
            indent=1,
        )
        + "\n"
    )


def _synthetic(count, seed, ranges, shape):
    for number in range(count):
        made = random_survey(shape, (seed, number), ranges=ranges, labels=("fault",))
        yield made.amplitude.to_numpy(), made.fault.to_numpy()


def _score(model, volumes):
    """Scores over all voxels of all volumes together, and the Dice coefficient of each volume."""
    dice, probabilities, labels = [], [], []
    for image, label in volumes:
        x = (image - image.mean(dtype=np.float64)) / image.std(dtype=np.float64)
        x = torch.from_numpy(x.T[None, None].astype(np.float32))
        with torch.inference_mode():
            y = model(x)[0, 0].numpy().T
        dice.append(_ratios(y >= THRESHOLD, label)["dice"])
        probabilities.append(y.ravel())
        labels.append(label.ravel())
    y, label = np.concatenate(probabilities), np.concatenate(labels)
    precision = binary_average_precision(torch.from_numpy(y), torch.from_numpy(label).int())
    return {
        "volumes": len(dice),
        **_ratios(y >= THRESHOLD, label),
        "average_precision": float(precision),
        "share of faults": float(label.mean()),
        "mean dice": float(np.mean(dice)),
        "dice of each": dice,
    }


def _ratios(found, label):
    both, either = int((found & label).sum()), int((found | label).sum())
    return {
        "dice": 2 * both / max(int(found.sum()) + int(label.sum()), 1),
        "iou": both / max(either, 1),
        "precision": both / max(int(found.sum()), 1),
        "recall": both / max(int(label.sum()), 1),
    }


if __name__ == "__main__":
    app()
