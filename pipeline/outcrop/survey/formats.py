"""Volumes as plain arrays in a file: raw float32, NumPy, VTK image data."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import numpy as np
import xarray as xr

from ..errors import SurveyError
from ..progress import track
from .blocks import Block, WholeFile, blocks, in_threads, read, whole_file

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class Layout:
    """How a volume lies in a file.

    Attributes
    ----------
    volume : xarray.DataArray
    axes : tuple of int
        Its axes in the order of the file, the fastest last.
    dtype : numpy.dtype
        Of a value in the file.
    head, tail : bytes
        What comes before and after the values.
    """

    volume: xr.DataArray
    axes: tuple[int, ...]
    dtype: np.dtype
    head: bytes = b""
    tail: bytes = b""


_VTK = {
    "i1": "Int8",
    "u1": "UInt8",
    "i2": "Int16",
    "u2": "UInt16",
    "i4": "Int32",
    "u4": "UInt32",
    "i8": "Int64",
    "u8": "UInt64",
    "f4": "Float32",
    "f8": "Float64",
}


def raw(volume: xr.DataArray) -> Layout:
    """Lay out as float32, little-endian, in C order, without a header."""
    return Layout(volume, tuple(range(volume.ndim)), np.dtype("<f4"))


def npy(volume: xr.DataArray) -> Layout:
    """Lay out as NumPy's own format [1]_, in C order, with the volume's dtype.

    References
    ----------
    .. [1] https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    dtype = volume.dtype.newbyteorder("<")
    head = io.BytesIO()
    facts = {"descr": dtype.str, "fortran_order": False, "shape": volume.shape}
    np.lib.format.write_array_header_1_0(head, facts)
    return Layout(volume, tuple(range(volume.ndim)), dtype, head.getvalue())


def step_of(volume: xr.DataArray, dim: str) -> float | None:
    """Step of an axis, 1 where it has one value; None where the steps are not equal."""
    at = volume[dim].to_numpy().astype(np.float64)
    if at.size < 2:
        return 1.0
    step = float(at[-1] - at[0]) / (at.size - 1)
    # A hundredth of a step leaves room for coordinates in float32.
    equal = np.abs(at - at[0] - step * np.arange(at.size)).max() <= 0.01 * abs(step)
    return step if step and equal else None


def vti(volume: xr.DataArray) -> Layout:
    """Lay out as VTK image data [1]_: x is the inline, y the crossline, z two-way time or depth.

    That holds in whatever order the volume has its dimensions. Origin and spacing are those of
    the coordinates, so z grows with time.

    Raises
    ------
    SurveyError
        If the volume has other dimensions, or an axis is not regular.

    References
    ----------
    .. [1] https://docs.vtk.org/en/latest/vtk_file_formats/vtkxml_file_format.html
    """
    axes = ("inline", "crossline", "depth" if "depth" in volume.dims else "twt")
    if set(volume.dims) != set(axes):
        raise SurveyError(
            ".vti holds 3-D volumes over inline, crossline and twt or depth, and this one is over "
            f"{', '.join(map(str, volume.dims))}; select along others first, or write .npy"
        )
    volume = volume.transpose(*axes)
    origin, spacing = [], []
    for dim in axes:
        step = step_of(volume, dim)
        if step is None:
            raise SurveyError(f".vti holds regular axes, and {dim} is not; write .npy")
        if step < 0:
            volume = volume.isel({dim: slice(None, None, -1)})
        origin.append(float(volume[dim][0]))
        spacing.append(abs(step))
    dtype = np.dtype({"bool": "u1", "float16": "f4"}.get(str(volume.dtype), volume.dtype))
    dtype = dtype.newbyteorder("<")
    name = quoteattr(str(volume.name or "values"))
    extent = " ".join(f"0 {n - 1}" for n in volume.shape)
    head = f"""<?xml version="1.0"?>
<VTKFile type="ImageData" version="1.0" byte_order="LittleEndian" header_type="UInt64">
<ImageData WholeExtent="{extent}" Origin="{_row(origin)}" Spacing="{_row(spacing)}">
<Piece Extent="{extent}">
<PointData Scalars={name}>
<DataArray type="{_VTK[dtype.str[1:]]}" Name={name} format="appended" offset="0"/>
</PointData>
</Piece>
</ImageData>
<AppendedData encoding="raw">
_""".encode()
    size = np.array(volume.size * dtype.itemsize, dtype="<u8").tobytes()
    tail = b"\n</AppendedData>\n</VTKFile>\n"
    return Layout(volume, (2, 1, 0), dtype, head + size, tail)


def _row(values: list[float]) -> str:
    return " ".join(map(repr, values))


LAYOUTS: dict[str, Callable[[xr.DataArray], Layout]] = {
    ".bin": raw,
    ".raw": raw,
    ".dat": raw,
    ".npy": npy,
    ".vti": vti,
}


def write_array(
    volume: xr.DataArray, path: Path, client: Client | None = None, progress: bool = False
) -> None:
    """Write a volume in the format of the path's suffix, never holding the whole of it.

    Parameters
    ----------
    volume : xarray.DataArray
        (inline, crossline, twt or depth), with or without an offset; real numbers.
    path : pathlib.Path
        .bin, .raw, .dat: float32, little-endian, C order. .npy. .vti.
    client : distributed.Client, optional
        Computes the blocks, if the volume is a Dask array.
    progress : bool
        Show a progress bar.

    Raises
    ------
    SurveyError
        If the format cannot hold the volume, or float32 its values.
    OutcropError
        If there is no space left.
    """
    layout = LAYOUTS[path.suffix.lower()](volume)
    axes, dtype, head = layout.axes, layout.dtype, layout.head
    shape = [layout.volume.shape[axis] for axis in axes]
    size = volume.size * dtype.itemsize

    def copy(file: WholeFile, block: Block) -> int:
        values = read(layout.volume, block, client).transpose(axes)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, dtype=dtype)
        if not _holds(stored, values):
            raise SurveyError(
                f"{path}: float32 does not hold the values of {volume.name or 'the volume'} "
                f"({volume.dtype}); write .npy, which keeps their type"
            )
        _write_box(file, len(head), shape, [block[axis].start for axis in axes], stored)
        return stored.nbytes

    with (
        whole_file(path, len(head) + size + len(layout.tail)) as file,
        track(f"export {path.name}", size, "B", progress) as advance,
    ):
        file.write(0, head)
        for done in in_threads(
            lambda block: copy(file, block), blocks(layout.volume, order=axes[::-1])
        ):
            advance(done)
        file.write(len(head) + size, layout.tail)


def _holds(stored: np.ndarray, values: np.ndarray) -> bool:
    """Whether nothing but the rounding of one float to another was lost."""
    if stored.dtype == values.dtype:
        return True
    if values.dtype.kind == "f":
        return bool(np.array_equal(np.isinf(stored), np.isinf(values)))
    return bool(np.array_equal(stored.astype(values.dtype), values))


def _write_box(
    file: WholeFile, offset: int, shape: list[int], start: list[int], values: np.ndarray
) -> None:
    """Write a box of an array that lies in the file in C order, in as few pieces as it allows."""
    cut = [axis for axis, n in enumerate(shape) if values.shape[axis] < n]
    loose = max(cut, default=0)  # from this axis on, a box is one piece
    strides = np.cumprod([values.itemsize, *shape[:0:-1]])[::-1]
    for index in np.ndindex(*values.shape[:loose]):
        corner = [s + i for s, i in zip(start, (*index, *[0] * len(shape)), strict=False)]
        file.write(offset + int(np.dot(corner, strides)), values[index])
