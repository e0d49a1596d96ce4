"""Which header bytes may hold inline and crossline: those that lay the traces on a regular grid."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .layout import TRACE_HEADER, Order
from .segy import FIELDS, SegyFile, number

if TYPE_CHECKING:
    from .geometry import HeaderBytes

SOME = 1 << 18  # traces that are looked at, from the start of the file
_DUPLICATES = 0.01  # part of the traces that may share a position with another
_FILLED = 0.5  # part of the positions that must have a trace

# Pairs of first bytes in common use, the most common first.
_USUAL = [
    (189, 193), (9, 21), (17, 21), (9, 13), (17, 13), (5, 21), (181, 185), (221, 225), (189, 21),
]  # fmt: skip

_OF_GATHER = 25  # numbers the traces of a gather
_SEQUENCE = (1, 5)  # numbers the traces of any file


@dataclass(frozen=True)
class Candidate:
    """A pair of header fields that gives a regular grid.

    Attributes
    ----------
    inline_byte, crossline_byte : int
        First bytes, from 1.
    inlines, crosslines : int
        Extents of the grid, of the traces that were looked at.
    filled : float
        Part of its positions that has a trace.
    """

    inline_byte: int
    crossline_byte: int
    inlines: int
    crosslines: int
    filled: float


@dataclass(frozen=True)
class _Column:
    byte: int
    index: np.ndarray  # along the axis, of every trace
    extent: int
    changes: int  # from trace to trace


def candidates(file: SegyFile, offset_byte: int = 37, most: int = 5) -> list[Candidate]:
    """Find pairs of header fields that lay the traces on a regular grid, the likeliest first.

    Parameters
    ----------
    file : SegyFile
    offset_byte : int
        Tells apart prestack traces at the same position.
    most : int
        How many to return.
    """
    headers = file.headers(0, min(file.traces, SOME))
    varies = (headers != headers[:1]).any(axis=0)
    columns, offsets, found, seen = [], [], [], set()
    # The usual ones first, so that they stand for others with the same numbers.
    fields = [byte for byte, _ in FIELDS.values()]
    for byte in dict.fromkeys([*itertools.chain(*_USUAL), *fields, *range(1, TRACE_HEADER, 4)]):
        if varies[byte - 1 : min(byte + 3, TRACE_HEADER)].any():
            column = _column(number(headers, byte, file.order), byte)
            if column and byte == offset_byte:
                offsets.append(column)
            elif column and (key := column.index.tobytes()) not in seen:
                seen.add(key)
                columns.append(column)
    thirds = [[], offsets, [c for c in columns if c.byte == _OF_GATHER]]
    for pair in itertools.combinations(columns, 2):
        bytes_ = {c.byte for c in pair}
        filled = max(_filled([*pair, *t]) for t in thirds if not bytes_ & {c.byte for c in t})
        if filled >= _FILLED:
            slow, fast = sorted(pair, key=lambda c: (c.changes, c.byte))
            if (fast.byte, slow.byte) in _USUAL:
                slow, fast = fast, slow
            found.append(Candidate(slow.byte, fast.byte, slow.extent, fast.extent, filled))

    if offsets and not varies[188:192].any():  # gathers of a single line
        for c in columns:
            filled = _filled([c, *offsets])
            if filled >= _FILLED and c.byte not in _SEQUENCE:
                found.append(Candidate(189, c.byte, 1, c.extent, filled))

    def rank(candidate: Candidate) -> tuple[float, bool, int, int]:
        pair = (candidate.inline_byte, candidate.crossline_byte)
        usual = _USUAL.index(pair) if pair in _USUAL else len(_USUAL)
        return -round(candidate.filled, 2), _OF_GATHER in pair, usual, sum(pair)

    if not found and not varies[188:192].any():
        found = _lines(headers, file.order, (*_SEQUENCE, 189, offset_byte))
    return sorted(found, key=rank)[:most]


def offset_byte(file: SegyFile, inline_byte: int, crossline_byte: int) -> int | None:
    """Find the header field that tells traces with the same inline and crossline apart.

    Parameters
    ----------
    file : SegyFile
    inline_byte, crossline_byte : int

    Returns
    -------
    int or None
        Its first byte; None if no field does, or one is rather the inline or the crossline.
    """
    headers = file.headers(0, min(file.traces, SOME))
    columns = (_column(number(headers, b, file.order), b) for b in (inline_byte, crossline_byte))
    lines = [column for column in columns if column]
    if len(lines) < 2 or _filled(lines):
        return None
    for byte in dict.fromkeys([37, *(byte for byte, _ in FIELDS.values())]):
        column = _column(number(headers, byte, file.order), byte)
        if column and _filled([*lines, column]) >= _FILLED:
            return None if any(_filled([line, column]) for line in lines) else byte
    return None


def remedy(file: SegyFile, at: HeaderBytes) -> str:
    """Say which header bytes would do instead."""
    byte = offset_byte(file, at.inline, at.crossline)
    if byte and byte != at.offset:
        return f"try --offset-byte {byte}, which tells the traces of a gather apart"
    found = candidates(file, at.offset)
    found = [c for c in found if (c.inline_byte, c.crossline_byte) != (at.inline, at.crossline)]
    shots = "; if these are shot gathers, pass --shots" if _may_be_shots(file) else ""
    if not found:
        return f"no other bytes give a regular grid either; correct the headers{shots}"
    best, of = found[0], f" of the first {SOME:,} traces" if file.traces > SOME else ""
    return (
        f"try --iline-byte {best.inline_byte} --xline-byte {best.crossline_byte} "
        f"({best.inlines:,} × {best.crosslines:,}{of}); outcrop info shows all candidates{shots}"
    )


def _may_be_shots(file: SegyFile) -> bool:
    """Whether the receivers lie at many places, and most of them elsewhere than their sources."""
    headers = file.headers(0, min(file.traces, SOME))
    source, receiver = headers[:, 72:80], headers[:, 80:88]
    apart = (source != receiver).any(axis=1)
    return bool((receiver != receiver[:1]).any() and 2 * np.count_nonzero(apart) > len(apart))


def _lines(headers: np.ndarray, order: Order, but: tuple[int, ...]) -> list[Candidate]:
    """Fields that number the traces of a single line, as crosslines of one inline."""
    found = []
    for byte in [b for b, kind in FIELDS.values() if kind == "i4" and b not in but]:
        unique = np.unique(number(headers, byte, order)).astype(np.int64)
        if unique.size > 1 and unique.size >= (1 - _DUPLICATES) * len(headers):
            extent = int(unique[-1] - unique[0]) // int(np.gcd.reduce(np.diff(unique))) + 1
            if unique.size >= _FILLED * extent:
                found.append(Candidate(189, byte, 1, extent, unique.size / extent))
    return found


def _column(numbers: np.ndarray, byte: int) -> _Column | None:
    """Numbers as places along an axis, if they repeat and lie close."""
    unique = np.unique(numbers).astype(np.int64)
    if not 2 <= unique.size <= numbers.size // 2:
        return None
    step = int(np.gcd.reduce(np.diff(unique)))
    extent = int(unique[-1] - unique[0]) // step + 1
    if unique.size < _FILLED * extent:
        return None
    index = (numbers - unique[0]) // step
    return _Column(byte, index, extent, int(np.count_nonzero(np.diff(index))))


def _filled(columns: list[_Column]) -> float:
    """Part of the positions that has a trace; 0 if traces share positions."""
    count = columns[0].index.size
    shape = tuple(c.extent for c in columns)
    cells = int(np.prod(shape, dtype=np.float64))
    if not (1 - _DUPLICATES) * count <= cells <= count / _FILLED:
        return 0.0
    taken = np.zeros(cells, dtype=bool)
    taken[np.ravel_multi_index([c.index for c in columns], shape)] = True
    different = int(np.count_nonzero(taken))
    return different / cells if different >= (1 - _DUPLICATES) * count else 0.0
