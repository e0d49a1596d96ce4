"""Gradients of full-waveform inversion: outcrop's storage modes beside plain Deepwave, and workers.

Plain Deepwave computes the gradient of all shots in one call, in one process. outcrop computes it
in batches, with wavefields on the device, in CPU memory, on disk, and with each of them compressed.
Every case runs in a process of its own, after a tiny gradient that loads libraries: seconds, the
growth of memory at its highest (of the resident set on a CPU, of what PyTorch allocates on a GPU),
what was promised, and the largest difference from plain Deepwave's gradient, over its largest
value: everywhere, and 8 cells and more from the sources. Plain Deepwave runs with compression, too.
Then the same gradient on one worker and on two of a local cluster, of one thread each, in turns.

    python benchmarks/inversion.py --json inversion.json
    python benchmarks/inversion.py --device cuda --size 200 200 100 --sources 4 4 --samples 1000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

PML, SPACING, FREQUENCY = 10, 10.0, 10.0
NEAR = 8  # cells from a source: the extent of the blocks that Deepwave compresses


def make(folder: Path, size: list[int], sources: list[int], samples: int, step: float) -> None:
    """Write a model and the shots over another one."""
    from outcrop import inversion

    shape = (size[2], size[0], size[1])
    start = np.full(shape, 2000.0, dtype=np.float32)
    true = start.copy()
    true[tuple(slice(n // 3, n // 2) for n in shape)] = 2200.0
    model = inversion.velocity(start, SPACING)
    survey = inversion.surface_grid(
        model,
        sources=tuple(sources),
        receivers=(size[0] // 2, size[1] // 2),
        wavelet=inversion.ricker(FREQUENCY, step, samples),
    )
    model.to_zarr(folder / "start.zarr", consolidated=False)
    inversion.model_shots(
        inversion.velocity(true, SPACING), survey, folder / "shots.zarr", pml_width=PML
    )


def resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS, now, or VmHWM, at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


class Meter:
    """Seconds and growth of memory of a block."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> Meter:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = resident("VmRSS")
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else resident("VmHWM")
        self.bytes = peak - self.before


def plain(
    folder: Path, device: str, shots: int | None = None, compression: bool = False
) -> np.ndarray:
    """Gradient by one call of Deepwave, the loss by PyTorch: nothing of ours."""
    import deepwave
    import torch
    import xarray as xr

    model = xr.open_zarr(folder / "start.zarr", consolidated=False)
    data = xr.open_zarr(folder / "shots.zarr", consolidated=False).isel(shot=slice(shots)).load()
    dims = ("depth", "crossline", "inline")

    def cells(kind: str) -> torch.Tensor:
        at = [np.rint(data[f"{kind}_{d}"].to_numpy() / SPACING) for d in dims]
        return torch.as_tensor(np.stack(at, axis=-1)).long().to(device)

    vp = torch.as_tensor(model.vp.to_numpy()).to(device).requires_grad_()
    count = data.sizes["shot"]
    wavelet = torch.as_tensor(data.wavelet.to_numpy()).float().to(device)
    output = deepwave.scalar(
        vp,
        SPACING,
        float(data.time[1] - data.time[0]),
        source_amplitudes=wavelet.repeat(count, 1, 1),
        source_locations=cells("source")[:, None],
        receiver_locations=cells("receiver").repeat(count, 1, 1),
        pml_width=PML,
        pml_freq=FREQUENCY,
        storage_compression=compression,
    )
    observed = torch.as_tensor(data.amplitude.to_numpy()).to(device)
    (output.receiver_amplitudes - observed).square().sum().backward()
    assert vp.grad is not None
    return vp.grad.cpu().numpy()


def evaluator(folder: Path, case: dict[str, Any], client: Any = None) -> Any:
    """Return what computes the gradient as an inversion does, the promise, and the batches."""
    import torch

    from outcrop.inversion.evaluation import Evaluator
    from outcrop.inversion.experiment import Options, set_up
    from outcrop.inversion.memory import batch_memory
    from outcrop.inversion.shots import Shots, cut
    from outcrop.inversion.tasks import Team

    options = Options(pml_width=PML, device=case["device"], **case.get("options", {}))
    found = set_up(folder / "start.zarr", folder / "shots.zarr", None, options, observed=True)
    model = {"vp": found.model.vp.to_numpy()}
    groups = [((shot, 1.0),) for shot in range(found.gathers.count)]
    size = case.get("batch_size", len(groups))
    promise = batch_memory(
        found.physics, size, found.gathers.receiver_count, ("vp",), torch.get_num_threads()
    )
    team = Team(Shots(found.physics, found.path), client)

    def run(number: int | None = None) -> np.ndarray:
        place = Path(tempfile.mkdtemp(dir=folder))
        evaluate = Evaluator(team, place, ["vp"])
        return evaluate(model, found.wavelet, None, cut(groups[:number], size))[1]["vp"]

    return team, run, promise


def one(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case in this process."""
    import torch

    from outcrop.engine.memory import USUAL, keep_freed_memory, return_freed_memory

    folder = Path(case["folder"])
    keep_freed_memory(USUAL)
    if case["kind"] == "plain":
        how = case["device"], case["compression"]
        plain(folder, how[0], 1, how[1])
        return_freed_memory()
        with Meter(case["device"]) as meter:
            gradient = plain(folder, how[0], None, how[1])
        if not case["compression"]:
            np.save(folder / "plain.npy", gradient)
        facts = {"seconds": meter.seconds, "peak_bytes": meter.bytes}
        return facts | differences(folder, gradient)
    team, run, promise = evaluator(folder, case)
    with team:
        run(1)
        return_freed_memory()
        with Meter(case["device"]) as meter:
            gradient = run()
    return {
        "seconds": meter.seconds,
        "peak_bytes": meter.bytes,
        "promised_bytes": promise,
        "threads": torch.get_num_threads(),
    } | differences(folder, gradient)


def differences(folder: Path, gradient: np.ndarray) -> dict[str, float]:
    """Compare with plain Deepwave's gradient: everywhere, and away from the sources."""
    import xarray as xr

    expected = np.load(folder / "plain.npy")
    shots = xr.open_zarr(folder / "shots.zarr", consolidated=False)
    at = [shots[f"source_{d}"].to_numpy() for d in ("depth", "crossline", "inline")]
    cells = np.moveaxis(np.indices(expected.shape), 0, -1)
    far = np.ones(expected.shape, dtype=bool)
    for source in np.stack(at, axis=-1) / SPACING:
        far &= np.abs(cells - source).max(axis=-1) >= NEAR
    found = np.abs(gradient - expected)
    return {
        "difference": float(found.max() / np.abs(expected).max()),
        "difference_beyond": float(found[far].max() / np.abs(expected[far]).max()),
    }


def apart(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def workers(folder: Path, device: str, repeats: int, count: int) -> dict[str, Any]:
    """Seconds of the same gradient, in batches of one shot, on one worker and on two, in turns."""
    from outcrop.cluster import connect

    seconds: dict[int, list[float]] = {1: [], 2: []}
    case = {"device": device, "batch_size": max(1, count // 4)}
    with connect("local", 1) as a, connect("local", 2) as b:
        teams = {1: evaluator(folder, case, a), 2: evaluator(folder, case, b)}
        with teams[1][0], teams[2][0]:
            for number in (1, 2):
                teams[number][1]()  # libraries are loaded from now on
            for _ in range(repeats):
                for number in (1, 2):
                    start = time.perf_counter()
                    teams[number][1]()
                    seconds[number].append(time.perf_counter() - start)
    times = {n: statistics.median(s) for n, s in seconds.items()}
    return {"seconds": seconds, "ratio": times[1] / times[2], "batch_size": case["batch_size"]}


def machine(device: str) -> dict[str, Any]:
    """What it ran on, and how busy that was."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    packages = ("deepwave", "torch", "numpy", "dask")
    return {
        "machine": f"{name}, {os.cpu_count()} cores",
        "versions": {p: version(p) for p in packages},
        "load_at_start": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def main() -> None:
    """Run all cases and print a table."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[48, 48, 24], help="x, y and depth")
    parser.add_argument("--sources", type=int, nargs=2, default=[2, 2])
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", help="for data and wavefields")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--note", default="", help="kept in the JSON: what else was running")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(one(json.loads(given.case))))
        return
    facts = machine(given.device) | {
        "note": given.note,
        "size": given.size,
        "shots": given.sources[0] * given.sources[1],
        "samples": given.samples,
        "pml_width": PML,
    }
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        make(folder, given.size, given.sources, given.samples, 0.0015)
        base = {"folder": name, "device": given.device}
        cases = {"plain Deepwave": {"kind": "plain", "compression": False}}
        modes = ("device", "cpu", "disk") if given.device == "cuda" else ("device", "disk")
        for mode in modes:
            for compressed in (False, True):
                options = {"storage_mode": mode, "storage_compression": compressed}
                if mode == "disk":
                    options["storage_path"] = name
                label = f"{mode}{', compressed' if compressed else ''}"
                cases[label] = {"kind": "ours", "options": options}
                if not compressed:
                    cases[f"{label}, batches of 1"] = cases[label] | {"batch_size": 1}
        cases["plain Deepwave, compressed"] = {"kind": "plain", "compression": True}
        rows = {label: apart(base | case) for label, case in cases.items()}
        facts["cases"] = rows
        if given.device == "cpu":
            facts["workers"] = workers(folder, "cpu", given.repeats, facts["shots"])
    facts["load_at_end"] = os.getloadavg()
    table = Table("case", "seconds", "peak MB", "promised MB", "difference", "beyond")
    for label, row in rows.items():
        if "error" in row:
            table.add_row(label, row["error"])
            continue
        table.add_row(
            label,
            f"{row['seconds']:.2f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['promised_bytes'] / 1e6:.0f}" if "promised_bytes" in row else "",
            f"{row['difference']:.2g}",
            f"{row['difference_beyond']:.2g}",
        )
    Console().print(table)
    if "workers" in facts:
        print(f"two workers: {facts['workers']['ratio']:.2f} times one")
    if given.json:
        given.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
