"""Traces that a file holds as zeros: to a network they are missing ones."""

import tracemalloc

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import outcrop
from outcrop import models
from outcrop.cluster import connect
from outcrop.engine.statistics import _STATE, _merged, statistics
from outcrop.engine.tile import StageRunner
from outcrop.errors import SurveyError
from outcrop.events import Tile
from outcrop.models.card import AMPLITUDE, Card, OutputCard
from outlines import near
from test_predict import in_one_piece, make_survey

DIMS = ("inline", "crossline", "twt")


def as_zeros(survey):
    """The same survey where a file holds what was missing as zeros."""
    return survey.assign_coords(live=xr.ones_like(survey.live))


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    chunks=st.tuples(*[st.integers(1, 5)] * 3),
    order=st.permutations(DIMS),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_statistics_leave_out_traces_that_are_zero_throughout(shape, chunks, order, seed):
    rng = np.random.default_rng(seed)
    samples = rng.normal(2.0, 3.0, shape)
    samples[:, :, : shape[2] // 2] *= rng.random(shape[:2])[..., None] < 0.5  # mutes
    dead, live = rng.random((2, *shape[:2])) < [[[0.3]], [[0.8]]]
    samples[dead | ~live] = 0
    volume = xr.DataArray(samples, {"live": (DIMS[:2], live)}, DIMS)
    volume = volume.assign_coords({d: range(n) for d, n in volume.sizes.items()})
    volume = volume.transpose(*order).chunk(dict(zip(DIMS, chunks, strict=True)))
    for values, sign in ((volume, 0), (np.abs(volume), 1)):
        found = statistics(values)
        there = live & (samples != 0).any(-1)
        some = samples[there]
        signed = not sign and some.size and some.min() < 0 < some.max()
        if not signed:
            there = live
        expected = np.abs(samples[there]) if sign else samples[there]
        across = [d for d in order if d != "twt"]
        np.testing.assert_array_equal(
            xr.DataArray(found.dead, dims=across).transpose(*DIMS[:2]), live & ~there
        )
        if expected.size:
            want = expected.mean(), expected.std(), expected.min(), expected.max()
            assert found.statistics == pytest.approx(want, rel=1e-12, abs=1e-12)


def test_finding_dead_traces_takes_memory_by_traces_and_not_by_samples():
    state = np.zeros((1, 1, 1), _STATE)
    state["silent"][0, 0, 0] = np.packbits(np.zeros((64, 64), bool))
    shape = (64, 64, 10**5)
    tracemalloc.start()
    _merged(state, [(n,) for n in shape], 2, np.broadcast_to(np.True_, shape))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


@pytest.fixture(scope="module")
def client():
    with connect("local", workers=2) as made:
        yield made


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("name", ["faultseg3d", "unet25d"])
def test_a_dead_trace_is_seen_as_a_missing_one(name, cluster, client, tmp_path):
    survey = make_survey((24, 16, 32))
    model, how = models.load(name, weights="seeded"), {"precision": "float64"}
    alike = outcrop.predict(model, survey, tmp_path / "missing.zarr", **how)
    how["client"] = client if cluster else None
    found = outcrop.predict(model, as_zeros(survey), tmp_path / "dead.zarr", **how)
    for output in alike:
        np.testing.assert_allclose(found[output], alike[output], rtol=0, atol=2**-24)
    np.testing.assert_array_equal(found.live, survey.live)
    assert found.attrs["amplitude_mean"] == pytest.approx(alike.attrs["amplitude_mean"])


def test_one_vintage_may_lack_what_another_has(tmp_path):
    one, other = make_survey((20, 12, 16), seed=1, missing=0), make_survey((20, 12, 16), seed=2)
    both = xr.concat([one.drop_vars("live"), other.drop_vars("live")], "vintage")
    model = models.load("faultseg3d", weights="seeded")
    found = outcrop.predict(model, both, tmp_path / "both.zarr")
    for i, survey in enumerate((one, other)):
        alone = outcrop.predict(model, survey, tmp_path / f"{i}.zarr")
        np.testing.assert_array_equal(found.isel(vintage=i).live, survey.live)
        np.testing.assert_array_equal(
            found.fault_probability.isel(vintage=i), alone.fault_probability
        )


def test_a_network_of_the_users_own_sees_none_either(tmp_path):
    survey, model = make_survey((24, 20, 16)), nn.Conv3d(1, 1, 3, padding=1).eval()
    alike = outcrop.predict(model, survey, tmp_path / "missing.zarr")
    found = outcrop.predict(model, as_zeros(survey), tmp_path / "dead.zarr")
    np.testing.assert_array_equal(found.prediction, alike.prediction)
    np.testing.assert_array_equal(found.live, survey.live)


def test_samples_that_are_not_live_may_be_anything(tmp_path):
    """Such as NaN, of surveys that were joined or masked."""
    survey, model = make_survey((24, 20, 16)), models.load("faultseg3d", weights="seeded")
    masked = survey.assign(amplitude=survey.amplitude.where(survey.live))
    assert masked.amplitude.isnull().any()
    alike = outcrop.predict(model, survey, tmp_path / "zeros.zarr")
    found = outcrop.predict(model, masked, tmp_path / "nan.zarr")
    np.testing.assert_array_equal(found.fault_probability, alike.fault_probability)


def test_a_dead_trace_of_a_prediction_is_dead_in_the_segy(tmp_path):
    made = as_zeros(make_survey((16, 12, 16), missing=0))
    made.amplitude[3, 4:7] = 0
    made = made.drop_vars(["live", "cdp_x"])
    survey = outcrop.ingest(outcrop.export(made, tmp_path / "s.sgy"), tmp_path / "s.zarr")
    assert survey.live.all()
    model = models.load("faultseg3d", weights="seeded")
    found = outcrop.predict(model, survey, tmp_path / "o.zarr", threshold=0.2)
    assert (found.fault_probability[3, 4:7] > 0).all()
    path = outcrop.export(found, tmp_path / "o.sgy", variable="fault_probability", like=survey)
    back = outcrop.ingest(path, tmp_path / "b.zarr")
    there = np.ones((16, 12), bool)
    there[3, 4:7] = False
    assert back.live.all()
    expected = np.where(there[..., None], found.fault_probability, 0)
    np.testing.assert_array_equal(back.amplitude, expected)
    again = outcrop.export(survey, tmp_path / "same.sgy")
    assert again.read_bytes() == (tmp_path / "s.sgy").read_bytes()


def test_a_volume_without_any_signal_is_refused(tmp_path):
    survey = make_survey((8, 8, 8), missing=0)
    with pytest.raises(SurveyError, match="the live samples are all equal"):
        outcrop.predict(
            models.load("faultseg3d", weights="seeded"), survey * 0, tmp_path / "o.zarr"
        )


def blank_half():
    """Of a survey whose first inlines have no traces."""
    survey = make_survey((48, 24, 32), missing=0)
    survey.live[:27] = False
    survey.live[40:45, 8:12] = False
    survey["amplitude"] = survey.amplitude.where(survey.live, 0)
    return survey


BLANK = [
    {"storage_mode": "none", "tile": (32, 24, 16)},
    {"storage_mode": "device", "tile": (16, 24, 8)},
    {"storage_mode": "disk", "tile": (16, 16, 8)},
]


@pytest.mark.parametrize(
    ("how", "cluster"), [(BLANK[0], True), *((how, False) for how in BLANK)], ids=repr
)
def test_tiles_without_traces_nearby_are_not_evaluated(how, cluster, client, monkeypatch, tmp_path):
    survey, model, evaluated = blank_half(), models.load("faultseg3d", weights="seeded"), []
    whole = in_one_piece(model, survey)
    run = StageRunner._evaluate
    monkeypatch.setattr(
        StageRunner,
        "_evaluate",
        lambda self, tile, *rest: evaluated.append(tile) or run(self, tile, *rest),
    )
    events = []
    found = outcrop.predict(
        model,
        survey,
        tmp_path / "o.zarr",
        precision="float64",
        client=client if cluster else None,
        listeners=[events.append],
        **how,
    )
    assert np.abs(found.fault_probability.values - whole).max() < 2**-25
    assert not found.fault_probability[:19].any()
    assert found.fault_probability[19:].all()
    if not cluster:
        tiles = sum(isinstance(event, Tile) for event in events)
        assert len(evaluated) < (0.7 if how["storage_mode"] == "none" else 1) * tiles


@pytest.mark.parametrize("sections", [False, True])
def test_what_is_brought_to_its_own_range_is_0_far_from_all_traces(sections, tmp_path):
    survey = as_zeros(make_survey((30, 24, 16)))
    model = (nn.Conv2d if sections else nn.Conv3d)(1, 1, 3, padding=1).eval()
    nn.init.constant_(model.bias, 9.0)  # so that 0 is far from its range
    rgt = OutputCard("rgt", "time", "1", (0, 1), own_range=True)
    axes = ("z", "trace") if sections else ("z", "crossline", "inline")
    model.card = Card("t", "", "", "", "", (AMPLITUDE,), (rgt,), axes, sections=sections)
    tile = (16, 8) if sections else (16, 8, 6)
    found = outcrop.predict(model, survey, tmp_path / "o.zarr", tile=tile)
    live = found.live.to_numpy()
    there = np.stack([near(line[None])[0] for line in live]) if sections else near(live)
    assert 0 < (~there).sum() < (~live).sum()
    assert np.abs(found.rgt.values[~there]).max() < 1e-6
    seen = found.rgt.values[live]
    assert (seen.min(), seen.max()) == pytest.approx((0, 1), abs=1e-6)
    assert not outcrop.verify(tmp_path / "o.zarr").damage
