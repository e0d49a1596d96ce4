"""Every network of the zoo: outcrop at half the memory of plain PyTorch, side by side.

Plain PyTorch evaluates the volume in one piece, in the memory layout that is faster of the two;
outcrop gets half of what that took, weights included. Each runs in a process of its own, after a
small volume that loads libraries and kernels, twice, and the shorter counts.
Where half is too small for any plan, the smallest budget that is enough is taken and said so.
Memory is what is taken beside the model itself; outcrop counts a copy of its weights.

    python benchmarks/zoo.py --json zoo.json
    python benchmarks/zoo.py --device cuda --sizes 512 1024 --memory 24GB --precision float16
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# By name and options, with the extent of a cube that two cores evaluate in a minute or so.
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "faultseg3d": ("faultseg3d", {}, 128),
    "faultseg3dplus": ("faultseg3dplus", {}, 128),
    "karstseg3d": ("karstseg3d", {}, 128),
    "bi21rgt3d": ("bi21rgt3d", {}, 64),
    "deepismnet": ("deepismnet", {}, 64),
    "channelseg3d": ("channelseg3d", {}, 128),
    "wang25channel": ("wang25channel", {}, 128),
    "gem base 32": ("gem", {"base": 32}, 64),
    "segformer3d": ("segformer3d", {}, 128),
    "mtl-infer-3d": ("mtl-infer-3d", {}, 64),
    "mtl-refine-3d": ("mtl-refine-3d", {}, 64),
    "unet25d": ("unet25d", {}, 128),
    "faultssl iou": ("faultssl", {"mode": "iou"}, 64),
    "faultssl precision": ("faultssl", {"mode": "precision"}, 64),
}


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def evaluate(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case in this process."""
    import torch

    from outcrop import models, whole_volume

    on_gpu, dtype = case["device"] != "cpu", getattr(torch, case["precision"])
    model = models.load(case["network"], weights="seeded", **case["options"])
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):  # or residual networks grow without bound
            value.fill_(3.0)
    card = model.card

    def inputs(size: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(size)
        x = torch.randn((1, len(card.inputs), size, size, size), generator=generator).to(dtype)
        return tuple(x.split(1, dim=1)) if card.separate else (x,)

    def run(x: tuple[Any, ...], memory: int | str) -> Any:
        if case["plain"]:
            layout = getattr(torch, case["layout"])
            y = model.to(case["device"], dtype)(
                *(v.to(case["device"]).contiguous(memory_format=layout) for v in x)
            )
        else:
            y = whole_volume(model, x, memory=memory, device=case["device"])
        return torch.cat(tuple(y.values()), dim=1) if isinstance(y, dict) else y

    with torch.inference_mode():
        run(inputs(max(32, card.smallest)), "4GB")
        x = inputs(case["size"])
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")
            before = resident()
        each = []
        for _ in range(2):
            y = None
            start = time.perf_counter()
            y = run(x, case.get("memory", 0))
            if on_gpu:
                torch.cuda.synchronize()
            each.append(time.perf_counter() - start)
        seconds = min(each)
        highest = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
        peak = torch.cuda.max_memory_allocated() if on_gpu else highest
    torch.save(y.cpu(), case["result"])
    return {
        "seconds": seconds,
        "seconds_each": each,
        "mvoxels_per_second": case["size"] ** 3 / seconds / 1e6,
        "peak_bytes": peak - before,
        "weight_bytes": sum(value.nbytes for value in model.state_dict().values()),
    }


def child(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case in a process of its own; what went wrong, if anything did."""
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().split("\n") or ["?"])[-1]}
    return dict(json.loads(done.stdout.strip().split("\n")[-1]))


def pair(label: str, size: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Plain PyTorch and outcrop on one network."""
    import torch

    name, made, _ = NETWORKS[label]
    usual = {"network": name, "options": made, "size": size, "device": options.device}
    usual["precision"] = options.precision
    found = [
        child({**usual, "plain": True, "layout": layout, "result": str(folder / "whole.pt")})
        for layout in ("contiguous_format", "channels_last_3d")
    ]
    whole = min(found, key=lambda each: each.get("seconds", math.inf))
    memory = options.memory
    if memory is None:
        taken = whole.get("peak_bytes", 0) + whole.get("weight_bytes", 0)
        memory = taken // 2 or "4GB"
    case = {**usual, "plain": False, "memory": memory, "result": str(folder / "tiled.pt")}
    tiled = child(case)
    least = re.search(r"at least (\d+)MB", tiled.get("error", ""))
    if least:
        case["memory"] = memory = int(least[1]) * 10**6
        tiled = child(case)
    row = {"network": label, "size": size, "memory": memory, "least": bool(least)}
    row |= {"plain": whole, "outcrop": tiled}
    if "error" not in whole and "error" not in tiled:
        one, other = (torch.load(folder / f"{n}.pt").double() for n in ("whole", "tiled"))
        row["difference"] = float((one - other).abs().max() / (one.max() - one.min()))
    return row


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--sizes", type=int, nargs="+", help="instead of each network's own")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--memory", help="instead of half of what plain PyTorch takes")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(evaluate(json.loads(options.one))))
        return
    import tempfile

    rows = []
    print(
        f"{'network':20} {'extent':>6} | {'plain Mvox/s':>12} {'GB':>6} | "
        f"{'outcrop Mvox/s':>14} {'GB':>6} {'of':>6} | largest difference, of the range"
    )
    with tempfile.TemporaryDirectory() as folder:
        for label in options.networks:
            for size in options.sizes or [NETWORKS[label][2]]:
                row = pair(label, size, options, Path(folder))
                rows.append(row)
                cells = [f"{label:20} {size:6} |"]
                for side in ("plain", "outcrop"):
                    found, wide = row[side], 12 if side == "plain" else 14
                    cells.append(
                        found["error"][:70]
                        if "error" in found
                        else f"{found['mvoxels_per_second']:{wide}.3f} "
                        f"{found['peak_bytes'] / 1e9:6.2f}"
                    )
                    if side == "outcrop" and isinstance(row["memory"], int):
                        cells.append(f"{row['memory'] / 1e9:6.2f}{'*' if row['least'] else ''}")
                    cells.append("|")
                cells.append(f"{row['difference']:.1e}" if "difference" in row else "")
                print(" ".join(cells), flush=True)
                if options.json:  # as far as it went, if it is interrupted
                    found = {**machine(options.device), "rows": rows}
                    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print("* half is too small for any plan: the smallest budget that is enough")


def machine(device: str) -> dict[str, str]:
    """Name of what computes."""
    import torch

    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    )
    return {
        "machine": f"{platform.processor() or platform.machine()}, {name}",
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
