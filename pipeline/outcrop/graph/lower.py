"""Operators that are written as others, for which there are rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .boxes import Shape
from .build import FOLDED, Builder
from .graph import Ref
from .rules.base import normalized, refs

Args = Mapping[str, Any]


class Call:
    """An operator as the module calls it, about to be added to a graph under construction."""

    def __init__(
        self,
        builder: Builder,
        name: str,
        op: str,
        overload: str,
        args: Args,
        shape: Shape,
        module: str,
        result: int | None,
        dtype: torch.dtype,
    ) -> None:
        self.builder, self.name, self.op, self.overload = builder, name, op, overload
        self.args, self.shape, self.module = args, shape, module
        self.result, self.dtype = result, dtype

    def dims(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Grid axes held by each dimension of an argument."""
        return self.builder.graph.layout(name).dims

    def add(self, op: str, args: Args, shape: Shape, overload: str = "default") -> Ref:
        """Add an operator under a name of its own."""
        name, n = self.name, 1
        while name in self.builder.nodes or name in self.builder.weights:
            name, n = f"{self.name}.{n}", n + 1
        kind = self.dtype
        return self.builder.add(name, op, args, shape, self.module, overload, dtype=kind)

    def plain(self) -> Ref:
        """Add it as it is."""
        return self.builder.add(
            self.name,
            self.op,
            self.args,
            self.shape,
            self.module,
            self.overload,
            self.result,
            self.dtype,
        )


def _globally(call: Call, dims: tuple[int, ...], name: str = "self") -> bool:
    """Whether reducing `dims` of an argument leaves no axis of the grid."""
    own = call.builder.layouts.get(call.args[name].name)
    if own is None or own.is_fixed:
        return False
    left = [a for i, axes in enumerate(own.dims) if i not in dims for a in axes]
    return all(own.grid[a] == 1 for a in left)


def _widens(call: Call) -> bool:
    """Whether a reduction takes real values as they are, or in a wider float."""
    kind, builder = call.builder.graph.kind(call.args["self"].name), call.builder
    own = builder.dtype if kind is None else getattr(torch, kind)
    to = call.args.get("dtype")
    floats = own.is_floating_point and (to is None or to.is_floating_point)
    return not own.is_complex and (
        to in (None, own) or (floats and torch.promote_types(own, to) == to)
    )


def _reduction(kind: str) -> Callable[[Call], Ref]:
    def lower(call: Call) -> Ref:
        if call.overload == "other":  # of two tensors, point by point
            call.op, call.overload = {"max": "maximum", "min": "minimum"}[call.op], "default"
            return call.plain()
        own = call.builder.shape(call.args["self"].name)
        dims = normalized(call.args.get("dim"), len(own))
        root = call.op == "std"
        usual = call.result is None and call.args.get("ord", 2) == 2
        if not usual or not _widens(call) or not _globally(call, dims):
            return call.plain()
        correction = call.args.get("correction", call.args.get("unbiased", True))
        correction = 1 if correction is None else correction
        args = {
            "self": call.args["self"],
            "dims": dims,
            "keepdim": bool(call.args.get("keepdim", False)),
            "count": math.prod(own[d] for d in dims),
            "correction": int(correction) if correction % 1 == 0 else correction,
            "root": root,
        }
        if call.args.get("dtype") == torch.float64:
            args["double"] = True
        return call.add(kind, args, call.shape)

    return lower


def _roll(call: Call) -> Ref:
    if not call.args["dims"]:  # all values in a row
        call.op = "aten:roll"
    return call.plain()


def _adaptive(kind: str) -> Callable[[Call], Ref]:
    def lower(call: Call) -> Ref:
        own, n = call.builder.shape(call.args["self"].name), int(call.op[-2])
        dims = tuple(range(len(own) - n, len(own)))
        if math.prod(call.shape[-n:]) > 1 or call.result or not _globally(call, dims):
            return call.plain()
        count = math.prod(own[-n:])
        args = {"self": call.args["self"], "dims": dims, "keepdim": True, "count": count}
        return call.add(kind, args, call.shape)

    return lower


def _channel_norm(call: Call, groups: int, x: Ref) -> Ref:
    if x.name not in call.builder.layouts:  # a weight
        return call.plain()
    x, shape = Ref(call.builder.image(x.name)), call.builder.shape(x.name)
    if call.builder.layouts[x.name].is_fixed or any(call.dims(x.name)[:2]):
        return call.plain()
    stats = call.add("moments", {"self": x, "groups": groups}, (2, shape[0], groups))
    args = {"input": x, "moments": stats, "weight": call.args["weight"], "bias": call.args["bias"]}
    return call.add("normalize", {**args, "eps": call.args["eps"]}, shape)


def _stored_norm(call: Call) -> Ref:
    """A norm by statistics that lie with the weights."""
    keys = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
    args = {k: call.args[k] for k in keys}
    op, kind = "_native_batch_norm_legit_no_training", call.dtype
    return call.builder.add(call.name, op, args, call.shape, call.module, result=0, dtype=kind)


def _instance_norm(call: Call) -> Ref:
    x = call.args["input"]
    if not call.args["use_input_stats"]:
        return _stored_norm(call)
    return _channel_norm(call, call.builder.shape(x.name)[1], x)


def _group_norm(call: Call) -> Ref:
    return _channel_norm(call, call.args["num_groups"], call.args["input"])


def _batch_norm(call: Call) -> Ref:
    x = call.args["input"]
    shape = call.builder.shape(x.name)
    if call.op == "batch_norm" and not call.args["training"]:
        return _stored_norm(call)
    own = call.overload == "no_stats" or call.args.get("running_mean") is None
    batch_of_one = shape[0] == 1 and own and not call.result
    return _channel_norm(call, shape[1], x) if batch_of_one else call.plain()


def _layer_norm(call: Call) -> Ref:
    x, over = call.args["input"], len(call.args["normalized_shape"])
    shape = call.builder.shape(x.name)
    dims = tuple(range(len(shape) - over, len(shape)))
    if not any(call.dims(x.name)[-over:]) or not _globally(call, dims, "input"):
        return call.plain()
    small = (*shape[:-over], *(1,) * over)
    args = {"self": x, "dims": dims, "keepdim": True}
    mean = call.add("global_mean", {**args, "count": math.prod(shape[-over:])}, small)
    var = call.add("global_var", {**args, "correction": 0, "root": False}, small)
    eps = {"self": var, "other": call.args["eps"], "alpha": 1}
    scale = call.add("rsqrt", {"self": call.add("add", eps, small, "Scalar")}, small)
    made = call.add("sub", {"self": x, "other": mean, "alpha": 1}, shape, "Tensor")
    made = call.add("mul", {"self": made, "other": scale}, shape, "Tensor")
    if call.args["weight"] is not None:
        made = call.add("mul", {"self": made, "other": call.args["weight"]}, shape, "Tensor")
    if call.args["bias"] is not None:
        args = {"self": made, "other": call.args["bias"], "alpha": 1}
        made = call.add("add", args, shape, "Tensor")
    return made


def _rms_norm(call: Call) -> Ref:
    x, over = call.args["input"], len(call.args["normalized_shape"])
    shape = call.builder.shape(x.name)
    dims = tuple(range(len(shape) - over, len(shape)))
    small = (*shape[:-over], *(1,) * over)
    on_grid = any(call.dims(x.name)[-over:])
    if on_grid and not _globally(call, dims, "input"):
        return call.plain()
    squares = call.add("mul", {"self": x, "other": x}, shape, "Tensor")
    args = {"self": squares, "keepdim": True}
    if on_grid:
        args |= {"dims": dims, "count": math.prod(shape[-over:])}
        mean = call.add("global_mean", args, small)
    else:
        mean = call.add("mean", {**args, "dim": dims, "dtype": None}, small, "dim")
    eps = torch.finfo(call.dtype).eps if call.args["eps"] is None else call.args["eps"]
    raised = call.add("add", {"self": mean, "other": eps, "alpha": 1}, small, "Scalar")
    scale = call.add("rsqrt", {"self": raised}, small)
    made = call.add("mul", {"self": x, "other": scale}, shape, "Tensor")
    if call.args["weight"] is None:
        return made
    return call.add("mul", {"self": made, "other": call.args["weight"]}, shape, "Tensor")


def _softmax(call: Call) -> Ref:
    x, dim = call.args["self"], call.args["dim"] % len(call.shape)
    if not _globally(call, (dim,)):
        return call.plain()
    if call.args["dtype"] is not None:
        x = call.add("convert", {"self": x, "dtype": call.args["dtype"]}, call.shape)
    small = tuple(1 if d == dim else n for d, n in enumerate(call.shape))
    most = call.add("global_amax", {"self": x, "dims": (dim,), "keepdim": True}, small)
    args = {"self": x, "other": most, "alpha": 1}
    shifted = call.add("sub", args, call.shape, "Tensor")
    powers = call.add("exp", {"self": shifted}, call.shape)
    args = {"self": powers, "dims": (dim,), "keepdim": True}
    total = call.add("global_sum", args, small)
    if call.op == "softmax":
        return call.add("div", {"self": powers, "other": total}, call.shape, "Tensor")
    args = {"self": shifted, "other": call.add("log", {"self": total}, small), "alpha": 1}
    return call.add("sub", args, call.shape, "Tensor")


def _split(call: Call) -> Ref:
    x, dim = call.args["self"], call.args["dim"]
    own, i = call.builder.shape(x.name), call.result or 0
    size = call.args.get("split_size", call.args.get("split_sizes"))
    if "chunks" in call.args:
        size = -(-own[dim % len(own)] // call.args["chunks"])
    start = i * size if isinstance(size, int) else sum(size[:i])
    stop = start + call.shape[dim % len(own)]
    args = {"self": x, "dim": dim, "start": start, "end": stop, "step": 1}
    return call.add("slice", args, call.shape, "Tensor")


def _unbind(call: Call) -> Ref:
    args = {"self": call.args["self"], "dim": call.args["dim"], "index": call.result or 0}
    return call.add("select", args, call.shape, "int")


def _repeat(call: Call) -> Ref:
    x, repeats = call.args["self"], call.args["repeats"]
    shape = call.builder.shape(x.name)
    while len(shape) < len(repeats):
        shape = (1, *shape)
        x = call.add("unsqueeze", {"self": x, "dim": 0}, shape)
    return call.add("repeat", {"self": x, "repeats": repeats}, call.shape)


def _cat(call: Call) -> Ref:
    """Leave out tensors of no values that have another number of dimensions, as ATen does."""
    tensors = tuple(t for t in call.args["tensors"] if call.builder.shape(t.name) != (0,))
    if len(tensors) > 1:
        call.args = {**call.args, "tensors": tensors}
    return tensors[0] if len(tensors) == 1 else call.plain()


def _fill(value: float | None) -> Callable[[Call], Ref]:
    def lower(call: Call) -> Ref:
        on_grid = any(name in call.builder.layouts for name in refs(tuple(call.args.values())))
        if not on_grid and math.prod(call.shape) <= FOLDED:
            return call.plain()
        filled = call.args["fill_value"] if value is None else value
        number = torch.tensor(filled, dtype=call.dtype)
        constant = call.builder.constant(call.name + ".value", number)
        return call.add("expand", {"self": constant, "size": call.shape}, call.shape)

    return lower


def _convert(call: Call) -> Ref:
    builder, x = call.builder, call.args["self"]
    target: Any = call.dtype
    if x.name in builder.weights:
        return builder.constant(call.name, builder.weights[x.name].to(target))
    if target == builder.dtype:
        if x.name in builder.layouts and builder.graph.kind(x.name) is None:
            return x
        target = builder.constant(call.name + ".like", torch.zeros((), dtype=builder.dtype))
    return builder.add(
        call.name,
        "convert",
        {"self": x, "dtype": target},
        call.shape,
        call.module,
        dtype=call.dtype,
    )


LOWER: dict[str, Callable[[Call], Ref]] = {
    "cat": _cat,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit"), _batch_norm),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    "mean": _reduction("global_mean"),
    "sum": _reduction("global_sum"),
    **dict.fromkeys(("amax", "max"), _reduction("global_amax")),
    **dict.fromkeys(("amin", "min"), _reduction("global_amin")),
    **dict.fromkeys(("var", "std"), _reduction("global_var")),
    "linalg_vector_norm": _reduction("global_norm"),
    **dict.fromkeys([f"adaptive_avg_pool{n}d" for n in (1, 2, 3)], _adaptive("global_mean")),
    **dict.fromkeys([f"adaptive_max_pool{n}d" for n in (1, 2, 3)], _adaptive("global_amax")),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "unbind": _unbind,
    "repeat": _repeat,
    "roll": _roll,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _fill(0.0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _fill(1.0)),
    **dict.fromkeys(("full", "full_like", "new_full"), _fill(None)),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _convert),
}
