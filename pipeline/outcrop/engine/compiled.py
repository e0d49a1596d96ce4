"""Tiles by compiled functions: one for all that are evaluated by the same calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

# What is compiled must be met again and again, as that takes seconds each time.
REPEATS = 8
_MOST = 32


class Compiled:
    """Functions of a stage's tensors, compiled by `torch.compile` once they have proved common.

    Parameters
    ----------
    names : sequence of str
        The tensors that a function takes, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.seen: Counter[Hashable] = Counter()
        self.made: dict[Hashable, Callable[..., list[Tensor]]] = {}

    def call(
        self,
        key: Hashable,
        function: Callable[[dict[str, Tensor]], Sequence[Tensor]],
        values: dict[str, Tensor],
    ) -> Sequence[Tensor]:
        """Return `function(values)`.

        Parameters
        ----------
        key : hashable
            Equal for functions that make the same calls on tensors of the same shapes.
        function : callable
        values : dict of str to torch.Tensor
            Holds all of `names`.
        """
        self.seen[key] += 1
        if key not in self.made and (self.seen[key] < REPEATS or len(self.made) >= _MOST):
            return function(values)
        arguments = [values[name] for name in self.names]
        if key not in self.made:

            def flat(*tensors: Tensor) -> list[Tensor]:
                return list(function(dict(zip(self.names, tensors, strict=True))))

            self.made[key] = torch.compile(make_fx(flat)(*arguments), dynamic=False)
        return self.made[key](*arguments)
