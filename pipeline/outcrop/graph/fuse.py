"""Operators that are cheaper together than one after the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from .graph import Graph, Node

_CONVOLUTIONS = {"conv2d", "conv3d", "upsampled_conv2d", "upsampled_conv3d"}


def fuse(graph: Graph) -> Graph:
    """Let each convolution apply the ReLU that alone uses its result."""
    uses = Counter(name for node in graph.nodes.values() for name in node.operands)
    uses.update(graph.outputs)
    nodes: dict[str, Node] = {}
    for name, node in graph.nodes.items():
        source = nodes.get(node.operands[0]) if node.op == "relu" and node.operands else None
        if source is None or source.op not in _CONVOLUTIONS or uses[source.name] > 1:
            nodes[name] = node
            continue
        del nodes[source.name]
        nodes[name] = replace(source, name=name, args={**source.args, "activation": "relu"})
    layouts = {n: graph.layouts[n] for n in (*graph.inputs, *nodes)}
    return replace(graph, nodes=nodes, layouts=layouts)
