"""Memory in pages of its own: huge ones, or pinned, so that a GPU copies beside its computing."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor


def pages(size: int) -> Tensor:
    """Make a 1-D uint8 tensor of fresh pages, huge where the system has such; none is pinned."""
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


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
