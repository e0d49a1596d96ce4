"""What lies at a path: finished, begun, or of others; and whether an output may go there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from .arrays import ASIDE, native
from .errors import ArgumentError, OutputExistsError, ResumeError
from .storage import Options, Place, Remote, check_takes_files, place

PathLike = str | os.PathLike[str] | Remote

ROOT = "zarr.json"
RECORD = "record.json"


def aside_of(path: PathLike) -> Place:
    """Folder for what belongs to the unfinished output at `path` alone."""
    return place(path) / ASIDE


def is_complete(path: PathLike) -> bool:
    """Whether `path` holds a committed Zarr group."""
    return (place(path) / ROOT).is_file()


def is_unfinished(path: PathLike) -> bool:
    """Whether `path` holds an output that was begun and not committed."""
    return (aside_of(path) / RECORD).is_file() and not is_complete(path)


def begun_with(path: PathLike) -> dict[str, Any]:
    """Return the record of the unfinished output at `path`; empty if there is no whole one."""
    try:
        found: dict[str, Any] = json.loads((aside_of(path) / RECORD).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return found


def check_free(path: PathLike, overwrite: bool = False, options: Options | None = None) -> Place:
    """Raise `OutputExistsError` if writing to `path` would lose something finished.

    And `ArgumentError` if nothing can be made there. An unfinished output of ours is not in the
    way: the call that writes it resumes it.
    """
    target = place(path, options)
    if isinstance(target, Path) and target.is_symlink():  # such as to a larger disk
        target = target.resolve()
    if target.name in ("", ".."):
        raise OutputExistsError(f"{target}: is no name of its own; name a folder to be made")
    if target.exists():
        if not isinstance(target, Remote) and not target.is_dir():
            raise OutputExistsError(f"{target}: is a file; choose another path")
        if target.is_dir() and not is_complete(target):
            begun = (target / ASIDE / ROOT).is_file()  # though the record may be missing yet
            if not begun and any(target.iterdir()):
                raise OutputExistsError(
                    f"{target}: is a folder of other things; choose another path"
                )
        elif not overwrite:
            raise OutputExistsError(
                f"{target}: already exists; choose another path or pass overwrite=True "
                "(--overwrite)"
            )
    if isinstance(target, Path):
        check_takes_files(target, target.parent)  # beside it is its lock
    return target


def check_goes_on(target: Place, record: Mapping[str, Any]) -> None:
    """Raise `ResumeError` if an unfinished output at `target` was begun with another record."""
    if is_unfinished(target) and (reason := hindrance(target, facts_of(record))) is not None:
        raise ResumeError(reason)


def check_apart(
    data: object, target: Place, options: Options | None = None, what: str = "the survey"
) -> None:
    """Raise `ArgumentError` if an output would take the place of what is read, of more, or a part.

    Parameters
    ----------
    data : xarray.DataArray, xarray.Dataset or path
        What is read; anything else lies nowhere.
    target : pathlib.Path or Remote
        Where the output will be.
    options : mapping, optional
        For fsspec, if `data` is where it lies in an object store.
    what : str
        That `data` is, in the message.
    """
    if isinstance(data, (xr.DataArray, xr.Dataset)):
        parts = [data, *(data.variables.values() if isinstance(data, xr.Dataset) else ())]
        read = {each.encoding["source"] for each in parts if "source" in each.encoding}
    else:
        read = {data} if isinstance(data, (str, os.PathLike, Remote)) else set()
    for where in (place(each, options) for each in read):
        if not isinstance(where, Remote) and not isinstance(target, Remote):
            where, target = where.resolve(), target.resolve()
        read_from, written = f"{where}/", f"{target}/"
        if read_from == written:
            how = "is"
        elif read_from.startswith(written):
            how = "holds"
        elif written.startswith(read_from) and is_complete(where):
            how = "lies within"  # as a variable of it does
        else:
            continue
        raise ArgumentError(f"{target}: {how} {what} that is read; choose another path")


def facts_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as it is read again: of tuples and NumPy scalars JSON makes others."""
    facts: dict[str, Any] = json.loads(json.dumps(dict(record), default=native))
    return facts


def differing(begun: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Say what another run was begun with; empty if with the same."""
    keys = sorted(k for k in begun.keys() | facts.keys() if begun.get(k) != facts.get(k))
    return "; ".join(f"{k}: {begun.get(k)!r}, now {facts.get(k)!r}" for k in keys)


def hindrance(target: Place, facts: dict[str, Any], variables: Iterable[str] = ()) -> str | None:
    """Say why an unfinished output cannot be gone on with; None if it can."""
    record, anew = target / ASIDE / RECORD, "pass overwrite=True (--overwrite) to begin anew"
    try:
        begun = dict(json.loads(record.read_text()))
    except (ValueError, TypeError):
        return f"{record}: is damaged; restore that file, or {anew}"
    if other := differing(begun, facts):
        return (
            f"{target}: holds an unfinished output begun with another {other}; "
            "run it again as before, or pass overwrite=True (--overwrite)"
        )
    for name in variables:
        if not (target / name / ROOT).is_file():
            return f"{target / name / ROOT}: gone; put it back, or {anew}"
    return None
