"""Arguments of `fit`, checked before anything is loaded or written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from numbers import Integral, Real
from typing import Any

from ..engine.disk import scratch_folder
from ..errors import ArgumentError
from ..models.card import Card

_CHOICES = {
    "schedule": ("cosine", "plateau", "constant"),
    "activations": ("device", "cpu", "disk"),
    "precision": ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed"),
}
_ABOVE_0, _BELOW_1 = math.nextafter(0.0, 1.0), math.nextafter(1.0, 0.0)
# Lowest and highest value, and how to say it.
_RANGES: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(
        (
            "size", "per_volume", "epochs", "samples", "validation_samples", "batch",
            "accumulate", "nodes", "patience",
        ),
        (1, math.inf, "at least 1"),
    ),
    "workers": (0, math.inf, "0 for none, or more"),
    "seed": (0, 2**32 - 1, "from 0 to 4294967295"),
    "learning_rate": (_ABOVE_0, float(10**6), "more than 0"),
    "averaging": (0, _BELOW_1, "from 0 for none to less than 1"),
}  # fmt: skip


def check(arguments: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` for the first argument that is none of its allowed values."""
    for name, known in _CHOICES.items():
        if arguments[name] not in known:
            raise ArgumentError(f"{name} {arguments[name]!r}: choose one of {', '.join(known)}")
    for name, (low, high, allowed) in _RANGES.items():
        value, whole = arguments[name], name not in ("learning_rate", "averaging")
        if value is None and name == "patience":
            continue
        if not isinstance(value, Real) or (whole and not isinstance(value, Integral)):
            what = "a whole number" if whole else "a number"
            raise ArgumentError(f"{name} {value!r}: choose {what}, {allowed}")
        if not low <= value <= high:  # type: ignore[operator]  # nor NaN
            raise ArgumentError(f"{name} {value}: choose {allowed}")
    if arguments["activations"] == "disk":
        scratch_folder("activations_path", arguments["activations_path"])
    shape = arguments["shape"]
    if shape is not None and (not hasattr(shape, "__len__") or len(shape) != 3 or min(shape) < 1):
        raise ArgumentError(f"shape {shape}: give inlines, crosslines and samples, each at least 1")


def check_half(extents: Sequence[int], card: Card, precision: str) -> None:
    """Refuse crops whose gradients PyTorch gets wrong on a CPU.

    Where an axis of the coarsest grid has two points, the bfloat16 gradients of weights read memory
    that nothing was written to (PyTorch 2.13, oneDNN).
    """
    if not precision.startswith("bf16") or len(card.axes) != 3:
        return
    of = dict(zip(("inline", "crossline", "z"), extents, strict=True))
    for axis, multiple in zip(card.axes, card.multiple, strict=True):
        if axis in of and multiple > 1 and of[axis] < 3 * multiple:
            raise ArgumentError(
                f"crop {of[axis]}, precision {precision}: on a CPU gradients of grids so coarse "
                f"are not finite at times; take crops of at least {3 * multiple}, or 32-true"
            )


def time_of(limit: timedelta | str | None) -> timedelta | None:
    """Time from "hours:minutes:seconds"."""
    if limit is None:
        return None
    try:
        if isinstance(limit, str):
            hours, minutes, seconds = (int(part) for part in limit.split(":"))
            limit = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        if not isinstance(limit, timedelta):
            raise ValueError
    except (ValueError, OverflowError):
        raise ArgumentError(f"max_time {limit}: give it as hours:minutes:seconds") from None
    if limit <= timedelta(0):
        raise ArgumentError(f"max_time {limit}: choose more than 0:00:00")
    return limit


def extents_of(crop: int | Sequence[int], card: Card) -> tuple[int, int, int]:
    """Inlines, crosslines and samples of a crop that the network can take."""
    given = tuple(crop) if isinstance(crop, Sequence) else (crop,) * 3
    if len(given) != 3 or not all(isinstance(extent, Integral) for extent in given):
        raise ArgumentError(
            f"crop {crop!r}: one whole number, or three: inlines, crosslines, samples"
        )
    given = tuple(int(extent) for extent in given)
    extents = dict(zip(("inline", "crossline", "z"), given, strict=True))
    if len(card.axes) == 2:
        extents[card.direction] = 1  # each section is one of these
        extents["trace"] = extents["crossline"]
    for axis, multiple in zip(card.axes, card.multiple, strict=True):
        least = max(card.smallest, multiple)
        if extents[axis] < least or extents[axis] % multiple:
            raise ArgumentError(
                f"crop {extents[axis]}: along {axis}, {card.name} takes multiples of {multiple} "
                f"from {least}"
            )
    return extents["inline"], extents["crossline"], extents["z"]
