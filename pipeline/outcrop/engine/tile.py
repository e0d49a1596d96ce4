"""`run_tile`: the one function that every executor calls."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..graph import RULES, Box, Graph
from ..graph.propagate import last_uses, needed
from ..planner import Stage
from .stores import Store


def run_tile(
    graph: Graph,
    stage: Stage,
    tile: Box,
    weights: Mapping[str, Tensor],
    stores: Mapping[str, Store],
) -> None:
    """Evaluate one tile of a stage: read boxes, compute, write boxes.

    Idempotent: the same tile run again writes the same values to the same place.

    Parameters
    ----------
    graph : Graph
    stage : Stage
        Of a plan for that graph.
    tile : Box
        On the grid of the stage's outputs.
    weights : mapping of str to torch.Tensor
        The network's own tensors by their names in the graph, on the device that computes.
    stores : mapping of str to Store
        Where the stage's inputs are read and its outputs written.
    """
    boxes = needed(graph, stage.nodes, dict.fromkeys(stage.outputs, tile))
    last = last_uses(graph, stage.nodes, stage.outputs)
    held: dict[str, Tensor] = {}
    for name in stage.nodes:
        node = graph.nodes[name]
        rule = RULES[node.op]
        values = dict(weights)
        for operand, box in rule.needs(node, boxes[name], graph).items():
            if operand not in held:
                held[operand] = stores[operand].read(boxes[operand])
            inside = box.within(boxes[operand])
            values[operand] = held[operand][inside.index]
        ends = last[name]
        for operand in ends:
            del held[operand]
        # What was computed here and ends here may be overwritten; what was read may be a view.
        spare = (
            len(node.operands) == 1
            and node.operands[0] in ends
            and (node.operands[0] not in stage.inputs)
        )
        step = rule.overwrite if spare else rule.evaluate
        held[name] = step(node, boxes[name], values, graph)
        if name in stage.outputs:
            stores[name].write(tile, held[name][tile.within(boxes[name]).index])
            if not any(name in rest for rest in last.values()):
                del held[name]
