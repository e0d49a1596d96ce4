"""Which shots an iteration takes: all, some at random, or all of them encoded."""

from __future__ import annotations

import hashlib

import numpy as np

from ..errors import ArgumentError
from .gathers import Gathers
from .shots import Group


class Selection:
    """The shots of each iteration, the same whenever they are asked for.

    Parameters
    ----------
    gathers : Gathers
    subset : int, optional
        Shots of an iteration.
    encoding : int, optional
        Groups of shots that fire together.
    seed : int
    """

    def __init__(
        self, gathers: Gathers, subset: int | None, encoding: int | None, seed: int
    ) -> None:
        self.count, self.common = gathers.count, gathers.has_common_spread
        self.subset, self.encoding, self.seed = subset, encoding, seed

    def check(self, optimiser: str, misfit: str, weighted: bool) -> None:
        """Raise `ArgumentError` if subset and encoding make no sense here."""
        for name, value in (("subset", self.subset), ("encoding", self.encoding)):
            if value is None:
                continue
            if not 1 <= value <= self.count:
                raise ArgumentError(
                    f"{name}={value}: pass a number from 1 to {self.count}, of shots"
                )
            if optimiser == "lbfgs":
                raise ArgumentError(
                    f"{name}: changes the misfit from one iteration to the next, and lbfgs needs "
                    "the same; choose optimiser='adam' or 'sgd'"
                )
        if self.subset is not None and self.encoding is not None:
            raise ArgumentError("subset, encoding: choose one of them")
        if self.encoding is not None and not self.common:
            raise ArgumentError(
                "encoding: shots that fire together need the same receivers, and these have their "
                "own; choose subset instead"
            )
        if self.encoding is not None and weighted:
            raise ArgumentError(
                "encoding: not with weights of the traces, as shots that fire together are "
                "recorded together; choose subset instead, or drop weight"
            )
        if self.encoding is not None and misfit != "least_squares":
            raise ArgumentError(f"encoding: not with misfit={misfit!r}; choose least_squares")

    @property
    def groups_at_once(self) -> int:
        """Groups of an iteration."""
        return self.subset or self.encoding or self.count

    @property
    def sources_at_once(self) -> int:
        """Sources of a group, at most."""
        return 1 if self.encoding is None else -(-self.count // self.encoding)

    @property
    def weight(self) -> float:
        """What the misfit of an iteration's shots is multiplied by to stand for all."""
        return 1.0 if self.subset is None else self.count / self.subset

    def groups(self, iteration: int) -> list[Group]:
        """Groups that fire in an iteration."""
        if self.subset is None and self.encoding is None:
            return [((shot, 1.0),) for shot in range(self.count)]
        rng = np.random.default_rng([self.seed, iteration])
        order = rng.permutation(self.count).tolist()
        if self.subset is not None:
            return [((shot, 1.0),) for shot in sorted(order[: self.subset])]
        signs = rng.choice([-1.0, 1.0], self.count).tolist()
        assert self.encoding is not None
        return [
            tuple((shot, signs[shot]) for shot in sorted(order[k :: self.encoding]))
            for k in range(self.encoding)
        ]


def digest(array: np.ndarray) -> str:
    """Of an array, for a record."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
