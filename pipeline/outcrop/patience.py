"""Waiting for disks and object stores that refuse for a moment."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Seconds before each further attempt.
WAITS = (0.25, 0.75, 2.0)
# Nothing that waiting would change.
_FINAL = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# Libraries whose errors, of the network all of them, are no OSError.
_REMOTE = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "adlfs")


class StorageRefused(UserWarning):
    """A disk or an object store refused, and will be asked again."""


def patiently(do: Callable[[], T]) -> T:
    """Call `do`; where storage refuses, warn, wait and call it again, three times.

    Parameters
    ----------
    do : callable
        Does no harm if it is called again after it stopped halfway.

    Returns
    -------
    What `do` returns.

    Raises
    ------
    OSError
        Or what else `do` raises the last time.
    """
    for wait in WAITS:
        try:
            return do()
        except Exception as error:
            if not refuses(error) or isinstance(error, _FINAL) or "Credentials" in kind(error):
                raise
            message = f"{kind(error)}: {error}; trying again in {wait} s"
            warnings.warn(message, StorageRefused, stacklevel=2)
        time.sleep(wait)
    return do()


def refuses(error: BaseException) -> bool:
    """Whether it is a disk, a network or an object store that raised this."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _REMOTE


def kind(error: BaseException) -> str:
    """Name of the class of an error."""
    return type(error).__name__
