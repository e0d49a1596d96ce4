"""What a network expects and what it returns, beside its weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from .normalization import NORMALIZATIONS, PLAIN

# Of what a network returns, its channels first.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "sigmoid": torch.sigmoid,
    "softmax": partial(torch.softmax, dim=0),
}

# Axes of networks of volumes, and of networks of sections: each section, or all side by side.
_VOLUMES = set(permutations(("z", "crossline", "inline")))
_SECTIONS = {
    *(("z", trace) for trace in ("trace", "inline", "crossline")),
    ("inline", "z", "crossline"),
    ("crossline", "z", "inline"),
}


@dataclass(frozen=True)
class InputCard:
    """One channel that goes into a network.

    Attributes
    ----------
    name : str
        Variable of the survey's dataset; for "position" empty.
    long_name : str
        What it is.
    normalization : str
        One of `outcrop.models.normalization.NORMALIZATIONS`, by statistics of the whole survey;
        `ArgumentError` if it is none of them.
    axis : int
        For "position": the network's axis along which it runs from 0 to 1.
    directed : bool
        An angle, or a component of a vector: another one where the survey is turned.
    dense : bool
        Has a value of its own at every sample, as predictions and, said or not, amplitudes have:
        where there is no trace the nearest one stands for it though it is taken as it is, not 0.
    """

    name: str
    long_name: str
    normalization: str
    axis: int = 0
    directed: bool = False
    dense: bool = False

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            raise ArgumentError(
                f"normalization {self.normalization!r} of {self.long_name}: choose one of "
                f"{', '.join(NORMALIZATIONS)}"
            )

    @property
    def is_signal(self) -> bool:
        """Whether a trace that is zero throughout tells nothing, as one of amplitudes does."""
        as_it_is = (self.name, self.normalization) == ("amplitude", "none")
        return self.normalization not in PLAIN or as_it_is

    @property
    def blank(self) -> bool:
        """Whether it is 0 where there is no trace, and no other one stands for it."""
        return not (self.is_signal or self.dense)


@dataclass(frozen=True)
class OutputCard:
    """One variable that a network predicts.

    Attributes
    ----------
    name : str
        Name of the variable in the predicted dataset.
    long_name : str
        For axes and colour bars.
    units : str
        UDUNITS; "1" for probabilities.
    valid_range : tuple of float
        Smallest and largest possible value, in these units; infinite where there is none.
        `ArgumentError` if it is no pair of numbers, the lower one first.
    scale : float
        What the network returns, times this, is in these units. `ArgumentError` if it is 0 or no
        finite number.
    own_range : bool
        Brought to 0…1 by its smallest and largest value in the whole volume.
    suffix : str
        Of files of raw samples.
    activation : str
        What gives it, such as "sigmoid"; "none" if nothing does. Part of the network, unless the
        card itself names it.
    comment : str
        What else there is to know of its values.
    """

    name: str
    long_name: str
    units: str
    valid_range: tuple[float, float]
    scale: float = 1.0
    own_range: bool = False
    suffix: str = ""
    activation: str = "none"
    comment: str = ""

    def __post_init__(self) -> None:
        low, high = self.valid_range if _numbers(self.valid_range, 2) else (1.0, 0.0)
        if not low <= high:
            raise ArgumentError(
                f"valid_range {self.valid_range!r} of {self.name}: give the smallest and the "
                "largest possible value, such as (0.0, 1.0), or (-inf, inf) where there is none"
            )
        if not _numbers((self.scale,), 1) or not math.isfinite(self.scale) or self.scale == 0:
            raise ArgumentError(
                f"scale {self.scale!r} of {self.name}: give a finite number, not 0, that brings "
                "what the network returns to the units"
            )


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, (tuple, list))
        and len(values) == count
        and all(isinstance(value, Real) for value in values)
    )


@dataclass(frozen=True)
class Card:
    """How to feed a network and how to label what comes out.

    Attributes
    ----------
    name : str
        Name in the zoo.
    task : str
        What it predicts, in a few words.
    paper, doi : str
        Where it was published.
    published : str
        Where there are weights.
    inputs : tuple of InputCard
        One for each input channel, in order. `ArgumentError` if none is a variable of the survey,
        or one has no name and is no position along an axis that there is.
    outputs : tuple of OutputCard or None
        One for each output channel, in order; None for one that is not kept.
    axes : tuple of str
        Survey dimensions in the order of the network's last axes; "z" stands for two-way time or
        depth. A network of sections takes (z, trace), or (inline, z, crossline): all side by side;
        (crossline, z, inline) where they are to be crosslines unless inlines are asked for.
        `ArgumentError` if they are others.
    multiple : tuple of int
        The extents are padded to multiples of these, one for each axis, split between both sides,
        and the output is cropped. Padded is with the mirror image at each end.
        `ArgumentError` if their number is another; unless all are 1, which does for any number of
        axes.
    smallest : int
        Extents that the network needs at least; padded likewise. `ArgumentError` if it is no whole
        number from 1.
    separate : bool
        The inputs go to `forward` one by one, in their order, not as channels of one tensor.
    activation : str
        Applied to what the network returns: "none", "sigmoid", or "softmax" across its channels.
        `ArgumentError` if it is another.
    sections : bool
        Works on sections, along inlines or crosslines.
    shipped : tuple of str
        Names of weights that come with outcrop.
    """

    name: str
    task: str
    paper: str
    doi: str
    published: str
    inputs: tuple[InputCard, ...]
    outputs: tuple[OutputCard | None, ...]
    axes: tuple[str, ...] = ("z", "crossline", "inline")
    multiple: tuple[int, ...] = (1, 1, 1)
    smallest: int = 1
    separate: bool = False
    activation: str = "none"
    sections: bool = False
    shipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, kinds in (("inputs", InputCard), ("outputs", (OutputCard, type(None)))):
            given = getattr(self, what)
            if not isinstance(given, (tuple, list)) or not all(isinstance(e, kinds) for e in given):
                raise ArgumentError(
                    f"{what} of {self.name or 'the card'}: give a tuple, one a channel, such as "
                    f"{what}=({what.capitalize()[:-1]}Card(...),)"
                )
        if tuple(self.axes) not in (_SECTIONS if self.sections else _VOLUMES):
            raise ArgumentError(
                f"axes {self.axes} of {self.name or 'the card'}: give z, crossline and inline in "
                "any order; of a card of sections (sections=True) z, trace or inline, z, crossline"
            )
        names = [output.name for output in self.outputs if output is not None]
        if len(set(names)) < len(names):
            raise ArgumentError(
                f"outputs of {self.name or 'the card'}: {', '.join(names)}; give each another name"
            )
        strange = [
            i.long_name
            for i in self.inputs
            if (i.normalization == "position" and i.axis not in range(len(self.axes)))
            or (i.normalization != "position" and not i.name)
        ]
        if strange or not any(i.name for i in self.inputs):
            raise ArgumentError(
                f"inputs of {self.name or 'the card'}: {', '.join(strange) or 'no variable'}; give "
                "each the name of a variable of the survey, or a position along axis 0 to "
                f"{len(self.axes) - 1}, beside at least one variable"
            )
        if isinstance(self.multiple, Integral):
            object.__setattr__(self, "multiple", (self.multiple,))  # which is one too few
        if set(self.multiple) == {1}:
            object.__setattr__(self, "multiple", (1,) * len(self.axes))
        if not isinstance(self.smallest, Integral) or self.smallest < 1:
            raise ArgumentError(
                f"smallest {self.smallest!r} of {self.name or 'the card'}: give a whole number, "
                "1 or more"
            )
        whole = all(isinstance(n, Integral) and n >= 1 for n in self.multiple)
        if len(self.multiple) != len(self.axes) or not whole:
            raise ArgumentError(
                f"multiple {self.multiple} of {self.name or 'the card'}: give one for each of the "
                f"axes {', '.join(self.axes)}, a whole number from 1"
            )
        if self.activation not in ACTIVATIONS:
            raise ArgumentError(
                f"activation {self.activation!r} of {self.name or 'the card'}: choose one of "
                f"{', '.join(ACTIVATIONS)}"
            )

    @property
    def direction(self) -> str:
        """Of sections, what each is: "inline" or "crossline"."""
        across = tuple(self.axes) in (("crossline", "z", "inline"), ("z", "inline"))
        return "crossline" if across else "inline"

    def along(self, direction: str) -> Card:
        """Return the card of a network of sections for sections along another direction.

        Parameters
        ----------
        direction : {"inline", "crossline"}
            "inline": each section is an inline.
        """
        other = {"inline": "crossline", "crossline": "inline"}[direction]
        axes = ("z", other) if len(self.axes) == 2 else (direction, "z", other)
        return replace(self, axes=axes)


AMPLITUDE = InputCard("amplitude", "seismic amplitude", "zscore")


def probability(of: str, activation: str = "sigmoid") -> OutputCard:
    """Card of the probability that a voxel belongs to `of`."""
    name = f"{of.replace(' ', '_')}_probability"
    return OutputCard(name, f"{of} probability", "1", (0.0, 1.0), activation=activation)
