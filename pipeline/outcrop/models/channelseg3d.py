"""ChannelSeg3D: channels in seismic volumes, by DeepLab v3+ in 3-D.

Gao, H., Wu, X. & Liu, G. (2021). ChannelSeg3D: Channel simulation and deep learning for channel
interpretation in 3D seismic images. Geophysics, 86(4), IM73-IM83.
https://doi.org/10.1190/geo2020-0572.1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Make a convolution, a batch norm and a rectifier."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv3d(inputs, outputs, kernel, 1, padding, dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))


class Bottleneck(nn.Module):
    """A residual block whose 3×3×3 convolution has a quarter of the output's channels."""

    def __init__(self, inputs: int, inner: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        outputs = 4 * inner
        self.conv1 = nn.Conv3d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm3d(inner)
        self.conv3 = nn.Conv3d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, D, H, W) to (batch, 4 · inner, D / stride, ...)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """A ResNet in 3-D to a sixteenth of the resolution, dilated in its last layer."""

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        one, two, three, four = layers
        self.conv1 = nn.Conv3d(1, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.maxpool = nn.MaxPool3d(3, 2, 1)
        self.layer1 = self._layer(64, 64, one, 1)
        self.layer2 = self._layer(256, 128, two, 2)
        self.layer3 = self._layer(512, 256, three, 2)
        rest = (Bottleneck(2048, 512, dilation=4 * i) for i in range(1, four))
        self.layer4 = nn.Sequential(Bottleneck(1024, 512, dilation=2), *rest)

    @staticmethod
    def _layer(inputs: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
        rest = (Bottleneck(4 * inner, inner) for _ in range(blocks - 1))
        return nn.Sequential(Bottleneck(inputs, inner, stride), *rest)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features at a sixteenth and at a quarter of the resolution."""
        quarter = self.layer1(self.maxpool(F.relu(self.bn1(self.conv1(x)))))
        return self.layer4(self.layer3(self.layer2(quarter))), quarter


class AtrousPyramid(nn.Module):
    """Convolutions of growing dilation and the mean of the whole volume, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.aspp1 = _conv(2048, 256)
        self.aspp2 = _conv(2048, 256, 3, 6)
        self.aspp3 = _conv(2048, 256, 3, 12)
        self.aspp4 = _conv(2048, 256, 3, 18)
        self.global_avg_pool = nn.Sequential(nn.AdaptiveAvgPool3d(1), *_conv(2048, 256))
        self.conv1 = nn.Conv3d(1280, 256, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(256)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 2048, D, H, W) to (batch, 256, D, H, W)."""
        mean = F.interpolate(
            self.global_avg_pool(x), size=x.shape[2:], mode="trilinear", align_corners=True
        )
        y = torch.cat((self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x), mean), dim=1)
        return self.dropout(F.relu(self.bn1(self.conv1(y))))


class Decoder(nn.Module):
    """Joins the pyramid's features with those of a quarter of the resolution."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(256, 48, 1, bias=False)
        self.norm1 = nn.BatchNorm3d(48)
        self.last_conv = nn.Sequential(
            *_conv(304, 256, 3),
            nn.Dropout(0.5),
            *_conv(256, 256, 3),
            nn.Dropout(0.1),
            nn.Conv3d(256, classes, 1),
        )

    def forward(self, x: Tensor, quarter: Tensor) -> Tensor:
        """Return (batch, classes, ...) of the extents of `quarter`."""
        x = F.interpolate(x, size=quarter.shape[2:], mode="trilinear", align_corners=True)
        skip = F.relu(self.norm1(self.conv1(quarter)))
        y: Tensor = self.last_conv(torch.cat((x, skip), dim=1))
        return y


class ChannelSeg3d(nn.Module):
    """A ResNet, a pyramid of dilations, and a decoder.

    Parameters
    ----------
    num_classes : int
        Background and channel.
    layers : sequence of int
        Blocks in each of the four layers of the ResNet: those of ResNet-101.
    """

    def __init__(self, num_classes: int = 2, layers: Sequence[int] = (3, 4, 23, 3)) -> None:
        super().__init__()
        self.resnet = ResNet(layers)
        self.aspp = AtrousPyramid()
        self.decoder = Decoder(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of background and channel of a normalised amplitude volume.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 1, inline, crossline, time).

        Returns
        -------
        torch.Tensor
            (batch, num_classes, inline, crossline, time).
        """
        y, quarter = self.resnet(x)
        y = self.decoder(self.aspp(y), quarter)
        return F.interpolate(y, size=x.shape[2:], mode="trilinear", align_corners=True)
