"""The zoo: golden outputs, weights in and refused."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from outcrop import models
from outcrop.errors import WeightsError
from outcrop.models.faultseg3d import FaultSeg3d
from outcrop.models.weights import digest

GOLDEN = Path(__file__).parent / "data" / "golden"


def golden_state(facts, shapes):
    """Fill a state dict as tests/data/golden/README.md says."""
    state = {}
    for key, shape in shapes.items():
        random = np.random.RandomState((zlib.crc32(key.encode()) + facts["seed"]) % 2**32)
        a = random.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:
            a = a * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        else:
            a = 1 + np.float32(0.1) * a if key.endswith("weight") else np.float32(0.1) * a
        state[key] = torch.from_numpy(np.asarray(a, np.float32))
    return state


def golden_input(facts):
    random = np.random.RandomState(facts["input"]["seed"])
    a = random.standard_normal((1, facts["input"]["channels"], *facts["input"]["shape"]))
    a = a.astype(np.float32)
    return torch.from_numpy((a + np.roll(a, 1, -1) + np.roll(a, -1, -1)) / np.float32(3))


@pytest.mark.parametrize("name", ["faultseg3d", "faultseg3d-2018"])
def test_golden(name, tmp_path):
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    state = golden_state(facts, facts["state_dict"])
    torch.save(state, tmp_path / "w.pth")
    model = models.load(
        facts["model"][:10], weights=tmp_path / "w.pth", **facts["constructor"]["kwargs"]
    )
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"]
    with torch.no_grad():
        found = model(golden_input(facts)).numpy()[..., 1::3, 1::3, 1::3]
    expected = np.load(GOLDEN / f"{name}.npz")["output"]
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


@pytest.fixture
def state():
    torch.manual_seed(5)
    return FaultSeg3d().state_dict()


@pytest.mark.parametrize("kind", ["pth", "pt", "safetensors", "ckpt", "prefix", "twice"])
def test_formats_and_prefixes(kind, state, tmp_path):
    path = tmp_path / f"w.{'pth' if kind in ('prefix', 'twice') else kind}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "ckpt":
        torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    elif kind == "prefix":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    elif kind == "twice":
        torch.save({f"module.net.{k}": v for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    model = models.load("faultseg3d", weights=path)
    assert not model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.card.name == "faultseg3d"


def test_weights_of_the_other_version_are_named(tmp_path):
    torch.save(FaultSeg3d("2018").state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"conv4\.conv1\.weight.*version='2018'"):
        models.load("faultseg3d", weights=tmp_path / "w.pth")


def test_every_mismatch_is_listed(state, tmp_path):
    state["conv9.weight"] = state.pop("conv1.conv1.weight")
    state["conv8.bias"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        models.load("faultseg3d", weights=tmp_path / "w.pth")
    for what in (
        "missing conv1.conv1.weight",
        "unexpected conv9.weight",
        "conv8.bias has shape (2,) instead of (1,)",
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
        ("w.pth", b"not weights", "cannot be read as tensors alone"),
        ("w.safetensors", b"\x08\0\0\0\0\0\0\0{broken", "not a whole safetensors file"),
        ("w.onnx", b"", "unknown kind of weights"),
        ("w.pth", Evil(), "cannot be read as tensors alone"),
        ("w.pth", {"epoch": 3}, "holds no state dict"),
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
    with pytest.raises(WeightsError, match="the zoo has faultseg3d"):
        models.load("faultseg4d", weights="seeded")
    with pytest.raises(WeightsError, match="version '1999'"):
        models.load("faultseg3d", weights="seeded", version="1999")
    with pytest.raises(WeightsError, match="nonsense"):
        models.load("faultseg3d", weights="seeded", nonsense=1)


def test_seeded_is_the_same_every_time_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    one, two = (models.load("faultseg3d", weights="seeded") for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert digest(one) == digest(two)
    assert digest(one) != digest(models.load("faultseg3d", weights="seeded", version="2018"))
