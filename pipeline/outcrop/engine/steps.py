"""What comes before the last of several predictions: where it lies, and what is told of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import __version__
from ..errors import OutcropError, ResumeError, SurveyError
from ..events import Begin, End, Listener, tell
from ..locks import check_untaken, taken
from ..storage import Place, goes_on, naming_refusal, remove, write_whole
from ..targets import begun_with, differing, is_complete, is_unfinished
from ..verification import verify


@contextlib.contextmanager
def steps(
    target: Place, record: Mapping[str, Any], last: Mapping[str, Any], overwrite: bool
) -> Iterator[Place]:
    """Give a folder beside the output for what comes before it; gone once that is whole.

    Raise before anything is evaluated if the output could not be begun, nor gone on with as it was
    begun by a last step with the facts `last`.
    """
    check_untaken(target)
    begun = begun_with(target) if is_unfinished(target) and not overwrite else {}
    if begun and any(begun.get(k) != v for k, v in last.items()):
        raise ResumeError(
            f"{target}: holds an unfinished prediction of something else, by {begun.get('model')}; "
            "run it again as before, choose another path, or pass overwrite=True (--overwrite)"
        )
    folder = target.parent / f"{target.name}.steps"
    facts = json.loads(json.dumps({**record, "outcrop_version": __version__}))
    note, anew = folder / "record.json", "pass overwrite=True (--overwrite)"
    with taken(folder):
        with naming_refusal(folder, goes_on()):
            hindrance = None
            if note.exists():
                try:
                    begun = dict(json.loads(note.read_text()))
                except (ValueError, TypeError):
                    hindrance = f"{note}: is damaged; restore that file, or {anew} to begin anew"
                else:
                    if other := differing(begun, facts):
                        hindrance = (
                            f"{folder}: begun with another {other}; run it again as before, or "
                            f"{anew}"
                        )
            if hindrance is not None:
                if not overwrite:
                    raise ResumeError(hindrance)
                remove(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(note, json.dumps(facts, indent=1).encode())
        try:
            yield folder
        except BaseException:
            with contextlib.suppress(OSError, OutcropError):
                if [each.name for each in folder.iterdir()] == [note.name]:  # of a wrong option
                    remove(folder)
            raise
        remove(folder)


@contextlib.contextmanager
def told(
    target: Place, voxels: int, record: Mapping[str, Any], listeners: Sequence[Listener]
) -> Iterator[None]:
    """Tell of what is merged, beside its views: its end, or what stopped it."""
    output = str(target)
    none: dict[str, Any] = {"tiles": 0, "finished": 0, "share": 0.0, "peak_memory": 0, "stages": ()}
    tell(listeners, Begin(output=output, voxels=voxels, volumes=1, provenance=record, **none))
    try:
        yield
    except BaseException as error:
        tell(listeners, End(output=output, error=str(error) or type(error).__name__))
        raise
    tell(listeners, End(output=output))


def is_kept(part: Place, overwrite: bool) -> bool:
    """Whether a step is there whole; looked at closely where the user may have found damage."""
    if not overwrite or not is_complete(part):
        return is_complete(part)
    try:
        return not verify(part).damage
    except SurveyError:
        return False
