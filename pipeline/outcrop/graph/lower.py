"""Operators that are written as others, for which there are rules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch

from .call import Call
from .fourier import FOURIER
from .graph import Ref
from .parts import PARTS
from .products import PRODUCTS
from .rules import RULES
from .rules.base import normalized


def _globally(call: Call, dims: tuple[int, ...], x: Ref | None = None) -> bool:
    """Whether reducing `dims` of a tensor, or of "self", leaves no axis of the grid."""
    own = call.builder.layouts.get((x or call.args["self"]).name)
    if own is None or own.is_fixed:
        return False
    left = [a for i, axes in enumerate(own.dims) if i not in dims for a in axes]
    return all(own.grid[a] == 1 for a in left)


def _widens(call: Call) -> bool:
    """Whether a reduction takes real values as they are, or in a wider float."""
    own = call.dtype_of(call.args["self"].name)
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
        several = call.result if kind in ("global_amax", "global_amin") else call.result is not None
        usual = not several and call.args.get("ord", 2) == 2
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


def _spread_and_mean(call: Call) -> Ref:
    """One of the two results of var_mean or std_mean."""
    a = call.args
    call.args = {"self": a["self"], "dim": a.get("dim"), "keepdim": a.get("keepdim", False)}
    if call.result:
        call.op, call.overload = "mean", "dim"
        call.args["dtype"] = None
    else:
        call.op, call.overload = call.op.removesuffix("_mean"), "correction"
        correction = a.get("correction", int(a.get("unbiased", True)))
        call.args["correction"] = 1 if correction is None else correction
    call.result = None
    return LOWER[call.op](call)


def _extremes(call: Call) -> Ref:
    dim = call.args["dim"]
    call.op, call.result = ("amax" if call.result else "amin"), None
    call.args = {**call.args, "dim": () if dim is None else (dim,)}
    return LOWER[call.op](call)


def _sum_of(make: Callable[[Call, Ref], Ref]) -> Callable[[Call], Ref]:
    """A sum of something that is made of each value."""

    def lower(call: Call) -> Ref:
        call.args = {"dim": None, "keepdim": False, "dtype": None, **call.args}
        call.args = {**call.args, "self": make(call, call.args["self"])}
        call.op, call.overload = "sum", "dim_IntList"
        return LOWER["sum"](call)

    return lower


def _not_zero(call: Call, x: Ref) -> Ref:
    shape = call.builder.shape(x.name)
    return call.add("ne", {"self": x, "other": 0}, shape, "Scalar", dtype=torch.bool)


def _nan_as_zero(call: Call, x: Ref) -> Ref:
    """Unlike nan_to_num, with infinities as they are."""
    shape, own = call.builder.shape(x.name), call.dtype_of(x.name)
    zero = call.constant(torch.zeros((), dtype=own))
    mask = call.add("isnan", {"self": x}, shape, dtype=torch.bool)
    args = {"condition": mask, "self": zero, "other": x}
    return call.add("where", args, shape, "self", dtype=own)


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


def _resampled(call: Call) -> Ref:
    """Of one point, such as a global value: it is repeated."""
    x = call.args["input" if "input" in call.args else "self"]
    layout = call.builder.layouts.get(x.name)
    if layout is None or layout.held or math.prod(layout.shape[2:]) > 1:
        return call.plain()
    return call.add("expand", {"self": x, "size": call.shape}, call.shape)


def _channel_norm(call: Call, groups: int, x: Ref) -> Ref:
    if x.name not in call.builder.layouts:  # a weight
        return call.plain()
    x, shape = Ref(call.builder.image(x.name)), call.builder.shape(x.name)
    batch, channels = call.dims(x.name)[:2]
    if call.builder.layouts[x.name].is_fixed or channels:
        return call.plain()
    if batch:  # such as sections: each has statistics of its own
        weight, bias = (_per_channel(call, call.args[k]) for k in ("weight", "bias"))
        apart = (shape[0], groups, shape[1] // groups, *shape[2:])
        split = call.add("view", {"self": x, "size": apart}, apart)
        split = _standardized(call, split, tuple(range(2, len(apart))), None, None)
        return _scaled(call, call.add("view", {"self": split, "size": shape}, shape), weight, bias)
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
    if not own or call.result:
        return call.plain()
    if shape[0] == 1:
        return _channel_norm(call, shape[1], x)
    dims = (0, *range(2, len(shape)))
    if not _globally(call, dims, x):
        return call.plain()
    weight, bias = (_per_channel(call, call.args[key]) for key in ("weight", "bias"))
    return _standardized(call, x, dims, weight, bias)


def _per_channel(call: Call, weight: Ref | None) -> Ref | None:
    size = (call.shape[1], *(1,) * (len(call.shape) - 2))
    return None if weight is None else call.add("view", {"self": weight, "size": size}, size)


def _layer_norm(call: Call) -> Ref:
    x, over = call.args["input"], len(call.args["normalized_shape"])
    shape = call.builder.shape(x.name)
    dims = tuple(range(len(shape) - over, len(shape)))
    if not any(call.dims(x.name)[-over:]):
        return call.plain()
    return _standardized(call, x, dims, call.args["weight"], call.args["bias"])


def _standardized(
    call: Call, x: Ref, dims: tuple[int, ...], weight: Ref | None, bias: Ref | None
) -> Ref:
    """Mean 0 and variance 1 over `dims`, then weight and bias."""
    shape = call.builder.shape(x.name)
    small = tuple(1 if d in dims else n for d, n in enumerate(shape))
    if _globally(call, dims, x):
        args = {"self": x, "dims": dims, "keepdim": True}
        mean = call.add("global_mean", {**args, "count": math.prod(shape[d] for d in dims)}, small)
        var = call.add("global_var", {**args, "correction": 0, "root": False}, small)
    else:
        args = {"self": x, "dim": dims, "keepdim": True}
        mean = call.add("mean", {**args, "dtype": None}, small, "dim")
        var = call.add("var", {**args, "correction": 0}, small, "correction")
    eps = {"self": var, "other": call.args["eps"], "alpha": 1}
    scale = call.add("rsqrt", {"self": call.add("add", eps, small, "Scalar")}, small)
    made = call.add("sub", {"self": x, "other": mean, "alpha": 1}, shape, "Tensor")
    made = call.add("mul", {"self": made, "other": scale}, shape, "Tensor")
    return _scaled(call, made, weight, bias)


def _scaled(call: Call, made: Ref, weight: Ref | None, bias: Ref | None) -> Ref:
    shape = call.builder.shape(made.name)
    if weight is not None:
        made = call.add("mul", {"self": made, "other": weight}, shape, "Tensor")
    if bias is not None:
        args = {"self": made, "other": bias, "alpha": 1}
        made = call.add("add", args, shape, "Tensor")
    return made


def _rms_norm(call: Call) -> Ref:
    x, over = call.args["input"], len(call.args["normalized_shape"])
    shape = call.builder.shape(x.name)
    dims = tuple(range(len(shape) - over, len(shape)))
    small = (*shape[:-over], *(1,) * over)
    squares = call.add("mul", {"self": x, "other": x}, shape, "Tensor")
    args = {"self": squares, "keepdim": True}
    if _globally(call, dims, x):
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


def _attention(call: Call) -> Ref:
    """Of queries that hold no axis over keys that do: scores of all points, by global values."""
    a = call.args
    query, key, value = (a[name] for name in ("query", "key", "value"))
    (*_, points, width), own = (call.builder.shape(x.name) for x in (key, query))
    *lines, held, _ = call.dims(key.name)
    odd = a["attn_mask"] is not None or a["is_causal"] or a["enable_gqa"]
    if odd or any(call.dims(query.name)) or any(lines) or not held:
        return PRODUCTS[call.op](call)
    final = call.shape
    args = {"self": query, "other": width**-0.5 if a["scale"] is None else a["scale"]}
    query = call.add("mul", args, own, "Scalar")
    turned = (*call.builder.shape(key.name)[:-2], width, points)
    key = call.add("transpose", {"self": key, "dim0": -2, "dim1": -1}, turned, "int")
    call.shape = (*final[:-1], points)
    scores = call.add("matmul", {"self": query, "other": key}, call.shape)
    call.op, call.overload = "softmax", "int"
    call.args = {"self": scores, "dim": -1, "dtype": None}
    shares = _softmax(call)
    call.op, call.overload, call.shape = "matmul", "default", final
    call.args = {"self": shares, "other": value}
    return PRODUCTS["matmul"](call)


RECURRENT = ("gru", "lstm", "rnn_relu", "rnn_tanh")


def _quantile(call: Call) -> Ref:
    if call.overload != "scalar":  # several at once
        call.op = f"aten:{call.op}"
    return call.plain()


def _recurrent(call: Call) -> Ref:
    """States that are the same for all lines, such as zeros, as that of one line."""
    weights, nodes = call.builder.weights, call.builder.nodes
    if call.overload == "data":  # lines of different lengths
        call.op = f"aten:{call.op}"
        return call.plain()
    if call.args["input"].name in weights:  # torch's own operator evaluates it
        return call.plain()

    def of_one(x: Ref) -> Ref:
        node = nodes.get(x.name)
        if x.name in weights:
            value = weights[x.name]
        elif node is not None and node.op == "aten:expand" and not node.operands:
            value = weights[node.weights[0]].expand(node.shape)
        else:
            return x
        one = value[..., :1, :]
        alike = value.stride(-2) == 0 or bool((value == one).all())
        return call.constant(one.contiguous()) if alike else x

    given = call.args["hx"]
    states = tuple(map(of_one, given)) if isinstance(given, tuple) else of_one(given)
    call.args = {**call.args, "hx": states}
    return call.plain()


def _as_other(op: str, key: str = "size") -> Callable[[Call], Ref]:
    """In the shape of another tensor."""

    def lower(call: Call) -> Ref:
        return call.add(op, {"self": call.args["self"], key: call.shape}, call.shape)

    return lower


def _convolution(call: Call) -> Ref:
    """Of any number of dimensions, as `torch.vmap` calls it."""
    keys = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    turned = call.args["transposed"]
    if turned:
        keys.append("output_padding")
    elif any(call.args["output_padding"]):
        return call.plain()
    rank = len(call.shape) - 2
    call.op, call.overload = ("conv_transpose", "input") if turned else ("conv", "default")
    call.op = f"{call.op}{rank}d"
    call.args = {key: call.args[key] for key in keys}
    return call.plain()


def _rrelu(call: Call) -> Ref:
    """Outside training its slope is the mean of those it draws from."""
    a = call.args
    call.op = "leaky_relu"
    call.args = {"self": a["self"], "negative_slope": (a["lower"] + a["upper"]) / 2}
    return call.plain()


def _tile(call: Call) -> Ref:
    x, times = call.args["self"], call.args["dims"]
    ones = (1,) * (len(call.builder.shape(x.name)) - len(times))
    call.op, call.args = "repeat", {"self": x, "repeats": (*ones, *times)}
    return LOWER["repeat"](call)


LOWER: dict[str, Callable[[Call], Ref]] = {
    **PARTS,
    **PRODUCTS,
    **FOURIER,
    "instance_norm": _instance_norm,
    "group_norm": _group_norm,
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit"), _batch_norm),
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    "scaled_dot_product_attention": _attention,
    "mean": _reduction("global_mean"),
    "sum": _reduction("global_sum"),
    **dict.fromkeys(("amax", "max"), _reduction("global_amax")),
    **dict.fromkeys(("amin", "min"), _reduction("global_amin")),
    **dict.fromkeys(("var", "std"), _reduction("global_var")),
    **dict.fromkeys(("var_mean", "std_mean"), _spread_and_mean),
    "aminmax": _extremes,
    "count_nonzero": _sum_of(_not_zero),
    "nansum": _sum_of(_nan_as_zero),
    "linalg_vector_norm": _reduction("global_norm"),
    **dict.fromkeys([f"adaptive_avg_pool{n}d" for n in (1, 2, 3)], _adaptive("global_mean")),
    **dict.fromkeys([f"adaptive_max_pool{n}d" for n in (1, 2, 3)], _adaptive("global_amax")),
    **dict.fromkeys(filter(re.compile("_?upsample_").match, RULES), _resampled),
    "roll": _roll,
    "expand_as": _as_other("expand"),
    "reshape_as": _as_other("reshape", "shape"),
    "view_as": _as_other("view"),
    "tile": _tile,
    "rrelu": _rrelu,
    "convolution": _convolution,
    **dict.fromkeys(("quantile", "nanquantile"), _quantile),
    **dict.fromkeys((*RECURRENT, *(f"{kind}_cell" for kind in RECURRENT)), _recurrent),
}
