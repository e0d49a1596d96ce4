"""Scratch files: where tensors live on disk while a run needs them."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ArgumentError, OutcropError
from ..pages import mapped
from ..storage import size as size_of


def scratch_folder(option: str, path: str | os.PathLike[str] | None) -> Path:
    """Return the folder that the user chose with `option`, or the system's for temporary files.

    Raises
    ------
    ArgumentError
        If it is not a folder.
    """
    folder = Path(tempfile.gettempdir() if path is None else path)
    if not folder.is_dir():
        raise ArgumentError(f"{option} {folder}: not a folder; create it or choose another")
    return folder


def check_space(folder: Path, need: int) -> None:
    """Raise `OutcropError` if a disk has less left than tensors between stages take at once.

    Parameters
    ----------
    folder : pathlib.Path
        Where they will lie; it need not be there.
    need : int
        Bytes.
    """
    free = _free(folder)
    if need > free:
        raise OutcropError(
            f"{folder}: no space left: tensors between stages take {need / 1e9:.3g} GB at once and "
            f"{free / 1e9:.3g} GB are free; free some, or choose another storage_path "
            "(--storage-path) or storage_mode='none' (--storage-mode none)"
        )


def warn_of_space(output: Path, need: int) -> None:
    """Warn if an output, whose bytes before compression are given, may not fit its disk."""
    free = _free(output) + (size_of(output) if output.is_dir() else 0)  # which it replaces
    if need > free:
        warnings.warn(
            f"{output}: may not fit: it takes {need / 1e9:.3g} GB before compression and "
            f"{free / 1e9:.3g} GB are free; a run that finds the disk full goes on later",
            stacklevel=2,
        )


def _free(folder: Path) -> int:
    """Bytes that are left where a folder is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


class ScratchFile:
    """A file that has no name once it is open: the system frees it, whatever ends the process.

    Errors of the system, a full disk above all, are raised as OSError that names `path`.

    Parameters
    ----------
    path : path-like
        Where to make it. Its folder decides which disk it takes.
    keep : bool
        Let it keep its name and what it holds, so that another process goes on with it.
    """

    def __init__(self, path: str | os.PathLike[str], keep: bool = False) -> None:
        self.path, self.keep = Path(path), keep
        only = 0 if keep else os.O_EXCL
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | only | os.O_CLOEXEC, 0o600)
        finally:  # an interruption may come between
            if not keep:
                self.path.unlink(missing_ok=True)
        self.close = weakref.finalize(self, os.close, self.fd)

    def remove(self) -> None:
        """Free what it takes on disk."""
        if self.keep:
            self.path.unlink(missing_ok=True)
        self.close()

    def reserve(self, start: int, size: int) -> None:
        """Take `size` bytes from `start` on from the disk now, so that no later write lacks them.

        A file system or platform without reservation lets the file grow as it is written.
        """
        if size == 0:
            return
        with self._naming_path():
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, start, size)
            else:
                os.ftruncate(self.fd, max(start + size, os.fstat(self.fd).st_size))

    def write(self, start: int, data: Tensor) -> None:
        """Write bytes (1-D uint8, on the CPU) at `start`."""
        left = data.numpy().data
        with self._naming_path():
            while left:
                done = os.pwrite(self.fd, left, start)
                left, start = left[done:], start + done

    def map(self, start: int, size: int, room: object = None) -> Tensor:
        """Map bytes as a tensor (1-D uint8); pages that are touched stay while it is alive.

        So does `room`, which owns these bytes. To write to the tensor leaves the file as it is.
        """
        if size == 0:
            return torch.empty(0, dtype=torch.uint8)
        before = start % mmap.ALLOCATIONGRANULARITY
        with self._naming_path():
            pages = mmap.mmap(
                self.fd, before + size, access=mmap.ACCESS_COPY, offset=start - before
            )
        if room is not None:
            weakref.finalize(pages, id, room).atexit = False
        return mapped(pages, before)

    def expect(self, start: int, size: int) -> None:
        """Let the system read ahead what will soon be mapped, where it can."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, start, size, os.POSIX_FADV_WILLNEED)

    @contextlib.contextmanager
    def _naming_path(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
