"""Every rule against its operator on the whole grid, on random shapes, arguments and boxes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import outcrop
from outcrop.errors import UnsupportedOperatorError
from outcrop.graph import RULES, capture
from outcrop.graph.rules import kernels, mixing, transposed
from outcrop.graph.rules.taps import Separable, linear_taps
from rule_checks import Apply, check_rule, few, grids, inputs_for


@few
@given(st.data(), st.sampled_from([2, 3]))
def test_convolution(data, rank):
    shape = data.draw(grids(rank))
    kernel, stride, dilation = (
        data.draw(st.tuples(*[st.integers(1, most)] * rank)) for most in (4, 3, 4)
    )
    groups = data.draw(st.sampled_from([1, 2]))
    padding = data.draw(st.one_of(st.just("same"), st.just("valid"), st.integers(0, 5)))
    assume(padding != "same" or max(stride) == 1)
    make = nn.Conv2d if rank == 2 else nn.Conv3d
    layer = make(
        4, 2 * groups, kernel, stride, padding, dilation, groups, bias=data.draw(st.booleans())
    )
    check_rule(layer, inputs_for((1, 4, *shape)), data, f"conv{rank}d")


def test_taps_that_meet_nothing_but_padding_are_left_out():
    """As in pyramids of dilations on coarse grids, where only the middle of a kernel is left."""
    layer = nn.Conv3d(2, 4, 3, padding=40, dilation=40).double().eval()
    x = torch.randn(1, 2, 16, 15, 14, dtype=torch.float64)
    graph, _ = capture(layer, [x])
    (node,) = graph.nodes.values()
    rule, box = RULES[node.op], graph.whole(node.name)
    assert rule.operations(node, graph) == 2 * 2 * 4
    assert rule.workspace(node, box, graph, 4) < 2 * x.nbytes  # and no cube of 96³
    with torch.inference_mode():
        torch.testing.assert_close(
            outcrop.whole_volume(layer, x, tile=(8, 8, 8)), layer(x), rtol=0, atol=1e-9
        )


@few
@given(st.data(), st.sampled_from([2, 3]))
def test_max_pool(data, rank):
    shape = data.draw(grids(rank))
    kernel = data.draw(st.integers(1, 4))
    layer = (nn.MaxPool2d if rank == 2 else nn.MaxPool3d)(
        kernel,
        data.draw(st.integers(1, 4)),
        padding=data.draw(st.integers(0, kernel // 2)),
        dilation=data.draw(st.integers(1, 2)),
        ceil_mode=data.draw(st.booleans()),
    )
    check_rule(layer, inputs_for((1, 2, *shape)), data, f"max_pool{rank}d")


@few
@given(st.data(), st.sampled_from([2, 3]))
def test_average_pool(data, rank):
    layer = (nn.AvgPool2d if rank == 2 else nn.AvgPool3d)(
        data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    )
    check_rule(layer, inputs_for((1, 2, *data.draw(grids(rank, 3)))), data, f"avg_pool{rank}d")


@few
@given(st.data(), st.sampled_from([2, 3]))
def test_nearest(data, rank):
    shape = data.draw(grids(rank, 1, 7))
    if data.draw(st.booleans()):
        size = data.draw(grids(rank))
        layer = Apply(lambda x: F.interpolate(x, size=size))
    else:
        factor = data.draw(st.sampled_from([1.0, 2.0, 3.0, 1.5, 0.5, 1 / 3, 2.7]))
        layer = Apply(lambda x: F.interpolate(x, scale_factor=factor))
    check_rule(layer, inputs_for((1, 2, *shape)), data, f"upsample_nearest{rank}d")


POINTWISE = [
    F.relu,
    F.leaky_relu,
    F.elu,
    F.silu,
    F.gelu,
    F.hardswish,
    F.mish,
    F.softplus,
    F.relu6,
    torch.sigmoid,
    torch.tanh,
    torch.abs,
    torch.exp,
    F.celu,
    torch.atan,
    torch.sinh,
    lambda x: torch.atan2(x, x.cos()),
    lambda x: torch.hypot(x, x + 1).fmod(0.7),
    lambda x: x.sigmoid().logit(),
    lambda x: x.clamp(-0.3, 0.4),
    lambda x: x + 2,
    lambda x: 3 - x,
    lambda x: x * x,
    lambda x: x**2,
    lambda x: x / 3,
    lambda x: F.softmax(x, 1),
    lambda x: x[:, 1:],
    lambda x: x[:, 1],
    lambda x: torch.cat((x, x), 1),
]


@pytest.mark.parametrize("function", POINTWISE)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_pointwise(function, data):
    check_rule(Apply(function), inputs_for((1, 3, 4, 5, 3)), data)


@pytest.mark.parametrize("layer", [nn.PReLU(3), nn.BatchNorm3d(3)])
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_pointwise_with_weights(layer, data):
    for name, value in layer.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + len(name))
    check_rule(layer, inputs_for((1, 3, 4, 5, 3)), data)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_broadcast(data):
    full = (1, 3, 4, 5, 3)
    part = tuple(n if data.draw(st.booleans()) else 1 for n in full)
    x, y = inputs_for(full)[0], inputs_for(part)[0]
    check_rule(Apply(data.draw(st.sampled_from([torch.add, torch.mul]))), [x, y], data)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_learned_positions(data):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 2, 4, 5, 3))

        def forward(self, x):
            return x + self.table

    check_rule(Positions(), inputs_for((1, 2, 4, 5, 3)), data)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_concatenation_in_both_layouts(data):
    parts = inputs_for((1, 2, 4, 5, 3), count=3)
    if data.draw(st.booleans()):
        parts = [p.contiguous(memory_format=torch.channels_last_3d) for p in parts]
    check_rule(Apply(lambda *p: torch.cat(p, 1)), parts, data, "cat")


@few
@given(st.data(), st.sampled_from([2, 3]))
def test_padded_average_pool(data, rank):
    kernel = data.draw(st.integers(1, 4))
    layer = (nn.AvgPool2d if rank == 2 else nn.AvgPool3d)(
        kernel,
        data.draw(st.integers(1, 4)),
        padding=data.draw(st.integers(0, kernel // 2)),
        ceil_mode=data.draw(st.booleans()),
        count_include_pad=data.draw(st.booleans()),
        divisor_override=data.draw(st.sampled_from([None, 3])),
    )
    check_rule(layer, inputs_for((1, 2, *data.draw(grids(rank, 2)))), data, f"avg_pool{rank}d")


@few
@given(st.data(), st.sampled_from([2, 3]))
def test_transposed_convolution(data, rank):
    stride, dilation, kernel = (data.draw(st.integers(1, most)) for most in (4, 3, 4))
    groups = data.draw(st.sampled_from([1, 2]))
    layer = (nn.ConvTranspose2d if rank == 2 else nn.ConvTranspose3d)(
        4,
        2 * groups,
        kernel,
        stride,
        padding=data.draw(st.integers(0, 3)),
        output_padding=data.draw(st.integers(0, max(stride, dilation) - 1)),
        groups=groups,
        dilation=dilation,
        bias=data.draw(st.booleans()),
    )
    shape = data.draw(grids(rank, 1, 7))
    check_rule(layer, inputs_for((1, 4, *shape)), data, f"conv_transpose{rank}d")


@few
@given(st.data(), st.sampled_from([2, 3]))
def test_linear_resampling(data, rank):
    how = {"mode": {2: "bilinear", 3: "trilinear"}[rank], "align_corners": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        how["size"] = data.draw(grids(rank))
    else:
        how["scale_factor"] = data.draw(st.sampled_from([1.0, 2.0, 3.0, 1.5, 0.5, 2.7]))
    shape = data.draw(grids(rank, 1, 7))
    check_rule(Apply(lambda x: F.interpolate(x, **how)), inputs_for((1, 2, *shape)), data)


@few
@given(st.data(), st.sampled_from([2, 3]))
def test_padding(data, rank):
    mode = data.draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
    shape = data.draw(grids(rank, 2, 8))
    least, most = (-2, 4) if mode == "constant" else (0, min(shape) - 1)
    pad = data.draw(st.tuples(*[st.integers(least, most)] * 2 * rank))
    check_rule(Apply(lambda x: F.pad(x, pad, mode=mode)), inputs_for((1, 2, *shape)), data, "pad")


@few
@given(st.data(), st.sampled_from([2, 3]), st.integers(1, 6))
def test_adaptive_average(data, rank, size):
    layer = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[rank](size)
    check_rule(layer, inputs_for((1, 2, *data.draw(grids(rank, 2)))), data)


class Attention(nn.Module):
    """Queries of every voxel, keys and values of a volume reduced by a strided convolution."""

    def __init__(self, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.q, self.kv = nn.Linear(4, 4), nn.Linear(4, 8)
        self.reduce, self.norm = nn.Conv3d(4, 4, 2, 2), nn.LayerNorm(4)

    def forward(self, x):
        b, c, *grid = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q = self.q(tokens).reshape(b, -1, self.heads, c // self.heads).permute(0, 2, 1, 3)
        few = self.norm(self.reduce(x).flatten(2).transpose(1, 2))
        kv = self.kv(few).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, kv[0], kv[1])
        else:
            y = ((q @ kv[0].transpose(-2, -1)) * 0.3).softmax(-1) @ kv[1]
        y = y.transpose(1, 2).reshape(b, -1, c)
        return (tokens + y).transpose(1, 2).reshape(b, c, *grid)


@settings(max_examples=6, deadline=None)
@given(st.data(), st.booleans(), st.integers(1, 2))
def test_attention(data, fused, batch):
    graph = check_rule(Attention(2, fused), inputs_for((batch, 4, 4, 6, 3)), data)
    whole = [n for n in graph.nodes.values() if n.op == "whole"]
    assert len(whole) == 2  # keys and values alone
    assert {graph.grid(n.operands[0]) for n in whole} == {(2, 3, 1)}
    assert graph.grid(graph.outputs[0]) == (4, 6, 3)


def windows(x):
    b, c, d, h, w = x.shape
    y = torch.roll(x, (1, -1), (2, 4))
    y = y.permute(0, 2, 3, 4, 1).reshape(b, d // 2, 2, h // 3, 3, w // 2, 2, c)
    y = y.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, 12, c)
    y = (y @ y.transpose(1, 2)).softmax(-1) @ y
    y = y.reshape(b, d // 2, h // 3, w // 2, 2, 3, 2, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(b, d, h, w, c).permute(0, 4, 1, 2, 3)


def set_a_plane(x):
    y = x.clone()
    y[:, :, 1] = 0
    return y


GATE = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(4, 2, 1), nn.ReLU(), nn.Conv3d(2, 4, 1))
FUNCTIONS = {
    "instance norm": F.instance_norm,
    "group norm": lambda x: F.group_norm(x, 2),
    "layer norm over everything": lambda x: F.layer_norm(x, x.shape[1:]),
    "layer norm over channels": lambda x: F.layer_norm(x.movedim(1, -1), (4,)).movedim(-1, 1),
    "statistics of the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "squeeze and excitation": lambda x: x * torch.sigmoid(x.mean((2, 3, 4), keepdim=True)),
    "gate of a vector": lambda x: x * x.amax((2, 3, 4))[:, :, None, None, None].expand_as(x),
    "spatial gate": lambda x: x * torch.cat((x.mean(1, True), x.max(1, True)[0]), 1).sum(1, True),
    "softmax over the volume": lambda x: F.softmax(x.flatten(2), -1).view_as(x),
    "log softmax over the volume": lambda x: F.log_softmax(x.flatten(2), -1).view_as(x),
    "standard deviation": lambda x: x / x.std(),
    "variance": lambda x: x * x.var((2, 3, 4), keepdim=True, unbiased=False),
    "largest of all": lambda x: x / x.max() - x.min(),
    "norm of all": lambda x: x / torch.linalg.vector_norm(x),
    "normalised channels": lambda x: F.normalize(x, dim=1),
    "mean of one axis": lambda x: x - x.mean(3, keepdim=True),
    "mean of two axes": lambda x: x + x.mean((2, 4))[:, :, None, :, None],
    "extreme of one axis": lambda x: x.max(2)[0] + x.argmax(2),
    "adaptive maximum": lambda x: x + F.adaptive_max_pool3d(x, 1),
    "tokens": lambda x: F.relu(x.flatten(2).transpose(1, 2) * 2).mT.unflatten(2, x.shape[2:]),
    "slices": lambda x: x[:, 1:3, 1:-1, ::2, 1:],
    "negative slices": lambda x: x[:, -2:, -3:-1],
    "one section": lambda x: x[:, :, -2].relu(),
    "flip": lambda x: x.flip(2, 4),
    "roll": lambda x: x.roll((2, -1), (2, 3)),
    "repeat": lambda x: x.repeat(1, 2, 1, 3, 1),
    "repeat with a new axis": lambda x: x.repeat(2, 1, 1, 1, 1, 1)[1],
    "chunk": lambda x: torch.chunk(x, 2, 1)[1] + torch.split(x, [1, 1, 2], 1)[2],
    "split along an axis": lambda x: torch.cat(torch.chunk(x, 2, 3)[::-1], 1),
    "unbind": lambda x: x.unbind(1)[2] * 2,
    "stack": lambda x: torch.stack((x, 2 * x), 2).sum(2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x[:, :, 0], 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x[:, :, 0], 3),
    "shuffled channels": lambda x: F.channel_shuffle(x, 2),
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1).relu(),
    "expand": lambda x: x.mean(3, keepdim=True).expand_as(x) * x,
    "zeros": lambda x: torch.cat((x, torch.zeros_like(x[:, :1]), torch.ones_like(x)), 1),
    "positions": lambda x: x * torch.arange(6.0, dtype=x.dtype)[:, None],
    "where": lambda x: torch.where(x > 0, x, x.new_full((), 3.0)),
    "masked": lambda x: x.masked_fill(x < 0, 1.0),
    "mask as a number": lambda x: x * (x > 0).to(x.dtype),
    "in place": lambda x: x.clone().add_(1).relu_().mul_(x),
    "set in place": set_a_plane,
    "einsum": lambda x: torch.einsum("bcdhw,ec->bedhw", x, torch.eye(4, dtype=x.dtype)),
    "einsum attention": lambda x: torch.einsum(
        "bcdhw,bcij->bdhwij", x, torch.sigmoid(x[:, :, 0])
    ).sum((4, 5)),
    "einsum over the volume": lambda x: torch.einsum("bcdhw,bedhw->bce", x, x)[..., 0] * x.sum(),
    "channel attention": lambda x: (x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2),
    "windows": windows,
    "cumulative sum": lambda x: x.cumsum(1),
    "cumulative sum along an axis": lambda x: x.cumsum(2),
    "Fourier": lambda x: torch.fft.fftn(x, dim=(2, 3, 4)).real,
    "fold": lambda x: F.unfold(x[:, :, 0], 2),
    "sort": lambda x: x.sort(1)[0],
    "local response": lambda x: F.local_response_norm(x, 3),
    "glu": lambda x: F.glu(x, 1),
    "sections as a batch": lambda x: F.conv2d(
        x.transpose(1, 2).reshape(-1, 4, 6, 6), torch.ones(1, 4, 3, 3, dtype=x.dtype), padding=1
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_functions(name, data):
    check_rule(Apply(FUNCTIONS[name]), inputs_for((1, 4, 4, 6, 6)), data)


@pytest.mark.parametrize("name", ["instance norm", "group norm", "layer norm over channels"])
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_batches(name, data):
    check_rule(Apply(FUNCTIONS[name]), inputs_for((2, 4, 4, 6, 6)), data)


@pytest.mark.parametrize(
    "layer",
    [
        nn.InstanceNorm3d(4, affine=True),
        nn.InstanceNorm3d(4, affine=True, track_running_stats=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm((4, 4, 6, 6)),
        nn.RMSNorm((4, 4, 6, 6)),
        nn.RMSNorm((6,)),
        nn.Conv3d(4, 4, 3, padding=2, padding_mode="reflect"),
        nn.Conv3d(4, 4, 3, padding=1, padding_mode="circular"),
        GATE,
        nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 1),
    ],
    ids=lambda layer: type(layer).__name__,
)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_layers(layer, data):
    layer = layer.double()
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value))
    shape = (1, 7, 6) if isinstance(layer, nn.TransformerEncoder) else (1, 4, 4, 6, 6)
    check_rule(layer, inputs_for(shape), data)


def test_what_stays_on_the_grid():
    """Operators with a rule are not evaluated whole by accident."""
    off = {
        "einsum attention",
    }
    for name, function in FUNCTIONS.items():
        example = torch.zeros(1, dtype=torch.float64).expand(1, 4, 8, 6, 6)
        graph, _ = capture(Apply(function).eval(), [example])
        whole = any(node.op == "whole" for node in graph.nodes.values())
        assert whole == (name in off), name


@pytest.mark.parametrize("function", [F.dropout, F.dropout3d, torch.rand_like])
def test_random_numbers_are_refused(function):
    network = nn.Sequential(nn.Conv3d(2, 2, 1), nn.Sequential(Apply(lambda x: x + function(x))))
    with pytest.raises(UnsupportedOperatorError, match="random") as caught:
        capture(network.eval(), [torch.zeros(1).expand(1, 2, 8, 8, 8)])
    assert "submodule '1" in str(caught.value)


def test_what_torch_cannot_capture_is_named():
    with pytest.raises(UnsupportedOperatorError, match=r"Apply.*cannot capture"):
        capture(Apply(lambda x: x if x.sum() > 0 else -x).eval(), [torch.zeros(1, 1, 4, 4, 4)])


def test_training_mode_is_refused():
    with pytest.raises(UnsupportedOperatorError, match=r"eval\(\)"):
        capture(nn.Sequential(nn.Dropout()), [torch.zeros(1, 1, 4, 4, 4)])


def test_capture_allocates_nothing():
    graph, _ = capture(nn.Conv3d(1, 64, 3).eval(), [torch.zeros(1).expand(1, 1, 4096, 4096, 4096)])
    assert graph.grid(graph.outputs[0]) == (4094, 4094, 4094)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@few
@given(data=st.data())
def test_transposed_convolutions_by_slabs_and_phases(rank, dtype, data):
    """However few rows a slab has, with and without windows that overlap, or overlap in part."""
    draw = data.draw
    groups, bias = draw(st.sampled_from([1, 2])), draw(st.booleans())
    layer = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank](
        4,
        6,
        draw(st.tuples(*[st.integers(1, 4)] * rank)),
        draw(st.tuples(*[st.integers(1, 3)] * rank)),
        groups=groups,
        bias=bias,
        dilation=draw(st.tuples(*[st.integers(1, 2)] * rank)),
    )
    layer = layer.to(dtype).eval().requires_grad_(False)
    x = torch.randn(2, 4, *draw(grids(rank)), dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "COLUMNS", draw(st.sampled_from([1, 3000, 2**23])))
        how = layer.stride, layer.dilation, groups
        found = transposed.transposed(x, layer.weight, layer.bias, *how)
    torch.testing.assert_close(found, layer(x))


@pytest.mark.skipif(torch.bfloat16 not in kernels.HALVES, reason="by phases where bfloat16 is fast")
@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
def test_phases_in_halves_are_rounded_once(layout):
    layer = nn.ConvTranspose3d(16, 8, (3, 1, 5), (2, 2, 3)).bfloat16().requires_grad_(False)
    x = torch.randn(2, 16, 5, 6, 7).bfloat16().contiguous(memory_format=layout)
    how = layer.stride, layer.dilation, 1
    found = transposed.transposed(x, layer.weight, layer.bias, *how)
    expected = layer.float()(x.float())
    assert ((found.float() - expected).abs() <= 2**-8 * expected.abs() + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@few
@given(data=st.data())
def test_lines_are_convolved_as_images_of_a_row(dtype, data):
    """With what they are added to, and a ReLU: rounded once or twice in halves."""
    draw = data.draw
    groups, layout = draw(st.sampled_from([1, 2])), draw(st.booleans())
    channels = groups * draw(st.sampled_from([1, 2, 8]))
    weight, bias = (
        torch.randn(2 * groups, channels // groups, 3, dtype=dtype),
        torch.randn(2 * groups),
    )
    how = *((draw(st.integers(1, 2)),) for _ in range(3)), groups  # stride, padding, dilation
    x = torch.randn(5, 9, channels, dtype=dtype).transpose(1, 2)
    x = x if layout else x.contiguous()
    expected = F.conv1d(x.float(), weight.float(), bias, *how)
    onto = torch.randn_like(expected) if draw(st.booleans()) else None
    expected = expected if onto is None else expected + onto.to(dtype)
    relu = draw(st.booleans())
    onto = None if onto is None else onto.to(dtype)
    found = kernels.convolve(x, weight, bias.to(dtype), *how, onto=onto, relu=relu)
    assert found.dtype == dtype
    close = {"rtol": 2**-6, "atol": 2**-4} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found.float(), F.relu(expected) if relu else expected, **close)


@few
@given(data=st.data())
def test_long_sums_by_parts(data):
    """With what they are added to, and a ReLU, as in one piece; of fewer channels too."""
    draw = data.draw
    channels, dilation = draw(st.integers(1, 40)), draw(st.integers(1, 2))
    layout = draw(st.sampled_from([torch.channels_last_3d, torch.contiguous_format]))
    x = torch.randn(2, channels, *draw(grids(3))).contiguous(memory_format=layout)
    weight, bias = torch.randn(8, channels, 1, 2, 1), torch.randn(8)
    how = (1, 1, 1), (0, dilation, 0), (1, dilation, 1), 1
    expected = F.conv3d(x, weight, bias, *how)
    onto = torch.randn_like(expected) if draw(st.booleans()) else None
    expected = expected if onto is None else expected + onto
    relu = draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_LONG", 0)
        patch.setattr(kernels, "_PART", 16)
        found = kernels.convolve(
            x, weight, bias, *how, onto=onto, in_place=draw(st.booleans()), relu=relu
        )
    torch.testing.assert_close(found, expected.relu() if relu else expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rank", "kernel", "channels", "groups"), [(2, 5, 16, 1), (3, 3, 3, 1), (2, 2, 68, 4)]
)
def test_one_window_along_the_lines_of_one_channel(rank, kernel, channels, groups, dtype):
    stride = (1,) * (rank - 1) + (2,)
    make = {2: nn.Conv2d, 3: nn.Conv3d}[rank]
    layer = make(groups, channels, kernel, stride, groups=groups).to(dtype).eval()
    x = torch.randn(1, groups, *(12, 9, 9)[-rank:], dtype=dtype)
    found = outcrop.whole_volume(layer, x, tile=(9, 4, 1)[-rank:])
    atol = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found, layer(x).detach(), rtol=0, atol=atol)


@few
@given(data=st.data())
def test_means_as_products(data):
    """In either layout, along any axis, with points that are named twice."""
    draw = data.draw
    dim, channels = draw(st.integers(2, 4)), draw(st.sampled_from([1, 3, 16]))
    layout = draw(st.sampled_from([torch.channels_last_3d, torch.contiguous_format]))
    x = torch.randn(2, channels, *draw(grids(3)), dtype=torch.float64)
    x = x.contiguous(memory_format=layout)
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    where = np.array(draw(st.lists(st.integers(0, x.shape[dim] - 1), min_size=36, max_size=36)))
    where, share = where[: shape[0] * shape[1]].reshape(shape), np.random.randn(*shape)
    found = mixing.product(x, dim, where, share)
    expected = Separable(linear_taps)._by_points(x, dim, where, share)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_what_is_not_finite_stays_where_it_is():
    """A product with a matrix would spread it along all of an axis."""
    x = torch.zeros(1, 16, 20, 20, 20)
    x[0, 3, 10, 10, 10], x[0, 4, 5, 5, 5] = math.inf, math.nan
    resample = Apply(lambda x: F.interpolate(x, size=(40, 40, 40), mode="trilinear")).eval()
    found = outcrop.whole_volume(resample, x, tile=(40, 20, 20))
    assert ((~found.isfinite()) == (~resample(x).isfinite())).all()
