"""Multi-task inference and refinement: structure, faults and a cleaner image at once.

Gao, K. (2024). Iterative multitask learning and inference from seismic images. Geophysical Journal
International, 236(1), 565-592. https://doi.org/10.1093/gji/ggad424
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TASKS = ("rgt", "dhr", "fault")


class Conv(nn.Module):
    """A convolution, an instance norm if wanted, and an activation."""

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        dilation: int = 1,
        norm: bool = True,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        layers: list[nn.Module] = [conv(inputs, outputs, 3, padding="same", dilation=dilation)]
        if norm:
            layers.append(nn.InstanceNorm2d(outputs) if dims == 2 else nn.InstanceNorm3d(outputs))
        self.c = nn.Sequential(*layers, activation())

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, ...) to (batch, outputs, ...)."""
        return cast(Tensor, self.c(x))


def _down(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2) if x.ndim == 4 else F.max_pool3d(x, 2)


def _linear(x: Tensor) -> str:
    return "bilinear" if x.ndim == 4 else "trilinear"


def _up(x: Tensor, like: Tensor) -> Tensor:
    """Double the extents, then pad with zeros on both sides to those of `like`."""
    x = F.interpolate(x, scale_factor=2, mode=_linear(x))
    padding = []
    for wanted, has in zip(like.shape[:1:-1], x.shape[:1:-1], strict=True):
        padding += [(wanted - has) // 2, (wanted - has + 1) // 2]
    return F.pad(x, padding) if any(padding) else x


class ResidualU(nn.Module):
    """A U-Net of `levels` resolutions with a residual around it; dilated at its bottom.

    Parameters
    ----------
    dims : int
        2 or 3 axes.
    inputs, outputs : int
        Channels.
    levels : int
        How often the extents are halved.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        n = outputs
        self.conv0 = Conv(dims, inputs, n)
        widths = [n * 2**level for level in range(levels)]
        for level, width in enumerate(widths, 1):
            setattr(self, f"conv{level}", Conv(dims, widths[max(level - 2, 0)], width))
        bottom = 4 * widths[-1]
        self.convd = Conv(dims, widths[-1], bottom, dilation=2)
        below = [*widths[1:], bottom]
        for level, width in enumerate(widths, 1):
            setattr(self, f"up{level}", Conv(dims, width + below[level - 1], width))
        self.up0 = Conv(dims, n, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, ...) to (batch, outputs, ...)."""
        first = y = self.conv0(x)
        skips = []
        for level in range(1, self.levels + 1):
            skips.append(getattr(self, f"conv{level}")(y))
            y = _down(skips[-1])
        y = self.convd(y)
        for level, skip in reversed(list(enumerate(skips, 1))):
            y = getattr(self, f"up{level}")(torch.cat((_up(y, skip), skip), dim=1))
        return cast(Tensor, self.up0(y) + first)


class ResidualDilated(nn.Module):
    """The same at one resolution: convolutions of growing and shrinking dilation."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        n = outputs
        self.conv0 = Conv(dims, inputs, n)
        self.conv1 = Conv(dims, n, n)
        self.conv2 = Conv(dims, n, 2 * n, 2)
        self.conv3 = Conv(dims, 2 * n, 2 * n, 4)
        self.convd = Conv(dims, 2 * n, 4 * n, 8)
        self.up3 = Conv(dims, 6 * n, 2 * n, 4)
        self.up2 = Conv(dims, 4 * n, 2 * n, 2)
        self.up1 = Conv(dims, 3 * n, n)
        self.up0 = Conv(dims, n, n)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, ...) to (batch, outputs, ...)."""
        first = self.conv0(x)
        one = self.conv1(first)
        two = self.conv2(one)
        three = self.conv3(two)
        y = self.up3(torch.cat((self.convd(three), three), dim=1))
        y = self.up2(torch.cat((y, two), dim=1))
        y = self.up1(torch.cat((y, one), dim=1))
        return cast(Tensor, self.up0(y) + first)


class TaskDecoder(nn.Module):
    """From the three encoders' features to one task's output at full resolution."""

    def __init__(self, dims: int, outputs: int, kernel: int, sigmoid: bool) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.decoder2 = ResidualU(dims, 32 + 64, 32, 2)
        self.decoder1 = ResidualU(dims, 16 + 32, 16, 3)
        self.out = nn.Sequential(
            conv(16, 16, 3, padding="same"),
            conv(16, 16, 3, padding="same"),
            conv(16, outputs, kernel, padding="same"),
            nn.Sigmoid() if sigmoid else nn.Identity(),
        )

    def forward(self, full: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
        """Return (batch, outputs, ...) of the extents of `full`."""
        y = quarter
        for decoder, skip in ((self.decoder2, half), (self.decoder1, full)):
            y = F.interpolate(y, size=skip.shape[2:], mode=_linear(skip), align_corners=True)
            y = decoder(torch.cat((y, skip), dim=1))
        return cast(Tensor, self.out(y))


class FaultDecoder(nn.Module):
    """From features shared by all fault attributes to one of them."""

    def __init__(self, dims: int, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            Conv(dims, 16, 32, norm=norm),
            Conv(dims, 32, 32, norm=norm),
            Conv(dims, 32, 32, norm=norm),
            Conv(dims, 32, 16, norm=norm),
        )
        self.out = nn.Sequential(Conv(dims, 16, 1, norm=False, activation=nn.Sigmoid))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 16, ...) to (batch, 1, ...), 0 to 1."""
        return cast(Tensor, self.out(x + self.conv(x)))


class _Tasks(nn.Module):
    """What inference and refinement share: three encoders and a decoder per task."""

    def __init__(self, dims: Literal[2, 3], inputs: int, tasks: Sequence[str]) -> None:
        super().__init__()
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            raise ValueError(f"tasks {tuple(tasks)!r}: choose from {', '.join(TASKS)}")
        self.tasks = tuple(task for task in TASKS if task in tasks)
        self.encoder1 = ResidualU(dims, inputs, 16, 3)
        self.encoder2 = ResidualU(dims, 16, 32, 2)
        self.encoder3 = ResidualDilated(dims, 32, 64)
        if "rgt" in tasks:
            self.decoder_rgt = TaskDecoder(dims, 1, 1, sigmoid=True)
        if "dhr" in tasks:
            self.decoder_dhr = TaskDecoder(dims, 1, 1, sigmoid=False)
        if "fault" in tasks:
            self.decoder_fault = TaskDecoder(dims, 16, 3, sigmoid=False)
            self.subdecoder_fault_semantic = FaultDecoder(dims, norm=False)
            self.subdecoder_fault_dip = FaultDecoder(dims, norm=True)
            if dims == 3:
                self.subdecoder_fault_strike = FaultDecoder(dims, norm=True)

    def _decode(self, x: Tensor) -> dict[str, Tensor]:
        full = self.encoder1(x)
        half = self.encoder2(_down(full))
        features = full, half, self.encoder3(_down(half))
        out = {}
        if "rgt" in self.tasks:
            out["rgt"] = self.decoder_rgt(*features)
        if "dhr" in self.tasks:
            out["dhr"] = self.decoder_dhr(*features)
        if "fault" in self.tasks:
            shared = self.decoder_fault(*features)
            out["fsem"] = fault = self.subdecoder_fault_semantic(shared)
            out["fdip"] = self.subdecoder_fault_dip(shared) * fault
            if hasattr(self, "subdecoder_fault_strike"):
                out["fstrike"] = self.subdecoder_fault_strike(shared) * fault
        return out


class MTLInfer(_Tasks):
    """Several attributes from one seismic image.

    Parameters
    ----------
    dims : {2, 3}
        Axes of the image.
    tasks : sequence of {"rgt", "dhr", "fault"}
        What to infer: relative geological time, a denoised image of higher resolution, fault
        attributes.
    """

    def __init__(self, dims: Literal[2, 3] = 3, tasks: Sequence[str] = TASKS) -> None:
        super().__init__(dims, 1, tasks)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Attributes of a normalised image.

        Parameters
        ----------
        x : torch.Tensor
            (batch, 1, time, crossline[, inline]), every extent at least 16.

        Returns
        -------
        dict of str to torch.Tensor
            rgt, dhr, fsem, fdip and (in 3-D) fstrike, each of the shape of `x`; all but dhr are
            0 to 1.
        """
        return self._decode(x)


class MTLRefine(_Tasks):
    """The same attributes, made consistent with each other.

    Parameters
    ----------
    dims : {2, 3}
        Axes of the image.
    tasks : sequence of {"rgt", "dhr", "fault"}
        What to refine; the inputs are always all attributes.
    """

    def __init__(self, dims: Literal[2, 3] = 3, tasks: Sequence[str] = TASKS) -> None:
        inputs = 4 if dims == 2 else 5
        super().__init__(dims, 4 * inputs, tasks)
        for i in range(1, inputs + 1):
            setattr(self, f"input{i}", nn.Sequential(Conv(dims, 1, 4), Conv(dims, 4, 4)))

    def forward(
        self,
        rgt: Tensor,
        dhr: Tensor,
        fsem: Tensor,
        fdip: Tensor,
        fstrike: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Attributes from inferred or once refined ones.

        Parameters
        ----------
        rgt, dhr, fsem, fdip, fstrike : torch.Tensor
            Each (batch, 1, time, crossline[, inline]); fstrike in 3-D alone.

        Returns
        -------
        dict of str to torch.Tensor
            As `MTLInfer` returns them.
        """
        attributes = [a for a in (rgt, dhr, fsem, fdip, fstrike) if a is not None]
        inputs = (getattr(self, f"input{i}")(a) for i, a in enumerate(attributes, 1))
        return self._decode(torch.cat(tuple(inputs), dim=1))
