"""Pictures as files."""

from __future__ import annotations

import os

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from ..errors import OutcropError
from ..storage import on_disk


def check_format(path: str | os.PathLike[str]) -> None:
    """Raise `OutcropError` if no picture is written there, in the format of the path's suffix."""
    path, formats = on_disk(path), FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in formats:
        raise OutcropError(f"{path}: no such format; choose one of {', '.join(sorted(formats))}")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the path's suffix; OutcropError if that cannot be."""
    check_format(path)
    path = on_disk(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise OutcropError(
            f"{path}: cannot be written ({error.strerror}); choose another path"
        ) from error
