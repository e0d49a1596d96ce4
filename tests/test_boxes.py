"""The algebra of boxes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from outcrop.graph import Box, tiles
from outcrop.graph.boxes import Lattice, count_tiles

ranges = st.tuples(st.integers(-20, 20), st.integers(0, 20)).map(lambda r: (r[0], r[0] + r[1]))


@st.composite
def boxes(draw, rank=3):
    axes = draw(st.lists(ranges, min_size=rank, max_size=rank))
    return Box(tuple(a for a, _ in axes), tuple(b for _, b in axes))


@given(boxes(), boxes())
def test_hull_holds_both_and_no_smaller_box_does(a, b):
    hull = a | b
    assert a in hull
    assert b in hull
    for axis in range(3):
        assert hull.start[axis] in (a.start[axis], b.start[axis])
        assert hull.stop[axis] in (a.stop[axis], b.stop[axis])


@given(boxes(), boxes())
def test_intersection_is_what_both_have(a, b):
    def points(box):
        return set(np.ndindex(*box.shape)) if min(box.shape) > 0 else set()

    def at(box):
        return {tuple(np.add(p, box.start)) for p in points(box)}

    small = Box.whole((6, 6, 6))
    a, b = a & small, b & small
    assert at(a & b) == at(a) & at(b)


@given(boxes(), st.sets(st.integers(0, 2)), st.tuples(*[st.integers(1, 20)] * 3))
def test_spanning_is_all_of_some_axes_and_the_same_of_others(a, axes, grid):
    found, whole = a.spanning(axes, grid), Box.whole(grid)
    for axis in range(3):
        like = whole if axis in axes else a
        assert found.start[axis] == like.start[axis]
        assert found.stop[axis] == like.stop[axis]


@given(boxes(), st.tuples(*[st.integers(-9, 9)] * 3))
def test_shift_and_within_undo_each_other(a, by):
    assert a.shifted(by).shape == a.shape
    assert a.within(Box(by, by)).shifted(by) == a


@given(
    st.tuples(*[st.integers(1, 17)] * 3),
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.integers(-3, 3)] * 3),
)
def test_tiles_cover_each_point_once(shape, tile, origin):
    domain = Box.whole(shape).shifted(origin)
    seen = np.zeros(shape, int)
    cut = list(tiles(domain, tile))
    for box in cut:
        assert box in domain
        assert all(n <= t for n, t in zip(box.shape, tile, strict=True))
        seen[box.within(domain).slices] += 1
    assert (seen == 1).all()
    assert len(cut) == count_tiles(domain, tile)


def test_what_lies_in_padding_alone_touches_no_tile():
    assert list(Lattice(Box((0,), (13,)), (13,)).touching(Box((15,), (15,)))) == []
