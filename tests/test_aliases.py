"""What a forward does in place, or by the order in memory, is seen by all that share it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from outcrop import whole_volume
from outcrop.errors import ArgumentError, UnsupportedOperatorError
from outcrop.graph import capture
from test_rules import Apply


def given(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape or (1, 4, 9, 11), dtype=torch.float64, generator=generator)


def check(function, *layers, x=None, tile=(4, 5)):
    torch.manual_seed(0)
    module, x = Apply(function, *layers).double().eval(), given() if x is None else x
    expected = module(x.clone(memory_format=torch.preserve_format)).detach()
    for mode in ("none", "cpu", "disk"):
        found = whole_volume(module, x, tile=tile, storage_mode=mode)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def dropped(x, dropout, layer):
    y = layer(x)
    return y + layer(F.relu(dropout(y), inplace=True))


def dropped_twice(x, dropout, layer):
    y = dropout(dropout(layer(x)))
    y.relu_()
    return dropout(y)


def dropped_by_name(x, dropout, layer):
    y = layer(x)
    return y + layer(torch.ops.aten.dropout(y, p=dropout.p, train=False).relu_())


@pytest.mark.parametrize("function", [dropped, dropped_twice, dropped_by_name])
@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
def test_idle_dropout_is_its_argument(function, kind):
    check(function, kind(), nn.Conv2d(4, 4, 3, padding=1))


def contiguous_in_place(x):
    y = (x * 1).contiguous()
    y.relu_()
    return x + y


def own_in_place(x):
    y = x.contiguous()
    y.relu_()
    return x + y


def strided(x):
    return x * float(x.stride(2))


def decided(x):
    return x * 2 if x.is_contiguous() else x * 3


def copied(x):
    y = x.transpose(2, 3).reshape(1, 4, -1)
    y.relu_()
    return x + 1


def clamped(x):
    return x.clamp_(-0.3, 0.3) * 2


def sliced(x):
    x[:, 0] -= 0.5
    return x * 2


OF_LAYOUT = [contiguous_in_place, own_in_place, strided, decided, copied, clamped, sliced]


@pytest.mark.parametrize("function", OF_LAYOUT)
@pytest.mark.parametrize("order", ["contiguous", "channels last", "turned"])
def test_the_order_in_memory_is_that_of_the_input(function, order):
    x = given()
    if order == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    if order == "turned":
        x = given(1, 4, 11, 9).transpose(2, 3)
    before = x.clone()
    check(function, x=x)
    assert torch.equal(x, before)


def test_products_are_changed_in_place():
    def scores(x):
        y = x + 1
        found = torch.einsum("bchw,bcgw->bhgw", y, y)
        found += 1
        y.mul_(2)
        return found.softmax(-1) + y.sum(1, keepdim=True)

    check(scores)


def test_what_is_asked_by_strides():
    chunks = given(1, 4, 32)

    def overlapping(x, layer):
        h = layer(x.transpose(1, 2)).view(1, 4, 8, 6)
        size, stride = list(h.shape), list(h.stride())
        size[1], stride[1] = 7, stride[1] // 2
        return h.as_strided(size, stride).sum((1, 2))

    check(overlapping, nn.Linear(4, 6), x=chunks, tile=(3,))
    check(
        lambda x: torch.as_strided(x.transpose(2, 3).contiguous(), (1, 4, 11, 9), (396, 99, 9, 1))
    )
    check(lambda x: (x * 2).view(torch.int32).double().mean((2, 3), True) + x)
    check(lambda x: x.permute(2, 3, 1, 0).diff(dim=2).reshape(1, 3, 9, 11))  # torch copies it
    turned = Apply(lambda x: torch.as_strided(x.mT, (1, 4, 9, 11), (396, 99, 11, 1))).eval()
    with pytest.raises(UnsupportedOperatorError, match=r"as_strided .*not contiguous"):
        whole_volume(turned, given())


@pytest.mark.parametrize(
    "change",
    [
        lambda y: torch.meshgrid(y.flatten(), indexing="ij")[0].add_(5),
        lambda y: (torch.einsum("bchw->bhwc", y).sin(), y.relu_()),
        lambda y: (torch.einsum("bchw->bhwc", y).sin(), y[:, 0].mul_(2)),
        lambda y: y.unfold(2, 2, 2).add_(1),
        lambda y: torch.unsafe_chunk(y, 2, 1)[0].add_(1),
    ],
)
def test_views_or_not_are_refused(change):
    def function(x):
        y = x + 1
        change(y)
        return y * 1

    with pytest.raises(UnsupportedOperatorError, match=r"(?s)operator .*_: .*took or returned"):
        whole_volume(Apply(function).eval(), given())


def masked(x, layer):
    """As masked convolutions do it."""
    layer.weight.data *= torch.ones(3, 3).triu(1)
    layer.bias.data = layer.bias.data.abs() * 2
    y = layer(x)
    y.data[:, :, 2:4] = 0
    return y / y.data.abs().max()


def test_data():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1).double()
    before = layer.bias.detach().clone()
    found = whole_volume(Apply(masked, layer).eval(), given(), tile=(4, 5))
    torch.testing.assert_close(layer.bias, before, rtol=0, atol=0)
    with torch.no_grad():
        expected = masked(given(), layer)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_data_of_a_tensor_that_is_set_is_refused():
    def function(x):
        y = x + 1
        y.data = x.exp()
        return y * 1

    with pytest.raises(UnsupportedOperatorError, match=r"sets \.data of a tensor"):
        whole_volume(Apply(function).eval(), given())


def test_a_function_is_no_module():
    with pytest.raises(ArgumentError, match="is a function; pass a"):
        whole_volume(lambda x: x, given())


def test_an_example_of_one_element_stands_for_a_contiguous_tensor():
    graph, _ = capture(Apply(own_in_place).eval(), [torch.zeros(()).expand(1, 2, 8, 9)])
    assert graph.shape(graph.outputs[0]) == (1, 2, 8, 9)


@pytest.mark.parametrize("kind", ["flipped", "big-endian", "meta", "sparse", "odd"])
def test_arrays_in_another_order(kind):
    x, module = given(), nn.Conv2d(4, 2, 3, padding=1).double().eval()
    expected = module(x).detach()
    if kind in ("flipped", "big-endian"):
        turned = np.flip(np.flip(x.numpy(), 2).copy(), 2)
        array = turned if kind == "flipped" else x.numpy().astype(">f8")
        torch.testing.assert_close(whole_volume(module, array), expected, rtol=0, atol=1e-9)
        return
    if kind == "meta":
        module, match = module.to("meta"), "weights first"
    elif kind == "sparse":
        x, match = x.to_sparse(), "to_dense"
    else:
        x, match = x.numpy().astype("U4"), "<U4; pass float32"
    with pytest.raises(ArgumentError, match=match):
        whole_volume(module, x)
