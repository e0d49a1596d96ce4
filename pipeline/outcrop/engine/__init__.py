"""Run a plan: one tile, stores, and the executors."""

from .prediction import plan, predict
from .whole import whole_volume

__all__ = ["plan", "predict", "whole_volume"]
