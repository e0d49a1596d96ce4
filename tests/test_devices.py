"""What a GPU would be asked, where there is none: tensors that have a device, but no values.

Kernels that take operands of two devices fail on these as they do on a GPU, and what is held while
a tile is evaluated is known to the byte, apart from what kernels take themselves.
"""

import ctypes
import shutil
import subprocess
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.cpp_extension import include_paths, library_paths

from outcrop import models
from outcrop.engine.globals import GlobalStore
from outcrop.engine.stores import MemoryStore, channels_last
from outcrop.engine.tile import StageRunner
from outcrop.engine.whole import to_compute
from outcrop.graph import RULES, Reduce, capture, tiles
from outcrop.graph.graph import dtype_of
from outcrop.planner import make_plan, planner
from outcrop.planner.rates import _GPU
from random_layers import LAYERS
from test_exact import RandomNetwork

COMPILER = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>);
"""
# Libraries of GPUs are asked, or values; all products of an image's points would be held.
APART = {"lines, recurrent", "windows", "attention of points"}
IN_SINGLE = {"matrices", "ranks", "spectra", "Fourier"}


@pytest.fixture(scope="module", autouse=True)
def gpu(tmp_path_factory):
    """Have torch take the device for one that is there, as its builds with CUDA do."""
    if torch.version.cuda is None:
        if COMPILER is None:
            pytest.skip("needs a C++ compiler")
        folder = tmp_path_factory.mktemp("guard")
        (folder / "guard.cpp").write_text(GUARD)
        places = [f"-I{p}" for p in include_paths()] + [f"-L{p}" for p in library_paths()]
        command = [COMPILER, "-shared", "-fPIC", "-std=c++20", "guard.cpp", "-o", "guard.so"]
        subprocess.run([*command, *places, "-lc10"], cwd=folder, check=True)
        ctypes.CDLL(str(folder / "guard.so"))


class Held(TorchDispatchMode):
    """Bytes on the GPU, as its allocator rounds them, and how many there were at most."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.highest = set(), 0, 0

    def note(self, x):
        memory = x.untyped_storage()
        key, size = memory._cdata, -(-memory.nbytes() // 512) * 512
        if isinstance(x, FakeTensor) and x.is_cuda and key not in self.known:
            self.known.add(key)
            self.now += size
            self.highest = max(self.highest, self.now)
            weakref.finalize(memory, self.gone, key, size)

    def gone(self, key, size):
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        pytree.tree_map_only(torch.Tensor, self.note, made)
        return made


class HostStore(MemoryStore):
    """A tensor in host memory."""

    def read(self, box):
        return super().read(box).to("cuda")

    def write(self, box, value):
        super().write(box, value.cpu())


def evaluated(network, shape, precision, memory, mode="auto"):
    """Evaluate three tiles of each stage of a plan for a GPU; the plan, and what was held."""
    network, dtype = network.eval(), getattr(torch, precision)
    graph, state = capture(network, [torch.zeros(()).expand(shape)])
    plan = make_plan(graph, memory=memory, storage_mode=mode, dtype=precision, device="cuda")
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, Held() as held, torch.no_grad():
        on_host = {name: fake.from_tensor(value) for name, value in state.items()}
        weights, stores = to_compute(graph, on_host, dtype, "cuda"), {}

        def make(name):
            node, layout = graph.nodes.get(name), graph.layouts[name]
            kind = dtype_of(graph.kind(name), dtype)
            if node is not None and isinstance(RULES[node.op], Reduce):
                return GlobalStore(node, kind, "cuda")
            if plan.places.get(name) == "device":
                return MemoryStore(channels_last(layout.stored, graph.rank, kind, "cuda"))
            # What comes in and goes out lies in host memory, and is not counted.
            return HostStore(channels_last(layout.stored, graph.rank, kind, "cpu"))

        stores.update({name: make(name) for name in graph.inputs})
        for i, stage in enumerate(plan.stages):
            stores.update({name: make(name) for name in (*stage.outputs, *stage.reduces)})
            runner = StageRunner(graph, stage, weights, stores, "cuda")
            every = list(tiles(stage.domain, stage.tile))
            some = {0, len(every) // 2, len(every) - 1}
            for number in range(len(every)) if stage.reduces else some:
                results = runner.compute(every[number], runner.read(every[number]))
                runner.write(number, results)
                del results
            for name in stage.reduces:
                stores[name].finish(stage.count)
            for name, (_, last) in plan.used().items():
                if last == i and not isinstance(stores[name], GlobalStore):
                    del stores[name]
            del runner
    return plan, held.highest


NAMES = sorted(LAYERS.keys() - APART)


@pytest.fixture(autouse=True)
def known_rates(monkeypatch):
    monkeypatch.setattr(planner, "rates", lambda device, dtype: _GPU)


@pytest.mark.parametrize(("rank", "precision"), [(3, "float16"), (2, "float32")])
@pytest.mark.parametrize("first", range(0, len(NAMES), 6))
def test_random_networks(first, rank, precision):
    """No operator takes operands of two devices, nor more memory than is promised."""
    names = [n for n in NAMES[first : first + 6] if precision == "float32" or n not in IN_SINGLE]
    network = RandomNetwork(rank, [(name, 1 + i % 2, 2 - i % 2) for i, name in enumerate(names)])
    shape = {3: (1, 1, 64, 72, 96), 2: (1, 1, 512, 768)}[rank]
    plan, held = evaluated(network, shape, precision, 150 * 10**6)
    assert held <= plan.peak_memory


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", ["faultseg3d", "segformer3d"])
def test_networks_of_the_zoo(name, precision):
    model = models.load(name, weights="seeded")
    for mode in ("auto", "none"):
        plan, held = evaluated(model, (1, 1, 96, 96, 128), precision, 4 * 10**8, mode)
        assert held <= plan.peak_memory


def test_operands_of_two_devices_are_found():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="same device"):
        torch.zeros(3, device="cuda") + torch.zeros(3)
