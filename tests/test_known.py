"""Numbers and decisions that a forward takes from the network's own tensors."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from outcrop import whole_volume
from outcrop.errors import UnsupportedOperatorError

SHAPE = (1, 2, 9, 8, 7)


class Network(nn.Module):
    """A forward of its own with tensors that it may take numbers from."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.of = forward
        self.conv = nn.Conv3d(2, 2, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("active", torch.tensor([True, False, True]))
        self.register_buffer("first", torch.tensor(1))
        self.table = torch.linspace(0, 1, 5)  # no buffer

    def forward(self, x):
        return self.of(self, x)


def branches(net, x):
    for i in range(3):
        if net.active[i]:
            x = net.conv(x)
    return x if net.scale > 2 or torch.equal(net.active, ~net.active) else -x


def numbers(net, x):
    return x * float(net.scale) + net.table.tolist()[1] * net.scale.item()


def extents(net, x):
    """Cropped as some U-Nets do it."""
    down = F.interpolate(F.max_pool3d(x, 2), scale_factor=2)
    pads = (torch.tensor(down.shape) - torch.tensor(x.shape))[2:]
    pads = torch.stack((pads * 0, pads)).t().flip(0).flatten()
    return F.pad(x, pads.tolist()) + down


def positions(net, x):
    return (
        x[:, net.first, None] + x[..., : net.first + 1].mean() + x[:, :, net.first + 2][:, :, None]
    )


def dilations(net, x):
    for d in torch.arange(1, 3):
        x = F.conv3d(x, net.conv.weight, padding=int(d), dilation=d.item())
    return x


def chosen(net, x):
    found = net.active.nonzero()[:, 0]
    return x * len(found) + net.table[found].sum()


def set_in_place(net, x):
    steps = torch.zeros(3)
    steps[1] = 2
    steps.mul_(net.scale)
    return x * float(steps.sum()) + steps.mean()


@pytest.mark.parametrize(
    "forward", [branches, numbers, extents, positions, dilations, chosen, set_in_place]
)
def test_known(forward):
    net, x = Network(forward).eval(), torch.randn(SHAPE)
    net, x = net.double(), x.double()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        expected = net(x)
    found = whole_volume(net, x, tile=(4, 3, 5))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert "forward" not in vars(net)


def of_the_input(net, x):
    return x if x.mean() > net.scale else -x


def set_by_the_input(net, x):
    kept = torch.zeros(2)
    kept[1] = x.mean()
    return x * float(kept.sum())


def set_after_it_was_used(net, x):
    kept = torch.ones(1)
    y = x * kept
    kept.mul_(5)
    return y * float(kept)


def own_one_set(net, x):
    net.first += 1
    return x * int(net.first)


def own_constant_set(net, x):
    net.table.add_(1)
    return x * float(net.table[0])


def own_one_set_by_an_argument(net, x):
    F.relu(net.scale.sub_(1), inplace=True)
    return x * float(net.scale)


def random(net, x):
    return x if torch.rand_like(net.scale) < 0.5 else -x


def random_anew(net, x):
    return x if torch.rand(1) < 0.5 else -x


@pytest.mark.parametrize(
    "forward",
    [
        of_the_input,
        set_by_the_input,
        set_after_it_was_used,
        own_one_set,
        own_constant_set,
        own_one_set_by_an_argument,
        random,
        random_anew,
    ],
)
def test_refused(forward, capfd):
    net = Network(forward).eval()
    with pytest.raises(UnsupportedOperatorError, match=r"test_known.py:\d+ it takes a number"):
        whole_volume(net, torch.randn(SHAPE))
    assert net.first == 1
    assert not _get_current_function_mode_stack()  # none of torch's is left behind
    assert gc.isenabled()
    assert not torch.fx.config.do_not_emit_stack_traces
    assert capfd.readouterr().err == ""
