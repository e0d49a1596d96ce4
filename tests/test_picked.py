"""Indexing by regions gives what indexing along each dimension gives."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outcrop.graph.rules.picked import picked, runs

EXTENT = 7
POSITIONS = st.lists(st.integers(0, EXTENT - 1), min_size=1, max_size=9)
EVEN = st.builds(
    lambda a, n, step: np.clip(np.arange(a, a + n * step, step), 0, EXTENT - 1).tolist(),
    st.integers(0, 3),
    st.integers(1, 5),
    st.integers(1, 2),
)
TURNED = EVEN.map(lambda index: index[::-1])
SHAPE = (1, 3, EXTENT, EXTENT, EXTENT)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.integers(2, 4),
        POSITIONS
        | EVEN
        | TURNED
        | st.lists(EVEN).map(lambda parts: [0, *(i for part in parts for i in part)]),
    ),
    st.booleans(),
)
def test_regions_and_passes(index, last):
    x = torch.arange(3.0 * EXTENT**3).view(SHAPE)
    if last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    index = {dim: np.array(where) for dim, where in index.items()}
    expected = x
    for dim, where in index.items():
        expected = expected.index_select(dim, torch.from_numpy(where))
    assert torch.equal(picked(x, index), expected)
    for where in index.values():
        found = [run.start + run.step * i for run in runs(where) for i in range(run.length)]
        assert found == where.tolist()


def test_what_is_even_is_a_view():
    x = torch.zeros(SHAPE)
    assert (
        picked(x, {2: np.array([1, 3, 5]), 4: np.array([6])}).data_ptr()
        == x[..., 1:, :, 6].data_ptr()
    )
    assert len(runs(np.arange(-2, 102) % 100)) == 3
    assert runs(np.arange(200) // 2) is None
