"""A network that interprets sections with a look at their neighbours.

A 3-D convolution module takes a section and its neighbours, with three channels of position; a
2-D U-Net follows, whose decoder gives an auxiliary output at every level (internal guidance) and
whose last layers refine the result. The layout is outcrop's own; its parts are those of

Ronneberger, O., Fischer, P. & Brox, T. (2015). U-Net: Convolutional networks for biomedical image
segmentation. MICCAI, 234-241. https://doi.org/10.1007/978-3-319-24574-4_28
Lee, C.-Y. et al. (2015). Deeply-supervised nets. AISTATS, 562-570.
Liu, R. et al. (2018). An intriguing failing of convolutional neural networks and the CoordConv
solution. NeurIPS, 9628-9639.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    """Make two convolutions within sections, each followed by a batch norm and a rectifier."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [
            nn.Conv3d(width, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet25D(nn.Module):
    """A 3-D module over neighbouring sections, a 2-D U-Net with guidance, a refinement head.

    Sections are evaluated side by side: the first grid axis counts them, and what follows the 3-D
    module does not mix them.

    Parameters
    ----------
    base : int
        Channels at full resolution; each coarser level has twice as many.
    neighbours : int
        Sections on either side that a section sees; the first and the last are repeated.
    levels : int
        Resolutions of the U-Net.
    """

    def __init__(self, base: int = 16, neighbours: int = 2, levels: int = 4) -> None:
        super().__init__()
        if neighbours < 1 or levels < 2:
            raise ValueError("neighbours and levels: choose at least 1 and 2")
        self.neighbours = neighbours
        widths = [base * 2**level for level in range(levels)]
        self.initial = nn.Sequential()
        for i in range(neighbours):
            self.initial.append(nn.Conv3d(base if i else 4, base, 3, padding=(0, 1, 1), bias=False))
            self.initial.append(nn.BatchNorm3d(base))
            self.initial.append(nn.ReLU(inplace=True))
        self.encoder = nn.ModuleList(
            _conv(inputs, width) for inputs, width in zip([base, *widths], widths, strict=False)
        )
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, (1, 2, 2), (1, 2, 2)) for coarse, fine in pairs
        )
        self.decoder = nn.ModuleList(_conv(2 * fine, fine) for _, fine in pairs)
        self.guidance = nn.ModuleList(nn.Conv3d(fine, 1, 1) for _, fine in pairs)
        self.refine = nn.Sequential(_conv(base + len(pairs), base), nn.Conv3d(base, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Probability on every section.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 4, sections, time, traces): amplitude from 0 to 1, and the position along
            each axis from 0 to 1. The last two extents are multiples of 8, with four levels.

        Returns
        -------
        torch.Tensor
            (batch, 1, sections, time, traces), 0 to 1.
        """
        return torch.sigmoid(self.logits(x)[0])

    def logits(self, x: Tensor) -> list[Tensor]:
        """Refined and auxiliary logits, all at full resolution, finest first: for training.

        Parameters
        ----------
        x : torch.Tensor
            As for `forward`.

        Returns
        -------
        list of torch.Tensor
            Each (batch, 1, sections, time, traces).
        """
        n = self.neighbours
        y = self.initial(F.pad(x, (0, 0, 0, 0, n, n), mode="replicate"))
        skips = []
        for i, block in enumerate(self.encoder):
            y = block(F.max_pool3d(y, (1, 2, 2)) if i else y)
            skips.append(y)
        guides: list[Tensor] = []
        for up, block, guide, skip in zip(
            self.up, self.decoder, self.guidance, skips[-2::-1], strict=True
        ):
            y = block(torch.cat((up(y), skip), dim=1))
            guides.insert(
                0,
                F.interpolate(guide(y), size=x.shape[2:], mode="trilinear", align_corners=False),
            )
        refined = cast(Tensor, self.refine(torch.cat((y, *map(torch.sigmoid, guides)), dim=1)))
        return [refined, *guides]
