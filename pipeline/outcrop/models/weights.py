"""Weights from files, checked key by key against the network that they are for."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PosixPath, PurePosixPath
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..storage import on_disk, write_whole

_NAMED = 20  # keys that do not fit, in a message
_CODE = "which is code"
_COUNTER = "num_batches_tracked"  # of batch norms, which use it in training alone
# Under which checkpoints keep their state dict, beside epochs and optimisers.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "network")
# Plain values that they keep there too, such as the options of a training run.
_PLAIN: list[Any] = [
    argparse.Namespace,
    PosixPath,
    PurePosixPath,
    np.dtype,
    np.ndarray,
    *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")},
    *(value.__reduce__()[0] for value in (np.float64(0), np.zeros(1))),
]


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a ``.pth``, ``.pt``, ``.ckpt``, ``.safetensors`` or Keras file.

    Nothing in the file is executed: pickles are opened with ``weights_only=True``.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    dict of str to torch.Tensor
        On the CPU, without the prefixes that wrappers put before every key.

    Raises
    ------
    WeightsError
        If there is no such file, or it holds more than tensors, or is none of these formats.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise WeightsError(f"weights {path!r}: give the path of a file of weights, or a name")
    file = on_disk(path)
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; give the path of the weights to load")
    try:
        open(file, "rb").close()
    except OSError as error:  # for which each of the readers has other words, or none
        raise WeightsError(f"{file}: cannot be read ({error.strerror}); see to it") from error
    kind = file.suffix.lower()
    if kind == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(file)
        except SafetensorError as error:
            raise WeightsError(
                f"{file}: not a whole safetensors file ({error}); copy it again"
            ) from error
    elif kind in (".hdf5", ".h5"):
        from .keras import read_keras

        return read_keras(file)
    elif kind in (".pth", ".pt", ".ckpt"):
        state = _read_pickle(file)
    else:
        raise WeightsError(
            f"{file}: unknown kind of weights {file.suffix!r}; outcrop reads .pth, .pt, .ckpt, "
            ".safetensors, .hdf5 and .h5; rename what torch.save wrote to .pth"
        )
    if not state:
        raise WeightsError(f"{file}: holds no tensors; give the path of a network's weights")
    return _unwrapped(state)


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_PLAIN):
            content = torch.load(file, map_location="cpu", weights_only=True)
            damaged = zipfile.ZipFile(file).testzip() if zipfile.is_zipfile(file) else None
    except Exception as error:  # a damaged file makes the unpickler raise anything
        reason = _reason(error)
        raise WeightsError(
            f"{file}: cannot be read as tensors alone ({reason}); "
            f"{'' if reason.endswith(_CODE) else 'copy it again, or '}save it again with "
            "torch.save(model.state_dict(), path) or as .safetensors"
        ) from error
    if damaged:  # which PyTorch does not look for
        raise WeightsError(f"{file}: damaged: {damaged} has another checksum; copy it again")
    if isinstance(content, Mapping):
        nested = (content[key] for key in _NESTED if isinstance(content.get(key), Mapping))
        content = next(nested, content)
    if isinstance(content, Mapping) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        return dict(content)
    what = type(content).__name__
    if isinstance(content, Mapping):
        what = f"a dictionary of {shorten(', '.join(map(repr, content)), 80, placeholder=' ...')}"
    raise WeightsError(
        f"{file}: holds no state dict but {what}; save it again with "
        "torch.save(model.state_dict(), path)"
    )


def _reason(error: Exception) -> str:
    """What PyTorch says of a file that it does not read, without its advice to read it anyway."""
    text = str(error).strip()
    needs = re.search(r"GLOBAL (\S+)", text)
    if needs:
        return f"it holds {needs[1]}, {_CODE}"
    first = re.split(r"\n|\. ", text.split("WeightsUnpickler error: ")[-1])[0]
    return first.strip() if re.search("[a-z]", first) else "no whole file of torch.save"


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = {key.partition(".")[0] for key in state}
    if len(parts) > 1 or not all("." in key for key in state):
        return state
    return _unwrapped({key.partition(".")[2]: value for key, value in state.items()})


def write(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> int:
    """Write a state dict as ``.safetensors``, whole or not at all; return how many tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import save

    file = on_disk(path)
    if file.suffix != ".safetensors":
        raise WeightsError(f"{file}: weights are written as .safetensors; choose such a name")
    try:
        # Copies: tensors that share memory are refused. Its `save_file` would make a private file.
        data = save({key: value.clone().contiguous() for key, value in state.items()})
        write_whole(file, data)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WeightsError(f"{file}: cannot be written ({reason})") from error
    return len(state)


def only(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Leave out what belongs to submodules at the top level that `model` was built without."""
    own = {name for name, _ in model.named_children()}
    return {key: value for key, value in state.items() if key.split(".")[0] in own}


def keyed(state: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Return what `read` gives by the keys of `model`, without what is not the network's.

    `read` drops what all keys begin with. So may those of the network alone, where a loss or a
    metric was saved beside it; and so may all keys of `model` itself.

    Raises
    ------
    WeightsError
        If `state` has several networks that fit, such as one and its moving average.
    """
    own = model.state_dict()
    names = dict(zip(_unwrapped(own), own, strict=True))
    state = {names.get(key, key): value for key, value in state.items()}
    shapes = {key: value.shape for key, value in own.items() if not key.endswith(_COUNTER)}
    if shapes.keys() <= state.keys():
        return state
    first = next(iter(shapes))
    fitting = [
        prefix
        for prefix in (key.removesuffix(first) for key in state if key.endswith(f".{first}"))
        if all(prefix + k in state and state[prefix + k].shape == n for k, n in shapes.items())
    ]
    if len(fitting) > 1:
        raise WeightsError(
            f"{source}: holds several networks that fit, {', '.join(fitting)}; save the one that "
            "is meant with torch.save(model.state_dict(), path)"
        )
    return {
        key.removeprefix(prefix): value
        for prefix in fitting or [""]
        for key, value in state.items()
        if key.startswith(prefix)
    }


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """List every key of `state` that the model lacks, misses, or has otherwise.

    In another shape, as whole numbers, as of a quantised network, or without values for each place.
    Counters of batches may be missing.
    """
    own = model.state_dict()
    return (
        [f"missing {key}" for key in own if key not in state and not key.endswith(_COUNTER)]
        + [f"unexpected {key}" for key in state if key not in own]
        + [
            f"{key} has shape {tuple(value.shape)} instead of {tuple(own[key].shape)}"
            for key, value in state.items()
            if key in own and own[key].shape != value.shape
        ]
        + [
            f"{key} has {str(value.dtype).removeprefix('torch.')} instead of real numbers"
            for key, value in state.items()
            if key in own and own[key].is_floating_point() and not value.is_floating_point()
        ]
        + [
            f"{key} is {'without values' if value.is_meta else str(value.layout)}"
            for key, value in state.items()
            if key in own and (value.is_meta or value.layout != torch.strided)
        ]
    )


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    others: Mapping[str, Callable[[], nn.Module]],
) -> None:
    """Load `state` into `model`, or say what does not fit and which network would.

    Parameters
    ----------
    model : torch.nn.Module
        Filled in place.
    state : mapping of str to torch.Tensor
        The weights.
    source : str
        Where they come from, for the message.
    others : mapping
        The zoo's other networks by name, each a constructor, to suggest one that fits.

    Raises
    ------
    WeightsError
        If a key is missing or unexpected, has another shape, no real numbers, or NaN, or weights
        are infinite.
    """
    wrong = mismatches(model, state)
    if not wrong:
        counters = {k: torch.zeros_like(v) for k, v in model.state_dict().items() if k not in state}
        model.load_state_dict({**counters, **state})
        learned = {key for key, _ in model.named_parameters()}
        for key, value in model.state_dict().items():
            if value.isnan().any():
                what = "NaN, as after a training that diverged; take weights from before that"
            elif (key in learned or "running_" in key) and value.isinf().any():  # masks may be
                what = "infinite values, as of what is too large for float16; save it in float32"
            else:
                continue
            raise WeightsError(f"{source}: {key} holds {what}")
        return
    with torch.device("meta"):
        count = {name: len(mismatches(make(), state)) for name, make in others.items()}
    best = min(count, key=lambda name: count[name], default=None)
    fitting = [name for name in others if count[name] == 0]
    if fitting:
        advice = f"they are those of {' or '.join(fitting)}"
    elif best is not None and count[best] < len(wrong):
        advice = f"the closest network is {best}, with {count[best]} differences"
    else:
        advice = "no network of the zoo is closer"
    named = wrong
    if len(wrong) > _NAMED:  # of what is missing, and of what is there instead
        half = _NAMED // 2
        named = [*wrong[:half], *wrong[-half:], f"and {len(wrong) - _NAMED} more"]
    raise WeightsError(f"{source}: {advice}; {len(wrong)} keys do not fit: {'; '.join(named)}")


def digest(model: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers: names, shapes, dtypes and values."""
    sha = hashlib.sha256()
    for key, value in model.state_dict().items():
        sha.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()
