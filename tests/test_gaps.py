"""What networks see where there is no trace."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from outcrop.gaps import REACH, near_traces, neighbours
from outlines import filled


@given(
    live=st.lists(st.integers(1, 25), min_size=1, max_size=2).flatmap(lambda n: arrays(bool, n)),
    data=st.data(),
)
def test_the_nearest_trace_whatever_the_region(live, data):
    """One line of them too, as networks of sections see."""
    live.flat[data.draw(st.integers(0, live.size - 1))] = True
    expected = filled(np.where(live, np.arange(live.size).reshape(live.shape), -1), live)
    region = []
    for n in live.shape:
        start = data.draw(st.integers(0, n - 1))
        region.append(slice(start, data.draw(st.integers(start + 1, n))))
    found = np.where(live, np.arange(live.size).reshape(live.shape), -1)
    missing, nearest = neighbours(live, region)
    found[missing] = found[nearest]
    np.testing.assert_array_equal(found[tuple(region)], expected[tuple(region)])
    from_end = [slice(s.start - n, s.stop) for s, n in zip(region, live.shape, strict=True)]
    for same in (region, from_end):
        np.testing.assert_array_equal(near_traces(live, same), expected[tuple(region)] >= 0)


@pytest.mark.parametrize("far", [REACH, REACH + 1])
def test_no_farther_than_it_reaches(far):
    live = np.zeros((1, far + 1), bool)
    live[0, 0] = True
    missing, nearest = neighbours(live, [slice(0, 1), slice(far, far + 1)])
    assert [at.tolist() for at in (*missing, *nearest)] == (
        [[0], [far], [0], [0]] if far == REACH else [[]] * 4
    )
