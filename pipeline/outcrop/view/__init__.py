"""Pictures of surveys, of what was predicted on them, of plans and of runs."""

from .plans import draw_plan
from .report import report
from .sections import sections
from .surfaces import surfaces

__all__ = ["draw_plan", "report", "sections", "surfaces"]
