"""The job: what is done with a batch of shots, wherever that is."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..engine.memory import USUAL, keep_freed_memory, return_freed_memory
from ..errors import OutcropError, SurveyError
from ..storage import put_whole
from .bands import low_pass
from .gathers import Gathers
from .misfits import MISFITS
from .physics import Physics
from .tasks import Job

# Shots that fire together, each with a factor: one, unless sources are encoded.
Group = tuple[tuple[int, float], ...]
# Groups that Deepwave propagates side by side.
Batch = tuple[Group, ...]
# Gradients that are summed at once. The sum of all is the same, whoever was first.
GROUP = 8
# Bytes of a block that is returned at once while Deepwave propagates.
_SMALL = 2**16
# Powers of two that float32 holds, both ways.
_RANGE = 126


def cut(groups: Sequence[Group], size: int) -> list[Batch]:
    """Cut groups into batches of nearly equal size, `size` at most."""
    count = -(-len(groups) // size)
    edges = [round(k * len(groups) / count) for k in range(count + 1)]
    return [tuple(groups[a:b]) for a, b in itertools.pairwise(edges)]


class Evaluation(NamedTuple):
    """A model at which a misfit and its gradient are wanted, in a folder that all workers see.

    Attributes
    ----------
    folder : pathlib.Path
        With `input.npz`: the parameters, `wavelet` (shot or 1, time), `corner` (Hz, or NaN).
    gradients : tuple of str
        Parameters to differentiate by.
    """

    folder: Path
    gradients: tuple[str, ...]

    def leaf(self, level: int, number: int) -> Path:
        """File of one partial sum."""
        return self.folder / f"{level}-{number}.npz"


class Shots(Job):
    """Batches of shots, modelled or compared with what was observed.

    Parameters
    ----------
    physics : Physics
    path : pathlib.Path
        Zarr with positions, and traces. All workers see it under this path.
    misfit : str
        A key of `MISFITS`.
    """

    def __init__(self, physics: Physics, path: Path, misfit: str = "least_squares") -> None:
        self.physics, self.misfit = physics, misfit
        self.gathers = Gathers(path, physics.grid.dims)

    def check(self, shots: tuple[int, ...]) -> tuple[str, int]:
        """Return the SHA-256 of the traces of shots, and how many of them are zero throughout.

        Raises
        ------
        SurveyError
            If they or weights are not finite, or all of a shot's are silent, or weighted by 0.
        """
        digest, silent = hashlib.sha256(), 0
        for shot in shots:
            traces = self.gathers.traces(np.array([shot]))[0]
            digest.update(f"{traces.dtype}{traces.shape}".encode())
            digest.update(np.ascontiguousarray(traces).data)
            _, (live,) = self.gathers.receivers(np.array([shot]))
            bad = ~np.isfinite(traces) & live[:, None]
            if bad.any():
                receiver, sample = np.argwhere(bad)[0]
                raise SurveyError(
                    f"{self.gathers.source}: shot {shot}, receiver {receiver}: NaN or infinite at "
                    f"{1000 * sample * self.physics.time_step:g} ms and in {bad.sum() - 1} more "
                    "samples; make these 0 with a weight of 0, or leave the shot out"
                )
            silent += int(np.count_nonzero(~traces[live].any(axis=1)))
            weights, weighted = self.gathers.weights(np.array([shot])), ""
            if weights is not None:
                digest.update(np.ascontiguousarray(weights).data)
                if not (np.isfinite(weights[0, live]) & (weights[0, live] >= 0)).all():
                    raise SurveyError(
                        f"{self.gathers.source}: shot {shot}: a weight is negative, NaN or "
                        "infinite; pass 0 where traces are not to count, and more elsewhere"
                    )
                traces, weighted = np.where(weights[0] > 0, traces, 0), ", or weighted by 0"
            if not traces[live].any():
                raise SurveyError(
                    f"{self.gathers.source}: shot {shot}: all traces are zero{weighted}; leave the "
                    "shot out"
                )
        return digest.hexdigest(), silent

    def model(self, evaluation: Evaluation, batch: Batch) -> None:
        """Model the traces of shots, and write them."""
        model, wavelet, _ = self._input(evaluation)
        with torch.no_grad(), self._large_returned():
            traces = self._record(model, wavelet, batch)
        shots = np.array([shot for group in batch for shot, _ in group])
        self.gathers.write(shots, traces.cpu().numpy())
        self._tidy()

    def gradient(self, evaluation: Evaluation, number: int, batch: Batch) -> None:
        """Write misfit and gradient of a batch, unless they are there."""
        target = evaluation.leaf(0, number)
        if _is_whole(target):
            return
        model, wavelet, corner = self._input(evaluation)
        for name in evaluation.gradients:
            model[name].requires_grad_()
        with self._large_returned():
            traces = self._record(model, wavelet, batch)
            observed, live, weights = self._observed(batch, corner)
            recorded = traces.detach().requires_grad_()
            modelled = _reached(recorded, live)
            if weights is not None:
                modelled = modelled * weights.to(traces)
            value = MISFITS[self.misfit](modelled, observed.to(traces))
            value.backward()
            residuals = _grad(recorded)
            scale = _to_one(residuals)
            traces.backward(residuals.mul_(scale))
        found = {"misfit": np.array(value.item(), dtype=np.float64)}
        for name in evaluation.gradients:
            found[name] = _grad(model[name]).div_(scale).cpu().numpy()
        if not all(np.isfinite(v).all() for v in found.values()):
            shots = sorted({shot for group in batch for shot, _ in group})
            raise OutcropError(
                f"shots {shots}: misfit or gradient is NaN or infinite; look at the velocities "
                "and at the amplitudes of these shots"
            )
        save(target, found)
        del traces, recorded, residuals, modelled, weights, value, model
        self._tidy()

    def merge(self, evaluation: Evaluation, level: int, group: int, count: int) -> None:
        """Sum a group of the `count` partial sums of a level into one of the next."""
        target = evaluation.leaf(level + 1, group)
        if _is_whole(target):
            return
        members = range(group * GROUP, min((group + 1) * GROUP, count))
        save(target, _sum([evaluation.leaf(level, n) for n in members]))

    def _input(self, evaluation: Evaluation) -> tuple[dict[str, Tensor], np.ndarray, float | None]:
        with np.load(evaluation.folder / "input.npz") as found:
            model = {
                name: torch.as_tensor(found[name]).to(self.physics.device, self.physics.dtype)
                for name in self.physics.parameters
            }
            corner = float(found["corner"])
            return model, found["wavelet"], None if np.isnan(corner) else corner

    def _record(self, model: Mapping[str, Tensor], wavelet: np.ndarray, batch: Batch) -> Tensor:
        """Propagate; groups with fewer sources than others get silent ones."""
        grid, gathers = self.physics.grid, self.gathers
        most = max(map(len, batch))
        sources = np.zeros((len(batch), most, len(grid.dims)))
        amplitudes = np.zeros((len(batch), most, wavelet.shape[-1]))
        for n, group in enumerate(batch):
            shots = np.array([shot for shot, _ in group])
            factors = np.array([factor for _, factor in group])
            sources[n, : len(group)] = grid.cells(gathers.sources(shots))
            own = wavelet[shots] if len(wavelet) > 1 else wavelet
            amplitudes[n, : len(group)] = factors[:, None] * own
        receivers, live = gathers.receivers(np.array([group[0][0] for group in batch]))
        cells = np.where(live[..., None], grid.cells(receivers), 0.0)
        active = np.zeros((len(batch), most), dtype=bool)
        for n, group in enumerate(batch):
            active[n, : len(group)] = True
        device, dtype = self.physics.device, self.physics.dtype
        return self.physics.record(
            model,
            torch.as_tensor(sources).to(device, dtype),
            torch.as_tensor(active).to(device),
            torch.as_tensor(amplitudes).to(device, dtype),
            torch.as_tensor(cells).to(device, dtype),
            torch.as_tensor(live).to(device),
        )

    @contextlib.contextmanager
    def _large_returned(self) -> Iterator[None]:
        """Return large blocks at once, forward and back.

        Small ones that are kept meanwhile, such as Deepwave's for each receiver that it
        interpolates, would cut up every large one that is kept to be used again.
        """
        keep_freed_memory(_SMALL)
        try:
            yield
        finally:
            keep_freed_memory(USUAL)

    def _observed(self, batch: Batch, corner: float | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Recorded traces, (trace, time), filtered and weighted.

        Beside them which of (group, receiver) these are, and the weights. One that is zero
        throughout is of a dead channel, whatever its header says.
        """
        shots = np.array([group[0][0] for group in batch])
        _, live = self.gathers.receivers(shots)
        sums = np.stack([self._sum(group) for group in batch])
        weights = self.gathers.weights(shots)
        live &= (sums if weights is None else np.where(weights > 0, sums, 0)).any(axis=-1)
        observed = low_pass(sums[live], corner, self.physics.time_step)
        if weights is None:
            return torch.as_tensor(observed), torch.as_tensor(live), None
        weights = weights[live].astype(observed.dtype)
        return torch.as_tensor(observed * weights), torch.as_tensor(live), torch.as_tensor(weights)

    def _sum(self, group: Group) -> np.ndarray:
        """Traces of shots that fire together, read one after another."""
        total: Any = 0
        for shot, factor in group:
            (traces,) = self.gathers.traces(np.array([shot]))
            if traces.dtype.kind != "f":
                traces = traces.astype(np.float32)  # a filter would round whole numbers
            total = total + factor * traces
        return total

    def _tidy(self) -> None:
        if self.physics.device == "cpu":
            return_freed_memory()


def _reached(traces: Tensor, live: Tensor) -> Tensor:
    """Return live traces, (trace, time), with zeros where no wave has come by the end of a record.

    What finite differences leave there, below the rounding of any wave, would be divided by its
    size where traces are normalised.
    """
    with torch.no_grad():
        peaks = torch.maximum(traces.amax(-1), -traces.amin(-1))
        least = torch.finfo(traces.dtype).eps ** 2 * peaks.amax(1, keepdim=True)
        still = (peaks <= least)[live]
    return traces[live].masked_fill_(still[:, None], 0)


def _to_one(residuals: Tensor) -> float:
    """A power of two, so that no bit changes, that brings the largest magnitude to about 1.

    Where amplitudes are small, products of two wavefields would otherwise be below what float32
    holds.
    """
    largest = max(float(residuals.max()), -float(residuals.min()))
    exponent = math.frexp(largest)[1] if math.isfinite(largest) else 0
    return 2.0 ** max(-_RANGE, min(_RANGE, -exponent))


def levels(count: int) -> list[tuple[int, int]]:
    """Levels of the tree that sums `count` gradients: their numbers, and the sums on each."""
    found, level = [], 0
    while count > 1 or level == 0:
        found.append((level, count))
        count = -(-count // GROUP)
        level += 1
    return found


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to one file, whole or not at all."""
    with put_whole(path) as part, open(part, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _sum(leaves: Sequence[Path]) -> dict[str, np.ndarray]:
    """Sum two by two, in order, in double precision; one more at a time than the tree is deep."""
    if len(leaves) == 1:
        return _load(leaves[0])
    half = 1 << (len(leaves) - 1).bit_length() - 1
    total = _sum(leaves[:half])
    for name, rest in _sum(leaves[half:]).items():
        total[name] += rest
    return total


def _is_whole(leaf: Path) -> bool:
    """Whether a partial sum is there; a machine that lost its power may leave a piece of it."""
    with contextlib.suppress(Exception):
        _load(leaf)
        return True
    return False


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as found:
        return {name: found[name].astype(np.float64) for name in found.files}


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
