"""What FaultSSL and GEM take from HRNet: branches of several resolutions that exchange.

Wang, J. et al. (2021). Deep high-resolution representation learning for visual recognition. IEEE
Transactions on Pattern Analysis and Machine Intelligence, 43(10), 3349-3364.
https://doi.org/10.1109/TPAMI.2020.2983686
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

Layer = Callable[[int], nn.Module]


class HRModule(nn.Module):
    """Branches of halving resolution, each then summed with all others brought to its own.

    Parameters
    ----------
    branches : sequence of torch.nn.Module
        What is done at each resolution, finest first.
    channels : sequence of int
        Channels of each branch.
    norm : callable
        From a number of channels to a norm.
    activation : callable
        Makes an activation.
    """

    def __init__(
        self,
        branches: Sequence[nn.Module],
        channels: Sequence[int],
        norm: Layer,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        levels = range(len(channels))
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_bring(channels, source, to, norm, activation) for source in levels)
            for to in levels
        )
        self.activation = activation()

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Map one tensor per resolution to as many of the same shapes."""
        y = [branch(each) for branch, each in zip(self.branches, x, strict=True)]
        fused = []
        for layers in self.fuse_layers:
            total = layers[0](y[0])  # type: ignore[index]
            for layer, each in zip(layers[1:], y[1:], strict=True):  # type: ignore[index]
                total = total + layer(each)
            fused.append(self.activation(total))
        return fused


def _bring(
    channels: Sequence[int],
    source: int,
    to: int,
    norm: Layer,
    activation: Callable[[], nn.Module],
) -> nn.Sequential:
    """Make the layers that bring branch `source` to the resolution and channels of branch `to`."""
    if source == to:
        return nn.Sequential()
    if source > to:
        return nn.Sequential(
            nn.Conv3d(channels[source], channels[to], 1, bias=False),
            norm(channels[to]),
            nn.Upsample(scale_factor=2 ** (source - to)),
        )
    layers = []
    for level in range(source, to):
        last = level == to - 1
        width = channels[to] if last else channels[source]
        step = [nn.Conv3d(channels[source], width, 3, 2, 1, bias=False), norm(width)]
        layers.append(nn.Sequential(*step) if last else nn.Sequential(*step, activation()))
    return nn.Sequential(*layers)
