"""What networks find along the outline of a survey, by what they are shown where no trace is.

    python benchmarks/outline.py --json outline.json --draw docs/images/outline.png

Synthetic surveys of irregular outline with a hole in it, whose faults are known everywhere. Dice
of faultseg3d's shipped weights, at the threshold of 0.5, over the live traces within four of a
missing one, and over all live traces. `zeros` and `mean` are whole-volume evaluations of what is
usually done by hand: normalised with the zeros counted, or the mean of the live traces put there.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
import xarray as xr

import outcrop
from outcrop.training.synthetic import synthetic_survey

SHAPE, NEAR = (104, 112, 96), 4
TRACES = ("inline", "crossline")


def outline() -> np.ndarray:
    """Where there are traces."""
    i, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    hole = (i - 60) ** 2 + (x - 70) ** 2 < 100
    return (i + 0.6 * x > 40) & (i - 0.8 * x < 60) & ~hole


def near(live: np.ndarray) -> np.ndarray:
    """Live traces that are so near to a missing one, in steps along lines."""
    inner = live
    for _ in range(NEAR):
        p = np.pad(inner, 1, mode="edge")
        inner = p[1:-1, 1:-1] & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
    return live & ~inner


def dice(probability: np.ndarray, fault: np.ndarray) -> float:
    """Overlap of what is found and what is there."""
    found = probability > 0.5
    return float(2 * (found & fault).sum() / (found.sum() + fault.sum()))


def by_hand(model: torch.nn.Module, values: np.ndarray) -> np.ndarray:
    """Evaluate the network over normalised (inline, crossline, twt) samples."""
    x = torch.from_numpy(values.astype(np.float32)).permute(2, 1, 0)[None, None]
    return outcrop.whole_volume(model, x.contiguous())[0, 0].permute(2, 1, 0).numpy()


def predicted(model: torch.nn.Module, survey: xr.Dataset) -> np.ndarray:
    """Predict (inline, crossline, twt)."""
    with TemporaryDirectory() as folder:
        found = outcrop.predict(model, survey, Path(folder) / "o.zarr")
        return found.fault_probability.transpose(*TRACES, "twt").to_numpy()


def draw(path: Path, panels: dict[str, np.ndarray], live: np.ndarray) -> None:
    """Draw a time slice of each (inline, crossline, twt) in the middle, blank without traces."""
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.4), layout="constrained")
    for ax, (name, values) in zip(axes, panels.items(), strict=True):
        there = np.ones_like(live) if name.startswith("all traces") else live
        section = np.ma.masked_array(values[:, :, SHAPE[2] // 2], ~there)
        image = ax.imshow(section.T, origin="lower", cmap="magma", vmin=0, vmax=1)
        ax.set(title=name, xlabel="inline", ylabel="crossline", facecolor="cadetblue")
        ax.label_outer()
    figure.colorbar(image, ax=axes, label="fault probability")
    figure.savefig(path, dpi=110)


def main(
    surveys: Annotated[int, typer.Option(min=1, help="How many, of seeds from 0.")] = 6,
    json_path: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
    picture: Annotated[Path | None, typer.Option("--draw", help="Picture of the first.")] = None,
) -> None:
    """Print a table of the mean scores."""
    model = outcrop.models.load("faultseg3d", weights="synthetic-v1")
    live = outline()
    rim = near(live)
    scores: dict[str, list[tuple[float, float]]] = {}
    for seed in range(surveys):
        survey = synthetic_survey(SHAPE, seed=seed).transpose(*TRACES, "twt")
        fault = survey.fault.to_numpy() > 0.5
        whole = survey.amplitude.to_numpy()
        held = whole * live[..., None]
        zeros = survey.assign(amplitude=survey.amplitude.copy(data=held))
        some = whole[live]
        ways = {
            "all traces": predicted(model, survey),
            "zeros": by_hand(model, (held - held.mean()) / held.std()),
            "mean": by_hand(model, live[..., None] * (whole - some.mean()) / some.std()),
            "predict, missing": predicted(model, zeros.assign_coords(live=(TRACES, live))),
            "predict, zeros": predicted(model, zeros),
        }
        if picture is not None and seed == 0:
            shown = {
                "all traces": ways["all traces"],
                "zeros shown to the network": ways["zeros"],
                "outcrop.predict": ways["predict, zeros"],
            }
            draw(picture, shown, live)
        for name, found in ways.items():
            pair = dice(found[rim], fault[rim]), dice(found[live], fault[live])
            scores.setdefault(name, []).append(pair)
    means = {name: np.mean(pairs, axis=0).round(3).tolist() for name, pairs in scores.items()}
    print(f"{'':18}near the outline   all live traces")
    for name, (close, all_of_them) in means.items():
        print(f"{name:18}{close:16.3f}{all_of_them:18.3f}")
    if json_path is not None:
        result = {"surveys": surveys, "shape": SHAPE, "traces_from_outline": NEAR, "dice": means}
        json_path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
