"""Renew the pictures in docs/training.md.

python docs/render_training.py
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from outcrop.training.recipes import random_survey

IMAGES = Path(__file__).parent / "images"
LABELS = {
    "amplitude": ("gray", -2.5, 2.5),
    "dhr": ("gray", -2.5, 2.5),
    "rgt": ("turbo", 0, 1),
    "fault": ("Reds", 0, 1),
    "fault_dip": ("twilight", 0, 180),
    "fault_strike": ("twilight", 0, 180),
}


def surveys(count: int = 5) -> None:
    """Draw an inline and a time slice of some surveys, and the faults on them."""
    figure = Figure(figsize=(2 * count, 6), layout="constrained")
    axes = figure.subplots(3, count)
    for number, column in enumerate(axes.T):
        made = random_survey((128, 128, 128), (1, number), labels=("fault",))
        amplitude, fault = made.amplitude.to_numpy(), made.fault.to_numpy()
        for panel, cut in zip(column, (np.s_[64], np.s_[64], np.s_[:, :, 64]), strict=True):
            panel.imshow(amplitude[cut].T, cmap="gray", vmin=-2.5, vmax=2.5)
            panel.set(xticks=[], yticks=[])
        on = np.ma.masked_equal(fault[64].T, 0)
        column[1].imshow(on, cmap="autumn", alpha=0.8, interpolation="nearest")
    for panel, name in zip(axes[:, 0], ("inline", "inline, faults", "time slice"), strict=True):
        panel.set_ylabel(name)
    figure.savefig(IMAGES / "synthetic.png", dpi=60)


def labels() -> None:
    """Draw every label of one survey."""
    made = random_survey((128, 128, 128), (1, 1))
    figure = Figure(figsize=(12, 2.6), layout="constrained")
    for panel, (name, (colours, low, high)) in zip(
        figure.subplots(1, len(LABELS)), LABELS.items(), strict=True
    ):
        values = made[name].to_numpy()[64].T.astype(float)
        if name.startswith("fault_"):
            values = np.ma.masked_equal(values, 0)
        panel.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        panel.set(xticks=[], yticks=[], title=name)
    figure.savefig(IMAGES / "synthetic-labels.png", dpi=60)


if __name__ == "__main__":
    surveys()
    labels()
