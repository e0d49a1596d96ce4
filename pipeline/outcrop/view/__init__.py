"""Pictures of surveys and of what was predicted on them."""

from .sections import sections

__all__ = ["sections"]
