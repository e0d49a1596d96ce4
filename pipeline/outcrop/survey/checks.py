"""What the headers of all traces should agree on, looked at before anything is written."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from ..errors import GeometryError
from .segy import SegyFile

if TYPE_CHECKING:
    from .geometry import HeaderBytes

log = logging.getLogger(__name__)

_ENOUGH = 1 << 20  # samples that tell what format they are in
_MOST = 1 << 22  # samples that are looked at, where one trace at each place is no more
_LIKE = 100  # different samples of one exponent that tell how they are distributed
_COORDINATES = [(181, 185), (73, 77), (81, 85)]  # of the CDP, the source and the receiver
TINY = 0.02  # ms or m; a smaller sample interval is probably meant in ms or m, not µs or mm


def strays(numbers: dict[str, np.ndarray]) -> np.ndarray:
    """Find traces on lines that have few, where these are at most one in a hundred.

    Else those with neither an inline nor a crossline number, by which lines are filled up.

    Parameters
    ----------
    numbers : dict of str to ndarray of int, (traces,)
        Inline, crossline and, prestack, offset of every trace.

    Returns
    -------
    ndarray of int
        Their numbers from 0, ascending.
    """
    few = np.zeros(next(iter(numbers.values())).size, dtype=bool)
    for values in numbers.values():
        lines, counts = np.unique(values, return_counts=True)
        few |= ~np.isin(values, lines[10 * counts > counts.max()])
    found = np.flatnonzero(few)
    if 0 < 100 * found.size <= few.size:
        return found
    return np.flatnonzero((numbers["inline"] == 0) & (numbers["crossline"] == 0))


def check_intervals(
    file: SegyFile, told: np.ndarray, vertical: np.ndarray, interval: float | None
) -> None:
    """See whether the traces have the sample interval of the vertical axis.

    Parameters
    ----------
    file : SegyFile
    told : ndarray of int, (traces,)
        Sample intervals that the trace headers give, in µs; 0 where they give none.
    vertical : ndarray
        Two-way time in ms, or depth in m, of the samples.
    interval : float, optional
        That the caller gave: then what the headers say does not matter.

    Raises
    ------
    GeometryError
        If the traces have several intervals. If they have another than the axis, or one that is
        hardly meant in µs or mm, that is logged.
    """
    if interval is not None or file.samples < 2:
        return
    taken = vertical[1] - vertical[0]
    if taken < TINY:
        log.warning(
            "%s: the sample interval is %g ms or m by the headers, which give it in µs or mm; if "
            "they mean %g ms or m, pass interval=%g (--interval)",
            file.path,
            taken,
            1000 * taken,
            1000 * taken,
        )
    said = np.flatnonzero(told)
    if not said.size:
        return
    usual = told[said[0]]
    odd = said[told[said] != usual]
    if odd.size:
        raise GeometryError(
            f"{file.path}: traces of several sample intervals: trace {odd[0] + 1:,} says "
            f"{told[odd[0]] / 1000:g} (header bytes 117-118), trace {said[0] + 1:,} "
            f"{usual / 1000:g}; resample them to one, or pass interval= (--interval)"
        )
    if abs(taken - usual / 1000) >= 1e-3:
        log.warning(
            "%s: the sample interval is %g by the binary header, which is taken, and %g by the "
            "traces (bytes 117-118); if that is right, pass interval= (--interval)",
            file.path,
            taken,
            usual / 1000,
        )


def some_samples(file: SegyFile) -> np.ndarray:
    """Read up to a few hundred traces from all over, as they lie: (places, neighbours, samples)."""
    places = 8
    neighbours = min(32, file.traces, max(1, _MOST // (places * file.samples)))
    starts = np.linspace(0, file.traces - neighbours, places).astype(np.int64)
    runs = [np.arange(start, start + neighbours) for start in starts]
    traces = [raw for run in runs for _, raw in file.read(run)]
    return np.concatenate(traces).reshape(len(runs), neighbours, -1)


def warn_of_format(file: SegyFile, stored: np.ndarray) -> None:
    """Log that samples that the header says are IBM floats are hardly that, or IEEE ones.

    The first four bits of an IBM fraction are not all 0, as it is normalised. Where an IEEE
    exponent ends in 0, the bits in these places are so in some sixth of the samples.

    Parameters
    ----------
    file : SegyFile
    stored : ndarray of `stored`
        Some samples.
    """
    names = {1: ("IBM", "IEEE"), 5: ("IEEE", "IBM")}
    if file.format not in names:
        return
    some = stored.reshape(-1)[:: max(1, stored.size // _ENOUGH)]
    words = np.unique(some.astype(stored.dtype.newbyteorder("=")).view(np.uint32))
    words = words[(words & 0x800000) == 0]
    _, counts = np.unique((words >> 24) & 0x7F, return_counts=True)
    if np.count_nonzero(counts >= _LIKE) < 2:
        return
    share = float(np.mean((words & 0xF00000) == 0))
    if share > 0.05 if file.format == 1 else share < 0.005:
        said, meant = names[file.format]
        log.warning(
            "%s: the samples look like %s floats, and are %s floats by the header (bytes "
            "3225-3226); if it is wrong, pass format=%s (--format %s)",
            file.path,
            meant,
            said,
            repr(meant.lower()),
            meant.lower(),
        )


def warn_of_coordinates(file: SegyFile, varies: np.ndarray, at: HeaderBytes) -> None:
    """Log that the coordinates are line numbers, or do not vary, where others do.

    Parameters
    ----------
    file : SegyFile
    varies : ndarray of bool, (240,)
        Bytes that are not the same in all trace headers.
    at : HeaderBytes
    """

    def vary(*places: int) -> list[bool]:
        return [bool(varies[byte - 1 : byte + 3].any()) for byte in places]

    lines = at.hold_lines(at.cdp_x, at.cdp_y)
    if any(vary(at.cdp_x, at.cdp_y)) and not lines:
        return
    others = [p for p in _COORDINATES if all(vary(*p)) and not at.hold_lines(*p)]
    if others or lines:
        there = (
            f"those in {others[0][0]} and {others[0][1]} vary: to take them pass --cdp-x-byte "
            f"{others[0][0]} --cdp-y-byte {others[0][1]}"
            if others
            else "if there are others, pass --cdp-x-byte and --cdp-y-byte"
        )
        log.warning(
            "%s: the coordinates (header bytes %d and %d) are %s, and left out; %s",
            file.path,
            at.cdp_x,
            at.cdp_y,
            "line numbers" if lines else "the same in all traces",
            there,
        )


def warn_of_weights(file: SegyFile, first: int, vary: bool) -> None:
    """Log that traces have weighting factors, if they have.

    Parameters
    ----------
    file : SegyFile
    first : int
        Weighting factor of the first trace.
    vary : bool
        Whether others have another.
    """
    if first or vary:
        log.warning(
            "%s: has trace weighting factors (header bytes 169-170; the first is %d), which are "
            "kept, but not applied: amplitudes are the numbers in the file",
            file.path,
            first,
        )
