"""Tiles at the edge of the volume: evaluated by the very calls that serve those in the middle."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from outcrop import whole_volume
from outcrop.engine.tile import StageRunner
from outcrop.graph import Box, capture
from outcrop.graph.endless import endless, open_axes
from outcrop.models.faultseg3d import FaultSeg3d


class Recorder(TorchDispatchMode):
    """Writes down what is called with tensors of which shapes."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = tuple(tuple(a.shape) for a in args if isinstance(a, torch.Tensor))
        if any(name in str(func) for name in ("conv3d", "pool", "relu", "cat")):
            self.calls.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def calls(monkeypatch):
    """What each tile calls, by stage, of those that can be put on a grid without edges."""
    found = {}
    evaluate = StageRunner._evaluate

    def recorded(self, tile, inputs, results):
        with Recorder() as record:
            evaluate(self, tile, inputs, results)
        if self._frame(tile).anywhere is not None:
            found.setdefault(self.stage, []).append(tuple(record.calls))

    monkeypatch.setattr(StageRunner, "_evaluate", recorded)
    return found


def test_all_tiles_make_the_same_calls(calls):
    network = FaultSeg3d().double().eval()
    x = torch.randn(1, 1, 160, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
    found = whole_volume(network, x, tile=(16, 8, 8), storage_mode="device")
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()
    several = [tiles for tiles in calls.values() if len(tiles) >= 9]
    assert len(several) >= 2
    for tiles in several:
        assert tiles[0]
        assert len(set(tiles)) == 1


class Column(nn.Module):
    """Layers that do no more at the edges than to pad by a constant, drawn at random."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = recipe
        make = {
            "dilated": lambda a, b: nn.Conv2d(3, 3, 3, padding=a, dilation=a),
            "shrinking": lambda a, b: nn.Conv2d(3, 3, (1 + a, 1)),
            "growing": lambda a, b: nn.Conv2d(3, 3, 3, padding=2),
            "turned": lambda a, b: nn.Sequential(
                nn.Conv2d(3, 3, 2, 2), nn.ConvTranspose2d(3, 3, b + 1, 2, padding=b // 2)
            ),
            "strided": lambda a, b: nn.Conv2d(3, 3, 3, 2, padding=1),
        }
        self.layers = nn.ModuleList(
            make.get(kind, lambda a, b: nn.Conv2d(3, 3, 3, padding=1))(a, b)
            for kind, a, b in recipe
        )

    def forward(self, x):
        for (kind, a, b), layer in zip(self.recipe, self.layers, strict=True):
            if kind == "pooled":
                # -1 + the smallest value: what lies beyond must count as lower still.
                x = layer(F.max_pool2d(x - 10, 3, a, padding=1, ceil_mode=b > 1))
            elif kind == "averaged":
                x = layer(F.avg_pool2d(x, 2, ceil_mode=False))
            elif kind == "raised":
                x = F.interpolate(layer(x) + 1, scale_factor=2.0, mode="nearest")
            else:
                x = torch.sigmoid(layer(x)) + 0.5
        return x


kinds = ("dilated", "shrinking", "growing", "turned", "strided", "pooled", "averaged", "raised")
recipes = st.lists(
    st.tuples(st.sampled_from(kinds), st.integers(1, 2), st.integers(1, 3)), min_size=1, max_size=5
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes, st.integers(150, 260), st.integers(5, 9), st.integers(3, 40), st.integers(0, 2**31))
def test_random_columns(recipe, long, wide, tile, seed):
    torch.manual_seed(seed)
    network = Column(recipe).double().eval()
    x = torch.randn(1, 3, long, 16 * wide, dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
    found = whole_volume(network, x, tile=(tile, 8 * wide), storage_mode="none")
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_columns_are_evaluated_without_edges():
    """Else the test above would show nothing."""
    for kind in kinds:
        network = Column([(kind, 2, 2), (kind, 1, 1)]).double().eval()
        graph, _ = capture(network, [torch.zeros(1, 3, 240, 80, dtype=torch.float64)])
        domain, kept = Box.whole(graph.grid(graph.outputs[0])), graph.outputs
        how = (graph, tuple(graph.nodes), kept, domain, (16, 80))
        assert 0 in open_axes(*how), kind
        assert endless(*how, {}) is not None, kind
