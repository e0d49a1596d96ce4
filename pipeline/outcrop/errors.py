"""What can go wrong, by kind; every message says what, where, and what to do."""

from __future__ import annotations


class OutcropError(Exception):
    """Base of every error that outcrop raises on purpose."""


class ArgumentError(OutcropError, ValueError):
    """An argument that is none of the allowed values."""


class SegyError(OutcropError):
    """The file is not SEG-Y, or not the SEG-Y that it says it is."""


class GeometryError(OutcropError):
    """Traces that do not lie on a grid of inlines and crosslines."""


class SurveyError(OutcropError):
    """A survey that lacks what is asked of it, or samples that are not finite."""


class MissingChunkError(SurveyError):
    """A chunk that was written and is not there any more."""


class TrainingDataError(OutcropError):
    """Data to train with that is missing, of the wrong shape, or not finite."""


class TrainingDivergedError(OutcropError):
    """A network whose outputs became NaN or infinite while it was trained."""


class NonFiniteError(OutcropError):
    """A prediction that is NaN or infinite somewhere."""


class OutputExistsError(OutcropError):
    """The output path is taken."""


class ResumeError(OutcropError):
    """An unfinished output that was begun with something else."""


class WeightsError(OutcropError):
    """Weights that do not fit the network, or a file that cannot be read safely."""


class UnsupportedOperatorError(OutcropError):
    """An operator without a rule, or a module that cannot be captured."""


class MemoryBudgetError(OutcropError):
    """No plan fits the memory that the user stated."""
