"""What an inversion writes: each iteration's model and gradient, and what the next one needs."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import torch
import xarray as xr

from .. import __version__
from ..arrays import encodings
from ..errors import ResumeError
from ..output import Output
from ..storage import on_disk, put_whole, write_whole
from ..targets import aside_of, is_unfinished
from .experiment import Experiment
from .gathers import open_written
from .physics import Physics

_BATCH_SIZE = "batch_size"


def begin(
    path: Path,
    experiment: Experiment,
    parameters: Sequence[str],
    iterations: int,
    record: Mapping[str, Any],
    overwrite: bool,
) -> Output:
    """Create the output of an inversion, or take up an unfinished one."""
    grid, model = experiment.grid, experiment.model
    shape, dtype = grid.shape, experiment.physics.precision
    rows = iterations + 1

    def later(*extents: int, of: str = dtype) -> dask.array.Array:
        return dask.array.zeros(extents, dtype=of, chunks=-1)

    variables: dict[str, Any] = {
        "misfit": ("iteration", later(rows, of="float64"), {"long_name": "misfit"}),
        "corner": (
            "iteration",
            later(rows, of="float64"),
            {"units": "Hz", "long_name": "corner of the low-pass filter, NaN without one"},
        ),
    }
    chunks: dict[str, tuple[int, ...]] = {"misfit": (1,), "corner": (1,)}
    for name in experiment.physics.parameters:
        attrs = dict(model[name].attrs)
        if name not in parameters:
            variables[name] = (grid.dims, model[name].to_numpy(), attrs)
            continue
        long_name = attrs["long_name"]
        variables[name] = (grid.dims, later(*shape), attrs)
        variables[f"{name}_history"] = (
            ("iteration", *grid.dims),
            later(rows, *shape),
            {**attrs, "long_name": f"{long_name} at the start of each iteration"},
        )
        variables[f"gradient_{name}"] = (
            ("iteration", *grid.dims),
            later(rows, *shape),
            {"long_name": f"derivative of the misfit by {long_name}"},
        )
        chunks[name] = shape
        chunks[f"{name}_history"] = chunks[f"gradient_{name}"] = (1, *shape)
    coords = {d: model[d] for d in grid.dims}
    dataset = xr.Dataset(variables, {**coords, "iteration": np.arange(rows)})
    dataset.attrs = {"Conventions": "CF-1.11", "outcrop_version": __version__}
    encoding = encodings(dataset)
    for name, extents in chunks.items():
        encoding[name] |= {"chunks": extents, "_FillValue": None}
    return Output.begin(path, dataset.drop_encoding(), encoding, record, overwrite)


def open_inversion(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open an inversion or a migration, lazily.

    Parameters
    ----------
    path : path-like
        Zarr that `invert` or `migrate` wrote.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    SurveyError
        If it is something else, or unfinished.
    """
    return open_written(path, "outcrop invert")


def begun_with(path: Path) -> int | None:
    """Size of the batches of an unfinished output: others would round otherwise."""
    kept = aside_of(path) / _BATCH_SIZE
    if not is_unfinished(path) or not kept.exists():
        return None
    text = kept.read_text()
    return int(text) if text.isdecimal() else None


class History:
    """Reads and writes the iterations of an output that is not yet whole.

    Parameters
    ----------
    output : Output
    batch_size : int
        Of its batches.
    """

    def __init__(self, output: Output, batch_size: int) -> None:
        self.output, self.aside = output, on_disk(output.aside).absolute()
        self._state = self.aside / "state.pt"
        write_whole(self.aside / _BATCH_SIZE, str(batch_size).encode())

    def shots(self, experiment: Experiment) -> Path:
        """Where workers find the shots: where they lie, or a copy beside the output.

        A call that goes on copies them again: the copy may be cut off, or of other traces.
        """
        if experiment.path is not None:
            return experiment.path
        copy = self.aside / "observed.zarr"
        names = [name for name in ("amplitude", "weight") if name in experiment.shots]
        shots = experiment.shots.drop_vars(names).load()
        for name in names:
            values = experiment.shots[name].variable
            # Whatever blocks they come in, a shot is one here.
            shots[name] = values.chunk({dim: 1 if dim == "shot" else -1 for dim in values.dims})
        shots = shots.drop_encoding()
        encoding = encodings(shots)
        for name in names:
            encoding[name]["chunks"] = (1, *shots[name].shape[1:])
        shots.to_zarr(copy, mode="w", consolidated=False, zarr_format=3, encoding=encoding)
        return copy

    def physics(self, experiment: Experiment) -> Physics:
        """The physics, with a folder for wavefields on disk."""
        physics = experiment.physics
        if physics.storage_mode != "disk" or physics.storage_path is not None:
            return physics
        folder = self.aside / "wavefields"
        shutil.rmtree(folder, ignore_errors=True)  # of processes that were killed
        folder.mkdir(exist_ok=True)
        return dataclasses.replace(physics, storage_path=os.fspath(folder))

    def write_model(self, iteration: int, values: Mapping[str, np.ndarray]) -> None:
        """Write the model at the start of an iteration."""
        for name, array in values.items():
            self.output.array(f"{name}_history")[iteration] = array
            self.output.array(name)[...] = array

    def write_gradient(
        self,
        iteration: int,
        misfit: float,
        corner: float | None,
        gradients: Mapping[str, np.ndarray],
    ) -> None:
        """Write what was found at that model."""
        self.output.array("misfit")[iteration] = misfit
        self.output.array("corner")[iteration] = np.nan if corner is None else corner
        for name, array in gradients.items():
            self.output.array(f"gradient_{name}")[iteration] = array

    def save(self, state: Mapping[str, Any]) -> None:
        """Commit an iteration: from here on the same call goes on after it."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        with put_whole(self._state) as part, open(part, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        self.output.finish(f"iteration {state['iteration']}")

    def load(self) -> dict[str, Any] | None:
        """Return the state that was committed last.

        Raises
        ------
        ResumeError
            If it is damaged.
        """
        if not self._state.exists():
            return None
        try:
            return torch.load(self._state, weights_only=True)
        except Exception:  # torch has no error of its own for it
            raise ResumeError(
                f"{self._state}: is damaged; restore that file, or pass overwrite=True "
                "(--overwrite) to begin anew"
            ) from None
