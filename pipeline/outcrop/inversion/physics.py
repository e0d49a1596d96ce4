"""What Deepwave is told: an equation, a grid, a time step, and where wavefields are kept.

Deepwave (Richardson, https://doi.org/10.5281/zenodo.3829886) propagates by finite differences of
second order in time, with perfectly matched layers around the model.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..errors import OutcropError
from ..planner import format_bytes
from .model import Grid

if TYPE_CHECKING:
    import deepwave

# Samples on either side of a position between samples, over which it is spread.
REACH = 4
_BLOCK = 8  # samples along an axis that Deepwave compresses together
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Equation:
    """One of Deepwave's propagators.

    Attributes
    ----------
    parameters : tuple of str
        Of the model, in the order of the propagator's arguments.
    pressure_source, pressure_receiver : str
        Channels; those of a vertical force and velocity are named by the axis.
    """

    parameters: tuple[str, ...]
    pressure_source: str
    pressure_receiver: str


EQUATIONS = {
    "scalar": Equation(("vp",), "u", "u"),
    "acoustic": Equation(("vp", "density"), "volume_rate", "p"),
    "elastic": Equation(("vp", "vs", "density"), "pressure_rate", "p"),
}


def load_deepwave() -> Any:
    """Import Deepwave, or say how to get it."""
    try:
        import deepwave
    except ImportError as error:
        raise OutcropError(
            f'full-waveform inversion needs deepwave ({error}); pip install "outcrop[inversion]"'
        ) from None
    return deepwave


def layer_frequency(wavelet: np.ndarray, time_step: float) -> float:
    """Frequency, Hz, that Deepwave makes absorbing layers for, given all the sources emit.

    Parameters
    ----------
    wavelet : ndarray, (shot, time)
    time_step : float
    """
    deepwave = load_deepwave()
    amplitudes = torch.as_tensor(wavelet)[:, None]
    where = torch.zeros(len(wavelet), 1, 2, dtype=torch.long)
    speed = torch.ones(2, 2, dtype=torch.float64)
    found = deepwave.plan(
        "scalar", speed, 1.0, time_step, source_amplitudes=amplitudes, source_locations=where
    )
    return float(found.info.pml_freq)


@contextlib.contextmanager
def _naming(equation: str, folder: str | None = None) -> Iterator[None]:
    """Turn what Deepwave refuses into one line; `folder` is where it writes wavefields."""
    try:
        yield
    except load_deepwave().DeepwaveError as error:
        if isinstance(error, OSError):
            raise
        told = str(error).partition("\n")[0]
        if folder is not None and "disk write failure" in told:
            raise OutcropError(
                f"{folder}: wavefields cannot be written, with "
                f"{format_bytes(shutil.disk_usage(folder).free)} left; make room, or pass another "
                "storage_path (storage_path:)"
            ) from error
        raise OutcropError(
            f"{equation} equation: Deepwave refuses it ({told}); change the model or the options"
        ) from error


def highest_speed(
    equation: str,
    model: xr.Dataset,
    grid: Grid,
    accuracy: int,
    bounds: Mapping[str, tuple[float, float]],
) -> float:
    """Speed, m/s, that Deepwave makes its time step for: that of P-waves, or more at contrasts.

    It holds for the model, and for every other within the bounds.

    Parameters
    ----------
    equation : str
    model : xarray.Dataset
        In memory.
    grid : Grid
    accuracy : int
    bounds : mapping of str to (float, float)
        Of the parameters that change.

    Raises
    ------
    OutcropError
        If Deepwave refuses the model.
    """
    values = {p: model[p].to_numpy() for p in EQUATIONS[equation].parameters}
    ends = {p: bounds.get(p, (float(v.min()), float(v.max()))) for p, v in values.items()}
    if equation == "scalar":
        return ends["vp"][1]
    if bounds.keys() == {"vp"}:
        values["vp"] = np.repeat(ends["vp"], values["vp"].size).reshape(-1, *grid.shape[1:])
        for name in values.keys() - {"vp"}:
            values[name] = np.concatenate([values[name]] * 2)
    elif bounds:
        # Light blocks with each pair of velocities, and a dense cell in the middle of each.
        light, dense = ends["density"]
        block = np.full([2 * accuracy + 1] * len(grid.dims), light)
        block[(accuracy,) * block.ndim] = dense
        pairs = itertools.product(ends["vp"], ends.get("vs", (0.0,)))
        blocks = [(np.full_like(block, vp), np.full_like(block, vs), block) for vp, vs in pairs]
        names = ("vp", "vs", "density")
        stacked = zip(names, map(np.concatenate, zip(*blocks, strict=True)), strict=True)
        values = {name: v for name, v in stacked if name in values}
    if bounds and equation == "elastic":  # bounds may hold what is no solid, and refused
        values["vp"] = np.maximum(values["vp"], 1.0)
        values["vs"] = np.minimum(values["vs"], 0.866 * values["vp"])
    deepwave = load_deepwave()
    found = [torch.as_tensor(v.astype(np.float32, copy=False)) for v in values.values()]
    where = torch.zeros(1, 1, len(grid.dims), dtype=torch.long)
    with _naming(equation):
        if equation == "elastic":
            found = list(deepwave.vpvsrho_to_lambmubuoyancy(*found))
        plan = deepwave.plan(
            equation,
            *found,
            list(grid.spacing),
            1e-6,
            sources={EQUATIONS[equation].pressure_source: (torch.zeros(1, 1, 1), where)},
            accuracy=accuracy,
            pml_width=0,
            pml_freq=1.0,
        )
    return float(plan.info.max_vel) * (1 + 1e-6)  # whatever is rounded on the way


@dataclass(frozen=True)
class Physics:
    """Everything that all shots of an experiment share.

    Attributes
    ----------
    equation : str
        A key of `EQUATIONS`.
    grid : Grid
    time_step : float
        In seconds.
    samples : int
        Of a trace.
    frequency : float
        That the absorbing layers are made for, Hz.
    max_velocity : float
        See `highest_speed`. Fixed, as `frequency` is, so that every batch and every iteration has
        the same internal time step and the same absorbing layers.
    between : bool
        Whether a source or a receiver lies between samples of the model. Then all are
        interpolated [1]_, in all batches.
    spread : int
        Samples of the model that the receivers of a shot are spread over, at most, if they are.
    accuracy : int
        Order in space: 2, 4, 6, 8.
    pml_width : int
        Samples of the absorbing layer on each side.
    free_surface : bool
        Whether the top reflects as the surface of the sea does.
    source, receiver : str
        "pressure", or "vertical": force and particle velocity.
    precision, device : str
    storage_mode : str
        Where Deepwave keeps what backward needs of the wavefield: "device", "cpu" or "disk".
    storage_path : str, optional
        Folder for "disk".
    storage_compression : bool
        Keep it in 8 bits a value.
    checkpoint_segments : int, optional
        Into how many pieces the time is cut; wavefields are kept of one, others computed again.

    References
    ----------
    .. [1] Hicks, G. J., 2002, Arbitrary source and receiver positioning in finite-difference
       schemes using Kaiser windowed sinc functions: Geophysics, 67, 156-165,
       https://doi.org/10.1190/1.1451454
    """

    equation: str
    grid: Grid
    time_step: float
    samples: int
    frequency: float
    max_velocity: float
    between: bool = False
    spread: int = 0
    accuracy: int = 4
    pml_width: int = 20
    free_surface: bool = False
    source: str = "pressure"
    receiver: str = "pressure"
    precision: str = "float32"
    device: str = "cpu"
    storage_mode: str = "device"
    storage_path: str | None = None
    storage_compression: bool = False
    checkpoint_segments: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return _DTYPES[self.precision]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what the model must hold."""
        return EQUATIONS[self.equation].parameters

    @property
    def interpolated(self) -> bool:
        """Whether positions are not those of samples; forces and velocities lie between them."""
        return self.between or "vertical" in (self.source, self.receiver)

    @property
    def garbled(self) -> int:
        """How far from a source, in samples, compression may spoil the gradient: less than this."""
        return _BLOCK + (REACH if self.interpolated else 0)

    @property
    def pml_widths(self) -> list[int]:
        """For each face of the model, the top first."""
        widths = [self.pml_width] * (2 * len(self.grid.dims))
        if self.free_surface:
            widths[0] = 0
        return widths

    @property
    def margins(self) -> Tensor:
        """Samples that the model is widened by at the start of each axis.

        Interpolation spreads a position over samples on either side, which must be there. At its
        edges the model goes on as it ends, which it does in the absorbing layers too.
        """
        margins = torch.full((len(self.grid.dims),), float(REACH if self.interpolated else 0))
        if self.free_surface:
            # The surface is the first sample of the model. Deepwave's scalar equation has it one
            # sample above the first of what it is given.
            margins[0] = -1 if self.equation == "scalar" else 0
        return margins

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the model as it is propagated over, without absorbing layers."""
        end = REACH if self.interpolated else 0
        starts = self.margins.int().tolist()
        return tuple(n + start + end for n, start in zip(self.grid.shape, starts, strict=True))

    def _widened(self, values: Tensor) -> Tensor:
        if self.shape == self.grid.shape:
            return values
        starts = self.margins.int().tolist()
        for axis, (n, after, start) in enumerate(
            zip(self.grid.shape, self.shape, starts, strict=True)
        ):
            index = torch.arange(-start, after - start, device=values.device).clamp(0, n - 1)
            values = values.index_select(axis, index)
        return values

    def record(
        self,
        model: Mapping[str, Tensor],
        sources: Tensor,
        active: Tensor,
        amplitudes: Tensor,
        receivers: Tensor,
        live: Tensor,
    ) -> Tensor:
        """Propagate shots and return what the receivers record.

        Parameters
        ----------
        model : mapping of str to Tensor
            The parameters, in SI units, over the grid.
        sources : Tensor, (shot, source, axis)
            In samples of the grid.
        active : Tensor of bool, (shot, source)
            False where there is no source.
        amplitudes : Tensor, (shot, source, time)
        receivers : Tensor, (shot, receiver, axis)
        live : Tensor of bool, (shot, receiver)
            False where there is no receiver.

        Returns
        -------
        Tensor, (shot, receiver, time)

        Raises
        ------
        OutcropError
            If Deepwave refuses the model or an option.
        """
        deepwave = load_deepwave()
        output = self._call(deepwave, model, (amplitudes, sources, active), (receivers, live))
        channel = _channel(self.receiver, self.grid, EQUATIONS[self.equation].pressure_receiver)
        name = "receiver_amplitudes" if channel == "u" else f"receiver_amplitudes_{channel}"
        return getattr(output, name)

    def _call(
        self,
        deepwave: Any,
        model: Mapping[str, Tensor],
        sources: tuple[Tensor, Tensor, Tensor],
        receivers: tuple[Tensor, Tensor],
    ) -> deepwave.PropagatorOutput:
        equation = EQUATIONS[self.equation]
        values = [self._widened(model[name]) for name in equation.parameters]
        sources = (sources[0], sources[1] + self.margins.to(sources[1]), sources[2])
        receivers = (receivers[0] + self.margins.to(receivers[0]), receivers[1])
        if self.equation == "elastic":
            values = list(deepwave.vpvsrho_to_lambmubuoyancy(*values))
        into = _channel(self.source, self.grid, equation.pressure_source)
        outof = _channel(self.receiver, self.grid, equation.pressure_receiver)
        how: dict[str, Any] = {}
        folder = None
        if any(v.requires_grad for v in values):
            how = {
                "storage_mode": self.storage_mode,
                "storage_compression": self.storage_compression,
                "checkpoint_segments": self.checkpoint_segments,
            }
            if self.storage_mode == "disk":
                folder = how["storage_path"] = self.storage_path
        if self.free_surface:
            how["boundary"] = ["free"] + ["pml"] * (2 * len(self.grid.dims) - 1)
        with warnings.catch_warnings(), _naming(self.equation, folder):
            # What it warns of, the checks before the start have looked at.
            warnings.simplefilter("ignore")
            return getattr(deepwave, self.equation)(
                *values,
                list(self.grid.spacing),
                self.time_step,
                sources={into: sources},
                receivers={outof: receivers},
                accuracy=self.accuracy,
                pml_width=self.pml_widths,
                pml_freq=self.frequency,
                max_vel=self.max_velocity,
                # Of use where Deepwave steps in between the samples of the traces.
                freq_taper_frac=0.1,
                time_pad_frac=0.1,
                location_interpolation="hicks" if self.interpolated else "none",
                **how,
            )


def _channel(kind: str, grid: Grid, pressure: str) -> str:
    if kind == "pressure":
        return pressure
    return {2: "y", 3: "z"}[len(grid.dims)]  # Deepwave names axes from the fastest, x
