"""`--select`: a part of a survey, or one volume of a stack, for each command that takes one."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import outcrop
from command_line import outcrop_command
from outcrop import models

SEGY = Path(__file__).parent / "data/segy/f3.sgy"
PART = ("--select", "inline=115:120", "--select", "crossline=880.5:", "--select", "twt=:200")
NETWORK = ("--model", "faultseg3d", "--weights", "synthetic-v1")


def of(survey):
    return survey.sel(inline=slice(115, 120), crossline=slice(881, None), twt=slice(None, 200))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("select")
    f3 = outcrop.ingest(SEGY, folder / "f3.zarr")
    both = xr.concat([f3[["amplitude"]], -2 * f3[["amplitude"]]], "vintage")
    both = both.load().drop_encoding().assign_coords(vintage=["base", "monitor"])
    both.to_zarr(folder / "both.zarr", zarr_format=3)
    return folder


def run(folder, *words):
    done = outcrop_command(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_part_is_predicted_as_that_part_alone(folder):
    says = run(folder, "predict", "f3.zarr", "p.zarr", *NETWORK, *PART)
    assert "6 inline × 12 crossline × 50 twt" in says
    found, part = outcrop.open(folder / "p.zarr"), of(outcrop.open(folder / "f3.zarr"))
    network = models.load("faultseg3d", weights="synthetic-v1")
    due = outcrop.predict(network, part, folder / "due.zarr")
    xr.testing.assert_equal(found.fault_probability, due.fault_probability)
    assert found.inline.values.tolist() == list(range(115, 121))
    assert "50×12×6" in run(folder, "plan", "f3.zarr", "--model", "faultseg3d", *PART)


def test_one_volume_of_a_stack(folder):
    run(folder, "predict", "both.zarr", "m.zarr", *NETWORK, "--select", "vintage=monitor", *PART)
    found = outcrop.open(folder / "m.zarr")
    assert found.fault_probability.dims == ("inline", "crossline", "twt")
    part = of(outcrop.open(folder / "both.zarr").sel(vintage="monitor"))
    network = models.load("faultseg3d", weights="synthetic-v1")
    due = outcrop.predict(network, part, folder / "one.zarr")
    xr.testing.assert_equal(found.fault_probability, due.fault_probability)
    words = ("predict", "both.zarr", "m.zarr", *NETWORK, "--select", "vintage=base", *PART)
    held = "(of inline 115 to 120, crossline 881 to 892, twt 4 to 200 ms, vintage monitor)"
    assert f"already holds another prediction {held}" in outcrop_command(*words, cwd=folder).stderr
    run(folder, "view", "both.zarr", "m.png", "--select", "vintage=monitor")
    done = outcrop_command("view", "both.zarr", "x.png", "--select", "vintage=later", cwd=folder)
    assert "--select vintage=later: give one of base, monitor" in done.stderr


def test_a_part_is_exported_with_its_headers(folder):
    run(folder, "export", "f3.zarr", "part.sgy", *PART)
    back = outcrop.ingest(folder / "part.sgy", folder / "back.zarr")
    due = of(outcrop.open(folder / "f3.zarr"))
    xr.testing.assert_equal(
        back.amplitude.drop_vars("trace_index"), due.amplitude.drop_vars("trace_index")
    )
    xr.testing.assert_equal(
        back.header_CDP_X.drop_vars("trace_index"), due.header_CDP_X.drop_vars("trace_index")
    )


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ("inline=500:600", "f3.zarr: has inline 111 to 133, nothing of it there"),
        ("inline=120:115", "f3.zarr: has inline 111 to 133, nothing of it there"),
        ("inline=900", "f3.zarr: has inline 111 to 133, nothing of it there"),
        ("twt=nan", "f3.zarr: has twt 4 to 300, nothing of it there"),
        ("offset=3", "f3.zarr: has inline, crossline, twt"),
        ("inline=a:b", "give a number, such as inline=500, or a part, such as inline=100:500"),
        ("inline", "give a number, such as inline=500, or a part"),
    ],
)
def test_what_is_not_there_is_one_line(select, says, folder):
    done = outcrop_command("predict", "f3.zarr", "q.zarr", *NETWORK, "--select", select, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --select {select}: {says}")
    assert not (folder / "q.zarr").exists()


def test_not_with_several_surveys(folder):
    words = ("predict", "f3.zarr", "both.zarr", "out", *NETWORK, *PART)
    done = outcrop_command(*words, cwd=folder)
    assert done.stderr == "error: --select: not with 2 surveys; name one at a time\n"


STACKS = {
    "year": (np.array(["2001-06-01", "2005-06-01T12", "2010"], "M8[ns]"), "2005"),
    "day": (np.array(["2001-06-01", "2005-06-01T12", "2010"], "M8[ns]"), "2006-01-01"),
    "unsorted": ([100.5, 500, 300.5], "100:305"),
    "names": (["a", "b:c", "d"], "b:c"),
    "no names": (None, "1"),
}


@pytest.mark.parametrize("which", STACKS)
def test_volumes_of_a_stack_by_whatever_they_are_called(which, folder, tmp_path):
    values, text = STACKS[which]
    f3 = outcrop.open(folder / "f3.zarr")[["amplitude"]].load()
    stack = xr.concat([f3, 2 * f3, 3 * f3], "vintage")
    if values is not None:
        stack = stack.assign_coords(vintage=values)
    stack.drop_encoding().to_zarr(tmp_path / "s.zarr", zarr_format=3)
    run(tmp_path, "export", "s.zarr", "v.npy", "--select", f"vintage={text}")
    due = stack.isel(vintage=[0, 2] if which == "unsorted" else 1).amplitude
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), due)
    words = ("view", "s.zarr", "v.png", "--select", "vintage=2030-01-01")
    if which == "day":
        done = outcrop_command(*words, cwd=tmp_path)
        assert "has vintage 2001-06-01 to 2010-01-01, nothing of it there" in done.stderr


def test_ends_are_included_whatever_they_are_rounded_to(folder, tmp_path):
    f3 = outcrop.open(folder / "f3.zarr")[["amplitude"]].load()
    f3 = f3.assign_coords(twt=0.1 * np.arange(f3.sizes["twt"])).drop_encoding()
    f3.to_zarr(tmp_path / "s.zarr", zarr_format=3)
    run(tmp_path, "export", "s.zarr", "p.npy", "--select", "twt=0.2:0.3")  # 3 * 0.1 is above it
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), f3.amplitude[..., 2:4])


def test_a_line_stays_a_survey(folder):
    run(folder, "export", "f3.zarr", "line.npy", "--select", "inline=114.8")
    line = np.load(folder / "line.npy")
    np.testing.assert_array_equal(
        line, outcrop.open(folder / "f3.zarr").amplitude.sel(inline=[115])
    )
