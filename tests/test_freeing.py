"""Memory given back while a stage runs: exact, as much as is promised, and never the caller's."""

import itertools
import math
import mmap
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from outcrop import pages, whole_volume
from outcrop.engine import freeing, local, memory
from outcrop.engine import whole as whole_module
from outcrop.engine.freeing import Freeing
from outcrop.engine.memory import resident
from outcrop.engine.stores import MemoryStore, channels_last
from outcrop.graph import capture
from outcrop.planner import freed, make_plan
from outcrop.planner.cost import Costs, part
from outcrop.planner.rates import _CPU
from outcrop.planner.rolling import Advance
from outcrop.view import plans
from random_plans import draw_plan
from test_exact import assert_exact, network_of, recipes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems keep pages")


def fine(patch):
    """Let the smallest tensors be freed, page by page."""
    patch.setattr(memory, "LARGE", 1)
    patch.setattr(freeing, "LARGE", 1)
    patch.setattr(pages, "HUGE", mmap.PAGESIZE)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.data(),
    st.sampled_from([2, 3]),
    recipes,
    st.permutations([24, 9, 7]),
    st.integers(0, 2**31),
)
def test_random_networks_and_plans(data, rank, recipe, shape, seed):
    """Nothing that is read later is given back, or written over; no more is kept than predicted."""
    network, x, expected = network_of(rank, recipe, shape, seed)
    known = capture(network, [x])
    with pytest.MonkeyPatch.context() as patch:
        fine(patch)
        patch.setattr(freed, "HUGE", 0)
        patch.setattr(whole_module, "capture", lambda *_: known)
        tile = tuple(data.draw(st.integers(-(-n // 6), n)) for n in shape[:rank])
        kept = make_plan(known[0], memory=10**10, storage_mode="device", tile=tile, dtype="float64")
        for plan in (kept, draw_plan(known[0], data)):
            for room in (-1, 10**10):  # all is given back, or all is used again
                patch.setattr(local, "room_left", lambda *_, room=room: room)
                assert_exact(whole_volume(network, x, plan=plan), expected)
            check_promise(known[0], plan)


def check_promise(graph, plan):
    costs = Costs(graph, _CPU, 8)
    used = plan.used()
    for i, stage in enumerate(plan.stages):
        stored = {n for n, place in plan.places.items() if place == "device"}
        spent = {n: costs.bytes(n) for n in stage.inputs if n in stored and used[n][1] == i}
        made = {n: costs.bytes(n) for n in stage.outputs if n in stored}
        own = part(graph, stage.outputs, stage.reduces, stored - {*stage.outputs})
        if own.nodes != stage.nodes or set(own.inputs) != {*stage.inputs}:
            continue  # drawn at random, and no stage of a planner's
        cost = costs.cost(own, stage.domain, stage.tile)
        promised = freed.Freed(costs).bytes(own, stage.domain, cost, spent, made)
        advance = Advance(graph, stage, 0, spent)
        held = []
        for layer in range(advance.count):
            advance.done = layer
            written = min(1.0, (layer + 1) * stage.tile[0] / stage.domain.shape[0])
            left = {n: 1 - advance.begins(n) / graph.grid(n)[0] for n in spent}
            held.append(written * sum(made.values()) + sum(spent[n] * left[n] for n in spent))
        assert max(held) <= sum(made.values()) + sum(spent.values()) - promised + 1


def test_memory_is_given_back_and_the_rest_stays():
    store = MemoryStore(channels_last((2, 8, 64, 128, 128), 3, torch.float32, "cpu"))
    store.tensor.copy_(torch.arange(64.0).view(64, 1, 1).expand_as(store.tensor))
    before = resident()
    store.forget(2, 48)
    gone = before - resident()
    assert 0.65 * store.tensor.nbytes < gone < 0.76 * store.tensor.nbytes
    assert (store.tensor[0, 0, 48:, 0, 0] == torch.arange(48.0, 64)).all()
    assert (store.tensor[1, 7, 48:, 5, 9] == torch.arange(48.0, 64)).all()


def test_what_the_caller_holds_stays(monkeypatch):
    """Also where it lies in such pages, as a result of an earlier call does."""
    fine(monkeypatch)
    looked_at = []
    given_back = Freeing.after
    monkeypatch.setattr(
        Freeing, "after", lambda self, n: (looked_at.extend(self.stores), given_back(self, n))
    )
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Conv3d(4, 1, 3, padding=1)
    ).eval()
    x = whole_volume(network, torch.randn(1, 1, 24, 24, 24), tile=(8, 8, 8))
    copy, expected = x.clone(), network(x).detach()
    y = whole_volume(network, x, tile=(8, 8, 8), storage_mode="device")
    assert looked_at  # something was given back
    assert (x == copy).all()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)


class Chain(nn.Module):
    """Convolutions with a norm after each, all at full resolution."""

    def __init__(self, depth):
        super().__init__()
        widths = [1, *[8] * depth]
        self.steps = nn.Sequential(
            *(
                nn.Sequential(nn.Conv3d(a, b, 3, padding=1), nn.InstanceNorm3d(b), nn.ReLU())
                for a, b in itertools.pairwise(widths)
            ),
            nn.Conv3d(8, 1, 1),
        )

    def forward(self, x):
        return self.steps(x)


def test_pages_are_used_again_where_there_is_room_for_all(monkeypatch):
    fine(monkeypatch)
    taken = []
    reused = pages._reused
    monkeypatch.setattr(pages, "_reused", lambda n: (taken.append(reused(n)), taken[-1])[1])
    network, x = Chain(6).double().eval(), torch.randn(1, 1, 24, 24, 24, dtype=torch.float64)
    graph, _ = capture(network, [x])
    how = {"storage_mode": "device", "dtype": "float64", "tile": (8, 8, 8)}
    ample = make_plan(graph, memory=10**10, **how)
    more = replace(ample, peak_memory=10**10)
    for plan, least, most in ((ample, 0, 1), (more, 3, 6)):
        taken.clear()
        assert_exact(whole_volume(network, x, plan=plan), network(x))
        assert least <= sum(memory is not None for memory in taken) <= most


def test_one_tensor_takes_the_room_of_the_one_before():
    """In less than two of them take, as many are kept as where there is room for all."""
    shape = 1, 1, 192, 128, 128
    graph, _ = capture(Chain(6).eval(), [torch.zeros(1).expand(shape)])
    one = 8 * 4 * math.prod(shape)
    ample = make_plan(graph, memory=10**10, storage_mode="device")
    tight = make_plan(graph, memory=2 * one, storage_mode="device")
    assert sum(n == one for n in ample.stored_bytes.values()) > 2
    assert tight.places == ample.places
    assert tight.operations < 1.25 * ample.operations
    memory_axes = plans.draw_plan(tight).axes[1]  # nothing is drawn above what is promised
    assert max(bar.get_y() + bar.get_height() for bar in memory_axes.patches) <= tight.peak_memory
