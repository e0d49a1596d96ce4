"""Keep this process's memory close to what its tensors take."""

from __future__ import annotations

import ctypes
import functools

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


@functools.cache
def return_freed_memory() -> None:
    """Have the C library give freed tensors back to the system at once, where it is glibc.

    By default glibc keeps blocks of up to 32 MB for later, so that the resident set of a run of
    many tiles grows to about twice what its tensors take. Blocks of 4 MiB and more then live in
    mappings of their own. Holds for the whole process, from the first call on.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library, which has no such habit
    mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)
