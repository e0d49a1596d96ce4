"""A step of training FaultSeg3d: time and peak memory by where its activations are kept.

Outcrop's modes, plain PyTorch, and PyTorch's `torch.autograd.graph.save_on_cpu`, side by side. Each
runs in a process of its own, after a step on a small crop that loads libraries and kernels. Memory
is what is taken beside that. Processor seconds, of all threads, also tell on a busy machine.

    python benchmarks/training.py
    python benchmarks/training.py --device cuda --sizes 128 256 --precision bfloat16
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "training.json"
MODES = {
    "plain PyTorch": None,
    "save_on_cpu": None,
    "outcrop device": ("device", False),
    "outcrop device, compressed": ("device", True),
    "outcrop cpu": ("cpu", False),
    "outcrop cpu, compressed": ("cpu", True),
    "outcrop disk": ("disk", False),
    "outcrop disk, compressed": ("disk", True),
}


def resident() -> int:
    """Bytes of this process in memory that no file stands for."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def evaluate(case: dict[str, Any]) -> dict[str, Any]:
    """Take steps in this process."""
    import torch

    from outcrop import models, offload
    from outcrop.training.losses import dice_cross_entropy

    device, on_gpu = torch.device(case["device"]), case["device"] != "cpu"
    layout = torch.channels_last_3d
    model = models.load("faultseg3d", weights="seeded").requires_grad_(True).train()
    model = model.to(device, memory_format=layout)
    adam = torch.optim.Adam(model.parameters())
    half = case["precision"] != "float32"

    def keeping() -> Any:
        if case["mode"] == "plain PyTorch":
            return contextlib.nullcontext()
        if case["mode"] == "save_on_cpu":
            return torch.autograd.graph.save_on_cpu(pin_memory=on_gpu)
        mode, compression = MODES[case["mode"]]
        return offload(mode, case["path"] if mode == "disk" else None, compression)

    def step(x: Any, target: Any) -> None:
        with keeping():
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                y = model(x)
            loss = dice_cross_entropy(y.float(), target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        if on_gpu:
            torch.cuda.synchronize()

    def crop(size: int) -> Any:
        generator = torch.Generator().manual_seed(size)
        x = torch.randn((1, 1, size, size, size), generator=generator)
        return x.to(device, memory_format=layout), (x > 1.5).float().to(device)

    step(*crop(32))
    x, target = crop(case["size"])
    before, peak, over = resident(), [0], threading.Event()
    if on_gpu:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    times, processor = [], []
    for _ in range(case["steps"]):
        start, used = time.perf_counter(), time.process_time()
        step(x, target)
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    over.set()
    watcher.join()
    most = torch.cuda.max_memory_allocated() if on_gpu else peak[0]
    return {
        "mode": case["mode"],
        "size": case["size"],
        "seconds": min(times),
        "processor_seconds": min(processor),
        "peak_bytes": most - before,
    }


def main() -> None:
    """Run every case in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--path", default=tempfile.gettempdir(), help="folder for disk")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(evaluate(json.loads(options.case))))
        return
    rows = []
    print(f"{'mode':28}{'size':>6}{'seconds':>10}{'cpu s':>8}{'peak MB':>9}{'memory':>8}")
    for size in options.sizes:
        for mode in options.modes:
            case = {"mode": mode, "size": size, **vars(options)}
            case = {k: v for k, v in case.items() if k not in ("json", "case", "sizes", "modes")}
            done = subprocess.run(
                [sys.executable, __file__, "--case", json.dumps(case)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            row = json.loads(done.stdout.splitlines()[-1])
            first = next((r for r in rows if r["size"] == size), row)
            rows.append(row)
            print(
                f"{mode:28}{size:6d}{row['seconds']:10.2f}{row['processor_seconds']:8.2f}"
                f"{row['peak_bytes'] / 1e6:9.0f}{row['peak_bytes'] / first['peak_bytes']:8.2f}",
                flush=True,
            )
    import torch

    about = {
        "device": options.device,
        "precision": options.precision,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
