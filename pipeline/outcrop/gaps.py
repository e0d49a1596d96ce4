"""What a network is shown where there is no trace: the nearest one, as far as it reaches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np

# Traces, along inlines or crosslines. With the mean beside traces, networks see a fault there.
REACH = 8

Index = tuple[np.ndarray, ...]


def neighbours(live: np.ndarray, region: Sequence[slice]) -> tuple[Index, Index]:
    """Find, for each missing trace of a region, the nearest one that is there.

    Of several that are as near, the first in the order of `live`: the region does not matter.

    Parameters
    ----------
    live : numpy.ndarray of bool
        Whether a trace is there, along one axis or two.
    region : sequence of slice
        One of each axis.

    Returns
    -------
    missing, nearest : tuple of numpy.ndarray
        Where these traces are in `live`, an array for each axis: those that have another within
        `REACH`.
    """
    places = [slice(*s.indices(n)[:2]) for s, n in zip(region, live.shape, strict=True)]
    left = ~live[tuple(places)]
    first = [max(0, s.start - REACH) for s in places]
    seen = live[tuple(slice(a, s.stop + REACH) for a, s in zip(first, places, strict=True))]
    if not (left.any() and seen.any()):
        nothing = (np.empty(0, int),) * live.ndim
        return nothing, nothing
    around = np.zeros([n + 2 * REACH for n in left.shape], bool)
    corner = [a - s.start + REACH for a, s in zip(first, places, strict=True)]
    around[tuple(slice(c, c + n) for c, n in zip(corner, seen.shape, strict=True))] = seen
    offsets, chosen = _offsets(live.ndim), np.full(left.shape, -1)
    for number, offset in enumerate(offsets):
        moved = [slice(REACH + o, REACH + o + n) for o, n in zip(offset, left.shape, strict=True)]
        found = left & around[tuple(moved)]
        chosen[found] = number
        left &= ~found
        if not left.any():
            break
    at = np.nonzero(chosen >= 0)
    missing = tuple(i + s.start for i, s in zip(at, places, strict=True))
    return missing, tuple(i + o for i, o in zip(missing, offsets[chosen[at]].T, strict=True))


def near_traces(live: np.ndarray, region: Sequence[slice]) -> np.ndarray:
    """Find where in a region a trace is there, or another within `REACH`.

    Parameters
    ----------
    live, region
        As for `neighbours`.

    Returns
    -------
    numpy.ndarray of bool
        Over the region.
    """
    near = live[tuple(region)].copy()
    missing, _ = neighbours(live, region)
    starts = [s.indices(n)[0] for s, n in zip(region, live.shape, strict=True)]
    near[tuple(at - start for at, start in zip(missing, starts, strict=True))] = True
    return near


@functools.cache
def _offsets(axes: int) -> np.ndarray:
    """Steps to other traces, the shortest first: (steps, axes)."""
    steps = itertools.product(range(-REACH, REACH + 1), repeat=axes)
    far = sorted((sum(o * o for o in step), step) for step in steps)
    return np.array([step for square, step in far if 0 < square <= REACH**2])
