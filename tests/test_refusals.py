"""What predictions and trainings refuse before they touch anything."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from distributed import Client
from torch import nn

import outcrop
from outcrop import events, models, training
from outcrop.cluster import Tls, connect
from outcrop.errors import (
    ArgumentError,
    OutcropError,
    OutputExistsError,
    ResumeError,
    SurveyError,
    TrainingDataError,
)
from outcrop.events import Tile
from outcrop.models.card import InputCard, OutputCard
from test_predict import make_survey

SHAPE = (9, 11, 13)


def stop(event):
    """Listen, and end a run at its first tile."""
    if isinstance(event, Tile):
        raise KeyboardInterrupt


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "survey.zarr"
    make_survey(SHAPE).to_zarr(made)
    return made


def network():
    torch.manual_seed(0)
    return nn.Conv3d(1, 1, 3, padding=1).eval()


def how(kind, path):
    return {
        "path": lambda: path,
        "outcrop.open": lambda: outcrop.open(path),
        "xarray": lambda: xr.open_zarr(path),
        "volume": lambda: outcrop.open(path).amplitude,
        "part": lambda: outcrop.open(path).isel(inline=slice(2, 9)),
    }[kind]()


@pytest.mark.parametrize("kind", ["path", "outcrop.open", "xarray", "volume", "part"])
def test_a_survey_is_not_overwritten_by_its_prediction(kind, path, tmp_path):
    before = xr.open_zarr(path).load()
    link = tmp_path / "link.zarr"
    os.symlink(path, link)
    for target in (path, link):
        with pytest.raises(ArgumentError, match="is the survey that is read"):
            outcrop.predict(network(), how(kind, path), target, overwrite=True)
    other = tmp_path / "b.zarr"
    make_survey(SHAPE).to_zarr(other)
    for target in (path / "amplitude", path / "o.zarr"):
        with pytest.raises(ArgumentError, match="lies within the survey that is read"):
            outcrop.predict(network(), how(kind, path), target, overwrite=True)
    for targets in ([tmp_path / "o.zarr", path], tmp_path):
        with pytest.raises(ArgumentError, match="is the survey that is read"):
            outcrop.predict_all(network(), [how(kind, path), other], targets, overwrite=True)
    fault = models.load("faultseg3d", weights="seeded")
    with pytest.raises(ArgumentError, match="is the survey that is read"):
        outcrop.predict_views(fault, how(kind, path), path, angles=True, overwrite=True)
    xr.testing.assert_identical(xr.open_zarr(path).load(), before)


def test_a_file_is_not_replaced(path, tmp_path):
    file = tmp_path / "f3.sgy"
    file.write_bytes(b"something else")
    with pytest.raises(OutputExistsError, match="is a file; choose another path"):
        outcrop.predict(network(), path, file, overwrite=True)
    assert file.read_bytes() == b"something else"


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda s: s.isel(inline=slice(0, 0)), "amplitude: is empty"),
        (lambda s: s.isel(twt=slice(None, None, -1)), r"twt: falls from .* to 0, .*sortby\('twt'"),
        (lambda s: s.assign(amplitude=s.amplitude * 1j), "amplitude: is complex64; pass real"),
        (lambda s: s.assign_coords(live=s.live.astype("i4")), "live: is int32"),
        (lambda s: s.assign_coords(live=s.live.astype("f4")), "live: is float32"),
        (
            lambda s: s.assign_coords(live=s.live[:, 0].reset_coords(drop=True)),
            "live: is bool over inline;",
        ),
    ],
)
def test_surveys_that_make_no_sense(change, fact, tmp_path):
    with pytest.raises(SurveyError, match=fact):
        outcrop.predict(network(), change(make_survey(SHAPE)), tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()


def test_arguments_that_make_no_sense(path, tmp_path):
    with pytest.raises(ArgumentError, match="model: is a str; pass a network"):
        outcrop.predict("faultseg3d", path, tmp_path / "o.zarr")
    with pytest.raises(ArgumentError, match="tile 8: give 3 positive extents"):
        outcrop.predict(network(), path, tmp_path / "o.zarr", tile=8)
    with pytest.raises(ArgumentError, match="tile 8: give 3 positive extents"):
        outcrop.whole_volume(network(), np.zeros((1, 1, 8, 8, 8), "f4"), tile=8)
    with pytest.raises(ArgumentError, match=r"tile \[8\.5, 8, 8\]: give 3 positive extents"):
        outcrop.predict(network(), path, tmp_path / "o.zarr", tile=(8.5, np.int64(8), 8))
    with pytest.raises(ArgumentError, match="surveys: is a single one"):
        outcrop.predict_all(network(), str(path), tmp_path / "o")
    with pytest.raises(ArgumentError, match=r"threshold 0\.5: is for probabilities"):
        outcrop.predict(network(), path, tmp_path / "o.zarr", threshold=0.5)
    with pytest.raises(ArgumentError, match="normalization 'zscor' of amplitude: choose one of"):
        InputCard("amplitude", "amplitude", "zscor")
    for wrong in ({"valid_range": None}, {"valid_range": (1.0, 0.0)}, {"scale": 0}, {"scale": "1"}):
        with pytest.raises(
            ArgumentError, match=f"{next(iter(wrong))} .* of fault_probability: give"
        ):
            replace(models.card("faultseg3d").outputs[0], **wrong)
    with pytest.raises(ArgumentError, match="device 'tpu': choose cpu or cuda"):
        outcrop.predict(network(), path, tmp_path / "o.zarr", device="tpu")
    for data in (xr.open_zarr(path), xr.open_zarr(path).amplitude, np.zeros(3)):
        with pytest.raises(TrainingDataError, match=r"data: is a .*; pass synthetic"):
            training.fit("faultseg3d", data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "o.zarr").exists()


def carded(body, *outputs, channels=1):
    """A network with a card that names its outputs."""
    model = nn.Sequential(nn.Conv3d(1, channels, 3, padding=1), body).eval()
    model.card = replace(models.card("faultseg3d"), outputs=outputs, multiple=(1, 1, 1), smallest=1)
    return model


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_outputs_that_cannot_be_labelled(path, tmp_path):
    out = tmp_path / "o.zarr"
    taken = carded(nn.ReLU(), OutputCard("cdp_x", "a name", "1", (0, 1)))
    with pytest.raises(ArgumentError, match="cdp_x: a variable that is written and a coordinate"):
        outcrop.predict(taken, path, out)
    fault = carded(nn.Sigmoid(), models.card("faultseg3d").outputs[0])
    for model, name, threshold in ((fault, "fault", 0.5), (network(), "prediction", None)):
        survey = make_survey(SHAPE).assign_coords({name: ("inline", np.arange(SHAPE[0]))})
        with pytest.raises(ArgumentError, match=f"{name}: a variable that is written"):
            outcrop.predict(model, survey, out, threshold=threshold)
    with pytest.raises(SurveyError, match=r"output .* is complex; return its parts"):
        outcrop.predict(carded(Apply(lambda x: torch.complex(x, x))), path, out)
    time = carded(nn.ReLU(), OutputCard("rgt", "time", "1", (0, 1), own_range=True))
    vintages = xr.concat([make_survey(SHAPE, seed=s, missing=0) for s in (0, 1)], "vintage")
    with pytest.raises(SurveyError, match=r"rgt: is brought to 0…1 .* along vintage; select"):
        outcrop.predict(time, vintages, out)
    assert not out.exists()
    outcrop.predict(time, vintages.isel(vintage=[0]), out)


class Prompted(nn.Module):
    def forward(self, b, a):
        return a - b


def test_cards_that_make_no_sense(path, tmp_path):
    out = tmp_path / "o.zarr"
    card = models.card("faultseg3d")
    for change, what in (
        ({"axes": ("inline", "crossline", "time")}, r"axes .* of faultseg3d: give z, crossline"),
        ({"multiple": (1, 0, 1)}, r"multiple \(1, 0, 1\) of faultseg3d: .*, a whole number from 1"),
        ({"multiple": 8}, r"multiple \(8,\) of .*, a whole number from 1"),
        ({"smallest": "16"}, "smallest '16' of faultseg3d: give a whole number"),
        ({"inputs": InputCard("gas", "gas", "none")}, r"give a tuple, .* inputs=\(InputCard"),
        ({"outputs": ("salt",)}, r"outputs of faultseg3d: give a tuple, .* outputs=\(OutputCard"),
        ({"multiple": (8.0, 8, 8)}, r"multiple \(8\.0, 8, 8\) of .*, a whole number from 1"),
        (
            {"inputs": (*card.inputs, InputCard("", "place", "position", 3))},
            "place; .* axis 0 to 2",
        ),
        ({"inputs": (InputCard("", "gas", "none"),)}, "of faultseg3d: gas; give each the name"),
        ({"inputs": (InputCard("", "place", "position"),)}, "no variable; .* at least one"),
        ({"axes": ("z", "crossline", "inline"), "sections": True}, "axes .* of faultseg3d: give z"),
        ({"outputs": card.outputs * 2}, "outputs of faultseg3d: .*; give each another name"),
    ):
        with pytest.raises(ArgumentError, match=what):
            replace(card, **change)
    for name in ("Vp/Vs", "", "..", "unfinished"):  # which nothing would open
        strange = carded(nn.ReLU(), OutputCard(name, name, "1", (0, 1)))
        with pytest.raises(ArgumentError, match=r"output .* of faultseg3d: no variable of a Zarr"):
            outcrop.predict(strange, path, out)
    own = carded(nn.ReLU(), replace(card.outputs[0], own_range=True))
    with pytest.raises(ArgumentError, match=r"threshold 0\.5: fault_probability is brought to 0…1"):
        outcrop.predict(own, path, out, threshold=0.5)
    two = [OutputCard(name, name, "1", (0, 1)) for name in ("gas", "oil")]
    for function, what in (
        (lambda x: (x, 2 * x), "returns its input among its outputs; leave it out"),
        (lambda x: [x + 1] * 2, "returns one tensor twice"),
        (
            lambda x: {"oil": x + 1, "gas": x + 2},
            "returns oil, gas, and its card names gas, oil; put",
        ),
        (lambda x: [x + 1, x + 2], "activation 'softmax': .* one of a single channel"),
    ):
        model = Apply(function).eval()
        model.card = replace(card, outputs=two, activation="softmax" if "soft" in what else "none")
        with pytest.raises(SurveyError, match=what):
            outcrop.predict(model, path, out)
    model = Prompted()
    model.card = replace(card, inputs=[InputCard(n, n, "none") for n in "ab"], separate=True)
    with pytest.raises(ArgumentError, match="forward takes b, a, and its card has a, b; put"):
        outcrop.predict(model, path, out)
    cards = [OutputCard(n, n, "1", (0, 1)) for n in ("salt_probability", "salt")]
    with pytest.raises(ArgumentError, match=r"threshold 0\.5: the network predicts salt, so that"):
        outcrop.predict(carded(nn.ReLU(), *cards, channels=2), path, out, threshold=0.5)
    model = network()
    model.card = {"outputs": ["fault"]}
    wrapped = nn.ModuleDict({"net": carded(nn.ReLU())})
    with pytest.raises(ArgumentError, match=r"no card, .* but net in it has one, of faultseg3d"):
        outcrop.predict(wrapped, path, out)
    with pytest.raises(ArgumentError, match=r"card is a dict; give it an outcrop\.models\.Card"):
        outcrop.predict(model, path, out)
    assert not out.exists()


@pytest.mark.parametrize("threshold", [50, -0.1, float("nan")])
def test_thresholds_that_no_probability_or_all_reach(threshold, path, tmp_path):
    fault = carded(nn.Sigmoid(), models.card("faultseg3d").outputs[0])
    with pytest.raises(ArgumentError, match=r"threshold .*: probabilities run from 0 to 1"):
        outcrop.predict(fault, path, tmp_path / "o.zarr", threshold=threshold)


@pytest.mark.parametrize("body", [nn.Identity(), nn.InstanceNorm3d(1), nn.BatchNorm3d(1)])
def test_logits_that_are_called_probabilities_are_told(body, path, tmp_path):
    fault = carded(body, models.card("faultseg3d").outputs[0])
    with pytest.warns(UserWarning, match=r"fault_probability: the network ends with \w+, .*'sig"):
        outcrop.predict(fault, path, tmp_path / "o.zarr")
    fault.card = replace(fault.card, activation="sigmoid")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        outcrop.predict(fault, path, tmp_path / "p.zarr")


def test_the_home_folder_has_its_short_name(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    record = outcrop.Record()
    log = events.JsonLog("~/log.jsonl")
    found = outcrop.predict(network(), "~/survey.zarr", "~/o.zarr", listeners=[record, log])
    outcrop.view.report(record, "~/pages/o.html")
    outcrop.export(found, "~/o.npy")
    outcrop.view.sections(found.prediction, path="~/o.png")
    names = {"log.jsonl", "o.npy", "o.png", "o.zarr", "pages", path.name}
    # Matplotlib leaves its own there, .cache and .config, where it is imported first.
    assert {p.name for p in tmp_path.iterdir() if p.name[0] != "."} == names
    assert (tmp_path / "pages" / "o.html").is_file()


def test_what_is_no_survey(path, tmp_path):
    with pytest.raises(ArgumentError, match="a path is empty"):
        outcrop.open("")
    with pytest.raises(SurveyError, match=r"amplitude: is an array of a group; pass the folder"):
        outcrop.open(path / "amplitude")
    make_survey(SHAPE).to_zarr(tmp_path / "two.zarr", zarr_format=2)
    with pytest.raises(SurveyError, match=r"two\.zarr: is in Zarr format 2; write it in format 3"):
        outcrop.open(tmp_path / "two.zarr")
    root = path / "zarr.json"
    for text in (root.read_text()[:99], "[]"):
        root.write_text(text)
        with pytest.raises(SurveyError, match=r"zarr\.json: is damaged"):
            outcrop.open(path)


def test_another_activation_does_not_go_on(path, tmp_path):
    """With the same weights it would go unnoticed."""
    conv = network()
    one, other = nn.Sequential(conv, nn.ReLU()), nn.Sequential(conv, nn.LeakyReLU(0.5))
    out = tmp_path / "o.zarr"
    with pytest.raises(KeyboardInterrupt):
        outcrop.predict(one.eval(), path, out, tile=(4, 4, 4), listeners=[stop])
    with pytest.raises(ResumeError, match="network_sha256"):
        outcrop.predict(other.eval(), path, out, tile=(4, 4, 4))
    outcrop.predict(one.eval(), path, out, tile=(4, 4, 4))
    with pytest.raises(OutputExistsError, match=r"another prediction \(network_sha256 differ\)"):
        outcrop.predict_all(other.eval(), [path], [out])
    outcrop.predict_all(one.eval(), [path], [out])


def test_of_several_surveys_the_current_folder_has_its_own_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(path)
    outcrop.predict_all(network(), ["."], tmp_path / "o")
    assert [found.name for found in (tmp_path / "o").iterdir()] == [path.name]


def test_a_lossy_prediction_is_not_taken_for_an_exact_one(path, tmp_path):
    model, targets = network(), [tmp_path / "o.zarr"]
    lossy = {"storage_compression": True, "storage_mode": "disk", "tile": (4, 4, 4)}
    outcrop.predict_all(model, (each for each in [path]), targets, **lossy)
    with pytest.raises(OutputExistsError, match="storage_compression differ"):
        outcrop.predict_all(model, [path], targets)
    outcrop.predict_all(model, [path], targets, **lossy)


def test_several_surveys_of_which_one_is_bad(path, tmp_path):
    bad = make_survey(SHAPE).drop_vars("amplitude")
    with pytest.raises(SurveyError, match="survey 1: the survey: has no variable 'amplitude'"):
        outcrop.predict_all(network(), [path, bad], tmp_path / "o")


def test_an_output_below_a_file(path, tmp_path):
    (tmp_path / "file").write_text("")
    for target, said in (  # the first before samples are read
        (tmp_path / "file" / "o.zarr", "file takes no files"),
        ("/proc/nowhere/o.zarr", "cannot be written .*"),
    ):
        with pytest.raises(OutcropError, match=rf"o\.zarr: .*{said}; choose another path"):
            outcrop.predict(network(), path, target)
    below = tmp_path / "file" / "below"
    with pytest.raises(ArgumentError, match=r"storage_path .*below: .*file takes no files; choose"):
        outcrop.predict(network(), path, tmp_path / "o.zarr", storage_path=below)
    assert not (tmp_path / "o.zarr").exists()


class Awaited(Client):
    """As one within an event loop."""

    status, asynchronous = "running", True

    def __init__(self):
        pass


def test_what_is_no_client_or_closed(path, tmp_path):
    closed = Client.__new__(Client)
    closed.status = "closed"
    awaited = Awaited()
    for client, said in (
        ("local", "is a str; pass a distributed.Client"),
        (closed, "is closed"),
        (awaited, "is asynchronous"),
    ):
        with pytest.raises(ArgumentError, match=f"client: {said}"):
            outcrop.predict(network(), path, tmp_path / "o.zarr", client=client)
        with pytest.raises(ArgumentError, match=f"client: {said}"):
            outcrop.plan(network(), path, client=client)


@pytest.mark.parametrize(("cluster", "workers"), [("local", 0), ("local", -1), (None, 2)])
def test_workers_that_are_not_to_be_had(cluster, workers):
    with pytest.raises(ArgumentError, match=f"workers {workers}: "), connect(cluster, workers):
        pass


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"address": null}', '{"address": 3}', "x"])
def test_what_is_no_scheduler_file(text, tmp_path, monkeypatch):
    (tmp_path / "s.json").write_text(text)
    said = r"s\.json: no scheduler answers there"
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OutcropError, match=said), connect("~/s.json"):
        pass


def test_certificates_that_nobody_would_look_at():
    tls = Tls(Path("ca"), Path("cert"), Path("key"))
    with pytest.raises(ArgumentError, match=r"tls: is for a cluster"), connect(None, tls=tls):
        pass
