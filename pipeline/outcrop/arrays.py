"""Zarr at a place: what is written leaves a checksum, and a chunk that is gone is an error."""

from __future__ import annotations

import contextlib
import json
import platform
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, WrapperStore

from .errors import MissingChunkError, OutcropError, SurveyError
from .storage import Place, Remote

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

# Where an output that is being written keeps what belongs to it alone.
ASIDE = "unfinished"
# In the folder of each array: size and CRC-32 of each of its objects.
CHECKSUMS = "checksums.json"
# In the folder of an output that is being written: the same, a file for each object.
NOTES = "checksums"


def store_of(where: Place) -> Store:
    """Return Zarr's store of what lies at a place."""
    if isinstance(where, Remote):
        from zarr.storage import FsspecStore

        return FsspecStore(where.system(asynchronous=True), path=where.key)
    return LocalStore(where.absolute())  # a worker may have another current folder


def encoding(dtype: Any, *compressors: BytesBytesCodec) -> dict[str, Any]:
    """Return how chunks are stored: each with a checksum, so that damage is an error when read.

    A chunk that is gone reads as NaN, or the largest unsigned integer, where it reads at all.
    """
    stored: dict[str, Any] = {"compressors": (*compressors, Crc32cCodec())}
    kind = np.dtype(dtype)
    if kind.kind in "biuf":
        missing = {"f": np.nan, "u": -1}.get(kind.kind, 0)
        stored["fill_value"] = np.array(missing).astype(kind)[()]
    return stored


def encodings(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Return `encoding` of every variable, compressed."""
    return {str(k): encoding(v.dtype, ZstdCodec()) for k, v in dataset.variables.items()}


def dask_threads(number: int) -> ThreadPoolExecutor:
    """Return threads for Dask to compute on, a context that ends with them.

    Those that Dask keeps are never told to end if an interruption comes as one starts: then the
    process does not, either.
    """
    return ThreadPoolExecutor(number)


def native(value: Any) -> Any:
    """Return NumPy's numbers and arrays as Python's, such as JSON takes; all else as it is."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def spoken(value: Any) -> str:
    """Return a coordinate as messages name it: all digits of a line, a text as it is.

    Eight digits of other numbers, so that those in float32 show no noise. Of a date no more than
    it says.
    """
    if np.issubdtype(np.asarray(value).dtype, np.datetime64):
        return str(np.datetime_as_string(value, unit="auto"))
    return f"{value:.8g}" if np.issubdtype(np.asarray(value).dtype, np.floating) else str(value)


def located(axes: Sequence[xr.DataArray], start: Sequence[int], stop: Sequence[int]) -> str:
    """Say in the coordinates of axes where a part lies: "inline 100 to 163, …"."""
    words = []
    for axis, a, b in zip(axes, start, stop, strict=True):
        unit = f" {axis.attrs['units']}" if axis.attrs.get("units", "1") not in ("", "1") else ""
        first, last = (spoken(axis.values[i]) for i in (a, b - 1))
        words.append(f"{axis.name} {first}{'' if a == b - 1 else f' to {last}'}{unit}")
    return ", ".join(words)


def covered(volume: xr.DataArray) -> str:
    """Say in its coordinates where a volume lies, and which one of a stack it is."""
    which = [c.expand_dims("one") for c in volume.coords.values() if not c.ndim]
    axes = [*(volume[dim] for dim in volume.dims), *which]
    return located(axes, [0] * len(axes), [axis.size for axis in axes])


def checksum(data: bytes) -> str:
    """Return size and CRC-32 of an object."""
    return f"{len(data)} {zlib.crc32(data):08x}"


class Noting(WrapperStore[Any]):
    """A store of a group that notes the checksum of each object, once that is written."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, and its note."""
        await self._store.set(key, value)
        note = checksum(value.to_bytes()).encode()
        await self._store.set(f"{ASIDE}/{NOTES}/{key}", type(value).from_bytes(note))

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self.set(key, value)


class Whole(WrapperStore[Any]):
    """A store of which every chunk was written: one that is not there reads as an error.

    Parameters
    ----------
    store : zarr.abc.store.Store
    told : collection of str, optional
        Arrays of which that is so; those that have checksums unless given.

    Raises
    ------
    MissingChunkError
        If a chunk is not there.
    SurveyError
        If nothing of its array is, as on a machine that does not see the place.
    """

    def __init__(self, store: Store, told: Collection[str] | None = None) -> None:
        super().__init__(store)
        self.told = told

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self.told)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object, or a part of it."""
        found = await self._store.get(key, prototype, byte_range)
        if found is None and (cut := f"/{key}".find("/c/")) >= 0:
            array, chunk = key[: max(0, cut - 1)], key[cut:]
            if not await self._store.exists(f"{array}/zarr.json".lstrip("/")):
                raise SurveyError(
                    f"{self._store}: {array} is not to be seen from {platform.node()}; take a path "
                    "that is the same on every machine, or put the array back"
                )
            if await self._is_told(array):
                raise MissingChunkError(f"{self._store}: {array} chunk {chunk} is missing")
        return found

    async def _is_told(self, array: str) -> bool:
        if self.told is not None:
            return array in self.told
        return await self._store.exists(f"{array}/{CHECKSUMS}")


@contextlib.contextmanager
def naming_damage(where: object, what: str) -> Iterator[None]:
    """Turn what damaged Zarr raises into one line: where, what of it, and the first words of that.

    Raises
    ------
    SurveyError
        If metadata or chunks that are read in the block cannot be decoded, or are gone. Other
        errors pass, those of disks, stores and lost workers too.
    """
    try:
        yield
    except OutcropError:
        raise
    except (
        ValueError, TypeError, LookupError, AttributeError, RuntimeError, FileNotFoundError
    ) as error:  # fmt: skip
        told = str(error).strip().partition("\n")[0]
        raise SurveyError(
            f"{where}: {what} ({told or type(error).__name__}); restore it, or write it again"
        ) from error


def open_dataset(where: Place, chunks: Any = "auto") -> xr.Dataset:
    """Open a group, lazily: `chunks` as for `xarray.open_zarr`.

    Raises
    ------
    SurveyError
        If it is an array, or metadata in it are damaged.
    """
    try:
        root = json.loads((where / "zarr.json").read_text())
        kind = root["node_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise SurveyError(
            f"{where}/zarr.json: is damaged ({error}); restore that file, or write it again"
        ) from None
    if kind != "group":
        raise SurveyError(f"{where}: is an {kind} of a group; pass the folder that it lies in")
    consolidated = root.get("consolidated_metadata")
    names = consolidated["metadata"] if consolidated else (p.name for p in where.iterdir())
    # Now: whoever reads chunks later may not see the place.
    told = frozenset(n for n in names if (where / n / CHECKSUMS).is_file())
    store = Whole(store_of(where), told)
    with naming_damage(where, "cannot be opened"):
        found = xr.open_zarr(store, chunks=chunks, consolidated="consolidated_metadata" in root)
    for each in (found, *found.variables.values()):
        each.encoding["source"] = str(where)
        each.encoding["stored"] = dict(each.sizes)  # whatever part is taken
    return found


def open_whole(where: Place, mode: Any) -> zarr.Array:
    """Open an array of which every chunk is written before it is read."""
    store = store_of(where)
    whole = Whole(store, told=("",)) if mode == "r" else store
    array = zarr.open_array(whole, mode=mode, zarr_format=3)  # or it looks for others
    return array.with_config({"write_empty_chunks": True})


def open_for_writing(where: Place) -> zarr.Array:
    """Open an array of a group; chunks are stored whatever is in them, each with a note."""
    store = Noting(store_of(where.parent))
    array = zarr.open_array(store, path=where.name, mode="r+", zarr_format=3)
    return array.with_config({"write_empty_chunks": True})
