"""From what a user passes to what is propagated: read, checked, before anything is written."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..arrays import native
from ..errors import ArgumentError, SurveyError
from ..survey.geometry import check_choice
from .checks import (
    check_bands,
    check_gathers,
    check_line,
    check_model,
    check_sampling,
    check_shots,
    check_surface,
    check_times,
)
from .gathers import Gathers, is_raw, open_shots
from .kinds import check_kinds
from .model import Grid, Model, grid_of, open_model
from .physics import EQUATIONS, Physics, highest_speed, layer_frequency

# Shots whose positions are read together.
_PIECE = 64

Shots = xr.Dataset | str | os.PathLike[str]


@dataclass(frozen=True)
class Options:
    """How waves are propagated, as `model_shots`, `invert` and `migrate` take it.

    Parameters
    ----------
    equation : {"scalar", "acoustic", "elastic"}
        acoustic needs `density` beside `vp`, elastic `vs` too. The wavelet w is, in this order,
        the right-hand side of ∇²p − p″/vp² = w, volume per volume and second, pressure per second.
    accuracy : {2, 4, 6, 8}
        Order of the differences in space.
    pml_width : int
        Samples of the absorbing layer on each side.
    free_surface : bool
        Whether the top of the model reflects as the surface of the sea does (not elastic).
    source, receiver : {"pressure", "vertical"}
        Pressure, or a vertical force and vertical particle velocity (not scalar).
    substeps : bool
        Let Deepwave step in between samples of the traces, where their interval is not stable.
    storage_mode : {"device", "cpu", "disk"}
        Where Deepwave keeps what backward needs of the wavefield.
    storage_path : path-like, optional
        Folder for "disk", on each worker; inside the output unless given.
    storage_compression : bool
        Keep it in 8 bits a value: lossy, and of no use around sources, where the model then stays.
    checkpoint_segments : int, optional
        Keep the wavefield of one of so many pieces of the time, and compute others again; not with
        the acoustic equation below a free surface.
    memory : str or int, optional
        What one process may take; what it has to give unless given.
    batch_size : int, optional
        Shots of a task; as many as fit, and no more than keep all workers busy, unless given.
    precision : {"float32", "float64"}
    device : str
        "cpu" or "cuda".
    """

    equation: str = "scalar"
    accuracy: int = 4
    pml_width: int = 20
    free_surface: bool = False
    source: str = "pressure"
    receiver: str = "pressure"
    substeps: bool = False
    storage_mode: str = "device"
    storage_path: str | os.PathLike[str] | None = None
    storage_compression: bool = False
    checkpoint_segments: int | None = None
    memory: str | int | None = None
    batch_size: int | None = None
    precision: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_kinds(vars(self))
        check_choice("equation", self.equation, tuple(EQUATIONS))
        check_choice("precision", self.precision, ("float32", "float64"))
        if self.storage_mode == "none":
            raise ArgumentError(
                "storage_mode='none': a gradient needs the wavefield; to keep less of it and "
                "compute the rest again, pass checkpoint_segments=8 (checkpoint_segments: 8)"
            )
        check_choice("storage_mode", self.storage_mode, ("device", "cpu", "disk"))
        for name in ("source", "receiver"):
            check_choice(name, getattr(self, name), ("pressure", "vertical"))
            if self.equation == "scalar" and getattr(self, name) != "pressure":
                raise ArgumentError(
                    f"{name}={getattr(self, name)!r}: the scalar equation knows pressure alone; "
                    "choose equation='acoustic' or 'elastic'"
                )
        if self.equation == "elastic" and self.free_surface:
            raise ArgumentError(
                "free_surface=True: the elastic equation has none; choose equation='acoustic', or "
                "free_surface=False (free_surface: false)"
            )
        if self.accuracy not in (2, 4, 6, 8):
            raise ArgumentError(f"accuracy={self.accuracy}: choose one of 2, 4, 6, 8")
        pieces, mirrored = self.checkpoint_segments or 1, self.free_surface and self.accuracy > 2
        if self.equation == "acoustic" and mirrored and pieces > 1:
            raise ArgumentError(
                f"checkpoint_segments={pieces}: what Deepwave's acoustic equation has above a free "
                "surface is lost between segments, and with it the third digit of the gradient; "
                'keep wavefields on disk, storage_mode="disk" (storage_mode: disk)'
            )

    def record(self) -> dict[str, Any]:
        """What decides on the result, for a later call to compare."""
        names = (
            "equation", "accuracy", "pml_width", "free_surface", "source", "receiver", "substeps",
            "storage_compression", "checkpoint_segments", "precision", "device",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def options_of(given: dict[str, Any]) -> Options:
    """Make `Options` of keyword arguments, or say which is unknown."""
    known = Options.__dataclass_fields__
    for name in given:
        if name not in known:
            raise ArgumentError(f"{name}: no such option; there are {', '.join(known)}")
    return Options(**{name: native(value) for name, value in given.items()})


@dataclass(frozen=True)
class Experiment:
    """A model, shots on it, and how they are propagated.

    Attributes
    ----------
    model : xarray.Dataset
        In memory.
    grid : Grid
    shots : xarray.Dataset
        Positions, and traces where they were observed.
    path : pathlib.Path or None
        Where `shots` lies as Zarr, if it does.
    wavelet : ndarray of float64, (shot or 1, time)
    physics : Physics
    options : Options
    """

    model: xr.Dataset
    grid: Grid
    shots: xr.Dataset
    path: Path | None
    wavelet: np.ndarray
    physics: Physics
    options: Options

    @property
    def gathers(self) -> Gathers:
        """To read shots by number."""
        return Gathers(self.path or self.shots, self.grid.dims)

    def fingerprint(self) -> str:
        """SHA-256 of the model and its grid, the wavelet and its time step, and all positions.

        Observed traces are compared where all of them are read: see `check_traces`.
        """
        digest = hashlib.sha256(f"{self.grid}{self.physics.time_step}".encode())
        arrays = [self.model[p].to_numpy() for p in self.physics.parameters]
        for array in itertools.chain([*arrays, self.wavelet], _positions(self.gathers)):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _positions(gathers: Gathers) -> Iterator[np.ndarray]:
    """All source positions, and those of the receivers, of some shots at a time."""
    yield gathers.sources(np.arange(gathers.count))
    count = 1 if gathers.has_common_spread else gathers.count
    for start in range(0, count, _PIECE):
        yield gathers.receivers(np.arange(start, min(start + _PIECE, count)))[0]


def set_up(
    velocity: Model,
    shots: Shots,
    wavelet: xr.DataArray | None,
    options: Options,
    *,
    observed: bool,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    bands: Sequence[float | None] = (None,),
) -> Experiment:
    """Read and check everything.

    Parameters
    ----------
    velocity, shots, wavelet
        As for `invert`.
    options : Options
    observed : bool
        Whether traces are needed.
    bounds : mapping of str to (float, float), optional
        Of the parameters that change.
    bands : sequence of float or None
        Corners of low-pass filters, Hz: above the highest nothing is propagated.

    Raises
    ------
    SurveyError, GeometryError, SamplingError, ArgumentError
    """
    model = open_model(velocity)
    grid = grid_of(model)
    check_model(model, options.equation)
    if options.equation == "scalar":
        model = model[["vp"]]
    path, name = None, "shots"
    if not isinstance(shots, xr.Dataset):
        path, name = Path(shots).absolute(), str(shots)
        shots = open_shots(path)
    check_shots(shots, grid.dims, name, observed)
    if observed and not is_raw(shots, grid.dims):
        path = None  # workers read a Zarr raw: they get a copy, decoded
    if wavelet is None:
        if "wavelet" not in shots:
            how = "pass wavelet=" if observed else 'add one, as "wavelet"'
            raise SurveyError(
                f"{name}: has no wavelet; {how}, such as outcrop.inversion.ricker(25.0, "
                "time_step, samples)" + (" (wavelet: {ricker: 25})" if observed else "")
            )
        wavelet = shots["wavelet"]
    step, samples = check_times(shots if observed else wavelet.to_dataset(), wavelet, name)
    if (options.checkpoint_segments or 1) > samples:
        raise ArgumentError(
            f"checkpoint_segments={options.checkpoint_segments}: is more than the {samples} "
            "samples in time; pass fewer"
        )
    emitted = np.atleast_2d(wavelet.transpose(..., "time").to_numpy().astype(np.float64))
    check_bands(bands, step)
    bounds = {p: ends for p, ends in (bounds or {}).items() if p in model}
    fastest = bounds["vp"][1] if "vp" in bounds else float(model["vp"].max())
    highest = highest_speed(options.equation, model, grid, options.accuracy, bounds)
    corner = None if None in bands else max(bands)  # type: ignore[type-var]
    check_sampling(
        model,
        grid,
        options.equation,
        emitted,
        corner,
        step,
        fastest,
        highest,
        options.accuracy,
        options.substeps,
    )
    gathers = Gathers(shots, grid.dims)
    between, spread = check_gathers(gathers, grid, name)
    check_line(shots, grid, name)
    if options.free_surface:
        vertical = "vertical" in (options.source, options.receiver)
        check_surface(gathers, grid, options.equation, vertical)
    physics = Physics(
        equation=options.equation,
        grid=grid,
        time_step=step,
        samples=samples,
        frequency=layer_frequency(emitted, step),
        max_velocity=highest,
        between=between,
        spread=spread,
        accuracy=options.accuracy,
        pml_width=options.pml_width,
        free_surface=options.free_surface,
        source=options.source,
        receiver=options.receiver,
        precision=options.precision,
        device=options.device,
        storage_mode=options.storage_mode,
        storage_path=None
        if options.storage_path is None
        else os.path.abspath(options.storage_path),
        storage_compression=options.storage_compression,
        checkpoint_segments=options.checkpoint_segments,
    )
    return Experiment(model, grid, shots, path, emitted, physics, options)
