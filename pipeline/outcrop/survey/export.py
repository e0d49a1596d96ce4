"""A volume in, one file out: SEG-Y, raw float32, NumPy or VTK, by the file's suffix."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..errors import OutcropError, SurveyError
from ..storage import Options, Remote, naming_refusal, place
from ..targets import PathLike, check_apart
from .align import first_sample
from .blocks import check_path
from .coordinates import of_coordinates
from .encode import check_format
from .formats import LAYOUTS, write_array
from .geometry import HeaderBytes
from .reading import open as open_survey
from .reading import open_any
from .segy_out import write_segy
from .template import LATERAL, Template, of_file, of_survey

if TYPE_CHECKING:
    from distributed import Client

SEGY = (".sgy", ".segy")
log = logging.getLogger(__name__)


def export(
    source: xr.DataArray | xr.Dataset | PathLike,
    path: str | os.PathLike[str],
    *,
    like: xr.Dataset | PathLike | None = None,
    variable: str | None = None,
    format: str = "same",
    scale: float | None = None,
    overwrite: bool = False,
    client: Client | None = None,
    storage_options: Options | None = None,
    progress: bool = False,
) -> Path:
    """Write one volume to one file, whose suffix says in which format.

    A SEG-Y keeps the file header, the trace headers and the order of the traces of `like`; where
    `like` has no trace, neither has the output, and where the volume's `live` is false it has
    zeros. A volume that covers a part of the inlines, crosslines or samples gives a file of that
    part, with sample count and recording delay updated. Everything is read and written by blocks:
    memory grows by some 100 bytes for each trace of `like`, and not with their length. The file
    appears under its name only when it is whole.

    Parameters
    ----------
    source : xarray.DataArray, xarray.Dataset, or path of a Zarr, here or in an object store
        Dimensions inline, crossline, twt (ms) or depth (m), prestack with offset; in memory or
        lazy.
    path : path-like
        ``.sgy``, ``.segy``: SEG-Y. ``.bin``, ``.raw``, ``.dat``: float32, little-endian, in the
        order of the dimensions, the last fastest. ``.npy``. ``.vti``: VTK image data.
    like : path of a SEG-Y or of a survey, or xarray.Dataset, optional
        For SEG-Y: whose headers to keep. The source's own, if it is a survey, unless given;
        those of a volume that comes from no SEG-Y, such as a model, are made of its coordinates.
    variable : str, optional
        Of a Dataset; its only volume unless given.
    format : str
        For SEG-Y, the sample format: "same" as in `like`, "ibm", "ieee", "float64", "int8",
        "int16", "int32", "int64", "uint8", "uint16", "uint32" or "uint64". With "same", samples
        that the format does not hold (fractions, in an integer format) are written as IEEE
        floats, and a warning is logged.
    scale : float, optional
        For integer formats: samples are multiplied by it and rounded. Where it is needed and not
        given, it is the largest power of two that fits, 2^N, and logged. N goes into the trace
        weighting factor, bytes 169–170: sample = stored number · 2^−N.
    overwrite : bool
        Replace a file at `path`.
    client : distributed.Client, optional
        Computes a lazy source's blocks on its workers; the file is written by this process.
    storage_options : mapping, optional
        As for `outcrop.open`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    OutputExistsError
        If there is a file at `path`.
    ArgumentError
        If `path` is the file at `like`, or lies in a survey that is read.
    SurveyError
        If the source has no such volume, does not match `like`, or holds values that the chosen
        format cannot.
    OutcropError
        If the suffix is unknown, an option does not go with it, or there is no space left.
    """
    target = place(path)
    if isinstance(target, Remote):
        raise OutcropError(f"{path}: a file is written to a file system; take a path there")
    suffix = target.suffix.lower()
    if suffix not in (*SEGY, *LAYOUTS):
        raise OutcropError(
            f"{target}: unknown suffix {suffix!r}; choose one of {', '.join((*SEGY, *LAYOUTS))}"
        )
    if suffix not in SEGY and (like is not None or format != "same" or scale is not None):
        raise OutcropError(f"{target}: like, format and scale are for SEG-Y; leave them out")
    if target.is_symlink():  # such as to a larger disk
        target = target.resolve()
    check_path(target, overwrite)
    check_apart(source, target, storage_options)
    check_apart(like, target, storage_options, "the SEG-Y or survey")
    name = "the source"
    if isinstance(source, (str, os.PathLike, Remote)):
        name, source = str(source), open_any(source, storage_options)
    elif isinstance(source, xr.Dataset):
        name = str(source.encoding.get("source", name))
    volume = select_volume(source, variable, name)
    check_format(format, scale)
    with naming_refusal(name, "see to it, and run the same command again"):
        if suffix in SEGY:
            if like is None and _comes_from_none(source):
                template = of_coordinates(volume, name)
                log.warning(
                    "%s: %s comes from no SEG-Y; headers are made of its coordinates; pass like= "
                    "(--like) to keep those of one",
                    target,
                    name,
                )
            else:
                kept = like if like is not None else source
                template = _template(kept, volume, source, name, storage_options, progress)
            write_segy(volume, target, template, format, scale, client, progress)
        else:
            write_array(volume, target, client, progress)
    return target


def _comes_from_none(source: xr.DataArray | xr.Dataset) -> bool:
    known = source.coords if isinstance(source, xr.DataArray) else source.variables
    return "trace_index" not in known and "segy" not in source.attrs


def _template(
    like: xr.DataArray | xr.Dataset | PathLike,
    volume: xr.DataArray,
    source: xr.DataArray | xr.Dataset,
    name: str,
    storage_options: Options | None,
    progress: bool,
) -> Template:
    """What to keep: of a SEG-Y file, a survey, or a survey's path."""
    if isinstance(like, (str, os.PathLike, Remote)):
        where = place(like, storage_options)
        if not isinstance(where, Remote) and where.is_file():

            def check(known: np.ndarray) -> None:
                for dim in {"twt", "depth"} & set(volume.dims):
                    first_sample(volume, str(dim), known, str(where))

            return of_file(where, _bytes(source), check, progress)
        return of_survey(open_survey(where), str(where))
    named = name if like is source else "like"
    if isinstance(like, xr.DataArray):  # brings coordinates, and no headers
        like = like.to_dataset(name="volume")
    if not isinstance(like, xr.Dataset):
        raise SurveyError(f"like is a {type(like).__name__}; pass a Dataset, or a path")
    return of_survey(like, named)


def _bytes(source: xr.DataArray | xr.Dataset) -> HeaderBytes:
    """Where its line numbers came from: `trace_index` knows, of predictions too."""
    known = dict(source.attrs.get("segy", {}).get("bytes", {}))
    if "trace_index" in source.coords:
        attrs = source["trace_index"].attrs
        known |= {d: int(attrs[f"{d}_byte"]) for d in LATERAL if f"{d}_byte" in attrs}
    return HeaderBytes(**known)


def select_volume(
    source: xr.DataArray | xr.Dataset, variable: str | None = None, name: str = "the source"
) -> xr.DataArray:
    """Return the volume that `export` writes.

    Parameters
    ----------
    source : xarray.DataArray or xarray.Dataset
    variable : str, optional
        Of a Dataset; its only volume unless given.
    name : str
        Of the source, for messages.

    Returns
    -------
    xarray.DataArray

    Raises
    ------
    SurveyError
        If it is not there, not the only one, or not of real numbers.
    """
    if isinstance(source, xr.Dataset):
        volumes = [str(n) for n, v in source.data_vars.items() if {"twt", "depth"} & set(v.dims)]
        if variable is None and len(volumes) != 1:
            has = ", ".join(volumes) or "none"
            raise SurveyError(f"{name}: volumes: {has}; name one by variable= (--variable)")
        chosen = variable or volumes[0]
        if chosen not in source:
            raise SurveyError(
                f"{name}: has no variable {chosen!r}, but {', '.join(map(str, source.data_vars))}"
            )
        volume = source[chosen]
    elif isinstance(source, xr.DataArray):
        volume = source
    else:
        raise SurveyError(
            f"{name}: is a {type(source).__name__}; pass an xarray.DataArray or Dataset, or a path"
        )
    if volume.dtype.kind not in "biuf" or volume.size == 0:
        raise SurveyError(
            f"{name}: {volume.name or 'the volume'} has no real numbers "
            f"({volume.dtype}, {dict(volume.sizes)})"
        )
    return volume
