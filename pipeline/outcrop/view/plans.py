"""A plan drawn: what is stored where and for how long, and what each stage takes."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..planner import Plan, format_bytes, format_seconds
from .save import save

_COLORS = {
    "input": "#7a7a7a",
    "device": "#d1495b",
    "cpu": "#edae49",
    "disk": "#30638e",
    "global": "#66a182",
    "output": "#2b2b2b",
}
# Tensors that get a row and a name each; more than that share rows.
_ROWS = 40


def draw_plan(plan: Plan, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw what a plan stores where, from which stage to which, and what each stage takes.

    Above, each tensor is a bar from the stage that writes it to the last that reads it, in the
    colour of its place; below are the memory and the predicted time of every stage.

    Parameters
    ----------
    plan : Plan
    path : path-like, optional
        Picture to write, in the format of its suffix (.png, .pdf, .svg).

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot: nothing to close.

    Raises
    ------
    OutcropError
        If no picture can be written in the format of `path`.
    """
    spans = _spans(plan)
    named = len(spans) <= _ROWS
    rows = {name: row for row, name in enumerate(spans)} if named else _lanes(spans)
    depth = max(rows.values()) + 1
    count = len(plan.stages)
    width = float(np.clip(3.5 + 0.6 * count, 8, 18))
    height = 0.24 * depth + 0.6
    figure = Figure(figsize=(width, height + 4.2), layout="constrained")
    tensors, memory, time = figure.subplots(3, 1, sharex=True, height_ratios=[height, 1.8, 1.2])

    for name, (first, last, place) in spans.items():
        row, color = rows[name], _COLORS[place]
        tensors.barh(row, last - first + 0.8, left=first - 0.4, height=0.7, color=color)
    labels = [_label(plan, n, spans[n][2]) for n in rows] if named else []
    tensors.set_yticks(range(len(labels)), labels)
    if not named:
        tensors.set_ylabel(f"{len(spans)} stored")
    tensors.tick_params(axis="y", labelsize="small", length=0)
    tensors.set_ylim(depth - 0.4, -0.6)
    tensors.set_title(
        f"{plan.dtype} on {plan.device}: {count} stage{'s' * (count > 1)}, "
        f"{plan.operations:.3g} operations, about {format_seconds(plan.seconds)}"
        + (f"\n{plan.in_all}" if plan.in_all else ""),
        fontsize="medium",
        loc="left",
    )
    places = {place for _, _, place in spans.values()}
    handles = [Patch(color=_COLORS[p], label=p) for p in _COLORS if p in places]
    tensors.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

    _draw_memory(memory, plan, spans)
    x = np.arange(1, count + 1)
    time.bar(x, [s.seconds for s in plan.stages], color="#9a9a9a")
    for i, stage in enumerate(plan.stages, start=1):
        if count <= 30:
            text = f"{stage.count}×\n" + "×".join(map(str, stage.tile))
            time.annotate(text, (i, stage.seconds), ha="center", va="bottom", fontsize="x-small")
    time.margins(y=0.35 if count <= 30 else 0.05)
    time.set_ylabel("time (s)")
    time.set_xlabel("stage" + (", above its number of tiles and their shape" * (count <= 30)))
    time.set_xlim(0.4, count + 0.6)
    ticks = MaxNLocator(integer=True, nbins=min(count + 1, 25), min_n_ticks=1)
    time.xaxis.set_major_locator(ticks)
    for axes in (tensors, memory, time):
        axes.spines[["top", "right"]].set_visible(False)
    if path is not None:
        save(figure, path)
    return figure


def _draw_memory(axes: Axes, plan: Plan, spans: dict[str, tuple[int, int, str]]) -> None:
    """What a process holds on the device while each stage runs."""
    x = np.arange(1, len(plan.stages) + 1)
    stored = np.zeros(len(x))
    for name, (first, last, place) in spans.items():
        if place == "device":
            stored[first - 1 : last] += plan.stored_bytes[name]
    tile = np.array([s.tile_bytes for s in plan.stages], float)
    # What a stage reads for the last time gives its room to what it writes.
    peaks = np.array([s.peak or np.inf for s in plan.stages], float)
    stored = np.minimum(stored, np.maximum(0, peaks - tile))
    axes.bar(x, stored, color=_COLORS["device"], label="stored tensors")
    axes.bar(x, tile, bottom=stored, color="#e9c3c8", label="a tile")
    kept = np.array([max(plan.chunk_bytes, s.chunk_bytes) for s in plan.stages], float)
    if kept.any() and plan.device == "cpu":
        axes.bar(x, kept, bottom=stored + tile, color="#b0b0b0", label="chunks of the survey")
    axes.axhline(plan.peak_memory, color="black", lw=1, ls="--")
    axes.annotate(
        f"promised peak {format_bytes(plan.peak_memory)} of {format_bytes(plan.memory)}, "
        "with weights, result and what is read ahead",
        (0.0, plan.peak_memory),
        xycoords=("axes fraction", "data"),
        xytext=(3, 2),
        textcoords="offset points",
        fontsize="x-small",
    )
    axes.set_ylim(0, 1.25 * plan.peak_memory)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: format_bytes(v)))
    axes.set_ylabel("device memory")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _spans(plan: Plan) -> dict[str, tuple[int, int, str]]:
    """For each tensor the stage (from 1) that writes it, the last that reads it, and its place."""
    written = {n for s in plan.stages for n in (*s.outputs, *s.reduces)}
    first = {n: i for i, s in enumerate(plan.stages, 1) for n in (*s.outputs, *s.reduces)}
    last: dict[str, int] = {}
    inputs: dict[str, None] = {}
    for i, stage in enumerate(plan.stages, 1):
        for name in stage.inputs:
            last[name] = i
            if name not in written:
                inputs[name] = None
    spans = {n: (1, last[n], "input") for n in inputs}
    for name, i in first.items():
        place = plan.places.get(name)
        spans[name] = (i, len(plan.stages), "output") if place is None else (i, last[name], place)
    return spans


def _lanes(spans: dict[str, tuple[int, int, str]]) -> dict[str, int]:
    """For each tensor the first row where no other is in its way."""
    ends: list[int] = []
    rows = {}
    for name, (first, last, _) in sorted(spans.items(), key=lambda item: item[1][:2]):
        row = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[row : row + 1] = [last]
        rows[name] = row
    return rows


def _label(plan: Plan, name: str, place: str) -> str:
    if name in plan.places:
        return f"{name}  {format_bytes(plan.stored_bytes[name])}"
    return f"{name} ({place})"
