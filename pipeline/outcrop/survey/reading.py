"""Open what was written: a survey in Zarr, or raw samples with a shape."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array
import numpy as np
import xarray as xr

from ..arrays import located, open_dataset
from ..errors import MissingChunkError, OutcropError, SurveyError
from ..storage import Options, Place, Remote, place
from ..targets import is_complete, is_unfinished
from . import mdio

if TYPE_CHECKING:
    from ..targets import PathLike

_BLOCK = 64 << 20  # bytes of raw samples that are read at a time


def open(
    path: PathLike, shape: Sequence[int] | None = None, storage_options: Options | None = None
) -> xr.Dataset:
    """Open a survey, lazily.

    Parameters
    ----------
    path : path-like
        Zarr that outcrop wrote, or MDIO v1, here or in an object store ("s3://bucket/key"), or a
        file of raw samples: float32, little-endian, without a header.
    shape : sequence of int, optional
        Of raw samples: (inlines, crosslines, samples), the samples of a trace side by side. Their
        coordinates then count from 0.
    storage_options : mapping, optional
        For fsspec, with an object store: endpoint, credentials, ... What the environment says
        unless given.

    Returns
    -------
    xarray.Dataset
        Of Dask arrays, one block for each object in the store.

    Raises
    ------
    SurveyError
        If it is something else, unfinished, or not of that shape.
    MissingChunkError
        When a chunk that outcrop wrote is read and is gone.
    """
    if shape is not None:
        raw = place(path, storage_options)
        if isinstance(raw, Remote):
            raise SurveyError(f"{raw}: raw samples are read from a file system; copy them to one")
        return _open_raw(raw, tuple(shape))
    return _in_blocks(open_unchunked(path, storage_options))


def open_any(path: PathLike, storage_options: Options | None = None) -> xr.Dataset:
    """As `open`; models and images along one line, without crosslines, as well."""
    return _in_blocks(open_unchunked(path, storage_options, {"inline"}))


def _in_blocks(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign({name: in_blocks(v) for name, v in dataset.data_vars.items()})


def open_unchunked(
    path: PathLike,
    storage_options: Options | None = None,
    lateral: AbstractSet[str] = frozenset(("inline", "crossline")),
) -> xr.Dataset:
    """Open a survey in Zarr, lazily: its variables are no Dask arrays, but its coordinates are.

    Any part of a variable is then one request to Zarr, and no graph of all blocks travels with it.

    Parameters
    ----------
    path, storage_options
        As for `open`, whose errors it raises.
    lateral : set of str
        Dimensions that there must be.
    """
    path = place(path, storage_options)
    if not path.exists():
        raise SurveyError(f"{path}: does not exist; check the path")
    if is_unfinished(path):
        raise SurveyError(
            f"{path}: is unfinished; run the command that writes it again, and it goes on where "
            "it stopped"
        )
    if path.is_file():
        raise SurveyError(
            f"{path}: is a file; ingest SEG-Y with outcrop ingest, or pass the shape of raw "
            "float32 samples, (inlines, crosslines, samples), or --shape "
            "samples,crosslines,inlines"
        )
    _check_group(path)
    dataset = open_dataset(path, chunks=None)
    if not lateral <= set(dataset.dims):
        has = ", ".join(map(str, dataset.dims)) or "none"
        raise SurveyError(
            f"{path}: is no survey: it has dimensions {has} instead of "
            f"{' and '.join(sorted(lateral)[::-1])}; pass one that outcrop ingest wrote"
        )
    others = (name for name in dataset.coords if name not in dataset.dims)
    dataset = dataset.assign_coords({name: in_blocks(dataset.coords[name]) for name in others})
    if mdio.is_mdio(dataset):
        return mdio.as_survey(_in_blocks(dataset))
    return dataset


def _check_group(path: Place) -> None:
    """Raise `SurveyError` unless there is Zarr in format 3."""
    if not is_complete(path):
        if (path / ".zgroup").is_file():
            raise SurveyError(
                f"{path}: is in Zarr format 2; write it in format 3, such as by "
                "xarray.open_zarr(path).to_zarr(other, zarr_format=3), or ingest the SEG-Y again"
            )
        raise SurveyError(f"{path}: is no Zarr group; pass one that outcrop ingest wrote")


def in_blocks(variable: xr.DataArray) -> xr.DataArray:
    """Return a variable as a Dask array, one block for each object in the store.

    Parameters
    ----------
    variable : xarray.DataArray
        One that is a Dask array, or did not come from Zarr, is returned as it is.
    """
    extents = variable.encoding.get("shards") or variable.encoding.get("chunks")
    if variable.chunks is not None or extents is None:
        return variable
    blocks = variable.variable.chunk(dict(zip(variable.dims, extents, strict=True)))
    return variable.copy(deep=False, data=blocks.data)


def loaded(variable: xr.DataArray, region: Sequence[slice] = ()) -> np.ndarray:
    """Return what a variable of a survey holds there; `SurveyError` names a damaged chunk.

    Read in this process, not by the workers of whatever client Dask knows of.
    """
    with naming_bad_chunk(variable, region):
        part = variable[tuple(region)].variable
        if part.chunks is not None:
            part = part.compute(scheduler="threads")
        return part.to_numpy()


@contextlib.contextmanager
def naming_bad_chunk(volume: xr.DataArray, region: Sequence[slice] = ()) -> Iterator[None]:
    """Turn what a damaged chunk raises into one line that says which it is.

    Parameters
    ----------
    volume : xarray.DataArray
        Of a survey in Zarr.
    region : sequence of slice
        What is read in the block, along the volume's first dimensions; all of the others.

    Raises
    ------
    SurveyError
        If a chunk cannot be decoded, or is gone. Other errors pass, those of lost workers too.
    """
    try:
        yield
    except Exception as error:
        ours = isinstance(error, OutcropError) and not isinstance(error, MissingChunkError)
        lost = type(error).__module__.partition(".")[0] in ("distributed", "concurrent")
        if ours or lost or isinstance(error, (OSError, MemoryError)):
            raise
        # By name: true of a volume that was transposed, or is a part along other dimensions.
        stored = volume.encoding.get("shards") or volume.encoding.get("chunks") or volume.shape
        names = volume.encoding.get("preferred_chunks", volume.dims)
        extents = dict(zip(names, stored, strict=False))
        blocks = [extents.get(dim, n) for dim, n in volume.sizes.items()]
        order = volume.encoding.get("stored", {})
        is_whole = order == dict(volume.sizes)  # whose blocks are chunks, counted from its start
        whole = [slice(0, n) for n in volume.shape]
        parts = [*region, *whole[len(region) :]]
        ranges = (
            range(part.start // n, -(-min(part.stop, extent) // n))
            for part, n, extent in zip(parts, blocks, volume.shape, strict=True)
        )
        for number in itertools.product(*ranges):
            start = [i * n for i, n in zip(number, blocks, strict=True)]
            stop = [min(a + n, e) for a, n, e in zip(start, blocks, volume.shape, strict=True)]
            try:
                with dask.config.set(scheduler="synchronous"):
                    volume[tuple(map(slice, start, stop))].to_numpy()
            except Exception as found:
                what = "cannot be decoded"
                if isinstance(found, MissingChunkError):
                    what, found = "is missing", MissingChunkError("written, and gone")
                place = located([volume[d] for d in volume.dims], start, stop)
                chunk, file = "a chunk", "the file that outcrop verify names"
                if is_whole:
                    at = dict(zip(volume.dims, number, strict=True))
                    chunk, file = "/".join(("chunk c", *(str(at[d]) for d in order))), "that file"
                raise SurveyError(
                    f"{volume.name}: {chunk} {what}, of {place} ({found}); ingest the survey "
                    f"again, or restore {file}"
                ) from error
        raise


def _open_raw(path: Path, shape: tuple[int, ...]) -> xr.Dataset:
    if len(shape) != 3 or min(shape) < 1:
        raise SurveyError(f"shape {shape}: pass (inlines, crosslines, samples)")
    need = 4 * shape[0] * shape[1] * shape[2]
    if not path.is_file() or path.stat().st_size != need:
        has = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
        raise SurveyError(
            f"{path}: has {has}, and {' × '.join(map(str, shape))} float32 samples are {need:,}; "
            "correct the shape"
        )
    lines = max(1, _BLOCK // (4 * shape[1] * shape[2]))
    samples = dask.array.map_blocks(
        _load,
        path=path.absolute(),
        shape=shape,
        chunks=dask.array.core.normalize_chunks((lines, -1, -1), shape, dtype=np.float32),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), dtype=np.float32),
    )
    dims = ("inline", "crossline", "twt")
    coords: dict[str, Any] = {
        dim: (dim, np.arange(n, dtype=np.int32), {"long_name": f"{dim} number"})
        for dim, n in zip(dims, shape, strict=True)
    }
    coords["twt"] = (
        "twt",
        np.arange(float(shape[2])),
        {"long_name": "sample number", "units": "1"},
    )
    attrs = {"long_name": "seismic amplitude", "units": "1"}
    return xr.Dataset({"amplitude": (dims, samples, attrs)}, coords)


def _load(path: Path, shape: tuple[int, ...], block_info: Any = None) -> np.ndarray:
    """Read one block of inlines."""
    start, stop = block_info[None]["array-location"][0]
    line = shape[1] * shape[2]
    values = np.fromfile(path, dtype="<f4", count=(stop - start) * line, offset=4 * start * line)
    return values.reshape(stop - start, *shape[1:])
