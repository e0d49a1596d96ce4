"""Weighted means of a few points along an axis, as products with a matrix of few entries.

On a CPU the many multiplications by zero take less time than to fetch the points one by one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .kernels import is_fast
from .pointwise import channels_last

# Points along an axis up to which that holds; values side by side of which each product takes a
# row at least.
_MOST, _ROW = 512, 16


def suits_products(x: Tensor) -> bool:
    """Whether means of points of a tensor may be taken as products.

    Not if a value is not finite: times a weight of zero that would spread to where it is not seen.
    """
    in_double = x.dtype == torch.float64 and x.device.type == "cpu" and get_proxy_mode() is None
    return (in_double or is_fast(x)) and bool(x.sum().isfinite())


def pays_as_product(x: Tensor, dim: int, where: np.ndarray) -> bool:
    """Whether means along a dimension, (results, points of each), are faster so."""
    _, points, beside = _in_memory(x, dim)
    results, each = where.shape
    # To fetch two points is little where there are few results, but for lines of halves.
    fewer = each <= 2 and results < points and (channels_last(x) or x.itemsize >= 4)
    return points <= _MOST and (beside == 1 or beside >= _ROW) and not fewer


def product(x: Tensor, dim: int, where: np.ndarray, share: np.ndarray) -> Tensor:
    """Return the means along a dimension, in the order of axes in memory that `x` has.

    Parameters
    ----------
    x : torch.Tensor
    dim : int
    where, share : numpy.ndarray
        (results, points of each): which points, and the weights of each.
    """
    before, points, beside = _in_memory(x, dim)
    weights = np.zeros((len(where), points))
    np.add.at(weights, (np.arange(len(where))[:, None], where), share)
    matrix = torch.from_numpy(weights).to(x.dtype)
    last = channels_last(x)
    x = x.movedim(1, -1) if last else x
    shape = list(x.shape)
    shape[dim - last] = len(where)
    if beside == 1:
        made = x.reshape(before, points) @ matrix.T
    else:
        made = torch.bmm(matrix.expand(before, -1, -1), x.reshape(before, points, beside))
    return made.view(shape).movedim(-1, 1) if last else made.view(shape)


def _in_memory(x: Tensor, dim: int) -> tuple[int, int, int]:
    """How many lines along a dimension lie one after the other, their points, and side by side."""
    shape = list(x.shape)
    if channels_last(x):
        shape.append(shape.pop(1))
        dim -= 1
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
