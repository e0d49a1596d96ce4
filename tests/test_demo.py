"""The whole path as a user meets it: the demo, the notebook, the workflow."""

import re
import runpy
import shutil
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pytest
import segyio
import torch
import xarray as xr
from nbclient import NotebookClient

import outcrop
from command_line import outcrop_command, script_command
from outcrop import models
from outcrop.errors import OutputExistsError
from outlines import filled

ROOT = Path(__file__).parents[1]
F3 = ROOT / "tests" / "data" / "segy" / "f3.sgy"


def whole(survey, faults, weights="seeded"):
    """What the network gives on the survey in one piece, in the survey's order of axes."""
    model = outcrop.models.load("faultseg3d", weights=weights)
    x = (survey.amplitude - faults.amplitude_mean) / faults.amplitude_standard_deviation
    x = x.where(faults.live, 0.0).transpose("inline", "crossline", "twt").to_numpy()
    x = filled(x, faults.live.to_numpy()).T
    before = [-n % 8 // 2 for n in x.shape]
    pads = [(b, -n % 8 - b) for b, n in zip(before, x.shape, strict=True)]
    padded = np.pad(x, pads, "symmetric")
    with torch.inference_mode():
        y = model(torch.from_numpy(padded.astype(np.float32))[None, None])[0, 0].numpy()
    inside = tuple(slice(b, b + n) for b, n in zip(before, x.shape, strict=True))
    return y[inside].T


def assert_exact(probability, expected):
    assert np.ptp(expected) > 0.3  # there is something to get wrong
    np.testing.assert_allclose(probability.to_numpy(), expected, atol=3e-5, rtol=0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    # What an interrupted demo may have left.
    (folder / "out" / "synthetic.zarr" / "unfinished").mkdir(parents=True)
    (folder / "out" / "synthetic.zarr" / "unfinished" / "zarr.json").write_text("{}")
    for name in ("synthetic.sgy", "faults.sgy", "sections.png"):
        (folder / "out" / name).write_text("cut off")
    command = ("demo", "--out", "out", "--size", 44, "--workers", 2)
    return folder / "out", outcrop_command(*command, cwd=folder)


def test_demo_runs_and_says_what_it_found(demo):
    folder, done = demo
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for step in ("ingest", "predict", "export"):
        assert re.search(rf"{step}.*M(B|voxels)/s", text), step
    assert "not trained" not in text  # the weights that come with outcrop
    difference = {
        name: float(re.search(rf"{name} .*?([\d.]+e[+-]\d+)", text)[1])
        for name in ("tiles against whole, float32", "tiles against whole, float64")
    }
    assert difference["tiles against whole, float64"] <= 1e-9
    assert difference["tiles against whole, float32"] <= 3e-5
    written = sorted(path.name for path in folder.iterdir())
    assert written == [
        "faults.sgy", "faults.zarr", "labels.png", "sections.png", "synthetic.sgy",
        "synthetic.zarr",
    ]  # fmt: skip
    for name in written:
        assert name in text


def test_what_the_demo_wrote_is_right(demo):
    folder, _ = demo
    survey, faults = (xr.open_zarr(folder / f"{name}.zarr") for name in ("synthetic", "faults"))
    assert survey.amplitude.shape == (44, 44, 44)
    assert 5 <= int((~survey.live).sum()) < int((~faults.live).sum()) < 40
    assert_exact(faults.fault_probability, whole(survey, faults, "synthetic-v1"))
    for name in ("inline", "crossline", "twt", "cdp_x"):
        np.testing.assert_array_equal(faults[name], survey[name])

    with (
        segyio.open(folder / "synthetic.sgy", ignore_geometry=True) as before,
        segyio.open(folder / "faults.sgy", ignore_geometry=True) as after,
    ):
        assert before.text[0] == after.text[0]
        il, xl = (before.attributes(byte)[:] for byte in (189, 193))
        for byte in (73, 181, 185, 189, 193):
            np.testing.assert_array_equal(before.attributes(byte)[:], after.attributes(byte)[:])
        traces = faults.fault_probability.where(faults.live, 0).sel(
            inline=xr.DataArray(il, dims="t"), crossline=xr.DataArray(xl, dims="t")
        )
        np.testing.assert_allclose(after.trace.raw[:], traces, rtol=1e-6)
    for name in ("labels.png", "sections.png"):
        image = matplotlib.image.imread(folder / name)[..., :3]
        assert np.ptp(image, axis=2).max() > 0.5  # something warm on top of the greys


def test_demo_leaves_the_files_of_others_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(outcrop.OutcropError, match=r"mine\.txt"):
        outcrop.demo.run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_demo_leaves_files_of_the_same_names_alone(tmp_path):
    (tmp_path / "faults.sgy").write_text("precious")
    with pytest.raises(outcrop.OutcropError, match=r"faults\.sgy, which no demo wrote"):
        outcrop.demo.run(tmp_path)
    with pytest.raises(outcrop.OutcropError, match=r"out: cannot be made \(Not a directory\)"):
        outcrop.demo.run(tmp_path / "faults.sgy" / "out")
    assert (tmp_path / "faults.sgy").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 8}, "size 8"),
        ({"size": 10**5}, r"size 100000: .* takes .* TB of memory.*; take \d+ or less$"),
        ({"workers": 0}, "workers 0"),
        ({"memory": "lots"}, "lots"),
        ({"weights": "none.pth"}, "none.pth"),
    ],
)
def test_demo_with_bad_options_writes_nothing(tmp_path, options, says):
    with pytest.raises(outcrop.OutcropError, match=says):
        outcrop.demo.run(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_notebook_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # it writes into a new temporary folder
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    text = "".join(o.get("text", "") for o in outputs)
    assert float(re.search(r"largest difference: (\S+)", text)[1]) < 3e-5
    (folder,) = tmp_path.glob("outcrop-*")
    assert {p.name for p in folder.iterdir()} == {
        "survey.sgy", "survey.zarr", "faults.zarr", "faults.sgy",
    }  # fmt: skip


def test_workflow_finds_faults_and_goes_on_where_it_stopped(tmp_path):
    script = ROOT / "workflows" / "faults.py"
    how = ("--weights", "seeded", "--cluster", "local", "--workers", 1)
    done = script_command(script, F3, "results", *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "results"
    assert {"survey.zarr", "faults.zarr", "faults.sgy", "faults.png"} == {
        p.name for p in out.iterdir()
    }
    survey, faults = (outcrop.open(out / f"{name}.zarr") for name in ("survey", "faults"))
    assert_exact(faults.fault_probability, whole(survey, faults))
    with segyio.open(out / "faults.sgy") as file:
        assert (len(file.ilines), len(file.xlines), len(file.samples)) == (23, 18, 75)

    # Without its last result it makes that alone.
    before = (out / "faults.zarr" / "zarr.json").stat().st_mtime_ns
    (out / "faults.sgy").unlink()
    runpy.run_path(str(script))["main"](F3, out, weights="seeded")
    assert (out / "faults.sgy").is_file()
    assert (out / "faults.zarr" / "zarr.json").stat().st_mtime_ns == before

    # Of another network, or another survey, it refuses to say that these are the results.
    model = models.load("faultseg3d", weights="seeded")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    models.weights.write(model.state_dict(), tmp_path / "w.safetensors")
    main = runpy.run_path(str(script))["main"]
    with pytest.raises(OutputExistsError, match=r"faults.zarr: .*weights_sha256 differ.*remove it"):
        main(F3, out, weights=tmp_path / "w.safetensors")
    other = tmp_path / F3.name
    shutil.copyfile(F3, other)
    with pytest.raises(OutputExistsError, match=r"survey.zarr: is made of .*, not .* as it is now"):
        main(other, out, weights="seeded")


def test_workflow_explains_itself_and_its_errors(tmp_path):
    script = ROOT / "workflows" / "faults.py"
    shown = script_command(script, "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "--memory" in shown.stdout
    done = script_command(script, "nowhere.sgy", "out", "--weights", "seeded", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nowhere.sgy" in done.stderr
    for name in ("faults", "channels", "rgt"):  # told before hours of work
        other = ("nowhere.sgy", "out", "--weights", "seeded", "--model", "unet25d")
        other = other if name != "faults" else (*other[:-1], "karstseg3d")
        done = script_command(ROOT / "workflows" / f"{name}.py", *other, cwd=tmp_path)
        assert re.match(rf"error: --model {other[-1]}: predicts no \w+\n", done.stderr)
