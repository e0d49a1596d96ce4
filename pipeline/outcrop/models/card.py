"""What a network expects and what it returns, beside its weights."""

from __future__ import annotations

from dataclasses import dataclass


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
        Smallest and largest possible value.
    """

    name: str
    long_name: str
    units: str
    valid_range: tuple[float, float]


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
    axes : tuple of str
        Survey dimensions in the order of the network's last three axes; "z" stands for
        two-way time or depth.
    normalization : str
        "zscore": zero mean and unit standard deviation of all live traces.
    multiple : int
        The extents are padded with zeros to multiples of this, split between both sides,
        and the output is cropped.
    outputs : tuple of OutputCard
        One for each output channel, in order.
    """

    name: str
    task: str
    paper: str
    doi: str
    axes: tuple[str, str, str]
    normalization: str
    multiple: int
    outputs: tuple[OutputCard, ...]
