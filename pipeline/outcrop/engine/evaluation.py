"""A plan carried out between a survey and an unfinished prediction."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dask
import dask.array
import torch
from dask.system import CPU_COUNT
from torch import Tensor

from ..arrays import dask_threads
from ..errors import ResumeError
from ..events import Begin, End, Event, Listener, Retry, Stage, Tile, Warn, Workers, tell
from ..output import Output
from ..patience import StorageRefused, patiently
from ..planner.rolling import overtaken
from ..storage import remove
from ..survey.reading import loaded
from .local import run_local
from .places import Places, Section
from .spent import Spent
from .whole import to_compute, to_dtype


@dataclass
class Evaluation:
    """A prediction under way: what is done, and what computes the rest.

    Attributes
    ----------
    places : Places
        Where tiles read and write.
    state : mapping
        Tensors of the network.
    output : Output
        Where tiles are noted.
    listeners : sequence of callable
        Told what happens.
    provenance : mapping
        Told to them.
    compile : bool
        Compile what many tiles have in common.
    anew : bool
        Evaluate again what is gone, rather than refuse to go on.
    is_whole : bool
        Whether the output is committed.
    """

    places: Places
    state: Mapping[str, Tensor]
    output: Output
    listeners: Sequence[Listener] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    compile: bool = False
    anew: bool = False
    is_whole: bool = False

    def weights_on(self, device: torch.device | str) -> dict[str, Tensor]:
        """Return the network's tensors, ready to compute with."""
        graph, dtype = self.places.graph, to_dtype(self.places.plan.dtype)
        return to_compute(graph, self.state, dtype, torch.device(device))

    def todo(self) -> dict[Section, set[tuple[int, int]]]:
        """For each volume or section with tiles to do, those (stage, tile) that are done."""
        places, plan = self.places, self.places.plan
        sections = [None] if places.sections is None else list(range(places.sections))
        total = sum(stage.count for stage in plan.stages)
        finished: dict[Section, set[tuple[int, int]]] = defaultdict(set)
        for first, i, n in map(_numbers, self.output.finished):
            if first < len(sections) and i < len(plan.stages) and n < plan.stages[i].count:
                finished[sections[first]].add((i, n))
        lost: dict[str, set[str]] = defaultdict(set)
        written = {name: places.written(name) for name in places.cards} if finished else {}
        for section, tiles in finished.items():
            if not places.kept and len(tiles) < total:
                tiles.clear()  # what lay in memory between stages is gone
            for path, keys in self._drop_lost(section, tiles, written).items():
                lost[path] |= keys
        if lost:
            self.output.forget(set().union(*lost.values()))
        self._tell_begin(total * len(sections), [i for t in finished.values() for i, _ in t])
        for path, keys in lost.items():
            message = f"{path}: what {len(keys)} tiles gave is gone; they are evaluated again"
            self.retry(message, len(keys))
            warnings.warn(message, stacklevel=2)
        return {s: finished[s] for s in sections if len(finished[s]) < total}

    def run(self) -> None:
        """Evaluate in this process every tile that is not done."""
        places = self.places
        weights, todo = self.weights_on(places.device), self.todo()
        self.note_workers(1)
        with self._hearing_warnings():
            for section, tiles in todo.items():
                run_local(
                    places.graph,
                    places.plan,
                    weights,
                    places.inputs(section),
                    partial(places.make, section=section),
                    tiles,
                    partial(self.on_tile, section, worker="this process"),
                    places.device,
                    self.compile,
                    self._before_stage,
                    partial(self.on_stage, section),
                    self.output.flush,
                )
        self.finish()

    def on_tile(self, section: Section, i: int, n: int, spent: Spent, worker: str) -> None:
        """Note that a tile is written."""
        self.output.finish(_key(section, i, n))
        where = {"volume": section or 0, "stage": i + 1, "tile": n, "worker": worker}
        self._tell(Tile, **where, **spent._asdict(), share=self._share(i))

    def _before_stage(self, i: int) -> None:
        plan = self.places.plan
        self.places.chunks.allow(max(plan.chunk_bytes, plan.stages[i].chunk_bytes))

    def on_stage(self, section: Section, i: int) -> None:
        """Note that all tiles of a stage are."""
        self._tell(Stage, volume=section or 0, stage=i + 1)

    def note_workers(self, count: int) -> None:
        """Note how many workers there are."""
        self._tell(Workers, workers=count)

    def retry(self, message: str, tiles: int = 0) -> None:
        """Note that something is done again."""
        self._tell(Retry, message=message, tiles=tiles)

    def warned(self, message: str, category: type[Warning]) -> None:
        """Note a warning that came with a tile."""
        self._tell(Retry if issubclass(category, StorageRefused) else Warn, message=message)

    def finish(self) -> None:
        """Make the output whole: every tile is written."""
        self.output.flush()
        remove(self.places.folder)
        patiently(self.bring_to_own_range)
        self.output.commit()
        self.is_whole = True
        self._tell(End)

    def fail(self, error: BaseException) -> None:
        """Note what stopped it."""
        self._tell(End, error=str(error) or type(error).__name__)

    def _tell(self, kind: type[Event], **facts: Any) -> None:
        tell(self.listeners, kind(output=str(self.output.path), **facts))

    def _share(self, i: int) -> float:
        """Of the whole work that a tile of stage `i` is."""
        plan, stage, volumes = (
            self.places.plan,
            self.places.plan.stages[i],
            self.places.sections or 1,
        )
        if not plan.operations:
            return 1 / sum(each.count for each in plan.stages) / volumes
        return stage.operations / plan.operations / stage.count / volumes

    def _tell_begin(self, tiles: int, finished: Sequence[int]) -> None:
        plan, done = self.places.plan, Counter(finished)
        stages = [
            {
                "writes": [*stage.outputs, *stage.reduces],
                "tiles": stage.count,
                "tile": list(stage.tile),
                "operations": stage.operations,
                "seconds": stage.seconds,
            }
            for stage in plan.stages
        ]
        self._tell(
            Begin,
            tiles=tiles,
            finished=len(finished),
            share=sum(self._share(i) * count for i, count in done.items()),
            voxels=self.places.framed.volume.size,
            volumes=self.places.sections or 1,
            peak_memory=plan.peak_memory,
            stages=stages,
            provenance=self.provenance,
        )

    @contextlib.contextmanager
    def _hearing_warnings(self) -> Iterator[None]:
        """Tell what is warned of in the block, beside warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", StorageRefused)
            show = warnings.showwarning

            def hear(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
                self.warned(str(message), category)
                show(message, category, *args, **kwargs)

            warnings.showwarning = hear
            yield

    def _drop_lost(
        self,
        section: Section,
        finished: set[tuple[int, int]],
        written: Mapping[str, Collection[str]],
    ) -> dict[str, set[str]]:
        """Drop tiles of which what others will read, or the output, is gone; keys by its path.

        From the last stage on, since a tile that is evaluated again reads what those before gave.

        Raises
        ------
        ResumeError
            If something is gone as a whole, as where a disk is missing, unless `anew`.
        """
        places, plan = self.places, self.places.plan
        lost: dict[str, set[str]] = defaultdict(set)
        done = [{n for k, n in finished if k == i} for i in range(len(plan.stages))]
        left = [stage.count - len(n) for stage, n in zip(plan.stages, done, strict=True)]

        def drop(i: int, path: str, gone: set[int]) -> None:
            done[i] -= gone
            finished.difference_update((i, n) for n in gone)
            if gone:
                lost[path] |= {_key(section, i, n) for n in gone}

        for i, stage in reversed(list(enumerate(plan.stages))):
            noted = frozenset(done[i])
            for name in (*stage.outputs, *stage.reduces):
                tiles = ((n, tile) for n, tile in enumerate(stage.tiles()) if n in noted)
                if name in written:
                    objects = ((n, places.object_of(stage, tile, section)) for n, tile in tiles)
                    drop(i, str(places.output), {n for n, o in objects if o not in written[name]})
                    continue
                readers = [k for k, later in enumerate(plan.stages) if name in later.inputs]
                wanted = any(len(done[k]) < plan.stages[k].count for k in readers)
                if not (noted and wanted and name in plan.places):
                    continue
                path = places.path(name, section)
                kept = any(left[k] for k in readers)  # not removed as all readers were done
                if kept and not self.anew and not path.exists():
                    raise ResumeError(
                        f"{path}: gone, though the unfinished prediction needs it; put it "
                        "back, or begin anew with overwrite (--overwrite)"
                    )
                drop(i, str(path), places.lost(name, section, tiles))
        if places.layers and (again := overtaken(plan, finished)):
            finished -= again
            lost[str(places.folder)] = {_key(section, i, n) for i, n in again}
        return lost

    def bring_to_own_range(self) -> None:
        """Label the outputs whose card asks for it, so that they read as 0…1.

        What is stored stays as it is: `scale_factor` and `add_offset`, which xarray applies when
        it reads, come from the smallest and the largest finite value of live traces. But where all
        traces are far away the smallest is stored, to be read as 0.
        """
        volume = self.places.framed.volume
        live = volume.coords.get("live")
        outputs = ((name, c) for name, cards in self.places.cards.items() for c in cards if c)
        for name, card in outputs:
            if not card.own_range:
                continue
            array = self.output.array(card.name)
            values = dask.array.from_zarr(array)
            mask = dask.array.isfinite(values)
            if live is not None:
                traces = [d for d in volume.dims if d in live.dims]
                there = loaded(live.transpose(*traces))
                mask &= there[tuple(slice(None) if d in traces else None for d in volume.dims)]
            ends = [
                dask.array.where(mask, values, float("inf")).min(),
                dask.array.where(mask, values, -float("inf")).max(),
            ]
            with dask_threads(CPU_COUNT) as pool:
                found = dask.compute(*ends, scheduler="threads", pool=pool)
            lowest, highest = map(float, found)
            if highest > lowest:
                array.attrs["scale_factor"] = 1.0 / (highest - lowest)
                array.attrs["add_offset"] = -lowest / (highest - lowest)
                for store, tile in self.places.tiles_of(name):
                    store.fill_far(tile, card.name, lowest)


def _key(section: Section, i: int, n: int) -> str:
    """Of a tile in the journal."""
    return f"{section or 0}:{i}:{n}"


def _numbers(key: str) -> tuple[int, int, int]:
    """What went into `_key`; of no tile where the line is damaged: it is evaluated again."""
    if re.fullmatch(r"\d+:\d+:\d+", key, re.ASCII) is None:
        return sys.maxsize, 0, 0
    first, i, n = map(int, key.split(":"))
    return first, i, n
