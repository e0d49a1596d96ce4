"""The Dask executor: tiles as tasks on worker processes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from distributed import WorkerPlugin, as_completed, get_worker
from torch import Tensor

from ..errors import OutcropError
from ..graph import Box, Graph
from ..planner import Plan
from .local import OnTile, finish_globals, unused_after
from .memory import ALL, USUAL, keep_freed_memory, return_freed_memory
from .stores import Store
from .tile import StageRunner

if TYPE_CHECKING:
    from distributed import Client


@dataclass
class Job(WorkerPlugin):
    """What every worker needs once: the graph, the plan, the weights, and where data lies.

    Registered with the scheduler, so that a worker that joins later has it too; a task then
    carries just the name of its job and a box.
    """

    name: str
    graph: Graph
    plan: Plan
    weights: Mapping[str, Tensor]
    stores: Mapping[str, Store]
    device: str = "cpu"
    compile: bool = False

    def setup(self, worker: Any) -> None:
        """Prepare a worker: its share of the cores, one tile at a time."""
        keep_freed_memory(ALL)
        torch.set_num_threads(max(1, worker.state.nthreads))
        self.turn = threading.Lock()
        self.runner: tuple[int, StageRunner] | None = None

    def teardown(self, worker: Any) -> None:
        """Leave the worker as it was."""
        keep_freed_memory(USUAL)

    def run(self, stage: int, number: int, tile: Box) -> None:
        """Evaluate one tile on this worker."""
        with self.turn, torch.inference_mode():
            if self.runner is None or self.runner[0] != stage:
                return_freed_memory()
                part = self.plan.stages[stage]
                weights = {k: v.to(self.device) for k, v in self.weights.items()}
                self.runner = (
                    stage,
                    StageRunner(self.graph, part, weights, self.stores, self.device, self.compile),
                )
            self.runner[1].run(number, tile)


def _tile(job: str, stage: int, n: int, start: tuple[int, ...], stop: tuple[int, ...]) -> None:
    get_worker().plugins[job].run(stage, n, Box(start, stop))


def run_dask(
    client: Client,
    graph: Graph,
    plan: Plan,
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, Store],
    make: Callable[[str], Store],
    finished: Collection[tuple[int, int]] = (),
    on_tile: OnTile | None = None,
    device: torch.device | str = "cpu",
    compile: bool = False,
) -> None:
    """Run a plan on the workers of `client`; parameters as for `run_local`.

    The stores must be reachable from every worker. A few tasks per worker are submitted at a
    time, so that neither the client nor the scheduler grows with the number of tiles. A worker
    that dies loses its running tile alone: Dask runs it again elsewhere.

    Raises
    ------
    OutcropError
        If the same tile has killed several workers, or no worker is left.
    """
    stores = dict(inputs)
    for stage in plan.stages:
        stores.update({name: make(name) for name in (*stage.outputs, *stage.reduces)})
    name = f"outcrop-{plan.digest()[:16]}-{id(plan):x}"
    # How outputs are nested concerns the caller alone.
    job = Job(
        name, replace(graph, structure=None), plan, dict(weights), stores, str(device), compile
    )
    client.register_plugin(job, name=name)
    try:
        for i, stage in enumerate(plan.stages):
            todo = ((n, t) for n, t in enumerate(stage.tiles()) if (i, n) not in finished)
            for n in _windowed(client, name, i, todo):
                if on_tile is not None:
                    on_tile(i, n)
            finish_globals(stores, stage.reduces)
            for gone in unused_after(plan, i) & plan.places.keys() & stores.keys():
                stores.pop(gone).remove()
    finally:
        client.unregister_worker_plugin(name)


def _windowed(
    client: Client, job: str, stage: int, todo: Iterator[tuple[int, Box]]
) -> Iterator[int]:
    """Keep two tasks per worker submitted; yield the number of each tile as it is finished."""

    def submit(n: int, tile: Box) -> Any:
        key = f"{job}-{stage}-{n}"
        return client.submit(_tile, job, stage, n, tile.start, tile.stop, key=key, pure=False)

    workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    numbers = {}
    running = as_completed()
    try:
        for n, tile in itertools.islice(todo, 2 * workers):
            future = submit(n, tile)
            numbers[future.key] = n
            running.add(future)
        for future in running:
            if future.status != "finished":
                error = future.exception()
                if isinstance(error, (OutcropError, OSError)):
                    raise error
                raise OutcropError(
                    f"stage {stage + 1}, tile {numbers[future.key]}: "
                    f"{type(error).__name__}: {error}; "
                    "if workers were killed for lack of memory, pass a smaller memory (--memory)"
                ) from error
            yield numbers.pop(future.key)
            future.release()
            for n, tile in itertools.islice(todo, 1):
                again = submit(n, tile)
                numbers[again.key] = n
                running.add(again)
    finally:
        client.cancel(list(running.futures))
