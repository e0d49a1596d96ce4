"""A network seen as operators on grids: boxes, one rule per operator, capture."""

from .boxes import Box, tiles
from .capture import capture
from .graph import Graph, Node, Ref
from .layout import Layout
from .rules import RULES, Reduce, Rule

__all__ = ["RULES", "Box", "Graph", "Layout", "Node", "Reduce", "Ref", "Rule", "capture", "tiles"]
