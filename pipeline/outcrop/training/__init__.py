"""Training data: synthetic surveys with every label known."""

from . import synthetic

__all__ = ["synthetic"]
