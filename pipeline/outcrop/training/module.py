"""The Lightning module: one step of training and of validation."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from ..engine import offload
from ..errors import TrainingDivergedError
from ..gaps import neighbours
from ..models.card import Card
from .objectives import Objective, update

Batch = dict[str, Tensor]

_WARM_UP = 100  # steps in which the learning rate rises, at most a tenth of all
_END = 0.01  # learning rate at the end, over that at the start
_PATIENCE = 5  # epochs without a better loss after which "plateau" halves it


@dataclass(frozen=True)
class Activations:
    """Where those that are saved for backward are kept: arguments of `outcrop.offload`."""

    mode: str = "device"
    path: str | os.PathLike[str] | None = None
    compression: bool = False


def averaged(decay: float, average: Tensor, weights: Tensor, steps: Tensor) -> Tensor:
    """Moving average of weights after one more step.

    Its decay grows to `decay` with the steps before, or those that a network began with would be
    most of it for as long as that takes.
    """
    kept = ((1 + steps) / (10 + steps)).clamp_max(decay).to(average.dtype)
    return average + (weights - average) * (1 - kept)  # what does not change stays, to the last bit


def as_read(outputs: Batch, card: Card, live: Tensor | None = None) -> Batch:
    """Outputs of a network as the next one reads them from a prediction.

    Parameters
    ----------
    outputs : dict of str to torch.Tensor
        (batch, 1, ...), by suffix.
    card : Card
        Of that network: those of an `own_range` are brought to 0…1, each crop's as the whole
        volume's are in prediction.
    live : torch.Tensor of bool, optional
        (batch, 1, ...): where there are traces; everywhere unless given. Elsewhere the nearest one
        stands for them, or the mean.
    """
    own = {o.suffix for o in card.outputs if o is not None and o.own_range}
    read = {}
    for name, y in outputs.items():
        if name in own:
            axes = tuple(range(1, y.ndim))
            there = torch.ones_like(y, dtype=torch.bool) if live is None else live
            low = torch.where(there, y, torch.inf).amin(axes, keepdim=True)
            high = torch.where(there, y, -torch.inf).amax(axes, keepdim=True)
            y = (y - low) / (high - low).clamp_min(torch.finfo(y.dtype).tiny)
        read[name] = y if live is None else _filled(y, live, card.axes.index("z"))
    return read


def _filled(y: Tensor, live: Tensor, z: int) -> Tensor:
    """Fill in what a network is shown where there is no trace."""
    y = y.clone()
    for crop, there in zip(y[:, 0], live[:, 0], strict=True):
        traces = there.select(z, 0).cpu().numpy()
        columns = crop.movedim(z, -1)
        columns[torch.from_numpy(~traces)] = crop[there].mean()
        gaps = neighbours(traces, [slice(None)] * traces.ndim)
        missing, nearest = (tuple(torch.from_numpy(at) for at in each) for each in gaps)
        columns[missing] = columns[nearest]
    return y


class TrainingModule(L.LightningModule):
    """A network, what it learns, and how.

    Parameters
    ----------
    model : torch.nn.Module
    objective : Objective
    infer : torch.nn.Module, optional
        Network whose outputs are this one's inputs; it learns nothing.
    learning_rate : float
        Of Adam: Kingma & Ba (2015), ICLR, https://doi.org/10.48550/arXiv.1412.6980.
    schedule : {"cosine", "plateau", "constant"}
        Of the learning rate. "cosine": up for a tenth of the
        steps, but no more than 100, and down along half a cosine until the
        last step or, with a `Timer`, until the time is up: Loshchilov & Hutter (2017), ICLR,
        https://doi.org/10.48550/arXiv.1608.03983. "plateau" halves it when the validation loss
        has not fallen for 5 epochs.
    activations : Activations
    seed : int
        Of what a network draws in training, as what it drops out.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        infer: nn.Module | None = None,
        learning_rate: float = 1e-3,
        schedule: str = "cosine",
        activations: Activations = Activations(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.model, self.objective = model, objective
        self.learning_rate, self.schedule, self.activations = learning_rate, schedule, activations
        # Not a submodule: neither trained nor in the checkpoints.
        self.inferring = [infer.eval().requires_grad_(False)] if infer is not None else []
        self.scores = objective.metrics()

    def forward(self, x: Tensor, live: Tensor | None = None) -> dict[str, Tensor]:
        """Outputs by label, from (batch, channels, ...) and where there are traces."""
        layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        x = x.contiguous(memory_format=layout)
        inputs: Tensor | Batch = x
        for infer in self.inferring:
            card: Card = infer.card  # type: ignore[assignment]
            with torch.no_grad():
                inputs = as_read(infer.to(x.device, x.dtype)(x), card, live)
        return self.objective.outputs(self.model, inputs)

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs by label, of `input` and, unless it is everywhere, where it is `live`."""
        return self(batch["input"], batch.get("live"))

    def on_train_start(self) -> None:
        """Learn at the rate of this run's cosine, which may be longer than the one resumed."""
        for each in self.trainer.lr_scheduler_configs:
            cosine = each.scheduler
            if isinstance(cosine, LambdaLR):
                rates = zip(cosine.base_lrs, cosine.lr_lambdas, strict=True)
                groups = cosine.optimizer.param_groups
                for group, (rate, factor) in zip(groups, rates, strict=True):
                    group["lr"] = rate * factor(cosine.last_epoch)

    def on_train_batch_start(self, batch: Batch, number: int) -> None:
        """Draw in each epoch what would be drawn in it, had the run not been resumed.

        Each process draws for itself: processes that drop out alike would share the chance.
        """
        if number == 0:  # loaders have drawn what they do
            turn = self.current_epoch * self.trainer.world_size + self.global_rank
            torch.manual_seed(self.seed + turn)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Sum of the losses of a batch."""
        where = self.activations
        with offload(where.mode, where.path, where.compression):
            outputs = self.evaluate(batch)
            self._check(outputs)
            parts = self.objective.loss(outputs, batch)
            loss = torch.stack(list(parts.values())).sum()
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=1)
        if len(parts) > 1:
            self.log_dict({f"train/{n}": p.detach() for n, p in parts.items()}, batch_size=1)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Losses and metrics of a batch."""
        outputs = self.evaluate(batch)
        self._check(outputs)
        parts = self.objective.loss(outputs, batch)
        loss = torch.stack(list(parts.values())).sum()
        size = len(batch["input"])
        self.log("val_loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        update(self.scores, outputs, batch)

    def _check(self, outputs: Batch) -> None:
        try:
            self.objective.check(outputs)
        except TrainingDivergedError as error:
            raise TrainingDivergedError(
                f"epoch {self.current_epoch}, step {self.global_step}: {error}: the training has "
                "diverged; train again with a smaller learning_rate (--learning-rate) or precision "
                "32-true, and overwrite (--overwrite)"
            ) from error

    def on_validation_start(self) -> None:
        """Let metrics be summed in any order; training goes by the trainer's `deterministic`."""
        self.strict = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)

    def on_validation_end(self) -> None:
        """As it was."""
        torch.use_deterministic_algorithms(self.strict, warn_only=True)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all batches."""
        for name, metric in self.scores.items():
            assert isinstance(metric, Metric)
            value = metric.compute()
            if value.isfinite():  # of angles there is none where there is no fault
                self.log(name, value, prog_bar=name.endswith("/dice"))
            metric.reset()

    def configure_optimizers(self) -> Any:
        """Adam and the schedule."""
        adam = torch.optim.Adam(self.model.parameters(), self.learning_rate, betas=(0.9, 0.99))
        if self.schedule == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                adam, patience=_PATIENCE, factor=0.5
            )
            return {
                "optimizer": adam,
                "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
            }
        if self.schedule == "constant":
            return adam
        steps = float(self.trainer.estimated_stepping_batches)
        timers = [c for c in self.trainer.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]

        def factor(step: int) -> float:
            done = step / steps
            for timer in timers:
                total = timer.time_elapsed() + (timer.time_remaining() or 0.0)
                done = max(done, timer.time_elapsed() / total)
            if timers:  # each process has a clock of its own
                done = self.trainer.strategy.broadcast(done)
            rise = min(1.0, (step + 1) / min(_WARM_UP, max(steps / 10, 1.0)))
            return rise * (_END + (1 - _END) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))

        cosine = LambdaLR(adam, factor)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
