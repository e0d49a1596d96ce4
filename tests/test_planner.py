"""Plans: what fits, what does not, and what they promise."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from outcrop import whole_volume
from outcrop.errors import ArgumentError, MemoryBudgetError
from outcrop.graph import capture
from outcrop.models.faultseg3d import FaultSeg3d
from outcrop.planner import format_bytes, make_plan, parse_bytes, planner
from outcrop.planner.cost import Costs, part
from outcrop.planner.rates import _GPU, rates


@pytest.fixture(scope="module")
def graph():
    return capture(FaultSeg3d().eval(), [torch.zeros(1).expand(1, 1, 256, 192, 320)])[0]


def test_rates_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTCROP_CACHE", str(tmp_path))
    measured = rates("cpu", "float32")
    assert all(value > 0 for value in asdict(measured).values())
    assert 1e8 < measured.few < 1e14
    (key,) = json.loads((tmp_path / "rates.json").read_text())
    assert "float32" in key
    (tmp_path / "rates.json").write_text(json.dumps({key: {**asdict(measured), "few": 1.5}}))
    assert rates("cpu", "float32") == replace(measured, few=1.5)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2GB", 2e9),
        ("512MiB", 2**29),
        ("1.5 kB", 1500),
        (1000, 1000),
        ("3e6", 3e6),
        ("2g", 2e9),
        ("2e-3GB", 2e6),
    ],
)
def test_parse_bytes(text, amount):
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(
    "text", ["", "lots", "-2GB", "0", "2XB", "GB", "1.2.3GB", ".", "1e400", "0.1"]
)
def test_parse_bytes_refuses(text):
    with pytest.raises(MemoryBudgetError, match="not an amount of memory"):
        parse_bytes(text)


def test_format_bytes():
    assert format_bytes(999) == "999 B"
    assert format_bytes(999_600_000) == "1 GB"
    assert format_bytes(2_500_000_000) == "2.5 GB"


@pytest.mark.parametrize("mode", ["auto", "device", "disk", "none"])
def test_the_smallest_budget_that_an_error_names_works(graph, mode):
    with pytest.raises(MemoryBudgetError, match="at least") as caught:
        make_plan(graph, memory=10**7, storage_mode=mode)
    named = str(caught.value).split("at least ")[1]
    plan = make_plan(graph, memory=parse_bytes(named), storage_mode=mode)
    assert plan.peak_memory <= parse_bytes(named)
    with pytest.raises(MemoryBudgetError):
        make_plan(graph, memory=parse_bytes(named) * 9 // 10, storage_mode=mode)


def test_auto_keeps_tensors_in_memory_where_they_fit_and_on_disk_where_not(graph):
    assert set(make_plan(graph, memory=10**10).places.values()) == {"device"}
    small = make_plan(graph, memory=2 * 10**8, holds_output=False)
    assert "disk" in small.places.values()
    assert small.peak_memory <= 2 * 10**8
    on_disk = make_plan(graph, memory=10**10, storage_mode="disk")
    assert set(on_disk.places.values()) == {"disk"}


def test_none_keeps_nothing_of_a_network_without_global_values(graph):
    (stage,) = make_plan(graph, memory=10**10, storage_mode="none").stages
    assert stage.outputs == graph.outputs


def test_the_full_resolution_skip_is_recomputed_where_keeping_it_costs_more(graph):
    """Kept in ample memory; where memory is short, computed anew from the volume itself."""
    full = graph.grid(graph.inputs[0])

    def kept(plan):
        return [n for n in plan.places if graph.grid(n) == full]

    assert kept(make_plan(graph, memory=10**10))
    short = make_plan(graph, memory=8 * 10**8)
    assert not kept(short)
    assert graph.inputs[0] in short.stages[-1].inputs
    assert short.operations > make_plan(graph, memory=10**10).operations


class Norms(nn.Module):
    """A deep network with a norm after every convolution, as FaultSSL's "iou" has 274 of them."""

    def __init__(self, depth):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv3d(8, 8, 3, padding=1) for _ in range(depth))
        self.norms = nn.ModuleList(nn.InstanceNorm3d(8) for _ in range(depth))

    def forward(self, x):
        x = x.expand(-1, 8, -1, -1, -1)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = x + torch.relu(norm(convolution(x)))
        return x


def test_a_pass_per_norm_and_no_more():
    """Work grows in proportion to depth: nothing before a norm is computed twice but for halos."""
    plans = []
    for depth in (20, 40):
        graph, _ = capture(Norms(depth).eval(), [torch.zeros(1).expand(1, 1, 96, 96, 96)])
        plan = make_plan(graph, memory=2 * 10**9)
        once = sum(s.operations / s.overhead for s in plan.stages)
        assert plan.operations < 1.5 * once
        plans.append(plan)
    assert len(plans[1].stages) <= 2 * (len(plans[0].stages) + 1)  # the first norm needs none
    assert plans[1].operations < 2.2 * plans[0].operations


class Stream(nn.Module):
    """Residuals at full resolution, one after the other."""

    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv3d(4, 4, 3, padding=1) for _ in range(depth))
        self.first, self.last = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 1, 1)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.last(x)


def test_spectra_are_cut_between_axes():
    """Filters of one spectrum: no one tensor more on disk saves anything, all of them do."""

    class Filters(nn.Module):
        def forward(self, x):
            waves = torch.fft.fft2(x)
            wave = torch.linspace(0, 1, x.shape[-1])
            return torch.cat([torch.fft.ifft2(waves * wave**n).abs() for n in (1, 2)], 1)

    x = torch.zeros(1).expand(1, 1, 1920, 1440)
    graph = capture(Filters().eval(), [x])[0]
    plan = make_plan(graph, memory=10**8, storage_mode="disk", holds_output=False)
    assert plan.peak_memory <= 10**8


def test_a_deep_stream_is_cut_where_it_alone_is_held():
    graph, _ = capture(Stream(200).eval(), [torch.zeros(1).expand(1, 1, 1504, 3200, 5000)])
    plan = make_plan(graph, memory=8 * 10**9, storage_mode="disk", holds_output=False)
    assert len(graph.nodes) > 400
    assert max(len(stage.nodes) for stage in plan.stages) < 100


def test_fifteen_hundred_operators_are_planned(record_property):
    graph, _ = capture(Norms(210).eval(), [torch.zeros(1).expand(1, 1, 256, 256, 256)])
    assert len(graph.nodes) >= 1050
    plan = make_plan(graph, memory=3 * 10**9)
    assert plan.peak_memory <= 3 * 10**9


@pytest.mark.parametrize("mode", ["auto", "cpu"])
def test_host_memory_bounds_what_a_gpu_keeps_in_host_memory(graph, mode, monkeypatch):
    # Where it costs little, more of it is used.
    monkeypatch.setattr(planner, "rates", lambda device, dtype: replace(_GPU, pinned=math.inf))
    how = {"memory": 3 * 10**8, "storage_mode": mode, "holds_output": False, "device": "cuda"}
    free, bound = make_plan(graph, **how), make_plan(graph, **how, host_memory=4 * 10**7)

    def kept(plan):
        return sum(plan.stored_bytes[n] for n, place in plan.places.items() if place == "cpu")

    assert kept(bound) <= 4 * 10**7 < kept(free)
    assert max(free.peak_memory, bound.peak_memory) <= 3 * 10**8


def test_host_memory_that_does_not_suffice_is_named(graph):
    how = {"memory": 2 * 10**8, "storage_mode": "cpu", "holds_output": False, "device": "cuda"}
    with pytest.raises(MemoryBudgetError, match="host_memory 1 MB is too small") as caught:
        make_plan(graph, **how, host_memory=10**6)
    named = parse_bytes(str(caught.value).split(": ")[1].split()[0])
    assert make_plan(graph, **how, host_memory=named).peak_memory <= 2 * 10**8


def test_more_memory_never_means_more_work(graph):
    work = [
        make_plan(graph, memory=m * 10**8, storage_mode="none", holds_output=False).operations
        for m in (4, 8, 16, 64)
    ]
    assert work == sorted(work, reverse=True)


def test_a_plan_is_plain_data_with_a_stable_digest(graph):
    plans = [make_plan(graph, memory=10**9) for _ in range(2)]
    assert plans[0].digest() == plans[1].digest()
    assert json.loads(json.dumps(plans[0].to_dict()))["memory"] == 10**9
    other = make_plan(graph, memory=10**9, dtype="bfloat16")
    assert other.digest() != plans[0].digest()
    code = (
        f"import torch; torch.set_num_threads({torch.get_num_threads()});"
        "from outcrop.graph import capture; from outcrop.planner import make_plan;"
        "from outcrop.models.faultseg3d import FaultSeg3d as N;"
        "g, _ = capture(N().eval(), [torch.zeros(1).expand(1, 1, 256, 192, 320)]);"
        "print(make_plan(g, memory=10**9).digest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert elsewhere.stdout.strip() == plans[0].digest()


def test_print_shows_stages_tiles_and_promise(graph):
    text = str(make_plan(graph, memory=10**9))
    assert "predicted peak" in text
    assert "sigmoid (output)" in text
    assert "256×192×320" in text


def test_a_plan_for_another_shape_is_refused(graph):
    plan = make_plan(graph, memory=10**9)
    with pytest.raises(ValueError, match="another shape"):
        whole_volume(FaultSeg3d().eval(), torch.zeros(1, 1, 16, 16, 16), plan=plan)


@pytest.mark.parametrize(("bad", "what"), [((8, 8), "3 positive"), ((8, 8, 0), "3 positive")])
def test_a_bad_tile_is_refused(graph, bad, what):
    with pytest.raises(ArgumentError, match=what):
        make_plan(graph, memory=10**9, tile=bad)


def test_networks_of_many_branches_are_planned():
    """Without looking at each branch as often as there are others."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv3d(1, 8, 3)
            self.branches = nn.ModuleList([nn.Conv3d(8, 8, 3, padding=1) for _ in range(30)])

        def forward(self, x):
            x = self.first(x)
            return torch.stack([branch(x).sigmoid().sin() for branch in self.branches]).sum(0)

    graph, _ = capture(Wide().eval(), [torch.zeros(()).expand(1, 1, 256, 256, 256)])
    chosen = []

    class Counted(planner.Cuts):
        def choose(self, *how):
            found = super().choose(*how)
            chosen.append(self.measured)
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "Cuts", Counted)
        patch.setattr("outcrop.planner.cuts._MEASURED", 2000)
        assert make_plan(graph, memory=10**9).peak_memory <= 10**9
    assert 2000 < max(chosen) < 3000  # the one that was under way


def test_what_is_alike_is_measured_once():
    """Blocks in a row, but not those that differ in an argument, a shape, or what they keep."""

    def block(channels=4, **how):
        return nn.Sequential(nn.Conv3d(4, channels, 3, padding="same", **how), nn.ReLU())

    blocks = [block(), block(), block(dilation=2), block(), block(8), block(bias=False)]
    blocks[-1][0].in_channels, blocks[-1][0].weight = 8, nn.Parameter(torch.ones(4, 8, 3, 3, 3))
    graph, _ = capture(nn.Sequential(*blocks).eval(), [torch.zeros(1, 4, 16, 16, 16)])
    stored = list(graph.nodes)  # with a ReLU each
    known = rates("cpu", "float32")
    costs, domain = Costs(graph, known, 4), graph.whole(stored[0])
    parts = [part(graph, (name,), (), {*stored}) for name in stored]
    parts.append(part(graph, (stored[1],), (), {stored[3]}))  # two blocks
    parts.append(part(graph, tuple(stored[:2]), (), {stored[3]}))  # of which both are kept
    for p in parts:
        for tile in ((8, 8, 8), (16, 16, 16)):
            assert costs.cost(p, domain, tile) == Costs(graph, known, 4).cost(p, domain, tile)
    assert len(costs._works) == 2 * len(parts)
    assert len(costs._measured) == 2 * (len(parts) - 2)


def test_bad_words_are_refused(graph):
    with pytest.raises(ArgumentError, match="auto, device, cpu, disk, none"):
        make_plan(graph, memory=10**9, storage_mode="ram")
    with pytest.raises(ArgumentError, match="float64, float32, bfloat16, float16"):
        whole_volume(FaultSeg3d().eval(), torch.zeros(1, 1, 16, 16, 16), precision="half")


PEAK = """
import sys, torch, psutil
sys.path.insert(0, {tests!r})
from test_lines import Spectral
from test_planner import FaultSeg3d, Meet, Norms, spread, wrapped
from outcrop.graph import capture
import outcrop.engine.whole as whole
from outcrop.planner import make_plan
memory, mode, precision, extent, network = sys.argv[1:]
torch.manual_seed(0)
network = eval(network).eval()
x = torch.randn(1, 1, int(extent), 128, 128)
graph, state = capture(network, [x])
plan = make_plan(graph, memory=int(memory), storage_mode=mode, dtype=precision)
whole.capture = lambda *a: (graph, state)
base = psutil.Process().memory_info().rss
open("/proc/self/clear_refs", "w").write("5")
whole.whole_volume(network, x, plan=plan)
peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - base, plan.peak_memory)
"""


def wrapped():
    """Its tiles at the edges need all of the volume."""
    how = {"padding": 1, "padding_mode": "circular"}
    first, middle, last = (nn.Conv3d(*n, 3, **how) for n in ((1, 16), (16, 32), (32, 1)))
    return nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last)


class Meet(nn.Module):
    """Tensors meet that lie far from each other at the ends of the volume."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv3d(1, 16, 3, padding=1), nn.Conv3d(16, 1, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.first(x))
        z = y + y.flip(2)
        z[:, :, :20] = y[:, :, -20:]
        return self.last(z)


def spread():
    """What its windows give would be laid side by side: several times the result."""
    up = nn.ConvTranspose3d(32, 16, 3, stride=2, padding=1, output_padding=1)
    first, last = nn.Conv3d(1, 32, 3, stride=2, padding=1), nn.Conv3d(16, 1, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), up, nn.ReLU(), last)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
@pytest.mark.parametrize(
    ("megabytes", "mode", "precision", "extent", "network"),
    [
        (300, "disk", "float32", 160, "FaultSeg3d()"),
        (2000, "disk", "float32", 160, "FaultSeg3d()"),
        (600, "device", "float32", 160, "FaultSeg3d()"),
        (600, "none", "float32", 160, "FaultSeg3d()"),
        (400, "device", "bfloat16", 160, "FaultSeg3d()"),
        (300, "device", "float64", 64, "FaultSeg3d()"),
        (1000, "disk", "float32", 128, "Norms(6)"),
        (400, "device", "float32", 128, "Norms(6)"),
        (400, "none", "float32", 48, "wrapped()"),
        (300, "device", "float32", 96, "spread()"),
        (400, "none", "float32", 160, "Meet()"),
        (300, "disk", "float32", 128, "Spectral(16)"),
    ],
)
def test_measured_peak_and_promise_and_budget(megabytes, mode, precision, extent, network):
    code = PEAK.format(tests=str(Path(__file__).parent))
    given = map(str, (megabytes * 10**6, mode, precision, extent, network))
    # Dask leaves its workers' settings in the environment.
    env = {key: value for key, value in os.environ.items() if not key.endswith("NUM_THREADS")}
    command = [sys.executable, "-c", code, *given]
    # What is read and written beside the computation meets its highest moment by chance: a run
    # that stays far below the promise is given two more to come near.
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        measured, promised = map(int, done.stdout.split())
        assert measured <= promised <= megabytes * 10**6
        if promised <= 1.5 * measured:
            return
    pytest.fail(f"promised {promised}, measured {measured}")


class Scan(nn.Module):
    """A state along the last axis, step by step, as selective scans in plain PyTorch have it."""

    def forward(self, x):
        state, made = torch.zeros_like(x[..., 0]), []
        for step in x.unbind(-1):
            state = state * step.sigmoid() + step
            made.append(state.tanh())
        return torch.stack(made, -1)


def test_long_chains_are_planned_or_refused_in_seconds(monkeypatch):
    graph, _ = capture(Scan().eval(), [torch.zeros(1).expand(1, 8, 64, 64, 48)])
    drafts, draft = [], planner.Draft
    monkeypatch.setattr(planner, "Draft", lambda *args: drafts.append(1) or draft(*args))
    with pytest.raises(MemoryBudgetError, match="needs at least") as caught:
        make_plan(graph, memory=10**6, storage_mode="disk")
    assert len(drafts) < 100  # not one for each tensor that could be kept
    least = parse_bytes(str(caught.value).split("at least ")[1])
    monkeypatch.setattr(planner, "_GIVEN_UP", 0)
    assert make_plan(graph, memory=2 * least, storage_mode="disk").peak_memory <= 2 * least
