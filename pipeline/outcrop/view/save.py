"""Pictures as files."""

from __future__ import annotations

import os

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from ..errors import OutcropError
from ..storage import on_disk, put_whole
from ..targets import check_apart


def check_format(path: str | os.PathLike[str]) -> str:
    """Return the format that the path's suffix names; OutcropError if no picture has it."""
    path = on_disk(path)
    # The first needs LaTeX; the others are bare pixels, and ".raw" a volume here.
    formats = set(FigureCanvasBase.get_supported_filetypes()) - {"pgf", "raw", "rgba"}
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in formats:
        raise OutcropError(f"{path}: no such format; choose one of {', '.join(sorted(formats))}")
    return suffix


def save(figure: Figure, path: str | os.PathLike[str], *drawn: object) -> None:
    """Write a figure in the format of the path's suffix; OutcropError if that cannot be.

    It is there whole, or what was there before; and never in the place of what is drawn.
    """
    suffix, path = check_format(path), on_disk(path)
    for volume in drawn:
        check_apart(volume, path, what="the volume")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with put_whole(path) as part:
            figure.savefig(part, dpi=110, format=suffix)
    except OSError as error:
        raise OutcropError(
            f"{path}: cannot be written ({error.strerror}); choose another path"
        ) from error
