"""Surveys: SEG-Y, raw binary and Zarr, in and out; the labelled schema."""
