"""Global values: states that tiles give, merged when a stage is done."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..graph import RULES, Box, Node, Reduce
from ..patience import patiently
from ..storage import place, remove, write_whole

if TYPE_CHECKING:
    from ..output import Fence
    from ..planner import Plan
    from ..storage import Place

# States that are merged at once. A power of two: merging two by two, in the order of the tiles,
# then gives the same bits whether groups are merged apart or not.
GROUP = 64


class GlobalStore:
    """A global value: a state for every tile until `finish`, then the value.

    Parameters
    ----------
    node : Node
        The reduction that makes it.
    dtype : torch.dtype
        Of the value.
    device : torch.device or str
        Where the value is read.
    folder : path-like or Remote, optional
        Keep states and value there, where other processes find them; in memory unless given.
    fence : Fence, optional
        Asked before a state is kept.
    """

    slow = False

    def __init__(
        self,
        node: Node,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        folder: Place | None = None,
        fence: Fence | None = None,
    ) -> None:
        self.node, self.dtype, self.device = node, dtype, str(device)
        self.fence = fence
        self.folder = None if folder is None else place(folder)
        self.states: dict[int, Tensor] = {}
        self.value: Tensor | None = None
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def put(self, number: int, state: Tensor) -> None:
        """Keep the state of one tile; that of the same tile is replaced."""
        if self.folder is None:
            self.states[number] = state.cpu()
            return
        if self.fence is not None:
            self.fence.check()
        self._save(self._state(0, number), state)

    def levels(self, count: int) -> Iterator[tuple[int, range]]:
        """Yield the groups that `merge` can make of `count` states, level by level.

        Those of one level do not depend on each other; what is left is for `finish`.
        """
        level = 0
        while count > GROUP and not self._is_finished():
            count = -(-count // GROUP)
            yield level, range(count)
            level += 1

    def merge(self, level: int, group: int) -> None:
        """Merge a group of states into one of the next level."""
        target = self._state(level + 1, group)
        if not target.exists():
            members = range(group * GROUP, (group + 1) * GROUP)
            paths = (self._state(level, n) for n in members)
            states = [_load(p) for p in paths if p.exists()]
            patiently(partial(self._save, target, self._merged(states)))

    def finish(self) -> None:
        """Merge the states, two by two in the order of the tiles, into the value."""
        rule = RULES[self.node.op]
        assert isinstance(rule, Reduce)
        if self.value is not None or self._is_finished():
            return
        states = [state for _, state in sorted(self._states().items())]
        value = rule.result(self.node, self._merged(states), self.dtype)
        self.states.clear()
        if self.folder is None:
            self.value = value.to(self.device)
            return
        patiently(partial(self._save, self._final, value))
        for path in self.folder.glob("*.state"):
            path.unlink()

    def get(self) -> Tensor:
        """Return the value."""
        if self.value is None:
            self.value = _load(self._final).to(self.device)
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
            remove(self.folder)

    @property
    def _final(self) -> Place:
        assert self.folder is not None
        return self.folder / "value"

    def _is_finished(self) -> bool:
        return self.folder is not None and self._final.exists()

    def _state(self, level: int, number: int) -> Place:
        assert self.folder is not None
        return self.folder / f"{level}-{number}.state"

    def _merged(self, states: list[Tensor]) -> Tensor:
        rule = RULES[self.node.op]
        assert isinstance(rule, Reduce)
        while len(states) > 1:
            pairs = [rule.merge(a, b) for a, b in zip(states[::2], states[1::2], strict=False)]
            states = pairs + states[len(pairs) * 2 :]
        return states[0]

    def _states(self) -> dict[int, Tensor]:
        """States of the highest level that there is."""
        if self.folder is None:
            return self.states
        found: dict[int, dict[int, Place]] = {}
        for path in self.folder.glob("*.state"):
            level, number = map(int, path.name.removesuffix(".state").split("-"))
            found.setdefault(level, {})[number] = path
        highest = found[max(found)]
        return {n: _load(path) for n, path in highest.items()}

    def _save(self, path: Place, tensor: Tensor) -> None:
        held = io.BytesIO()
        torch.save(tensor.cpu(), held)
        write_whole(path, held.getvalue())


def _load(path: Place) -> Tensor:
    return torch.load(io.BytesIO(patiently(path.read_bytes)), weights_only=True)


def to_merge(plan: Plan, i: int, is_written: Callable[[int], bool]) -> list[str]:
    """Return the global values of stage `i`, all of whose tiles are written, that are still wanted.

    Of the others, which just stages read that are written too, an earlier run has removed the
    states and the value.
    """
    stages = list(enumerate(plan.stages))
    readers = {name: [k for k, s in stages if name in s.inputs] for name in plan.stages[i].reduces}
    return [name for name, ks in readers.items() if not ks or not all(map(is_written, ks))]
