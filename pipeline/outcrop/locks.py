"""The right to write an output: of one process at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .arrays import ASIDE
from .errors import OutcropError, OutputExistsError
from .storage import Place, Remote, write_whole

log = logging.getLogger(__name__)

# Seconds: between two signs of life, after which without one a process is taken for dead, and in
# which whoever takes over finds out that another did, too.
BEAT, DEAD, SETTLE = 5.0, 20.0, 1.0
# In the folder of what belongs to an unfinished output alone: the name of the run that writes it.
RUN = "run"
# What a file system answers that knows no locks; 524 is Linux's ENOTSUPP, which has no name here.
_LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, 524)


@dataclass(frozen=True)
class Fence:
    """Keeps tasks of a run that is over out of what another run writes to the same place.

    Attributes
    ----------
    output : pathlib.Path or Remote
    run : str
        Of whoever may write.
    """

    output: Place
    run: str

    def check(self) -> None:
        """Raise `OutputExistsError` if another run has begun, or the output is whole.

        Raises
        ------
        OutcropError
            If there is no output, as on a machine that does not see it.
        """
        try:
            found = (self.output / ASIDE / RUN).read_text()
        except (FileNotFoundError, NotADirectoryError):
            found = ""
        if not found and not (self.output / "zarr.json").is_file():
            raise OutcropError(
                f"{self.output}: is not to be seen from {platform.node()}; take a path that is the "
                "same on every machine, or put it back"
            )
        if found != self.run:
            raise OutputExistsError(
                f"{self.output}: the run that this tile belongs to is over; it is not written"
            )


class Lock(Protocol):
    """The right to write something, from `take` until `release`."""

    def take(self) -> None:
        """Take it, or raise as `take` does; whatever is raised, `release` is called then."""

    def check(self) -> None:
        """Raise `OutputExistsError` if another process has taken it over."""

    def release(self) -> None:
        """Give it up, if it is held."""


def lock_of(target: Place) -> Lock:
    """Return what locks `target`; it is not taken yet."""
    if isinstance(target, Remote):
        return _ObjectLock(target, target.parent / f".{target.name}.lock")
    return _SystemLock(target)


@contextlib.contextmanager
def taken(target: Place) -> Iterator[None]:
    """Hold the right to write `target`.

    Raises
    ------
    OutputExistsError
        If another process has it.
    OutcropError
        If it cannot be written there.
    """
    lock = lock_of(target)
    try:
        lock.take()
        yield
    finally:
        lock.release()


def check_untaken(target: Place) -> None:
    """Raise `OutputExistsError` if another process writes `target` now; nothing is made."""
    beside = [target.parent / f".{target.name}.lock"]
    if isinstance(target, Path):
        beside.append(target.parent / f".{target.name}.running")
    if any(each.exists() for each in beside):
        with taken(target):
            pass


def _taken(target: Place) -> OutputExistsError:
    return OutputExistsError(
        f"{target}: another process is writing it; wait until it is done, or choose another path"
    )


class _SystemLock:
    """A lock of the file system: it ends with this process at the latest.

    Where the file system knows none, as some Lustre and NFS, a file that is rewritten instead.
    """

    def __init__(self, target: Path) -> None:
        self.target, self.file = target, target.parent / f".{target.name}.lock"
        self.opened: int | None = None
        self.instead: _ObjectLock | None = None

    def take(self) -> None:
        target = self.target
        _SYSTEM_LOCKS.add(self)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            while not self._lock():
                self._close()
        except BlockingIOError:
            self._close()
            raise _taken(target) from None
        except OSError as error:
            if self.opened is not None and error.errno in _LOCKLESS:
                self.file.unlink(missing_ok=True)
                self._close()
                signs = target.parent / f".{target.name}.running"
                self.instead = _ObjectLock(target, _LockFile(signs))
                self.instead.take()
                return
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # which callers say more of
                raise
            raise OutcropError(
                f"{target}: cannot be written ({error}); choose another path, or see to that one"
            ) from None

    def _lock(self) -> bool:
        """Lock the file; False if whoever had it has removed it in the same moment."""
        self.opened = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
        _flock(self.opened)
        try:
            return os.path.samestat(os.fstat(self.opened), os.stat(self.file))
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        if self.opened is not None:
            os.close(self.opened)
            self.opened = None

    def check(self) -> None:
        if self.instead is not None:
            self.instead.check()

    def release(self) -> None:
        if self.instead is not None:
            self.instead.release()
        if self.opened is not None:
            with contextlib.suppress(OSError):
                # Once more: an interruption may have come before, and it be that of another.
                _flock(self.opened)
                # While it is held: whoever opened it meanwhile finds out and opens another.
                os.unlink(self.file)
        self._close()


_SYSTEM_LOCKS: weakref.WeakSet[_SystemLock] = weakref.WeakSet()


def _forget_locks() -> None:
    for lock in _SYSTEM_LOCKS:
        lock._close()


if hasattr(os, "register_at_fork"):
    # Processes that are forked, such as a DataLoader's, would hold locks beyond this one's end.
    os.register_at_fork(after_in_child=_forget_locks)


def _flock(file: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@dataclass(frozen=True)
class _LockFile:
    """A file with those methods of `Remote` that a lock takes; what is put knows no conditions."""

    path: Path

    def create(self, data: bytes) -> bool:
        try:
            with open(self.path, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def tag(self) -> None:
        return None

    def replace(self, data: bytes, tag: str | None) -> bool:
        self.write_bytes(data)
        return True

    def read_bytes(self) -> bytes:
        return self.path.read_bytes()

    def write_bytes(self, data: bytes) -> None:
        write_whole(self.path, data)

    def unlink(self, missing_ok: bool = False) -> None:
        self.path.unlink(missing_ok)


class _ObjectLock:
    """An object beside the target that its owner rewrites every few seconds.

    It is created on the condition that there is none. One that is not rewritten for `DEAD` seconds
    belongs to a process that died, and is taken over. No clocks are compared.
    """

    def __init__(self, target: Place, at: Remote | _LockFile) -> None:
        self.target, self.object = target, at
        self.owner, self.beats = uuid.uuid4().hex, 0
        self.lost, self.over = False, threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def take(self) -> None:
        try:
            while not self.object.create(self._sign()):
                # A connection that was lost may have put it all the same.
                if self._is_ours() or self._outlive():
                    break
        except Exception:
            self.lost = True
            raise
        self.thread.start()

    def _sign(self) -> bytes:
        self.beats += 1
        return json.dumps(
            {"owner": self.owner, "host": socket.gethostname(), "pid": os.getpid(),
             "beats": self.beats}
        ).encode()  # fmt: skip

    def _read(self) -> bytes | None:
        try:
            return self.object.read_bytes()
        except FileNotFoundError:
            return None

    def _outlive(self) -> bool:
        """Watch a lock, and take it over if its owner is dead; False if it was given up."""
        seen, since = self._read(), time.monotonic()
        if seen is not None:
            log.warning(
                "%s: another process was writing it; waiting up to %g s to see whether it still is",
                self.target,
                DEAD,
            )
        while time.monotonic() < since + DEAD:
            time.sleep(min(1.0, BEAT / 5))
            found = self._read()
            if found is None:
                return False
            if found != seen:
                raise _taken(self.target)
        self.object.write_bytes(self._sign())
        time.sleep(SETTLE)
        if not self._is_ours():
            raise _taken(self.target)
        return True

    def _is_ours(self) -> bool:
        return self.owner.encode() in (self._read() or b"")

    def _beat(self) -> None:
        while not self.over.wait(BEAT):
            with contextlib.suppress(Exception):  # the store may answer again in a moment
                # By its tag: another process may take it over right after we looked.
                tag = self.object.tag()
                kept = self._is_ours() and self.object.replace(self._sign(), tag)
                # A connection that was lost may have put it all the same.
                if not kept and not self._is_ours():
                    self.lost = True
                    return

    def check(self) -> None:
        if self.lost:
            raise _taken(self.target)

    def release(self) -> None:
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()
        with contextlib.suppress(Exception):
            if not self.lost and self._is_ours():
                self.object.unlink(missing_ok=True)
