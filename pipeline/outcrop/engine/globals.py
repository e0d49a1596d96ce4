"""Global values: states that tiles give, merged when a stage is done."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ResumeError
from ..graph import RULES, Box, Node, Reduce
from ..patience import patiently
from ..storage import files, place, remove, write_whole

if TYPE_CHECKING:
    from ..locks import Fence
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
        Asked before a state or the value is kept.
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

    def put(self, number: int, state: Tensor, count: int) -> None:
        """Keep the state of one tile of `count`; that of the same tile is replaced."""
        if self.folder is None:
            self.states[number] = state.cpu()
        elif count == 1:  # with nothing to merge it with
            self._save(self._final, self._result([state.cpu()]))
        else:
            self._save(self._state(0, number), state)

    def lost(self, tiles: Iterable[tuple[int, Box]]) -> set[int]:
        """Numbers of those tiles, of all that gave a state, whose states are gone."""
        if self.folder is None:
            return set()
        if self._is_finished():
            if files(self.folder)[self._final.name]:
                return set()
            self._final.unlink()  # cut off: made again
        there = self._there()
        levels = range(1 + max((level for level, _ in there), default=0))
        return {n for n, _ in tiles if not any((k, n // GROUP**k) in there for k in levels)}

    def levels(self, count: int) -> Iterator[tuple[int, list[range]]]:
        """Yield the groups of states that `merge` can make of `count`, level by level.

        Those of one level do not depend on each other; what is left is for `finish`.
        """
        level = 0
        while count > GROUP and not self._is_finished():
            groups = [range(n, min(n + GROUP, count)) for n in range(0, count, GROUP)]
            yield level, groups
            level, count = level + 1, len(groups)

    def merge(self, level: int, group: range) -> None:
        """Merge a group of states into one of the next level; `ResumeError` if one is gone."""
        target = self._state(level + 1, group.start // GROUP)
        if not target.exists():
            states = [_load(self._state(level, n)) for n in group]
            patiently(partial(self._save, target, self._merged(states)))

    def finish(self, count: int) -> None:
        """Merge the states of `count` tiles, two by two in their order, into the value.

        Raises
        ------
        ResumeError
            If one of them is gone.
        """
        if self.value is not None or self._is_finished():
            return
        value = self._result(self._states(count))
        self.states.clear()
        if self.folder is None:
            self.value = value.to(self.device)
            return
        patiently(partial(self._save, self._final, value))

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

    def _result(self, states: list[Tensor]) -> Tensor:
        """Return the value that states of all tiles give."""
        rule = RULES[self.node.op]
        assert isinstance(rule, Reduce)
        return rule.result(self.node, self._merged(states), self.dtype)

    def _merged(self, states: list[Tensor]) -> Tensor:
        rule = RULES[self.node.op]
        assert isinstance(rule, Reduce)
        while len(states) > 1:
            pairs = [rule.merge(a, b) for a, b in zip(states[::2], states[1::2], strict=False)]
            states = pairs + states[len(pairs) * 2 :]
        return states[0]

    def _there(self) -> set[tuple[int, int]]:
        """Level and number of the states that are kept in files."""
        assert self.folder is not None
        names = (name for name, size in files(self.folder).items() if size)
        found = (n.removesuffix(".state").split("-") for n in names if n.endswith(".state"))
        return {(int(level), int(number)) for level, number in found}

    def _states(self, count: int) -> list[Tensor]:
        """States of all tiles, on the highest level on which there is one."""
        if self.folder is None:
            return [self.states[n] for n in range(count)]
        there = self._there()

        def state(level: int, number: int) -> Tensor:
            if not level or (level, number) in there:
                return _load(self._state(level, number))
            # A cluster that merged states was stopped in the middle of it.
            below = -(-count // GROUP ** (level - 1))
            group = range(number * GROUP, min((number + 1) * GROUP, below))
            return self._merged([state(level - 1, n) for n in group])

        level = max((level for level, _ in there), default=0)
        return [state(level, n) for n in range(-(-count // GROUP**level))]

    def _save(self, path: Place, tensor: Tensor) -> None:
        if self.fence is not None:
            self.fence.check()
        held = io.BytesIO()
        torch.save(tensor.cpu(), held)
        write_whole(path, held.getvalue())


def _load(path: Place) -> Tensor:
    again = "run the same command again, which evaluates anew what it held"
    try:
        held = io.BytesIO(patiently(path.read_bytes))
    except FileNotFoundError:
        raise ResumeError(f"{path}: gone; {again}") from None
    try:
        return torch.load(held, weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler raise anything
        raise ResumeError(f"{path}: is damaged; delete that file and {again}") from error


def to_merge(plan: Plan, i: int, is_written: Callable[[int], bool]) -> list[str]:
    """Return the global values of stage `i`, all of whose tiles are written, that are still wanted.

    Of the others, which just stages read that are written too, an earlier run has removed the
    states and the value.
    """
    stages = list(enumerate(plan.stages))
    readers = {name: [k for k, s in stages if name in s.inputs] for name in plan.stages[i].reduces}
    return [name for name, ks in readers.items() if not ks or not all(map(is_written, ks))]
