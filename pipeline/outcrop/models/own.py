"""Networks of one's own: a class or a function in a Python file, named FILE.py:NAME."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..errors import WeightsError
from ..storage import on_disk


def is_own(name: str) -> bool:
    """Whether a name is FILE.py:NAME."""
    return isinstance(name, str) and name.rpartition(":")[0].endswith(".py")


def build(name: str, options: Mapping[str, Any], seed: int) -> nn.Module:
    """Run a file and build its network.

    Parameters
    ----------
    name : str
        FILE.py:NAME, where NAME is a class of networks, a function that returns one, or one.
    options : mapping
        What class or function are called with.
    seed : int
        Of the weights that the constructor draws; the caller's random state stays as it was.

    Raises
    ------
    WeightsError
        If there is no such file or name, it fails, or what it gives is no network.
    """
    file, _, what = name.rpartition(":")
    path = on_disk(file)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; name your network as FILE.py:NAME")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = _imported(path)
            made: Any = getattr(module, what, None)
            calls = callable(made) and not isinstance(made, nn.Module)
            network = made(**options) if calls else made
        except (Exception, SystemExit) as error:  # such as of a script's command line
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
            where = f" at line {lines[-1]}" if lines else ""
            reason = str(error).partition("\n")[0]
            raise WeightsError(f"{name}: {type(error).__name__}{where}: {reason}") from error
    if made is None:
        there = [key for key, value in vars(module).items() if _may_be_meant(value, module)]
        raise WeightsError(f"{path}: has no {what!r}; it has {', '.join(there) or 'no network'}")
    if not isinstance(network, nn.Module):
        raise WeightsError(
            f"{name}: gives no network but {type(network).__name__}; name a class of networks, or "
            "a function that returns a torch.nn.Module"
        )
    if options and isinstance(made, nn.Module):
        raise WeightsError(f"{name}: is built already, and takes no options; leave them out")
    return network


def _imported(path: Path) -> ModuleType:
    # Last, where what it imports from beside it hides nothing else.
    folder = str(path.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"_own_{path.stem}", path.absolute())
    assert spec is not None  # as its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def _may_be_meant(value: object, module: ModuleType) -> bool:
    """Whether something was written in the file and can be called, or is a network."""
    return isinstance(value, nn.Module) or (
        callable(value) and getattr(value, "__module__", None) == module.__name__
    )
