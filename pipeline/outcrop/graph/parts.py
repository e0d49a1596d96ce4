"""Parts of tensors that are taken, put in place, joined and repeated, as operators with rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch

from .call import Call
from .graph import COMPLEX, Ref
from .rules.unpool import windows


def _spread(call: Call, x: Ref, dim: int, start: int, step: int) -> Ref:
    """Bring `x` to the result's extent along `dim`, with its points `step` apart from `start` on.

    What lies between and beside them is of no account.
    """
    shape = list(call.builder.shape(x.name))
    extent, n = call.shape[dim], shape[dim]
    shape[dim] = extent
    if n in (1, extent):
        return x
    args = {"self": x, "dim": dim}
    if x.name not in call.builder.weights:
        return call.add("spread", {**args, "start": start, "step": step}, tuple(shape))
    index = (torch.arange(extent) - start).div(step, rounding_mode="floor").clamp(0, n - 1)
    return call.add("index_select", {**args, "index": call.constant(index)}, tuple(shape))


def _put(call: Call, whole: Ref, part: Ref, dim: int, start: int, step: int = 1) -> Ref:
    """Return `whole` with `part` along `dim`, its points `step` apart from `start` on."""
    count = call.builder.shape(part.name)[dim]
    i = torch.arange(call.shape[dim]) - start
    inside = (i >= 0) & (i < count * step) & (i % step == 0)
    if not count or bool(inside.all()):
        return part if count else whole
    mask = call.constant(inside.view(-1, *(1,) * (len(call.shape) - 1 - dim)))
    spread = _spread(call, part, dim, start, step)
    args = {"condition": mask, "self": spread, "other": whole}
    return call.add("where", args, call.shape, "self")


def _slice_scatter(call: Call) -> Ref:
    if not call.on_grid():
        return call.plain()
    dim = call.args["dim"] % len(call.shape)
    if len(call.dims(call.args["src"].name)[dim]) > 1:  # a dimension of several axes
        return call.plain()
    start, n = call.args["start"] or 0, call.shape[dim]
    start = min(max(start + n if start < 0 else start, 0), n)
    return _put(call, call.args["self"], call.args["src"], dim, start, call.args["step"])


def _select_scatter(call: Call) -> Ref:
    if not call.on_grid():
        return call.plain()
    dim, part = call.args["dim"] % len(call.shape), call.args["src"]
    shape = tuple(1 if d == dim else n for d, n in enumerate(call.shape))
    part = call.add("unsqueeze", {"self": part, "dim": dim}, shape)
    return _put(call, call.args["self"], part, dim, call.args["index"] % call.shape[dim])


def _cat(call: Call) -> Ref:
    """Leave out tensors of no values that have another number of dimensions, as ATen does."""
    tensors = tuple(t for t in call.args["tensors"] if call.builder.shape(t.name) != (0,))
    if len(tensors) == 1:
        return tensors[0]
    if not tensors:
        return call.plain()
    call.args = {**call.args, "tensors": tensors}
    dim = call.args["dim"] % len(call.shape)
    extents = [call.builder.shape(t.name)[dim] for t in tensors]
    held = [call.dims(t.name)[dim] for t in tensors]
    if not any(held) or max(map(len, held)) > 1 or 0 in extents:
        return call.plain()
    # Along an axis of the grid the parts lie in other places than they did.
    starts = [0, *accumulate(extents)]
    made = _spread(call, tensors[0], dim, 0, 1)
    for tensor, start in zip(tensors[1:], starts[1:], strict=False):
        made = _put(call, made, tensor, dim, start)
    return made


def _stack(call: Call) -> Ref:
    """Those that lie otherwise on the grid than others, such as constants, are joined."""
    names = [t.name for t in call.args["tensors"]]
    if len({call.dims(name) for name in names}) == 1 or not call.on_grid():
        return call.plain()
    dim = call.args["dim"] % len(call.shape)
    shape = (*call.shape[:dim], 1, *call.shape[dim + 1 :])
    tensors = tuple(
        call.add("unsqueeze", {"self": t, "dim": dim}, shape, dtype=call.dtype_of(t.name))
        for t in call.args["tensors"]
    )
    call.op, call.args = "cat", {"tensors": tensors, "dim": dim}
    return _cat(call)


def _index(call: Call) -> Ref:
    """One dimension at fixed positions, or rows of a table of weights at those of a tensor."""
    x, given = call.args["self"], call.args["indices"]
    places = [(dim, index) for dim, index in enumerate(given) if index is not None]
    dim, index = places[0]
    weights = call.builder.weights
    if len(places) > 1 or call.dtype_of(index.name) == torch.bool:
        return call.plain()
    if x.name in weights and index.name not in weights and dim == 0:
        return call.add("lookup", {"self": x, "index": index}, call.shape)
    return _at(call, x, dim, index)


def _index_select(call: Call) -> Ref:
    return _at(call, call.args["self"], call.args["dim"], call.args["index"])


def _at(call: Call, x: Ref, dim: int, index: Ref) -> Ref:
    weights = call.builder.weights
    if x.name in weights or index.name not in weights:
        return call.plain()
    shape = call.builder.shape(x.name)
    dim %= len(shape)
    if len(call.dims(x.name)[dim]) > 1 or 0 in call.shape:
        return call.plain()
    at = tuple((weights[index.name].reshape(-1) % shape[dim]).tolist())
    row = (*shape[:dim], len(at), *shape[dim + 1 :])
    made = call.add("at", {"self": x, "dim": dim, "index": at}, row)
    # Those of a matrix, such as a Toeplitz matrix of a correlation, are taken one after the other.
    return (
        made
        if row == call.shape
        else call.add("view", {"self": made, "size": call.shape}, call.shape)
    )


def _gather(call: Call) -> Ref:
    """One point of each line: those of the others are taken for 0, and all are added up."""
    x, dim = call.args["self"], call.args["dim"]
    index = call.args["index" if "index" in call.args else "indices"]
    shape, own = call.builder.shape(x.name), call.dtype_of(x.name)
    if dim is None or not shape or not call.dims(x.name)[dim % len(shape)]:
        return call.plain()
    dim %= len(shape)
    one = tuple(1 if d == dim else n for d, n in enumerate(shape))
    if call.builder.shape(index.name) != one or call.shape != one:
        return call.plain()
    if own.is_complex or own == torch.bool:
        return call.plain()
    count = torch.arange(shape[dim]).view(-1, *(1,) * (len(shape) - 1 - dim))
    args = {"self": index, "other": call.constant(count)}
    mask = call.add("eq", args, shape, "Tensor", dtype=torch.bool)
    zero = call.constant(torch.zeros((), dtype=own))
    args = {"condition": mask, "self": x, "other": zero}
    args = {"self": call.add("where", args, shape, "self", dtype=own), "dim": (dim,)}
    to = None if own.is_floating_point else own  # integers are added up in 64 bits
    return call.add("sum", {**args, "keepdim": True, "dtype": to}, one, "dim_IntList", dtype=own)


def _embedding(call: Call) -> Ref:
    table, index = call.args["weight"], call.args["indices"]
    if table.name not in call.builder.weights or index.name in call.builder.weights:
        return call.plain()
    return call.add("lookup", {"self": table, "index": index}, call.shape)


def _index_put(call: Call) -> Ref:
    """Values where a mask is true."""
    x, (mask, *more), values = call.args["self"], call.args["indices"], call.args["values"]
    shape = call.builder.shape(values.name)
    if mask is None or more or call.args["accumulate"] or not call.on_grid():
        return call.plain()
    held = call.builder.shape(mask.name)
    apart = len(call.shape) - len(held)
    if call.dtype_of(mask.name) != torch.bool or (len(shape) > apart and math.prod(shape) > 1):
        return call.plain()
    for _ in range(apart):
        held = (*held, 1)
        mask = call.add("unsqueeze", {"self": mask, "dim": len(held) - 1}, held, dtype=torch.bool)
    args = {"condition": mask, "self": values, "other": x}
    return call.add("where", args, call.shape, "self")


def _unfold(call: Call) -> Ref:
    """Sliding windows along one dimension: blocks that they are made of, side by side."""
    x, size, step = (call.args[key] for key in ("self", "size", "step"))
    dim = call.args["dimension"] % len(call.shape[:-1])
    block, shape = math.gcd(size, step), call.builder.shape(x.name)
    blocks = shape[dim] // block
    x = _every(call, x, dim, 0, 1, blocks * block)
    split = (*shape[:dim], blocks, block, *shape[dim + 1 :])
    x = call.add("view", {"self": x, "size": split}, split)
    count = call.shape[dim]
    parts = tuple(_every(call, x, dim, i, step // block, count) for i in range(size // block))
    made = (*shape[:dim], count, size, *shape[dim + 1 :])
    x = call.add("cat", {"tensors": parts, "dim": dim + 1}, made)
    order = (*range(dim + 1), *range(dim + 2, len(made)), dim + 1)
    return call.add("permute", {"self": x, "dims": order}, call.shape)


def _im2col(call: Call) -> Ref:
    """Windows of an image as channels of one row of points: its slices, side by side."""
    x = call.args["self"]
    kernel, dilation, padding, stride = (
        call.args[key] for key in ("kernel_size", "dilation", "padding", "stride")
    )
    *lead, h, w = call.builder.shape(x.name)
    extents = (h + 2 * padding[0], w + 2 * padding[1])
    if any(padding):
        pad = (padding[1], padding[1], padding[0], padding[0])
        args = {"self": x, "pad": pad, "mode": "constant", "value": 0.0}
        x = call.add("pad", args, (*lead, *extents))
    rows, columns = (
        (n - d * (k - 1) - 1) // s + 1
        for n, k, d, s in zip(extents, kernel, dilation, stride, strict=True)
    )
    slices = []
    for i in range(kernel[0]):
        row = _every(call, x, len(lead), i * dilation[0], stride[0], rows)
        slices += [
            _every(call, row, len(lead) + 1, j * dilation[1], stride[1], columns)
            for j in range(kernel[1])
        ]
    args = {"tensors": tuple(slices), "dim": len(lead)}
    made = call.add("stack", args, (*lead, len(slices), rows, columns))
    return call.add("view", {"self": made, "size": call.shape}, call.shape)


def _every(call: Call, x: Ref, dim: int, start: int, step: int, count: int) -> Ref:
    """Return `count` points along one dimension."""
    shape = list(call.builder.shape(x.name))
    shape[dim] = count
    end = start + (count - 1) * step + 1
    args = {"self": x, "dim": dim, "start": start, "end": end, "step": step}
    return call.add("slice", args, tuple(shape), "Tensor")


def _split(call: Call) -> Ref:
    x, dim = call.args["self"], call.args["dim"]
    own, i = call.builder.shape(x.name), call.result or 0
    size: Any = call.args.get("split_size", call.args.get("split_sizes"))
    if "chunks" in call.args:
        size = -(-own[dim % len(own)] // call.args["chunks"])
    start = i * size if isinstance(size, int) else sum(size[:i])
    stop = start + call.shape[dim % len(own)]
    args = {"self": x, "dim": dim, "start": start, "end": stop, "step": 1}
    return call.add("slice", args, call.shape, "Tensor")


def _pool_with_places(call: Call) -> Ref:
    n, own = int(call.op.removesuffix("_with_indices")[-2]), call.dims(call.args["self"].name)
    if call.result and (len(own) != n + 2 or max(map(len, own[-n:])) > 1 or not call.on_grid()):
        return call.plain()
    call.op = call.op.removesuffix("_with_indices")
    call.op = call.op.replace("pool", "pool_places") if call.result else call.op
    call.result = None
    return call.plain()


def _unpool(call: Call) -> Ref:
    pool = call.builder.nodes.get(call.args["indices"].name)
    known = None if pool is None or not pool.op.startswith("max_pool_places") else windows(pool)
    args = {key: call.args[key] for key in ("self", "indices")}
    of_grid = int(call.op[-2]) == call.builder.rank
    if known is None or not of_grid or not all(_is_image(call, x) for x in args.values()):
        return call.plain()
    return call.add("unpool", {**args, **known}, call.shape)


def _is_image(call: Call, x: Ref) -> bool:
    """Whether the last dimensions are the grid's axes, those of one point aside."""
    rank, shape = call.builder.rank, call.builder.shape(x.name)
    held = call.dims(x.name)[-rank:]
    return all(
        axes == (a,) or n == 1 for a, (axes, n) in enumerate(zip(held, shape[-rank:], strict=True))
    )


def _argsort(call: Call) -> Ref:
    call.op, call.result = "sort", 1
    return call.plain()


def _diagonal(call: Call) -> Ref:
    """Of a matrix at each point: its elements, side by side."""
    x, n = call.args["self"], len(call.shape) + 1
    first, second = sorted(call.args[key] % n for key in ("dim1", "dim2"))
    held = call.dims(x.name)
    if call.args["offset"] or held[first] or held[second]:
        return call.plain()
    slices = []
    for index in range(call.shape[-1]):
        part, shape = x, call.builder.shape(x.name)
        for dim in (second, first):
            shape = (*shape[:dim], *shape[dim + 1 :])
            args = {"self": part, "dim": dim, "index": index}
            part = call.add("select", args, shape, "int")
        slices.append(part)
    return call.add("stack", {"tensors": tuple(slices), "dim": -1}, call.shape)


def _unbind(call: Call) -> Ref:
    args = {"self": call.args["self"], "dim": call.args["dim"], "index": call.result or 0}
    return call.add("select", args, call.shape, "int")


def _repeat(call: Call) -> Ref:
    x, repeats = call.args["self"], call.args["repeats"]
    shape = call.builder.shape(x.name)
    while len(shape) < len(repeats):
        shape = (1, *shape)
        x = call.add("unsqueeze", {"self": x, "dim": 0}, shape)
    ones = tuple(1 if n == 1 else r for n, r in zip(shape, repeats, strict=True))
    if any(r != 1 for r in ones):
        shape = tuple(n * r for n, r in zip(shape, ones, strict=True))
        x = call.add("repeat", {"self": x, "repeats": ones}, shape)
    size = call.shape
    return x if shape == size else call.add("expand", {"self": x, "size": size}, size)


def _convert(call: Call) -> Ref:
    builder, x = call.builder, call.args["self"]
    target: Any = call.dtype
    if x.name in builder.weights:
        return call.constant(builder.weights[x.name].to(target))
    kind = builder.kind_of(target)
    if kind in (None, COMPLEX):
        if x.name in builder.layouts and builder.graph.kind(x.name) == kind:
            return x
        target = call.constant(torch.zeros((), dtype=target))
    return call.add("convert", {"self": x, "dtype": target}, call.shape)


def _copy(call: Call) -> Ref:
    """What is assigned to all of a tensor: in its dtype, and in its shape."""
    x = call.args.get("src", call.args.get("value"))
    if not isinstance(x, Ref):
        x = call.constant(torch.tensor(x, dtype=call.dtype))
    own = call.dtype_of(x.name)
    if call.builder.shape(x.name) != call.shape:
        x = call.add("expand", {"self": x, "size": call.shape}, call.shape, dtype=own)
    call.args = {"self": x}
    return x if own == call.dtype else _convert(call)


def _view_as_real(call: Call) -> Ref:
    x = call.args["self"]
    parts = tuple(call.add(op, {"self": x}, call.shape[:-1]) for op in ("real", "imag"))
    return call.add("stack", {"tensors": parts, "dim": len(call.shape) - 1}, call.shape)


def _view_as_complex(call: Call) -> Ref:
    x = call.args["self"]
    own = call.dtype_of(x.name)
    real, imag = (
        call.add("select", {"self": x, "dim": -1, "index": i}, call.shape, "int", dtype=own)
        for i in range(2)
    )
    return call.add("complex", {"real": real, "imag": imag}, call.shape)


def _conj(call: Call) -> Ref:
    call.op = "conj_physical"
    return call.plain()


def _fill(value: float | None) -> Callable[[Call], Ref]:
    def lower(call: Call) -> Ref:
        filled = call.args["fill_value"] if value is None else value
        number = call.constant(torch.tensor(filled, dtype=call.dtype))
        return call.add("expand", {"self": number, "size": call.shape}, call.shape)

    return lower


def _meshgrid(call: Call) -> Ref:
    i = dim = call.result or 0
    x = call.args["tensors"][i]
    if call.args.get("indexing") == "xy" and i < 2:
        dim = 1 - i
    shape = tuple(n if d == dim else 1 for d, n in enumerate(call.shape))
    x = call.add("view", {"self": x, "size": shape}, shape)
    return call.add("expand", {"self": x, "size": call.shape}, call.shape)


PARTS: dict[str, Callable[[Call], Ref]] = {
    "cat": _cat,
    "stack": _stack,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "index_put": _index_put,
    "index": _index,
    "index_select": _index_select,
    "embedding": _embedding,
    **dict.fromkeys(("gather", "take_along_dim"), _gather),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "unbind": _unbind,
    "diagonal": _diagonal,
    "argsort": _argsort,
    **dict.fromkeys([f"max_pool{n}d_with_indices" for n in (2, 3)], _pool_with_places),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpool),
    "unfold": _unfold,
    "im2col": _im2col,
    "repeat": _repeat,
    "meshgrid": _meshgrid,
    **dict.fromkeys(("copy", "fill"), _copy),
    "view_as_real": _view_as_real,
    "view_as_complex": _view_as_complex,
    "_conj": _conj,
    **dict.fromkeys(("zero", "zeros", "zeros_like", "new_zeros"), _fill(0.0)),
    **dict.fromkeys(("empty", "empty_like", "new_empty"), _fill(0.0)),  # which is written over
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _fill(1.0)),
    **dict.fromkeys(("full", "full_like", "new_full"), _fill(None)),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _convert),
}
