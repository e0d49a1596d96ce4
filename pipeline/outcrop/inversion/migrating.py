"""`migrate`: reverse-time migration, which is one gradient."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .. import __version__
from ..arrays import encodings
from ..output import Output
from ..storage import goes_on, naming_refusal, on_disk
from ..targets import check_apart, check_free
from .arguments import mask_weights
from .evaluation import Evaluator
from .experiment import Shots, options_of, set_up
from .history import History, begun_with, open_inversion
from .kinds import check_kinds
from .memory import choose
from .model import Model
from .selection import digest
from .shots import Shots as Job
from .shots import cut
from .tasks import Team
from .traces import check_traces

if TYPE_CHECKING:
    from distributed import Client


def migrate(
    velocity: Model,
    observed: Shots,
    path: str | os.PathLike[str],
    *,
    wavelet: xr.DataArray | None = None,
    laplacian: bool = True,
    mask: xr.DataArray | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Image reflectors by reverse-time migration [1]_: one gradient in a smooth model.

    What the smooth model itself explains, direct and diving waves, is modelled and taken off the
    observed traces; the rest is propagated back and correlated with the waves from the sources.
    That is minus the gradient of the squared differences by velocity. What is left of the paths
    between sources and receivers, of low wavenumber, a Laplacian takes away [2]_.

    Parameters
    ----------
    velocity : xarray.DataArray, xarray.Dataset or path
        Smooth, and right for travel times: as for `model_shots`.
    observed, path, wavelet, client, overwrite
        As for `outcrop.inversion.invert`.
    laplacian : bool
        Filter the image by a Laplacian, with the sign that leaves its polarity.
    mask : xarray.DataArray, optional
        From `outcrop.inversion.mask`, multiplies the image.
    **options
        Of propagation: see `outcrop.inversion.Options`.

    Returns
    -------
    xarray.Dataset
        `image` over the axes of the model, lazy: from negative to positive, going down, where
        velocity rises.

    Raises
    ------
    SurveyError, GeometryError, SamplingError, MemoryBudgetError, OutputExistsError, ResumeError
        As `invert` does.
    ArgumentError
        If an option has no such value, or the model or the shots lie at `path`.

    References
    ----------
    .. [1] Baysal, E., Kosloff, D. D., and Sherwood, J. W. C., 1983, Reverse time migration:
       Geophysics, 48, 1514-1524, https://doi.org/10.1190/1.1441434
    .. [2] Zhang, Y., and Sun, J., 2009, Practical issues in reverse time migration: First Break,
       27, 53-59, https://doi.org/10.3997/1365-2397.2009002
    """
    check_kinds(
        {
            "velocity": velocity, "observed": observed, "wavelet": wavelet, "mask": mask,
            "laplacian": laplacian,
        }
    )  # fmt: skip
    path = on_disk(path)
    check_apart(velocity, path, what="the model")
    check_apart(observed, path, what="the Zarr of shots")
    check_free(path, overwrite)
    propagation = options_of(options)
    experiment = set_up(velocity, observed, wavelet, propagation, observed=True)
    grid, gathers = experiment.grid, experiment.gathers
    weights = mask_weights(mask, experiment)
    need = choose(
        experiment.physics,
        gathers.count,
        gathers.receiver_count,
        ("vp",),
        memory=propagation.memory,
        batch_size=propagation.batch_size,
        begun_with=None if overwrite else begun_with(path),
        client=client,
        weighted="weight" in experiment.shots,
    )
    attrs = {"units": "1", "long_name": "reverse-time migration"}
    image = xr.DataArray(np.zeros(grid.shape, np.float32), dims=grid.dims, attrs=attrs)
    template = xr.Dataset({"image": image.chunk()}, {d: experiment.model[d] for d in grid.dims})
    template.attrs = {"Conventions": "CF-1.11", "outcrop_version": __version__}
    record = {
        "command": "migrate",
        "input": experiment.fingerprint(),
        "laplacian": laplacian,
        "mask": None if weights is None else digest(weights),
        **propagation.record(),
    }
    encoding = encodings(template)
    encoding["image"] |= {"chunks": grid.shape, "_FillValue": None}
    with (
        naming_refusal(path, goes_on(overwrite)),
        Output.begin(path, template.drop_encoding(), encoding, record, overwrite) as output,
    ):
        history = History(output, need.shots)
        job = Job(history.physics(experiment), history.shots(experiment))
        with Team(job, client) as team:
            traces = check_traces(team, output, experiment)
            evaluate = Evaluator(team, history.aside / "evaluations", ("vp",))
            physics = experiment.physics
            groups = [((shot, 1.0),) for shot in range(gathers.count)]
            _, gradients = evaluate(
                {p: experiment.model[p].to_numpy() for p in physics.parameters},
                experiment.wavelet,
                None,
                cut(groups, need.shots),
            )
        values = -gradients["vp"]
        if laplacian:
            values = -_laplacian(values, grid.spacing)
        if weights is not None:
            values = values * weights
        output.array("image")[...] = values.astype(np.float32)
        output.commit({"migrated_with": {**record, "traces": traces}})
    return open_inversion(path)


def _laplacian(values: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Sum of the second differences; at the edges the values go on as they end."""
    padded = np.pad(values, 1, mode="edge")
    inner = (slice(1, -1),) * values.ndim
    total = np.zeros_like(values)
    for axis, step in enumerate(spacing):
        before, after = (np.roll(padded, turn, axis)[inner] for turn in (1, -1))
        total += (before - 2 * values + after) / step**2
    return total
