"""Global values: states that tiles give, merged when a stage is done."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ..graph import RULES, Box, Node, Reduce


class GlobalStore:
    """A global value: a state for every tile until `finish`, then the value.

    Parameters
    ----------
    node : Node
        The reduction that makes it.
    dtype : torch.dtype
        Precision of the computation.
    device : torch.device or str
        Where the value is read.
    folder : path-like, optional
        Keep states and value there, where other processes find them; in memory unless given.
    """

    slow = False

    def __init__(
        self,
        node: Node,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.node, self.dtype, self.device = node, dtype, str(device)
        self.folder = None if folder is None else Path(folder)
        self.states: dict[int, Tensor] = {}
        self.value: Tensor | None = None
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, number: int, state: Tensor) -> None:
        """Keep the state of one tile; that of the same tile is replaced."""
        if self.folder is None:
            self.states[number] = state.cpu()
            return
        self._save(self.folder / f"{number}.state", state)

    def finish(self) -> None:
        """Merge the states, two by two in the order of the tiles, into the value."""
        rule = RULES[self.node.op]
        assert isinstance(rule, Reduce)
        if self.value is not None or (self.folder is not None and self._final.exists()):
            return
        states = [state for _, state in sorted(self._states().items())]
        while len(states) > 1:
            pairs = [rule.merge(a, b) for a, b in zip(states[::2], states[1::2], strict=False)]
            states = pairs + states[len(pairs) * 2 :]
        value = rule.result(self.node, states[0], self.dtype)
        self.states.clear()
        if self.folder is None:
            self.value = value.to(self.device)
            return
        self._save(self._final, value)
        for path in self.folder.glob("*.state"):
            path.unlink()

    def get(self) -> Tensor:
        """Return the value."""
        if self.value is None:
            self.value = torch.load(self._final, weights_only=True).to(self.device)
        return self.value

    def read(self, box: Box) -> Tensor:
        """Return the value, in the form of a store."""
        return self.get()[(..., *(None,) * len(box.start))]

    def write(self, box: Box, value: Tensor) -> None:
        """Do nothing but refuse."""
        raise NotImplementedError("a global value is made by its stage")

    def remove(self) -> None:
        """Forget it."""
        self.value = None
        if self.folder is not None:
            for path in self.folder.glob("*"):
                path.unlink()
            self.folder.rmdir()

    @property
    def _final(self) -> Path:
        assert self.folder is not None
        return self.folder / "value"

    def _states(self) -> dict[int, Tensor]:
        if self.folder is None:
            return self.states
        return {
            int(path.stem): torch.load(path, weights_only=True)
            for path in self.folder.glob("*.state")
        }

    def _save(self, path: Path, tensor: Tensor) -> None:
        # Under another name first: a process may die while it writes.
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        torch.save(tensor.cpu(), aside)
        aside.replace(path)
