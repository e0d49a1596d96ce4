"""How much freed memory this process keeps for the next tensor."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MIB = 2**20


def keep_freed_memory(keep: bool) -> None:
    """Set what the C library does with freed tensors, where it is glibc.

    To take fresh pages from the system for each tensor costs up to as much as the arithmetic on
    it. Kept, freed blocks are used again, and the resident set grows by what lies between blocks
    in use. By its own rules glibc does neither: it grows to about twice what the tensors take and
    still asks for fresh pages for the large ones.

    Parameters
    ----------
    keep : bool
        Keep freed blocks of up to 64 MiB, 256 MiB at the end of the heap; or return those of
        4 MiB and more at once. Holds for the whole process until it is set anew.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, malloc_trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return  # another C library, which has other habits
    mallopt(_M_MMAP_THRESHOLD, (64 if keep else 4) * _MIB)
    mallopt(_M_TRIM_THRESHOLD, (256 if keep else 1) * _MIB)
    if not keep:
        malloc_trim(0)
