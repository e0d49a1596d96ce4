"""Tiles one after the other: while one is computed, the next is read, the one before written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future

import torch
from torch import Tensor

from ..graph import Box
from .spent import Peak, Spent, timed
from .threads import SideThread
from .tile import StageRunner, is_out_of_memory, naming_lack_of_memory


def run_tiles(
    runner: StageRunner, tiles: Iterator[tuple[int, Box]], peak: Peak
) -> Iterator[tuple[int, Spent]]:
    """Run tiles; yield the number of each once it is written, and what it took.

    Reading ahead and writing behind are for stores for which that takes time: files and objects,
    and from host to device.
    """
    stage, stores = runner.stage, runner.stores
    reads = any(stores[name].slow for name in stage.inputs)
    writes = any(stores[name].slow for name in stage.outputs)
    read = torch.inference_mode()(runner.read)
    write = torch.inference_mode()(runner.write)
    with (
        naming_lack_of_memory(),
        SideThread(runner.device) as reader,
        SideThread(runner.device) as writer,
    ):
        # One tile ahead and one behind: the plan's memory counts on it.
        ahead: Future[tuple[dict[str, Tensor], float]] | None = None
        behind: tuple[int, Spent, Future[tuple[None, float]]] | None = None
        following = next(tiles, None)
        while following is not None:
            (n, tile), following = following, next(tiles, None)
            start = time.time()
            inputs, reading = _inputs(runner, tile, ahead)
            moved = runner.moved((inputs or {}).items())
            ahead = None
            if reads and following is not None and not runner.halvings:
                ahead = reader.submit(timed, read, following[1])
            results, computing = timed(runner.compute, tile, inputs)
            written = runner.moved((name, part) for name, _, part in results.parts)
            del inputs
            if behind is not None:
                yield _written(*behind)
            future = writer.submit(timed, write, n, results) if writes else None
            writing = 0.0 if writes else timed(write, n, results)[1]
            del results
            stop, memory = time.time(), peak.bytes()
            spent = Spent(start, stop, reading, computing, writing, moved, written, memory)
            behind = None if future is None else (n, spent, future)
            if future is None:
                yield n, spent
        if behind is not None:
            n, spent = _written(*behind)
            yield n, spent._replace(stop=time.time())


def _inputs(
    runner: StageRunner, tile: Box, ahead: Future[tuple[dict[str, Tensor], float]] | None
) -> tuple[dict[str, Tensor] | None, float]:
    """What a tile takes, and the seconds; None where it is read in parts, as memory ran out."""
    try:
        if ahead is not None:
            return ahead.result()
        return (None, 0.0) if runner.halvings else timed(runner.read, tile)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, 0.0


def _written(number: int, spent: Spent, writing: Future[tuple[None, float]]) -> tuple[int, Spent]:
    """Wait until a tile is written."""
    return number, spent._replace(writing=writing.result()[1])
