"""Training: synthetic surveys with every label known, and networks that learn from data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import recipes, synthetic

__all__ = ["fit", "recipes", "synthetic"]

if TYPE_CHECKING:
    from .fitting import fit as fit


def __getattr__(name: str) -> Any:
    if name != "fit":
        raise AttributeError(f"module 'outcrop.training' has no attribute {name!r}")
    try:
        value = importlib.import_module(".fitting", __name__).fit
        importlib.import_module("tensorboard")  # which Lightning logs with
    except ModuleNotFoundError as error:
        if error.name not in ("lightning", "torchmetrics", "tensorboard"):
            raise
        from ..errors import OutcropError

        raise OutcropError(
            f"training needs {error.name}; install it with: pip install 'outcrop[train]'"
        ) from error
    globals()["fit"] = value
    return value
