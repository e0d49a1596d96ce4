"""All observed traces, looked at before the first of them is inverted."""

from __future__ import annotations

import hashlib
import warnings

from ..errors import ResumeError, SurveyError
from ..output import Output
from .experiment import Experiment
from .tasks import Team

_CHECKED = 64  # shots whose traces one task looks at
_SEEN = "checked "  # in the journal, before the digest of the traces


def check_traces(
    team: Team, output: Output, experiment: Experiment, *, encoded: bool = False
) -> str:
    """Look at every observed trace, and return the SHA-256 of all.

    Raises
    ------
    SurveyError
        If one is not finite, a shot silent, or, where shots are encoded, a trace.
    ResumeError
        If an earlier call began with others.
    """
    count = experiment.gathers.count
    pieces = (tuple(range(k, min(k + _CHECKED, count))) for k in range(0, count, _CHECKED))
    found: dict[tuple[int, ...], tuple[str, int]] = {}
    team.run(
        (("check", piece) for piece in pieces), lambda task, told: found.update({task[1]: told})
    )
    name = experiment.path or "shots"
    if silent := sum(count for _, count in found.values()):
        if encoded:
            raise SurveyError(
                f"{name}: {silent:,} traces are zero throughout, and with encoding shots that fire "
                "together need all; leave out their receivers, or choose subset"
            )
        warnings.warn(
            f"{name}: {silent:,} traces are zero throughout; they are left out as dead",
            stacklevel=3,
        )
    traces = hashlib.sha256("".join(found[p][0] for p in sorted(found)).encode()).hexdigest()
    begun = {key for key in output.finished if key.startswith(_SEEN)}
    if begun - {_SEEN + traces}:
        raise ResumeError(
            f"{output.path}: holds an unfinished output begun with other traces than those of "
            f"{experiment.path or 'the shots'} now; pass those again, or overwrite=True "
            "(--overwrite)"
        )
    if not begun:
        output.finish(_SEEN + traces)
    return traces
