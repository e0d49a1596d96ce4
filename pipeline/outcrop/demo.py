"""The whole path on a synthetic survey, timed: SEG-Y, Zarr, prediction, SEG-Y, pictures."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
import xarray as xr
from rich.console import Console
from rich.table import Column, Table
from torch import nn

from . import models
from .cluster import check_count, connect
from .engine import predict, whole_volume
from .errors import OutcropError, OutputExistsError
from .planner.plan import format_bytes, parse_bytes
from .storage import on_disk
from .survey import export, ingest
from .training import synthetic
from .view import sections

_SEGY, _SURVEY = "synthetic.sgy", "synthetic.zarr"
_FAULTS, _FAULTS_SEGY = "faults.zarr", "faults.sgy"
_LABELS, _SECTIONS = "labels.png", "sections.png"
_NAMES = (_SEGY, _SURVEY, _FAULTS, _FAULTS_SEGY, _LABELS, _SECTIONS)
_SEED = 7
_TAKEN = 44  # bytes a voxel while the survey is made
_PART = 64  # samples along each axis of the part that is evaluated whole
_TILE = (24, 32, 24)


@dataclass(frozen=True)
class Step:
    """What one step of the demo took.

    Attributes
    ----------
    what : str
        Its name.
    amount : float
        What went through it, in `unit`.
    unit : str
        "B" (of the SEG-Y file) or "voxels".
    seconds : float
    main_memory, worker_memory : int
        Largest resident memory of this process and of any one process under it, in bytes.
    """

    what: str
    amount: float
    unit: str
    seconds: float
    main_memory: int
    worker_memory: int


@dataclass(frozen=True)
class Report:
    """What the demo measured and wrote.

    Attributes
    ----------
    steps : tuple of Step
    differences : dict of str to float
        Largest absolute difference, for each precision, between tile by tile and the network
        called on the same part whole; and, as "rounding", between the latter in float32 and in
        float64.
    files : dict of str to pathlib.Path
        What each file is, and where.
    """

    steps: tuple[Step, ...]
    differences: dict[str, float]
    files: dict[str, Path]


def run(
    out: str | os.PathLike[str] = "demo",
    *,
    size: int = 192,
    memory: str | int = "2GB",
    workers: int | None = None,
    weights: str | os.PathLike[str] = "synthetic-v1",
    console: Console | None = None,
) -> Report:
    """Take a synthetic survey through the whole path and print what it took.

    Parameters
    ----------
    out : path-like
        Folder to write to. What an earlier demo left there is replaced.
    size : int
        Number of inlines, of crosslines and of samples; 32 or more.
    memory : str or int
        What each worker may take to evaluate tiles, such as "2GB".
    workers : int, optional
        Number of worker processes; one per core unless given.
    weights : path-like, "synthetic-v1" or "seeded"
        Of faultseg3d, as for `outcrop.models.load`.
    console : rich.console.Console, optional
        Where to print; standard output unless given.

    Returns
    -------
    Report

    Raises
    ------
    OutcropError
        If `size` is too small or too large for this machine, or `memory` or `weights` are not
        usable.
    OutputExistsError
        If the folder holds anything but an earlier demo.
    """
    if size < 32:
        raise OutcropError(f"size {size}: too small to show anything; take 32 or more")
    room = psutil.virtual_memory().available
    if _TAKEN * size**3 > room:
        raise OutcropError(
            f"size {size}: making the survey takes {format_bytes(_TAKEN * size**3)} of memory, and "
            f"{format_bytes(room)} are free; take {int((room / _TAKEN) ** (1 / 3))} or less"
        )
    parse_bytes(memory)
    check_count(workers)
    model = models.load("faultseg3d", weights=weights)
    folder = _folder(on_disk(out))
    console = console or Console()
    steps: list[Step] = []

    made = synthetic.synthetic_survey((size,) * 3, seed=_SEED)
    synthetic.write_segy(made, folder / _SEGY, overwrite=True)
    length = (folder / _SEGY).stat().st_size
    with _step(steps, "ingest", length, "B"):
        survey = ingest(folder / _SEGY, folder / _SURVEY, overwrite=True, progress=True)
    with (
        connect("local", workers) as client,
        _step(steps, "predict", survey["amplitude"].size, "voxels"),
    ):
        faults = predict(
            model,
            survey,
            folder / _FAULTS,
            memory=memory,
            client=client,
            overwrite=True,
            progress=True,
        )
    probability = faults["fault_probability"]
    with _step(steps, "export", length, "B"):
        export(probability, folder / _FAULTS_SEGY, like=folder / _SEGY, overwrite=True)

    trained = weights != "seeded"
    at = _most_faulted(made["fault"])
    sections(
        survey["amplitude"],
        made["fault"],
        path=folder / _LABELS,
        title="The faults of the synthetic survey",
        inline=at["inline"],
        crossline=at["crossline"],
        twt=at["twt"],
    )
    sections(
        survey["amplitude"],
        probability,
        # Untrained, the network knows no fault: show where it is highest.
        threshold=0.5 if trained else float(np.quantile(probability, 0.97)),
        path=folder / _SECTIONS,
        title="faultseg3d, "
        + (f"weights {os.fspath(weights)}" if trained else "seeded weights, not trained"),
        inline=at["inline"],
        crossline=at["crossline"],
        twt=at["twt"],
    )
    differences = _differences(model, survey, faults, memory)
    report = Report(
        tuple(steps),
        differences,
        {
            "the survey, SEG-Y": folder / _SEGY,
            "the survey, Zarr": folder / _SURVEY,
            "fault probability, Zarr": folder / _FAULTS,
            "fault probability, SEG-Y": folder / _FAULTS_SEGY,
            "picture of the survey's faults": folder / _LABELS,
            "picture of the prediction": folder / _SECTIONS,
        },
    )
    _show(report, console, _part(size), trained)
    return report


def _folder(path: Path) -> Path:
    if path.exists():
        held = sorted(p.name for p in path.iterdir()) if path.is_dir() else [path.name]
        held = [name for name in held if name[0] != "."]
        # The SEG-Y comes first: without it the others are a user's own, of the same names.
        strange = [name for name in held if name not in _NAMES or _SEGY not in held]
        if strange:
            raise OutputExistsError(
                f"{path}: holds {strange[0]}, which no demo wrote; choose another folder (--out)"
            )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutcropError(
            f"{path}: cannot be made ({error.strerror}); choose another folder (--out)"
        ) from error
    return path


def _most_faulted(fault: xr.DataArray) -> dict[str, float]:
    """Where to cut so as to see most of the faults, away from the edges."""
    cuts = {}
    for axis, dim in enumerate(map(str, fault.dims)):
        count = fault.to_numpy().sum(tuple({0, 1, 2} - {axis}))
        edge = len(count) // 5
        cuts[dim] = fault[dim].to_numpy()[edge + count[edge:-edge].argmax()].item()
    return cuts


@contextlib.contextmanager
def _step(steps: list[Step], what: str, amount: float, unit: str) -> Iterator[None]:
    """Time the block and watch the memory of this process and of those under it."""
    peak = {"main": 0, "worker": 0}
    over = threading.Event()

    def watch() -> None:
        main = psutil.Process()
        while True:
            peak["main"] = max(peak["main"], main.memory_info().rss)
            for worker in main.children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    if not any("resource_tracker" in word for word in worker.cmdline()):
                        peak["worker"] = max(peak["worker"], worker.memory_info().rss)
            if over.wait(0.1):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        yield
        seconds = time.perf_counter() - start
    finally:
        over.set()
        watcher.join()
    steps.append(Step(what, amount, unit, seconds, peak["main"], peak["worker"]))


def _differences(
    model: nn.Module, survey: xr.Dataset, faults: xr.Dataset, memory: str | int
) -> dict[str, float]:
    """Tile by tile against `model(x)`, on the middle of the survey, in two precisions."""
    amplitude = survey["amplitude"]
    part = amplitude
    for dim, extent in amplitude.sizes.items():
        length = _part(extent)
        start = (extent - length) // 2
        part = part.isel({dim: slice(start, start + length)})
    values = part.transpose("twt", "crossline", "inline").to_numpy().astype(np.float64)
    values -= faults.attrs["amplitude_mean"]
    values /= faults.attrs["amplitude_standard_deviation"]
    values[:, ~part["live"].transpose("crossline", "inline").to_numpy()] = 0.0
    whole, found = {}, {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        network = copy.deepcopy(model).to(dtype)
        x = torch.from_numpy(values).to(dtype)[None, None]
        with torch.inference_mode():
            whole[name] = network(x)
        tiled = whole_volume(network, x, memory=memory, tile=_TILE)
        found[name] = float((tiled - whole[name]).abs().max())
    found["rounding"] = float((whole["float32"] - whole["float64"]).abs().max())
    return found


def _part(extent: int) -> int:
    return min(_PART, extent // 8 * 8)


def _show(report: Report, console: Console, part: int, trained: bool) -> None:
    table = Table(
        "step",
        *(Column(name, justify="right") for name in ("amount", "time", "rate", "main", "worker")),
        title="outcrop demo",
    )
    for step in report.steps:
        table.add_row(
            step.what,
            f"{step.amount / 1e6:.2f} M{step.unit}",
            f"{step.seconds:.1f} s",
            f"{step.amount / step.seconds / 1e6:.2f} M{step.unit}/s",
            format_bytes(step.main_memory),
            format_bytes(step.worker_memory) if step.worker_memory else "",
        )
    console.print(table)
    console.print("main, worker: largest resident memory of this process, of any one worker\n")
    exact = Table("largest absolute difference", Column("", justify="right"))
    for name in ("float32", "float64"):
        exact.add_row(f"tiles against whole, {name}", f"{report.differences[name]:.1e}")
    exact.add_row("whole, float32 against float64", f"{report.differences['rounding']:.1e}")
    console.print(exact)
    tile = "×".join(map(str, _TILE))
    console.print(f"on the middle {part}×{part}×{part} of the survey, in tiles of {tile}\n")
    if not trained:
        console.print(
            "[bold]The weights are seeded, not trained:[/bold] the prediction shows that the path "
            "works, not where faults are. Leave out --weights for those that outcrop ships."
        )
    for what, path in report.files.items():
        console.print(f"{what}: {path}", soft_wrap=True, highlight=False, markup=False)
