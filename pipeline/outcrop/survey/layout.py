"""How a SEG-Y file is laid out, by its file header and its first traces."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import SegyError
from .decode import DTYPES
from .text import BINARY, TEXT, decoded

Order = Literal[">", "<"]
log = logging.getLogger(__name__)

TRACE_HEADER = 240  # bytes
_TEXTS = 100  # extended text headers that are looked for where the file says another number
_UNREAD = {4: "fixed point with gain", 7: "integer, 3 bytes", 15: "unsigned integer, 3 bytes"}


def binary(head: bytes, byte: int, dtype: str, order: Order) -> int:
    """Return one field of a file header, by its first byte from 1."""
    return np.frombuffer(head, np.dtype(dtype).newbyteorder(order), 1, byte - 1)[0].item()


def order_and_format(head: bytes, not_segy: str, given: int | None) -> tuple[Order, int]:
    """Byte order and sample format: the format code makes sense in one order only."""
    orders: tuple[Order, Order] = (">", "<")
    for order in orders:
        format = binary(head, 3225, "u2", order)
        if format in DTYPES or (given and format in _UNREAD):
            return order, given or format
        if format in _UNREAD:
            raise SegyError(
                f"{not_segy.removesuffix('not SEG-Y: ')}sample format {format} ("
                f"{_UNREAD[format]}) is not read; convert the file to one of {list(DTYPES)}"
            )
    if given:  # in the order in which sample interval and count are small numbers
        return min(orders, key=lambda o: sum(binary(head, b, "u2", o) for b in (3217, 3221))), given
    raise SegyError(
        f"{not_segy}sample format {binary(head, 3225, 'u2', '>')} (bytes 3225-3226) is none of "
        f"{', '.join(map(str, DTYPES))} in either byte order; check the path, or pass format= "
        "(--format), such as ibm or ieee, where the header is wrong"
    )


def first_trace(path: Path, head: bytes, order: Order, not_segy: str) -> int:
    """Offset of the first trace: after as many extended text headers as the file says.

    Of revision 0, and by some programs, anything may lie where that is said. So it is not
    believed where a trace of the binary header's sample count begins before or after others, of
    text, and none there.
    """
    count = binary(head, 3505, "i2", order)
    start, samples = TEXT + BINARY, binary(head, 3221, "u2", order)

    def begins(number: int) -> bool:
        return samples_told(path, start + number * TEXT, order) == samples

    if samples and (count < 0 or not begins(count)):
        for number in range(1 if count == -1 else _TEXTS):
            if number and not _is_text(path, start + (number - 1) * TEXT):
                break
            if begins(number):
                log.warning(
                    "%s: the first trace begins after %d extended text headers, and the file says "
                    "that there are %d (binary header bytes 3505-3506)",
                    path,
                    number,
                    count,
                )
                return start + number * TEXT
    if count < -1:
        raise SegyError(
            f"{path}: says that it has {count} extended text headers (bytes 3505-3506); correct "
            "the header: their number, or -1 where the last of them says that it is the last"
        )
    if count >= 0:
        return start + count * TEXT
    with open(path, "rb") as file:  # as many as it takes until one says that it is the last
        file.seek(start)
        for number in range(1, 1000):
            # Names of stanzas are compared without blanks and capitals, as segyio does.
            if "((seg:endtext))" in "".join(decoded(file.read(TEXT)).split()).lower():
                return start + number * TEXT
    raise SegyError(
        f"{not_segy}variable extended text headers (bytes 3505-3506) without ((SEG: EndText)); "
        "correct the header"
    )


def _is_text(path: Path, offset: int) -> bool:
    """Whether a text header lies there: nearly all of it is printable."""
    with open(path, "rb") as file:
        file.seek(offset)
        text = decoded(file.read(TEXT)).replace("\n", "")
    return len(text) > 0 and sum(" " <= c <= "~" for c in text) >= 0.9 * len(text)


def samples_told(path: Path, offset: int, order: Order) -> int:
    """Sample count by the trace header that begins there; 0 where none does."""
    with open(path, "rb") as file:
        file.seek(offset)
        header = file.read(TRACE_HEADER)
    return binary(header, 115, "u2", order) if len(header) == TRACE_HEADER else 0
