"""Large tables that are the same for all inputs, or everywhere.

Those computed from weights alone, such as masks of windows that are shifted, and global values that
are repeated over the volume.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from .graph import Graph, Node
from .layout import Layout
from .rules import RULES
from .rules.along import Concatenate
from .rules.pointwise import Convert, Expand, Pointwise
from .rules.views import Drop, Unsqueeze, View

_ALIGNED, _REORDERED = (Pointwise, Convert, Expand), (Unsqueeze, Drop, View)
_CUTTING = (Pointwise, Expand)  # what they take whole they cut


def spread_tables(graph: Graph) -> Graph:
    """Let tables be computed box by box, on the grid of what takes them, instead of whole."""
    nodes, layouts = graph.nodes, dict(graph.layouts)
    users: dict[str, list[Node]] = defaultdict(list)
    tables: set[str] = set()
    for name, node in nodes.items():
        for operand in node.operands:
            users[operand].append(node)
        if layouts[name].is_fixed and (node.op == "expand" or tables.issuperset(node.operands)):
            tables.add(name)
    tables -= {*graph.outputs, *(name for name in tables if _rule(nodes[name]) is None)}
    spread: dict[str, Node] = {}
    for name in reversed(list(nodes)):
        if name in tables:
            taken = {_as_taken(nodes[name], user, layouts) for user in users[name]}
            found = taken.pop() if len(taken) == 1 else None
            if found is not None:
                layouts[name] = found
                spread[name] = replace(nodes[name], op=nodes[name].op.removeprefix("aten:"))
    for name in [n for n in nodes if n in spread]:
        if _rule(nodes[name]) not in _CUTTING and not spread.keys() >= {*nodes[name].operands}:
            del spread[name]
            layouts[name] = graph.layouts[name]
    return replace(graph, nodes={**nodes, **spread}, layouts=layouts)


def _rule(node: Node) -> type | None:
    """Kind of the rule of an operator that can be computed box by box; None of another."""
    kind = type(RULES[node.op.removeprefix("aten:")])
    as_bits = node.overload == "dtype"  # a view of the same bits as other values
    return kind if kind in (*_ALIGNED, *_REORDERED) and not as_bits else None


def _as_taken(node: Node, user: Node, layouts: Mapping[str, Layout]) -> Layout | None:
    """How a tensor would lie on the grid of what takes it; None if that takes all of it."""
    taken, kind, n = layouts[user.name], _rule(user), len(node.shape)
    if kind in _ALIGNED or isinstance(RULES[user.op], Concatenate):
        offset = len(user.shape) - n
        dims = [
            axes if 1 < extent == there else ()
            for extent, there, axes in zip(
                node.shape, user.shape[offset:], taken.dims[offset:], strict=True
            )
        ]
    elif kind in _REORDERED and _wide(node) == _wide(user):
        held = iter([axes for axes, k in zip(taken.dims, user.shape, strict=True) if k > 1])
        dims = [next(held) if extent > 1 else () for extent in node.shape]
    else:
        return None
    axes = {a for held in dims for a in held}
    grid = tuple(k if a in axes else 1 for a, k in enumerate(taken.grid))
    return Layout(node.shape, tuple(dims), grid) if axes else None


def _wide(node: Node) -> list[int]:
    return [extent for extent in node.shape if extent > 1]
