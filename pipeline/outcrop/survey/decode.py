"""Samples as they lie in a SEG-Y file, to numbers."""

from __future__ import annotations

import numpy as np

# Sample formats: the type that holds every value exactly, and what the format is called.
DTYPES = {
    code: np.dtype(name)
    for code, name in {
        1: "f4", 2: "i4", 3: "i2", 5: "f4", 6: "f8", 8: "i1", 9: "i8",
        10: "u4", 11: "u2", 12: "u8", 16: "u1",
    }.items()
}  # fmt: skip
FORMATS = {
    1: "IBM float, 4 bytes",
    2: "integer, 4 bytes",
    3: "integer, 2 bytes",
    5: "IEEE float, 4 bytes",
    6: "IEEE float, 8 bytes",
    8: "integer, 1 byte",
    9: "integer, 8 bytes",
    10: "unsigned integer, 4 bytes",
    11: "unsigned integer, 2 bytes",
    12: "unsigned integer, 8 bytes",
    16: "unsigned integer, 1 byte",
}


def decode(raw: np.ndarray, format: int) -> np.ndarray:
    """Convert samples as they lie in the file to native numbers, exactly.

    Parameters
    ----------
    raw : ndarray
        Of `SegyFile.stored`: in the byte order of the file, an IBM float as its 32-bit word.
    format : int
        Sample format.

    Returns
    -------
    ndarray of `DTYPES[format]`
        An IBM float beyond the range of float32 is infinite, or 0.
    """
    if format != 1:
        return raw.astype(DTYPES[format])
    # segyio's conversion expects normalised fractions, and holds the GIL. The value is
    # ±f·16^(e−64) with f of 24 bits: an exact product, unless it is too small for float32.
    words = raw.astype(np.uint32).reshape(-1)
    values = np.empty(words.shape, dtype=np.float32)
    for start in range(0, words.size, 1 << 14):  # so that temporaries stay in the cache
        part = words[start : start + (1 << 14)]
        scale = _IBM_SCALE.take(part >> 24)
        part &= 0xFFFFFF
        with np.errstate(over="ignore"):
            np.multiply(part.astype(np.float32), scale, out=values[start : start + (1 << 14)])
    return values.reshape(raw.shape)


# By sign and exponent; from 2^127 on every normalised fraction is beyond float32.
_IBM_SCALE = np.array(
    [
        sign * min(2.0 ** (4 * (exponent - 64) - 24), 2.0**127)
        for sign in (1, -1)
        for exponent in range(128)
    ],
    dtype=np.float32,
)
