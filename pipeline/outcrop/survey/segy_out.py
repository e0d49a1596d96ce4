"""A volume as SEG-Y: the headers and trace order of a template, new samples."""

from __future__ import annotations

import logging
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..errors import SurveyError
from ..progress import track
from .align import Part, align
from .blocks import Block, WholeFile, blocks, in_threads, read, whole_file
from .decode import decode
from .encode import CODES, NAMES, UnfitError, encode, is_integer, stored_dtype
from .geometry import scaled
from .reading import loaded
from .segy import FIELDS, TRACE_HEADER, field, is_revision_2, runs
from .template import Template, put

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

PIECE = 1 << 20  # bytes that are encoded at a time: they stay in the cache


def write_segy(
    volume: xr.DataArray,
    path: Path,
    template: Template,
    format: str = "same",
    scale: float | None = None,
    client: Client | None = None,
    progress: bool = False,
) -> None:
    """Write a volume as SEG-Y with the headers of a template.

    Parameters
    ----------
    volume : xarray.DataArray
        (inline, crossline, twt or depth), prestack with offset; on the template's grid or a part
        of it. Where its coordinate `live`, if it has one, is false, zeros are written.
    path : pathlib.Path
        SEG-Y file.
    template : Template
        Gives the file header, the trace headers and the order of the traces.
    format : str
        A name in `encode.CODES`, or "same" for the template's.
    scale : float, optional
        Multiplies samples before they are rounded to an integer format.
    client : distributed.Client, optional
        Computes the blocks, if the volume is a Dask array.
    progress : bool
        Show a progress bar.

    Raises
    ------
    SurveyError
        If the volume is no part of the template's grid, or the format does not hold its samples.
    OutcropError
        If there is no space left.
    """
    code = template.format if format == "same" else CODES[format]
    if scale is not None and not is_integer(code):
        raise SurveyError(
            f"scale is for the integer formats, and {NAMES[code]} is none; "
            "leave --scale out or choose such as --format int16"
        )
    work = _Work(align(volume, template), template, path, client, progress)
    name = volume.name or "the volume"
    try:
        return work.write(code, scale)
    except UnfitError as error:
        reason = f"{name} has {error}, which {NAMES[code]} does not hold"
        if scale is not None:
            raise SurveyError(
                f"{path}: {name} times {scale:g} has {error}, which {NAMES[code]} does not hold; "
                "choose a smaller scale, or leave it out for the largest that fits"
            ) from error
        if format != "same" and not is_integer(code):
            raise SurveyError(f"{path}: {reason}; choose another --format") from error
    if format != "same":
        scale = work.fitting_scale(code)
        log.warning("%s: %s; samples are multiplied by %g and rounded", path, reason, scale)
        return work.write(code, scale)
    for code in (CODES["ieee"], CODES["float64"]):
        try:
            work.write(code)
        except UnfitError:
            continue
        log.warning("%s: %s; written as %s (sample format %d)", path, reason, NAMES[code], code)
        return None
    raise SurveyError(f"{path}: {reason}, nor does any float; choose a --format")


class _Work:
    """One export: what is written where, whatever the sample format."""

    def __init__(
        self, part: Part, template: Template, path: Path, client: Client | None, progress: bool
    ) -> None:
        self.part, self.template, self.path = part, template, path
        self.client, self.progress = client, progress
        self.samples = part.volume.shape[-1]
        self.shorter = self.samples != template.vertical.size
        start = part.first_sample
        self.later = float(template.vertical[start] - template.vertical[0])  # in ms or m
        self._check_delay()
        self.live = self._live()
        self.blocks = self._blocks()

    def write(self, code: int, scale: float | None = None) -> None:
        """Write the file; raise `UnfitError` if the sample format does not hold the samples."""
        header = self._file_header(code)
        size = TRACE_HEADER + self.samples * stored_dtype(code).itemsize
        total = self.part.traces.size * size
        power = math.log2(scale or 1.0)

        def copy(item: tuple[Block, np.ndarray], file: WholeFile) -> tuple[int, int]:
            (block, places), bad = item, 0
            values = read(self.part.volume, block, self.client).reshape(-1, self.samples)
            rows = self._within(block, places)
            headers = self._headers(places, power)
            for piece in _pieces(places.size, size):
                data = np.empty((piece.stop - piece.start, size), dtype=np.uint8)
                data[:, :TRACE_HEADER] = headers[piece]
                samples = self._samples(values, rows[piece], places[piece])
                bad += samples.size - int(np.count_nonzero(np.isfinite(samples)))
                stored = self._stored(samples, places[piece], code, scale)
                data[:, TRACE_HEADER:] = stored.view(np.uint8)
                for run in runs(places[piece], len(data)):
                    first = int(places[piece.start + run.start])
                    file.write(len(header) + first * size, data[run])
            return places.size * size, bad

        strange = 0
        with (
            whole_file(self.path, len(header) + total) as file,
            track(f"export {self.path.name}", total, "B", self.progress) as advance,
        ):
            file.write(0, header)
            for done, bad in in_threads(lambda item: copy(item, file), self.blocks):
                advance(done)
                strange += bad
        if strange:
            log.warning(
                "%s: %s samples are NaN or infinite, which not every program reads; where that "
                "matters, replace them first, such as with .fillna(0)",
                self.path,
                f"{strange:,}",
            )

    def fitting_scale(self, code: int) -> float:
        """Find the largest power of two that fits all samples into an integer format."""

        def largest(item: tuple[Block, np.ndarray]) -> float:
            block, places = item
            values = read(self.part.volume, block, self.client).reshape(-1, self.samples)
            rows = self._within(block, places)
            peak = 0.0
            for piece in _pieces(rows.size, 8 * self.samples):
                part = self._samples(values, rows[piece], places[piece]).astype(np.float64)
                if limits.min == 0 and part.min() < 0:
                    raise SurveyError(
                        f"{self.path}: {NAMES[code]} holds nothing below zero, and the volume has "
                        f"{part.min():g}; choose a signed --format"
                    )
                peak = np.maximum(peak, np.abs(part).max())  # unlike max(), passes NaN on
            return float(peak)

        limits = np.iinfo(stored_dtype(code))
        peaks = list(in_threads(largest, self.blocks))
        if not all(map(math.isfinite, peaks)):
            raise SurveyError(
                f"{self.path}: {NAMES[code]} holds no NaN or infinite samples, and the volume has "
                "some; replace them, such as with .fillna(0)"
            )
        peak, limit = max(peaks), int(limits.max)
        power = min(1022, math.floor(math.log2(limit) - math.log2(peak)))  # which is rounded
        power += (peak * 2.0 ** (power + 1) <= limit) - (peak * 2.0**power > limit)
        return 2.0**power

    def _blocks(self) -> list[tuple[Block, np.ndarray]]:
        """Cut the volume into blocks, each with the places in the file of the traces it has."""
        volume, cells = self.part.volume, self.part.cells
        shape = volume.shape[:-1]
        fast = _axes_by_speed(cells, shape)
        cut = blocks(volume, order=fast, whole=[len(shape)], beside=TRACE_HEADER)
        of_cell: np.ndarray | int = 0
        for axis, index in enumerate(np.unravel_index(cells, shape)):
            extent = cut[0][axis].stop - cut[0][axis].start
            of_cell = of_cell * -(-shape[axis] // extent) + index // extent
        order = np.argsort(of_cell, kind="stable")
        ends = np.searchsorted(np.asarray(of_cell)[order], np.arange(len(cut)), side="right")
        parts = np.split(order, ends[:-1])
        return [(block, places) for block, places in zip(cut, parts, strict=True) if places.size]

    def _live(self) -> np.ndarray:
        """Whether the volume has a live trace, for each in the file."""
        live, lateral = self.part.volume.coords.get("live"), self.part.volume.dims[:-1]
        if live is None or not set(live.dims) <= set(lateral):
            return np.ones(self.part.cells.size, bool)
        there = xr.Variable(live.dims, loaded(live).astype(bool))
        whole = there.set_dims({d: self.part.volume.sizes[d] for d in lateral})
        return whole.to_numpy().reshape(-1)[self.part.cells]

    def _samples(self, values: np.ndarray, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Samples of the traces at these places in the file: 0 where none is live."""
        samples = values[rows]
        samples[~self.live[places]] = 0
        return samples

    def _within(self, block: Block, places: np.ndarray) -> np.ndarray:
        """Flat index within a block of the traces at these places in the file."""
        shape = self.part.volume.shape[:-1]
        index = np.unravel_index(self.part.cells[places], shape)
        inner = [i - s.start for i, s in zip(index, block, strict=False)]
        return np.ravel_multi_index(inner, [s.stop - s.start for s in block[:-1]])

    def _headers(self, places: np.ndarray, power: float) -> np.ndarray:
        """Headers of the traces at these places: the template's, but for what changes.

        Samples were multiplied by two to that power.
        """
        headers = self.template.headers(self.part.traces[places])
        order = self.template.order
        edits: dict[str, int | np.ndarray] = {}
        if self.shorter:
            # An unsigned field, which segyio's table of fields takes for a signed one.
            edits["TRACE_SAMPLE_COUNT"] = int(np.uint16(self.samples & 0xFFFF).view(np.int16))
        if self.later:
            delay = field(headers, FIELDS["DelayRecordingTime"][0], order)
            edits["DelayRecordingTime"] = np.round(delay + self._units(headers), 6)
        if not power.is_integer():
            edits["TraceWeightingFactor"] = 0
        elif self.part.volume.name not in ("amplitude", None):  # not the template's samples
            edits["TraceWeightingFactor"] = int(power)
        elif power:
            weight = field(headers, FIELDS["TraceWeightingFactor"][0], order)
            edits["TraceWeightingFactor"] = weight + np.int32(power)
        for name, value in edits.items():
            put(headers, name, np.broadcast_to(value, places.size), order, str(self.path))
        return headers

    def _stored(
        self, values: np.ndarray, places: np.ndarray, code: int, scale: float | None
    ) -> np.ndarray:
        """Samples as they lie in the file."""
        template = self.template
        stored = encode(values, code, template.order, scale)
        if code == template.format == CODES["ibm"] and template.raw is not None:
            # Several words stand for one number: an unchanged sample keeps its own.
            first = self.part.first_sample
            old = template.raw(self.part.traces[places])[:, first : first + self.samples]
            np.copyto(stored, old, where=decode(old, code) == values)
        return stored

    def _file_header(self, code: int) -> bytes:
        """The template's, with sample format and count as they are now."""
        header = bytearray(self.template.file_header)
        order = self.template.order
        struct.pack_into(order + "H", header, 3224, code)
        if self.shorter:
            struct.pack_into(order + "H", header, 3220, self.samples & 0xFFFF)
        if is_revision_2(header):  # which has longer fields, used where they are not zero
            fewer = self.part.traces.size < self.template.count
            for at, kind, count, changed in (
                (3268, "I", self.samples, self.shorter),
                (3512, "Q", self.part.traces.size, fewer),
            ):
                if changed and struct.unpack_from(order + kind, header, at)[0]:
                    struct.pack_into(order + kind, header, at, count)
        return bytes(header)

    def _units(self, headers: np.ndarray) -> np.ndarray:
        """What a later first sample adds to recording delays, in the unit of each header."""
        scalar = field(headers, FIELDS["ScalarTraceHeader"][0], self.template.order)
        one: np.ndarray = scaled(1.0, scalar)
        return self.later / one

    def _check_delay(self) -> None:
        """Raise `SurveyError` if the headers do not hold it: of all, as the first one has it."""
        units = float(self._units(self.template.headers(self.part.traces[:1]))[0])
        if not math.isclose(units, round(units), abs_tol=1e-6):
            usual = "ms" if self.part.volume.dims[-1] == "twt" else "m"
            unit = self.part.volume[self.part.volume.dims[-1]].attrs.get("units", usual)
            step = self.later / units
            held = f"whole {unit}" if step == 1 else f"multiples of {step:g} {unit}"
            raise SurveyError(
                f"the volume starts {self.later:g} {unit} below {self.template.name}, and the "
                f"headers hold {held}; start at another sample"
            )


def _pieces(traces: int, size: int) -> list[slice]:
    """Slices of traces, each of about `PIECE` bytes."""
    step = max(1, PIECE // size)
    return [slice(i, min(i + step, traces)) for i in range(0, traces, step)]


def _axes_by_speed(cells: np.ndarray, shape: tuple[int, ...]) -> list[int]:
    """Axes by how often neighbours in the file differ along them, the most often first."""
    some = np.unravel_index(cells[:100_000], shape)
    return sorted(range(len(shape)), key=lambda axis: -np.count_nonzero(np.diff(some[axis])))
