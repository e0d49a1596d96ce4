"""Products of matrices that are summed over the whole grid, as global values."""

from __future__ import annotations

import math
from collections.abc import Callable
from string import ascii_letters

import torch

from .build import FOLDED
from .call import Call
from .graph import Ref


def _gram(call: Call, a: Ref, b: Ref) -> Ref | None:
    """Product of (..., m, points) and (..., n, points) over the points, if these are all axes."""
    left, right = (call.builder.graph.layout(x.name) for x in (a, b))
    points = left.dims[-1]
    if (
        not points
        or left.dims != right.dims
        or left.held != points
        or left.grid != right.grid
        or left.shape[:-2] != right.shape[:-2]
    ):
        return None
    rows, n = left.shape[-2], right.shape[-2]
    shape = (*left.shape[:-2], rows + n, left.shape[-1])
    both = call.add("cat", {"tensors": (a, b), "dim": len(shape) - 2}, shape)
    return call.add("gram", {"self": both, "rows": rows}, (*left.shape[:-2], rows, n))


def _matmul(call: Call) -> Ref:
    a, b = (x for x in call.args.values() if isinstance(x, Ref))
    shape = call.builder.shape(b.name)
    if min(len(shape), len(call.dims(a.name))) < 2:
        return _with_vector(call, a, b)
    if not call.dims(a.name)[-1]:
        return call.plain()
    turned = (*shape[:-2], shape[-1], shape[-2])
    other = call.add("transpose", {"self": b, "dim0": -2, "dim1": -1}, turned, "int")
    return _gram(call, a, other) or call.plain()


def _with_vector(call: Call, a: Ref, b: Ref) -> Ref:
    """A vector as a matrix of one row or one column."""
    left, right = (call.builder.shape(x.name) for x in (a, b))
    shape, row, column = call.shape, len(left) < 2, len(right) < 2
    if row:
        a = call.add("unsqueeze", {"self": a, "dim": 0}, (1, *left))
    if column:
        b = call.add("unsqueeze", {"self": b, "dim": 1}, (*right, 1))
    call.op, call.args = "matmul", {"self": a, "other": b}
    call.shape = (*shape[:-1], 1, *shape[-1:]) if row and not column else (*shape, 1)
    if row and column:
        call.shape = (1, 1)
    made = _matmul(call)
    return call.add("view", {"self": made, "size": shape}, shape)


def _vdot(call: Call) -> Ref:
    return call.plain() if call.dtype.is_complex else _matmul(call)


def _einsum(call: Call) -> Ref:
    """One of two operands, in which every axis of the grid is summed over."""
    tensors = call.args["tensors"]
    inputs, _, output = call.args["equation"].replace(" ", "").partition("->")
    labels = inputs.split(",")
    if len(labels) != 2 or "." in inputs or any(len(set(s)) < len(s) for s in labels):
        return call.plain()
    first, second = labels
    summed = [c for c in first if c in second and c not in output]
    batch = [c for c in first if c in second and c in output]
    rows = [c for c in first if c not in second]
    columns = [c for c in second if c not in first]
    if sorted(output) != sorted([*batch, *rows, *columns]):
        return call.plain()
    if not rows and not columns and (total := _total(call, *tensors, *labels)) is not None:
        return total
    sizes: dict[str, int] = {}
    made = []
    for x, own, kept in zip(tensors, labels, (rows, columns), strict=True):
        held = dict(zip(own, call.dims(x.name), strict=True))
        if not summed or any(bool(held[c]) != (c in summed) for c in own):
            return call.plain()
        sizes.update(zip(own, call.builder.shape(x.name), strict=True))
        made.append((x, own, [*batch, *kept, *summed], kept))

    def size(names: list[str]) -> tuple[int, ...]:
        return tuple(sizes[c] for c in names)

    flat = []
    for x, own, order, kept in made:
        dims = tuple(own.index(c) for c in order)
        turned = call.add("permute", {"self": x, "dims": dims}, size(order))
        shape = (*size(batch), math.prod(size(kept)), math.prod(size(summed)))
        flat.append(call.add("view", {"self": turned, "size": shape}, shape))
    product = _gram(call, *flat)
    if product is None:
        return call.plain()
    order = [*batch, *rows, *columns]
    product = call.add("view", {"self": product, "size": size(order)}, size(order))
    dims = tuple(order.index(c) for c in output)
    return call.add("permute", {"self": product, "dims": dims}, call.shape)


def _total(call: Call, a: Ref, b: Ref, first: str, second: str) -> Ref | None:
    """Sum of products of the points of two tensors, if these are all axes."""
    output = call.args["equation"].replace(" ", "").partition("->")[2]
    shape, dims = call.builder.shape(a.name), tuple(second.index(c) for c in first)
    if tuple(call.builder.shape(b.name)[d] for d in dims) != shape or call.dtype.is_complex:
        return None
    b = call.add("permute", {"self": b, "dims": dims}, shape)
    held = [d for x in (a, b) for d, axes in enumerate(call.dims(x.name)) if axes]
    kept = [c for c in first if c in output]
    if not held or any(first[d] in kept for d in held):
        return None
    product = call.add("mul", {"self": a, "other": b}, shape, "Tensor")
    args = {"dims": tuple(d for d, c in enumerate(first) if c not in kept), "keepdim": False}
    left = tuple(shape[first.index(c)] for c in kept)
    total = call.add("global_sum", {"self": product, **args}, left)
    order = tuple(map(kept.index, output))
    return call.add("permute", {"self": total, "dims": order}, call.shape)


def _tensordot(call: Call) -> Ref:
    """The sum of products that it is, by names of the dimensions."""
    tensors = tuple(call.args[key] for key in ("self", "other"))
    shapes = [call.builder.shape(x.name) for x in tensors]
    over = [
        [d % len(own) for d in call.args[key]]
        for own, key in zip(shapes, ("dims_self", "dims_other"), strict=True)
    ]
    first = ascii_letters[: len(shapes[0])]
    names = dict(zip(over[1], (first[d] for d in over[0]), strict=True))
    more = iter(ascii_letters[len(first) :])
    second = [names[d] if d in names else next(more) for d in range(len(shapes[1]))]
    free = [c for d, c in enumerate(first) if d not in over[0]]
    free += [c for d, c in enumerate(second) if d not in names]
    equation = f"{first},{''.join(second)}->{''.join(free)}"
    call.op, call.args = "einsum", {"equation": equation, "tensors": tensors, "path": None}
    return _einsum(call)


def _for_each_head(call: Call, x: Ref, heads: int) -> Ref | None:
    """Repeat the heads of keys or values, unless they hold an axis."""
    *batch, few, points, features = call.builder.shape(x.name)
    if call.dims(x.name)[-3]:
        return None
    for op, shape in (
        ("unsqueeze", (*batch, few, 1, points, features)),
        ("expand", (*batch, few, heads // few, points, features)),
        ("view", (*batch, heads, points, features)),
    ):
        key, size = ("dim", -3) if op == "unsqueeze" else ("size", shape)
        x = call.add(op, {"self": x, key: size}, shape)
    return x


def _attention(call: Call) -> Ref:
    """A causal one, by a mask, which tiles take their part of; each head with keys of its own."""
    if call.args["enable_gqa"]:
        heads = call.shape[-3]
        own = {key: _for_each_head(call, call.args[key], heads) for key in ("key", "value")}
        if None in own.values():
            return call.plain()
        call.args = {**call.args, **own, "enable_gqa": False}
    a, points = call.args, [call.builder.shape(call.args[key].name)[-2] for key in ("query", "key")]
    if a["is_causal"] and a["attn_mask"] is None and math.prod(points) <= FOLDED:
        mask = call.constant(torch.ones(points, dtype=torch.bool).tril())
        call.args = {**a, "attn_mask": mask, "is_causal": False}
    return call.plain()


def _distances(call: Call) -> Ref:
    """By products or differences, which ATen chooses by the extents: here, those of the whole."""
    if not call.args["compute_mode"]:
        products = max(call.shape[-2:]) > 25
        call.args = {**call.args, "compute_mode": 1 if products else 2}
    return call.plain()


PRODUCTS: dict[str, Callable[[Call], Ref]] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "dot"), _matmul),
    "vdot": _vdot,
    "einsum": _einsum,
    "tensordot": _tensordot,
    "scaled_dot_product_attention": _attention,
    "cdist": _distances,
}
