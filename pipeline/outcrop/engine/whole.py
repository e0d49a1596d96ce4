"""`whole_volume`: any module on tensors in memory, tile by tile."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..graph import RULES, Graph, Reduce, capture
from ..graph.boxes import Shape
from ..graph.capture import precision_of
from ..graph.graph import COMPLEX, dtype_of
from ..planner import Plan, make_plan, parse_bytes
from ..planner.planner import StorageMode
from ..storage import naming_refusal
from .disk import check_space, scratch_folder
from .globals import GlobalStore
from .local import run_local
from .memory import empty
from .stores import MemoryStore, Store
from .tiled_stores import make_store

Array = np.ndarray

_PRECISIONS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def to_dtype(precision: str) -> torch.dtype:
    """Return the dtype called `precision`, or raise `ArgumentError`."""
    if precision not in _PRECISIONS:
        raise ArgumentError(f"precision {precision!r}: choose one of {', '.join(_PRECISIONS)}")
    return _PRECISIONS[precision]


def find_device(name: torch.device | str) -> torch.device:
    """Return the device called `name`, or raise `ArgumentError` if it is not there."""
    try:
        return torch.empty(0, device=name).device  # "cuda" is the one that is current
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ArgumentError(
            f"device {str(name)!r}: {reason}; choose cpu, or a GPU that is there"
        ) from None


def example(
    shape: Shape, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Return a tensor of any shape that takes the memory of one element."""
    return torch.zeros((), dtype=dtype, device=device).expand(shape)


def to_compute(
    graph: Graph, weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """Weights in the precision, on the device and in the memory layout that kernels like."""
    ready = {}
    for name, value in weights.items():
        kind = graph.kind(name)
        cast = kind == COMPLEX or (kind is None and value.is_floating_point())
        value = value.to(device, dtype_of(kind, dtype) if cast else value.dtype)
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(value.ndim)
        if layout is not None:
            # Not `contiguous`, which leaves strides that say nothing where there is one channel.
            value = torch.empty_like(value, memory_format=layout).copy_(value)
        ready[name] = value
    return ready


def whole_volume(
    module: nn.Module,
    x: Tensor | Array | Sequence[Tensor | Array] | Mapping[str, Tensor | Array],
    *,
    memory: str | int = "2GB",
    host_memory: str | int | None = None,
    storage_mode: StorageMode = "auto",
    storage_path: str | os.PathLike[str] | None = None,
    storage_compression: bool = False,
    precision: str | None = None,
    device: torch.device | str | None = None,
    tile: Sequence[int] | None = None,
    plan: Plan | None = None,
    compile: bool = False,
) -> Any:
    """Evaluate a module on a whole volume, exactly, within a memory budget.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode. Left as it is.
    x : torch.Tensor or numpy.ndarray, or sequence or dict of them
        What its forward takes: each (batch, channels, grid axes...). A dict is passed by keyword.
    memory : str or int
        Memory that the evaluation may take beside `x`, such as "2GB", on the device that computes;
        it includes the result if `x` lies there.
    host_memory : str or int, optional
        Host memory that tensors between stages may take where the device is a GPU; no limit unless
        given.
    storage_mode : {"auto", "device", "cpu", "disk", "none"}
        Where tensors between stages live.
    storage_path : path-like, optional
        Folder for "disk"; the system's folder for temporary files unless given.
    storage_compression : bool
        Keep tensors between stages in 8 bits a value. Lossy: each is off by up to 1/254 of the
        largest magnitude in its block of 8×8×8.
    precision : {"float64", "float32", "bfloat16", "float16"}, optional
        Of the arithmetic and the stored tensors; that of `x` unless given. The result has the
        dtype that the module gives it.
    device : torch.device or str, optional
        What computes, such as "cuda"; where `x` lies unless given. The result lies where `x` does.
    tile : sequence of int, optional
        Shape of a tile, instead of the planner's choice.
    plan : Plan, optional
        Made earlier for the same module and shapes, instead of all that concerns memory, storage,
        precision and tiles.
    compile : bool
        Compile by `torch.compile` what many tiles have in common: takes seconds to a minute, needs
        a C++ compiler on a CPU, and its libraries take some 100 MB that no plan counts. The result
        differs by rounding alone.

    Returns
    -------
    torch.Tensor, or whatever structure of tensors the module's forward returns
        What `module(x)` would have returned.

    Raises
    ------
    UnsupportedOperatorError
        If the module cannot be captured or uses an operator that has no rule.
    MemoryBudgetError
        If no plan fits; the message names the smallest budget that would.
    OutcropError
        If the disk has less left than the plan takes there.
    ArgumentError
        If storage_mode, storage_path, precision, device or tile is not one of the allowed values.
    """
    folder = scratch_folder("storage_path", storage_path)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(x, (Tensor, np.ndarray)):
        args = (x,)
    elif isinstance(x, Mapping):
        kwargs = dict(x)
    else:
        args = tuple(x)
    if not isinstance(module, nn.Module):
        raise ArgumentError(
            f"module: is a {type(module).__name__}; pass a torch.nn.Module whose forward calls it"
        )
    args = tuple(map(_as_tensor, args))
    kwargs = {name: _as_tensor(value) for name, value in kwargs.items()}
    given = [*args, *kwargs.values()]
    if max((a.ndim for a in given), default=0) < 3:
        raise ArgumentError("x: has no grid axes; pass (batch, channels, grid axes...)")
    if plan is not None:
        precision = plan.dtype
    own = precision_of(module, given)
    dtype = own if precision is None else to_dtype(precision)
    graph, state = capture(module, args, kwargs)
    if not graph.nodes:
        return graph.nest(dict(zip(graph.inputs, given, strict=True)))
    home = given[0].device
    where = home if device is None else find_device(device)
    if plan is None:
        plan = make_plan(
            graph,
            memory=parse_bytes(memory),
            storage_mode=storage_mode,
            dtype=str(dtype).removeprefix("torch."),
            tile=tile,
            holds_output=where == home,
            output_itemsize=own.itemsize,
            device=where.type,
            host_memory=None if host_memory is None else parse_bytes(host_memory),
            compressed=storage_compression,
        )
    elif plan.graph != graph.digest():
        raise ArgumentError("plan: made for another network or another shape; make it again")
    check_space(folder, plan.disk_bytes)
    apart = home != where
    weights = to_compute(graph, state, dtype, where)
    results = dict(zip(graph.inputs, given, strict=True))
    reduced: dict[str, GlobalStore] = {}
    writers = {name: stage for stage in plan.stages for name in stage.outputs}

    def make(name: str) -> Store:
        layout, node = graph.layouts[name], graph.nodes[name]
        kind = dtype_of(node.dtype, dtype)
        if isinstance(RULES[node.op], Reduce):
            reduced[name] = GlobalStore(node, kind, where)
            return reduced[name]
        if name in graph.outputs:
            with torch.inference_mode(False):  # the caller's tensor, as any other
                results[name] = empty(layout.shape, dtype_of(node.dtype, own), home)
            return MemoryStore(layout.to_store(results[name], layout.whole), kind, apart)
        stage = writers[name]
        return make_store(
            plan.places[name],
            layout.stored,
            graph.rank,
            kind,
            stage.tile,
            domain=stage.domain,
            device=where,
            compression=plan.compressed,
            path=folder / f"outcrop-{uuid.uuid4().hex}",
            layers=plan.layers.get(name),
            axis=plan.axis,
        )

    inputs: dict[str, Store] = {}
    for name, value in results.items():
        layout = graph.layouts[name]
        kind = dtype_of(graph.kind(name), dtype)
        inputs[name] = MemoryStore(layout.to_store(value, layout.whole), kind, apart)
    with naming_refusal(folder, "choose another storage_path, or storage_mode='none'"):
        run_local(graph, plan, weights, inputs, make, device=where, compile=compile)
    for name in reduced.keys() & set(graph.outputs):
        kind = dtype_of(graph.kind(name), own)
        results[name] = reduced[name].get().to(home, kind, copy=True)
    return graph.nest(results)


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        try:
            with contextlib.suppress(ValueError):  # strides that torch has not, such as negative
                return torch.from_numpy(native)
            return torch.from_numpy(native.copy())
        except TypeError:
            raise ArgumentError(
                f"x: torch has no dtype like NumPy's {value.dtype}; pass float32, or another that "
                "it has"
            ) from None
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise ArgumentError(f"x: is {value.layout}; pass x.to_dense()")
    if not isinstance(value, Tensor):
        raise ArgumentError(
            f"x: pass tensors or NumPy arrays of (batch, channels, grid axes...), "
            f"not {type(value).__name__}"
        )
    return value
