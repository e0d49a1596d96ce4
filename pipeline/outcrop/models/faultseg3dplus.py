"""FaultSeg3D plus: a deeper and wider FaultSeg3D.

Li, Y., Wu, X., Zhu, Z., Ding, J. & Wang, Q. (2024). FaultSeg3D plus: A comprehensive study on
evaluating and improving CNN-based seismic fault segmentation. Geophysics, 89(5), N77-N91.
https://doi.org/10.1190/geo2022-0778.1
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .faultseg3d import ConvBlock


class FaultSeg3dPlus(nn.Module):
    """Five resolution levels, joined by skip connections.

    Parameters
    ----------
    base : int
        Channels at full resolution; each coarser level has twice as many.
    """

    def __init__(self, base: int = 32) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (base * 2**level for level in range(5))
        self.conv1 = ConvBlock(1, c1)
        self.conv2 = ConvBlock(c1, c2)
        self.conv3 = ConvBlock(c2, c3)
        self.conv4 = ConvBlock(c3, c4)
        self.conv5 = ConvBlock(c4, c5)
        self.conv6 = ConvBlock(c5 + c4, c4)
        self.conv7 = ConvBlock(c4 + c3, c3)
        self.conv8 = ConvBlock(c3 + c2, c2)
        self.conv9 = ConvBlock(c2 + c1, c1)
        self.conv10 = nn.Conv3d(c1, 1, 1)
        self.down = nn.MaxPool3d(2)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        """Probability of a normalised amplitude volume.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 1, time, crossline, inline), every extent a multiple of 16.

        Returns
        -------
        torch.Tensor
            Same shape, 0 to 1.
        """
        level1 = self.conv1(x)
        level2 = self.conv2(self.down(level1))
        level3 = self.conv3(self.down(level2))
        level4 = self.conv4(self.down(level3))
        y = self.conv5(self.down(level4))
        y = self.conv6(torch.cat((self.up(y), level4), dim=1))
        y = self.conv7(torch.cat((self.up(y), level3), dim=1))
        y = self.conv8(torch.cat((self.up(y), level2), dim=1))
        y = self.conv9(torch.cat((self.up(y), level1), dim=1))
        return torch.sigmoid(self.conv10(y))
