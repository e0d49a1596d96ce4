"""What 8 bits a value do to a prediction, found on a part of it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import MemoryBudgetError, OutcropError
from ..graph import Box, capture
from ..graph.capture import precision_of
from ..models.card import ACTIVATIONS, OutputCard
from ..patience import patiently
from ..planner import like
from ..storage import naming_refusal
from .places import Places
from .tile import naming_lack_of_memory
from .whole import example, whole_volume

# Extents of the part, by the number of the network's axes; of less where the memory asks for it.
_EXTENT, _LEAST = {2: 384, 3: 96}, 16
# Bytes of a value of the part that are held beside the evaluation, for inputs and results.
_BESIDE = 16


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
        For each variable that is written the largest and the root mean square of differences, in
        its units; or why they were not found.
    """
    places = replace(places, plan=replace(places.plan, chunk_bytes=0))
    extent, why = _EXTENT[len(places.framed.axes)], "the memory does not suffice"
    while extent >= _LEAST:
        part = _middle(places, extent)
        try:
            with naming_refusal("the survey", "run the same command again"):
                found = _differences(model, places, part)
        except MemoryBudgetError:
            extent //= 2
            continue
        except OutcropError as error:  # a network that does not take so small a volume
            why = str(error)
            break
        shape = "×".join(map(str, part.shape))
        each = (f"{n}: at most {most:.2g}, rms {rms:.2g}" for n, (most, rms) in found.items())
        return f"{', '.join(each)}; on {shape} samples in the middle"
    return f"not found: {why}"


def _middle(places: Places, extent: int) -> Box:
    """A part of the grid in its middle, divisible by the powers of two that the grid is.

    What the network divides extents by is not always known.
    """
    card, shape = places.framed.card, []
    for n, m in zip(places.framed.grid, card.multiple, strict=True):
        power = n & -n
        while power > extent:
            power //= 2
        step = math.lcm(power, m)
        shape.append(min(n, step * max(extent // step, -(-card.smallest // step), 1)))
    start = tuple((n - e) // 2 for n, e in zip(places.framed.grid, shape, strict=True))
    return Box(start, tuple(a + e for a, e in zip(start, shape, strict=True)))


def _differences(model: nn.Module, places: Places, part: Box) -> dict[str, tuple[float, float]]:
    """The largest and the root mean square, for each variable."""
    plan, activate = places.plan, ACTIVATIONS[places.framed.card.activation]
    section = None if places.sections is None else places.sections // 2
    with naming_lack_of_memory():
        inputs = [patiently(partial(s.read, part)) for s in places.inputs(section).values()]
        inputs = [x.to(precision_of(model, [])) for x in inputs]
    graph, _ = capture(model, [example(tuple(x.shape), x.dtype) for x in inputs])
    width = sum(map(graph.width, (*graph.inputs, *graph.outputs)))
    memory = max(1, plan.memory - _BESIDE * width * part.size)
    how: dict[str, Any] = {"device": places.device, "memory": memory, "storage_mode": "device"}
    both = (
        whole_volume(model, inputs, plan=like(plan, graph, memory), device=places.device),
        whole_volume(model, inputs, precision=plan.dtype, **how),
    )
    cards = dict(zip(graph.outputs, map(places.cards.get, places.graph.outputs), strict=True))
    names = tree_leaves(graph.nest({name: name for name in graph.outputs}))
    found = {}
    for name, *results in zip(names, *map(tree_leaves, both), strict=True):
        if not isinstance(name, str) or not cards.get(name):
            continue
        layout = graph.layouts[name]
        lossy, exact = (
            layout.to_store(x, layout.whole).float().reshape(-1, *layout.grid) for x in results
        )
        lossy, exact = activate(lossy), activate(exact)
        for output, *channels in zip(cards[name] or (), lossy, exact, strict=True):
            if output is not None:
                found[output.name] = _difference(output, *channels)
    return found


def _difference(output: OutputCard, lossy: Tensor, exact: Tensor) -> tuple[float, float]:
    """As the variable is read: in its units, or as 0…1."""
    scale = output.scale
    if output.own_range:
        scale = 1 / max((exact.max() - exact.min()).item(), torch.finfo(exact.dtype).tiny)
    difference = (lossy - exact).abs_() * scale
    return difference.max().item(), difference.square_().mean().sqrt().item()
