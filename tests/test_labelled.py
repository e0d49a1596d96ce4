"""Labelled variables of networks whose outputs are not a channel for each card."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from zarr.errors import UnstableSpecificationWarning

import outcrop
from outcrop.errors import (
    ArgumentError,
    NonFiniteError,
    SurveyError,
    UnsupportedOperatorError,
)
from outcrop.models.card import AMPLITUDE, Card, InputCard, OutputCard
from test_predict import make_survey
from test_refusals import SHAPE, Apply, carded


def whole(model, survey):
    """What the network returns of the normalised volume in one piece."""
    values = survey.amplitude.transpose("twt", "crossline", "inline").to_numpy()
    x = torch.from_numpy((values - values.mean(dtype="f8")) / values.std(dtype="f8"))
    return model(x.float()[None, None]).detach().reshape(-1, *x.shape)


@pytest.mark.parametrize("keep", [True, False])
def test_class_maps_with_and_without_channels(keep, tmp_path):
    torch.manual_seed(0)
    card = OutputCard("facies", "seismic facies", "1", (0, 4))
    model = carded(Apply(lambda x: x.argmax(1, keepdim=keep)), card, channels=5)
    survey = make_survey(SHAPE, missing=0)
    found = outcrop.predict(model, survey, tmp_path / "o.zarr", tile=(5, 4, 3)).facies
    assert np.array_equal(found.transpose("twt", "crossline", "inline"), whole(model, survey)[0])


def test_an_output_of_an_operator_without_a_rule(tmp_path):
    """It is taken whole, and is written tile by tile all the same."""
    torch.manual_seed(0)
    cards = [OutputCard(n, n, "1", (0, 1)) for n in ("low", "high")]
    model = carded(
        Apply(lambda x: torch.fft.ifftn(torch.fft.fftn(x, dim=(2, 3, 4)), dim=(2, 3, 4)).real),
        *cards,
        channels=2,
    )
    survey = make_survey(SHAPE, missing=0)
    found = outcrop.predict(model, survey, tmp_path / "o.zarr", tile=(5, 4, 3))
    for name, expected in zip(("low", "high"), whole(model, survey), strict=True):
        ours = found[name].transpose("twt", "crossline", "inline").to_numpy()
        assert np.abs(ours - expected.numpy()).max() < 1e-5


def test_a_network_that_halves_extents_is_told_what_card_to_take(tmp_path):
    def skip(x):
        y = torch.nn.functional.max_pool3d(x, 4)
        return torch.cat((torch.nn.functional.interpolate(y, scale_factor=4), x), dim=1)

    survey = make_survey((9, 11, 13), missing=0)
    with pytest.raises(UnsupportedOperatorError, match=r"multiples of 4 it can: .*\(4, 4, 4\)$"):
        outcrop.plan(Apply(skip).eval(), survey)
    with pytest.raises(UnsupportedOperatorError) as caught:
        outcrop.plan(Apply(lambda x: x @ torch.ones(7, 7)).eval(), survey)
    assert "multiples" not in str(caught.value)


@pytest.mark.parametrize(("activation", "count"), [("none", 1), ("sigmoid", 1), ("softmax", 2)])
def test_activations_of_cards(activation, count, tmp_path):
    torch.manual_seed(0)
    cards = [OutputCard(n, n, "1", (0, 1), comment="of salt") for n in ("a", "b")[:count]]
    model = carded(Apply(lambda x: 3 * x), *cards, channels=count)
    model.card = replace(model.card, activation=activation)
    survey = make_survey(SHAPE, missing=0)
    found = outcrop.predict(model, survey, tmp_path / "o.zarr", tile=(5, 4, 3))
    expected = whole(model, survey)
    if activation != "none":
        expected = expected.sigmoid() if activation == "sigmoid" else expected.softmax(0)
    for card, values in zip(cards, expected, strict=True):
        ours = found[card.name].transpose("twt", "crossline", "inline").to_numpy()
        assert np.abs(ours - values.numpy()).max() < 1e-5
        assert found[card.name].attrs["comment"] == "of salt"
    with pytest.raises(ArgumentError, match="activation 'relu' of faultseg3d: choose one of none"):
        replace(model.card, activation="relu")


def test_nan_is_not_in_the_range_of_an_output(tmp_path):
    """With traces that are not there, too."""
    time = OutputCard("rgt", "time", "1", (0, 1), own_range=True)
    model = carded(Apply(lambda x: torch.where(x > 0.1, x, torch.nan)), time)
    for missing in (0, 0.2):
        survey = make_survey(SHAPE, missing=missing)
        with pytest.warns(UserWarning, match="rgt: NaN or infinite at"):
            found = outcrop.predict(
                model, survey, tmp_path / f"{missing}.zarr", nonfinite="warn"
            ).rgt.where(survey.live)
        assert np.isnan(found).any()
        assert (float(found.min()), float(found.max())) == pytest.approx((0, 1), abs=1e-6)


def test_prompts_are_there_and_numbers(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Conv3d(3, 1, 3, padding=1).eval()
    inputs = (AMPLITUDE, *(InputCard("prompt", "prompt", kind) for kind in ("none", "mask")))
    model.card = Card("follows", "", "", "", "", inputs, (OutputCard("p", "p", "1", (0, 1)),))
    survey = make_survey(SHAPE, missing=0)
    prompt = survey.amplitude.isel(inline=[3, 4])
    for given, what in (
        (
            prompt,
            r"prompt: has samples that are NaN .*; make them 0, .* survey\['prompt'\]\.fillna",
        ),
        (survey.amplitude * 0, "prompt: the live samples are all equal"),
    ):
        with pytest.raises(SurveyError, match=what):
            outcrop.predict(model, survey.assign(prompt=given), tmp_path / "o.zarr")
    prompt = prompt.reindex_like(survey, fill_value=0)
    found = outcrop.predict(model, survey.assign(prompt=prompt), tmp_path / "o.zarr")
    assert found.normalization == "amplitude: zscore; prompt: none; prompt: mask"


def test_vintages_may_have_names(tmp_path):
    made = [make_survey(SHAPE, seed=s, missing=0) for s in (0, 1)]
    made[1]["amplitude"] *= 0
    survey = xr.concat(made, "vintage").assign_coords(vintage=["base", "monitor"])
    model = carded(torch.nn.ReLU())
    with pytest.raises(SurveyError, match="amplitude at vintage monitor: the live samples are all"):
        outcrop.predict(model, survey, tmp_path / "o.zarr")
    model[0].bias.data.fill_(torch.nan)
    survey["amplitude"] += survey.inline
    with pytest.raises(NonFiniteError, match="vintage base, inline 100, crossline 300, twt 0 ms"):
        outcrop.predict(model, survey, tmp_path / "o.zarr")
    model[0].bias.data.fill_(0.0)
    with warnings.catch_warnings(action="error", category=UnstableSpecificationWarning):
        found = outcrop.predict(model, survey, tmp_path / "names.zarr")
    assert outcrop.verify(tmp_path / "names.zarr").damage == ()
    one = outcrop.predict(model, survey.isel(vintage=0), tmp_path / "one.zarr").prediction
    np.testing.assert_array_equal(found.prediction.sel(vintage="base"), one)


@pytest.mark.parametrize("line", ["inline", "crossline"])
def test_a_survey_of_one_line_is_one_section(line, tmp_path):
    """And not as many sections of one trace."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(1, 1, 3, padding=1).eval()
    model.card = Card("flat", "", "", "", "", (AMPLITUDE,), (), axes=("z", "trace"), sections=True)
    survey = make_survey(SHAPE, missing=0).isel({line: [3]})
    found = outcrop.predict(model, survey, tmp_path / "o.zarr")
    asked = outcrop.predict(model, survey, tmp_path / "asked.zarr", direction=line)
    assert found.direction == line
    np.testing.assert_array_equal(found.prediction, asked.prediction)


def test_a_network_of_sections_of_two_axes(tmp_path):
    """Whose card says nothing of padding."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(1, 1, 3, padding=1).eval()
    card = Card("flat", "", "", "", "", (AMPLITUDE,), (), axes=("z", "trace"), sections=True)
    model.card = card
    survey = make_survey(SHAPE, missing=0)
    found = outcrop.predict(model, survey, tmp_path / "o.zarr").prediction
    section = ((survey.amplitude - survey.amplitude.mean()) / survey.amplitude.std()).isel(inline=4)
    expected = model(torch.from_numpy(section.transpose("twt", "crossline").to_numpy())[None, None])
    ours = found.isel(inline=4).transpose("twt", "crossline").to_numpy()
    assert np.abs(ours - expected[0, 0].detach().numpy()).max() < 1e-4
    model.card = replace(card, axes=("z", "inline"))  # of crosslines
    found = outcrop.predict(model, survey, tmp_path / "own.zarr")
    asked = outcrop.predict(model, survey, tmp_path / "asked.zarr", direction="crossline")
    assert found.direction == asked.direction == "crossline"
    assert np.array_equal(found.prediction, asked.prediction)
    assert not np.allclose(found.prediction, outcrop.open(tmp_path / "o.zarr").prediction)
    with pytest.raises(ArgumentError, match=r"multiple \(8, 8, 8\) of flat: give one for each"):
        replace(card, multiple=(8, 8, 8))
