"""`predict`: a network over a labelled survey, into a labelled Zarr."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import xarray as xr
from torch import nn

from .. import __version__
from ..arrays import covered, open_dataset
from ..errors import ArgumentError, ResumeError
from ..events import Listener
from ..graph import Graph
from ..locks import check_untaken
from ..models.weights import digest
from ..output import Output
from ..planner import Plan
from ..planner.planner import StorageMode
from ..progress import ProgressBar
from ..storage import (
    Options,
    Place,
    Remote,
    check_takes_files,
    goes_on,
    naming_refusal,
    place,
    remove,
)
from ..targets import PathLike, begun_with, check_apart, check_free, check_goes_on, is_unfinished
from .disk import check_space, warn_of_space
from .effect import effect_of_compression
from .evaluation import Evaluation
from .labelled import Framed, Volume, frame
from .places import Places
from .planning import (
    PLAN,
    begun_plan,
    captured,
    check_shared,
    other_options,
    plan_for,
    wanted_of,
)
from .statistics import all_statistics
from .variables import check_outputs, output_cards, template
from .whole import find_device

if TYPE_CHECKING:
    from distributed import Client


def predict(
    model: nn.Module,
    data: Volume,
    path: PathLike,
    *,
    memory: str | int = "2GB",
    host_memory: str | int | None = None,
    storage_mode: StorageMode = "auto",
    storage_path: PathLike | None = None,
    storage_compression: bool = False,
    precision: str = "float32",
    device: str = "cpu",
    tile: Sequence[int] | None = None,
    plan: Plan | None = None,
    compile: bool = False,
    direction: str | None = None,
    threshold: float | None = None,
    nonfinite: Literal["error", "warn"] = "error",
    client: Client | None = None,
    storage_options: Options | None = None,
    overwrite: bool = False,
    progress: bool = False,
    listeners: Sequence[Listener] = (),
) -> xr.Dataset:
    """Evaluate a network over a whole survey, exactly, into a labelled Zarr.

    The volume is normalised as the model's `card` says, by statistics of all its live traces;
    where there is no trace the network sees the nearest one, and their mean where that is more
    than 8 traces away, where the prediction is 0. Just inputs that are blank by the card, such as
    prompts, are 0 where there is no trace. No trace is also one that is zero throughout, unless
    all samples have one sign: there `live` is false in the result. To the network's stride the
    volume is padded by its mirror image, and the prediction is cropped. An interrupted call leaves
    nothing that opens as a dataset; the same call again goes on where it stopped.

    Parameters
    ----------
    model : torch.nn.Module
        From `outcrop.models.load`, or any other in eval mode. One without a `card` gets the
        amplitudes as they are, axes in the order (time, crossline, inline).
    data : xarray.DataArray, xarray.Dataset or path
        Volumes over inline, crossline and twt (ms) or depth (m): of a dataset the variables that
        the card names, which is `amplitude` for most networks. Where there are further
        dimensions (offset, angle, vintage), each volume along them is predicted by itself, with
        statistics of its own.
    path : path-like
        Zarr to write, here or in an object store ("s3://bucket/key").
    memory : str or int
        What one process (each worker, with a client) may take on the device to evaluate tiles.
    host_memory : str or int, optional
        Host memory that tensors between stages may take where the device is a GPU.
    storage_mode : {"auto", "device", "cpu", "disk", "none"}
        Where tensors between stages live. With a client: "disk" or "none", of which "auto" takes
        what is predicted to be faster with so many workers and what was measured of the store.
    storage_path : path-like, optional
        Folder for "disk", or place in an object store, reachable from every worker; inside `path`
        unless given. Emptied of what was put there when the run is complete.
    storage_compression : bool
        Keep tensors between stages in 8 bits a value: lossy, and recorded in the result, with what
        it does to the middle of the volume. Not with a client, nor in an object store.
    precision : {"float32", "bfloat16", "float16", "float64"}
        Of the arithmetic; the result is float32.
    device : str
        What computes: "cpu" or "cuda".
    tile : sequence of int, optional
        Shape of a tile, in the network's order of axes, instead of the planner's choice.
    plan : Plan, optional
        From `outcrop.plan`, instead of all that concerns memory, storage, precision, device and
        tiles.
    compile : bool
        Compile by `torch.compile` what many tiles have in common: takes seconds to a minute, needs
        a C++ compiler on a CPU, and its libraries take some 100 MB that no plan counts. The result
        differs by rounding alone.
    direction : {"inline", "crossline"}, optional
        Of a network of sections: which way they run; "inline" unless given, or the card's axes are
        of crosslines.
    threshold : float, optional
        Write, beside each probability, where it reaches this: 1 there, 0 elsewhere, as uint8.
    nonfinite : {"error", "warn"}
        What to do where the prediction is NaN or infinite: raise, naming the place, or write it as
        it is and warn.
    client : distributed.Client, optional
        Evaluate on its workers; in this process unless given.
    storage_options : mapping, optional
        For fsspec, where `data`, `path` or `storage_path` is in an object store: endpoint,
        credentials, ... What the environment says unless given. Written nowhere.
    overwrite : bool
        Replace what lies at `path`; an unfinished prediction of the very same is gone on with.
    progress : bool
        Show a progress bar.
    listeners : sequence of callable
        Told of what happens: see `outcrop.events`.

    Returns
    -------
    xarray.Dataset
        Opened from `path`: a float32 variable per output over the survey's dimensions, with its
        coordinates, units, and the provenance in the attributes.

    Raises
    ------
    SurveyError
        If `data` is not a 3-D survey, or has samples that are not finite, or holds several volumes
        and the network's output is brought to 0…1 by the range of each.
    NonFiniteError
        If the prediction is NaN or infinite somewhere.
    OutputExistsError
        If `path` is taken, or another process is writing it.
    ResumeError
        If `path` holds an unfinished prediction of another model, survey, plan or storage_path,
        or what it stored is gone.
    OutcropError
        If the disk has less left than tensors between stages take.
    UnsupportedOperatorError
        If the network has an operator without a rule.
    MemoryBudgetError
        If no plan fits; the message names the smallest budget that would.
    ArgumentError
        If `path` is the survey that is read, `model` is no network, `client` is no Dask client or
        is closed, or storage_mode, precision, device, tile, plan or threshold does not suit.
    """
    with prepared(
        model,
        data,
        path,
        memory=memory,
        host_memory=host_memory,
        storage_mode=storage_mode,
        storage_path=storage_path,
        storage_compression=storage_compression,
        precision=precision,
        device=device,
        tile=tile,
        plan=plan,
        compile=compile,
        direction=direction,
        threshold=threshold,
        nonfinite=nonfinite,
        client=client,
        storage_options=storage_options,
        overwrite=overwrite,
        listeners=[*listeners, ProgressBar()] if progress else listeners,
    ) as evaluation:
        if client is None:
            evaluation.run()
        else:
            from .dask_executor import run_dask

            run_dask(client, [evaluation])
    return open_dataset(place(path, storage_options))


@contextlib.contextmanager
def prepared(
    model: nn.Module,
    data: Volume,
    path: PathLike,
    *,
    memory: str | int,
    host_memory: str | int | None,
    storage_mode: StorageMode,
    storage_path: PathLike | None,
    storage_compression: bool,
    precision: str,
    device: str,
    tile: Sequence[int] | None,
    plan: Plan | None,
    compile: bool,
    direction: str | None,
    threshold: float | None,
    nonfinite: Literal["error", "warn"],
    client: Client | None,
    storage_options: Options | None,
    overwrite: bool,
    listeners: Sequence[Listener],
) -> Iterator[Evaluation]:
    """Check everything, plan, and begin the output, or go on with it."""
    if nonfinite not in ("error", "warn"):
        raise ArgumentError(f"nonfinite={nonfinite!r}: take 'error' or 'warn'")
    if client is not None:
        from .crew import check_client, check_workers

        check_client(client)
    check_apart(data, place(path, storage_options), storage_options)
    target = check_free(path, overwrite, storage_options)
    check_untaken(target)  # before all samples are read for their statistics
    if client is not None:
        # Workers have current folders of their own.
        target = target.absolute()
        if isinstance(data, (str, os.PathLike)):
            data = str(place(data, storage_options).absolute())
    framed = frame(model, data, direction, storage_options, stacked=True)
    check_outputs(framed, threshold)
    graph, state = captured(model, framed)
    cards = output_cards(graph, framed.card)
    wanted = wanted_of(
        memory, host_memory, storage_mode, storage_compression, precision, device, tile
    )
    wanted["cluster"] = client is not None
    made = plan is None
    if plan is None:
        begun = begun_plan(target, graph, wanted)
        store = target.parent if storage_path is None else place(storage_path, storage_options)
        store = store.absolute()
        plan = begun or plan_for(graph, framed, wanted, client, store)
    elif plan.graph != graph.digest():
        raise ArgumentError("plan: made for another network or another shape; make it again")
    if client is not None:
        check_shared(plan.places.values(), plan.compressed)
    scratch = target if storage_path is None else place(storage_path, storage_options).absolute()
    if storage_path is not None and isinstance(scratch, Path):
        check_takes_files(f"storage_path {scratch}", scratch)
    if plan.compressed and isinstance(scratch, Remote):
        raise ArgumentError(
            "storage_compression: not in an object store; pass a storage_path on a disk"
        )
    if isinstance(scratch, Path) and not is_unfinished(target):
        check_space(scratch, plan.disk_bytes)
    if client is None:
        where = find_device(plan.device)
    else:
        # Before the statistics: a worker that is short of memory would never begin with them.
        in_memory = (v.nbytes for v in framed.volumes.values() if v.variable._in_memory)
        check_workers(client, plan, sum(in_memory))
        where = torch.device(plan.device)

    fingerprint = str(begun_with(target).get("input_sha256"))  # until it is known
    provenance = {
        **identity(model, framed, graph, fingerprint, plan.dtype, threshold, plan.compressed),
        "plan_sha256": plan.digest(),
        **computed_by(plan.device, compile),
    }
    begun_by = dict(provenance)
    if not isinstance(scratch, Remote):
        # On disks they store tensors in other forms; those of none anyone goes on with.
        apart = client is not None and "disk" in plan.places.values()
        begun_by["executor"] = "a cluster" if apart else "this process"
    if storage_path is not None and plan.places:
        begun_by["storage_path"] = str(scratch)
    if not overwrite:
        with _naming_options(target, wanted):
            check_goes_on(target, begun_by)
    framed, found, fingerprint = all_statistics(framed, client, plan.memory)
    provenance["input_sha256"] = begun_by["input_sha256"] = fingerprint
    written = (
        (stage.tile, cards[name])
        for stage in plan.stages
        for name in stage.outputs
        if name in cards
    )
    empty, encoding = template(framed, written, threshold)
    if isinstance(target, Path) and not is_unfinished(target):
        warn_of_space(target, empty.nbytes)
    empty.attrs.update(
        provenance, title=f"{framed.card.task or 'prediction'} by {provenance['model']}"
    )
    for name in found[0]:
        for attribute, values in (
            ("mean", [each[name].mean for each in found]),
            ("standard_deviation", [each[name].deviation for each in found]),
        ):
            empty.attrs[f"{name}_{attribute}"] = values if framed.stacked else values[0]
    if plan.compressed and (overwrite or not is_unfinished(target)):
        places = Places(graph, plan, framed, found, cards, target, target, where)
        empty.attrs["storage_compression_effect"] = effect_of_compression(model, places)
    notes = {PLAN: json.dumps({"wanted": wanted, "plan": plan.to_dict()})} if made else {}
    before = begun_with(target)
    with (
        naming_refusal(target, goes_on()),
        _begin(wanted, target, empty, encoding, begun_by, overwrite, notes, True) as output,
    ):
        folder = output.aside / "stored"
        if storage_path is not None:  # which several predictions may share
            folder = _stored(scratch, begun_by, target)
        if not output.resumed:
            if elsewhere := before.get("storage_path"):
                remove(_stored(place(elsewhere, storage_options), before, target))
            if storage_path is not None:
                remove(folder)
        places = Places(
            graph,
            plan,
            framed,
            found,
            cards,
            output.path,
            folder,
            where,
            threshold,
            shared=client is not None,
            nonfinite=nonfinite,
            fence=output.fence,
        )
        evaluation = Evaluation(places, state, output, listeners, empty.attrs, compile, overwrite)
        try:
            yield evaluation
        except BaseException as error:
            if not evaluation.is_whole:
                evaluation.fail(error)
            raise


def _begin(wanted: dict[str, Any], target: Place, *arguments: Any) -> Output:
    """Begin an output; an error names the options that were others before."""
    with _naming_options(target, wanted):
        return Output.begin(target, *arguments)


@contextlib.contextmanager
def _naming_options(target: Place, wanted: dict[str, Any]) -> Iterator[None]:
    """Have a `ResumeError` name the options that were others before."""
    try:
        yield
    except ResumeError as error:
        if other := other_options(target, wanted):
            raise ResumeError(f"{error}; its options were {other}") from None
        raise


def _stored(scratch: Place, begun_by: Mapping[str, Any], target: Place) -> Place:
    """Folder for what one run stores where others do, too."""
    facts = sorted((k, v) for k, v in begun_by.items() if k != "executor")
    alone = repr((facts, str(target.absolute())))
    return scratch / hashlib.sha256(alone.encode()).hexdigest()[:16]


def computed_by(device: str, compile: bool) -> dict[str, str]:
    """Return what may change how values are rounded, and makes no other prediction."""
    return {"device": device, "compile": "yes" if compile else "no"}


def identity(
    model: nn.Module,
    framed: Framed,
    graph: Graph,
    fingerprint: str,
    precision: str,
    threshold: float | None,
    compressed: bool = False,
) -> dict[str, str]:
    """Return what makes a prediction another one: network, input, precision, what is written."""
    card = framed.card
    # Two networks with the same weights may differ in their operators, or in what goes in and out.
    network = repr((graph.digest(), card.axes, card.inputs, card.outputs, card.activation))
    facts = {
        "model": card.name or type(model).__name__,
        "covers": covered(framed.volume),
        "network_sha256": hashlib.sha256(network.encode()).hexdigest(),
        "weights_sha256": digest(model),
        "precision": precision,
        "storage_compression": "8 bits a value" if compressed else "none",
        "input_sha256": fingerprint,
        "normalization": "; ".join(f"{i.name}: {i.normalization}" for i in card.inputs if i.name),
        "outcrop_version": __version__,
        "torch_version": torch.__version__,
    }
    itself = f"{facts['model']} {facts['weights_sha256'][:12]}"
    facts["lineage"] = f"{framed.lineage} > {itself}" if framed.lineage else itself
    if card.sections:
        facts["direction"] = card.direction
    if threshold is not None:
        facts["threshold"] = repr(float(threshold))
    return facts
