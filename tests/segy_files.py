"""SEG-Y files for tests, written with segyio: any sample format, byte order and trace order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import segyio
from segyio import TraceField as Field

ORIGIN = (605_000.0, 6_073_000.0)  # of the coordinates, m
ALONG_INLINES = (24.0, 7.0)  # from one inline to the next, m
ALONG_CROSSLINES = (-3.5, 12.0)  # from one crossline to the next, m

# Headers that vary at random from trace to trace, two- and four-byte ones, negative ones too.
_RANDOM = {
    Field.SourceDepth: (-(2**31), 2**31),
    Field.WeatheringVelocity: (-(2**15), 2**15),
    Field.UnassignedInt1: (-(2**31), 2**31),
}


def cdp(inline_index: np.ndarray | int, crossline_index: np.ndarray | int) -> tuple:
    """Coordinates x and y, in m, of a cell of the cube, exact in cm."""
    return tuple(
        ORIGIN[k] + ALONG_INLINES[k] * inline_index + ALONG_CROSSLINES[k] * crossline_index
        for k in (0, 1)
    )


def write_segy(
    path: str | Path,
    cube: np.ndarray,
    *,
    inlines: Sequence[int],
    crosslines: Sequence[int],
    offsets: Sequence[int] | None = None,
    format: int = 1,
    endian: str = "big",
    sorting: str = "inline",
    missing: Iterable[tuple[int, ...]] = (),
    dead: Iterable[tuple[int, ...]] = (),
    again: Iterable[tuple[int, ...]] = (),
    interval_us: int = 4000,
    delay_ms: int = 0,
    iline_byte: int = 189,
    xline_byte: int = 193,
    offset_byte: int = 37,
    cdp_bytes: tuple[int, int] | None = (181, 185),
    scalar: int = -100,
    ext_headers: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Write a SEG-Y file and return which cell of the cube each of its traces came from.

    Parameters
    ----------
    cube : ndarray
        (inline, crossline, sample), or (inline, crossline, offset, sample) with `offsets`.
    inlines, crosslines, offsets : sequence of int
        Numbers along the first axes of the cube, in any order.
    format : int
        SEG-Y sample format that segyio writes: 1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 16.
    endian : str
        "big" or "little".
    sorting : str
        "inline" (crosslines vary faster), "crossline" or "random".
    missing, dead, again : iterable of tuples
        Cells (indices into the cube) without a trace, with a trace of zeros, and written once
        more at the end of the file with the samples plus one.
    cdp_bytes : tuple of int or None
        Where the coordinates of `cdp` go, multiplied as `scalar` (bytes 71-72) says.
    ext_headers : int
        Extended text headers.

    Returns
    -------
    ndarray of int, (traces, 2 or 3)
    """
    cells = np.argwhere(np.ones(cube.shape[:-1], dtype=bool))
    if sorting == "crossline":
        cells = cells[np.lexsort((*cells[:, 2:].T, cells[:, 0], cells[:, 1]))]
    elif sorting == "random":
        cells = np.random.default_rng(seed).permutation(cells)
    elif sorting != "inline":
        raise ValueError(f"sorting={sorting!r}")
    absent = {tuple(cell) for cell in missing}
    cells = np.array([c for c in cells if tuple(c) not in absent] + [np.array(c) for c in again])
    first_copy = len(cells) - len(list(again))
    silent = {tuple(cell) for cell in dead}

    spec = segyio.spec()
    spec.samples = delay_ms + np.arange(cube.shape[-1]) * interval_us / 1000
    spec.format, spec.endian, spec.ext_headers = format, endian, ext_headers
    spec.tracecount = len(cells)
    spec.iline, spec.xline = iline_byte, xline_byte
    factor = scalar if scalar > 0 else -1 / scalar if scalar else 1
    rng = np.random.default_rng(seed)
    with segyio.create(path, spec) as file:
        file.bin.update(hdt=interval_us, dto=interval_us, rev=256, trflag=1)
        for k in range(1, ext_headers + 1):
            file.text[k] = f"extended text header {k}".ljust(3200).encode()
        for n, cell in enumerate(cells):
            header = {
                Field.TRACE_SEQUENCE_LINE: n + 1,
                Field.TRACE_SEQUENCE_FILE: n + 1,
                Field.CDP: int(np.ravel_multi_index(cell[:2], cube.shape[:2])) + 1,
                Field.TraceIdentificationCode: 2 if tuple(cell) in silent else 1,
                Field.TRACE_SAMPLE_COUNT: min(cube.shape[-1], 0xFFFF),
                Field.TRACE_SAMPLE_INTERVAL: interval_us,
                Field.DelayRecordingTime: delay_ms,
                Field.SourceGroupScalar: scalar,
                **{field: int(rng.integers(*limits)) for field, limits in _RANDOM.items()},
                iline_byte: int(inlines[cell[0]]),
                xline_byte: int(crosslines[cell[1]]),
            }
            if cdp_bytes is not None:
                x, y = cdp(int(cell[0]), int(cell[1]))
                header |= {cdp_bytes[0]: round(x / factor), cdp_bytes[1]: round(y / factor)}
            if offsets is not None:
                header[offset_byte] = int(offsets[cell[2]])
            file.header[n] = header
            trace = cube[tuple(cell)] + (n >= first_copy)
            file.trace[n] = (trace * (tuple(cell) not in silent)).astype(file.dtype)
    return cells
