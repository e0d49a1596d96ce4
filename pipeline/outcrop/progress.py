"""Progress of long work, on a terminal: amount, rate and time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed / 1e6:,.2f} M{self.unit}/s")


@contextlib.contextmanager
def track(
    what: str, total: float, unit: str, enabled: bool = True
) -> Iterator[Callable[[float], None]]:
    """Show a progress bar while the block runs.

    Parameters
    ----------
    what : str
        What is being done, shown in front of the bar.
    total : float
        The whole amount, in `unit`.
    unit : str
        What is counted: "B" (bytes) or "voxels"; the rate is shown in millions of it a second.
    enabled : bool
        False shows nothing.

    Yields
    ------
    advance : callable
        Call it with the amount that was just finished.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not enabled,
        speed_estimate_period=60.0,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.update(task, advance=amount)
