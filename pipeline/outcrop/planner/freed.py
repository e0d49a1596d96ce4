"""What a stage frees while it runs: of tensors in memory the layers that no tile will read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate

from ..graph import Box
from ..graph.propagate import needed
from ..pages import HUGE
from .cost import Cost, Costs, Part

# Places along the first axis at which is looked at what the rest of a stage reads.
_PROBES = 16


class Freed:
    """Predicts what parts of a graph free, layer by layer across the first axis of the grid.

    The rows of a tensor there lie one after the other in memory.

    Parameters
    ----------
    costs : Costs
        Of the graph.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs, self.graph = costs, costs.graph
        self._begins: dict[tuple[Part, Box], list[dict[str, int]]] = {}

    def bytes(
        self,
        part: Part,
        domain: Box,
        cost: Cost,
        spent: Mapping[str, int],
        made: Mapping[str, int],
    ) -> int:
        """Predict by how much less is held at once than all that is read and written.

        Parameters
        ----------
        part : Part
        domain : Box
            Of its tiles.
        cost : Cost
            Of these.
        spent, made : mapping of str to int
            Bytes of the tensors in memory that no other part reads, and of what this one writes.
        """
        extent, edge = domain.shape[0], cost.tile[0]
        if not spent or edge >= extent:
            return 0
        rows = dict(zip(part.inputs, cost.rows, strict=True))
        begins, written = self._found(part, domain), sum(made.values())
        highest = 0.0
        for first in range(0, extent, edge):
            held = written * min(extent, first + edge) / extent
            before = begins[first * _PROBES // extent]
            for name, size in spent.items():
                whole, (start, stop) = self.graph.grid(name)[0], rows[name]
                if start == 0 or stop == whole:  # who knows what tiles at the end are grown to
                    held += size
                    continue
                # Tiles are grown to one shape: at the end inwards, elsewhere by less than a halo.
                halo = max(0, stop - start - edge * whole // extent)
                gone = max(0, min(before[name], whole - (stop - start)) - halo)
                held += size * (1 - gone / whole)
            highest = max(highest, held)
        rounded = HUGE * sum(map(self._pieces, (*spent, *made)))
        return max(0, int(written + sum(spent.values()) - highest) - rounded)

    def _found(self, part: Part, domain: Box) -> list[dict[str, int]]:
        """Where what is read begins, from each of the probes on."""
        key = part, domain
        if key not in self._begins:
            kept, extent = part.kept(self.graph), domain.shape[0]
            starts = [domain.start[0] + i * extent // _PROBES for i in range(_PROBES)]
            # A thin box at the end may need more than a thick one, as what wraps around does.
            rests = (
                Box((start, *domain.start[1:]), domain.stop)
                for start in (domain.stop[0] - 1, *reversed(starts))
            )
            found = (needed(self.graph, part.nodes, dict.fromkeys(kept, rest)) for rest in rests)
            begins = ({n: boxes[n].start[0] for n in part.inputs} for boxes in found)
            lowest = accumulate(begins, lambda a, b: {n: min(a[n], b[n]) for n in a})
            self._begins[key] = [*lowest][:0:-1]
        return self._begins[key]

    def _pieces(self, name: str) -> int:
        """Parts of a tensor in memory that each have all rows: of outputs every channel is one."""
        lead = self.graph.layouts[name].stored[: -self.graph.rank]
        return math.prod(lead if name in self.graph.outputs else lead[:-1])
