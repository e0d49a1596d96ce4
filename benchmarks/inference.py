"""FaultSeg3d over whole volumes: outcrop beside plain PyTorch and TorchSeis, in one run.

Each case runs in a process of its own (on a GPU those of one program share one), after a small
volume that loads libraries and kernels: seconds from tensors in memory (or a Zarr) to the result,
capture and planning included, and the growth of memory at its highest: of the resident set on a
CPU, of what PyTorch allocates on a GPU. With repeats the shortest counts. On a CPU each process
runs its case twice, since a virtual machine can take seconds for each gigabyte that no process had
lately, and with repeats all cases run in turn, again and again, so that what else the machine does
slows none of them more than another. On a GPU weights, volume and result have the precision of the
arithmetic, for every program.

    python benchmarks/inference.py --sizes 128 256 --json inference.json
    python benchmarks/inference.py --torchseis ../torchseis --targets
    python benchmarks/inference.py --device cuda --sizes 512 1024 --precisions float16
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODES = ("device", "cpu", "disk", "none")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def volume(size: int):
    """Return the volume that every case evaluates, (1, 1, size, size, size) float32."""
    import torch

    if size > 512:  # a block again and again: to draw random numbers takes a minute
        block = volume(size // 4)
        return (block.half() if size > 1024 else block).repeat(1, 1, 4, 4, 4)
    return torch.randn((1, 1, size, size, size), generator=torch.Generator().manual_seed(size))


def network(norm: str | None):
    """FaultSeg3d with seeded weights, or with a norm after each of its convolutions."""
    import torch

    from outcrop import models

    model = models.load("faultseg3d", weights="seeded")
    if norm is not None:
        kind = {"batch": torch.nn.BatchNorm3d, "instance": torch.nn.InstanceNorm3d}[norm]
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, torch.nn.Conv3d) and child.kernel_size[0] > 1:
                    both = torch.nn.Sequential(child, kind(child.out_channels))
                    setattr(module, name, both)
    return model.eval()


def runner(case: dict[str, Any], size: int):
    """Return what is timed, on a volume of that size."""
    import torch

    dtype, device = getattr(torch, case["precision"]), case["device"]
    how = {"memory": case["memory"], "storage_mode": case["mode"], "precision": case["precision"]}
    how |= {"storage_compression": case["compressed"], "host_memory": case["host_memory"]}
    model = network(case["norm"])
    if case["name"].startswith("torchseis"):
        sys.path[:0] = str(case["torchseis"]).split(os.pathsep)  # and what it needs
        from torchseis.models.fault.faultseg3d import FaultSeg3d

        peer = FaultSeg3d().eval()
        peer.load_state_dict(model.state_dict())
        peer, x = peer.to(device, dtype), volume(size).to(device, dtype)
        rank = int(case["name"][-1])
        return lambda: peer(x, rank)
    if case["name"] == "plain":
        layout = torch.channels_last_3d
        model = model.to(device, dtype).to(memory_format=layout)
        x = volume(size).to(device, dtype).contiguous(memory_format=layout)
        return lambda: model(x)
    if case["name"] == "predict":
        import numpy as np
        import xarray as xr

        from outcrop import predict

        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / "survey.zarr"
        dims = ("inline", "crossline", "twt")
        survey = xr.Dataset(
            {"amplitude": (dims, volume(size)[0, 0].numpy())}, {d: np.arange(size) for d in dims}
        )
        survey.chunk(64).to_zarr(path)
        out = Path(folder.name) / "faults.zarr"
        return lambda: (
            predict(model, xr.open_zarr(path), out, device=device, overwrite=True, **how),
            folder,
        )[0]

    from outcrop import whole_volume

    x = volume(size)
    if case["host_memory"]:  # larger than the device: read from and written to host memory
        model, x = model.to(dtype), x.to(dtype)
        return lambda: whole_volume(model, x, device=device, **how)
    if device != "cpu":
        model, x = model.to(device, dtype), x.to(device, dtype)
    return lambda: whole_volume(model, x, **how)


def evaluate(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case in this process."""
    import torch

    bare = resident()
    size, on_gpu = case["size"], case["device"] != "cpu"
    each = []
    with torch.inference_mode():
        runner(case, 64)()
        run = runner(case, size)
        if on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")
            before = resident()
        for _ in range(case["repeat"] if on_gpu else 2):
            result = None
            start = time.perf_counter()
            result = run()
            if on_gpu:
                torch.cuda.synchronize()
            each.append(time.perf_counter() - start)
    highest = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    peak = torch.cuda.max_memory_allocated() if on_gpu else highest
    found: dict[str, Any] = {"seconds_each": each, "peak_bytes": peak - before}
    if not on_gpu:
        found["above_import_torch_bytes"] = highest - bare
    if case["name"] == "whole_volume" and size <= 256 and case["norm"] is None:
        # Beside what the network gives in one piece, in the precision of its weights.
        with torch.inference_mode():
            exact = network(None)(volume(size))
            found["largest_difference"] = (result.cpu().float() - exact).abs().max().item()
    return found


def together(group: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Run cases one after the other in a new process, and in another what one that fails leaves."""
    while group:
        command = [sys.executable, __file__, "--these", json.dumps(group)]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            for line in process.stdout or ():
                if line.startswith("{"):
                    yield {**group.pop(0), **json.loads(line)}
            code = process.wait()
            errors.seek(0)
            last = (errors.read().strip() or "nothing").split("\n")[-1]
        if group:
            yield {**group.pop(0), "failed": f"exit {code}: {last}"}


def joined(row: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    """What a case took, in all of its runs: the times of each, the shortest, the most memory."""
    each = [*row.get("seconds_each", []), *again.get("seconds_each", [])]
    if not each or "failed" in again:
        return {**row, **again}
    found = {**row, **again, "seconds_each": each, "seconds": min(each)}
    for name in ("peak_bytes", "above_import_torch_bytes"):
        if name in again:
            found[name] = max(again[name], row.get(name, 0))
    return {**found, "mvoxels_per_second": again["size"] ** 3 / min(each) / 1e6}


def cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the options ask for, in turn."""
    usual = {
        "mode": "auto",
        "memory": options.memory,
        "norm": None,
        "compressed": False,
        "host_memory": None,
        "device": options.device,
        "repeat": options.repeat,
        "torchseis": options.torchseis,
    }
    found = []
    for size in options.sizes:
        for precision in options.precisions:
            modes = ("auto",) if options.device == "cpu" else ("auto", *MODES)
            these: list[dict[str, Any]] = []
            if options.torchseis:
                these += [{"name": f"torchseis rank {rank}"} for rank in options.ranks]
            these += [{"name": "whole_volume", "mode": m} for m in modes]
            if options.device == "cpu":
                these += [{"name": "plain"}, {"name": "predict"}]
            elif size < 512:  # larger tensors than its kernels take
                these.append({"name": "plain"})
            found += [{**usual, "size": size, "precision": precision, **case} for case in these]
    if options.targets and options.device == "cpu":
        found += [
            {**usual, "size": 512, "precision": "float32", "name": "predict"}
            | {"memory": "1GB", "mode": "disk"},
            *(
                {**usual, "size": n, "precision": "float32", "name": "whole_volume"}
                for n in (128, 256, 384, 512)
            ),
            *(
                {**usual, "size": 256, "precision": "float32", "name": "whole_volume"}
                | {"memory": "2GB", "norm": norm}
                for norm in ("batch", "instance")
            ),
            {**usual, "size": 256, "precision": "float32", "name": "whole_volume"}
            | {"compressed": True},
        ]
    elif options.targets:
        found.append(
            {**usual, "size": 2048, "precision": "float16", "name": "whole_volume"}
            | {"memory": "24GB", "mode": "cpu", "host_memory": "60GB", "repeat": 1}
        )
    return [case for i, case in enumerate(found) if case not in found[:i]]


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 256])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--torchseis", help="a checkout of TorchSeis, to run beside")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3], help="TorchSeis's ranks")
    parser.add_argument(
        "--targets", action="store_true", help="larger volumes, small budgets, norms, compression"
    )
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the shortest counts")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--these", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.these:
        for case in json.loads(options.these):
            print(json.dumps(evaluate(case)), flush=True)
        return

    import torch
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    table = Table(
        "voxels", "precision", "case", "memory", "Mvoxels/s", "peak GB", "largest difference"
    )
    todo = cases(options)
    groups = [[case] for _ in range(options.repeat) for case in todo]
    if options.device != "cpu":
        names = dict.fromkeys(case["name"].split()[0] for case in todo)
        groups = [[case for case in todo if case["name"].startswith(name)] for name in names]
    found: dict[str, dict[str, Any]] = {}
    each = itertools.chain.from_iterable(map(together, groups))
    total = sum(map(len, groups))
    for case in track(each, total=total, console=Console(stderr=True)):
        key = json.dumps([case[k] for k in todo[0]])
        known = {k: v for k, v in case.items() if k != "torchseis"}
        found[key] = joined(found.get(key, {}), known)
        rows = list(found.values())
        if options.json:  # as far as it went, if it is interrupted
            facts = {"machine": machine(options.device), "torch": torch.__version__, "rows": rows}
            options.json.write_text(json.dumps(facts, indent=1) + "\n")
    for row in rows:
        ours = not row["name"].startswith(("plain", "torchseis"))
        words = [row["name"], row["mode"] if ours else "", row["norm"] or ""]
        words.append("8 bits" if row["compressed"] else "")
        table.add_row(
            f"{row['size']}³",
            row["precision"],
            " ".join(word for word in words if word),
            row["memory"] if ours else "",
            f"{row['mvoxels_per_second']:.2f}" if "seconds" in row else row["failed"],
            f"{row['peak_bytes'] / 1e9:.2f}" if "seconds" in row else "",
            f"{row['largest_difference']:.1e}" if "largest_difference" in row else "",
        )
    Console().print(table)


def machine(device: str) -> str:
    """Name of what computes."""
    import torch

    if device != "cpu":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
        amx = "with" if "amx_bf16" in info.read_text() else "without"
        model += f" {amx} AMX"
    return f"{model}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
