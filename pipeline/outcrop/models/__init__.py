"""The zoo: networks by name, each with its card and its weights."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import OutputExistsError, WeightsError
from ..storage import on_disk
from . import weights as _weights
from .card import Card, InputCard, OutputCard
from .cards import CARDS, card_of
from .own import build, is_own

__all__ = ["Card", "InputCard", "OutputCard", "card", "convert", "load", "names", "options"]

SEED = 20190501


class _Entry(NamedTuple):
    """Where a network lives, what is fixed by its name, and what its users choose."""

    module: str
    network: str
    fixed: dict[str, Any]
    variants: tuple[dict[str, Any], ...]

    @property
    def constructor(self) -> Callable[..., nn.Module]:
        module = importlib.import_module(f".{self.module}", __package__)
        return getattr(module, self.network)

    @property
    def options(self) -> dict[str, Any]:
        taken = inspect.signature(self.constructor).parameters.values()
        return {each.name: each.default for each in taken if each.name not in self.fixed}

    def make(self, **options: Any) -> nn.Module:
        return self.constructor(**self.fixed, **options)


_ZOO = {
    "faultseg3d": _Entry(
        "faultseg3d", "FaultSeg3d", {}, ({"version": "2020"}, {"version": "2018"})
    ),
    "faultseg3dplus": _Entry("faultseg3dplus", "FaultSeg3dPlus", {}, ({},)),
    "karstseg3d": _Entry("karstseg3d", "KarstSeg3d", {}, ({},)),
    "faultssl": _Entry("faultssl", "FaultSSL", {}, ({"mode": "iou"}, {"mode": "precision"})),
    "bi21rgt3d": _Entry("bi21rgt3d", "Bi21RGT3d", {}, ({},)),
    "deepismnet": _Entry("deepismnet", "DeepISMNet", {}, ({"use_norm": False}, {"use_norm": True})),
    "channelseg3d": _Entry("channelseg3d", "ChannelSeg3d", {}, ({},)),
    "wang25channel": _Entry("wang25channel", "Wang25Channel", {}, ({},)),
    "gem": _Entry("gem", "GEM", {}, ({"base": 64}, {"base": 32})),
    "segformer3d": _Entry("segformer3d", "SegFormer3D", {}, ({"in_channels": 1},)),
    "mtl-infer-2d": _Entry("mtl", "MTLInfer", {"dims": 2}, ({},)),
    "mtl-infer-3d": _Entry("mtl", "MTLInfer", {"dims": 3}, ({},)),
    "mtl-refine-2d": _Entry("mtl", "MTLRefine", {"dims": 2}, ({},)),
    "mtl-refine-3d": _Entry("mtl", "MTLRefine", {"dims": 3}, ({},)),
    "unet25d": _Entry("unet25d", "UNet25D", {}, ({},)),
}


def names() -> list[str]:
    """Names of the networks in the zoo."""
    return sorted(_ZOO)


def options(name: str) -> dict[str, Any]:
    """Options of a network of the zoo, and what they are unless given to `load`.

    Raises
    ------
    WeightsError
        If the zoo has no such network.
    """
    return _entry(name).options


def card(network: str | nn.Module) -> Card:
    """Card of a network, or of the one of that name, as it is without options.

    Raises
    ------
    WeightsError
        If the zoo has no such network, or one of your own has no card.
    """
    if isinstance(network, str):
        if not is_own(network):
            _entry(network)
            return CARDS[network]
        network = load(network, weights="seeded")
    found = getattr(network, "card", None)
    if not isinstance(found, Card):
        raise WeightsError(
            f"{type(network).__name__}: has no card; give it one: network.card = "
            "outcrop.models.Card(...)"
        )
    return found


def load(
    name: str,
    *,
    weights: str | os.PathLike[str],
    tasks: Sequence[str] | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network and fill it.

    Parameters
    ----------
    name : str
        One of `names()`; or "FILE.py:NAME", a class or a function in a file of your own, which is
        run.
    weights : path-like, name or "seeded"
        A ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file, or a Keras ``.hdf5`` or ``.h5`` of
        the original FaultSeg3D, FaultSeg3D plus or KarstSeg3D; or weights that come with outcrop,
        by the name that the card says, such as "synthetic-v1"; or "seeded": random weights from a
        fixed seed, the same on every machine, which predict nothing but let the whole path run; of
        a network of your own those that it is built with.
    tasks : sequence of str, optional
        Of the multi-task networks, the decoders to build and to fill, of "rgt", "dhr" and "fault";
        what the file has for others is left out. All unless given.
    **options
        The constructor's, such as ``version="2018"`` for faultseg3d; `options` names them.

    Returns
    -------
    torch.nn.Module
        In eval mode, float32, on the CPU, with its `card`, which one of your own has if you gave
        it one.

    Raises
    ------
    WeightsError
        If the zoo has no such network, the options do not suit it, or the weights do not fit; of
        your own, if the file gives none.
    """
    if tasks is not None:
        options["tasks"] = tuple(tasks)
    if is_own(name):
        model = build(name, options, SEED)
        if weights != "seeded":
            state = _weights.keyed(_weights.read(weights), model, str(weights))
            _weights.fill(model, state, str(weights), _variants())
        return model.eval().requires_grad_(False)
    entry = _entry(name)
    try:
        # On the meta device: the caller's random state stays as it was, nothing is drawn twice.
        with torch.device("meta"):
            model = entry.make(**options)
        model.to_empty(device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        own = ", ".join(f"{k}={v!r}" for k, v in entry.options.items())
        has = f"its options are {own}" if own else "it has no options"
        raise WeightsError(f"{name}: {error}; {has}") from error
    empty = next((key for key, value in model.state_dict().items() if not value.numel()), None)
    if empty is not None:
        raise WeightsError(f"{name}: with these options {empty} is empty; choose 1 or more of each")
    if weights == "seeded":
        _seed(model)
    else:
        state = _weights.keyed(_weights.read(_file(name, weights)), model, str(weights))
        if tasks is not None:
            state = _weights.only(state, model)
        _weights.fill(model, state, str(weights), _variants())
    model.card = card_of(name, **options)  # type: ignore[assignment]
    return model.eval().requires_grad_(False)


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> int:
    """Write the weights of any file that `load` reads as ``.safetensors``.

    Parameters
    ----------
    source, target : path-like
        `target` ends in ``.safetensors``; nothing may lie there.

    Returns
    -------
    int
        Number of tensors written.

    Raises
    ------
    WeightsError
        If `source` cannot be read, or `target` has another ending.
    OutputExistsError
        If `target` is there.
    """
    if on_disk(target).exists():
        raise OutputExistsError(f"{target}: already exists; choose another path, or remove it")
    return _weights.write(_weights.read(source), target)


def _file(name: str, weights: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Where weights lie: those that come with outcrop go by a name."""
    for other, each in CARDS.items():
        if weights in each.shipped:
            if other != name:
                raise WeightsError(f"{weights}: these weights are of {other}, not of {name}")
            return Path(__file__).parent / "shipped" / f"{name}-{weights}.safetensors"
    return weights


def _entry(name: str) -> _Entry:
    if name not in _ZOO:
        raise WeightsError(
            f"{name!r}: no such network; the zoo has {', '.join(names())}; one of your own is "
            "FILE.py:NAME"
        )
    return _ZOO[name]


def _variants() -> dict[str, Callable[[], nn.Module]]:
    """Constructors of the zoo's networks by their names and options."""
    return {
        " ".join([name, *(f"{k}={v!r}" for k, v in variant.items())]): partial(
            entry.make, **variant
        )
        for name, entry in _ZOO.items()
        for variant in entry.variants
    }


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
