"""Memory that turns out not to suffice: tiles are halved, the volume stays the same."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from outcrop import whole_volume
from outcrop.engine.memory import Watch, resident
from outcrop.engine.tile import StageRunner
from outcrop.errors import MemoryBudgetError
from outcrop.graph import capture
from outcrop.heap import glibc
from outcrop.planner import make_plan

# An address space too small for the tile that is asked for.
SHORT = """
import resource, warnings
import psutil, torch
from torch import nn
from outcrop import whole_volume
torch.set_num_threads(1)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv3d(1, 32, 3, padding=1), nn.Tanh(), nn.Conv3d(32, 1, 3, padding=1))
network.double().eval()
x = torch.randn(1, 1, 96, 48, 48, dtype=torch.float64)
expected = whole_volume(network, x, tile=(8, 48, 48))  # threads and libraries are there from now on
with torch.no_grad():
    assert (network(x) - expected).abs().max() < 1e-12
taken = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (taken + 50_000_000, -1))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = whole_volume(network, x, memory="4GB", tile=(96, 48, 48))
print((found - expected).abs().max().item())
print(*{str(w.message) for w in caught}, sep="\\n")
"""


def assert_halved(script):
    """A script that runs short of memory prints how far off its result is, and its warnings."""
    # What the C library has free of so short an address space is in pieces, how small is a matter
    # of chance: once in a hundred times not even the result of a tile fits.
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        if done.returncode == 0:
            break
        assert "MemoryBudgetError: out of memory" in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    difference, *warned = done.stdout.splitlines()
    assert float(difference) < 1e-12
    assert any("out of memory on a tile; going on with tiles of" in w for w in warned)
    return warned


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_the_run_goes_on_with_smaller_tiles():
    assert any("going on with tiles of 48×48×48" in w for w in assert_halved(SHORT))


# An address space too small for what is kept between stages.
FULL = """
import resource
import psutil, torch
from torch import nn
from outcrop import whole_volume
from outcrop.errors import MemoryBudgetError
torch.set_num_threads(1)
network = nn.Sequential(
    nn.Conv3d(1, 16, 3), nn.Conv3d(16, 32, 5), nn.InstanceNorm3d(32), nn.Conv3d(32, 1, 1)
)
network.double().eval()
x = torch.randn(1, 1, 96, 96, 96, dtype=torch.float64)
whole_volume(network, x[..., :16, :16, :16], tile=(8, 8, 8))
taken = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (taken + 100_000_000, -1))
try:
    whole_volume(network, x, memory="4GB", tile=(8, 8, 8), storage_mode="device")
except MemoryBudgetError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_no_room_for_what_is_kept_is_one_line():
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out of memory (")
    assert "pass a smaller memory (--memory)" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1)
    ).eval()


def limited(most):
    """What an allocator would do that has room for so many points."""
    kept = StageRunner._kept

    def refusing(self, tile, frame, values):
        if max(box.size for box in frame.boxes.values()) > most:
            raise torch.OutOfMemoryError("no room")
        return kept(self, tile, frame, values)

    return refusing


@pytest.mark.parametrize("mode", ["device", "disk", "none"])
def test_global_values_are_those_of_whole_tiles(mode, network, monkeypatch):
    """The states of halves are merged, in a tile and over tiles."""
    x = torch.randn(1, 1, 40, 24, dtype=torch.float64)
    network.double()
    with torch.no_grad():
        expected = network(x)
    monkeypatch.setattr(StageRunner, "_kept", limited(150))
    with pytest.warns(UserWarning, match="going on with tiles of"):
        found = whole_volume(network, x, tile=(20, 24), storage_mode=mode)
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize("mode", ["device", "disk"])
def test_what_does_not_fit_when_it_is_read_is_read_in_parts(mode, network, monkeypatch):
    x = torch.randn(1, 1, 40, 24, dtype=torch.float64)
    network.double()
    with torch.no_grad():
        expected = network(x)
    read = StageRunner.read

    def refusing(self, tile):
        if tile.size > 150:
            raise torch.OutOfMemoryError("no room")
        return read(self, tile)

    monkeypatch.setattr(StageRunner, "read", refusing)
    with pytest.warns(UserWarning, match="going on with tiles of"):
        found = whole_volume(network, x, tile=(20, 24), storage_mode=mode)
    assert (found - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_a_point_that_does_not_fit_is_named(network, monkeypatch):
    monkeypatch.setattr(StageRunner, "_kept", limited(0))
    with (
        pytest.warns(UserWarning, match="going on"),
        pytest.raises(MemoryBudgetError, match="tile of one point"),
    ):
        whole_volume(network, torch.randn(1, 1, 16, 16))


@pytest.mark.parametrize("mode", ["device", "none"])
def test_nothing_outlives_a_run(mode, network):
    """Without waiting for Python to look for circles of references."""
    x = torch.randn(1, 1, 40, 24)
    whole_volume(network, x, tile=(20, 24), storage_mode=mode)
    gc.collect()
    gc.disable()
    try:
        given = torch.randn(1, 1, 40, 24)
        made = whole_volume(network, given, tile=(20, 24), storage_mode=mode)
        refs = weakref.ref(given), weakref.ref(made)
        del given, made
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is resident from /proc")
def test_room_is_made_for_the_huge_pages_of_an_output(monkeypatch):
    """The first tiles bring pages with them of which they fill a part."""
    asked, over = [0], []
    make_room, write = Watch.make_room, StageRunner.write

    def asking(self, need, fresh=0):
        asked.append(need + fresh)
        make_room(self, need, fresh)

    def measured(self, number, results):
        before = resident()
        write(self, number, results)
        over.append(resident() - before - asked[-1])

    monkeypatch.setattr(Watch, "make_room", asking)
    monkeypatch.setattr(StageRunner, "write", measured)
    network = nn.Conv3d(1, 16, 1).eval()
    whole_volume(network, torch.randn(1, 1, 96, 128, 128), tile=(16, 16, 16))
    assert max(over) <= 2**21


# 64 MB that were freed are there to be taken again, with 8 MB to go until all is taken.
FREED = """
import torch
from outcrop.engine.memory import ALL, Watch, keep_freed_memory, resident
ones = lambda n: torch.ones(n * 10**6, dtype=torch.uint8)
keep_freed_memory(ALL)
ones(64)
there = resident()
watch = Watch(8 * 10**6, 0)
watch.make_room(32 * 10**6)
print(resident() - there)
held = ones(32)
print(resident() - there)
watch.make_room(0, 32 * 10**6)
print(resident() - there)
watch.make_room(32 * 10**6)
more = ones(32)
print(resident() - there)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is resident from /proc")
def test_freed_memory_is_given_back_for_new_pages_alone():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True)
    kept, taken, without, again = (int(line) / 1e6 for line in done.stdout.split())
    assert abs(kept) < 1
    assert abs(taken) < 1
    assert without < -28
    assert again < 1


# Threads that allocate at once, and how many heaps they have by what glibc says of itself.
HEAPS = """
import ctypes, os, sys, threading
if sys.argv[1:]:
    import outcrop
at_once = threading.Barrier(4)
def allocate():
    at_once.wait()
    held = [bytearray(10**4) for _ in range(1000)]
    at_once.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library = ctypes.CDLL(None)
library.fdopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(library.fdopen(1, b"w"))
library.malloc_info(0, file)
library.fflush(file)
"""


@pytest.mark.skipif(not hasattr(glibc(), "malloc_info"), reason="asks glibc")
def test_threads_share_one_heap_from_the_import_on():
    """What they free in heaps of their own would stay, some 100 MB after a run from Zarr."""
    command = [sys.executable, "-c", HEAPS]
    found = [
        subprocess.run([*command, *given], capture_output=True, text=True).stdout.count("<heap")
        for given in ([], ["outcrop"])
    ]
    assert found[0] > 1
    assert found[1] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is resident from /proc")
def test_weights_that_are_there_count_as_promised(monkeypatch):
    """They are copied before the tiles run, and the plan's promise has them."""
    limits = []
    init = Watch.__init__
    monkeypatch.setattr(
        Watch, "__init__", lambda self, *given: (init(self, *given), limits.append(self.limit))[0]
    )
    network = nn.Conv3d(256, 256, 5, padding=2, bias=False).eval()
    x = torch.randn(1, 256, 6, 6, 6)
    graph, _ = capture(network, [x])
    plan = make_plan(graph, memory=10**9)
    size = network.weight.nbytes
    assert plan.weight_bytes == size
    before = resident()
    whole_volume(network, x, plan=plan)
    assert limits[0] - before < plan.peak_memory + size / 4
