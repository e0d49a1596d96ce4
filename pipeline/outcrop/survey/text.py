"""Text headers of SEG-Y: EBCDIC or ASCII, in lines of 80 characters."""

from __future__ import annotations

from ..errors import SegyError

TEXT, BINARY = 3200, 400  # bytes of a text header, and of the binary header after the first
_LINE = 80
_NAMES = {"cp037": "EBCDIC", "ascii": "ASCII"}


def slices(head: bytes | bytearray) -> list[slice]:
    """Where the text header and the extended ones lie in a file header."""
    starts = [0, *range(TEXT + BINARY, len(head), TEXT)]
    return [slice(start, min(start + TEXT, len(head))) for start in starts]


def decoded(raw: bytes) -> str:
    """Return a text header as lines, without the blanks at their ends."""
    text = raw.decode(_encoding(raw), errors="replace")
    lines = (text[i : i + _LINE].rstrip(" \0") for i in range(0, len(text), _LINE))
    return "\n".join(lines).rstrip("\n")


def edited(raw: bytes, text: str, name: str) -> bytes:
    """Return a text header with another text; as it is where that is the text that it holds.

    Parameters
    ----------
    raw : bytes
    text : str
        Lines, as `decoded` returns them.
    name : str
        For messages.

    Raises
    ------
    SegyError
        If the text does not fit, or has characters that the header cannot have.
    """
    if text == decoded(raw):
        return raw
    lines, most = text.split("\n"), len(raw) // _LINE
    longest = max(map(len, lines))
    if len(lines) > most or longest > _LINE:
        raise SegyError(
            f"{name}: a text header of {len(lines)} lines, the longest of {longest} characters, "
            f"and there is room for {most} lines of {_LINE}; shorten it"
        )
    try:
        return "".join(line.ljust(_LINE) for line in lines).ljust(len(raw)).encode(_encoding(raw))
    except UnicodeEncodeError as error:
        raise SegyError(
            f"{name}: a text header in {_NAMES[_encoding(raw)]} cannot have the character "
            f"{error.object[error.start]!r}; replace it"
        ) from None


def _encoding(raw: bytes) -> str:
    """EBCDIC or ASCII, by which of their blanks is the more common."""
    return "cp037" if raw.count(b"\x40") > raw.count(b"\x20") else "ascii"
