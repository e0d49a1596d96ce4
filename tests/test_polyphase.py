"""Convolutions of upsampled tensors, on the coarse grid: the same volume, fewer operations."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from outcrop import whole_volume
from outcrop.graph import RULES, capture
from outcrop.models.faultseg3d import FaultSeg3d


def operations(graph):
    return sum(
        RULES[node.op].operations(node, graph) * graph.whole(name).size
        for name, node in graph.nodes.items()
    )


class Joined(nn.Module):
    """A convolution of what was upsampled by several factors, beside what was not, in any order."""

    def __init__(self, parts, kernel, padding, bias):
        super().__init__()
        self.parts, width = parts, sum(range(1, len(parts) + 1))
        self.convolution = nn.Conv2d(width, 3, kernel, padding=padding, bias=bias)

    def forward(self, x):
        size = x.shape[2:]
        parts = []
        for i, factors in enumerate(self.parts, start=1):
            part = x[:, :1].repeat(1, i, 1, 1) * i + 1
            if factors != (1, 1):
                part = F.avg_pool2d(part, factors, factors)
                part = F.interpolate(part, scale_factor=tuple(map(float, factors)), mode="nearest")
            parts.append(part[:, :, : size[0], : size[1]])
        return F.relu(self.convolution(torch.cat(parts, 1) if len(parts) > 1 else parts[0]))


factors = st.sampled_from([(1, 1), (2, 2), (3, 2), (1, 3), (4, 4)])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(factors, min_size=1, max_size=3),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.data(),
    st.booleans(),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 15), st.integers(1, 15)),
    st.integers(0, 2**31),
)
def test_random_factors_and_kernels(parts, kernel, data, bias, size, tile, seed):
    torch.manual_seed(seed)
    padding = tuple(data.draw(st.integers(0, k + 1)) for k in kernel)
    network = Joined(parts, kernel, padding, bias).double().eval()
    x = torch.randn(1, 1, 12 * size[0], 12 * size[1], dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
    found = whole_volume(
        network, x, tile=tile, storage_mode=data.draw(st.sampled_from(["none", "device"]))
    )
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max().clamp(min=1e-9)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_rounding_is_that_of_the_network_itself(name):
    torch.manual_seed(0)
    dtype = getattr(torch, name)
    network, x = FaultSeg3d().eval(), torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        exact = network.double()(x.double())
        own = network.to(dtype)(x.to(dtype)).double()
    found = whole_volume(network.to(dtype), x.to(dtype), tile=(16, 16, 32)).double()
    assert (found - exact).abs().max() <= 2 * (own - exact).abs().max()


def test_a_decoder_takes_half_the_operations():
    network = FaultSeg3d().eval()
    graph, weights = capture(network, [torch.zeros(1).expand(1, 1, 64, 64, 64)])
    assert sum(node.op == "upsampled_conv3d" for node in graph.nodes.values()) == 3
    assert not any(node.op in ("cat", "upsample_nearest3d") for node in graph.nodes.values())
    assert graph.weights == {name: tuple(value.shape) for name, value in weights.items()}
    # Of 130 thousand a voxel, of which the decoder's first convolutions are 72.
    voxels = 64**3
    assert 90e3 * voxels < operations(graph) < 100e3 * voxels


class Shared(nn.Module):
    """What was upsampled, and the concatenation, are used otherwise too."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.three = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        up = F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0)
        both = torch.cat((up, x), 1)
        return self.one(both) + self.two(both) + self.three(up) * up


def test_what_is_used_otherwise_too_is_kept():
    torch.manual_seed(0)
    network = Shared().double().eval()
    x = torch.randn(1, 1, 24, 20, dtype=torch.float64)
    graph, _ = capture(network, [x])
    assert [node.op for node in graph.nodes.values()].count("upsampled_conv2d") == 1
    with torch.no_grad():
        expected = network(x)
    assert (whole_volume(network, x, tile=(7, 6)) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("scale", [1.1, 2.0, 2.1, 2.9, 3.0, 3.1])
def test_a_factor_that_is_not_whole_takes_the_points_that_torch_takes(scale, rank):
    """5 points by 2.1 are 10, and by 3.1 are 15, but not always each the same number of times."""

    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            convolution = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
            self.convolution = convolution(1, 2, 3, padding=1)

        def forward(self, x):
            return self.convolution(F.interpolate(x, scale_factor=scale, mode="nearest"))

    network = Up().double().eval()
    x = torch.randn(1, 1, *(5, 17, 6)[:rank], dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
    found = whole_volume(network, x, tile=(4, 4, 5)[:rank])
    assert (found - expected).abs().max() < 1e-12
