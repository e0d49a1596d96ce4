"""Convolutions of what was upsampled: on the coarse grid, phase by phase."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .boxes import Shape
from .graph import Graph, Node, Ref
from .propagate import ancestors
from .rules.base import per_axis
from .rules.resample import whole_factors


def polyphase(graph: Graph, weights: dict[str, Tensor]) -> tuple[Graph, dict[str, Tensor]]:
    """Take convolutions apart that act on nearest-neighbour upsampling, beside other channels.

    Where each point of a coarse grid is repeated r times along an axis, taps of the kernel meet
    the same value and can be added up: what is left is one small convolution on the coarse grid
    for each of the r phases. The decoder of a U-Net so takes half the operations, and neither the
    upsampled tensor nor the concatenation is made. The result differs by rounding alone. (Noble
    identities of multirate filters: Vaidyanathan 1990, doi 10.1109/5.52200.)

    Parameters
    ----------
    graph : Graph
    weights : dict of str to torch.Tensor
        By their names in the graph.

    Returns
    -------
    graph : Graph
    weights : dict of str to torch.Tensor
        Those that are used, the new ones among them.
    """
    uses = Counter(name for node in graph.nodes.values() for name in node.operands)
    uses.update(graph.outputs)
    nodes: dict[str, Node] = {}
    layouts, weights = dict(graph.layouts), dict(weights)
    for name, node in graph.nodes.items():
        parts = _parts(graph, node, uses)
        for made in [node] if parts is None else _apart(graph, node, parts, weights):
            nodes[made.name] = made
            own = node.operands[0] if made.op == "cat" and parts else name
            layouts[made.name] = replace(layouts[own], shape=made.shape)
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    whole = replace(graph, nodes=nodes, layouts=layouts, weights=shapes)
    used = ancestors(whole, graph.outputs, ())
    wanted = {key for name in used for key in nodes[name].weights}
    graph = replace(
        whole,
        nodes={name: nodes[name] for name in used},
        layouts={name: layouts[name] for name in (*graph.inputs, *used)},
        weights={key: shape for key, shape in shapes.items() if key in wanted},
    )
    return graph, {key: value for key, value in weights.items() if key in wanted}


def _parts(graph: Graph, node: Node, uses: Counter[str]) -> list[tuple[str, Shape | None]] | None:
    """What a convolution takes, channel after channel: operands, and by how much each is upsampled.

    None if nothing is to be gained, or it is no plain convolution.
    """
    if node.op not in ("conv2d", "conv3d") or len(node.operands) != 1:
        return None
    n, source = int(node.op[-2]), node.operands[0]
    kernel = graph.weights[node.args["weight"].name][2:]
    padding = _padding(node, kernel)
    plain = (
        node.args["groups"] == 1
        and set(per_axis(node.args["stride"], n)) == {1}
        and set(per_axis(node.args["dilation"], n)) == {1}
        and padding is not None
        and len(node.shape) == n + 2
        and node.dtype is None
    )
    if not plain:
        return None
    joined = graph.nodes.get(source)
    operands: Sequence[str] = [source]
    if joined is not None and joined.op == "cat" and joined.args["dim"] in (1, -n - 1):
        if uses[source] > 1 or len(set(joined.operands)) != len(joined.args["tensors"]):
            return None
        operands = joined.operands
    found: list[tuple[str, Shape | None]] = []
    for name in operands:
        made, factors = graph.nodes.get(name), None
        if made is not None and made.op.startswith("upsample_nearest"):
            factors = whole_factors(made, graph)
        gains = factors is not None and math.prod(_taps(kernel, factors)) < math.prod(kernel)
        found.append((made.operands[0], factors) if gains and made else (name, None))
    return found if any(factors for _, factors in found) else None


def _padding(node: Node, kernel: Shape) -> Shape | None:
    """Points of padding at each end; None if the ends differ."""
    padding = node.args["padding"]
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        return tuple(k // 2 for k in kernel) if all(k % 2 for k in kernel) else None
    return per_axis(padding, len(kernel))


def _taps(kernel: Shape, factors: Shape) -> Shape:
    """Points of the coarse grid that a kernel reaches, axis by axis."""
    return tuple((k + r - 2) // r + 1 for k, r in zip(kernel, factors, strict=True))


def _apart(
    graph: Graph,
    node: Node,
    parts: Sequence[tuple[str, Shape | None]],
    weights: dict[str, Tensor],
) -> list[Node]:
    """Nodes that together do what a convolution does, the last of which has its name."""
    weight, bias = weights[node.args["weight"].name], node.args["bias"]
    padding = _padding(node, tuple(weight.shape[2:]))
    slices = weight.split([graph.shape(name)[1] for name, _ in parts], 1)
    plain = [i for i, (_, factors) in enumerate(parts) if factors is None]
    made: list[Node] = []

    def add(
        name: str, op: str, source: str, key: str, bias: Ref | None, args: Mapping[str, Any]
    ) -> None:
        args = {**args, "input": Ref(source), "weight": Ref(key), "bias": bias}
        own = (key,) if bias is None else (key, bias.name)
        operands = (source, args["onto"].name) if "onto" in args else (source,)
        changed = replace(node, name=name, op=op, args=args, operands=operands, weights=own)
        made.append(changed)

    for i, (source, factors) in enumerate(parts):
        if factors is None:
            continue
        part, repeated = f"{node.name}.{i}", None
        key = f"{part}.weight"
        weights[key] = _phases(slices[i], factors)
        if not plain and i == 0 and bias is not None:
            repeated = Ref(f"{node.name}.bias")
            weights[repeated.name] = weights[bias.name].repeat(math.prod(factors))
        before = made[-1].name if made else None
        name = node.name if len(parts) == 1 else part
        op = f"upsampled_{node.op}"
        add(name, op, source, key, repeated, {"factors": factors, "padding": padding})
        if before is not None:
            name = node.name if i == len(parts) - 1 and not plain else f"{part}.sum"
            args = {"self": Ref(before), "other": Ref(part), "alpha": 1}
            both = replace(node, name=name, op="add", overload="Tensor", args=args)
            made.append(replace(both, operands=(before, part), weights=()))
    if plain:
        key, source = f"{node.name}.rest", parts[plain[0]][0]
        weights[key] = torch.cat([slices[i] for i in plain], 1)
        joined = None
        if len(plain) > 1:
            operands = tuple(parts[i][0] for i in plain)
            shape = list(graph.shape(source))
            shape[1] = weights[key].shape[1]
            args = {"tensors": tuple(map(Ref, operands)), "dim": 1}
            source = f"{node.name}.cat"
            joined = replace(
                graph.nodes[node.operands[0]],
                name=source,
                args=args,
                operands=operands,
                shape=tuple(shape),
            )
        add(node.name, node.op, source, key, bias, {**node.args, "onto": Ref(made[-1].name)})
        if joined is not None:
            made.insert(-1, joined)
    return made


def _phases(weight: Tensor, factors: Shape) -> Tensor:
    """Kernels of all phases, phase after phase along the first dimension, in double precision."""
    kernel = tuple(weight.shape[2:])
    sums = []
    for k, r, t in zip(kernel, factors, _taps(kernel, factors), strict=True):
        # Tap i of phase j meets this point of the coarse grid.
        meets = torch.zeros(r, t, k, dtype=torch.float64)
        for j in range(r):
            for i in range(k):
                meets[j, (j + i) // r, i] = 1
        sums.append(meets.to(weight.device))
    n = len(kernel)
    axes = ",".join(("aux", "bvy", "cwz")[:n])
    phases = torch.einsum(f"oi{'xyz'[:n]},{axes}->{'abc'[:n]}oi{'uvw'[:n]}", weight.double(), *sums)
    return phases.reshape(-1, *phases.shape[n + 1 :])
