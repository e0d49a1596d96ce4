"""FaultSeg3d over whole volumes: outcrop beside plain PyTorch and TorchSeis, in one run.

Each case runs in a process of its own: seconds from tensors (or a Zarr) in memory to the result,
capture and planning included, and the growth of the resident set at its highest. The largest
difference from plain PyTorch is on the float32 volume of the smallest size.

    python benchmarks/inference.py --sizes 128 256 --json inference.json
    python benchmarks/inference.py --torchseis ../torchseis
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEMORY = "4GB"


def volume(size: int):
    """Return the volume that every case evaluates, (1, 1, size, size, size) float32."""
    import torch

    return torch.randn((1, 1, size, size, size), generator=torch.Generator().manual_seed(size))


def evaluate(case: str, size: int, precision: str, torchseis: str | None) -> dict[str, float]:
    """Run one case in this process."""
    import psutil
    import torch

    from outcrop import models

    dtype = getattr(torch, precision)
    model = models.load("faultseg3d", weights="seeded")
    x = volume(size)
    if case.startswith("torchseis"):
        sys.path[:0] = str(torchseis).split(os.pathsep)  # and what it needs
        from torchseis.models.fault.faultseg3d import FaultSeg3d

        peer = FaultSeg3d().eval()
        peer.load_state_dict(model.state_dict())
        peer, x = peer.to(dtype), x.to(dtype)
        rank = int(case[-1])

        def run():
            return peer(x, rank)
    elif case == "plain":
        layout = torch.channels_last_3d
        model = model.to(dtype).to(memory_format=layout)
        x = x.to(dtype).contiguous(memory_format=layout)

        def run():
            return model(x)
    elif case == "whole_volume":
        from outcrop import whole_volume

        def run():
            return whole_volume(model, x, memory=MEMORY, precision=precision)
    else:
        import numpy as np
        import xarray as xr

        from outcrop import predict

        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / "survey.zarr"
        dims = ("inline", "crossline", "twt")
        survey = xr.Dataset(
            {"amplitude": (dims, x[0, 0].numpy())}, {d: np.arange(size) for d in dims}
        )
        survey.chunk(64).to_zarr(path)
        survey = xr.open_zarr(path)
        del x

        def run():
            out = Path(folder.name) / "faults.zarr"
            predict(model, survey, out, memory=MEMORY, precision=precision, storage_mode="disk")

    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before = psutil.Process().memory_info().rss
    with torch.inference_mode():
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024 - before
    found = {"seconds": seconds, "peak_bytes": peak, "mvoxels_per_second": size**3 / seconds / 1e6}
    if case == "whole_volume" and precision == "float32" and size <= 128:
        with torch.inference_mode():
            found["largest_difference"] = (result - model(x)).abs().max().item()
    return found


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 384])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--torchseis", help="a checkout of TorchSeis, to run beside")
    parser.add_argument("--ranks", type=int, nargs="+", default=[3], help="TorchSeis's ranks")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case, size, precision = options.one
        print(json.dumps(evaluate(case, int(size), precision, options.torchseis)))
        return

    import torch
    from rich.console import Console
    from rich.table import Table

    cases = ["plain", "whole_volume", "predict"]
    if options.torchseis:
        cases += [f"torchseis rank {rank}" for rank in options.ranks]
    table = Table("voxels", "precision", "case", "Mvoxels/s", "peak GB", "largest difference")
    rows = []
    for size in options.sizes:
        for precision in options.precisions:
            for case in cases:
                command = [sys.executable, __file__, "--one", case, str(size), precision]
                if options.torchseis:
                    command += ["--torchseis", options.torchseis]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                row = {"size": size, "precision": precision, "case": case}
                if done.returncode == 0:
                    row |= json.loads(done.stdout.strip().split("\n")[-1])
                else:
                    lines = done.stderr.strip().split("\n")
                    row["failed"] = f"exit {done.returncode}: {lines[-1]}"
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
                table.add_row(
                    f"{size}³",
                    precision,
                    case,
                    f"{row['mvoxels_per_second']:.2f}" if "seconds" in row else row["failed"],
                    f"{row['peak_bytes'] / 1e9:.2f}" if "seconds" in row else "",
                    f"{row['largest_difference']:.1e}" if "largest_difference" in row else "",
                )
    Console().print(table)
    if options.json:
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        facts = {"machine": machine, "torch": torch.__version__, "memory": MEMORY, "rows": rows}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
