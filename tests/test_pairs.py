"""Convolutions by pairs of points: what oneDNN gives point by point, wherever they are used."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import outcrop
from outcrop.graph.rules import kernels
from outcrop.graph.rules.kernels import convolve
from outcrop.graph.rules.pairs import apart, can_pair, in_pairs, kernel_of_pairs, pays_in_pairs

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
KERNELS = {2: nn.functional.conv2d, 3: nn.functional.conv3d}


def image(channels, *extents):
    return torch.randn(2, channels, *extents).to(memory_format=LAYOUTS[len(extents)])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([2, 3]),
    st.sampled_from([1, 2, 3, 16]),
    st.integers(1, 5),
    st.sampled_from([3, 5, 7]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(0, 2)),
    st.integers(0, 2**31),
)
def test_pairs_give_what_points_give(rank, taken, made, taps, pairs, other, how, seed):
    torch.manual_seed(seed)
    step, apart_by, padding = how
    extents = (*[7] * (rank - 1), taps - 1 + 2 * pairs)
    x = image(taken, *extents).double()
    weight = torch.randn(made, taken, *[other] * (rank - 1), taps, dtype=torch.float64)
    each = [(*[n] * (rank - 1), last) for n, last in ((step, 1), (padding, 0), (apart_by, 1))]
    assert can_pair(x)
    assert pays_in_pairs(x, weight, each[0], each[2])
    expected = KERNELS[rank](x, weight, None, *each)
    found = KERNELS[rank](in_pairs(x), kernel_of_pairs(weight), None, *each)
    found = found.contiguous(memory_format=LAYOUTS[rank])
    torch.testing.assert_close(apart(found), expected, rtol=1e-12, atol=1e-12)
    assert apart(found).data_ptr() == found.data_ptr()


def test_what_is_not_paired():
    x, weight = image(16, 6, 6, 10), torch.randn(4, 16, 3, 3, 3)
    ones, twos = (1, 1, 1), (1, 1, 2)
    assert pays_in_pairs(x, weight, ones, ones)
    assert not pays_in_pairs(x, weight, twos, ones)
    assert not pays_in_pairs(x, weight, ones, twos)
    assert not pays_in_pairs(x, weight[..., :2], ones, ones)
    assert not pays_in_pairs(x[..., :9], weight, ones, ones)  # an odd number of points
    assert not pays_in_pairs(x.contiguous(), weight, ones, ones)  # channels are not last
    assert not pays_in_pairs(image(12, 6, 6, 10), weight[:, :12], ones, ones)
    for value in (math.nan, math.inf, -math.inf):
        x[1, 3, 2, 2, 2] = value
        assert not pays_in_pairs(x, weight, ones, ones)


@pytest.fixture
def paired(monkeypatch):
    """As on a processor with AMX, whatever this one has; tells how often pairs were taken."""
    count = []
    monkeypatch.setattr(kernels, "AMX", True)
    monkeypatch.setattr(kernels, "kernel_of_pairs", lambda w: count.append(1) or kernel_of_pairs(w))
    return count


bfloat16 = pytest.mark.skipif(
    torch.bfloat16 not in kernels.HALVES, reason="oneDNN has no bfloat16 here"
)


@bfloat16
@pytest.mark.parametrize("taken", [1, 3, 16])
@pytest.mark.parametrize("onto", [None, "aside", "in place"])
@pytest.mark.parametrize(
    ("extents", "relu"), [((6, 7, 10), False), ((6, 7, 10), True), ((1, 1, 4), False)]
)
def test_kernels_by_pairs(taken, onto, extents, relu, paired):
    torch.manual_seed(0)
    padding = (1, 1, 0 if taken == 16 else 1)
    x, weight, bias = image(taken, *extents), torch.randn(5, taken, 3, 3, 3), torch.randn(5)
    expected = nn.functional.conv3d(
        x.bfloat16().float(), weight.bfloat16().float(), bias.bfloat16().float(), 1, padding
    )
    target = image(5, *expected.shape[2:]).bfloat16()
    kept = target.clone()
    if onto is not None:
        expected = expected + target.float()
    ones = (1, 1, 1)
    found = convolve(
        x.bfloat16(),
        weight.bfloat16(),
        bias.bfloat16(),
        ones,
        padding,
        ones,
        1,
        onto=None if onto is None else target,
        in_place=onto == "in place",
        relu=relu,
    )
    assert len(paired) == 1
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=5e-2)
    assert (found.data_ptr() == target.data_ptr()) == (onto == "in place")
    if onto != "in place":
        assert torch.equal(target, kept)


@bfloat16
@pytest.mark.parametrize("taken", [1, 2, 3, 16])
@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "cut", "expanded"])
def test_kernels_by_pairs_wherever_points_lie(taken, taps, layout, paired):
    """Of other orders of axes than one with channels last, pairs are taken where they can be."""
    torch.manual_seed(0)
    x = image(taken, 8, 9, 12).bfloat16()
    if layout == "contiguous":
        x = x.contiguous()
    if layout == "transposed":
        x = x.transpose(2, 3)
    if layout == "cut":
        x = x[..., 1:8, 2:8, 2:10]
    if layout == "expanded":
        x = x[:1, :, :1].expand(2, taken, 8, 9, 12)
    weight, ones, none = torch.randn(4, taken, taps, taps, taps), (1, 1, 1), (0, 0, 0)
    weight = (weight / (taken * taps**3) ** 0.5).bfloat16()
    found = convolve(x, weight, None, ones, none, ones, 1)
    expected = nn.functional.conv3d(x.float(), weight.float())
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    assert paired or layout == "contiguous"


@bfloat16
@pytest.mark.parametrize("taken", [1, 8, 16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["input", "onto", "bias"])
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_not_finite_is_as_point_by_point(taken, value, where, relu, paired):
    torch.manual_seed(0)
    x, onto, bias = image(taken, 8, 8, 8), image(4, 8, 8, 8), torch.randn(4)
    given = {"input": x[0, 0, 3], "onto": onto[0, 0, 3], "bias": bias}[where]
    given[2:4] = value
    weight, ones = torch.randn(4, taken, 3, 3, 3) * 8, (1, 1, 1)
    x, onto, bias, weight = (t.bfloat16() for t in (x, onto, bias, weight))
    expected = nn.functional.conv3d(x.float(), weight.float(), bias.float(), padding=1)
    expected = (expected + onto.float()).bfloat16()
    expected = expected.relu() if relu else expected
    found = convolve(x, weight, bias, ones, ones, ones, 1, onto=onto, relu=relu)
    assert not paired or where != "input"
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1, equal_nan=True)


@bfloat16
@pytest.mark.parametrize("taken", [8, 16])
def test_what_overflows_is_not_a_number_after_a_relu_either(taken, paired):
    x, weight = image(taken, 8, 8, 8).bfloat16(), torch.ones(4, taken, 3, 3, 3).bfloat16()
    x[0, :2, 3] = torch.tensor([3e38, -3e38])[:, None, None]
    weight *= 8
    how = ((0, 0, 0), (1, 1, 1), (1, 1, 1), 1)
    expected = torch.ops.mkldnn._convolution_pointwise(x, weight, None, *how, "none", [], "")
    if not expected.isnan().any():
        pytest.skip("without AMX the kernel gives infinities")
    found = convolve(x, weight, None, *how[1::-1], *how[2:], relu=True)
    torch.testing.assert_close(found, expected.relu(), equal_nan=True)


@bfloat16
def test_a_trace_takes_no_pairs(paired):
    x, weight = image(1, 8, 8, 8).bfloat16(), torch.randn(4, 1, 3, 3, 3).bfloat16()
    ones, none = (1, 1, 1), (0, 0, 0)
    traced = make_fx(lambda a: convolve(a, weight, None, ones, none, ones, 1))(x)
    assert not paired
    torch.testing.assert_close(
        traced(x), convolve(x, weight, None, ones, none, ones, 1), rtol=2e-2, atol=2e-2
    )
    assert paired


@bfloat16
def test_tiles_by_pairs_give_the_volume(paired):
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Conv3d(16, 1, 3, padding=1)).eval()
    x = torch.randn(1, 1, 20, 22, 24)
    with torch.no_grad():
        found = outcrop.whole_volume(model, x, precision="bfloat16", tile=(8, 8, 8))
        assert len(paired) > 27
        torch.testing.assert_close(found, model(x), rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("onto", [False, True])
def test_halves_that_the_processor_does_not_convolve(kind, onto, monkeypatch):
    """They are convolved in single precision, a few rows at once, and rounded once."""
    torch.manual_seed(0)
    monkeypatch.setattr(kernels, "HALVES", frozenset())
    monkeypatch.setattr(kernels, "COLUMNS", 4 * 3 * 16 * 9 * 10)
    x, weight, bias = image(16, 11, 9, 10), torch.randn(5, 16, 3, 3, 3), torch.randn(5)
    x, weight, bias = (each.to(kind) for each in (x, weight, bias))
    target = image(5, 6, 9, 10).to(kind)
    expected = nn.functional.conv3d(x.float(), weight.float(), bias.float(), (2, 1, 1), 1)
    if onto:
        expected = expected + target.float()
    ones = (1, 1, 1)
    found = convolve(
        x, weight, bias, (2, 1, 1), ones, ones, 1, onto=target if onto else None, relu=True
    )
    assert found.dtype == kind
    rough = 2 * torch.finfo(kind).eps
    torch.testing.assert_close(found.float(), expected.relu(), rtol=rough, atol=rough)
