"""Charts of a run in SVG: who worked when on what, and how much memory that took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ..planner import format_bytes
from ..record import Record

# Of stages, in turns: told apart by those who see no red or green.
COLOURS = ("#4477aa", "#ee8866", "#44bb99", "#aa4499", "#bbcc33", "#77aadd", "#eedd88", "#ffaabb")
_WIDTH, _LEFT, _RIGHT, _ROW, _BAR = 1060, 190, 20, 22, 15
_NAME = 24  # characters of a worker's name that there is room for, the last
# More tiles than that are drawn joined to their neighbours of the same stage.
_SINGLY = 4000
_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


def timeline(record: Record) -> str:
    """Draw a row for each worker, with a bar for each tile; there is at least one."""
    columns = {name: np.asarray(values) for name, values in record.tiles.items()}
    begin = min(e.time for e in record.begun.values())
    end = max(columns["stop"].max(), *(e.time for e in record.ended.values()), begin)
    scale = (_WIDTH - _LEFT - _RIGHT) / max(end - begin, 1e-9)
    shapes = []
    for row, name in enumerate(record.workers):
        y = 8 + row * _ROW
        shapes.append(_label(name, y))
        shapes.append(f'<rect class="lane" x="{_LEFT}" y="{y}" width="{_WIDTH - _LEFT - _RIGHT}"'
                      f' height="{_BAR}"/>')  # fmt: skip
        chosen = np.flatnonzero(columns["worker"] == row)
        for first, last, start, stop in _joined(columns, chosen, 2 / scale):
            stage = int(columns["stage"][first])
            many = "" if first == last else f" and others up to {columns['tile'][last]}"
            title = (
                f"stage {stage}, tile {columns['tile'][first]}{many}"
                f"{_volume(record, columns, first)}\n{start - begin:.2f} to {stop - begin:.2f} s"
            )
            shapes.append(
                f'<rect class="tile" x="{_LEFT + (start - begin) * scale:.2f}" y="{y}" '
                f'width="{max(0.4, (stop - start) * scale):.2f}" height="{_BAR}" '
                f'fill="{COLOURS[(stage - 1) % len(COLOURS)]}">'
                f"<title>{escape(title)}</title></rect>"
            )
    height = 8 + len(record.workers) * _ROW
    shapes += [
        f'<line class="retry" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height}">'
        f"<title>{escape(retry.message)}</title></line>"
        for retry in record.retries
        for x in (_LEFT + (retry.time - begin) * scale,)
    ]
    shapes += _axis(end - begin, height)
    return _svg(height + 26, shapes, "Which worker evaluated which tile, and when")


def memory(workers: Sequence[Mapping[str, Any]], promised: int) -> str:
    """Draw how far each worker has grown, beside what the plan promises not to exceed."""
    largest = 1.08 * max([promised, *(w["memory"] for w in workers)])
    scale = (_WIDTH - _LEFT - _RIGHT) / max(largest, 1)
    shapes = []
    for row, worker in enumerate(workers):
        y = 8 + row * _ROW
        shapes.append(_label(worker["name"], y))
        kind = "held" if worker["memory"] <= promised else "broken"
        width = worker["memory"] * scale
        words = format_bytes(worker["memory"]) if worker["memory"] else "not known"
        inside = width > 90
        x = _LEFT + (width - 6 if inside else width + 6)
        shapes.append(
            f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}"/>'
            f'<text class="{"inside" if inside else "beside"}" x="{x:.1f}" y="{y + 11.5}">'
            f"{words}</text>"
        )
    height, x = 8 + len(workers) * _ROW, _LEFT + promised * scale
    shapes.append(
        f'<line class="promise" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height}"/>'
        f'<text class="axis" x="{x:.1f}" y="{height + 16}">promised {format_bytes(promised)}</text>'
    )
    return _svg(height + 26, shapes, "Memory of each worker against the plan's promise")


def _joined(
    columns: Mapping[str, np.ndarray], chosen: np.ndarray, gap: float
) -> list[tuple[int, int, float, float]]:
    """First and last tile, start and stop of each bar of a worker."""
    bars: list[tuple[int, int, float, float]] = []
    for i in chosen[np.argsort(columns["start"][chosen], kind="stable")].tolist():
        start, stop = float(columns["start"][i]), float(columns["stop"][i])
        if bars and len(columns["tile"]) > _SINGLY:
            first, _, begun, ended = bars[-1]
            if columns["stage"][first] == columns["stage"][i] and start - ended < gap:
                bars[-1] = first, i, begun, max(ended, stop)
                continue
        bars.append((i, i, start, stop))
    return bars


def _volume(record: Record, columns: Mapping[str, np.ndarray], i: int) -> str:
    output = record.outputs[columns["output"][i]]
    volume = f", volume {columns['volume'][i]}" if record.begun[output].volumes > 1 else ""
    return volume + (f", {output}" if len(record.outputs) > 1 else "")


def _axis(seconds: float, y: float) -> list[str]:
    """Ticks at round numbers, of seconds, minutes or hours."""
    unit, name = next(u for u in _UNITS if seconds >= 3 * u[0] or u[0] == 1)
    span = max(seconds, 1e-9) / unit
    step = 10.0 ** np.floor(np.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 10)
    scale = (_WIDTH - _LEFT - _RIGHT) / span
    return [
        f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>'
        f'<text class="axis" x="{x:.1f}" y="{y + 17}">{round(t, 6):g} {name}</text>'
        for t in np.arange(0, span * (1 + 1e-9), step).tolist()
        for x in (_LEFT + t * scale,)
    ]


def _label(name: str, y: float) -> str:
    shown = name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"
    return (
        f'<text class="name" x="{_LEFT - 10}" y="{y + 11.5}">{escape(shown)}'
        f"<title>{escape(name)}</title></text>"
    )


def _svg(height: float, shapes: Sequence[str], title: str) -> str:
    inner = "\n".join(shapes)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">\n{inner}\n</svg>'
