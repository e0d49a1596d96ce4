"""A Zarr dataset that opens as a dataset only once every part of it is written.

The arrays are created and filled in place, but the metadata of the root group is
kept aside until `Output.commit` puts it where readers look for it: one small write,
atomic on a file system and on an object store. Until then the path holds a record of
what is being written and a journal of the parts that are done, so that the same call
goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr
import zarr
from zarr.storage import MemoryStore

from .arrays import ASIDE, CHECKSUMS, NOTES, Noting, native, open_for_writing, store_of
from .errors import OutcropError, OutputExistsError, ResumeError
from .journal import Journal
from .locks import RUN, Fence, Lock, lock_of
from .patience import patiently
from .storage import Place, Remote, files, read_all, remove, remove_all, write_whole
from .targets import (
    RECORD,
    ROOT,
    PathLike,
    aside_of,
    check_free,
    facts_of,
    hindrance,
    is_complete,
    is_unfinished,
)


class Output:
    """A Zarr dataset being written, by one process at a time; a context that ends with the writing.

    Attributes
    ----------
    path : pathlib.Path or Remote
        Where the dataset will be.
    finished : set of str
        Keys of the parts that are done, those of an earlier, interrupted call included.
    resumed : bool
        Whether an earlier call had begun this output.
    fence : Fence
        For whatever writes and may outlast this call, or the right to write: tasks on other
        machines; this process too, which may have been suspended.
    """

    def __init__(self, path: Place, resumed: bool, lock: Lock) -> None:
        self.path = path
        self.resumed = resumed
        self._lock, self._whole = lock, False
        self._journal = Journal(self.aside, "finished", self.check)
        self.finished = set(self._journal.read()) if resumed else set()
        self.fence = Fence(path.absolute(), uuid.uuid4().hex)  # workers are elsewhere
        write_whole(self.aside / RUN, self.fence.run.encode())

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        lost = None
        try:
            if not self._whole:
                self.check()
            self._journal.flush()
        except OutputExistsError as found:
            lost = found
        except Exception:  # what went wrong before is what is told
            pass
        self._lock.release()
        # Without its output a run fails in many ways: this is what all of them come of.
        if lost is not None and isinstance(error, Exception):
            raise OutputExistsError(
                f"{self.path}: another process took it over, since this one gave no sign of life "
                "for a while; this run is over, and writes nothing more"
            ) from error

    def check(self) -> None:
        """Raise `OutputExistsError` if another process has taken the output over."""
        self._lock.check()
        self.fence.check()  # a process that was suspended may have lost its lock

    @classmethod
    def begin(
        cls,
        path: PathLike,
        template: xr.Dataset,
        encoding: Mapping[str, Mapping[str, Any]],
        record: Mapping[str, Any],
        overwrite: bool = False,
        notes: Mapping[str, str] | None = None,
        goes_on: bool = False,
    ) -> Output:
        """Create the arrays of `template`, or take up an interrupted output.

        Parameters
        ----------
        path : path-like or Remote
            Folder to write.
        template : xarray.Dataset
            Its NumPy variables are written now; its Dask variables are created empty.
        encoding : mapping
            Zarr encoding of each variable (`chunks`, `shards`, `compressors`, ...).
        record : mapping
            JSON-serialisable facts that must be equal for a later call to resume this one.
        overwrite : bool
            Remove what lies at `path` first.
        notes : mapping of str to str, optional
            Texts by their file's name, to put into `aside` before anything can be taken up.
        goes_on : bool
            Take up what was begun with the same record although `overwrite` is given: an earlier
            such call was interrupted.

        Raises
        ------
        OutputExistsError
            If `path` holds something else, or another process is writing it.
        ResumeError
            If an unfinished output at `path` was begun with another record, or that is damaged.
        """
        target = check_free(path, overwrite)
        lock = lock_of(target)
        try:
            lock.take()
            if isinstance(target, Path):
                _tidy(target)
            check_free(target, overwrite)  # another may have finished it until the lock was free
            resumed = cls._begin(
                target, template, encoding, record, overwrite, notes or {}, goes_on
            )
            return cls(target, resumed, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _begin(
        cls,
        target: Place,
        template: xr.Dataset,
        encoding: Mapping[str, Mapping[str, Any]],
        record: Mapping[str, Any],
        overwrite: bool,
        notes: Mapping[str, str],
        goes_on: bool,
    ) -> bool:
        """Return whether an earlier call began."""
        facts = facts_of(record)
        if is_unfinished(target) and (goes_on or not overwrite):
            reason = hindrance(target, facts, map(str, template.variables))
            if reason is None:
                return True
            if not overwrite:
                raise ResumeError(reason)

        def create(store: Any) -> None:
            with _no_members():
                template.to_zarr(
                    Noting(store),
                    mode="w",
                    compute=False,
                    consolidated=False,
                    zarr_format=3,
                    encoding=encoding,
                    write_empty_chunks=True,
                )

        # In memory first: Zarr writes in a thread of its own, which no interruption stops.
        made: dict[str, Any] = {}
        create(MemoryStore(made))
        made[f"{ASIDE}/{ROOT}"] = made.pop(ROOT)
        texts = {**notes, RECORD: json.dumps(facts, indent=1)}
        if isinstance(target, Remote):
            # Nothing can be moved there: the root goes aside first, the record comes last.
            parts = {f"{target.key}/{key}": data.to_bytes() for key, data in made.items()}
            _remove_all_but_root(target, parts.pop(f"{target.key}/{ASIDE}/{ROOT}"))
            target.ask("pipe", parts)
            for name, text in texts.items():
                (target / ASIDE / name).write_text(text)
            return False

        # Made beside the target and moved there without its root: a call that dies anywhere in
        # here leaves nothing at `path` that opens.
        beside = target.parent / f".{target.name}.begin"
        remove(beside)
        try:
            for key, data in made.items():
                (beside / key).parent.mkdir(parents=True, exist_ok=True)
                (beside / key).write_bytes(data.as_numpy_array())
            for name, text in texts.items():
                (beside / ASIDE / name).write_text(text)
            if target.exists():  # to delete it takes time, and half of it might open
                os.replace(target, _old(target))
            os.replace(beside, target)
        except BaseException:  # such as no space left
            with contextlib.suppress(OSError):
                remove(beside)
            with contextlib.suppress(OSError):
                _tidy(target)
            raise
        _tidy(target)
        return False

    @property
    def aside(self) -> Place:
        """Folder for what belongs to the unfinished output alone; gone once it is committed."""
        return aside_of(self.path)

    def array(self, name: str) -> zarr.Array:
        """Open one variable for writing."""
        return open_for_writing(self.path / name)

    def finish(self, key: str) -> None:
        """Note in the journal that the part called `key` is written."""
        self._lock.check()
        self.finished.add(key)
        self._journal.add(key)

    def forget(self, keys: Collection[str]) -> None:
        """Note in the journal that parts are not written, whatever it said before."""
        self.check()
        self.finished -= set(keys)
        self._journal.replace(sorted(self.finished))

    def flush(self) -> None:
        """See to it that the journal is stored: what it makes needless may be deleted then."""
        self.check()
        self._journal.flush()

    def commit(self, attributes: Mapping[str, Any] | None = None) -> None:
        """Make the dataset whole: from here on it opens.

        Parameters
        ----------
        attributes : mapping, optional
            Attributes to add to the dataset, known only now.
        """
        self.flush()
        self._keep_checksums()
        root = json.loads((self.aside / ROOT).read_text())
        root["attributes"] = {**root.get("attributes", {}), **(attributes or {})}
        text = json.dumps(root, indent=1, default=native)
        self.check()
        patiently(partial(write_whole, self.path / ROOT, text.encode()))
        self._whole = True
        # Losing the consolidated metadata or leaving the journal would cost time, not data.
        with contextlib.suppress(Exception):
            remove(self.aside)
        with contextlib.suppress(Exception), _no_members():
            zarr.consolidate_metadata(store_of(self.path))

    def _keep_checksums(self) -> None:
        """Gather the notes of all that was written, one file for each array."""
        arrays: dict[str, dict[str, str]] = {}
        for key, note in sorted(read_all(self.aside / NOTES).items()):
            array, slash, name = key.partition("/")
            if slash:  # the root's own metadata is not final yet
                arrays.setdefault(array, {})[name] = note.decode()
        for array, notes in arrays.items():
            data = json.dumps(notes, indent=0).encode()
            patiently(partial(write_whole, self.path / array / CHECKSUMS, data))


def _old(target: Path) -> Path:
    """Where what is overwritten lies until it is deleted."""
    return target.parent / f".{target.name}.old"


def _tidy(target: Path) -> None:
    """Delete what was overwritten; put it back where nothing has come to its place."""
    old = _old(target)
    if is_complete(old) and not target.exists():
        os.replace(old, target)
        return
    (old / ROOT).unlink(missing_ok=True)  # first: half of it is never put back
    remove(old)


def _remove_all_but_root(target: Remote, root: bytes) -> None:
    """Delete what lies at a place; leave an output that is begun, however far that gets."""
    aside = target / ASIDE
    (aside / RECORD).unlink(missing_ok=True)
    (aside / ROOT).write_bytes(root)
    (target / ROOT).unlink(missing_ok=True)

    def others() -> list[str]:
        return [name for name in files(target) if name != f"{ASIDE}/{ROOT}"]

    remove_all(target, others())
    if left := others():  # s3fs says nothing of objects that the store does not delete
        raise OutcropError(
            f"{target / left[0]}: cannot be deleted; see to it, or choose another path"
        )


@contextlib.contextmanager
def _no_members() -> Iterator[None]:
    """Let Zarr be silent about what lies beside the arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        yield
