"""Full-waveform inversion: gradients, batches, workers, storage, memory, resuming."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import deepwave
import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import outcrop
from outcrop import inversion
from outcrop.cluster import connect
from outcrop.errors import ArgumentError
from outcrop.inversion.arguments import mask_weights
from outcrop.inversion.evaluation import Evaluator
from outcrop.inversion.experiment import Options, set_up
from outcrop.inversion.misfits import MISFITS
from outcrop.inversion.shots import Shots, cut
from outcrop.inversion.tasks import Team

PML = 6
pytestmark = pytest.mark.filterwarnings("ignore::deepwave.PmlFreqInferenceWarning")


def block(shape, low=2000.0, high=2200.0, spacing=10.0):
    """A uniform model, and the same with a block in the middle."""
    start = np.full(shape, low, dtype=np.float32)
    true = start.copy()
    true[tuple(slice(n // 2 - n // 6, n // 2 + n // 6) for n in shape)] = high
    return inversion.velocity(start, spacing), inversion.velocity(true, spacing)


def acquisition(model, sources, receivers, samples, frequency=14.0, step=0.0015):
    wavelet = inversion.ricker(frequency, step, samples)
    return inversion.surface_grid(model, sources=sources, receivers=receivers, wavelet=wavelet)


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    """3-D: start, true model, and the observed shots on disk."""
    start, true = block((12, 18, 18))
    path = tmp_path_factory.mktemp("cube") / "shots.zarr"
    inversion.model_shots(true, acquisition(true, (2, 2), (4, 4), 180), path, pml_width=PML)
    return start, true, path


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """2-D, likewise."""
    start, true = block((24, 36))
    path = tmp_path_factory.mktemp("line") / "shots.zarr"
    inversion.model_shots(true, acquisition(true, (8,), (16,), 240), path, pml_width=PML)
    return start, true, path


@pytest.fixture(scope="module")
def client():
    with connect("local", workers=2) as client:
        yield client


@contextlib.contextmanager
def one_thread():
    """As the workers have, so that this process rounds as they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def plain(start, path, misfit="least_squares", dtype=torch.float32, **how):
    """Traces, misfit and gradient of one call of Deepwave with all shots, nothing of ours."""
    shots = xr.open_zarr(path)
    vp = torch.as_tensor(start.vp.to_numpy()).to(dtype).requires_grad_()
    dims = start.vp.dims
    step = [float(start[d][1] - start[d][0]) for d in dims]
    at = {
        kind: torch.stack(
            [
                torch.as_tensor(np.rint(shots[f"{kind}_{d}"].to_numpy() / s)).long()
                for d, s in zip(dims, step, strict=True)
            ],
            dim=-1,
        )
        for kind in ("source", "receiver")
    }
    count = len(at["source"])
    wavelet = torch.as_tensor(shots.wavelet.to_numpy()).to(dtype)
    output = deepwave.scalar(
        vp,
        step,
        float(shots.time[1] - shots.time[0]),
        source_amplitudes=wavelet.expand(count, 1, -1).clone(),
        source_locations=at["source"][:, None],
        receiver_locations=at["receiver"].expand(count, -1, -1).clone(),
        pml_width=PML,
        **how,
    )
    observed = torch.as_tensor(shots.amplitude.to_numpy()).to(dtype)
    traces = output.receiver_amplitudes
    value = MISFITS[misfit](traces.flatten(0, 1), observed.flatten(0, 1))
    value.backward()
    return traces.detach(), value.item(), vp.grad.numpy()


def ours(start, path, folder, batches, client, misfit="least_squares", **how):
    options = Options(pml_width=PML, **how)
    found = set_up(start, path, None, options, observed=True)
    groups = [((shot, 1.0),) for shot in range(found.gathers.count)]
    with Team(Shots(found.physics, found.path, misfit), client) as team:
        parameters = found.physics.parameters
        model = {p: found.model[p].to_numpy().astype(options.precision) for p in parameters}
        size = -(-len(groups) // batches)
        evaluate = Evaluator(team, Path(folder), ["vp"])
        value, gradients = evaluate(model, found.wavelet, None, cut(groups, size))
    return value, gradients["vp"]


def difference(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


# Modelling


def test_traces_are_deepwaves(cube):
    _, true, path = cube
    traces, _, _ = plain(true, path)
    shots = inversion.open_shots(path)
    assert shots.amplitude.dims == ("shot", "receiver", "time")
    assert shots.amplitude.dtype == np.float32
    np.testing.assert_allclose(shots.amplitude, traces, atol=1e-6 * float(traces.abs().max()))


def test_modelling_on_a_cluster_and_interrupted(cube, client, tmp_path, monkeypatch):
    _, true, path = cube
    expected = inversion.open_shots(path)
    plan = expected.drop_vars("amplitude").load()
    how = {"pml_width": PML, "batch_size": 1}
    calls = []
    model = Shots.model

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return model(*arguments)

    monkeypatch.setattr(Shots, "model", failing)
    with pytest.raises(KeyboardInterrupt):
        inversion.model_shots(true, plan, tmp_path / "o.zarr", **how)
    with pytest.raises(outcrop.OutcropError, match="is unfinished"):
        inversion.open_shots(tmp_path / "o.zarr")
    found = inversion.model_shots(true, plan, tmp_path / "o.zarr", **how)
    assert len(calls) == 5
    np.testing.assert_array_equal(found.amplitude, expected.amplitude)
    again = inversion.model_shots(true, plan, client=client, **how)
    np.testing.assert_array_equal(again.amplitude, expected.amplitude)


def test_what_is_written_is_verified_and_what_is_gone_is_an_error(line, tmp_path):
    start, true, _ = line
    path = tmp_path / "shots.zarr"
    plan = acquisition(true, (3,), (8,), 200)
    inversion.model_shots(true, plan, path, pml_width=PML)
    with pytest.warns(UserWarning, match="closer than 8 cells to sources"):
        inversion.invert(
            start, path, tmp_path / "v.zarr", iterations=1, pml_width=PML, storage_compression=True
        )
    inversion.migrate(start, path, tmp_path / "m.zarr", pml_width=PML)
    for written in (path, tmp_path / "v.zarr", tmp_path / "m.zarr"):
        assert not outcrop.verify(written).damage
    (path / "amplitude/c/1/0/0").unlink()
    assert [d.what for d in outcrop.verify(path).damage] == ["is missing"]
    with pytest.raises(outcrop.errors.MissingChunkError, match="amplitude chunk c/1/0/0"):
        inversion.invert(start, path, tmp_path / "w.zarr", iterations=1, pml_width=PML)
    (tmp_path / "v.zarr/vp/c/0/0").unlink()
    with pytest.raises(outcrop.errors.MissingChunkError, match="vp"):
        inversion.open_inversion(tmp_path / "v.zarr").vp.load()


# Gradients


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("mode", ["device", "cpu", "disk"])
def test_gradients_are_those_of_one_call(precision, tolerance, mode, cube, client, tmp_path):
    start, _, path = cube
    _, value, gradient = plain(start, path, dtype=getattr(torch, precision))
    how = {"precision": precision, "storage_mode": mode}
    if mode == "disk":
        how["storage_path"] = tmp_path
    cases = [(2, None), (4, client)]
    if mode == "device":
        cases = [(batches, by) for batches in (1, 2, 4) for by in (None, client)]
    for n, (batches, by) in enumerate(cases):
        found = ours(start, path, tmp_path / f"{n}", batches, by, **how)
        assert found[0] == pytest.approx(value, rel=tolerance)
        assert difference(found[1], gradient) <= tolerance, (batches, by)
    assert not list(tmp_path.glob("deepwave_tmp*"))


@pytest.mark.parametrize("misfit", sorted(MISFITS))
def test_every_misfit_adds_up_over_batches(misfit, line, tmp_path):
    start, _, path = line
    _, value, gradient = plain(start, path, misfit, torch.float64)
    found = ours(start, path, tmp_path / "e", 4, None, misfit, precision="float64")
    assert found[0] == pytest.approx(value, rel=1e-12)
    assert difference(found[1], gradient) <= 1e-10


def test_what_no_wave_reaches_does_not_count_where_traces_are_normalised(tmp_path):
    """Finite differences leave there what, divided by its own size, is of any weight, or NaN."""
    start, true = block((12, 400))
    shots = acquisition(true, (2,), (80,), 400).isel(shot=[0])
    found = {}
    for name, reached in (("all", 80), ("near", 30)):
        path = tmp_path / f"{name}.zarr"
        inversion.model_shots(true, shots.isel(receiver=slice(reached)), path, pml_width=PML)
        traces = zarr.open(path)["amplitude"]
        noise = np.random.default_rng(0).standard_normal((1, 80, 400))[:, :reached]
        traces[...] += 1e-3 * np.abs(traces[...]).max() * noise.astype(np.float32)
        found[name] = ours(start, path, tmp_path / name, 1, None, "correlation")
    (value, gradient), (near, expected) = found.values()
    assert value - near == pytest.approx(50)  # as many are like nothing
    assert difference(gradient, expected) <= 1e-6


def test_quiet_shots_have_the_same_gradient(tmp_path):
    """Particle velocities of 1e-12 m/s: products of two such wavefields are beyond float32."""
    density = (("depth", "inline"), np.full((20, 28), 1800.0))
    start, true = (m.assign(density=density) for m in block((20, 28)))
    how = {"equation": "acoustic", "source": "vertical", "receiver": "vertical"}
    plan = acquisition(true, (2,), (8,), 260, frequency=9.0)
    shots = inversion.model_shots(true, plan, pml_width=PML, **how)
    found = []
    for power in (0, -20):
        quiet = shots.copy(deep=True)
        for name in ("amplitude", "wavelet"):
            quiet[name] *= 2.0**power
        path = tmp_path / f"{power}.zarr"
        quiet.drop_encoding().to_zarr(path, consolidated=False)
        value, gradient = ours(start, path, tmp_path / f"{power}", 2, None, **how)
        found.append((value / 4.0**power, gradient / 4.0**power))
    (value, gradient), (same_value, same_gradient) = found
    assert np.abs(quiet.amplitude).max() < 1e-11
    assert same_value == pytest.approx(value, rel=1e-5)
    assert difference(same_gradient, gradient) <= 1e-4


def test_compression_is_lossy_and_close(cube, tmp_path):
    start, _, path = cube
    _, exact = ours(start, path, tmp_path / "a", 2, None)
    _, found = ours(start, path, tmp_path / "b", 2, None, storage_compression=True)
    assert 0 < difference(found, exact) < 0.05
    _, _, own = plain(start, path, storage_compression=True)
    _, one = ours(start, path, tmp_path / "c", 1, None, storage_compression=True)
    assert difference(one, own) <= 1e-5


@pytest.mark.parametrize("spacing", [10.0, 9.7])  # m between sources; 9.7: not at samples
def test_compression_spoils_the_gradient_around_sources_alone(spacing, tmp_path):
    """And what it spoils, neither inversion nor migration takes."""
    start, true = block((20, 30, 30))
    path = tmp_path / "shots.zarr"
    wavelet = inversion.ricker(6.0, 0.0015, 320)
    sources = np.array([[0.0, 5.0, 6.0], [0.0, 22.0, 24.0]]) * spacing
    receivers = np.moveaxis(np.indices((1, 6, 6)), 0, -1).reshape(-1, 3) * spacing * 4
    survey = inversion.positions(sources, receivers, wavelet, start.vp.dims)
    inversion.model_shots(true, survey, path, pml_width=PML)
    _, exact = ours(start, path, tmp_path / "a", 2, None)
    _, found = ours(start, path, tmp_path / "b", 2, None, storage_compression=True)
    assert difference(found, exact) > 0.05  # in Deepwave too
    how = Options(pml_width=PML, storage_compression=True)
    with pytest.warns(UserWarning, match="the model stays as it is closer than"):
        weights = mask_weights(None, set_up(start, path, None, how, observed=True))
    assert (weights[0] == 0).any()
    assert (weights == 1).mean() > 0.2
    assert difference(weights * found, weights * exact) < 0.01


def test_compression_with_sources_everywhere(tmp_path):
    _, true = block((14, 14))
    survey = inversion.positions(
        [[70.0, 70.0]], [[0.0, 70.0]], inversion.ricker(14.0, 0.0015, 160), true.vp.dims
    )
    inversion.model_shots(true, survey, tmp_path / "s.zarr", pml_width=PML)
    with pytest.raises(ArgumentError, match="nothing of the model could change, as it may not"):
        inversion.migrate(
            true, tmp_path / "s.zarr", tmp_path / "m.zarr", pml_width=PML, storage_compression=True
        )
    assert not (tmp_path / "m.zarr").exists()


@pytest.mark.parametrize("free_surface", [False, True])
def test_checkpoint_segments_change_nothing_but_memory(free_surface, line, tmp_path):
    start, _, path = line
    how = {"precision": "float64", "free_surface": free_surface}
    _, exact = ours(start, path, tmp_path / "a", 2, None, **how)
    _, found = ours(start, path, tmp_path / "b", 2, None, checkpoint_segments=4, **how)
    assert difference(found, exact) <= 1e-10


@pytest.mark.parametrize("equation", ["acoustic", "elastic"])
def test_gradients_of_other_equations_by_differences(equation, tmp_path):
    """The derivative along a direction, of every parameter, against the misfit at two models."""
    start, true = block((20, 28))
    others = {"density": np.full((20, 28), 1800.0)}
    if equation == "elastic":
        others["vs"] = np.full((20, 28), 1100.0)
    start, true = (inversion.velocity(m.vp.to_numpy(), 10.0, **others) for m in (start, true))
    plan = acquisition(true, (2,), (8,), 400, frequency=9.0, step=0.001)
    how = {"equation": equation, "pml_width": PML, "precision": "float64"}
    kind = {"source": "vertical", "receiver": "vertical"} if equation == "elastic" else {}
    inversion.model_shots(true, plan, tmp_path / "s.zarr", **how, **kind)
    names = [n for n in ("vp", "vs", "density") if n in start]
    rng = np.random.default_rng(0)
    smooth = np.outer(np.hanning(20), np.hanning(28)) * rng.uniform(0.5, 1, (20, 28))

    def evaluate(model, folder):
        found = set_up(
            model, tmp_path / "s.zarr", None, Options(**how, **kind), observed=True,
            bounds={"vp": (1000.0, 3000.0)},
        )  # fmt: skip
        with Team(Shots(found.physics, found.path), None) as team:
            arrays = {n: model[n].to_numpy().astype(np.float64) for n in found.physics.parameters}
            batches = cut([((0, 1.0),), ((1, 1.0),)], 1)
            return Evaluator(team, tmp_path / folder, names)(arrays, found.wavelet, None, batches)

    _, gradients = evaluate(start, "g")
    for name in names:
        size = 1e-3 * float(start[name].max())
        sides = [
            evaluate(start.assign({name: start[name] + s * size * smooth}), f"{name}{s}")[0]
            for s in (-1, 1)
        ]
        slope = (sides[1] - sides[0]) / 2
        assert (gradients[name] * size * smooth).sum() == pytest.approx(slope, rel=2e-2), name


# Inversion


def test_block_is_recovered(line, tmp_path):
    """Misfit falls by 90 % within 20 iterations, and what changed most is the block."""
    start, true, path = line
    told = []
    found = inversion.invert(
        start, path, tmp_path / "o.zarr", iterations=12, pml_width=PML, smoothing=10.0, step=40.0,
        on_iteration=lambda n, value: told.append(n),
    )  # fmt: skip
    assert told == list(range(13))
    misfit = found.misfit.to_numpy()
    assert misfit[-1] < 0.1 * misfit[0]
    assert (np.diff(misfit) <= 0).all()
    change = (found.vp - start.vp).to_numpy()
    inside = (true.vp > start.vp).to_numpy()
    risen = change > 0.6 * change.max()
    assert inside[risen].mean() > 0.8
    for at, block in zip(np.nonzero(risen), np.nonzero(inside), strict=True):
        assert abs(at.mean() - block.mean()) <= 2
    np.testing.assert_array_equal(found.vp_history[-1], found.vp)
    np.testing.assert_array_equal(found.vp_history[0], start.vp)
    assert found.gradient_vp.shape == (13, 24, 36)


HOW = {"iterations": 4, "pml_width": PML, "batch_size": 2, "step": 30.0}


@pytest.fixture(scope="module")
def calm(line, client, tmp_path_factory):
    """What an undisturbed inversion on two workers gives."""
    start, _, path = line
    out = tmp_path_factory.mktemp("calm") / "o.zarr"
    return inversion.invert(start, path, out, client=client, **HOW).load()


def same(found, calm):
    for name in calm:
        np.testing.assert_array_equal(found[name], calm[name], err_msg=str(name))


def test_batches_are_summed_in_order(line, calm, tmp_path):
    """By one process, or two workers in whatever order."""
    start, _, path = line
    with one_thread():
        same(inversion.invert(start, path, tmp_path / "a.zarr", **HOW), calm)


def kill_later(out, marker):
    """Let this process die once it has a batch of the second iteration, unless one died so."""
    gradient = Shots.gradient

    def killed(*arguments):
        gradient(*arguments)
        if (out / "unfinished" / "state.pt").exists():
            with contextlib.suppress(FileExistsError):
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)

    Shots.gradient = killed


def test_a_worker_is_killed_in_the_middle_of_an_iteration(line, client, calm, tmp_path):
    start, _, path = line
    out = tmp_path / "o.zarr"
    pids = set(client.run(os.getpid).values())
    client.run(kill_later, out, tmp_path / "marker")
    found = inversion.invert(start, path, out, client=client, **HOW)
    assert len(pids & set(client.run(os.getpid).values())) < 2
    same(found, calm)


# It kills itself at the first batch of the third iteration.
RUN = """
import os, signal
from pathlib import Path
from outcrop import inversion
from outcrop.inversion.shots import Shots
import torch
torch.set_num_threads(1)
gradient, journal = Shots.gradient, Path({out!r}) / "unfinished" / "finished.txt"
def killed(*arguments):
    gradient(*arguments)
    if "iteration 2" in journal.read_text():
        os.kill(os.getpid(), signal.SIGKILL)
Shots.gradient = killed
start = inversion.velocity(__import__("numpy").load({start!r}), 10.0)
inversion.invert(start, {shots!r}, {out!r}, **{how!r})
"""


def test_the_process_is_killed_and_the_same_call_goes_on(line, calm, tmp_path, monkeypatch):
    start, _, path = line
    out = tmp_path / "o.zarr"
    np.save(tmp_path / "start.npy", start.vp.to_numpy())
    code = RUN.format(start=str(tmp_path / "start.npy"), shots=str(path), out=str(out), how=HOW)
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert len(list((out / "unfinished" / "evaluations").glob("*/0-*.npz"))) == 1
    batches = []
    gradient = Shots.gradient

    def counted(job, evaluation, number, batch):
        if not evaluation.leaf(0, number).exists():
            batches.append(number)
        gradient(job, evaluation, number, batch)

    monkeypatch.setattr(Shots, "gradient", counted)
    with pytest.raises(outcrop.errors.ResumeError, match="misfit"):
        inversion.invert(start, path, out, misfit="envelope", **HOW)
    with pytest.raises(outcrop.errors.MemoryBudgetError, match=r"begun so.*\(overwrite\)"):
        inversion.invert(start, path, out, memory="1MB", **HOW)
    with one_thread():
        found = inversion.invert(start, path, out, **HOW)
    same(found, calm)
    assert len(batches) % 4 == 3


@pytest.mark.parametrize(
    "how",
    [
        {"optimiser": "adam", "step": 8.0},
        {"optimiser": "sgd", "step": 8.0, "optimiser_options": {"momentum": 0.5}},
        {"optimiser": "adam", "step": 8.0, "subset": 3},
        {"optimiser": "adam", "step": 8.0, "encoding": 2},
        {"bands": [8.0, None]},
        {"misfit": "correlation"},
        {"misfit": "envelope"},
    ],
    ids=lambda how: "-".join(map(str, how.values())),
)
def test_options_bring_the_model_nearer_and_resume(how, line, tmp_path):
    """Stopped after its second iteration, each goes on to the very same model."""
    start, true, path = line
    options = {"iterations": 3, "pml_width": PML, "smoothing": 15.0, "step": 30.0, **how}
    mask = inversion.mask(start, inversion.open_shots(path), water_bottom=30.0, radius=40.0)
    whole = inversion.invert(start, path, tmp_path / "a.zarr", mask=mask, **options)

    def stop(iteration, misfit):
        if iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inversion.invert(start, path, tmp_path / "b.zarr", mask=mask, on_iteration=stop, **options)
    again = inversion.invert(start, path, tmp_path / "b.zarr", mask=mask, **options)
    same(again, whole)
    before, after = (float(((m - true.vp) ** 2).sum()) for m in (start.vp, whole.vp))
    assert after < before
    np.testing.assert_array_equal(whole.vp.sel(depth=slice(0, 30)), 2000.0)


def test_bounds_hold(line, tmp_path):
    start, _, path = line
    found = inversion.invert(
        start, path, tmp_path / "o.zarr", bounds=(1990.0, 2050.0), **{**HOW, "step": 200.0}
    )
    assert found.vp.min() >= 1990.0
    assert found.vp.max() == 2050.0


def test_lbfgs_converges_under_active_bounds(line, tmp_path):
    """Cells on a bound leave the others free to go on."""
    start, _, path = line
    how = {"iterations": 8, "pml_width": PML, "step": 40.0, "bounds": (1990.0, 2050.0)}
    misfit = inversion.invert(start, path, tmp_path / "o.zarr", **how).misfit.to_numpy()
    assert misfit[-1] < 0.3 * misfit[0]
    assert (np.diff(misfit) < 0).all()


def test_traces_of_zeros_are_dead_channels(line, tmp_path):
    """They give the same model as if there were no receiver."""
    start, _, path = line
    shots = inversion.open_shots(path).load()
    dead = shots.copy(deep=True)
    dead.amplitude[2:, 5] = 0
    here = shots.amplitude.any("time") & dead.amplitude.any("time")
    without = shots.assign_coords(
        {name: shots[name].where(here) for name in ("receiver_depth", "receiver_inline")}
    ).transpose("shot", "receiver", ...)
    how = {"iterations": 1, "pml_width": PML}
    with pytest.warns(UserWarning, match="shots: 6 traces are zero throughout; they are left out"):
        found = inversion.invert(start, dead, tmp_path / "a.zarr", **how)
    same(found, inversion.invert(start, without, tmp_path / "b.zarr", **how).load())
    with pytest.raises(outcrop.errors.SurveyError, match=r"6 traces are zero .* encoding"):
        inversion.invert(
            start, dead, tmp_path / "c.zarr", encoding=2, optimiser="adam", pml_width=PML
        )


@pytest.mark.parametrize("misfit", ["least_squares", "correlation"])
def test_weights_say_what_counts(misfit, line, tmp_path):
    """Muted traces do as if there were none; of others what is muted, or counts more."""
    start, _, path = line
    shots = inversion.open_shots(path).load()
    there = xr.ones_like(shots.amplitude.isel(time=0, drop=True))
    there[2:, 5] = 0
    how = {"iterations": 1, "pml_width": PML, "misfit": misfit}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        muted = inversion.invert(start, shots.assign(weight=there), tmp_path / "a.zarr", **how)
    with pytest.warns(UserWarning, match="traces are zero throughout"):
        dead = inversion.invert(
            start, shots.assign(amplitude=shots.amplitude * there), tmp_path / "b.zarr", **how
        )
    same(muted, dead.load())
    if misfit != "least_squares":
        return
    weight = (shots.amplitude * 0 + 2).where(shots.time > 0.1, 0).astype(np.float32)
    shutil.copytree(path, tmp_path / "s.zarr")
    added = xr.Dataset({"weight": weight.variable.chunk(shot=1)}, attrs=shots.attrs)
    added.to_zarr(tmp_path / "s.zarr", mode="a", consolidated=False)  # as in docs/inversion.md
    found = inversion.invert(start, tmp_path / "s.zarr", tmp_path / "c.zarr", **how)
    early = inversion.invert(
        start, shots.assign(weight=weight == 0).astype("f4"), tmp_path / "d.zarr", **how
    )
    whole = inversion.invert(start, path, tmp_path / "e.zarr", **how)
    parts = found.misfit[0] / 4 + early.misfit[0]
    assert float(parts) == pytest.approx(float(whole.misfit[0]), rel=1e-5)
    assert float(parts) > 1.1 * float(early.misfit[0])
    for bad, says, options in (
        (weight.transpose(), r"weight is over \(time, receiver, shot\)", {}),
        (weight.where(weight > 0), "shot 0: a weight is negative, NaN or infinite", {}),
        (
            weight * (np.arange(8) != 3)[:, None, None],
            "shot 3: all traces are zero, or weighted by 0",
            {},
        ),
        (weight, "encoding: not with weights", {"encoding": 2, "optimiser": "adam"}),
    ):
        with pytest.raises(outcrop.OutcropError, match=says):
            inversion.invert(
                start, shots.assign(weight=bad), tmp_path / "d.zarr", **how, **options,
                overwrite=True,
            )  # fmt: skip


def interrupted(start, shots, out, **how):
    """Stop an inversion after its first iteration."""

    def stop(iteration, misfit):
        if iteration == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inversion.invert(start, shots, out, on_iteration=stop, **how)


@pytest.mark.parametrize("kind", ["path", "dataset"])
def test_other_traces_do_not_resume(kind, line, tmp_path):
    """Of whichever shot; with the former ones the same call goes on."""
    start, true, _ = line
    path, out = tmp_path / "s.zarr", tmp_path / "o.zarr"
    how = {"iterations": 2, "pml_width": PML, "step": 30.0}
    inversion.model_shots(true, acquisition(true, (8,), (8,), 200), path, pml_width=PML)
    shots = inversion.open_shots(path).load()
    other = shots.copy(deep=True)
    other.amplitude[1] *= 2

    def given(data):
        if kind == "dataset":
            return data
        zarr.open_array(path / "amplitude")[...] = data.amplitude.to_numpy()
        return path

    interrupted(start, given(shots), out, **how)
    with pytest.raises(outcrop.errors.ResumeError, match="other traces than those of"):
        inversion.invert(start, given(other), out, **how)
    found = inversion.invert(start, given(shots), out, **how)
    expected = inversion.invert(start, shots, tmp_path / "p.zarr", **how)
    same(found, expected.load())
    assert found.attrs["inverted_with"]["traces"] == expected.attrs["inverted_with"]["traces"]


def test_killed_while_shots_are_copied(line, tmp_path, monkeypatch):
    """A copy that is cut off, and a size of batches that was never written, are made again."""
    start, _, path = line
    out, shots = tmp_path / "o.zarr", inversion.open_shots(path).load()
    how = {"iterations": 1, "pml_width": PML}

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Shots, "check", killed)
        with pytest.raises(KeyboardInterrupt):
            inversion.invert(start, shots, out, **how)
    shutil.rmtree(out / "unfinished" / "observed.zarr" / "amplitude")
    (out / "unfinished" / "batch_size").write_text("")
    found = inversion.invert(start, shots, out, **how)
    assert found.misfit[1] < found.misfit[0]


def test_migration_shows_the_reflector(tmp_path):
    """From negative to positive, where velocity rises; the same from other batches."""
    vp = np.full((40, 40), 2000.0, dtype=np.float32)
    smooth = inversion.velocity(vp.copy(), 10.0)
    vp[24:] = 2300.0
    plan = acquisition(smooth, (6,), (18,), 400, frequency=14.0)
    true = inversion.velocity(vp, 10.0)
    shots = inversion.model_shots(true, plan, pml_width=12)
    found = inversion.migrate(smooth, shots, tmp_path / "o.zarr", pml_width=12)
    image = found.image.isel(inline=slice(12, 28)).mean("inline").to_numpy()[10:]
    lowest, highest = 10 + image.argmin(), 10 + image.argmax()
    assert lowest < 23.5 < highest <= lowest + 6
    crossing = lowest + np.abs(image[lowest - 10 : highest - 9]).argmin()
    assert abs(crossing - 23.5) <= 1
    again = inversion.migrate(smooth, shots, tmp_path / "p.zarr", pml_width=12, batch_size=2)
    assert difference(again.image.to_numpy(), found.image.to_numpy()) < 1e-3
