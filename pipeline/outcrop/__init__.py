"""Whole seismic surveys through deep networks: exact, seamless, within a memory budget."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import heap
from .errors import OutcropError

__version__ = "0.1.0"

# Before others make threads, each with a heap that stays.
heap.share()

# Where each public name lives; imported on first use, so that `import outcrop` is fast.
_LAZY = {
    "ingest": "outcrop.survey",
    "info": "outcrop.survey",
    "open": "outcrop.survey",
    "export": "outcrop.survey",
    "offload": "outcrop.engine",
    "plan": "outcrop.engine",
    "predict": "outcrop.engine",
    "predict_all": "outcrop.engine",
    "predict_views": "outcrop.engine",
    "predict_windows": "outcrop.engine",
    "refine": "outcrop.engine",
    "whole_volume": "outcrop.engine",
    "verify": "outcrop.verification",
    "Record": "outcrop.record",
    "cluster": "outcrop.cluster",
    "demo": "outcrop.demo",
    "errors": "outcrop.errors",
    "events": "outcrop.events",
    "gaps": "outcrop.gaps",
    "horizons": "outcrop.horizons",
    "inversion": "outcrop.inversion",
    "models": "outcrop.models",
    "picks": "outcrop.picks",
    "training": "outcrop.training",
    "view": "outcrop.view",
}

__all__ = ["OutcropError", "__version__", *_LAZY]

if TYPE_CHECKING:
    from . import cluster as cluster
    from . import demo as demo
    from . import errors as errors
    from . import events as events
    from . import gaps as gaps
    from . import horizons as horizons
    from . import inversion as inversion
    from . import models as models
    from . import picks as picks
    from . import training as training
    from . import view as view
    from .engine import offload as offload
    from .engine import plan as plan
    from .engine import predict as predict
    from .engine import predict_all as predict_all
    from .engine import predict_views as predict_views
    from .engine import predict_windows as predict_windows
    from .engine import refine as refine
    from .engine import whole_volume as whole_volume
    from .record import Record as Record
    from .survey.export import export as export
    from .survey.info import info as info
    from .survey.ingest import ingest as ingest
    from .survey.reading import open as open
    from .verification import verify as verify


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'outcrop' has no attribute {name!r}")
    home = _LAZY[name]
    if home == f"outcrop.{name}":
        value: Any = importlib.import_module(home)
    else:
        value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
