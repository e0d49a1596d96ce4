"""A Zarr dataset that opens as a dataset only once every part of it is written.

The arrays are created and filled in place, but the metadata of the root group is
kept aside until `Output.commit` puts it where readers look for it: one small write,
atomic on a file system and on an object store. Until then the path holds a record of
what is being written and a journal of the parts that are done, so that the same call
goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr
import zarr
from filelock import FileLock, Timeout

from .errors import OutcropError, OutputExistsError, ResumeError

_ASIDE = "unfinished"
_ROOT = "zarr.json"


def aside_of(path: str | os.PathLike[str]) -> Path:
    """Folder for what belongs to the unfinished output at `path` alone."""
    return Path(path) / _ASIDE


def is_complete(path: str | os.PathLike[str]) -> bool:
    """Whether `path` holds a committed Zarr group."""
    return (Path(path) / _ROOT).is_file()


def is_unfinished(path: str | os.PathLike[str]) -> bool:
    """Whether `path` holds an output that was begun and not committed."""
    return aside_of(path).is_dir() and not is_complete(path)


def check_free(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Raise `OutputExistsError` if writing to `path` would lose something finished.

    An unfinished output of ours is not in the way: the call that writes it resumes it.
    """
    target = Path(path)
    if not target.exists() or is_unfinished(target):
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.is_dir() and not is_complete(target):
        raise OutputExistsError(f"{target}: is a folder of other things; choose another path")
    if overwrite:
        return
    raise OutputExistsError(
        f"{target}: already exists; choose another path or pass overwrite=True (--overwrite)"
    )


@contextlib.contextmanager
def naming_full_disk(path: str | os.PathLike[str], then: str) -> Iterator[None]:
    """Turn the system's error for a full disk into one line about `path`.

    Parameters
    ----------
    path : path-like
        What is being written in the block.
    then : str
        What becomes of it.

    Raises
    ------
    OutcropError
        If the disk, the quota or the largest size of a file is used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OutcropError(f"{path}: no space left ({error.strerror}); {then}") from error


class Output:
    """A Zarr dataset being written, by one process at a time; a context that ends with the writing.

    Attributes
    ----------
    path : pathlib.Path
        Where the dataset will be.
    finished : set of str
        Keys of the parts that are done, those of an earlier, interrupted call included.
    resumed : bool
        Whether an earlier call had begun this output.
    """

    def __init__(self, path: Path, finished: set[str], resumed: bool, lock: FileLock) -> None:
        self.path = path
        self.finished = finished
        self.resumed = resumed
        self._lock = lock

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        _unlock(self._lock)

    @classmethod
    def begin(
        cls,
        path: str | os.PathLike[str],
        template: xr.Dataset,
        encoding: Mapping[str, Mapping[str, Any]],
        record: Mapping[str, Any],
        overwrite: bool = False,
    ) -> Output:
        """Create the arrays of `template`, or take up an interrupted output.

        Parameters
        ----------
        path : path-like
            Directory to write.
        template : xarray.Dataset
            Its NumPy variables are written now; its Dask variables are created empty.
        encoding : mapping
            Zarr encoding of each variable (`chunks`, `shards`, `compressors`, ...).
        record : mapping
            JSON-serialisable facts that must be equal for a later call to resume this one.
        overwrite : bool
            Remove what lies at `path` first.

        Raises
        ------
        OutputExistsError
            If `path` holds something else, or another process is writing it.
        ResumeError
            If an unfinished output at `path` was begun with another record.
        """
        target = Path(path)
        check_free(target, overwrite)
        lock = _locked(target)
        try:
            return cls(target, *cls._begin(target, template, encoding, record, overwrite), lock)
        except BaseException:
            _unlock(lock)
            raise

    @classmethod
    def _begin(
        cls,
        target: Path,
        template: xr.Dataset,
        encoding: Mapping[str, Mapping[str, Any]],
        record: Mapping[str, Any],
        overwrite: bool,
    ) -> tuple[set[str], bool]:
        """Return what is finished, and whether an earlier call began."""
        aside = aside_of(target)
        # A round trip through JSON, so that tuples and NumPy scalars compare as they are read.
        facts = json.loads(json.dumps(dict(record)))
        if is_unfinished(target) and not overwrite:
            begun = json.loads((aside / "record.json").read_text())
            differing = sorted(
                k for k in begun.keys() | facts.keys() if begun.get(k) != facts.get(k)
            )
            if differing:
                what = "; ".join(f"{k}: {begun.get(k)!r}, now {facts.get(k)!r}" for k in differing)
                raise ResumeError(
                    f"{target}: holds an unfinished output begun with another {what}; "
                    "run it again as before, or pass overwrite=True (--overwrite)"
                )
            journal = aside / "finished.txt"
            text = journal.read_text() if journal.exists() else ""
            # The interruption may have cut off the last line; nothing may be appended to it.
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                os.truncate(journal, len(whole.encode()))
            lines = whole.split("\n")[:-1]
            return set(lines), True

        # Made beside the target and moved there without its root: a call that dies anywhere in
        # here leaves nothing at `path` that opens.
        made = target.parent / f".{target.name}.begin"
        shutil.rmtree(made, ignore_errors=True)
        try:
            template.to_zarr(
                made, mode="w", compute=False, consolidated=False, zarr_format=3, encoding=encoding
            )
            (made / _ASIDE).mkdir()
            os.replace(made / _ROOT, made / _ASIDE / _ROOT)
            (made / _ASIDE / "record.json").write_text(json.dumps(facts, indent=1))
        except BaseException:  # such as no space left
            shutil.rmtree(made, ignore_errors=True)
            raise
        if target.is_dir():
            shutil.rmtree(target)
        elif target.exists():
            target.unlink()
        os.replace(made, target)
        return set(), False

    @property
    def aside(self) -> Path:
        """Folder for what belongs to the unfinished output alone; gone once it is committed."""
        return aside_of(self.path)

    def array(self, name: str) -> zarr.Array:
        """Open one variable for writing."""
        return zarr.open_array(self.path / name, mode="r+")

    def finish(self, key: str) -> None:
        """Note in the journal that the part called `key` is written."""
        self.finished.add(key)
        with open(self.aside / "finished.txt", "a") as journal:
            journal.write(key + "\n")

    def commit(self, attributes: Mapping[str, Any] | None = None) -> None:
        """Make the dataset whole: from here on it opens.

        Parameters
        ----------
        attributes : mapping, optional
            Attributes to add to the dataset, known only now.
        """
        aside = self.aside
        root = json.loads((aside / _ROOT).read_text())
        root["attributes"] = {**root.get("attributes", {}), **(attributes or {})}
        whole = self.path / (_ROOT + ".new")
        whole.write_text(json.dumps(root, indent=1))
        os.replace(whole, self.path / _ROOT)
        # Losing the consolidated metadata or leaving the journal would cost time, not data.
        with contextlib.suppress(OSError):
            shutil.rmtree(aside)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            zarr.consolidate_metadata(self.path)


def _locked(target: Path) -> FileLock:
    """Take the right to write `target`; it ends with this process at the latest."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputExistsError(
            f"{target}: another process is writing it; wait until it is done, or choose another "
            "path"
        ) from None
    return lock


def _unlock(lock: FileLock) -> None:
    # Removed while it is held: whoever opened it meanwhile finds out and opens another.
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)
    lock.release()
