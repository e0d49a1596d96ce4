"""Where the tiles of a prediction read and write: the survey, tensors in between, the outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ..arrays import NOTES
from ..graph import RULES, Box, Graph, Reduce
from ..graph.boxes import tiles as cut
from ..graph.graph import dtype_of
from ..locks import Fence
from ..models.card import OutputCard
from ..models.normalization import Statistics
from ..planner import Plan, Stage
from ..storage import Place, Remote, files
from ..targets import aside_of
from .chunks import DecodedChunks
from .globals import GlobalStore
from .labelled import Framed
from .stores import Store
from .survey_stores import PredictionStore, SurveyStore
from .tiled_stores import file_bytes, make_store
from .variables import masks_of
from .whole import to_dtype
from .zarr_store import ZarrStore

# Of what a network takes one by one (sections, offsets, vintages): which; None where it takes all.
Section = int | None


@dataclass
class Places:
    """Makes the stores of a plan, in any process.

    Attributes
    ----------
    graph, plan
        Of the network.
    framed : Framed
        The survey on the network's grid.
    statistics : sequence of mapping
        For each of `framed.volumes_apart`, of the variables that go in.
    cards : mapping
        Of each output's channels.
    output : pathlib.Path or Remote
        Of the Zarr that is written.
    folder : pathlib.Path or Remote
        For what is stored between stages on disk, or in an object store.
    device : torch.device
        What computes.
    threshold : float, optional
        Of the masks that are written beside probabilities.
    shared : bool
        Whether several processes read and write.
    nonfinite : str
        What to do with NaN and infinite values.
    fence : Fence, optional
        Asked before a tile is written, where the process that writes may outlast its run.
    """

    graph: Graph
    plan: Plan
    framed: Framed
    statistics: Sequence[Mapping[str, Statistics]]
    cards: Mapping[str, tuple[OutputCard | None, ...]]
    output: Place
    folder: Place
    device: torch.device
    threshold: float | None = None
    shared: bool = False
    nonfinite: str = "error"
    fence: Fence | None = None

    @property
    def kept(self) -> bool:
        """Whether what lies between stages outlasts the process."""
        return set(self.plan.places.values()) <= {"disk", "global"}

    @property
    def layers(self) -> Mapping[str, int]:
        """Of tensors in files that are written over: how many layers are kept at once."""
        return {} if self.shared or isinstance(self.folder, Remote) else self.plan.layers

    @property
    def sections(self) -> int | None:
        """Number of volumes or sections, one by one; None where the network takes all in one."""
        apart = self.framed.apart
        return math.prod(self.framed.volume.sizes[d] for d in apart) if apart else None

    @cached_property
    def _writers(self) -> dict[str, Stage]:
        return {name: stage for stage in self.plan.stages for name in stage.outputs}

    @cached_property
    def chunks(self) -> DecodedChunks:
        """What is kept of the survey, for every volume and section."""
        return DecodedChunks(self.framed.volumes, self.plan.chunk_bytes)

    def path(self, name: str, section: Section = None) -> Place:
        """Where a tensor between stages lies on disk."""
        return self.folder / name if section is None else self.folder / str(section) / name

    def inputs(self, section: Section = None) -> dict[str, Store]:
        """Return the stores of what goes into the network."""
        cards, dtype = self.framed.card.inputs, to_dtype(self.plan.dtype)
        groups = [(card,) for card in cards] if self.framed.card.separate else [cards]
        statistics = self.statistics[self.framed.volume_of(section)]
        return {
            name: SurveyStore(self.framed, group, statistics, dtype, self.chunks, section)
            for name, group in zip(self.graph.inputs, groups, strict=True)
        }

    def tiles_of(self, name: str) -> Iterator[tuple[PredictionStore, Box]]:
        """Yield every tile of one of the outputs, and the store that it was written to."""
        stage = self._writers[name]
        for section in [None] if self.sections is None else range(self.sections):
            store = self.make(name, section)
            assert isinstance(store, PredictionStore)
            for tile in cut(stage.domain, stage.tile):
                yield store, tile

    def _dtype(self, name: str) -> torch.dtype:
        return dtype_of(self.graph.kind(name), to_dtype(self.plan.dtype))

    def written(self, name: str) -> set[str]:
        """Objects that are there, with their notes, in all arrays of one of the outputs."""
        store, notes = self.make(name), aside_of(self.output) / NOTES
        assert isinstance(store, PredictionStore)
        arrays = [path for path in (*store.paths, *store.masks) if path is not None]
        whole = [{k for k, n in files(path).items() if n} for path in arrays]
        noted = [{k for k, n in files(notes / path.name).items() if n} for path in arrays]
        return set.intersection(*whole, *noted) if arrays else set()

    def object_of(self, stage: Stage, tile: Box, section: Section) -> str:
        """Name of the object that a tile is in each array of the outputs."""
        start = tile.within(stage.domain).start
        numbers = {
            **self.framed.at(section),
            **{a: i // n for a, i, n in zip(self.framed.axes, start, stage.tile, strict=True)},
        }
        return "/".join(map(str, ("c", *(numbers[str(d)] for d in self.framed.volume.dims))))

    def lost(self, name: str, section: Section, tiles: Iterable[tuple[int, Box]]) -> set[int]:
        """Numbers of those tiles, of all that wrote to a tensor in files, whose part is gone."""
        path = self.path(name, section)
        if not path.exists():
            return {n for n, _ in tiles}
        if self.shared or isinstance(path, Remote) or self.plan.places[name] == "global":
            store = self.make(name, section)
            assert isinstance(store, (GlobalStore, ZarrStore))
            return store.lost(tiles)
        # Not by making it, which takes an existing file for one that is whole.
        writer, layout = self._writers[name], self.graph.layouts[name]
        size = file_bytes(
            layout.stored,
            self.graph.rank,
            self._dtype(name),
            writer.tile,
            domain=writer.domain,
            compression=self.plan.compressed,
            layers=self.layers.get(name),
            axis=self.plan.axis,
        )
        return set() if path.stat().st_size == size else {n for n, _ in tiles}

    def make(self, name: str, section: Section = None) -> Store:
        """Return the store of a tensor that a stage writes; make it if it is not there."""
        if name in self.cards:
            kept = [c.name if c else None for c in self.cards[name]]
            masks = masks_of(kept, self.threshold)
            return PredictionStore(
                [self.output / n if n else None for n in kept],
                self.framed,
                [self.output / m if m else None for m in masks],
                self.threshold or 0.0,
                self.framed.card.activation,
                section,
                self.nonfinite,
                self.fence,
            )
        node, layout, rank = self.graph.nodes[name], self.graph.layouts[name], self.graph.rank
        kind, path = self._dtype(name), self.path(name, section)
        if isinstance(RULES[node.op], Reduce):
            on_disk = self.shared or self.kept
            folder = path if on_disk else None
            return GlobalStore(node, kind, self.device, folder, self.fence)
        writer, place = self._writers[name], self.plan.places[name]
        if place == "disk":
            path.parent.mkdir(parents=True, exist_ok=True)
        if self.shared or (place == "disk" and isinstance(path, Remote)):
            return ZarrStore(
                path, layout.stored, rank, kind, writer.domain, writer.tile, self.fence
            )
        assert not isinstance(path, Remote)
        return make_store(
            place,
            layout.stored,
            rank,
            kind,
            writer.tile,
            domain=writer.domain,
            device=self.device,
            compression=self.plan.compressed,
            path=path,
            keep=self.kept,
            layers=self.layers.get(name),
            axis=self.plan.axis,
        )
