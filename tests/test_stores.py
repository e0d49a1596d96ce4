"""Stores give back what they were given, and leave nothing behind."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import outcrop
from outcrop.engine.compress import EDGE, decode, encode
from outcrop.engine.disk import ScratchFile
from outcrop.engine.stores import MemoryStore
from outcrop.engine.tiled_stores import CompressedStore, FileStore, make_store
from outcrop.engine.zarr_store import ZarrStore
from outcrop.errors import ArgumentError
from outcrop.graph import Box, tiles

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def largest_of_blocks(x, rank):
    """For every point the largest magnitude in its block, written out plainly."""
    found = torch.empty_like(x)
    grid = x.shape[x.ndim - rank :]
    for box in tiles(Box.whole(grid), (EDGE,) * rank):
        block = x[box.index].abs().amax(tuple(range(-rank, 0)), keepdim=True)
        found[box.index] = block.expand(x[box.index].shape)
    return found


@st.composite
def tensors(draw):
    rank = draw(st.integers(1, 3))
    lead = draw(st.lists(st.integers(1, 3), min_size=0, max_size=2))
    shape = (*lead, *draw(st.lists(st.integers(1, 19), min_size=rank, max_size=rank)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x *= 10 ** (draw(st.integers(0, 8)) * torch.rand(shape, generator=generator) - 4)
    x[torch.rand(shape, generator=generator) < draw(st.sampled_from((0, 0.5, 0.99)))] = 0
    return x.to(draw(st.sampled_from(DTYPES))), rank


@settings(deadline=None, max_examples=150)
@given(tensors())
def test_compression_is_off_by_a_254th_of_its_block_at_most(given):
    x, rank = given
    found = decode(*encode(x, rank), rank)
    exact = x.to(found.dtype)
    allowed = largest_of_blocks(exact, rank) / 254
    normal = allowed * 254 >= torch.finfo(found.dtype).tiny
    assert ((found - exact).abs() <= allowed)[normal].all()
    assert (found[exact == 0] == 0).all()


def test_compression_keeps_what_is_not_finite_from_spreading():
    x = torch.linspace(-1, 1, EDGE**3).reshape(1, 1, EDGE, EDGE, EDGE).clone()
    x[..., 3, 4, 5], x[..., 6, 6, 6] = math.nan, math.inf
    found = decode(*encode(x, 3), 3)
    lost = ~x.isfinite()
    assert found[lost].isnan().all()
    assert ((found - x)[~lost].abs() <= 1 / 254).all()


def draw_box(data, within):
    """Draw any box within another."""
    spans = []
    for low, high in zip(within.start, within.stop, strict=True):
        start = data.draw(st.integers(low, high - 1))
        spans.append((start, data.draw(st.integers(start + 1, high))))
    return Box(*zip(*spans, strict=True))


KINDS = ("device", "disk", "compressed", "compressed disk", "zarr")


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_box_of_what_was_written_tile_by_tile(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("stores")
    rank = data.draw(st.integers(2, 3))
    grid = tuple(data.draw(st.integers(1, 21)) for _ in range(rank))
    domain = draw_box(data, Box.whole(grid))
    tile = tuple(data.draw(st.integers(1, n)) for n in domain.shape)
    dtype = data.draw(st.sampled_from((*DTYPES, torch.int64)))
    shape = (*data.draw(st.sampled_from(((), (3,), (1, 4), (2, 1)))), *grid)
    x = torch.randn(shape, dtype=torch.float64).mul_(9).to(dtype)
    kind = data.draw(st.sampled_from(KINDS))
    if kind == "zarr":
        store = ZarrStore(folder / "x", shape, rank, dtype, domain, tile)
    else:
        place, compression = kind.split()[-1], kind.startswith("compressed")
        place = "device" if place == "compressed" else place
        store = make_store(
            place,
            shape,
            rank,
            dtype,
            tile,
            domain=domain,
            compression=compression,
            path=folder / "x",
        )
        lossy = compression and dtype.is_floating_point
        expected = {
            "disk": FileStore,
            "device": CompressedStore if lossy else MemoryStore,
        }[place]
        assert type(store) is expected
    for box in tiles(domain, tile):
        store.write(box, x[box.index])
        store.write(box, x[box.index])  # a tile may be run again
    box = draw_box(data, domain)
    found = store.read(box)
    assert found.dtype == dtype
    if kind.startswith("compressed") and dtype.is_floating_point:
        # Blocks are counted from the tile's start; and the value is rounded to its precision.
        allowed = x.double().abs().max() * (1 / 254 + torch.finfo(dtype).eps)
        assert (found.double() - x[box.index].double()).abs().max() <= allowed
    else:
        assert torch.equal(found, x[box.index])
    store.remove()
    assert not list(folder.iterdir())


def test_a_part_that_is_no_tile_is_refused(tmp_path):
    store = make_store("disk", (1, 2, 16, 16), 2, torch.float32, (8, 8), path=tmp_path / "x")
    with pytest.raises(ValueError, match="not a tile"):
        store.write(Box((0, 0), (8, 16)), torch.zeros(1, 2, 8, 16))
    with pytest.raises(ArgumentError, match="device, cpu, or disk"):
        make_store("shelf", (1, 2, 16, 16), 2, torch.float32, (8, 8))


def test_a_kept_file_is_found_again(tmp_path):
    def make():
        return make_store(
            "disk", (3, 9, 7), 2, torch.float32, (4, 4), path=tmp_path / "x", keep=True
        )

    x, whole, first = torch.randn(3, 9, 7), Box.whole((9, 7)), make()
    for box in tiles(whole, (4, 4)):
        first.write(box, x[box.index])
    del first
    again = make()
    assert torch.equal(again.read(whole), x)
    again.remove()
    assert not list(tmp_path.iterdir())


# Stored tensors of the stages before the last are on disk when this is interrupted.
RUN = """
import os, signal, sys, time
import torch
import outcrop.engine.local as local
from outcrop import whole_volume
from outcrop.models.faultseg3d import FaultSeg3d
how = sys.argv[2]
def interrupted(stores, names, count):
    print(sum(os.stat(f"/proc/self/fd/{fd}").st_size for fd in os.listdir("/proc/self/fd")
              if os.path.realpath(f"/proc/self/fd/{fd}").startswith(os.path.realpath(sys.argv[1]))),
          flush=True)
    if how == "error":
        raise RuntimeError("as if something failed")
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(10)
local.finish_globals = interrupted
x = torch.zeros(1, 1, 32, 32, 32)
whole_volume(FaultSeg3d().eval(), x, storage_mode="disk", storage_path=sys.argv[1], tile=(8, 8, 8))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at open files in /proc")
@pytest.mark.parametrize("how", ["error", "SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_stays_on_disk_whatever_ends_the_run(how, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), how], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert int(done.stdout.split()[0]) > 0, done.stderr  # bytes that were on disk
    assert not list(tmp_path.iterdir())


def test_a_storage_path_that_is_not_there_is_refused():
    network = torch.nn.Conv3d(1, 1, 1).eval()
    with pytest.raises(ArgumentError, match="not a folder"):
        outcrop.whole_volume(network, torch.zeros(1, 1, 4, 4, 4), storage_path="/no/such/folder")


def test_interrupted_just_as_the_scratch_file_is_made(tmp_path, monkeypatch):
    real = os.open

    def interrupted(*args):
        os.close(real(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ScratchFile(tmp_path / "scratch")
    assert not list(tmp_path.iterdir())
