"""Cards as text: what is published of a network, and what its operators say."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from ..engine.whole import example
from ..graph import RULES, Box, Reduce, capture
from ..graph.propagate import needed
from ..models import options
from ..models.card import Card

# Extents of the volume that operations and the receptive field are found on.
_EXTENT = 512
_MULTIPLE = 32


def card_lines(card: Card) -> Iterator[tuple[str, str]]:
    """Yield what a card says, by heading."""
    yield "task", card.task
    if card.paper:
        yield "paper", f"{card.paper}, https://doi.org/{card.doi}"
    if card.published:
        shipped = (f"{s} comes with outcrop" for s in card.shipped)
        yield "weights", "; ".join([*shipped, card.published])
    for i, each in enumerate(card.inputs, 1):
        name = each.name or each.long_name
        yield f"input {i}", f"{name} ({each.long_name}), normalised by {each.normalization}"
    yield "axes", ", ".join(card.axes) + (" (or along the other direction)" * card.sections)
    multiples = " × ".join(map(str, card.multiple))
    yield "padding", f"on both sides, to multiples of {multiples}, at least {card.smallest}"
    for i, output in enumerate(card.outputs, 1):
        if output is None:
            yield f"output {i}", "not kept"
            continue
        low, high = output.valid_range
        span = f", {low:g} to {high:g}" if math.isfinite(low) else ""
        own = ", brought to this by its own range" if output.own_range else ""
        activation = f", after {output.activation}" if output.activation != "none" else ""
        comment = f"; {output.comment}" if output.comment else ""
        yield (
            f"output {i}",
            f"{output.name} ({output.long_name}), {output.units}{span}{activation}{own}{comment}",
        )


def option_lines(name: str) -> Iterator[tuple[str, str]]:
    """Yield what a network of the zoo can be built with, by heading."""
    found = ", ".join(f"{key}={value!r}" for key, value in options(name).items())
    if found:
        yield "options", f"{found}, unless given"


def network_lines(network: nn.Module, card: Card) -> Iterator[tuple[str, str]]:
    """Yield what a network's parameters and operators say, by heading."""
    yield "parameters", f"{sum(p.numel() for p in network.parameters()):,}"
    rank, count = len(card.axes), len(card.inputs)
    given, width = (count, 1) if card.separate else (1, count)
    grid = (_EXTENT,) * rank
    graph, _ = capture(network, [example((1, width, *grid)) for _ in range(given)])
    operations = sum(
        RULES[n.op].operations(n, graph) * math.prod(graph.grid(n.name))
        for n in graph.nodes.values()
    )
    yield "operations a voxel", f"{operations / _EXTENT**rank:,.0f}"
    middle = Box.whole((1,) * rank).shifted((_EXTENT // 2 + _MULTIPLE // 2,) * rank)
    boxes = needed(graph, tuple(graph.nodes), dict.fromkeys(graph.outputs, middle))
    extents = boxes[graph.inputs[0]].shape
    field = " × ".join(f"{n}" if n < _EXTENT else f"more than {n - 1}" for n in extents)
    whole = any(isinstance(RULES[n.op], Reduce) for n in graph.nodes.values())
    yield (
        "receptive field",
        ("the whole section" if rank == 2 else "the whole volume") if whole else field,
    )
