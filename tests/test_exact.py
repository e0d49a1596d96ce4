"""Tiled equals whole: to 1e-9 in float64, for random networks, shapes, tiles and storage modes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from outcrop import whole_volume
from outcrop.engine import whole as whole_module
from outcrop.graph import RULES, capture
from outcrop.models.faultseg3d import FaultSeg3d
from random_layers import LAYERS, Layer
from random_plans import draw_plan
from test_dtypes_and_layouts import OF_ONE, OF_TWO

MODES = ("device", "cpu", "disk", "none", "auto")
# What `torch.export` makes of programs older than the calls of today.
OLDER = {"_unsafe_view", "norm"}


def assert_exact(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    largest = expected.abs().max().item()
    assert (found - expected).abs().max().item() <= 1e-9 * largest


class Gate(nn.Module):
    """Squeeze and excitation, then a gate for each point: CBAM in short."""

    def __init__(self, conv):
        super().__init__()
        self.one, self.two, self.point = nn.Linear(4, 2), nn.Linear(2, 4), conv(2, 1, 3, padding=1)

    def forward(self, x):
        over = tuple(range(2, x.ndim))
        vector = self.two(F.relu(self.one(x.mean(over)))) + self.two(F.relu(self.one(x.amax(over))))
        x = x * torch.sigmoid(vector)[(..., *(None,) * len(over))]
        both = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        return x * torch.sigmoid(self.point(both))


class Block(nn.Module):
    """A transformer block whose keys and values are reduced in space, as in SegFormer."""

    def __init__(self, conv, reduction):
        super().__init__()
        self.reduce = conv(4, 4, reduction, stride=reduction)
        self.norm, self.q, self.kv = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 8)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))

    def forward(self, x):
        shape = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        few = self.reduce(x) if min(shape[2:]) >= self.reduce.kernel_size[0] else x
        few = self.norm(few.flatten(2).transpose(1, 2))
        k, v = self.kv(few).chunk(2, -1)
        tokens = tokens + (self.q(self.norm(tokens)) @ k.mT).softmax(-1) @ v
        tokens = tokens + self.mlp(self.norm(tokens))
        return tokens.transpose(1, 2).reshape(shape)


class RandomNetwork(nn.Module):
    """Layers drawn at random: residuals, branches at other resolutions, norms, gates, attention."""

    def __init__(self, rank, recipe):
        super().__init__()
        self.rank, self.recipe = rank, recipe
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
        turned = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank]
        norms = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[rank], nn.GroupNorm
        make = {
            "residual": lambda a, b: conv(4, 4, 2 * a - 1, padding=(a - 1) * b, dilation=b),
            "cat": lambda a, b: conv(8, 4, 1),
            "separable": lambda a, b: nn.Sequential(conv(4, 4, 3, padding=1, groups=4), nn.SiLU()),
            "turned": lambda a, b: nn.Sequential(conv(4, 4, a, a), turned(4, 4, a + 1, a)),
            "norm": lambda a, b: norms[0](4, affine=True) if b > 1 else norms[1](2, 4),
            "gate": lambda a, b: Gate(conv),
            "attention": lambda a, b: Block(conv, a),
        }
        self.layers = nn.ModuleList()
        for kind, a, b in recipe:
            if kind in LAYERS:
                self.layers.append(Layer(rank, kind, a, b))
            else:
                self.layers.append(make.get(kind, lambda a, b: conv(4, 4, 3, padding=1))(a, b))
        self.first, self.last = conv(1, 4, 1), conv(4, 2, 1)

    def forward(self, x):
        pool = {2: F.max_pool2d, 3: F.max_pool3d}[self.rank]
        mean = {2: F.avg_pool2d, 3: F.avg_pool3d}[self.rank]
        linear = {2: "bilinear", 3: "trilinear"}[self.rank]
        x = first = self.first(x)
        for (kind, a, b), layer in zip(self.recipe, self.layers, strict=True):
            size = x.shape[2:]
            if kind == "residual":
                y = layer(x)
                y += x
                x = F.relu_(y)
            elif kind == "branch":
                down = layer(pool(x, a, ceil_mode=True))
                x = x + F.interpolate(down, size=size, mode="nearest") * b
            elif kind == "fusion":
                down = layer(mean(x, a, ceil_mode=True))
                x = x + F.interpolate(down, size=size, mode=linear, align_corners=b > 1)
            elif kind == "cat":
                x = layer(torch.cat((x, first), 1))
            elif kind == "turned":
                x = x + F.interpolate(layer(F.pad(x, (a, a) * self.rank)), size=size)
            elif kind == "pad":
                mode = ("reflect", "replicate", "circular")[b - 1]
                x = layer(F.pad(x, (a, 0) * self.rank, mode=mode))
                x = x[(..., *(slice(n) for n in size))]
            elif kind in LAYERS or kind in ("norm", "gate", "attention", "separable"):
                x = layer(x)
            else:
                x = torch.tanh(layer(x))
        return self.last(x)


kinds = (
    "residual branch fusion cat separable turned pad norm gate attention plain".split()  # noqa: SIM905
)
layers = st.sampled_from(kinds) | st.sampled_from(sorted(LAYERS))
recipes = st.lists(st.tuples(layers, st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=8)


def test_layers_use_every_rule():
    def operators(name, rank):
        layer = Layer(rank, name, 2, 2).double().eval()
        graph, _ = capture(layer, [torch.zeros(1, 4, *(6, 7, 5)[:rank], dtype=torch.float64)])
        return {node.op for node in graph.nodes.values()}

    used = set()
    for name in LAYERS:
        found = operators(name, 3)
        used |= found
        if any(op.endswith("3d") for op in found):  # which has a twin in two dimensions
            used |= operators(name, 2)
    assert RULES.keys() - used - {*OF_ONE.split(), *OF_TWO.split()} == OLDER


def network_of(rank, recipe, shape, seed):
    """A random network, a volume, and what the one makes of the other."""
    torch.manual_seed(seed)
    network = RandomNetwork(rank, recipe).double().eval()
    x = torch.randn(1, 1, *shape[:rank], dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
    return network, x, expected


# Ranks, layers, shapes, tiles, storage modes and seeds.
cases = (
    st.data(),
    st.sampled_from([2, 3]),
    recipes,
    st.tuples(*[st.integers(4, 17)] * 3),
    st.tuples(*[st.integers(2, 20)] * 3),
    st.sampled_from(MODES),
    st.integers(0, 2**31),
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(*cases)
def test_random_networks(data, rank, recipe, shape, tile, mode, seed):
    """By a plan made for tiles, and by one drawn at random."""
    network, x, expected = network_of(rank, recipe, shape, seed)
    captured = capture(network, [x])
    plan = draw_plan(captured[0], data)
    with pytest.MonkeyPatch.context() as patch:  # it takes longer than all the rest
        patch.setattr(whole_module, "capture", lambda *_: captured)
        for how in ({"tile": tile[:rank], "storage_mode": mode}, {"plan": plan}):
            assert_exact(whole_volume(network, x, **how), expected)


@pytest.fixture(scope="module")
def faults():
    torch.manual_seed(1)
    network = FaultSeg3d().double().eval()
    x = torch.randn(1, 1, 40, 24, 32, dtype=torch.float64)
    with torch.no_grad():
        return network, x, network(x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tile", [(16, 16, 16), (13, 24, 11), (40, 9, 64), (48, 48, 64)])
def test_faultseg3d(faults, mode, tile):
    network, x, expected = faults
    assert_exact(whole_volume(network, x, tile=tile, storage_mode=mode), expected)


def test_faultseg3d_2018():
    torch.manual_seed(2)
    network = FaultSeg3d("2018").double().eval()
    x = torch.randn(1, 1, 16, 24, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
    assert_exact(whole_volume(network, x, tile=(8, 8, 16)), expected)


class Several(nn.Module):
    """Two inputs; a dict and a tuple of outputs on two grids; every in-place trap."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv3d(1, 3, 3, padding=1)
        self.b = nn.Conv3d(2, 3, 3, padding=2, dilation=2)
        self.norm = nn.BatchNorm3d(3)
        self.dropout = nn.Dropout3d()

    def forward(self, image, prompt):
        a = self.a(image)
        kept = a * 2
        a += 1
        b = self.dropout(self.norm(self.b(prompt)))
        both = F.relu(a + b, inplace=True)
        small = F.avg_pool3d(both, 2)
        return {"full": (both, kept), "small": small, "same": image}


def test_several_inputs_and_outputs():
    torch.manual_seed(3)
    network = Several().double().eval()
    network.norm.running_mean.uniform_()
    network.norm.running_var.uniform_(1, 2)
    image = torch.randn(2, 1, 9, 14, 11, dtype=torch.float64)  # a batch of two
    prompt = torch.randn(2, 2, 9, 14, 11, dtype=torch.float64)
    with torch.no_grad():
        expected = network(image, prompt)
    for given_as in ((image, prompt), {"image": image, "prompt": prompt}):
        found = whole_volume(network, given_as, tile=(4, 5, 6))
        assert found.keys() == expected.keys()
        assert_exact(found["small"], expected["small"])
        assert_exact(found["same"], expected["same"])
        for one, other in zip(found["full"], expected["full"], strict=True):
            assert_exact(one, other)


def test_the_module_and_the_input_stay_as_they_were(faults):
    network, x, _ = faults
    before = {k: v.clone() for k, v in network.state_dict().items()}
    copy = x.clone()
    whole_volume(network, x, tile=(16, 16, 16))
    assert torch.equal(x, copy)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_lower_precision_differs_by_rounding_alone(faults, precision):
    network, x, expected = faults
    found = whole_volume(network, x, tile=(16, 16, 16), precision=precision)
    assert found.dtype == x.dtype
    # What the network itself loses in that precision, in one piece.
    lower = network.to(getattr(torch, precision))
    with torch.no_grad():
        whole = lower(x.to(getattr(torch, precision))).double()
    network.double()
    own = (whole - expected).abs().max()
    assert (found - expected).abs().max() <= 3 * own


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "float64"])
def test_what_is_not_a_number_spreads_as_in_one_piece(precision):
    torch.manual_seed(1)
    network = FaultSeg3d().eval().to(getattr(torch, precision))
    x = torch.randn(1, 1, 16, 16, 200).to(getattr(torch, precision))
    x[..., 9, 8, 40] = float("nan")
    with torch.no_grad():
        expected = network(x).isnan()
    assert 0 < expected.sum() < expected.numel()
    assert torch.equal(whole_volume(network, x, tile=(16, 16, 64)).isnan(), expected)
