"""On a GPU: exact, within the promised memory, copies beside kernels."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import outcrop
from outcrop import inversion, predict, whole_volume
from outcrop.cluster import connect
from outcrop.errors import MemoryBudgetError
from outcrop.graph import capture
from outcrop.models.faultseg3d import FaultSeg3d
from outcrop.planner import make_plan
from random_plans import draw_plan
from test_exact import MODES, RandomNetwork, assert_exact, cases
from test_memory import assert_halved
from test_predict import make_survey

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(scope="module")
def faults():
    """FaultSeg3d, a volume, and what it gives in one piece in double precision."""
    torch.manual_seed(1)
    network = FaultSeg3d().eval()
    x = torch.randn(1, 1, 160, 160, 256)
    with torch.no_grad():
        expected = network.double().cuda()(x.double().cuda()).cpu()
    return network.float().cpu(), x, expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["float64", "float32", "float16"])
def test_the_promise_is_kept(mode, precision, faults):
    """And is at most half as much again as what is taken."""
    network, x, expected = faults
    dtype = getattr(torch, precision)
    x, network = x.to(dtype), copy.deepcopy(network).to(dtype)
    graph, _ = capture(network, [x])
    budget = {"float64": 1600, "float32": 800, "float16": 400}[precision] * 10**6
    how = {"memory": budget, "storage_mode": mode, "dtype": precision, "device": "cuda"}
    plan = make_plan(graph, holds_output=False, **how)
    whole_volume(network, x[..., :64, :64, :64], device="cuda")  # with which libraries are loaded
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = whole_volume(network, x, plan=plan, device="cuda")
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    assert taken <= plan.peak_memory <= budget
    assert plan.peak_memory <= 1.5 * taken
    if precision == "float64":
        assert_exact(found, expected)
    else:  # off by what the network itself loses in that precision
        with torch.no_grad():
            own = (network.cuda()(x.cuda()).cpu() - expected).abs().max()
        assert (found - expected).abs().max() <= 3 * own


def test_copies_run_beside_kernels(tmp_path):
    """With "cpu" tensors go to pinned memory and back while the GPU computes."""
    torch.manual_seed(1)
    network = FaultSeg3d().eval()
    x = torch.randn(1, 1, 192, 192, 192)
    how = {"storage_mode": "cpu", "tile": (96, 96, 96), "precision": "float16", "device": "cuda"}
    whole_volume(network, x, **how)
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        whole_volume(network, x, **how)
    path = tmp_path / "trace.json"
    profile.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if "dur" in e]
    kernels = [e for e in events if e.get("cat") == "kernel"]
    copies = [e for e in events if e.get("cat") == "gpu_memcpy" and "Pinned" in e["name"]]
    beside = [
        c
        for c in copies
        if any(
            k["ts"] < c["ts"] + c["dur"]
            and c["ts"] < k["ts"] + k["dur"]
            and k["args"]["stream"] != c["args"]["stream"]
            for k in kernels
        )
    ]
    assert len(beside) > len(copies) / 4


# In a process of its own, whose GPU memory nothing else has taken.
SHORT = """
import warnings
import torch
from torch import nn
from outcrop import whole_volume
torch.manual_seed(0)
network = nn.Sequential(nn.Conv3d(1, 32, 3, padding=1), nn.Tanh(), nn.Conv3d(32, 1, 1))
network.double().eval().cuda()
x = torch.randn(1, 1, 128, 128, 128, dtype=torch.float64, device="cuda")
expected = whole_volume(network, x, tile=(8, 64, 64))
torch.cuda.empty_cache()
total = torch.cuda.get_device_properties(0).total_memory
room = torch.cuda.memory_reserved() + 300_000_000
torch.cuda.set_per_process_memory_fraction(room / total)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = whole_volume(network, x, memory="20GB", tile=(128, 128, 128))
print((found - expected).abs().max().item())
print(*{str(w.message) for w in caught}, sep="\\n")
"""


def test_out_of_memory_makes_the_tiles_smaller():
    assert_halved(SHORT)


def test_a_plan_that_the_gpu_has_no_room_for_is_refused():
    network = nn.Sequential(nn.Conv3d(1, 64, 3, padding=1), nn.InstanceNorm3d(64)).eval().cuda()
    x = torch.zeros(1, device="cuda").expand(1, 1, 2048, 2048, 2048)
    with pytest.raises(MemoryBudgetError, match="of the GPU, which has"):
        whole_volume(network, x, memory="100TB", storage_mode="device")


def test_compile():
    torch.manual_seed(1)
    network = FaultSeg3d().double().eval().cuda()
    x = torch.randn(1, 1, 40, 56, 48, dtype=torch.float64, device="cuda")
    with torch.no_grad():
        expected = network(x)
    assert_exact(whole_volume(network, x, tile=(24, 24, 24), compile=True), expected)


@pytest.mark.parametrize("mode", ["cpu", "disk"])
def test_gradients_are_identical(mode, tmp_path):
    x = torch.randn(1, 1, 48, 40, 56, generator=torch.Generator().manual_seed(1)).cuda()

    def gradients(mode):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(inplace=True),
            nn.Conv3d(8, 8, 3, padding=1, stride=2), nn.GELU(), nn.Conv3d(8, 1, 3, padding=1),
        ).cuda()  # fmt: skip
        with outcrop.offload(mode, tmp_path):
            net(x).square().mean().backward()
        return [p.grad for p in net.parameters()]

    torch.backends.cudnn.deterministic = True
    try:
        for one, other in zip(gradients(mode), gradients("device"), strict=True):
            assert torch.equal(one, other)
    finally:
        torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize("cluster", [None, "cuda"])
def test_zarr_to_zarr(cluster, tmp_path):
    if cluster is not None:
        pytest.importorskip("dask_cuda")
    survey = make_survey()
    survey.to_zarr(tmp_path / "survey.zarr")
    model = outcrop.models.load("faultseg3d", weights="seeded")
    options = {"precision": "float64", "memory": "500MB"}
    with connect(cluster) as client:
        found = predict(
            model, tmp_path / "survey.zarr", tmp_path / "a.zarr", device="cuda", client=client,
            **options,
        )  # fmt: skip
    expected = predict(model, survey, tmp_path / "b.zarr", **options)
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6)


def test_gradients_of_velocity(tmp_path):
    """Of Deepwave on the GPU; where its wavefields lie changes nothing but rounding."""
    start = inversion.velocity(np.full((24, 36), 2000.0, np.float32), 10.0)
    true = inversion.velocity(np.full((24, 36), 2100.0, np.float32), 10.0)
    shots = inversion.surface_grid(
        true, sources=(4,), receivers=(16,), wavelet=inversion.ricker(14.0, 0.0015, 240)
    )
    inversion.model_shots(true, shots, tmp_path / "shots.zarr", pml_width=6)
    made = {}
    for device, mode in (("cpu", "device"), ("cuda", "device"), ("cuda", "cpu"), ("cuda", "disk")):
        found = inversion.invert(
            start, tmp_path / "shots.zarr", tmp_path / f"{device}-{mode}.zarr", iterations=2,
            device=device, storage_mode=mode, pml_width=6,
        )  # fmt: skip
        made[device, mode] = found.vp.to_numpy()
    change = np.abs(made["cpu", "device"] - start.vp.to_numpy()).max()
    for each in made.values():
        assert np.abs(each - made["cpu", "device"]).max() <= 1e-3 * change


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32", "float64"])
def test_what_is_not_finite_stays_where_it_is(precision):
    """Kernels that apply a ReLU too keep it, and read no memory that nobody wrote."""
    torch.manual_seed(1)
    dtype = getattr(torch, precision)
    network = FaultSeg3d().eval().cuda().to(dtype)
    x = torch.randn(1, 1, 16, 16, 200).to("cuda", dtype)
    x[..., 9, 8, 40] = float("nan")
    with torch.no_grad():
        expected = network(x)
    poison = [torch.full((2**k,), float("nan"), device="cuda") for k in range(12, 28)]
    del poison
    found = whole_volume(network, x, tile=(16, 16, 64))
    assert 0 < expected.isnan().sum() < expected.numel()
    assert torch.equal(found.isnan(), expected.isnan())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(*cases, st.booleans())
def test_random_networks(data, rank, recipe, shape, tile, mode, seed, there):
    """The volume lies on the GPU, or in host memory."""
    torch.manual_seed(seed)
    network = RandomNetwork(rank, recipe).double().eval().cuda()
    x = torch.randn(1, 1, *shape[:rank], dtype=torch.float64, device="cuda")
    with torch.no_grad():
        expected = network(x)
    if not there:
        x, expected = x.cpu(), expected.cpu()
        network.cpu()
    how = {"tile": tile[:rank], "storage_mode": mode}
    if data.draw(st.booleans()):
        how = {"plan": draw_plan(capture(network, [x])[0], data)}
    assert_exact(whole_volume(network, x, device="cuda", **how), expected)
