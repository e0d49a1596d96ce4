"""What a network learns: from its card to labels, a loss and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torchmetrics import MeanAbsoluteError, MeanMetric, Metric
from torchmetrics.classification import (
    BinaryAveragePrecision,
    BinaryF1Score,
    BinaryJaccardIndex,
    BinaryPrecision,
    BinaryRecall,
)
from torchmetrics.functional import spearman_corrcoef

from ..errors import ArgumentError, TrainingDivergedError
from ..models.card import ACTIVATIONS, Card
from ..models.cards import CARDS
from .losses import (
    angle_loss,
    balanced_cross_entropy,
    dice_cross_entropy,
    dice_loss,
    image_loss,
    structural_loss,
)
from .volumes import QUANTITIES

Loss = Callable[[Tensor, Tensor], Tensor]

# Of probabilities, by the names that users choose.
LOSSES: dict[str, Loss] = {
    "dice-bce": dice_cross_entropy,
    "balanced-bce": balanced_cross_entropy,
    "dice": dice_loss,
}
_OF_LABEL: dict[str, Loss] = {
    "rgt": structural_loss,
    "dhr": image_loss,
    "fault_dip": angle_loss,
    "fault_strike": angle_loss,
}
_GUIDANCE = 0.5  # weight of the mean of auxiliary outputs against the output
_BINS = 200  # thresholds of the average precision
_MOST = 4096  # voxels of a sample whose ranks are compared


@dataclass(frozen=True)
class Objective:
    """Labels and losses of a network.

    Attributes
    ----------
    labels : dict of str to float
        What it learns, in the order of its outputs, and by what to divide it: the network's unit.
    losses : dict of str to callable
        For each label.
    activation : callable
        Of what the network returns.
    """

    labels: dict[str, float]
    losses: dict[str, Loss]
    activation: Callable[[Tensor], Tensor]

    def outputs(self, model: nn.Module, x: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate the network: (batch, 1, ...) float32 by label; auxiliary ones as "label/1"."""
        with _WholeSigmoid():
            card: Card = model.card  # type: ignore[assignment]
            if hasattr(model, "logits") and card.name in CARDS:
                ((name, _),) = self.labels.items()
                logits: Callable[..., list[Tensor]] = model.logits  # type: ignore[assignment]
                first, *others = (torch.sigmoid(y.float()) for y in logits(x))
                return {name: first, **{f"{name}/{i}": y for i, y in enumerate(others, 1)}}
            if isinstance(x, dict):
                y = model(**x)
            else:
                y = model(*x.split(1, dim=1)) if card.separate else model(x)
        names = [output.name for output in card.outputs if output is not None]
        if isinstance(y, dict) and sorted(y) == sorted(names) and list(y) != names:
            raise ArgumentError(
                f"it returns {', '.join(y)}, and its card names {', '.join(names)}; put them into "
                "one order"
            )
        parts = [part for each in tree_leaves(y) for part in each.split(1, dim=1)]
        if len(parts) != len(names):
            when = " in training mode" if model.training else ""
            raise ArgumentError(
                f"it returns {len(parts)} channels{when}, and its card names {len(names)}: "
                f"{', '.join(names)}"
            )
        return {
            name: self.activation(part.float())
            for name, part in zip(self.labels, parts, strict=True)
        }

    def check(self, outputs: dict[str, Tensor]) -> None:
        """Raise before a loss meets what it cannot take, and before a checkpoint keeps it.

        Raises
        ------
        TrainingDivergedError
            If an output is NaN or infinite.
        ArgumentError
            If a probability is not from 0 to 1.
        """
        for name, y in outputs.items():
            low, high = (float(end) for end in y.detach().aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise TrainingDivergedError(f"the network's outputs for {name} are NaN or infinite")
            if self.losses[name.partition("/")[0]] in LOSSES.values() and (low < 0 or high > 1):
                raise ArgumentError(
                    f"{name}: the network gives {low:.3g} to {high:.3g}, and its loss takes "
                    "probabilities; if they are logits, say so in its card, such as by "
                    "activation='sigmoid'"
                )

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of each label; what is trained is their sum."""
        parts = {}
        for name, loss in self.losses.items():
            # Losses take logarithms, which half precision has no digits for.
            with torch.autocast(outputs[name].device.type, enabled=False):
                target = batch[name].float()  # as the outputs, whatever the precision
                parts[name] = loss(outputs[name], target)
                others = [y for key, y in outputs.items() if key.startswith(f"{name}/")]
                if others:
                    guided = torch.stack([loss(y, target) for y in others]).mean()
                    parts[name] = parts[name] + _GUIDANCE * guided
        return parts

    def metrics(self) -> nn.ModuleDict:
        """Make metrics, to be fed with outputs and labels: "fault/dice" and so on."""
        made: dict[str, Metric] = {}
        for name in self.labels:
            if self.losses[name] in LOSSES.values():
                made |= {
                    f"{name}/dice": BinaryF1Score(),
                    f"{name}/iou": BinaryJaccardIndex(),
                    f"{name}/precision": BinaryPrecision(),
                    f"{name}/recall": BinaryRecall(),
                    f"{name}/average_precision": BinaryAveragePrecision(thresholds=_BINS),
                }
            else:
                made[f"{name}/mae"] = MeanAbsoluteError()
            if name == "rgt":
                made[f"{name}/rank_correlation"] = MeanMetric()  # of crops
        return nn.ModuleDict(made)


def update(metrics: nn.ModuleDict, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
    """Feed metrics of `Objective.metrics` with a batch, where its labels are known.

    Angles, which come in half turns, are compared in degrees, and where the label has a fault: all
    others are 0. A strike of 1 degree is 2 degrees from one of 179.
    """
    for key, metric in metrics.items():
        name, _, kind = key.partition("/")
        found, target = outputs[name].detach(), batch[name].float()
        assert isinstance(metric, Metric)
        if kind == "rank_correlation":
            for one, other in zip(found, target, strict=True):
                known = ~other.isnan()
                metric.update(_rank_correlation(one[known], other[known]))
        elif name in ("fault_dip", "fault_strike"):
            on = target > 0
            away = (found[on] - target[on]).abs()
            if name == "fault_strike":
                away = torch.minimum(away, 1 - away)
            metric.update(180 * away, torch.zeros_like(away))
        else:
            known = ~target.isnan()
            if known.any():
                metric.update(found[known], target[known] if kind == "mae" else target[known] > 0.5)


def _rank_correlation(found: Tensor, target: Tensor) -> Tensor:
    """Spearman's, of the same random voxels every time."""
    some = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:_MOST]
    some = some.to(found.device)
    return spearman_corrcoef(found[some], target[some])


def objective_of(card: Card, loss: str = "dice-bce") -> Objective:
    """Objective of a network of the zoo.

    Parameters
    ----------
    card : Card
    loss : str
        One of `LOSSES`, of the probabilities.

    Raises
    ------
    ArgumentError
        If there is no such loss, or no objective for the network.
    """
    if loss not in LOSSES:
        raise ArgumentError(f"loss {loss!r}: choose one of {', '.join(LOSSES)}")
    # Refinement takes all that inference gives, whatever it was built to refine.
    given = {"amplitude", "", *(o.name for o in CARDS.get(card.name, card).outputs if o)}
    strange = [i.name for i in card.inputs if i.name not in given]
    if strange or None in card.outputs or card.activation == "softmax" or not card.outputs:
        why = f"it needs {strange[0]}" if strange else "it tells classes apart"
        raise ArgumentError(
            f"{card.name}: outcrop has no training for it ({why}); train it with losses of your "
            "own and load its weights"
        )
    outputs = [o for o in card.outputs if o is not None]
    labels, losses = {}, {}
    for output in outputs:
        name = output.name.removesuffix("_probability")
        known = name in QUANTITIES
        labels[name] = output.scale if known else 1.0  # labels are 0 to 1, whatever is written
        losses[name] = _OF_LABEL[name] if known else LOSSES[loss]
    return Objective(labels, losses, ACTIVATIONS[card.activation])


class _WholeSigmoid(TorchFunctionMode):
    """Sigmoids in float32: near 1, probabilities in half precision have no digits left."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.sigmoid and args[0].dtype in (torch.bfloat16, torch.float16):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))
