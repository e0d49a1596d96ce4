"""Memory of this process: what is taken from the system, and what is given back to it when."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from ..heap import glibc
from ..pages import LARGE, pages

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Larger blocks than this glibc by its own rules returns at once.
USUAL = 2**25
# Bytes around blocks, which are aligned.
_APART = 2**12
# While tiles are evaluated, all that they free is kept.
ALL = 2**30


def keep_freed_memory(up_to: int) -> None:
    """Set what the C library does with freed blocks, where it is glibc, and return those it has.

    To take fresh pages from the system for each tensor costs as much as the arithmetic on it.
    Tiles of equal shape free and ask for the same blocks again and again.

    Parameters
    ----------
    up_to : int
        Bytes of a block that is kept to be used again; larger ones are returned at once. Holds
        for the whole process until it is set anew.
    """
    library = glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, up_to)
        library.mallopt(_M_TRIM_THRESHOLD, up_to)
        library.malloc_trim(0)


def return_freed_memory() -> None:
    """Give all that is free back to the system, once."""
    library = glibc()
    if library is not None:
        library.malloc_trim(0)


class Watch:
    """Gives freed memory back before this process grows beyond what a plan promises.

    Freed blocks that fit no later request add up, how much is a matter of chance.

    Parameters
    ----------
    promised : int
        Bytes that the plan takes at the highest.
    there : int
        Those of them that the process has taken already: weights, chunks that are kept.
    """

    def __init__(self, promised: int, there: int) -> None:
        self.limit = resident() - there + promised

    def make_room(self, need: int, fresh: int = 0) -> None:
        """Look, before `need` bytes are allocated, and `fresh` bytes of new pages written.

        What is allocated may lie in freed blocks that are there.
        """
        over = resident() + need + fresh - self.limit
        if over > 0 and over > _at_hand(need):
            return_freed_memory()


def _at_hand(size: int) -> int:
    """Bytes in memory already of the block of `size` that the C library would give out now."""
    library = glibc()
    if library is None or size < mmap.PAGESIZE:
        return 0
    block = library.malloc(size + _APART)
    if block is None:
        return 0
    first = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
    found = ctypes.create_string_buffer((block + size - first) // mmap.PAGESIZE)
    failed = library.mincore(ctypes.c_void_p(first), len(found) * mmap.PAGESIZE, found)
    library.free(ctypes.c_void_p(block))
    return 0 if failed else found.raw.count(b"\1") * mmap.PAGESIZE


def check_room(promised: int, device: torch.device | str) -> None:
    """Raise `MemoryBudgetError` if a GPU has not as much left as a plan may take.

    Parameters
    ----------
    promised : int
        Bytes that the plan takes at the highest.
    device : torch.device or str
    """
    if torch.device(device).type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if promised > free:
        raise MemoryBudgetError(
            f"the plan takes {promised // 10**6}MB of the GPU, which has {free // 10**6}MB left; "
            "pass a smaller memory (--memory), or close other programs"
        )


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def highest_resident() -> int:
    """Most bytes of this process that were in memory at once; 0 where the system does not say."""
    try:
        with open("/proc/self/status", "rb") as status:
            return 1024 * int(status.read().partition(b"VmHWM:")[2].split(maxsplit=1)[0])
    except (OSError, IndexError):
        return 0


def reset_highest_resident() -> None:
    """Begin `highest_resident` anew, where the system lets us."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Allocate a tensor for long: a large one apart from the blocks that tiles use, in huge pages.

    Parameters
    ----------
    shape : sequence of int
    dtype : torch.dtype
    device : torch.device or str
    """
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return pages(size).view(dtype).view(tuple(shape))
