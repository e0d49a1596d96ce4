"""A captured network: plain data, no tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .boxes import Box, Shape


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
        ATen operator without overload, such as "conv3d".
    overload : str
        Its overload, such as "default".
    args : mapping
        Every argument of the operator's schema by name, defaults filled in; tensors are `Ref`.
    operands : tuple of str
        The tensors it takes that live on a grid; weights are not among them.
    shape : tuple of int
        Shape of the result, grid axes last.
    module : str
        Path of the submodule that it came from.
    """

    name: str
    op: str
    overload: str
    args: Mapping[str, Any]
    operands: tuple[str, ...]
    shape: Shape
    module: str

    def __str__(self) -> str:
        where = f" in submodule {self.module!r}" if self.module else ""
        return f"operator aten.{self.op}.{self.overload}{where}"


@dataclass(frozen=True)
class Graph:
    """Operators on grids, in the order in which they are evaluated.

    Attributes
    ----------
    rank : int
        Number of grid axes; they are the last axes of every tensor.
    inputs, outputs : tuple of str
        Names of the tensors that come in and go out.
    nodes : mapping of str to Node
        In topological order.
    shapes : mapping of str to tuple of int
        Full shape of every tensor, inputs included, weights excluded.
    weights : mapping of str to tuple of int
        Shape of every parameter, buffer and constant, by the name used in the nodes.
    structure : torch.utils._pytree.TreeSpec
        How the module's forward nests its outputs.
    """

    rank: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: Mapping[str, Node]
    shapes: Mapping[str, Shape]
    weights: Mapping[str, Shape]
    structure: Any = field(compare=False, default=None)

    def grid(self, name: str) -> Shape:
        """Extents of the grid on which a tensor lives."""
        return self.shapes[name][-self.rank :]

    def whole(self, name: str) -> Box:
        """The box of the whole grid of a tensor."""
        return Box.whole(self.grid(name))

    def width(self, name: str) -> int:
        """Number of values of a tensor at one grid point."""
        return math.prod(self.shapes[name][: -self.rank])

    def digest(self) -> str:
        """SHA-256 of the operators, their arguments and their shapes."""
        text = repr((self.rank, self.inputs, self.outputs, list(self.nodes.values())))
        return hashlib.sha256(text.encode()).hexdigest()
