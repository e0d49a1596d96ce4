"""What was written is checked; what is damaged is named, and read by nobody as zero."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import outcrop
from command_line import outcrop_command
from outcrop.engine.labelled import Framed
from outcrop.engine.variables import template
from outcrop.errors import MissingChunkError, SurveyError
from outcrop.graph import tiles
from outcrop.models.card import OutputCard

SEGY = Path(__file__).parent / "data" / "segy" / "f3.sgy"


class Smooth(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.norm = nn.Conv3d(1, 2, 3, padding=1), nn.InstanceNorm3d(2)

    def forward(self, x):
        return torch.sigmoid(self.norm(self.a(x)))[:, :1]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A survey of several shards, and a prediction of several tiles."""
    folder = tmp_path_factory.mktemp("written")
    outcrop.ingest(SEGY, folder / "survey", chunks=(8, 8, 16), shards=(16, 8, 32))
    outcrop.predict(Smooth().eval(), folder / "survey", folder / "faults", tile=(32, 8, 16))
    return folder


@pytest.fixture(params=["survey", "faults"])
def damaged(request, written, tmp_path):
    path = tmp_path / request.param
    shutil.copytree(written / request.param, path)
    return path


def variable(path):
    return "amplitude" if path.name == "survey" else "prediction"


def test_what_was_written_passes(written):
    for name in ("survey", "faults"):
        found = outcrop.verify(written / name)
        assert found.damage == ()
        on_disk = [p for p in (written / name).glob("*/**/*") if p.is_file()]
        notes = [p for p in on_disk if p.name == "checksums.json"]
        assert found.objects == len(on_disk) - len(notes)
        assert found.size == sum(p.stat().st_size for p in set(on_disk) - set(notes))


def test_plain_xarray_sees_no_more_than_before(written):
    for name, consolidated in itertools.product(("survey", "faults"), (True, False)):
        found = xr.open_zarr(written / name, consolidated=consolidated)
        assert not [n for n in found.variables if "checksum" in str(n)]
        xr.testing.assert_identical(found.load(), outcrop.open(written / name).load())


def test_a_chunk_that_is_gone(damaged):
    chunk = damaged / variable(damaged) / "c" / "1" / "0" / "1"
    chunk.unlink()
    (found,) = outcrop.verify(damaged).damage
    assert (found.array, found.object, found.what) == (variable(damaged), "c/1/0/1", "is missing")
    survey = outcrop.open(damaged)
    values = survey[variable(damaged)]
    shard = values.encoding["shards"] or values.encoding["chunks"]
    first = int(survey.inline[shard[0]])
    assert f"inline {first} to " in found.where
    assert "crossline" in found.where
    assert found.where.endswith(" ms")
    with pytest.raises(MissingChunkError, match=r"c/1/0/1 is missing"):
        values.load()
    # Whoever reads it otherwise meets no zeros either.
    plain = xr.open_zarr(damaged)[variable(damaged)].to_numpy()
    hole = tuple(slice(i * n, (i + 1) * n) for i, n in zip((1, 0, 1), shard, strict=True))
    assert np.isnan(plain[hole]).all()
    assert np.isfinite(np.delete(plain, np.s_[hole[0]], axis=0)).all()


def test_a_prediction_refuses_a_survey_with_a_hole(written, tmp_path):
    path = tmp_path / "survey"
    shutil.copytree(written / "survey", path)
    (path / "amplitude" / "c" / "1" / "0" / "1").unlink()
    with pytest.raises(SurveyError, match=r"amplitude: chunk c/1/0/1 is missing, of inline \d+"):
        outcrop.predict(Smooth().eval(), path, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_labels_that_were_added_are_no_damage(written, tmp_path):
    """As docs/training.md adds them."""
    path = tmp_path / "survey"
    shutil.copytree(written / "survey", path)
    survey = outcrop.open(path)
    some = (survey.amplitude > 0).isel(inline=slice(5)).astype("f4")
    fault = some.where(some.live).reindex_like(survey.amplitude)
    fault = (
        fault.chunk(survey.amplitude.variable.chunksizes).drop_vars([*fault.coords]).drop_encoding()
    )
    added = fault.to_dataset(name="fault").assign_attrs(survey.attrs)
    added.to_zarr(path, mode="a", consolidated=False)
    assert outcrop.open(path).fault.isel(inline=5).isnull().all()
    found = outcrop.verify(path)
    assert not found.damage
    assert found.others == ("fault",)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_bit_that_flipped(where, damaged):
    chunk = damaged / variable(damaged) / "c" / "0" / "1" / "0"
    data = bytearray(chunk.read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 4
    chunk.write_bytes(data)
    found = outcrop.verify(damaged).damage
    assert found
    assert {(d.array, d.object) for d in found} == {(variable(damaged), "c/0/1/0")}
    assert "cannot be decoded" in found[0].what
    assert "inline" in found[0].where
    with pytest.raises(Exception, match=r"checksum|Checksum"):
        xr.open_zarr(damaged)[variable(damaged)].load()


def test_one_chunk_of_a_shard_is_named_alone(written, tmp_path):
    path = tmp_path / "survey"
    shutil.copytree(written / "survey", path)
    shard = path / "amplitude" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1  # in the first chunk of it
    shard.write_bytes(data)
    (found,) = outcrop.verify(path).damage
    survey = outcrop.open(path)
    lines = [int(survey.inline[i]) for i in (0, 7)]
    assert found.where.startswith(f"inline {lines[0]} to {lines[1]}, ")


@pytest.mark.parametrize("how", ["cut", "swapped", "rewritten", "metadata", "no-checksums"])
def test_other_damage(how, damaged):
    name = variable(damaged)
    folder = damaged / name
    one, other = folder / "c" / "0" / "0" / "0", folder / "c" / "0" / "1" / "0"
    what, where = "is not as it was written", "c/0/0/0"
    if how == "cut":
        one.write_bytes(one.read_bytes()[:-7])
        what = "cannot be decoded"
    elif how == "swapped":  # decodes, with checksums that are right for another place
        shutil.copy(other, one)
    elif how == "rewritten":
        array = zarr.open_array(folder, mode="r+")
        array[0, 0, 0] = array[0, 0, 0] + 1
    elif how == "metadata":
        facts = json.loads((folder / "zarr.json").read_text())
        facts["attributes"]["units"] = "m"
        (folder / "zarr.json").write_text(json.dumps(facts))
        where = "zarr.json"
    else:
        (folder / "checksums.json").unlink()
        what, where = "has lost its checksums", ""
    (found, *_) = outcrop.verify(damaged).damage
    assert (found.array, found.object) == (name, where)
    assert what in found.what


@pytest.mark.parametrize("text", ["", '{"c/0/0/0', "[[]]"])
def test_damaged_notes(text, damaged):
    (damaged / variable(damaged) / "checksums.json").write_text(text)
    (found,) = outcrop.verify(damaged).damage
    assert str(found).startswith(f"{variable(damaged)} has damaged checksums or metadata")
    (damaged / "zarr.json").write_text(text)
    with pytest.raises(SurveyError, match=r"zarr\.json: is damaged"):
        outcrop.verify(damaged)


def test_notes_of_another_variable(damaged):
    shutil.copy(damaged / "twt" / "checksums.json", damaged / variable(damaged))
    (found,) = outcrop.verify(damaged).damage
    assert str(found).endswith("has damaged checksums or metadata (c/0 is none of its chunks)")


def test_a_whole_variable_that_is_gone(damaged):
    shutil.rmtree(damaged / "live")
    (found,) = outcrop.verify(damaged).damage
    assert found.array == "live"


@pytest.mark.parametrize("key", ["outcrop_version", "input_sha256", "plan_sha256"])
def test_provenance_that_is_gone(key, written, tmp_path):
    path = tmp_path / "faults"
    shutil.copytree(written / "faults", path)
    root = json.loads((path / "zarr.json").read_text())
    del root["attributes"][key]
    (path / "zarr.json").write_text(json.dumps(root))
    (found,) = outcrop.verify(path).damage
    assert key in str(found)


def test_what_cannot_be_verified(tmp_path, written):
    with pytest.raises(SurveyError, match="nothing: does not exist"):
        outcrop.verify(tmp_path / "nothing")
    with pytest.raises(SurveyError, match="is no Zarr group"):
        outcrop.verify(tmp_path)
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(tmp_path / "foreign", zarr_format=3)
    with pytest.raises(SurveyError, match="has no checksums"):
        outcrop.verify(tmp_path / "foreign")
    # A copy by xarray is another program's; zeros that it leaves out are zeros.
    survey = outcrop.open(written / "survey").load()
    survey["amplitude"][:] = 0
    survey.drop_encoding().to_zarr(tmp_path / "copy", zarr_format=3)
    assert (outcrop.open(tmp_path / "copy").amplitude == 0).all()


def test_zeros_are_stored(tmp_path):
    """A survey of nothing but zeros has all its chunks."""
    data = bytearray(SEGY.read_bytes())
    traces = np.frombuffer(data, np.uint8)[3600:].reshape(-1, 240 + 75 * 2)
    traces[:, 240:] = 0
    (tmp_path / "a.sgy").write_bytes(data)
    outcrop.ingest(tmp_path / "a.sgy", tmp_path / "a", chunks=(8, 8, 16), shards=(16, 8, 32))
    survey = outcrop.open(tmp_path / "a")
    assert (survey.amplitude == 0).all()
    assert outcrop.verify(tmp_path / "a").damage == ()
    stored = [p for p in (tmp_path / "a" / "amplitude" / "c").rglob("*") if p.is_file()]
    assert len(stored) == 2 * 3 * 3


def test_command_line(written, tmp_path):
    path = tmp_path / "faults"
    shutil.copytree(written / "faults", path)
    done = outcrop_command("verify", path)
    assert done.returncode == 0, done.stderr
    assert "all there, decodable and as they were written" in done.stdout
    (path / "prediction" / "c" / "1" / "0" / "0").unlink()
    done = outcrop_command("verify", path)
    assert done.returncode == 2
    assert "prediction c/1/0/0 is missing, of inline" in done.stdout
    assert done.stderr.strip().splitlines()[-1].endswith("or write it again (--overwrite)")


# Which tile writes which object

# Extents of a tile, and of a volume of at most four tiles along each axis.
along = st.integers(1, 200).flatmap(lambda t: st.tuples(st.just(t), st.integers(1, 4 * t)))
dimensions = st.permutations(("inline", "crossline", "twt"))


@settings(max_examples=60, deadline=None)
@given(st.tuples(along, along, along), st.tuples(*[st.integers(0, 40)] * 3), dimensions, dimensions)
def test_no_object_is_written_by_two_tiles(pairs, before, dims, axes):
    """Whatever the tile, the padding and the order of the axes."""
    tile, shape = zip(*pairs, strict=True)
    sizes = dict(zip(axes, shape, strict=True))
    volume = xr.DataArray(
        np.broadcast_to(np.float32(0), [sizes[d] for d in dims]),
        {d: np.arange(sizes[d]) for d in dims},
        dims,
        "amplitude",
    )
    grid = tuple(n + 2 * b for n, b in zip(shape, before, strict=True))
    framed = Framed({"amplitude": volume}, None, tuple(axes), before, grid)
    card = OutputCard("p", "p", "1", (0, 1))
    _, encoding = template(framed, [(tile, [card])])
    extent = encoding["p"].get("shards") or encoding["p"]["chunks"]
    assert all(s % c == 0 for s, c in zip(extent, encoding["p"]["chunks"], strict=True))
    turn = [axes.index(d) for d in dims]
    writers = {}
    for n, each in enumerate(tiles(framed.domain, tile)):
        inside = each.shifted([-b for b in before])
        # Tensors between stages: chunks of a tile, from the start of the domain.
        assert all(a % t == 0 for a, t in zip(each.within(framed.domain).start, tile, strict=True))
        touched = [
            range(inside.start[i] // e, -(-inside.stop[i] // e))
            for i, e in zip(turn, extent, strict=True)
        ]
        for index in itertools.product(*touched):
            assert writers.setdefault(index, n) == n
    counts = [-(-sizes[d] // e) for d, e in zip(dims, extent, strict=True)]
    assert len(writers) == np.prod(counts)


def test_damage_is_named_by_info_and_export_too(tmp_path):
    survey = tmp_path / "s.zarr"
    outcrop.ingest(SEGY, survey)
    chunk = next((survey / "amplitude" / "c").rglob("0"))
    while chunk.is_dir():
        chunk = chunk / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 255
    chunk.write_bytes(data)
    where = r"amplitude: chunk c/0/0/0 cannot be decoded, of inline 111 to 133"
    with pytest.raises(SurveyError, match=where):
        outcrop.info(survey)
    with pytest.raises(SurveyError, match=where):
        outcrop.export(outcrop.open(survey), tmp_path / "o.sgy")
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


def test_a_damaged_chunk_of_a_part_is_not_counted_from_its_start(written, tmp_path):
    shutil.copytree(written / "survey", tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "amplitude" / "c" / "1" / "1" / "0").write_bytes(b"cut off")
    volume = outcrop.open(tmp_path / "s.zarr")["amplitude"]
    first, out = volume["inline"].to_numpy()[16], tmp_path / "o.npy"
    with pytest.raises(SurveyError, match=rf"a chunk cannot .* inline {first} to .* verify names"):
        outcrop.export(volume[16:], out)
    for whole in (volume, volume.transpose("twt", "crossline", "inline")):
        with pytest.raises(SurveyError, match=r"chunk c/1/1/0 cannot .* restore that file"):
            outcrop.export(whole, out)


@pytest.mark.parametrize("name", ["live", "cdp_x", "trace_index", "header_CDP"])
def test_damage_of_what_has_no_samples_is_named_too(name, written, tmp_path):
    survey = tmp_path / "s.zarr"
    shutil.copytree(written / "survey", survey)
    (survey / name / "c" / "0" / "0").write_bytes(b"cut off")
    users = {
        "live": [outcrop.info, lambda s: outcrop.predict(Smooth().eval(), s, tmp_path / "o.zarr")],
        "cdp_x": [outcrop.info, lambda s: outcrop.predict(Smooth().eval(), s, tmp_path / "o.zarr")],
    }
    for use in users.get(name, [lambda s: outcrop.export(s, tmp_path / "o.sgy")]):
        with pytest.raises(SurveyError, match=rf"{name}: chunk c/0/0 cannot be decoded, of inline"):
            use(survey)
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]
