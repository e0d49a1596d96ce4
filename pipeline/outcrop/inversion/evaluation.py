"""Misfit and gradient at a model: batches of shots, and the tree that sums them."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .shots import GROUP, Batch, Evaluation, levels, save
from .tasks import Team

Gradients = dict[str, np.ndarray]


class Evaluator:
    """Evaluates a misfit on a team, and keeps what it found in a folder.

    What was evaluated before an interruption is found there again: whole results, and of an
    unfinished one the batches that are done.

    Parameters
    ----------
    team : Team
        Of a `Shots` job.
    folder : pathlib.Path
        All workers see it.
    gradients : sequence of str
        Parameters to differentiate by.
    """

    def __init__(self, team: Team, folder: Path, gradients: Sequence[str]) -> None:
        self.team, self.folder, self.gradients = team, folder, tuple(gradients)
        folder.mkdir(exist_ok=True)
        self.older = set(folder.glob("*.npz"))
        self.newer: set[Path] = set()
        self.count = 0

    def __call__(
        self,
        model: Mapping[str, np.ndarray],
        wavelet: np.ndarray,
        corner: float | None,
        batches: Sequence[Batch],
    ) -> tuple[float, Gradients]:
        """Return the misfit of these batches, and its gradients, float64.

        Parameters
        ----------
        model : mapping of str to ndarray
        wavelet : ndarray, (shot or 1, time)
            Filtered as the traces will be.
        corner : float or None
            Of the low-pass for the traces, Hz.
        batches : sequence of Batch
        """
        arrays = {**model, "wavelet": wavelet, "corner": np.array(corner or np.nan)}
        digest = _digest(arrays, batches)
        result = self.folder / f"{digest}.npz"
        self.newer.add(result)
        with contextlib.suppress(Exception):  # not there, or damaged
            return self._load(result)
        self.count += 1
        self._evaluate(result, arrays, batches)
        return self._load(result)

    def commit(self) -> None:
        """Forget what was found before the last call of this; a repeated call finds the rest."""
        for path in self.older - self.newer:
            path.unlink(missing_ok=True)
        self.older, self.newer = self.newer, set()

    def _load(self, result: Path) -> tuple[float, Gradients]:
        with np.load(result) as found:
            return float(found["misfit"]), {name: found[name] for name in self.gradients}

    def _evaluate(
        self, result: Path, arrays: Mapping[str, np.ndarray], batches: Sequence[Batch]
    ) -> None:
        evaluation = Evaluation(result.with_suffix(""), self.gradients)
        evaluation.folder.mkdir(exist_ok=True)
        save(evaluation.folder / "input.npz", arrays)
        self.team.run(("gradient", evaluation, n, batch) for n, batch in enumerate(batches))
        tree = levels(len(batches))
        for level, count in tree:
            self.team.run(
                ("merge", evaluation, level, group, count) for group in range(-(-count // GROUP))
            )
        evaluation.leaf(len(tree), 0).replace(result)
        shutil.rmtree(evaluation.folder)


def _digest(arrays: Mapping[str, np.ndarray], batches: Sequence[Batch]) -> str:
    digest = hashlib.sha256(repr(batches).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
