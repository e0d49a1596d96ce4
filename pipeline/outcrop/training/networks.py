"""The network to train: one of the zoo, or the user's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .. import models
from ..errors import ArgumentError
from ..models.card import Card
from .module import TrainingModule
from .objectives import Objective, objective_of
from .volumes import AXES


def network_of(
    network: str | nn.Module,
    weights: str | os.PathLike[str],
    options: dict[str, Any],
    loss: str,
) -> tuple[nn.Module, Objective]:
    """Return a network that is ready to be trained, and what it learns.

    Of one that is no name the parameters that require no gradient are left as they are, and the
    statistics of norms all of whose parameters are such ones.

    Raises
    ------
    ArgumentError
        If outcrop cannot train it.
    WeightsError
        If there is no such network, or the weights do not fit.
    """
    if isinstance(network, str):
        objective_of(models.card(network), loss)  # of what cannot be trained nothing is loaded
        model = models.load(network, weights=weights, **options).requires_grad_(True).train()
        return model, objective_of(model.card, loss)  # type: ignore[arg-type]
    card = getattr(network, "card", None)
    if not isinstance(network, nn.Module) or not isinstance(card, Card):
        raise ArgumentError(
            f"network: a {type(network).__name__} without a card; pass the name of one of the zoo, "
            "or a module whose card is an outcrop.models.Card"
        )
    if weights != "seeded" or options:
        raise ArgumentError("network: a module has its weights; leave out weights and options")
    if not any(p.requires_grad for p in network.parameters()):
        raise ArgumentError(
            "network: none of its parameters requires a gradient; pass it with requires_grad_()"
        )
    network.train()
    for part in network.modules():
        own = [*part.parameters()]
        if own and not any(p.requires_grad for p in own):
            part.eval()
    return network, objective_of(card, loss)


def check_network(
    model: nn.Module, objective: Objective, infer: nn.Module | None, extents: Sequence[int]
) -> None:
    """Raise `ArgumentError` unless a network gives, of a crop, all that it is to learn.

    Parameters
    ----------
    model : torch.nn.Module
    objective : Objective
    infer : torch.nn.Module or None
        Network whose outputs it refines.
    extents : sequence of int
        Inlines, crosslines and samples of a crop.
    """
    module = TrainingModule(model, objective, infer=infer)
    card: Card = (infer or model).card  # type: ignore[assignment]
    grid = tuple(extents[AXES[axis]] for axis in card.axes)
    weight = next(model.parameters())
    x = torch.rand(1, len(card.inputs), *grid, generator=torch.Generator().manual_seed(0))
    x = x.to(weight.device, weight.dtype)
    modes = {part: part.training for part in model.modules()}
    try:
        with torch.no_grad():
            model.eval()
            found = [module(x)]
            for part, mode in modes.items():
                part.training = mode
            buffers = [(own, own.clone()) for own in model.buffers()]
            found.append(module(x))
            for own, before in buffers:
                own.copy_(before)
        for outputs in found:
            objective.check(outputs)
    except Exception as error:  # of the user's code
        reason = " ".join(str(error).split())
        raise ArgumentError(
            f"network: fails on a crop of {' × '.join(map(str, grid))} ({', '.join(card.axes)}): "
            f"{reason}"
        ) from error
    for outputs, when in zip(found, ("evaluated", "trained"), strict=True):
        for name, y in outputs.items():
            if y.shape != (1, 1, *grid):
                raise ArgumentError(
                    f"network: {when}, it returns {tuple(y.shape)} for {name} of a crop of "
                    f"{' × '.join(map(str, grid))}; one channel of the same extents is needed"
                )


def inferring(network: str, weights: str | os.PathLike[str] | None) -> nn.Module | None:
    """Return the network whose outputs a refinement network refines."""
    refines = network.startswith("mtl-refine")
    if refines != (weights is not None):
        raise ArgumentError(
            f"{network}: learns from the outputs of {network.replace('refine', 'infer')}; pass its "
            "weights as infer_weights (--infer-weights)"
            if refines
            else f"infer_weights: for mtl-refine networks, not for {network}"
        )
    if weights is None:
        return None
    return models.load(network.replace("refine", "infer"), weights=weights)
