"""A plan of very many tiles that hold nothing: what is left is what the executor takes itself."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
import xarray as xr
from torch import nn

from outcrop.engine.evaluation import Evaluation
from outcrop.engine.places import Places
from outcrop.engine.whole import example
from outcrop.events import Tile
from outcrop.graph import capture
from outcrop.output import Output
from outcrop.planner import make_plan


class Nothing:
    """A store that is read as zeros, and written to no effect."""

    slow = False

    def read(self, box):
        """Return zeros."""
        return torch.zeros(1, 1, *box.shape)

    def write(self, box, value):
        """Do nothing."""

    def remove(self):
        """Do nothing."""


class Nowhere(Places):
    """Places without data."""

    sections = None

    def inputs(self, section=None):
        """Return what is read."""
        return {name: Nothing() for name in self.graph.inputs}

    def make(self, name, section=None):
        """Return what is written to."""
        return Nothing()


def evaluation(tiles: int, path: Path, listeners: Any = ()) -> Evaluation:
    """Return an evaluation of so many tiles of one voxel, with a real journal at `path`."""
    graph, state = capture(nn.ReLU().eval(), [example((1, 1, tiles, 1, 1), torch.float32)])
    plan = make_plan(graph, memory=10**9, storage_mode="none", tile=(1, 1, 1))
    framed = SimpleNamespace(volume=SimpleNamespace(size=tiles, coords={}), volumes={})
    places = Nowhere(graph, plan, framed, [], {}, path, path / "none", torch.device("cpu"))
    output = Output.begin(path, xr.Dataset({"y": ("x", np.zeros(1))}), {}, {})
    return Evaluation(places, state, output, listeners)


class Memory:
    """A listener that looks at the memory of this process, every so many tiles."""

    def __init__(self, every: int) -> None:
        self.every, self.tiles = every, 0
        self.resident: list[int] = []

    def __call__(self, event: Any) -> None:
        """Count tiles."""
        if isinstance(event, Tile):
            self.tiles += 1
            if self.tiles % self.every == 0:
                self.resident.append(psutil.Process().memory_info().rss)


def overhead(tiles: int, workers: int, folder: Path) -> dict[str, Any]:
    """Measure what the executor takes for so many empty tiles."""
    from outcrop import Record
    from outcrop.cluster import connect
    from outcrop.engine.dask_executor import run_dask

    memory, record = Memory(max(1, tiles // 20)), Record()
    with connect("local", workers) as client:
        small, large = (
            evaluation(n, folder / f"{n}.zarr", heard)
            for n, heard in ((1001, []), (tiles, [record, memory]))
        )
        run_dask(client, [small])
        start = time.perf_counter()
        run_dask(client, [large])
        seconds = time.perf_counter() - start
    return {
        "tiles": tiles,
        "workers": workers,
        "seconds": seconds,
        "milliseconds_per_tile": 1e3 * seconds / tiles,
        "client_growth_MB": (max(memory.resident) - memory.resident[0]) / 1e6,
        "client_MB": [round(m / 1e6, 1) for m in memory.resident],
        "busy_share": record.facts()["busy"] / seconds / workers,
    }
