"""How fast a device is: measured once in a short calibration, then read from a cache."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Rates:
    """What a planner needs to predict seconds.

    Attributes
    ----------
    few, some, many : float
        Operations per second of convolutions of 1, 16 and 64 channels.
    bandwidth : float
        Bytes per second that pointwise operators read and write.
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
    """

    few: float
    some: float
    many: float
    bandwidth: float
    call: float
    tile: float
    disk: float
    host: float
    cache: float
    beyond_cache: float

    def operations(self, channels: int) -> float:
        """Operations per second with that many channels on the smaller side."""
        at = min(6.0, max(0.0, math.log2(max(1, channels))))
        low, high, share = (
            (self.few, self.some, at / 4) if at < 4 else (self.some, self.many, (at - 4) / 2)
        )
        return low * (high / low) ** share

    def place(self, place: str) -> float:
        """Bytes per second to and from a place where tensors are stored."""
        return {"disk": self.disk, "cpu": self.host}.get(place, self.bandwidth)


# What is not measured: of the order of what CPUs and data-centre GPUs reach.
_CPU = Rates(3e10, 2e11, 4e11, 8e9, 2e-5, 2e-4, 1e9, 1e10, 3e8, 1.25)
_GPU = Rates(3e12, 3e13, 1e14, 1.5e12, 8e-6, 1e-4, 2e9, 2.5e10, 1e12, 1.0)


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
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        return _GPU
    name = torch.cuda.get_device_name(device) if kind == "cuda" else f"{os.cpu_count()} CPUs"
    key = f"{name}, {torch.get_num_threads()} threads, {dtype}, torch {torch.__version__}"
    path = _cache() / "rates.json"
    known = _load(path)
    if key not in known:
        known[key] = asdict(_measure(device, dtype))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(known, indent=1))
            aside.replace(path)
        except OSError:
            pass  # measured again next time
    return Rates(**known[key])


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("OUTCROP_CACHE") or Path(base) / "outcrop")


def _load(path: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    fields = set(Rates.__dataclass_fields__)
    return {k: v for k, v in found.items() if isinstance(v, dict) and set(v) == fields}


def _measure(device: str, dtype: str) -> Rates:
    base = _GPU if torch.device(device).type == "cuda" else _CPU
    kind = getattr(torch, dtype)
    side = 96 if torch.device(device).type == "cuda" else 32

    def image(channels: int, n: int) -> torch.Tensor:
        x = torch.randn(1, channels, n, n, n, device=device).to(kind)
        return x.contiguous(memory_format=torch.channels_last_3d)

    with torch.inference_mode():
        found = []
        for channels in (1, 16, 64):
            n = side // 2 if channels == 64 else side
            x, weight = image(channels, n), torch.randn(max(channels, 16), channels, 3, 3, 3)
            weight = weight.to(device, kind).contiguous(memory_format=torch.channels_last_3d)
            convolve = _convolve(x, weight)
            found.append(2 * weight.numel() * n**3 / _seconds(convolve, device))
        x = image(16, 2 * side)
        moved = 2 * x.numel() * x.element_size()
        bandwidth = moved / _seconds(lambda: torch.relu(x), device)
    few, some, many = map(_rounded, found)
    return Rates(
        few,
        some,
        many,
        _rounded(bandwidth),
        base.call,
        base.tile,
        base.disk,
        base.host,
        base.cache,
        base.beyond_cache,
    )


def _convolve(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16):
        one = [1, 1, 1]
        return lambda: torch.mkldnn_convolution(x, weight, None, one, one, one, 1)
    return lambda: F.conv3d(x, weight, padding=1)


def _seconds(run: Callable[[], object], device: str) -> float:
    """Shortest of runs over a quarter of a second: others slow down, never speed up."""
    found: list[float] = []
    while len(found) < 5 or (sum(found) < 0.25 and len(found) < 100):
        start = time.perf_counter()
        run()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


def _rounded(value: float) -> float:
    """To the next of 1, 1.5, 2, 3, 5, 7 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * min((1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0), key=lambda m: abs(m - value / power))
