"""What `outcrop info` tells of SEG-Y and Zarr, and which header bytes it suggests."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import segyio
import xarray as xr
from segyio import TraceField

import outcrop
from command_line import outcrop_command
from outcrop.cli.info import _print, _rows
from outcrop.errors import SegyError, SurveyError
from outcrop.survey.bins import fitted_bins
from segy_files import ALONG_CROSSLINES, ALONG_INLINES, cdp, write_segy

DATA = Path(__file__).parent / "data" / "segy"


def test_segy_and_the_zarr_made_of_it(tmp_path):
    path = tmp_path / "a.sgy"
    values = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 40)).astype("f4")
    missing, dead = [(0, 0), (0, 1), (5, 4)], [(2, 2), (3, 3)]
    write_segy(
        path, values, inlines=range(10, 22, 2), crosslines=[9, 8, 7, 6, 5], sorting="crossline",
        missing=missing, dead=dead, delay_ms=100, interval_us=2000, endian="little", format=5,
    )  # fmt: skip
    outcrop.ingest(path, tmp_path / "a.zarr", chunks=(2, 2, 16))
    live = np.ones((6, 5), dtype=bool)
    live[tuple(np.transpose(missing))] = False
    signal = live.copy()
    signal[tuple(np.transpose(dead))] = False
    traces = values[signal].astype(float)
    x, y = (c[live] for c in cdp(*np.indices((6, 5))))
    for name in ("a.sgy", "a.zarr"):
        found = outcrop.info(tmp_path / name)
        axes = found.to_dict()["axes"]
        assert axes["inline"] == {"first": 10, "last": 20, "step": 2, "count": 6}
        assert axes["crossline"] == {"first": 5, "last": 9, "step": 1, "count": 5}
        assert axes["twt"] == {"first": 100, "last": 178, "step": 2, "count": 40}
        assert found.units == "ms"
        assert found.traces == 27
        assert found.live_fraction == 0.9
        assert found.amplitudes.traces == 27
        assert found.amplitudes.dead_traces == 2
        assert found.amplitudes.minimum == traces.min()
        assert found.amplitudes.maximum == traces.max()
        assert found.amplitudes.mean == pytest.approx(traces.mean())
        assert found.amplitudes.standard_deviation == pytest.approx(traces.std())
        assert found.coordinates["cdp_x"] == pytest.approx((x.min(), x.max()))
        assert found.coordinates["cdp_y"] == pytest.approx((y.min(), y.max()))
        for d, along in (("inline", ALONG_INLINES), ("crossline", ALONG_CROSSLINES)):
            # In the order of the volume, where inlines grow and crosslines fall along the cube.
            east, north = (1 if d == "inline" else -1) * np.array(along)
            assert found.bins[d].distance == pytest.approx(np.hypot(east, north))
            assert found.bins[d].azimuth == pytest.approx(np.degrees(np.arctan2(east, north)) % 360)
        assert found.format == "5 (IEEE float, 4 bytes)"
        assert found.byte_order == "little"
        assert found.bytes["inline"] == 189
        assert found.text.startswith("C 1 DATE")
        assert found.problem is None
        json.dumps(found.to_dict(), allow_nan=False)
        assert dict(_rows(found))["bins"] == (
            "inlines 25.00 m apart, towards 73.7°; "
            "crosslines 12.50 m apart, towards 163.7° from north"
        )
    assert outcrop.info(path).sorting == "crossline"
    assert (
        outcrop.info(tmp_path / "a.zarr")
        .variables["amplitude"]
        .startswith("(inline, crossline, twt) float32, chunks 2 × 2 × 16")
    )


def test_real_file():
    found = outcrop.info(DATA / "f3.sgy")
    assert found.to_dict()["axes"]["inline"] == {"first": 111, "last": 133, "step": 1, "count": 23}
    assert found.format == "3 (integer, 2 bytes)"
    assert found.sorting == "inline"
    assert (found.amplitudes.minimum, found.amplitudes.maximum) == (-10239, 10827)


@pytest.mark.parametrize("sorting", ["inline", "crossline", "random"])
@pytest.mark.parametrize("at", [(9, 21), (17, 13), (5, 233)])
def test_candidates(tmp_path, at, sorting, monkeypatch, capsys):
    """The pair that makes sense comes first; of a random order, either way round."""
    path = tmp_path / "a.sgy"
    values = np.zeros((12, 9, 10), dtype="f4")
    write_segy(
        path, values, inlines=range(100, 136, 3), crosslines=range(9), iline_byte=at[0],
        xline_byte=at[1], sorting=sorting, missing=[(3, 3), (0, 8)],
    )  # fmt: skip
    found = outcrop.info(path)
    assert "no grid" in found.problem
    assert "inline" not in found.axes
    best = found.candidates[0]
    assert {best.inline_byte, best.crossline_byte} == set(at)
    assert best.filled == pytest.approx(106 / 108)
    if at == (9, 21):  # in common use
        assert (best.inline_byte, best.inlines, best.crosslines) == (9, 12, 9)
        assert "--iline-byte 9 --xline-byte 21 (12 × 9)" in found.problem
    if (at, sorting) == ((9, 21), "inline"):  # and of a part of the traces
        monkeypatch.setattr("outcrop.survey.candidates.SOME", 34)
        found = outcrop.info(path)
        assert "--xline-byte 21 (4 × 9 of the first 34 traces)" in found.problem
        _print(found)
        assert "first 34 traces" in " ".join(capsys.readouterr().out.split())
    again = outcrop.info(path, iline_byte=at[0], xline_byte=at[1])
    assert again.problem is None
    assert again.axes["inline"].step == 3


@pytest.mark.parametrize("regular", [True, False])
def test_candidates_for_gathers(tmp_path, regular):
    path, offsets = tmp_path / "a.sgy", range(100, 700, 100)
    write_segy(
        path, np.zeros((10, 8, 6, 5)), inlines=range(10), crosslines=range(8), offsets=offsets,
        iline_byte=9, xline_byte=21,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        for n in range(file.tracecount):  # both number the traces of a gather
            move = 0 if regular else int(rng.integers(-40, 40))
            offset = file.header[n][TraceField.offset] + move
            file.header[n] = {TraceField.CDP_TRACE: n % 6 + 1, TraceField.offset: offset}
    found = outcrop.info(path)
    assert (found.candidates[0].inline_byte, found.candidates[0].crossline_byte) == (9, 21)
    # Without the bytes irregular offsets look like those of one gather, with many twice.
    assert ("at the position of another" in found.problem) == (not regular)
    assert "try --iline-byte 9 --xline-byte 21 (10 × 8)" in found.problem
    again = outcrop.info(path, iline_byte=9, xline_byte=21)
    assert regular == (again.problem is None)
    assert regular or "pass --offset-byte 25" in again.problem


def test_candidates_for_gathers_of_a_line(tmp_path):
    path = tmp_path / "a.sgy"
    write_segy(
        path, np.zeros((1, 30, 6, 5)), inlines=[0], crosslines=range(30), offsets=range(6),
        xline_byte=21,
    )  # fmt: skip
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        for n in range(file.tracecount):  # which gives a grid with 21, too
            file.header[n] = {TraceField.CDP_TRACE: n % 6 + 1}
    found = outcrop.info(path)
    assert "try --iline-byte 189 --xline-byte 21 (1 × 30)" in found.problem
    assert outcrop.info(path, xline_byte=21).problem is None


def test_a_single_line_and_feet(tmp_path):
    path = tmp_path / "line.sgy"
    write_segy(
        path, np.ones((1, 9, 8), "f4"), inlines=[0], crosslines=range(101, 110), xline_byte=21
    )
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        for n in range(file.tracecount):
            file.header[n] = {TraceField.TraceNumber: n + 1}
        file.bin[3255] = 2
    found = outcrop.info(path, domain="depth")
    assert found.units == "ft"
    best = found.candidates[0]
    assert (best.inline_byte, best.crossline_byte, best.inlines, best.crosslines) == (189, 21, 1, 9)
    assert "--iline-byte 189 --xline-byte 21" in found.problem
    survey = outcrop.ingest(path, tmp_path / "a.zarr", xline_byte=21, domain="depth")
    assert survey.crossline.values.tolist() == list(range(101, 110))
    assert survey.depth.units == "ft"


def test_north_is_0_degrees():
    inline, crossline = (at.ravel() for at in np.meshgrid(range(20), range(4), indexing="ij"))
    for far in range(1, 40):
        x, y = 6e5 + far * inline, 6e6 + 11.0 * crossline
        places = {"inline": inline, "crossline": crossline}
        bins = fitted_bins(places, x, y, "m")
        assert (bins["inline"].azimuth, bins["crossline"].azimuth) == (90, 0)


@pytest.mark.filterwarnings("ignore:OSError.*trying again")
def test_a_disk_that_refuses(tmp_path, monkeypatch):
    path = tmp_path / "a.sgy"
    write_segy(path, np.ones((3, 4, 8), "f4"), inlines=range(3), crosslines=range(4))
    monkeypatch.setattr("outcrop.patience.WAITS", (0, 0, 0))
    read, answers = os.preadv, []

    def refusing(*arguments):
        if answers and not answers.pop(0):
            raise OSError(errno.EIO, "Input/output error")
        return read(*arguments)

    monkeypatch.setattr(os, "preadv", refusing)
    answers[:] = [True, False]  # for a moment, while all headers are read
    assert outcrop.info(path).traces == 12
    answers[:] = [False] * 9
    with pytest.raises(OSError, match="Input/output error") as caught:
        outcrop.info(path)
    assert caught.value.filename == str(path)


def test_no_candidates(tmp_path):
    path = tmp_path / "a.sgy"
    write_segy(path, np.ones((6, 5, 10)), inlines=[1] * 6, crosslines=[2] * 5)
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        for n in range(file.tracecount):
            file.header[n] = {TraceField.CDP: 7}
    found = outcrop.info(path)
    assert found.candidates == []
    assert found.problem.endswith("no other bytes give a regular grid either; correct the headers")
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        for n in range(file.tracecount):
            file.header[n] = {TraceField.SourceX: 7, TraceField.GroupX: 7 + n % 3}
    assert outcrop.info(path).problem.endswith("; if these are shot gathers, pass --shots")


def test_problems_besides_the_grid(tmp_path):
    path = tmp_path / "a.sgy"
    write_segy(
        path, np.ones((6, 5, 10)), inlines=range(6), crosslines=range(5), again=[(1, 1)],
        interval_us=0,
    )  # fmt: skip
    assert "1 traces are at the position of another" in outcrop.info(path).problem
    nothing = np.full((6, 5, 10), np.nan)
    write_segy(path, nothing, inlines=range(6), crosslines=range(5), format=5)
    problem = outcrop.info(path).problem
    assert re.search(r"300 of the 300 samples looked at are NaN.*--nonfinite zero", problem)
    write_segy(path, np.ones((6, 5, 10)), inlines=range(6), crosslines=range(5))
    with segyio.open(path, "r+") as file:
        file.header[7] = {TraceField.TRACE_SAMPLE_INTERVAL: 2000}
    assert "several sample intervals: trace 8 says 2" in outcrop.info(path).problem


@pytest.mark.parametrize("dims", [("crossline", "inline", "twt"), ("twt", "crossline", "inline")])
def test_any_order_of_dimensions_and_stacks(dims, tmp_path):
    survey = outcrop.ingest(DATA / "small.sgy", tmp_path / "a.zarr").load()
    live = survey.live.copy()
    live[0, 1:] = False
    one = survey[["amplitude"]].assign_coords(live=live).isel(inline=[0, 1, 4])
    dates = xr.DataArray(np.array(["2001", "2010-06-01"], "M8[ns]"), dims="vintage", name="vintage")
    many = xr.concat([one, 2 * one], dates).rename(amplitude="fault_probability")
    many.transpose(*dims, ...).drop_encoding().to_zarr(tmp_path / "b.zarr", zarr_format=3)
    found = outcrop.info(tmp_path / "b.zarr")
    there = one.amplitude.to_numpy()[one.live.to_numpy()]
    assert found.volume == "fault_probability"
    assert (found.traces, found.amplitudes.traces) == (11, 11)
    assert found.amplitudes.mean == pytest.approx(there.mean())
    assert found.axes["crossline"].step == 1
    assert found.axes["inline"].step is None  # a part of the lines
    assert dict(_rows(found))["vintage"] == "2: 2001-01-01, 2010-06-01"
    json.dumps(found.to_dict())


def test_long_traces_take_no_more_memory(tmp_path, monkeypatch):
    path, out = tmp_path / "a.sgy", tmp_path / "a.zarr"
    module = importlib.import_module("outcrop.survey.info")
    values = np.ones((12, 9, 20), "f4")
    values[:7] = 2
    hole = [(i, x) for i in range(8) for x in range(9)]
    write_segy(path, values, inlines=range(12), crosslines=range(9), missing=hole)
    outcrop.ingest(path, out, chunks=(12, 9, 10))
    monkeypatch.setattr(module, "_BLOCK", 2 * 9 * 20 * 4)  # two inlines
    assert outcrop.info(out).amplitudes.traces == 2 * 9
    monkeypatch.setattr(module, "_SAMPLES", 5 * 20)
    for found in (outcrop.info(path), outcrop.info(out)):
        assert found.amplitudes.traces == 5
        assert found.amplitudes.minimum == found.amplitudes.maximum == 1
    monkeypatch.setattr(module, "_BLOCK", 4 * 20 * 4)  # four traces of one
    assert outcrop.info(out).amplitudes.traces == 4


def test_nothing_to_tell_of(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 9999)
    (tmp_path / "folder").mkdir()
    with pytest.raises(SegyError, match="not SEG-Y"):
        outcrop.info(tmp_path / "a.txt")
    with pytest.raises(SurveyError, match="no Zarr group"):
        outcrop.info(tmp_path / "folder")
    with pytest.raises(SurveyError, match="does not exist"):
        outcrop.info(tmp_path / "nothing.sgy")
    none = xr.Dataset(
        {"amplitude": (("inline", "crossline", "twt"), np.zeros((0, 2, 3), "f4"))},
        {"inline": np.zeros(0, int), "crossline": [1, 2], "twt": [0.0, 4.0, 8.0]},
    )
    none.to_zarr(tmp_path / "none.zarr", zarr_format=3)
    with pytest.raises(SurveyError, match=r"none\.zarr: is empty: .*'inline': 0"):
        outcrop.info(tmp_path / "none.zarr")
    words = ("plan", tmp_path / "none.zarr", "--model", "faultseg3d", "--select", "inline=1:3")
    assert "none.zarr: is empty" in outcrop_command(*words).stderr


def test_command_line(tmp_path):
    path = tmp_path / "small.sgy"
    data = (DATA / "small.sgy").read_bytes()
    path.write_bytes(b"C 1 \x1b[31mred\0".ljust(3200) + data[3200:])
    shown = outcrop_command("info", path, "--iline-byte", "1")
    assert shown.returncode == 0, shown.stderr
    assert "Regular grids by other bytes" in shown.stdout
    assert "--iline-byte 189 --xline-byte 193 (5 × 5)" in shown.stdout
    assert "C 1  [31mred" in shown.stdout  # the escape sequence is not the terminal's
    assert "\x1b[31m" not in shown.stdout
    told = outcrop_command("info", DATA / "f3.sgy", "--json")
    assert json.loads(told.stdout) == json.loads(
        json.dumps(outcrop.info(DATA / "f3.sgy").to_dict())
    ) | {"path": str(DATA / "f3.sgy")}
    wrong = outcrop_command("info", Path(__file__))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
