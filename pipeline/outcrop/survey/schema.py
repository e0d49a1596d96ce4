"""The survey as a labelled dataset: names, units, chunks; see docs/survey.md."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import dask.array
import numpy as np
import xarray as xr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec

from .. import __version__
from ..arrays import encoding as encoded
from ..errors import ArgumentError
from .decode import DTYPES
from .geometry import Grid, HeaderBytes, Headers
from .segy import FIELDS, SegyFile, field

CONVENTIONS = "CF-1.11"
# Measured with benchmarks/ingest.py: smaller chunks read slices faster, larger ones whole volumes.
CHUNKS = {2: (64, 64, 64), 3: (32, 32, 8, 64)}  # by the number of lateral dimensions
# A shard is a part of the work that is held in memory: bytes before compression, at most, and
# those from which it is not made wider, so that many cores may work within the same memory.
SHARD, ENOUGH = 64 << 20, 32 << 20
HEADER_CHUNKS = {2: (512, 512), 3: (128, 128, 16)}

Shape = tuple[int, ...]


def check_layout(chunks: Sequence[int] | None, shards: Sequence[int] | None) -> None:
    """Raise `ArgumentError` for extents that no survey can have: before its file is read."""
    for name, given in (("chunks", chunks), ("shards", shards)):
        if given is not None and (len(given) - 1 not in CHUNKS or min(given) < 1):
            raise ArgumentError(
                f"{name} {tuple(given)}: pass three numbers above zero, of prestack surveys four"
            )
    if shards is None:
        return
    wanted = tuple(chunks or CHUNKS[len(shards) - 1])
    if len(wanted) != len(shards) or any(s % c for s, c in zip(shards, wanted, strict=True)):
        raise ArgumentError(
            f"shards {tuple(shards)} are no multiples of the chunks {wanted}; choose multiples"
        )


def layout(
    shape: Shape, dtype: np.dtype, chunks: Sequence[int] | None, shards: Sequence[int] | None
) -> tuple[Shape, Shape]:
    """Choose the extents of chunks and shards of `amplitude`, where they are not given.

    A shard is one object in the store, and holds many chunks, which are read one by one. Unless
    given, shards hold whole traces, of as many positions as keep them within `SHARD` bytes.

    Parameters
    ----------
    shape : tuple of int
        Extents of the volume, the vertical one last.
    dtype : numpy.dtype
        Of the samples.
    chunks, shards : sequence of int, optional
        As `check_layout` passes them.

    Raises
    ------
    ArgumentError
        If they are not as many as the dimensions.
    """
    for name, given in (("chunks", chunks), ("shards", shards)):
        if given is not None and len(given) != len(shape):
            raise ArgumentError(
                f"{name} {tuple(given)}: the survey has {len(shape)} dimensions; pass as many "
                "numbers"
            )
    wanted = tuple(chunks or CHUNKS[len(shape) - 1])
    chunk = [min(c, n) for c, n in zip(wanted, shape, strict=True)]
    full = [-(-n // c) * c for n, c in zip(shape, chunk, strict=True)]
    if shards is not None:
        return tuple(chunk), tuple(map(min, shards, full))

    def size(extents: Sequence[int]) -> int:
        return math.prod(extents) * dtype.itemsize

    fits = max(1, SHARD // size(chunk))
    shard = [*chunk[:-1], min(full[-1], fits * chunk[-1])]
    # Crosslines first: neighbours in most files.
    for axis in itertools.cycle(range(len(shape) - 2, -1, -1)):
        growable = [a for a in range(len(shape) - 1) if shard[a] < full[a]]
        if not growable or 2 * size(shard) > ENOUGH:
            break
        shard[axis] = min(2 * shard[axis], full[axis])
    return tuple(chunk), tuple(shard)


def codec(compressor: str | BytesBytesCodec | None) -> BytesBytesCodec | None:
    """Return a Zarr codec from "NAME:LEVEL", such as "zstd:5" or "lz4:5": Blosc with shuffle.

    Raises
    ------
    ArgumentError
        If Blosc has no such compressor.
    """
    if not isinstance(compressor, str):
        return compressor
    if compressor == "none":
        return None
    name, _, level = compressor.partition(":")
    try:
        if not 0 <= int(level or 5) <= 9:
            raise ValueError
        return BloscCodec(cname=name, clevel=int(level or 5), shuffle="shuffle")  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            f"compressor {compressor!r}: choose zstd, lz4, lz4hc, blosclz or zlib with a level "
            "from 0 to 9, such as zstd:5, or none"
        ) from error


def template(
    file: SegyFile,
    headers: Headers,
    grid: Grid,
    at: HeaderBytes,
    vertical: np.ndarray,
    domain: str,
    chunks: Shape,
    shards: Shape,
    compressor: BytesBytesCodec | None,
) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Return the survey without samples and varying headers, and its Zarr encoding.

    What is in memory is written when the output is begun; what is a Dask array, part by part.
    """
    lateral = tuple(grid.axes)
    shape = grid.trace_index.shape
    dim = {"time": "twt", "depth": "depth"}[domain]
    units = vertical_units(file, domain)
    names = {"time": "two-way time", "depth": "depth"}
    dtype = amplitude_dtype(file.format)

    def later(dtype: np.dtype | str, shape: Shape) -> dask.array.Array:
        return dask.array.zeros(shape, dtype=dtype, chunks=-1)

    variables: dict[str, Any] = {
        "amplitude": ((*lateral, dim), later(dtype, (*shape, file.samples)), {"units": "1"})
    }
    variables["amplitude"][2]["long_name"] = "seismic amplitude"
    constant = {}
    varying = headers.varying()
    for name, (byte, kind) in FIELDS.items():
        if name in varying:
            attrs = {"long_name": f"trace header field {name}", "byte": byte}
            variables[f"header_{name}"] = (lateral, later(kind, shape), attrs)
        elif value := int(field(headers.first, byte, file.order)[0]):
            constant[name] = value

    coords: dict[str, Any] = {
        name: (name, np.array(axis, dtype=np.int32), {"long_name": f"{name} number"})
        for name, axis in grid.axes.items()
    }
    if "offset" in coords:
        told = {"long_name": f"number in trace header bytes {at.offset}-{at.offset + 3}"}
        if at.offset == HeaderBytes().offset:  # elsewhere it may be a length or a count
            told = {"long_name": "source-receiver offset", "units": _length(file)}
        coords["offset"][2].update(told)
    positive = {"long_name": names[domain], "units": units, "positive": "down", "axis": "Z"}
    if domain == "depth":
        positive["standard_name"] = "depth"
    coords[dim] = (dim, vertical, positive)
    live = grid.trace_index >= 0
    coords["live"] = (lateral, live, {"long_name": "the SEG-Y has a trace here"})
    traces: dict[str, Any] = {"long_name": "number of the trace in the SEG-Y, from 0; -1: none"}
    traces |= {f"{name}_byte": getattr(at, name) for name in lateral}
    coords["trace_index"] = (lateral, grid.trace_index, traces)
    if coordinates_vary(headers, at):
        for name, axis in (("cdp_x", "x"), ("cdp_y", "y")):
            coords[name] = (lateral, later("f8", shape), _coordinate(file, headers, axis))

    encoding: dict[str, dict[str, Any]] = {}
    codecs = () if compressor is None else (compressor,)
    for name, (_, values, _) in (variables | coords).items():
        encoding[name] = {"_FillValue": None, **encoded(values.dtype, *codecs)}
        if name not in (*lateral, dim, "amplitude"):
            encoding[name]["chunks"] = header_chunks(shape)
    encoding["amplitude"]["chunks"] = chunks
    if shards != chunks:
        encoding["amplitude"]["shards"] = shards
    kept = {
        "format": file.format,
        "byte_order": "big" if file.order == ">" else "little",
        "file_header": base64.b64encode(file.file_header).decode(),
        "text": file.text(),
        "trace_header": constant,
        "varying": varying,
        "traces": file.traces,
        "samples": file.samples,
        "vertical": vertical[:2].tolist(),
        "bytes": {k: v for k, v in asdict(at).items() if k != "offset" or k in lateral},
        "source": file.path.name,
    }
    attrs = {"Conventions": CONVENTIONS, "outcrop_version": __version__, "segy": kept}
    return xr.Dataset(variables, coords, attrs), encoding


def amplitude_dtype(format: int) -> np.dtype:
    """float32 wherever it holds every value of a sample format, otherwise the format's own."""
    dtype = DTYPES[format]
    return np.dtype("f4") if np.can_cast(dtype, "f4") else dtype


def header_chunks(shape: Shape) -> Shape:
    """Extents of the chunks of what has no vertical axis."""
    return tuple(min(c, n) for c, n in zip(HEADER_CHUNKS[len(shape)], shape, strict=True))


def coordinates_vary(headers: Headers, at: HeaderBytes) -> bool:
    """Whether the traces have different coordinates, and no line numbers in their place."""
    if at.hold_lines(at.cdp_x, at.cdp_y):
        return False
    return any(bool(headers.varies[b - 1 : b + 3].any()) for b in (at.cdp_x, at.cdp_y))


def vertical_units(file: SegyFile, domain: str) -> str:
    """Units of the vertical axis of a file in that domain."""
    return _length(file) if domain == "depth" else "ms"


def _length(file: SegyFile) -> str:
    """Unit of lengths, by the measurement system of the binary header."""
    return "ft" if file.binary(3255) == 2 else "m"


def _coordinate(file: SegyFile, headers: Headers, axis: str) -> dict[str, str]:
    """Describe coordinates as CF does, by their units in the first trace header (byte 89)."""
    unit = coordinate_unit(file, headers.first)
    attrs = {"long_name": f"{axis} of the common depth point", "units": unit}
    if unit == "1":
        return attrs | {"comment": "degrees, minutes, seconds: ±DDDMMSS.ss"}
    if unit in ("arcsecond", "degree"):
        return attrs
    return attrs | {"standard_name": f"projection_{axis}_coordinate"}


def coordinate_unit(file: SegyFile, headers: np.ndarray) -> str:
    """Unit of coordinates, by the first of some trace headers."""
    unit = int(field(headers, 89, file.order)[0])
    return {2: "arcsecond", 3: "degree", 4: "1"}.get(unit) or _length(file)
