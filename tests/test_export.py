"""One volume in, one file out: SEG-Y as it came, raw float32, NumPy and VTK."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import dask.array
import numpy as np
import pytest
import segyio
import torch
import xarray as xr

import outcrop
from outcrop.cluster import connect
from outcrop.errors import ArgumentError, OutcropError, OutputExistsError, SurveyError
from outcrop.survey import blocks
from outcrop.survey.encode import CODES, stored_dtype
from segy_files import write_segy

DATA = Path(__file__).parent / "data/segy"
FORMATS = sorted(CODES.values())
ENDIAN = {">": "big", "<": "little"}


def cube(shape: tuple[int, ...], code: int, seed: int = 0) -> np.ndarray:
    """Samples that a format holds, up to its limits."""
    rng = np.random.default_rng(seed)
    dtype = stored_dtype(code)
    if code in (1, 5, 6):
        exponent = rng.uniform(-20, 20, shape)
        return (rng.choice([-1, 1], shape) * np.exp(exponent)).astype("f8" if code == 6 else "f4")
    limits = np.iinfo(dtype)
    samples = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    samples.flat[:2] = limits.min, limits.max
    return samples


@pytest.fixture(scope="module")
def f3(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return outcrop.ingest(DATA / "f3.sgy", tmp_path_factory.mktemp("f3") / "f3.zarr")


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An IEEE SEG-Y of 6 × 5 × 20 samples with holes, crossline-sorted, from 100 ms by 2 ms."""
    path = tmp_path_factory.mktemp("holed") / "holed.sgy"
    write_segy(
        path,
        cube((6, 5, 20), 5),
        inlines=range(10, 22, 2),
        crosslines=range(305, 300, -1),
        format=5,
        sorting="crossline",
        missing=[(0, 0), (2, 3), (5, 4)],
        dead=[(1, 1)],
        interval_us=2000,
        delay_ms=100,
    )
    return path


def probability(survey: xr.Dataset, name: str = "fault_probability") -> xr.DataArray:
    """A float volume on the survey's grid, every sample different."""
    rng = np.random.default_rng(1)
    like = survey["amplitude"]
    values = rng.random(like.shape, dtype=np.float32)
    return xr.DataArray(values, dims=like.dims, coords=dict(like.indexes), name=name)


def read(path: Path, endian: str = "big") -> tuple[np.ndarray, list[dict[int, int]], dict]:
    with segyio.open(path, ignore_geometry=True, endian=endian) as file:
        headers = [{int(k): v for k, v in dict(h).items()} for h in file.header]
        return file.trace.raw[:], headers, {int(k): v for k, v in dict(file.bin).items()}


# Unchanged


@pytest.mark.parametrize("name", sorted(p.name for p in DATA.glob("*.sgy")))
@pytest.mark.parametrize("like", ["own", "file"])
def test_unchanged_file_is_the_input(name: str, like: str, tmp_path: Path) -> None:
    path = DATA / name
    survey = outcrop.ingest(path, tmp_path / "survey.zarr")
    out = outcrop.export(survey, tmp_path / "out.sgy", like=path if like == "file" else None)
    assert out == tmp_path / "out.sgy"
    assert out.read_bytes() == path.read_bytes()
    endian = "little" if "lsb" in name else "big"
    with segyio.open(out, strict=True, endian=endian) as file:
        assert file.tracecount == int(survey["live"].sum())


# Trace orders, holes, grids and byte orders meet every format in turn.
CASES = list(
    zip(
        [(code, endian) for code in FORMATS for endian in ("big", "little")],
        itertools.cycle(["inline", "crossline", "random"]),
        itertools.cycle([(), [(0, 1), (3, 2)]]),
        itertools.cycle([0, 2]),
        itertools.cycle([None, None, (10, 20)]),
        itertools.cycle([range(7, 15, 2), range(4, 0, -1)]),
    )
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0][0]}-{c[0][1]}-{c[1]}")
def test_unchanged_survey_is_the_input(case: tuple, tmp_path: Path) -> None:
    (code, endian), sorting, missing, texts, offsets, inlines = case
    shape = (4, 3, 30) if offsets is None else (4, 3, 2, 30)
    path = tmp_path / "in.sgy"
    write_segy(
        path,
        cube(shape, code),
        inlines=inlines,
        crosslines=range(30, 33),
        offsets=offsets,
        format=code,
        endian=endian,
        sorting=sorting,
        missing=[(*m, 1)[: len(shape) - 1] for m in missing],
        ext_headers=texts,
    )
    survey = outcrop.ingest(path, tmp_path / "survey.zarr")
    for like in (None, path):
        out = outcrop.export(survey, tmp_path / "out.sgy", like=like, overwrite=True)
        assert out.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("target", [100, 500, 3000])
def test_blocks_do_not_matter(target: int, monkeypatch: pytest.MonkeyPatch, holed: Path) -> None:
    survey = outcrop.ingest(holed, holed.parent / f"{target}.zarr")
    monkeypatch.setattr(blocks, "TARGET", target)
    monkeypatch.setattr(blocks, "LIMIT", 2 * target)
    out = outcrop.export(survey, holed.parent / f"{target}.sgy")
    assert out.read_bytes() == holed.read_bytes()
    volume = survey["amplitude"].to_numpy()
    raw = outcrop.export(survey, holed.parent / f"{target}.bin")
    np.testing.assert_array_equal(np.fromfile(raw, "<f4").reshape(volume.shape), volume)
    vti = outcrop.export(survey, holed.parent / f"{target}.vti")
    np.testing.assert_array_equal(read_vti(vti)[0], volume)


def test_ibm_words_without_a_float_of_their_own_stay(tmp_path: Path) -> None:
    """Several words stand for one number; an unchanged sample keeps its own."""
    path = tmp_path / "in.sgy"
    write_segy(path, cube((2, 3, 10), 1), inlines=[1, 2], crosslines=[1, 2, 3], format=1)
    data = bytearray(path.read_bytes())
    data[3840:3848] = struct.pack(">2I", 0x42010000, 0x43001000)  # both 1.0, not normalised
    path.write_bytes(data)
    survey = outcrop.ingest(path, tmp_path / "survey.zarr")
    assert survey["amplitude"].to_numpy().flat[0] == 1.0
    out = outcrop.export(survey, tmp_path / "out.sgy", like=path)
    assert out.read_bytes() == path.read_bytes()
    samples = survey["amplitude"].to_numpy()
    out = outcrop.export(-survey["amplitude"], tmp_path / "minus.sgy", like=path)
    np.testing.assert_array_equal(read(out)[0], -samples.reshape(6, 10))


# New samples


def test_fractions_in_an_integer_file_become_ieee(
    f3: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = probability(f3)
    out = outcrop.export(volume, tmp_path / "out.sgy", like=DATA / "f3.sgy")
    assert "fault_probability has fractions" in caplog.text
    assert "written as ieee (sample format 5)" in caplog.text
    samples, headers, binary = read(out)
    old_samples, old_headers, old_binary = read(DATA / "f3.sgy")
    np.testing.assert_array_equal(samples, volume.to_numpy().reshape(old_samples.shape))
    assert headers == old_headers
    assert binary == old_binary | {3225: 5}
    assert out.read_bytes()[:3200] == (DATA / "f3.sgy").read_bytes()[:3200]
    with segyio.open(out, strict=True) as file:
        assert list(file.ilines) == list(range(111, 134))


def test_whole_numbers_stay_in_an_integer_file(
    f3: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = outcrop.export(f3["amplitude"] // 2, tmp_path / "out.sgy", like=f3)
    assert not caplog.records
    samples, _, binary = read(out)
    assert binary[3225] == 3
    np.testing.assert_array_equal(samples, read(DATA / "f3.sgy")[0] // 2)


def test_every_lossless_float_format(f3: xr.Dataset, tmp_path: Path) -> None:
    volume = probability(f3)
    expected = volume.to_numpy().reshape(-1, 75)
    for name, error in {"ieee": 0, "float64": 0, "ibm": 2.0**-21}.items():
        out = outcrop.export(volume, tmp_path / f"{name}.sgy", like=f3, format=name)
        samples, _, binary = read(out)
        assert binary[3225] == CODES[name]
        assert np.all(np.abs(samples - expected) <= error * expected)


@pytest.mark.parametrize(
    "name", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
def test_integer_formats_find_a_scale(
    name: str, f3: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = probability(f3) * 10
    out = outcrop.export(volume, tmp_path / "out.sgy", like=f3, format=name)
    assert "multiplied by" in caplog.text
    samples, headers, binary = read(out)
    assert binary[3225] == CODES[name]
    (power,) = {h[169] for h in headers}
    expected = volume.to_numpy().reshape(-1, 75).astype("f8")
    # The largest that fits: its double would not.
    assert expected.max() * 2.0 ** (power + 1) > np.iinfo(name).max
    assert np.abs(samples.astype("f8") / 2.0**power - expected).max() <= 2.0 ** -(power + 1)


def test_given_scale(f3: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume = probability(f3)
    out = outcrop.export(volume, tmp_path / "out.sgy", like=f3, format="int8", scale=100)
    samples, headers, _ = read(out)
    np.testing.assert_array_equal(samples, np.rint(volume.to_numpy().reshape(-1, 75) * 100.0))
    assert {h[169] for h in headers} == {0}
    assert not caplog.records
    with pytest.raises(SurveyError, match=r"times 1000 has values from"):
        outcrop.export(volume, tmp_path / "two.sgy", like=f3, format="int8", scale=1000)
    assert os.listdir(tmp_path) == ["out.sgy"]


@pytest.mark.parametrize(
    ("values", "format", "message"),
    [
        ([np.nan, 1], "ibm", "NaN or infinite"),
        ([np.nan, 1], "int16", "no NaN or infinite"),
        ([-1, 0.5], "uint8", "nothing below zero"),
        ([1e300, 1], "ieee", r"1e\+300"),
        ([1e300, 1], "ibm", r"1e\+300"),
    ],
)
def test_samples_that_do_not_fit(
    values: list[float], format: str, message: str, f3: xr.Dataset, tmp_path: Path
) -> None:
    volume = probability(f3).astype("f8")
    volume.values.flat[: len(values)] = values
    with pytest.raises(SurveyError, match=message):
        outcrop.export(volume, tmp_path / "out.sgy", like=f3, format=format)
    assert not list(tmp_path.iterdir())


def test_samples_that_are_no_number_are_told_of(
    f3: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = probability(f3)
    volume[3, 2, 5:8] = [np.nan, np.inf, 1.0]
    out = outcrop.export(volume, tmp_path / "out.sgy", like=f3, format="ieee")
    assert "2 samples are NaN or infinite" in caplog.text
    np.testing.assert_array_equal(read(out)[0], volume.to_numpy().reshape(-1, 75))


def test_beyond_float32_becomes_float64(
    f3: xr.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = xr.full_like(f3["amplitude"], 2**24 + 1, dtype=np.int64)
    out = outcrop.export(whole, tmp_path / "out.sgy", like=f3)
    assert "float64 (sample format 6)" in caplog.text
    assert (read(out)[0] == 2**24 + 1).all()
    with pytest.raises(SurveyError, match=r"choose a --format"):
        outcrop.export(whole + 2**53, tmp_path / "two.sgy", like=f3)


# Headers


def test_edited_headers_are_written(f3: xr.Dataset, tmp_path: Path) -> None:
    survey = f3.copy()
    survey["header_CDP_X"] = survey["header_CDP_X"].load() + 7
    survey["header_SourceDepth"] = xr.full_like(survey["header_CDP_X"], -5)  # was constant
    out = outcrop.export(f3["amplitude"], tmp_path / "out.sgy", like=survey)
    _, headers, _ = read(out)
    expected = [h | {181: h[181] + 7, 49: -5} for h in read(DATA / "f3.sgy")[1]]
    assert headers == expected


@pytest.mark.parametrize("charset", ["cp037", "ascii"])
def test_edited_text_headers_are_written(charset: str, tmp_path: Path) -> None:
    path = tmp_path / "a.sgy"
    write_segy(path, cube((2, 3, 9), 5), inlines=[1, 2], crosslines=range(3), ext_headers=2)
    data = bytearray(path.read_bytes())
    lines = ["C 1 AMPLITUDE", "C 2 \0", *[""] * 38]
    data[:3200] = "".join(line.ljust(80) for line in lines).encode(charset)
    path.write_bytes(data)
    survey = outcrop.ingest(path, tmp_path / "a.zarr")
    text = survey.attrs["segy"]["text"]
    text[0] = "C 1 FAULT PROBABILITY\nC 2 BY OUTCROP"
    text[2] += "\nlast"
    found = outcrop.export(survey, tmp_path / "b.sgy").read_bytes()
    assert found[:160].decode(charset) == "".join(line.ljust(80) for line in text[0].split("\n"))
    assert found[160:3200] == data[160:3200]
    assert outcrop.ingest(tmp_path / "b.sgy", tmp_path / "b.zarr").attrs["segy"]["text"] == text
    data[:160], data[6800:10000] = found[:160], found[6800:10000]
    assert found == data
    for bad, message in [
        (["x" * 81, *text[1:]], "1 lines, the longest of 81 characters, .* 40 lines of 80"),
        (["\n" * 40, *text[1:]], "of 41 lines"),
        (["Δt", *text[1:]], "in (EBCDIC|ASCII) cannot have the character 'Δ'"),
        (text[:1], "has 1 text headers, and the SEG-Y has 3"),
    ]:
        survey.attrs["segy"]["text"] = bad
        with pytest.raises(OutcropError, match=message):
            outcrop.export(survey, tmp_path / "c.sgy")


def test_surveys_that_are_joined_do_not_share_headers(tmp_path: Path) -> None:
    parts = []
    for name, first in (("a", 1), ("b", 11)):
        path = tmp_path / f"{name}.sgy"
        inlines = range(first, first + 4)
        write_segy(path, cube((4, 3, 9), 5), inlines=inlines, crosslines=range(3), format=5)
        parts.append(outcrop.ingest(path, tmp_path / f"{name}.zarr"))
    twice = r"trace_index has \d more than once: .* export them one by one"
    for joined in (xr.concat(parts, "inline"), parts[0].isel(inline=[1, 1, 0])):
        with pytest.raises(SurveyError, match=twice):
            outcrop.export(joined, tmp_path / "out.sgy")
    more = parts[0].assign_coords(trace_index=parts[0]["trace_index"] + 7)
    with pytest.raises(SurveyError, match="goes to 18, and its SEG-Y has 12 traces"):
        outcrop.export(more, tmp_path / "out.sgy")
    assert not (tmp_path / "out.sgy").exists()


def test_line_numbers_that_are_not_those_of_the_headers(
    holed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    survey = outcrop.ingest(holed, tmp_path / "survey.zarr")
    other = survey.assign_coords(inline=survey["inline"] + 1000)
    outcrop.export(other, tmp_path / "out.sgy")
    assert "inline 1010 is 10 in header_INLINE_3D, which is written (27 such traces)" in caplog.text
    caplog.clear()
    one = survey.isel(inline=[0])
    outcrop.export(one, tmp_path / "one.sgy")
    other["header_INLINE_3D"] = other["header_INLINE_3D"] + 1000
    outcrop.export(other, tmp_path / "both.sgy")
    assert not caplog.text
    moved = survey.assign_coords(cdp_x=survey["cdp_x"].T + 0.01)
    outcrop.export(moved.transpose(), tmp_path / "moved.sgy")
    assert re.search(r"cdp_x \S+01 is \S+ in header_CDP_X, which is written", caplog.text)
    assert "cdp_y" not in caplog.text


def test_a_given_interval_is_not_in_the_headers(
    holed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    survey = outcrop.ingest(holed, tmp_path / "survey.zarr", interval=4)
    out = outcrop.export(survey, tmp_path / "out.sgy")
    assert "survey.zarr: was ingested with interval=4; the sample interval" in caplog.text
    assert out.read_bytes() == holed.read_bytes()


def test_headers_that_are_none(f3: xr.Dataset, tmp_path: Path) -> None:
    wide = f3.assign(header_TraceWeightingFactor=xr.full_like(f3["trace_index"], 40_000))
    with pytest.raises(SurveyError, match=r"header_TraceWeightingFactor.*40000"):
        outcrop.export(wide, tmp_path / "out.sgy")
    unknown = f3.assign(header_Nonsense=f3["trace_index"])
    with pytest.raises(SurveyError, match=r"Nonsense"):
        outcrop.export(unknown, tmp_path / "out.sgy")
    with pytest.raises(SurveyError, match="header_CDP would not be a number in all traces"):
        outcrop.export(f3.where(f3.inline > 120), tmp_path / "out.sgy")
    with pytest.raises(SurveyError, match="trace_index lies on trace, and"):
        outcrop.export(f3.stack(trace=("inline", "crossline")), tmp_path / "out.sgy")
    for part, gone in (
        (f3.drop_vars("header_CDP_Y"), "header_CDP_Y, which"),
        (f3[["amplitude"]], r"header_\w+, header_\w+, header_\w+, …, which"),
    ):
        with pytest.raises(SurveyError, match=f"has no {gone} the SEG-Y's traces need; pass"):
            outcrop.export(part, tmp_path / "out.sgy")
    assert not list(tmp_path.iterdir())


def test_headers_are_nothing_where_there_is_no_trace(holed: Path, tmp_path: Path) -> None:
    """As xarray's own where and reindex leave them."""
    survey = outcrop.ingest(holed, tmp_path / "survey.zarr")
    out = tmp_path / "out.sgy"
    for other in (survey.where(survey["live"]), survey.reindex(inline=range(6, 26, 2))):
        outcrop.export(other, out, overwrite=True)
        assert out.read_bytes() == holed.read_bytes()
    empty = survey.isel(inline=[0], crossline=[4]).where(survey["live"])
    with pytest.raises(SurveyError, match="has no trace on the lines of the volume"):
        outcrop.export(empty, tmp_path / "empty.sgy")


# Parts


@pytest.mark.parametrize("like", ["own", "file"])
def test_part(like: str, holed: Path, tmp_path: Path) -> None:
    survey = outcrop.ingest(holed, tmp_path / "survey.zarr")
    part = survey.isel(inline=slice(1, 5, 3), crossline=slice(1, None), twt=slice(4, 9))
    out = outcrop.export(part, tmp_path / "out.sgy", like=holed if like == "file" else None)
    samples, headers, binary = read(out)
    old_samples, old_headers, old_binary = read(holed)
    kept = [i for i, h in enumerate(old_headers) if h[189] in (12, 18) and 302 <= h[193] <= 305]
    np.testing.assert_array_equal(samples, old_samples[kept, 4:9])
    assert binary == old_binary | {3221: 5}
    assert headers == [old_headers[i] | {109: 108, 115: 5} for i in kept]


def test_a_later_start_in_the_unit_of_each_trace(holed: Path, tmp_path: Path) -> None:
    """The scalar for times is 1 and −10 in turn: the delay 100 ms is 100 and 1000."""
    path = tmp_path / "in.sgy"
    path.write_bytes(holed.read_bytes())
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        for header in file.header[1::2]:
            header.update({109: 1000, 215: -10})
    survey = outcrop.ingest(path, tmp_path / "survey.zarr")
    for like in (None, path):
        out = outcrop.export(
            survey["amplitude"].isel(twt=slice(4, 9)), tmp_path / "out.sgy", like=like or survey,
            overwrite=True,
        )  # fmt: skip
        delays = [(h[109], h[215]) for h in read(out)[1]]
        assert delays == [(1080, -10) if n % 2 else (108, 0) for n in range(27)]
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        for header in file.header[:]:
            header.update({109: 10, 215: 10})
    part = survey["amplitude"].isel(twt=slice(4, 9))
    with pytest.raises(SurveyError, match=r"8 ms below .* hold multiples of 10 ms"):
        outcrop.export(part, tmp_path / "other.sgy", like=path)


def test_single_line_and_reordered_dimensions(holed: Path, tmp_path: Path) -> None:
    survey = outcrop.ingest(holed, tmp_path / "survey.zarr")
    line = survey["amplitude"].sel(crossline=303)
    out = outcrop.export(line.transpose("twt", "inline"), tmp_path / "out.sgy", like=holed)
    samples, headers, _ = read(holed)
    kept = [i for i, h in enumerate(headers) if h[193] == 303]
    np.testing.assert_array_equal(read(out)[0], samples[kept])


def test_survey_of_a_single_line_or_trace(holed: Path, tmp_path: Path) -> None:
    survey = outcrop.ingest(holed, tmp_path / "survey.zarr")
    samples, headers, _ = read(holed)
    for part, kept in (
        (survey.sel(inline=12), [i for i, h in enumerate(headers) if h[189] == 12]),
        (
            survey.sel(inline=12, crossline=303),
            [i for i, h in enumerate(headers) if (h[189], h[193]) == (12, 303)],
        ),
    ):
        out = outcrop.export(part, tmp_path / "out.sgy", overwrite=True)
        np.testing.assert_array_equal(read(out)[0], samples[kept])
        assert read(out)[1] == [headers[i] for i in kept]
        with pytest.raises(SurveyError, match=r"inline 14 of the volume is not in like, .* 12;"):
            outcrop.export(survey["amplitude"].sel(inline=14), tmp_path / "other.sgy", like=part)


def test_single_offset(tmp_path: Path) -> None:
    path = DATA / "small-ps.sgy"
    survey = outcrop.ingest(path, tmp_path / "survey.zarr")
    far = survey["amplitude"].sel(offset=2)
    out = outcrop.export(far, tmp_path / "out.sgy", like=survey)
    samples, headers, _ = read(path)
    kept = [i for i, h in enumerate(headers) if h[37] == 2]
    np.testing.assert_array_equal(read(out)[0], samples[kept])
    with pytest.raises(SurveyError, match="offset 2 of the volume is not in like, which has 1;"):
        outcrop.export(far, tmp_path / "near.sgy", like=survey.sel(offset=1))
    stack = far.drop_vars("offset")  # takes the headers of that offset
    out = outcrop.export(stack, out, like=survey.sel(offset=1), overwrite=True)
    assert read(out)[1] == [h for h in headers if h[37] == 1]


def test_no_coordinates_but_the_same_size(f3: xr.Dataset, tmp_path: Path) -> None:
    plain = xr.DataArray(f3["amplitude"].to_numpy(), dims=("inline", "crossline", "twt"))
    out = outcrop.export(plain, tmp_path / "out.sgy", like=DATA / "f3.sgy")
    assert out.read_bytes() == (DATA / "f3.sgy").read_bytes()


def test_header_bytes_off_the_standard(tmp_path: Path) -> None:
    path = tmp_path / "in.sgy"
    write_segy(
        path,
        cube((3, 4, 9), 5),
        inlines=range(3),
        crosslines=range(4),
        format=5,
        iline_byte=9,
        xline_byte=21,
    )
    survey = outcrop.ingest(path, tmp_path / "survey.zarr", iline_byte=9, xline_byte=21)
    for like in (path, survey, tmp_path / "survey.zarr"):
        out = outcrop.export(survey, tmp_path / "out.sgy", like=like, overwrite=True)
        assert out.read_bytes() == path.read_bytes()
    for source in (survey.drop_vars("trace_index"), survey["amplitude"].drop_vars("crossline")):
        out = outcrop.export(source, tmp_path / "out.sgy", like=path, overwrite=True)
        assert out.read_bytes() == path.read_bytes()
    # A volume that lost its coordinates' attributes does not know where the file has its numbers.
    with pytest.raises(SurveyError, match=r"bytes 189-192.*pass the survey"):
        outcrop.export(survey["amplitude"].drop_attrs(), tmp_path / "two.sgy", like=path)


def test_swapped_header_bytes_do_not_turn_a_prediction(tmp_path: Path) -> None:
    path = tmp_path / "in.sgy"
    lines = {"inlines": range(1, 7), "crosslines": range(1, 7)}
    write_segy(path, cube((6, 6, 9), 5), **lines, format=5, iline_byte=193, xline_byte=189)
    survey = outcrop.ingest(path, tmp_path / "survey.zarr", iline_byte=193, xline_byte=189)
    whole = outcrop.export(survey["amplitude"], tmp_path / "whole.sgy", like=path)
    assert whole.read_bytes() == path.read_bytes()
    model = torch.nn.Conv3d(1, 1, 3, padding=1).eval()
    made = outcrop.predict(model, survey, tmp_path / "made.zarr")
    (name,) = made.data_vars
    sources = {"dataset": made, "volume": made[name], "path": tmp_path / "made.zarr"}
    for kind, source in sources.items():
        out = outcrop.export(source, tmp_path / f"{kind}.sgy", like=path)
        with segyio.open(out, iline=193, xline=189) as file:
            np.testing.assert_array_equal(segyio.tools.cube(file), made[name].to_numpy())


def test_trace_weighting_is_of_the_original_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, path = tmp_path / "first.sgy", tmp_path / "in.sgy"
    write_segy(first, cube((3, 4, 9), 5) / 100, inlines=range(3), crosslines=range(4), format=5)
    survey = outcrop.ingest(first, tmp_path / "first.zarr")
    outcrop.export(survey, path, format="int16")
    with segyio.open(path) as file:
        (weight,) = set(file.attributes(169)[:].tolist())
    assert weight != 0
    caplog.clear()
    survey = outcrop.ingest(path, tmp_path / "survey.zarr")
    assert f"first is {weight}), which are kept, but not applied" in caplog.text
    again = outcrop.export(survey, tmp_path / "again.sgy", like=path)
    assert again.read_bytes() == path.read_bytes()
    for format, scale, more in (("ieee", None, 0), ("int32", 4, 2), ("int32", 3, -weight)):
        again = outcrop.export(
            survey, tmp_path / "again.sgy", format=format, scale=scale, overwrite=True
        )
        with segyio.open(again) as file:
            assert set(file.attributes(169)[:].tolist()) == {weight + more}
    mask = (survey["amplitude"] > 0).astype(np.uint8).rename("fault")
    with segyio.open(outcrop.export(mask, tmp_path / "mask.sgy", like=path)) as file:
        assert set(file.attributes(169)[:].tolist()) == {0}
        assert int(file.format) == 3


@pytest.mark.parametrize("revision", [1, 2])
def test_only_revision_2_has_wide_counts(revision: int, tmp_path: Path) -> None:
    path = tmp_path / "in.sgy"
    write_segy(path, cube((3, 4, 9), 5), inlines=range(3), crosslines=range(4), format=5)
    with open(path, "r+b") as file:
        for at, value in (
            (3500, bytes([revision, 0])),
            (3268, struct.pack(">I", 9)),
            (3512, struct.pack(">Q", 12)),
        ):
            file.seek(at)
            file.write(value)
    survey = outcrop.ingest(path, tmp_path / "survey.zarr")
    assert outcrop.export(survey, tmp_path / "whole.sgy").read_bytes() == path.read_bytes()
    with open(path, "r+b") as file:  # a count that is wrong stays, too
        file.seek(3512)
        file.write(struct.pack(">Q", 99))
    wrong = outcrop.export(survey, tmp_path / "wrong.sgy", like=path)
    assert wrong.read_bytes() == path.read_bytes()
    part = survey.isel(crossline=slice(1, 3), twt=slice(2, 7))
    head = outcrop.export(part, tmp_path / "out.sgy").read_bytes()
    counts = *struct.unpack_from(">I", head, 3268), *struct.unpack_from(">Q", head, 3512)
    assert counts == ((5, 6) if revision == 2 else (9, 12))


def test_where_there_is_no_trace_samples_do_not_matter(holed: Path, tmp_path: Path) -> None:
    survey = outcrop.ingest(holed, tmp_path / "survey.zarr")
    gaps = survey["amplitude"].where(survey["live"])
    assert gaps.isnull().any()
    out = outcrop.export(gaps, tmp_path / "out.sgy", like=survey)
    assert out.read_bytes() == holed.read_bytes()


def shifted(volume: xr.DataArray, **by: float) -> xr.DataArray:
    return volume.assign_coords({d: volume[d] + b for d, b in by.items()})


MISMATCHES = {
    "inline": (lambda v: shifted(v, inline=1000), "inline 1111…1133 .* 111…133"),
    "crossline": (lambda v: shifted(v, crossline=0.5), "crossline"),
    "start": (lambda v: shifted(v, twt=1), "twt 5…301 by 4 .* 4…300 by 4"),
    "interval": (lambda v: v.isel(twt=slice(None, None, 2)), "twt 4…300 by 8"),
    "bare": (lambda v: v.isel(inline=slice(3)).drop_vars("inline"), "inline has no coordinate"),
    "bare samples": (lambda v: v.isel(twt=slice(3)).drop_vars("twt"), "3 samples"),
    "depth": (lambda v: v.rename(twt="depth"), "runs along depth, and .* along twt"),
    "twice": (lambda v: v.isel(inline=[3, 0, 3]), "inline 114 is in the volume more than once"),
    "words": (lambda v: v.assign_coords(crossline=[*"abcdefghijklmnopqr"]), "crossline a…r of"),
    "more": (lambda v: v.expand_dims(angle=2), "dimensions angle"),
    "less": (lambda v: v.isel(twt=0, drop=True), "dimensions inline, crossline"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_mismatch_is_one_line(case: str, f3: xr.Dataset, tmp_path: Path) -> None:
    change, message = MISMATCHES[case]
    like = f3 if case == "depth" else DATA / "f3.sgy"  # which does not know what it runs along
    with pytest.raises(SurveyError, match=message) as caught:
        outcrop.export(change(probability(f3)), tmp_path / "out.sgy", like=like)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_told_before_all_headers_are_read(
    f3: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outcrop.survey.template.read_headers", lambda *_: pytest.fail("read"))
    volume, out = probability(f3), tmp_path / "out.sgy"
    for source, options, message in [
        (shifted(volume, twt=1), {}, "twt 5…301 by 4"),
        (volume, {"format": "float"}, "format 'float'"),
        (volume, {"format": "ieee", "scale": 2.0}, "integer formats"),
    ]:
        with pytest.raises(SurveyError, match=message):
            outcrop.export(source, out, like=DATA / "f3.sgy", **options)


# Other files


def read_vti(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """Volume over (x, y, z), and the attributes of the image."""
    head, data = path.read_bytes().split(b"\n_", 1)
    size = int.from_bytes(data[:8], "little")
    assert data[8 + size :] == b"\n</AppendedData>\n</VTKFile>\n"
    root = ET.fromstring(head + b"</AppendedData></VTKFile>")
    assert root.attrib["header_type"] == "UInt64"
    image = root.find("ImageData")
    assert image is not None
    ends = list(map(int, image.attrib["WholeExtent"].split()))[1::2]
    dtype = {"Float32": "<f4", "Float64": "<f8"}[next(root.iter("DataArray")).attrib["type"]]
    values = np.frombuffer(data[8 : 8 + size], dtype)
    return values.reshape([e + 1 for e in ends[::-1]]).transpose(2, 1, 0), image.attrib


def test_plain_arrays(f3: xr.Dataset, tmp_path: Path) -> None:
    volume = probability(f3).astype("f8")
    data = xr.Dataset({"fault_probability": volume, "rgt": volume})
    for suffix in (".bin", ".raw", ".DAT"):
        out = outcrop.export(data, tmp_path / f"a{suffix}", variable="fault_probability")
        got = np.fromfile(out, "<f4").reshape(23, 18, 75)
        np.testing.assert_array_equal(got, volume.astype("f4"))
    got = np.load(outcrop.export(volume, tmp_path / "a.npy"), mmap_mode="r")
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, volume)
    got, image = read_vti(outcrop.export(volume, tmp_path / "a.vti"))
    np.testing.assert_array_equal(got, volume)
    assert image["Origin"] == "111.0 875.0 4.0"
    assert image["Spacing"] == "1.0 1.0 4.0"
    turned = volume.transpose("twt", "crossline", "inline")
    got, turned_image = read_vti(outcrop.export(turned, tmp_path / "turned.vti"))
    np.testing.assert_array_equal(got, volume)
    assert turned_image == image
    got = np.load(outcrop.export(turned, tmp_path / "turned.npy"))
    np.testing.assert_array_equal(got, turned)


# Errors


def test_half_precision_for_paraview(f3: xr.Dataset, tmp_path: Path) -> None:
    volume = f3["amplitude"].astype("float16")
    values, _ = read_vti(outcrop.export(volume, tmp_path / "v.vti"))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, volume)


@pytest.mark.parametrize("code", ["int8", "uint8", "int16", "uint16", "int32"])
@pytest.mark.parametrize("power", [-3, 0, 1, 7, 20])
def test_the_scale_is_the_largest_that_fits(
    code: str, power: int, f3: xr.Dataset, tmp_path: Path
) -> None:
    limit = np.iinfo(code).max
    volume = xr.full_like(f3["amplitude"], 0.5 * 2.0**-power, dtype="float64")
    volume[0, 0, 0] = limit * 2.0**-power
    out = outcrop.export(volume, tmp_path / "o.sgy", like=f3, format=code)
    with segyio.open(out) as file:
        assert set(file.attributes(169)[:].tolist()) == {power}


def test_samples_near_zero_find_a_scale(f3: xr.Dataset, tmp_path: Path) -> None:
    tiny = xr.full_like(f3["amplitude"], 1e-320, dtype="float64")
    with segyio.open(outcrop.export(tiny, tmp_path / "o.sgy", like=f3, format="int16")) as file:
        assert (file.attributes(169)[:] == 1023).all()
        assert not file.trace[0].any()


def test_bad_requests(f3: xr.Dataset, tmp_path: Path) -> None:
    volume = probability(f3)
    two = xr.Dataset({"a": volume, "b": volume})
    out, keep = tmp_path / "out.sgy", tmp_path / "keep.sgy"
    keep.write_text("keep")
    like = {"like": DATA / "f3.sgy"}
    for source, path, options, kind, message in [
        (volume, keep, like, OutputExistsError, "already exists.*--overwrite"),
        (volume, tmp_path, like, OutcropError, "unknown suffix"),
        (volume, tmp_path / "a.zip", like, OutcropError, "unknown suffix '.zip'.*.sgy"),
        (volume, tmp_path / "no/a.sgy", like, OutcropError, "there is no folder"),
        (f3.drop_attrs(), out, {}, SurveyError, "zarr: keeps no SEG-Y headers.*--like"),
        (f3.drop_attrs().amplitude, out, {}, SurveyError, "^the source: keeps no SEG-Y headers"),
        (
            f3.drop_vars("trace_index"),
            out,
            {},
            SurveyError,
            "headers; .*or drop its attribute segy",
        ),
        (volume, out, {"like": tmp_path / "gone.sgy"}, OutcropError, "gone.sgy"),
        (volume, out, {"like": keep}, OutcropError, "keep.sgy"),
        (volume, out, {**like, "format": "float"}, SurveyError, "format 'float': choose same, ibm"),
        (volume, out, {**like, "scale": 2.0, "format": "ieee"}, SurveyError, "integer formats"),
        (volume, out, {**like, "scale": 0.0, "format": "int8"}, SurveyError, "above zero"),
        (volume, tmp_path / "a.npy", like, OutcropError, "are for SEG-Y"),
        (two, out, like, SurveyError, "volumes: a, b; name one.*--variable"),
        (two, out, {**like, "variable": "c"}, SurveyError, "no variable 'c', but a, b"),
        (volume.to_numpy(), out, like, SurveyError, "is a ndarray"),
        (volume * 1j, out, like, SurveyError, "no real numbers"),
        (tmp_path / "gone.zarr", out, like, SurveyError, "does not exist"),
        (DATA / "f3.sgy", out, like, SurveyError, "ingest SEG-Y"),
        (volume.astype("f8") * 1e300, tmp_path / "a.bin", {}, SurveyError, "float32 does not hold"),
        (volume.expand_dims("offset"), tmp_path / "a.vti", {}, SurveyError, "3-D"),
        (volume.isel(inline=[0, 1, 5]), tmp_path / "a.vti", {}, SurveyError, "inline is not"),
        (volume.isel(inline=[1, 1, 1]), tmp_path / "a.vti", {}, SurveyError, "inline is not"),
    ]:
        with pytest.raises(kind, match=message) as caught:
            outcrop.export(source, path, **options)
        assert "\n" not in str(caught.value)
    assert keep.read_text() == "keep"
    assert list(tmp_path.iterdir()) == [keep]
    outcrop.export(volume, keep, overwrite=True, **like)
    assert read(keep)[0].shape == (414, 75)


def test_what_is_read_is_not_written_over(holed: Path, tmp_path: Path) -> None:
    original = tmp_path / "original.sgy"
    original.write_bytes(holed.read_bytes())
    survey = outcrop.ingest(original, tmp_path / "survey.zarr")
    with pytest.raises(ArgumentError, match=r"original.sgy: is the SEG-Y .* that is read"):
        outcrop.export(probability(survey), original, like=original, overwrite=True)
    assert original.read_bytes() == holed.read_bytes()
    for like in (None, tmp_path / "survey.zarr"):
        with pytest.raises(ArgumentError, match=r"a.sgy: lies within the .* that is read"):
            outcrop.export(survey, tmp_path / "survey.zarr" / "a.sgy", like=like)


def test_a_link_leads_to_the_file(holed: Path, tmp_path: Path) -> None:
    link, disk = tmp_path / "out.sgy", tmp_path / "disk"
    disk.mkdir()
    link.symlink_to(disk / "large.sgy")
    survey = outcrop.ingest(holed, tmp_path / "survey.zarr")
    for overwrite in (False, True):
        outcrop.export(survey, link, overwrite=overwrite)
        assert link.is_symlink()
        assert (disk / "large.sgy").read_bytes() == holed.read_bytes()


# Interrupted, and out of resources


# It interrupts itself at the tenth block.
INTERRUPTED = """
import os, sys, time, dask.array, xarray as xr, outcrop
from outcrop.survey import blocks
read = []
def block(x):
    read.append(x)
    if len(read) == 10:
        print(*os.listdir(), flush=True)
        os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(0.05)
    return x
data = dask.array.zeros((400, 64, 64), chunks=(4, 64, 64), dtype="f4")
data = data.map_blocks(block, meta=data._meta)
volume = xr.DataArray(data, dims=("inline", "crossline", "twt"))
blocks.TARGET = 1 << 16
outcrop.export(volume, "out.npy", overwrite=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_export_leaves_nothing_under_its_name(
    how: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "out.npy"
    out.write_text("what was there")
    command = [sys.executable, "-c", INTERRUPTED, str(int(how))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert re.search(r"\.out\.npy\.\w+\.part", done.stdout), done.stderr
    assert done.returncode == -how
    assert out.read_text() == "what was there"
    if how == signal.SIGINT:
        assert list(tmp_path.iterdir()) == [out]


def test_interrupted_just_as_the_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = Path.open, []

    def interrupted(path: Path, mode: str) -> None:
        real(path, mode).close()
        made.append(path.exists())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", interrupted)
    volume = xr.DataArray(np.zeros((2, 3, 4), "f4"), dims=("inline", "crossline", "twt"))
    with pytest.raises(KeyboardInterrupt):
        outcrop.export(volume, tmp_path / "out.npy")
    assert made == [True]
    assert not list(tmp_path.iterdir())


def test_no_space_is_known_before(tmp_path: Path) -> None:
    huge = dask.array.zeros((10**6, 10**6, 10**4), chunks=10**4, dtype="f4")
    volume = xr.DataArray(huge, dims=("inline", "crossline", "twt"))
    with pytest.raises(OutcropError, match=r"no space left: it takes 4e\+07 GB"):
        outcrop.export(volume, tmp_path / "out.npy")
    assert not list(tmp_path.iterdir())


def test_no_space_on_the_way(tmp_path: Path) -> None:
    """A limit on file size stands for a disk that fills up: the same error from the system."""
    code = f"""
import resource, numpy as np, xarray as xr, outcrop
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
volume = xr.DataArray(np.zeros((10, 10, 100), "f4"), dims=("inline", "crossline", "twt"))
try:
    outcrop.export(volume, {str(tmp_path / "out.npy")!r})
except outcrop.OutcropError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "no space left after part" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_volume(tmp_path: Path) -> None:
    """1.2 GB of float32 into SEG-Y, by a process of less than half of that."""
    survey = outcrop.ingest(DATA / "f3.sgy", tmp_path / "f3.zarr")
    kept = dict(survey.attrs["segy"], samples=800, traces=360_000, varying=["CDP"])
    code = f"""
import dask.array, numpy as np, xarray as xr, outcrop
shape, dims = (600, 600), ("inline", "crossline")
data = dask.array.ones((*shape, 800), chunks=(100, 100, 800), dtype="f4")
survey = xr.Dataset(
    {{
        "amplitude": ((*dims, "twt"), data),
        "trace_index": (dims, np.arange(360_000).reshape(shape)),
        "header_CDP": (dims, np.arange(360_000, dtype="i4").reshape(shape)),
    }},
    {{"inline": np.arange(600), "crossline": np.arange(600), "twt": 4.0 + 4 * np.arange(800)}},
    {{"segy": {kept!r}}},
)
outcrop.export(survey, {str(tmp_path / "out.sgy")!r})
with open("/proc/self/status") as status:  # unlike ru_maxrss, not the parent's
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out.sgy"
    assert out.stat().st_size == 3600 + 360_000 * (240 + 1600)
    assert int(done.stdout) < 600_000
    with open(out, "rb") as file:
        file.seek(3600 + 359_999 * 1840)
        last = file.read(1840)
    assert last[20:24] == struct.pack(">i", 359_999)
    assert last[240:] == struct.pack(">h", 1) * 800
    out.unlink()


def test_headers_count_in_the_size_of_a_block() -> None:
    """Of a time slice, each sample brings a header of 240 bytes."""
    for chunks in ((64, 64, 1), (4000, 4000, 1)):
        data = dask.array.zeros((4000, 4000, 1), chunks=chunks, dtype="f4")
        cut = blocks.blocks(xr.DataArray(data), order=[1, 0], whole=[2], beside=240)
        traces = [math.prod(s.stop - s.start for s in block) for block in cut]
        assert sum(traces) == 4000 * 4000
        assert max(traces) * 244 <= (blocks.TARGET if chunks[0] == 64 else blocks.LIMIT)


# Volumes that come from no SEG-Y


def of_no_segy(lines: bool) -> xr.DataArray:
    """Over numbered lines, with places, and traces that are missing; or over places alone."""
    rng = np.random.default_rng(0)
    volume = xr.DataArray(
        rng.standard_normal((5, 4, 30)).astype("f4"),
        dims=("inline", "crossline", "twt"),
        coords={"twt": 100 + 2.5 * np.arange(30)},
        name="probability",
    )
    lateral = ("inline", "crossline")
    if lines:
        return volume.assign_coords(
            inline=np.arange(100, 110, 2),
            crossline=[7, 8, 9, 10],
            live=(lateral, rng.random((5, 4)) > 0.2),
            cdp_x=(lateral, rng.uniform(5e5, 6e5, (5, 4)), {"units": "m"}),
            cdp_y=(lateral, rng.uniform(6e6, 7e6, (5, 4)), {"units": "m"}),
        )
    for dim, step in (("inline", 12.5), ("crossline", 20.0)):
        volume = volume.assign_coords(
            {dim: (dim, 10 + step * np.arange(volume.sizes[dim]), {"units": "m"})}
        )
    return volume.rename(twt="depth").transpose("depth", "crossline", "inline")


@pytest.mark.parametrize("lines", [True, False])
def test_headers_are_made_of_coordinates(
    lines: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = of_no_segy(lines)
    out = outcrop.export(volume, tmp_path / "o.sgy")
    assert "comes from no SEG-Y; headers are made of its coordinates" in caplog.text
    domain = "time" if lines else "depth"
    survey = outcrop.ingest(out, tmp_path / "o.zarr", domain=domain).load()
    live = volume.live if lines else xr.ones_like(survey.live)
    assert (survey.live.to_numpy() == live.to_numpy()).all()
    there = volume.transpose(*survey.amplitude.dims).to_numpy()
    found = survey.amplitude.where(survey.live).to_numpy()
    np.testing.assert_array_equal(found, np.where(survey.live.to_numpy()[..., None], there, np.nan))
    dim = survey.amplitude.dims[-1]
    np.testing.assert_allclose(survey[dim], volume[dim])
    if lines:
        assert survey.inline.to_numpy().tolist() == volume.inline.to_numpy().tolist()
        assert survey.crossline.to_numpy().tolist() == volume.crossline.to_numpy().tolist()
        x, y = volume.cdp_x, volume.cdp_y
    else:
        assert survey.inline.to_numpy().tolist() == [1, 2, 3, 4, 5]
        x, y = xr.broadcast(volume.inline, volume.crossline)
    for name, at in (("cdp_x", x), ("cdp_y", y)):
        wrong = np.abs(survey[name].to_numpy() - at.to_numpy())[survey.live.to_numpy()]
        assert wrong.max() <= 0.00501
    with segyio.open(out, ignore_geometry=True) as file:
        assert "BY 2.5 M" in file.text[0].decode()
        assert file.bin[3501] in (1, 0x100)
    assert "sample every" not in caplog.text
    # One line of it, and headers of the same from then on.
    line = outcrop.export(volume.isel(inline=2), tmp_path / "line.sgy")
    assert outcrop.info(line).traces == int(survey.live[2].sum())
    outcrop.export(survey, tmp_path / "again.sgy")
    assert (tmp_path / "again.sgy").read_bytes() == out.read_bytes()


def test_traces_that_are_too_long_for_revision_1(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = np.arange(3 * 70_000, dtype="f4").reshape(1, 3, -1)
    twt = np.arange(70_000) * 0.004  # as if in seconds
    volume = xr.DataArray(samples, {"twt": twt}, ("inline", "crossline", "twt"), "amplitude")
    out = outcrop.export(volume, tmp_path / "o.sgy")
    assert "twt has a sample every 0.004 ms, and is written so" in caplog.text
    survey = outcrop.ingest(out, tmp_path / "o.zarr")
    np.testing.assert_array_equal(survey.amplitude, samples)
    np.testing.assert_allclose(survey.twt, twt)


def test_headers_have_one_unit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume = of_no_segy(False)
    outcrop.export(volume, tmp_path / "m.sgy")
    assert "one unit" not in caplog.text
    volume.depth.attrs["units"] = "ft"
    outcrop.export(volume, tmp_path / "ft.sgy")
    assert "positions are in m and depths in ft, and headers have one unit" in caplog.text


@pytest.mark.parametrize(("far", "scalar"), [(2e7, -100), (3e7, -10), (3e8, 1)])
def test_positions_are_as_fine_as_headers_hold(far: float, scalar: int, tmp_path: Path) -> None:
    volume = of_no_segy(False)
    volume = volume.assign_coords(inline=volume.inline.copy(data=far + 25 * np.arange(5)))
    out = outcrop.export(volume, tmp_path / "o.sgy")
    survey = outcrop.ingest(out, tmp_path / "o.zarr", domain="depth")
    np.testing.assert_array_equal(survey.cdp_x[:, 0], volume.inline)
    assert survey.attrs["segy"]["trace_header"]["SourceGroupScalar"] == scalar
    assert f"SCALAR {scalar} IN BYTES 71-72" in survey.attrs["segy"]["text"][0]


def test_positions_that_are_no_lengths_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = of_no_segy(True)
    volume.cdp_x.attrs["units"] = "degree"
    outcrop.export(volume, tmp_path / "o.sgy")
    assert "cdp_x is in degree, no length, and left out" in caplog.text


def test_a_start_in_seconds_is_a_whole_ms(tmp_path: Path) -> None:
    volume = of_no_segy(True)
    late = volume.assign_coords(twt=1000 * (1.001 + (volume.twt - volume.twt[0]) / 1000))
    assert late.twt[0] % 1 > 0.9  # 1000.9999999999999
    outcrop.export(late, tmp_path / "o.sgy")
    twt = outcrop.ingest(tmp_path / "o.sgy", tmp_path / "o.zarr").twt
    np.testing.assert_allclose(twt, late.twt, rtol=0, atol=1e-6)


def test_coordinates_of_which_no_headers_can_be_made(tmp_path: Path) -> None:
    volume = of_no_segy(True)
    uneven = volume.twt.to_numpy().copy()
    uneven[7] += 1
    for bad, message in [
        (volume.assign_coords(twt=uneven), "headers hold one interval.*resample it"),
        (volume.assign_coords(twt=volume.twt * 1.0003), "headers hold one interval"),
        (volume.assign_coords(twt=volume.twt.where(volume.twt > 100)), "headers hold one interval"),
        (
            volume.assign_coords(twt=volume.twt + 0.5),
            r"twt starts at 100\.5, and headers hold whole ms.*start at another",
        ),
        (volume.drop_vars("twt"), "twt has no coordinate"),
        (volume.assign_coords(inline=volume.inline + 0.5), "header_INLINE_3D"),
        (volume.assign_coords(inline=[*"abcde"]), "header_INLINE_3D would not be a number"),
        (volume.expand_dims(angle=[1, 2]), "dimensions .*angle.*select along the others"),
        (volume.where(volume.live, drop=False).assign_coords(live=volume.live & False), "no trace"),
    ]:
        with pytest.raises(SurveyError, match=message):
            outcrop.export(bad, tmp_path / "o.sgy")
    assert not list(tmp_path.iterdir())


# Command line and clusters


def outcrop_command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outcrop.cli.main", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_command_line(f3: xr.Dataset, tmp_path: Path) -> None:
    faults, like = tmp_path / "faults.zarr", DATA / "f3.sgy"
    xr.Dataset({"fault_probability": probability(f3)}).to_zarr(faults)
    done = outcrop_command("export", faults, tmp_path / "faults.sgy", "--like", like)
    assert done.returncode == 0, done.stderr
    assert "written as ieee (sample format 5)" in done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'faults.sgy'}: fault_probability, 23 inline × ")
    done = outcrop_command("export", faults, tmp_path / "faults.sgy", "--like", like)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    more = ["--variable", "fault_probability", "--format", "int16", "--scale", "1000"]
    done = outcrop_command(
        "export", faults, tmp_path / "faults.sgy", "--like", like, "--overwrite", *more
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "faults.sgy")[2][3225] == 3
    done = outcrop_command("export", faults, tmp_path / "faults.raw")
    assert "23 inline × 18 crossline × 75 twt" in done.stdout.splitlines()[-1]


def test_client_computes(f3: xr.Dataset, tmp_path: Path) -> None:
    with connect("local", workers=1) as client:
        volume = probability(f3).chunk(inline=5, twt=40)
        there = volume.copy(data=volume.data.map_blocks(_on_a_worker, dtype="f4"))
        out = outcrop.export(there, tmp_path / "out.sgy", like=f3, format="ieee", client=client)
    np.testing.assert_array_equal(read(out)[0], volume.to_numpy().reshape(-1, 75))


def _on_a_worker(block: np.ndarray) -> np.ndarray:
    from distributed import get_worker

    if block.size:
        get_worker()
    return block
