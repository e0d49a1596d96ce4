"""A network seen as operators on grids: boxes, one rule per operator, capture."""

from .boxes import Box, tiles
from .capture import capture
from .graph import Graph, Node, Ref
from .rules import RULES, Rule

__all__ = ["RULES", "Box", "Graph", "Node", "Ref", "Rule", "capture", "tiles"]
