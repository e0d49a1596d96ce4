"""The zoo: golden outputs, weights in and refused."""

import argparse
import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

from command_line import outcrop_command
from outcrop import models
from outcrop.errors import OutputExistsError, WeightsError
from outcrop.models.cards import CARDS
from outcrop.models.faultseg3d import FaultSeg3d
from outcrop.models.normalization import NORMALIZATIONS, Statistics
from outcrop.models.weights import digest

FORMATS = ("pth", "pt", "safetensors", "ckpt")


@pytest.fixture
def state():
    torch.manual_seed(5)
    return FaultSeg3d().state_dict()


@pytest.mark.parametrize("kind", [*FORMATS, "net", "prefix", "twice", "loss"])
def test_formats_and_prefixes(kind, state, tmp_path):
    path = tmp_path / f"w.{kind if kind in FORMATS else 'pth'}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "ckpt":
        options = argparse.Namespace(widths=[16, 32], best=np.float64(0.3), folder=Path("runs"))
        more = {"hyper_parameters": {"lr": 1e-4, "opts": options, "mean": np.zeros(3)}, "epoch": 3}
        torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}, **more}, path)
    elif kind == "net":
        torch.save({"net": state, "epoch": 3}, path)
    elif kind == "prefix":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    elif kind == "twice":
        torch.save({f"module.faults.{k}": v for k, v in state.items()}, path)
    elif kind == "loss":
        beside = {"criterion.weight": torch.ones(2)}
        torch.save({f"model.{k}": v for k, v in state.items()} | beside, path)
    else:
        torch.save(state, path)
    model = models.load("faultseg3d", weights=path)
    assert not model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.card.name == "faultseg3d"


def test_weights_of_the_other_version_are_named(tmp_path):
    torch.save(FaultSeg3d("2018").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"version='2018'.*conv4\.conv1\.weight"):
        models.load("faultseg3d", weights=tmp_path / "w.pth")


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinite values")])
def test_weights_that_are_not_finite_are_named(value, what, state, tmp_path):
    state["conv2.conv1.bias"][3] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth: conv2\.conv1\.bias holds {what}"):
        models.load("faultseg3d", weights=tmp_path / "w.pth")


def test_two_networks_in_a_file_are_named(state, tmp_path):
    both = {f"{name}.{k}": v for name in ("net", "ema") for k, v in state.items()}
    torch.save(both, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"several networks that fit, net\., ema\.; save"):
        models.load("faultseg3d", weights=tmp_path / "w.pth")


def test_weights_that_may_not_be_read(state, tmp_path, monkeypatch):
    """Of which safetensors says that there are none."""
    save_file(state, tmp_path / "w.safetensors")
    refused = PermissionError(13, "Permission denied")
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(refused))
    with pytest.raises(WeightsError, match=r"cannot be read \(Permission denied"):
        models.load("faultseg3d", weights=tmp_path / "w.safetensors")


def test_every_mismatch_is_listed(state, tmp_path):
    state["conv9.weight"] = state.pop("conv1.conv1.weight")
    state["conv8.bias"] = torch.zeros(2)
    state["conv1.conv2.bias"] = state["conv1.conv2.bias"].to(torch.int8)
    state["conv2.conv1.bias"] = state["conv2.conv1.bias"].to_sparse()
    state["conv2.conv2.bias"] = state["conv2.conv2.bias"].to("meta")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        models.load("faultseg3d", weights=tmp_path / "w.pth")
    for what in (
        "missing conv1.conv1.weight",
        "unexpected conv9.weight",
        "conv8.bias has shape (2,) instead of (1,)",
        "conv1.conv2.bias has int8 instead of real numbers",
        "conv2.conv1.bias is torch.sparse_coo",
        "conv2.conv2.bias is without values",
    ):
        assert what in str(caught.value)
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/outcrop-was-here"),))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("w.pth", None, "no such file"),
        ("w.pth", b"not weights", r"cannot be read as tensors alone \(no whole file of torch"),
        ("w.safetensors", b"\x08\0\0\0\0\0\0\0{broken", "not a whole safetensors file"),
        ("w.onnx", b"", "unknown kind of weights"),
        ("w.pth", Evil(), r"cannot be read as tensors alone \(it holds getattr, which is code"),
        (
            "w.ckpt",
            FaultSeg3d(),
            r"it holds outcrop\.models\.faultseg3d\.FaultSeg3d, ",
        ),
        (
            "w.pth",
            {"epoch": 3, "ema": {}},
            "but a dictionary of 'epoch', 'ema'; save",
        ),
        ("w.pth", {1: torch.zeros(2)}, "holds no state dict but a dictionary of 1; save"),
        ("w.pth", {}, "holds no tensors"),
        ("w.pth", [1, 2], "holds no state dict"),
    ],
)
def test_bad_files_are_one_line(name, content, what, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=what) as caught:
        models.load("faultseg3d", weights=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/outcrop-was-here").exists()


def test_unknown_names_and_options():
    with pytest.raises(WeightsError, match=r"the zoo has .*faultseg3d, "):
        models.load("faultseg4d", weights="seeded")
    with pytest.raises(WeightsError, match="version '1999'"):
        models.load("faultseg3d", weights="seeded", version="1999")
    with pytest.raises(WeightsError, match=r"segformer3d: .*negative dimension -1"):
        models.load("segformer3d", weights="seeded", in_channels=-1)
    with pytest.raises(WeightsError, match=r"channelseg3d: with these options .* is empty"):
        models.load("channelseg3d", weights="seeded", num_classes=0)
    with pytest.raises(WeightsError, match=r"nonsense'; its options are version='2020'$"):
        models.load("faultseg3d", weights="seeded", nonsense=1)


def test_seeded_is_the_same_every_time_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    one, two = (models.load("faultseg3d", weights="seeded") for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert digest(one) == digest(two)
    assert digest(one) != digest(models.load("faultseg3d", weights="seeded", version="2018"))


def keras_unet(widths):
    """FaultSeg3D and its kin, as their authors' code lays them out."""
    import keras
    from keras import layers

    def block(x, channels):
        for _ in range(2):
            x = layers.Conv3D(channels, 3, activation="relu", padding="same")(x)
        return x

    y = given = keras.Input((None, None, None, 1))
    skips = []
    for channels in widths:
        y = block(layers.MaxPooling3D(2)(y) if skips else y, channels)
        skips.append(y)
    for skip, channels in list(zip(skips, widths, strict=True))[-2::-1]:
        y = block(layers.concatenate([layers.UpSampling3D(2)(y), skip], axis=-1), channels)
    return keras.Model(given, layers.Conv3D(1, 1, activation="sigmoid")(y))


@pytest.mark.parametrize(
    ("network", "options", "widths", "whole"),
    [
        ("faultseg3d", {}, (16, 32, 64, 128), True),
        ("faultseg3d", {}, (16, 32, 64, 128), False),
        ("karstseg3d", {"base": 4}, (4, 8, 16, 32, 64), True),
    ],
)
def test_keras_weights(network, options, widths, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    import keras

    assert keras.backend.backend() == "torch"
    keras.utils.set_random_seed(4)
    original, path = keras_unet(widths), tmp_path / "fseg.h5"
    if whole:
        original.save(path)
    else:  # weights alone, in the layout of versions 1 and 2
        write_legacy_weights(original, path)
    model = models.load(network, weights=path, **options)
    x = torch.randn(1, 1, 16, 32, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = model(x)[0, 0]
        expected = original(x.permute(0, 2, 3, 4, 1)).cpu()[0, ..., 0]
    assert (found - expected).abs().max() < 1e-5


def write_legacy_weights(model, path):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{w.name}:0".encode() for w in layer.weights]
            group.attrs["weight_names"] = names
            for name, weight in zip(names, layer.weights, strict=True):
                group[name.decode()] = weight.numpy()


def test_keras_files_of_something_else(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"no hdf5")
    with pytest.raises(WeightsError, match="not a Keras model"):
        models.load("faultseg3d", weights=tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(WeightsError, match="0 3-D convolutions"):
        models.load("faultseg3d", weights=tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:  # a group where Keras has an array
        file.attrs["layer_names"] = ["a"]
        file.create_group("a/kernel")
        file["a"].attrs["weight_names"] = ["kernel", "kernel"]
    with pytest.raises(WeightsError, match="not a Keras model"):
        models.load("faultseg3d", weights=tmp_path / "c.h5")


def test_partial_loads_only_where_asked(tmp_path):
    whole = models.load("mtl-infer-2d", weights="seeded")
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "mtl.ckpt")
    some = models.load("mtl-infer-2d", weights=tmp_path / "mtl.ckpt", tasks=("rgt", "fault"))
    assert [o.suffix for o in some.card.outputs] == ["rgt", "fsem", "fdip"]
    x = torch.randn(1, 1, 40, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        every, found = whole(x), some(x)
    assert set(found) == {"rgt", "fsem", "fdip"}
    assert all(torch.equal(found[k], every[k]) for k in found)
    torch.save(some.state_dict(), tmp_path / "some.pth")
    with pytest.raises(WeightsError, match=r"missing decoder_dhr"):
        models.load("mtl-infer-2d", weights=tmp_path / "some.pth")
    with pytest.raises(WeightsError, match=r"choose from rgt, dhr, fault"):
        models.load("mtl-infer-2d", weights="seeded", tasks=("faults",))


def test_the_network_that_would_fit_is_suggested(tmp_path):
    torch.save(models.load("karstseg3d", weights="seeded").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="they are those of faultseg3dplus or karst") as caught:
        models.load("faultssl", weights=tmp_path / "w.pth")
    assert re.search(r"; and \d+ more$", str(caught.value))  # of hundreds of keys twenty
    assert {"missing input_layer1.0.weight", "unexpected conv10.weight"} <= set(
        re.split("; |: ", str(caught.value))
    )
    assert len(str(caught.value)) < 2000


def test_counters_of_batches_may_be_missing(tmp_path):
    whole = models.load("wang25channel", weights="seeded", base=2)
    fewer = {k: v for k, v in whole.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(fewer, tmp_path / "w.pth")
    model = models.load("wang25channel", weights=tmp_path / "w.pth", base=2)
    assert digest(model) == digest(whole)


def test_convert(state, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.ckpt")
    assert models.convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors") == len(state)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.ckpt", "b.safetensors"]
    with pytest.raises(OutputExistsError, match=r"b\.safetensors: already exists"):
        models.convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    model = models.load("faultseg3d", weights=tmp_path / "b.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    (tmp_path / "b.safetensors").rename(tmp_path / "B.SAFETENSORS")
    models.load("faultseg3d", weights=tmp_path / "B.SAFETENSORS")
    with pytest.raises(WeightsError, match="choose such a name"):
        models.convert(tmp_path / "a.ckpt", tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=r"c\.safetensors: cannot be written .*No such file"):
        models.convert(tmp_path / "a.ckpt", tmp_path / "gone" / "c.safetensors")


def test_converted_weights_can_be_read_by_whoever_reads_other_files(state, tmp_path):
    (tmp_path / "other").touch()
    models.weights.write(state, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_flipped_bit_of_a_tensor_is_seen(state, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(state, path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(WeightsError, match=r"w\.pth: damaged: .* has another checksum"):
        models.load("faultseg3d", weights=path)


@pytest.mark.parametrize("weights", [None, 3])
def test_weights_that_are_no_path(weights):
    with pytest.raises(WeightsError, match=f"weights {weights}: give the path"):
        models.load("faultseg3d", weights=weights)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_one_line(zipped, tmp_path):
    """Whatever the unpickler makes of them."""
    path, random = tmp_path / "w.pth", np.random.default_rng(0)
    tensors = {"a": torch.arange(30.0), "b": torch.ones(2, 3)}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole, said = path.read_bytes(), []
    for _ in range(200):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 5):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        try:
            models.weights.read(path)
        except WeightsError as error:
            said.append(str(error))
    assert len(said) > 50
    assert not [text for text in said if "\n" in text]


def test_every_card_can_be_built_and_says_what_comes_out():
    assert set(CARDS) == set(models.names())
    for name in models.names():
        card = models.load(name, weights="seeded").card
        assert len(card.multiple) == len(card.axes)
        assert all(each.normalization in NORMALIZATIONS for each in card.inputs)
        assert card.doi.startswith("10.")


def test_inputs_are_those_of_the_published_codes():
    """Where weights of others read them in another order, or scaled otherwise, than most."""
    normals = models.load("deepismnet", weights="seeded", use_norm=True).card
    names = ["horizons", "normal_z", "normal_crossline", "normal_inline", "faults"]
    assert [each.name for each in normals.inputs] == names
    fewer = models.load("deepismnet", weights="seeded").card
    assert [each.name for each in fewer.inputs] == ["horizons", "faults"]
    channels = models.card("channelseg3d")
    assert channels.axes == ("inline", "crossline", "z")
    assert channels.inputs[0].normalization == "minmax"
    assert models.card("faultssl").inputs[0].normalization == "zscore-clip-01"
    for version, axes, normalization in (
        ("2018", ("inline", "crossline", "z"), "minmax-255"),
        ("2020", ("z", "crossline", "inline"), "zscore"),
    ):
        card = models.load("faultseg3d", weights="seeded", version=version).card
        assert (card.axes, card.inputs[0].normalization) == (axes, normalization)
    of_a_byte = NORMALIZATIONS["minmax-255"](np.array([-2.0, 0.0, 2.0]), Statistics(0, 1, -2, 2))
    assert of_a_byte.tolist() == [0, 127.5, 255]


def test_cards_follow_the_options_of_their_networks():
    for levels, multiple in ((3, 4), (5, 16)):
        card = models.load("unet25d", weights="seeded", base=4, levels=levels).card
        assert card.multiple == (1, multiple, multiple)
    card = models.load("segformer3d", weights="seeded", num_classes=1).card
    assert card.activation == "sigmoid"
    assert [o.name for o in card.outputs] == ["class_probability"]
    card = models.load("segformer3d", weights="seeded", num_classes=2).card
    assert card.activation == "softmax"


OWN = """
from dataclasses import dataclass

from torch import nn

from beside import convolution
from outcrop.models.card import AMPLITUDE, Card, probability

print("read")

@dataclass
class Options:
    width: "int"

class Salt(nn.Module):
    card = Card(
        "salt", "salt probability", "", "", "", (AMPLITUDE,), (probability("salt"),),
        axes=("inline", "crossline", "z"), activation="sigmoid",
    )

    def __init__(self, width=2):
        super().__init__()
        own = Options(width)
        self.layers = nn.Sequential(convolution(1, own.width), convolution(own.width, 1))

    def forward(self, x):
        return self.layers(x)

def plain():
    return convolution(1, 1)

def broken():
    return 1 / 0

def leaves():
    raise SystemExit("usage: own.py --data")

built = plain()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file of networks, and one beside it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own.py").write_text(OWN)
    beside = "from torch import nn\ndef convolution(a, b): return nn.Conv3d(a, b, 3, padding=1)\n"
    (tmp_path / "beside.py").write_text(beside)
    yield tmp_path / "own.py"
    for name in ("beside", "_own_own"):
        sys.modules.pop(name, None)


def test_networks_in_a_file_of_your_own(own, tmp_path):
    before = torch.get_rng_state()
    one, other = (models.load(f"{own}:Salt", weights="seeded", width=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not one.training
    assert digest(one) == digest(other)
    trained = {key: value + 1 for key, value in one.state_dict().items()}
    torch.save({f"module.{key}": value for key, value in trained.items()}, tmp_path / "w.pth")

    x = np.random.default_rng(1).standard_normal((5, 6, 7)).astype(np.float32)
    coords = {"inline": range(5), "crossline": range(6), "twt": np.arange(7) * 4.0}
    xr.Dataset({"amplitude": (tuple(coords), x)}, coords).to_zarr(tmp_path / "s.zarr")
    how = ("--model", f"{own}:Salt", "-o", "width=3", "--weights", "w.pth", "--report", "none")
    done = outcrop_command("predict", "s.zarr", "o.zarr", *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one.load_state_dict(trained)
    with torch.no_grad():
        expected = one(torch.from_numpy((x - x.mean()) / x.std())[None, None])[0, 0].sigmoid()
    found = xr.open_zarr(tmp_path / "o.zarr")
    assert found.attrs["model"] == "salt"
    assert np.abs(found.salt_probability.values - expected.numpy()).max() < 1e-5

    # What the file prints is no JSON.
    network = ("--model", f"{own}:Salt")
    done = outcrop_command("plan", "s.zarr", *network, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["stages"]
    log = (*network, "--weights", "seeded", "--log-json", "-", "--report", "none")
    done = outcrop_command("predict", "s.zarr", "p.zarr", *log, cwd=tmp_path)
    lines = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert (lines[0], lines[-1]) == ("begin", "end")
    assert "p.zarr: salt_probability" in done.stderr

    done = outcrop_command("models", f"{own}:Salt")
    assert "task: salt probability" in done.stdout
    assert "receptive field: 5 × 5 × 5" in done.stdout
    assert models.card(f"{own}:Salt").name == "salt"


@pytest.mark.parametrize(
    ("name", "message", "options"),
    [
        ("beside.py", "no such network; .* one of your own is FILE.py:NAME", {}),
        ("none.py:Salt", "no such file", {}),
        (
            "own.py:Pepper",
            "has no 'Pepper'; it has Options, Salt, plain, broken, leaves, built",
            {},
        ),
        ("own.py:broken", "own.py:broken: ZeroDivisionError at line 33: division by zero", {}),
        ("own.py:leaves", "own.py:leaves: SystemExit at line 36: usage", {}),
        ("own.py:Salt", "unexpected keyword argument 'height'", {"height": 2}),
        ("own.py:built", "takes no options", {"width": 2}),
        ("own.py:__name__", "gives no network but str", {}),
    ],
)
def test_what_gives_no_network_is_refused(name, message, options, own, monkeypatch):
    monkeypatch.chdir(own.parent)
    with pytest.raises(WeightsError, match=message):
        models.load(name, weights="seeded", **options)


def test_a_network_without_a_card_has_none(own):
    with pytest.raises(WeightsError, match="Conv3d: has no card; give it one"):
        models.card(models.load(f"{own}:plain", weights="seeded"))
