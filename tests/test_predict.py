"""Predictions over labelled surveys: exact, labelled, resumable, and refused in time."""

import os
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dask.array
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker
from torch import nn
from typer.testing import CliRunner

import outcrop
from command_line import outcrop_command
from outcrop import models
from outcrop.cli.main import app
from outcrop.cluster import connect
from outcrop.engine.labelled import frame
from outcrop.engine.statistics import all_statistics, statistics
from outcrop.errors import (
    ArgumentError,
    MemoryBudgetError,
    OutcropError,
    OutputExistsError,
    ResumeError,
    SurveyError,
)
from outcrop.events import Tile
from outcrop.models.card import OutputCard
from outcrop.planner import planner
from outcrop.planner.rates import rates
from outcrop.targets import is_complete, is_unfinished
from outlines import filled, near


def make_survey(shape=(29, 22, 37), seed=0, missing=0.1):
    random = np.random.default_rng(seed)
    amplitude = (random.standard_normal(shape) * 7 + 3).astype(np.float32)
    live = random.random(shape[:2]) >= missing
    if missing and min(shape[:2]) > 20:
        live[:11, :11] = False  # its corner is far from all traces
    amplitude *= live[..., None]
    coords = {
        "inline": np.arange(100, 100 + 2 * shape[0], 2),
        "crossline": np.arange(300, 300 + shape[1]),
        "twt": ("twt", np.arange(shape[2]) * 4.0, {"units": "ms"}),
        "live": (("inline", "crossline"), live),
        "cdp_x": (("inline", "crossline"), random.random(shape[:2]), {"units": "m"}),
    }
    return xr.Dataset({"amplitude": (("inline", "crossline", "twt"), amplitude)}, coords)


def in_one_piece(model, survey):
    """Normalise, turn, pad, evaluate whole in float64, crop, turn back: written out plainly."""
    amplitude, live = survey.amplitude.values.astype(np.float64), survey.live.values
    values = amplitude[live]
    normal = np.where(live[..., None], (amplitude - values.mean()) / values.std(), 0)
    normal = filled(normal, live)
    x = torch.from_numpy(normal).permute(2, 1, 0)[None, None]
    total = [-n % 8 for n in x.shape[2:]]
    pads = [(n // 2, n - n // 2) for n in total]
    with torch.no_grad():
        y = model.double()(torch.from_numpy(np.pad(x, [(0, 0), (0, 0), *pads], "symmetric")))
    model.float()
    inside = tuple(slice(a, a + n) for (a, _), n in zip(pads, x.shape[2:], strict=True))
    return np.where(near(live)[..., None], y[0, 0][inside].permute(2, 1, 0).numpy(), 0)


@pytest.fixture(scope="module")
def survey():
    return make_survey()


@pytest.fixture(scope="module")
def model():
    return models.load("faultseg3d", weights="seeded")


@pytest.fixture(scope="module")
def expected(model, survey):
    return in_one_piece(model, survey)


@pytest.fixture(scope="module")
def client():
    with connect("local", workers=2) as made:
        yield made


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"storage_mode": "device", "tile": (16, 24, 8)},
        {"storage_mode": "disk", "tile": (16, 16, 24)},
        {"storage_mode": "none", "tile": (24, 16, 40)},
    ],
)
def test_exact_in_process(how, model, survey, expected, tmp_path):
    found = outcrop.predict(model, survey, tmp_path / "o.zarr", precision="float64", **how)
    # The arithmetic is float64, the variable float32: half a unit in its last place.
    assert np.abs(found.fault_probability.values - expected).max() < 2**-25
    assert not list((tmp_path / "o.zarr").glob("unfinished*"))


@pytest.mark.parametrize("how", [{"tile": (16, 16, 24)}, {"storage_mode": "none"}])
def test_exact_on_workers(how, client, model, survey, expected, tmp_path):
    found = outcrop.predict(
        model, survey, tmp_path / "o.zarr", precision="float64", client=client, **how
    )
    assert np.abs(found.fault_probability.values - expected).max() < 2**-25


def test_float32_differs_by_rounding_alone(model, survey, expected, tmp_path):
    found = outcrop.predict(model, survey.amplitude, tmp_path / "o.zarr", tile=(16, 16, 24))
    assert np.abs(found.fault_probability.values - expected).max() < 2e-5


def test_labels_and_provenance(model, survey, tmp_path):
    outcrop.predict(model, survey, tmp_path / "o.zarr")
    found = xr.open_zarr(tmp_path / "o.zarr")
    probability = found.fault_probability
    assert probability.dims == ("inline", "crossline", "twt")
    assert probability.dtype == np.float32
    assert probability.attrs["units"] == "1"
    assert probability.attrs["valid_range"] == [0, 1]
    for name in ("inline", "crossline", "twt", "live", "cdp_x"):
        xr.testing.assert_equal(found[name].load(), survey[name])
    assert probability.twt.attrs["units"] == "ms"
    assert found.attrs["Conventions"] == "CF-1.11"
    assert found.attrs["model"] == "faultseg3d"
    assert found.attrs["precision"] == "float32"
    assert (found.attrs["device"], found.attrs["compile"]) == ("cpu", "no")
    assert found.attrs["outcrop_version"] == outcrop.__version__
    for key in ("weights_sha256", "input_sha256", "plan_sha256"):
        assert len(found.attrs[key]) == 64
    assert outcrop.survey.info(tmp_path / "o.zarr").provenance == found.attrs
    told = outcrop_command("info", tmp_path / "o.zarr").stdout
    assert f"faultseg3d {found.attrs['weights_sha256'][:12]}, float32" in told


def test_any_order_of_dimensions_and_depth(model, survey, expected, tmp_path):
    turned = survey.rename(twt="depth").transpose("depth", "inline", "crossline")
    found = outcrop.predict(model, turned, tmp_path / "o.zarr", tile=(16, 16, 24))
    assert found.fault_probability.dims == ("depth", "inline", "crossline")
    turned_back = found.fault_probability.transpose("inline", "crossline", "depth").values
    assert np.abs(turned_back - expected).max() < 2e-5


def test_a_network_of_the_users_own(survey, tmp_path):
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU()).eval()
    found = outcrop.predict(network, survey, tmp_path / "o.zarr", tile=(16, 16, 16))
    values, live = survey.amplitude.values, survey.live.values
    seen = filled(np.where(live[..., None], values, values[live].mean(dtype="f8")), live)
    x = torch.from_numpy(seen).float().permute(2, 1, 0)[None, None]
    with torch.no_grad():
        y = network(x)[0].permute(0, 3, 2, 1).numpy()
    y *= near(live)[..., None]
    for i in range(3):
        np.testing.assert_allclose(found[f"prediction_{i}"].values, y[i], atol=1e-4)


def test_plan_says_what_predict_does(model, survey, tmp_path):
    plan = outcrop.plan(model, survey, memory="300MB")
    assert plan.peak_memory <= 300 * 10**6
    found = outcrop.predict(model, survey, tmp_path / "o.zarr", plan=plan)
    assert found.attrs["plan_sha256"] == plan.digest()
    other = survey.isel(twt=slice(20))
    with pytest.raises(ArgumentError, match="another shape"):
        outcrop.predict(model, other, tmp_path / "p.zarr", plan=plan)


def change(survey, value):
    changed = survey.copy(deep=True)
    changed.amplitude[3, 4, 5] = value
    changed.live[3, 4] = True
    return changed


@pytest.mark.parametrize(
    ("spoil", "error", "what"),
    [
        (lambda s: s.rename(amplitude="amp"), SurveyError, "no variable 'amplitude'"),
        (lambda s: s.isel(inline=0), SurveyError, "has dimensions"),
        (lambda s: s.isel(inline=0).expand_dims(shot=[100]), SurveyError, r"sel\(offset"),
        (lambda s: s * 0, SurveyError, "all equal"),
        (lambda s: s.assign_coords(live=s.live & False), SurveyError, "no trace is live"),
        (lambda s: change(s, np.nan), SurveyError, "NaN or infinite"),
        (lambda s: change(s, np.inf), SurveyError, "NaN or infinite"),
        (lambda s: s.amplitude.values, ArgumentError, "is a ndarray; .* whole_volume"),
    ],
)
def test_bad_surveys_are_refused_before_anything_is_written(
    spoil, error, what, model, survey, tmp_path
):
    with pytest.raises(error, match=what) as caught:
        outcrop.predict(model, spoil(survey), tmp_path / "o.zarr")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o.zarr").exists()


def test_spikes_that_scale_all_else_are_told(model, survey):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_statistics(frame(model, survey))
    with pytest.warns(UserWarning, match=r"amplitude: 1e\+30 is \d+ standard deviations .*[.]clip"):
        all_statistics(frame(model, change(survey, 1e30)))


def test_too_small_a_budget_names_one_that_works(model, survey, tmp_path):
    with pytest.raises(MemoryBudgetError, match="at least") as caught:
        outcrop.predict(model, survey, tmp_path / "o.zarr", memory="20MB")
    assert not (tmp_path / "o.zarr").exists()
    named = str(caught.value).split("at least ")[1]
    small = survey.isel(inline=slice(24), crossline=slice(24))
    outcrop.predict(model, small, tmp_path / "o.zarr", memory=named)


def test_intermediates_leave_the_storage_path_empty(model, survey, tmp_path):
    (tmp_path / "scratch").mkdir()
    how = {"storage_mode": "disk", "storage_path": tmp_path / "scratch", "tile": (24, 24, 24)}
    outcrop.predict(model, survey, tmp_path / "o.zarr", **how)
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("what", ["predict", "whole_volume"])
def test_a_full_disk_is_one_line(what, tmp_path):
    # No file may grow beyond 300 kB: what a full disk does to the largest of them.
    code = f"""
import resource, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_predict import make_survey
import outcrop
from outcrop import models
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = models.load("faultseg3d", weights="seeded")
how = dict(storage_mode="disk", tile=(16, 16, 16))
try:
    if {what!r} == "predict":
        outcrop.predict(model, make_survey((48, 48, 48)), "o.zarr", **how)
    else:
        outcrop.whole_volume(model, torch.zeros(1, 1, 48, 48, 48), **how)
except outcrop.OutcropError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert "no space left" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    assert not is_complete(tmp_path / "o.zarr")


def test_an_output_that_may_not_fit_is_told_of(survey, tmp_path, monkeypatch):
    path, model = tmp_path / "o.zarr", torch.nn.Conv3d(1, 1, 1).eval()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=survey.nbytes // 2))
    with pytest.warns(UserWarning, match=r"o\.zarr: may not fit: it takes .* GB before compr"):
        outcrop.predict(model, survey, path)


def test_an_output_that_exists_is_kept(model, survey, tmp_path):
    path = tmp_path / "o.zarr"
    outcrop.predict(model, survey, path)
    stamp = (path / "zarr.json").stat().st_mtime_ns
    with pytest.raises(OutputExistsError, match="--overwrite"):
        outcrop.predict(model, survey, path)
    assert (path / "zarr.json").stat().st_mtime_ns == stamp
    outcrop.predict(model, survey, path, overwrite=True)


# A run in a process of its own: it says when a tile is done, and waits to be interrupted soon
# after as many as it is told.
RUN = """
import sys
import time
import torch
sys.path.insert(0, {tests!r})
from test_predict import make_survey
import outcrop.engine.prediction as prediction
import outcrop.planner.rolling as rolling
from outcrop import models
import outcrop
rolling._TILES, rolling._WORTH = 1, 9.0  # small as the survey is, layers are written over
torch.set_num_threads(1)
finish = prediction.Output.finish
last = int(sys.argv[2]) + 2
done = []
def told(self, key):
    finish(self, key)
    print(key, flush=True)
    done.append(key)
    if len(done) == last:
        time.sleep(300)
prediction.Output.finish = told
model = models.load("faultseg3d", weights="seeded", version="2020")
survey = make_survey((32, 24, 32))
outcrop.predict(model, survey, sys.argv[1], tile=(8, 8, 8), storage_mode={mode!r})
"""


def start(path, mode="disk", after=10**6):
    code = RUN.format(tests=str(Path(__file__).parent), mode=mode)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(after)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(path, how, after, mode="disk"):
    process = start(path, mode, after)
    keys = [process.stdout.readline().strip() for _ in range(after)]
    process.send_signal(how)
    keys += process.communicate()[0].split()
    assert process.returncode != 0
    return keys


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Keys of all tiles, and the prediction, by storage mode."""
    results = {}
    for mode in ("disk", "none"):
        path = tmp_path_factory.mktemp("calm") / "o.zarr"
        run = start(path, mode)
        results[mode] = run.communicate()[0].split(), xr.open_zarr(path).load().drop_attrs()
        assert run.returncode == 0
    return results


@pytest.mark.parametrize(
    ("how", "mode", "after"),
    [
        (signal.SIGKILL, "disk", 60),
        (signal.SIGINT, "none", 3),
    ],
)
def test_interrupted_and_resumed(how, mode, after, undisturbed, tmp_path):
    everything, whole = undisturbed[mode]
    assert after + 2 < len(everything)
    path = tmp_path / "o.zarr"
    done = interrupt(path, how, after, mode)
    assert not is_complete(path)
    assert is_unfinished(path)
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(path)

    again = start(path, mode)
    rest = again.communicate()[0].split()
    assert again.returncode == 0
    # No tile is computed twice; one may have been noted, but not told, when the signal came.
    told = set(done + rest)
    assert len(done + rest) == len(told)
    assert told <= set(everything)
    assert len(told) >= len(everything) - 1
    xr.testing.assert_identical(xr.open_zarr(path).load().drop_attrs(), whole)


def test_resuming_with_something_else_is_refused_and_named(model, monkeypatch, tmp_path):
    path = tmp_path / "o.zarr"
    interrupt(path, signal.SIGKILL, 3)
    survey = make_survey((32, 24, 32))
    other = models.load("faultseg3d", weights="seeded", version="2018")
    same = {"tile": (8, 8, 8), "storage_mode": "disk"}
    with pytest.raises(ResumeError, match=r"another input_sha256: [^;]*; run it again"):
        outcrop.predict(model, make_survey((32, 24, 32), seed=9), path, **same)
    with monkeypatch.context() as patch:  # all else is refused before all samples are read
        patch.setattr("outcrop.engine.prediction.all_statistics", None)
        with pytest.raises(ResumeError, match="weights_sha256"):
            outcrop.predict(other, survey, path, **same)
        with pytest.raises(ResumeError, match=r"another plan_sha256: [^;]*; run it again"):
            outcrop.predict(model, survey, path, tile=(16, 16, 24), storage_mode="disk")
        with pytest.raises(ResumeError, match="another compile: 'no', now 'yes'"):
            outcrop.predict(model, survey, path, compile=True, **same)
        patch.setattr("outcrop.engine.prediction.__version__", "9.9")
        with pytest.raises(
            ResumeError, match=f"outcrop_version: '{outcrop.__version__}', now '9.9'"
        ):
            outcrop.predict(model, survey, path, **same)
    outcrop.predict(model, survey, path, overwrite=True, **same)


def test_the_fingerprint_knows_where_samples_are():
    """Sums alone are the same for lines in reverse; blocks do not matter."""
    lines = np.random.default_rng(0).normal(3.0, 2.0, (16, 8, 24)).astype(np.float32)
    dims = ("inline", "crossline", "twt")
    coords = {d: np.arange(n) for d, n in zip(dims, lines.shape, strict=True)}
    forward, back = (xr.DataArray(v, coords, dims) for v in (lines, lines[::-1]))
    found, fingerprint, _ = statistics(forward)
    exact = lines.astype(np.float64)
    assert found == pytest.approx((exact.mean(), exact.std(), exact.min(), exact.max()), rel=1e-13)
    same, blocked, _ = statistics(forward.chunk({"inline": 8, "twt": 7}))
    assert blocked == fingerprint
    assert same == pytest.approx(found, rel=1e-13)
    same, other, _ = statistics(back)
    assert same == pytest.approx(found, rel=1e-13)
    assert other != fingerprint


def test_statistics_are_those_of_live_traces_alone():
    rng = np.random.default_rng(1)
    live = rng.random((16, 12)) < 0.4
    live[:8, :6] = False  # a block of them
    samples = rng.normal(1e4, 0.5, (20, 16, 12)) * live
    coords = {"live": (("inline", "crossline"), live)}
    dims = ("twt", "inline", "crossline")
    for axis in dims:
        coords[axis] = np.arange(samples.shape[dims.index(axis)])
    volume = xr.DataArray(samples, coords, dims).chunk({"twt": 7, "inline": 8, "crossline": 6})
    some = samples[:, live]
    expected = some.mean(), some.std(), some.min(), some.max()
    assert statistics(volume)[0] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(SurveyError, match="NaN or infinite"):
        statistics(volume.where(volume != samples[3][live][0], np.inf))


def test_statistics_look_at_as_many_blocks_as_the_memory_holds(monkeypatch):
    module, asked = sys.modules["outcrop.engine.statistics"], []
    real = module.dask_threads
    monkeypatch.setattr(module, "CPU_COUNT", 16)
    monkeypatch.setattr(module, "dask_threads", lambda n: asked.append(n) or real(n))
    framed = frame(nn.Conv3d(1, 1, 1).eval(), make_survey((16, 16, 16)).chunk({"inline": 4}))
    for memory in (7 * 4 * 4 * 16 * 16, 1, None):
        all_statistics(framed, memory=memory)
    assert asked == [2, 1, 16]


def test_workers_lost_during_statistics_are_one_line():
    def read(block):
        pytest.fail("the client reads the survey")

    blocks = dask.array.zeros((8, 8, 8), chunks=4).map_blocks(read, dtype="f4", meta=np.empty(0))
    volume = xr.DataArray(blocks, dims=("inline", "crossline", "twt"), name="amplitude")

    class Lost:
        def __init__(self, error):
            self.error = error

        def compute(self, values):
            return SimpleNamespace(done=lambda: True)

        def gather(self, futures):
            raise self.error

    worker = SimpleNamespace(address="tcp://w", name="w")
    for error in (FutureCancelledError("k", "lost"), KilledWorker("k", worker, 3)):
        with pytest.raises(OutcropError, match="statistics of amplitude: ") as caught:
            statistics(volume, Lost(error))
        assert "\n" not in str(caught.value)


def test_the_plan_that_was_begun_is_kept_to(model, undisturbed, monkeypatch, tmp_path):
    """Also where the machine that goes on is found to be another, and would plan otherwise."""
    path, survey = tmp_path / "o.zarr", make_survey((32, 24, 32))
    interrupt(path, signal.SIGKILL, 60)
    same = {"tile": (8, 8, 8), "storage_mode": "disk"}
    begun = outcrop.plan(model, survey, **same)
    slow = replace(rates(), few=1e6, some=1e6, many=1e6, disk=1e12)
    monkeypatch.setattr(planner, "rates", lambda device, dtype: slow)
    assert outcrop.plan(model, survey, **same).digest() != begun.digest()
    found = outcrop.predict(model, survey, path, **same)
    xr.testing.assert_identical(found.load().drop_attrs(), undisturbed["disk"][1])


def test_stored_tensors_that_are_gone_are_missed(tmp_path):
    path = tmp_path / "o.zarr"
    interrupt(path, signal.SIGKILL, 60)
    stored = sorted((path / "unfinished" / "stored").iterdir())
    assert stored
    for gone in stored:
        gone.unlink()
    again = start(path)
    assert "gone, though" in again.communicate()[1]
    assert again.returncode != 0


def test_a_killed_worker_costs_its_tile_alone(model, survey, tmp_path):
    how = {"tile": (16, 16, 16), "storage_mode": "disk"}
    calm = outcrop.predict(model, survey, tmp_path / "calm.zarr", **how)
    with connect("local", workers=2) as client:
        workers, tiles = client.run(os.getpid), []
        killed = next(iter(workers.values()))

        def kill(event):
            if isinstance(event, Tile):
                tiles.append((event.stage, event.tile))
                if len(tiles) == 4:
                    os.kill(killed, signal.SIGKILL)

        found = outcrop.predict(
            model, survey, tmp_path / "o.zarr", client=client, listeners=[kill], **how
        )
        assert len(set(tiles)) == len(tiles) > 4
        assert killed not in client.run(os.getpid).values()
    np.testing.assert_allclose(
        found.fault_probability.values, calm.fault_probability.values, atol=1e-6
    )


def test_compression_says_what_it_does(survey, tmp_path):
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.MaxPool3d(2)]
    layers += [nn.Conv3d(4, 8, 3, padding=1), nn.Upsample(scale_factor=2), nn.Conv3d(8, 1, 1)]
    model = nn.Sequential(*layers).eval()
    survey = survey.isel(inline=slice(24), crossline=slice(20), twt=slice(36))
    exact = outcrop.predict(model, survey, tmp_path / "a.zarr", storage_mode="device")
    assert "storage_compression_effect" not in exact.attrs
    how = {"storage_mode": "device", "storage_compression": True}
    lossy = outcrop.predict(model, survey, tmp_path / "b.zarr", **how)
    said = lossy.attrs["storage_compression_effect"]
    found = re.fullmatch(r"prediction: at most (.+), rms (.+); on (.+) samples in the middle", said)
    # Here the middle is the whole volume.
    assert found[3] == "×".join(map(str, survey.amplitude.shape[::-1]))
    difference = np.abs(exact.prediction - lossy.prediction).values
    assert 0 < difference.max() == pytest.approx(float(found[1]), rel=0.3)
    assert np.sqrt(np.mean(difference**2)) == pytest.approx(float(found[2]), rel=0.3)


def test_the_command_says_what_compression_does(tmp_path):
    make_survey((24, 20, 36)).to_zarr(tmp_path / "s.zarr", zarr_format=3, consolidated=False)
    words = ["predict", str(tmp_path / "s.zarr"), str(tmp_path / "o.zarr"), "--model", "faultseg3d"]
    words += ["--weights", "seeded", "--storage-mode", "device", "--storage-compression"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    effect = outcrop.open(tmp_path / "o.zarr").attrs["storage_compression_effect"]
    assert f"what storage compression does: {effect}" in done.output


class Odd(nn.Module):
    """Takes extents that can be divided by 32 alone; its results are of all kinds."""

    def __init__(self):
        super().__init__()
        both = nn.Conv3d(1, 16, 3, padding=1), nn.Conv3d(16, 16, 3, padding=1)
        self.first, self.second = nn.Sequential(*both), nn.Conv3d(16, 2, 1)
        self.norm = nn.InstanceNorm3d(16)
        outputs = (
            OutputCard("dip", "dip", "degree", (0, 180), scale=180.0),
            OutputCard("time", "relative geological time", "1", (0, 1), own_range=True),
        )
        self.card = replace(models.load("faultseg3d", weights="seeded").card, outputs=outputs)
        self.card = replace(self.card, multiple=(1, 1, 1), smallest=1)

    def forward(self, x):
        y = self.norm(self.first(x))
        for _ in range(5):
            x = F.max_pool3d(x, 2)
        for _ in range(5):
            x = F.interpolate(x, scale_factor=2.0)
        return {"none": None, "y": self.second(y) + x}


def test_the_effect_of_compression_is_in_the_units_of_each_variable(tmp_path):
    torch.manual_seed(0)
    model, survey = Odd().eval(), make_survey((32, 32, 160), missing=0)
    how = {"storage_mode": "device", "memory": "1GB"}
    exact = outcrop.predict(model, survey, tmp_path / "a.zarr", **how).load()
    lossy = outcrop.predict(model, survey, tmp_path / "b.zarr", storage_compression=True, **how)
    said = lossy.attrs["storage_compression_effect"]
    found = re.fullmatch(r"dip: at most (.+), rms .+, time: at most (.+), rms .+; on .+", said)
    assert found, said
    for name, value in (("dip", found[1]), ("time", found[2])):
        difference = float(np.abs(exact[name] - lossy[name]).max())
        assert 0.2 * difference < float(value) < 2 * difference


def test_a_network_that_takes_no_part_says_so(survey, tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.randn(1, 1, 7, 4, 197))
            self.norm = nn.InstanceNorm3d(1)

        def forward(self, x):
            return self.norm(x) + self.bias

    survey = make_survey((197, 4, 7), missing=0)
    how = {"storage_mode": "device", "storage_compression": True}
    found = outcrop.predict(Whole().eval(), survey, tmp_path / "o.zarr", **how)
    assert found.attrs["storage_compression_effect"].startswith("not found: ")
