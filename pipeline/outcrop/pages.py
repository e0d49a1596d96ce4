"""Memory in pages of its own: huge ones, mapped ones, or pinned, so that a GPU copies meanwhile."""

from __future__ import annotations

import contextlib
import mmap
import sys
import weakref
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

# Tensors that outlive a tile lie in such pages from this size on.
LARGE = 2**25
# Whether the system takes pages back at once, and makes fresh ones where they are touched again.
TAKES_BACK = sys.platform == "linux"
# A part of a huge page is taken back only with all of it.
HUGE = 2**21

# What is mapped now, by address.
_mapped: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()
# What nothing uses any more, to be used again.
_spare: ContextVar[list[mmap.mmap] | None] = ContextVar("_spare", default=None)


def pages(size: int) -> Tensor:
    """Make a 1-D uint8 tensor of pages, huge where the system has such; none is pinned.

    Within `reusing` those that were used before, where they are large enough: fresh ones are
    touched at a fifth of the speed.
    """
    memory = _reused(size)
    if memory is None:
        memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return mapped(memory)[:size]


@contextlib.contextmanager
def reusing(spare: list[mmap.mmap]) -> Iterator[None]:
    """Take for `pages`, in the block and on its thread, what is large enough of these first.

    What is taken is removed from the list.
    """
    token = _spare.set(spare)
    try:
        yield
    finally:
        _spare.reset(token)


def _reused(size: int) -> mmap.mmap | None:
    spare = _spare.get() or []
    memory = min((each for each in spare if len(each) >= size), key=len, default=None)
    if memory is not None:
        spare.remove(memory)
        end = to_whole_pages(size)
        if end < len(memory):
            memory.madvise(mmap.MADV_DONTNEED, end, len(memory) - end)
    return memory


def memory_of(tensor: Tensor) -> list[mmap.mmap]:
    """Return what a tensor of `pages` lies in; nothing for any other."""
    memory = _mapped.get(tensor.untyped_storage().data_ptr())
    return [] if memory is None or not hasattr(mmap, "MADV_DONTNEED") else [memory]


def mapped(memory: mmap.mmap, start: int = 0) -> Tensor:
    """Make a 1-D uint8 tensor of what is mapped, from `start` on."""
    data = torch.frombuffer(memory, dtype=torch.uint8, offset=start)
    _mapped[data.data_ptr()] = memory
    return data


def forget_pages(tensor: Tensor, start: int = 0, stop: int | None = None) -> None:
    """Drop the resident pages of a tensor that was mapped, or of a view of it.

    As they are touched they come back from the file, where there is one, and empty else. Any other
    tensor is left alone.

    Parameters
    ----------
    tensor : torch.Tensor
    start, stop : int
        Bytes that may go of a tensor of `pages`; all unless given.
    """
    at = tensor.untyped_storage().data_ptr()
    memory = _mapped.get(at)
    if memory is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    if stop is None:
        memory.madvise(mmap.MADV_DONTNEED)
        return
    start, stop = to_whole_pages(start), (at + stop) // HUGE * HUGE - at
    if stop > start:
        memory.madvise(mmap.MADV_DONTNEED, start, stop - start)


def to_whole_pages(size: int) -> int:
    """Round up to a multiple of a page."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def pin(part: Tensor) -> None:
    """Pin whole pages, which takes longer than to write to them."""
    runtime = torch.cuda.cudart()
    torch.cuda.check_error(runtime.cudaHostRegister(part.data_ptr(), part.nbytes, 0))


def unpin(part: Tensor) -> None:
    """Undo `pin`."""
    torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(part.data_ptr()))
