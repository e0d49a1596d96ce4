"""What a SEG-Y file is, and reading it in bulk with memory that does not grow with it.

Words and places are those of SEG-Y revision 2.1 (SEG Technical Standards Committee, 2023,
https://library.seg.org/pb-assets/technical-standards/seg_y_rev2_1-oct2023-1701361639333.pdf);
field names are segyio's. segyio itself reads headers one field at a time and traces one at a time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from segyio import tracefield

from ..errors import SegyError
from ..patience import patiently
from ..storage import on_disk
from .decode import DTYPES
from .layout import TRACE_HEADER, Order, binary, first_trace, order_and_format, samples_told
from .text import BINARY, TEXT, decoded, slices

log = logging.getLogger(__name__)

_PIECE = 1 << 20  # bytes read at a time: they stay in the cache while they are converted
_SEEK = 64 << 10  # bytes of a trace that are read rather than skipped, to get at others

# Surveys on disk have these names of segyio 1.9, where segyio 2 names parts of them.
_KEPT = {"SourceEnergyDirectionMantissa": 219, "SourceEnergyDirectionExponent": 223}


def fields_of(keys: Mapping[str, int]) -> dict[str, tuple[int, str]]:
    """Trace header fields, first byte, from 1, and type, of segyio's table of first bytes."""
    named = {name: byte for name, byte in keys.items() if not 219 <= byte < 225} | _KEPT
    starts = sorted((byte, name) for name, byte in named.items())
    ends = [*(byte for byte, _ in starts[1:]), TRACE_HEADER + 1]
    return {
        name: (first, f"i{after - first}")
        for (first, name), after in zip(starts, ends, strict=True)
    }


# Trace header fields: first byte, from 1, and type. Together they are all 240 bytes.
FIELDS = fields_of(tracefield.keys)
_TYPES = dict(FIELDS.values())


def field(headers: np.ndarray, byte: int, order: Order) -> np.ndarray:
    """Return one field of the standard of many trace headers.

    Parameters
    ----------
    headers : ndarray of uint8, (traces, 240)
    byte : int
        Its first byte, from 1.
    order : str
        Byte order, ">" or "<".

    Returns
    -------
    ndarray of int16 or int32, (traces,)
    """
    return _integers(headers, byte, order, _TYPES[byte])


def number(headers: np.ndarray, byte: int, order: Order) -> np.ndarray:
    """Return a line number, offset or coordinate of many trace headers.

    Files have them anywhere, and always in four bytes, whatever fields the standard has there.

    Parameters
    ----------
    headers, byte, order
        As for `field`.

    Returns
    -------
    ndarray of int32, (traces,)
    """
    return _integers(headers, byte, order, "i4")


def _integers(headers: np.ndarray, byte: int, order: Order, kind: str) -> np.ndarray:
    dtype = np.dtype(kind)
    raw = np.ascontiguousarray(headers[:, byte - 1 : byte - 1 + dtype.itemsize])
    return raw.view(dtype.newbyteorder(order))[:, 0].astype(dtype)


@dataclass(frozen=True)
class SegyFile:
    """A SEG-Y file of traces of one length.

    Attributes
    ----------
    path : pathlib.Path
    order : str
        Byte order, ">" or "<".
    format : int
        Sample format, a key of `DTYPES`.
    samples : int
        In each trace.
    told : int
        The same, by the trace headers.
    first : int
        Offset of the first trace in bytes.
    traces : int
        Whole traces in the file.
    """

    path: Path
    order: Order
    format: int
    samples: int
    told: int
    first: int
    traces: int

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], truncate: bool = False, format: int | None = None
    ) -> SegyFile:
        """Find out how a file is laid out, byte order included.

        Parameters
        ----------
        path : path-like
        truncate : bool
            Of a file that ends in the middle of a trace, take the whole traces.
        format : int, optional
            Sample format, instead of the one in the header.

        Raises
        ------
        SegyError
            If it is not SEG-Y, ends in the middle of a trace, or has traces of several lengths.
        """
        path = on_disk(path)
        try:
            with open(path, "rb") as file:
                head = file.read(TEXT + BINARY)
                size = file.seek(0, os.SEEK_END)
        except OSError as error:
            why = error.strerror or "is a pipe; write it to a file first"  # which cannot be sought
            raise SegyError(f"{path}: cannot be read: {why}") from error
        not_segy = f"{path}: not SEG-Y: "
        if len(head) < TEXT + BINARY:
            raise SegyError(
                f"{not_segy}{size:,} bytes are fewer than its file header's 3,600; "
                "check the path, or copy the file again"
            )
        order, format = order_and_format(head, not_segy, format)
        first = first_trace(path, head, order, not_segy)
        samples = binary(head, 3221, "u2", order)
        if is_revision_2(head):
            samples = binary(head, 3269, "u4", order) or samples
            given = binary(head, 3521, "u8", order)
            first = given if given >= TEXT + BINARY else first
            # Revision 2.1 has the type of the survey in the second half of the first field of 2.0.
            short = sum(head[3500:3502]) > 2
            for byte, size_of, what in (
                (3507, 2 if short else 4, "additional headers in each trace"),
                (3529, 4, "trailers"),
            ):
                if more := binary(head, byte, f"i{size_of}", order):
                    raise SegyError(
                        f"{path}: has {'some' if more < 0 else more} {what} (binary header bytes "
                        f"{byte}-{byte + size_of - 1}), which outcrop does not read; rewrite it "
                        "without them"
                    )
        if size <= first:
            fields = "3505-3506, 3521-3528" if is_revision_2(head) else "3505-3506"
            raise SegyError(
                f"{path}: has no traces: {size:,} bytes, and by its header (bytes {fields}) the "
                f"first trace begins after {first:,}; copy the file again, or correct the header"
            )

        told = samples_told(path, first, order)

        def fits(count: int) -> int:
            """Well if the second trace says the same as the first, somewhat if the size does."""
            length = TRACE_HEADER + count * DTYPES[format].itemsize
            second = samples_told(path, first + length, order)
            return 2 * (second == told) or int(not second and (size - first) % length == 0)

        # Where the binary header is wrong or empty, the traces may know better.
        if told and (not samples or fits(samples) < fits(told)):
            samples = told
        if not samples:
            raise SegyError(
                f"{not_segy}no sample count, neither in the binary header (bytes 3221-3222) nor "
                "in the first trace (115-116); check the path, or correct the header"
            )
        length = TRACE_HEADER + samples * DTYPES[format].itemsize
        if samples_told(path, first + length, order) == samples & 0xFFFF:
            told = samples  # whatever the first one says
        whole, left = divmod(size - first, length)
        found = cls(path, order, format, samples, told or samples, first, max(whole, 0))
        if left:  # because the traces are not of one length?
            found.wrong_lengths(found.headers(0, min(found.traces, 4096)), 0)
        if whole < 1 or (left and not truncate):
            raise SegyError(
                f"{path}: ends in the middle of a trace, after {found.traces:,} whole traces of "
                f"{samples:,} samples; copy the file again"
                + (", or pass truncate=True (--truncate) to take those" if whole > 0 else "")
            )
        return found

    def wrong_lengths(self, headers: np.ndarray, start: int) -> np.ndarray:
        """Find headers that tell of another sample count, though their traces have the usual one.

        That is so where the next header begins after the usual one, and tells of it.

        Parameters
        ----------
        headers : ndarray of uint8, (traces, 240)
        start : int
            Number of the first of these traces.

        Returns
        -------
        ndarray of int
            Which of `headers`, ascending.

        Raises
        ------
        SegyError
            If the traces are of several lengths.
        """
        counts, usual = field(headers, 115, self.order).view(np.uint16), self.told & 0xFFFF
        odd = np.flatnonzero((counts > 0) & (counts != usual))
        if not odd.size:
            return odd

        def says(trace: int) -> int:
            return samples_told(self.path, self.first + trace * self.trace_bytes, self.order)

        after = np.append(counts[1:], says(start + len(headers)))[odd]
        known = (after == usual) | ((after > 0) & (2 * odd.size <= len(headers)))
        if start + odd[-1] == self.traces - 1:
            known[-1] = says(self.traces - 2) == usual
        if not known.all():
            raise SegyError(
                f"{self.path}: traces of several lengths: trace {start + odd[0] + 1:,} says that "
                f"it has {counts[odd[0]]:,} samples (header bytes 115-116), others {self.told:,}; "
                "pad them to one length, or correct the headers"
            )
        return odd

    @property
    def stored(self) -> np.dtype:
        """Type of a sample in the file."""
        dtype = np.dtype("u4") if self.format == 1 else DTYPES[self.format]
        return dtype.newbyteorder(self.order)

    @property
    def trace_bytes(self) -> int:
        """Bytes of a trace with its header."""
        return TRACE_HEADER + self.samples * self.stored.itemsize

    @cached_property
    def file_header(self) -> bytes:
        """Text, binary and extended text headers: everything before the first trace."""
        with open(self.path, "rb") as file:
            return file.read(self.first)

    def binary(self, byte: int, dtype: str = "i2") -> int | float:
        """Return one field of the binary header, by its first byte (3201 to 3600)."""
        return binary(self.file_header, byte, dtype, self.order)

    def text(self) -> list[str]:
        """Return the text header and the extended ones, lines of 80 characters."""
        return [decoded(self.file_header[place]) for place in slices(self.file_header)]

    def headers(self, start: int, stop: int) -> np.ndarray:
        """Read the headers of consecutive traces: uint8, (stop − start, 240)."""
        return self.read_headers(np.arange(start, stop))

    def scan(self) -> Iterator[tuple[int, np.ndarray]]:
        """Read all trace headers, piece by piece; log that sample counts in some are wrong.

        Yields
        ------
        start : int
            Number of the first trace of the piece.
        headers : ndarray of uint8, (traces, 240)

        Raises
        ------
        SegyError
            If the traces are of several lengths.
        """
        step = max(1, _PIECE // min(self.trace_bytes, _SEEK))
        count = first = 0
        with open(self.path, "rb", buffering=0) as file:
            for start in range(0, self.traces, step):
                stop = min(start + step, self.traces)
                headers = patiently(
                    partial(self._pread, file.fileno(), start, stop, 0, TRACE_HEADER)
                )
                wrong = self.wrong_lengths(headers, start)
                first = first if count or not wrong.size else start + int(wrong[0]) + 1
                count += wrong.size
                yield start, headers
        if count:
            log.warning(
                "%s: %s traces say that they have another number of samples (header bytes "
                "115-116; trace %s is the first), and have %s as the others",
                self.path,
                f"{count:,}",
                f"{first:,}",
                f"{self.samples:,}",
            )

    def read_headers(self, traces: np.ndarray) -> np.ndarray:
        """Read the headers of traces, by ascending numbers: uint8, (traces, 240)."""
        headers = np.empty((traces.size, TRACE_HEADER), dtype=np.uint8)
        for which, piece in self._read(traces, 0, TRACE_HEADER):
            headers[which] = piece
        return headers

    def read(
        self, traces: np.ndarray, samples: slice = slice(None)
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Read samples in the order of the file, of traces that lie side by side in one piece.

        Parameters
        ----------
        traces : ndarray of int
            Their numbers from 0, ascending.
        samples : slice
            Of each trace; step 1.

        Yields
        ------
        which : slice
            Of `traces`.
        raw : ndarray of `stored`, (traces, samples)
        """
        start, stop, _ = samples.indices(self.samples)
        size = self.stored.itemsize
        for which, piece in self._read(
            traces, TRACE_HEADER + start * size, TRACE_HEADER + stop * size
        ):
            yield which, piece.view(self.stored)

    def _read(
        self, traces: np.ndarray, first: int, last: int
    ) -> Iterator[tuple[slice, np.ndarray]]:
        longest = max(1, _PIECE // self.trace_bytes)
        with open(self.path, "rb", buffering=0) as file:
            for which in runs(traces, longest):
                start = int(traces[which.start])
                stop = start + which.stop - which.start
                yield which, self._pread(file.fileno(), start, stop, first, last)

    def _pread(self, fd: int, start: int, stop: int, first: int, last: int) -> np.ndarray:
        """Read bytes `first` to `last` of consecutive traces."""
        if self.trace_bytes - (last - first) <= _SEEK:
            whole = np.empty((stop - start, self.trace_bytes), dtype=np.uint8)
            self._fill(fd, whole.reshape(-1), start * self.trace_bytes)
            return whole[:, first:last]
        piece = np.empty((stop - start, last - first), dtype=np.uint8)
        for row, trace in zip(piece, range(start, stop), strict=True):
            self._fill(fd, row, trace * self.trace_bytes + first)
        return piece

    def _fill(self, fd: int, buffer: np.ndarray, offset: int) -> None:
        done = 0
        while done < buffer.size:
            try:
                got = os.preadv(fd, [buffer.data[done:]], self.first + offset + done)
            except OSError as error:  # which knows no name
                error.filename = str(self.path)
                raise
            if not got:
                raise SegyError(f"{self.path}: became shorter while it was read; copy it again")
            done += got


def runs(numbers: np.ndarray, longest: int) -> Iterator[slice]:
    """Slices of ascending numbers that follow each other without a gap, none above `longest`."""
    ends = np.flatnonzero(np.diff(numbers) != 1) + 1
    start = 0
    for end in (*ends.tolist(), numbers.size):
        for begin in range(start, end, longest):
            yield slice(begin, min(begin + longest, end))
        start = end


def is_revision_2(head: bytes | bytearray) -> bool:
    """Whether a file header is of SEG-Y revision 2, its number in either byte order."""
    return 2 in head[3500:3502]
