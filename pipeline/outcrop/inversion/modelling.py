"""`model_shots`: what receivers would record over a model."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array
import numpy as np
import xarray as xr

from .. import __version__
from ..arrays import encodings
from ..output import Output
from ..progress import track
from ..storage import goes_on, naming_refusal, on_disk
from ..targets import check_apart, check_free
from .experiment import Experiment, options_of, set_up
from .gathers import open_shots
from .kinds import check_kinds
from .memory import choose
from .model import Model
from .shots import Evaluation, Shots, cut, save
from .tasks import Team

if TYPE_CHECKING:
    from distributed import Client

_CHUNK = 32 << 20  # bytes of a chunk of traces


def model_shots(
    velocity: Model,
    acquisition: xr.Dataset,
    path: str | os.PathLike[str] | None = None,
    *,
    client: Client | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Model shot gathers over a velocity model with Deepwave.

    Shots are propagated in batches, on the workers of `client` if there is one. An interrupted
    call leaves nothing that opens; the same call again models the shots that are left.

    Parameters
    ----------
    velocity : xarray.DataArray, xarray.Dataset or path
        `vp` in m/s over depth, crossline, inline (m), or depth and one of them; with the acoustic
        equation `density` in kg/m3, with the elastic one `vs` in m/s too.
    acquisition : xarray.Dataset
        From `surface_grid`, `streamer` or `positions`; or gathers, of which the traces are not
        read.
    path : path-like, optional
        Zarr to write; without one the gathers are returned in memory.
    client : distributed.Client, optional
    overwrite : bool
        Replace what lies at `path`.
    progress : bool
        Show a progress bar.
    **options
        Of propagation: see `outcrop.inversion.Options`.

    Returns
    -------
    xarray.Dataset
        `amplitude` (shot, receiver, time) with the acquisition; lazy with a path.

    Raises
    ------
    SurveyError, GeometryError
        If the model or the acquisition lacks something, or a position is outside the model.
    SamplingError
        If spacing or time step do not suit velocities and frequencies.
    MemoryBudgetError
        If a shot does not fit the memory.
    OutputExistsError, ResumeError
        If something else lies at `path`.
    ArgumentError
        If an option has no such value, or the model or the acquisition lie at `path`.
    """
    check_kinds({"velocity": velocity, "acquisition": acquisition})
    if path is None:
        with tempfile.TemporaryDirectory() as folder:
            how = {"client": client, "progress": progress, **options}
            return model_shots(velocity, acquisition, Path(folder) / "shots.zarr", **how).load()
    path = on_disk(path)
    check_apart(velocity, path, what="the model")
    check_apart(acquisition, path, what="the acquisition")
    check_free(path, overwrite)
    acquisition = acquisition.drop_vars(["amplitude", "weight"], errors="ignore")
    experiment = set_up(velocity, acquisition, None, options_of(options), observed=False)
    gathers, physics = experiment.gathers, experiment.physics
    count, receivers = gathers.count, gathers.receiver_count
    need = choose(
        physics,
        count,
        receivers,
        (),
        memory=experiment.options.memory,
        batch_size=experiment.options.batch_size,
        client=client,
    )
    template, encoding = _template(experiment, count, receivers)
    record = {
        "command": "model_shots",
        "input": experiment.fingerprint(),
        **experiment.options.record(),
    }
    with (
        naming_refusal(path, goes_on(overwrite)),
        Output.begin(path, template, encoding, record, overwrite) as output,
        Team(Shots(physics, path.absolute()), client) as team,
        track("model shots", count, "shots", progress) as advance,
    ):
        evaluation = Evaluation(on_disk(output.aside).absolute(), ())
        parameters = {p: experiment.model[p].to_numpy() for p in physics.parameters}
        wavelet = {"wavelet": experiment.wavelet, "corner": np.array(np.nan)}
        save(evaluation.folder / "input.npz", {**parameters, **wavelet})
        left = [n for n in range(count) if str(n) not in output.finished]
        advance(count - len(left))

        def done(task: tuple, _: None) -> None:
            for ((shot, _factor),) in task[2]:
                output.finish(str(shot))
            advance(len(task[2]))

        batches = cut([((n, 1.0),) for n in left], need.shots) if left else []
        team.run((("model", evaluation, batch) for batch in batches), done)
        output.commit()
    return open_shots(path)


def _template(
    experiment: Experiment, count: int, receivers: int
) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    physics = experiment.physics
    shape = (count, receivers, physics.samples)
    traces = dask.array.zeros(shape, dtype=physics.precision, chunks=-1)
    attrs = {"units": "1", "long_name": f"recorded {physics.receiver}"}
    shots = experiment.shots.load()
    dataset = shots.assign(amplitude=(("shot", "receiver", "time"), traces, attrs))
    told = {k: v for k, v in dataclasses.asdict(experiment.options).items() if v is not None}
    dataset.attrs = {
        "Conventions": "CF-1.11",
        "outcrop_version": __version__,
        "modelled_with": {**told, "storage_path": str(told.get("storage_path", ""))},
    }
    chunk = min(receivers, max(1, _CHUNK // (physics.samples * physics.dtype.itemsize)))
    encoding = encodings(dataset)
    encoding["amplitude"] |= {"chunks": (1, chunk, physics.samples), "_FillValue": None}
    return dataset.drop_encoding(), encoding
