"""Synthetic surveys: known faults come back out of the labels, the image and the SEG-Y."""

import json

import numpy as np
import pytest
import segyio

from outcrop.errors import ArgumentError, OutputExistsError
from outcrop.training.geology import Fault
from outcrop.training.recipes import random_survey
from outcrop.training.synthetic import synthetic_survey, write_segy

SHAPE = (40, 48, 64)
PLANE = Fault(
    centre=(20.0, 24.0, 32.0), strike=20.0, dip=65.0, half_length=90.0, half_height=90.0, slip=9.0
)
BENT = Fault(
    centre=(20.0, 24.0, 32.0),
    strike=200.0,
    dip=70.0,
    half_length=40.0,
    half_height=50.0,
    slip=-8.0,
    strike_curvature=0.004,
    dip_curvature=-0.005,
)


def frame(fault):
    """Unit vectors along the strike, down the dip and into the hanging wall."""
    s, d = np.radians([fault.strike, fault.dip])
    along = np.array([np.cos(s), np.sin(s), 0.0])
    across = np.array([-np.sin(s), np.cos(s), 0.0])
    down = np.array([0.0, 0.0, 1.0])
    return along, np.cos(d) * across + np.sin(d) * down, np.sin(d) * across - np.cos(d) * down


@pytest.fixture(scope="module")
def survey():
    return synthetic_survey(SHAPE, seed=3)


def test_a_seed_is_a_survey(survey):
    assert survey.identical(synthetic_survey(SHAPE, seed=3))
    other = synthetic_survey(SHAPE, seed=4)
    assert (
        abs(np.corrcoef(survey.amplitude.values.ravel(), other.amplitude.values.ravel())[0, 1])
        < 0.3
    )


def test_labels_are_labelled_and_in_range(survey):
    assert survey.amplitude.dims == ("inline", "crossline", "twt")
    assert survey.amplitude.shape == survey.fault.shape == survey.rgt.shape == SHAPE
    assert survey.amplitude.dtype == survey.rgt.dtype == np.float32
    assert survey.fault.dtype == bool
    assert survey.twt.attrs["units"] == "ms"
    assert np.unique(np.diff(survey.twt)) == 4.0
    assert float(survey.amplitude.std()) == pytest.approx(1.0, abs=1e-4)
    assert (float(survey.rgt.min()), float(survey.rgt.max())) == (0.0, 1.0)
    assert 0.002 < float(survey.fault.mean()) < 0.2


def test_drawn_faults_are_in_the_attributes_and_make_the_survey_again(survey):
    faults = [Fault(**f) for f in json.loads(survey.attrs["faults"])]
    assert len(faults) == 8
    rows = np.indices(SHAPE).astype(np.float32)
    on = faults[-1].undo(*rows)[3]  # the youngest: nothing has moved it since
    assert on.any()
    assert survey.fault.values[on].all()


@pytest.mark.parametrize("fault", [PLANE, BENT])
def test_slip_is_as_stated_at_the_centre_and_dies_out(fault):
    along, down, out = frame(fault)
    centre = np.array(fault.centre)

    def moved(offset):
        """By how much the rock here has moved down the dip since before the slip."""
        p = centre + offset
        before = np.array(fault.undo(*(np.array([c]) for c in p))[:3])[:, 0]
        return float((p - before) @ down)

    hanging, foot = moved(1e-3 * out), moved(-1e-3 * out)
    assert hanging - foot == pytest.approx(fault.slip, rel=1e-3)
    assert hanging == pytest.approx(-foot, rel=1e-3)
    tips = (1.01 * fault.half_length * along, 1.01 * fault.half_height * down)
    assert [moved(tip) for tip in tips] == [0.0, 0.0]
    halfway = moved(1e-3 * out + 0.5 * fault.half_length * along)
    assert abs(halfway / hanging) == pytest.approx(0.75, abs=0.02)
    assert abs(moved(3 * fault.half_height * out)) < 0.01 * abs(hanging)


def test_no_rock_crosses_a_bent_fault():
    along, down, out = frame(BENT)

    def side(points):
        u, v, w = (
            np.tensordot(a, points - np.array(BENT.centre)[:, None], 1) for a in (along, down, out)
        )
        return w - BENT.strike_curvature / 2 * u**2 - BENT.dip_curvature / 2 * v**2

    points = np.random.default_rng(0).uniform(0, 60, (3, 5000))
    before = np.array(BENT.undo(*points)[:3])
    assert np.abs(before - points).max() > 2
    np.testing.assert_allclose(side(before), side(points), atol=1e-9)


def test_the_fault_label_is_thin_and_where_time_jumps():
    made = synthetic_survey(SHAPE, seed=5, faults=[PLANE], noise=0.0)
    out = frame(PLANE)[2]
    offsets = np.indices(SHAPE).reshape(3, -1) - np.array(PLANE.centre)[:, None]
    distance = np.abs(out @ offsets).reshape(SHAPE)
    fault = made.fault.values
    np.testing.assert_array_equal(fault, distance < 1.0)

    # Away from the fault time grows downwards and is smooth; over it, it jumps by the throw.
    rgt = made.rgt.values
    steps = np.diff(rgt, axis=2)
    clear = distance[:, :, 1:] > 3
    assert (steps[clear] > 0).all()
    jumps = np.abs(np.diff(rgt, n=2, axis=1))
    near = distance[:, 1:-1] < 1.0
    assert np.median(jumps[near]) > 10 * np.median(jumps[~near])
    throw = np.median(np.abs(rgt[:, 2:] - rgt[:, :-2])[near]) / np.median(steps[clear])
    assert throw == pytest.approx(PLANE.slip * np.sin(np.radians(PLANE.dip)), rel=0.35)


def test_reflectors_follow_geological_time_and_break_at_faults():
    made = synthetic_survey(SHAPE, seed=6, faults=[PLANE], noise=0.0)
    layer = (made.rgt.values * 400).astype(int).ravel()
    amplitude = made.amplitude.values.ravel()
    count = np.maximum(np.bincount(layer), 1)
    mean = np.bincount(layer, amplitude) / count
    assert np.var(amplitude - mean[layer]) < 0.2 * np.var(amplitude)


@pytest.mark.parametrize("peak", [20.0, 40.0])
def test_the_wavelet_sets_the_spectrum(peak):
    made = synthetic_survey((24, 24, 256), seed=1, peak_frequency=peak, noise=0.0)
    power = (np.abs(np.fft.rfft(made.amplitude.values)) ** 2).mean((0, 1))
    frequency = np.fft.rfftfreq(256, 0.004)
    assert (frequency * power).sum() / power.sum() == pytest.approx(peak, rel=0.35)
    assert power[frequency > 2.7 * peak].sum() < 0.02 * power.sum()


def test_noise_is_as_strong_as_asked():
    clean, noisy = (synthetic_survey(SHAPE, seed=2, noise=n).amplitude.values for n in (0.0, 0.5))
    # Both are scaled to unit deviation, so the correlation tells the ratio.
    correlation = np.corrcoef(clean.ravel(), noisy.ravel())[0, 1]
    assert correlation == pytest.approx(1 / np.hypot(1, 0.5), abs=0.02)


@pytest.mark.parametrize("sample_format", [1, 5])
def test_segy_holds_the_survey_with_holes(survey, tmp_path, sample_format):
    path = tmp_path / "s.sgy"
    write_segy(survey, path, sample_format=sample_format)
    with segyio.open(path, ignore_geometry=True) as file:
        header = {
            key: file.attributes(getattr(segyio.TraceField, key))[:]
            for key in ("INLINE_3D", "CROSSLINE_3D", "CDP_X", "CDP_Y", "SourceGroupScalar",
                        "TraceIdentificationCode", "DelayRecordingTime")
        }  # fmt: skip
        samples = file.trace.raw[:]
        assert int(file.format) == sample_format
        assert segyio.dt(file) == 4000
        assert "SYNTHETIC" in segyio.tools.wrap(file.text[0])
        np.testing.assert_array_equal(file.samples, survey.twt)
    i = header["INLINE_3D"] - 1001
    j = (header["CROSSLINE_3D"] - 2001) // 2
    absent = np.prod(SHAPE[:2]) - len(samples)
    assert 5 <= absent < 50
    assert len(set(zip(i.tolist(), j.tolist(), strict=True))) == len(samples)
    dead = header["TraceIdentificationCode"] == 2
    assert dead.sum() == 2
    assert not samples[dead].any()
    np.testing.assert_allclose(
        samples[~dead], survey.amplitude.values[i[~dead], j[~dead]], rtol=2e-6, atol=1e-7
    )

    assert set(header["SourceGroupScalar"]) == {-100}
    assert set(header["DelayRecordingTime"]) == {1000}
    place = (header["CDP_X"] + 1j * header["CDP_Y"]) / 100
    at = {(a, b): p for a, b, p in zip(i.tolist(), j.tolist(), place, strict=True)}
    assert abs(at[1, 0] - at[0, 0]) == pytest.approx(25.0, abs=0.02)
    assert abs(at[0, 1] - at[0, 0]) == pytest.approx(12.5, abs=0.02)
    # Turned, and at right angles.
    a, b = at[30, 0] - at[0, 0], at[0, 30] - at[0, 0]
    assert abs((a * b.conjugate()).real) < 1e-3 * abs(a * b)
    assert min(abs(a.real), abs(a.imag)) > 0.4 * abs(a)


def test_segy_is_not_overwritten_unasked(survey, tmp_path):
    path = tmp_path / "s.sgy"
    write_segy(survey, path, holes=False)
    with segyio.open(path, ignore_geometry=True) as file:
        assert file.tracecount == SHAPE[0] * SHAPE[1]
    with pytest.raises(OutputExistsError, match=r"s\.sgy"):
        write_segy(survey, path)
    write_segy(survey, path, overwrite=True)


@pytest.mark.parametrize(("fault", "dip", "strike"), [(PLANE, 65, 20), (BENT, 110, 20)])
def test_angles_are_those_of_the_faults(fault, dip, strike):
    made = synthetic_survey(SHAPE, seed=5, faults=[fault], noise=0.0)
    on = made.fault.values
    found = {name: made[name].values for name in ("fault_dip", "fault_strike")}
    assert all((values[~on] == 0).all() for values in found.values())
    bend = dict.fromkeys(found, 0.5 if fault is PLANE else 12)
    np.testing.assert_allclose(found["fault_dip"][on], dip, atol=bend["fault_dip"])
    np.testing.assert_allclose(found["fault_strike"][on], strike, atol=bend["fault_strike"])
    # In the middle of the surface they are exactly these, however it is bent.
    x, y, z = (np.array([c]) for c in fault.centre)
    np.testing.assert_allclose(np.ravel(fault.attitude(x, y, z)), (dip, strike), atol=1e-9)


def spectrum(values):
    power = (np.abs(np.fft.rfft(values)) ** 2).mean((0, 1))
    return np.fft.rfftfreq(values.shape[2], 0.004), power


def test_an_ormsby_wavelet_keeps_to_its_band_and_a_phase_is_a_phase():
    shape = (12, 12, 256)
    made = synthetic_survey(shape, 1, peak_frequency=30.0, wavelet="ormsby", noise=0.0)
    frequency, power = spectrum(made.amplitude.values)
    outside = (frequency < 0.2 * 30) | (frequency > 2.1 * 30)
    assert power[outside].sum() < 0.01 * power.sum()
    turned = synthetic_survey(
        shape, 1, peak_frequency=30.0, wavelet="ormsby", noise=0.0, phase=90.0
    )
    both = [a.amplitude.values[:, :, 30:-30].ravel() for a in (made, turned)]
    assert abs(np.corrcoef(*both)[0, 1]) < 0.05
    np.testing.assert_allclose(spectrum(turned.amplitude.values)[1].sum(), power.sum(), rtol=0.02)


def test_frequency_falls_with_depth_and_the_sharp_image_has_twice_as_much():
    made = synthetic_survey((16, 16, 512), 2, peak_frequency=(40.0, 20.0), noise=0.0)

    def mean(values):
        frequency, power = spectrum(values)
        return (frequency * power).sum() / power.sum()

    amplitude, dhr = made.amplitude.values, made.dhr.values
    top, bottom = mean(amplitude[:, :, :170]), mean(amplitude[:, :, -170:])
    assert bottom < 0.75 * top
    assert 1.5 * top < mean(dhr[:, :, :170]) < 2.4 * top


@pytest.mark.parametrize("seed", range(6))
def test_the_sharp_image_has_the_phase_of_the_image(seed):
    made = random_survey((24, 24, 96), seed, labels=("dhr",))
    assert np.corrcoef(made.amplitude.values.ravel(), made.dhr.values.ravel())[0, 1] > 0.1


def test_the_sharp_image_turns_with_the_phase():
    images = [
        synthetic_survey((12, 12, 128), 1, noise=0.0, phase=p, labels=("dhr",)) for p in (0, 180)
    ]
    np.testing.assert_allclose(images[1].dhr, -images[0].dhr, atol=1e-5)


def test_lateral_smoothing_widens_breaks():
    sharp, smooth = (
        synthetic_survey(SHAPE, 6, faults=[PLANE], noise=0.0, lateral_smoothing=n).amplitude.values
        for n in (0, 6)
    )
    steps = [np.abs(np.diff(a, axis=1)).max() for a in (sharp, smooth)]
    assert steps[1] < 0.6 * steps[0]


@pytest.mark.parametrize("kind", ["coherent_noise", "footprint", "amplitude_variation"])
def test_what_lies_over_the_signal_is_as_strong_as_asked(kind):
    clean, noisy = (
        synthetic_survey(SHAPE, 2, noise=0.0, **{kind: n}).amplitude.values for n in (0.0, 0.4)
    )
    correlation = np.corrcoef(clean.ravel(), noisy.ravel())[0, 1]
    if kind == "coherent_noise":
        assert correlation == pytest.approx(1 / np.sqrt(1 + 0.4**2), abs=0.02)
    else:  # gains: they change amplitudes, never a sign
        assert 0.7 < correlation < 0.999
        assert ((clean * noisy)[np.abs(clean) > 1e-3] >= 0).all()


def test_a_single_line_is_a_survey(tmp_path):
    for shape in ((1, 8, 8), (8, 1, 8)):
        made = synthetic_survey(shape, faults=np.int64(2))
        assert all(np.isfinite(made[name]).all() for name in made)
        write_segy(made, tmp_path / f"{shape[0]}.sgy", holes=False)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: random_survey((8, 8, 8), ranges={"fault": (1, 2)}), "'fault' is none of faults"),
        (lambda: random_survey((8, 8, 8), ranges={"faults": (0, 3)}), "faults.* begin above 0"),
        (lambda: random_survey((8, 8, 8), ranges={"dip": (60, 40)}), "dip .*lowest"),
        (lambda: synthetic_survey((8, 8, 8), labels=["faults"]), "'faults' is none of fault,"),
        (lambda: synthetic_survey((8, 8, 8), wavelet="klauder"), "one of ricker, ormsby"),
        (lambda: synthetic_survey((8, 8, 8), peak_frequency=0), "above 0 and below 125 Hz"),
        (lambda: synthetic_survey((8, 8, 8), peak_frequency=(9, 200)), "peak_frequency"),
        (lambda: synthetic_survey((8, 8, 8), layer_thickness=0), "more than 0 samples"),
        (lambda: random_survey((8, 8, 8), ranges={"noise": 0.2}), "noise 0.2; give the lowest"),
        (lambda: random_survey((8, 0, 8)), r"shape \(8, 0, 8\): give"),
        (lambda: synthetic_survey((8, 8)), r"shape \(8, 8\): give inlines, crosslines"),
        (lambda: synthetic_survey((8, 8, 1)), "samples, of which at least 2"),
        (lambda: synthetic_survey((8, 8, 8), seed=-1), "seed -1: choose a whole number"),
        (lambda: synthetic_survey((8, 8, 8), faults=-1), "faults -1: choose how many"),
    ],
)
def test_recipes_that_make_no_sense(make, says):
    with pytest.raises(ArgumentError, match=says):
        make()
