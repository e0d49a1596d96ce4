"""What goes into an inversion: models, acquisitions, SEG-Y shot gathers, run files."""

import dataclasses
import json
import re
import resource
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import segyio
import torch
import xarray as xr
import yaml
from segyio import TraceField as Field

from command_line import outcrop_command
from outcrop import inversion
from outcrop.errors import (
    ArgumentError,
    GeometryError,
    MemoryBudgetError,
    OutcropError,
    ResumeError,
    SurveyError,
)
from outcrop.inversion.bands import low_pass
from outcrop.inversion.checks import SamplingError, largest_time_step
from outcrop.inversion.config import Run
from outcrop.inversion.experiment import Options, set_up
from outcrop.inversion.model import grid_of
from outcrop.inversion.physics import highest_speed
from outcrop.inversion.selection import Selection
from outcrop.inversion.shaping import Shape
from outcrop.inversion.shots import Shots, cut, levels
from outcrop.output import Output
from outcrop.survey.segy import SegyFile
from outcrop.view import draw_inversion

ROOT = Path(__file__).parents[1]
PML = 6


def model(shape=(16, 20), vp=2000.0, spacing=10.0, **others):
    return inversion.velocity(np.full(shape, vp, dtype=np.float32), spacing, **others)


def plan(on, sources=(3,), receivers=(6,), samples=220, frequency=14.0, step=0.0015):
    wavelet = inversion.ricker(frequency, step, samples)
    return inversion.surface_grid(on, sources=sources, receivers=receivers, wavelet=wavelet)


# Acquisitions


def test_positions_of_a_streamer():
    on = model((12, 30, 60))
    found = inversion.streamer(
        on, first=(150.0, 400.0), shots=3, shot_spacing=50.0, receivers=4, receiver_spacing=25.0,
        offset=40.0, cables=2, cable_spacing=60.0, wavelet=inversion.ricker(10.0, 0.001, 300),
        receiver_depth=20.0,
    )  # fmt: skip
    assert found.source_inline.values.tolist() == [400.0, 450.0, 500.0]
    assert found.receiver_inline.dims == ("shot", "receiver")
    assert found.receiver_inline[1, :4].values.tolist() == [410.0, 385.0, 360.0, 335.0]
    assert found.receiver_crossline[0].values.tolist() == [120.0] * 4 + [180.0] * 4
    assert set(found.receiver_depth.values.flat) == {20.0}
    assert set(found.source_depth.values) == {10.0}
    back = inversion.streamer(
        on, first=(150.0, 400.0), shots=2, shot_spacing=-50.0, receivers=2, receiver_spacing=25.0,
        offset=40.0, wavelet=inversion.ricker(10.0, 0.001, 300),
    )  # fmt: skip
    assert back.receiver_inline[0].values.tolist() == [440.0, 465.0]


def test_positions_of_a_grid_are_those_of_samples():
    on = model((12, 30, 60), spacing=(5.0, 10.0, 20.0), origin=(0.0, 100.0, -40.0))
    found = plan(on, (2, 3), (5, 7))
    assert found.sizes["shot"] == 6
    assert found.sizes["receiver"] == 35
    for dim in ("depth", "crossline", "inline"):
        assert set(found[f"receiver_{dim}"].values) <= set(on[dim].values)
    with pytest.raises(ArgumentError, match="30 positions along crossline: the model has 30"):
        plan(on, (2, 3), (30, 7))


def test_uneven_spreads_and_positions_between_samples():
    """Shots with fewer receivers, between samples: each is what it is alone."""
    on = model((16, 24))
    wavelet = inversion.ricker(14.0, 0.0015, 200)
    sources = np.array([[12.0, 44.0], [12.0, 163.0]])
    receivers = np.array([[[15.0, x] for x in (60.0, 83.0, 120.0)]] * 2)
    receivers[1, 2] = np.nan
    both = inversion.positions(sources, receivers, wavelet, ("depth", "inline"))
    found = inversion.model_shots(on, both, pml_width=PML, precision="float64")
    assert not found.amplitude[1, 2].any()
    for n in (0, 1):
        alone = both.isel(shot=[n])
        one = inversion.model_shots(on, alone, pml_width=PML, precision="float64")
        np.testing.assert_allclose(one.amplitude[0], found.amplitude[n], atol=1e-12)
    assert found.amplitude[0].any("time").all()


def test_arguments_of_acquisitions():
    on, wavelet = model((12, 20)), inversion.ricker(10.0, 0.001, 300)
    many = inversion.wavelet(np.ones((4, 300)), 0.001)
    for change, match in (
        ({"sources": 2}, "sources=2: pass how many along each lateral axis"),
        ({"sources": (2.5,)}, r"sources=\(2\.5,\): pass how many"),
        ({"receivers": (2, 3)}, r"receivers \(2, 3\): pass how many along inline"),
        ({"inset": -1}, "inset=-1: pass a whole number, 0 or more"),
        ({"depth": np.nan}, "depth=nan: pass a number"),
        ({"wavelet": wavelet.to_numpy()}, "wavelet: is a ndarray; pass what ricker gives"),
        ({"wavelet": many}, "wavelet: has 4 shots, and there are 2 sources"),
        ({"velocity": on.vp.to_numpy()}, "velocity=<ndarray>: pass a path, or a Dataset"),
    ):
        given = {"velocity": on, "sources": (2,), "receivers": (3,), "wavelet": wavelet} | change
        fails(ArgumentError, match, inversion.surface_grid, **given)
    fails(SurveyError, "inline has no coordinates", inversion.surface_grid, on.drop_vars("inline"),
          sources=(2,), receivers=(3,), wavelet=wavelet)  # fmt: skip
    towed = {
        "first": (90.0,), "shots": 2, "shot_spacing": 10.0, "receivers": 3,
        "receiver_spacing": 10.0, "offset": 20.0, "wavelet": wavelet,
    }  # fmt: skip
    for change, match in (
        ({"shots": 0}, "shots=0: pass a whole number, 1 or more"),
        ({"first": 90.0}, "first=90.0: pass a number for each lateral axis"),
        ({"offset": "20"}, "offset='20': pass a number"),
    ):
        fails(ArgumentError, match, inversion.streamer, on, **towed | change)
    for dims in ("depth", ("depth", "x"), ("depth", "depth")):
        fails(ArgumentError, "dims=.*: pass some of depth, crossline, inline", inversion.positions,
              [[1.0, 2.0]], [[3.0, 4.0]], wavelet, dims)  # fmt: skip
    fails(ArgumentError, "receivers: no array of numbers", inversion.positions, [[1.0, 2.0]],
          [["a", "b"]], wavelet, ("depth", "inline"))  # fmt: skip
    fails(ArgumentError, "ricker: samples=0: pass a whole number", inversion.ricker, 9.0, 0.001, 0)
    fails(ArgumentError, r"wavelet: has shape \(\); pass samples", inversion.wavelet, 1.0, 0.001)


# Checks


def fails(kind, match, function, *arguments, **options):
    with pytest.raises(kind, match=match) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_models_are_checked():
    on = model()
    hole = on.copy(deep=True)
    hole.vp[3, 4] = np.nan
    uneven = on.assign_coords(inline=np.r_[on.inline[:-1], 500.0])
    in_feet = on.assign_coords(depth=on.depth.assign_attrs(units="ft"))
    numbers = ("inline", np.arange(1001, 1021), {"long_name": "inline number"})
    cases = [
        (on.assign_coords(inline=numbers), "inline holds the numbers of lines; give it"),
        (hole, "vp is NaN or infinite at depth 30 m, inline 40 m"),
        (on.assign(vp=on.vp / 1000), "looks like km/s"),
        (on.assign(vp=on.vp * -1), "it must be positive"),
        (on.assign(vp=on.vp.assign_attrs(units="km/s")), "vp is in km/s; convert it to m/s"),
        (on.rename(depth="twt"), "dimensions .*'twt'"),
        (uneven, "inline is not evenly spaced"),
        (on.isel(inline=[0]), r"inline has a single sample; .* in 2-D, .*\.isel\(inline=0\)"),
        (in_feet, "depth is in ft; convert it to m"),
        (on.drop_vars("inline"), "inline has no coordinates"),
        (on.drop_vars("vp"), "has no vp"),
    ]
    for case, match in cases:
        fails(SurveyError, match, inversion.model_shots, case, plan(on))
    fails(
        SurveyError, "has no density, which the acoustic equation needs", inversion.model_shots,
        on, plan(on), equation="acoustic",
    )  # fmt: skip
    fails(SurveyError, "no Zarr group", inversion.model_shots, "nowhere.zarr", plan(on))


def advised(caught, pattern):
    return map(float, re.search(pattern, str(caught.value)).groups())


def test_sampling_is_checked_and_the_advice_works():
    on = model((16, 20))
    coarse = plan(on, samples=400, frequency=40.0, step=0.001)
    with pytest.raises(SamplingError, match=r"spacing 10 m: .* points in the shortest") as caught:
        inversion.model_shots(on, coarse)
    spacing, frequency = advised(caught, r"spacing of ([\d.]+) m, or nothing above ([\d.]+) Hz")
    fine = model((16, 20), spacing=spacing)
    inversion.model_shots(fine, plan(fine, samples=400, frequency=40.0, step=0.0003), pml_width=PML)
    assert 20 < frequency < 40

    late = plan(on, step=0.004, samples=100)
    with pytest.raises(SamplingError, match=r"time step 4 ms: is not stable for 2000") as caught:
        inversion.model_shots(on, late)
    step, spacing = advised(caught, r"take ([\d.]+) ms, or a spacing of ([\d.]+) m")
    inversion.model_shots(on, plan(on, step=step / 1000), pml_width=PML)
    assert largest_time_step(grid_of(model(spacing=spacing)), 2000.0) >= 0.004
    between = inversion.model_shots(on, late, pml_width=PML, substeps=True)
    fine = inversion.model_shots(on, plan(on, step=0.001, samples=400), pml_width=PML)
    largest = float(np.abs(fine.amplitude).max())
    np.testing.assert_allclose(
        between.amplitude[..., :80], fine.amplitude[..., ::4][..., :80], atol=0.1 * largest
    )


def test_stability_holds_for_the_upper_bound(tmp_path):
    on = model()
    shots = inversion.model_shots(on, plan(on), pml_width=PML)
    fails(
        SamplingError, "not stable for 9000 m/s", inversion.invert, on, shots, tmp_path / "o",
        bounds=(1500.0, 9000.0),
    )  # fmt: skip
    fast = model(vp=2500.0)
    late = inversion.model_shots(fast, plan(fast, step=0.0016), pml_width=PML)
    fails(
        SamplingError, r"3250 m/s, the upper bound \(1\.3 times .* or pass lower bounds",
        inversion.invert, fast, late, tmp_path / "o",
    )  # fmt: skip
    assert not (tmp_path / "o").exists()


def layers(vp, vs, density):
    """Two layers of a model that is elastic."""
    top = np.arange(16)[:, None] < 7
    vp, vs, density = (np.where(top, *pair) * np.ones((16, 20)) for pair in (vp, vs, density))
    return inversion.velocity(vp.astype(np.float32), 10.0, vs=vs, density=density)


def test_elastic_models_with_contrasts(tmp_path):
    """Deepwave's time step is shorter there, and what it rounds does not matter."""
    how = {"equation": "elastic", "pml_width": PML}
    seabed = layers((1500.0, 2000.0), (0.0, 800.0), (1000.0, 2000.0))
    for on in (seabed, layers((1800.0, 1800.0), (900.0, 900.0), (2000.0, 2000.0))):
        survey = plan(on, samples=500, frequency=5.0, step=0.001)
        shots = inversion.model_shots(on, survey, **how)
        assert np.abs(shots.amplitude).max() > 0
    loud = 2 * survey.wavelet
    inversion.migrate(seabed, shots, tmp_path / "m.zarr", wavelet=loud, **how)
    for parameter in ("vp", "density"):
        found = inversion.invert(
            seabed, shots, tmp_path / f"{parameter}.zarr", wavelet=loud, iterations=1,
            parameters=parameter, optimiser="sgd", **how,
        )  # fmt: skip
        assert (found[parameter] != seabed[parameter]).any()
    with pytest.warns(UserWarning, match=r"iteration 1 has vs above vp/√\(4/3\) .*bounds:"):
        inversion.invert(
            layers((1500.0, 2000.0), (0.0, 1732.0), (1000.0, 2000.0)), shots, tmp_path / "vs.zarr",
            wavelet=loud, iterations=1, parameters="vs", optimiser="sgd", step={"vs": 50.0}, **how,
        )  # fmt: skip
    late = plan(seabed, samples=200, frequency=5.0, step=0.0025)
    fails(SamplingError, r"2000 m/s with contrasts of the model, which count as 2566\.2\d m/s",
          inversion.model_shots, seabed, late, **how)  # fmt: skip


@pytest.mark.parametrize("moving", [("vp",), ("vs", "density"), ("vp", "vs", "density")])
@pytest.mark.parametrize("equation", ["acoustic", "elastic"])
def test_the_time_step_suits_every_model_within_bounds(equation, moving):
    on = layers((1500.0, 2000.0), (0.0, 800.0), (1000.0, 2000.0))
    ends = {"vp": (1400.0, 2600.0), "vs": (0.0, 1200.0), "density": (700.0, 2600.0)}
    bounds = {name: ends[name] for name in moving}
    grid, rng = grid_of(on), np.random.default_rng(0)
    most = highest_speed(equation, on, grid, 8, bounds)
    for _ in range(5):
        other = on.copy(deep=True)
        for name in moving:
            other[name][...] = rng.choice(ends[name], size=grid.shape, p=[0.2, 0.8])
        assert highest_speed(equation, other, grid, 8, {}) <= most


def test_what_deepwave_refuses_is_one_line():
    on = model()
    found = set_up(on, plan(on), None, Options(pml_width=PML), observed=False)
    slow = dataclasses.replace(found.physics, max_velocity=1000.0)
    arrays = {"vp": torch.as_tensor(on.vp.to_numpy())}
    cell, there = torch.ones(1, 1, 2), torch.ones(1, 1, dtype=torch.bool)
    emitted = torch.as_tensor(found.wavelet)[None].float()
    fails(OutcropError, r"scalar equation: Deepwave refuses it \(max_vel=1000", slow.record,
          arrays, cell, there, emitted, cell, there)  # fmt: skip


def test_low_bands_on_a_coarse_grid(tmp_path):
    """What the filter takes away needs no samples."""
    fine = model((32, 40))
    survey = plan(fine, samples=400, step=0.001)
    shots = inversion.model_shots(fine, survey, pml_width=PML)
    coarse = model((16, 20), spacing=20.0)
    how = {"wavelet": 2 * survey.wavelet, "pml_width": PML, "iterations": 1}
    for bands in ([None], [5.0, 14.0]):
        fails(SamplingError, "spacing 20 m: .* points in the shortest", inversion.invert, coarse,
              shots, tmp_path / "o.zarr", bands=bands, **how)  # fmt: skip
    inversion.invert(coarse, shots, tmp_path / "o.zarr", bands=[4.0, 5.0], **how)


def test_models_that_become_too_slow_for_the_grid_are_told_of(tmp_path):
    on = model()
    shots = inversion.model_shots(on, plan(on), pml_width=PML)
    how = {"pml_width": PML, "wavelet": 2 * shots.wavelet, "optimiser": "adam", "iterations": 2}
    with pytest.warns(UserWarning, match="becom") as told:
        inversion.invert(on, shots, tmp_path / "o", step=500.0, **how)
    (message,) = {str(each.message) for each in told}
    begin = "the model of iteration 1 has become too slow: spacing 10 m: 4.* points in the shortest"
    assert re.match(rf"{begin} wavelength \(1500 m/s of vp .* raise the lower bound", message)
    with warnings.catch_warnings(action="error", category=UserWarning):
        inversion.invert(on, shots, tmp_path / "p", step=50.0, **how)


def test_folders_for_wavefields_are_those_of_this_process():
    on = model()
    found = set_up(on, plan(on), None, Options(storage_path="scratch"), observed=False)
    assert found.physics.storage_path == str(Path.cwd() / "scratch")


def test_positions_are_checked():
    on = model()
    good = plan(on)
    moved = good.assign_coords(source_inline=good.source_inline + 1000)
    fails(GeometryError, "shot 0: the source is at inline 1020 m.*0 to 190", inversion.model_shots,
          on, moved)  # fmt: skip
    deep = good.copy(deep=True)
    deep.receiver_depth[4] = 151.0
    fails(GeometryError, "receiver 4 of shot 0: the receiver is at depth 151",
          inversion.model_shots, on, deep)  # fmt: skip
    km = good.assign_coords({n: good[n] / 1000 for n in good.coords if "_" in n})
    with pytest.warns(UserWarning, match="shots: the receivers of every shot are less than a sam"):
        inversion.model_shots(on, km, pml_width=PML)
    twice = good.copy(deep=True)
    twice.receiver_inline[4] = twice.receiver_inline[2]
    fails(GeometryError, "receivers 2 and 4 of shot 0 are at the same", inversion.model_shots,
          on, twice)  # fmt: skip
    fails(SurveyError, "has no source_inline", inversion.model_shots, on,
          good.drop_vars("source_inline"))  # fmt: skip
    feet = good.assign_coords(source_inline=good.source_inline.assign_attrs(units="ft"))
    fails(SurveyError, "source_inline is in ft", inversion.model_shots, on, feet)


def test_offsets_across_a_line_are_told_of():
    on = model((16, 40))
    wavelet = inversion.ricker(14.0, 0.0015, 220)
    line = inversion.positions([[10.0, 20.0]], [[10.0, 120.0]], wavelet, ("depth", "inline"))
    aslant = line.assign_coords(
        source_crossline=("shot", [0.0]), receiver_crossline=("receiver", [75.0])
    )
    with pytest.warns(UserWarning, match="offsets are up to 25 m longer than along inline"):
        inversion.model_shots(on, aslant, pml_width=PML)
    with warnings.catch_warnings(action="error", category=UserWarning):
        inversion.model_shots(
            on, aslant.assign_coords(source_crossline=("shot", [75.0])), pml_width=PML
        )


def test_positions_in_another_order_are_an_error():
    on, dims = model((16, 24)), ("depth", "inline")
    receivers = [[[10.0, x + 10.0 * shot] for x in (60, 90, 120)] for shot in range(3)]
    sources = [[10.0, x] for x in (40.0, 100.0, 160.0)]
    wavelet = inversion.ricker(14.0, 0.0015, 200)
    good = inversion.positions(sources, receivers, wavelet, dims)
    turned = {f"receiver_{d}": good[f"receiver_{d}"].transpose("receiver", "shot") for d in dims}
    fails(SurveyError, r"receiver_depth is over \(receiver, shot\) instead of \(receiver\) or "
          r"\(shot, receiver\); transpose it", inversion.model_shots, on,
          good.assign_coords(turned))  # fmt: skip
    spread = good.source_inline.broadcast_like(good.receiver_inline)
    fails(SurveyError, r"source_inline is over \(shot, receiver\) instead of \(shot\)",
          inversion.model_shots, on, good.assign_coords(source_inline=spread))  # fmt: skip


def test_receivers_of_any_shot_grids_and_time_steps_tell_experiments_apart():
    on, dims = model((16, 24)), ("depth", "inline")
    receivers = np.array([[[10.0, 60.0], [10.0, 90.0]]] * 6)
    sources = [[10.0, 40.0]] * 6
    found = []
    for _ in range(2):
        survey = inversion.positions(sources, receivers, inversion.ricker(14.0, 0.0015, 200), dims)
        found.append(set_up(on, survey, None, Options(), observed=False).fingerprint())
        receivers[1, 0, 1] += 10.0
    moved = inversion.velocity(on.vp.to_numpy(), 10.0, origin=(0.0, -5.0))
    faster = survey.assign_coords(time=(0.9 * survey.time).assign_attrs(survey.time.attrs))
    for model_, shots in ((on, survey), (moved, survey), (on, faster)):
        found.append(set_up(model_, shots, None, Options(), observed=False).fingerprint())
    assert found[2] == found[1]  # whatever has become of the array since
    assert len(set(found)) == 4


def test_masks_of_migrations_are_checked(tmp_path):
    on = model()
    shots = inversion.model_shots(on, plan(on), pml_width=PML)
    for values, match in ((np.ones((3, 4)), "has shape"), (np.full((16, 20), np.nan), "0 to 1")):
        mask = xr.DataArray(values, dims=("depth", "inline"))
        fails(ArgumentError, f"mask: .*{match}", inversion.migrate, on, shots, tmp_path / "o",
              mask=mask)  # fmt: skip
    mask = inversion.mask(on)
    for other in (mask[::-1], mask.assign_coords(depth=mask.depth + 10)):
        fails(ArgumentError, r"mask: depth goes from \d+ to \d+ m, in the model from 0 to 150 m",
              inversion.migrate, on, shots, tmp_path / "o", mask=other)  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_kinds_of_arguments_are_checked(tmp_path):
    on = model()
    shots = inversion.model_shots(on, plan(on), pml_width=PML)
    cases = {
        "iterations=1.5: pass a whole number, 1 or more": {"iterations": 1.5},
        "smoothing=-5: pass a number, 0 or more": {"smoothing": -5},
        "bands=8: pass a list of corners": {"bands": 8},
        "bounds=1500: pass the lower and the upper one": {"bounds": 1500},
        "step='x': pass a number": {"step": "x"},
        "optimiser_options=.*: pass names": {"optimiser_options": [1]},
        "subset='x': pass a whole number": {"subset": "x", "optimiser": "adam"},
        "seed=-1: pass a whole number, 0 or more": {"seed": -1},
        "batch_size=1.5: pass a whole number, 1 or more": {"batch_size": 1.5},
        "pml_width='x': pass a whole number": {"pml_width": "x"},
        "device='gpu': pass cpu or cuda": {"device": "gpu"},
    }
    for match, options in cases.items():
        fails(ArgumentError, match, inversion.invert, on, shots, tmp_path / "o", **options)
    assert not (tmp_path / "o").exists()
    how = {"iterations": 1, "pml_width": PML, "wavelet": 2 * shots.wavelet}
    bounds = (on.vp.min() - 100, on.vp.max() + 100)  # numbers, though no floats
    found = inversion.invert(
        on, shots, tmp_path / "o", parameters="vp", bounds=bounds, step=np.float32(20), **how
    )
    assert found.attrs["inverted_with"]["parameters"] == ["vp"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    on = model()
    fails(ArgumentError, "device='cuda': torch finds no such GPU", inversion.model_shots, on,
          plan(on), device="cuda")  # fmt: skip


def test_traces_and_options_are_checked(tmp_path):
    on, out = model(), tmp_path / "o.zarr"
    shots = inversion.model_shots(on, plan(on), pml_width=PML)
    bad = shots.copy(deep=True)
    bad.amplitude[1, 2, 30] = np.nan
    fails(SurveyError, "shot 1, receiver 2: NaN or infinite at 45 ms", inversion.invert, on, bad,
          out, pml_width=PML)  # fmt: skip
    short = inversion.ricker(14.0, 0.0015, 200)
    fails(SurveyError, "wavelet: has 200 samples of 1.5 ms, the traces 220", inversion.invert, on,
          shots, out, wavelet=short)  # fmt: skip
    fails(SurveyError, "has no wavelet; pass wavelet=", inversion.invert, on,
          shots.drop_vars("wavelet"), out)  # fmt: skip
    fails(SurveyError, "has no amplitude", inversion.invert, on, plan(on), out)
    flat = inversion.ricker(14.0, 0.0015, 220) * 0
    fails(ArgumentError, "wavelet: is zero", inversion.invert, on, shots, out, wavelet=flat)
    one = inversion.wavelet(np.outer([1.0, 0.0, 1.0], shots.wavelet), 0.0015)
    fails(ArgumentError, "wavelet of a shot: is zero", inversion.invert, on, shots, out,
          wavelet=one)  # fmt: skip
    early = shots.wavelet.assign_coords(time=shots.time - 0.06)
    fails(SurveyError, "wavelet: time starts at -0.06; pad or cut it", inversion.invert, on, shots,
          out, wavelet=early)  # fmt: skip
    fails(SurveyError, "has no shots", inversion.invert, on, shots.isel(shot=[]), out)
    cases = {
        "equation='born'": {"equation": "born"},
        "storage_mode='none': a gradient needs the wavefield": {"storage_mode": "none"},
        "the scalar equation knows pressure alone": {"receiver": "vertical"},
        "free_surface=True: the elastic equation has none": {
            "equation": "elastic", "free_surface": True,
        },
        "checkpoint_segments=4: .* above a free surface is lost .*; keep wavefields on disk": {
            "equation": "acoustic", "free_surface": True, "checkpoint_segments": 4,
        },
        "storagemode: no such option": {"storagemode": "disk"},
        "optimiser='newton'": {"optimiser": "newton"},
        "optimiser_options: sgd does not take them": {
            "optimiser": "sgd", "optimiser_options": {"history_size": 3},
        },
        "subset=9: pass a number from 1 to 3": {"subset": 9, "optimiser": "adam"},
        "subset: changes the misfit": {"subset": 2},
        "encoding: not with misfit": {"encoding": 2, "optimiser": "adam", "misfit": "envelope"},
        "bounds .* starts with 2000": {"bounds": (2100.0, 2500.0)},
        "bands: 900 Hz is not between": {"bands": [900.0]},
        "parameters .*: the scalar equation has vp": {"parameters": ["vs"]},
        "mask: has shape": {"mask": xr.DataArray(np.ones((3, 4)), dims=("depth", "inline"))},
    }  # fmt: skip
    for match, options in cases.items():
        fails(ArgumentError, match, inversion.invert, on, shots, out, **options)
    fails(MemoryBudgetError, "1 shot takes .* and 1 MB may be taken; keep wavefields on disk",
          inversion.invert, on, shots, tmp_path / "other.zarr", memory="1MB")  # fmt: skip


# Shaping, bands, selection


def test_smoothing_is_symmetric_and_keeps_constants():
    grid = grid_of(model((9, 14)))
    allowed = np.random.default_rng(0).uniform(0, 1, (9, 14))
    shape = Shape(grid, 25.0, None, {"vp": (0.0, 1.0)})
    masked = Shape(grid, 25.0, allowed, {"vp": (0.0, 1.0)})
    a, b = torch.randn(2, 9, 14, dtype=torch.float64)
    torch.testing.assert_close(shape.update(torch.ones_like(a)), torch.ones_like(a))
    torch.testing.assert_close((masked.update(a) * b).sum(), (a * masked.back(b)).sum())


def test_mask():
    on = model((16, 20))
    found = inversion.mask(on, plan(on), water_bottom=25.0, radius=50.0)
    assert not found.sel(depth=slice(0, 25)).any()
    assert found[-1].min() == 1.0
    assert 0 < found.sel(depth=40, inline=20) < 1
    fails(ArgumentError, "water_bottom=nan: pass a number", inversion.mask, on, water_bottom=np.nan)
    bottom = xr.DataArray(np.full(20, 25.0), {"inline": on.inline + 1e-9}, "inline")
    np.testing.assert_array_equal(
        inversion.mask(on, plan(on), water_bottom=bottom, radius=50.0), found
    )
    for given in (bottom[:9], bottom.rename(inline="x"), bottom.where(bottom.inline > 50)):
        fails(ArgumentError, "pass a depth in m everywhere along inline", inversion.mask, on,
              water_bottom=given)  # fmt: skip
    outside = plan(on).assign_coords(source_inline=("shot", [-90.0, -120.0, 20.0]))
    assert inversion.mask(on, outside, radius=50.0)[1, 2] == 0
    outside.source_inline[1] = np.nan
    fails(SurveyError, "a source has no position", inversion.mask, on, outside, radius=50.0)
    fails(SurveyError, "has no source_inline", inversion.mask, on,
          outside.drop_vars("source_inline"), radius=50.0)  # fmt: skip
    for radius in (-5.0, np.nan, "5"):
        fails(ArgumentError, "mask: radius=.*: pass a number, 0 or more", inversion.mask, on,
              outside, radius=radius)  # fmt: skip


def test_the_filter_commutes_with_propagation():
    """Filtered traces are those of a filtered source."""
    on = model((16, 20))
    survey = plan(on, samples=300)
    whole = inversion.model_shots(on, survey, pml_width=PML, precision="float64").amplitude
    filtered = survey.copy(deep=True)
    filtered["wavelet"][:] = low_pass(survey.wavelet.to_numpy(), 8.0, 0.0015)
    found = inversion.model_shots(on, filtered, pml_width=PML, precision="float64").amplitude
    # The absorbing layers are made for another frequency, so that these differ a little.
    np.testing.assert_allclose(
        low_pass(whole.to_numpy(), 8.0, 0.0015), found, atol=2e-3 * float(np.abs(found).max())
    )


def test_whole_numbers_are_filtered_as_numbers(tmp_path):
    on = model()
    shots = inversion.model_shots(on, plan(on), pml_width=PML)
    largest = float(np.abs(shots.amplitude).max())
    shots["amplitude"] = (10 / largest * shots.amplitude).round().astype(np.int16)
    same = shots.assign(amplitude=shots.amplitude.astype(np.float32))
    found = [
        inversion.invert(
            on, given, tmp_path / f"{given.amplitude.dtype}", iterations=1, pml_width=PML,
            bands=[14.0], optimiser="sgd",
        ).misfit
        for given in (shots, same)
    ]  # fmt: skip
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("frequency", [0.0, -5.0, 125.0, 200.0, np.nan])
def test_frequencies_that_no_wavelet_has(frequency):
    fails(ArgumentError, "ricker: .* Hz is not between 0 and the Nyquist frequency",
          inversion.ricker, frequency, 0.004, 60)  # fmt: skip


def test_the_filter_is_a_butterworth():
    time = 0.001 * np.arange(4000)
    for frequency, gain in ((2.0, 1.0), (10.0, 0.5**0.5), (40.0, 0.0)):
        wave = np.sin(2 * np.pi * frequency * time)
        late = low_pass(wave, 10.0, 0.001)[2000:]
        assert np.abs(late).max() == pytest.approx(gain, abs=0.01)


class _Gathers:
    count, has_common_spread = 10, True


def test_selection_repeats_itself_and_takes_all():
    encoded = Selection(_Gathers(), None, 3, seed=4)
    groups = encoded.groups(7)
    assert groups == encoded.groups(7) != encoded.groups(8)
    assert sorted(shot for group in groups for shot, _ in group) == list(range(10))
    assert {sign for group in groups for _, sign in group} == {-1.0, 1.0}
    some = Selection(_Gathers(), 4, None, seed=4)
    assert len(some.groups(0)) == 4
    assert some.weight == 2.5


def test_batches_and_the_tree():
    groups = [((n, 1.0),) for n in range(10)]
    assert [len(b) for b in cut(groups, 4)] == [3, 4, 3]
    assert sum(cut(groups, 3), ()) == tuple(groups)
    assert levels(1) == [(0, 1)]
    assert levels(70) == [(0, 70), (1, 9), (2, 2)]


# SEG-Y


def write_shots(path, traces, sources, receivers, *, scalar=-10, dead=(), delay=0, units=1):
    """Gathers (shot, receiver, time) at x, y and elevation, receivers of each shot alike or not."""
    spec = segyio.spec()
    spec.samples = delay + np.arange(traces.shape[-1]) * 2.0
    spec.format, spec.tracecount = 5, traces.shape[0] * traces.shape[1]
    with segyio.create(path, spec) as file:
        file.bin.update(hdt=2000, mfeet=1)
        number = 0
        for shot, gather in enumerate(traces):
            for channel, trace in enumerate(gather):
                at = receivers[shot][channel]
                file.header[number] = {
                    Field.FieldRecord: 100 + shot,
                    Field.TraceNumber: channel + 1,
                    Field.TraceIdentificationCode: 2 if (shot, channel) in dead else 1,
                    Field.SourceX: round(sources[shot][0] * -scalar),
                    Field.SourceY: round(sources[shot][1] * -scalar),
                    Field.SourceDepth: round(sources[shot][2] * -scalar),
                    Field.GroupX: round(at[0] * -scalar),
                    Field.GroupY: round(at[1] * -scalar),
                    Field.ReceiverGroupElevation: round(-at[2] * -scalar),
                    Field.SourceGroupScalar: scalar,
                    Field.ElevationScalar: scalar,
                    Field.CoordinateUnits: units,
                    Field.DelayRecordingTime: delay,
                    Field.TRACE_SAMPLE_COUNT: traces.shape[-1],
                    Field.TRACE_SAMPLE_INTERVAL: 2000,
                }
                file.trace[number] = trace
                number += 1


@pytest.fixture
def gathers():
    rng = np.random.default_rng(1)
    traces = rng.normal(size=(3, 5, 40)).astype(np.float32)
    sources = [(1000.0 + 50 * n, 2000.0, 6.5) for n in range(3)]
    receivers = [[(1000.0 + 50 * n - 20 * k, 2010.0, 8.0) for k in range(5)] for n in range(3)]
    return traces, sources, receivers


def test_gathers_from_segy(gathers, tmp_path):
    traces, _, _ = gathers
    write_shots(tmp_path / "s.sgy", *gathers, dead=[(1, 3)])
    given = tmp_path / "s.sgy", tmp_path / "s.zarr"
    done = outcrop_command("ingest", *given, "--shots", "--origin", "900,1990")
    assert done.returncode == 0, done.stderr
    assert "3 shot × 5 receiver × 40 time" in done.stdout
    found = inversion.open_shots(tmp_path / "s.zarr")
    np.testing.assert_array_equal(found.amplitude[[0, 2]], traces[[0, 2]])
    np.testing.assert_array_equal(found.amplitude[1, :4], traces[1, [0, 1, 2, 4]])
    assert not found.amplitude[1, 4].any()
    assert np.isnan(found.receiver_inline[1, 4])
    assert found.trace_index[1].values.tolist() == [5, 6, 7, 9, -1]
    assert found.source_inline.values.tolist() == [100.0, 150.0, 200.0]
    assert found.source_crossline.values.tolist() == [10.0] * 3
    assert found.source_depth.values.tolist() == [6.5] * 3
    assert found.receiver_inline[0].values.tolist() == [100.0, 80.0, 60.0, 40.0, 20.0]
    assert set(found.receiver_depth.values[0]) == {8.0}
    np.testing.assert_allclose(found.time, 0.002 * np.arange(40))
    assert found.field_record.values.tolist() == [100, 101, 102]


def test_azimuth_turns_positions(gathers, tmp_path):
    write_shots(tmp_path / "s.sgy", *gathers)
    found = inversion.ingest_shots(
        tmp_path / "s.sgy", tmp_path / "n.zarr", origin=(1000.0, 2000.0), azimuth=0.0
    )
    assert found.source_crossline.values.tolist() == [0.0, -50.0, -100.0]
    assert found.source_inline.values.tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(found.receiver_inline[0], 10.0)


def test_scalars_that_differ_within_a_shot_and_no_format(gathers, tmp_path):
    path = tmp_path / "s.sgy"
    write_shots(path, *gathers)
    alike = inversion.ingest_shots(path, tmp_path / "a.zarr")
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        for number in range(0, 15, 2):
            header = file.header[number]
            finer = {f: 10 * header[f] for f in (73, 77, 81, 85)}
            file.header[number] = {**finer, Field.SourceGroupScalar: -100}
    xr.testing.assert_equal(inversion.ingest_shots(path, tmp_path / "b.zarr"), alike)
    with path.open("r+b") as file:  # and no sample format
        file.seek(3224)
        file.write(b"\0\0")
    found = inversion.ingest_shots(path, tmp_path / "c.zarr", format="ieee")
    xr.testing.assert_equal(found, alike)


def test_shots_that_segy_cannot_tell(gathers, tmp_path):
    traces, sources, receivers = gathers
    path, out = tmp_path / "s.sgy", tmp_path / "s.zarr"
    write_shots(path, traces, sources, receivers, units=2)
    fails(GeometryError, "trace 1: coordinates are angles", inversion.ingest_shots, path, out)
    nowhere = [(0.0, 0.0, 0.0)] * 3, [[(0.0, 0.0, 0.0)] * 5] * 3
    write_shots(path, traces, *nowhere)
    fails(GeometryError, "coordinates .* are all 0", inversion.ingest_shots, path, out)
    traces[2, 1, 7] = np.inf
    write_shots(path, traces, sources, receivers)
    fails(SurveyError, "trace 12, sample 8: NaN or infinite", inversion.ingest_shots, path, out)
    found = inversion.ingest_shots(path, out, nonfinite="zero")
    assert found.amplitude[2, 1, 7] == 0
    late = tmp_path / "late.sgy"
    write_shots(late, traces, sources, receivers, delay=100)
    shots = inversion.ingest_shots(late, tmp_path / "late.zarr", nonfinite="zero")
    fails(SurveyError, "time starts at 0.1", inversion.invert, model((12, 60)), shots,
          tmp_path / "o.zarr", wavelet=inversion.ricker(12.0, 0.002, 40))  # fmt: skip
    assert found.sizes["shot"] == 3


def test_sources_in_a_well_are_shots_of_their_own(gathers, tmp_path):
    path = tmp_path / "s.sgy"
    traces, _, receivers = gathers
    write_shots(path, traces, [(1000.0, 2000.0, 10.0 + 5 * n) for n in range(3)], receivers)
    set_field(path, "FieldRecord", lambda n: 1)
    found = inversion.ingest_shots(path, tmp_path / "s.zarr")
    assert found.source_depth.values.tolist() == [10.0, 15.0, 20.0]
    np.testing.assert_array_equal(found.amplitude, traces)


def set_field(path, name, of_trace):
    with segyio.open(path, "r+", ignore_geometry=True) as file:
        for number in range(file.tracecount):
            file.header[number] = {getattr(Field, name): of_trace(number)}


def test_headers_of_shots_that_disagree(gathers, tmp_path, caplog):
    path, out = tmp_path / "s.sgy", tmp_path / "s.zarr"
    write_shots(path, *gathers, dead=[(0, 0), (1, 3)])
    set_field(path, "TRACE_SAMPLE_INTERVAL", lambda n: 7 if n == 8 else 4000 * (n > 2))
    set_field(path, "TraceWeightingFactor", lambda n: 3 * (n != 0))
    set_field(path, "DelayRecordingTime", lambda n: 50 * (n != 0))
    found = inversion.ingest_shots(path, out)
    np.testing.assert_allclose(found.time[:2], [0.05, 0.052])
    interval, weights = (record.getMessage() for record in caplog.records)
    assert "2 by the binary header, which is taken, and 4 by the traces" in interval
    assert "trace weighting factors (header bytes 169-170; the first is 3)" in weights

    out = tmp_path / "t.zarr"
    set_field(path, "TRACE_SAMPLE_INTERVAL", lambda n: 2000 if n > 10 else 4000)
    fails(GeometryError, "several sample intervals: trace 12 says 2 .*, trace 2 4;",
          inversion.ingest_shots, path, out)  # fmt: skip
    set_field(path, "ScalarTraceHeader", lambda n: -10 if n > 10 else 1)
    fails(GeometryError, "the recording delay varies", inversion.ingest_shots, path, out,
          interval=2)  # fmt: skip
    assert not out.exists()


def test_shots_in_what_is_overwritten(gathers, tmp_path):
    write_shots(tmp_path / "s.sgy", *gathers)
    inversion.ingest_shots(tmp_path / "s.sgy", tmp_path / "s.zarr")
    inside = (tmp_path / "s.sgy").rename(tmp_path / "s.zarr" / "s.sgy")
    fails(ArgumentError, "holds the SEG-Y that is read", inversion.ingest_shots, inside,
          tmp_path / "s.zarr", overwrite=True)  # fmt: skip
    assert inside.exists()


def test_shots_know_of_samples_that_were_made_zero(gathers, tmp_path, monkeypatch):
    traces, *places = gathers
    traces[:, 1, 7] = np.nan
    path, out = tmp_path / "s.sgy", tmp_path / "s.zarr"
    write_shots(path, traces, *places)
    finish = Output.finish

    def interrupt(output, key):
        finish(output, key)
        if key.isdigit():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Output, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            inversion.ingest_shots(path, out, nonfinite="zero")
    fails(SurveyError, "begun with nonfinite='zero'", inversion.ingest_shots, path, out)
    with monkeypatch.context() as patch:
        patch.delattr(SegyFile, "scan")  # of all headers, which takes long
        again = "another interval: None, now 4.0"
        fails(ResumeError, again, inversion.ingest_shots, path, out, interval=4)
    found = inversion.ingest_shots(path, out, nonfinite="zero")
    assert found.attrs["ingested_with"]["replaced_samples"] == 3


# Run files


@pytest.fixture
def folder(tmp_path):
    """A model, shots over another one, and a run file that says what to do with them."""
    on, vp = model((16, 20)), np.full((16, 20), 2000.0, dtype=np.float32)
    vp[6:10, 8:12] = 2200.0
    true = inversion.velocity(vp, 10.0)
    on.to_zarr(tmp_path / "start.zarr", consolidated=False)
    true.to_zarr(tmp_path / "true.zarr", consolidated=False)
    shots = inversion.model_shots(true, plan(on), pml_width=PML).drop_vars("wavelet")
    shots.to_zarr(tmp_path / "shots.zarr", consolidated=False)
    facts = {
        "velocity": "start.zarr",
        "observed": "shots.zarr",
        "output": "inverted.zarr",
        "true": "true.zarr",
        "pictures": "pictures",
        "wavelet": {"ricker": 14.0},
        "mask": {"radius": 30.0},
        "iterations": 2,
        "bands": [9.0, None],
        "pml_width": PML,
        "storage_mode": "disk",
        "storage_path": "scratch",
    }
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(facts))
    return tmp_path


def test_outcrop_invert(folder):
    path = folder / "run.yaml"
    path.write_text(path.read_text().replace("'true':", "true:"))  # as the documentation writes it
    done = outcrop_command("invert", folder / "run.yaml")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        f"iteration {n}" for n in range(5)
    ]
    found = inversion.open_inversion(folder / "inverted.zarr")
    share = 100 * float(found.misfit[4] / found.misfit[2])
    told = f"vp, 16 depth × 20 inline; misfit {share:.3g} % of the first in the last band"
    assert f"inverted.zarr: {told}" in done.stdout
    np.testing.assert_array_equal(found.corner, [9.0, 9.0, np.nan, np.nan, np.nan])
    assert found.attrs["inverted_with"]["bands"] == [9.0, None]
    for name in ("models", "misfit", "gathers"):
        assert (folder / "pictures" / f"{name}.png").stat().st_size > 5000
    assert not list((folder / "scratch").iterdir())
    out = folder / "vp.sgy"
    done = outcrop_command("export", folder / "inverted.zarr", out, "--variable", "vp")
    assert f"{out}: vp, 16 depth × 20 inline, " in done.stdout
    with segyio.open(out, ignore_geometry=True) as file:
        np.testing.assert_array_equal(file.trace.raw[:].T, found.vp)
    again = outcrop_command("invert", folder / "run.yaml")
    assert again.returncode == 2
    assert "already exists" in again.stderr


def test_run_files_are_checked(folder):
    path = folder / "run.yaml"
    facts = yaml.safe_load(path.read_text())
    cases = [
        ({"iteration": 3}, "iteration: no such key; there are accuracy"),
        ({"wavelet": 14.0}, "wavelet: is no mapping"),
        ({"wavelet": {"klauder": 3}}, "wavelet: klauder: no such key; there are ricker, file"),
        ({"wavelet": {}}, "wavelet: write ricker: and its frequency"),
        ({"wavelet": {"ricker": "abc"}}, "wavelet: ricker='abc': pass a number above 0"),
        ({"mask": {"radius": 30, "foo": 1}}, "mask: foo: no such key; there are water_bottom"),
        ({"mask": {"water_bottom": "deep"}}, "mask: water_bottom='deep': pass a number"),
        ({"velocity": 3}, "run.yaml: velocity=3: pass a path"),
        ({"storage_path": 5}, "run.yaml: storage_path=5: pass a path"),
        ({"iterations": "ten"}, "run.yaml: iterations='ten': pass a whole number"),
        ({"smoothing": "25 m"}, "run.yaml: smoothing='25 m': pass a number"),
        ({"bands": ["low"]}, r"run.yaml: bands=\['low'\]: pass a list"),
        ({"bounds": [1500]}, r"run.yaml: bounds=\[1500\]: pass the lower"),
        ({"wavelet": {"file": "none.txt"}}, "none.txt: no wavelet"),
        ({"observed": "none.zarr"}, "none.zarr: is no Zarr group"),
        ({"observed": "true.zarr"}, "true.zarr: has no"),
    ]
    for change, match in cases:
        path.write_text(yaml.safe_dump(facts | change))
        fails(OutcropError, match, lambda: Run(path).invert())
    path.write_text(yaml.safe_dump({k: v for k, v in facts.items() if k != "output"}))
    fails(ArgumentError, "has no output", Run, path)
    path.write_text("a: [")
    fails(ArgumentError, "is no YAML", Run, path)
    done = outcrop_command("invert", path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_wavelet_from_a_file(folder):
    path = folder / "run.yaml"
    facts = yaml.safe_load(path.read_text())
    np.savetxt(folder / "w.txt", inversion.ricker(14.0, 0.0015, 180))
    for key in ("pictures", "true", "bands", "mask"):
        facts.pop(key)
    path.write_text(yaml.safe_dump(facts | {"wavelet": {"file": "w.txt"}}))
    from_file = Run(path).invert()
    path.write_text(yaml.safe_dump(facts | {"output": "other.zarr"}))
    other = Run(path).invert()
    np.testing.assert_allclose(from_file.vp, other.vp, atol=0.5)


def test_another_run_does_not_resume(folder):
    path = folder / "run.yaml"
    facts = yaml.safe_load(path.read_text())

    def stop(iteration, misfit):
        if iteration == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(path).invert(on_iteration=stop)
    path.write_text(yaml.safe_dump(facts | {"smoothing": 20.0}))
    with pytest.raises(ResumeError, match=r"smoothing: 0\.0, now 20\.0"):
        Run(path).invert()


def test_the_workflow(tmp_path, monkeypatch, capsys):
    workflow = ROOT / "workflows" / "fwi.py"
    how = {"size": "tiny", "iterations": 2, "pml_width": 5}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in how.items()]
    monkeypatch.setattr(sys, "argv", [str(workflow), str(tmp_path), *options])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(workflow), run_name="__main__")
    assert not stopped.value.code
    assert "misfit fell by" in capsys.readouterr().out
    found = inversion.open_inversion(tmp_path / "inverted.zarr")
    assert found.vp.dims == ("depth", "crossline", "inline")
    assert float(found.misfit[-1]) < float(found.misfit[0])
    assert {p.suffix for p in tmp_path.iterdir()} == {".zarr", ".png"}
    again = runpy.run_path(str(workflow))["main"]
    with pytest.raises(SystemExit, match="complete with 2 iterations, not 3; remove it"):
        again(tmp_path, **{**how, "iterations": 3})


def test_what_the_wavelet_is_with_each_equation():
    """The same pulse from w, from w = -ρ·q' and from w = ρ·v²·q."""
    shape, wavelet = (24, 40), inversion.ricker(10.0, 0.001, 500)
    others = {"density": np.full(shape, 1500.0), "vs": np.zeros(shape)}
    on = inversion.velocity(np.full(shape, 2000.0), 10.0, **others)
    survey = inversion.positions([[120.0, 100.0]], [[120.0, 300.0]], wavelet, ("depth", "inline"))
    pulse = {}
    for equation, factor in (("scalar", 1.0), ("acoustic", 1.0), ("elastic", 1500.0 * 2000.0**2)):
        emitted = survey.assign(wavelet=factor * wavelet)
        if equation == "scalar":
            emitted = survey.assign(wavelet=-1500.0 * wavelet.differentiate("time"))
        found = inversion.model_shots(on, emitted, equation=equation, pml_width=PML)
        pulse[equation] = found.amplitude.to_numpy()
    largest = np.abs(pulse["acoustic"]).max()
    np.testing.assert_allclose(pulse["elastic"], pulse["acoustic"], atol=1e-3 * largest)
    np.testing.assert_allclose(pulse["scalar"], pulse["acoustic"], atol=0.05 * largest)


def test_a_free_surface_reflects_with_the_other_sign():
    """Two paths: the traces are those of a source and of its image above the surface."""
    on = model((30, 40))
    wavelet = inversion.ricker(14.0, 0.0015, 200)
    dims = ("depth", "inline")
    survey = inversion.positions([[60.0, 200.0]], [[90.0, 250.0]], wavelet, dims)
    how = {"pml_width": 20, "precision": "float64"}
    found = inversion.model_shots(on, survey, free_surface=True, **how).amplitude
    deep = inversion.velocity(np.full((60, 40), 2000.0), 10.0, origin=(-300.0, 0.0))
    direct, image = (
        inversion.model_shots(
            deep, inversion.positions([[z, 200.0]], [[90.0, 250.0]], wavelet, dims), **how
        ).amplitude
        for z in (60.0, -60.0)
    )
    largest = float(np.abs(found).max())
    assert float(np.abs(image).max()) > 0.3 * largest
    np.testing.assert_allclose(found, direct - image, atol=0.03 * largest)
    near = inversion.positions([[0.0, 200.0]], [[90.0, 250.0]], wavelet, dims)
    fails(GeometryError, "depth 0 m is too near to the free surface; put all below it",
          inversion.model_shots, on, near, free_surface=True)  # fmt: skip


@pytest.mark.parametrize("places", [(6.0, 8.0, 203.0), (17.0, 22.0, 203.0), (60.0, 8.0, 200.0)])
def test_positions_between_samples_near_a_free_surface(places):
    """The scalar equation has their images too; others refuse them."""
    wavelet, dims = inversion.ricker(14.0, 0.0015, 200), ("depth", "inline")
    on = model((30, 40), density=np.full((30, 40), 1000.0))
    deep = inversion.velocity(np.full((60, 40), 2000.0), 10.0, origin=(-300.0, 0.0))
    source, receiver, at = places

    def traces(over, depth, **how):
        survey = inversion.positions([[depth, at]], [[receiver, 251.0]], wavelet, dims)
        return inversion.model_shots(over, survey, pml_width=PML, precision="float64", **how)

    found = traces(on, source, free_surface=True).amplitude
    expected = traces(deep, source).amplitude - traces(deep, -source).amplitude
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * float(abs(expected).max()))
    fails(GeometryError, "too near to the free surface; put all below it at samples of the model, "
          "or at 40 m or deeper", traces, on, source, free_surface=True,
          equation="acoustic")  # fmt: skip


# What lies on disk, and what is given in another form


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model, and the path of shots over it."""
    on, path = model(), tmp_path_factory.mktemp("small") / "shots.zarr"
    inversion.model_shots(on, plan(on), path, pml_width=PML)
    return on, path


QUICK = {"iterations": 1, "pml_width": PML, "bounds": (1500.0, 2500.0)}


def louder(path):
    """The wavelet of shots twice as loud, so that there is something to invert."""
    return 2 * inversion.open_shots(path).wavelet.load()


def test_what_is_read_is_not_overwritten(tmp_path):
    on = model()
    on.to_zarr(tmp_path / "start.zarr", consolidated=False)
    shots = inversion.model_shots(on, plan(on), tmp_path / "shots.zarr", pml_width=PML)
    before = shots.amplitude.to_numpy()
    start, path = tmp_path / "start.zarr", tmp_path / "shots.zarr"
    for function in (inversion.invert, inversion.migrate):
        for observed in (path, shots):
            fails(ArgumentError, "is the Zarr of shots that is read; choose another", function,
                  on, observed, path, overwrite=True)  # fmt: skip
        fails(ArgumentError, "is the model that is read", function, start, path, start,
              overwrite=True)  # fmt: skip
        (tmp_path / "zarr.json").write_text("{}")
        fails(ArgumentError, "holds the model that is read", function, start, path, tmp_path,
              overwrite=True)  # fmt: skip
    fails(ArgumentError, "is the model that is read", inversion.model_shots, start, plan(on),
          start, overwrite=True)  # fmt: skip
    fails(ArgumentError, "is the acquisition that is read", inversion.model_shots, on, shots,
          path, overwrite=True)  # fmt: skip
    np.testing.assert_array_equal(inversion.open_shots(path).amplitude, before)


def test_packed_and_chunked_shots_are_what_they_say(small, tmp_path):
    on, path = small
    shots, wavelet = inversion.open_shots(path).load().drop_encoding(), louder(path)
    plain = inversion.invert(on, shots, tmp_path / "plain", wavelet=wavelet, **QUICK)
    largest = float(np.abs(shots.amplitude).max())
    how = {"dtype": "int16", "scale_factor": largest / 32000, "_FillValue": -32768}
    shots.to_zarr(tmp_path / "packed.zarr", encoding={"amplitude": how}, consolidated=False)
    packed = inversion.invert(
        on, tmp_path / "packed.zarr", tmp_path / "packed", wavelet=wavelet, **QUICK
    )
    np.testing.assert_allclose(packed.misfit, plain.misfit, rtol=1e-3)
    lazy = shots.chunk({"shot": 2, "receiver": 4, "time": 70})
    chunked = inversion.invert(on, lazy, tmp_path / "chunked", wavelet=wavelet, **QUICK)
    np.testing.assert_array_equal(chunked.vp, plain.vp)


def test_shots_of_several_files_are_joined(gathers, tmp_path):
    """As docs/inversion.md joins them; one has fewer receivers, and none lie where they did."""
    traces, sources, receivers = gathers
    few = traces[:2, :3] + 1, sources, [row[:3] for row in receivers]
    for number, each in enumerate((gathers, few)):
        write_shots(tmp_path / f"{number}.sgy", *each)
    parts = [
        inversion.ingest_shots(tmp_path / f"{n}.sgy", tmp_path / f"{n}.zarr", origin=(900, 1990))
        for n in range(2)
    ]
    parts = [p.assign_coords(receiver=np.arange(p.sizes["receiver"])) for p in parts]
    joined = xr.concat(parts, "shot", join="outer").chunk(shot=1, receiver=-1)
    joined.drop_encoding().to_zarr(tmp_path / "shots.zarr", consolidated=False)
    on = model((4, 30), 3000.0)
    physics = set_up(
        on, tmp_path / "shots.zarr", inversion.ricker(50.0, 0.002, 40), Options(substeps=True),
        observed=True, bands=(20.0,),
    ).physics  # fmt: skip
    job = Shots(physics, tmp_path / "shots.zarr")
    assert job.check(tuple(range(5)))[1] == 0
    for shot, expected in enumerate((*traces, *few[0])):
        observed, live, _ = job._observed((((shot, 1.0),),), None)
        np.testing.assert_array_equal(observed, expected)
        assert live.sum() == len(expected)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "match"),
    [
        ("shots/amplitude/c/1/0/0", flip, "shots: amplitude of shot 1 cannot be read"),
        ("shots/amplitude/c/1/0/0", lambda p: p.write_bytes(b""), "amplitude of shot 1 cannot"),
        ("shots/source_inline/c/0", flip, "source_inline of shots 0 to 2 cannot be read"),
        ("shots/amplitude/zarr.json", Path.unlink, "amplitude cannot be opened"),
        ("shots/amplitude/zarr.json", lambda p: p.write_text("{"), "amplitude cannot be opened"),
        ("shots/zarr.json", lambda p: p.write_text("{"), r"zarr\.json: is damaged"),
        ("start/zarr.json", lambda p: p.write_text("[]"), r"zarr\.json: is damaged"),
        ("start/vp/zarr.json", lambda p: p.write_text("{"), "start: cannot be opened"),
        ("start/vp/c/0/0", lambda p: p.write_bytes(b""), "start: vp cannot be read"),
    ],
)
def test_damaged_files_are_named(small, tmp_path, name, damage, match):
    on, path = small
    shutil.copytree(path, tmp_path / "shots")
    on.to_zarr(tmp_path / "start", consolidated=False)
    damage(tmp_path / name)
    fails(SurveyError, match, inversion.invert, tmp_path / "start", tmp_path / "shots",
          tmp_path / "o", **QUICK)  # fmt: skip


def test_an_array_is_no_group(small):
    on, path = small
    for function, given in ((inversion.open_shots, ()), (inversion.model_shots, (plan(on),))):
        fails(SurveyError, "is an array of a group", function, path / "amplitude", *given)


def test_chunks_of_results_have_checksums(small, tmp_path):
    on, path = small
    inversion.invert(on, path, tmp_path / "i", wavelet=louder(path), **QUICK)
    inversion.migrate(on, path, tmp_path / "m", wavelet=louder(path), pml_width=PML)
    for name in ("i/vp", "i/vp_history", "i/gradient_vp", "i/misfit", "i/depth", "m/image"):
        codecs = json.loads((tmp_path / name / "zarr.json").read_text())["codecs"]
        assert codecs[-1]["name"] == "crc32c", name


def test_damaged_unfinished_inversions(small, tmp_path, monkeypatch):
    on, path = small

    def stop(iteration, misfit):
        if iteration == 1:
            raise KeyboardInterrupt

    how = {**QUICK, "iterations": 2, "batch_size": 1, "wavelet": louder(path)}
    how["storage_mode"], gone = "disk", []
    whole = inversion.invert(on, path, tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        inversion.invert(on, path, tmp_path / "o", **how, on_iteration=stop)
    aside = tmp_path / "o" / "unfinished"
    for name in ("state.pt", "record.json"):
        kept = (aside / name).read_bytes()
        for damaged in (b"", b"\x00\xffgarbage", b"3"):
            (aside / name).write_bytes(damaged)
            fails(ResumeError, f"{name}: is damaged; restore that file, or pass overwrite=True",
                  inversion.invert, on, path, tmp_path / "o", **how)  # fmt: skip
        (aside / name).write_bytes(kept)
    kept = list((aside / "evaluations").glob("*.npz"))
    assert kept
    for each in kept:
        each.write_bytes(b"garbage")
    with monkeypatch.context() as patch:
        patch.setattr(Shots, "merge", lambda *arguments: stop(1, 0.0))
        with pytest.raises(KeyboardInterrupt):
            inversion.invert(on, path, tmp_path / "o", **how)
    whole_one, empty, cut_off = sorted((aside / "evaluations").glob("*/0-*.npz"))
    empty.write_bytes(b"")
    cut_off.write_bytes(whole_one.read_bytes()[:300])
    left = aside / "wavefields" / "deepwave_tmp_1_0"
    left.mkdir()
    found = inversion.invert(
        on, path, tmp_path / "o", **how, on_iteration=lambda *told: gone.append(not left.exists())
    )
    assert all(gone)
    np.testing.assert_array_equal(found.vp, whole.vp)


def test_no_room_for_wavefields(small, tmp_path):
    on, path = small
    how = {**QUICK, "wavelet": louder(path), "storage_mode": "disk", "storage_path": tmp_path}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        fails(OutcropError, f"{tmp_path}: wavefields cannot be written, with .* left; make room",
              inversion.invert, on, path, tmp_path / "o", **how)  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert inversion.invert(on, path, tmp_path / "o", **how).misfit[0] > 0


@pytest.mark.parametrize("dtype", [">f4", ">i2"])
def test_bytes_in_the_other_order(dtype, small):
    on, path = small
    other = on.assign(vp=on.vp.astype(dtype))
    found = inversion.model_shots(other, plan(other), pml_width=PML).amplitude
    np.testing.assert_array_equal(found, inversion.open_shots(path).amplitude)


def test_what_is_no_numbers(small, tmp_path):
    on = model()
    for dtype in ("complex64", "U5"):
        fails(SurveyError, "vp is .*; make it real numbers", inversion.model_shots,
              on.assign(vp=on.vp.astype(dtype)), plan(on))  # fmt: skip
        shots = inversion.open_shots(small[1]).load()
        for name in ("amplitude", "source_inline", "receiver_depth", "wavelet"):
            other = shots.assign({name: shots[name].astype(dtype)})
            fails(SurveyError, f"{name}.* is .*; make it real numbers", inversion.invert, on,
                  other, tmp_path / "none.zarr", **QUICK)  # fmt: skip
    values = np.full((8, 9), 2000.0)
    cases = {
        "foo: no such parameter; there are vp, vs": {"foo": values},
        r"vs: has shape \(3, 3\), vp has \(8, 9\)": {"vs": np.ones((3, 3))},
        r"spacing=\(1, 2, 3\): pass one number": {"spacing": (1, 2, 3)},
        "origin: no array of numbers": {"origin": "a"},
        r"vp: has shape \(5,\)": {"vp": np.ones(5)},
        "vp: no array of numbers": {"vp": [[1, 2], [1, 2, 3]]},
        "vs: no array of numbers": {"vs": [[1, 2], [1, 2, 3]]},
        "spacing: no array of numbers": {"spacing": [1, [2]]},
        "spacing=0: pass metres above 0": {"spacing": 0},
        "dims='ab': pass a list of depth, crossline, inline": {"dims": "ab"},
        r"dims=\('depth', 'x'\): pass a list": {"dims": ("depth", "x")},
    }
    for match, given in cases.items():
        fails(ArgumentError, match, inversion.velocity, **{"vp": values, "spacing": 10.0, **given})


def test_numbers_of_numpy_are_numbers(small, tmp_path):
    on, path = small
    found = inversion.invert(
        on, path, tmp_path / "o", wavelet=louder(path), iterations=np.int64(1),
        smoothing=np.float32(20), seed=np.int64(3), subset=np.int32(2), bands=np.array([9.0]),
        optimiser="sgd", optimiser_options={"momentum": np.float32(0.5)}, step=np.float32(20),
        pml_width=np.int64(PML), accuracy=np.int64(4), free_surface=np.bool_(False),
    )  # fmt: skip
    assert found.attrs["inverted_with"]["optimiser"][1] == {"momentum": 0.5}
    found = inversion.model_shots(on, plan(on), tmp_path / "s", pml_width=np.int64(PML))
    assert found.attrs["modelled_with"]["pml_width"] == PML


def test_things_of_another_kind(small, tmp_path):
    on, path = small
    cases = {
        "velocity=None: pass a path, or a Dataset": {"velocity": None},
        "velocity=<ndarray>: pass a path": {"velocity": on.vp.to_numpy()},
        "observed=None: pass a path, or a Dataset": {"observed": None},
        "mask=<ndarray>: pass a DataArray": {"mask": np.ones((16, 20))},
        "wavelet=<ndarray>: pass a DataArray": {"wavelet": np.ones(220)},
        "lr='abc': pass a number above 0": {"optimiser_options": {"lr": "abc"}},
        "lr=0: pass a number above 0": {"optimiser_options": {"lr": 0}},
        "optimiser_options: history_size=0: pass": {"optimiser_options": {"history_size": 0}},
        "optimiser_options: max_eval='x': pass": {"optimiser_options": {"max_eval": "x"}},
        "optimiser_options: max_eval=1: pass": {"optimiser_options": {"max_eval": 1}},
        "tolerance_change='1e-9': pass": {"optimiser_options": {"tolerance_change": "1e-9"}},
        "lbfgs does not take them: .*max_iter": {"optimiser_options": {"max_iter": 5}},
        "sgd does not take them: .*weight_decay": {
            "optimiser": "sgd", "optimiser_options": {"weight_decay": 0.5},
        },
        "adam does not take them: list index": {
            "optimiser": "adam", "optimiser_options": {"betas": [0.9]},
        },
        "client: is a int; pass a distributed.Client": {"client": 3},
        "checkpoint_segments=999: is more than the 220": {"checkpoint_segments": 999},
    }  # fmt: skip
    for match, change in cases.items():
        given = {"velocity": on, "observed": path, "path": tmp_path / "o"} | change
        fails(ArgumentError, match, inversion.invert, **given)
    fails(ArgumentError, "acquisition='shots.zarr': pass a Dataset", inversion.model_shots, on,
          "shots.zarr")  # fmt: skip
    fails(ArgumentError, "laplacian='no': pass true or false", inversion.migrate, on, path,
          tmp_path / "o", laplacian="no")  # fmt: skip
    many = louder(path).expand_dims(trace=3)
    fails(SurveyError, r"wavelet: is over \(trace, time\) instead of \(time\) or \(shot, time\)",
          inversion.invert, on, path, tmp_path / "o", wavelet=many)  # fmt: skip
    fails(SurveyError, 'shots: has no wavelet; add one, as "wavelet"', inversion.model_shots, on,
          plan(on).drop_vars("wavelet"))  # fmt: skip
    assert not (tmp_path / "o").exists()


def test_traces_that_are_left_out_decide_nothing(gathers, tmp_path):
    path, out = tmp_path / "s.sgy", tmp_path / "s.zarr"
    everything = [(shot, trace) for shot in range(3) for trace in range(5)]
    write_shots(path, *gathers, dead=everything)
    fails(GeometryError, "all traces say that they hold no signal", inversion.ingest_shots, path,
          out)  # fmt: skip
    write_shots(path, *gathers, dead=[(1, 3)])
    with segyio.open(path, "r+", strict=False) as file:
        file.header[8] = {Field.DelayRecordingTime: 100, Field.CoordinateUnits: 2}
    for given, match in (
        ({"origin": (np.nan, 0)}, r"origin=\(nan, 0\): pass two numbers"),
        ({"origin": (1, 2, 3)}, "pass two numbers"),
        ({"azimuth": np.nan}, "azimuth=nan: pass a number"),
        ({"interval": "2"}, "interval='2': pass a number above 0"),
    ):
        fails(ArgumentError, match, inversion.ingest_shots, path, out, **given)
    set_field(path, "TraceIdentificationCode", lambda n: {3: 10, 8: 2, 14: 18}.get(n, 1))
    found = inversion.ingest_shots(path, out, origin=np.array([900, 1990]), nonfinite="zero")
    assert found.sizes["shot"] == 3
    assert set(found.trace_index.values.flat) == set(range(14)) - {3, 8}
    assert found.source_inline[0] == 100
    assert found.attrs["ingested_with"]["nonfinite"] == "zero"
    set_field(path, "TraceIdentificationCode", lambda n: {8: 2, 4: 11}.get(n, 12))
    fails(GeometryError, "several kinds of sensors .* are 11, 12", inversion.ingest_shots, path,
          tmp_path / "t.zarr")  # fmt: skip


def test_pictures_are_possible_before_anything_is_inverted(folder):
    path = folder / "run.yaml"
    facts = yaml.safe_load(path.read_text())
    (folder / "taken").write_text("")
    model((12, 20)).to_zarr(folder / "shallow.zarr", consolidated=False)
    for change, match in (
        ({"true": "none.zarr"}, "none.zarr: is no Zarr group"),
        ({"true": "shallow.zarr"}, "shallow.zarr: has .*; resample one, or leave out true"),
        ({"pictures": "taken"}, "taken: is a file; choose another folder"),
    ):
        path.write_text(yaml.safe_dump(facts | change))
        fails(OutcropError, match, lambda: Run(path).invert())
    assert not (folder / "inverted.zarr").exists()


def test_gathers_are_drawn_as_the_last_band_has_them(tmp_path):
    """On a grid too coarse for all of the wavelet; not over what has become too slow."""
    on = model((16, 20), spacing=20.0)
    survey = plan(on, samples=600, frequency=7.0, step=0.0015)
    observed = inversion.model_shots(on, survey, pml_width=PML)
    observed["wavelet"] = inversion.ricker(14.0, 0.0015, 600)
    observed = observed.assign(amplitude=observed.amplitude.astype(">f4"))

    def drawn(slowest, corner, changed="vp"):
        history = xr.concat([on.vp, on.vp - 2000.0 + slowest], "iteration")
        numbers = {"misfit": ("iteration", [2.0, 1.0]), "corner": ("iteration", [corner] * 2)}
        models = {"vp": history[-1], changed: history[-1], f"{changed}_history": history}
        found = xr.Dataset({**models, **numbers})
        return draw_inversion(found, observed, tmp_path / f"{slowest}", pml_width=PML)

    assert [path.name for path in drawn(1990.0, 8.0)] == ["models.png", "misfit.png", "gathers.png"]
    assert drawn(1990.0, 8.0, "density")[0].name == "models-density.png"
    for slowest, corner in ((1000.0, 8.0), (1980.0, np.nan)):
        with pytest.warns(UserWarning, match="gathers.png: is not drawn: spacing 20 m"):
            assert len(drawn(slowest, corner)) == 2


def test_pictures_of_shots_whose_times_differ_by_rounding(folder):
    path = folder / "run.yaml"
    facts = yaml.safe_load(path.read_text()) | {"iterations": 1, "bands": [None]}
    shots = inversion.open_shots(folder / "shots.zarr").load()
    times = shots.time * (1 + 1e-9)
    shots.assign_coords(time=times.assign_attrs(shots.time.attrs)).drop_encoding().to_zarr(
        folder / "other.zarr", consolidated=False
    )
    path.write_text(yaml.safe_dump(facts | {"observed": "other.zarr"}))
    Run(path).invert()
    assert (folder / "pictures" / "gathers.png").stat().st_size > 5000


def test_files_that_hold_something_else(folder):
    path = folder / "run.yaml"
    facts = yaml.safe_load(path.read_text()) | {"storage_path": None}
    np.save(folder / "cube.npy", np.ones((1, 1, 9)))
    np.save(folder / "complex.npy", np.ones(9, dtype=complex))
    np.save(folder / "text.npy", np.array(["a", "b"]))
    (folder / "empty.npy").touch()
    (folder / "one.txt").write_text("1.0\n")
    np.savez(folder / "many.npz", a=np.ones(3))
    (folder / "many.npz").rename(folder / "many.npy")
    for name in ("cube.npy", "complex.npy", "text.npy", "empty.npy", "one.txt", "many.npy"):
        path.write_text(yaml.safe_dump(facts | {"wavelet": {"file": name}}))
        fails(ArgumentError, f"{name}: no wavelet", lambda: Run(path).invert())
    path.write_bytes(b"\xff\xfe\x00\x80abc: 1")
    fails(ArgumentError, "is no YAML", Run, path)
    short = {"iterations": 1, "bands": [None]}
    facts = {k: v for k, v in facts.items() if k not in ("pictures", "true")}
    path.write_text(yaml.safe_dump(facts | short))
    assert Run(path).invert().sizes["iteration"] == 2
