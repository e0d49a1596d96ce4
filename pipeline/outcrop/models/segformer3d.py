"""SegFormer3D: a transformer with keys and values at reduced resolution, of any task.

Perera, S., Navard, P. & Yilmaz, A. (2024). SegFormer3D: an efficient transformer for 3D medical
image segmentation. CVPR Workshops, 4981-4988. https://doi.org/10.1109/CVPRW63382.2024.00503
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _tokens(x: Tensor) -> Tensor:
    """Turn (batch, channels, D, H, W) into (batch, D · H · W, channels)."""
    return x.flatten(2).transpose(1, 2)


def _grid(x: Tensor, size: Sequence[int]) -> Tensor:
    """Turn (batch, D · H · W, channels) into (batch, channels, D, H, W)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *size)


class PatchEmbedding(nn.Module):
    """A strided convolution, then a norm over channels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.patch_embeddings = nn.Conv3d(inputs, outputs, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        """Return the tokens and the extents of their grid."""
        y = self.patch_embeddings(x)
        return self.norm(_tokens(y)), y.shape[2:]


class SelfAttention(nn.Module):
    """Every token attends to all, or to all of a grid that is coarser by `reduction`.

    Scores are divided by the square root of the number of heads, as in the published weights'
    code, not of a head's channels.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv3d(channels, channels, reduction, reduction)
            self.sr_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Map (batch, tokens, channels) to the same shape."""
        batch, tokens, channels = x.shape
        width = channels // self.heads
        query = self.query(x).reshape(batch, tokens, self.heads, width).permute(0, 2, 1, 3)
        if self.reduction > 1:
            x = self.sr_norm(_tokens(self.sr(_grid(x, size))))
        pair = self.key_value(x).reshape(batch, x.shape[1], 2, self.heads, width)
        key, value = pair.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value, scale=1 / math.sqrt(self.heads))
        return cast(Tensor, self.proj(y.transpose(1, 2).reshape(batch, tokens, channels)))


class DepthwiseConv(nn.Module):
    """A convolution of every channel on its own, and a batch norm, on tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.bn = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Map (batch, tokens, channels) to the same shape."""
        return _tokens(self.bn(self.dwconv(_grid(x, size))))


class MLP(nn.Module):
    """Two linear layers with a convolution between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.dwconv = DepthwiseConv(4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Map (batch, tokens, channels) to the same shape."""
        return cast(Tensor, self.fc2(F.gelu(self.dwconv(self.fc1(x), size))))


class TransformerBlock(nn.Module):
    """Attention and MLP, each with a norm before and a residual around it."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Map (batch, tokens, channels) to the same shape."""
        x = x + self.attention(self.norm1(x), size)
        return cast(Tensor, x + self.mlp(self.norm2(x), size))


class Encoder(nn.Module):
    """Four levels at a 4th, 8th, 16th and 32nd of the resolution."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.embed_1 = PatchEmbedding(in_channels, 32, 7, 4)
        self.embed_2 = PatchEmbedding(32, 64, 3, 2)
        self.embed_3 = PatchEmbedding(64, 160, 3, 2)
        self.embed_4 = PatchEmbedding(160, 256, 3, 2)
        self.tf_block1 = nn.ModuleList(TransformerBlock(32, 1, 4) for _ in range(2))
        self.tf_block2 = nn.ModuleList(TransformerBlock(64, 2, 2) for _ in range(2))
        self.tf_block3 = nn.ModuleList(TransformerBlock(160, 5, 1) for _ in range(2))
        self.tf_block4 = nn.ModuleList(TransformerBlock(256, 8, 1) for _ in range(2))
        self.norm1 = nn.LayerNorm(32)
        self.norm2 = nn.LayerNorm(64)
        self.norm3 = nn.LayerNorm(160)
        self.norm4 = nn.LayerNorm(256)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of the four levels, finest first."""
        levels = []
        for embed, blocks, norm in (
            (self.embed_1, self.tf_block1, self.norm1),
            (self.embed_2, self.tf_block2, self.norm2),
            (self.embed_3, self.tf_block3, self.norm3),
            (self.embed_4, self.tf_block4, self.norm4),
        ):
            y, size = embed(x)
            for block in blocks:
                y = block(y, size)
            x = _grid(norm(y), size)
            levels.append(x)
        return levels


class Projection(nn.Module):
    """A linear layer and a norm over channels, on a grid."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)
        self.bn = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, D, H, W) to (batch, outputs, D, H, W)."""
        return _grid(self.bn(self.proj(_tokens(x))), x.shape[2:])


class Decoder(nn.Module):
    """All levels brought to the finest one's grid, mixed, and upsampled four times."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear_c4 = Projection(256, 256)
        self.linear_c3 = Projection(160, 256)
        self.linear_c2 = Projection(64, 256)
        self.linear_c1 = Projection(32, 256)
        self.linear_fuse = nn.Sequential(
            nn.Conv3d(1024, 256, 1, bias=False), nn.BatchNorm3d(256), nn.ReLU(inplace=True)
        )
        self.linear_pred = nn.Conv3d(256, num_classes, 1)

    def forward(self, c1: Tensor, c2: Tensor, c3: Tensor, c4: Tensor) -> Tensor:
        """Return (batch, num_classes, 4 D, 4 H, 4 W) from levels of which the first is D×H×W."""
        size = c1.shape[2:]
        projected = (self.linear_c4(c4), self.linear_c3(c3), self.linear_c2(c2))
        raised = [F.interpolate(c, size=size, mode="trilinear") for c in projected]
        y = self.linear_pred(self.linear_fuse(torch.cat([*raised, self.linear_c1(c1)], dim=1)))
        return F.interpolate(y, scale_factor=4, mode="trilinear")


class SegFormer3D(nn.Module):
    """A hierarchical transformer and a decoder of linear layers.

    Parameters
    ----------
    in_channels : int
        Volumes that go in together.
    num_classes : int
        Channels that come out.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 3) -> None:
        super().__init__()
        self.segformer_encoder = Encoder(in_channels)
        self.segformer_decoder = Decoder(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes of normalised volumes.

        Parameters
        ----------
        x : torch.Tensor
            (batch, in_channels, time, crossline, inline), every extent a multiple of 32.

        Returns
        -------
        torch.Tensor
            (batch, num_classes, time, crossline, inline).
        """
        return cast(Tensor, self.segformer_decoder(*self.segformer_encoder(x)))
