"""Pictures of surveys, of what was predicted on them, of plans, of runs, and of inversions."""

from .inversion import draw_gathers, draw_inversion, draw_misfit, draw_models
from .plans import draw_plan
from .report import report
from .sections import sections
from .surfaces import surfaces

__all__ = [
    "draw_gathers",
    "draw_inversion",
    "draw_misfit",
    "draw_models",
    "draw_plan",
    "report",
    "sections",
    "surfaces",
]
