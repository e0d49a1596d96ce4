"""Chunks of a survey: what is kept of them is what is stored, within a limit, and decoded once."""

import pickle
from dataclasses import replace

import dask.array
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import outcrop
from outcrop import models
from outcrop.engine import chunks as chunks_module
from outcrop.engine import local
from outcrop.engine.chunks import DecodedChunks, chunk_edges, held_chunks, keep_only
from outcrop.graph import Box
from outcrop.planner import planner
from outcrop.planner.rates import _CPU

DIMS = ("inline", "crossline", "twt")


def numbered(shape):
    return xr.DataArray(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), dims=DIMS)


def counting(monkeypatch):
    """Count the samples that are decoded: of chunks, which are so as a whole."""
    load, found = chunks_module._load, []

    def counted(volume, box):
        touched = chunks_module._touched(chunk_edges(volume), box).values()
        found.append(sum(chunk.size for chunk in touched))
        return load(volume, box)

    monkeypatch.setattr(chunks_module, "_load", counted)
    return found


@st.composite
def cases(draw):
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    chunks = []
    for n in shape:
        cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=4)) if n > 1 else ())
        chunks.append(tuple(int(c) for c in np.diff([0, *cuts, n])))
    boxes = []
    for _ in range(draw(st.integers(1, 6))):
        starts = [draw(st.integers(0, n - 1)) for n in shape]
        stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True)]
        boxes.append(Box(tuple(starts), tuple(stops)))
    return shape, tuple(chunks), boxes, draw(st.integers(0, 20 * int(np.prod(shape))))


@settings(deadline=None, max_examples=200)
@given(cases())
def test_any_box_of_any_chunks_within_any_limit(case):
    shape, extents, boxes, limit = case
    whole = numbered(shape)
    lazy = whole.copy(data=dask.array.from_array(whole.values, chunks=extents))
    chunks = DecodedChunks({"amplitude": lazy}, limit)
    for box in boxes:
        np.testing.assert_array_equal(chunks.read("amplitude", box), whole.values[box.slices])
        assert chunks.held <= limit


def test_edges_of_what_is_stored_transposed_and_in_memory(tmp_path):
    numbered((10, 7, 5)).to_dataset(name="amplitude").to_zarr(
        tmp_path / "survey.zarr", encoding={"amplitude": {"chunks": (4, 7, 2)}}
    )
    stored = xr.open_zarr(tmp_path / "survey.zarr", chunks=None).amplitude
    found = [edges.tolist() for edges in chunk_edges(stored)]
    assert found == [[0, 4, 8, 10], [0, 7], [0, 2, 4, 5]]
    turned = [edges.tolist() for edges in chunk_edges(stored.transpose("twt", ...))]
    assert turned == [found[2], found[0], found[1]]
    assert chunk_edges(stored.load()) is None
    assert chunk_edges(numbered((3, 3, 3))) is None


def test_a_selection_along_another_dimension_reads(tmp_path):
    """Of which the encoding still speaks of all dimensions."""
    values = np.arange(6 * 5 * 4 * 7, dtype=np.float32).reshape(6, 5, 4, 7)
    dims = ("inline", "crossline", "offset", "twt")
    survey = xr.Dataset({"amplitude": (dims, values)}, {"offset": [0, 100, 200, 300]})
    survey.to_zarr(tmp_path / "s.zarr", encoding={"amplitude": {"chunks": (3, 2, 2, 7)}})
    for chunks in (None, {}):
        found = xr.open_zarr(tmp_path / "s.zarr", chunks=chunks).amplitude.sel(offset=100)
        for limit in (0, 10**6):
            box = Box((1, 0, 2), (5, 3, 7))
            got = DecodedChunks({"amplitude": found}, limit).read("amplitude", box)
            np.testing.assert_array_equal(got, values[:, :, 1][box.slices])


def test_a_copy_for_another_process_brings_no_chunks():
    keep_only(DecodedChunks({}, 0))  # of tests that failed
    lazy = numbered((8, 8, 8)).chunk(4)
    chunks = DecodedChunks({"amplitude": lazy}, 10**6)
    chunks.read("amplitude", Box.whole((8, 8, 8)))
    assert chunks.held == held_chunks() == 4 * 8**3
    copy = pickle.loads(pickle.dumps(chunks))
    assert copy.held == 0
    assert copy.limit == chunks.limit
    keep_only(chunks)
    assert chunks.held == held_chunks() == 4 * 8**3
    keep_only(copy)
    assert held_chunks() == 0


class Sections(nn.Module):
    """A network of sections, of its own neighbourhood."""

    def __init__(self):
        super().__init__()
        self.card = replace(models.load("mtl-infer-2d", weights="seeded").card, outputs=())
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize("kind", ["volume", "sections"])
def test_tiles_and_sections_decode_a_chunk_once(kind, tmp_path, monkeypatch):
    torch.manual_seed(0)
    shape = (18, 40, 44)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    coords = {dim: np.arange(n) for dim, n in zip(DIMS, shape, strict=True)}
    survey = xr.Dataset({"amplitude": (DIMS, values)}, coords)
    survey.chunk(16).to_zarr(tmp_path / "survey.zarr")
    model = (nn.Conv3d(1, 1, 3, padding=1) if kind == "volume" else Sections()).eval()
    stored = xr.open_zarr(tmp_path / "survey.zarr")
    tile = (24, 24, 9) if kind == "volume" else (24, 24)
    ample = outcrop.plan(model, stored, tile=tile)
    scarce = outcrop.plan(
        model, stored, tile=tile, memory=f"{ample.peak_memory - ample.chunk_bytes}B"
    )
    decoded, found = counting(monkeypatch), []
    for plan in (ample, scarce):
        decoded.clear()
        path = tmp_path / f"{len(found)}.zarr"
        found.append(outcrop.predict(model, stored, path, plan=plan).load().drop_attrs())
        times = sum(decoded) / survey.amplitude.size
        assert (times == 1) if plan is ample else (times > 1)
    assert scarce.chunk_bytes == 0
    xr.testing.assert_identical(*found)


def test_a_stage_that_takes_less_keeps_more(tmp_path, monkeypatch):
    """Within what another one takes, which reads no survey; for that one it is dropped."""
    shape = (48, 32, 32)
    survey = numbered(shape).to_dataset(name="amplitude").chunk(16)
    survey.assign_coords({d: np.arange(n) for d, n in zip(DIMS, shape, strict=True)}).to_zarr(
        tmp_path / "survey.zarr"
    )
    stored = xr.open_zarr(tmp_path / "survey.zarr")
    wide = nn.Conv3d(2, 256, 3, padding=1), nn.ReLU(), nn.Conv3d(256, 1, 1)
    first = nn.Conv3d(1, 2, 3, padding=1), nn.InstanceNorm3d(2)
    model = nn.Sequential(*first, *wide).eval()
    how = {"tile": (16, 16, 16), "storage_mode": "disk"}
    ample = outcrop.plan(model, stored, **how)
    plan = outcrop.plan(model, stored, memory=ample.peak_memory - ample.chunk_bytes, **how)
    assert plan.chunk_bytes == 0
    assert plan.peak_memory == max(stage.peak for stage in plan.stages)
    assert all(s.peak + s.chunk_bytes <= plan.peak_memory for s in plan.stages)
    readers = [s.chunk_bytes for s in plan.stages if not {*s.inputs}.isdisjoint({"input", "x"})]
    assert readers
    assert min(readers) >= survey.amplitude.nbytes
    decoded = counting(monkeypatch)
    held = []
    run = local.StageRunner.compute
    monkeypatch.setattr(
        local.StageRunner,
        "compute",
        lambda self, *given: (held.append((self.stage, held_chunks())), run(self, *given))[1],
    )
    found = outcrop.predict(model, stored, tmp_path / "made.zarr", plan=plan).load()
    assert sum(decoded) == len(readers) * survey.amplitude.size
    assert all(n <= s.chunk_bytes for s, n in held)
    expected = outcrop.predict(model, stored, tmp_path / "other.zarr", plan=ample).load()
    xr.testing.assert_identical(found.drop_attrs(), expected.drop_attrs())


def test_stages_that_take_turns_keep_chunks_too(tmp_path, monkeypatch):
    """In layers, of which those of the stage that takes most leave no room for chunks."""
    monkeypatch.setattr(planner, "rates", lambda *_: _CPU)
    shape = (160, 48, 48)
    survey = numbered(shape).to_dataset(name="amplitude").chunk(16)
    survey.assign_coords({d: np.arange(n) for d, n in zip(DIMS, shape, strict=True)}).to_zarr(
        tmp_path / "survey.zarr"
    )
    stored = xr.open_zarr(tmp_path / "survey.zarr")
    model = models.load("faultseg3d", weights="seeded")
    how = {"tile": (16, 16, 16), "storage_mode": "disk"}
    ample = outcrop.plan(model, stored, **how)
    plan = outcrop.plan(model, stored, memory=ample.peak_memory - ample.chunk_bytes, **how)
    turns = [step.stage for step in plan.steps]
    assert len(turns) > len(set(turns)) > 1
    assert plan.chunk_bytes == 0
    assert max(s.chunk_bytes for s in plan.stages) > 0
    assert all(s.peak + s.chunk_bytes <= plan.peak_memory for s in plan.stages)
    decoded, found = counting(monkeypatch), []
    for stages in (plan.stages, [replace(s, chunk_bytes=0) for s in plan.stages]):
        decoded.clear()
        one = replace(plan, stages=tuple(stages))
        outcrop.predict(model, stored, tmp_path / f"{len(found)}.zarr", plan=one)
        found.append(sum(decoded))
    assert found[0] < found[1] / 5


def test_the_plan_says_what_is_kept_and_counts_it(tmp_path):
    survey = numbered((64, 64, 64)).to_dataset(name="amplitude").chunk(32)
    survey = survey.assign_coords({dim: np.arange(64) for dim in DIMS})
    model = nn.Conv3d(1, 4, 3, padding=1).eval()
    plan = outcrop.plan(model, survey, tile=(32, 32, 32), memory="1GB")
    assert plan.chunk_bytes >= survey.amplitude.nbytes
    assert f"chunks of the survey {plan.chunk_bytes / 1e6:.3g} MB" in str(plan)
    in_memory = outcrop.plan(model, survey.load(), tile=(32, 32, 32), memory="1GB")
    assert in_memory.chunk_bytes == 0
    assert plan.peak_memory - plan.chunk_bytes == in_memory.peak_memory
