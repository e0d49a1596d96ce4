"""Sliding windows over sections, as published for networks of sections: for comparison."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import xarray as xr
from torch import nn

from ..arrays import open_dataset
from ..errors import ArgumentError
from ..graph import Box
from ..graph.boxes import Shape, tiles
from ..output import Output
from ..progress import track
from ..storage import Options, naming_refusal, place
from ..targets import PathLike, check_apart, check_free
from .chunks import DecodedChunks
from .labelled import Volume, frame
from .planning import captured
from .prediction import identity
from .statistics import all_statistics
from .survey_stores import PredictionStore, SurveyStore
from .variables import check_outputs, masks_of, template

# Sections that are evaluated side by side.
_SECTIONS = 8
# Bytes of decoded chunks of the survey that are kept for the windows that follow.
_KEPT = 2**28


def predict_windows(
    model: nn.Module,
    data: Volume,
    path: PathLike,
    *,
    window: int,
    overlap: int,
    direction: str | None = None,
    threshold: float | None = None,
    storage_options: Options | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Evaluate a network of sections window by window, and keep the middle of each.

    Not exact: where windows meet, half of `overlap` is all that is seen beyond. It is here to be
    compared with `predict`, which evaluates whole sections. The windows' normalization is that of
    the whole survey.

    Parameters
    ----------
    model : torch.nn.Module
        From `outcrop.models.load("unet25d", ...)`, or another with a card of sections of three
        axes.
    data, path, direction, threshold, storage_options, overwrite, progress
        As for `predict`.
    window : int
        Extent of a window in samples and in traces, a multiple of the network's stride.
    overlap : int
        Samples and traces that neighbouring windows share, even and less than `window`.

    Returns
    -------
    xarray.Dataset
        As `predict` returns it.

    Raises
    ------
    ArgumentError
        If the network is none of sections or has an output that the range of the whole volume
        scales, or `window` and `overlap` do not suit.
    OutcropError
        As `predict` does.
    """
    framed = frame(model, data, direction, storage_options)
    check_outputs(framed, threshold)
    card = framed.card
    if not card.sections or len(card.axes) != 3:
        raise ArgumentError("window: only of networks of sections, such as unet25d")
    own = [each.name for each in card.outputs if each is not None and each.own_range]
    if own:
        raise ArgumentError(
            f"window: {own[0]} is brought to 0…1 by the range of the whole volume, which windows "
            "do not have; leave it out"
        )
    stride = max(card.multiple)
    if window < 1 or window % stride or not 0 <= overlap < window or overlap % 2:
        raise ArgumentError(
            f"window {window}, overlap {overlap}: choose a multiple of {stride}, and an even "
            "overlap that is less"
        )
    check_apart(data, place(path, storage_options), storage_options)
    target = check_free(path, overwrite, storage_options)
    framed, found, fingerprint = all_statistics(framed)
    graph, _ = captured(model, framed)
    record = {
        **identity(model, framed, graph, fingerprint, "float32", threshold),
        "sliding_window": f"{window}, overlap {overlap}: not exact",
    }
    tile = (_SECTIONS, *framed.grid[1:])
    empty, encoding = template(framed, [(tile, card.outputs)], threshold)
    empty.attrs.update(record, title=f"{card.task} by {card.name}")
    names = [o.name if o else None for o in card.outputs]
    masks = masks_of(names, threshold)
    halo = int(getattr(model, "neighbours", 0))
    then = "once that is mended, run the same command again"
    size = framed.volume.size
    with (
        naming_refusal(target, then),
        track("predict", size, "voxels", progress) as advance,
        Output.begin(target, empty, encoding, record, overwrite) as output,
    ):
        source = SurveyStore(
            framed, card.inputs, found[0], torch.float32, DecodedChunks(framed.volumes, _KEPT)
        )
        sink = PredictionStore(
            [output.path / n if n else None for n in names],
            framed,
            [output.path / n if n else None for n in masks],
            threshold or 0.0,
            card.activation,
            fence=output.fence,
        )
        with torch.inference_mode():
            for seen, kept in _windows(framed.grid, framed.domain, window, overlap, halo):
                y = model(source.read(seen))
                sink.write(kept, y[kept.within(seen).index])
                advance(kept.size)
        output.commit()
    return open_dataset(target)


def _windows(
    grid: Shape, domain: Box, window: int, overlap: int, halo: int
) -> Iterator[tuple[Box, Box]]:
    """Yield what each window sees, and what is kept of it: its middle, and the volume's edge."""
    across = [list(_along(extent, window, overlap)) for extent in grid[1:]]
    for block in tiles(Box.whole((domain.shape[0],)), (_SECTIONS,)):
        (first,), (last,) = block.start, block.stop
        for top in across[0]:
            for left in across[1]:
                seen = Box(
                    (max(0, first - halo), top[0], left[0]),
                    (min(grid[0], last + halo), top[1], left[1]),
                )
                kept = Box((first, top[2], left[2]), (last, top[3], left[3])) & domain
                if min(kept.shape) > 0:
                    yield seen, kept


def _along(extent: int, window: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield start and stop of windows along one axis, and of what is kept of each."""
    done, start = 0, 0
    while done < extent:
        start = min(start, max(0, extent - window))
        stop = min(start + window, extent)
        until = extent if stop == extent else stop - overlap // 2
        yield start, stop, done, until
        done, start = until, start + window - overlap
