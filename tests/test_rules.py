"""Every rule against its operator on the whole grid, on random shapes, arguments and boxes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from outcrop.errors import UnsupportedOperatorError
from outcrop.graph import RULES, Box, capture

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Apply(nn.Module):
    """A function as a module, with parameters it may use."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(modules)

    def forward(self, *inputs):
        return self.function(*inputs, *self.layers)


def inputs_for(shape, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def check_rule(module, inputs, data, op=None):
    """Evaluate the last operator on a random box of its output and compare with the whole."""
    module = module.double().eval()
    with torch.no_grad():
        try:
            whole = module(*inputs)
        except RuntimeError:
            assume(False)  # arguments that the operator itself refuses
    assume(whole.numel() > 0)
    graph, weights = capture(module, inputs)
    (node,) = graph.nodes.values()
    if op is not None:
        assert node.op == op
    grid = graph.grid(node.name)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in grid)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, grid, strict=True))
    box = Box(start, stop)
    values = dict(weights)
    named = dict(zip(graph.inputs, inputs, strict=True))
    rule = RULES[node.op]
    for name, need in rule.needs(node, box, graph).items():
        assert need in graph.whole(name)
        values[name] = named[name][need.index].clone()
    expected = whole[box.index]
    with torch.inference_mode():
        torch.testing.assert_close(
            rule.evaluate(node, box, values, graph), expected, rtol=1e-12, atol=1e-12
        )
        torch.testing.assert_close(
            rule.overwrite(node, box, values, graph), expected, rtol=1e-12, atol=1e-12
        )


def grids(rank, least=1, most=13):
    return st.tuples(*[st.integers(least, most)] * rank)


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


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.InstanceNorm3d(2), "instance_norm"),
        (Apply(lambda x: torch.cat((x, x), 2)), "axis of the grid"),
        (Apply(lambda x: F.softmax(x, 3)), "axis of the grid"),
        (Apply(lambda x: x.flip(2)), "flip"),
    ],
)
def test_without_a_rule_is_named_not_guessed(layer, what):
    network = nn.Sequential(nn.Conv3d(2, 2, 1), nn.Sequential(layer)).eval()
    with pytest.raises(UnsupportedOperatorError, match=what) as caught:
        capture(network, [torch.zeros(1).expand(1, 2, 8, 8, 8)])
    assert "submodule '1" in str(caught.value)


def test_training_mode_is_refused():
    with pytest.raises(UnsupportedOperatorError, match=r"eval\(\)"):
        capture(nn.Sequential(nn.Dropout()), [torch.zeros(1, 1, 4, 4, 4)])


def test_capture_allocates_nothing():
    graph, _ = capture(nn.Conv3d(1, 64, 3).eval(), [torch.zeros(1).expand(1, 1, 4096, 4096, 4096)])
    assert graph.grid(graph.outputs[0]) == (4094, 4094, 4094)
