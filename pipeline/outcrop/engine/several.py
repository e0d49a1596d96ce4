"""`predict_all`: a network over several surveys."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import xarray as xr
from torch import nn

from ..arrays import open_dataset
from ..errors import ArgumentError, OutcropError, OutputExistsError
from ..locks import check_untaken
from ..planner import parse_bytes
from ..progress import ProgressBar
from ..storage import Options, Place, Remote, place
from ..targets import PathLike, check_apart, check_free, is_complete, is_unfinished
from .evaluation import Evaluation
from .labelled import Volume, frame
from .planning import captured, check_plan
from .prediction import identity, predict, prepared
from .statistics import all_statistics
from .variables import check_outputs

Paths = PathLike | Sequence[PathLike]


def predict_all(
    model: nn.Module, surveys: Iterable[Volume], paths: Paths, **options: Any
) -> list[xr.Dataset]:
    """Evaluate a network over several surveys, each as `predict` does.

    With a client the surveys share its workers: where the tiles of one do not keep all of them
    busy, those of the next follow. Interrupted, the same call goes on where it stopped; outputs
    that are whole stay as they are, or are predicted anew with `overwrite`.

    Parameters
    ----------
    model : torch.nn.Module
    surveys : iterable of xarray.DataArray, xarray.Dataset or path
    paths : path-like or sequence of path-like
        A Zarr to write for each; or a folder, where each gets the name of the survey's path, or
        its number.
    **options
        For `predict`. A plan would be for one shape alone.

    Returns
    -------
    list of xarray.Dataset

    Raises
    ------
    ArgumentError
        If there is not one path for each survey, or two are the same, or `surveys` is a single one.
    OutputExistsError
        If a path holds something else than what would be written.
    OutcropError
        As `predict` does, with the survey's path or number; with a client once those before it
        are whole.
    """
    if isinstance(surveys, (str, os.PathLike, Remote, xr.Dataset, xr.DataArray)):
        raise ArgumentError("surveys: is a single one; pass a list of them, or use predict")
    surveys, stores = list(surveys), options.get("storage_options")
    names = [_name(survey, i) for i, survey in enumerate(surveys)]
    if len(names) == 1:  # of which there is nothing to tell apart
        names = [""]
    targets = _targets(surveys, paths, stores)
    if options.pop("progress", False):
        options["listeners"] = [*options.get("listeners", ()), ProgressBar()]
    defaults = {k: v for k, v in (predict.__kwdefaults__ or {}).items() if k != "progress"}
    how = {**defaults, **options}
    client, overwrite = how["client"], how["overwrite"]
    for i, (survey, path) in enumerate(zip(surveys, targets, strict=True)):
        with _naming(names[i]):  # before hours go into the others
            framed = frame(model, survey, how["direction"], stores, stacked=True)
            check_outputs(framed, how["threshold"])
        for target in targets:
            check_apart(survey, target, stores)
        if not is_complete(path):
            check_free(path, overwrite, stores)
    todo = []
    for i, (survey, path) in enumerate(zip(surveys, targets, strict=True)):
        if overwrite or not is_complete(path):
            todo.append((i, survey, path))
        else:
            _check_same(model, survey, path, how)
    _check_plans(model, todo, names, how)
    with contextlib.ExitStack() as stack:

        def evaluations() -> Iterator[Evaluation]:
            under_way: list[tuple[Evaluation, contextlib.ExitStack]] = []
            for i, survey, path in todo:
                for done in [each for each in under_way if each[0].is_whole]:
                    done[1].close()
                    under_way.remove(done)
                context = stack.enter_context(contextlib.ExitStack())
                with _naming(names[i]):
                    evaluation = context.enter_context(prepared(model, survey, path, **how))
                under_way.append((evaluation, context))
                yield evaluation

        if client is None:
            for evaluation in evaluations():
                named = _naming(str(evaluation.output.path))
                with named if len(todo) > 1 else contextlib.nullcontext():
                    evaluation.run()
        else:
            from .dask_executor import run_dask

            run_dask(client, evaluations(), several=len(todo) > 1)
    return [open_dataset(path) for path in targets]


def _check_plans(
    model: nn.Module,
    todo: Sequence[tuple[int, Volume, Place]],
    names: Sequence[str],
    how: Mapping[str, Any],
) -> None:
    """Raise if there is no plan for a survey, or another process writes its output.

    Not of the first, for which that is found at once.
    """
    planned = set()
    for k, (i, survey, path) in enumerate(todo):
        with _naming(names[i]):
            framed = frame(model, survey, how["direction"], how["storage_options"], stacked=True)
            shape = framed.grid, framed.domain, tuple(framed.stacked.values())
            if k and shape not in planned:
                check_plan(model, survey, path, how)
            planned.add(shape)
            if k:
                check_untaken(path)


def _targets(surveys: Sequence[Volume], paths: Paths, options: Options | None) -> list[Place]:
    named = (str, os.PathLike, Remote)
    if isinstance(paths, named):
        folder = place(paths, options)
        if is_complete(folder) or is_unfinished(folder):
            raise OutputExistsError(f"{folder}: is a dataset itself; name a folder for all outputs")
        targets: list[Place] = [
            folder / (_own_name(s) if isinstance(s, named) else f"{i}.zarr")
            for i, s in enumerate(surveys)
        ]
        for target in targets:
            if (count := targets.count(target)) > 1:
                raise ArgumentError(
                    f"{target}: {count} of the surveys would be predicted into it; rename them, or "
                    "predict them one at a time"
                )
    else:
        targets = [place(path, options) for path in paths]
    if len(targets) != len(surveys) or len(set(targets)) != len(targets):
        raise ArgumentError(
            f"paths: {len(set(targets))} different ones for {len(surveys)} surveys; give one for "
            "each"
        )
    return targets


def _own_name(survey: PathLike) -> str:
    """Last part of its path, of "." too."""
    where = place(survey)
    return where.name if isinstance(where, Remote) else os.path.basename(os.path.abspath(where))


def _name(survey: Volume, i: int) -> str:
    return str(survey) if isinstance(survey, (str, os.PathLike)) else f"survey {i}"


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say which of the surveys or outputs an error is about."""
    try:
        yield
    except OutcropError as error:
        if str(error).startswith(name):
            raise
        raise type(error)(f"{name}: {error}") from error


def _check_same(model: nn.Module, survey: Volume, path: Place, how: dict[str, Any]) -> None:
    """Raise unless the Zarr at a path is the prediction that is asked for."""
    framed = frame(model, survey, how["direction"], how["storage_options"], stacked=True)
    graph, _ = captured(model, framed)
    plan = how["plan"]
    precision = plan.dtype if plan else how["precision"]
    compressed = plan.compressed if plan else how["storage_compression"]
    found = open_dataset(path).attrs
    fingerprint = str(found.get("input_sha256"))
    wanted: dict[str, str | None] = {
        **identity(model, framed, graph, fingerprint, precision, how["threshold"], compressed),
        "views": None,  # of which none are merged
        "sliding_window": None,
    }
    other = sorted(name for name, value in wanted.items() if found.get(name) != value)
    memory = plan.memory if plan else parse_bytes(how["memory"])
    # Last, since all samples are read for it.
    if not other and all_statistics(framed, how["client"], memory)[2] != fingerprint:
        other = ["input_sha256"]
    if other:
        what = f"{', '.join(other)} differ"
        if "covers" in found and "covers" in other:  # then hashes differ for that alone
            what = f"of {found['covers']}"
        raise OutputExistsError(
            f"{path}: already holds another prediction ({what}); remove it, "
            "choose another path or pass overwrite=True (--overwrite)"
        )
