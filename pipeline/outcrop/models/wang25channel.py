"""Paleochannels of several kinds, by the U-Net of the cigChannel benchmark.

Wang, G., Wu, X. & Zhang, W. (2025). cigChannel: a large-scale 3D seismic dataset with labeled
paleochannels for advancing deep learning in seismic interpretation. Earth System Science Data,
17(7), 3447-3471. https://doi.org/10.5194/essd-17-3447-2025
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvBlock(nn.Module):
    """Two 3×3×3 convolutions, each followed by a batch norm and a leaky rectifier."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, D, H, W) to (batch, outputs, D, H, W)."""
        y = F.leaky_relu(self.bn1(self.conv1(x)), 0.2)
        return F.leaky_relu(self.bn2(self.conv2(y)), 0.2)


class Up(nn.Module):
    """A transposed convolution to twice the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tconv = nn.ConvTranspose3d(channels, channels, 3, 2, 1, output_padding=1)
        self.bn = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, D, H, W) to (batch, channels, 2 D, 2 H, 2 W)."""
        return F.leaky_relu(self.bn(self.tconv(x)), 0.2)


class Wang25Channel(nn.Module):
    """Four resolution levels, joined by skip connections.

    Parameters
    ----------
    base : int
        Channels at full resolution; each coarser level has twice as many.
    """

    def __init__(self, base: int = 32) -> None:
        super().__init__()
        self.dconv1 = ConvBlock(1, base)
        self.dconv2 = ConvBlock(base, 2 * base)
        self.dconv3 = ConvBlock(2 * base, 4 * base)
        self.bridge = ConvBlock(4 * base, 8 * base)
        self.up3, self.uconv3 = Up(8 * base), ConvBlock(12 * base, 4 * base)
        self.up2, self.uconv2 = Up(4 * base), ConvBlock(6 * base, 2 * base)
        self.up1, self.uconv1 = Up(2 * base), ConvBlock(3 * base, base)
        self.last_layer = nn.Sequential(
            nn.Conv3d(base, 3, 3, padding=1), nn.BatchNorm3d(3), nn.Softmax(dim=1)
        )
        self.down = nn.MaxPool3d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of the classes of a normalised amplitude volume.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 1, time, crossline, inline), every extent a multiple of 8.

        Returns
        -------
        torch.Tensor
            (batch, 3, time, crossline, inline), 0 to 1, of sum 1.
        """
        level1 = self.dconv1(x)
        level2 = self.dconv2(self.down(level1))
        level3 = self.dconv3(self.down(level2))
        y = self.bridge(self.down(level3))
        y = self.uconv3(torch.cat((self.up3(y), level3), dim=1))
        y = self.uconv2(torch.cat((self.up2(y), level2), dim=1))
        y = self.uconv1(torch.cat((self.up1(y), level1), dim=1))
        return cast(Tensor, self.last_layer(y))
