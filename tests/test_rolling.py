"""Tensors on disk of which a few layers of tiles are kept: exact, and no more than is wanted."""

import contextlib
import math
import os
from dataclasses import replace

import dask.array
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import outcrop
from outcrop import OutcropError, whole_volume
from outcrop.engine.labelled import frame
from outcrop.engine.planning import captured
from outcrop.errors import ResumeError
from outcrop.events import Tile
from outcrop.graph import RULES, Box, Reduce, capture
from outcrop.graph.boxes import Lattice, tiles
from outcrop.models.faultseg3d import FaultSeg3d
from outcrop.planner import Plan, format_bytes, make_plan, planner, rolling
from outcrop.planner.draft import Task
from outcrop.planner.rates import _CPU
from random_plans import draw_plan
from test_exact import assert_exact, network_of, recipes
from test_predict import make_survey


def rolled(plan, graph, axis=0):
    """The plan with as many changes from stage to stage as there can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rolling, "_TILES", 1)
        return rolling._along(axis, plan, graph)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.data(),
    st.sampled_from([2, 3]),
    recipes,
    st.permutations([20, 6, 5]),
    st.integers(0, 2**31),
)
def test_random_networks_and_plans(data, rank, recipe, shape, seed):
    network, x, expected = network_of(rank, recipe, shape, seed)
    graph, _ = capture(network, [x])
    drawn = draw_plan(graph, data)
    places = {
        name: "global" if isinstance(RULES[graph.nodes[name].op], Reduce) else "disk"
        for name in drawn.places
    }
    plan = rolled(replace(drawn, places=places), graph, data.draw(st.integers(0, rank - 1)))
    ran = [(step.stage, n) for step in plan.order for n, _ in plan.tiles(step)]
    every = [(i, n) for i, stage in enumerate(plan.stages) for n in range(stage.count)]
    assert sorted(ran) == every
    assert plan == Plan.from_dict(plan.to_dict())
    assert_exact(whole_volume(network, x, plan=plan), expected)


def planned(inlines):
    """A network, an input of so many inlines, its graph and a plan."""
    torch.manual_seed(0)
    network = FaultSeg3d().double().eval()
    x = torch.randn(1, 1, inlines, 16, 16, dtype=torch.float64)
    graph, _ = capture(network, [x])
    how = {"memory": 10**9, "storage_mode": "disk", "dtype": "float64", "tile": (8, 8, 8)}
    return network, x, graph, make_plan(graph, **how)


def test_what_lies_on_disk_does_not_grow_with_the_survey():
    plans = [planned(inlines)[-1] for inlines in (320, 960)]
    assert plans[0].layers.keys() == set(plans[0].places)
    assert plans[0].layers == plans[1].layers
    assert plans[0].disk_bytes == plans[1].disk_bytes < 0.2 * sum(plans[1].stored_bytes.values())
    assert f"{format_bytes(plans[0].disk_bytes)} at once" in str(plans[0])


def test_of_two_plans_as_fast_the_one_with_less_on_disk(monkeypatch):
    monkeypatch.setattr(planner, "rates", lambda device, dtype: _CPU)
    graph, _ = capture(FaultSeg3d().eval(), [torch.zeros(1).expand(1, 1, 3000, 1024, 512)])
    auto, disk = (
        make_plan(graph, memory=4 * 10**9, holds_output=False, storage_mode=mode)
        for mode in ("auto", "disk")
    )
    assert auto.disk_bytes == disk.disk_bytes


@pytest.fixture(scope="module")
def long():
    network, x, graph, plan = planned(192)
    return network, x, rolled(plan, graph)


@pytest.mark.parametrize("which", range(3))
def test_one_layer_less_would_not_do(which, long):
    network, x, plan = long
    name = sorted(plan.layers)[which]
    fewer = replace(plan, layers={**plan.layers, name: plan.layers[name] - 1})
    with pytest.raises(AssertionError, match=r"is read where layer .* lies"):
        whole_volume(network, x, plan=fewer)


@pytest.mark.parametrize("gone", [False, True])
def test_resumed_also_without_a_tensor(gone, monkeypatch, tmp_path):
    """What was written over comes back too, where a tensor has to be computed again."""
    monkeypatch.setattr(rolling, "_TILES", 1)
    monkeypatch.setattr(rolling, "_WORTH", math.inf)
    network, survey, path = FaultSeg3d().eval(), make_survey((96, 24, 16)), tmp_path / "o.zarr"
    how = {"tile": (8, 8, 8), "storage_mode": "disk"}
    calm = outcrop.predict(network, survey, tmp_path / "calm.zarr", **how).load()
    heard = []

    def stop(event):
        heard.append(event)
        if len(heard) == 120:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        outcrop.predict(network, survey, path, listeners=[stop], **how)
    stored = sorted((path / "unfinished" / "stored").iterdir())
    if gone:
        os.truncate(stored[0], 1)
    begun = []
    with pytest.warns(UserWarning, match="evaluated again") if gone else contextlib.nullcontext():
        found = outcrop.predict(network, survey, path, listeners=[begun.append], **how)
    assert (begun[0].finished < 60) if gone else (begun[0].finished > 110)
    xr.testing.assert_identical(found.load().drop_attrs(), calm.drop_attrs())


def test_a_disk_that_is_too_small_is_said_before_anything_is_read(tmp_path):
    def read(block):
        pytest.fail("the survey is read")

    sizes = {"inline": 60_000, "crossline": 60_000, "twt": 3_000}
    samples = dask.array.zeros(tuple(sizes.values()), chunks=1000, dtype="f4").map_blocks(
        read, dtype="f4", meta=np.empty(0, "f4")
    )
    coords = {name: np.arange(n) for name, n in sizes.items()}
    survey = xr.Dataset({"amplitude": (tuple(sizes), samples)}, coords)
    with pytest.raises(OutcropError, match=r"no space left: .* take .* GB at once and .* are free"):
        outcrop.predict(FaultSeg3d().eval(), survey, tmp_path / "o.zarr", storage_mode="disk")
    assert not list(tmp_path.iterdir())


class Chain(torch.nn.Module):
    """Convolutions one after the other, and a global value of what goes in."""

    def __init__(self):
        super().__init__()
        ends = (1, 2), (2, 2), (2, 2), (2, 2), (2, 1)
        self.layers = torch.nn.ModuleList(torch.nn.Conv3d(*e, 3, padding=1) for e in ends)

    def forward(self, x):
        x = x - x.mean()
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@pytest.fixture(scope="module")
def chain():
    """A network, a survey and a plan that stores every tensor."""
    torch.manual_seed(0)
    network, survey = Chain().eval(), make_survey((8, 8, 36))
    graph, _ = captured(network, frame(network, survey, None, None))
    task = Task(
        graph, graph.outputs, 10**9, "float32", None, (8, 8, 8), False, 4, "cpu", None, False
    )
    search = planner._Planner(task, "disk")
    every = {n for n, node in graph.nodes.items() if node.op == "tanh"} | search.fixed
    plan = planner._finished(search.draft(dict.fromkeys(search._kept(every), "disk")))
    assert len(plan.stages) == 6
    return network, survey, plan, rolled(plan, graph)


def stopped(network, survey, path, plan, after):
    """Begin a prediction, and stop it after so many tiles."""
    heard = []

    def stop(event):
        heard.append(isinstance(event, Tile))
        if sum(heard) == after:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        outcrop.predict(network, survey, path, plan=plan, listeners=[stop])


@pytest.mark.parametrize("rolls", [False, True])
def test_resumed_where_some_stages_are_whole(rolls, chain, tmp_path):
    network, survey, *plans = chain
    plan = plans[rolls]
    calm = outcrop.predict(network, survey, tmp_path / "calm.zarr", plan=plan).load()
    for after in (17, 28):
        path, begun = tmp_path / f"{after}.zarr", []
        stopped(network, survey, path, plan, after)
        found = outcrop.predict(network, survey, path, plan=plan, listeners=[begun.append]).load()
        assert begun[0].finished == after
        xr.testing.assert_identical(found.drop_attrs(), calm.drop_attrs())


def test_global_values_come_back_with_what_was_written_over(chain, tmp_path):
    network, survey, _, plan = chain
    calm = outcrop.predict(network, survey, tmp_path / "calm.zarr", plan=plan).load()
    path = tmp_path / "o.zarr"
    stopped(network, survey, path, plan, 2 + plan.used()["mean"][1])
    folder = path / "unfinished" / "stored"
    assert not (folder / "mean").exists()  # all that read it are done
    assert sum(path.stat().st_size for path in folder.iterdir()) == plan.disk_bytes
    os.truncate(folder / plan.stages[2].outputs[0], 1)
    with pytest.warns(UserWarning, match="evaluated again"):
        found = outcrop.predict(network, survey, path, plan=plan).load()
    xr.testing.assert_identical(found.drop_attrs(), calm.drop_attrs())


def test_object_stores_hold_all(monkeypatch):
    monkeypatch.setattr(rolling, "_TILES", 1)
    monkeypatch.setattr(rolling, "_WORTH", math.inf)
    network, survey = FaultSeg3d().eval(), make_survey((96, 24, 16))
    how = {"storage_mode": "disk", "tile": (8, 8, 8)}
    found = [outcrop.plan(network, survey, storage_path=p, **how) for p in (None, "s3://bucket/a")]
    assert [bool(plan.layers) for plan in found] == [True, False]
    assert found[1].disk_bytes > found[0].disk_bytes


def test_another_order_is_another_plan(chain, tmp_path):
    """Layers lie elsewhere in the files, which may be as large."""
    network, survey, plain, plan = chain
    assert plan.digest() == Plan.from_dict(plan.to_dict()).digest() != plain.digest()
    stopped(network, survey, tmp_path / "o.zarr", plan, 8)
    other = replace(plan, axis=1 - plan.axis)
    with pytest.raises(ResumeError, match="plan_sha256"):
        outcrop.predict(network, survey, tmp_path / "o.zarr", plan=other)


def test_layers_of_tiles():
    domain, tile = Box((2, 0, 5), (13, 4, 9)), (3, 4, 2)
    lattice, every = Lattice(domain, tile), list(enumerate(tiles(domain, tile)))
    assert lattice.counts == (4, 1, 2)
    assert list(lattice.layers(0, 0, 4)) == every
    assert list(lattice.layers(0, 1, 3)) == every[2:6]
    assert list(lattice.layers(2, 1, 2)) == every[1::2]
