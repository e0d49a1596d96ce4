"""Training: data that are named when they are bad, losses, and runs that can be relied on."""

import dataclasses
import itertools
import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import xarray as xr
from nbclient import NotebookClient
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_f1_score

import outcrop
from command_line import outcrop_command, script_command
from outcrop.errors import (
    ArgumentError,
    OutcropError,
    OutputExistsError,
    ResumeError,
    TrainingDataError,
    TrainingDivergedError,
    WeightsError,
)
from outcrop.models.card import InputCard, OutputCard, probability
from outcrop.training import augment, fitting, losses, objectives
from outcrop.training.arguments import extents_of
from outcrop.training.blocks import Blocks
from outcrop.training.crops import Crops, Numbers, _Corners
from outcrop.training.data import source_of, sources_of, split
from outcrop.training.fitting import fit
from outcrop.training.geology import Fault
from outcrop.training.module import Activations, TrainingModule, averaged
from outcrop.training.objectives import objective_of, update
from outcrop.training.recipes import random_survey
from outcrop.training.run import _differing, draw, naming_failure
from outcrop.training.sources import RawFolder, Synthetic
from outcrop.training.surveys import Survey
from outcrop.training.synthetic import synthetic_survey
from outcrop.training.volumes import Volume, statistics_of
from outlines import filled

ROOT = Path(__file__).parents[1]
MTL = ROOT / "tests" / "data" / "mtl"
CARD = outcrop.models.card("faultseg3d")
QUICK = {
    "size": 32, "crop": 16, "samples": 4, "validation_samples": 2, "per_volume": 2, "workers": 0,
    "accelerator": "cpu",
}  # fmt: skip
SUFFIXES = {"fault": "fsem", "fault_dip": "fdip", "fault_strike": "fstrike"}


def write_folder(folder, count=2, shape=(20, 24, 32), labels=outcrop.training.synthetic.LABELS):
    """A folder in the LANL layout, and the surveys in it."""
    folder.mkdir()
    surveys = []
    for number in range(count):
        made = random_survey(shape, number, labels=labels)
        for name in ("amplitude", *labels):
            suffix = "" if name == "amplitude" else f"_{SUFFIXES.get(name, name)}"
            values = made[name].to_numpy() / (180 if name in ("fault_dip", "fault_strike") else 1)
            values.astype("<f4").tofile(folder / f"{number}{suffix}.bin")
        surveys.append(made)
    return surveys


def write_zarr(path, shape=(48, 20, 24), seed=5, dead=False):
    """A survey with labels, without some traces, which lie there as zeros if they are dead."""
    made = random_survey(shape, seed, labels=("fault", "rgt"))
    live = np.ones(shape[:2], bool)
    live[3::9, 4:9] = False
    made = made.assign_coords(live=(("inline", "crossline"), live))
    made["amplitude"] = made.amplitude.where(made.live, 0)
    made["fault"] = made.fault.astype(np.uint8)
    stored = made.drop_vars("live") if dead else made
    stored.chunk(inline=16, crossline=8, twt=12).to_zarr(path, zarr_format=3)
    return made


# The data


def test_a_recipe_is_drawn_from_its_ranges_and_a_seed():
    one, other = (random_survey((24, 28, 32), (7, 1)) for _ in range(2))
    assert one.identical(other)
    assert not one.identical(random_survey((24, 28, 32), (7, 2)))
    fixed = {"faults": (5, 5), "dip": (60.0, 60.0), "peak_frequency": (25.0, 25.0)}
    made = random_survey((24, 28, 32), 3, ranges=fixed, labels=("fault",))
    assert [f["dip"] for f in json.loads(made.faults)] == pytest.approx([60.0] * 5)
    assert json.loads(made.peak_frequency)[0] == pytest.approx(25.0)
    assert set(made.data_vars) == {"amplitude", "fault"}


def test_a_synthetic_crop_is_a_piece_of_its_survey_normalised_and_turned():
    source = Synthetic(("fault",), 24, seed=3)
    crops = Crops(source, CARD, {"fault": 1.0}, (16, 16, 16), per_volume=2, augment=False)
    sample = crops[5]
    assert sample["input"].shape == sample["fault"].shape == (1, 16, 16, 16)
    values = source.read(2).values
    amplitude = (values["amplitude"] - values["amplitude"].mean()) / values["amplitude"].std()
    windows = np.lib.stride_tricks.sliding_window_view(amplitude, (16, 16, 16))
    piece = sample["input"][0].numpy().T  # from (time, crossline, inline)
    at = np.argwhere(np.abs(windows[..., 0, 0, 0] - piece[0, 0, 0]) < 1e-5)
    found = [i for i in map(tuple, at) if np.allclose(windows[i], piece, atol=1e-4)]
    assert len(found) == 1
    box = tuple(slice(a, a + 16) for a in found[0])
    np.testing.assert_array_equal(sample["fault"][0].numpy().T, values["fault"][box])


def test_a_sample_is_a_function_of_its_number():
    make = lambda: Crops(Synthetic(("fault",), 32), CARD, {"fault": 1.0}, (16,) * 3, per_volume=2)  # noqa: E731
    one, other = make(), make()
    first = [one[n] for n in (0, 1, 9)]
    for n, sample in zip((9, 1, 0), reversed(first), strict=True):
        assert torch.equal(other[n]["input"], sample["input"])
    assert not torch.equal(first[0]["input"], first[1]["input"])


def test_every_number_of_an_epoch_comes_once_by_turns_of_volumes():
    numbers = Numbers(24, per_volume=4, lanes=3)
    numbers.set_epoch(2)
    found = list(numbers)
    assert sorted(found) == list(range(48, 72))
    assert [n // 4 for n in found[:6]] == [12, 13, 14, 12, 13, 14]


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (1, 4), (2, 2), (3, 4), (4, 2)])
def test_crops_of_a_volume_go_to_one_worker(batch, workers, monkeypatch, tmp_path):
    numbers = loader(monkeypatch, tmp_path, batch=batch, workers=workers).sampler
    who = {}
    for n, number in enumerate(numbers):
        who.setdefault(number // 2, set()).add(n // batch % workers)
    assert all(len(w) == 1 for w in who.values())


def test_workers_do_not_change_the_data(monkeypatch, tmp_path):
    found = [list(loader(monkeypatch, tmp_path, workers=n).sampler) for n in (0, 1, 3, 6)]
    assert all(f == found[0] for f in found)


def loader(monkeypatch, folder, **options):
    """What `fit` trains with."""
    caught = []

    def stop(_, module, train, *args, **kwargs):
        caught.append(train)
        raise InterruptedError

    monkeypatch.setattr("lightning.Trainer.fit", stop)
    with pytest.raises(InterruptedError):
        fit("faultseg3d", out=folder, overwrite=True, **{**QUICK, "samples": 48, **options})
    return caught[0]


@pytest.mark.parametrize("name", ["mirrored", "turned"])
def test_angles_turn_with_the_crop(name, monkeypatch):
    """The labels of a turned survey are those that the turned faults would have been given."""
    made = random_survey((24, 24, 24), 11, ranges={"faults": (4, 4)})
    crop = {n: made[n].to_numpy() for n in ("amplitude", "fault", "fault_dip", "fault_strike")}

    class Chosen:
        """Draws that mirror, or turn once."""

        def random(self):
            return 0.0 if name == "mirrored" else 1.0

        def integers(self, _):
            return 0 if name == "mirrored" else 1

        def uniform(self, *_):
            return 0.0

        def choice(self, _):
            return 1.0

    found = augment.augmented(crop, Chosen())
    on = found["fault"]
    dip, strike = np.radians(found["fault_dip"][on]), np.radians(found["fault_strike"][on])
    normal = np.array([-np.sin(strike) * np.sin(dip), np.cos(strike) * np.sin(dip), np.cos(dip)])
    move = (lambda a: a[::-1]) if name == "mirrored" else (lambda a: a.swapaxes(0, 1)[::-1])
    before = [move(made[n].to_numpy())[on] for n in ("fault_dip", "fault_strike")]
    dip, strike = np.radians(before)
    x, y = -np.sin(strike) * np.sin(dip), np.cos(strike) * np.sin(dip)
    expected = np.array([-x, y, np.cos(dip)] if name == "mirrored" else [-y, x, np.cos(dip)])
    # A surface has two normals.
    np.testing.assert_allclose(np.abs((normal * expected).sum(0)), 1.0, atol=1e-5)


def test_time_stretches_and_faults_get_steeper():
    crop = {
        "amplitude": np.sin(np.arange(20) / 4)[None, None].astype(np.float32),
        "fault_dip": np.full((1, 1, 20), 45, np.float32),
        "fault_strike": np.full((1, 1, 20), 30, np.float32),
        "karst": (np.arange(20) % 3 == 0)[None, None].astype(np.float32),
    }
    found = augment.stretched(crop, 40)
    assert set(found["karst"].flat) == {0, 1}
    at = np.linspace(0, 19, 40)
    np.testing.assert_allclose(found["amplitude"][0, 0], np.sin(at / 4), atol=0.01)
    np.testing.assert_allclose(found["fault_dip"], np.degrees(np.arctan(2)), rtol=1e-5)
    np.testing.assert_allclose(found["fault_strike"], 30, rtol=1e-5)
    np.testing.assert_allclose(
        augment.apparent_dip(np.array([60.0]), np.array([60.0])),
        180 - np.degrees(np.arctan(np.tan(np.radians(60)) * 0.5)),
    )


def write_sections(folder, count=2, n=48):
    """Raw sections with one fault that dips by 60 degrees towards increasing crosslines.

    Which is a dip of 120 degrees in the 2-D data sets of Gao (2024).
    """
    folder.mkdir()
    y, z = np.ogrid[:n, :n]
    away = np.sin(np.radians(60)) * (y - n / 2) - np.cos(np.radians(60)) * (z - n / 2)
    fault = np.abs(away) < 1
    rng = np.random.default_rng(0)
    for number in range(count):
        values = {"": rng.normal(size=(n, n)), "_fsem": fault, "_fdip": fault * 2 / 3}
        values |= {"_rgt": np.broadcast_to(z / n, (n, n)), "_dhr": fault}
        for suffix, value in values.items():
            value.astype("<f4").tofile(folder / f"{number}{suffix}.bin")
    return folder


def write_volumes(folder, shape):
    """Raw volumes with one such fault, which strikes 60 degrees away from inlines."""
    folder.mkdir()
    fault = Fault(tuple(n / 2 for n in shape), 60, 60, 300, 300, 8.0)
    made = synthetic_survey(shape, 3, faults=[fault], folding=0.3)
    for number, name in itertools.product(range(2), ("amplitude", *made.data_vars)):
        suffix = "" if name == "amplitude" else f"_{SUFFIXES.get(name, name)}"
        values = made[name].to_numpy() / (180 if name in ("fault_dip", "fault_strike") else 1)
        values.astype("<f4").tofile(folder / f"{number}{suffix}.bin")
    return folder


@pytest.mark.parametrize(
    ("shape", "trace"), [((1, 48, 48), "trace"), ((40, 48, 56), "trace"), ((40, 48, 56), "inline")]
)
def test_dips_of_sections_are_what_the_section_shows(shape, trace, tmp_path):
    """Of sections as they lie in files, and of inlines and crosslines of volumes."""
    folder = tmp_path / "raw"
    write_sections(folder) if shape[0] == 1 else write_volumes(folder, shape)
    card = dataclasses.replace(outcrop.models.card("mtl-infer-2d"), axes=("z", trace))
    objective = objective_of(card)
    extents = extents_of(32, card)
    assert extents == ((32, 1, 32) if trace == "inline" else (1, 32, 32))
    source, _ = sources_of(folder, None, objective, card, extents, shape, 128, 0)
    crops = Crops(source, card, objective.labels, extents)
    directions = set()
    for number in range(16):
        sample = {name: value[0].numpy() for name, value in crops[number].items()}
        on = np.argwhere(sample["fault"] > 0.5)
        if len(on) > 40:
            down, along = np.linalg.svd(on - on.mean(0), full_matrices=False)[2][0]
            shown = np.degrees(np.arctan2(down, -along)) % 180
            label = 180 * np.median(sample["fault_dip"][sample["fault"] > 0.5])
            assert label == pytest.approx(shown, abs=4)
            directions.add(label > 90)
    assert directions == {True, False}


class Bytes:
    """A survey as 8-bit software leaves it: its mean is far from zero."""

    volumes = 1
    shape = (32, 32, 32)
    threshold = 180

    def read(self, number):
        amplitude = np.random.default_rng(0).normal(128, 25, self.shape).clip(0, 200)
        amplitude = amplitude.astype(np.float32)
        fault = amplitude > self.threshold
        return Volume({"amplitude": amplitude, "fault": fault}, statistics_of(amplitude))


@pytest.mark.parametrize(
    ("network", "reach"),
    [("faultseg3d", 0.4), ("faultssl", 0.08), ("unet25d", 0.05)],  # 25, of 256, is one deviation
)
def test_amplitudes_are_scaled_and_flipped_about_their_mean(network, reach):
    card = outcrop.models.card(network)
    crops, plain = (
        Crops(Bytes(), card, {"fault": 1.0}, (16,) * 3, augment=augment_, per_volume=1)
        for augment_ in (True, False)
    )
    expected = float(plain[0]["input"][0].mean())
    flips = set()
    for number in range(8):
        sample = crops[number]
        # Bright or dark is where the faults are, by the sign.
        on = sample["fault"] > 0.9
        flips.add(bool(sample["input"][:1][on].mean() < sample["input"][:1].mean()))
        if card.inputs[0].normalization in ("zscore", "zscore-clip-01"):
            assert float(sample["input"][0].mean()) == pytest.approx(expected, abs=reach)
        else:
            assert float(sample["input"][0].min()) >= 0
            assert float(sample["input"][0].max()) <= 1.3
    assert flips == {True, False}


def test_statistics_of_a_flipped_volume_are_flipped():
    amplitude = np.random.default_rng(0).normal(128, 20, (8, 8, 8)).clip(100, 200)
    rng = np.random.default_rng
    for seed in range(6):
        found, statistics = augment.rescaled(
            {"amplitude": amplitude}, statistics_of(amplitude), rng(seed)
        )
        deviation = amplitude - amplitude.mean()
        gain = (found["amplitude"] - amplitude.mean()) / deviation
        np.testing.assert_allclose(gain, gain[0, 0, 0], rtol=1e-3)
        flipped = np.sign(gain[0, 0, 0]) * deviation + amplitude.mean()
        np.testing.assert_allclose(statistics, statistics_of(flipped), rtol=1e-6)


def test_amplitudes_of_zero_mean_are_multiplied():
    values = {name: v - v.mean() for name, v in Synthetic(("dhr",), 24).read(0).values.items()}
    statistics = statistics_of(values["amplitude"])
    found, _ = augment.rescaled(values, statistics, np.random.default_rng(3))
    draws = np.random.default_rng(3)
    gain = 1.25 ** draws.uniform(-1, 1) * draws.choice([-1.0, 1.0])
    for name in ("amplitude", "dhr"):
        np.testing.assert_allclose(found[name], values[name] * gain, atol=1e-5)


def test_positions_are_those_that_a_stretched_crop_covers():
    card = outcrop.models.card("unet25d")
    crops = Crops(Synthetic(("fault",), 24), card, {"fault": 1.0}, (8, 16, 16))
    extents = []
    for number in range(24):
        places = crops[number]["input"][1:]
        assert 0 <= places.min() <= places.max() <= 1
        reach = [float(p.max() - p.min()) * 23 for p in places]
        extents.append(max(reach))
    assert max(extents) > 16  # squeezed: it covers more samples than it has


def test_labels_of_a_folder_are_those_that_were_written(tmp_path):
    surveys = write_folder(tmp_path / "raw")
    labels = ("fault", "fault_dip", "fault_strike", "rgt", "dhr")
    source = source_of(tmp_path / "raw", labels, shape=(20, 24, 32))
    assert source.volumes == 2
    for number, made in enumerate(surveys):
        values = source.read(number).values
        for name in ("amplitude", *labels):
            np.testing.assert_allclose(values[name], made[name], rtol=1e-5, atol=1e-5)
    train, held_out = split(source, (16, 16, 16))
    assert (train.volumes, held_out.volumes) == (1, 1)
    np.testing.assert_array_equal(held_out.read(0).values["rgt"], surveys[1].rgt)


def test_numbers_of_samples_may_begin_with_zeros(tmp_path):
    made = write_folder(tmp_path / "raw", count=3, labels=("fault",))
    for number in (1, 2):
        for suffix in ("", "_fsem"):
            old = tmp_path / "raw" / f"{number}{suffix}.bin"
            old.rename(old.with_name(f"0{old.name}"))
    source = RawFolder(tmp_path / "raw", ("fault",), (20, 24, 32))
    for number in range(3):
        values = source.read(number).values
        assert np.array_equal(values["amplitude"], made[number].amplitude)
        assert np.array_equal(values["fault"], made[number].fault)


def test_the_sample_of_another_group_is_read_as_it_is():
    source = RawFolder(MTL, ("fault",))
    volume = source.read(0)
    assert source.shape == (64, 64, 64)
    assert set(np.unique(volume.values["fault"])) == {0, 1}
    assert volume.statistics.deviation == pytest.approx(1.953, abs=1e-3)


@pytest.mark.parametrize(
    ("values", "says"), [((0, 255), "divide by 255, or make that NaN"), ((-1, 1), "make them")]
)
@pytest.mark.parametrize("kind", ["raw", "zarr"])
def test_labels_that_are_no_probabilities_are_named(kind, values, says, tmp_path):
    made = random_survey((20, 24, 32), 1, labels=("fault",))
    low, high = values
    fault = np.where(made.fault, high, low).astype(np.int16)
    if kind == "raw":
        path, where = write_raw(tmp_path / "raw", made.amplitude, fault), r"0_fsem\.bin"
    else:
        made["fault"] = made.fault.dims, fault
        made.to_zarr(path := tmp_path / "survey.zarr", zarr_format=3)
        where = r"survey\.zarr: fault"
    shape = made.fault.shape if kind == "raw" else None
    with pytest.raises(TrainingDataError, match=f"{where}: labels from {low} to {high}, .*{says}"):
        fit("faultseg3d", path, out=tmp_path / "run", shape=shape, crop=16, loss="dice")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "times", "says"),
    [
        ("raw", 1, r"0_fstrike\.bin: labels from 0 to 1[67].*, not from 0 to 1; divide degrees by"),
        ("zarr", 2, r"fault_strike: labels from 0 to 3.*, not from 0 to 180; turn strikes beyond"),
    ],
)
def test_angles_that_are_none_are_named(kind, times, says, tmp_path):
    made = random_survey((20, 24, 32), 1, labels=("fault", "fault_strike"))
    strike = made.fault_strike * times
    if kind == "raw":
        write_raw(tmp_path / "a", made.amplitude, made.fault)
        strike.to_numpy().tofile(tmp_path / "a" / "0_fstrike.bin")
    else:
        made.assign(fault_strike=strike).to_zarr(tmp_path / "a", zarr_format=3)
    shape = made.fault.shape if kind == "raw" else None
    with pytest.raises(TrainingDataError, match=says):
        source_of(tmp_path / "a", ("fault", "fault_strike"), shape=shape)


def write_raw(folder, amplitude, fault):
    folder.mkdir()
    for number in range(2):
        np.asarray(amplitude, "<f4").tofile(folder / f"{number}.bin")
        np.asarray(fault, "<f4").tofile(folder / f"{number}_fsem.bin")
    return folder


def spoil_nan(folder):
    values = np.fromfile(folder / "1_rgt.bin", "<f4")
    values[7] = np.nan
    values.tofile(folder / "1_rgt.bin")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: [p.unlink() for p in f.iterdir()], "has no files named 0.bin"),
        (lambda f: (f / "1_rgt.bin").unlink(), r"1_rgt\.bin: is missing.*rgt"),
        (lambda f: (f / "1.bin").write_bytes(b"12345678"), r"1\.bin: has 8 bytes"),
        (lambda f: (f / "0.bin").write_bytes(b""), r"0\.bin: holds no samples"),
        (lambda f: np.ones(15360, "<f4").tofile(f / "1.bin"), r"1\.bin: all samples are 1"),
        (spoil_nan, r"1_rgt\.bin: 1 values are NaN.*\(0, 0, 7\)"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_bad_folders_are_named_before_the_first_step(tmp_path, spoil, says):
    write_folder(tmp_path / "raw", labels=("rgt",))
    spoil(tmp_path / "raw")
    with pytest.raises(TrainingDataError, match=says):
        fit("bi21rgt3d", tmp_path / "raw", out=tmp_path / "run", shape=(20, 24, 32), crop=16)
    assert not (tmp_path / "run").exists()


def test_blocks_are_slices_and_few_are_kept():
    import dask.array

    values = np.arange(20 * 21 * 22).reshape(20, 21, 22)
    blocks = Blocks(dask.array.from_array(values, chunks=(6, 8, 10)), cache=3 * 6 * 8 * 10 * 8)
    rng = np.random.default_rng(0)
    for _ in range(20):
        starts = [int(rng.integers(n - 1)) for n in values.shape]
        box = tuple(
            slice(a, int(rng.integers(a + 1, n + 1)))
            for a, n in zip(starts, values.shape, strict=True)
        )
        np.testing.assert_array_equal(blocks[box], values[box])
        assert blocks.size <= blocks.cache or len(blocks.kept) == 1


@pytest.mark.parametrize("dead", [False, True])
def test_crops_of_a_survey_are_read_block_by_block_and_gaps_are_filled(dead, tmp_path, monkeypatch):
    made = write_zarr(tmp_path / "survey.zarr", dead=dead)
    asked, to_numpy = [], xr.DataArray.to_numpy
    with monkeypatch.context() as patch:
        patch.setattr(
            xr.DataArray, "to_numpy", lambda self: asked.append(self.name) or to_numpy(self)
        )
        source = Survey(tmp_path / "survey.zarr", ("fault", "rgt"))
    assert asked.count("live") < 10  # not for each of the 18 blocks: there may be 100,000
    live = made.amplitude.to_numpy()[made.live.to_numpy()]
    assert source.statistics.mean == pytest.approx(float(live.mean()), abs=1e-6)
    train, held_out = split(source, (16, 16, 16))
    assert (train.shape, held_out.shape) == ((32, 20, 24), (16, 20, 24))
    crops = Crops(train, CARD, {"fault": 1.0}, (16, 20, 16), per_volume=4, augment=False)
    missing = ~made.live.to_numpy()
    shown = filled(made.amplitude.to_numpy()[:32], ~missing[:32])
    whole = (shown - source.statistics.mean) * (1 / source.statistics.deviation)
    whole = whole.astype(np.float32)
    seen = 0
    far = ((np.empty(0, int),) * 2,) * 2
    for number in range(8):
        crop = crops[number]
        x, there = crop["input"][0].numpy().T, crop["live"][0, 0].numpy().T
        seen += not there.all()
        # Of the whole of it as prediction shows it, along the edges too.
        windows = (whole[i : i + 16, :, t : t + 16] for i in range(17) for t in range(9))
        assert any(np.array_equal(x, window) for window in windows)
        # Brought to 0…1, the mean is between them: what is seen where all traces are far.
        crops.card, card = outcrop.models.card("faultssl"), crops.card
        with monkeypatch.context() as patch:
            patch.setattr("outcrop.training.crops.neighbours", lambda *_: far)
            between = crops[number]["input"][0].numpy()[:, ~there.T]
        crops.card = card
        assert len(np.unique(between)) == (not there.all())
        assert ((between > 0.4) & (between < 0.6)).all()
    assert seen
    # Positions are those in the survey, as in prediction, of which this is the last third.
    crops = Crops(held_out, outcrop.models.card("unet25d"), {"fault": 1.0}, (16, 16, 16))
    across = next(p for p in crops[0]["input"][1:] if len(p[:, 0, 0].unique()) > 1)
    assert torch.allclose(across[:, 0, 0].sort()[0], torch.arange(32, 48) / 47)
    part = held_out.read(0).values["rgt"][slice(0, 16), slice(2, 18), slice(3, 19)]
    np.testing.assert_array_equal(part, made.rgt[32:48, 2:18, 3:19])


def test_several_surveys_are_learnt_from_alike(tmp_path):
    """Of other sizes, intervals and units, one without some traces, and a folder beside them."""
    write_zarr(one := tmp_path / "one.zarr")
    other, raw = tmp_path / "other.zarr", tmp_path / "raw"
    made = random_survey((34, 40, 20), 9, labels=("fault",))
    made["amplitude"] = made.amplitude * 1000 + 50
    made = made.assign_coords(twt=made.twt.copy(data=made.twt / 2))
    made.to_zarr(other, zarr_format=3)
    write_folder(raw, count=2, shape=(16, 16, 16), labels=("fault",))
    how = (objective_of(CARD), CARD, (16, 16, 16), None, 128, 0)
    with pytest.warns(UserWarning, match=r"sampled every 2 ms, 4 ms; to a network"):
        train, held_out = sources_of([one, other, raw], None, *how)
    assert [source.volumes for source in (train, held_out)] == [3, 3]
    shapes = {source.read(n).shape for source in (train, held_out) for n in range(3)}
    assert shapes == {(32, 20, 24), (16, 20, 24), (34, 24, 20), (34, 16, 20), (16, 16, 16)}
    crops = Crops(train, CARD, {"fault": 1.0}, (16, 16, 16), per_volume=2)
    batch = next(iter(DataLoader(crops, 24, sampler=range(24))))
    assert {len(batch[name]) for name in ("input", "fault", "live")} == {24}
    deviations = batch["input"].std((1, 2, 3, 4)).reshape(4, 3, 2)  # each is in every turn
    assert 0.5 < deviations.min() < deviations.max() < 2

    small = random_survey((20, 16, 16), 3, labels=("fault",))
    small.to_zarr(tmp_path / "small.zarr", zarr_format=3)
    for places, says in (
        ((one, "synthetic"), "^synthetic: has no end"),
        ((one, other, one), "one of them is there twice"),
        ((one, tmp_path / "small.zarr"), r"small\.zarr: 20 inlines are too few to hold some out"),
        ([], "there are none"),
    ):
        with pytest.raises(TrainingDataError, match=says):
            sources_of(places, None, *how)
    with pytest.raises(TrainingDataError, match=r"raw: 16 × 16 × 16 samples are less than a crop"):
        sources_of([other, raw], [raw, one], *how[:2], (16, 16, 20), *how[3:])

    run = tmp_path / "run"
    words = ("train", "faultseg3d", "--data", one, "--data", other, "--out", run, *COMMAND[4:])
    done = outcrop_command(*words, "--epochs", 1, "--batch", 2)
    assert done.returncode == 0, done.stderr
    settings = history(run)["settings"]
    kept = {
        name: [s["survey"] for s in settings[name]["sources"]] for name in ("data", "validation")
    }
    assert kept == {name: [str(one), str(other)] for name in kept}
    turned = {"sources": settings["data"]["sources"][::-1]}
    assert any("0.survey" in each for each in _differing(settings["data"], turned))
    shutil.move(other, run / "other.zarr")
    with pytest.raises(ArgumentError, match="the data"):
        fit("faultseg3d", [one, run / "other.zarr"], out=run, **QUICK, overwrite=True)


def write_half(path, beyond, kind):
    """A survey of which half has no traces, with labels that are `beyond` there."""
    made = random_survey((32, 32, 16), 5, labels=("fault", "rgt"))
    live = np.zeros((32, 32), bool)
    live[:, 18:] = True
    made = made.assign_coords(live=(("inline", "crossline"), live))
    made["amplitude"] = made.amplitude.where(made.live, 0)
    made["rgt"] = (0.4 + made.rgt / 2).where(made.live, beyond)
    made["fault"] = made.fault.astype("f4").where(made.live, beyond)
    if kind == "zarr":
        made.drop_encoding().to_zarr(path, zarr_format=3)
        return Survey(path, ("fault", "rgt"))
    write_raw(path, made.amplitude, made.fault)
    for number in range(2):
        made.rgt.to_numpy().astype("f4").tofile(path / f"{number}_rgt.bin")
    return RawFolder(path, ("fault", "rgt"), (32, 32, 16))


@pytest.mark.parametrize("share", [0.03, 0.3, 0.9])
def test_crops_begin_wherever_there_are_enough_traces(share):
    rng = np.random.default_rng(2)
    live = rng.random((9, 12)) < share
    traces = {(i, j): live[i : i + 4, j : j + 3].sum() for i in range(6) for j in range(10)}
    least = min(3, max(traces.values()))  # a quarter of twelve
    corners = _Corners(live, live, (4, 3, 8))
    drawn = {tuple(corners.draw(rng)) for _ in range(2000)}
    assert drawn == {corner for corner, count in traces.items() if count >= least}


@pytest.mark.parametrize("kind", ["raw", "zarr"])
def test_labels_where_there_is_no_trace_are_not_learnt(kind, tmp_path):
    objective = objective_of(outcrop.models.card("mtl-infer-3d"))
    labels = dict.fromkeys(("fault", "rgt"), 1.0)
    found, inputs = [], []
    for number, beyond in enumerate((0.0, np.nan, -999.0)):
        source = write_half(tmp_path / f"{number}", beyond, kind)
        traces = random_survey((32, 32, 16), 5).amplitude.to_numpy()[:, 18:]
        assert source.read(0).statistics[:2] == pytest.approx((traces.mean(), traces.std()))
        crops = Crops(source, CARD, labels, (16, 16, 16), per_volume=99)
        drawn = [crops[n] for n in range(4)]
        batch = {name: torch.stack([d[name] for d in drawn]) for name in drawn[0]}
        known = ~batch["rgt"].isnan()
        assert torch.equal(known, ~batch["fault"].isnan())
        share = known[..., 0, :, :].float().mean((1, 2, 3))
        assert share.min() >= 0.25  # crops are taken where traces are
        assert share.min() < 1
        inputs.append(batch["input"])
        assert torch.equal(inputs[0], inputs[-1])
        for rgt, where in zip(batch["rgt"], known, strict=True):
            assert rgt[where].min() == 0  # as in prediction, of live traces alone
            assert rgt[where].max() == 1
        outputs = {n: torch.sigmoid(batch["input"]).requires_grad_(True) for n in labels}
        parts = {n: objective.losses[n](outputs[n], batch[n]) for n in labels}
        sum(parts.values()).backward()
        assert not outputs["fault"].grad[~known].any()
        assert outputs["rgt"].grad.isfinite().all()
        metrics = objective_of(CARD).metrics()
        update(metrics, {"fault": outputs["fault"]}, batch)
        scores = {n: float(m.compute()) for n, m in metrics.items()}
        found.append({n: float(p.detach()) for n, p in parts.items()} | scores)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "loss",
    [
        losses.dice_cross_entropy, losses.balanced_cross_entropy, losses.dice_loss,
        losses.image_loss, losses.angle_loss,
    ],
)  # fmt: skip
def test_losses_leave_out_what_is_not_known(loss):
    found, target = torch.rand(2, 1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    less = target.clone()
    less[..., 8:] = torch.nan
    part = loss(found[..., :8], target[..., :8])
    assert float(loss(found, less)) == pytest.approx(float(part), rel=1e-5)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((0, 32), None),
        ((10, 40), None),
        ((0, 20), "20 inlines up to the last with labels are too few"),
        ((33, 48), "no labelled traces from inline .*validation"),
    ],
)
@pytest.mark.parametrize("what", ["traces", "labels"])
def test_of_a_survey_the_last_lines_with_labels_are_held_out(lines, says, what, tmp_path):
    made = random_survey((48, 16, 16), 5, labels=("fault",))
    there = np.zeros((48, 16), bool)
    there[slice(*lines)] = True
    made["fault"] = made.fault.copy(data=np.arange(made.fault.size).reshape(made.fault.shape) % 2)
    if what == "traces":
        made = made.assign_coords(live=(("inline", "crossline"), there))
    else:
        made["fault"] = made.fault.astype("f4").where(there[..., None])
    made.to_zarr(tmp_path / "survey.zarr", zarr_format=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survey = Survey(tmp_path / "survey.zarr", ("fault",))
    if says:
        with pytest.raises(TrainingDataError, match=says):
            split(survey, (16, 16, 16))
        return
    parts = split(survey, (16, 16, 16))
    assert [part.shape[0] for part in parts] == [lines[1] - 16, 48 - lines[1] + 16]


def test_a_bad_label_is_named_by_its_place_in_the_volume(tmp_path):
    made = random_survey((32, 16, 16), 5, labels=("fault",))
    fault = made.fault.to_numpy().astype("f4")
    fault[20, 3, 14] = np.inf
    made["fault"] = made.fault.dims, fault
    made.chunk(inline=8, crossline=8, twt=8).to_zarr(tmp_path / "s.zarr", zarr_format=3)
    with pytest.raises(TrainingDataError, match=r"fault: 1 values .* \(20, 3, 14\), from 0"):
        Survey(tmp_path / "s.zarr", ("fault",))


@pytest.mark.parametrize("kind", ["raw", "zarr"])
def test_labels_that_are_not_known_are_not_learnt(kind, tmp_path):
    """Faults are picked down to sample 15 on every eighth inline, and nowhere else."""
    shape, data, labels = (48, 32, 48), tmp_path / "data", ("fault", "rgt")
    made = random_survey(shape, 5, labels=labels)
    picked = np.zeros(shape, bool)
    picked[3::8, :, :16] = True
    made["fault"] = made.fault.astype("f4").where(picked)
    made["rgt"][20, 3, 14] = np.nan

    def read(*labels):
        return source_of(data, labels, shape=shape if kind == "raw" else None)

    if kind == "raw":
        write_raw(data, made.amplitude, made.fault)
        for number in range(2):
            made.rgt.to_numpy().tofile(data / f"{number}_rgt.bin")
    else:
        made.chunk(inline=16).to_zarr(data, zarr_format=3)
    with pytest.warns(UserWarning, match=r": 1?\d\d,\d{3} values are NaN: not known"):
        source = read("fault")
    crops = Crops(source, CARD, {"fault": 1.0}, (16, 16, 16), per_volume=99)
    for number in range(8):
        known = ~crops[number]["fault"].isnan()
        assert 0.02 < known.float().mean() <= 0.13
        assert (crops[number]["input"][~known] != 0).all()
    found, nothing = known.float(), known / torch.nan
    assert all(loss(found, nothing) == 0 for loss in objectives.LOSSES.values())
    update(objective_of(CARD).metrics(), {"fault": found}, {"fault": nothing})
    with pytest.raises(TrainingDataError, match=r"rgt.*: 1 values are NaN.*\(20, 3, 14\)"):
        read("rgt")


def test_labels_that_change_or_are_damaged_are_told(tmp_path):
    made = write_zarr(tmp_path / "0.zarr")
    made.chunk(inline=48).drop_encoding().to_zarr(tmp_path / "1.zarr", zarr_format=3)
    made["rgt"][40, 3, 5] += 0.01
    made.drop_encoding().to_zarr(tmp_path / "2.zarr", zarr_format=3)
    sources = [Survey(tmp_path / f"{n}.zarr", ("fault", "rgt")) for n in range(3)]
    one, other, changed = (source.description["fingerprint"] for source in sources)
    assert one == other != changed
    chunk = tmp_path / "0.zarr" / "rgt" / "c" / "1" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(TrainingDataError, match=r"0\.zarr: rgt: chunk c/1/0/1 cannot be decoded"):
        Survey(tmp_path / "0.zarr", ("rgt",))


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_are_gone_after_the_first_step_are_one_line(workers, tmp_path, monkeypatch):
    write_folder(tmp_path / "raw", shape=(16, 16, 16), labels=("fault",))
    gone = tmp_path / "raw" / "0_fsem.bin"
    monkeypatch.setattr(fitting, "begin", lambda *_, **__: gone.unlink())
    with pytest.raises(TrainingDataError, match=r"raw: cannot be .*0_fsem.*--resume\)$") as caught:
        fit("faultseg3d", tmp_path / "raw", out=tmp_path / "run", **QUICK | {"workers": workers})
    assert str(caught.value).startswith(str(tmp_path))


def test_a_worker_that_is_killed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Synthetic, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(OutcropError, match=r"^workers 1: one was killed.*--resume\)$"):
        fit("faultseg3d", out=tmp_path, **QUICK | {"workers": 1})


LEAVING = """
import os, sys
from torch import distributed

distributed.init_process_group("gloo", init_method=sys.argv[1], rank=1, world_size=2)
distributed.barrier()
os._exit(1)
"""


def test_processes_that_are_left_alone_say_so_in_one_line(tmp_path):
    where = f"file://{tmp_path / 'meet'}"
    other = subprocess.Popen([sys.executable, "-c", LEAVING, where])
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=2)
    try:
        torch.distributed.barrier()
        other.wait()
        with (
            pytest.raises(OutcropError, match=r"^another of the processes .*--resume\)$"),
            naming_failure(16, 1, 0),
        ):
            torch.distributed.all_reduce(torch.ones(9))
    finally:
        other.kill()
        torch.distributed.destroy_process_group()


def test_refinement_learns_from_what_prediction_would_give_it():
    infer = outcrop.models.load("mtl-infer-2d", weights="seeded")
    model = outcrop.models.load("mtl-refine-2d", weights="seeded", tasks=("fault",))
    module = TrainingModule(model, objective_of(model.card), infer=infer)
    seen = []
    model.input1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    fault = torch.zeros(2, 1, 32, 32)
    fault[..., 20:] = torch.nan
    module.evaluate({"input": x, "fault": fault, "live": ~fault.isnan()})
    for rgt, raw in zip(seen[0], infer(x)["rgt"], strict=True):
        raw = raw[..., :20]
        expected = (raw - raw.min()) / (raw.max() - raw.min())
        torch.testing.assert_close(rgt[..., :20], expected)
        torch.testing.assert_close(rgt[..., 20:28], expected[..., 19:].expand(1, 32, 8))
        torch.testing.assert_close(rgt[..., 28:], expected.mean().expand(1, 32, 4))


def test_bad_surveys_are_named(tmp_path):
    made = write_zarr(tmp_path / "survey.zarr")
    with pytest.raises(TrainingDataError, match="no variable karst; it has amplitude, fault, rgt"):
        Survey(tmp_path / "survey.zarr", ("karst",))
    with pytest.raises(TrainingDataError, match="too few to hold some out"):
        Survey(tmp_path / "survey.zarr", ("fault",)).split((32, 16, 16))
    made["rgt"][40, 3, 5] = np.inf
    made.drop_encoding().to_zarr(tmp_path / "bad.zarr", zarr_format=3)
    with pytest.raises(TrainingDataError, match=r"rgt.*NaN or infinite"):
        Survey(tmp_path / "bad.zarr", ("rgt",))
    even = made.assign(amplitude=made.amplitude * 0 + 2).drop_encoding()
    even.to_zarr(tmp_path / "even.zarr", zarr_format=3)
    with pytest.raises(TrainingDataError, match=r"even\.zarr: amplitude: all samples are 2"):
        Survey(tmp_path / "even.zarr", ("fault",))
    none = made.assign(fault=made.fault.astype(bool) & False).drop_encoding()
    none.to_zarr(tmp_path / "none.zarr", zarr_format=3)
    with pytest.raises(TrainingDataError, match=r"none\.zarr: fault: is 0 everywhere"):
        Survey(tmp_path / "none.zarr", ("fault",))
    flat = made[["amplitude"]].assign(fault=made.fault.isel(twt=0, drop=True))
    flat.drop_encoding().to_zarr(tmp_path / "flat.zarr", zarr_format=3)
    with pytest.raises(TrainingDataError, match="fault has dimensions inline, crossline"):
        Survey(tmp_path / "flat.zarr", ("fault",))
    for name in ("amplitude", "fault"):
        text = made[["amplitude", "fault"]].assign({name: made[name].astype("M8[ns]")})
        text.drop_encoding().to_zarr(tmp_path / f"{name}.zarr", zarr_format=3)
        with pytest.raises(TrainingDataError, match=rf"{name} is datetime64\[ns\]; make it real"):
            Survey(tmp_path / f"{name}.zarr", ("fault",))
    made.drop_encoding().to_zarr(tmp_path / "old.zarr", zarr_format=2)
    with pytest.raises(TrainingDataError, match="is in Zarr format 2; write it in format 3"):
        source_of(tmp_path / "old.zarr", ("fault",))


def test_a_package_that_training_needs_is_named(monkeypatch):
    monkeypatch.delattr(outcrop.training, "fit", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with pytest.raises(OutcropError, match=r"training needs tensorboard; .*outcrop\[train\]"):
        outcrop.training.fit  # noqa: B018


# Losses and networks


def test_losses_are_what_their_formulas_say():
    p = torch.tensor([0.9, 0.2, 0.6, 0.1], dtype=torch.float64)
    t = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    entropy = -(t * p.log() + (1 - t) * (1 - p).log())
    assert losses.balanced_cross_entropy(p, t) == pytest.approx(float(entropy.mean() / 2))
    few = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    entropy = -(few * p.log() + (1 - few) * (1 - p).log())
    weight = torch.tensor([0.75, 0.25, 0.25, 0.25])
    assert losses.balanced_cross_entropy(p, few) == pytest.approx(float((weight * entropy).mean()))
    dice = 1 - (2 * 1.5 + 1) / (0.81 + 0.04 + 0.36 + 0.01 + 2 + 1)
    assert losses.dice_loss(p, t) == pytest.approx(dice)
    assert losses.dice_loss(t, t) == pytest.approx(0.0)
    image = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert losses.structural_loss(image, image) == pytest.approx(0.0, abs=1e-5)
    assert losses.structural_loss(image, 1 - image) > 5
    assert losses.image_loss(image, image + 0.5) == pytest.approx(2.5)
    assert losses.angle_loss(image, image + 0.5) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("name", "options", "crop"),
    [
        ("faultseg3dplus", {}, (16, 16, 16)),
        ("bi21rgt3d", {}, (16, 16, 16)),
        ("mtl-infer-3d", {}, (16, 16, 16)),
        ("mtl-infer-2d", {}, (1, 32, 32)),
        ("mtl-refine-2d", {}, (1, 32, 32)),
        ("unet25d", {}, (4, 32, 32)),
    ],
)
def test_networks_learn_what_their_cards_say(name, options, crop, tmp_path):
    """A step on each kind of network: every weight has a gradient, every label a loss."""
    model = outcrop.models.load(name, weights="seeded", **options).requires_grad_(True).train()
    infer = None
    if "refine" in name:
        infer = outcrop.models.load(name.replace("refine", "infer"), weights="seeded")
    objective = objective_of(model.card)
    labels = (*objective.labels, *(("fault_strike",) if "2d" in name else ()))
    crops = Crops(
        Synthetic(labels, 40), (infer or model).card, objective.labels, crop, augment=True
    )
    module = TrainingModule(model, objective, infer=infer)
    sample = {name: value[None] for name, value in crops[0].items()}
    parts = objective.loss(module(sample["input"]), sample)
    assert set(parts) == set(objective.labels)
    assert all(torch.isfinite(p) for p in parts.values())
    sum(parts.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    metrics = objective.metrics()
    assert {k.partition("/")[0] for k in metrics} == set(objective.labels)


class Returning(torch.nn.Module):
    """A network of two channels, which it returns in another form."""

    def __init__(self, form, separate=False):
        super().__init__()
        self.conv, self.form = torch.nn.Conv3d(2, 2, 3, padding=1), form
        amplitude = (InputCard("amplitude", "", "zscore"), InputCard("amplitude", "", "rms"))
        self.card = dataclasses.replace(
            CARD, name="mine", inputs=amplitude, separate=separate, activation="sigmoid",
            outputs=(probability("fault"), probability("salt")),
        )  # fmt: skip

    def forward(self, *x):
        fault, salt = self.conv(torch.cat(x, 1)).split(1, 1)
        return self.form(fault, salt)


def test_networks_return_channels_as_prediction_takes_them():
    x = torch.rand(3, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    names = ("fault_probability", "salt_probability")
    forms = {
        "one": lambda *y: torch.cat(y, 1),
        "several": lambda *y: y,
        "named": lambda *y: dict(zip(names, y, strict=True)),
        "turned": lambda *y: dict(zip(names[::-1], y, strict=True)),
        "more": lambda *y: [*y, y[0]],
    }
    found = {}
    for form, separate in itertools.product(forms, (False, True)):
        torch.manual_seed(0)
        network = Returning(forms[form], separate)
        objective = objective_of(network.card)
        if form in ("turned", "more"):
            says = {"turned": "put them into one order", "more": "3 channels in training mode"}
            with pytest.raises(ArgumentError, match=says[form]):
                objective.outputs(network, x)
            continue
        found[form, separate] = outputs = objective.outputs(network, x)
        assert list(outputs) == ["fault", "salt"]
        for name, y in outputs.items():
            assert torch.equal(y, found["one", False][name])
    objective.check(outputs)
    with pytest.raises(ArgumentError, match=r"^salt: the network gives .* to 1\.2, .*'sigmoid'$"):
        objective.check(outputs | {"salt": outputs["salt"] * 0 + 1.2})
    percent = dataclasses.replace(probability("salt"), units="%", valid_range=(0, 100), scale=100)
    card = dataclasses.replace(network.card, outputs=(percent,))
    assert objective_of(card).labels == {"salt": 1}  # which is 0 to 1 in the survey


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"network": "gem"}, "gem: outcrop has no training.*prompt"),
        ({"network": "channelseg3d"}, "tells classes apart"),
        ({"network": "mtl-refine-3d"}, "infer_weights"),
        ({"infer_weights": "seeded"}, "for mtl-refine networks"),
        ({"loss": "nonsense"}, "dice-bce, balanced-bce, dice"),
        ({"schedule": "nonsense"}, "cosine, plateau, constant"),
        ({"crop": 20}, "crop 20: .*multiples of 8"),
        ({"crop": 48}, "^synthetic, size 32: .* less than a crop of 48"),
        ({"epochs": 0}, "epochs 0"),
        ({"epochs": "2"}, "epochs '2': choose a whole number"),
        ({"samples": 2.5}, "samples 2.5: choose a whole number"),
        ({"crop": "16"}, "crop '16': one whole number, or three"),
        ({"activations": "disk", "activations_path": "/nowhere"}, "activations_path /nowhere"),
        ({"accumulate": 0}, "accumulate 0: choose at least 1"),
        ({"per_volume": 0}, "per_volume 0"),
        ({"validation_samples": 0}, "validation_samples 0"),
        ({"size": 0}, "size 0"),
        ({"nodes": 0}, "nodes 0"),
        ({"patience": 0}, "patience 0: choose at least 1"),
        ({"workers": -1}, "workers -1"),
        ({"seed": -1}, "seed -1"),
        ({"averaging": 2}, "averaging 2: .*less than 1"),
        ({"learning_rate": -1.0}, "learning_rate -1.0: choose more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
        ({"accelerator": "x"}, "accelerator x"),
        ({"accelerator": "tpu"}, "accelerator tpu"),
        ({"devices": "many"}, "devices many"),
        ({"devices": 0}, "devices 0"),
        ({"strategy": "x"}, "strategy x"),
        ({"devices": 5, "strategy": "ddp"}, "samples 4: .*each of 5 processes"),
        ({"max_time": "0:00:-5"}, "max_time .*more than 0:00:00"),
        ({"shape": (1, 2)}, r"shape \(1, 2\)"),
        ({"shape": (1, 2, 3)}, r"shape \(1, 2, 3\): of raw samples, which synthetic is not"),
        ({"network": "karstseg3d"}, "synthetic: has no label karst, only fault"),
        ({"activations": "none"}, "one of device, cpu, disk"),
        ({"max_time": "soon"}, "hours:minutes:seconds"),
        ({"max_time": 3600}, "max_time 3600: give it as hours:minutes:seconds"),
        ({"weights": "gone.pth"}, "gone.pth"),
        ({"precision": "nonsense"}, "one of 32-true, .*bf16-mixed"),
        ({"precision": "16-true"}, "one of 32-true"),  # Adam divides by what is 0 in float16
        ({"shape": 5}, "shape 5: give inlines"),
        ({"precision": "bf16-mixed"}, "crop 16, precision bf16-mixed: .* at least 24, or 32-true"),
        ({"precision": "16-mixed"}, "crop 16, precision bf16-mixed"),  # which it is on a CPU
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(options, says, tmp_path):
    arguments = {"network": "faultseg3d", **QUICK, **options}
    with pytest.raises(outcrop.OutcropError, match=says) as caught:
        fit(**arguments, out=tmp_path / "run")
    assert isinstance(caught.value, (ArgumentError, TrainingDataError, WeightsError))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_rank_correlation_is_the_mean_over_crops_of_voxels_everywhere():
    objective = objective_of(outcrop.models.card("bi21rgt3d"))
    metrics = objective.metrics()
    along = torch.linspace(0, 1, 64)
    target = along.expand(2, 1, 64, 64, 64).contiguous()
    # Right but for where the first inline is; and turned upside down.
    found = target + 2 * along[:, None, None]
    found[1] = 1 - target[1]
    update(metrics, {"rgt": found}, {"rgt": target})
    ranks = metrics["rgt/rank_correlation"].compute()
    one = np.corrcoef(rank(found[0]), rank(target[0]))[0, 1]
    assert float(ranks) == pytest.approx((one - 1) / 2, abs=0.02)


def test_errors_of_angles_are_degrees_on_faults():
    metrics = objective_of(outcrop.models.card("mtl-infer-3d")).metrics()
    names = ("fault_dip", "fault_strike")
    target = torch.zeros(1, 1, 4, 4, 4)
    target[..., 0] = 179 / 180
    found = torch.full_like(target, 1 / 180)
    kept = torch.nn.ModuleDict({f"{name}/mae": metrics[f"{name}/mae"] for name in names})
    update(kept, dict.fromkeys(names, found), dict.fromkeys(names, target))
    assert [float(m.compute()) for m in kept.values()] == pytest.approx([178, 2], abs=1e-3)


def rank(values):
    return values.flatten().double().numpy().argsort().argsort()


# Runs


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("network", ["faultseg3d", "mtl-refine-2d"])
def test_precisions_train_and_leave_float32(network, precision, tmp_path):
    more = {"infer_weights": "seeded"} if "refine" in network else {}
    more["crop"] = 24 if (network, precision[:4]) == ("faultseg3d", "bf16") else 16
    options = {**QUICK, "samples": 2, "epochs": 1, "precision": precision, **more}
    if "refine" in network:  # as one that is loaded, to be tuned
        network = outcrop.models.load(network, weights="seeded").requires_grad_()
    model = fit(network, out=tmp_path, **options)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert np.isfinite(history(tmp_path)["best"]["val_loss"])


def test_resumed_in_double_precision_no_digit_is_lost(tmp_path):
    options = {**QUICK, "samples": 1, "validation_samples": 1, "precision": "64-true"}
    options |= {"schedule": "constant", "averaging": 0}
    for name, parts in (("whole", [2]), ("parts", [1, 2])):
        for epochs in parts:
            out = tmp_path / name
            fit("faultseg3d", out=out, **options, epochs=epochs, resume=out.exists())
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def history(folder):
    return json.loads((folder / "training.json").read_text())


@pytest.mark.parametrize("mode", ["disk", "cpu"])
def test_gradients_are_the_same_with_and_without_offloading(mode, tmp_path):
    sample = {
        "input": torch.randn(1, 1, 40, 40, 40, generator=torch.Generator().manual_seed(0)),
        "fault": (torch.rand(1, 1, 40, 40, 40, generator=torch.Generator().manual_seed(1)) > 0.9),
    }
    sample["fault"] = sample["fault"].float()
    found = []
    for where in (Activations(), Activations(mode, tmp_path)):
        model = outcrop.models.load("faultseg3d", weights="seeded").requires_grad_(True)
        module = TrainingModule(model, objective_of(CARD), activations=where)
        module.log = lambda *_, **__: None
        module.training_step(sample, 0).backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_one_epoch_on_two_samples_overfits_and_what_a_run_leaves_predicts_the_same(tmp_path):
    write_folder(tmp_path / "raw", shape=(16, 16, 16), labels=("fault",))
    run = tmp_path / "run"
    how = {"crop": 16, "per_volume": 1, "augment": False, "epochs": 1, "samples": 40}
    how |= {"validation": tmp_path / "raw", "validation_samples": 2, "schedule": "constant"}
    how |= {"averaging": 0, "workers": 0, "accelerator": "cpu"}
    with pytest.warns(UserWarning, match="raw: to train and to validate with: the scores say"):
        model = fit("faultseg3d", tmp_path / "raw", out=run, **how)
    record = history(run)
    assert {p.name for p in run.iterdir()} == {
        "checkpoints", "predictions.png", "tensorboard", "training.json", "weights.safetensors",
    }  # fmt: skip
    assert (run / "predictions.png").read_bytes()[:4] == b"\x89PNG"
    assert any(p.name.startswith("events") for p in (run / "tensorboard").iterdir())

    # Checkpoints and weights open as they are, and predict the same.
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    for name in ("weights.safetensors", "checkpoints/best.ckpt"):
        loaded = outcrop.models.load("faultseg3d", weights=run / name)
        assert torch.equal(loaded(x), model(x))
    assert record["weights_sha256"] == outcrop.models.weights.digest(model)

    # The loss has fallen, and the metric is the Dice coefficient of whole crops.
    source = RawFolder(tmp_path / "raw", ("fault",))
    both = [source.read(n) for n in range(2)]
    inputs = [(v.values["amplitude"] - v.statistics.mean) / v.statistics.deviation for v in both]
    labels = [torch.from_numpy(v.values["fault"].T[None, None].copy()) for v in both]
    values, start = [], outcrop.models.load("faultseg3d", weights="seeded")
    for network in (start, model):
        with torch.inference_mode():
            found = [network(torch.from_numpy(i.T[None, None].copy())) for i in inputs]
        each = map(losses.dice_cross_entropy, found, labels)
        values.append(float(sum(each)) / 2)
    assert record["best"]["val_loss"] == pytest.approx(values[1], abs=1e-4)
    assert values[1] < 0.5 * values[0]
    dice = binary_f1_score(torch.cat(found), torch.cat(labels) > 0.5)
    assert record["best"]["fault/dice"] == pytest.approx(float(dice), abs=1e-3)


@pytest.mark.parametrize("axes", [("z", "crossline", "inline"), ("inline", "crossline", "z")])
def test_pictures_of_probabilities_go_from_0_to_1_where_traces_are(axes, tmp_path, monkeypatch):
    model = outcrop.models.load("faultseg3d", weights="seeded")
    model.card = dataclasses.replace(CARD, axes=axes)
    monkeypatch.setattr(Bytes, "threshold", np.inf)  # no fault
    source = Bytes()
    live = np.arange(32) % 4 > 0
    volume = source.read(0)._replace(live=np.broadcast_to(live, (32, 32)))
    monkeypatch.setattr(source, "read", lambda number: volume)
    crops = Crops(source, model.card, {"fault": 1.0}, (16, 16, 16), augment=False)
    figures = []
    monkeypatch.setattr("outcrop.training.run.save", lambda figure, path: figures.append(figure))
    draw(TrainingModule(model, objective_of(CARD)), DataLoader(crops, sampler=range(2)), tmp_path)
    _, _, *panels = figures[0].axes
    assert {panel.images[0].get_clim() for panel in panels} == {(0, 1)}
    for panel in figures[0].axes:  # a quarter of the traces, in whole columns
        blank = panel.images[0].get_array().mask
        assert (blank == blank[0]).all()
        assert blank.mean() == 0.25


def test_pictures_of_images_are_as_those_of_amplitudes(tmp_path, monkeypatch):
    model = outcrop.models.load("mtl-infer-2d", weights="seeded", tasks=("dhr",))
    source, figures = Bytes(), []
    values = {**source.read(0).values}
    values["dhr"] = (values["amplitude"] - 140.0) / 25
    volume = source.read(0)._replace(values=values)
    monkeypatch.setattr(source, "read", lambda number: volume)
    objective = objective_of(model.card)
    crops = Crops(source, model.card, objective.labels, (1, 32, 32), augment=False)
    monkeypatch.setattr("outcrop.training.run.save", lambda figure, path: figures.append(figure))
    draw(TrainingModule(model, objective), DataLoader(crops, sampler=range(1)), tmp_path)
    panels = {panel.get_ylabel(): panel.images[0] for panel in figures[0].axes}
    for name in ("dhr, label", "dhr, predicted"):
        low, high = panels[name].get_clim()
        assert -low == high > 0
        assert panels[name].get_cmap().name == "gray"


COMMAND = (
    "train", "faultseg3d", "--size", "32", "--crop", "16", "--samples", "4",
    "--val-samples", "2", "--per-volume", "2", "--workers", "1", "--accelerator", "cpu",
    "--epochs", "3", "--seed", "3",
)  # fmt: skip


TELLING = """
from pathlib import Path

import torch

from outcrop.cli.main import main
from outcrop.training.module import TrainingModule


def tell(self):
    self.trainer.should_stop = True
    rate = self.trainer.optimizers[0].param_groups[0]["lr"]
    Path(f"{self.global_rank}.txt").write_text(f"{rate!r} {torch.rand(1).item()}")


TrainingModule.on_train_epoch_end = tell
main()
"""


# It kills itself, and the processes that make crops, in the second of its epochs.
KILLED = """
import os, signal
from outcrop.cli.main import main
from outcrop.training.module import TrainingModule
step = TrainingModule.training_step
def killed(self, *arguments):
    if self.trainer.current_epoch == 1 and self.trainer.global_step == 6:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    return step(self, *arguments)
TrainingModule.training_step = killed
main()
"""


def test_two_processes_share_the_crops_and_learn_at_one_rate(tmp_path):
    run, script = tmp_path / "run", tmp_path / "telling.py"
    script.write_text(TELLING)
    words = "train faultseg3d --data synthetic --size 16 --crop 16 --epochs 9999 --samples 4"
    how = "--val-samples 2 --workers 0 --accelerator cpu --devices 2 --strategy ddp"
    command = [sys.executable, str(script), *words.split(), *how.split(), "--max-time", "0:1:0"]
    subprocess.run([*command, "--out", str(run)], cwd=tmp_path, check=True, timeout=300)
    made = json.loads((run / "training.json").read_text())
    assert made["processes"] == 2
    assert made["epochs"][-1]["step"] == 2  # of four crops, two for each
    outcrop.models.load("faultseg3d", weights=run / "weights.safetensors")
    told = [(tmp_path / f"{rank}.txt").read_text().split() for rank in range(2)]
    (one, drawn), (other, also_drawn) = told
    assert one == other
    assert drawn != also_drawn  # of what a network drops out


def test_killed_and_resumed_it_goes_on_where_it_was(tmp_path):
    options = {**QUICK, "epochs": 3, "seed": 3}
    whole = fit("faultseg3d", out=tmp_path / "whole", **options)

    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, *COMMAND, "--out", str(run)]
    killed = subprocess.run(command, start_new_session=True, stderr=subprocess.DEVNULL, timeout=300)
    assert killed.returncode == -signal.SIGKILL

    with pytest.raises(OutputExistsError, match="--resume"):
        fit("faultseg3d", out=run, **options)
    with pytest.raises(ResumeError, match=r"begun with learning_rate 0\.001, not 0\.5"):
        fit("faultseg3d", out=run, **options, resume=True, learning_rate=0.5)
    resumed = fit("faultseg3d", out=run, **options | {"workers": 2}, resume=True)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    before, after = (history(tmp_path / name)["epochs"] for name in ("whole", "run"))
    assert [e["val_loss"] for e in before] == [e["val_loss"] for e in after]
    assert [e["step"] for e in after] == [4, 8, 12]


def own_network():
    """Of logits of two outputs, part of it frozen; it drops out, and has kernels of two axes."""
    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.BatchNorm3d(4))
    network = torch.nn.Sequential(
        first.requires_grad_(False),
        torch.nn.Dropout(0.3),
        torch.nn.Flatten(3),
        torch.nn.Conv2d(4, 4, 1),
        torch.nn.Unflatten(3, (16, 16)),
        torch.nn.Conv3d(4, 2, 3, padding=1),
    ).eval()
    dip = OutputCard("fault_dip", "fault dip", "degree", (0, 180), 180.0)
    network.card = dataclasses.replace(
        CARD, name="mine", outputs=(probability("fault"), dip), axes=("inline", "crossline", "z"),
        multiple=(16, 16, 16), activation="sigmoid",
    )  # fmt: skip
    return network


def test_own_networks_are_trained_but_for_what_is_frozen_and_resumed(tmp_path):
    options = {**QUICK, "learning_rate": 0.01, "schedule": "constant"}
    whole = fit(own_network(), out=tmp_path / "whole", **options, epochs=2)
    fit(own_network(), out=tmp_path / "run", **options, epochs=1)
    parts = fit(own_network(), out=tmp_path / "run", **options, epochs=2, resume=True)
    start = own_network().state_dict()
    for key, one in whole.state_dict().items():
        assert torch.equal(one, parts.state_dict()[key])
        assert torch.equal(one, start[key]) == key.startswith("0.")  # norms' statistics, too
    assert {"fault/dice", "fault_dip/mae"} < history(tmp_path / "run")["best"].keys()
    assert history(tmp_path / "run")["settings"]["network"] == "mine"

    other = own_network().requires_grad_()
    with pytest.raises(ResumeError, match="begun with frozen"):
        fit(other, out=tmp_path / "run", **options, epochs=2, resume=True)
    small = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3))
    small.card = other.card
    logits = own_network().requires_grad_()
    logits.card = dataclasses.replace(other.card, activation="none")
    for network, more, says in (
        (torch.nn.Conv3d(1, 1, 1), {}, "a Conv3d without a card"),
        (other, {"weights": "synthetic-v1"}, "a module has its weights"),
        (own_network().requires_grad_(False), {}, "none of its parameters requires a gradient"),
        (small, {}, r"evaluated, it returns \(1, 1, 14, 14, 14\) for fault of a crop of 16 × 16"),
        (logits, {}, r"fault: the network gives .*logits, .*activation='sigmoid'"),
        (other, {"crop": 32}, r"fails on a crop of 32 × 32 × 32 \(inline, crossline, z\): "),
    ):
        with pytest.raises(ArgumentError, match=f"^network: .*{says}"):
            fit(network, out=tmp_path / "none", **options | more)
    assert not (tmp_path / "none").exists()


def test_resumed_with_more_epochs_it_learns_along_the_longer_cosine(tmp_path, monkeypatch):
    rates, step = [], TrainingModule.training_step

    def told(self, *arguments):
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(TrainingModule, "training_step", told)
    for epochs in (1, 2):
        fit("faultseg3d", out=tmp_path, **QUICK, epochs=epochs, resume=epochs > 1)
    assert rates[4:] == pytest.approx(
        [1e-3 * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * n / 8))) for n in range(4, 8)]
    )


def test_stopped_in_its_first_epoch_it_is_resumed_all_the_same(tmp_path, monkeypatch):
    options = {**QUICK, "epochs": 1}
    whole = fit("faultseg3d", out=tmp_path / "whole", **options)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "validation_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit("faultseg3d", out=tmp_path / "run", **options)
    with pytest.raises(ResumeError, match=r"begun with learning_rate 0\.001, not 0\.5"):
        fit("faultseg3d", out=tmp_path / "run", **options, resume=True, learning_rate=0.5)
    resumed = fit("faultseg3d", out=tmp_path / "run", **options, resume=True)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    (epoch,) = history(tmp_path / "run")["epochs"]
    assert epoch["step"] == 4


def test_a_moving_average_soon_forgets_the_weights_at_the_start():
    model = torch.nn.Linear(1, 1)
    average = AveragedModel(model, avg_fn=partial(averaged, 0.9))
    for step in range(31):
        torch.nn.init.constant_(model.weight, min(step, 1))
        average.update_parameters(model)
        if step == 12:
            assert 0.85 < average.module.weight.item() < 1
    before = average.module.weight.item()
    torch.nn.init.constant_(model.weight, 0)
    for _ in range(60):
        average.update_parameters(model)
    after = average.module.weight.item()
    average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(0.9 * after)
    assert before == pytest.approx(1, abs=1e-3)


def test_a_training_that_diverges_ends_in_one_line(tmp_path):
    """With other losses it would end in a traceback, or with NaN as the best weights."""
    for number, loss in enumerate(("dice-bce", "balanced-bce")):
        run = tmp_path / str(number)
        with pytest.raises(TrainingDivergedError, match=r"epoch .*NaN or infinite.*learning_rate"):
            fit("faultseg3d", out=run, **QUICK, loss=loss, epochs=9, learning_rate=1e6, seed=1)
        assert not (run / "weights.safetensors").exists()


def test_a_gpu_that_is_too_small_ends_in_one_line(tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB.")

    monkeypatch.setattr(TrainingModule, "training_step", full)
    with pytest.raises(OutcropError, match=r"^crop 16, batch 1: .*--activations cpu or disk\)$"):
        fit("faultseg3d", out=tmp_path, **QUICK, epochs=1)


def test_damaged_runs_are_named(tmp_path):
    options = {**QUICK, "epochs": 1}
    fit("faultseg3d", out=tmp_path, **options)
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "training.json"):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(kept[: len(kept) // 2])
        with pytest.raises(ResumeError, match=f"{name}: cannot be read"):
            fit("faultseg3d", out=tmp_path, **{**options, "epochs": 2}, resume=True)
        (tmp_path / name).write_bytes(kept)
    fit("faultseg3d", out=tmp_path, **{**options, "epochs": 2}, resume=True)


def test_what_a_run_would_replace_is_there_until_it_can_begin(tmp_path):
    run, options = tmp_path / "run", {**QUICK, "epochs": 2, "samples": 1, "seed": 3}
    fit("faultseg3d", out=run, **options)
    (run / "notes.txt").write_text("precious")
    shutil.copyfile(run / "weights.safetensors", run / "mine.safetensors")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for other, says in (
        ({"activations": "disk", "activations_path": tmp_path / "none"}, "none: not a folder"),
        ({"weights": run / "weights.safetensors"}, "holds the file of weights that is read"),
        ({"weights": run / "checkpoints" / "best.ckpt"}, "holds the file of weights"),
        ({"samples": 1.5}, "samples 1.5"),
    ):
        with pytest.raises(ArgumentError, match=says):
            fit("faultseg3d", out=run, overwrite=True, **options | other)
    for other, says in (
        ({"seed": 4}, "begun with seed 3, not 4; data.seed 3, not 4; validation.seed 1000003, not"),
        ({"size": 40}, "begun with size 32, not 40; data.size 32, not 40; validation.size 32, not"),
        ({"epochs": 1}, "has 2 epochs, more than 1; pass at least as many"),
    ):
        with pytest.raises(ResumeError, match=says):
            fit("faultseg3d", out=run, resume=True, **options | other)
    with pytest.raises(OutcropError, match=r"run: cannot be written \(Not a directory\)"):
        fit("faultseg3d", out=run / "notes.txt" / "run", **options)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    fit("faultseg3d", out=run, overwrite=True, **options | {"crop": np.int64(16), "epochs": 1})
    assert (run / "notes.txt").read_text() == "precious"
    assert history(run)["settings"]["crop"] == 16
    assert len(history(run)["epochs"]) == len(list((run / "tensorboard").glob("events*"))) == 1


def test_the_last_epoch_is_kept_though_an_earlier_one_is_better(tmp_path):
    nothing = {"learning_rate": 1e-30, "averaging": 0.0}  # changes
    # Resumed, a run that is over stays so, unless there is more patience.
    for patience, resume, last in ((2, False, 2), (2, True, 2), (3, True, 3)):
        fit(
            "faultseg3d", out=tmp_path, **QUICK, **nothing, epochs=9, patience=patience,
            resume=resume,
        )  # fmt: skip
        kept = {
            name: torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)["epoch"]
            for name in ("best", "last")
        }
        assert kept == {"best": 0, "last": last}


def test_checkpoints_are_whole_though_the_disk_fills(tmp_path, monkeypatch):
    options = {**QUICK, "samples": 1, "validation_samples": 1, "averaging": 0.0}
    # Folders for temporary files may be another disk, from which files are moved bit by bit.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    fit("faultseg3d", out=tmp_path / "run", **options, epochs=1)
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OutcropError, match=r"ckpt: no space left .*; make room.*--resume"):
            fit("faultseg3d", out=tmp_path / "run", **options, epochs=2, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    files = {path.name: path.read_bytes() for path in (tmp_path / "run/checkpoints").iterdir()}
    assert files.keys() == {"best.ckpt", "last.ckpt"}
    assert files["last.ckpt"] == before
    fit("faultseg3d", out=tmp_path / "run", **options, epochs=2, resume=True)


def test_two_runs_at_a_time_do_not_write_to_one_folder(tmp_path, monkeypatch):
    run, step = tmp_path / "run", TrainingModule.training_step
    refused = []

    def meanwhile(self, *arguments):
        if not refused:
            begun = (run / "training.json").read_text()
            commands = [(*COMMAND, how, "--out", run) for how in ("--resume", "--overwrite")]
            refused.extend(outcrop_command(*command) for command in commands)
            assert (run / "training.json").read_text() == begun
        return step(self, *arguments)

    monkeypatch.setattr(TrainingModule, "training_step", meanwhile)
    fit("faultseg3d", out=run, **QUICK, epochs=3, seed=3)
    for done in refused:
        assert done.returncode == 2
        assert "training.json: another process is writing it" in done.stderr
    assert not list(run.glob(".*"))


def test_moved_and_resumed_it_keeps_the_best_weights(tmp_path, monkeypatch):
    options = {**QUICK, "samples": 2, "schedule": "constant", "averaging": 0.0}
    best = fit("faultseg3d", out=tmp_path / "a", **options, epochs=1)
    shutil.move(tmp_path / "a", tmp_path / "b")

    def worse(self, batch, _):
        update(self.scores, self(batch["input"]), batch)
        self.log("val_loss", torch.tensor(99.0), batch_size=1)

    monkeypatch.setattr(TrainingModule, "validation_step", worse)
    found = fit("faultseg3d", out=tmp_path / "b", **options, epochs=2, resume=True)
    for one, other in zip(best.parameters(), found.parameters(), strict=True):
        assert torch.equal(one, other)
    record = history(tmp_path / "b")
    assert record["best"]["epoch"] == 0
    assert [e["epoch"] for e in record["epochs"]] == [0, 1]
    assert record["settings"]["epochs"] == 2


def test_the_record_holds_all_settings_and_starting_weights(tmp_path):
    first = outcrop.models.load("faultseg3d", weights="seeded")
    start = tmp_path / "start.safetensors"
    outcrop.models.weights.write(first.state_dict(), start)
    options = {**QUICK, "samples": 2, "weights": start, "max_time": "1:00:00"}
    fit("faultseg3d", out=tmp_path / "run", **options, epochs=1)
    settings = history(tmp_path / "run")["settings"]
    assert settings["start_sha256"] == outcrop.models.weights.digest(first)
    assert settings["infer_sha256"] is None
    free = ("epochs", "max_time", "workers", "accelerator", "devices", "nodes", "strategy")
    assert [settings[name] for name in free] == [1, "1:00:00", 0, "cpu", 1, 1, "auto"]
    assert settings["activations"] == "device"

    with torch.no_grad():
        next(first.parameters()).add_(1)
    outcrop.models.weights.write(first.state_dict(), start)
    with pytest.raises(ResumeError, match="begun with start_sha256"):
        fit("faultseg3d", out=tmp_path / "run", **options, epochs=2, resume=True)


def test_surveys_to_validate_with_are_never_those_of_another_seed_to_train_with(tmp_path):
    for name, validation in (("a", None), ("b", "synthetic")):
        fit("faultseg3d", out=tmp_path / name, validation=validation, **QUICK, epochs=1, seed=2)
    seeds = [history(tmp_path / n)["settings"]["validation"]["seed"] for n in "ab"]
    assert seeds == [1_000_002] * 2


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OutputExistsError, match="other things"):
        fit("faultseg3d", out=tmp_path, **QUICK, overwrite=True)
    with pytest.raises(ResumeError, match="holds no run"):
        fit("faultseg3d", out=tmp_path / "none", **QUICK, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# What is shipped


def test_the_shipped_weights_find_the_faults_of_a_new_survey():
    folder = Path(outcrop.models.__file__).parent / "shipped"
    assert all(p.stat().st_size < 4e6 for p in folder.iterdir())
    model = outcrop.models.load("faultseg3d", weights="synthetic-v1")
    made = random_survey((64, 64, 128), 424_242, ranges={"noise": (0.2, 0.2)}, labels=("fault",))
    x = made.amplitude.to_numpy()
    with torch.inference_mode():
        y = model(torch.from_numpy(((x - x.mean()) / x.std()).T[None, None].copy()))
    dice = binary_f1_score(y[0, 0].permute(2, 1, 0), torch.from_numpy(made.fault.to_numpy()))
    assert dice > 0.6
    with pytest.raises(WeightsError, match="of faultseg3d, not of faultssl"):
        outcrop.models.load("faultssl", weights="synthetic-v1")


def test_notebook_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "training.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3


def test_workflow_trains_and_predicts(tmp_path):
    write_zarr(tmp_path / "survey.zarr", (32, 24, 24))
    script = ROOT / "workflows" / "train.py"
    how = ("--crop", 16, "--epochs", 1, "--samples", 2)
    done = script_command(script, "survey.zarr", "results", *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    faults = xr.open_zarr(tmp_path / "results" / "faults.zarr")
    assert faults.fault_probability.shape == (32, 24, 24)
    assert (tmp_path / "results" / "faults.png").is_file()
    found, how = faults.fault_probability.load(), ("--crop", 16, "--epochs", 2, "--samples", 2)
    done = script_command(script, "survey.zarr", "results", *how, cwd=tmp_path)  # for longer
    assert done.returncode == 0, done.stderr
    assert not xr.open_zarr(tmp_path / "results" / "faults.zarr").fault_probability.equals(found)
    write_zarr(tmp_path / "other.zarr", (32, 24, 24), seed=6)
    how = {"crop": 16, "epochs": 2, "samples": 2}
    with pytest.raises(ResumeError, match=r"begun with data.*other\.zarr"):
        runpy.run_path(str(script))["main"](tmp_path / "other.zarr", tmp_path / "results", **how)
