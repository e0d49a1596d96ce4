"""Losses, each from a paper. What goes in is (batch, 1, ...), from 0 to 1 unless said.

Where a target is NaN it is not known, and what the network says there does not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _where_known(found: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both with 0 where the target is not known, and the number of voxels where it is, or 1."""
    known = ~target.isnan()
    count = known.sum().clamp_min(1)
    return torch.where(known, found, 0), torch.where(known, target, 0), count


def balanced_cross_entropy(probability: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in which faults and the rest weigh the same.

    Wu, Liang, Shi & Fomel (2019), Geophysics 84(3), IM35-IM45,
    https://doi.org/10.1190/geo2018-0646.1, after Xie & Tu (2015), Holistically-nested edge
    detection, ICCV, 1395-1403, https://doi.org/10.1109/ICCV.2015.164.

    Parameters
    ----------
    probability, target : torch.Tensor
        Of one shape.

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    probability, target, count = _where_known(probability, target)
    share = target.sum() / count
    weight = torch.where(target > 0.5, 1 - share, share)
    return F.binary_cross_entropy(probability, target, weight, reduction="sum") / count


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Dice coefficient, over the whole batch.

    Milletari, Navab & Ahmadi (2016), V-Net, 3DV, 565-571, https://doi.org/10.1109/3DV.2016.79.
    Parameters and result as for `balanced_cross_entropy`.
    """
    probability, target, _ = _where_known(probability, target)
    overlap = 2 * (probability * target).sum()
    return 1 - (overlap + 1) / (probability.square().sum() + target.square().sum() + 1)


def dice_cross_entropy(probability: Tensor, target: Tensor) -> Tensor:
    """Sum of `dice_loss` and plain cross-entropy.

    Isensee, Jaeger, Kohl, Petersen & Maier-Hein (2021), nnU-Net, Nature Methods 18, 203-211,
    https://doi.org/10.1038/s41592-020-01008-z. Parameters and result as for
    `balanced_cross_entropy`.
    """
    dice = dice_loss(probability, target)
    probability, target, count = _where_known(probability, target)
    return dice + F.binary_cross_entropy(probability, target, reduction="sum") / count


def structural_loss(rgt: Tensor, target: Tensor) -> Tensor:
    """Five times (1 - SSIM + mean absolute error): of relative geological time.

    Gao (2024), Geophysical Journal International 236(1), 565-592,
    https://doi.org/10.1093/gji/ggad424; SSIM after Wang, Bovik, Sheikh & Simoncelli (2004), IEEE
    Transactions on Image Processing 13(4), 600-612, https://doi.org/10.1109/TIP.2003.819861, in
    Gaussian windows of standard deviation 1.5.

    Parameters
    ----------
    rgt, target : torch.Tensor
        Of one shape; two or three axes of 11 samples or more.

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    known = ~target.isnan()
    rgt, target, count = _where_known(rgt, target)
    _, similarity = structural_similarity_index_measure(
        rgt, target, data_range=1.0, return_full_image=True
    )
    alike = torch.where(known, similarity, 0).sum() / count
    return 5 * (1 - alike + F.l1_loss(rgt, target, reduction="sum") / count)


def image_loss(image: Tensor, target: Tensor) -> Tensor:
    """Ten times the mean squared error, of a denoised image of any range: Gao (2024), as above."""
    image, target, count = _where_known(image, target)
    return 10 * F.mse_loss(image, target, reduction="sum") / count


def angle_loss(angle: Tensor, target: Tensor) -> Tensor:
    """Ten times the mean absolute error, of fault angles in half turns: Gao (2024), as above."""
    angle, target, count = _where_known(angle, target)
    return 10 * F.l1_loss(angle, target, reduction="sum") / count
