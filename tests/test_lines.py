"""What mixes values along some axes goes line by line along these, and is exact."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from outcrop import whole_volume
from outcrop.graph import capture
from outcrop.planner import make_plan
from rule_checks import Apply, check_rule, few, inputs_for
from test_parts import on_the_grid

SHAPE = (1, 4, 5, 6, 4)


def tokens(x):
    """Channels last, points along the last axis before them."""
    return x.movedim(1, -1)


def image(t):
    return t.movedim(-1, 1)


def attention(x):
    q, k, v = (tokens(f(x)) for f in (torch.sin, torch.cos, torch.tanh))
    y = F.scaled_dot_product_attention(q, k, v)
    return image(y + F.scaled_dot_product_attention(q, k, v, is_causal=True))


def grouped(x):
    """Heads share keys and values; the points of a line, and their distances from each other."""
    heads = x.sin().permute(0, 2, 3, 1, 4)[..., None]
    keys, values = heads.split(2, dim=-3)
    y = F.scaled_dot_product_attention(heads, keys, values, enable_gqa=True)
    points = x.permute(0, 2, 3, 4, 1)
    far = torch.cdist(points, points.cos()).sum(-1)
    return y[..., 0].permute(0, 3, 1, 2, 4) + far[:, None]


def coded(x, table):
    """The nearest of a few codes, or of as many as are compared by products."""
    points = x.flatten(2).mT
    nearest = torch.cdist(points, table.weight[:5]).min(-1)[0]
    places = torch.cdist(points, table.weight).argmin(-1)
    return (table(places) + nearest[..., None]).mT.view(x.shape)


def decomposed(x):
    """Spectra of windows along traces."""
    window = torch.hann_window(4, dtype=x.dtype)
    how = {"n_fft": 4, "hop_length": 2, "window": window, "return_complex": True}
    lines = x[:, 0].flatten(0, 2)
    z = torch.stft(lines, normalized=True, **how)
    y = z.abs().mean(-1) + torch.stft(lines, center=False, **how).imag.sum(-1)
    back = torch.istft(z * z.abs(), 4, 2, window=window, length=x.shape[-1])
    return y.view(1, *x.shape[2:4], -1).movedim(-1, 1)[..., None] + back.view(1, 1, *x.shape[2:])


def products(x):
    q, k, v = (tokens(f(x)) for f in (torch.sin, torch.cos, torch.tanh))
    return image((q @ k.mT / 2).softmax(-1) @ v + q @ (k.mT @ v))


def named_products(x):
    scores = torch.einsum("bcdhw,bcehw->bhwde", x, x.tanh())
    return torch.einsum("bhwde,bcehw->bcdhw", scores.softmax(-1), x)


def crossed(x, layer):
    """Coordinate attention: means along each axis, joined, and taken apart again."""
    means = [x.mean([d for d in (2, 3, 4) if d != along]) for along in (2, 3, 4)]
    parts = layer(torch.cat(means, 2)).split(x.shape[2:], 2)
    a, b, c = (part.sigmoid() for part in parts)
    return x * a[:, :, :, None, None] * b[:, :, None, :, None] * c[:, :, None, None]


def analytic(x):
    n = x.shape[-1]
    step = torch.zeros(2 * n, dtype=x.dtype)
    step[:n] = 2
    z = torch.fft.ifft(torch.fft.fft(x, n=2 * n) * step)[..., :n]
    return z.abs() + z.angle().cos() * z.imag


def filtered(x):
    y = torch.fft.irfft(torch.fft.rfft(x, dim=3, norm="ortho") * 2, n=x.shape[3], dim=3)
    z = torch.fft.fft2(x, dim=(2, 4))
    y = F.conv3d(y, torch.ones(4, 1, 1, 3, 3, dtype=x.dtype), padding=(0, 1, 1), groups=4)
    y = y + torch.fft.ifft2(z * z.conj(), dim=(2, 4)).real + torch.fft.fftshift(x, dim=2)
    return (
        y + torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:]) + torch.fft.rfft(x)[..., :1].imag
    )


def spectra(x):
    """Of all axes: from real values and back, padded, in another order, with channels as well."""
    axes = (2, 3, 4)
    z = torch.fft.rfftn(x, dim=axes)
    y = torch.fft.irfftn(z / (1 + z.abs()), s=x.shape[2:], dim=axes)
    z = torch.fft.rfftn(x, s=(6, -1, 9), dim=axes) * torch.fft.rfftn(y, s=(6, 6, 9), dim=axes)
    y = y + torch.fft.irfftn(z, s=(6, 6, 9), dim=axes)[:, :, 1:, :, :4]
    z = torch.fft.fftn(x, dim=(4, 2, 3), norm="ortho") + torch.fft.ifftn(y, norm="forward")
    y = y + torch.fft.rfftn(x, dim=(4, 3, 2))[:, :, :1].imag + z.real
    return y + torch.fft.irfftn(x, s=(-1, 5, 4), dim=(3, 2, 4))


def of_points(x, *layers):
    """Convolutions and means of one point over points in a row, or of more beside these."""
    first, second = layers
    y = F.local_response_norm(torch.relu(first(x.flatten(2))).unflatten(2, x.shape[2:]), 3)
    y = F.avg_pool2d(second(y.flatten(2, 3)), (1, 3), 1, (0, 1), count_include_pad=False)
    return F.max_pool2d(y, (1, 2)).unflatten(2, x.shape[2:4])


def traces(x, layer, last, state):
    """A recurrent network along time, that begins with a state of its own, and its last state."""
    lines = x.permute(0, 2, 3, 4, 1).flatten(0, 2)
    begin = state.weight[:, None].expand(-1, len(lines), -1)
    if isinstance(layer, nn.LSTM):
        y, (end, _) = layer(lines, (begin, begin.sin()))
    else:
        y, end = layer(lines, begin)
    y = last(y[..., -5:]) + last(end[-1])[:, None]
    return y.view(1, *x.shape[2:], -1).movedim(-1, 1)


def along_inlines(x, layer, cell):
    """From zeros, over inlines; then step by step over crosslines, from what is made of means."""
    y, _ = layer(x.permute(0, 2, 3, 4, 1).flatten(2, 3)[0])
    y = y.view(*x.shape[2:], 4)
    state, made = y.mean(1).flatten(0, 1), []
    for part in y.unbind(1):
        state = cell(part.flatten(0, 1), state)
        made.append(state.view(x.shape[2], x.shape[4], -1))
    return torch.stack(made, 1).movedim(-1, 0)[None]


def of_its_mean(x, first, second):
    """A recurrent layer, and a step of it, whose weights are made of the volume's mean."""
    mean = x.mean((0, 2, 3, 4))
    weights = first(mean).view(12, 4), second(mean).view(12, 4)
    lines = x.permute(0, 2, 3, 4, 1).flatten(0, 2)
    state = x.new_zeros(1, len(lines), 4)
    y, _ = torch.gru(lines, state, weights, False, 1, 0.0, False, False, True)
    y = y + torch.gru_cell(lines[:, 0], state[0], *weights)[:, None]
    return y.view(1, *x.shape[2:], 4).movedim(-1, 1)


class Spectral(nn.Module):
    """A Fourier neural operator: few waves are mixed, the others are lost."""

    def __init__(self, width=4, waves=2):
        super().__init__()
        self.waves, self.width = waves, width
        self.first, self.last = nn.Conv3d(1, width, 1), nn.Conv3d(width, 1, 1)
        self.beside = nn.Conv3d(width, width, 1)
        weight = torch.randn(4, 2, width, width, waves, waves, waves) / width
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        x, n = self.first(x), self.waves
        waves = torch.fft.rfftn(x, dim=(-3, -2, -1))
        mixed = torch.zeros_like(waves)
        corners = itertools.product((slice(n), slice(-n, None)), repeat=2)
        for (i, j), (real, imag) in zip(corners, self.weight, strict=True):
            part = torch.einsum("bixyz,ioxyz->boxyz", waves[:, :, i, j, :n], real + 1j * imag)
            mixed[:, :, i, j, :n] = part
        y = torch.fft.irfftn(mixed, s=x.shape[-3:])
        return self.last(F.gelu(y + self.beside(x)))


def sections(x, *layers):
    """As a batch, each with statistics of its own."""
    y = x.transpose(1, 2).flatten(0, 1)
    for layer in layers:
        y = layer(y)
    return y.unflatten(0, (1, -1)).transpose(1, 2)


def tensors_of_structure(x):
    m = torch.einsum("bidhw,bjdhw->bdhwij", x, x) + torch.eye(4, dtype=x.dtype)
    values, vectors = torch.linalg.eigh(m)
    made = torch.linalg.inv(m) @ vectors.square()
    trace = torch.diagonal(m, dim1=-2, dim2=-1).sum(-1)
    return image(values + made[..., 0]) + (torch.linalg.det(m) + trace)[:, None]


def parts_of_complex(x):
    z = torch.view_as_complex(torch.stack((x, x.flip(1)), -1)) * 1j
    z.real.mul_(2)
    return torch.view_as_real(z.conj().resolve_conj()).sum(-1) + z.real.relu_() + z.real


def mapped(x):
    return torch.vmap(lambda t: t * t.sum(0, keepdim=True), 2)(x).movedim(0, 2)


@settings(few, max_examples=2)
@given(st.data())
@pytest.mark.parametrize(
    ("function", "layers"),
    [
        (attention, ()),
        (products, ()),
        (named_products, ()),
        (grouped, ()),
        (coded, (nn.Embedding(30, 4),)),
        (decomposed, ()),
        (lambda x, a, b, c: a(x) + c(b(x)), (nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(3, 4))),
        (
            lambda x, a: x @ a.weight + torch.einsum("bcdhw,vw->bcdhv", x, a.weight),
            (nn.Linear(4, 4),),
        ),
        (lambda x, a, b: a(x) + b(x), (nn.LayerNorm(4), nn.RMSNorm((6, 4)))),
        (sections, (nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4))),
        (analytic, ()),
        (filtered, ()),
        (spectra, ()),
        (of_points, (nn.Conv1d(4, 6, 1), nn.Conv2d(6, 4, (1, 3), padding="same", dilation=2))),
        (
            traces,
            (
                nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True),
                nn.Linear(5, 3),
                nn.Embedding(4, 5),
            ),
        ),
        (traces, (nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3), nn.Embedding(1, 5))),
        (along_inlines, (nn.RNN(4, 4), nn.GRUCell(4, 4))),
        (of_its_mean, (nn.Linear(4, 48), nn.Linear(4, 48))),
        (tensors_of_structure, ()),
        (parts_of_complex, ()),
        (mapped, ()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_by_lines(function, layers, data):
    graph = check_rule(Apply(function, *layers), inputs_for(SHAPE), data)
    assert on_the_grid(graph)


def test_long_recurrent_layers_are_captured_in_a_moment():
    """Torch goes through all steps to tell their shapes: 5000 took minutes."""
    layers = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True), nn.Linear(5, 3)
    module = Apply(traces, *layers, nn.Embedding(4, 5)).eval()
    graph, _ = capture(module, [torch.zeros(()).expand(1, 4, 20, 30, 5000)])
    assert graph.shape(graph.outputs[0]) == (1, 3, 20, 30, 5000)


@pytest.mark.parametrize("mode", ["device", "disk", "none"])
@pytest.mark.parametrize(
    ("function", "layers"),
    [(crossed, (nn.Conv1d(4, 4, 1),)), (attention, ()), (products, ()), (filtered, ())],
)
def test_by_tiles(function, layers, mode):
    module = Apply(function, *layers).double().eval()
    (x,) = inputs_for(SHAPE)
    with torch.no_grad():
        expected = module(x)
    found = whole_volume(module, x, tile=(3, 4, 3), storage_mode=mode)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["device", "disk", "none"])
def test_a_fourier_neural_operator_goes_by_slabs_and_columns(mode):
    torch.manual_seed(0)
    network, x = Spectral().double().eval(), torch.randn(1, 1, 12, 10, 9).double()
    with torch.no_grad():
        expected = network(x)
    found = whole_volume(network, x, tile=(4, 3, 5), storage_mode=mode)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    precise = whole_volume(network.float(), x.float(), precision="float64", storage_mode=mode)
    torch.testing.assert_close(precise, expected.float(), rtol=1.2e-7, atol=1e-12)
    graph, _ = capture(network, [torch.zeros(1).expand(1, 1, 128, 128, 128)])
    assert on_the_grid(graph)
    if mode == "disk":
        plan = make_plan(graph, memory=10**8, storage_mode=mode, holds_output=False)
        assert max(stage.overhead for stage in plan.stages) < 1.2


def test_large_tensors_stay_on_the_grid_beside_small_ones():
    graph, _ = capture(Apply(crossed, nn.Conv1d(4, 4, 1)).eval(), [torch.zeros(SHAPE)])
    assert all(node.shape != SHAPE for node in graph.nodes.values() if node.op == "whole")
