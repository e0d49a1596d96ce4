"""Pictures of surveys, of what was predicted on them, and of plans."""

from .plans import draw_plan
from .sections import sections
from .surfaces import surfaces

__all__ = ["draw_plan", "sections", "surfaces"]
