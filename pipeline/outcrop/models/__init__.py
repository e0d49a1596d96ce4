"""The zoo: networks by name, each with its card and its weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import WeightsError
from . import weights as _weights
from .card import Card, OutputCard
from .faultseg3d import CARD as _FAULTSEG3D
from .faultseg3d import FaultSeg3d

__all__ = ["Card", "OutputCard", "card", "load", "names"]

SEED = 20190501


class _Entry(NamedTuple):
    make: Callable[..., nn.Module]
    card: Card
    variants: tuple[dict[str, Any], ...]


_ZOO = {
    "faultseg3d": _Entry(FaultSeg3d, _FAULTSEG3D, ({"version": "2020"}, {"version": "2018"})),
}


def names() -> list[str]:
    """Names of the networks in the zoo."""
    return sorted(_ZOO)


def card(name: str) -> Card:
    """Card of the network called `name`.

    Raises
    ------
    WeightsError
        If the zoo has no such network.
    """
    return _entry(name).card


def load(name: str, *, weights: str | os.PathLike[str], **options: Any) -> nn.Module:
    """Build a network of the zoo and fill it.

    Parameters
    ----------
    name : str
        One of `names()`.
    weights : path-like or "seeded"
        A ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file; or "seeded": random weights
        from a fixed seed, the same on every machine, which predict nothing but let the whole
        path run.
    **options
        The constructor's, such as ``version="2018"`` for faultseg3d.

    Returns
    -------
    torch.nn.Module
        In eval mode, float32, on the CPU, with its `card`.

    Raises
    ------
    WeightsError
        If the zoo has no such network, the options do not suit it, or the weights do not fit.
    """
    entry = _entry(name)
    try:
        # On the meta device: the caller's random state stays as it was, nothing is drawn twice.
        with torch.device("meta"):
            model = entry.make(**options)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{name}: {error}") from error
    model.to_empty(device="cpu")
    if weights == "seeded":
        _seed(model)
    else:
        others = {
            f"{other}({', '.join(f'{k}={v!r}' for k, v in variant.items())})": partial(
                item.make, **variant
            )
            for other, item in _ZOO.items()
            for variant in item.variants
        }
        _weights.fill(model, _weights.read(weights), str(weights), others)
    model.card = entry.card  # type: ignore[assignment]
    return model.eval().requires_grad_(False)


def _entry(name: str) -> _Entry:
    if name not in _ZOO:
        raise WeightsError(f"{name!r}: no such network; the zoo has {', '.join(names())}")
    return _ZOO[name]


def _seed(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(SEED)
    for key, value in model.state_dict().items():
        if not value.is_floating_point():
            value.zero_()
        elif value.ndim > 1:
            value.normal_(0.0, (2.0 / value[0].numel()) ** 0.5, generator=generator)
        elif key.endswith(("running_var", "weight")):
            value.fill_(1.0)
        else:
            value.zero_()
