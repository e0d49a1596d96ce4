"""Pictures of surveys, of what was predicted on them, of plans, and of inversions."""

from .inversion import draw_gathers, draw_inversion, draw_misfit, draw_models
from .plans import draw_plan
from .sections import sections
from .surfaces import surfaces

__all__ = [
    "draw_gathers",
    "draw_inversion",
    "draw_misfit",
    "draw_models",
    "draw_plan",
    "sections",
    "surfaces",
]
