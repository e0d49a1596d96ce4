"""What happened in a run, kept for a report: a few dozen bytes a tile."""

from __future__ import annotations

from array import array
from typing import Any

from .events import Begin, End, Event, Retry, Tile, Warn

# Columns of `Record.tiles` that come from a tile's own fields, and their types.
_FIELDS = {
    "volume": "q",
    "stage": "i",
    "tile": "q",
    "start": "d",
    "stop": "d",
    "reading": "f",
    "computing": "f",
    "writing": "f",
    "read": "q",
    "written": "q",
    "memory": "q",
}


class Record:
    """A listener that keeps what happened in a run.

    An output that begins again begins the record anew: it is of the last run.

    Attributes
    ----------
    begun : dict of str to Begin
        By the path of the output.
    ended : dict of str to End
    tiles : dict of str to array
        A column for each field of `outcrop.events.Tile` but `share`; `output` and `worker` count
        in `outputs` and `workers`.
    outputs, workers : list of str
    voxels : float
        That were evaluated: what an earlier run has done does not count.
    retries : list of Retry
    warnings : list of Warn
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.begun: dict[str, Begin] = {}
        self.ended: dict[str, End] = {}
        self.tiles = {name: array(kind) for name, kind in _FIELDS.items()}
        self.tiles.update(output=array("i"), worker=array("i"))
        self._outputs: dict[str, int] = {}
        self._workers: dict[str, int] = {}
        self.voxels = 0.0
        self.retries: list[Retry] = []
        self.warnings: list[Warn] = []

    @property
    def outputs(self) -> list[str]:
        """Paths of what was written, in the order of their first tiles."""
        return list(self._outputs)

    @property
    def workers(self) -> list[str]:
        """Names of those who evaluated tiles, in the order of their first ones."""
        return list(self._workers)

    def __call__(self, event: Event) -> None:
        """Keep one event."""
        if isinstance(event, Tile):
            self._tile(event)
        elif isinstance(event, Begin):
            if event.output in self.begun:
                self._clear()
            self.begun[event.output] = event
        elif isinstance(event, End):
            self.ended[event.output] = event
        elif isinstance(event, Retry):
            self.retries.append(event)
        elif isinstance(event, Warn):
            self.warnings.append(event)

    def _tile(self, event: Tile) -> None:
        for name in _FIELDS:
            self.tiles[name].append(getattr(event, name))
        for name, known in (("output", self._outputs), ("worker", self._workers)):
            self.tiles[name].append(known.setdefault(getattr(event, name), len(known)))
        self.voxels += event.share * self.begun[event.output].voxels

    def facts(self) -> dict[str, Any]:
        """Return the figures of the run as plain data.

        Returns
        -------
        dict
            `seconds` from the first begin to the last end; `voxels`, `voxels_per_second`; `tiles`
            evaluated, `finished` by an earlier run, and `all_tiles` that there are; bytes `read`
            and `written`; `retries`; `peak_memory` promised and `memory` measured; for each of
            `workers` its `name`, `tiles`, seconds `reading`, `computing`, `writing` and `busy`,
            bytes, `memory`; the same for each of `stages`, with its `output` and `number`;
            `outputs` with their `provenance` and what `error` stopped them.
        """
        import numpy as np

        columns = {name: np.asarray(values) for name, values in self.tiles.items()}
        columns["busy"] = columns["stop"] - columns["start"]
        sums = ("reading", "computing", "writing", "busy", "read", "written")

        def group(chosen: Any) -> dict[str, Any]:
            memory = columns["memory"][chosen]
            return {
                "tiles": int(np.count_nonzero(chosen)),
                **{name: columns[name][chosen].sum().item() for name in sums},
                "memory": int(memory.max()) if memory.size else 0,
            }

        begins = [e.time for e in self.begun.values()]
        ends = [e.time for e in self.ended.values()]
        if len(ends) < len(begins):  # of some it goes on
            ends += columns["stop"].tolist()
        seconds = max(ends, default=0.0) - min(begins, default=0.0)
        stages = [
            {
                "output": output,
                "number": k,
                **{n: stage[n] for n in ("writes", "tile")},
                **group((columns["output"] == i) & (columns["stage"] == k)),
            }
            for i, output in enumerate(self.outputs)
            for k, stage in enumerate(self.begun[output].stages, start=1)
        ]
        return {
            "seconds": seconds,
            "voxels": round(self.voxels),
            "voxels_per_second": self.voxels / seconds if seconds > 0 else 0.0,
            "finished": sum(e.finished for e in self.begun.values()),
            "all_tiles": sum(e.tiles for e in self.begun.values()),
            **group(np.ones(len(columns["tile"]), bool)),
            "retries": len(self.retries),
            "peak_memory": max((e.peak_memory for e in self.begun.values()), default=0),
            "workers": [
                {"name": name, **group(columns["worker"] == i)}
                for i, name in enumerate(self.workers)
            ],
            "stages": stages,
            "outputs": {
                output: {
                    "provenance": dict(begin.provenance),
                    "error": self.ended[output].error if output in self.ended else None,
                }
                for output, begin in self.begun.items()
            },
        }
