"""Many volumes at once: stacks along further dimensions, and lists of surveys."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import outcrop
from outcrop.cluster import connect
from outcrop.errors import ArgumentError, MemoryBudgetError, OutputExistsError, SurveyError
from outcrop.models.card import Card, InputCard
from test_predict import make_survey

HOW = {"tile": (16, 8, 16), "storage_mode": "disk"}


class Normed(nn.Module):
    """Two stages, and amplitudes normalised by their statistics."""

    card = Card(
        name="normed",
        task="",
        paper="",
        doi="",
        published="",
        inputs=(InputCard("amplitude", "seismic amplitude", "zscore"),),
        outputs=(),
    )

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 1, 3, padding=1)
        self.norm = nn.InstanceNorm3d(2)

    def forward(self, x):
        return torch.sigmoid(self.b(torch.relu(self.norm(self.a(x)))))


@pytest.fixture(scope="module")
def model():
    return Normed().eval()


@pytest.fixture(scope="module")
def stacked():
    """Two vintages of three angles, each of its own scale."""
    surveys = [make_survey((11, 9, 13), seed=0)] * 6
    random = np.random.default_rng(1)
    volumes = [
        s.amplitude * (i + 1) + random.standard_normal(s.amplitude.shape).astype(np.float32)
        for i, s in enumerate(surveys)
    ]
    rows = [xr.concat(volumes[i : i + 3], "angle").where(surveys[0].live, 0) for i in (0, 3)]
    amplitude = xr.concat(rows, "vintage").assign_coords(angle=[5, 15, 25], vintage=[2001, 2009])
    return amplitude.transpose("inline", "vintage", "crossline", "twt", "angle").to_dataset()


@pytest.fixture(scope="module")
def client():
    with connect("local", workers=2) as made:
        yield made


@pytest.mark.parametrize("cluster", [False, True])
def test_each_volume_of_a_stack_is_as_alone(cluster, client, model, stacked, tmp_path):
    how = {**HOW, "client": client if cluster else None}
    planned = str(outcrop.plan(model, stacked))
    assert "\neach of 6 sections or volumes so: about " in planned
    found = outcrop.predict(model, stacked, tmp_path / "all.zarr", **how)
    assert found.prediction.dims == stacked.amplitude.dims
    xr.testing.assert_equal(found.angle, stacked.angle)
    assert len(found.attrs["amplitude_mean"]) == 6
    for vintage, angle in ((2001, 15), (2009, 25)):
        here = {"vintage": vintage, "angle": angle}
        alone = outcrop.predict(model, stacked.sel(here), tmp_path / f"{angle}.zarr", **HOW)
        values = found.prediction.sel(here).transpose(*alone.prediction.dims)
        # One thread or two: sums of another order.
        np.testing.assert_allclose(values, alone.prediction, rtol=0, atol=2e-6 * cluster)


@pytest.mark.parametrize("cluster", [False, True])
def test_a_list_of_surveys(cluster, client, model, tmp_path):
    how = {**HOW, "client": client if cluster else None}
    surveys = [
        make_survey(shape, seed=i) for i, shape in enumerate([(9, 8, 7), (12, 8, 10), (9, 8, 7)])
    ]
    events = []
    found = outcrop.predict_all(model, surveys, tmp_path / "all", listeners=[events.append], **how)
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [f"{i}.zarr" for i in range(3)]
    for i, (survey, each) in enumerate(zip(surveys, found, strict=True)):
        alone = outcrop.predict(model, survey, tmp_path / f"{i}.zarr", **HOW)
        np.testing.assert_allclose(each.prediction, alone.prediction, rtol=0, atol=2e-6 * cluster)
    if cluster:  # the tiles of several were under way at once
        kinds = [(type(e).__name__, e.output) for e in events]
        begun = [i for i, (kind, _) in enumerate(kinds) if kind == "Begin"]
        ended = [i for i, (kind, _) in enumerate(kinds) if kind == "End"]
        assert begun[1] < ended[0]
    # The same again: what is whole stays, and nothing else is taken for it.
    (tmp_path / "all" / "2.zarr").rename(tmp_path / "gone")
    events.clear()
    outcrop.predict_all(model, surveys, tmp_path / "all", listeners=[events.append], **how)
    assert {e.output for e in events} == {str(tmp_path / "all" / "2.zarr")}
    with pytest.raises(OutputExistsError, match=r"\(input_sha256 differ\)"):
        outcrop.predict_all(model, surveys[2:], [tmp_path / "all" / "0.zarr"], **how)
    # What is wrong with any of them is said before the first begins.
    with pytest.raises(SurveyError, match="no variable 'amplitude'"):
        outcrop.predict_all(
            model, [*surveys, surveys[0].rename(amplitude="amp")], tmp_path / "none", **how
        )
    large = {**how, "tile": (96, 96, 96), "memory": "45MB"}
    with pytest.raises(MemoryBudgetError, match="survey 1: memory 45 MB is too small"):
        outcrop.predict_all(model, [surveys[0], make_survey((96,) * 3)], tmp_path / "none", **large)
    mixed = [tmp_path / "none" / "0.zarr", tmp_path / "all" / "0.zarr"]
    with pytest.raises(OutputExistsError, match=r"all/0\.zarr: already holds another"):
        outcrop.predict_all(model, [surveys[0], surveys[2]], mixed, **how)
    with pytest.raises(OutputExistsError, match=r"0\.zarr: is a dataset itself"):
        outcrop.predict_all(model, surveys, tmp_path / "all" / "0.zarr", **how)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ArgumentError, match="1 different ones for 3 surveys"):
        outcrop.predict_all(model, surveys, [tmp_path / "a.zarr"] * 3)
    with pytest.raises(ArgumentError, match=r"none/s\.zarr: 2 of the surveys would be predicted"):
        outcrop.predict_all(model, ["a/s.zarr", "b/s.zarr"], tmp_path / "none")
    with pytest.raises(ArgumentError, match=r"^direction: "):  # of a single one needs no name
        outcrop.predict_all(model, surveys[:1], [tmp_path / "a.zarr"], direction="inline")
