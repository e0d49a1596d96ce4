"""`plan`: how a network would be evaluated over a labelled survey."""

from __future__ import annotations

import inspect
import json
import math
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..arrays import native
from ..errors import ArgumentError, UnsupportedOperatorError
from ..graph import Graph, capture
from ..graph.boxes import central_tile
from ..graph.propagate import needed
from ..planner import Plan, make_plan, parse_bytes
from ..planner.planner import StorageMode
from ..storage import Options, Place, Remote, place
from ..targets import PathLike, aside_of
from .chunks import worth_keeping
from .labelled import Framed, Volume, frame
from .whole import example, to_dtype

if TYPE_CHECKING:
    from distributed import Client

# How much of the budget the plan's peak and chunks of the survey may take together; bytes of these
# in host memory where a GPU computes.
_SHARE, _ON_HOST = 0.75, 2**30
_MULTIPLES = (32, 16, 8, 4, 2)  # of extents, as networks that halve them take them
PLAN = "plan.json"  # the name of the plan of an unfinished prediction


def plan(
    model: nn.Module,
    data: Volume,
    *,
    memory: str | int = "2GB",
    host_memory: str | int | None = None,
    storage_mode: StorageMode = "auto",
    storage_compression: bool = False,
    precision: str = "float32",
    device: str = "cpu",
    tile: Sequence[int] | None = None,
    direction: str | None = None,
    storage_path: PathLike | None = None,
    client: Client | None = None,
    storage_options: Options | None = None,
) -> Plan:
    """Plan `predict` without running it: no sample is read.

    Parameters
    ----------
    model, data, memory, host_memory, storage_mode, storage_compression, precision, device, tile, \
direction, storage_options
        As for `predict`. A GPU need not be there.
    client : distributed.Client, optional
        Plan for its workers.
    storage_path : path-like, optional
        Where tensors between stages would be; with a client it is measured how fast that is for
        its workers. The folder for temporary files unless given. In an object store nothing is
        written over: it holds all at once.

    Returns
    -------
    Plan
        Print it, or pass it to `predict`.

    Raises
    ------
    SurveyError, UnsupportedOperatorError, MemoryBudgetError, ArgumentError
        As `predict` does.
    """
    framed = frame(model, data, direction, storage_options, stacked=True)
    graph, _ = captured(model, framed)
    wanted = wanted_of(
        memory, host_memory, storage_mode, storage_compression, precision, device, tile
    )
    store = place(storage_path or tempfile.gettempdir(), storage_options).absolute()
    return plan_for(graph, framed, wanted, client, store)


def check_plan(model: nn.Module, data: Volume, target: Place, options: Mapping[str, Any]) -> None:
    """Raise as `predict` will with these options, if there is no plan."""
    if options.get("plan") is None:
        known = inspect.signature(plan).parameters.keys() & options.keys()
        how = {name: options[name] for name in known}
        how["storage_path"] = options.get("storage_path") or target.parent
        plan(model, data, **how)


def captured(model: nn.Module, framed: Framed) -> tuple[Graph, dict[str, Tensor]]:
    """Return the graph of a network on a volume's grid, and its weights.

    Raises
    ------
    UnsupportedOperatorError
        If it cannot be captured; the message says so if it could be on extents that are multiples
        of a number, to which only a card has them padded.
    """
    try:
        return _captured(model, framed, framed.grid)
    except UnsupportedOperatorError as error:
        multiple = _multiple(model, framed) if set(framed.card.multiple) == {1} else None
        if multiple is None:
            raise
        raise UnsupportedOperatorError(
            f"{error}; with extents that are multiples of {multiple} it can: have them padded by "
            f"a card with multiple={(multiple,) * len(framed.grid)}"
        ) from error


def _multiple(model: nn.Module, framed: Framed) -> int | None:
    """The least number of which extents can be multiples so that a network is captured."""
    found = None
    for multiple in _MULTIPLES:
        grid = [-(-n // multiple) * multiple for n in framed.grid]
        try:
            _captured(model, framed, grid)
        except UnsupportedOperatorError:
            break
        found = multiple
    return found


def _captured(
    model: nn.Module, framed: Framed, grid: Sequence[int]
) -> tuple[Graph, dict[str, Tensor]]:
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    count = len(framed.card.inputs)
    given, width = (count, 1) if framed.card.separate else (1, count)
    return capture(model, [example((1, width, *grid), dtype) for _ in range(given)])


def wanted_of(
    memory: str | int,
    host_memory: str | int | None,
    storage_mode: StorageMode,
    storage_compression: bool,
    precision: str,
    device: str,
    tile: Sequence[int] | None,
) -> dict[str, Any]:
    """What a plan is asked for, as plain data."""
    to_dtype(precision)
    if str(device).partition(":")[0] not in ("cpu", "cuda"):
        raise ArgumentError(f"device {device!r}: choose cpu or cuda")
    return {
        "memory": parse_bytes(memory),
        "host_memory": None if host_memory is None else parse_bytes(host_memory),
        "storage_mode": storage_mode,
        "compressed": storage_compression,
        "dtype": precision,
        "device": device,
        "tile": [native(n) for n in tile] if isinstance(tile, Iterable) else tile,
    }


def check_shared(modes: Collection[str], compressed: bool) -> None:
    """Raise `ArgumentError` if workers of a cluster cannot share tensors that are stored so."""
    for mode in ("device", "cpu"):
        if mode in modes:
            raise ArgumentError(
                f"storage_mode {mode!r}: keeps tensors in one process; with a client use 'disk', "
                "'none' or 'auto'"
            )
    if compressed:
        raise ArgumentError("storage_compression: not with a client; leave it out")


def plan_for(
    graph: Graph,
    framed: Framed,
    wanted: dict[str, Any],
    client: Client | None,
    store: Place,
) -> Plan:
    """Return the best plan, for this process or for the workers of a cluster."""
    crew, volumes = None, math.prod(framed.volume.sizes[d] for d in framed.apart)
    if client is not None:
        from .crew import crew_of

        check_shared([wanted["storage_mode"]], wanted["compressed"])
        crew = crew_of(client, wanted["device"], wanted["dtype"], store)
        # Volumes and sections that are evaluated side by side share the workers.
        crew = crew._replace(workers=max(1, crew.workers // volumes))
    how = {k: v for k, v in wanted.items() if k != "cluster"}
    plan = make_plan(graph, domain=framed.domain, holds_output=False, crew=crew, **how)
    if isinstance(store, Remote):  # where nothing is written over
        plan = replace(plan, steps=(), axis=0, layers={})
    plan = replace(plan, volumes=volumes)
    return _keeping_chunks(plan, graph, framed, alone=client is None)


def _keeping_chunks(plan: Plan, graph: Graph, framed: Framed, alone: bool) -> Plan:
    """The same plan; what it leaves of the budget keeps chunks of the survey, where that pays.

    In one process, a stage that takes less than others keeps more while it runs.
    """
    most: list[int] = []
    every: dict[int, list[int]] = {}
    for i, stage in enumerate(plan.stages):
        read = set(stage.inputs) & set(graph.inputs)
        if not read or (stage.count == 1 and not framed.apart):
            continue
        kept = (*stage.outputs, *(graph.nodes[name].operands[0] for name in stage.reduces))
        tile = central_tile(stage.domain, stage.tile)
        boxes = needed(graph, stage.nodes, dict.fromkeys(kept, tile))
        extents = tuple(map(max, zip(*(boxes[name].shape for name in read), strict=True)))
        grids = zip(graph.grid(next(iter(read))), graph.grid(kept[0]), stage.tile, strict=True)
        steps = tuple(-(-n * t // m) for n, m, t in grids)
        every[i] = sizes = worth_keeping(framed, extents, steps, plan.axis)
        both = list(map(max, zip(most or sizes, sizes, strict=True)))
        if plan.layers and most:  # layers of tiles of one stage after those of another
            both[1] = most[1] + sizes[1]
        most = both
    on_cpu = plan.device == "cpu"
    if on_cpu:
        spare = int(_SHARE * plan.memory) - plan.peak_memory
    else:
        spare = min(_ON_HOST, plan.host_memory or _ON_HOST)
    kept_bytes = max((size for size in most if size <= spare), default=0)
    peak = plan.peak_memory + (kept_bytes if on_cpu else 0)
    stages = list(plan.stages)
    for i, sizes in every.items() if on_cpu and alone else ():
        room = peak - stages[i].peak
        own = max((size for size in sizes if size <= room), default=0)
        stages[i] = replace(stages[i], chunk_bytes=max(own, kept_bytes))
    return replace(plan, stages=tuple(stages), chunk_bytes=kept_bytes, peak_memory=peak)


def begun_plan(path: Place, graph: Graph, wanted: dict[str, Any]) -> Plan | None:
    """The plan of an unfinished prediction of which the same was wanted.

    Made now it might be another: it depends on how fast the machine is found to be.
    """
    found = _begun(path)
    if "plan" not in found:
        return None
    plan = Plan.from_dict(found["plan"])
    before = dict(found["wanted"])
    if set(plan.places.values()) <= {"global"}:  # all that lies between stages has one form
        before["cluster"] = wanted["cluster"]
    return plan if before == wanted and plan.graph == graph.digest() else None


def other_options(path: Place, wanted: dict[str, Any]) -> str:
    """Say what else was wanted of an unfinished prediction; empty if that is not known."""
    before = _begun(path).get("wanted", {})
    return ", ".join(f"{k}={v!r}" for k, v in before.items() if v != wanted.get(k))


def _begun(path: Place) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((aside_of(path) / PLAN).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
