"""Lossy compression of stored tensors: 8 bits a value, one scale per block of 8×8×8.

As in the storage of wavefields by Deepwave (Richardson, https://doi.org/10.5281/zenodo.3829886):
each block is divided by its largest magnitude and rounded.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.boxes import Shape

# Grid points along the edge of a block.
EDGE = 8
# With 127 steps the error could be just 1/254, and rounding would carry it beyond.
_STEPS = 127 + 1 / 64
_NOT_FINITE = -128
# Values that are worked on at a time, so that what is computed on the way takes little memory.
_SLAB = 2**21


def encode(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Compress a tensor, on its own device.

    The error of each finite value is at most 1/254 of the largest finite magnitude in its block
    (if that is a normal number of the scales' precision). Zero comes back as zero. NaN and
    infinity come back as NaN and leave their neighbours alone.

    Parameters
    ----------
    x : torch.Tensor
        Floating-point; leading axes, then `rank` grid axes of any extents.
    rank : int
        Number of grid axes. Blocks are cut along these; each leading index has its own.

    Returns
    -------
    codes : torch.Tensor
        int8, the shape of `x`.
    scales : torch.Tensor
        Largest magnitude of each block: float64 for float64, else float32. Leading axes as in
        `x`, then the number of blocks along each grid axis.
    """
    parts = [_encode(part, rank) for part in x.split(_slab(x, rank), -rank)]
    codes, scales = zip(*parts, strict=True)
    return torch.cat(codes, -rank), torch.cat(scales, -rank)


def decode(codes: Tensor, scales: Tensor, rank: int) -> Tensor:
    """Undo `encode`.

    Parameters
    ----------
    codes, scales : torch.Tensor
        As `encode` returns them, or cut from these along the edges of blocks.
    rank : int
        Number of grid axes.

    Returns
    -------
    torch.Tensor
        Of the scales' precision. To round it to a shorter one adds that one's error.
    """
    values = torch.empty_like(codes, dtype=scales.dtype)
    slab = _slab(codes, rank)
    cut = zip(values.split(slab, -rank), codes.split(slab, -rank), strict=True)
    for (part, code), scale in zip(cut, scales.split(slab // EDGE, -rank), strict=True):
        part.copy_(code).div_(_STEPS).mul_(_spread(scale, code.shape[code.ndim - rank :]))
        part.masked_fill_(code == _NOT_FINITE, math.nan)
    return values


def compressed_bytes(shape: Shape, rank: int, dtype: torch.dtype) -> int:
    """Bytes of the codes and scales of a tensor of that shape and dtype."""
    lead, grid = shape[: len(shape) - rank], shape[len(shape) - rank :]
    return math.prod(shape) + math.prod((*lead, *blocks(grid))) * scale_type(dtype).itemsize


def blocks(grid: Shape) -> Shape:
    """Count the blocks along each axis of a grid; the last may be smaller."""
    return tuple(-(-n // EDGE) for n in grid)


def scale_type(dtype: torch.dtype) -> torch.dtype:
    """Precision of the scales of tensors of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _slab(x: Tensor, rank: int) -> int:
    """Extent along the first grid axis of the parts that are worked on one after the other."""
    blocks_deep = _SLAB // max(1, EDGE * x.numel() // x.shape[-rank])
    return EDGE * max(1, blocks_deep)


def _encode(x: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    grid = x.shape[x.ndim - rank :]
    x = x.to(scale_type(x.dtype))
    magnitude = x.abs().nan_to_num_(nan=0.0, posinf=0.0)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    scales = pool(magnitude.reshape(1, -1, *grid), EDGE, ceil_mode=True)
    scales = scales.reshape(*x.shape[: x.ndim - rank], *blocks(tuple(grid)))
    steps = (x / _spread(scales.where(scales > 0, 1.0), grid)).mul_(_STEPS).round_()
    lost = float(_NOT_FINITE)
    return steps.nan_to_num_(nan=lost, posinf=lost, neginf=lost).to(torch.int8), scales


def _spread(scales: Tensor, grid: Shape) -> Tensor:
    """Give each grid point the scale of its block."""
    for axis, extent in zip(range(-len(grid), 0), grid, strict=True):
        scales = scales.repeat_interleave(EDGE, axis).narrow(axis, 0, extent)
    return scales
