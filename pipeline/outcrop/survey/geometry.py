"""Where traces lie: from numbers in their headers to a regular grid of inlines and crosslines."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import ArgumentError, GeometryError
from .candidates import offset_byte, remedy
from .checks import strays
from .layout import TRACE_HEADER
from .segy import FIELDS, SegyFile, field, is_revision_2, number

log = logging.getLogger(__name__)

_BLOCK = 1 << 20  # traces whose positions are computed at a time
_DUPLICATES = 0.01  # part of the traces at the position of another that may mean wrong bytes
_SPARSE = 2  # a grid this many times as large as the traces is probably a mistake
_ABSURD = 1000  # and this many times is no grid


@dataclass(frozen=True)
class HeaderBytes:
    """First bytes, from 1, of the trace header fields that give the geometry."""

    inline: int = 189
    crossline: int = 193
    offset: int = 37
    cdp_x: int = 181
    cdp_y: int = 185

    def __post_init__(self) -> None:
        for name, byte in asdict(self).items():
            if not 1 <= byte <= TRACE_HEADER - 3:
                option = {"inline": "iline", "crossline": "xline"}.get(name, name.replace("_", "-"))
                raise ArgumentError(
                    f"--{option}-byte {byte}: no field of four bytes starts there in a trace "
                    f"header; choose one from 1 to {TRACE_HEADER - 3}"
                )
        for one, other, options in (
            ("inline", "crossline", "--iline-byte, --xline-byte"),
            ("cdp_x", "cdp_y", "--cdp-x-byte, --cdp-y-byte"),
        ):
            if getattr(self, one) == getattr(self, other):
                raise ArgumentError(
                    f"{one} and {other} are both read from byte {getattr(self, one)}; choose "
                    f"another for one of them ({options})"
                )

    def hold_lines(self, *coordinates: int) -> bool:
        """Whether line numbers are read from where these coordinates would be."""
        lines = (self.inline, self.crossline)
        return any(abs(byte - line) < 4 for byte in coordinates for line in lines)

    def named(self, names: list[str]) -> str:
        """Say where these numbers come from."""
        places = asdict(self)
        return ", ".join(f"{name} bytes {places[name]}-{places[name] + 3}" for name in names)


@dataclass(frozen=True)
class Headers:
    """What one pass over the trace headers found.

    Attributes
    ----------
    numbers : dict of str to ndarray of int32, (traces,)
        `inline`, `crossline` and, if it varies, `offset` of every trace.
    first : ndarray of uint8, (1, 240)
        The first header.
    varies : ndarray of bool, (240,)
        Bytes that are not the same in all headers.
    intervals : ndarray of uint16, (traces,)
        Sample interval by every header, in µs; 0 where it gives none.
    """

    numbers: dict[str, np.ndarray]
    first: np.ndarray
    varies: np.ndarray
    intervals: np.ndarray

    def varying(self) -> list[str]:
        """Names of the fields that vary."""
        return [
            name
            for name, (byte, dtype) in FIELDS.items()
            if self.varies[byte - 1 : byte - 1 + int(dtype[1])].any()
        ]


@dataclass(frozen=True)
class Grid:
    """Traces on a regular grid.

    Attributes
    ----------
    axes : dict of str to range
        Ascending numbers along `inline`, `crossline` and, prestack, `offset`.
    trace_index : ndarray of int64, shaped as the axes
        Number of the trace at each position, −1 where there is none.
    extra : ndarray of int64, (n, 2)
        Flat position and number of the traces that share a position with one in `trace_index`.
    """

    axes: dict[str, range]
    trace_index: np.ndarray
    extra: np.ndarray


def read_headers(
    file: SegyFile, at: HeaderBytes, advance: Callable[[float], None] = lambda _: None
) -> Headers:
    """Read all trace headers once; what is kept is 14 bytes a trace.

    Parameters
    ----------
    file : SegyFile
    at : HeaderBytes
    advance : callable
        Called with the bytes of the file that were passed.

    Raises
    ------
    SegyError
        If the headers tell of traces of several lengths.
    """
    places = {"inline": at.inline, "crossline": at.crossline, "offset": at.offset}
    numbers = {name: np.empty(file.traces, dtype=np.int32) for name in places}
    first = file.headers(0, 1)
    varies = np.zeros(TRACE_HEADER, dtype=bool)
    intervals = np.empty(file.traces, dtype=np.uint16)
    for start, headers in file.scan():
        intervals[start : start + len(headers)] = field(headers, 117, file.order).view(np.uint16)
        for name, byte in places.items():
            numbers[name][start : start + len(headers)] = number(headers, byte, file.order)
        varies |= (headers != first).any(axis=0)
        advance(len(headers) * file.trace_bytes)
    if (numbers["offset"] == numbers["offset"][0]).all():
        del numbers["offset"]
    return Headers(numbers, first, varies, intervals)


def make_grid(
    file: SegyFile,
    headers: Headers,
    at: HeaderBytes,
    duplicates: str = "error",
    sparse: bool = False,
) -> Grid:
    """Lay traces out on a regular grid.

    They are prestack if many share inline and crossline, and the offset tells those apart. That
    many lines have no trace is logged.

    Parameters
    ----------
    file : SegyFile
    headers : Headers
    at : HeaderBytes
        Where the numbers came from.
    duplicates : str
        Of traces at the same position keep the "first", the "last", the first with the others as
        `extra` ("mean"), or raise ("error").
    sparse : bool
        Accept a grid more than twice as large as the traces, and lines without any.

    Raises
    ------
    GeometryError
        If the numbers give no grid, positions repeat, or the grid is that large.
    """
    numbers = {name: headers.numbers[name] for name in ("inline", "crossline")}
    count = file.traces
    axes = {name: _axis(values) for name, values in numbers.items()}
    _check_extent(file, at, numbers, axes, sparse)
    index = _place(numbers, axes, duplicates)
    different = np.count_nonzero(index >= 0)
    if 4 * different < 3 * count and "offset" in headers.numbers:
        numbers = headers.numbers
        axes = {**axes, "offset": _axis(numbers["offset"])}
        _check_extent(file, at, numbers, axes, sparse)
        index = _place(numbers, axes, duplicates)
        different = np.count_nonzero(index >= 0)
    if 2 * different < count:
        raise GeometryError(
            f"{file.path}: {at.named(list(axes))} give no grid: {count:,} traces have only "
            f"{different:,} different positions; {remedy(file, at)}"
        )
    grid = Grid(axes, index, _others(numbers, axes, index))
    if grid.extra.size and duplicates == "error":
        hint = remedy(file, at) if len(grid.extra) > _DUPLICATES * count else ""
        hint = hint if hint.startswith("try") else "check the header bytes"
        raise GeometryError(
            f"{file.path}: {len(grid.extra):,} traces are at the position of another "
            f"({_name(grid, grid.extra[:1000, 0])}); pass duplicates= (--duplicates) first, last "
            f"or mean, or {hint}"
        )
    if not sparse:
        _warn_of_empty_lines(file, grid)
    return grid


def sorting(headers: Headers) -> str:
    """Say how the traces are sorted: by "inline", by "crossline", or "not"."""
    for name in ("inline", "crossline"):
        numbers = headers.numbers[name]
        if np.count_nonzero(np.diff(numbers)) == np.unique(numbers).size - 1:
            return name
    return "not"


def _axis(numbers: np.ndarray) -> range:
    """Regular numbers from the least to the greatest, by the widest step that meets all."""
    low, high = int(numbers.min()), int(numbers.max())
    step = 0
    for block in _blocks(numbers.size):
        step = math.gcd(step, int(np.gcd.reduce(numbers[block].astype(np.int64) - low)))
    return range(low, high + 1, step or 1)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK))


def _size(axes: dict[str, range]) -> int:
    return math.prod(map(len, axes.values()))


def _check_extent(
    file: SegyFile,
    at: HeaderBytes,
    numbers: dict[str, np.ndarray],
    axes: dict[str, range],
    sparse: bool,
) -> None:
    """Raise `GeometryError` if the grid is far larger than the traces."""
    times = _size(axes) / file.traces
    if times <= _SPARSE or (sparse and times <= _ABSURD):
        return
    shape = " × ".join(f"{len(axis):,} {name}s" for name, axis in axes.items())
    fact = f"{shape} are {times:,.3g} times as many positions as the {file.traces:,} traces"
    where = f"{file.path}: {at.named(list(axes))} give "
    few = strays(numbers)
    rest = {name: _axis(np.delete(values, few)) for name, values in numbers.items()}
    if few.size and _size(rest) <= _SPARSE * file.traces:
        named = "; ".join(
            f"trace {trace + 1:,}: " + " ".join(f"{n} {v[trace]}" for n, v in numbers.items())
            for trace in few[:3].tolist()
        )
        dense = " × ".join(f"{len(axis):,}" for axis in rest.values())
        raise GeometryError(
            f"{where}a sparse grid: {fact}, and {dense} without {few.size:,} of them ({named}"
            f"{'; …' if few.size > 3 else ''}); correct their headers, or take them out of the file"
        )
    if "offset" in axes:
        byte = offset_byte(file, at.inline, at.crossline)
        field_of = f"{byte}, which numbers" if byte else "of a field that numbers"
        raise GeometryError(
            f"{where}a sparse grid: {fact}; pass --offset-byte {field_of} the traces of a gather, "
            "or sparse=True (--sparse) to go on"
        )
    lines = [np.unique(numbers[name]).size for name in axes]
    if times > _ABSURD or (min(lines) > 1 and 2 * max(lines) > file.traces):
        raise GeometryError(f"{where}no grid: {fact}; {remedy(file, at)}")
    raise GeometryError(
        f"{where}a sparse grid: {fact}; check the bytes with outcrop info, or pass sparse=True "
        "(--sparse) to go on"
    )


def _place(numbers: dict[str, np.ndarray], axes: dict[str, range], keep: str) -> np.ndarray:
    """Put every trace at its position; of those that share one the "last" stays, or the first."""
    shape = tuple(map(len, axes.values()))
    flat = np.full(math.prod(shape), -1, dtype=np.int64)
    blocks = list(_blocks(next(iter(numbers.values())).size))
    # The trace that is put somewhere last stays.
    for block in blocks if keep == "last" else reversed(blocks):
        cells, traces = _cells(numbers, axes, block)
        flat[cells if keep == "last" else cells[::-1]] = traces if keep == "last" else traces[::-1]
    return flat.reshape(shape)


def _others(
    numbers: dict[str, np.ndarray], axes: dict[str, range], index: np.ndarray
) -> np.ndarray:
    """Flat positions and numbers of the traces that are not at theirs, as another one is."""
    flat, found = index.ravel(), []
    for block in _blocks(next(iter(numbers.values())).size):
        cells, traces = _cells(numbers, axes, block)
        left = flat[cells] != traces
        found.append(np.stack([cells[left], traces[left]], axis=1))
    return np.concatenate(found)


def _cells(
    numbers: dict[str, np.ndarray], axes: dict[str, range], block: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions of consecutive traces, and their numbers."""
    index = [
        (numbers[name][block].astype(np.int64) - axis.start) // axis.step
        for name, axis in axes.items()
    ]
    shape = tuple(map(len, axes.values()))
    return np.ravel_multi_index(index, shape), np.arange(block.start, block.stop)


def _warn_of_empty_lines(file: SegyFile, grid: Grid) -> None:
    """Log it where lines have no trace: many, or because of a few traces on lines of their own."""
    live = grid.trace_index >= 0
    for dim, (name, axis) in enumerate(grid.axes.items()):
        counts = np.count_nonzero(live, axis=tuple(d for d in range(live.ndim) if d != dim))
        full = 10 * counts > counts.max()
        usual, empty = np.flatnonzero(full), np.flatnonzero(counts == 0)
        step = int(np.gcd.reduce(usual - usual[0])) or 1
        span = int(usual[-1] - usual[0]) // step + 1
        strays = int(counts[~full].sum())
        fact = f"{empty.size:,} of {counts.size:,} {name}s have no trace"
        if span - usual.size < empty.size and 0 < 100 * strays <= counts.sum():
            lines = ~full.reshape([-1 if d == dim else 1 for d in range(live.ndim)])
            log.warning(
                "%s: %s; without %s traces (%s) it would be %s of %s; correct their headers, or "
                "pass sparse=True (--sparse) if these are right",
                file.path,
                fact,
                f"{strays:,}",
                _name(grid, np.flatnonzero(live & lines)),
                f"{span - usual.size:,}",
                f"{span:,}",
            )
        elif 3 * empty.size > counts.size:
            names = ", ".join(str(axis[i]) for i in empty[:3]) + (", …" if empty.size > 3 else "")
            log.warning(
                "%s: %s (%s); check the bytes with outcrop info, or pass sparse=True (--sparse) "
                "if these are right",
                file.path,
                fact,
                names,
            )


def _name(grid: Grid, flat: np.ndarray) -> str:
    """Name the first of some positions."""
    cells = list(dict.fromkeys(flat.tolist()))
    index = zip(*np.unravel_index(cells[:3], grid.trace_index.shape), strict=True)
    places = [
        " ".join(f"{name} {axis[i]}" for (name, axis), i in zip(grid.axes.items(), at, strict=True))
        for at in index
    ]
    return ", ".join(places) + (", …" if len(cells) > 3 else "")


def vertical_axis(file: SegyFile, interval: float | None = None, trace: int = 0) -> np.ndarray:
    """Two-way time in ms, or depth in m, of the samples of a trace.

    The interval is that of the binary header, or else of the trace's header; its unit is µs,
    or mm where the vertical axis is depth. The axis starts at the recording delay of the trace
    (ms or m), with the scalar for times applied.

    Parameters
    ----------
    file : SegyFile
    interval : float, optional
        In ms or m, instead of the one in the headers.
    trace : int
        Its number, from 0.

    Returns
    -------
    ndarray of float64, (samples,)

    Raises
    ------
    GeometryError
        If there is no interval.
    ArgumentError
        If the one that is given is not above zero.
    """
    header = file.headers(trace, trace + 1)
    if interval is not None and not (interval > 0 and math.isfinite(interval)):
        raise ArgumentError(
            f"interval {interval:g}: pass a number above zero, in ms, or m for depth"
        )
    if interval is None:
        told = [file.binary(3217, "u2"), int(field(header, 117, file.order)[0]) & 0xFFFF]
        if is_revision_2(file.file_header):
            told.insert(0, file.binary(3273, "f8"))
        interval = next((step / 1000 for step in told if step > 0 and math.isfinite(step)), 0.0)
    if not interval:
        raise GeometryError(
            f"{file.path}: no sample interval, neither in the binary header (bytes 3217-3218) nor "
            f"in trace {trace + 1:,} (117-118); pass interval= (--interval) in ms, or m for depth"
        )
    delay = float(field(header, 109, file.order)[0])
    return scaled(delay, int(field(header, 215, file.order)[0])) + interval * np.arange(
        file.samples
    )


def scaled(values: np.ndarray | float, scalar: np.ndarray | int) -> Any:
    """Apply a SEG-Y scalar: above zero it multiplies, below it divides, zero does nothing."""
    scalar = np.asarray(scalar, dtype=np.float64)
    magnitude = np.where(scalar == 0, 1.0, np.abs(scalar))
    return np.where(scalar < 0, values / magnitude, values * magnitude)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ArgumentError` unless an option has one of its values."""
    if value not in choices:
        raise ArgumentError(f"{name}={value!r}: choose one of {', '.join(choices)}")
