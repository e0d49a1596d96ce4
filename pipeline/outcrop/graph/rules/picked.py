"""Indexing along several dimensions at once, by regions that are copied whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .pointwise import empty_as

# More copies than that cost more than a pass along each dimension.
_REGIONS = 64


class Run(NamedTuple):
    """Evenly spaced positions of an operand, for adjacent ones of the result."""

    to: int
    start: int
    length: int
    step: int


def runs(index: np.ndarray) -> list[Run] | None:
    """Part positions along a dimension into runs that slices can name; None if there are many.

    Parameters
    ----------
    index : numpy.ndarray
        Positions in the operand, of shape (n,).
    """
    steps = np.diff(index)
    ends = [*(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
    found: list[Run] = []
    i = k = 0
    while i < len(index):
        if len(found) == _REGIONS:
            return None
        while k < len(ends) and ends[k] <= i:
            k += 1
        stop, step = (ends[k] + 1, int(steps[i])) if i < len(steps) else (i + 1, 1)
        # A pair far apart is a run's last one and the first of the next.
        if step < -1 or (stop - i == 2 < len(index) and step not in (0, 1)):
            stop, step = i + 1, 1
        found.append(Run(i, int(index[i]), stop - i, step))
        i = stop
    return found


def picked(x: Tensor, index: Mapping[int, np.ndarray]) -> Tensor:
    """Index along some dimensions; a view where all positions are evenly spaced.

    Parameters
    ----------
    x : torch.Tensor
    index : mapping of int to numpy.ndarray
        For each of these dimensions the positions, at least one.
    """
    regions = _regions(index)
    if regions is None:
        for dim in _order(x.shape, index):
            x = x.index_select(dim, torch.from_numpy(index[dim]).to(x.device))
        return x
    if len(regions) == 1 and all(run.step for run in regions[0]):
        return _region(x, index, regions[0])
    shape = list(x.shape)
    for dim, positions in index.items():
        shape[dim] = len(positions)
    result = empty_as(x, shape)
    for region in regions:
        target = result
        for dim, run in zip(index, region, strict=True):
            target = target.narrow(dim, run.to, run.length)
        target.copy_(_region(x, index, region))
    return result


def beside(shape: tuple[int, ...], index: Mapping[int, np.ndarray]) -> int:
    """Values that `picked` holds beside an operand of this shape and its result."""
    regions = _regions(index)
    if regions is not None:
        if len(regions) == 1:
            return 0
        turned = [r for r in regions if any(run.step < 0 for run in r)]
        rest = math.prod(n for dim, n in enumerate(shape) if dim not in index)
        return max((rest * math.prod(run.length for run in r) for r in turned), default=0)
    sizes, extents = [0], list(shape)
    for dim in _order(shape, index):
        extents[dim] = len(index[dim])
        sizes.append(math.prod(extents))
    return max(a + b for a, b in itertools.pairwise(sizes)) - sizes[-1]


def _regions(index: Mapping[int, np.ndarray]) -> list[tuple[Run, ...]] | None:
    each = [runs(positions) for positions in index.values()]
    few = [found for found in each if found is not None]
    if len(few) < len(each) or math.prod(map(len, few)) > _REGIONS:
        return None
    return list(itertools.product(*few))


def _region(x: Tensor, index: Mapping[int, np.ndarray], region: tuple[Run, ...]) -> Tensor:
    turned = []
    for dim, run in zip(index, region, strict=True):
        if run.step > 0:
            last = run.start + (run.length - 1) * run.step
            x = x[(slice(None),) * dim + (slice(run.start, last + 1, run.step),)]
        elif run.step == 0:
            x = x.narrow(dim, run.start, 1).expand(
                [run.length if i == dim else n for i, n in enumerate(x.shape)]
            )
        else:
            x = x.narrow(dim, run.start - run.length + 1, run.length)
            turned.append(dim)
    return x.flip(turned) if turned else x


def _order(shape: tuple[int, ...], index: Mapping[int, np.ndarray]) -> list[int]:
    """Dimensions that shrink most first, so that little lies between."""
    return sorted(index, key=lambda dim: len(index[dim]) / shape[dim])
