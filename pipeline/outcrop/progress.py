"""Progress of long work, on a terminal: amount, rate and time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from .events import Begin, End, Event, Retry, Tile, Workers

# Seconds between lines where there is no terminal, such as in the log of a batch system.
_EVERY = 60.0


class _Bar(Progress):
    """Bars on a terminal; elsewhere a line of each from time to time, and at the end."""

    def __init__(self, *columns: ProgressColumn, console: Console, disable: bool) -> None:
        super().__init__(*columns, console=console, disable=disable, speed_estimate_period=60.0)
        self.lines = not (disable or console.is_terminal or console.is_jupyter)
        self.told = time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change what is shown of a task."""
        super().update(task_id, **changes)
        if self.lines and time.monotonic() >= self.told + _EVERY:
            self.told = time.monotonic()
            self.console.print(self.make_tasks_table([t for t in self.tasks if not t.finished]))


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
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
    with _bar(unit, enabled) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda amount: bar.update(task, advance=amount)


def _bar(unit: str, enabled: bool = True) -> Progress:
    return _Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
        disable=not enabled,
    )


@dataclass
class _State:
    """What is shown of a prediction."""

    task: TaskID
    voxels: int
    stages: int
    workers: int = 0
    retries: int = 0
    stage: int = 1

    @property
    def note(self) -> str:
        """Stage, workers and retries."""
        words = [f"stage {self.stage} of {self.stages}"]
        if self.workers > 1:
            words.append(f"{self.workers} workers")
        if self.retries:
            words.append(f"{self.retries} {'retry' if self.retries == 1 else 'retries'}")
        return ", ".join(words)


class ProgressBar:
    """A listener that shows a bar for each prediction: rate, time left, stage, workers, retries."""

    def __init__(self) -> None:
        self.bar = _bar("voxels")
        self.states: dict[str, _State] = {}

    def __call__(self, event: Event) -> None:
        """Show what an event changes."""
        if isinstance(event, Begin):
            self._begin(event)
            return
        state = self.states.get(event.output)
        if state is None:  # it was refused before it began
            return
        if isinstance(event, Tile):
            state.stage = event.stage
            self.bar.update(state.task, advance=event.share * state.voxels, note=state.note)
        elif isinstance(event, Workers):
            state.workers = event.workers
        elif isinstance(event, Retry):
            state.retries += 1
            self.bar.update(state.task, note=state.note)
        elif isinstance(event, End):
            if event.error is None:  # to the last voxel, whatever the sum of shares is rounded to
                self.bar.update(state.task, completed=state.voxels)
            del self.states[event.output]
            if not self.states:
                self.bar.stop()

    def _begin(self, event: Begin) -> None:
        what = f"predict {Path(event.output).name}"
        task = self.bar.add_task(what, total=event.voxels, note="")
        state = _State(task, event.voxels, len(event.stages))
        self.states[event.output] = state
        if event.finished:
            self.bar.console.print(
                f"resuming: {event.finished:,} of {event.tiles:,} tiles are done", highlight=False
            )
            # Set, not advanced: what an earlier run did says nothing about the rate of this one.
            self.bar.update(task, completed=event.share * event.voxels)
        self.bar.update(task, note=state.note)
        self.bar.start()
