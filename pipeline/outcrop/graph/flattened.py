"""Channels and points in one dimension, as `x.flatten(1)` has them.

There are no boxes of it, as its channels come before its points. Where the order is of no account,
as in a mean or a product of two of them, the points come first instead.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

from .call import Call
from .graph import Ref
from .lower import LOWER
from .rules import RULES
from .rules.base import normalized, refs
from .rules.pointwise import Pointwise, Rectify

_VIEWS = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as")
_CONVERTS = ("to", "_to_copy")
_POINTWISE = (Pointwise, Rectify)
_SUMS = (
    *("amax", "amin", "count_nonzero", "dot", "linalg_vector_norm", "max", "mean", "min"),
    *("nansum", "std", "std_mean", "sum", "var", "var_mean", "vdot"),
)


class Turned(NamedTuple):
    """The values of a tensor in another order.

    Attributes
    ----------
    values : Ref
        They, in the tensor's own shape.
    shape : tuple of int
        That shape.
    source : tuple of int
        Shape of the tensor that was flattened.
    order : tuple of int
        Its dimensions, as these values have them.
    dims : tuple of int
        Dimensions of the tensor in which the order is another.
    """

    values: Ref
    shape: tuple[int, ...]
    source: tuple[int, ...]
    order: tuple[int, ...]
    dims: tuple[int, ...]


def lower(call: Call, turned: dict[str, Turned]) -> Ref:
    """Add an operator to a graph under construction, on the grid where it can be.

    Parameters
    ----------
    call : Call
    turned : dict of str to Turned
        What was flattened so far, by name; what the operator flattens is put there.
    """
    if call.op in _VIEWS and "self" in call.args:
        return _view(call, turned)
    make, op, shape = LOWER.get(call.op, Call.plain), call.op, call.shape
    taken = set(refs(tuple(call.args.values())))
    found = [turned[name] for name in taken if name in turned]
    if len({t[1:] for t in found}) != 1 or not all(
        name in turned or _is_same_along(call.builder.shape(name), found[0]) for name in taken
    ):
        return make(call)
    other = copy.copy(call)
    other.args = {key: _swapped(value, turned) for key, value in call.args.items()}
    own, dims = found[0].shape, found[0].dims
    if op in _SUMS:
        places = op in ("max", "min") and (call.result or call.overload == "other")
        over = normalized(call.args.get("dim"), len(own))
        return make(other if not places and set(dims) <= set(over) else call)
    made = make(call)
    if (op in _CONVERTS or type(RULES[op]) in _POINTWISE) and shape == own:
        turned[made.name] = found[0]._replace(values=make(other))
    return made


def _is_same_along(own: tuple[int, ...], turned: Turned) -> bool:
    """Whether a tensor of this shape is the same in either order."""
    left = len(turned.shape) - len(own)
    return all(d < left or own[d - left] == 1 for d in turned.dims)


def _swapped(value: object, turned: dict[str, Turned]) -> object:
    if isinstance(value, Ref):
        return turned[value.name].values if value.name in turned else value
    return tuple(_swapped(v, turned) for v in value) if isinstance(value, tuple) else value


def _view(call: Call, turned: dict[str, Turned]) -> Ref:
    x, builder, size = call.args["self"], call.builder, call.shape
    if call.overload == "dtype":
        return call.plain()
    if x.name in turned:
        values, _, source, order, _ = turned[x.name]
        apart = tuple(source[d] for d in order)
        back = call.add("view", {"self": values, "size": apart}, apart)
        dims = tuple(map(order.index, range(len(order))))
        x = call.add("permute", {"self": back, "dims": dims}, source)
        call.op, call.overload, call.args = "view", "default", {"self": x, "size": size}
    made = x if builder.shape(x.name) == size else LOWER.get(call.op, Call.plain)(call)
    own = builder.layouts.get(x.name)
    if own is None or own.is_fixed or not builder.graph.layout(made.name).is_fixed:
        return made
    groups = _joined(own.shape, size)
    order = tuple(d for group in groups for d in sorted(group, key=lambda d: not own.dims[d]))
    dims = tuple(i for i, group in enumerate(groups) if any(own.dims[d] for d in group))
    if order == tuple(range(len(order))) or len(order) < len(own.shape):
        return made
    shape = tuple(own.shape[d] for d in order)
    values = call.add("permute", {"self": x, "dims": order}, shape)
    values = call.add("view", {"self": values, "size": size}, size)
    if not builder.layouts[values.name].is_fixed:
        turned[made.name] = Turned(values, size, own.shape, order, dims)
    return made


def _joined(shape: tuple[int, ...], size: tuple[int, ...]) -> list[list[int]]:
    """Return which dimensions of `shape` each of `size` joins; too few where it splits some."""
    groups: list[list[int]] = []
    left = list(range(len(shape)))
    for n in size:
        groups.append([])
        while left and math.prod(shape[d] for d in (*groups[-1], left[0])) <= n:
            groups[-1].append(left.pop(0))
        if math.prod(shape[d] for d in groups[-1]) != n:
            return []
    return groups
