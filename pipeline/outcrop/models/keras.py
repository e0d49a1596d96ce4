"""Weights of FaultSeg3D and its kin, which Keras wrote, for our networks.

The layout of both kinds of file is Keras's own: "legacy" HDF5 of whole models, of which version 2
and 3 write the same `model_weights` group, or of weights alone, which lack that group.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError

# Their number, by the network: all blocks but the last are of two.
_CONVOLUTIONS = {15: "FaultSeg3D", 19: "FaultSeg3D plus and KarstSeg3D"}


def read_keras(file: Path) -> dict[str, Tensor]:
    """Read weights of FaultSeg3D, FaultSeg3D plus or KarstSeg3D from a Keras file.

    The convolutions lie in the order of the graph. Kernels are turned from (D, H, W, inputs,
    outputs) to (outputs, inputs, D, H, W).

    Parameters
    ----------
    file : pathlib.Path
        ``.hdf5`` or ``.h5``.

    Returns
    -------
    dict of str to torch.Tensor
        By our network's keys.

    Raises
    ------
    WeightsError
        If h5py is not there, or the file is not such a model.
    """
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(
            f"{file}: Keras weights need h5py; install it with pip install 'outcrop[keras]'"
        ) from error
    convolutions: list[tuple[str, np.ndarray, np.ndarray]] = []
    try:
        with h5py.File(file, "r") as content:
            group = content.get("model_weights", content)
            names = [_text(name) for name in group.attrs.get("layer_names", [])]
            for name in names:
                arrays = [group[name][_text(key)][...] for key in group[name].attrs["weight_names"]]
                if len(arrays) == 2 and arrays[0].ndim == 5:
                    convolutions.append((name, arrays[0], arrays[1]))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{file}: not a Keras model in HDF5 ({error})") from error
    if len(convolutions) not in _CONVOLUTIONS:
        known = ", ".join(f"{name} {count}" for count, name in _CONVOLUTIONS.items())
        raise WeightsError(
            f"{file}: has {len(convolutions)} 3-D convolutions ({known}); no other network's Keras "
            "weights are read"
        )
    last = len(convolutions) // 2 + 1
    blocks = [f"conv{block}.conv{i}" for block in range(1, last) for i in (1, 2)] + [f"conv{last}"]
    state = {}
    for block, (_, kernel, bias) in zip(blocks, convolutions, strict=True):
        turned = np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2), dtype=np.float32)
        state[f"{block}.weight"] = torch.from_numpy(turned)
        state[f"{block}.bias"] = torch.from_numpy(bias.astype(np.float32))
    return state


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
