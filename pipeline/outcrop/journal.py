"""Which parts of an output are written, noted so that whoever goes on finds it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from .patience import patiently
from .storage import Place, Remote, write_whole

# In an object store nothing can be appended to: seconds between rewrites of the last object, and
# bytes from which on another is begun.
_EVERY = 1.0
_ENOUGH = 1 << 16


class Journal:
    """Lines in a file; in an object store, in a row of small objects.

    On a file system a line is there once `add` returns; in an object store within a second, so
    that a process that dies loses the notes of that second, and the parts are written again.

    Parameters
    ----------
    folder : path or Remote
    name : str
        Of the file, without suffix.
    check : callable, optional
        Called before an object is put; what it raises keeps that from being done.
    """

    def __init__(self, folder: Place, name: str, check: Callable[[], None] = lambda: None) -> None:
        self.folder, self.name, self.check = folder, name, check
        self.number, self.text, self.latest, self.put = 0, "", 0.0, True
        self.lock = threading.Lock()
        self.timer: threading.Timer | None = None

    def read(self) -> list[str]:
        """Return the lines that earlier processes added."""
        if isinstance(self.folder, Remote):
            found = sorted(self.folder.glob(f"{self.name}-*.txt"), key=lambda place: place.name)
            if found:
                self.number = 1 + int(found[-1].name.removesuffix(".txt").rpartition("-")[2])
            return "".join(place.read_text() for place in found).split("\n")[:-1]
        file = self.folder / f"{self.name}.txt"
        data = file.read_bytes() if file.exists() else b""
        # The interruption may have cut off the last line; nothing may be appended to it.
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(file, len(whole))
        # A machine that lost power may leave anything: of lines that are none nobody knows.
        return whole.decode(errors="replace").split("\n")[:-1]

    def add(self, line: str) -> None:
        """Note one line."""
        if not isinstance(self.folder, Remote):
            file = self.folder / f"{self.name}.txt"
            size = file.stat().st_size if file.exists() else 0
            patiently(partial(_append, file, size, f"{line}\n".encode()))
            return
        with self.lock:
            self.text, self.put = self.text + line + "\n", False
            wait = self.latest + _EVERY - time.monotonic()
            if wait <= 0:
                self._put()
            elif self.timer is None:
                self.timer = threading.Timer(wait, self._later)
                self.timer.daemon = True
                self.timer.start()

    def replace(self, lines: Sequence[str]) -> None:
        """Put these lines in the place of all that there are."""
        text = "".join(f"{line}\n" for line in lines)
        if not isinstance(self.folder, Remote):
            write_whole(self.folder / f"{self.name}.txt", text.encode())
            return
        # Whoever dies in between has no notes, and does it all again.
        for place in list(self.folder.glob(f"{self.name}-*.txt")):
            place.unlink(missing_ok=True)
        with self.lock:
            self.text = text
            self._put()

    def flush(self) -> None:
        """See to it that all lines are there."""
        with self.lock:
            if not self.put:
                self._put()

    def _later(self) -> None:
        """Flush, in a thread of its own: what goes wrong is told by the next call, which asks."""
        with contextlib.suppress(Exception):
            self.flush()

    def _put(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.check()
        (self.folder / f"{self.name}-{self.number:06}.txt").write_text(self.text)
        self.latest, self.put = time.monotonic(), True
        if len(self.text) > _ENOUGH:
            self.number, self.text = self.number + 1, ""


def _append(file: Path, size: int, data: bytes) -> None:
    """Write to the end of a file of that size, which an attempt before may have made longer."""
    with open(file, "ab") as opened:
        opened.truncate(size)
        opened.write(data)
