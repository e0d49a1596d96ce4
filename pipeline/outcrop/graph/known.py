"""Numbers and decisions that a forward takes from the network's own values, not from its input.

Such as `if self.active[i]:`, `float(self.scale)`, or extents computed from `torch.tensor(x.shape)`.
`torch.export` traces without values; here what they depend on is evaluated beside it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

# Values in a tensor up to which it is evaluated: numbers and tables, not kernels and volumes.
_MOST = 2**16


class _UnfitError(Exception):
    """A call makes too much, or draws random numbers."""


@contextlib.contextmanager
def knowing(module: nn.Module) -> Iterator[None]:
    """While a module is traced, evaluate what depends on nothing but its own values.

    Raises
    ------
    RuntimeError
        If the forward changes in place what was evaluated.
    """
    own = {name: value.detach() for name, value in _small(module)}
    forward = module.forward

    @functools.wraps(forward)
    def known(*args: Any, **kwargs: Any) -> Any:
        # By now torch has put tensors without values in place of them. Hooks would not do: while
        # torch traces, none is called where a forward fails, and modes are left in the process.
        with _Knowing({id(v): own[name] for name, v in _small(module) if name in own}):
            return forward(*args, **kwargs)

    before = module.__dict__.get("forward")
    module.__dict__["forward"] = known
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


def _small(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.numel() <= _MOST:
            yield name, value


class _Knowing(TorchFunctionMode):
    """Calls all of whose tensors are known return their values.

    Parameters
    ----------
    own : dict of int to torch.Tensor
        The module's own tensors by the identity of what stands for them in the trace.
    """

    def __init__(self, own: dict[int, Tensor]) -> None:
        super().__init__()
        self.own = own
        self.made: dict[int, Tensor] = {}  # here, and not in the trace: free to be changed

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__getitem__":  # what is cut depends on numbers
            args = args[0], tree_map(self._settled, args[1])
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = {id(x): value for x in given if (value := self._value(x)) is not None}
        # Without a tensor there are switches of modes, too.
        if len(known) == len({id(x) for x in given}) and (given or hasattr(torch, name)):
            with contextlib.suppress(_UnfitError):
                return self._evaluate(
                    func, *tree_map(lambda x: known.get(id(x), x), (args, kwargs))
                )
        changes = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
        changed = args[:1] if changes or name.startswith("__i") else ()
        if any(id(x) in known for x in (*changed, *tree_leaves(kwargs.get("out")))):
            raise RuntimeError(f"{name}: changes in place what was evaluated before")
        for value in known.values():
            self.made.pop(_memory(value), None)
        return func(*args, **kwargs)

    def _value(self, x: Tensor) -> Tensor | None:
        return self.own.get(id(x)) if isinstance(x, FakeTensor) else x

    def _settled(self, index: Any) -> Any:
        """Return a whole number or a slice with numbers in place of tensors that are known."""
        if isinstance(index, slice):
            return slice(*map(self._settled, (index.start, index.stop, index.step)))
        value = self._value(index) if isinstance(index, Tensor) else None
        if value is None or value.ndim or value.is_floating_point() or value.dtype == torch.bool:
            return index
        with _disable_current_modes():
            return int(value)

    def _evaluate(self, func: Any, args: Any, kwargs: Any) -> Any:
        taken = {_memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        held = taken - self.made.keys()
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            _check_size(func, args, kwargs)
            with _Watching(held):
                found = func(*args, **kwargs)
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and _memory(x) not in held:
                self.made[_memory(x)] = x
        return found


class _Watching(TorchDispatchMode):
    """Refuses to draw random numbers, and to change any of some tensors."""

    def __init__(self, held: set[int]) -> None:
        super().__init__()
        self.held = held

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise _UnfitError
        changed = [kwargs.get("out")]
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                changed.append(value)
        if any(_memory(x) in self.held for x in tree_leaves(changed)):
            raise RuntimeError(f"{func}: changes in place what the trace has, too")
        return func(*args, **kwargs)


def _memory(x: Any) -> int:
    return x.untyped_storage()._cdata if isinstance(x, Tensor) else 0


def _check_size(func: Any, args: Any, kwargs: Any) -> None:
    """Raise `_UnfitError` if a call makes large tensors."""
    made: list[Any] = []
    with contextlib.suppress(Exception), FakeTensorMode() as mode:  # `tolist` needs values
        args, kwargs = tree_map(
            lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, (args, kwargs)
        )
        made = tree_leaves(func(*args, **kwargs))
    if any(isinstance(x, Tensor) and x.numel() > _MOST for x in made):
        raise _UnfitError
