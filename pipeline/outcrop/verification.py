"""`verify`: whether all that outcrop wrote is there, decodable, and as it was written."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from .arrays import ASIDE, CHECKSUMS, checksum, located
from .errors import SurveyError
from .progress import track
from .storage import Options, Place, files, place
from .survey.blocks import in_threads
from .targets import is_complete, is_unfinished

if TYPE_CHECKING:
    from .targets import PathLike

_META = "zarr.json"
# What says where a dataset comes from: a survey, an inversion or what goes into it, a prediction,
# one that is not exact.
_SURVEY = ("segy", "outcrop_version")
_INVERSION = ("ingested_with", "modelled_with", "inverted_with", "migrated_with")
_PREDICTION = ("model", "weights_sha256", "input_sha256", "outcrop_version")
_EXACT = ("precision", "plan_sha256", "torch_version")


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written.

    Attributes
    ----------
    array : str
        Name of the variable; empty for the dataset itself.
    object : str
        Which of its objects: "c/1/0/2" is a chunk, or a shard of several.
    where : str
        Inlines, crosslines and time of it, where it has any.
    what : str
    """

    array: str
    object: str
    where: str
    what: str

    def __str__(self) -> str:
        of = f", of {self.where}" if self.where else ""
        return f"{' '.join(filter(None, (self.array, self.object)))} {self.what}{of}".strip()


@dataclass(frozen=True)
class Verification:
    """What `outcrop.verify` found.

    Attributes
    ----------
    path : str
    objects, size : int
        Number and bytes of what was checked.
    damage : tuple of Damage
    others : tuple of str
        Variables that another program added, such as labels: they are not looked at.
    """

    path: str
    objects: int
    size: int
    damage: tuple[Damage, ...]
    others: tuple[str, ...] = ()


def verify(
    path: PathLike, *, storage_options: Options | None = None, progress: bool = False
) -> Verification:
    """Check what outcrop wrote, a survey, a prediction or an inversion: every object is read.

    All objects must be there, with the size and the checksum (CRC-32) that were recorded when
    they were written; all chunks must decode, with the checksum that each of them carries
    (CRC-32C); the attributes must say what the dataset was made from.

    Parameters
    ----------
    path : path-like
        Zarr that outcrop wrote, here or in an object store.
    storage_options : mapping, optional
        As for `outcrop.open`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Verification
        With an empty `damage` if all is well.

    Raises
    ------
    SurveyError
        If it is unfinished, or was not written by outcrop with checksums, or its
        metadata are damaged.
    """
    where = place(path, storage_options)
    if is_unfinished(where):
        raise SurveyError(
            f"{where}: is unfinished; run the command that writes it again, and it goes on where "
            "it stopped"
        )
    if not where.exists():
        raise SurveyError(f"{where}: does not exist; check the path")
    if not is_complete(where):
        raise SurveyError(f"{where}: is no Zarr group; pass one that outcrop wrote")
    try:
        root = dict(json.loads((where / _META).read_text()))
    except (ValueError, TypeError) as error:
        raise SurveyError(
            f"{where / _META}: is damaged ({error}); restore that file, or write all again"
        ) from None
    there = {k: n for k, n in files(where).items() if not k.startswith(f"{ASIDE}/")}
    members = root.get("consolidated_metadata", {}).get("metadata", {})
    names = sorted({*members, *(k.partition("/")[0] for k in there if "/" in k)})
    noted = [n for n in names if f"{n}/{CHECKSUMS}" in there]
    if not noted:
        raise SurveyError(
            f"{where}: has no checksums; another program wrote it, or an earlier outcrop: nothing "
            "to verify it by"
        )
    damage = list(_provenance(root.get("attributes", {})))
    others = tuple(n for n in names if n not in noted and _is_of_another_program(where / n))
    lost = [n for n in names if n not in noted and n not in others]
    damage += [Damage(n, "", "", "has lost its checksums") for n in lost]
    arrays = []
    for n in noted:
        try:
            arrays.append(_Array(where, n, there, members.get(n)))
        except (ValueError, TypeError) as error:
            damage.append(Damage(n, "", "", f"has damaged checksums or metadata ({error})"))
    axes = {a.name: a.axis() for a in arrays}
    todo = [(array, name) for array in arrays for name in array.notes]
    total = sum(there.get(f"{array.name}/{name}", 0) for array, name in todo)

    def check(item: tuple[_Array, str]) -> tuple[int, list[Damage]]:
        array, name = item
        return there.get(f"{array.name}/{name}", 0), list(array.check(name, axes))

    with track(f"verify {where.name}", total, "B", progress) as advance:
        for size, found in in_threads(check, todo):
            damage += found
            advance(size)
    damage.sort(key=lambda d: (d.array, d.object))
    return Verification(str(where), len(todo), total, tuple(damage), others)


def _is_of_another_program(array: Place) -> bool:
    """Whether a variable is an array whose chunks carry no checksums, as all of outcrop's do."""
    try:
        text = (array / _META).read_text()
        return json.loads(text)["node_type"] == "array" and "crc32c" not in text
    except (OSError, ValueError, TypeError, LookupError):
        return False


def _provenance(attributes: Mapping[str, Any]) -> Iterator[Damage]:
    """Yield what the attributes should say and do not."""
    if "segy" in attributes:
        wanted: tuple[str, ...] = _SURVEY
    elif any(name in attributes for name in _INVERSION):
        wanted = ("outcrop_version",)
    else:
        wanted = _PREDICTION if "sliding_window" in attributes else (*_PREDICTION, *_EXACT)
    for name in wanted:
        value = attributes.get(name)
        if not value or (name.endswith("_sha256") and len(str(value)) != 64):
            yield Damage("", "", "", f"provenance: the attribute {name} is not there")


class _Array:
    """One variable, as it was written and as it is."""

    def __init__(
        self, group: Place, name: str, there: Mapping[str, int], metadata: dict[str, Any] | None
    ) -> None:
        self.name, self.folder = name, group / name
        self.there = {
            k.removeprefix(f"{name}/"): n for k, n in there.items() if k.startswith(f"{name}/")
        }
        self.notes: dict[str, str] = dict(json.loads((self.folder / CHECKSUMS).read_text()))
        # The group keeps a copy, for when the array's own is damaged.
        self.metadata = metadata
        if self.metadata is None and _META in self.there:
            self.metadata = json.loads((self.folder / _META).read_text())
        self.dims: list[str] = []
        if self.metadata is not None:
            self.dims = self.metadata.get("dimension_names") or []
            grid = dict.fromkeys(self._grid(), "")
            others = [n for n in self.notes if n.startswith("c/") and n not in grid]
            if others:
                raise ValueError(f"{others[0]} is none of its chunks")
            self.notes = {**grid, **self.notes}

    def _open(self, chunk: str = "", data: bytes = b"") -> zarr.Array:
        """Open the array with no more than one of its objects in it."""
        from_bytes = default_buffer_prototype().buffer.from_bytes
        held = {_META: from_bytes(json.dumps(self.metadata).encode())}
        if chunk:
            held[chunk] = from_bytes(data)
        return zarr.open_array(MemoryStore(held), mode="r")

    def _grid(self) -> Iterator[str]:
        """Yield the name of every object with samples."""
        array = self._open()
        extents = array.shards or array.chunks
        counts = [-(-n // e) for n, e in zip(array.shape, extents, strict=True)]
        for index in itertools.product(*map(range, counts)):
            yield "/".join(map(str, ("c", *index)))

    def axis(self) -> xr.DataArray | None:
        """Return the coordinates, of a variable that is one and can be read."""
        if self.dims != [self.name]:
            return None
        try:
            values = zarr.open_array(
                MemoryStore(
                    {
                        name: default_buffer_prototype().buffer.from_bytes(
                            (self.folder / name).read_bytes()
                        )
                        for name in self.there
                        if name != CHECKSUMS
                    }
                ),
                mode="r",
            )
            attributes = (self.metadata or {}).get("attributes", {})
            return xr.DataArray(np.asarray(values[...]), dims=self.name, attrs=attributes)
        except Exception:
            return None

    def check(self, name: str, axes: Mapping[str, xr.DataArray | None]) -> Iterator[Damage]:
        """Compare one object with what was noted when it was written; decode it."""
        box = self._box(name)
        where = self._where(box, axes)
        if name not in self.there:
            yield Damage(self.name, name, where, "is missing")
            return
        if not self.notes[name]:
            yield Damage(self.name, name, where, "has no checksum")
            return
        data = (self.folder / name).read_bytes()
        parts = list(self._undecodable(name, data, box)) if box else []
        if parts:
            yield from (
                Damage(self.name, name, self._where(part, axes), f"cannot be decoded ({why})")
                for part, why in parts
            )
        elif checksum(data) != self.notes[name]:
            yield Damage(self.name, name, where, "is not as it was written")

    def _box(self, name: str) -> list[slice]:
        """The samples in an object."""
        if not name.startswith("c/") or self.metadata is None:
            return []
        array = self._open()
        extents = array.shards or array.chunks
        index = map(int, name.split("/")[1:])
        return [
            slice(i * e, min((i + 1) * e, n))
            for i, e, n in zip(index, extents, array.shape, strict=True)
        ]

    def _undecodable(
        self, name: str, data: bytes, box: list[slice]
    ) -> Iterator[tuple[list[slice], str]]:
        """Yield the chunks in an object that cannot be decoded, and why."""
        array = self._open(name, data)
        try:
            array[tuple(box)]
        except Exception as error:
            whole = str(error).partition("\n")[0]
        else:
            return
        ranges = (
            [slice(i, min(i + c, s.stop)) for i in range(s.start, s.stop, c)]
            for s, c in zip(box, array.chunks, strict=True)
        )
        found = False
        for part in itertools.product(*ranges):
            try:
                array[part]
            except Exception as error:
                found = True
                yield list(part), str(error).partition("\n")[0]
        if not found:
            yield box, whole

    def _where(self, box: list[slice], axes: Mapping[str, xr.DataArray | None]) -> str:
        known = [axes.get(d) for d in self.dims]
        found = [(axis, s) for axis, s in zip(known, box, strict=False) if axis is not None]
        return located(
            [axis.rename(str(axis.dims[0])) for axis, _ in found],
            [s.start for _, s in found],
            [s.stop for _, s in found],
        )
