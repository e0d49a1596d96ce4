"""Where tiles lie in a file, or another row of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..graph.boxes import Lattice, Shape, tiles


class Rooms:
    """Tiles one after the other, layer after layer.

    Parameters
    ----------
    lattice : Lattice
        The tiles.
    bytes_of : callable
        Gives the room that a tile of some shape takes.
    layers : int, optional
        How many layers there is room for; each takes that of the one that many before it. Room for
        all unless given.
    axis : int
        The one across which the layers lie.

    Attributes
    ----------
    bytes : int
        Where the last one ends.
    """

    def __init__(
        self,
        lattice: Lattice,
        bytes_of: Callable[[Shape], int],
        layers: int | None = None,
        axis: int = 0,
    ) -> None:
        every = (bytes_of(tile.shape) for tile in tiles(lattice.domain, lattice.tile))
        self._sizes = np.fromiter(every, np.int64)
        self._stride, self._count = math.prod(lattice.counts[axis + 1 :]), lattice.counts[axis]
        self._layers = min(layers or self._count, self._count)
        # As the layers take turns; the first is as large as any.
        turned = np.moveaxis(self._sizes.reshape(lattice.counts), axis, 0)
        sizes = turned.reshape(self._count, math.prod(turned.shape[1:]))
        first = np.arange(self._count) % max(1, self._layers) * sizes[:1].sum()
        starts = first[:, None] + np.cumsum(sizes, axis=1) - sizes
        self._starts = np.moveaxis(starts.reshape(turned.shape), 0, axis).ravel()
        self.bytes = int((self._starts + self._sizes).max(initial=0))

    def of(self, number: int) -> tuple[int, int]:
        """Return where a tile begins, and its size."""
        return int(self._starts[number]), int(self._sizes[number])

    def layer(self, number: int) -> tuple[int, int]:
        """Return the layer of a tile, and its place among those that there is room for."""
        layer = number // self._stride % self._count
        return layer, layer % self._layers
