"""A captured network: plain data, no tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .boxes import Box, Shape
from .layout import Layout

COMPLEX = "complex"


def dtype_of(kind: str | None, precise: torch.dtype) -> torch.dtype:
    """Dtype of tensors of a kind, where those of none are in the precision `precise`."""
    if kind is None:
        return precise
    found: torch.dtype = precise.to_complex() if kind == COMPLEX else getattr(torch, kind)
    return found


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor among the arguments of a node, by name."""

    name: str


@dataclass(frozen=True)
class Node:
    """One operator applied once.

    Attributes
    ----------
    name : str
        Name of the tensor it makes.
    op : str
        ATen operator without overload, such as "conv3d", or one of our own ("moments").
    overload : str
        Its overload, such as "default".
    args : mapping
        Every argument of the operator's schema by name, defaults filled in; tensors are `Ref`.
    operands : tuple of str
        The tensors it takes that the network computes; weights are not among them.
    weights : tuple of str
        The weights it takes.
    shape : tuple of int
        Shape of the result.
    module : str
        Path of the submodule that it came from.
    result : int, optional
        Which of the operator's results it is, if it has several.
    dtype : str, optional
        Of the result, where that is not the precision of the computation: "bool", "int64",
        "float64" in a network in single precision, or "complex", of parts in that precision.
    """

    name: str
    op: str
    overload: str
    args: Mapping[str, Any]
    operands: tuple[str, ...]
    weights: tuple[str, ...]
    shape: Shape
    module: str
    result: int | None = None
    dtype: str | None = None

    def __str__(self) -> str:
        where = f" in submodule {self.module!r}" if self.module else ""
        return f"operator {self.op.removeprefix('aten:')}.{self.overload}{where}"


@dataclass(frozen=True)
class Graph:
    """Operators on grids, in the order in which they are evaluated.

    Attributes
    ----------
    rank : int
        Number of grid axes.
    inputs, outputs : tuple of str
        Names of the tensors that come in and go out.
    nodes : mapping of str to Node
        In topological order.
    layouts : mapping of str to Layout
        How every tensor lies on its grid, inputs included, weights excluded.
    weights : mapping of str to tuple of int
        Shape of every parameter, buffer and constant, by the name used in the nodes.
    kinds : mapping of str to str
        Dtypes of inputs and weights that are not in the precision of the computation.
    structure : tuple, optional
        How the module's forward nests its outputs: a tree, and its leaves.
    """

    rank: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: Mapping[str, Node]
    layouts: Mapping[str, Layout]
    weights: Mapping[str, Shape]
    kinds: Mapping[str, str] = field(default_factory=dict)
    structure: tuple[Any, tuple[Any, ...]] | None = None

    @cached_property
    def order(self) -> dict[str, int]:
        """Position of every node in the order of evaluation."""
        return {name: i for i, name in enumerate(self.nodes)}

    def layout(self, name: str) -> Layout:
        """How a tensor or a weight lies on the grid."""
        found = self.layouts.get(name)
        return Layout.fixed(self.weights[name], self.rank) if found is None else found

    def kind(self, name: str) -> str | None:
        """Dtype of a tensor or weight, as of a node's result; None in the usual precision."""
        return self.nodes[name].dtype if name in self.nodes else self.kinds.get(name)

    def itemsize(self, name: str, precise: int) -> int:
        """Bytes of a value of a tensor, `precise` in the precision of the computation."""
        kind = self.kind(name)
        if kind in (None, COMPLEX):
            return precise if kind is None else 2 * precise
        return dtype_of(kind, torch.float32).itemsize

    def shape(self, name: str) -> Shape:
        """Full shape of a tensor."""
        return self.layouts[name].shape

    def grid(self, name: str) -> Shape:
        """Extents of the grid on which a tensor lives."""
        return self.layouts[name].grid

    def whole(self, name: str) -> Box:
        """The box of the whole grid of a tensor."""
        return Box.whole(self.layouts[name].grid)

    def width(self, name: str) -> int:
        """Number of values of a tensor at one grid point."""
        return self.layouts[name].width

    def nest(self, results: Mapping[str, Any]) -> Any:
        """Put results where the module's forward has them."""
        spec, leaves = self.structure or (None, tuple(map(Ref, self.outputs)))
        values = [results[leaf.name] if isinstance(leaf, Ref) else leaf for leaf in leaves]
        return values if spec is None else pytree.tree_unflatten(values, spec)

    def digest(self) -> str:
        """SHA-256 of the operators, their arguments and all shapes."""
        shapes = sorted((*self.weights.items(), *((n, self.shape(n)) for n in self.inputs)))
        text = repr((self.rank, self.inputs, self.outputs, list(self.nodes.values()), shapes))
        return hashlib.sha256(text.encode()).hexdigest()
