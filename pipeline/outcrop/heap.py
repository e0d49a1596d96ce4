"""The heap of this process: one for all threads, where the C library is glibc; Python's garbage."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

# Of glibc's malloc.h.
_M_ARENA_MAX = -8


def share() -> None:
    """Let threads that are yet to come share one heap, for the whole process.

    What they free at the end of heaps of their own is not given back to the system, and the next
    ones take over heaps that are there already.
    """
    library = glibc()
    if library is not None:
        library.mallopt(_M_ARENA_MAX, 1)


def glibc() -> ctypes.CDLL | None:
    """Load the C library of this process; None where it is another one, with other habits."""
    try:
        library = ctypes.CDLL(None)
        library.mallopt, library.malloc_trim, library.mincore  # noqa: B018
        library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    except (AttributeError, OSError, TypeError):
        return None
    return library


@contextlib.contextmanager
def collected_later() -> Iterator[None]:
    """Put off Python's collections of garbage, each of which goes through all that torch imports.

    For what makes many small objects within seconds, such as captures and plans.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
