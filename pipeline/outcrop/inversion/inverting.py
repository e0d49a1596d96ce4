"""`invert`: full-waveform inversion, committed after every iteration."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..arrays import native
from ..storage import goes_on, naming_refusal, on_disk
from ..survey.geometry import check_choice
from ..targets import check_apart, check_free
from .arguments import Bounds, bounds_of, check_parameters, mask_weights, steps_of
from .bands import highest_frequency, low_pass
from .checks import SamplingError, check_dispersion, is_no_solid
from .evaluation import Evaluator
from .experiment import Experiment, Shots, options_of, set_up
from .history import History, begin, begun_with, open_inversion
from .kinds import check_kinds
from .memory import choose, held_memory
from .misfits import MISFITS
from .model import Model, open_model
from .optimisers import OPTIMISERS, Stepper
from .selection import Selection, digest
from .shaping import Shape
from .shots import Shots as Job
from .shots import cut
from .tasks import Team
from .traces import check_traces

if TYPE_CHECKING:
    from distributed import Client

# Of a parameter's largest value: its largest change in the first step.
_FIRST = {"lbfgs": 0.02, "adam": 0.005, "sgd": 0.005}


def invert(
    velocity: Model,
    observed: Shots,
    path: str | os.PathLike[str],
    *,
    wavelet: xr.DataArray | None = None,
    parameters: str | Sequence[str] = ("vp",),
    iterations: int = 20,
    optimiser: str = "lbfgs",
    optimiser_options: Mapping[str, Any] | None = None,
    step: float | Mapping[str, float] | None = None,
    misfit: str = "least_squares",
    bands: Sequence[float | None] = (None,),
    bounds: Bounds | None = None,
    smoothing: float = 0.0,
    mask: xr.DataArray | None = None,
    subset: int | None = None,
    encoding: int | None = None,
    seed: int = 0,
    client: Client | None = None,
    overwrite: bool = False,
    on_iteration: Callable[[int, float], None] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Find the velocities that explain observed shots: full-waveform inversion [1]_.

    Batches of shots are propagated forward and back by Deepwave, on the workers of `client` if
    there is one, and their gradients summed in a tree, always in the same order. After each
    iteration model, gradient, misfit and the state of the optimiser are committed; the same call,
    interrupted, goes on from there with the very same bits, and batches that were finished are
    not computed again. A worker that dies costs the batch it was on.

    Parameters
    ----------
    velocity : xarray.DataArray, xarray.Dataset or path
        Where to start: as for `model_shots`.
    observed : xarray.Dataset or path
        Gathers from `outcrop ingest --shots`, `ingest_shots` or `model_shots`. Workers must see
        a path under the same name. `weight` (shot, receiver[, time]), if there is one, multiplies
        modelled and observed traces, after the filter of a band: 0 mutes.
    path : path-like
        Zarr to write.
    wavelet : xarray.DataArray, optional
        What the sources emitted, (time) or (shot, time); the one in `observed` unless given.
    parameters : str or sequence of str
        What to change: of `vp`, `vs`, `density`, those that the equation has.
    iterations : int
        In each band.
    optimiser : {"lbfgs", "adam", "sgd"}
        L-BFGS comes with a line search.
    optimiser_options : mapping, optional
        Of torch's class, such as `history_size` or `momentum`; `lr` scales all steps.
    step : float or mapping, optional
        Largest change of vp (of each parameter) in the first step, in its unit; unless given 2 %
        of its largest value with L-BFGS, which searches along it, and 0.5 % with the others.
    misfit : {"least_squares", "correlation", "envelope"}
        See `outcrop.inversion.misfits`.
    bands : sequence of float or None
        Corners of low-pass filters on wavelet and traces in Hz, one after another [2]_; None: no
        filter. The optimiser begins anew in each.
    bounds : (float, float) or mapping, optional
        On vp (on each parameter); from 0.7 times the least to 1.3 times the largest value at the
        start unless given. Stability is checked for the upper one of vp.
    smoothing : float
        Standard deviation in m of a Gaussian on the gradient.
    mask : xarray.DataArray, optional
        From `outcrop.inversion.mask`: 0 where the model stays.
    subset : int, optional
        Take so many shots in each iteration, at random [3]_; not with L-BFGS.
    encoding : int, optional
        Fire all shots in so many groups in each iteration, with random signs [4]_; for receivers
        that listen to all shots, least squares, and not with L-BFGS.
    seed : int
        Of what is random.
    client : distributed.Client, optional
    overwrite : bool
        Replace what lies at `path`: it is deleted first, before the traces are read.
    on_iteration : callable, optional
        Told of each iteration, from 0, and the misfit at its start, and at last of the end.
    **options
        Of propagation: see `outcrop.inversion.Options`.

    Returns
    -------
    xarray.Dataset
        `vp` (and others), lazy; `vp_history` and `gradient_vp` (iteration, ...), iteration 0 being
        the start; `misfit` (iteration), of the shots and the band of that iteration.

    Raises
    ------
    SurveyError, GeometryError
        If model or shots lack something, lie outside each other, or are not finite.
    SamplingError
        If spacing or time step do not suit velocities and frequencies.
    MemoryBudgetError
        If a shot does not fit the memory.
    OutputExistsError, ResumeError
        If something else lies at `path`, or an unfinished inversion of something else.
    ArgumentError
        If an option has no such value, or the model or the shots lie at `path`.

    References
    ----------
    .. [1] Virieux, J., and Operto, S., 2009, An overview of full-waveform inversion in exploration
       geophysics: Geophysics, 74, WCC1-WCC26, https://doi.org/10.1190/1.3238367
    .. [2] Bunks, C., Saleck, F. M., Zaleski, S., and Chavent, G., 1995, Multiscale seismic waveform
       inversion: Geophysics, 60, 1457-1473, https://doi.org/10.1190/1.1443880
    .. [3] Friedlander, M. P., and Schmidt, M., 2012, Hybrid deterministic-stochastic methods for
       data fitting: SIAM Journal on Scientific Computing, 34, A1380-A1405,
       https://doi.org/10.1137/110830629
    .. [4] Krebs, J. R., et al., 2009, Fast full-wavefield seismic inversion using encoded sources:
       Geophysics, 74, WCC177-WCC188, https://doi.org/10.1190/1.3230502
    """
    check_kinds(
        {
            "velocity": velocity, "observed": observed, "wavelet": wavelet, "mask": mask,
            "parameters": parameters, "iterations": iterations, "step": step, "bands": bands,
            "optimiser_options": optimiser_options, "bounds": bounds, "smoothing": smoothing,
            "subset": subset, "encoding": encoding, "seed": seed,
        }
    )  # fmt: skip
    choices = {name: native(value) for name, value in (optimiser_options or {}).items()}
    check_kinds(choices, "optimiser_options: ")
    parameters = [parameters] if isinstance(parameters, str) else list(parameters)
    check_choice("optimiser", optimiser, OPTIMISERS)
    check_choice("misfit", misfit, tuple(MISFITS))
    path, bands = on_disk(path), list(bands)
    check_apart(velocity, path, what="the model")
    check_apart(observed, path, what="the Zarr of shots")
    check_free(path, overwrite)
    propagation = options_of(options)
    start = open_model(velocity)
    limits = bounds_of(start, parameters, bounds)
    experiment = set_up(
        start, observed, wavelet, propagation, observed=True, bounds=limits, bands=bands
    )
    check_parameters(experiment, parameters)
    steps = steps_of(start, parameters, step, _FIRST[optimiser])
    allowed = mask_weights(mask, experiment)
    selection = Selection(experiment.gathers, subset, encoding, seed)
    weighted = "weight" in experiment.shots
    selection.check(optimiser, misfit, weighted)
    # Of L-BFGS; others remember two arrays of all steps.
    history = min(choices.get("history_size", 100), iterations) if optimiser == "lbfgs" else 1
    need = choose(
        experiment.physics,
        selection.groups_at_once,
        experiment.gathers.receiver_count,
        tuple(parameters),
        memory=propagation.memory,
        batch_size=propagation.batch_size,
        begun_with=None if overwrite else begun_with(path),
        client=client,
        sources=selection.sources_at_once,
        misfit=misfit,
        weighted=weighted,
        held=held_memory(math.prod(experiment.grid.shape), len(parameters), history),
    )
    stepper = Stepper(
        optimiser,
        dict.fromkeys(parameters, experiment.grid.shape),
        steps,
        choices,
    )
    record = {
        "command": "invert",
        "input": experiment.fingerprint(),
        "parameters": parameters,
        "iterations": iterations,
        "optimiser": [optimiser, choices, steps],
        "misfit": misfit,
        "bands": bands,
        "bounds": limits,
        "smoothing": smoothing,
        "mask": None if allowed is None else digest(allowed),
        "subset": subset,
        "encoding": encoding,
        "seed": seed,
        **propagation.record(),
    }
    with (
        naming_refusal(path, goes_on(overwrite)),
        begin(path, experiment, parameters, iterations * len(bands), record, overwrite) as output,
    ):
        kept = History(output, need.shots)
        job = Job(kept.physics(experiment), kept.shots(experiment), misfit)
        with Team(job, client) as team:
            traces = check_traces(team, output, experiment, encoded=encoding is not None)
            evaluator = Evaluator(team, kept.aside / "evaluations", parameters)
            inversion = _Inversion(
                experiment,
                stepper,
                Shape(experiment.grid, smoothing, allowed, limits),
                selection,
                evaluator,
                need.shots,
            )
            inversion.run(kept, bands, iterations, on_iteration or (lambda n, f: None))
        output.commit({"inverted_with": {**record, "traces": traces}})
    return open_inversion(path)


class _Inversion:
    """An inversion under way: the model, and how it is changed."""

    def __init__(
        self,
        experiment: Experiment,
        stepper: Stepper,
        shape: Shape,
        selection: Selection,
        evaluator: Evaluator,
        batch_size: int,
    ) -> None:
        self.experiment, self.stepper, self.shape = experiment, stepper, shape
        self.selection, self.evaluator, self.batch_size = selection, evaluator, batch_size
        self.base = {
            name: shape.clamp(name, torch.as_tensor(experiment.model[name].to_numpy()).double())
            for name in stepper.x
        }
        self.iteration, self.too_slow, self.no_solid = 0, False, False
        self.highest: dict[float | None, float] = {}  # frequency of each band, Hz

    def run(
        self,
        history: History,
        bands: Sequence[float | None],
        iterations: int,
        told: Callable[[int, float], None],
    ) -> None:
        """Iterate from where the history ends."""
        state = history.load()
        if state is None:
            history.write_model(0, self._values(self.base))
        else:
            self.iteration, self.base = state["iteration"], state["base"]
            self.stepper.load(state["stepper"])
        wavelet, step = self.experiment.wavelet, self.experiment.physics.time_step
        self.highest = {c: highest_frequency(low_pass(wavelet, c, step), step) for c in bands}
        last = iterations * len(bands)
        while self.iteration < last:
            corner = bands[self.iteration // iterations]
            if self.iteration % iterations == 0:
                self.stepper.restart()
            self._look(history, corner, told)
            self.stepper.step(lambda corner=corner: self._at_x(corner))  # type: ignore[misc]
            self.base = self._clamped(self._moved())
            self.iteration += 1
            history.write_model(self.iteration, self._values(self.base))
            history.save(
                {
                    "iteration": self.iteration,
                    "base": self.base,
                    "stepper": self.stepper.state(),
                }
            )
            self.evaluator.commit()
        self._look(history, bands[-1], told)

    def _look(
        self, history: History, corner: float | None, told: Callable[[int, float], None]
    ) -> None:
        """Write misfit and gradient of the model, and say so if it has become what none can be."""
        value, gradients = self._evaluate(self.base, corner)
        history.write_gradient(self.iteration, value, corner, gradients)
        told(self.iteration, value)
        grid, physics = self.experiment.grid, self.experiment.physics
        speeds = {p: self.experiment.model[p].to_numpy() for p in physics.parameters}
        speeds.update(self._values(self.base))
        if physics.equation == "elastic" and not self.no_solid:
            self.no_solid = is_no_solid(speeds["vp"], speeds["vs"])
            if self.no_solid:
                warnings.warn(
                    f"the model of iteration {self.iteration} has vs above vp/√(4/3) somewhere, "
                    "where no solid is: narrow the bounds (bounds:), or take smaller steps (step:)",
                    stacklevel=4,
                )
        if self.too_slow:
            return
        try:
            check_dispersion(speeds, grid, physics.equation, self.highest[corner], physics.accuracy)
        except SamplingError as error:
            self.too_slow = True
            warnings.warn(
                f"the model of iteration {self.iteration} has become too slow: {error}, or raise "
                "the lower bound (bounds:)",
                stacklevel=4,
            )

    def _at_x(self, corner: float | None) -> tuple[float, dict[str, Tensor]]:
        """Misfit where the optimiser is, and its gradient with respect to what it moves."""
        moved = self._moved()
        value, found = self._evaluate(self._clamped(moved), corner)
        gradients = {name: torch.as_tensor(g) for name, g in found.items()}
        return value, {
            name: self.shape.back(g * self.shape.free(name, moved[name], g))
            for name, g in gradients.items()
        }

    def _moved(self) -> dict[str, Tensor]:
        """Where the optimiser is, bounds aside."""
        moved = {}
        for name, base in self.base.items():
            unit = self.stepper.units.get(name, 0.0)  # not known before the first gradient
            moved[name] = base + unit * self.shape.update(self.stepper.x[name])
        return moved

    def _clamped(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.shape.clamp(name, v) for name, v in values.items()}

    def _evaluate(
        self, model: Mapping[str, Tensor], corner: float | None
    ) -> tuple[float, dict[str, np.ndarray]]:
        physics = self.experiment.physics
        whole = {p: self.experiment.model[p].to_numpy() for p in physics.parameters}
        whole.update(self._values(model))
        groups = self.selection.groups(self.iteration)
        value, gradients = self.evaluator(
            {p: v.astype(physics.precision) for p, v in whole.items()},
            low_pass(self.experiment.wavelet, corner, physics.time_step),
            corner,
            cut(groups, self.batch_size),
        )
        weight = self.selection.weight
        return weight * value, {name: weight * g for name, g in gradients.items()}

    def _values(self, model: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return {n: v.numpy().astype(self.experiment.physics.precision) for n, v in model.items()}
