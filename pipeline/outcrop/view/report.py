"""A page about a run: what it took, who did what when, pictures, provenance."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from ..arrays import spoken
from ..errors import ArgumentError, OutcropError
from ..events import Retry, Warn
from ..planner import format_bytes, format_seconds
from ..record import Record
from ..storage import place, write_whole
from .sections import sections
from .timeline import COLOURS, memory, timeline

# Samples along an axis of what is drawn: a section of a large survey takes long to read.
_DRAWN = 1024
_PICTURES = 8  # of several surveys, at most

_STYLE = """
:root { --ink: #1d2b36; --soft: #61707d; --line: #dfe5ea; --ground: #f6f8f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 24px 64px; }
header { margin-bottom: 20px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
header p { margin: 2px 0 0; color: var(--soft); }
h2 { font-size: 16px; margin: 0 0 12px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px;
          padding: 18px 22px; margin-top: 16px; overflow-x: auto; }
.figures { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; }
.figures div { background: #fff; border: 1px solid var(--line); border-radius: 8px;
               padding: 12px 14px; }
.figures b { display: block; font-size: 19px; font-weight: 600; white-space: nowrap; }
.figures span { color: var(--soft); font-size: 13px; }
.stopped { border-left: 5px solid #b3261e; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: 13px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.key { color: var(--soft); white-space: nowrap; width: 1%; padding-right: 24px; }
td.value { overflow-wrap: anywhere; }
i.dot { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px; }
.bar { display: flex; height: 11px; border-radius: 3px; overflow: hidden; background: #edf1f4;
       min-width: 220px; margin-top: 6px; }
.reading { background: #77aadd; } .computing { background: #225588; }
.writing { background: #ee8866; }
.legend { color: var(--soft); font-size: 13px; margin: 10px 0 0; }
.legend span { white-space: nowrap; margin-right: 14px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
            margin-right: 6px; vertical-align: -1px; }
svg { width: 100%; min-width: 640px; height: auto; display: block; font-size: 12px;
      overflow: visible; }
svg .lane { fill: #edf1f4; } svg .name { text-anchor: end; fill: var(--ink); }
svg .axis { text-anchor: middle; fill: var(--soft); } svg .tick { stroke: #b8c3cc; }
svg .tile { stroke: #fff; stroke-width: .35; } svg .tile:hover { opacity: .7; }
svg .retry { stroke: #b3261e; stroke-width: 1.5; stroke-dasharray: 3 3; }
svg .held { fill: #225588; } svg .broken { fill: #b3261e; }
svg .promise { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .inside { text-anchor: end; fill: #fff; } svg .beside { fill: var(--ink); }
img { width: 100%; min-width: 640px; display: block; }
.note { color: var(--soft); font-size: 13px; margin: 10px 0 0; }
@media (max-width: 700px) { main { padding: 16px 10px 32px; } section { padding: 14px; }
                            .figures { grid-template-columns: repeat(2, 1fr); }
                            td.key { white-space: normal; overflow-wrap: anywhere; width: 40%; } }
"""


def report(
    record: Record,
    path: str | os.PathLike[str],
    survey: xr.Dataset | Sequence[xr.Dataset] | None = None,
    prediction: xr.Dataset | Sequence[xr.Dataset] | None = None,
) -> None:
    """Write a page about a run: one file that needs no network.

    Parameters
    ----------
    record : Record
        That listened to `predict`.
    path : path-like
        HTML file to write, on disk or an object store.
    survey : xarray.Dataset or sequence of them, optional
        With `amplitude`; under the prediction in the pictures.
    prediction : xarray.Dataset or sequence of them, optional
        Of which three sections through the middle are drawn, of a probability if there is one, of
        at most 1024 samples an axis; of several, one for each survey, of the first eight.

    Raises
    ------
    OutcropError
        If the page cannot be written.
    ArgumentError
        If `survey` or `prediction` is no Dataset, nor a sequence of them.
    """
    surveys, predictions = _each("survey", survey), _each("prediction", prediction)
    facts = record.facts()
    names = list(dict.fromkeys(map(_whole, record.begun)))
    title = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    errors = {o: of["error"] for o, of in facts["outputs"].items() if of["error"]}
    provenances = [of["provenance"] for of in facts["outputs"].values()]
    first = min((e.time for e in record.begun.values()), default=time.time())
    models = ", ".join(dict.fromkeys(str(p.get("model", "")) for p in provenances))
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(models)} &middot; "
        f"{time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(first))}</p></header>",
        _figures(facts),
        *(
            f'<section class="stopped"><h2>{escape(output)} was not finished</h2>'
            f"{escape(error)}</section>"
            for output, error in errors.items()
        ),
    ]
    if facts["tiles"]:
        parts += [
            _section("Workers", timeline(record), _stage_legend(facts["stages"])),
            _section("Where the time went", _workers(facts["workers"]), _TIME_LEGEND),
            _section("Stages", _stages(facts["stages"])),
            _section("Memory", memory(facts["workers"], facts["peak_memory"]), _MEMORY_NOTE),
        ]
    for k, shown in enumerate(predictions[:_PICTURES]):
        of = f" of {os.path.basename(_source(shown))}" if len(predictions) > 1 else ""
        under = surveys[k] if k < len(surveys) else None
        parts.append(_section(f"Sections{escape(of)}", _picture(under, shown)))
    told: list[Retry | Warn] = [*record.retries, *record.warnings]
    if told:
        rows = [
            (format_seconds(event.time - first), event.message)
            for event in sorted(told, key=lambda e: e.time)[:200]
        ]
        parts.append(_section("Retries and warnings", _pairs(rows)))
    source = _source(surveys[0]) if len(surveys) == 1 else ""
    read = {"survey": source} if source else {}
    for output, of in facts["outputs"].items():
        known = {"output": output, **read, **of["provenance"]}
        parts.append(_section("Provenance", _pairs([*known.items()])))
    data = json.dumps(facts).replace("<", "\\u003c")
    text = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>\n"
        + "\n".join(parts)
        + f'\n</main><script type="application/json" id="facts">{data}</script></body></html>\n'
    )
    where = place(path)
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        write_whole(where, text.encode(errors="replace"))  # of a path that is no UTF-8
    except OSError as error:
        raise OutcropError(
            f"{path}: the page about the run cannot be written ({error.strerror or error}); choose "
            "another path"
        ) from None


_TIME_LEGEND = (
    '<p class="legend"><span><i class="reading"></i>reading</span>'
    '<span><i class="computing"></i>computing</span><span><i class="writing"></i>writing</span> '
    "The busiest fills its bar. The next tile is read and the one before written beside the "
    "computing.</p>"
)
_MEMORY_NOTE = (
    '<p class="note">What each worker had grown by at its highest, and the plan\'s '
    "<code>peak_memory</code>.</p>"
)


def _whole(output: str) -> str:
    """Name of an output, or of the one that views and refinements beside it are for."""
    folder, name = os.path.split(output.rstrip("/"))
    return os.path.basename(folder).removesuffix(".steps") if folder.endswith(".steps") else name


def _each(name: str, given: Any) -> list[xr.Dataset]:
    """What is given, none, one or several; `ArgumentError` if that is something else."""
    if isinstance(given, xr.Dataset) or not isinstance(given, Sequence):
        given = [] if given is None else [given]
    for each in given:
        if not isinstance(each, xr.Dataset):
            raise ArgumentError(f"{name}: is a {type(each).__name__}; pass a Dataset")
    return list(given)


def _source(dataset: xr.Dataset) -> str:
    """Where it was read from, if that is known."""
    return str(dataset.encoding.get("source", ""))


def _section(heading: str, *parts: str) -> str:
    return f"<section><h2>{heading}</h2>{''.join(parts)}</section>"


def _figures(facts: Mapping[str, Any]) -> str:
    voxels = f"{facts['voxels']:,.0f}"
    done, of = f"{facts['tiles']:,}", f" of {facts['all_tiles']:,}"
    before = f" ({facts['finished']:,} before)" if facts["finished"] else ""
    figures = [
        (format_seconds(facts["seconds"]), "from begin to end"),
        (f"{facts['voxels_per_second'] / 1e6:,.2f} M", "voxels a second"),
        (voxels if facts["voxels"] < 1e6 else f"{facts['voxels'] / 1e6:,.1f} M", "voxels"),
        (str(len(facts["workers"])), "worker" if len(facts["workers"]) == 1 else "workers"),
        (done, f"tiles{of}{before}"),
        (format_bytes(facts["read"]), "read"),
        (format_bytes(facts["written"]), "written"),
        (str(facts["retries"]), "retry" if facts["retries"] == 1 else "retries"),
    ]
    cells = (f"<div><b>{escape(value)}</b><span>{name}</span></div>" for value, name in figures)
    return f'<div class="figures">{"".join(cells)}</div>'


def _workers(workers: Sequence[Mapping[str, Any]]) -> str:
    longest = max((w["busy"] for w in workers), default=1.0) or 1.0
    rows = []
    for worker in workers:
        whole = max(longest, worker["reading"] + worker["computing"] + worker["writing"])
        bar = "".join(
            f'<span class="{kind}" style="width:{100 * worker[kind] / whole:.2f}%"></span>'
            for kind in ("reading", "computing", "writing")
        )
        cells = [format_seconds(worker[kind]) for kind in ("reading", "computing", "writing")]
        cells += [format_bytes(worker["read"]), format_bytes(worker["written"])]
        rows.append(
            f'<tr><td>{escape(worker["name"])}</td><td><div class="bar">{bar}</div></td>'
            f'<td class="n">{worker["tiles"]:,}</td>'
            + "".join(f'<td class="n">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    heads = ("tiles", "reading", "computing", "writing", "read", "written")
    return (
        "<table><tr><th>worker</th><th></th>"
        + "".join(f'<th class="n">{head}</th>' for head in heads)
        + f"</tr>{''.join(rows)}</table>"
    )


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for stage in stages:
        writes = ", ".join(stage["writes"][:3]) + (" …" if len(stage["writes"]) > 3 else "")
        cells = [
            "×".join(map(str, stage["tile"])),
            f"{stage['tiles']:,}",
            format_seconds(stage["busy"]),
            format_bytes(stage["read"]),
            format_bytes(stage["written"]),
        ]
        rows.append(
            f"<tr><td>{_dot(stage['number'])}{stage['number']}</td>"
            f"<td>{escape(os.path.basename(stage['output']))}: {escape(writes)}</td>"
            + "".join(f'<td class="n">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    heads = ("tile", "tiles", "time of workers", "read", "written")
    return (
        "<table><tr><th>stage</th><th>writes</th>"
        + "".join(f'<th class="n">{head}</th>' for head in heads)
        + f"</tr>{''.join(rows)}</table>"
    )


def _stage_legend(stages: Sequence[Mapping[str, Any]]) -> str:
    numbers = sorted({stage["number"] for stage in stages})
    dots = "".join(
        f'<span><i style="background:{_colour(number)}"></i>stage {number}</span> '
        for number in numbers[:16]
    )
    return f'<p class="legend">{dots}</p>'


def _dot(number: int) -> str:
    return f'<i class="dot" style="background:{_colour(number)}"></i>'


def _colour(number: int) -> str:
    return COLOURS[(number - 1) % len(COLOURS)]


def _pairs(rows: Sequence[tuple[str, Any]]) -> str:
    cells = (
        f'<tr><td class="key">{escape(str(key))}</td><td class="value">{escape(str(value))}</td>'
        "</tr>"
        for key, value in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _picture(survey: xr.Dataset | None, prediction: xr.Dataset) -> str:
    """Three sections through the middle, as an image in the page."""
    volumes = {str(n): v for n, v in prediction.data_vars.items() if v.ndim >= 3}
    if not volumes:
        return '<p class="note">not drawn: there is no volume in it</p>'
    name = max(volumes, key=lambda name: name.endswith("_probability"))  # else the first
    shown, notes = _middle(volumes[name])
    amplitude = None if survey is None or "amplitude" not in survey else survey.amplitude
    if amplitude is not None:
        amplitude, _ = _middle(amplitude)
    try:
        if amplitude is not None and name.endswith("_probability"):
            figure = sections(amplitude, shown)
        else:
            figure = sections(shown, cmap="viridis")
    except OutcropError as error:  # such as of lines in unequal steps
        return f'<p class="note">{escape(f"not drawn: {error}")}</p>'
    note = f'<p class="note">{escape("; ".join([name, *notes]))}.</p>'
    return f'<img alt="Three sections of {escape(name)}" src="{_embedded(figure)}">{note}'


def _middle(volume: xr.DataArray) -> tuple[xr.DataArray, list[str]]:
    """The first volume of a stack, and of it what is near the middle."""
    own, notes = ("inline", "crossline", "twt", "depth"), []
    for dim in [str(d) for d in volume.dims if d not in own]:
        where = volume[dim].values[0] if dim in volume.coords else 0
        notes.append(f"{dim} {spoken(where)}")
        volume = volume.isel({dim: 0})
    if max(volume.shape) > _DRAWN:
        notes.append(f"{_DRAWN} samples in the middle of each axis")
    cut = {
        d: slice(max(0, (n - _DRAWN) // 2), max(0, (n - _DRAWN) // 2) + _DRAWN)
        for d, n in volume.sizes.items()
    }
    return volume.isel(cut), notes


def _embedded(figure: Figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=90)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
