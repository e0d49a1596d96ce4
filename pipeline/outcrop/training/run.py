"""What a run leaves in its folder: its record, the weights, a picture."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.plugins.io import TorchCheckpointIO
from matplotlib.figure import Figure
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from ..errors import OutcropError, OutputExistsError, ResumeError, TrainingDataError
from ..locks import check_untaken, taken
from ..models import weights
from ..models.card import Card
from ..storage import naming_refusal, remove, write_whole
from ..targets import check_apart
from ..view.save import save
from .module import TrainingModule
from .volumes import places_of

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
WEIGHTS, PICTURE = "weights.safetensors", "predictions.png"
_RECORD = "training.json"
_THEN = "make room, and go on by resume (--resume)"
_RAISED = f"{TrainingDataError.__module__}.{TrainingDataError.__name__}: "
_NAMED = 4  # settings that differ, in a message
_SHOWN = 3  # validation samples in the picture


def begin(
    folder: Path,
    settings: Mapping[str, Any],
    *,
    free: Collection[str],
    resume: bool,
    overwrite: bool,
) -> None:
    """Write down what a run is made with, or compare with what it was begun with.

    The settings that are named in `free` may differ; the last are kept. Of a run that is replaced
    all is deleted that a run writes, and nothing else.

    Raises
    ------
    OutputExistsError
        If the folder holds a run, or other things, or another process trains there.
    ArgumentError
        If it holds what the run would be made of, too.
    ResumeError
        If there is no run to go on with, a setting differs, or there are more epochs than
        are asked for.
    OutcropError
        If the folder cannot be written.
    """
    file = folder / _RECORD
    check_untaken(file)
    settings = json.loads(json.dumps(settings, default=_plain))
    if resume:
        if not file.is_file():
            raise ResumeError(f"{folder}: holds no run; leave out resume (--resume)")
        record, begun = _begun(folder)
        fixed = [{n: v for n, v in each.items() if n not in free} for each in (begun, settings)]
        if other := _differing(*fixed):
            raise ResumeError(
                f"{folder}: was begun with {'; '.join(other[:_NAMED])}; pass the same, or train "
                "in another folder"
            )
        if len(record["epochs"]) > settings["epochs"]:
            raise ResumeError(
                f"{folder}: has {len(record['epochs'])} epochs, more than {settings['epochs']}; "
                "pass at least as many (--epochs)"
            )
        _write(file, {**record, "settings": settings})
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not file.is_file():
            raise OutputExistsError(f"{folder}: holds other things; choose another folder (--out)")
        if not overwrite:
            raise OutputExistsError(
                f"{folder}: holds a run; go on with it by resume (--resume), or choose another "
                "folder, or pass overwrite (--overwrite)"
            )
        for name in ("data", "validation"):
            for place in places_of(settings[name]):
                if place != "synthetic":
                    check_apart(place, folder, what=f"the {name}")
        for name in ("weights", "infer_weights"):
            given = settings[name]
            if given is not None and Path(given).is_file():
                check_apart(given, folder, what=f"the file of {name}")
        for name in (WEIGHTS, PICTURE, "checkpoints", "tensorboard", _RECORD):
            remove(folder / name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, {"settings": settings, **_versions(), "epochs": []})
    except OSError as error:
        raise OutcropError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder (--out)"
        ) from error


def holding(folder: Path) -> AbstractContextManager[None]:
    """Keep the run in a folder from other processes; once it has begun."""
    return taken(folder / _RECORD)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _differing(begun: Mapping[Any, Any], now: Mapping[Any, Any]) -> list[str]:
    """What differs, each by its name and both values; of dictionaries what in them does.

    They may be in a list, as those of several surveys: by their number, from 0.
    """
    found = []
    for name in sorted(begun.keys() | now.keys()):
        one, other = (
            dict(enumerate(each))
            if isinstance(each, list) and each and isinstance(each[0], dict)
            else each
            for each in (begun.get(name), now.get(name))
        )
        if isinstance(one, dict) and isinstance(other, dict):
            found += [f"{name}.{each}" for each in _differing(one, other)]
        elif one != other:
            found.append(f"{name} {_ended(one)}, not {_ended(other)}")
    return sorted(found, key=lambda each: each.partition(" ")[0].count("."))


def _ended(value: Any) -> str:
    """A value, of which the end says most if it is long, as of a path."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"...{text[-77:]}"


def _begun(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the record of a run and its settings; raise `ResumeError` if a file is damaged."""
    names = [_RECORD]
    if (folder / LAST).exists() or (folder / BEST).exists():  # not stopped in its first epoch
        names += [LAST, BEST]
    for name in names:
        try:
            if name != _RECORD:
                torch.load(folder / name, map_location="cpu", weights_only=True)
            else:
                record = json.loads((folder / name).read_text())
                begun = record["settings"]
        except Exception as error:  # a damaged file makes the unpickler raise anything
            reason = " ".join(str(error).split())[:80] or type(error).__name__
            raise ResumeError(
                f"{folder / name}: cannot be read ({reason}); restore that file, or begin anew "
                "with overwrite (--overwrite)"
            ) from error
    return record, begun


def epochs_of(checkpoint: Path) -> int:
    """How many epochs were done when a checkpoint was written."""
    return int(torch.load(checkpoint, mmap=True, weights_only=True)["epoch"]) + 1


@contextmanager
def naming_failure(crop: int | Sequence[int], batch: int, workers: int) -> Iterator[None]:
    """Say in one line what ends a run."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutcropError(
            f"crop {crop}, batch {batch}: the GPU's memory ran out; take smaller ones, or keep "
            "activations elsewhere (--activations cpu or disk)"
        ) from error
    except TrainingDataError as error:  # of a worker with its traceback, as text
        line = str(error).strip().rpartition("\n")[2]
        raise TrainingDataError(line.removeprefix(_RAISED)) from error
    except RuntimeError as error:
        # Gloo, which processes on CPUs talk by, has no error of its own.
        if isinstance(error, distributed.DistError) or "gloo/transport" in str(error):
            raise OutcropError(
                "another of the processes that train together has ended; what it told says why, "
                "as here or in its log; then go on by resume (--resume)"
            ) from error
        if not str(error).startswith("DataLoader worker"):
            raise
        raise OutcropError(
            f"workers {workers}: one was killed, as systems do when memory runs out; take fewer "
            "(--workers) or smaller volumes, and go on by resume (--resume)"
        ) from error


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints that are whole or as they were.

    Lightning's own are copied over the last one from the folder for temporary files, where that is
    another disk: after a kill meanwhile neither is left.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Write a checkpoint."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with naming_refusal(path, _THEN):
            write_whole(Path(path), content.getvalue())


class Checkpoint(ModelCheckpoint):
    """Knows its best score again after the run's folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint as if it had been written to this folder."""
        here = Path(self.dirpath or "")
        paths = {
            name: str(here / Path(state_dict[name]).name) if state_dict[name] else ""
            for name in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        best = {str(here / Path(p).name): s for p, s in state_dict["best_k_models"].items()}
        moved = {"dirpath": self.dirpath, "best_k_models": best, **paths}
        super().load_state_dict({**state_dict, **moved})


class Patience(EarlyStopping):
    """Has the patience of this run, not of the one that is resumed; one that is over stays so."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End where the epochs without a better one are enough already."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class Bar(RichProgressBar):
    """Progress, with the losses and scores that are not there twice."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """All but the version of the log, too, which is always the same."""
        shown = super().get_metrics(trainer, pl_module)
        return {n: v for n, v in shown.items() if n not in ("v_num", "train/loss_epoch")}


class Record(Callback):
    """Adds the losses and metrics of every epoch to the record."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / _RECORD
        self.history: list[dict[str, float]] = []
        self.start, self.before = time.monotonic(), 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what was logged."""
        found = {n: float(v) for n, v in trainer.callback_metrics.items() if "_step" not in n}
        epoch = {"epoch": trainer.current_epoch, "step": trainer.global_step, **found}
        self.history.append({**epoch, "seconds": self._seconds()})
        if trainer.is_global_zero:
            record = json.loads(self.file.read_text())
            record["epochs"] = self.history
            record["device"] = str(pl_module.device)
            record["processes"] = trainer.world_size
            _write(self.file, record)

    def state_dict(self) -> dict[str, Any]:
        """What goes into checkpoints."""
        return {"history": self.history, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history, self.before = list(state_dict["history"]), state_dict["seconds"]

    def _seconds(self) -> float:
        return round(self.before + time.monotonic() - self.start, 1)


def finish(
    folder: Path, module: TrainingModule, check: DataLoader[dict[str, Tensor]], trainer: L.Trainer
) -> nn.Module:
    """Write the best weights and a picture; return the network with these weights."""
    kept = torch.load(folder / BEST, map_location="cpu", weights_only=True)
    module.load_state_dict(kept["state_dict"])
    module = module.cpu().float().eval()
    model = module.model.requires_grad_(False)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if trainer.is_global_zero:
        weights.write(model.state_dict(), folder / WEIGHTS)
        draw(module, check, folder / PICTURE)
        record = json.loads((folder / _RECORD).read_text())
        best = next(epoch for epoch in record["epochs"] if epoch["epoch"] == kept["epoch"])
        record |= {"best": best, "weights_sha256": weights.digest(model)}
        _write(folder / _RECORD, record)
    return model


def draw(module: TrainingModule, check: DataLoader[dict[str, Tensor]], path: Path) -> None:
    """Draw the middle of validation samples: amplitudes, and each label beside its prediction.

    Where there is no trace nothing is drawn.
    """
    data = check.dataset
    samples = [data[i] for i in range(min(_SHOWN, len(check.sampler)))]  # type: ignore[arg-type]
    labels = list(module.objective.labels)
    figure = Figure(figsize=(2.2 * len(samples) + 1, 2.2 * (1 + 2 * len(labels))), layout="tight")
    axes = figure.subplots(1 + 2 * len(labels), len(samples), squeeze=False)
    for column, sample in zip(axes.T, samples, strict=True):
        with torch.inference_mode():
            found = module.evaluate({key: value[None] for key, value in sample.items()})
        image = _middle(sample["input"][0], module)
        live = sample.get("live", torch.ones_like(sample[labels[0]], dtype=torch.bool))
        missing = ~_middle(live[0], module)
        shown = np.ma.masked_array(image, missing)
        column[0].imshow(shown, aspect="auto", **_grays(image))
        for i, name in enumerate(labels):
            target = _middle(sample[name][0], module)
            colours = _colours(name, target, module)
            for j, values in enumerate((target, _middle(found[name][0, 0], module))):
                panel = column[1 + 2 * i + j]
                shown = np.ma.masked_array(values, missing)
                panel.imshow(shown, aspect="auto", **colours)
                panel.set_ylabel(f"{name}, {('label', 'predicted')[j]}")
        column[0].set_ylabel("amplitude")
        for panel in column:
            panel.set(xticks=[], yticks=[])
    for panel in axes[:, 1:].flat:
        panel.set_ylabel("")
    save(figure, path)


def _colours(label: str, target: np.ndarray, module: TrainingModule) -> dict[str, Any]:
    """Colours over what the label can be, else over what is drawn of it; grays of an image."""
    card: Card = module.model.card  # type: ignore[assignment]
    output = next(o for o in card.outputs if o and o.name.removesuffix("_probability") == label)
    low, high = (bound / output.scale for bound in output.valid_range)
    if not np.isfinite([low, high]).all():
        low, high = np.nanmin(target), np.nanmax(target)
        if low < 0 < high:
            return _grays(target)
    return {"cmap": "viridis", "vmin": float(low), "vmax": float(high)}


def _grays(image: np.ndarray) -> dict[str, Any]:
    """Colours of amplitudes: on both sides of 0, unless nothing is negative."""
    reach = float(np.nanquantile(np.abs(image), 0.98))
    return {"cmap": "gray", "vmin": 0.0 if np.nanmin(image) >= 0 else -reach, "vmax": reach}


def _middle(values: Tensor, module: TrainingModule) -> np.ndarray:
    """Section through the middle, time downwards."""
    card: Card = module.model.card  # type: ignore[assignment]
    axes = [*card.axes]
    if len(axes) == 3:
        axis = axes.index(card.direction)
        values = values.select(axis, values.shape[axis] // 2)
        axes.pop(axis)
    return (values if axes[0] == "z" else values.T).numpy()


def _versions() -> dict[str, str]:
    from .. import __version__

    return {"outcrop": __version__, "torch": torch.__version__, "lightning": L.__version__}


def _write(file: Path, record: Mapping[str, Any]) -> None:
    with naming_refusal(file, _THEN):
        write_whole(file, (json.dumps(record, indent=1) + "\n").encode())
