"""Weights of the original FaultSeg3D, which Keras wrote, for our network.

The layout of both kinds of file is Keras's own: "legacy" HDF5 of whole models, of which version 2
and 3 write the same `model_weights` group, or of weights alone, which lack that group.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError

# In the order of the graph: two convolutions a block.
_BLOCKS = [f"conv{block}.conv{i}" for block in range(1, 8) for i in (1, 2)] + ["conv8"]


def read_keras(file: Path) -> dict[str, Tensor]:
    """Read FaultSeg3D's weights from a Keras file.

    Kernels are turned from (D, H, W, inputs, outputs) to (outputs, inputs, D, H, W).

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
    except (OSError, KeyError) as error:
        raise WeightsError(f"{file}: not a Keras model in HDF5 ({error})") from error
    if len(convolutions) != len(_BLOCKS):
        raise WeightsError(
            f"{file}: has {len(convolutions)} 3-D convolutions; FaultSeg3D has {len(_BLOCKS)}, "
            "and no other network's Keras weights are read"
        )
    state = {}
    for block, (_, kernel, bias) in zip(_BLOCKS, convolutions, strict=True):
        turned = np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2), dtype=np.float32)
        state[f"{block}.weight"] = torch.from_numpy(turned)
        state[f"{block}.bias"] = torch.from_numpy(bias.astype(np.float32))
    return state


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
