"""Predictions of one survey seen in several ways, merged; and refined again and again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import dask
import dask.array
import numpy as np
import xarray as xr
import zarr
from torch import nn
from zarr.codecs import ZstdCodec

from ..arrays import dask_threads, open_dataset
from ..arrays import encoding as encoded
from ..errors import ArgumentError
from ..graph import Graph
from ..models.card import Card
from ..models.weights import digest
from ..output import Output
from ..patience import patiently
from ..planner import parse_bytes
from ..storage import Options, Place, goes_on, naming_refusal, place
from ..survey.reading import loaded
from ..targets import PathLike, check_apart, check_free
from .labelled import Framed, Volume, frame
from .planning import captured, check_plan
from .prediction import computed_by, identity, predict
from .statistics import all_statistics
from .steps import is_kept, steps, told
from .variables import check_outputs, mask_of

Turn = Callable[[xr.Dataset], xr.Dataset]

_EDGE = 128  # of the objects of a merged prediction
_COPIES = 3  # of a block of each view: two that are interpolated between, and what comes of it


@dataclass(frozen=True)
class View:
    """One way to see a survey.

    Attributes
    ----------
    name : str
    turn : callable
        From the survey to what the network sees.
    back : callable
        From its prediction to one on the survey's own grid.
    options : dict
        For `predict`.
    """

    name: str
    turn: Turn
    back: Turn
    options: dict[str, Any] = field(default_factory=dict)


def predict_views(
    model: nn.Module,
    data: Volume,
    path: PathLike,
    *,
    angles: bool = False,
    resolutions: bool = False,
    directions: bool = False,
    merge: Literal["max", "mean"] = "max",
    threshold: float | None = None,
    overwrite: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Evaluate a network over several views of a survey, and merge what it predicts.

    One view after the other is predicted, each exactly and within the budget, beside the output;
    the merge goes block by block. An interrupted call goes on where it stopped.

    Parameters
    ----------
    model, data, path
        As for `predict`.
    angles : bool
        The survey turned by 90, 180 and 270 degrees about the time axis, beside as it is.
    resolutions : bool
        Every second inline, every second crossline and every second sample, beside all of them;
        linear interpolation brings each back to the survey's own grid.
    directions : bool
        Of a network of sections: inlines and crosslines.
    merge : {"max", "mean"}
        Of all views, at every voxel.
    threshold : float, optional
        As for `predict`, of what is merged.
    overwrite : bool
        Replace what lies at `path`.
    **options
        For `predict`.

    Returns
    -------
    xarray.Dataset
        As `predict` returns it.

    Raises
    ------
    ArgumentError
        If no view beside the survey as it is was asked for, `merge` is unknown, or the network
        takes or predicts angles or normals, which another view sees differently, or predicts
        numbers of classes.
    OutcropError
        As `predict` does.
    """
    card = getattr(model, "card", None)
    if merge not in ("max", "mean"):
        raise ArgumentError(f"merge {merge!r}: choose 'max' or 'mean'")
    if (
        card is None
        or any(i.directed for i in card.inputs)
        or any(o is not None and o.units == "degree" for o in card.outputs)
    ):
        raise ArgumentError(
            "views: only of networks with a card whose inputs and outputs are the same seen from "
            "any side"
        )
    views = _views(angles, resolutions, directions and card.sections)
    if len(views) == 1:
        raise ArgumentError("views: choose angles, resolutions or (of sections) directions")
    stores = options.get("storage_options")
    check_apart(data, place(path, stores), stores)
    target = check_free(path, overwrite, stores)
    survey = _dataset(data, options.get("storage_options"))
    framed = frame(model, survey, options.get("direction"))
    check_outputs(framed, threshold)
    graph, _ = captured(model, framed)
    if any("int" in (graph.kind(name) or "") for name in graph.outputs):
        raise ArgumentError(
            "views: the network returns numbers of classes, of which there is no mean and none is "
            "the largest; return probabilities of the classes"
        )
    planned = set()  # before all samples are read, and hours go into the first view
    for view in views:
        how, seen_so = {**options, **view.options}, view.turn(survey)
        if (shape := _shape(frame(model, seen_so, how.get("direction")))) not in planned:
            check_plan(model, seen_so, target, how)
        planned.add(shape)
    record = {
        **_identity(model, framed, graph, threshold, options),
        "views": [v.name for v in views],
        "merge": merge,
    }
    with (
        steps(target, record, record, overwrite) as folder,
        told(target, framed.volume.size, record, options.get("listeners", ())),
    ):
        seen = []
        for view in views:
            part = folder / f"{view.name}.zarr"
            if not is_kept(part, overwrite):
                how = {**options, **view.options, "overwrite": overwrite}
                predict(model, view.turn(survey), part, **how)
            seen.append(view.back(open_dataset(part)))
        memory = parse_bytes(options.get("memory", "2GB"))
        _merge(seen, target, merge, threshold, record, overwrite, memory)
    return open_dataset(target)


def refine(
    infer: nn.Module,
    refiner: nn.Module,
    data: Volume,
    path: PathLike,
    *,
    iterations: int = 1,
    threshold: float | None = None,
    overwrite: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Infer several attributes from a survey, then refine them again and again.

    Parameters
    ----------
    infer, refiner : torch.nn.Module
        From `outcrop.models.load`: mtl-infer-3d and mtl-refine-3d, or the two of 2-D.
    data, path
        As for `predict`.
    iterations : int
        How often what was predicted goes through `refiner`.
    threshold : float, optional
        As for `predict`, of the last iteration.
    overwrite : bool
        Replace what lies at `path`.
    **options
        For `predict`.

    Returns
    -------
    xarray.Dataset
        Of the last iteration.

    Raises
    ------
    ArgumentError
        If `iterations` is negative, or a network does not predict all that the next one takes.
    OutcropError
        As `predict` does.
    """
    if iterations < 0:
        raise ArgumentError(f"iterations {iterations}: choose 0 or more")
    stores = options.get("storage_options")
    check_apart(data, place(path, stores), stores)
    target = check_free(path, overwrite, stores)
    last = {"threshold": threshold, "overwrite": overwrite, **options}
    if not iterations:
        return predict(infer, data, target, **last)
    takes: Card = refiner.card  # type: ignore[assignment]
    for network in (infer, refiner)[:iterations]:
        gives: Card = network.card  # type: ignore[assignment]
        names = {o.name for o in gives.outputs if o is not None}
        missing = [i.name for i in takes.inputs if i.name not in names]
        if missing:
            raise ArgumentError(
                f"refinement takes {', '.join(missing)}, which {gives.name} as it was loaded does "
                "not predict; load it without tasks (--tasks)"
            )
    direction = options.get("direction")
    framed = frame(infer, data, direction, options.get("storage_options"))
    check_outputs(framed, threshold)
    graph, _ = captured(infer, framed)
    # Before all samples are read, and hours go into what is refined, of which the rest is known.
    inferred = xr.Dataset({each.name: framed.volume for each in takes.inputs if each.name})
    for network, volumes in ((infer, data), (refiner, inferred)):
        check_plan(network, volumes, target, options)
    record = {
        **_identity(infer, framed, graph, None, options),
        "refiner_sha256": digest(refiner),
    }
    last_by = {"weights_sha256": record["refiner_sha256"]}
    with steps(target, record, last_by, overwrite) as folder:
        before: Volume = data
        for i in range(iterations):
            part = folder / f"{i}.zarr"
            if not is_kept(part, overwrite):
                predict(refiner if i else infer, before, part, overwrite=overwrite, **options)
            before = open_dataset(part, chunks={})
        predict(refiner, before, target, **last)
    return open_dataset(target)


def _identity(
    model: nn.Module,
    framed: Framed,
    graph: Graph,
    threshold: float | None,
    options: Mapping[str, Any],
) -> dict[str, str]:
    """As `identity`; samples are read where they will be predicted."""
    client = options.get("client")
    if client is not None:
        from .crew import check_client

        check_client(client)
    memory = parse_bytes(options.get("memory", "2GB"))
    fingerprint = all_statistics(framed, client, memory)[2]
    precision, compressed = (options.get(k) for k in ("precision", "storage_compression"))
    return {
        **identity(
            model, framed, graph, fingerprint, precision or "float32", threshold, bool(compressed)
        ),
        **computed_by(options.get("device", "cpu"), options.get("compile", False)),
    }


class _Patient:
    """An array whose parts are written at a further attempt where the store refuses one."""

    def __init__(self, array: zarr.Array) -> None:
        self.array = array

    def __setitem__(self, index: Any, values: np.ndarray) -> None:
        patiently(partial(self.array.__setitem__, index, values))


def _dataset(data: Volume, storage_options: Options | None) -> xr.Dataset:
    if isinstance(data, (str, os.PathLike)):
        from ..survey import open as open_survey

        return open_survey(data, storage_options=storage_options)
    return data.to_dataset(name="amplitude") if isinstance(data, xr.DataArray) else data


def _views(angles: bool, resolutions: bool, directions: bool) -> list[View]:
    views = [View("plain", _same, _same)]
    if directions:
        views = [View(d, _same, _same, {"direction": d}) for d in ("inline", "crossline")]
    if angles:
        views += [
            View("turned-90", *_turned(("crossline",), swap=True)),
            View("turned-180", *_turned(("inline", "crossline"), swap=False)),
            View("turned-270", *_turned(("inline",), swap=True)),
        ]
    if resolutions:
        views += [View(f"half-{dim}", *_halved(dim)) for dim in ("inline", "crossline", "z")]
    return views


def _shape(framed: Framed) -> tuple[Any, ...]:
    """What a plan depends on, beside the network and its options."""
    return framed.grid, framed.domain, framed.apart


def _same(dataset: xr.Dataset) -> xr.Dataset:
    return dataset


def _turned(flipped: tuple[str, ...], swap: bool) -> tuple[Turn, Turn]:
    """Return what turns a survey about the time axis, and what turns it back."""
    names = {"inline": "crossline", "crossline": "inline"} if swap else {}
    flip = dict.fromkeys(flipped, slice(None, None, -1))

    def turn(dataset: xr.Dataset) -> xr.Dataset:
        return dataset.isel(flip).rename(names)

    def back(dataset: xr.Dataset) -> xr.Dataset:
        return dataset.rename(names).isel(flip)

    return turn, back


def _halved(dim: str) -> tuple[Turn, Turn]:
    """Return what takes every second sample, and what interpolates between them."""
    extents: list[xr.DataArray] = []

    def along(dataset: xr.Dataset) -> str:
        return dim if dim != "z" else ("twt" if "twt" in dataset.dims else "depth")

    def turn(dataset: xr.Dataset) -> xr.Dataset:
        extents[:] = [dataset[along(dataset)]]
        return dataset.isel({along(dataset): slice(None, None, 2)})

    def back(dataset: xr.Dataset) -> xr.Dataset:
        axis, last = along(dataset), dataset.sizes[along(dataset)] - 1
        every = np.arange(extents[0].size)
        left = dataset.isel({axis: every // 2}).assign_coords({axis: extents[0]})
        right = dataset.isel({axis: np.minimum((every + 1) // 2, last)})
        right = right.assign_coords({axis: extents[0]})
        return ((left + right) / 2.0).astype(np.float32)

    return turn, back


def _merge(
    seen: list[xr.Dataset],
    path: Place,
    merge: str,
    threshold: float | None,
    record: Mapping[str, Any],
    overwrite: bool,
    memory: int,
) -> None:
    """Write the largest or the mean of all views, as many blocks at once as the memory holds."""
    first = seen[0]
    variables, encoding, merged = {}, {}, {}
    for name, array in first.data_vars.items():
        dims = array.dims
        each = [dataset[name].transpose(*dims).data for dataset in seen]
        chunks = tuple(min(_EDGE, n) for n in array.shape)
        # Not by the workers of a client, which Dask would take unasked.
        each = [dask.array.asarray(v).rechunk(chunks, method="tasks") for v in each]
        stacked = dask.array.stack(each)
        value = stacked.max(axis=0) if merge == "max" else stacked.mean(axis=0)
        merged[str(name)] = value.astype(np.float32)
        zeros = dask.array.zeros(array.shape, dtype=np.float32, chunks=chunks)
        variables[str(name)] = (dims, zeros, array.attrs)
        encoding[str(name)] = {"chunks": chunks, **encoded(np.float32, ZstdCodec())}
        if threshold is not None and str(name).endswith("_probability"):
            mask, attrs = mask_of(str(name), array.attrs["long_name"], threshold)
            merged[mask] = (value >= threshold).astype(np.uint8)
            variables[mask] = (dims, zeros.astype(np.uint8), attrs)
            encoding[mask] = {"chunks": chunks, **encoded(np.uint8, ZstdCodec())}
    coords = {k: (v.dims, loaded(v), v.attrs) for k, v in first.coords.items()}
    encoding |= {str(k): encoded(v.dtype, ZstdCodec()) for k, v in first.coords.items()}
    attrs = {**first.attrs, "views": ", ".join(record["views"]), "merged_by": merge}
    if threshold is not None:
        attrs["threshold"] = record["threshold"]
    if "crossline" in record["views"]:
        attrs["direction"] = "both"
    template = xr.Dataset(variables, coords=coords, attrs=attrs)
    with (
        naming_refusal(path, goes_on()),
        Output.begin(path, template, encoding, record, overwrite) as output,
    ):
        targets = [_Patient(output.array(name)) for name in merged]
        taken = _COPIES * (len(seen) + 1) * 4 * _EDGE**3
        threads = max(1, min(os.cpu_count() or 1, memory // taken))
        with dask_threads(threads) as pool:
            dask.array.store(
                list(merged.values()), targets, lock=False, scheduler="threads", pool=pool
            )
        output.commit()
