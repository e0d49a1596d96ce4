"""Boxes backwards through a part of a graph."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from .boxes import Box, Shape, central_tile
from .graph import Graph
from .rules import RULES

_FEW = 8


def ancestors(graph: Graph, outputs: Iterable[str], stored: Container[str]) -> tuple[str, ...]:
    """Nodes to evaluate for `outputs` when the tensors `stored` are given, in order."""
    last = set(outputs)
    wanted, stack = set(), list(last)
    while stack:
        name = stack.pop()
        given = name not in graph.nodes or (name in stored and name not in last)
        if given or name in wanted:
            continue
        wanted.add(name)
        stack.extend(graph.nodes[name].operands)
    return tuple(sorted(wanted, key=graph.order.__getitem__))


def needed(
    graph: Graph,
    nodes: Iterable[str],
    outputs: Mapping[str, Box],
    extents: Mapping[str, Shape] | None = None,
    at_worst: bool = False,
    known: dict[tuple[str, Box, bool], dict[str, Box]] | None = None,
) -> dict[str, Box]:
    """Box of every tensor that `outputs` depend on, when just `nodes` are evaluated.

    Parameters
    ----------
    graph : Graph
    nodes : iterable of str
        Nodes to evaluate, in topological order.
    outputs : mapping of str to Box
        What is wanted of each of their results.
    extents : mapping of str to tuple of int, optional
        Extents to which boxes are grown, where the grid has room: boxes at the edge of the volume
        are then of the same shape as any.
    at_worst : bool
        For boxes of these shapes wherever they need most.
    known : dict, optional
        What rules have said, by node and box, for those who ask for the same boxes again; what
        they say now is put there.

    Returns
    -------
    dict of str to Box
        For each node, and for each tensor that is read, the smallest box that serves all
        that use it.
    """
    boxes = dict(outputs)

    def grow(name: str) -> None:
        if extents is not None and name in extents:
            boxes[name] = boxes[name].grown(extents[name], graph.whole(name))

    nodes = tuple(nodes)
    for name in reversed(nodes):
        grow(name)
        node = graph.nodes[name]
        rule = RULES[node.op]
        key = name, boxes[name], at_worst
        needs = None if known is None else known.get(key)
        if needs is None:
            needs = (rule.at_worst if at_worst else rule.needs)(node, boxes[name], graph)
            if known is not None:
                known[key] = needs
        for operand, box in needs.items():
            boxes[operand] = boxes[operand] | box if operand in boxes else box
    for name in boxes.keys() - set(nodes):
        grow(name)
    return boxes


def lines(graph: Graph, name: str) -> frozenset[int]:
    """Axes of which every box of a node takes all points, as a Fourier transform along them does.

    Tiles that are cut across these compute the same anew. Axes of few points, all of which a kernel
    may reach, do not count.
    """
    grid, node = graph.grid(name), graph.nodes[name]
    point = central_tile(graph.whole(name), (1,) * graph.rank)
    return frozenset(
        a
        for operand, box in RULES[node.op].needs(node, point, graph).items()
        for a, (taken, all_of_it) in enumerate(zip(box.shape, graph.grid(operand), strict=True))
        if min(grid[a], all_of_it) > _FEW and taken == all_of_it
    )


def last_uses(graph: Graph, nodes: Iterable[str], outputs: Iterable[str]) -> dict[str, list[str]]:
    """For each node, the tensors that nothing after it uses."""
    seen, last = set(outputs), {}
    for name in reversed(tuple(nodes)):
        operands = graph.nodes[name].operands
        last[name] = [operand for operand in operands if operand not in seen]
        seen.update(operands)
    return last


def overwritten(
    graph: Graph, nodes: Iterable[str], given: Iterable[str], outputs: Iterable[str]
) -> dict[str, str]:
    """Nodes whose result may take the memory of an operand, and that operand.

    Not of one of `given`, which may be views of a store, nor of one whose memory another shares.
    """
    nodes = tuple(nodes)
    last, shared, found = last_uses(graph, nodes, outputs), set(given), {}
    for name in nodes:
        node, rule = graph.nodes[name], RULES[graph.nodes[name].op]
        if rule.may_share:
            shared |= {name, *node.operands}
        target = rule.spared(node, graph)
        if target in last[name] and target not in shared:
            found[name] = target
    return found
