"""SEG-Y in: every format, order and gap; what is wrong with a file, said in one line."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import segyio
import xarray as xr
from segyio import TraceField, tracefield

import outcrop
from command_line import outcrop_command
from outcrop.errors import (
    ArgumentError,
    GeometryError,
    OutcropError,
    OutputExistsError,
    ResumeError,
    SegyError,
    SurveyError,
)
from outcrop.locks import taken
from outcrop.output import Output
from outcrop.survey import checks, geometry, parts
from outcrop.survey.decode import decode
from outcrop.survey.segy import FIELDS, SegyFile, fields_of
from outcrop.survey.template import LATERAL
from segy_files import cdp, write_segy

DATA = Path(__file__).parent / "data" / "segy"
FORMATS = {1: "f4", 2: "i4", 3: "i2", 5: "f4", 6: "f8", 8: "i1", 9: "i8",
           10: "u4", 11: "u2", 12: "u8", 16: "u1"}  # fmt: skip
INLINES, CROSSLINES = [100, 102, 104, 106, 108], [37, 34, 31, 28]


def cube(shape: tuple[int, ...] = (5, 4, 30), format: int = 1, seed: int = 0) -> np.ndarray:
    """Values that the sample format holds exactly, its extremes among them."""
    dtype = np.dtype(FORMATS[format])
    rng = np.random.default_rng(seed)
    if format == 1:
        return (rng.integers(-(2**20), 2**20, shape) / 2**10).astype("f4")
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    values = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    values.flat[:2] = limits.min, limits.max
    return values


@pytest.fixture
def segy(tmp_path: Path) -> Path:
    """A small survey: 5 inlines by 2, 4 crosslines by −3, one trace missing, one dead."""
    path = tmp_path / "survey.sgy"
    write_segy(
        path, cube(), inlines=INLINES, crosslines=CROSSLINES, missing=[(1, 2)], dead=[(3, 0)]
    )
    return path


def assert_same(one: xr.Dataset, other: xr.Dataset) -> None:
    xr.testing.assert_identical(
        one.load().drop_attrs(deep=False), other.load().drop_attrs(deep=False)
    )
    assert one.attrs == other.attrs


def set_header(path: Path, trace: int, **fields: int) -> None:
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        file.header[trace].update({getattr(TraceField, name): v for name, v in fields.items()})


def set_bytes(path: Path, first: int, value: bytes) -> None:
    """Put bytes into the file header; `first` counts from 1."""
    with path.open("r+b") as file:
        file.seek(first - 1)
        file.write(value)


@pytest.mark.parametrize("endian", ["big", "little"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_sample_format_in_both_byte_orders(tmp_path, format, endian):
    values = cube(format=format)
    path = tmp_path / "a.sgy"
    write_segy(
        path, values, inlines=INLINES, crosslines=CROSSLINES[::-1], format=format, endian=endian
    )
    survey = outcrop.ingest(path, tmp_path / "a.zarr")
    exact = np.can_cast(FORMATS[format], "f4")
    assert survey.amplitude.dtype == ("f4" if exact else FORMATS[format])
    np.testing.assert_array_equal(survey.amplitude, values)
    assert survey.attrs["segy"]["format"] == format
    assert survey.attrs["segy"]["byte_order"] == endian


@pytest.mark.parametrize("sorting", ["inline", "crossline", "random"])
def test_grid(tmp_path, sorting):
    """Steps, decreasing numbers, missing and dead traces, in any order; chunks smaller than all."""
    values = cube((9, 7, 30))
    inlines, crosslines = [50 - 5 * i for i in range(9)], [3 + 2 * j for j in range(7)]
    missing, dead = [(0, 0), (4, 5), (8, 6)], [(2, 2)]
    path = tmp_path / "a.sgy"
    cells = write_segy(
        path, values, inlines=inlines, crosslines=crosslines, sorting=sorting, missing=missing,
        dead=dead,
    )  # fmt: skip
    survey = outcrop.ingest(path, tmp_path / "a.zarr", chunks=(3, 2, 8), shards=(6, 4, 16))
    np.testing.assert_array_equal(survey.inline, inlines[::-1])
    np.testing.assert_array_equal(survey.crossline, crosslines)
    found = survey.sel(inline=inlines)

    live = np.ones((9, 7), dtype=bool)
    live[tuple(np.transpose(missing))] = False
    expected = values * live[..., None]
    expected[2, 2] = 0
    np.testing.assert_array_equal(found.live, live)
    np.testing.assert_array_equal(found.amplitude, expected)
    index = np.full((9, 7), -1)
    index[tuple(cells.T)] = np.arange(len(cells))
    np.testing.assert_array_equal(found.trace_index, index)
    for name, coordinate in zip(("cdp_x", "cdp_y"), cdp(*np.indices((9, 7))), strict=True):
        np.testing.assert_allclose(found[name], np.where(live, coordinate, np.nan), rtol=1e-12)


@pytest.mark.parametrize("endian", ["big", "little"])
def test_every_byte_of_the_headers_is_kept(tmp_path, endian):
    path = tmp_path / "a.sgy"
    write_segy(
        path, cube(), inlines=INLINES, crosslines=CROSSLINES, endian=endian, ext_headers=2,
        sorting="random", missing=[(2, 2)],
    )  # fmt: skip
    survey = outcrop.ingest(path, tmp_path / "a.zarr")
    kept = survey.attrs["segy"]
    data = path.read_bytes()
    assert base64.b64decode(kept["file_header"]) == data[: 3600 + 2 * 3200]
    assert [text.splitlines()[0].rstrip() for text in kept["text"][1:]] == [
        "extended text header 1",
        "extended text header 2",
    ]
    order = np.argsort(survey.trace_index.to_numpy().ravel())[1:]
    raw = np.frombuffer(data, np.uint8, offset=3600 + 2 * 3200).reshape(19, 240 + 30 * 4)
    for name, (byte, dtype) in FIELDS.items():
        size = int(dtype[1])
        stored = np.dtype(dtype).newbyteorder({"big": ">", "little": "<"}[endian])
        expected = raw[:, byte - 1 : byte - 1 + size].copy().view(stored)[:, 0]
        if f"header_{name}" in survey:
            variable = survey[f"header_{name}"]
            assert variable.attrs["byte"] == byte
            assert variable.dtype == dtype
            np.testing.assert_array_equal(variable.to_numpy().ravel()[order], expected)
            assert variable.to_numpy()[~survey.live.to_numpy()] == 0
            assert len(np.unique(expected)) > 1
        else:
            assert (expected == kept["trace_header"].get(name, 0)).all()
    assert kept["traces"] == 19
    assert kept["samples"] == 30


def test_fields_have_the_same_names_by_segyio_2():
    keys = {k: byte for k, byte in tracefield.keys.items() if not 219 <= byte < 225}
    new = [f"SourceEnergyDirection{part}" for part in ("Vert", "Xline", "Iline")]
    assert fields_of(keys | dict(zip(new, (219, 221, 223), strict=True))) == FIELDS
    assert sum(int(kind[1]) for _, kind in FIELDS.values()) == 240


@pytest.mark.parametrize("name", ["f3", "f3-lsb", "small"])
def test_real_files_against_segyio(tmp_path, name):
    endian = "little" if name.endswith("lsb") else "big"
    survey = outcrop.ingest(DATA / f"{name}.sgy", tmp_path / "a.zarr")
    with segyio.open(DATA / f"{name}.sgy", endian=endian) as file:
        np.testing.assert_array_equal(survey.amplitude, segyio.tools.cube(file))
        np.testing.assert_array_equal(survey.inline, file.ilines)
        np.testing.assert_array_equal(survey.crossline, file.xlines)
        np.testing.assert_array_equal(survey.twt, file.samples)
    assert ("cdp_x" in survey) == (name != "small")  # which has none


def test_prestack(tmp_path):
    values = cube((3, 4, 5, 20))
    path = tmp_path / "a.sgy"
    write_segy(
        path, values, inlines=[1, 2, 3], crosslines=[7, 8, 9, 10],
        offsets=[100, 300, 500, 700, 900], missing=[(0, 0, 4), (1, 1, 0)], sorting="random",
    )  # fmt: skip
    survey = outcrop.ingest(path, tmp_path / "a.zarr", chunks=(2, 2, 2, 8))
    assert survey.amplitude.dims == ("inline", "crossline", "offset", "twt")
    values[0, 0, 4] = values[1, 1, 0] = 0
    np.testing.assert_array_equal(survey.amplitude, values)
    np.testing.assert_array_equal(survey.offset, [100, 300, 500, 700, 900])
    assert np.argwhere(~survey.live.to_numpy()).tolist() == [[0, 0, 4], [1, 1, 0]]

    with pytest.raises(GeometryError, match=r"58 traces have only 12 .* try --offset-byte 37,"):
        outcrop.ingest(path, tmp_path / "b.zarr", offset_byte=57)  # the same in all
    with segyio.open(path, "r+", ignore_geometry=True) as file:  # and as they come from a field
        for n, header in enumerate(file.header[:]):
            header.update({25: header[37] // 200 + 1, 37: header[37] + 7 * n})
    with pytest.raises(GeometryError, match=r"sparse grid.* --offset-byte 25, which numbers the"):
        outcrop.ingest(path, tmp_path / "b.zarr")
    numbered = outcrop.ingest(path, tmp_path / "c.zarr", offset_byte=25)
    np.testing.assert_array_equal(numbered.amplitude, values)
    assert survey.offset.attrs == {"long_name": "source-receiver offset", "units": "m"}
    assert numbered.offset.attrs == {"long_name": "number in trace header bytes 25-28"}
    with segyio.open(DATA / "small-ps.sgy") as file:
        survey = outcrop.ingest(DATA / "small-ps.sgy", tmp_path / "b.zarr")
        for offset in file.offsets:
            expected = np.stack([file.iline[i, offset] for i in file.ilines])
            np.testing.assert_array_equal(survey.amplitude.sel(offset=offset), expected)


def test_gathers_are_placed_in_little_memory(monkeypatch):
    monkeypatch.setattr(geometry, "_BLOCK", 1 << 12)
    axes = np.meshgrid(np.arange(20), np.arange(50), 50 * np.arange(200), indexing="ij")
    numbers = {name: axis.ravel().astype("i4") for name, axis in zip(LATERAL, axes, strict=True)}
    count = numbers["offset"].size
    file = SegyFile(Path("a.sgy"), ">", 5, 10, 10, 3600, count)
    nothing = np.zeros((1, 240), dtype=np.uint8)
    headers = geometry.Headers(numbers, nothing, nothing[0] > 0, np.zeros(count, dtype=np.uint16))
    tracemalloc.start()
    grid = geometry.make_grid(file, headers, geometry.HeaderBytes())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(grid.trace_index.ravel(), np.arange(count))
    assert peak < 20 * count


def test_a_stack_with_offsets_is_no_prestack(tmp_path, segy):
    with segyio.open(segy, "r+", ignore_geometry=True) as file:
        for n in range(file.tracecount):
            file.header[n] = {TraceField.offset: 17 * n}
    assert outcrop.ingest(segy, tmp_path / "a.zarr").amplitude.ndim == 3


@pytest.mark.parametrize("scalar", [-100, -1, 0, 1, 5])
def test_other_header_bytes_and_coordinate_scalars(tmp_path, scalar):
    path = tmp_path / "a.sgy"
    write_segy(
        path, cube(), inlines=INLINES, crosslines=CROSSLINES, iline_byte=9, xline_byte=21,
        cdp_bytes=(73, 77), scalar=scalar,
    )  # fmt: skip
    survey = outcrop.ingest(
        path, tmp_path / "a.zarr", iline_byte=9, xline_byte=21, cdp_x_byte=73, cdp_y_byte=77
    )
    np.testing.assert_array_equal(survey.inline, INLINES)
    np.testing.assert_array_equal(survey.crossline, CROSSLINES[::-1])
    x, _ = cdp(*np.indices((5, 4)))
    found = survey.cdp_x.sel(crossline=CROSSLINES)
    np.testing.assert_allclose(found, x, atol=max(scalar, 1) / 2)
    assert survey.attrs["segy"]["bytes"] == {
        "inline": 9, "crossline": 21, "cdp_x": 73, "cdp_y": 77,
    }  # fmt: skip


def test_numbers_are_four_bytes_wherever_they_are(tmp_path, segy):
    """Also where the standard has two fields of two bytes each: 201, 213, 217."""
    expected = outcrop.ingest(segy, tmp_path / "a.zarr")
    data = bytearray(segy.read_bytes())
    rows = np.frombuffer(data, np.uint8, offset=3600).reshape(19, 240 + 30 * 4)
    numbers = rows[:, 180:196].copy()
    rows[:, 180:196] = 0
    rows[:, 200:208], rows[:, 212:220] = numbers[:, :8], numbers[:, 8:]
    segy.write_bytes(data)
    at = {"iline_byte": 213, "xline_byte": 217, "cdp_x_byte": 201, "cdp_y_byte": 205}
    best = outcrop.info(segy).candidates[0]
    assert (best.inline_byte, best.crossline_byte) == (213, 217)
    found = outcrop.info(segy, **at)
    survey = outcrop.ingest(segy, tmp_path / "b.zarr", **at)
    for name in ("inline", "crossline", "cdp_x", "cdp_y", "amplitude"):
        np.testing.assert_array_equal(survey[name], expected[name])
    assert found.coordinates["cdp_x"] == (survey.cdp_x.min(), survey.cdp_x.max())
    out = outcrop.export(survey, tmp_path / "out.sgy")
    assert out.read_bytes() == segy.read_bytes()


def test_coordinates_elsewhere_are_pointed_out(tmp_path, caplog):
    path = tmp_path / "a.sgy"
    write_segy(path, cube(), inlines=INLINES, crosslines=CROSSLINES, cdp_bytes=(73, 77))
    assert "cdp_x" not in outcrop.ingest(path, tmp_path / "a.zarr").coords
    (record,) = caplog.records
    assert "those in 73 and 77 vary: to take them pass --cdp-x-byte 73" in record.getMessage()
    caplog.clear()
    survey = outcrop.ingest(path, tmp_path / "b.zarr", cdp_x_byte=73, cdp_y_byte=77)
    assert "cdp_x" in survey.coords
    assert not caplog.text


@pytest.mark.parametrize("cdp_bytes", [None, (73, 77)])
def test_line_numbers_are_no_coordinates(tmp_path, caplog, cdp_bytes):
    """Lines in 181 and 185, where coordinates are by default."""
    path, at = tmp_path / "a.sgy", {"iline_byte": 181, "xline_byte": 185}
    write_segy(path, cube(), inlines=INLINES, crosslines=CROSSLINES, cdp_bytes=cdp_bytes, **at)
    assert not outcrop.info(path, **at).coordinates
    survey = outcrop.ingest(path, tmp_path / "a.zarr", **at)
    assert "cdp_x" not in survey.coords
    remedy = "--cdp-x-byte 73 --cdp-y-byte 77" if cdp_bytes else "if there are others, pass"
    (record,) = caplog.records
    assert re.search(f"181 and 185. are line numbers, and left out; .*{remedy}", record.message)
    assert outcrop.export(survey, tmp_path / "out.sgy").read_bytes() == path.read_bytes()


def test_vertical_axis(tmp_path):
    path = tmp_path / "a.sgy"
    write_segy(
        path, cube(), inlines=INLINES, crosslines=CROSSLINES, interval_us=2500, delay_ms=1200
    )
    time_axis = outcrop.ingest(path, tmp_path / "a.zarr").twt
    np.testing.assert_allclose(time_axis, 1200 + 2.5 * np.arange(30), rtol=1e-12)
    assert time_axis.attrs["units"] == "ms"
    depth = outcrop.ingest(path, tmp_path / "b.zarr", domain="depth").amplitude
    assert depth.dims == ("inline", "crossline", "depth")
    np.testing.assert_allclose(depth.depth, 1200 + 2.5 * np.arange(30), rtol=1e-12)
    assert depth.depth.attrs["units"] == "m"
    assert depth.depth.attrs["standard_name"] == "depth"


def test_sample_interval_missing(tmp_path, segy):
    set_bytes(segy, 3217, b"\0\0")
    assert outcrop.ingest(segy, tmp_path / "a.zarr").twt[1] == 4  # of the trace header
    with segyio.open(segy, "r+", ignore_geometry=True) as file:
        file.header[0].update({TraceField.TRACE_SAMPLE_INTERVAL: 0})
    with pytest.raises(GeometryError, match=r"no sample interval.*--interval"):
        outcrop.ingest(segy, tmp_path / "b.zarr")
    assert outcrop.ingest(segy, tmp_path / "b.zarr", interval=2.0).twt[1] == 2


def test_plain_xarray_reads_it(tmp_path, segy):
    survey = outcrop.ingest(segy, tmp_path / "a.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xr.open_zarr(tmp_path / "a.zarr")
    assert {"live", "trace_index", "cdp_x", "cdp_y"} < set(plain.coords)
    assert set(plain.amplitude.coords) == set(plain.coords)
    assert plain.live.dtype == bool
    for variable in plain.variables.values():
        assert variable.attrs["long_name"]
    assert_same(plain, survey)


def test_ibm_floats_are_exact():
    """Normalised or not, of both signs, up to the ends of the range of float32."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 100_000, dtype=np.uint64).astype(">u4")
    words[:6] = 0, 0x80000000, 0x41000001, 0x60FFFFFF, 0x21100000, 0x427B0000
    exponent = (words >> 24 & 127).astype(int) - 64
    exact = np.where(words >> 31, -1.0, 1.0) * (words & 0xFFFFFF) / 2.0**24 * 16.0**exponent
    normal = (abs(exact) < np.finfo("f4").max) & (abs(exact) > 2.0**-125) | (exact == 0)
    found = decode(words.reshape(100, -1), 1).ravel()
    np.testing.assert_array_equal(found[normal], exact[normal].astype("f4"))
    normalised = (words & 0xF00000) > 0
    assert np.isinf(found[normalised & (abs(exact) > 1e39)]).all()
    assert found.dtype == np.float32


def test_long_traces(tmp_path):
    """Revision 2, as segyio writes more than 65,535 samples; read in windows, one shard each."""
    values = np.random.default_rng(0).normal(size=(2, 3, 70_000)).astype("f4")
    path = tmp_path / "a.sgy"
    write_segy(path, values, inlines=[1, 2], crosslines=[1, 2, 3], format=5, missing=[(1, 1)])
    set_bytes(path, 3501, b"\0\2")
    survey = outcrop.ingest(path, tmp_path / "a.zarr", chunks=(2, 2, 1000), shards=(2, 2, 4000))
    values[1, 1] = 0
    np.testing.assert_array_equal(survey.amplitude, values)


def test_few_of_many_long_traces_are_looked_at(segy, monkeypatch):
    file = SegyFile.open(segy)
    assert checks.some_samples(file).shape == (8, min(32, file.traces), file.samples)
    monkeypatch.setattr(checks, "_MOST", 20 * file.samples)
    assert checks.some_samples(file).shape == (8, 2, file.samples)
    monkeypatch.setattr(checks, "_MOST", file.samples)
    assert checks.some_samples(file).shape == (8, 1, file.samples)


@pytest.mark.parametrize("end", ["((SEG: EndText))", "((SEG:EndText))", "((seg: ENDTEXT ))"])
def test_extended_text_headers_of_unknown_number(tmp_path, end):
    path = tmp_path / "a.sgy"
    write_segy(path, cube(), inlines=INLINES, crosslines=CROSSLINES, ext_headers=3)
    set_bytes(path, 3505, b"\xff\xff")
    set_bytes(path, 3601 + 2 * 3200, end.ljust(3200).encode("cp037"))
    survey = outcrop.ingest(path, tmp_path / "a.zarr")
    assert len(survey.attrs["segy"]["text"]) == 4
    np.testing.assert_array_equal(survey.amplitude.sel(crossline=CROSSLINES), cube())


@pytest.mark.parametrize("said", [0, 1, 3, -2])
def test_another_number_of_extended_text_headers(tmp_path, said, caplog):
    path = tmp_path / "a.sgy"
    write_segy(path, cube(), inlines=INLINES, crosslines=CROSSLINES, ext_headers=2)
    set_bytes(path, 3505, said.to_bytes(2, "big", signed=True))
    survey = outcrop.ingest(path, tmp_path / "a.zarr")
    assert f"after 2 extended text headers, and the file says that there are {said}" in caplog.text
    np.testing.assert_array_equal(survey.amplitude.sel(crossline=CROSSLINES), cube())
    assert outcrop.export(survey, tmp_path / "o.sgy").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("count", [b"\0\1", b"  ", b"\xff\xff", b"\xff\0"])
def test_extended_text_headers_that_are_not_there(tmp_path, segy, count, caplog):
    whole = outcrop.ingest(segy, tmp_path / "whole.zarr").load()
    set_bytes(segy, 3501, b"sw\0\0" + count)  # as some programs fill what revision 0 leaves free
    survey = outcrop.ingest(segy, tmp_path / "a.zarr").load()
    assert "begins after 0 extended text headers, and the file says that there" in caplog.text
    xr.testing.assert_equal(survey, whole)
    assert outcrop.export(survey, tmp_path / "out.sgy").read_bytes() == segy.read_bytes()


@pytest.mark.parametrize("padding", [360, 3200, 5000])
def test_revision_2_says_where_the_first_trace_begins(tmp_path, padding):
    path = tmp_path / "a.sgy"
    write_segy(path, cube(), inlines=INLINES, crosslines=CROSSLINES)
    set_bytes(path, 3501, b"\2\0")
    set_bytes(path, 3521, (3600 + padding).to_bytes(8, "big"))
    whole = path.read_bytes()
    path.write_bytes(whole[:3600] + bytes(padding) + whole[3600:])
    survey = outcrop.ingest(path, tmp_path / "a.zarr")
    np.testing.assert_array_equal(survey.amplitude.sel(crossline=CROSSLINES), cube())
    out = outcrop.export(survey, tmp_path / "out.sgy")
    assert out.read_bytes() == path.read_bytes()


def test_headers_that_contradict_each_other(tmp_path, segy, caplog):
    for trace in range(19):
        set_header(segy, trace, TRACE_SAMPLE_INTERVAL=7 * (trace != 3))  # 0: it does not say
    survey = outcrop.ingest(segy, tmp_path / "a.zarr")
    assert "4 by the binary header, which is taken, and 0.007 by the traces" in caplog.text
    assert survey.twt[1] - survey.twt[0] == 4
    caplog.clear()
    outcrop.ingest(segy, tmp_path / "b.zarr", interval=2)
    assert not caplog.text


@pytest.mark.parametrize(("given", "meant"), [(19, 19), (25, None)])
def test_an_interval_in_metres(tmp_path, caplog, given, meant):
    """As revision 2 has it for depth, and hardly any file."""
    path = tmp_path / "a.sgy"
    write_segy(path, cube(), inlines=INLINES, crosslines=CROSSLINES, interval_us=given)
    outcrop.ingest(path, tmp_path / "a.zarr", domain="depth")
    assert (f"if they mean {meant} ms or m, pass interval={meant} " in caplog.text) == bool(meant)
    caplog.clear()
    survey = outcrop.ingest(path, tmp_path / "b.zarr", domain="depth", interval=given)
    assert survey.depth[1] == given
    assert not caplog.text


def test_scalars_of_the_delay(tmp_path, segy, caplog):
    for trace in range(19):
        set_header(segy, trace, DelayRecordingTime=100, ScalarTraceHeader=-10 if trace else 1)
    outcrop.ingest(segy, tmp_path / "a.zarr")
    assert "the recording delay varies (header bytes 109-110, its scalar in 215-216)" in caplog.text


@pytest.mark.parametrize("prestack", [False, True])
def test_a_stray_line(tmp_path, prestack, caplog):
    """One trace between the crosslines, or beyond them, makes the grid wider."""
    path = tmp_path / "a.sgy"
    shape = (10, 16, 4, 8) if prestack else (20, 16, 8)
    write_segy(
        path, cube(shape), inlines=range(shape[0]), crosslines=range(0, 32, 2),
        offsets=range(100, 500, 100) if prestack else None,
    )  # fmt: skip
    outcrop.ingest(path, tmp_path / "a.zarr")
    assert not caplog.text
    for crossline, empty, extent in ((40, 4, 21), (11, 14, 31)):
        set_header(path, 5, CROSSLINE_3D=crossline)
        survey = outcrop.ingest(path, tmp_path / f"{crossline}.zarr")
        assert survey.sizes["crossline"] == extent
        (record,) = caplog.records
        place = f"inline 0 crossline {crossline}" + (" offset 200" if prestack else "")
        assert record.getMessage().startswith(
            f"{path}: {empty} of {extent} crosslines have no trace; without 1 traces ({place}) it "
            "would be 0 of 16; correct their headers"
        )
        caplog.clear()
    outcrop.ingest(path, tmp_path / "c.zarr", sparse=True)
    assert not caplog.text


@pytest.mark.parametrize(("inline", "crossline"), [(0, 0), (100, 7), (101, 1)])
def test_stray_traces_that_make_the_grid_sparse(tmp_path, inline, crossline):
    path = tmp_path / "a.sgy"
    write_segy(path, cube((10, 20, 8)), inlines=range(100, 130, 3), crosslines=range(0, 60, 3))
    set_header(path, 41, INLINE_3D=inline, CROSSLINE_3D=crossline)
    named = rf"\(trace 42: inline {inline} crossline {crossline}\); correct"
    with pytest.raises(
        GeometryError, match=rf"as the 200 traces, and 10 × 20 without 1 of them {named}"
    ):
        outcrop.ingest(path, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_traces_without_numbers_that_make_the_grid_sparse(tmp_path, segy):
    for trace in (3, 8, 9):
        set_header(segy, trace, INLINE_3D=0, CROSSLINE_3D=0)
    fact = "5 × 4 without 3 of them .trace 4: inline 0 crossline 0; trace 9: .*correct their"
    with pytest.raises(GeometryError, match=fact):
        outcrop.ingest(segy, tmp_path / "a.zarr")


def test_empty_lines_are_named(tmp_path, caplog):
    path = tmp_path / "a.sgy"
    write_segy(path, cube((7, 4, 30)), inlines=[1, 2, 3, 4, 10, 11, 12], crosslines=CROSSLINES)
    outcrop.ingest(path, tmp_path / "a.zarr")
    (record,) = caplog.records
    assert "5 of 12 inlines have no trace (5, 6, 7, …)" in record.getMessage()


# What is wrong with a file


def test_trailers_are_not_traces(tmp_path, segy):
    set_bytes(segy, 3501, b"\2\0")
    set_bytes(segy, 3529, b"\0\0\0\1")
    with segy.open("ab") as file:
        file.write(b" " * 3200)
    with pytest.raises(SegyError, match=r"has 1 trailers \(binary header bytes 3529-3532\)"):
        outcrop.ingest(segy, tmp_path / "a.zarr")


@pytest.mark.parametrize("revision", [b"\2\0", b"\2\1"])
def test_additional_trace_headers(tmp_path, segy, revision):
    set_bytes(segy, 3501, revision)
    more = b"\0\0\0\1" if revision == b"\2\0" else b"\0\1\0\2"
    set_bytes(segy, 3507, more)
    with pytest.raises(SegyError, match="has 1 additional headers in each trace"):
        outcrop.ingest(segy, tmp_path / "a.zarr")
    if revision == b"\2\1":  # which has the type of the survey there, too
        set_bytes(segy, 3507, b"\0\0\0\2")
        outcrop.ingest(segy, tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("extended", "fact"),
    [
        (b"\0\0", "has no traces: 3,600 bytes, .* begins after 3,600"),
        (b"\x40\x40", "has no traces: 3,600 bytes, .*3505-3506.* begins after 52,637,200"),
        (b"\xff\xfd", r"says that it has -3 extended text headers \(bytes 3505-3506\)"),
    ],
)
def test_no_traces(tmp_path, segy, extended, fact):
    segy.write_bytes(segy.read_bytes()[:3600])
    set_bytes(segy, 3505, extended)
    with pytest.raises(SegyError, match=fact):
        outcrop.ingest(segy, tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "0 bytes are fewer"),
        (b"not a seismic file\n" * 1000, "sample format 8294"),
        (bytes(10_000), "sample format 0"),
    ],
)
def test_not_segy(tmp_path, content, fact):
    path = tmp_path / "a.sgy"
    path.write_bytes(content)
    with pytest.raises(SegyError, match=f"a.sgy: not SEG-Y: .*{fact}"):
        outcrop.ingest(path, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_no_file(tmp_path):
    with pytest.raises(SegyError, match="No such file"):
        outcrop.ingest(tmp_path / "a.sgy", tmp_path / "a.zarr")
    with pytest.raises(SegyError, match="directory"):
        outcrop.ingest(tmp_path, tmp_path / "a.zarr")
    reading, writing = os.pipe()  # as of the shell's <(...)
    os.write(writing, bytes(3600))
    with pytest.raises(SegyError, match="is a pipe; write it to a file first"):
        outcrop.ingest(f"/dev/fd/{reading}", tmp_path / "a.zarr")
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("written", "said", "endian"),
    [(5, 1, "big"), (1, 5, "big"), (5, 0, "big"), (5, 0, "little"), (3, 2, "big")],
)
def test_a_wrong_sample_format(tmp_path, caplog, written, said, endian):
    path, given = tmp_path / "a.sgy", {1: "ibm", 3: "int16", 5: "ieee"}[written]
    values = (10 * cube((5, 4, 150), 6) ** 3).astype(FORMATS[written])
    lines = {"inlines": INLINES, "crosslines": sorted(CROSSLINES)}
    write_segy(path, values, **lines, format=written, endian=endian)
    right = path.read_bytes()
    exact = outcrop.ingest(path, tmp_path / "a.zarr").load()
    assert not caplog.text
    set_bytes(path, 3225, said.to_bytes(2))
    if said in (1, 5):
        outcrop.info(path)
        outcrop.ingest(path, tmp_path / "b.zarr")
        found = re.findall(
            r"look like (\w+) floats, and are (\w+) floats by .*--format (\w+)", caplog.text
        )
        assert found == 2 * [(given.upper(), {1: "IBM", 5: "IEEE"}[said], given)]
    else:
        with pytest.raises(SegyError, match=r"several lengths|sample format 0 .*--format"):
            outcrop.ingest(path, tmp_path / "b.zarr")
    caplog.clear()
    survey = outcrop.ingest(path, tmp_path / "c.zarr", format=given)
    assert outcrop.info(path, format=given).format.startswith(f"{written} ")
    assert not caplog.text
    np.testing.assert_array_equal(survey.amplitude, exact.amplitude)
    assert outcrop.export(survey, tmp_path / "out.sgy").read_bytes() == right


def test_sample_format_that_segyio_does_not_read(tmp_path, segy):
    set_bytes(segy, 3225, b"\0\4")
    with pytest.raises(SegyError, match=r"sample format 4 \(fixed point with gain\)"):
        outcrop.ingest(segy, tmp_path / "a.zarr")


@pytest.mark.parametrize("cut", [100, 300])  # in the samples, in the header
def test_truncated(tmp_path, segy, cut):
    whole = outcrop.ingest(segy, tmp_path / "whole.zarr").load()
    with segy.open("r+b") as file:
        file.truncate(segy.stat().st_size - cut)
    with pytest.raises(SegyError, match=r"after 18 whole traces of 30 samples.*--truncate"):
        outcrop.ingest(segy, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    survey = outcrop.ingest(segy, tmp_path / "a.zarr", truncate=True)
    last = whole.trace_index == 18
    np.testing.assert_array_equal(survey.live, whole.live & ~last)
    np.testing.assert_array_equal(survey.amplitude, whole.amplitude.where(~last, 0))
    set_bytes(segy, 3221, b"\0\21")  # samples by the binary header, where the traces say 30
    with pytest.raises(SegyError, match=r"after 18 whole traces of 30 samples.*--truncate"):
        outcrop.info(segy)


@pytest.mark.parametrize("wrong", [[7], [0], [18], [3, 4, 5, 18]])
def test_wrong_sample_counts_in_trace_headers(tmp_path, segy, wrong, caplog):
    whole = outcrop.ingest(segy, tmp_path / "whole.zarr")
    for trace in wrong:
        set_header(segy, trace, TRACE_SAMPLE_COUNT=28)
    survey = outcrop.ingest(segy, tmp_path / "a.zarr")
    np.testing.assert_array_equal(survey.amplitude, whole.amplitude)
    told = f"{len(wrong)} traces say that they have another number of samples (header bytes "
    assert f"{told}115-116; trace {wrong[0] + 1} is the first), and have 30" in caplog.text
    assert outcrop.export(survey, tmp_path / "o.sgy").read_bytes() == segy.read_bytes()


def test_several_trace_lengths(tmp_path, segy):
    set_header(segy, 7, TRACE_SAMPLE_COUNT=28)
    data = segy.read_bytes()
    at = 3600 + 8 * (240 + 30 * 4)
    segy.write_bytes(data[: at - 8] + data[at:])
    with pytest.raises(SegyError, match=r"trace 8 says that it has 28 samples.*others 30"):
        outcrop.ingest(segy, tmp_path / "a.zarr")
    # As many bytes as if all were of one length.
    segy.write_bytes(data[: at - 8] + data[at:] + bytes(8))
    with pytest.raises(SegyError, match=r"trace 8 says that it has 28 samples.*others 30"):
        outcrop.ingest(segy, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_several_sample_intervals(tmp_path, segy):
    set_header(segy, 0, TRACE_SAMPLE_INTERVAL=0)
    outcrop.ingest(segy, tmp_path / "a.zarr")
    set_header(segy, 7, TRACE_SAMPLE_INTERVAL=2000)
    with pytest.raises(
        GeometryError, match=r"several sample intervals: trace 8 says 2 .*, trace 2 4; .*--interval"
    ):
        outcrop.ingest(segy, tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()
    assert outcrop.ingest(segy, tmp_path / "b.zarr", interval=4).twt[1] == 4


# None, one of a longer trace, and one by which the length of the file comes out, too.
@pytest.mark.parametrize("count", [0, 31, (19 * 360 // 18 - 240) // 4])
def test_sample_count_in_the_trace_headers_alone(tmp_path, segy, count):
    set_bytes(segy, 3221, count.to_bytes(2, "big"))
    assert (19 * 360 % (240 + 4 * count) == 0) == (count == 35)
    assert outcrop.ingest(segy, tmp_path / "a.zarr").sizes["twt"] == 30


@pytest.mark.parametrize("at", [(1, 193), (181, 185), (9, 13)])
def test_header_bytes_that_give_no_grid(tmp_path, segy, at):
    with pytest.raises(
        GeometryError, match=r"no grid.*--iline-byte 189 --xline-byte 193 \(5 × 4\)"
    ):
        outcrop.ingest(segy, tmp_path / "a.zarr", iline_byte=at[0], xline_byte=at[1])
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("byte", [0, 238, -1])
def test_header_bytes_that_do_not_exist(tmp_path, segy, byte):
    with pytest.raises(ArgumentError, match=rf"--iline-byte {byte}"):
        outcrop.ingest(segy, tmp_path / "a.zarr", iline_byte=byte)


@pytest.mark.parametrize("format", [1, 2])
def test_duplicates(tmp_path, format):
    path = tmp_path / "a.sgy"
    values = (cube() * 16).astype(int)
    again = [(0, 1), (3, 3), (3, 3)]
    write_segy(path, values, inlines=INLINES, crosslines=CROSSLINES, again=again, format=format)
    with pytest.raises(
        GeometryError, match=r"3 traces are at .*inline 100 crossline 34, inline 106 crossline 28"
    ):
        outcrop.ingest(path, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    found = {
        keep: outcrop.ingest(path, tmp_path / f"{keep}.zarr", duplicates=keep).sel(
            crossline=CROSSLINES
        )
        for keep in ("first", "last", "mean")
    }
    for keep, index, more in (
        ("first", [1, 15], [0, 0]),
        ("last", [20, 22], [1, 1]),
        ("mean", [1, 15], [1 / 2, 2 / 3]),
    ):
        expected = values.astype(float)
        expected[[0, 3], [1, 3]] += np.array(more)[:, None]
        if format == 2:
            expected = np.rint(expected)
        np.testing.assert_array_equal(found[keep].amplitude, expected.astype("f4"))
        assert found[keep].trace_index.to_numpy()[[0, 3], [1, 3]].tolist() == index
        assert found[keep].live.all()


def test_sparse(tmp_path):
    path = tmp_path / "a.sgy"
    lines = [10, 11, 20, 23]
    write_segy(path, cube((4, 9, 30)), inlines=lines, crosslines=range(1, 10))
    with pytest.raises(
        GeometryError, match=r"14 inlines × 9 crosslines are 3.5 times .* 36 traces"
    ):
        outcrop.ingest(path, tmp_path / "a.zarr")
    survey = outcrop.ingest(path, tmp_path / "a.zarr", sparse=True)
    assert survey.live.mean() == 36 / 126
    np.testing.assert_array_equal(survey.amplitude.sel(inline=lines), cube((4, 9, 30)))


@pytest.mark.parametrize("traces", [20, 3000])  # all looked at before; most only while writing
@pytest.mark.parametrize("cluster", [False, True])
def test_nonfinite(tmp_path, traces, cluster, request):
    client = request.getfixturevalue("client") if cluster else None
    shape = (traces // 4, 4, 30)
    values = cube(shape)
    bad = ([1, traces // 4 - 3, traces // 4 - 3], [2, 0, 0], [3, 5, 6])
    values[bad] = np.nan, np.inf, -np.inf
    path = tmp_path / "a.sgy"
    write_segy(path, values, inlines=range(shape[0]), crosslines=CROSSLINES, format=5)
    options = {"chunks": (2, 4, 30), "shards": (20, 4, 30), "client": client}
    with pytest.raises(
        SurveyError,
        match=r"3 samples are NaN or infinite \(first: inline 1 crossline 31 at 12 in trace 7; ",
    ):
        outcrop.ingest(path, tmp_path / "a.zarr", **options)
    with pytest.raises(SurveyError):
        outcrop.open(tmp_path / "a.zarr")
    survey = outcrop.ingest(path, tmp_path / "a.zarr", nonfinite="zero", **options)
    values[bad] = 0
    np.testing.assert_array_equal(survey.amplitude.sel(crossline=CROSSLINES), values)


def test_zeros_for_nonfinite_samples_are_not_forgotten(tmp_path, monkeypatch, caplog):
    """An ingest that made some 0 goes on only so, counts them all, and the survey knows."""
    values = cube((64, 64, 8))
    values[15, 40, 3], values[46, 56] = np.nan, np.inf  # in none of those that are looked at first
    path, out = tmp_path / "a.sgy", tmp_path / "a.zarr"
    write_segy(path, values, inlines=range(64), crosslines=range(64), format=5)
    layout = {"chunks": (16, 16, 8), "shards": (16, 16, 8)}
    finish = Output.finish

    def interrupt(output: Output, key: str) -> None:
        finish(output, key)
        if len(output.finished) == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Output, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            outcrop.ingest(path, out, nonfinite="zero", **layout)
    with pytest.raises(
        SurveyError, match=r"begun with nonfinite='zero' .* 1 samples are 0 that were NaN"
    ):
        outcrop.ingest(path, out, **layout)
    survey = outcrop.ingest(path, out, nonfinite="zero", **layout)
    assert "9 NaN or infinite samples are now 0" in caplog.text
    told = survey.attrs["segy"]["ingested_with"]
    assert (told["nonfinite"], told["replaced_samples"]) == ("zero", 9)
    assert told["duplicates"] == "error"


def test_output_exists(tmp_path, segy):
    outcrop.ingest(segy, tmp_path / "a.zarr")
    with pytest.raises(OutputExistsError, match=r"a.zarr: already exists.*--overwrite"):
        outcrop.ingest(segy, tmp_path / "a.zarr")
    outcrop.ingest(segy, tmp_path / "a.zarr", overwrite=True, domain="depth")
    assert "depth" in outcrop.open(tmp_path / "a.zarr").dims
    inside = tmp_path / "a.zarr" / "in.sgy"
    inside.write_bytes(segy.read_bytes())
    for path, out, fact in ((segy, segy, "is"), (inside, tmp_path / "a.zarr", "holds")):
        with pytest.raises(ArgumentError, match=f"{fact} the SEG-Y that is read; choose another"):
            outcrop.ingest(path, out, overwrite=True)
        assert path.exists()
    assert "depth" in outcrop.open(tmp_path / "a.zarr").dims


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain": "twt"}, "domain='twt': choose one of time, depth"),
        ({"duplicates": "none"}, "choose one of error, first, last, mean"),
        ({"nonfinite": "nan"}, "choose one of error, zero"),
        ({"chunks": (64, 64)}, "three numbers"),
        ({"chunks": (8, 8, 8, 8)}, "has 3 dimensions"),
        ({"chunks": (4, 4, 8), "shards": (6, 4, 8)}, "no multiples"),
        ({"compressor": "gzip:5"}, "choose zstd"),
        ({"iline_byte": 193}, "both read from byte 193"),
        ({"interval": -4.0}, "interval -4: pass a number above zero"),
        ({"interval": float("nan")}, "interval nan: "),
        ({"compressor": "zstd:99"}, "level from 0 to 9"),
        ({"compressor": "zstd:-1"}, "level from 0 to 9"),
        ({"cdp_x_byte": 185}, "cdp_x and cdp_y are both read from byte 185"),
    ],
)
def test_options_that_make_no_sense(tmp_path, segy, options, message):
    with pytest.raises(ArgumentError, match=message):
        outcrop.ingest(segy, tmp_path / "a.zarr", **options)
    assert not (tmp_path / "a.zarr").exists()


def test_extents_are_looked_at_before_the_file(tmp_path):
    for options in ({"chunks": (4, 0, 8)}, {"chunks": (4, 4, 8), "shards": (6, 4, 8)}):
        with pytest.raises(ArgumentError, match=r"shards|chunks"):
            outcrop.ingest(tmp_path / "none.sgy", tmp_path / "a.zarr", **options)


# What happens while it is written

INGEST = """
import os, resource, signal, sys, outcrop
from outcrop.output import Output
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
finish, killed = Output.finish, os.environ.get("KILLED")
def told(output, key):
    finish(output, key)
    if len(output.finished) == 10 and killed:
        os.kill(os.getpid(), signal.SIGKILL)
Output.finish = told
outcrop.ingest(sys.argv[1], sys.argv[2], chunks=(4, 4, 64), shards=(8, 8, 512), compressor="zstd:9")
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """80 parts of 128 kB: long enough to be interrupted."""
    path = tmp_path_factory.mktemp("large") / "large.sgy"
    values = np.random.default_rng(0).normal(size=(80, 64, 512)).astype("f4")
    write_segy(path, values, inlines=range(80), crosslines=range(64), format=5)
    return path


def test_killed_ingest_does_not_open_and_goes_on(tmp_path, large, monkeypatch):
    out, undisturbed = tmp_path / "a.zarr", tmp_path / "b.zarr"
    journal = out / "unfinished" / "finished.txt"
    killed = {**os.environ, "KILLED": "yes"}
    process = subprocess.run([sys.executable, "-c", INGEST, large, out], env=killed)
    assert process.returncode == -signal.SIGKILL
    finished = journal.read_text().splitlines()
    assert len(finished) == 10
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(out)
    with pytest.raises(SurveyError, match="is unfinished; run the command"):
        outcrop.open(out)
    with pytest.raises(ResumeError, match="chunks"):
        outcrop.ingest(large, out, compressor="zstd:9")
    with monkeypatch.context() as patch:
        patch.delattr(SegyFile, "scan")  # of all headers, which takes long
        with pytest.raises(ResumeError, match="begun with another compressor"):
            outcrop.ingest(large, out)
        with taken(out), pytest.raises(OutputExistsError, match="another process is writing it"):
            outcrop.ingest(large, out)

    done = {k: v for k in finished if k.startswith("samples") for v in [_shard(out, k)]}
    before = {key: path.stat().st_mtime_ns for key, path in done.items()}
    for path in (out, undisturbed):
        subprocess.run([sys.executable, "-c", INGEST, large, path], check=True)
    assert {key: path.stat().st_mtime_ns for key, path in done.items()} == before
    assert not (out / "unfinished").exists()
    assert_same(outcrop.open(out), outcrop.open(undisturbed))


def test_interrupted_as_a_thread_starts(monkeypatch):
    """No thread is left waiting, which would keep the process from ending."""
    start, started = threading.Thread.start, []

    def interrupted(thread):
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            parts.run(int, [1], lambda *_: None, 3)
    started[0].join(10)
    assert not started[0].is_alive()


def _shard(out: Path, key: str) -> Path:
    i, j = (int(text) // 8 for text in key.split()[1:])
    return out / "amplitude" / "c" / str(i) / str(j) / "0"


def test_output_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutcropError, match=r"a.zarr: .*/file takes no files; choose another"):
        outcrop.ingest(tmp_path / "none.sgy", tmp_path / "file" / "a.zarr")  # before it is read


def test_no_space_left(tmp_path, large):
    """Files are limited to less than a shard: what the disk would say, late."""
    out = tmp_path / "a.zarr"
    found = subprocess.run(
        [sys.executable, "-c", INGEST, large, out, "100000"], capture_output=True, text=True
    )
    assert found.returncode == 1
    # After it the event loop may tell of writes that it has not ended.
    (told,) = (e for e in found.stderr.splitlines() if e.startswith("outcrop.errors.OutcropError"))
    assert "a.zarr: no space left (File too large)" in told
    with pytest.raises(SurveyError):
        outcrop.open(out)
    subprocess.run([sys.executable, "-c", INGEST, large, out], check=True)
    assert outcrop.open(out).live.all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_no_space_left_at_once(tmp_path, segy):
    """Not even for the metadata: nothing is left behind."""
    found = subprocess.run(
        [sys.executable, "-c", INGEST, segy, tmp_path / "a.zarr", "100"],
        capture_output=True,
        text=True,
    )
    assert "OutcropError" in found.stderr.splitlines()[-1]
    assert "no space left" in found.stderr.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["survey.sgy"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_no_space_left_is_noticed_before_the_headers_are_read(tmp_path, large, monkeypatch):
    monkeypatch.setattr(SegyFile, "scan", lambda _: pytest.fail("read"))
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]).returncode:
        pytest.skip("may not mount")
    try:
        with pytest.raises(
            OutcropError, match=r"no space left: the survey takes about .* GB are free"
        ):
            outcrop.ingest(large, disk / "a.zarr")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_on_worker_processes(tmp_path, large, client):
    options = {"chunks": (4, 16, 64), "shards": (16, 16, 512)}
    there = outcrop.ingest(large, tmp_path / "a.zarr", client=client, **options)
    here = outcrop.ingest(large, tmp_path / "b.zarr", **options)
    assert_same(there, here)


def test_workers_in_another_folder(tmp_path, client, monkeypatch):
    here = set(client.run(os.getcwd).values()).pop()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(DATA / "f3.sgy", tmp_path)
    monkeypatch.chdir(tmp_path)
    client.run(os.chdir, tmp_path / "elsewhere")
    try:
        found = outcrop.ingest("f3.sgy", "a.zarr", client=client)
    finally:
        client.run(os.chdir, here)
    xr.testing.assert_identical(found.load(), outcrop.ingest("f3.sgy", "b.zarr").load())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_lost_worker(tmp_path, large, client):
    """A worker that dies costs its parts, which another does again."""
    pids = list(client.run(os.getpid).values())
    os.kill(pids[0], signal.SIGKILL)
    survey = outcrop.ingest(large, tmp_path / "a.zarr", client=client, shards=(16, 16, 512),
                            chunks=(16, 16, 64))  # fmt: skip
    with segyio.open(large) as file:
        np.testing.assert_array_equal(survey.amplitude, segyio.tools.cube(file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--origin", "5,5"], "--origin: only with --shots; "),
        (["--azimuth", "90"], "--azimuth: only with --shots; "),
        (["--shots", "--chunks", "1,2"], "--chunks: not with --shots; "),
        (["--duplicates", "foo", "--shots"], "--duplicates: not with --shots; "),
        (["--shots", "--iline-byte", "189"], "--iline-byte: not with --shots; "),
        (["--shots", "--sparse"], "--sparse: not with --shots; "),
    ],
)
def test_options_that_do_not_go_together(tmp_path, segy, options, message):
    out = tmp_path / "a.zarr"
    found = outcrop_command("ingest", segy, out, *options)
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: {message}")
    assert len(found.stderr.splitlines()) == 1
    assert not out.exists()


def test_command_line(tmp_path, segy):
    outcrop_ = [sys.executable, "-m", "outcrop.cli.main"]
    out = tmp_path / "a.zarr"
    found = subprocess.run([*outcrop_, "ingest", segy, out], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "5 inline × 4 crossline × 30 twt, float32, 95 % of traces live" in found.stdout
    assert "survey.sgy" in found.stderr  # the progress bar
    again = subprocess.run([*outcrop_, "ingest", segy, out], capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: {out}: already exists")
    assert len(again.stderr.splitlines()) == 1
    more = ["--overwrite", "--chunks", "2,2,8", "--shards", "4,4,16", "--cluster", "local"]
    found = subprocess.run([*outcrop_, "ingest", segy, out, *more], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert outcrop.open(out).amplitude.encoding["chunks"] == (2, 2, 8)
