"""Relative geological time of a whole volume, with attention gates.

Bi, Z., Wu, X., Geng, Z. & Li, H. (2021). Deep relative geologic time: A deep learning method for
simultaneously interpreting 3-D seismic horizons and faults. Journal of Geophysical Research: Solid
Earth, 126(9), e2021JB021882. https://doi.org/10.1029/2021JB021882
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Make a convolution, an instance norm and a rectifier."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(conv, nn.InstanceNorm3d(outputs), nn.ReLU(inplace=True))


class SqueezeExcitation(nn.Module):
    """Each channel scaled by what the means of all channels over the whole volume say.

    Parameters
    ----------
    channels : int
        A sixteenth of them remain in between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool3d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 16, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // 16, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, D, H, W) to the same shape."""
        scale = self.fc(self.avg_pool(x).flatten(1))
        return x * scale[:, :, None, None, None]


class BasicBlock(nn.Module):
    """A residual block of two 3×3×3 convolutions, with squeeze and excitation."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.norm = nn.InstanceNorm3d(outputs)
        self.se = SqueezeExcitation(outputs)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.InstanceNorm3d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, D, H, W) to (batch, outputs, D / stride, ...)."""
        y = F.relu(self.norm(self.conv1(x)))
        y = self.se(self.norm(self.conv2(y)))
        return F.relu(y + self.downsample(x))


class AttentionGate(nn.Module):
    """A skip connection weighted by how well it agrees with what comes from below."""

    def __init__(self, gate: int, skip: int) -> None:
        super().__init__()
        self.W_g = nn.Sequential(nn.Conv3d(gate, skip, 1), nn.InstanceNorm3d(skip))
        self.W_x = nn.Sequential(nn.Conv3d(skip, skip, 1), nn.InstanceNorm3d(skip))
        self.psi = nn.Sequential(nn.Conv3d(skip, 1, 1), nn.InstanceNorm3d(1), nn.Sigmoid())

    def forward(self, gate: Tensor, skip: Tensor) -> Tensor:
        """Return `skip`, weighted; both of the same extents."""
        return skip * self.psi(F.relu(self.W_g(gate) + self.W_x(skip)))


class Up(nn.Module):
    """Upsample, join with the gated skip, convolve."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.atte = AttentionGate(inputs, skip)
        self.conv = nn.Conv3d(inputs + skip, outputs, 5, padding=2, bias=False)
        self.bn = nn.InstanceNorm3d(outputs)
        self.se = SqueezeExcitation(outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map `x` to the extents of `skip` and (batch, outputs, ...)."""
        x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=True)
        y = torch.cat((x, self.atte(x, skip)), dim=1)
        return cast(Tensor, self.se(F.relu(self.bn(self.conv(y)))))


class Bi21RGT3d(nn.Module):
    """An encoder to an eighth of the resolution, dilated there, and a gated decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer0 = _conv(1, 16, 7)
        self.layer1 = _conv(16, 16)
        self.layer2 = _conv(16, 32, stride=2)
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64))
        self.layer4 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128))
        self.layer5 = nn.Sequential(
            BasicBlock(128, 256, dilation=2), BasicBlock(256, 256, dilation=2)
        )
        self.layer7 = nn.Sequential(*_conv(256, 512, dilation=2), *_conv(512, 512, dilation=2))
        self.layer8 = nn.Sequential(*_conv(512, 512), *_conv(512, 512))
        self.conv = nn.Conv3d(512, 512, 1, bias=False)
        self.bn = nn.InstanceNorm3d(512)
        self.up3 = Up(512, 64, 256)
        self.up4 = Up(256, 32, 128)
        self.up5 = Up(128, 16, 16)
        self.out_layer = nn.Sequential(nn.Conv3d(16, 1, 1), nn.InstanceNorm3d(1))

    def forward(self, x: Tensor) -> Tensor:
        """Relative geological time of a normalised amplitude volume.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 1, time, crossline, inline), every extent a multiple of 8.

        Returns
        -------
        torch.Tensor
            Same shape, zero mean and unit deviation; older is larger.
        """
        full = self.layer0(x)
        half = self.layer2(self.layer1(full))
        quarter = self.layer3(half)
        y = self.layer8(self.layer7(self.layer5(self.layer4(quarter))))
        y = F.relu(self.bn(self.conv(y)))
        y = self.up5(self.up4(self.up3(y, quarter), half), full)
        return cast(Tensor, self.out_layer(y))
