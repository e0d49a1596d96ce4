"""GEM: one promptable network for many interpretation tasks.

Dou, Y., Wu, X. et al. (2025). Geological Everything Model 3D: A promptable foundation model for
unified and zero-shot subsurface understanding. https://doi.org/10.48550/arXiv.2507.00419
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .hrnet import HRModule, Layer


class GroupNorm(nn.Module):
    """A group norm of 32 groups, or of 24 or 16 where the channels ask for it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = next((n for n in (32, 24, 16) if channels % n == 0), None)
        if groups is None:
            raise ValueError(
                f"{channels} channels: no multiple of 32, 24 or 16; choose another base"
            )
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, D, H, W) to the same shape."""
        return cast(Tensor, self.norm(x))


class ConvBlock(nn.Module):
    """A convolution, a norm and a SiLU; its input divided by `scale` against overflow in halves."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        norm: Layer = GroupNorm,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
        scale: int = 1,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.conv = nn.Sequential(
            nn.Conv3d(
                inputs,
                outputs,
                kernel,
                stride,
                kernel // 2,
                bias=False,
                padding_mode=padding_mode,
            ),
            norm(outputs),
            nn.SiLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, D, H, W) to (batch, outputs, D / stride, ...)."""
        return cast(Tensor, self.conv(x if self.scale == 1 else x / self.scale))


class BasicBlock(nn.Module):
    """A residual block of two 3×3×3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBlock(channels, channels)
        self.conv2 = ConvBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, D, H, W) to the same shape."""
        return cast(Tensor, self.conv2(self.conv1(x)) + x)


class Bottleneck(nn.Module):
    """A residual block that narrows to `inner` channels."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = ConvBlock(channels, inner, 1)
        self.conv2 = ConvBlock(inner, inner, 3)
        self.conv3 = ConvBlock(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, D, H, W) to the same shape."""
        return cast(Tensor, self.conv3(self.conv2(self.conv1(x))) + x)


class Gate(nn.Module):
    """Every channel at every voxel weighted by what its surroundings say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 8
        block = partial(
            ConvBlock, inputs=channels, norm=partial(nn.GroupNorm, 1), padding_mode="reflect"
        )
        self.SEBlock = nn.Sequential(
            block(outputs=inner),
            block(inputs=inner, outputs=inner, kernel=5),
            nn.Conv3d(inner, channels, 3, padding=1, padding_mode="reflect"),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, D, H, W) to the same shape."""
        return cast(Tensor, self.SEBlock(x) * x)


def _stage(channels: Sequence[int]) -> HRModule:
    branches = [nn.Sequential(*(BasicBlock(c) for _ in range(4)), Gate(c)) for c in channels]
    return HRModule(branches, channels, GroupNorm, partial(nn.SiLU, inplace=True))


class GEM(nn.Module):
    """A stem to a quarter of the resolution, two stages of HRNet, a decoder with one skip.

    Parameters
    ----------
    base : int
        Channels of the finest branch; the others have four and eight times as many.
    stage_num_blocks : sequence of int
        Modules in the stage of two branches and in that of three.
    """

    def __init__(self, base: int = 64, stage_num_blocks: Sequence[int] = (1, 8)) -> None:
        super().__init__()
        c1, c2, c3 = base, 4 * base, 8 * base
        end = max(base // 4, 16)
        two, three = stage_num_blocks
        self.input_layer = nn.Sequential(
            ConvBlock(3, 32, stride=2), *(Bottleneck(32, 16) for _ in range(4)), Gate(32)
        )
        self.stem_layer = nn.Sequential(
            nn.Identity(),
            ConvBlock(32, c2, stride=2),
            *(Bottleneck(c2, c1) for _ in range(4)),
            Gate(c2),
        )
        self.transition1 = nn.ModuleList((ConvBlock(c2, c1), ConvBlock(c2, c2, stride=2)))
        self.stage1 = nn.Sequential(*(_stage((c1, c2)) for _ in range(two)))
        self.transition2 = nn.ModuleList(
            (nn.Identity(), nn.Identity(), ConvBlock(c2, c3, stride=2))
        )
        self.stage2 = nn.Sequential(*(_stage((c1, c2, c3)) for _ in range(three)))
        self.decoder1 = nn.Sequential(
            ConvBlock(c1 + c2 + c3, c2, scale=1024),
            *(Bottleneck(c2, c1) for _ in range(4)),
            Gate(c2),
            nn.Upsample(scale_factor=2, mode="trilinear"),
            ConvBlock(c2, 3 * end),
        )
        self.decoder2 = nn.Sequential(
            ConvBlock(3 * end + 32, 3 * end, scale=1024),
            BasicBlock(3 * end),
            BasicBlock(3 * end),
            Gate(3 * end),
            nn.Upsample(scale_factor=2, mode="trilinear"),
            ConvBlock(3 * end, end),
            *(ConvBlock(end, end, padding_mode="reflect") for _ in range(4)),
            nn.Conv3d(end, 1, 3, padding=1, padding_mode="reflect"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Follow a prompt through a normalised amplitude volume.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 3, time, crossline, inline): amplitude, prompt, and 1 where there is a prompt.
            Every extent a multiple of 16 and at least 48.

        Returns
        -------
        torch.Tensor
            (batch, 1, time, crossline, inline), -1 to 1.
        """
        half = self.input_layer(x)
        y = self.stem_layer(half)
        branches = self.stage1([transition(y) for transition in self.transition1])
        fine, middle, coarse = self.transition2
        branches = self.stage2([fine(branches[0]), middle(branches[1]), coarse(branches[1])])
        size = branches[0].shape[2:]
        raised = (F.interpolate(b, size=size, mode="trilinear") for b in branches[1:])
        y = self.decoder1(torch.cat([branches[0], *raised], dim=1))
        return torch.tanh(self.decoder2(torch.cat((half, y), dim=1)))
