"""Where data lies: paths of a file system, and places in an object store that fsspec reaches.

`place` turns what a user names into one or the other. Both answer to the same few names of
`pathlib.Path`, so that what reads and writes need not ask which it has.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .errors import ArgumentError, OutcropError, OutputExistsError
from .patience import kind, patiently, refuses

# For fsspec: endpoint, credentials, ... Never shown, never written.
Options = Mapping[str, Any]
# Connections, made once for each process; what is keyed by holds the options.
_systems: dict[tuple[str, str, bool, int], Any] = {}


class Remote:
    """A file or folder of an object store, with those methods of `pathlib.Path` that it can have.

    What is written is there whole or not at all; a folder is there while something lies in it.

    Parameters
    ----------
    url : str
        Such as "s3://bucket/key".
    options : mapping, optional
        For fsspec; without them the environment says how to reach it.
    """

    def __init__(self, url: str, options: Options | None = None) -> None:
        self.scheme, _, key = url.partition("://")
        self.key = key.strip("/")
        self.options = dict(options or {})

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __repr__(self) -> str:
        return f"Remote({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self}/{name}", self.options)

    @property
    def name(self) -> str:
        """Last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        """What it lies in."""
        return Remote(f"{self.scheme}://{self.key.rpartition('/')[0]}", self.options)

    def absolute(self) -> Remote:
        """Return itself."""
        return self

    def system(self, asynchronous: bool = False) -> Any:
        """Return fsspec's file system.

        Raises
        ------
        OutcropError
            If a package for it is missing, or it is unknown.
        """
        known = repr(sorted(self.options.items()))
        key = self.scheme, known, asynchronous, os.getpid()
        if key not in _systems:
            import fsspec

            # Others write here too: no listing is remembered.
            how = {"use_listings_cache": False, "asynchronous": asynchronous, **self.options}
            try:
                _systems[key] = fsspec.filesystem(self.scheme, **how)
            except ImportError as error:
                package = {"s3": 'pip install "outcrop[s3]"'}.get(self.scheme)
                raise OutcropError(f"{self}: {error}; {package or 'install it'}") from None
            except ValueError as error:
                raise OutcropError(f"{self}: {error}; take a path, or s3://bucket/key") from None
        return _systems[key]

    def ask(self, what: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the file system; again, where the store refuses for a moment.

        Raises
        ------
        FileNotFoundError, FileExistsError
        OutcropError
            If the store refuses for good.
        """
        call = getattr(self.system(), what)
        with naming_refusal(self, "see to it, and run the same command again"):
            return patiently(partial(call, *arguments, **options))

    def _kind(self) -> str | None:
        """Return "file", "directory", or None where the store says that there is nothing."""
        # By `info`: what fsspec answers to `isfile` and `isdir` is False where the store refuses.
        try:
            return self.ask("info", self.key)["type"]
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        """Whether there is an object here, or one below."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Whether there is an object here."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there is none here, but one below."""
        return self._kind() == "directory"

    def iterdir(self) -> Iterator[Remote]:
        """Yield what lies directly below."""
        for key in self.ask("ls", self.key, detail=False):
            if key.strip("/") != self.key:
                yield Remote(f"{self.scheme}://{key}", self.options)

    def glob(self, pattern: str) -> Iterator[Remote]:
        """Yield what lies directly below and has a name like this."""
        with contextlib.suppress(FileNotFoundError):
            yield from (p for p in self.iterdir() if fnmatch.fnmatchcase(p.name, pattern))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: folders come with what lies in them."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete an object."""
        with contextlib.suppress(*([FileNotFoundError] if missing_ok else [])):
            self.ask("rm_file", self.key)

    def read_bytes(self) -> bytes:
        """Return what an object holds."""
        return self.ask("cat_file", self.key)

    def read_text(self) -> str:
        """Return what an object holds, as text."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        """Put an object here."""
        self.ask("pipe_file", self.key, data)

    def write_text(self, text: str) -> None:
        """Put an object here."""
        self.write_bytes(text.encode())

    def create(self, data: bytes) -> bool:
        """Put an object here unless there is one; return whether it was put.

        Of two callers in the same moment, a store that knows no such condition may tell both that
        it was.
        """
        return not self.is_file() and self._put(data, mode="create")

    def tag(self) -> str | None:
        """What the store tells this version of an object from others by, if it says so."""
        try:
            found = self.ask("info", self.key).get("ETag")
        except FileNotFoundError:
            return None
        return None if found is None else str(found)

    def replace(self, data: bytes, tag: str | None) -> bool:
        """Put an object in place of the version with this tag; return whether it was put.

        A store that has no tags, or knows no such condition, puts it whatever is there.
        """
        try:
            return self._put(data, **({} if tag is None else {"IfMatch": tag}))
        except FileNotFoundError:
            return False

    def _put(self, data: bytes, **condition: str) -> bool:
        """Put an object here on a condition, where the store knows it; return whether it was."""

        def put() -> bool | None:
            try:
                self.system().pipe_file(self.key, data, **condition)
            except FileExistsError:
                return False
            except Exception as error:
                if re.search("pre-?condition", str(error), re.IGNORECASE):
                    return False
                if condition and _knows_no_condition(error):
                    return None
                raise  # and ask again: another's object may be there by now
            return True

        with naming_refusal(self, "see to it, and run the same command again"):
            made = patiently(put)
        if made is None:
            self.write_bytes(data)
        return made is not False


def _knows_no_condition(error: Exception) -> bool:
    """Whether a store says that it cannot put an object on a condition."""
    response = getattr(error.__cause__, "response", None)
    if response is not None:
        told = str(response["Error"].get("Code"))
        return told in ("NotImplemented", "501", "InvalidArgument", "InvalidRequest")
    return isinstance(error, (NotImplementedError, TypeError)) or (
        kind(error) == "ParamValidationError"  # of a botocore that is older than conditions
    )


Place = Path | Remote


def place(path: str | os.PathLike[str] | Remote, options: Options | None = None) -> Place:
    """Say where `path` is.

    Parameters
    ----------
    path : path-like or str
        Of a file system, "~" for the home folder, or a URL that fsspec knows, such as
        "s3://bucket/key".
    options : mapping, optional
        For fsspec, with a URL.

    Raises
    ------
    ArgumentError
        If it is empty, there are credentials in the URL, or `pathlib` has spoiled it.
    """
    if isinstance(path, Remote):
        return path if options is None else Remote(str(path), options)
    text = os.path.expanduser(os.fspath(path))
    if not text:
        raise ArgumentError("a path is empty; name a file or a folder (is a variable not set?)")
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    scheme, found, rest = text.partition("://")
    if not found:
        if re.match(r"(s3|gs|gcs|abfs|az):/", text):
            raise ArgumentError(f"{text}: a pathlib.Path holds no URL; pass it as a string")
        return Path(text)
    owner, at, _ = rest.partition("/")[0].rpartition("@")
    # Azure's URLs have container@account there.
    if at and (scheme not in ("abfs", "abfss") or ":" in owner):
        raise ArgumentError(
            f"{scheme}://…: has credentials in it; put them into the environment or storage_options"
        )
    if not rest.strip("/"):
        raise ArgumentError(f"{text}: names no bucket; take {scheme}://bucket/key")
    return Remote(text, options)


def on_disk(path: str | os.PathLike[str] | Remote) -> Path:
    """Return `path` where only a file system will do.

    Raises
    ------
    ArgumentError
        If it is in an object store.
    """
    where = place(path)
    if isinstance(where, Remote):
        raise ArgumentError(f"{where}: this can be on a file system alone; pass a path")
    return where


@contextlib.contextmanager
def naming_refusal(where: object, then: str) -> Iterator[None]:
    """Turn what a full disk or an object store raises into one line.

    Parameters
    ----------
    where : place or path-like
        What is read or written in the block; an error of another file names that one.
    then : str
        What becomes of it.

    Raises
    ------
    OutcropError
        If the disk, the quota or the largest size of a file is used up, or the disk or an object
        store refuses, with the worker that was refused. That a file is there or is not passes, as
        do other errors.
    """
    try:
        yield
    except OutcropError:
        raise
    except Exception as error:
        named = getattr(error, "filename", None)
        if named and not str(named).startswith(str(where)):  # such as a scratch file
            where = named
        if worker := getattr(error, "worker", None):
            where = f"{where}, on {worker}"
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutcropError(f"{where}: no space left ({error.strerror}); {then}") from error
        absent = isinstance(error, FileNotFoundError) and "bucket does not exist" not in str(error)
        if absent or isinstance(error, FileExistsError) or not refuses(error):
            raise
        what = str(error).strip().partition("\n")[0]
        raise OutcropError(f"{where}: {kind(error)}: {what}; {then}") from error


def goes_on(overwrite: bool = False) -> str:
    """Say what becomes of an output after an error; `overwrite` if that would begin it anew."""
    how = "without overwrite (--overwrite) " if overwrite else ""
    return f"once that is mended, the same command {how}goes on where it stopped"


def remove(where: Place) -> None:
    """Delete a file, or a folder and all below; nothing there is fine."""
    if isinstance(where, Remote):
        remove_all(where, files(where))
    elif where.is_dir() and not where.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            patiently(partial(shutil.rmtree, where))  # in which a worker may still put something
    else:
        where.unlink(missing_ok=True)


def remove_all(folder: Remote, names: Collection[str]) -> None:
    """Delete objects below a place, by their names from there."""
    if _is_pattern(folder):
        for name in names:
            (folder / name).unlink(missing_ok=True)
    elif names:
        with contextlib.suppress(FileNotFoundError):
            folder.ask("rm", [f"{folder.key}/{name}".rstrip("/") for name in names])


def _is_pattern(where: Remote) -> bool:
    """Whether fsspec, asked for several keys at once, takes this one for a pattern of others."""
    return any(letter in where.key for letter in "*?[")


def check_takes_files(what: object, path: Path) -> None:
    """Raise `ArgumentError` about `what` if nothing can be made at `path`: before hours of work."""
    there = next(p for p in (path, *path.absolute().parents) if os.path.exists(p))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ArgumentError(f"{what}: {there} takes no files; choose another path")


@contextlib.contextmanager
def put_whole(path: Path) -> Iterator[Path]:
    """Give a path to write a file to, and move it to `path` once the block ends without an error.

    So `path` is there whole or as it was, whenever this process dies; what an error or an
    interruption leaves is deleted. `OutputExistsError` if it is a folder.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path}: is a folder; name a file")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_whole(where: Place, data: bytes) -> None:
    """Write a file that is there whole or not at all, whenever this process dies."""
    if isinstance(where, Remote):
        where.write_bytes(data)
        return
    with put_whole(where) as part:
        part.write_bytes(data)


def size(where: Place) -> int:
    """Bytes of all files below a folder."""
    if isinstance(where, Remote):
        return int(where.ask("du", where.key))
    return sum(f.stat().st_size for f in where.rglob("*") if f.is_file())


def files(where: Place) -> dict[str, int]:
    """Bytes of every file below a folder, by its path from there."""
    if isinstance(where, Remote):
        found = where.ask("find", where.key, detail=True)
        return {k[len(where.key) + 1 :]: int(facts["size"]) for k, facts in found.items()}
    return {
        f.relative_to(where).as_posix(): f.stat().st_size for f in where.rglob("*") if f.is_file()
    }


def read_all(where: Place) -> dict[str, bytes]:
    """Return every file below a folder, by its path from there; small ones are meant."""
    if isinstance(where, Remote) and not _is_pattern(where):
        keys = [f"{where.key}/{name}" for name in files(where)]
        found = where.ask("cat", keys, on_error="raise") if keys else {}
        if isinstance(found, bytes):  # of a single one
            found = {keys[0]: found}
        return {k[len(where.key) + 1 :]: data for k, data in found.items()}
    return {name: (where / name).read_bytes() for name in files(where)}
