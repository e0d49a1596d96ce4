"""Run a plan: one tile, stores, and the executors."""

from .prediction import plan, predict
from .saved import offload
from .whole import whole_volume

__all__ = ["offload", "plan", "predict", "whole_volume"]
