"""Activations that autograd saves: kept where the mode says, given back as they were."""

import contextlib
import gc
import os
import resource
import subprocess
import sys

import pytest
import torch
from torch import nn

import outcrop
from outcrop.engine import lean
from outcrop.errors import ArgumentError, OutcropError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(inplace=True),
        nn.LazyConv3d(8, 3, padding=1, stride=2),
        nn.InstanceNorm3d(8),
        nn.GELU(),
        nn.Upsample(scale_factor=2, mode="trilinear"),
        nn.Conv3d(8, 1, 3, padding=1),
    )


def volume():
    return torch.randn(1, 1, 48, 40, 56, generator=torch.Generator().manual_seed(1))


def gradients(mode="device", inside=True, **options):
    net, x = network(), volume().requires_grad_()
    with outcrop.offload(mode, **options):
        loss = net(x).square().mean()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return [x.grad, *(p.grad for p in net.parameters())]


@pytest.fixture(scope="module")
def expected():
    return gradients()


@pytest.mark.parametrize("mode", ["device", "cpu", "disk"])
@pytest.mark.parametrize("inside", [True, False])
def test_gradients_are_identical(mode, inside, expected, tmp_path):
    found = gradients(mode, inside, path=tmp_path)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["device", "cpu", "disk"])
def test_compressed_gradients_are_close_and_not_the_same(mode, expected, tmp_path):
    found = gradients(mode, path=tmp_path, compression=True)
    assert not all(map(torch.equal, found, expected))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 0.2 * b.norm() + 1e-6


def test_backward_twice_and_of_a_part(tmp_path):
    """What a graph that is kept saved is there the second time too."""
    x = volume().requires_grad_()
    with outcrop.offload("disk", tmp_path):
        y = (x * 2).sigmoid()
        (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        (second,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first, second)


def test_a_tensor_changed_after_it_was_saved_is_refused(tmp_path):
    x = volume().requires_grad_()
    with outcrop.offload("disk", tmp_path):
        y = x.exp()
        z = y * y
        y.add_(1)
        with pytest.raises(RuntimeError, match="modified by an in-place operation"):
            z.sum().backward()


def on_disk(folder):
    """Bytes of this process's files in a folder, named or not."""
    folder, total = os.path.realpath(folder), 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(folder):
                total += os.stat(f"/proc/self/fd/{fd}").st_blocks * 512
        except FileNotFoundError:  # what listed the folder
            continue
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="looks at open files in /proc")
def test_files_are_freed_with_the_graph_and_on_an_exception(tmp_path):
    net = network()
    with outcrop.offload("disk", tmp_path):
        loss = net(volume()).sum()
    assert on_disk(tmp_path) > 2**22
    del loss
    gc.collect()
    assert on_disk(tmp_path) == 0
    with contextlib.suppress(ZeroDivisionError), outcrop.offload("disk", tmp_path):
        loss = net(volume())
        raise ZeroDivisionError
    del loss
    gc.collect()
    assert on_disk(tmp_path) == 0
    assert not list(tmp_path.iterdir())


class Marked(torch.Tensor):
    """As MONAI's MetaTensor: what is computed of one is one."""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at open files in /proc")
def test_subclasses_that_python_alone_sees_are_kept_there_too(tmp_path):
    written = []
    for kind in (torch.Tensor, Marked):
        x = volume().repeat(1, 4, 1, 1, 1).as_subclass(kind).requires_grad_()
        with outcrop.offload("disk", tmp_path):
            y = (x * 2).sigmoid() * x
            written.append(on_disk(tmp_path))
            y.sum().backward()
        assert torch.equal(x.grad, torch.autograd.grad(((x * 2).sigmoid() * x).sum(), x)[0])
    assert written[0] == written[1] > 0


def test_nested_tensors_stay_where_they_are(tmp_path):
    net, lines = nn.Linear(256, 256), [torch.randn(n, 256) for n in (900, 1100)]
    found = []
    for mode in ("device", "disk"):
        net.zero_grad()
        with outcrop.offload(mode, tmp_path):
            y = nn.functional.gelu(net(torch.nested.nested_tensor(lines)))
            torch.nested.to_padded_tensor(y, 0.0).sum().backward()
        found.append(net.weight.grad.clone())
    assert torch.equal(*found)


def test_bad_words_are_refused(tmp_path):
    for mode, what in (("none", "checkpoint"), ("shelf", "device, cpu or disk")):
        with pytest.raises(ArgumentError, match=what), outcrop.offload(mode):
            pass
    nowhere = outcrop.offload("disk", tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match="not a folder"), nowhere:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**7, hard))
    try:
        with pytest.raises(OutcropError, match=r"^.*no space left.*$"):
            gradients("disk", path=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


# Each in a process of its own, made of one that has loaded and used what is needed, but has not
# changed how freed memory is kept, as "disk" does.
STEPS = """
import os, sys, psutil, torch, outcrop
from outcrop.models.faultseg3d import FaultSeg3d
torch.manual_seed(0)
torch.set_num_threads(1)
def step(mode, how, n):
    half = how != "float32"
    layout = torch.channels_last_3d if half else torch.contiguous_format
    network = FaultSeg3d().train().to(memory_format=layout)
    x, y = torch.randn(1, 1, n, n, n), (torch.rand(1, 1, n, n, n) > 0.9).float()
    x = x.contiguous(memory_format=layout)
    base = psutil.Process().memory_info().rss
    open("/proc/self/clear_refs", "w").write("5")
    with outcrop.offload(mode, sys.argv[1]):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = network(x)
        torch.nn.functional.binary_cross_entropy(found.float(), y).backward()
    peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - base
for how, n in ("float32", 96), ("bfloat16, channels last", 96):
    step("device", how, 16)
    for mode in ("device", "disk"):
        if not os.fork():
            step(mode, how, 16)
            print(how, mode, step(mode, how, n), sep=": ", flush=True)
            os._exit(0)
        os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_a_training_step_takes_half_the_memory(tmp_path):
    command = [sys.executable, "-c", STEPS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = [line.split(": ") for line in done.stdout.splitlines()]
    assert len(peaks) == 4, done.stderr
    for (*_, device), (how, mode, disk) in zip(peaks[::2], peaks[1::2], strict=True):
        assert mode == "disk"
        assert int(disk) <= 0.5 * int(device), (how, peaks)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at open files in /proc")
def test_weights_stay_where_they_are(tmp_path):
    """Parameters and buffers above the limit are not written: their owner holds them anyway."""
    net = nn.Linear(1024, 1024)
    with outcrop.offload("disk", tmp_path):
        y = net(torch.ones(4, 1024))
        assert on_disk(tmp_path) == 0
    y.sum().backward()
    assert net.weight.grad is not None


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (2, 3, 1), "bias": False},
    ],
)
def test_lean_convolutions_are_convolutions(how, layout, monkeypatch):
    monkeypatch.setattr(lean, "_LARGE", 1)
    monkeypatch.setattr(lean, "_SLAB", 2000)
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 6, **how).double().to(memory_format=layout)
    x = torch.randn(2, 4, 11, 7, 9, dtype=torch.float64).to(memory_format=layout)

    def gradients():
        conv.zero_grad()
        own = x.clone().requires_grad_()
        y = conv(own)
        y.square().sum().backward()
        return [y, own.grad, *(p.grad.clone() for p in conv.parameters())]

    expected = gradients()
    with lean.LeanConvolutions():
        found = gradients()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Ready(torch.autograd.Function):
    """Its gradient is computed in the forward pass, and saved."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(2 * x)
        return x.square().sum()

    @staticmethod
    def backward(ctx, _):
        return ctx.saved_tensors[0]


def test_a_gradient_that_was_saved_stays_when_its_room_on_disk_is_taken_again(tmp_path):
    x = torch.randn(2**19).requires_grad_()
    with outcrop.offload("disk", tmp_path):
        loss, y = Ready.apply(x), x.detach().clone().requires_grad_().exp()
        (y * y).sum().backward()  # by when the first is written
        loss.backward()
        del loss, y
        for _ in range(2):
            y = x.detach().clone().requires_grad_().exp()
            (y * y).sum().backward()
    assert torch.equal(x.grad, 2 * x)
