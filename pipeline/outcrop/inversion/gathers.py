"""Shot gathers in a Zarr, read by number: what every worker does for its own batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from ..arrays import Whole, naming_damage, open_dataset, open_for_writing, store_of
from ..errors import SurveyError
from ..targets import is_complete, is_unfinished


def open_shots(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open shot gathers, lazily.

    Parameters
    ----------
    path : path-like
        Zarr that `outcrop ingest --shots`, `ingest_shots` or `model_shots` wrote.

    Returns
    -------
    xarray.Dataset
        `amplitude` (shot, receiver, time), `time` in s, `source_DIM` and `receiver_DIM` in m.

    Raises
    ------
    SurveyError
        If it is something else, unfinished, or damaged.
    """
    return open_written(path, "outcrop ingest --shots")


def open_written(path: str | os.PathLike[str], by: str) -> xr.Dataset:
    """Open a Zarr that is whole; `by` says what writes such."""
    path = Path(path)
    if is_unfinished(path):
        raise SurveyError(
            f"{path}: is unfinished; run what writes it again, and it goes on where it stopped"
        )
    if not is_complete(path):
        raise SurveyError(f"{path}: is no Zarr group; pass one that {by} wrote")
    return open_dataset(path)


def is_raw(shots: xr.Dataset, dims: Sequence[str]) -> bool:
    """Whether what `Gathers` reads is in the Zarr just as xarray shows it: not packed or masked."""
    names = ["amplitude", *(f"{what}_{d}" for what in ("source", "receiver") for d in dims)]
    if "weight" in shots:
        names.append("weight")
    for variable in (shots[name] for name in names):
        how = variable.encoding
        gap = how.get("_FillValue")
        if (
            {"scale_factor", "add_offset", "missing_value"} & how.keys()
            or how.get("dtype", variable.dtype) != variable.dtype
            or not (gap is None or np.isnan(gap))
        ):
            return False
    return True


class Gathers:
    """Positions and traces of shots.

    Parameters
    ----------
    source : path-like or xarray.Dataset
        Of a Zarr the arrays are read, be it whole or not.
    dims : tuple of str
        Axes of the model.

    Raises
    ------
    SurveyError
        When something is read that is damaged, or gone.
    """

    def __init__(self, source: str | os.PathLike[str] | xr.Dataset, dims: tuple[str, ...]) -> None:
        self.source = source if isinstance(source, xr.Dataset) else Path(source)
        self.dims = dims
        self._opened: dict[str, xr.DataArray | zarr.Array] = {}

    @property
    def count(self) -> int:
        """Number of shots."""
        return self._array(f"source_{self.dims[0]}").shape[0]

    @property
    def has_common_spread(self) -> bool:
        """Whether the receivers are the same for all shots."""
        return self._array(f"receiver_{self.dims[0]}").ndim == 1

    @property
    def receiver_count(self) -> int:
        """Receivers of a shot, at most."""
        return self._array(f"receiver_{self.dims[0]}").shape[-1]

    def sources(self, shots: np.ndarray) -> np.ndarray:
        """Positions in m: (shot, axis)."""
        return np.stack([self._rows(f"source_{d}", shots) for d in self.dims], axis=-1)

    def receivers(self, shots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in m, (shot, receiver, axis), and which of them there are."""
        found = np.stack([self._rows(f"receiver_{d}", shots) for d in self.dims], axis=-1)
        if found.ndim == 2:
            found = np.broadcast_to(found, (len(shots), *found.shape))
        return found, ~np.isnan(found).all(axis=-1)

    def traces(self, shots: np.ndarray) -> np.ndarray:
        """Observed traces: (shot, receiver, time)."""
        return self._rows("amplitude", shots)

    def weights(self, shots: np.ndarray) -> np.ndarray | None:
        """What traces are multiplied by: (shot, receiver, time or 1); None if by nothing."""
        if isinstance(self.source, xr.Dataset):
            there = "weight" in self.source
        else:
            there = (self.source / "weight").exists()
        if not there:
            return None
        found = self._rows("weight", shots)
        return found if found.ndim == 3 else found[..., None]

    def write(self, shots: np.ndarray, traces: np.ndarray) -> None:
        """Write the traces of shots."""
        assert isinstance(self.source, Path)
        array = open_for_writing(self.source / "amplitude")
        for shot, gather in zip(shots, traces, strict=True):
            array[int(shot)] = gather

    def _array(self, name: str) -> xr.DataArray | zarr.Array:
        if isinstance(self.source, xr.Dataset):
            return self.source[name]
        if name not in self._opened:
            store = Whole(store_of(self.source))
            with naming_damage(self.source, f"{name} cannot be opened"):
                self._opened[name] = zarr.open_array(store, path=name, mode="r")
        return self._opened[name]

    def _rows(self, name: str, shots: np.ndarray) -> np.ndarray:
        where = self.source
        if isinstance(where, xr.Dataset):
            where = where.encoding.get("source", "the shots")
        with naming_damage(where, f"{name} of {_spoken(shots)} cannot be read"):
            return self._read(name, shots)

    def _read(self, name: str, shots: np.ndarray) -> np.ndarray:
        array = self._array(name)
        if isinstance(array, xr.DataArray):
            return (array.isel(shot=shots) if "shot" in array.dims else array).to_numpy()
        if array.ndim == 1:
            whole = np.asarray(array[...])
            return whole[shots] if name.startswith("source_") else whole
        low, high = int(shots.min()), int(shots.max()) + 1
        if high - low <= 2 * len(shots):  # side by side: chunks hold many of them
            return np.asarray(array[low:high])[shots - low]
        return np.stack([np.asarray(array[int(n)]) for n in shots])


def _spoken(shots: np.ndarray) -> str:
    return f"shot {shots[0]}" if len(shots) == 1 else f"shots {shots.min()} to {shots.max()}"
