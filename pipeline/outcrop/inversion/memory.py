"""What a batch of shots takes in memory, and how many fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from ..cluster import workers_there
from ..engine.crew import check_client, check_workers, least_room
from ..errors import ArgumentError, MemoryBudgetError
from ..planner import format_bytes, parse_bytes
from .physics import Physics, load_deepwave

if TYPE_CHECKING:
    from distributed import Client

# Bytes that a batch takes whatever its size: buffers of libraries, blocks that are not given back.
_FIXED = 12 << 20
# Of the memory that is free on this machine, what is taken unless the user says.
_SHARE = 0.6
# Arrays of a parameter, in double precision, that an inversion holds beside a batch: the model, its
# gradient, a step and both ends of a line search.
_HELD = 20
# Traces that a misfit keeps for its gradient, beside those that least squares does.
_MISFIT_COPIES = {"least_squares": 0, "correlation": 2, "envelope": 9}
_WEIGHTED_COPIES = 4  # with weights: these, as they are read and used, and what they multiply


class Need(NamedTuple):
    """What a batch takes.

    Attributes
    ----------
    shots : int
        That Deepwave propagates side by side.
    peak_memory : int
        Bytes, on the device.
    device : str
    """

    shots: int
    peak_memory: int
    device: str


def batch_memory(
    physics: Physics,
    shots: int,
    receivers: int,
    gradients: tuple[str, ...],
    threads: int,
    sources: int = 1,
    misfit: str = "least_squares",
    weighted: bool = False,
) -> int:
    """Bytes that one batch takes at most, beside what the process takes without it: a promise.

    Parameters
    ----------
    physics : Physics
    shots : int
        In the batch.
    receivers : int
        Of a shot, at most.
    gradients : tuple of str
        Parameters to differentiate by; none for modelling alone.
    threads : int
        That compute.
    sources : int
        That fire together.
    misfit : str
        A key of `MISFITS`.
    weighted : bool
        Whether traces have weights.
    """
    deepwave = load_deepwave()
    shape, size = physics.shape, physics.dtype.itemsize
    names = _differentiated(physics, gradients)
    estimate = deepwave.estimate_memory(
        propagator=physics.equation,
        model_shape=shape,
        nt=physics.samples,
        n_shots=shots,
        dtype=physics.dtype,
        accuracy=physics.accuracy,
        pml_width=physics.pml_widths,
        storage_mode=physics.storage_mode if gradients else "none",
        storage_compression=physics.storage_compression,
        models_requiring_grad=names,
        device=physics.device,
        n_segments=physics.checkpoint_segments,
    )
    padded = estimate["padded_model_elements"] * size
    fields = estimate["forward_wavefields_bytes"]
    history = estimate["backward_storage_bytes"]
    if gradients and physics.storage_mode == "disk":
        slots = _slots(estimate, physics, shots)
        history = slots * shots * padded * (2 if physics.storage_compression else 1)
    kept = estimate["auxiliary_state_bytes"]
    if gradients and (physics.checkpoint_segments or 1) > 1:
        # A piece is computed again while the one after it is still there, from a state which
        # Deepwave counts without the halo of its differences.
        history *= 2
        kept = kept * _halo(estimate, physics) + 4 * fields
    on_gpu = physics.device != "cpu"
    side_by_side = shots if on_gpu else min(shots, threads)
    scratch = 0
    if gradients and side_by_side > 1:
        scratch = side_by_side * padded * len(physics.parameters)
    # The fields once more for backward, and as they are returned; models with their layers.
    copies = fields * (3 if gradients else 2) + 4 * padded * len(physics.parameters)
    substeps = _substeps(physics)
    samples = physics.samples * substeps
    # Between steps traces are resampled by Fourier transforms, forward and back.
    fine = (3 if substeps == 1 else 12) * samples
    copies_of_traces = 6 + (_MISFIT_COPIES[misfit] if gradients else 0)
    coarse = (copies_of_traces + (_WEIGHTED_COPIES if weighted else 0)) * physics.samples
    recorded = max(receivers, physics.spread) if physics.interpolated else receivers
    traces = shots * size * (receivers * coarse + recorded * fine)
    emitted = shots * sources * size * (2 * physics.samples + 2 * samples)
    total = copies + history + scratch + traces + emitted + kept
    return int(total) + _FIXED


def held_memory(cells: int, parameters: int, history: int) -> int:
    """Bytes that an inversion holds in its own process, beside a batch, at most.

    Parameters
    ----------
    cells : int
        Of the model.
    parameters : int
        That change.
    history : int
        Steps that the optimiser remembers, each with two arrays: twice, while they are written.
    """
    return 8 * cells * parameters * (_HELD + 4 * history)


def choose(
    physics: Physics,
    count: int,
    receivers: int,
    gradients: tuple[str, ...],
    *,
    memory: str | int | None,
    batch_size: int | None,
    client: Client | None,
    sources: int = 1,
    begun_with: int | None = None,
    misfit: str = "least_squares",
    weighted: bool = False,
    held: int = 0,
) -> Need:
    """Choose how many shots a task takes: as many as fit, and no more than keep all workers busy.

    Parameters
    ----------
    physics, receivers, gradients, sources, misfit, weighted
        As for `batch_memory`.
    count : int
        Shots to be propagated.
    memory : str, int or None
        What one process may take; what it has to give unless given.
    batch_size : int, optional
        Shots of a task; chosen unless given.
    client : distributed.Client, optional
    begun_with : int, optional
        Shots of a task of what goes on: others would be rounded otherwise.
    held : int
        Bytes that this process holds beside its batches, if it computes them itself.

    Raises
    ------
    MemoryBudgetError
        If a single shot, or `batch_size`, does not fit.
    """
    import torch

    threads, workers = torch.get_num_threads(), 1
    if client is not None:
        check_client(client)
        found = workers_there(client).values()
        threads = max((facts["nthreads"] for facts in found), default=1)
        workers = max(1, len(found))
    elif physics.device != "cpu" and not torch.cuda.is_available():
        raise ArgumentError(
            f"device={physics.device!r}: torch finds no such GPU here; choose cpu, or pass a client"
        )
    room = _room(memory, physics.device, client)
    if client is not None or physics.device != "cpu":
        held = 0

    def need(shots: int) -> int:
        return held + batch_memory(
            physics, shots, receivers, gradients, threads, sources, misfit, weighted
        )

    fixed = begun_with or batch_size
    wanted = fixed or max(1, -(-count // workers))
    shots = min(wanted, count)
    if room is not None:
        fits = _largest(need, shots, room)
        if fits < (shots if fixed else 1):
            least = shots if fixed else 1
            raise MemoryBudgetError(
                f"{least} {'shot takes' if least == 1 else 'shots take'} "
                f"{format_bytes(need(least))} of memory"
                + (f", {format_bytes(held)} of it the optimiser," if held else "")
                + f" and {format_bytes(room)} may be taken; "
                + _way_out(physics, bool(gradients), batch_size, begun_with)
            )
        shots = fits
    chosen = Need(shots, need(shots), physics.device)
    if client is not None:
        check_workers(client, chosen)
    return chosen


def _largest(need: object, most: int, room: int) -> int:
    """Largest number of shots, up to `most`, that fit; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if need(middle) <= room:  # type: ignore[operator]
            low = middle
        else:
            high = middle - 1
    return low


def _room(memory: str | int | None, device: str, client: Client | None) -> int | None:
    if memory is not None:
        return parse_bytes(memory)
    if client is not None:
        return least_room(client, device)
    if device != "cpu":
        import torch

        return int(torch.cuda.mem_get_info()[0] * 0.9)
    return int(psutil.virtual_memory().available * _SHARE)


def _way_out(
    physics: Physics, gradient: bool, batch_size: int | None, begun_with: int | None
) -> str:
    if begun_with is not None:
        return "it was begun so: pass as much memory (memory:), or begin anew (overwrite)"
    if batch_size is not None and batch_size > 1:
        return "pass a smaller batch_size, or more memory (memory:)"
    if gradient and physics.storage_mode != "disk":
        return "keep wavefields on disk (storage_mode: disk), or pass more memory (memory:)"
    return "pass more memory (memory:), or a coarser model"


def _differentiated(physics: Physics, gradients: tuple[str, ...]) -> list[str]:
    """Deepwave's names of the parameters that are differentiated by."""
    own = {
        "scalar": {"vp": ["v"]},
        "acoustic": {"vp": ["v"], "density": ["rho"]},
        "elastic": {
            "vp": ["lamb"],
            "vs": ["lamb", "mu"],
            "density": ["lamb", "mu", "buoyancy"],
        },
    }[physics.equation]
    return sorted({name for g in gradients for name in own[g]})


def _halo(estimate: Any, physics: Physics) -> float:
    """How much larger a padded model is than without the halo of the differences."""
    inner = math.prod(n - physics.accuracy for n in estimate["padded_model_shape"])
    return float(estimate["padded_model_elements"] / inner)


def _slots(estimate: object, physics: Physics, shots: int) -> int:
    """Histories that are kept, from what Deepwave would take for them in memory."""
    step = shots * estimate["padded_model_elements"] * physics.dtype.itemsize  # type: ignore[index]
    whole = physics.samples * step
    if physics.checkpoint_segments:
        whole //= physics.checkpoint_segments
    if not physics.storage_compression:
        return max(1, round(estimate["backward_storage_bytes"] / whole))  # type: ignore[index]
    return {"scalar": 1, "acoustic": 4, "elastic": 9}[physics.equation]


def _substeps(physics: Physics) -> int:
    """Internal steps of Deepwave for a sample of the traces."""
    from .checks import largest_time_step

    return max(
        1,
        math.ceil(physics.time_step / largest_time_step(physics.grid, physics.max_velocity) - 1e-9),
    )
