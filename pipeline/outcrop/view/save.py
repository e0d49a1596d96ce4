"""Pictures as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ..errors import OutcropError


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix; OutcropError if there is none such."""
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in formats:
        raise OutcropError(f"{path}: no such format; choose one of {', '.join(sorted(formats))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
