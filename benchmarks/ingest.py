"""SEG-Y in and out, beside multidimio: MB/s, memory, and the time to read a slice.

The same generated file goes through `outcrop ingest` and multidimio's `segy_to_mdio`, in turns,
every run a fresh process on the same cores, start-up included: 128 × 128 × 128 chunks, Blosc
with zstd at level 5 and shuffle for both. Then outcrop alone: export, and other chunks and codecs.

multidimio pins versions that conflict with ours, so it is installed into an environment of its
own, once; --mdio-python names another one, --no-mdio leaves it out.
"""

from __future__ import annotations

import argparse
import filecmp
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
import segyio
from rich.console import Console
from rich.table import Table

OUTCROP = [sys.executable, "-m", "outcrop.cli.main"]

MDIO = """
import sys
from mdio import segy_to_mdio
from mdio.builder.template_registry import TemplateRegistry
from segy.standards import get_segy_standard

if __name__ == "__main__":
    segy_to_mdio(
        segy_spec=get_segy_standard(1.0),
        mdio_template=TemplateRegistry().get("PostStack3DTime"),  # 128³ chunks, zstd 5, shuffle
        input_path=sys.argv[1],
        output_path=sys.argv[2],
        overwrite=True,
    )
"""

READ_ZARR = """
import json, sys, time, outcrop
survey = outcrop.open(sys.argv[1])
times = {}
for dim in survey.amplitude.dims:
    count = survey.sizes[dim]
    for k in (count // 3, count // 2, count - 2):
        start = time.perf_counter()
        survey.amplitude.isel({dim: k}).load(scheduler="threads")
        times.setdefault(dim, []).append(time.perf_counter() - start)
print(json.dumps(times))
"""

READ_SEGY = """
import json, sys, time, segyio
times = {}
with segyio.open(sys.argv[1]) as file:
    lines = {"inline": (file.iline, file.ilines), "crossline": (file.xline, file.xlines)}
    lines["twt"] = (file.depth_slice, range(len(file.samples)))
    for dim, (mode, numbers) in lines.items():
        count = len(numbers)
        for k in (count // 3, count // 2, count - 2):
            start = time.perf_counter()
            mode[numbers[k]]
            times.setdefault(dim, []).append(time.perf_counter() - start)
print(json.dumps(times))
"""


def generate(path: Path, shape: tuple[int, int, int]) -> None:
    """Write a survey of IBM floats: folded layers with noise, sorted by inline."""
    inlines, crosslines, samples = shape
    rng = np.random.default_rng(0)
    spec = segyio.spec()
    spec.format, spec.iline, spec.xline = 1, 189, 193
    spec.samples = np.arange(samples) * 4.0
    spec.tracecount = inlines * crosslines
    times = np.arange(samples, dtype=np.float32)
    lines = np.arange(crosslines, dtype=np.float32)[:, None]
    with segyio.create(path, spec) as file:
        file.bin.update(hdt=4000, rev=256)
        n = 0
        for i in range(inlines):
            depth = times + 9 * np.sin(i / 31) + 12 * np.cos(lines / 43)
            image = 4000 * np.sin(depth / 4.5) * np.sin(depth / 61) + 1500 * np.sin(depth / 2.9)
            image += rng.normal(0, 150, (crosslines, samples))
            file.trace.raw[n : n + crosslines] = image.astype(np.float32)
            for j in range(crosslines):
                file.header[n] = {
                    1: n + 1, 5: n + 1, 9: i + 1, 21: j + 1, 71: -100, 115: samples, 117: 4000,
                    181: 60_000_000 + 2500 * i - 300 * j, 185: 607_000_000 + 300 * i + 2500 * j,
                    189: i + 1, 193: j + 1,
                }  # fmt: skip
                n += 1


def measure(command: list[Any], cores: int) -> tuple[float, float, float]:
    """Run a command on some cores: wall seconds, CPU seconds, largest process in MB."""
    environment = os.environ | {"MDIO__IMPORT__CPU_COUNT": str(cores)}
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)),
            env=environment,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]),
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{command} failed:\n{log.read().decode()}")
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def reading(script: str, path: Path) -> dict[str, float]:
    """Median milliseconds to read one slice along each dimension, opened before."""
    output = subprocess.run(
        [sys.executable, "-c", script, path], check=True, capture_output=True, text=True
    ).stdout
    return {dim: 1e3 * statistics.median(times) for dim, times in json.loads(output).items()}


def mdio_python(cache: Path) -> Path:
    """Make an environment with multidimio, unless there is one."""
    python = cache / "multidimio" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "multidimio"], check=True)
    return python


def size(path: Path) -> int:
    """Bytes of a file or a folder."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files)


def main() -> None:
    """Run everything and print it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "outcrop"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[400, 400, 1000])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--mdio-python", type=Path, help="Python that has multidimio.")
    parser.add_argument("--no-mdio", action="store_true")
    parser.add_argument("--cache", type=Path, default=cache, help="For multidimio's environment.")
    parser.add_argument("--folder", type=Path, help="Where to write; needs 4 times the SEG-Y.")
    parser.add_argument("--json", type=Path, help="Write the figures there.")
    options = parser.parse_args()

    console = Console()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        figures = run(options, Path(scratch), console)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def run(options: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Any]:
    """Measure everything in a scratch folder."""
    segy, zarr, back = scratch / "a.sgy", scratch / "a.zarr", scratch / "back.sgy"
    shape = "×".join(map(str, options.shape))
    with console.status(f"writing {shape} IBM floats"):
        generate(segy, tuple(options.shape))
    megabytes = size(segy) / 1e6
    figures: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {options.cores} cores",
        "shape": options.shape,
        "megabytes": megabytes,
        "runs": {},
        "slices": {},
    }

    same = [*OUTCROP, "ingest", segy, zarr, "--overwrite", "--chunks", "128,128,128"]
    commands = {f"outcrop {version('outcrop')} ingest": [*same, "--compressor", "zstd:5"]}
    if not options.no_mdio:
        python = options.mdio_python or mdio_python(options.cache)
        ask = "from importlib.metadata import version; print(version('multidimio'))"
        number = subprocess.check_output([python, "-c", ask], text=True).strip()
        script = scratch / "mdio_ingest.py"
        script.write_text(MDIO)
        commands[f"multidimio {number}"] = [python, script, segy, scratch / "a.mdio"]
    commands["outcrop export"] = [*OUTCROP, "export", zarr, back, "--overwrite"]

    where = f"{options.cores} cores, {options.repeat} runs"
    table = Table(
        "",
        "MB/s",
        "from … to",
        "CPU s",
        "largest process, MB",
        "output, MB",
        title=f"{shape}, {megabytes:,.0f} MB of SEG-Y, {where}",
    )
    outputs = {name: command[-1] for name, command in commands.items()}
    outputs |= {n: zarr for n in commands if n.endswith("ingest")}
    outputs |= {n: back for n in commands if n.endswith("export")}
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for turn in range(options.repeat):
        for name, command in commands.items():
            with console.status(f"{name}, run {turn + 1}"):
                runs[name].append(measure(command, options.cores))
    for name, results in runs.items():
        rates = sorted(megabytes / wall for wall, _, _ in results)
        row = {
            "MB/s": statistics.median(rates),
            "all MB/s": rates,
            "CPU s": statistics.median(cpu for _, cpu, _ in results),
            "largest process MB": max(memory for _, _, memory in results),
            "output MB": size(outputs[name]) / 1e6,
        }
        figures["runs"][name] = row
        table.add_row(
            name,
            f"{row['MB/s']:,.1f}",
            f"{rates[0]:,.1f} … {rates[-1]:,.1f}",
            f"{row['CPU s']:.1f}",
            f"{row['largest process MB']:,.0f}",
            f"{row['output MB']:,.0f}",
        )
    console.print(table)
    medians = [row["MB/s"] for row in figures["runs"].values()]
    if not options.no_mdio:
        figures["ratio"] = medians[0] / medians[1]
        console.print(f"outcrop ingests {figures['ratio']:.2f} times as fast as multidimio")
    figures["export is identical"] = filecmp.cmp(segy, back, shallow=False)
    console.print(f"exported file identical: {figures['export is identical']}")

    table = Table(
        "",
        "ingest, MB/s",
        "output, MB",
        "inline, ms",
        "crossline, ms",
        "time slice, ms",
        title="Reading one slice, by chunks and codec",
    )
    found = reading(READ_SEGY, segy)
    figures["slices"]["SEG-Y, segyio"] = found
    table.add_row("SEG-Y, segyio", "", f"{megabytes:,.0f}", *(f"{t:,.1f}" for t in found.values()))
    for chunks, codec in [
        ("128,128,128", "zstd:5"),
        ("128,128,128", "zstd:3"),
        ("64,64,64", "zstd:3"),
        ("64,64,64", "lz4:5"),
        ("32,32,32", "zstd:3"),
    ]:
        command = [*OUTCROP, "ingest", segy, zarr, "--overwrite", "--chunks", chunks]
        name = f"{chunks.replace(',', '×')}, {codec}"
        with console.status(name):
            wall, _, _ = measure([*command, "--compressor", codec], options.cores)
            found = reading(READ_ZARR, zarr)
        row = {"MB/s": megabytes / wall, "output MB": size(zarr) / 1e6, **found}
        figures["slices"][name] = row
        table.add_row(name, *(f"{v:,.1f}" for v in row.values()))
    console.print(table)
    return figures


if __name__ == "__main__":
    main()
