"""Every network of the zoo: golden outputs, tiled equals whole, and its card applied."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import outcrop
from outcrop import models
from outcrop.engine import whole as whole_module
from outcrop.errors import MemoryBudgetError
from outcrop.graph import RULES, Reduce, capture
from outcrop.planner import make_plan, parse_bytes
from outlines import filled
from zoo import SMALL, build, golden_facts, golden_input, golden_state, inputs, padded

FOLDER = Path(__file__).parent / "data" / "golden"
GOLDEN = {
    "faultseg3d": "faultseg3d",
    "faultseg3d-2018": "faultseg3d",
    "faultseg3dplus": "faultseg3dplus",
    "karstseg3d": "karstseg3d",
    "faultssl-iou": "faultssl",
    "faultssl-precision": "faultssl",
    "bi21rgt3d": "bi21rgt3d",
    "deepismnet": "deepismnet",
    "deepismnet-norm": "deepismnet",
    "channelseg3d": "channelseg3d",
    "wang25channel": "wang25channel",
    "gem": "gem",
    "segformer3d": "segformer3d",
    "mtl-infer-2d": "mtl-infer-2d",
    "mtl-infer-3d": "mtl-infer-3d",
    "mtl-refine-2d": "mtl-refine-2d",
    "mtl-refine-3d": "mtl-refine-3d",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name, tmp_path):
    facts = golden_facts(name)
    torch.save(golden_state(facts, facts["state_dict"]), tmp_path / "w.pth")
    options = facts.get("constructor", {}).get("kwargs", {})
    model = models.load(GOLDEN[name], weights=tmp_path / "w.pth", **options)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == facts["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"]
    variables = range(len(facts["input"].get("variables", [0])))
    # Where norms amplify it, float32 rounds the reference by nearly 1e-4 already: ours is not
    # rounded again.
    dtype = torch.float64 if name.startswith(("faultssl-iou", "gem", "seg")) else torch.float32
    x = [golden_input(facts, i).to(dtype) for i in variables]
    with torch.no_grad():
        found = model.to(dtype)(*x)
    found = found if isinstance(found, dict) else {"output": found}
    with np.load(FOLDER / f"{name}.npz") as expected:
        assert set(expected.files) == set(found)
        for key in expected.files:
            value = found[key].numpy()
            value = value[(..., *(slice(1, None, 3),) * (value.ndim - 2))]
            assert np.abs(value - expected[key]).max() <= 1e-4 * np.ptp(expected[key]), key


def as_dict(y):
    return y if isinstance(y, dict) else {"": y}


def smallest(graph, **how):
    """The budget that the error names, which depends on how fast this machine is."""
    with pytest.raises(MemoryBudgetError, match="at least") as caught:
        make_plan(graph, memory=10**6, **how)
    return parse_bytes(str(caught.value).split("at least ")[1].split(";")[0])


@pytest.mark.parametrize("key", SMALL)
def test_a_network_takes_the_least_extents_that_its_card_says(key):
    model = build(key)
    card = model.card
    x = padded(torch.zeros(1, len(card.inputs), *(1 for _ in card.axes)), card)
    with torch.no_grad():
        found = as_dict(model(*x.split(1, dim=1) if card.separate else (x,)))
    assert all(y.shape[2:] == x.shape[2:] for y in found.values())


@pytest.mark.parametrize("key", SMALL)
def test_tiled_equals_whole(key, monkeypatch):
    """In one tile, and in halves of each axis, or of the longest, with little memory to spare."""
    model = build(key).double()
    x = inputs(key, model.card)
    with torch.no_grad():
        whole = as_dict(model(*x))
    graph, weights = capture(model, x)
    monkeypatch.setattr(whole_module, "capture", lambda *_: (graph, weights))  # once, not each time
    extents = x[0].shape[2:]
    halves = tuple(8 * -(-n // 16) for n in extents)
    # Without stored tensors each tile begins anew, with a halo that is nearly everything: two, and
    # one alone where each pass of a norm begins anew as well.
    longest = extents.index(max(extents))
    two = tuple(
        h if i == longest else n for i, (h, n) in enumerate(zip(halves, extents, strict=True))
    )
    passes = any(isinstance(RULES[node.op], Reduce) for node in graph.nodes.values())
    # On a CPU "device" and "cpu" are one. Stored tensors lie in memory for one network and on disk
    # for the next; for every third nothing is stored as well. Hundreds of stages take two tiles.
    number, many = list(SMALL).index(key), len(graph.nodes) > 300
    cases = [("auto", None), ("disk" if number % 2 else "cpu", two if many else halves)]
    if number % 3 == 1:
        cases.append(("none", None if passes else two))
    for mode, tile in cases:
        how = {"storage_mode": mode, "dtype": "float64", "tile": tile}
        memory = 4 * 10**9 if tile is None else smallest(graph, **how) * 11 // 10
        plan = make_plan(graph, memory=memory, **how)
        assert plan.peak_memory <= memory
        assert tile is None or max(stage.count for stage in plan.stages) > 1
        found = as_dict(outcrop.whole_volume(model, x, plan=plan))
        assert set(found) == set(whole)
        for name, value in whole.items():
            error = (found[name] - value).abs().max() / value.abs().max()
            assert error <= 1e-9, (mode, tile, name, float(error))


def make_survey(names, shape=(13, 17, 22), seed=1):
    """Variables of a survey in which a tenth of the traces is missing."""
    random = np.random.default_rng(seed)
    live = random.random(shape[:2]) >= 0.1
    coords = {
        "inline": np.arange(shape[0]),
        "crossline": np.arange(shape[1]),
        "twt": np.arange(shape[2]) * 4.0,
        "live": (("inline", "crossline"), live),
    }
    variables = {}
    for name in names:
        values = random.standard_normal(shape) * 40 + 5
        if name != "amplitude":
            values = np.where(random.random(shape) < 0.3, values, 0)
        values = (values * live[..., None]).astype(np.float32)
        variables[name] = (("inline", "crossline", "twt"), values)
    return xr.Dataset(variables, coords)


def normalised(kind, values, live):
    """What the card's words mean, written out plainly."""
    a, seen = values.astype(np.float64), values[live].astype(np.float64)
    z, seen_z = (a - seen.mean()) / seen.std(), (seen - seen.mean()) / seen.std()
    clipped, seen_clipped = np.clip(z, -3.2, 3.2), np.clip(seen_z, -3.2, 3.2)

    def logarithm(x):
        return np.sign(x) * np.log1p(np.abs(x))

    log, seen_log = logarithm(a), logarithm(seen)
    levels = np.floor((log - seen_log.min()) / np.ptp(seen_log) * 255).clip(0, 255)
    found = {
        "none": a,
        "zscore": z,
        "zscore-clip": clipped / np.abs(seen_clipped).max(),
        "zscore-clip-01": (clipped - seen_clipped.min()) / np.ptp(seen_clipped),
        "minmax": (a - seen.min()) / np.ptp(seen),
        "rms": a / np.sqrt((seen**2).mean()),
        "log8": levels / 255,
        "mask": (a != 0) * 1.0,
        "half-turn": a / 180,
    }[kind]
    return np.where(live[..., None], found, absent(kind, values[live]))


def absent(kind, seen):
    """What stands where there is no sample: the mean, as the other samples."""
    mean, log = seen.mean(dtype="f8"), np.log1p
    reach = [
        np.clip((a - mean) / seen.std(dtype="f8"), -3.2, 3.2) for a in (seen.min(), seen.max())
    ]
    low, high = -log(-float(seen.min())), log(float(seen.max()))
    return {
        "zscore-clip-01": -reach[0] / (reach[1] - reach[0]),
        "minmax": (mean - seen.min()) / (float(seen.max()) - seen.min()),
        "rms": mean / np.sqrt((seen.astype("f8") ** 2).mean()),
        "log8": np.floor((np.sign(mean) * log(abs(mean)) - low) / (high - low) * 255) / 255,
    }.get(kind, 0.0)


def in_one_piece(model, survey, card, section=None):
    """Normalise, turn, pad, evaluate whole in float64, crop, turn back."""
    axes = [{"z": "twt"}.get(a, a) for a in card.axes]
    dims = ["inline", "crossline", "twt"]
    channels = []
    for each in card.inputs:
        if each.normalization == "position":
            extents = [survey.sizes[a] for a in axes]
            grid = np.linspace(0, 1, extents[each.axis])
            shape = [-1 if i == each.axis else 1 for i in range(len(extents))]
            channels.append(np.broadcast_to(grid.reshape(shape), extents))
            continue
        values = normalised(each.normalization, survey[each.name].values, survey.live.values)
        array = xr.DataArray(values, dims=dims).isel(section or {})
        live = survey.live.isel(section or {}).values
        if each.normalization not in ("none", "mask", "half-turn") or "refine" in card.name:
            array = array.copy(data=filled(array.values, live))
        channels.append(array.transpose(*axes).values)
    x = torch.from_numpy(np.stack(channels))[None]
    given, x = x.shape[2:], padded(x, card)
    with torch.no_grad():
        y = model(*x.split(1, dim=1)) if card.separate else model(x)
    y = torch.cat(tuple(y.values()), dim=1) if isinstance(y, dict) else y
    y = y.softmax(dim=1) if card.activation == "softmax" else y
    before = [(m - n) // 2 for m, n in zip(x.shape[2:], given, strict=True)]
    y = y[(0, slice(None), *(slice(a, a + n) for a, n in zip(before, given, strict=True)))]
    found = {}
    for output, channel in zip(card.outputs, y, strict=True):
        if output is not None:
            found[output.name] = xr.DataArray(channel.numpy() * output.scale, dims=axes)
    return found


# Without variants whose card is another's, and networks of sections, for which is a test below.
@pytest.mark.parametrize(
    "key", [k for k in SMALL if not k.endswith(("2d", "stem", "2018", "norm", "iou"))]
)
def test_predict_applies_the_card(key, tmp_path):
    model = build(key).double()
    card = model.card.along("crossline") if model.card.sections else model.card
    survey = make_survey({each.name for each in card.inputs if each.name})
    direction = "crossline" if card.sections else None
    found = outcrop.predict(
        model, survey, tmp_path / "o.zarr", precision="float64", memory="3GB", direction=direction
    )
    expected = in_one_piece(model, survey, card)
    assert set(found.data_vars) == set(expected)
    live = survey.live
    for output in filter(None, card.outputs):
        value = expected[output.name].transpose(*found[output.name].dims)
        if output.own_range:
            seen = value.values[live.values]
            value = (value - seen.min()) / np.ptp(seen)
            assert found[output.name].where(live).min() == pytest.approx(0, abs=1e-6)
            assert found[output.name].where(live).max() == pytest.approx(1, abs=1e-6)
        # The arithmetic is float64, the variable float32.
        difference = np.abs(found[output.name].values - value.values).max()
        assert difference <= 1e-6 * max(1.0, float(np.abs(value).max())), output.name


@pytest.mark.parametrize("key", ["mtl-infer-2d", "mtl-refine-2d"])
@pytest.mark.parametrize("direction", ["inline", "crossline"])
def test_networks_of_two_axes_go_section_by_section(key, direction, tmp_path):
    model = build(key).double()
    card = model.card.along(direction)
    survey = make_survey({each.name for each in card.inputs}, shape=(3, 4, 33))
    across = {"inline": 17, "crossline": 20}
    del across[direction]
    survey = survey.isel({d: np.arange(n) % survey.sizes[d] for d, n in across.items()})
    survey = survey.assign_coords({d: np.arange(n) for d, n in across.items()})
    found = outcrop.predict(
        model, survey, tmp_path / "o.zarr", precision="float64", direction=direction
    )
    for section in range(survey.sizes[direction]):
        expected = in_one_piece(model, survey, card, {direction: section})
        for name in set(expected) - {"rgt"}:
            value = expected[name].transpose(*(d for d in found[name].dims if d != direction))
            difference = np.abs(found[name].isel({direction: section}) - value).max()
            assert difference <= 1e-6 * max(1.0, float(np.abs(value).max())), name


def test_threshold_gives_a_mask_and_unkept_outputs_are_left_out(tmp_path):
    model = build("wang25channel")
    survey = make_survey({"amplitude"}, shape=(9, 11, 13))
    probabilities = outcrop.predict(model, survey, tmp_path / "p.zarr").to_dataarray().load()
    median = float(probabilities.median())
    found = outcrop.predict(model, survey, tmp_path / "o.zarr", threshold=median)
    assert set(found.data_vars) == {
        "fault_probability", "channel_probability", "fault", "channel"
    }  # fmt: skip
    for name in ("fault", "channel"):
        assert found[name].dtype == np.uint8
        reached = found[f"{name}_probability"].values >= np.float32(median)
        assert (found[name].values == reached).all()
    assert 0 < found[["fault", "channel"]].to_dataarray().mean() < 1


def test_missing_variables_are_named(tmp_path):
    model, survey = build("gem"), make_survey({"amplitude"})
    with pytest.raises(outcrop.OutcropError, match=r"'prompt' \(interpreted values.*assign"):
        outcrop.predict(model, survey, tmp_path / "o.zarr")
    with pytest.raises(outcrop.OutcropError, match="2 variables"):
        outcrop.predict(model, survey.amplitude, tmp_path / "o.zarr")
    with pytest.raises(outcrop.OutcropError, match="no network of sections"):
        outcrop.predict(build("faultseg3d"), survey, tmp_path / "o.zarr", direction="inline")
    two = survey.assign(prompt=survey.amplitude.isel(twt=slice(0, 20)).rename(twt="time"))
    with pytest.raises(outcrop.OutcropError, match="prompt has extents"):
        outcrop.predict(model, two, tmp_path / "o.zarr")
    assert not (tmp_path / "o.zarr").exists()
