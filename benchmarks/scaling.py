"""FaultSeg3d from Zarr to Zarr on 1, 2 and more worker processes, and what limits them.

Each case runs in a process of its own, after a small volume that loads libraries and kernels, with
the plan that was made for the most workers; the cases take turns. Each worker has one core; so has
the local executor, whose threads for reading and writing would take another; scheduler and client
run on what there is, with as many workers as cores beside them. Seconds run from the first tile to
the last commit: statistics and planning are the same for all. Shares are of the workers' time, from
their own clocks: the next tile is read and the one before written beside the computing, and waiting
is for tasks.

    python benchmarks/scaling.py --sizes 256 384 --json scaling.json
    python benchmarks/scaling.py --sizes 96 --repeat 1 --tiles 10000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Where the processes of a case get one thread each.
_ONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def make_survey(size: int, path: Path) -> None:
    """Write a survey of noise."""
    import numpy as np
    import xarray as xr

    samples = np.random.default_rng(size).standard_normal((size,) * 3, dtype=np.float32)
    coords = {"inline": np.arange(size), "crossline": np.arange(size), "twt": np.arange(size) * 4.0}
    survey = xr.Dataset({"amplitude": (tuple(coords), samples)}, coords)
    survey.twt.attrs["units"] = "ms"
    survey.chunk(64).to_zarr(path, zarr_format=3, consolidated=False)


def pin(core: int) -> None:
    """Keep all threads of this process, and those they will start, on one core."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})


def case(workers: int, size: int, memory: str, folder: Path) -> dict[str, Any]:
    """Run one case in this process; 0 workers are the local executor."""
    import torch

    import outcrop
    from outcrop.cluster import connect
    from outcrop.planner import Plan

    cores = sorted(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    model = outcrop.models.load("faultseg3d", weights="seeded")
    with connect("local" if workers else None, workers or None) as client:
        if client is None:
            pin(cores[0])
        else:
            for core, worker in zip(cores, client.scheduler_info()["workers"], strict=False):
                client.run(pin, core, workers=[worker])
        outcrop.predict(
            model, folder / "64.zarr", folder / "warm.zarr", client=client, overwrite=True
        )
        source, kept = folder / f"{size}.zarr", folder / f"{size}.json"
        if kept.exists():
            plan = Plan.from_dict(json.loads(kept.read_text()))
        else:
            plan = outcrop.plan(model, source, memory=memory, client=client, storage_path=folder)
            kept.write_text(json.dumps(plan.to_dict()))
        record = outcrop.Record()
        outcrop.predict(
            model, source, folder / "o.zarr", plan=plan, client=client, overwrite=True,
            listeners=[record],
        )  # fmt: skip
    facts = record.facts()
    seconds = max(e.time for e in record.ended.values()) - min(record.tiles["start"])
    whole = seconds * max(1, workers)
    return {
        "seconds": seconds,
        "voxels_per_second": size**3 / seconds,
        "tiles": facts["tiles"],
        **{k: facts[k] / whole for k in ("reading", "computing", "writing")},
        "waiting": max(0.0, 1 - facts["busy"] / whole),
        "read_bytes": facts["read"],
        "written_bytes": facts["written"],
        "memory": facts["memory"],
        "peak_memory": facts["peak_memory"],
    }


def run(arguments: list[str]) -> Any:
    """Run this file with arguments in a process of its own; return what it prints last."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **_ONE})
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def empty_tiles(tiles: int, workers: int) -> dict[str, Any]:
    """Measure the executor on tiles that hold nothing."""
    sys.path.insert(0, str(Path(__file__).parent))
    import empty

    with tempfile.TemporaryDirectory() as folder:
        return empty.overhead(tiles, workers, Path(folder))


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| volume | workers | seconds | M voxels/s | efficiency | reading | computing | writing "
        "| waiting |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["cases"]:
        shares = " | ".join(f"{100 * row[k]:.1f} %" for k in ("reading", "computing", "writing"))
        who = str(row["workers"]) if row["workers"] else "in process"
        lines.append(
            f"| {row['size']}³ | {who} | {row['seconds']:.2f} | "
            f"{row['voxels_per_second'] / 1e6:.3f} | {row['efficiency']:.3f} | {shares} | "
            f"{100 * row['waiting']:.1f} % |"
        )
    for size, more in results["overhead_of_dask"].items():
        lines.append(f"\n{size}³: one worker takes {100 * more:+.1f} % of the time in process.")
    if bare := results.get("empty_tiles"):
        lines.append(
            f"\n{bare['tiles']:,} empty tiles on {bare['workers']} workers: "
            f"{bare['milliseconds_per_tile']:.3f} ms a tile, client and scheduler grow by "
            f"{bare['client_growth_MB']:.1f} MB."
        )
    return "\n".join(lines)


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 384])
    parser.add_argument("--workers", type=int, nargs="+")
    parser.add_argument("--memory", default="1GB", help="for each process")
    parser.add_argument("--repeat", type=int, default=3, help="the shortest counts")
    parser.add_argument("--tiles", type=int, default=200_000, help="empty ones; 0 for none")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--empty", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        workers, size, memory, name = json.loads(options.case)
        print(json.dumps(case(workers, size, memory, Path(name))))
        return
    if options.empty:
        print(json.dumps(empty_tiles(*json.loads(options.empty))))
        return
    cores = len(os.sched_getaffinity(0))
    # The most workers first: the plan is theirs.
    counts = sorted(options.workers or [n for n in (1, 2, 4) if n <= cores], reverse=True)
    results: dict[str, Any] = {
        "machine": {"cores": cores, "processor": platform.processor(), "node": platform.machine()},
        "memory": options.memory,
        "repeat": options.repeat,
        "cases": [],
        "overhead_of_dask": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_survey(64, folder / "64.zarr")
        for size in options.sizes:
            if size != 64:
                make_survey(size, folder / f"{size}.zarr")
            runs: dict[int, list[dict[str, Any]]] = {workers: [] for workers in (*counts, 0)}
            for _ in range(options.repeat):  # in turn, as machines get slower and faster
                for workers, found in runs.items():
                    found.append(run(["--case", json.dumps([workers, size, options.memory, name])]))
                    seconds = found[-1]["seconds"]
                    print(f"{size}³, {workers} workers: {seconds:.2f} s", file=sys.stderr)
            best = {
                workers: {
                    "size": size,
                    "workers": workers,
                    **min(found, key=lambda each: each["seconds"]),
                    "runs": found,
                }
                for workers, found in runs.items()
            }
            one = best.get(1, best[0])
            for workers, row in sorted(best.items()):
                row["efficiency"] = one["seconds"] / row["seconds"] / max(1, workers)
                results["cases"].append(row)
            if 1 in best:
                more = best[1]["seconds"] / best[0]["seconds"] - 1
                results["overhead_of_dask"][str(size)] = more
    if options.tiles:
        results["empty_tiles"] = run(["--empty", json.dumps([options.tiles, min(2, cores)])])
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
