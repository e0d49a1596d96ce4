"""Samples in the formats of SEG-Y, without silent loss."""

from __future__ import annotations

import math

import numpy as np

from ..errors import ArgumentError, SurveyError
from .decode import decode
from .layout import Order

# Names of the sample formats that can be written, with their codes in the binary header.
CODES = {
    "ibm": 1,
    "int32": 2,
    "int16": 3,
    "ieee": 5,
    "float64": 6,
    "int8": 8,
    "int64": 9,
    "uint32": 10,
    "uint16": 11,
    "uint64": 12,
    "uint8": 16,
}
NAMES = {code: name for name, code in CODES.items()}


class UnfitError(ValueError):
    """Values that a sample format does not hold."""


def format_code(name: str | None) -> int | None:
    """Return the code of a sample format that the user names, `ArgumentError` if there is none."""
    if name is not None and name not in CODES:
        raise ArgumentError(f"format {name!r}: choose one of {', '.join(CODES)}")
    return None if name is None else CODES[name]


def check_format(name: str, scale: float | None) -> None:
    """Raise `SurveyError` for a sample format or scale that no volume can be written with.

    Parameters
    ----------
    name : str
        A key of `CODES`, or "same".
    scale : float, optional
    """
    if name not in ("same", *CODES):
        raise SurveyError(f"format {name!r}: choose same, {', '.join(CODES)}")
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise SurveyError(f"scale {scale:g}: must be a number above zero")
    if scale is not None and name != "same" and not is_integer(CODES[name]):
        raise SurveyError(
            f"scale is for the integer formats, and {name} is none; leave --scale out or choose "
            "such as --format int16"
        )


def stored_dtype(code: int) -> np.dtype:
    """Return the type in which a sample lies in the file, an IBM float as its 32-bit word."""
    return np.dtype({"ibm": "u4", "ieee": "f4"}.get(NAMES[code], NAMES[code]))


def is_integer(code: int) -> bool:
    """Whether the format holds whole numbers only."""
    return NAMES[code] not in ("ibm", "ieee", "float64")


def encode(values: np.ndarray, code: int, order: Order, scale: float | None = None) -> np.ndarray:
    """Convert samples to a SEG-Y sample format.

    Parameters
    ----------
    values : ndarray
        Real numbers.
    code : int
        Sample format.
    order : str
        Byte order, ">" or "<".
    scale : float, optional
        Multiply by this and round to whole numbers first.

    Returns
    -------
    ndarray
        Of `stored_dtype` in the byte order, to be written as it is.

    Raises
    ------
    UnfitError
        If anything but the rounding of a real number to a float were lost.
    """
    target = stored_dtype(code)
    if scale is not None:
        values = np.rint(values * np.float64(scale))
    if values.dtype == bool:
        values = values.view(np.uint8)
    if is_integer(code):
        check_integers(values, target)
        stored = values.astype(target)
    else:
        stored = as_float(values, np.dtype("f4") if code == CODES["ibm"] else target)
        if code == CODES["ibm"]:
            if not np.isfinite(stored).all():
                raise UnfitError("NaN or infinite samples")
            single, stored = stored, to_ibm(stored)
            if values.dtype.kind != "f" and not np.array_equal(decode(stored, code), single):
                raise UnfitError("whole numbers of more than 21 bits")
    return stored.astype(target.newbyteorder(order), copy=False)


def check_integers(values: np.ndarray, target: np.dtype) -> None:
    """Raise `UnfitError` unless an integer type holds all values as they are."""
    if values.dtype == target or values.size == 0:
        return
    low, high = values.min(), values.max()
    limits = np.iinfo(target)
    # Python compares whole numbers and floats exactly, whatever their types.
    if not (limits.min <= low.item() and high.item() <= limits.max):
        raise UnfitError(f"values from {low:.6g} to {high:.6g}")
    if values.dtype.kind == "f":
        broken = values != np.rint(values)
        if broken.any():
            raise UnfitError(f"fractions, such as {values[broken][0]:.6g}")


def as_float(values: np.ndarray, target: np.dtype) -> np.ndarray:
    """Convert to a float type, or raise `UnfitError` if more than rounding would be lost.

    A float may be rounded to a shorter one, but must not overflow; a whole number must stay itself.
    """
    if values.dtype == target:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.astype(target)
        if values.dtype.kind == "f":
            lost = np.isinf(stored) & np.isfinite(values)
        elif values.dtype == bool:
            return stored
        else:
            # 2^63 and 2^64 as floats have no counterpart to be compared with.
            bound = 2.0 ** (8 * values.dtype.itemsize - (values.dtype.kind == "i"))
            lost = (stored >= bound) | (stored.astype(values.dtype) != values)
    if lost.any():
        raise UnfitError(f"values such as {values[lost][0]}")
    return stored


def to_ibm(values: np.ndarray) -> np.ndarray:
    """Convert finite float32 to IBM single-precision words, rounding half away from zero.

    An IBM float is ±f·16^(e−64) with a fraction f of 24 bits in 1/16 ≤ f < 1 [1]_. A float32
    that came from a normalised IBM float goes back to the same word; others lose up to 3 bits.

    Parameters
    ----------
    values : ndarray of float32

    Returns
    -------
    ndarray of uint32

    References
    ----------
    .. [1] SEG-Y revision 2.1, appendix; IBM System/360 Principles of Operation, A22-6821.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    exponent = (bits >> 23) & 0xFF
    fraction = bits & 0x7FFFFF
    # A subnormal float32 has no hidden bit, and the exponent of the smallest normal one.
    np.bitwise_or(fraction, 0x800000, out=fraction, where=exponent > 0)
    np.maximum(exponent, 1, out=exponent)
    # value = fraction/2^24 · 2^(exponent−126); 16^(e−64) is the next power of 16 at or above.
    ibm_exponent = (exponent + 133) >> 2
    shift = 4 * ibm_exponent - 130 - exponent
    fraction += (np.uint32(1) << shift) >> 1
    fraction >>= shift
    words = (bits & 0x80000000) | (ibm_exponent << 24) | fraction
    np.copyto(words, bits & 0x80000000, where=fraction == 0)
    return words
