"""How fast a device is: measured once in a short calibration, then read from a cache."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F

from ..graph.rules.kernels import AMX, convolve
from ..pages import pages, pin, unpin
from ..storage import write_whole

T = TypeVar("T")

# Bytes of a tensor that no cache holds; and of one that no memory freed before can serve.
_LARGE, _NEW = 2**26, 2**29


@dataclass(frozen=True)
class Rates:
    """What a planner needs to predict seconds.

    Attributes
    ----------
    few, some, many : float
        Operations per second of convolutions of 1, 16 and 64 channels.
    bandwidth : float
        Bytes per second that pointwise operators read and write.
    fetch, fresh : float
        Bytes per second that are read from a large tensor, and written to memory that the system
        has just given.
    call : float
        Seconds that any operator takes beside that.
    tile : float
        Seconds that a tile takes beside its operators.
    disk, host : float
        Bytes per second to and from disk, and host memory.
    cache : float
        Bytes of a tile from which on the device's caches and allocator are slower.
    beyond_cache : float
        By what factor.
    pinned : float
        Bytes per second of host memory that is made fit for a GPU's copies.
    elements : float
        Of a tensor, that kernels take at most: those of cuDNN count in 32 bits.
    """

    few: float
    some: float
    many: float
    bandwidth: float
    fetch: float
    fresh: float
    call: float
    tile: float
    disk: float
    host: float
    cache: float
    beyond_cache: float
    pinned: float = math.inf
    elements: float = math.inf

    def operations(self, channels: int) -> float:
        """Operations per second with that many channels on the smaller side."""
        at = min(6.0, max(0.0, math.log2(max(1, channels))))
        low, high, share = (
            (self.few, self.some, at / 4) if at < 4 else (self.some, self.many, (at - 4) / 2)
        )
        return low * (high / low) ** share

    def read(self, place: str) -> float:
        """Bytes per second from a place where tensors are stored."""
        return {"disk": self.disk, "cpu": self.host}.get(place, self.fetch)

    def write(self, place: str) -> float:
        """Bytes per second to a place where tensors are stored."""
        host = 1 / (1 / self.host + 1 / self.pinned)
        return {"disk": self.disk, "cpu": host}.get(place, self.fresh)


class Crew(NamedTuple):
    """The workers of a cluster, as the planner sees them.

    Attributes
    ----------
    workers : int
        How many.
    memory : int or None
        Bytes that each has to give; None where there is no limit.
    rates : Rates
        Of one of them; `disk` is what each gets of the store while all use it.
    """

    workers: int
    memory: int | None
    rates: Rates


# What is not measured: of the order of what CPUs and data-centre GPUs reach.
_CPU = Rates(3e10, 2e11, 4e11, 8e9, 5e9, 3e9, 1e-4, 1e-3, 1e9, 1e10, 3e8, 1.25)
_GPU = Rates(
    3e12, 3e13, 1e14, 1.5e12, 1.5e12, 1.5e12, 3e-5, 3e-4, 2e9, 2.5e10, 1e12, 1.0, 2e9, 2**31 - 1
)


def rates(device: str = "cpu", dtype: str = "float32") -> Rates:
    """Rates of a device, measured if they are not known yet.

    Kept in the folder that OUTCROP_CACHE names, else `~/.cache/outcrop`; delete `rates.json` there
    to have them measured again. Rounded, so that plans do not depend on what else was running.

    Parameters
    ----------
    device : str
        "cpu" or "cuda".
    dtype : str
        Precision of the arithmetic.

    Returns
    -------
    Rates
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        return _GPU
    fields = set(Rates.__dataclass_fields__)
    found = remembered(
        "rates.json",
        described(device, dtype, torch.get_num_threads()),
        lambda: asdict(_measure(device, dtype)),
        lambda known: isinstance(known, dict) and set(known) == fields,
    )
    return Rates(**found)


def described(device: str, dtype: str, threads: int) -> str:
    """Say what rates hold for: the key under which they are kept."""
    on_gpu = torch.device(device).type == "cuda"
    cpus = f"{os.cpu_count()} CPUs{' with AMX' if AMX else ''}"
    name = torch.cuda.get_device_name(device) if on_gpu else cpus
    return f"{name}, {threads} threads, {dtype}, torch {torch.__version__}"


def remembered(file: str, key: str, measure: Callable[[], T], suits: Callable[[object], bool]) -> T:
    """Return what was measured before and suits, else measure it and keep it.

    Parameters
    ----------
    file : str
        In the cache's folder.
    key : str
        What was measured.
    measure, suits : callable
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(os.environ.get("OUTCROP_CACHE") or Path(base) / "outcrop") / file
    try:
        known = {k: v for k, v in json.loads(path.read_text()).items() if suits(v)}
    except (OSError, ValueError, AttributeError):
        known = {}
    if key not in known:
        known[key] = measure()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(known, indent=1).encode())
        except OSError:
            pass  # measured again next time
    return known[key]


def _measure(device: str, dtype: str) -> Rates:
    """Measure convolutions and a pointwise operator, in turns."""
    kind = getattr(torch, dtype)
    on_gpu = torch.device(device).type == "cuda"
    base = _GPU if on_gpu else _CPU
    threads = 1 if on_gpu else torch.get_num_threads()

    def image(channels: int, n: int) -> torch.Tensor:
        x = torch.randn(1, channels, n, n, n, device=device).to(kind)
        return x.contiguous(memory_format=torch.channels_last_3d)

    work: list[float] = []
    run: list[Callable[[], object]] = []
    for channels in (1, 16, 64):
        n = (96 if on_gpu else 24) // (2 if channels == 64 else 1)
        x, weight = image(channels, n + 2), torch.randn(max(channels, 16), channels, 3, 3, 3)
        weight = weight.to(device, kind).contiguous(memory_format=torch.channels_last_3d)
        work.append(2.0 * weight.numel() * n**3)
        run.append(_convolve(x, weight))
    x = image(16, 192 if on_gpu else 48)
    work.append(2.0 * x.numel() * x.element_size())
    run.append(lambda: torch.relu(x))
    large = x.new_empty(_LARGE // x.element_size(), dtype=kind)
    small = large[: len(large) // 16].clone()
    work.append(_LARGE)
    run.append(lambda: [small.copy_(part) for part in large.split(len(small))])
    # One thread alone: several wait for each other, and for whatever else the machine does.
    if not on_gpu:
        torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            seconds = _shortest(run, on_gpu)
            fresh = base.fresh if on_gpu else _fresh()
    finally:
        if not on_gpu:
            torch.set_num_threads(threads)
    few, some, many, *moved = (w / s for w, s in zip(work, seconds, strict=True))
    if on_gpu:  # what is fetched is read and written
        fresh = moved[1] = moved[0] / 2
        base = replace(base, **_to_host(device))
    # A few threads take all that the memory gives.
    bandwidth, fetch = (rounded(rate * min(threads, 4)) for rate in moved)
    return replace(
        base,
        few=rounded(few * threads),
        some=rounded(some * threads),
        many=rounded(many * threads),
        bandwidth=bandwidth,
        fetch=fetch,
        fresh=rounded(fresh),
    )


def _convolve(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    if x.device.type == "cpu" and x.element_size() < 8:
        one = (1, 1, 1)
        return lambda: convolve(x, weight, None, one, (0, 0, 0), one, 1)
    return lambda: F.conv3d(x, weight)


def _shortest(run: Sequence[Callable[[], object]], on_gpu: bool) -> list[float]:
    """Shortest time of each, over half a second of turns: others slow down, never speed up."""
    best = [math.inf] * len(run)
    begun, turns = time.perf_counter(), 0
    while turns < 3 or time.perf_counter() - begun < 0.5:
        turns += 1
        for i, function in enumerate(run):
            start = time.perf_counter()
            function()
            if on_gpu:
                torch.cuda.synchronize()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def _fresh() -> float:
    """Bytes per second of the first touch of memory, the best of two."""
    best = 0.0
    for _ in range(2):
        start = time.perf_counter()
        torch.empty(_NEW, dtype=torch.uint8).fill_(1)
        best = max(best, _NEW / (time.perf_counter() - start))
    return best


def _to_host(device: str) -> dict[str, float]:
    """Bytes per second from pinned memory to a GPU, and of memory that is pinned."""
    memory, there = pages(_NEW), torch.empty(_NEW, dtype=torch.uint8, device=device)
    start = time.perf_counter()
    pin(memory)
    pinned = _NEW / (time.perf_counter() - start)
    (seconds,) = _shortest([lambda: there.copy_(memory, non_blocking=True)], True)
    unpin(memory)
    return {"host": rounded(_NEW / seconds), "pinned": rounded(pinned)}


def rounded(value: float) -> float:
    """To the next of 1, 1.5, 2, 3, 5, 7 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * min((1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0), key=lambda m: abs(m - value / power))
