"""`fit`: train a network."""

from __future__ import annotations

import logging
import math
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from ..errors import ArgumentError
from ..models.card import Card
from ..models.own import is_own
from ..models.weights import digest
from ..storage import on_disk
from .arguments import check, check_half, extents_of, time_of
from .crops import Crops, Numbers
from .data import Data, sources_of
from .module import Activations, TrainingModule, averaged
from .networks import check_network, inferring, network_of
from .run import (
    BEST,
    LAST,
    Bar,
    Checkpoint,
    CheckpointFiles,
    Patience,
    Record,
    begin,
    epochs_of,
    finish,
    holding,
    naming_failure,
)

_LANES = 4  # volumes by turns, of batches
_MIXED = 4  # volumes at most that the crops of a batch come from


def fit(
    network: str | nn.Module,
    data: Data = "synthetic",
    *,
    out: str | os.PathLike[str],
    weights: str | os.PathLike[str] = "seeded",
    options: dict[str, Any] | None = None,
    infer_weights: str | os.PathLike[str] | None = None,
    validation: Data | None = None,
    shape: Sequence[int] | None = None,
    size: int = 128,
    crop: int | Sequence[int] = 64,
    per_volume: int = 8,
    augment: bool = True,
    epochs: int = 100,
    samples: int = 400,
    validation_samples: int = 8,
    batch: int = 1,
    accumulate: int = 1,
    loss: str = "dice-bce",
    learning_rate: float = 1e-3,
    schedule: str = "cosine",
    patience: int | None = None,
    averaging: float = 0.995,
    precision: str = "32-true",
    activations: str = "device",
    activations_path: str | os.PathLike[str] | None = None,
    compress: bool = False,
    max_time: timedelta | str | None = None,
    seed: int = 0,
    workers: int = 1,
    accelerator: str = "auto",
    devices: str | int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> nn.Module:
    """Train a network.

    The folder `out` then holds ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt`` (by
    validation loss), ``weights.safetensors`` (the best, for `models.load`), ``training.json``
    (all that is needed to repeat it, and the losses and metrics of every epoch),
    ``predictions.png`` and ``tensorboard/``.

    Parameters
    ----------
    network : str or torch.nn.Module
        In the zoo, or your own with a `card`: "FILE.py:NAME", or a module, which is trained in
        place, without those of its parameters that require no gradient. Those that need more than
        amplitudes, or tell classes apart, are not trained here.
    data : path-like or "synthetic", or a sequence of paths
        "synthetic": surveys of `recipes.random_survey`, each drawn when it is needed. A folder of
        raw samples as `sources.RawFolder` reads it. A survey in Zarr with label variables (fault,
        rgt, karst, ...) beside amplitude. Of several, of whatever sizes, each is normalised by
        itself and seen as often as any other.
    out : path-like
        Folder to write to.
    weights : path-like, "seeded" or one that comes with outcrop
        To start from, as for `models.load`.
    options : dict, optional
        Of the network's constructor.
    infer_weights : path-like or "seeded", optional
        Of the mtl-infer network whose outputs an mtl-refine network learns to refine.
    validation : path-like or "synthetic", or a sequence of paths, optional
        Data as `data`; unless given, a part is held out: synthetic surveys of another seed, the
        last tenth of the samples of each folder, or of the lines with labels of each survey.
    shape : sequence of int, optional
        Of raw samples: (inlines, crosslines, samples). Cubes unless given. Of one inline they are
        sections, and their dips those that a section shows.
    size : int
        Of synthetic surveys, along each axis.
    crop : int or sequence of int
        Inlines, crosslines and samples of a crop; of sections, along the section.
    per_volume : int
        Crops in turn from each volume.
    augment : bool
        Mirror, turn and stretch crops, change their amplitudes and their sign.
    epochs : int
        At the end of each it is validated and a checkpoint is written.
    samples, validation_samples : int
        Crops in an epoch, and to validate with.
    batch, accumulate : int
        Crops at a time on each device, and how many times before a step.
    loss : {"dice-bce", "balanced-bce", "dice"}
        Of probabilities, see `outcrop.training.losses`; other outputs have theirs.
    learning_rate, schedule
        As for `module.TrainingModule`.
    patience : int, optional
        End after so many epochs without a better validation loss.
    averaging : float
        Decay of the moving average of the weights that is validated and kept; 0 for none. It is
        less in the first steps.
        Izmailov et al. (2018), UAI, 876-885, https://doi.org/10.48550/arXiv.1803.05407.
    precision : str
        Lightning's: "32-true", "bf16-mixed", "16-mixed", "64-true", ...
    activations : {"device", "cpu", "disk"}
        Where activations are kept for backward, as for `outcrop.offload`.
    activations_path : path-like, optional
        Folder for "disk".
    compress : bool
        Keep them at 8 bits a value; gradients are then approximate.
    max_time : datetime.timedelta or str, optional
        Or "hours:minutes:seconds". End with the epoch in which it is up; "cosine" ends by then.
    seed : int
        Of the data and everything random, but for "seeded" weights to start from. On one kind of
        machine the same call gives the same weights.
    workers : int
        Processes that make or read crops; 0 for none. They do not change the data. With 1, 2 or 4
        and batches of up to four, each volume is made by one of them alone.
    accelerator, devices, nodes, strategy
        Lightning's: "gpu", 4, 1 and "ddp" train on four GPUs.
    resume : bool
        Go on where an interrupted run in `out` stopped.
    overwrite : bool
        Replace a run in `out`: what it wrote is deleted first, once all is checked.
    progress : bool
        Show bars.

    Returns
    -------
    torch.nn.Module
        With the best weights, as `models.load` returns it.

    Raises
    ------
    ArgumentError
        If an argument is none of the allowed values, outcrop cannot train the network, or `out`
        holds weights or data of the run that is to replace the one there.
    TrainingDataError
        If the data are missing, of the wrong shape, not finite, all equal, or labels of
        probabilities not from 0 to 1: before the first step. If they are gone later.
    WeightsError
        If there is no such network, or the weights do not fit.
    OutputExistsError
        If `out` holds a run, or other things, or another process trains there.
    ResumeError
        If there is nothing to resume, it is damaged, has more epochs, or was begun with other
        settings.
    OutcropError
        If the GPU's memory runs out, or the disk, or a worker is killed.
    TrainingDivergedError
        If the network's outputs become NaN or infinite; the checkpoints before stay.
    """
    options = options or {}
    settings = {k: v for k, v in locals().items() if k not in _UNRECORDED}
    check(settings)
    limit = time_of(max_time)
    model, objective = network_of(network, weights, options, loss)
    card: Card = model.card  # type: ignore[assignment]
    infer = inferring(card.name, infer_weights)
    fed: Card = card if infer is None else infer.card  # type: ignore[assignment]
    extents = extents_of(crop, fed)
    if not isinstance(network, str) or is_own(network):
        check_network(model, objective, infer, extents)
    if not isinstance(network, str):
        settings |= {"network": card.name or type(network).__name__, "weights": None}
        settings["frozen"] = [n for n, p in model.named_parameters() if not p.requires_grad]
    sources = sources_of(data, validation, objective, fed, extents, shape, size, seed)
    settings |= {n: s.description for n, s in zip(("data", "validation"), sources, strict=True)}
    settings |= {"start_sha256": digest(model), "infer_sha256": infer and digest(infer)}
    folder = on_disk(out)
    record = Record(folder)
    trainer = _trainer(
        folder,
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision=precision,
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[
            *_callbacks(folder, averaging, limit, patience, record),
            *([Bar()] if progress else []),
        ],
        enable_progress_bar=progress,
    )
    if isinstance(trainer.accelerator, CPUAccelerator):
        check_half(extents, card, str(trainer.precision))  # bf16-mixed where 16-mixed was asked
    if samples < trainer.world_size:
        raise ArgumentError(
            f"samples {samples}: choose at least one for each of {trainer.world_size} processes"
        )
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if first:
        begin(folder, settings, free=_FREE, resume=resume, overwrite=overwrite)
    last = folder / LAST
    resume = resume and last.is_file()  # which one that was stopped in its first epoch has not

    training, held_out = sources
    crops: dict[str, Any] = {"card": fed, "labels": objective.labels, "size": extents}
    lanes = _LANES * min(batch, _MIXED)  # not by the workers: a resumed run may have others
    # Workers take batches by turns, so that each worker meets but some of the volumes.
    keep = lanes // math.gcd(workers or 1, _LANES) + 1
    share = 1 if held_out.volumes is None else -(-validation_samples // held_out.volumes)
    numbers = Numbers(samples, per_volume, lanes)
    if resume:  # Lightning tells the epoch when workers have begun to fetch
        numbers.set_epoch(epochs_of(last))
    train = DataLoader(
        Crops(training, per_volume=per_volume, seed=seed, augment=augment, keep=keep, **crops),
        batch,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
    )
    valid = DataLoader(
        Crops(
            held_out,
            per_volume=share,
            seed=seed,
            augment=False,
            keep=validation_samples,
            **crops,
        ),
        batch,
        sampler=range(validation_samples),
    )
    # Lightning reads checkpoints before it goes over to double precision.
    dtype = torch.float64 if precision == "64-true" else torch.float32
    model.to(dtype=dtype, memory_format=_layout(model))  # type: ignore[call-overload]
    module = TrainingModule(
        model,
        objective,
        infer=infer,
        learning_rate=learning_rate,
        schedule=schedule,
        activations=Activations(activations, activations_path, compress),
        seed=seed,
    )
    with _quiet(), holding(folder) if first else nullcontext():
        L.seed_everything(seed, workers=True, verbose=False)
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            with naming_failure(crop, batch, workers):
                trainer.fit(module, train, valid, ckpt_path=last if resume else None)
        except SystemExit:  # which Lightning makes of Ctrl-C
            signal.signal(signal.SIGINT, interrupt)
            raise KeyboardInterrupt from None
        return finish(folder, module, valid, trainer)


_UNRECORDED = {"out", "resume", "overwrite", "progress"}
# What may differ between a run and the one that goes on with it.
_FREE = {
    "epochs", "max_time", "patience", "workers", "accelerator", "devices", "nodes", "strategy",
    "activations", "activations_path",
}  # fmt: skip


def _callbacks(
    folder: Path,
    averaging: float,
    max_time: timedelta | None,
    patience: int | None,
    record: Record,
) -> list[Callback]:
    kept = partial(Checkpoint, folder / "checkpoints", enable_version_counter=False)
    callbacks: list[Callback] = [
        kept(filename=Path(BEST).stem, monitor="val_loss"),
        # Every epoch's: Lightning's own `save_last` writes none unless there is a new best.
        kept(filename=Path(LAST).stem),
        LearningRateMonitor(),
        record,
    ]
    if averaging:
        callbacks.append(WeightAveraging(avg_fn=partial(averaged, averaging)))
    if patience is not None:
        callbacks.append(Patience("val_loss", patience=patience))
    if max_time is not None:
        callbacks.append(Timer(max_time, interval="epoch", verbose=False))
    return callbacks


def _trainer(folder: Path, **options: Any) -> L.Trainer:
    try:
        with _quiet():
            return L.Trainer(
                **options,
                gradient_clip_val=1.0,
                plugins=CheckpointFiles(),
                logger=TensorBoardLogger(folder, name="", version="tensorboard"),
                default_root_dir=folder,
                log_every_n_steps=10,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,  # `Numbers` shares them out
                enable_model_summary=False,
                deterministic="warn"
                if options["accelerator"] != "cpu" and torch.cuda.is_available()
                else None,
            )
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        names = ("accelerator", "devices", "num_nodes", "strategy", "precision")
        given = ", ".join(f"{n.removeprefix('num_')} {options[n]}" for n in names)
        raise ArgumentError(f"{given}: Lightning says: {' '.join(str(error).split())}") from error


def _layout(model: nn.Module) -> torch.memory_format:
    """Channels last, unless kernels are of two and of three axes."""
    ranks = {p.ndim for p in model.parameters()} & {4, 5}
    if len(ranks) != 1:
        return torch.preserve_format
    return torch.channels_last if ranks == {4} else torch.channels_last_3d


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advertisements and hints."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            warnings.filterwarnings("ignore", module="torchmetrics")
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        logger.setLevel(level)
