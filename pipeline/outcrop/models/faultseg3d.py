"""FaultSeg3D: a small 3-D U-Net for fault probability.

Wu, X., Liang, L., Shi, Y. & Fomel, S. (2019). FaultSeg3D: Using synthetic data sets to train
an end-to-end convolutional neural network for 3D seismic fault segmentation. Geophysics, 84(3),
IM35-IM45. https://doi.org/10.1190/geo2018-0646.1
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Two 3×3×3 convolutions, each followed by a rectifier."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, D, H, W) to (batch, outputs, D, H, W)."""
        return self.relu(self.conv2(self.relu(self.conv1(x))))


class FaultSeg3d(nn.Module):
    """Four resolution levels, joined by skip connections.

    Parameters
    ----------
    version : {"2020", "2018"}
        "2018" has 512 channels at the coarsest level, "2020" has 128.
    """

    def __init__(self, version: Literal["2020", "2018"] = "2020") -> None:
        super().__init__()
        if version not in ("2020", "2018"):
            raise ValueError(f"version {version!r}: choose '2020' or '2018'")
        bottom = 128 if version == "2020" else 512
        self.conv1 = ConvBlock(1, 16)
        self.conv2 = ConvBlock(16, 32)
        self.conv3 = ConvBlock(32, 64)
        self.conv4 = ConvBlock(64, bottom)
        self.conv5 = ConvBlock(bottom + 64, 64)
        self.conv6 = ConvBlock(64 + 32, 32)
        self.conv7 = ConvBlock(32 + 16, 16)
        self.conv8 = nn.Conv3d(16, 1, 1)
        self.down = nn.MaxPool3d(2)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        """Fault probability of a normalised amplitude volume.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 1, time, crossline, inline), every extent a multiple of 8.

        Returns
        -------
        torch.Tensor
            Same shape, 0 to 1.
        """
        level1 = self.conv1(x)
        level2 = self.conv2(self.down(level1))
        level3 = self.conv3(self.down(level2))
        y = self.conv4(self.down(level3))
        y = self.conv5(torch.cat((self.up(y), level3), dim=1))
        y = self.conv6(torch.cat((self.up(y), level2), dim=1))
        y = self.conv7(torch.cat((self.up(y), level1), dim=1))
        return torch.sigmoid(self.conv8(y))
