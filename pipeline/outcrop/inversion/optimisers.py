"""Torch's optimisers, scaled so that the first step changes the model by what the user says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Adam, Optimizer

from ..errors import ArgumentError

# Evaluations of a line search, at most.
_MOST = 12
OPTIMISERS = ("lbfgs", "adam", "sgd")
# Arguments of torch's classes that are not the user's. An iteration is one step, and what the
# optimiser moves is zero at the start of each: nothing of it could decay.
_FIXED: dict[str, dict[str, Any]] = {
    "lbfgs": {"max_iter": 1, "line_search_fn": "strong_wolfe", "tolerance_grad": 0.0},
    "adam": {"weight_decay": 0.0, "capturable": False},
    "sgd": {"weight_decay": 0.0},
}


class Stepper:
    """One of torch's optimisers on the parameters of a model.

    L-BFGS [1]_ comes with a line search for the strong Wolfe conditions, Adam is [2]_.

    Parameters
    ----------
    kind : str
        One of `OPTIMISERS`.
    shapes : mapping of str to tuple of int
        Of each parameter.
    steps : mapping of str to float
        Largest change of each parameter in the first step, in its unit.
    options : mapping
        Of torch's class: `history_size`, `momentum`, `betas`, ...; `lr` scales all steps.

    Raises
    ------
    ArgumentError
        If torch's class does not take the options, or the rate is no number above 0.

    References
    ----------
    .. [1] Liu, D. C., and Nocedal, J., 1989, On the limited memory BFGS method for large scale
       optimization: Mathematical Programming, 45, 503-528, https://doi.org/10.1007/BF01589116
    .. [2] Kingma, D. P., and Ba, J., 2015, Adam: a method for stochastic optimization: ICLR,
       https://doi.org/10.48550/arXiv.1412.6980
    """

    def __init__(
        self,
        kind: str,
        shapes: Mapping[str, tuple[int, ...]],
        steps: Mapping[str, float],
        options: Mapping[str, Any],
    ) -> None:
        self.kind, self.steps = kind, dict(steps)
        try:
            self.rate = float(options.get("lr", 1.0))
        except (TypeError, ValueError):
            self.rate = 0.0
        if not 0 < self.rate < math.inf:
            raise ArgumentError(f"optimiser_options: lr={options['lr']!r}: pass a number above 0")
        self.options = {k: v for k, v in options.items() if k != "lr"}
        self.x = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        self.units: dict[str, float] = {}
        self.scale = 0.0
        self.optimiser = self._make()

    def restart(self) -> None:
        """Forget what was learnt: another objective comes."""
        self.units, self.scale = {}, 0.0
        self.optimiser = self._make()

    def step(self, evaluate: Callable[[], tuple[float, dict[str, Tensor]]]) -> None:
        """Move `x` from zero.

        Parameters
        ----------
        evaluate : callable
            Returns the misfit, and its gradient with respect to `x` in units of the model's
            parameters, at `x`.
        """
        for x in self.x.values():
            x.zero_()
        if not self.units:
            self._set_units(evaluate()[1])

        def closure() -> float:
            value, gradients = evaluate()
            for name, x in self.x.items():
                x.grad = (self.scale * self.units[name] * gradients[name]).contiguous()
            return self.scale * value

        self.optimiser.step(closure)
        for group in self.optimiser.param_groups:
            if self.kind == "lbfgs":
                group["lr"] = self.rate

    def state(self) -> dict[str, Any]:
        """Everything that the next step rests on, beside the model."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "units": self.units,
            "scale": self.scale,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.units, self.scale = dict(state["units"]), state["scale"]
        self.optimiser.load_state_dict(state["optimiser"])

    def _make(self) -> Optimizer:
        parameters, fixed = list(self.x.values()), _FIXED[self.kind]
        try:
            if self.kind == "lbfgs":
                return LBFGS(parameters, self.rate, **fixed, **{"max_eval": _MOST, **self.options})
            groups: list[dict[str, Any]] = [{"params": [p], "lr": self.rate} for p in parameters]
            return (Adam if self.kind == "adam" else SGD)(groups, **fixed, **self.options)
        except (TypeError, ValueError, LookupError) as error:
            raise ArgumentError(
                f"optimiser_options: {self.kind} does not take them: {error}"
            ) from None

    def _set_units(self, gradients: Mapping[str, Tensor]) -> None:
        """Choose a unit of each parameter, so that a step of minus the gradient is what is wanted.

        With the objective scaled by c and a parameter measured in units u its gradient is c·u·h,
        and a step of minus that changes the parameter by c·u²·h.
        """
        largest = {name: float(h.abs().max()) for name, h in gradients.items()}
        first = next(iter(largest))
        if not all(largest.values()):
            dead = next(name for name, value in largest.items() if not value)
            raise ArgumentError(
                f"{dead}: its gradient is zero everywhere; does the mask leave anything free, and "
                "do modelled and observed traces differ?"
            )
        self.scale = 1 / (self.steps[first] * largest[first])
        for name, value in largest.items():
            self.units[name] = (self.steps[name] / (self.scale * value)) ** 0.5
        groups = self.optimiser.param_groups
        if self.kind == "adam":
            # Its first step is its rate, whatever the gradient.
            for group, name in zip(groups, largest, strict=True):
                group["lr"] = self.rate * self.steps[name] / self.units[name]
        elif self.kind == "lbfgs":
            # Its first step is divided by the sum of the gradient's magnitudes.
            total = sum(
                float(h.abs().sum()) * self.scale * self.units[name]
                for name, h in gradients.items()
            )
            groups[0]["lr"] = self.rate * max(1.0, total)
