"""Stages compiled by torch.compile: the same volume, at its edges too."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor import config as inductor

import outcrop
from outcrop.engine import compiled

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)


@pytest.fixture
def made(monkeypatch):
    """How many tiles each compiled function served."""
    found = {}
    monkeypatch.setattr(compiled, "REPEATS", 1)
    call = compiled.Compiled.call

    def counted(self, key, function, values):
        result = call(self, key, function, values)
        assert key in self.made
        found[id(self), key] = found.get((id(self), key), 0) + 1
        return result

    monkeypatch.setattr(compiled.Compiled, "call", counted)
    return found


def check(network, shape, tile, made):
    torch.manual_seed(0)
    x = torch.randn(1, 1, *shape)
    with torch.no_grad():
        expected = network(x)
    found = outcrop.whole_volume(network, x, tile=tile, storage_mode="none", compile=True)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert made
    assert sum(made.values()) > len(made)


def test_a_network_without_edges(made):
    """Tiles at an edge differ by what lies beyond it alone."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 5, padding=2))
    check(network.eval(), (80, 40), (10, 40), made)


def test_a_network_whose_edges_are_looked_at(made):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
        nn.InstanceNorm2d(4),
        nn.Upsample(scale_factor=1.5, mode="bilinear"),
        nn.Conv2d(4, 1, 3, padding=1),
    )
    check(network.eval(), (64, 16), (16, 24), made)


class Small(nn.Module):
    """FaultSeg3d in little."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 8, 3, padding=1)
        self.three = nn.Conv3d(12, 1, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.one(x))
        down = F.relu(self.two(F.max_pool3d(x, 2)))
        return self.three(torch.cat((x, F.interpolate(down, scale_factor=2.0)), 1)).sigmoid()


def test_two_resolutions(made):
    torch.manual_seed(0)
    check(Small().eval(), (96, 8, 8), (8, 8, 8), made)


def test_few_channels_in_half_precision(made, recwarn):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid()).bfloat16().eval()
    x = torch.randn(1, 1, 40, 24, dtype=torch.bfloat16)
    found = outcrop.whole_volume(network, x, tile=(8, 24), compile=True)
    assert made
    assert not [w for w in recwarn if "torch.compile fails" in str(w.message)]
    with torch.no_grad():
        assert (found - network(x)).abs().max() <= 2**-7


def test_what_the_compiler_cannot_do_is_done_without(monkeypatch):
    monkeypatch.setattr(compiled, "REPEATS", 1)
    network = nn.Sequential(nn.Conv2d(1, 7, 3, padding=1), nn.Tanh()).eval()
    x = torch.randn(1, 1, 40, 26)
    expected = outcrop.whole_volume(network, x, tile=(8, 26))

    def refusing(graph):
        raise NotImplementedError("no such operator")

    config = {"post_grad_custom_pre_pass": refusing, "force_disable_caches": True}
    with inductor.patch(config), pytest.warns(UserWarning, match="torch.compile fails") as told:
        found = outcrop.whole_volume(network, x, tile=(8, 26), compile=True)
    assert torch.equal(found, expected)
    assert len([w for w in told if "torch.compile" in str(w.message)]) == 1
