"""An operator as a module calls it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .boxes import Shape
from .build import Builder
from .graph import Ref, dtype_of
from .rules.base import refs

Args = dict[str, Any]


class Call:
    """An operator as the module calls it, about to be added to a graph under construction."""

    def __init__(
        self,
        builder: Builder,
        name: str,
        op: str,
        overload: str,
        args: Args,
        shape: Shape,
        module: str,
        result: int | None,
        dtype: torch.dtype,
    ) -> None:
        self.builder, self.name, self.op, self.overload = builder, name, op, overload
        self.args, self.shape, self.module = args, shape, module
        self.result, self.dtype = result, dtype

    def dims(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Grid axes held by each dimension of an argument."""
        return self.builder.graph.layout(name).dims

    def on_grid(self) -> bool:
        """Whether any argument is no weight."""
        return any(name in self.builder.layouts for name in refs(tuple(self.args.values())))

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype of an argument."""
        if name in self.builder.weights:
            return self.builder.weights[name].dtype
        return dtype_of(self.builder.graph.kind(name), self.builder.dtype)

    def add(
        self,
        op: str,
        args: Args,
        shape: Shape,
        overload: str = "default",
        dtype: torch.dtype | None = None,
    ) -> Ref:
        """Add an operator under a name of its own."""
        kind = dtype or self.dtype
        return self.builder.add(
            self._free_name(), op, args, shape, self.module, overload, dtype=kind
        )

    def constant(self, value: torch.Tensor) -> Ref:
        """Add a tensor that the module did not bring."""
        return self.builder.constant(self._free_name(".value"), value)

    def makes_floats(self) -> bool:
        """Whether it makes numbers of the module's own arithmetic of truths or whole numbers."""
        given = [self.dtype_of(name) for name in refs(tuple(self.args.values()))]
        exact = not any(kind.is_floating_point or kind.is_complex for kind in given)
        return bool(given) and exact and self.dtype == self.builder.dtype

    def in_precision(self, made: Ref) -> Ref:
        """Add a change to the precision of the computation, of what torch makes in its default."""
        nodes = self.builder.nodes
        if made.name not in nodes or nodes[made.name].op == "convert":
            return made
        kind = str(self.dtype).removeprefix("torch.")
        nodes[made.name] = replace(nodes[made.name], dtype=kind)
        own = self.constant(torch.zeros((), dtype=self.dtype))
        return self.add("convert", {"self": made, "dtype": own}, self.shape)

    def _free_name(self, suffix: str = "") -> str:
        name, n = self.name + suffix, 1
        while name in self.builder.nodes or name in self.builder.weights:
            name, n = f"{self.name}{suffix}.{n}", n + 1
        return name

    def plain(self) -> Ref:
        """Add it as it is."""
        return self.builder.add(
            self._free_name(),
            self.op,
            self.args,
            self.shape,
            self.module,
            self.overload,
            self.result,
            self.dtype,
        )
