"""From a graph to a plan: stages, tiles and places, within a memory budget."""

from .plan import Plan, Stage, format_bytes, format_seconds, parse_bytes
from .planner import like, make_plan

__all__ = [
    "Plan",
    "Stage",
    "format_bytes",
    "format_seconds",
    "like",
    "make_plan",
    "parse_bytes",
]
