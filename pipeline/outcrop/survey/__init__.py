"""Surveys: SEG-Y, raw binary and Zarr, in and out; the labelled schema."""

from .export import export
from .info import info
from .ingest import ingest, is_ingested
from .reading import open

__all__ = ["export", "info", "ingest", "is_ingested", "open"]
