"""Tensors that are no images in the module's precision: other dtypes, other orders of axes."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from outcrop import whole_volume
from outcrop.errors import UnsupportedOperatorError
from outcrop.graph import capture
from test_rules import Apply, inputs_for

SHAPE = (1, 4, 19, 22, 17)


def check(function, layers=(), inputs=None, tile=(8, 8, 8)):
    """Compare with the whole in every storage mode: values, dtype, shape."""
    torch.manual_seed(0)
    module = Apply(function, *layers).eval()
    given = inputs_for(SHAPE) if inputs is None else inputs
    with torch.no_grad():
        expected = pytree.tree_leaves(module(*[x.clone() for x in given]))
    for mode in ("device", "disk", "none"):
        found = pytree.tree_leaves(whole_volume(module, given, tile=tile, storage_mode=mode))
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.dtype == theirs.dtype
            exact = (
                mine.dtype in (torch.float64, torch.complex128) or not theirs.is_floating_point()
            )
            rough = 1e-9 if exact else 1e-5
            torch.testing.assert_close(mine, theirs, rtol=rough, atol=rough)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: z.mean((2, 3, 4)),
        lambda z: z - z.mean((2, 3, 4), keepdim=True),
        lambda z: z.sum(),
        lambda z: torch.linalg.vector_norm(z),
        lambda z: z.var(),
        lambda z: z.std((2, 3, 4)),
    ],
)
def test_complex_values_are_reduced_with_both_parts(function):
    (x,) = inputs_for(SHAPE)
    check(lambda x: function(torch.complex(x, x.roll(1, 2))), inputs=[x])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(dtype=torch.int64),
        lambda x: (9 * x).sum((2, 3, 4), dtype=torch.int32),
        lambda x: x.float().sum(dtype=torch.float64),
        lambda x: x.half().mean((2, 3, 4), dtype=torch.float32),
        lambda x: x.mean(dtype=torch.float32),
        lambda x: x - x.mean((2, 3, 4), True, dtype=torch.float64),
        lambda x: x.var((2, 3, 4), correction=0.5),
        lambda x: x.std(correction=1e9),
    ],
)
def test_options_of_reductions(function):
    check(function)


@pytest.mark.parametrize("function", [torch.max, torch.min, torch.sum, torch.amax])
def test_large_whole_numbers_are_exact(function):
    n = torch.randint(2**60, 2**61, (1, 1, 11, 13, 10), generator=torch.Generator().manual_seed(0))
    check(function, inputs=[n])


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("function", "layers"),
    [
        (lambda x, c: c(x.float()), (nn.Conv3d(4, 2, 3, padding=1),)),
        (lambda x, c: c(x.float()), (nn.BatchNorm3d(4),)),
        (lambda x, c: c(F.interpolate(x.float(), scale_factor=2)), (nn.Conv3d(4, 2, 3),)),
        (lambda x, c: c(x.float()).relu() * x.float()[:, :2], (nn.Conv3d(4, 2, 1),)),
    ],
)
def test_a_network_that_brings_its_input_to_its_own_precision(kind, function, layers):
    (x,) = inputs_for(SHAPE)
    check(function, layers, [x.to(kind)])


class Scaled(nn.Module):
    """A buffer in double precision beside an input in single."""

    def __init__(self):
        super().__init__()
        self.register_buffer("by", torch.rand(4, 1, 1, 1, dtype=torch.float64))

    def forward(self, x):
        return x * self.by


def test_a_buffer_in_another_precision_keeps_it():
    (x,) = inputs_for(SHAPE)
    check(lambda x, scaled: scaled(x), (Scaled(),), [x.float()])


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.where(y > 0, 1.0, -0.5) * y,
        lambda y: torch.tanh(y > 0) * y,
        lambda y: (y > 0) * 0.5 * y,
        lambda y: (y > 0).sum(1, keepdim=True) / 3 * y,
        lambda y: torch.sqrt((y > 0).sum((2, 3, 4), keepdim=True)) * y,
        lambda y: torch.full_like(y > 0, 0.5, dtype=torch.float32) * y,
    ],
)
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_numbers_made_of_truths_are_in_the_precision(function, precision):
    """Which torch makes in its default: no convolution takes them beside weights in another."""
    torch.manual_seed(0)
    first, last = nn.Conv3d(4, 4, 3, padding=1), nn.Conv3d(4, 2, 3, padding=1)
    module = Apply(lambda x, first, last: last(first(function(x))), first, last).eval()
    (x,) = inputs_for(SHAPE)
    with torch.no_grad():
        expected = module(x.float())
    found = whole_volume(module, x.float(), precision=precision, tile=(8, 8, 8))
    rough = {"float64": 1e-5, "bfloat16": 0.03}[precision] * expected.abs().max()
    torch.testing.assert_close(found, expected, rtol=0, atol=float(rough))


def turned(x, layer):
    y = x.transpose(2, 3) * 2
    return layer(y - y.mean())


@pytest.mark.parametrize(
    ("function", "layers", "shape", "tile"),
    [
        (lambda y: y - y.mean(), (), SHAPE, (8, 8, 8)),
        (
            lambda x, a, b: (lambda y: b(y * y.mean((1, 2, 3), keepdim=True)))(
                a(x.movedim(1, -1)).relu()
            ),
            (nn.Linear(4, 6), nn.Linear(6, 4)),
            SHAPE,
            (8, 8, 8),
        ),
        (turned, (nn.Conv2d(4, 4, 3, padding=1),), (1, 4, 24, 24), (8, 8)),
        (turned, (nn.Conv3d(4, 4, 3, padding=1),), (1, 4, 24, 24, 17), (8, 8, 8)),
        (
            lambda x: (lambda s: s * s.mean((0, 2, 3), keepdim=True))(
                x.transpose(1, 2).flatten(0, 1)
            ),
            (),
            SHAPE,
            (8, 8, 8),
        ),
        (
            lambda x: (lambda y: torch.cat((y, y * 2), 2))(
                x.unflatten(2, (2, 3))[:, :, :, :, 0].unflatten(4, (5, 2)).sum(3)
            ),
            (),
            (1, 2, 6, 4, 10),
            (4, 3, 5),
        ),
    ],
)
def test_stored_tensors_in_another_order_of_axes(function, layers, shape, tile):
    check(function, [layer.double() for layer in layers], inputs_for(shape), tile)


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.BatchNorm2d(19), lambda x, layer: layer(x[:, 0])),
        (nn.PReLU(19), lambda x, layer: layer(x[:, 0])),
        (nn.PReLU(), lambda x, layer: layer(x[:, 0])),
        (nn.InstanceNorm2d(19, track_running_stats=True), lambda x, layer: layer(x[:, 0])),
        (nn.BatchNorm1d(19 * 22), lambda x, layer: layer(x[..., 0].flatten(2).mT)),
    ],
)
def test_depths_as_channels(layer, function):
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 2)
    check(function, [layer.double()])


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8])
def test_whole_numbers_are_pooled(kind):
    (x,) = inputs_for(SHAPE)
    check(lambda n: F.max_pool3d(n, 3, 1, 1), inputs=[(5 * x).to(kind)])


def test_means_of_whole_numbers():
    (x,) = inputs_for(SHAPE)
    check(lambda n: F.avg_pool3d(n, 3, 1, 1), inputs=[(5 * x).long()])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_halves_are_averaged_in_single_precision(kind):
    """ATen has no such kernel on a CPU."""
    x = inputs_for(SHAPE)[0].to(kind)
    for pad in (False, True):
        pool = nn.AvgPool3d((3, 2, 1), (2, 1, 3), (1, 1, 0), count_include_pad=pad).eval()
        made = whole_volume(pool, x, tile=(5, 5, 5))
        assert made.dtype == kind
        step = 2 * torch.finfo(kind).eps
        torch.testing.assert_close(made.float(), pool(x.float()), rtol=step, atol=step)


def test_what_is_not_a_number_stays_one_in_pools():
    x = inputs_for(SHAPE)[0]
    x[..., 4, 5, 6], x[..., 1, 1, 1], x[..., 7, 2, 3] = torch.nan, torch.inf, -torch.inf
    for pool in (nn.MaxPool3d(3, 2, 1, 2), nn.AvgPool3d(3, 2, 1)):
        made = whole_volume(pool.eval(), x, tile=(3, 4, 5))
        torch.testing.assert_close(made, pool(x), rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.arange(4.0).double() @ x.flatten(2),
        lambda x: torch.matmul(x.mean((0, 2, 3, 4)), torch.arange(12.0).double().view(4, 3)),
        lambda x: x.mean((0, 2, 3, 4)) @ x.mean((0, 2, 3, 4)),
        lambda x: x.roll(3),
    ],
)
def test_vectors_and_all_values_in_a_row(function):
    check(function)


class Own(nn.Module):
    """Norms of a parameter, and a weight that is applied to what is computed."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.rand(1, 4, 3, 5, 2, dtype=torch.float64))
        self.q = nn.Parameter(torch.rand(6, 4, dtype=torch.float64))
        self.norm, self.other = nn.GroupNorm(2, 4).double(), nn.InstanceNorm3d(4).double()

    def forward(self, x):
        own = self.norm(self.p).mean() + self.other(self.p).max()
        return x + own, F.linear(self.q, x.mean((0, 2, 3)).T[:5])


def test_norms_of_parameters():
    check(lambda x, own: own(x), [Own()])


def test_a_number_among_the_inputs():
    (x,) = inputs_for(SHAPE)
    check(lambda x, t: x * t + t, inputs=[x, torch.tensor(2.5).double()])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x[x > 0].mean(),
        lambda x: x * x.max().item(),
        lambda x: x + torch.nonzero(x > 1).sum(),
    ],
)
def test_sizes_and_numbers_that_depend_on_values_are_refused(function):
    with pytest.raises(UnsupportedOperatorError, match=r"in the forward: .*depends on the values"):
        whole_volume(Apply(function).eval(), inputs_for(SHAPE)[0], tile=(8, 8, 8))


@pytest.mark.parametrize(
    "function", [lambda x: x * float(x.std()), lambda x: x if x.max() > 3 else x * 2]
)
def test_decisions_by_values_are_refused_in_one_line(function, capfd):
    with pytest.raises(UnsupportedOperatorError) as caught:
        whole_volume(Apply(function).eval(), inputs_for(SHAPE)[0], tile=(8, 8, 8))
    line = function.__code__.co_firstlineno
    assert f"test_dtypes_and_layouts.py:{line} it takes a number or a dec" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("function", "layers"),
    [
        (lambda x: x - x.mean((2, 3, 4), True, dtype=torch.float64), ()),
        (lambda x, slope: slope(x[:, 0]), (nn.PReLU().double(),)),
    ],
)
def test_what_needs_no_whole_tensor(function, layers):
    graph, _ = capture(Apply(function, *layers).eval(), inputs_for(SHAPE))
    assert not any(node.op == "whole" for node in graph.nodes.values())


def test_what_a_forward_prints_is_printed(capfd):
    def function(x):
        print("seen", file=sys.stderr)
        return x * 2

    capture(Apply(function).eval(), inputs_for(SHAPE))
    assert capfd.readouterr().err == "seen\n"


def test_what_torch_does_not_compute_in_a_precision_is_one_line():
    for function in (torch.fft.fftn, torch.special.bessel_j0):
        with pytest.raises(UnsupportedOperatorError, match=r"in this precision .* float32"):
            whole_volume(Apply(function).eval(), torch.ones(1, 1, 8, 8, 8), precision="bfloat16")


def test_resampling_of_whole_numbers_rounds_once():
    image = (inputs_for(SHAPE)[0].abs() * 60).to(torch.uint8)[:, :, 0]
    check(lambda n: F.interpolate(n, size=(13, 7), mode="bilinear"), inputs=[image], tile=(8, 8))


def test_means_in_another_precision_stay_on_the_grid():
    class Widened(nn.Module):
        def forward(self, x):
            return F.avg_pool3d(x.float(), 3, 1, 1)

    graph, _ = capture(Widened().eval(), inputs_for(SHAPE))
    assert not any(node.op == "whole" for node in graph.nodes.values())


OF_ONE = (
    "absolute asinh arcsin arctan arccos negative erfc exp2 fix frac isneginf isposinf lgamma "
    "rad2deg deg2rad sgn signbit sinc digamma erfinv special_erf special_expit atanh acosh clip "
    "fake_quantize_per_tensor_affine ldexp polygamma special_bessel_j0 special_bessel_j1"
)
OF_TWO = (
    "multiply subtract divide true_divide greater greater_equal less less_equal not_equal fmax "
    "fmin heaviside logaddexp logaddexp2 logical_xor arctan2 special_xlogy __and__ __or__ __xor__ "
    "bitwise_xor bitwise_left_shift bitwise_right_shift __lshift__ __rshift__ igamma igammac"
)


@pytest.mark.parametrize(("names", "count"), [(OF_ONE, 1), (OF_TWO, 2)])
def test_every_name_of_what_is_pointwise(names, count):
    def function(x):
        x = x.tanh() * 0.9
        given = (x, x.flip(2).abs())[:count]
        masks = [y > 0.5 for y in given]
        others = {"acosh": (x + 2,), "clip": (x, -0.5, 0.5), "bitwise_xor": masks}
        others |= {f"__{name}__": masks for name in ("and", "or", "xor")}
        counts = [(y.abs() * 5).int() for y in given]
        shifts = ("__lshift__", "__rshift__", "bitwise_left_shift", "bitwise_right_shift")
        others |= dict.fromkeys(shifts, counts)
        others |= {name: [y.abs() + 0.1 for y in given] for name in ("igamma", "igammac")}
        others |= {"polygamma": (1, x + 2), "ldexp": (x, torch.tensor(2))}
        others |= {"fake_quantize_per_tensor_affine": (x, 0.1, 0, -8, 7)}
        return [getattr(torch.ops.aten, name)(*others.get(name, given)) for name in names.split()]

    check(function)
    graph, _ = capture(Apply(function).eval(), inputs_for(SHAPE))
    assert not any(node.op == "whole" for node in graph.nodes.values())


@pytest.mark.parametrize(("kernel", "padding"), [(3, 30), (1, 2)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_padding_beyond_the_reach_of_a_kernel(kernel, padding, rank):
    layer = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank](4, 2, kernel, padding=padding)
    inputs = inputs_for((1, 4, 24, 17, 11)[: 2 + rank])
    check(lambda x, layer: layer(x), [layer.double()], inputs, tile=(6, 5, 4)[:rank])


OF_WEIGHTS = {
    "view": lambda p: p.view(4, 19, 1, 22 * 17).view(p.shape),
    "permute": lambda p: p.mT.mT,
    "flip": lambda p: p.flip(2),
    "pad": lambda p: F.pad(p[:, :, 1:], (0, 0, 0, 0, 1, 0)),
    "repeat": lambda p: p[:, :, :1].repeat(1, 1, 19, 1, 1),
    "relu": lambda p: p.relu(),
    "softmax": lambda p: p.softmax(1),
    "cat": lambda p: torch.cat([p[:, :2], p[:, 2:]], 1),
    "norm": lambda p: F.layer_norm(p, p.shape[-1:]),
    "position": lambda p: (
        torch.linspace(-1, 1, 19).double().view(1, 1, 19, 1, 1).repeat(1, 4, 1, 22, 17)
    ),
}


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_what_depends_on_weights_alone_and_is_large(name, monkeypatch):
    monkeypatch.setattr("outcrop.graph.build.FOLDED", 10)
    weight = nn.Parameter(inputs_for(SHAPE, seed=1)[0])

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self, x):
            return x + OF_WEIGHTS[name](self.weight)

    (x,) = inputs_for(SHAPE)
    found = whole_volume(Shifted().eval(), x, tile=(8, 8, 8))
    torch.testing.assert_close(found, (x + OF_WEIGHTS[name](weight)).detach(), rtol=0, atol=1e-9)


def test_empty_tensors_are_concatenated():
    check(lambda x: torch.cat([torch.tensor([]).to(x), x, x * 2], 1))
    check(lambda x: torch.cat([torch.tensor([]).to(x), x], 1) + 1)


@pytest.mark.parametrize("function", [lambda x: torch.complex(x, x).abs(), torch.linalg.inv])
def test_what_torch_words_otherwise_is_one_line_too(function):
    with pytest.raises(UnsupportedOperatorError, match=r"in this precision .* float32"):
        whole_volume(
            Apply(function).eval(), torch.eye(8).expand(1, 1, 8, 8, 8), precision="bfloat16"
        )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_every_half_is_rectified_as_torch_does(kind):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(kind).view(1, 1, 32, 32, 64)
    with torch.no_grad():
        found = whole_volume(nn.ReLU().eval(), x, tile=(32, 8, 64))
    torch.testing.assert_close(found, x.relu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_norms_of_halves_that_lie_in_a_larger_tensor(layout):
    torch.manual_seed(0)
    module = Apply(lambda z, norm, conv: conv(norm(z)), nn.InstanceNorm3d(4), nn.Conv3d(4, 4, 3))
    module = module.eval().bfloat16()
    x = inputs_for(SHAPE)[0].bfloat16().contiguous(memory_format=layout)
    given = x.clone()
    with torch.no_grad():
        expected = module.double()(x.double())
        found = whole_volume(module.bfloat16(), x, tile=(8, 8, 8))
    assert torch.equal(x, given)
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)
