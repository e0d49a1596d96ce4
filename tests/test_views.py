"""Several views merged, refinement, raw files, horizons, picks, and the workflows on them."""

import os
import re
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import zarr
from torch import nn
from typer.testing import CliRunner

import outcrop
from command_line import outcrop_command
from outcrop import models
from outcrop.cli.main import app
from outcrop.errors import (
    ArgumentError,
    MemoryBudgetError,
    OutcropError,
    OutputExistsError,
    ResumeError,
    SurveyError,
)
from outcrop.events import Begin, End, Tile
from outcrop.horizons import horizons, write_table
from outcrop.models.card import AMPLITUDE, Card, probability
from outcrop.picks import write_picks
from outcrop.survey.raw import write_raw
from test_zoo import make_survey

ROOT = Path(__file__).parents[1]


class Lopsided(nn.Module):
    """A network that sees a difference between every two directions."""

    card = Card("lopsided", "", "", "", "", (AMPLITUDE,), (probability("fault"),))

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.linspace(-1, 1, 27).reshape(1, 1, 3, 3, 3))

    def forward(self, x):
        return torch.sigmoid(self.conv(x))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Lopsided().eval()


@pytest.fixture
def survey():
    made = make_survey({"amplitude"}, shape=(8, 9, 11)) + 1.0  # no trace is dead
    return made.assign_coords(live=(("inline", "crossline"), np.ones((8, 9), bool)))


def plainly(model, values):
    """Normalise and evaluate (inline, crossline, time) samples in one piece."""
    z = (values - values.mean()) / values.std()
    with torch.no_grad():
        y = model.double()(torch.from_numpy(z.transpose(2, 1, 0).copy())[None, None])
    model.float()
    return y[0, 0].numpy().transpose(2, 1, 0)


def interpolated(values, axis, extent):
    at = np.arange(extent) / 2
    return np.apply_along_axis(lambda v: np.interp(at, np.arange(len(v)), v), axis, values)


@pytest.mark.parametrize("merge", ["max", "mean"])
@pytest.mark.parametrize(("angles", "resolutions"), [(True, False), (False, True), (True, True)])
def test_views(merge, angles, resolutions, model, survey, tmp_path):
    path = tmp_path / "o.zarr"
    found = outcrop.predict_views(
        model,
        survey,
        path,
        angles=angles,
        resolutions=resolutions,
        merge=merge,
        threshold=0.6,
        precision="float64",
        tile=(4, 4, 4),
    )
    values = survey.amplitude.values.astype(np.float64)
    expected = [plainly(model, values)]
    if angles:
        expected += [
            np.rot90(plainly(model, np.rot90(values, k, (0, 1))), -k, (0, 1)) for k in (1, 2, 3)
        ]
    if resolutions:
        for axis in range(3):
            every = [slice(None)] * 3
            every[axis] = slice(None, None, 2)
            small = plainly(model, values[tuple(every)])
            expected.append(interpolated(small, axis, values.shape[axis]))
    together = np.max(expected, 0) if merge == "max" else np.mean(expected, 0)
    assert np.abs(found.fault_probability.values - together).max() < 1e-6
    assert (found.fault.values == (found.fault_probability.values >= np.float32(0.6))).all()
    for name in ("inline", "crossline", "twt"):
        xr.testing.assert_equal(found[name], survey[name])
    assert [p.name for p in tmp_path.iterdir()] == ["o.zarr"]


def test_views_go_on_where_they_stopped(model, survey, tmp_path, monkeypatch):
    from outcrop.engine import views

    done = []
    real = views.predict

    def stops(network, data, part, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(Path(part).name)
        return real(network, data, part, **options)

    monkeypatch.setattr(views, "predict", stops)
    path = tmp_path / "o.zarr"
    with pytest.raises(KeyboardInterrupt):
        outcrop.predict_views(model, survey, path, angles=True)
    assert not path.exists()
    monkeypatch.setattr(views, "predict", lambda *a, **k: done.append("again") or real(*a, **k))
    with pytest.raises(ResumeError, match="merge"):
        outcrop.predict_views(model, survey, path, angles=True, merge="mean")
    with pytest.raises(ResumeError, match="input_sha256"):
        outcrop.predict_views(model, survey * 2, path, angles=True)
    with pytest.raises(ResumeError, match="another storage_compression"):
        outcrop.predict_views(model, survey, path, angles=True, storage_compression=True)
    with pytest.raises(ResumeError, match="another merge: 'max', now 'mean'; threshold: None, no"):
        outcrop.predict_views(model, survey, path, angles=True, merge="mean", threshold=0.5)
    outcrop.predict_views(model, survey, path, angles=True)
    assert done.count("again") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["o.zarr"]
    with pytest.raises(OutputExistsError, match=r"another prediction \(views differ\)"):
        outcrop.predict_all(model, [survey], [path])


def test_views_that_overwrite_go_on_where_they_stopped(model, survey, tmp_path, monkeypatch):
    """With those views that are as they were written."""
    from outcrop.engine import views

    path, done, real = tmp_path / "o.zarr", [], views.predict
    how = {"angles": True, "overwrite": True}
    outcrop.predict(model, survey * 2, path)

    def stops(network, data, part, **options):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(part.name)
        return real(network, data, part, **options)

    monkeypatch.setattr(views, "predict", stops)
    with pytest.raises(KeyboardInterrupt):
        outcrop.predict_views(model, survey, path, **how)
    chunk = tmp_path / "o.zarr.steps" / done[0] / "fault_probability" / "c" / "0" / "0" / "0"
    chunk.unlink()
    again = []
    monkeypatch.setattr(views, "predict", lambda *a, **k: again.append(a[2].name) or real(*a, **k))
    outcrop.predict_views(model, survey, path, **how)
    assert len(again) == 2
    assert done[0] in again
    assert outcrop.verify(path).damage == ()
    assert [p.name for p in tmp_path.iterdir()] == ["o.zarr"]


@pytest.mark.filterwarnings("ignore::outcrop.patience.StorageRefused")
def test_views_on_a_disk_that_refuses(model, survey, tmp_path, monkeypatch):
    from outcrop import patience
    from outcrop.engine import steps, views

    path, count, note = tmp_path / "o.zarr", [], steps.write_whole
    monkeypatch.setattr(patience, "WAITS", (0.0,))

    def full(where, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(steps, "write_whole", full)
    with pytest.raises(OutcropError, match=r"o\.zarr\.steps: no space left .* goes on where"):
        outcrop.predict_views(model, survey, path, angles=True)
    monkeypatch.setattr(steps, "write_whole", note)
    record = tmp_path / "o.zarr.steps" / "record.json"
    record.write_text("")
    with pytest.raises(ResumeError, match=r"record\.json: is damaged; .*--overwrite"):
        outcrop.predict_views(model, survey, path, angles=True)
    record.unlink()
    put = zarr.Array.__setitem__

    def once(array, *arguments):
        if array.ndim == 3:  # of the volume, not of its axes
            count.append(1)
            if len(count) == 1:
                raise OSError(5, "Input/output error")
        put(array, *arguments)

    merge = views._merge

    def merged(*arguments):
        monkeypatch.setattr(zarr.Array, "__setitem__", once)
        merge(*arguments)

    monkeypatch.setattr(views, "_merge", merged)
    found = outcrop.predict_views(model, survey, path, angles=True)
    assert len(count) > 1
    assert np.isfinite(found.fault_probability).all()


def test_views_tell_of_the_merge_and_of_what_stops_it(model, survey, tmp_path, monkeypatch):
    from outcrop.engine import views

    path, record, heard = tmp_path / "o.zarr", outcrop.Record(), []
    how = {"angles": True, "listeners": [record, heard.append]}

    def full(*_):
        raise OutcropError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(views, "_merge", full)
        with pytest.raises(OutcropError, match="no space left"):
            outcrop.predict_views(model, survey, path, **how)
    facts = record.facts()
    assert facts["outputs"][str(path)]["error"] == "no space left"
    assert facts["outputs"][str(path)]["provenance"]["merge"] == "max"
    assert [of["error"] for of in facts["outputs"].values()].count(None) == 4
    assert facts["tiles"] == facts["all_tiles"] == 4
    outcrop.view.report(record, tmp_path / "r.html")
    assert "o.zarr was not finished</h2>no space left" in (tmp_path / "r.html").read_text()
    heard.clear()
    outcrop.predict_views(model, survey, path, **how)
    assert [(type(e), e.output) for e in heard] == [(Begin, str(path)), (End, str(path))]
    assert heard[-1].error is None


def test_views_into_an_output_that_others_are_in_progress_for(model, survey, tmp_path):
    """Or that was begun as something else: before hours go into the views."""
    path, refused, heard = tmp_path / "o.zarr", [], []

    def other(event):
        if isinstance(event, Tile):
            with pytest.raises(OutputExistsError, match="another process is writing it"):
                outcrop.predict_views(model, survey, path, angles=True, listeners=[heard.append])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcrop.predict(model, survey, path, listeners=[other])
    with pytest.raises(ResumeError, match="unfinished prediction of something else, by lopsided"):
        outcrop.predict_views(model, survey, path, angles=True, listeners=[heard.append])
    infer, refiner = (models.load(f"mtl-{n}-2d", weights="seeded") for n in ("infer", "refine"))
    with pytest.raises(ResumeError, match="unfinished prediction of something else, by lopsided"):
        outcrop.refine(infer, refiner, survey, path, listeners=[heard.append])
    assert not heard

    def meanwhile(_):
        if not refused:
            with pytest.raises(OutputExistsError, match="another process is writing it") as error:
                outcrop.predict_views(model, survey, path, angles=True, overwrite=True)
            refused.append(error)

    how = {"angles": True, "overwrite": True}
    outcrop.predict_views(model, survey, path, listeners=[meanwhile], **how)
    assert refused
    assert [p.name for p in tmp_path.iterdir()] == ["o.zarr"]


class Classes(nn.Module):
    def forward(self, x):
        return torch.cat((x, -x), dim=1).argmax(1)


def test_views_that_make_no_sense(model, survey, tmp_path, monkeypatch):
    path = tmp_path / "o.zarr"
    with pytest.raises(ArgumentError, match="choose angles"):
        outcrop.predict_views(model, survey, path)
    with pytest.raises(ArgumentError, match="merge 'median'"):
        outcrop.predict_views(model, survey, path, angles=True, merge="median")
    for network, options in (
        ("mtl-infer-3d", {}),
        ("mtl-refine-3d", {"tasks": ("rgt",)}),
        ("deepismnet", {"use_norm": True}),
    ):
        angled = models.load(network, weights="seeded", **options)
        with pytest.raises(ArgumentError, match="seen from any side"):
            outcrop.predict_views(angled, survey, path, angles=True)
    monkeypatch.setattr("outcrop.engine.views.all_statistics", None)  # no sample is read before
    with pytest.raises(ArgumentError, match="precision 'half'"):
        outcrop.predict_views(model, survey, path, angles=True, precision="half")
    infer, refiner = (models.load(f"mtl-{n}-2d", weights="seeded") for n in ("infer", "refine"))
    with pytest.raises(ArgumentError, match="storage_mode 'heap'"):
        outcrop.refine(infer, refiner, survey, path, storage_mode="heap")
    long, how = make_survey({"amplitude"}, shape=(192, 9, 192)), {"tile": (192, 192, 9)}
    assert outcrop.plan(model, long, memory="43MB", **how)
    with pytest.raises(MemoryBudgetError, match="memory 43 MB is too small"):  # where it is turned
        outcrop.predict_views(model, long, path, angles=True, memory="43MB", **how)
    classes = Classes().eval()
    classes.card = replace(models.card("faultseg3d"), multiple=(1, 1, 1))
    with pytest.raises(ArgumentError, match="returns numbers of classes"):
        outcrop.predict_views(classes, survey, path, angles=True)
    assert not list(tmp_path.iterdir())


def test_sections_in_both_directions(survey, tmp_path, monkeypatch):
    network = models.load("unet25d", weights="seeded", base=4)
    each = [
        outcrop.predict(network, survey, tmp_path / f"{d}.zarr", direction=d)
        for d in ("inline", "crossline")
    ]
    both = outcrop.predict_views(
        network, survey, tmp_path / "o.zarr", directions=True, merge="mean"
    )
    expected = sum(e.fault_probability.values for e in each) / 2
    assert np.abs(each[0].fault_probability - each[1].fault_probability).max() > 1e-3
    assert np.abs(both.fault_probability.values - expected).max() < 1e-6
    assert both.attrs["direction"] == "both"
    # What Dask would do with large volumes where there is a client.
    monkeypatch.setattr("outcrop.engine.views._EDGE", 4)
    with dask.config.set({"array.rechunk.method": "p2p"}):
        again = outcrop.predict_views(
            network, survey, tmp_path / "p2p.zarr", directions=True, merge="mean", threshold=0.5
        )
    assert again.attrs["threshold"] == "0.5"
    assert np.array_equal(again.fault_probability, both.fault_probability)


def test_sliding_windows_are_what_they_are(survey, tmp_path):
    """One window over everything is exact; several are the network on each, and say so."""
    survey = make_survey({"amplitude"}, shape=(11, 22, 30))
    network = models.load("unet25d", weights="seeded", base=4)
    whole = outcrop.predict(network, survey, tmp_path / "o.zarr").fault_probability.values
    one = outcrop.predict_windows(network, survey, tmp_path / "1.zarr", window=32, overlap=0)
    assert np.abs(one.fault_probability.values - whole).max() < 1e-5
    some = outcrop.predict_windows(
        network, survey, tmp_path / "2.zarr", window=16, overlap=8, direction="inline"
    )
    assert "not exact" in some.attrs["sliding_window"]
    assert some.attrs["lineage"].startswith("unet25d ")
    with pytest.raises(OutputExistsError, match=r"another prediction \(sliding_window differ\)"):
        outcrop.predict_all(network, [survey], [tmp_path / "2.zarr"])
    difference = np.abs(some.fault_probability.values - whole)
    assert 1e-4 < difference.max() < 1
    two = torch.nn.Conv3d(4, 2, 1).eval()
    dip = replace(network.card.outputs[0], name="dip")
    two.card = replace(network.card, outputs=(*network.card.outputs, dip))
    how = {"window": 16, "overlap": 8, "threshold": 0.5}
    found = outcrop.predict_windows(two, survey, tmp_path / "two.zarr", **how)
    expected = outcrop.predict(two, survey, tmp_path / "all.zarr", threshold=0.5)
    for name in ("fault", "fault_probability", "dip"):
        assert np.allclose(found[name], expected[name], atol=1e-6)
    with pytest.raises(ArgumentError, match="multiple of 8"):
        outcrop.predict_windows(network, survey, tmp_path / "3.zarr", window=12, overlap=0)
    two.card = replace(two.card, outputs=(two.card.outputs[0], replace(dip, own_range=True)))
    with pytest.raises(ArgumentError, match="window: dip is brought to 0…1 by the range"):
        outcrop.predict_windows(two, survey, tmp_path / "3.zarr", window=16, overlap=0)
    with pytest.raises(ArgumentError, match="networks of sections"):
        outcrop.predict_windows(
            models.load("faultseg3d", weights="seeded"),
            survey, tmp_path / "3.zarr", window=16, overlap=0,
        )  # fmt: skip
    assert not (tmp_path / "3.zarr").exists()


def test_refinement_is_inference_then_refinements(tmp_path):
    survey = make_survey({"amplitude"}, shape=(1, 40, 33))
    infer = models.load("mtl-infer-2d", weights="seeded")
    refiner = models.load("mtl-refine-2d", weights="seeded")
    found = outcrop.refine(infer, refiner, survey, tmp_path / "o.zarr", iterations=2)
    step = outcrop.predict(infer, survey, tmp_path / "0.zarr")
    for i in (1, 2):
        step = outcrop.predict(refiner, step, tmp_path / f"{i}.zarr")
    for name in ("rgt", "dhr", "fault_probability", "fault_dip"):
        assert np.array_equal(found[name], step[name]), name
    assert found.rgt.where(survey.live).max() == pytest.approx(1, abs=1e-6)
    assert found.fault_dip.attrs["units"] == "degree"
    networks = [step.split()[0] for step in found.attrs["lineage"].split(" > ")]
    assert networks == ["mtl-infer-2d", "mtl-refine-2d", "mtl-refine-2d"]


def test_raw_files_in_and_out(tmp_path):
    """As the multi-task networks' own code reads and writes them: the fastest axis first."""
    shape = (20, 18)  # samples, traces
    values = np.random.default_rng(3).standard_normal(shape).astype("<f4")
    values.tofile(tmp_path / "image.bin") if values.flags.f_contiguous else values.T.tofile(
        tmp_path / "image.bin"
    )
    arguments = (
        "predict", "image.bin", "out", "--model", "mtl-infer-2d", "--weights", "seeded",
        "--shape", "20,18", "--tasks", "rgt,fault", "--precision", "float64",
    )  # fmt: skip
    done = outcrop_command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.glob("out.*")) == [
        "out.fdip", "out.fsem", "out.report.html", "out.rgt", "out.zarr"
    ]  # fmt: skip
    model = models.load("mtl-infer-2d", weights="seeded", tasks=("rgt", "fault")).double()
    exact = values.astype(np.float64)
    with torch.no_grad():
        y = model(torch.from_numpy(exact / np.sqrt((exact**2).mean()))[None, None])
    for name in ("fsem", "fdip", "rgt"):
        expected = y[name][0, 0].numpy()
        if name == "rgt":
            expected = (expected - expected.min()) / np.ptp(expected)
        found = np.fromfile(tmp_path / f"out.{name}", "<f4").reshape(shape, order="F")
        assert np.abs(found - expected).max() < 1e-6, name
    (tmp_path / "out.rgt").unlink()
    for _ in range(2):  # with one of them gone, and with all there
        again = outcrop_command(*arguments, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert again.stdout == done.stdout.replace("out.report.html\n", "")
    assert np.array_equal(np.fromfile(tmp_path / "out.rgt", "<f4").reshape(shape, order="F"), found)
    os.utime(tmp_path / "out.fsem", (0, 0))  # as one of something else, from before
    again = outcrop_command(*arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "out.fsem: already exists" in again.stderr


def test_raw_files_are_not_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).standard_normal((16, 16, 16)).astype("<f4")
    values.tofile("v.fault_probability")
    before = Path("v.fault_probability").read_bytes()
    command = [
        "predict", "v.fault_probability", "v", "--model", "faultseg3d", "--weights", "seeded",
        "--shape", "16,16,16",
    ]  # fmt: skip
    for more in ([], ["--overwrite"]):
        error = CliRunner().invoke(app, [*command, *more]).exception
        assert isinstance(error, ArgumentError)
        assert "v.fault_probability: is the survey that is read" in str(error)
    assert [p.name for p in tmp_path.iterdir()] == ["v.fault_probability"]
    assert Path("v.fault_probability").read_bytes() == before
    Path("v.fault_probability").rename("v.dat")
    Path("v.fault_probability").write_text("an old one")
    command[1] = "v.dat"
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, OutputExistsError)
    assert "v.fault_probability: already exists" in str(error)
    assert Path("v.fault_probability").read_text() == "an old one"
    assert not Path("v.zarr").exists()
    command += ["--picks", "v.npz"]
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0
    assert Path("v.fault_probability").stat().st_size == values.nbytes
    # What a run that was stopped among them has not written is written by the same command.
    Path("v.fault_probability").unlink()
    picked = Path("v.npz").stat()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert Path("v.fault_probability").stat().st_size == values.nbytes
    assert Path("v.npz").stat() == picked
    assert "v.npz: already exists" in str(CliRunner().invoke(app, command).exception)
    assert CliRunner().invoke(app, command[:-2]).exit_code == 0
    assert Path("v.dat").read_bytes() == before


def test_horizons_of_a_plane(tmp_path, monkeypatch):
    inline, crossline, twt = np.arange(5), np.arange(10, 16), np.arange(40) * 4.0
    dip = 0.3 * inline[:, None, None] + 0.7 * crossline[None, :, None]
    values = (twt + dip) / 200
    live = np.ones((5, 6), bool)
    live[2, 3] = False
    rgt = xr.DataArray(
        values,
        dims=("inline", "crossline", "twt"),
        coords={
            "inline": inline, "crossline": crossline, "twt": twt,
            "live": (("inline", "crossline"), live),
            "cdp_x": (("inline", "crossline"), inline[:, None] * 25.0 + crossline),
        },
    ).chunk({"inline": 2, "twt": 7})  # fmt: skip
    found = horizons(rgt, [0.2, 0.5, 5.0])
    expected = np.array([0.2, 0.5])[:, None, None] * 200 - dip[..., 0]
    times = found.horizon_twt
    assert np.abs(times[:2].values - expected)[:, live].max() < 1e-3
    assert np.isnan(times[:2].values[:, ~live]).all()
    assert np.isnan(times[2]).all()
    assert times.attrs["units"] == "ms"
    assert write_table(found, tmp_path / "h.csv") == 2 * 29
    table = pd.read_csv(tmp_path / "h.csv")
    assert list(table) == ["horizon", "inline", "crossline", "cdp_x", "horizon_twt (ms)"]
    assert len(table) == 58
    monkeypatch.setattr(outcrop.horizons, "_POINTS", 12)  # and so by two inlines
    assert write_table(found, tmp_path / "parts.csv") == 58
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "h.csv").read_bytes()
    for levels in ([], None, "a", [0.2, np.nan], [[0.2], [0.3]]):
        with pytest.raises(ArgumentError, match=r"levels .*: give one or more"):
            horizons(rgt, levels)
    with pytest.raises(SurveyError, match="rgt: is empty"):
        horizons(rgt.isel(twt=[]), 0.2)
    with pytest.raises(ArgumentError, match="rgt: is a ndarray; pass a DataArray"):
        horizons(values, 0.2)
    with pytest.raises(SurveyError, match="rgt: falls downwards"):
        horizons(-rgt, -0.2)
    xr.testing.assert_identical(horizons(rgt, 0.2), found.isel(horizon=[0]))
    rising = rgt.isel(twt=slice(None, None, -1))
    xr.testing.assert_identical(horizons(rising, [0.2, 0.5, 5.0]), found)
    assert write_table(found.isel(horizon=1), tmp_path / "one.csv") == 29
    assert write_table(found.isel(inline=1), tmp_path / "line.csv") == 12
    assert list(pd.read_csv(tmp_path / "line.csv")) == list(table)
    with pytest.raises(OutputExistsError, match="is a folder; name a file"):
        write_table(found, tmp_path)
    for none, says in (
        (rgt, "are none"),
        (found.isel(horizon=[]), "select at least one"),
        (found.isel(inline=1, drop=True), "have lost their inline"),
    ):
        with pytest.raises(ArgumentError, match=f"horizons: {says}"):
            write_table(none, tmp_path / "none.csv")


def test_a_horizon_at_the_first_sample():
    values = np.broadcast_to(np.linspace(0, 1, 5), (2, 3, 5))
    rgt = xr.DataArray(
        values,
        dims=("inline", "crossline", "twt"),
        coords={"inline": [1, 2], "crossline": [4, 5, 6], "twt": 100 + 4.0 * np.arange(5)},
    )
    times = horizons(rgt, [-0.5, 0.0, 1.0]).horizon_twt
    assert np.isnan(times[0]).all()  # the trace begins below it
    assert (times[1] == 100).all()
    assert (times[2] == 116).all()
    masked = rgt.where(rgt.twt > 104)  # from 108 on, where it is 0.5
    times = horizons(masked, [0.25, 0.4, 0.5, 0.75]).horizon_twt
    assert np.isnan(times[:2]).all()
    assert (times[2] == 108).all()
    assert (times[3] == 112).all()


def test_positions_in_a_table_are_exact(tmp_path):
    dims = ("horizon", "inline", "crossline")
    x = np.array([[498771.65, 9.12345678]])  # metres, and degrees
    y = np.array([[6002177.56, -59.87654321]])
    surfaces = xr.Dataset(
        {"horizon_twt": (dims, np.array([[[1040.1234, 23.6]]], np.float32))},
        {"cdp_x": (dims[1:], x, {"units": "m"}), "cdp_y": (dims[1:], y), "horizon": [0.1 + 0.2]},
    ).assign_coords(inline=[7], crossline=[8, 9])
    write_table(surfaces, tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_text().splitlines() == [
        "horizon,inline,crossline,cdp_x (m),cdp_y,horizon_twt",
        "0.3,7,8,498771.65,6002177.56,1040.123",
        "0.3,7,9,9.12345678,-59.87654321,23.6",
    ]


def test_picks(tmp_path, monkeypatch):
    values = np.zeros((4, 5, 6), np.float32)
    values[1, 2, 3], values[3, 4, 5], values[0, 0, 0] = 0.9, 0.5, 0.49
    array = xr.DataArray(values, dims=("inline", "crossline", "twt"))
    assert write_picks(array, tmp_path / "p.npz") == 2
    with np.load(tmp_path / "p.npz") as found:
        assert found["positions"].dtype == np.uint16
        assert found["positions"].tolist() == [[1, 2, 3], [3, 4, 5]]
        assert found["dims"].tolist() == ["inline", "crossline", "twt"]
    assert write_picks(array, tmp_path / "q.npz", minimum=3) == 0
    with pytest.raises(OutcropError, match="npz"):
        write_picks(array, tmp_path / "p.csv")
    with pytest.raises(ArgumentError, match="probability: is a Dataset; pass a DataArray"):
        write_picks(array.to_dataset(name="p"), tmp_path / "p.npz")
    live = np.ones((4, 5), bool)
    live[1, 2] = False  # where a network predicts something, too
    lines = {"inline": [115, 116, 117, 118], "twt": 4.0 * np.arange(6)}
    array = array.assign_coords(live=(("inline", "crossline"), live), **lines)
    assert write_picks(array, tmp_path / "p.npz") == 1
    with np.load(tmp_path / "p.npz") as found:  # of a part the indices alone do not say where
        at = [found[d][i] for d, i in zip(found["dims"], found["positions"][0], strict=True)]
    assert at == [118, 4, 20.0]
    monkeypatch.setattr(outcrop.survey.blocks, "TARGET", 100)  # in the order of the volume still
    turned = array.transpose("twt", "inline", "crossline").chunk({"inline": 3, "twt": 2})
    assert write_picks(turned, tmp_path / "t.npz", threshold=0.4) == 2
    with np.load(tmp_path / "t.npz") as found:
        assert found["positions"].tolist() == [[0, 0, 0], [5, 3, 4]]


def test_what_is_written_beside_a_prediction_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    array = xr.DataArray(np.ones((2, 3, 4), "f4"), dims=("inline", "crossline", "twt"))
    found = array.to_dataset(name="fault_probability")
    (tmp_path / "p.npz").write_text("an old one")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OutcropError, match=r"p\.npz: no space left .*; write them elsewhere"):
            write_picks(array, tmp_path / "p.npz")
        with pytest.raises(OutcropError, match=r"o\.fault_probability: no space left"):
            write_raw(found, models.card("faultseg3d"), tmp_path / "o")
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]
    assert (tmp_path / "p.npz").read_text() == "an old one"


def test_picks_are_not_lost(survey, tmp_path, monkeypatch):
    survey.to_zarr(tmp_path / "s.zarr")
    monkeypatch.chdir(tmp_path)
    Path("p.npz").write_text("old ones")
    command = ["predict", "s.zarr", "o.zarr", "--model", "faultseg3d", "--weights", "seeded"]
    result = CliRunner().invoke(app, [*command, "--picks", "p.npz"])
    assert isinstance(result.exception, OutputExistsError)
    assert Path("p.npz").read_text() == "old ones"
    assert not Path("o.zarr").exists()


def test_picks_of_a_prediction_that_is_whole(survey, tmp_path, monkeypatch):
    """As where a run was stopped after it, in the page about it."""
    survey.isel(inline=slice(16), crossline=slice(16)).to_zarr(tmp_path / "s.zarr")
    monkeypatch.chdir(tmp_path)
    command = ["predict", "s.zarr", "o.zarr", "--model", "faultseg3d", "--weights", "seeded"]

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("outcrop.view.report", interrupted)
        assert CliRunner().invoke(app, [*command, "--picks", "p.npz"]).exit_code == 130
    before = Path("o.zarr/zarr.json").stat().st_mtime_ns
    other = [*command[:-1], "synthetic-v1", "--picks", "p.npz"]
    assert "weights_sha256 differ)" in str(CliRunner().invoke(app, other).exception)
    assert "o.zarr: fault_probability" in CliRunner().invoke(app, command).output
    assert not Path("p.npz").exists()
    assert CliRunner().invoke(app, [*command, "--picks", "p.npz"]).exit_code == 0
    assert Path("p.npz").exists()
    assert Path("o.zarr/zarr.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("workflow", "options", "written"),
    [
        ("karst", {}, ["karst.png", "karst.sgy", "karst.zarr"]),
        ("channels", {}, ["channels.png", "channels.sgy", "channels.zarr"]),
        ("rgt", {"count": 3}, ["horizons.csv", "horizons.png", "rgt.sgy", "rgt.zarr"]),
        (
            "multitask",
            {"refine_weights": "seeded", "iterations": 1},
            ["attributes.zarr", "dhr.sgy", "fault_dip.sgy", "faults.png", "rgt.sgy"],
        ),
        ("sections", {"threshold": 0.5}, ["faults.npz", "faults.png", "faults.sgy"]),
    ],
)
def test_workflow(workflow, options, written, tmp_path):
    main = runpy.run_path(str(ROOT / "workflows" / f"{workflow}.py"))["main"]
    of_offsets = "-ps" if workflow == "channels" else ""
    segy = ROOT / "tests" / "data" / "segy" / f"small{of_offsets}.sgy"
    main(segy, tmp_path, weights="seeded", memory="2GB", **options)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"survey.zarr", *written} <= names
    assert not any("unfinished" in name or name.endswith(".steps") for name in names)
    main(segy, tmp_path, weights="seeded", memory="2GB", **options)  # goes on: nothing is redone

    name = {"multitask": "mtl-infer-3d", "sections": "unet25d", "rgt": "bi21rgt3d"}.get(workflow)
    if name:
        model = models.load(name, weights="seeded")
        with torch.no_grad():
            next(model.parameters()).add_(1)
        models.weights.write(model.state_dict(), tmp_path / "w.safetensors")
        with pytest.raises(OutputExistsError, match=r"zarr: .*; remove it"):
            main(segy, tmp_path, weights=tmp_path / "w.safetensors", memory="2GB", **options)


def test_views_picks_and_conversion_by_command(survey, tmp_path):
    survey.to_zarr(tmp_path / "s.zarr")
    torch.save(models.load("faultseg3d", weights="seeded").state_dict(), tmp_path / "w.pth")

    outcrop_cli = partial(outcrop_command, cwd=tmp_path)
    done = outcrop_cli("models", "convert", "w.pth", "w.safetensors")
    assert done.returncode == 0, done.stderr
    done = outcrop_cli(
        "predict", "s.zarr", "o.zarr", "--model", "faultseg3d", "--weights", "w.safetensors",
        "-o", "version=2020", "--angles", "--merge", "mean", "--threshold", "0.5",
        "--picks", "p.npz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = xr.open_zarr(tmp_path / "o.zarr")
    with np.load(tmp_path / "p.npz") as picks:
        assert len(picks["positions"]) == int(found.fault.sum())
    done = outcrop_cli("models", "faultseg3d", "-o", "version")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --option version: give it as name=value")


@pytest.mark.parametrize(
    ("network", "options", "what"),
    [
        ("faultseg3d", ["--angles", "--window", "16"], "--window; --angles, .*: choose one"),
        ("unet25d", ["--window", "16", "--precision", "bfloat16"], "--precision: not with --win"),
        ("unet25d", ["--window", "16", "--log-json", "l.jsonl"], "--log-json: not with --window"),
        ("faultseg3d", ["--merge", "mean"], "--merge: only with --angles"),
        ("faultseg3d", ["--overlap", "4"], "--overlap: only with --window"),
        ("faultseg3d", ["--minimum", "4"], "--minimum: only with --picks"),
        ("mtl-infer-2d", ["--iterations", "2"], "--iterations: only with --refine-weights"),
        ("faultseg3d", ["--picks", "p.csv"], "written as .npz"),
        ("faultseg3d", ["--picks", "nowhere/p.npz"], "no such folder"),
        ("wang25channel", ["--picks", "p.npz"], "fault_probability and channel_probability"),
        ("deepismnet", ["--picks", "p.npz"], "predicts no probability"),
        (
            "mtl-infer-2d",
            ["--refine-weights", "seeded", "--tasks", "rgt,fault"],
            "refinement takes dhr, which mtl-infer-2d as it was loaded does not predict",
        ),
    ],
)
def test_options_that_do_not_go_together(network, options, what, survey, tmp_path, monkeypatch):
    survey.to_zarr(tmp_path / "s.zarr")
    monkeypatch.chdir(tmp_path)
    command = ["predict", "s.zarr", "o.zarr", "--model", network, "--weights", "seeded", *options]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ArgumentError)
    assert re.search(what, str(result.exception))
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]
