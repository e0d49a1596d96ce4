"""What networks do beside convolving: other dtypes, shared memory, odd arguments."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from outcrop import whole_volume
from outcrop.errors import ArgumentError, UnsupportedOperatorError
from outcrop.graph import capture
from test_rules import Apply, inputs_for

SHAPE = (1, 4, 8, 6, 6)
PRECISIONS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def check(function, *layers, inputs=None, dtype=torch.float64, tile=(3, 4, 4), mode="device"):
    """Evaluate by tiles; compare values, dtypes and shapes with the module, inputs unchanged."""
    torch.manual_seed(0)
    module = Apply(function, *layers).to(dtype).eval()
    given = inputs_for(SHAPE) if inputs is None else inputs
    given = [x.to(dtype) if x.is_floating_point() else x for x in given]
    before = [x.clone() for x in given]
    with torch.no_grad():
        expected = pytree.tree_leaves(module(*before))
    before = [x.clone() for x in given]
    found = pytree.tree_leaves(whole_volume(module, given, tile=tile, storage_mode=mode))
    for x, same in zip(given, before, strict=True):
        torch.testing.assert_close(x, same, rtol=0, atol=0, equal_nan=True)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        rough = PRECISIONS[dtype]
        torch.testing.assert_close(mine, theirs, rtol=rough, atol=rough, equal_nan=True)


def conv(a, b, kernel=3):
    return nn.Conv3d(a, b, kernel, padding=kernel // 2)


def diagonal(x):
    return torch.diagonal(x, dim1=3, dim2=4).relu()


def beside_a_view(x, layer):
    y = layer(x)
    return y * 1.5, diagonal(y)


def view_of_a_global_value(x):
    a = x.mean((2, 3, 4)) * 2
    b = a.unfold(1, 2, 1)
    return a.neg(), b


@pytest.mark.parametrize("mode", ["device", "disk", "none"])
@pytest.mark.parametrize(
    ("function", "layers"),
    [
        (diagonal, ()),
        (lambda x: x.unfold(2, 2, 2).relu(), ()),
        (lambda x: torch.einsum("bcdhw->bdhwc", x).relu(), ()),
        (lambda x: torch.broadcast_tensors(x[:, :1], x)[0].relu(), ()),
        (lambda x: F.pad(x, (0, 0, 0, 0, 0, 0)).relu() + x, ()),
        (beside_a_view, (conv(4, 4),)),
        (view_of_a_global_value, ()),
    ],
)
def test_what_others_may_see_is_not_overwritten(function, layers, mode):
    check(function, *layers, mode=mode)


def test_a_change_in_place_of_what_may_be_a_view_is_refused():
    def change(x):
        a = x * 2
        torch.einsum("bcdhw->bcdwh", a).relu_()
        return a

    with pytest.raises(UnsupportedOperatorError, match=r"relu_.*einsum"):
        capture(Apply(change).eval(), inputs_for(SHAPE))


def test_switches_in_the_forward():
    def without_gradients(x, layer):
        with torch.no_grad():
            y = layer(x)
        return x + y.sigmoid()

    def autocast_off(x, layer):
        with torch.autocast("cpu", enabled=False):
            x = x * 2
            x += 1
            with torch.enable_grad():
                y = layer(x)
                with torch.autocast("cuda", enabled=False):
                    y.relu_()
            mean, seen = y.mean((2, 3, 4), keepdim=True), x.view(x.shape)
        x.mul_(2)  # made in the block, changed after it
        return y * mean, seen + 0, x

    def autocast(x, layer):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x).float()

    check(without_gradients, conv(4, 4))
    check(autocast_off, conv(4, 4))
    with pytest.raises(UnsupportedOperatorError, match=r"autocast .* pass precision"):
        capture(Apply(autocast, conv(4, 4)).eval(), [torch.zeros(SHAPE)])


def test_exponentials_of_matrices_in_a_part_of_a_larger_tensor():
    def function(x):
        y = x.sin()  # whose halo the average needs
        matrices = y.unflatten(1, (2, 2)).movedim((1, 2), (-2, -1))
        return torch.linalg.matrix_exp(matrices).sum((-2, -1))[:, None] + F.avg_pool2d(y, 3, 1, 1)

    x = torch.randn(1, 4, 9, 10, dtype=torch.float64)
    found = whole_volume(Apply(function).eval(), x, tile=(4, 5), storage_mode="none")
    assert (found - function(x)).abs().max() <= 1e-12


def test_what_was_scripted_is_named():
    scripted = torch.jit.trace(conv(4, 4).eval(), torch.zeros(SHAPE))
    with pytest.raises(UnsupportedOperatorError, match=r"^1: scripted .* the nn\.Module that"):
        capture(nn.Sequential(conv(4, 4), scripted).eval(), [torch.zeros(SHAPE)])


def test_an_error_while_capturing_is_told_once():
    told = []
    handler = logging.Handler()
    handler.emit = told.append
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # which tells of it with a trace
    logger.addHandler(handler)
    try:
        network = nn.Sequential(nn.AvgPool2d(4), nn.MaxPool2d(3)).eval()
        with pytest.raises(UnsupportedOperatorError, match="Output size is too small"):
            whole_volume(network, torch.zeros(1, 1, 8, 8))
    finally:
        logger.removeHandler(handler)
    assert not told


def test_even_kernels_padded_to_the_same_extent():
    x = inputs_for((1, 1, 16, 16, 16))
    layers = [nn.Conv3d(1, 2, 2, padding="same"), nn.Conv3d(2, 1, 2, padding="same")]
    check(lambda x, a, b: b(a(x)), *layers, inputs=x, tile=(4, 4, 4))


@pytest.mark.parametrize("factor", [3, 9, 11, 13])
def test_any_whole_factor_between_resolutions(factor):
    x = inputs_for((1, 1, 10, 8))
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.ConvTranspose2d(2, 1, factor, factor)]

    def up(x, a, b):
        return a(F.interpolate(x, scale_factor=float(factor))).sum(1, True) + b(a(x))

    check(up, *layers, inputs=x, tile=(2 * factor, 2 * factor))


@pytest.mark.parametrize("mode", ["device", "disk"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: n.float() / 255,
        lambda x, n: x * 2.5 + n,
        lambda x, n: torch.where(n > 100, x, -x),
        lambda x, n: x.masked_fill(n > 100, 0.5),
        lambda x, n: (n > 100) * 0.5 * x,
        lambda x, n: (n.long() * 3, (n > 7).sum(), n.max()),
    ],
)
def test_integers_among_the_inputs(function, mode):
    n = torch.randint(0, 255, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for given in ([*inputs_for(SHAPE), n], [*inputs_for(SHAPE), n.long()]):
        check(function, inputs=given, dtype=torch.float32, mode=mode)
    check(lambda n: n.float() * 2 + 1, inputs=[n], dtype=torch.float32, mode=mode)


@pytest.mark.parametrize("dtype", list(PRECISIONS))
@pytest.mark.parametrize(
    ("function", "layers"),
    [
        (lambda x, c: c(x.half().to(x.dtype)), (conv(4, 2),)),
        (lambda x, c: c(x.double().mean(1, True).to(x.dtype)), (conv(1, 2),)),
        (lambda x, c: c(x.float().mul(2).to(x.dtype)), (conv(4, 2),)),
        (lambda x, c: c(x).double().softmax(1), (conv(4, 3),)),
        (lambda x: (x.softmax(1, dtype=torch.float64), x.softmax(2, dtype=torch.float64)), ()),
        (lambda x: ((x > 0).sum(), x.argmax(1).max(), (x > 0).double().mean()), ()),
        (lambda x: x.argmax(1, True) / 2, ()),
        (lambda x: (x > 0) * 0.5, ()),
        (lambda x: x.double(), ()),
    ],
)
def test_other_dtypes_on_the_way(function, layers, dtype):
    check(function, *layers, dtype=dtype)


@pytest.mark.parametrize(
    ("function", "layers"),
    [
        (
            lambda x, a, b: torch.max(a(x), b(x)) + torch.min(a(x), x[:, :1]),
            (conv(4, 2), conv(4, 2)),
        ),
        (lambda x: x.flip(()), ()),
        (lambda x: x.view(torch.int64), ()),
        (lambda x: F.pad(x, (-1, 1, 0, 0, 0, 0), mode="circular"), ()),
        (lambda x: F.layer_norm(x, (6,)), ()),
        (lambda x: F.layer_norm(x, (6, 6)), ()),
        (lambda x: F.rms_norm(x.movedim(1, -1), (4,)), ()),
        (lambda x: F.rms_norm(x, (4, 8, 6, 6)), ()),
        (lambda x: torch.einsum("bcdhh->bcdh", x), ()),
    ],
)
def test_arguments_that_mean_something_else(function, layers):
    check(function, *layers)


def test_results_are_tensors_as_any_other():
    for function in (lambda x: x * 2, lambda x: x.mean()):
        found = whole_volume(Apply(function).eval(), inputs_for(SHAPE)[0])
        found.add_(1)
        (found * torch.ones(1, requires_grad=True)).sum().backward()


def standardized(x, layer):
    """As NFNets do it: the batch norm of a convolution's weights."""
    rows = layer.weight.reshape(1, 2, -1)
    weight = F.batch_norm(rows, None, None, torch.ones(2), training=True).reshape_as(layer.weight)
    return F.conv2d(x, weight, padding=1)


def of_a_table(x, layer, recurrent):
    """A recurrent layer along a table of the network's own."""
    return layer(x) + recurrent(layer.weight.flatten(1)[None])[0].mean((0, 1))[:, None, None]


@pytest.mark.parametrize(
    ("function", "layers"), [(standardized, ()), (of_a_table, (nn.GRU(9, 2),))]
)
def test_what_weights_are_made_of(function, layers):
    module, x = (
        Apply(function, nn.Conv2d(1, 2, 3, padding=1), *layers).eval(),
        torch.randn(1, 1, 9, 8),
    )
    with torch.no_grad():
        torch.testing.assert_close(whole_volume(module, x, tile=(4, 5)), module(x))


class Keeping(nn.Module):
    """Makes a mask when it is first called, and keeps what it made, to be looked at."""

    def __init__(self):
        super().__init__()
        self.conv, self.last, self.all = nn.Conv2d(1, 1, 3, padding=1), None, []

    def forward(self, x):
        if not hasattr(self, "mask"):
            self.register_buffer("mask", torch.ones(x.shape[2:]).tril())
            self.size = x.shape[2:]
        self.last = self.new = self.conv(x) * self.mask
        self.all.append(self.last)
        return self.last.exp()


def test_a_network_is_left_as_it_was():
    network, x = nn.Sequential(Keeping()).eval(), torch.randn(1, 1, 9, 8)
    before = {name: str(value) for name, value in vars(network[0]).items()}
    found = [whole_volume(network, x, tile=(4, 5)) for _ in range(2)]
    assert {name: str(value) for name, value in vars(network[0]).items()} == before
    with torch.no_grad():
        torch.testing.assert_close(found, [network(x)] * 2)


def test_what_does_not_depend_on_the_input_is_returned():
    """As weights of losses are, beside a network's outputs."""

    def function(x, layer):
        return {"y": layer(x), "bias": layer.bias, "two": [layer.weight.exp(), torch.ones(2)]}

    layer = nn.Conv2d(1, 2, 3, padding=1)
    x = torch.randn(1, 1, 9, 8)
    found = whole_volume(Apply(function, layer).eval(), x, tile=(4, 5))
    torch.testing.assert_close(found, function(x, layer))
    with pytest.raises(UnsupportedOperatorError, match="does not depend on its input"):
        whole_volume(Apply(lambda x: torch.ones(2)).eval(), x)


def test_arrays_go_in_as_well():
    x = np.random.default_rng(0).standard_normal((1, 1, 8, 8, 8))
    found = whole_volume(Apply(lambda x: x * 2).eval(), x)
    np.testing.assert_allclose(found.numpy(), 2 * x)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((torch.zeros(1, 1, 4, 4), 3.0), "not float"),
        ([torch.zeros(1, 1, 4, 4), None], "not NoneType"),
        (torch.zeros(2, 3), "no grid axes"),
        ((), "no grid axes"),
    ],
)
def test_what_is_no_volume_is_refused(given, match):
    with pytest.raises(ArgumentError, match=match):
        whole_volume(Apply(lambda *x: x[0] * 2).eval(), given)


def test_networks_that_compute_nothing():
    x = torch.zeros(1, 1, 4, 4)
    assert whole_volume(nn.Identity().eval(), x) is x
    with pytest.raises(ArgumentError, match="without values"):
        whole_volume(Apply(lambda x: x[:, :, 3:3]).eval(), torch.zeros(1, 1, 4, 4))
    inside = Apply(lambda x: torch.cat((x.mean((2, 3), keepdim=True) + x, x[:, :, :0] * 2), 2))
    with pytest.raises(ArgumentError, match="gives a tensor without values"):
        whole_volume(inside.eval(), torch.zeros(1, 1, 4, 4))


def test_plans_are_for_one_shape_and_one_kernel():
    def digest(extent, kernel):
        layer = nn.Conv3d(1, 1, kernel, padding="same").eval()
        return capture(layer, [torch.zeros(1, 1, extent, 8, 8)])[0].digest()

    assert len({digest(16, 3), digest(17, 3), digest(16, 7)}) == 3
    assert digest(16, 3) == digest(16, 3)
