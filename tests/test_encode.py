"""Samples in the formats of SEG-Y: exact, nearest, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.survey.decode import decode
from outcrop.survey.encode import CODES, UnfitError, encode

# IBM words that come from normalised floats which float32 holds.
WORDS = st.builds(
    lambda sign, exponent, fraction: sign << 31 | exponent << 24 | fraction,
    st.integers(0, 1),
    st.integers(34, 95),
    st.integers(0x100000, 0xFFFFFF),
)


@given(st.lists(st.one_of(WORDS, st.sampled_from([0, 0x80000000])), min_size=1))
def test_ibm_round_trip(words: list[int]) -> None:
    stored = np.array(words, dtype=">u4")
    values = decode(stored, CODES["ibm"])
    assert encode(values, CODES["ibm"], ">").tobytes() == stored.tobytes()


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_ibm_is_the_nearest(value: float) -> None:
    word = int(encode(np.float32([value]), CODES["ibm"], ">")[0])
    sign, exponent, fraction = word >> 31, (word >> 24 & 0x7F) - 64, word & 0xFFFFFF
    written = (-1) ** sign * fraction / 2**24 * 16.0**exponent
    assert abs(written - value) <= 16.0**exponent / 2**25
    assert fraction >= 0x100000 or abs(value) < 1.2e-38


@given(
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from(["i8", "u8", "i4", "f8", "f4"]),
    st.sampled_from(sorted(CODES)),
)
def test_nothing_is_lost_silently(number: int, kind: str, name: str) -> None:
    """A format takes a whole number as it is, or refuses it."""
    if kind[0] != "f" and not np.iinfo(kind).min <= number <= np.iinfo(kind).max:
        return
    values = np.array([number], dtype=kind)
    try:
        stored = encode(values, CODES[name], "<")
    except UnfitError:
        return
    got = decode(stored, CODES[name])[0].item()
    if kind[0] == "f" and name in ("ibm", "ieee"):
        assert got == pytest.approx(values[0].item(), rel=2.0**-20)
    else:
        assert got == values[0].item()
