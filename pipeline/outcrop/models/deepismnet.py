"""DeepISMNet: implicit structural models from scattered horizons and faults.

Bi, Z., Wu, X., Li, Z., Chang, D. & Yong, X. (2022). DeepISMNet: three-dimensional implicit
structural modeling with convolutional neural network. Geoscientific Model Development, 15(17),
6841-6861. https://doi.org/10.5194/gmd-15-6841-2022
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HardSigmoid(nn.Module):
    """A sigmoid of straight lines: 0 below -3, 1 above 3."""

    def forward(self, x: Tensor) -> Tensor:
        """Map any tensor to the same shape."""
        return F.relu6(x + 3) / 6


class SqueezeExcitation(nn.Module):
    """Each channel scaled by what the means of all channels over the whole volume say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(channels, inner, 1, bias=False),
            nn.BatchNorm3d(inner),
            nn.ReLU(inplace=True),
            nn.Conv3d(inner, channels, 1, bias=False),
            nn.BatchNorm3d(channels),
            HardSigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, D, H, W) to the same shape."""
        return x * self.se(x)


class InvertedResidual(nn.Module):
    """Widen, convolve every channel on its own, narrow, and add a shortcut."""

    def __init__(self, inputs: int, inner: int, outputs: int, squeeze: bool = False) -> None:
        super().__init__()
        self.se = SqueezeExcitation(outputs) if squeeze else nn.Identity()
        self.conv1 = nn.Conv3d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm3d(inner)
        self.conv3 = nn.Conv3d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.shortcut = nn.Sequential(
            nn.Conv3d(inputs, outputs, 1, bias=False), nn.BatchNorm3d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, D, H, W) to (batch, outputs, D, H, W)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return cast(Tensor, self.se(self.bn3(self.conv3(y))) + self.shortcut(x))


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """Make a convolution of every channel on its own, then one across channels."""
    return nn.Sequential(
        nn.Conv3d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.BatchNorm3d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv3d(inputs, outputs, 1, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


class SeparableBlock(nn.Module):
    """Two depthwise separable convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer1 = _separable(inputs, outputs)
        self.layer2 = _separable(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, D, H, W) to (batch, outputs, D, H, W)."""
        return cast(Tensor, self.layer2(self.layer1(x)))


class Up(nn.Module):
    """Upsample to a given size, then convolve."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """Map `x` to the extents of `like` and (batch, outputs, ...)."""
        x = F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=True)
        return cast(Tensor, self.up(x))


class DeepISMNet(nn.Module):
    """A U-Net of inverted residual blocks, squeeze and excitation at its three coarser levels.

    Parameters
    ----------
    use_norm : bool
        Three more input channels: the components of the layers' normal vectors.
    """

    def __init__(self, use_norm: bool = False) -> None:
        super().__init__()
        self.maxpool = nn.MaxPool3d(2)
        self.conv1 = InvertedResidual(5 if use_norm else 2, 63, 51)
        self.conv2 = InvertedResidual(51, 127, 102)
        self.conv3 = InvertedResidual(102, 255, 204, squeeze=True)
        self.conv4 = InvertedResidual(204, 511, 409, squeeze=True)
        self.conv5 = InvertedResidual(409, 1023, 819, squeeze=True)
        self.up5, self.up_conv5 = Up(819, 409), SeparableBlock(818, 409)
        self.up4, self.up_conv4 = Up(409, 204), SeparableBlock(408, 204)
        self.up3, self.up_conv3 = Up(204, 102), SeparableBlock(204, 102)
        self.up2, self.up_conv2 = Up(102, 51), SeparableBlock(102, 51)
        self.conv_1x1 = nn.Conv3d(51, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scalar field whose isosurfaces are the layers.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 2 or 5, time, crossline, inline), every extent 16 or more: scattered values of
            horizons (0 where there are none), the normals' three components, a mask of faults.

        Returns
        -------
        torch.Tensor
            (batch, 1, time, crossline, inline).
        """
        level1 = self.conv1(x)
        level2 = self.conv2(self.maxpool(level1))
        level3 = self.conv3(self.maxpool(level2))
        level4 = self.conv4(self.maxpool(level3))
        y = self.conv5(self.maxpool(level4))
        y = self.up_conv5(torch.cat((level4, self.up5(y, level4)), dim=1))
        y = self.up_conv4(torch.cat((level3, self.up4(y, level3)), dim=1))
        y = self.up_conv3(torch.cat((level2, self.up3(y, level2)), dim=1))
        y = self.up_conv2(torch.cat((level1, self.up2(y, level1)), dim=1))
        return cast(Tensor, self.conv_1x1(y))
