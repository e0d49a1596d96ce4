"""Run a plan: one tile, stores, and the executors."""

from .planning import plan
from .prediction import predict
from .saved import offload
from .several import predict_all
from .views import predict_views, refine
from .whole import whole_volume
from .windows import predict_windows

__all__ = [
    "offload",
    "plan",
    "predict",
    "predict_all",
    "predict_views",
    "predict_windows",
    "refine",
    "whole_volume",
]
