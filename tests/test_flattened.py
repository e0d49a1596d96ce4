"""Channels and points in one dimension: what is not asked for their order goes by tiles."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from outcrop import whole_volume
from outcrop.graph import capture
from rule_checks import Apply


def standardised(y):
    flat = y.flatten(1)
    return (y - flat.mean(1)[:, None, None, None]) / flat.std(-1).view(-1, 1, 1, 1)


def between_extremes(y):
    rows = y.view(y.shape[0], -1)
    low, high = rows.min(1, keepdim=True)[0], rows.max(1, keepdim=True).values
    return ((rows - low) / (high - low)).view_as(y)


BY_TILES = {
    "standardised": standardised,
    "between extremes": between_extremes,
    "norm": lambda y: y / y.flatten().norm(),
    "norms": lambda y: y / torch.linalg.vector_norm(y.flatten(1), ord=1, dim=1).view(-1, 1, 1, 1),
    "dot": lambda y: y * torch.dot(y.flatten(), y.relu().flatten()),
    "vdot": lambda y: y * torch.vdot(y.view(-1), y.sigmoid().reshape(-1)),
    "cosine": lambda y: F.cosine_similarity(y.flatten(1), y.relu().flatten(1)),
    "counted": lambda y: (y.flatten(1) > 0).float().sum(1),
    "all": lambda y: y.flatten(1).abs().amax(),
    "spread": lambda y: torch.var_mean(y.flatten(1), 1),
    "points first": lambda y: y.permute(0, 2, 3, 1).flatten(1).sum(1) + y.flatten(1).sum(1),
    "split otherwise": lambda y: y.flatten().view(y.shape[0], 2, 2, *y.shape[2:]).amax(2),
    "in place": lambda y: y.flatten(1).mul(2).add_(1).view_as(y),
    "einsum": lambda y: y * torch.einsum("nchw,nchw->n", y, y.relu()).view(-1, 1, 1, 1),
    "einsum, turned": lambda y: torch.einsum("nchw,whcn->cn", y, y.exp().permute(3, 2, 1, 0)),
}
IN_ONE_PIECE = {
    "variables apart": lambda y: (y.view(y.shape[0], 2, -1) ** 2).mean(-1),
    "position of the largest": lambda y: y.flatten(1).max(1)[1],
    "positions": lambda y: y.flatten(1).argmax(1),
    "cumulative": lambda y: y.flatten(1).cumsum(1).view_as(y),
    "linear": lambda y: F.linear(y.flatten(1), torch.linspace(-1, 1, y[0].numel()).to(y)[None]),
    "against another order": lambda y: (
        (y.flatten(1) * y.permute(0, 2, 3, 1).flatten(1)).sum(1),
        y.flatten(1) - y.transpose(2, 3).flatten(1),
    ),
    "against a table": lambda y: (y.flatten(1) * torch.arange(y[0].numel(), dtype=y.dtype)).sum(1),
    "softmax": lambda y: y.flatten(1).softmax(1).view_as(y) ** 2,
    "rows": lambda y: y.flatten(0, 1).flatten(0, 1).mean(0),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", [*BY_TILES, *IN_ONE_PIECE])
def test_flattened_channels_and_points(name, batch):
    function = {**BY_TILES, **IN_ONE_PIECE}[name]
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 4, 3, padding=1)
    module = Apply(lambda x, layer: function(layer(x)), layer).double().eval()
    x = torch.randn(batch, 1, 11, 13, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x)
    for mode in ("auto", "disk", "none"):
        found = whole_volume(module, x, tile=(4, 5), storage_mode=mode)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    if name in BY_TILES:
        graph, _ = capture(module, (x,))
        assert not any(node.op == "whole" for node in graph.nodes.values())
