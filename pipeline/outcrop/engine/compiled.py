"""Tiles by compiled functions: one for all that are evaluated by the same calls."""

from __future__ import annotations

import warnings
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
        self.fails = False

    def call(
        self,
        key: Hashable,
        function: Callable[[dict[str, Tensor]], Sequence[Tensor]],
        values: dict[str, Tensor],
    ) -> Sequence[Tensor]:
        """Return `function(values)`; after a warning from then on without compiling, if that fails.

        Parameters
        ----------
        key : hashable
            Equal for functions that make the same calls on tensors of the same shapes.
        function : callable
        values : dict of str to torch.Tensor
            Holds all of `names`.
        """
        self.seen[key] += 1
        arguments = [values[name] for name in self.names]
        if key in self.made:
            return self.made[key](*arguments)
        if self.fails or self.seen[key] < REPEATS or len(self.made) >= _MOST:
            return function(values)

        def flat(*tensors: Tensor) -> list[Tensor]:
            return list(function(dict(zip(self.names, tensors, strict=True))))

        try:
            made = torch.compile(make_fx(flat)(*arguments), dynamic=False)
            found = made(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler has faults of its own, some for one precision
            reason = str(error).partition("\n")[0] or type(error).__name__
        else:
            self.made[key] = made
            return found
        self.fails = True
        warnings.warn(
            f"torch.compile fails ({reason}); going on without, in this stage", stacklevel=2
        )
        return function(values)
