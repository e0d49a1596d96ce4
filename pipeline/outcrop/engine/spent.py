"""What a tile took: times, bytes and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

from .memory import highest_resident, resident

T = TypeVar("T")


class Spent(NamedTuple):
    """What the evaluation of one tile took; the fields are those of `outcrop.events.Tile`."""

    start: float
    stop: float
    reading: float
    computing: float
    writing: float
    read: int
    written: int
    memory: int


class Peak:
    """By how much this process grows on the device at the highest.

    Parameters
    ----------
    device : torch.device or str
    less : int
        Bytes that are there already and count as growth.
    """

    def __init__(self, device: torch.device | str = "cpu", less: int = 0) -> None:
        self.on_gpu = torch.device(device).type == "cuda"
        self.base = (torch.cuda.memory_allocated() if self.on_gpu else resident()) - less
        self.before = self._highest()

    def bytes(self) -> int:
        """Growth at the highest so far; 0 where the system does not say."""
        highest = self._highest()
        if highest == self.before:  # what was before stood higher
            highest = torch.cuda.memory_allocated() if self.on_gpu else resident()
        return max(0, highest - self.base) if highest else 0

    def _highest(self) -> int:
        return torch.cuda.max_memory_allocated() if self.on_gpu else highest_resident()


def timed(function: Callable[..., T], *args: Any) -> tuple[T, float]:
    """Return what a function returns, and the seconds that it took."""
    start = time.perf_counter()
    return function(*args), time.perf_counter() - start
