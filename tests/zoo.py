"""Small versions of every network in the zoo, and golden state dicts, for several tests."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from outcrop import models

GOLDEN = Path(__file__).parent / "data" / "golden"


class Small(NamedTuple):
    """A network as its tests build it: every layer is there, with few channels where that can be.

    `extents` are no multiples of the card's.
    """

    name: str
    options: dict[str, Any]
    extents: tuple[int, ...]
    smallest: int | None = None  # where layers that ask for more are left out


ONE_EACH = {"stage_num_blocks": (1, 1)}

SMALL = {
    "faultseg3d": Small("faultseg3d", {}, (29, 37, 22)),
    "faultseg3d-2018": Small("faultseg3d", {"version": "2018"}, (21, 30, 13)),
    "faultseg3dplus": Small("faultseg3dplus", {"base": 4}, (41, 25, 59)),
    "karstseg3d": Small("karstseg3d", {"base": 4}, (27, 44, 31)),
    "faultssl-iou": Small("faultssl", {"base": 4, **ONE_EACH}, (23, 29, 15)),
    "faultssl-precision": Small(
        "faultssl", {"base": 4, "mode": "precision", **ONE_EACH}, (30, 47, 39)
    ),
    "bi21rgt3d": Small("bi21rgt3d", {}, (15, 22, 13)),
    "deepismnet": Small("deepismnet", {}, (23, 31, 19)),
    "deepismnet-norm": Small("deepismnet", {"use_norm": True}, (17, 22, 24)),
    "channelseg3d": Small("channelseg3d", {"layers": (1, 1, 1, 2)}, (27, 43, 13)),
    "wang25channel": Small("wang25channel", {"base": 4}, (37, 30, 43)),
    "gem": Small("gem", {"base": 16, "stage_num_blocks": (0, 1)}, (41, 47, 45)),
    "gem-stem": Small("gem", {"base": 16, "stage_num_blocks": (0, 0)}, (13, 31, 22), 16),
    "segformer3d": Small("segformer3d", {}, (29, 60, 21)),
    "mtl-infer-2d": Small("mtl-infer-2d", {}, (41, 53)),
    "mtl-infer-3d": Small("mtl-infer-3d", {}, (16, 21, 17)),
    "mtl-refine-2d": Small("mtl-refine-2d", {}, (43, 50)),
    "mtl-refine-3d": Small("mtl-refine-3d", {}, (16, 17, 19)),
    "unet25d": Small("unet25d", {"base": 4}, (9, 35, 43)),
}


def build(key: str) -> nn.Module:
    """Return the small network, with norms and biases that matter."""
    case = SMALL[key]
    model = models.load(case.name, weights="seeded", **case.options)
    generator = torch.Generator().manual_seed(3)
    for name, value in model.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            value.normal_(0.0, 0.1, generator=generator)
            value += 1.0 * name.endswith("weight")
            # Residual networks would grow without bound if their norms left everything as it is.
            value += 3.0 * name.endswith("running_var")
    if case.smallest is not None:
        model.card = replace(model.card, smallest=case.smallest)
    return model


def padded(x: Tensor, card: models.Card) -> Tensor:
    """Mirror (batch, channels, grid axes...) at both ends, as the card says."""
    pairs = []
    for extent, multiple in zip(x.shape[2:], card.multiple, strict=True):
        more = -(-max(extent, card.smallest) // multiple) * multiple - extent
        pairs.append((more // 2, more - more // 2))
    return torch.from_numpy(np.pad(x, [(0, 0), (0, 0), *pairs], "symmetric"))


def inputs(key: str, card: models.Card, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Return what the forward of a small network takes, padded."""
    generator = torch.Generator().manual_seed(7)
    shape = (1, len(card.inputs), *SMALL[key].extents)
    x = padded(torch.randn(shape, generator=generator, dtype=torch.float64), card).to(dtype)
    return x.split(1, dim=1) if card.separate else (x,)


def golden_facts(name: str) -> dict[str, Any]:
    """Read what tests/data/golden says of a network."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_state(facts: dict[str, Any], shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Fill a state dict as tests/data/golden/README.md says."""
    state = {}
    for key, shape in shapes.items():
        random = np.random.RandomState((zlib.crc32(key.encode()) + facts["seed"]) % 2**32)
        a = np.asarray(random.standard_normal(shape)).astype(np.float32)
        if key.endswith("num_batches_tracked"):
            a = np.zeros(shape, np.int64)
        elif key.endswith("running_var"):
            a = np.float32(3) * (1 + np.float32(0.1) * np.abs(a))
        elif key.endswith("running_mean"):
            a = np.float32(0.1) * a
        elif len(shape) > 1:
            a = a * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        else:
            a = 1 + np.float32(0.1) * a if key.endswith("weight") else np.float32(0.1) * a
        state[key] = torch.from_numpy(np.asarray(a))
    return state


def golden_input(facts: dict[str, Any], variable: int = 0) -> Tensor:
    """Return the input, or one of several variables, of a golden output."""
    random = np.random.RandomState(facts["input"]["seed"] + variable)
    a = random.standard_normal((1, facts["input"]["channels"], *facts["input"]["shape"]))
    a = a.astype(np.float32)
    return torch.from_numpy((a + np.roll(a, 1, -1) + np.roll(a, -1, -1)) / np.float32(3))
