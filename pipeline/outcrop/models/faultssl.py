"""FaultSSL: fault probability by a high-resolution network, trained semi-supervised.

Dou, Y., Li, K., Dong, M. & Xiao, Y. (2024). FaultSSL: Seismic fault detection via semisupervised
learning. Geophysics, 89(3), M79-M91. https://doi.org/10.1190/geo2023-0550.1
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .hrnet import HRModule, Layer


def _conv(inputs: int, outputs: int, norm: Layer, stride: int = 1) -> nn.Sequential:
    """Make a 3×3×3 convolution, a norm and a rectifier."""
    conv = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, norm(outputs), nn.ReLU(inplace=True))


class Bottleneck(nn.Module):
    """A residual block whose 3×3×3 convolution has a quarter of the channels."""

    def __init__(self, channels: int, norm: Layer) -> None:
        super().__init__()
        inner = channels // 4
        self.conv1 = nn.Conv3d(channels, inner, 1, bias=False)
        self.bn1 = norm(inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = norm(inner)
        self.conv3 = nn.Conv3d(inner, channels, 1, bias=False)
        self.bn3 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, D, H, W) to the same shape."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + x)


class BasicBlock(nn.Module):
    """A residual block of two 3×3×3 convolutions."""

    def __init__(self, inputs: int, outputs: int, norm: Layer) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.res_conv = nn.Identity() if inputs == outputs else nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, D, H, W) to (batch, outputs, D, H, W)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.res_conv(x))


class FaultSSL(nn.Module):
    """A stem to a quarter of the resolution, two stages of HRNet, a decoder with skips.

    Parameters
    ----------
    base : int
        Channels at full resolution.
    mode : {"iou", "precision"}
        "iou" has instance norms, whose statistics are of the whole volume; "precision" has
        batch norms.
    stage_num_blocks : sequence of int
        Modules in the stage of two branches and in that of three.
    """

    def __init__(
        self,
        base: int = 24,
        mode: Literal["iou", "precision"] = "iou",
        stage_num_blocks: Sequence[int] = (3, 6),
    ) -> None:
        super().__init__()
        if mode not in ("iou", "precision"):
            raise ValueError(f"mode {mode!r}: choose 'iou' or 'precision'")
        norm: Layer = partial(nn.InstanceNorm3d, affine=True) if mode == "iou" else nn.BatchNorm3d
        c = base

        def level(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                *_conv(inputs, outputs, norm, stride),
                Bottleneck(outputs, norm),
                Bottleneck(outputs, norm),
            )

        def stage(branches: int, repeats: int) -> nn.Sequential:
            channels = [2 * c * 2**i for i in range(branches)]
            return nn.Sequential(
                *(
                    HRModule(
                        [
                            nn.Sequential(*(BasicBlock(n, n, norm) for _ in range(4)))
                            for n in channels
                        ],
                        channels,
                        norm,
                        partial(nn.ReLU, inplace=True),
                    )
                    for _ in range(repeats)
                )
            )

        self.input_layer1 = level(1, c, 1)
        self.input_layer2 = level(c, 2 * c, 2)
        self.input_layer3 = level(2 * c, 8 * c, 2)
        self.transition1 = nn.ModuleList(
            (_conv(8 * c, 2 * c, norm), nn.Sequential(_conv(8 * c, 4 * c, norm, 2)))
        )
        self.stage2 = stage(2, stage_num_blocks[0])
        self.transition2 = nn.ModuleList(
            (nn.Sequential(), nn.Sequential(), nn.Sequential(_conv(4 * c, 8 * c, norm, 2)))
        )
        self.stage3 = stage(3, stage_num_blocks[1])
        self.Decoder1 = nn.Sequential(
            nn.ConvTranspose3d(14 * c, 2 * c, 2, 2),
            norm(2 * c),
            nn.ReLU(inplace=True),
            BasicBlock(2 * c, 2 * c, norm),
        )
        self.Decoder2 = nn.Sequential(
            BasicBlock(4 * c, 2 * c, norm),
            nn.ConvTranspose3d(2 * c, c, 4, 2, padding=1),
            norm(c),
            nn.ReLU(inplace=True),
            BasicBlock(c, c, norm),
        )
        self.Decoder3 = nn.Sequential(BasicBlock(2 * c, c, norm), nn.Conv3d(c, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Fault probability of a normalised amplitude volume.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 1, time, crossline, inline), every extent a multiple of 16.

        Returns
        -------
        torch.Tensor
            Same shape, 0 to 1.
        """
        full = self.input_layer1(x)
        half = self.input_layer2(full)
        y = self.input_layer3(half)
        branches = self.stage2([transition(y) for transition in self.transition1])
        fine, middle, coarse = self.transition2
        branches = self.stage3([fine(branches[0]), middle(branches[1]), coarse(branches[1])])
        size = branches[0].shape[2:]
        y = torch.cat([branches[0], *(F.interpolate(b, size=size) for b in branches[1:])], dim=1)
        y = self.Decoder1(y)
        y = self.Decoder2(torch.cat((y, half), dim=1))
        y = self.Decoder3(torch.cat((y, full), dim=1))
        return torch.sigmoid(y)
