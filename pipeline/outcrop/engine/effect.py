"""What 8 bits a value do to a prediction, found on a part of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..errors import MemoryBudgetError
from ..graph import Box, capture
from ..graph.capture import precision_of
from ..planner import like
from .places import Places
from .whole import example, whole_volume

# Extents of the part, by the number of the network's axes; of less where the memory asks for it.
_EXTENT = {2: 384, 3: 96}
_LEAST = 16


def effect_of_compression(model: nn.Module, places: Places) -> str:
    """Evaluate the middle of a volume with its tensors compressed, as planned, and without.

    Parameters
    ----------
    model : torch.nn.Module
    places : Places
        Of a plan that compresses.

    Returns
    -------
    str
        For each variable that is written the largest and the root mean square of differences.
    """
    extent = _EXTENT[len(places.framed.axes)]
    while extent >= _LEAST:
        part = _middle(places, extent)
        try:
            found = _differences(model, places, part)
        except MemoryBudgetError:
            extent //= 2
            continue
        shape = "×".join(map(str, part.shape))
        each = (f"{n}: at most {most:.2g}, rms {rms:.2g}" for n, (most, rms) in found.items())
        return f"{', '.join(each)}; on {shape} samples in the middle"
    return "not found: the memory does not suffice beside the plan's"


def _middle(places: Places, extent: int) -> Box:
    """A part of the grid in its middle that the network takes."""
    card, grid = places.framed.card, places.framed.grid
    shape = [
        min(n, max(m * (extent // m), m * -(-card.smallest // m)))
        for n, m in zip(grid, card.multiple, strict=True)
    ]
    start = tuple((n - e) // 2 for n, e in zip(grid, shape, strict=True))
    return Box(start, tuple(a + e for a, e in zip(start, shape, strict=True)))


def _differences(model: nn.Module, places: Places, part: Box) -> dict[str, tuple[float, float]]:
    """The largest and the root mean square, for each variable."""
    plan, card = places.plan, places.framed.card
    section = None if places.sections is None else places.sections // 2
    inputs = [store.read(part) for store in places.inputs(section).values()]
    inputs = [x.to(precision_of(model, [])) for x in inputs]
    graph, _ = capture(model, [example(tuple(x.shape), x.dtype) for x in inputs])
    how: dict[str, Any] = {"device": places.device, "memory": plan.memory}
    both = (
        whole_volume(model, inputs, plan=like(plan, graph), **how),
        whole_volume(model, inputs, precision=plan.dtype, **how),
    )
    names = tree_leaves(graph.nest(dict(zip(graph.outputs, graph.outputs, strict=True))))
    found = {}
    for name, *results in zip(names, *map(tree_leaves, both), strict=True):
        if card.activation == "softmax":
            results = [torch.softmax(x, dim=1) for x in results]
        difference = (results[0].double() - results[1].double()).abs()[0]
        for output, channel in zip(places.cards.get(name, ()), difference, strict=False):
            if output is not None:
                rms = channel.square().mean().sqrt()
                found[output.name] = channel.max().item(), rms.item()
    return found
