"""One rule per operator: which boxes it needs, how to evaluate it on them, what it costs.

To add an operator: if each of its output points depends on the same point of its operands
alone, add its name to `_POINTWISE`; otherwise write a subclass of `Rule` and add it to `RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnsupportedOperatorError
from .boxes import Box, Shape
from .graph import Graph, Node, Ref

Values = Mapping[str, Tensor]
_ONEDNN = torch.backends.mkldnn.is_available()


class Rule:
    """How one operator is evaluated on boxes.

    `needs` and `evaluate` agree: given the operands on exactly the boxes that `needs` names,
    `evaluate` returns what the operator on the whole grids has in `box`.
    """

    def check(self, node: Node, graph: Graph) -> None:
        """Raise `UnsupportedOperatorError` if these arguments are beyond the rule."""

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        """Box of each operand that `box` of the result depends on, cut to its grid."""
        raise NotImplementedError

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        """Compute the result on `box` from the operands on the boxes they are needed on.

        `values` holds those operands by name, and every weight whole.
        """
        raise NotImplementedError

    def overwrite(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        """As `evaluate`, where the first operand is not needed any more and may be written to."""
        return self.evaluate(node, box, values, graph)

    def operations(self, node: Node, graph: Graph) -> float:
        """Arithmetic operations per point of the result's grid."""
        return float(graph.width(node.name))

    def workspace(self, node: Node, box: Box, graph: Graph, itemsize: int) -> int:
        """Bytes taken beside operands and result while `box` of the result is computed."""
        return 0


def unsupported(node: Node, why: str) -> UnsupportedOperatorError:
    """Build the error that names the operator, its submodule and the reason."""
    return UnsupportedOperatorError(f"{node}: {why}")


def resolve(value: Any, values: Values) -> Any:
    """Put tensors where an argument refers to them."""
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, tuple):
        return [resolve(item, values) for item in value]
    return value


def per_axis(value: Any, rank: int) -> Shape:
    """One integer for each grid axis: ATen repeats a single one."""
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * rank if len(given) == 1 else given


class Pointwise(Rule):
    """Each point depends on the same point of every operand, which may broadcast."""

    def check(self, node: Node, graph: Graph) -> None:
        channels = len(graph.shapes[node.operands[0]]) - graph.rank
        dim = node.args.get("dim", 0)
        if not isinstance(dim, int) or dim % (channels + graph.rank) >= channels:
            raise unsupported(node, f"dim={dim} is an axis of the grid, where it has no rule")
        grid = graph.grid(node.name)
        for name in node.operands:
            own = graph.grid(name)
            if len(own) < graph.rank or any(
                a not in (1, b) for a, b in zip(own, grid, strict=True)
            ):
                raise unsupported(node, f"cannot broadcast {graph.shapes[name]} over {grid}")

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        grid = graph.grid(node.name)
        return {name: _broadcast(box, graph.grid(name), grid) for name in node.operands}

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        return self._call(getattr(torch.ops.aten, node.op), node, box, values, graph)

    def overwrite(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        in_place = getattr(torch.ops.aten, node.op + "_", None)
        same = graph.shapes[node.operands[0]] == node.shape
        if in_place is None or not same or node.overload not in in_place.overloads():
            return self.evaluate(node, box, values, graph)
        return self._call(in_place, node, box, values, graph)

    def _call(self, op: Any, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        grid = graph.grid(node.name)
        local = dict(values)
        for name in _refs(tuple(node.args.values())) - set(node.operands):
            own = graph.weights[name][-graph.rank :]
            if len(own) == graph.rank and own != (1,) * graph.rank:  # such as a learned position
                local[name] = values[name][_broadcast(box, own, grid).index]
        return getattr(op, node.overload)(**{k: resolve(v, local) for k, v in node.args.items()})


def _refs(value: Any) -> set[str]:
    if isinstance(value, Ref):
        return {value.name}
    return set().union(*map(_refs, value)) if isinstance(value, tuple) else set()


def _broadcast(box: Box, own: Shape, grid: Shape) -> Box:
    start = tuple(a if n == g else 0 for a, n, g in zip(box.start, own, grid, strict=True))
    stop = tuple(b if n == g else 1 for b, n, g in zip(box.stop, own, grid, strict=True))
    return Box(start, stop)


class Concatenate(Pointwise):
    """Channels side by side."""

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        parts = resolve(node.args["tensors"], values)
        dim = int(node.args["dim"]) % len(node.shape)
        if not any(_channels_last(part) for part in parts):
            return torch.cat(parts, dim)
        # ATen's kernel for this layout is slow by an order of magnitude; on the same memory, seen
        # with the channels as its last axis, it copies long runs.
        return torch.cat([part.movedim(dim, -1) for part in parts], -1).movedim(-1, dim)


def _channels_last(x: Tensor) -> bool:
    return x.ndim in (4, 5) and x.stride(1) == 1 and x.shape[1] > 1


class BatchNorm(Pointwise):
    """Normalisation by stored statistics: pointwise."""

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        a = {key: resolve(value, values) for key, value in node.args.items()}
        return F.batch_norm(
            a["input"], a["running_mean"], a["running_var"], a["weight"], a["bias"], eps=a["eps"]
        )


class Window(Rule):
    """A window of `kernel` points, `dilation` apart, moved by `stride` over a padded grid."""

    def __init__(self, outside: float) -> None:
        self.outside = outside  # the value of points beyond the grid

    def geometry(self, node: Node, graph: Graph) -> tuple[Shape, Shape, Shape, Shape]:
        """Kernel, stride, padding at the start, and dilation of each axis."""
        raise NotImplementedError

    def apply(self, node: Node, x: Tensor, padding: Shape, values: Values, graph: Graph) -> Tensor:
        """Apply the operator to `x` with the same `padding` at both ends of an axis."""
        raise NotImplementedError

    def source(self, node: Node) -> str:
        """Name of the operand over which the window moves."""
        return next(iter(node.operands))

    def _reach(self, node: Node, box: Box, graph: Graph) -> Box:
        kernel, stride, padding, dilation = self.geometry(node, graph)
        return Box(
            tuple(a * s - p for a, s, p in zip(box.start, stride, padding, strict=True)),
            tuple(
                (b - 1) * s - p + (k - 1) * d + 1
                for b, s, p, k, d in zip(box.stop, stride, padding, kernel, dilation, strict=True)
            ),
        )

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        source = self.source(node)
        reach, grid = self._reach(node, box, graph), graph.whole(source)
        # A window that lies in the padding altogether still names one point, which it ignores.
        start = tuple(min(max(a, 0), n - 1) for a, n in zip(reach.start, grid.stop, strict=True))
        stop = tuple(
            max(min(b, n), a + 1) for a, b, n in zip(start, reach.stop, grid.stop, strict=True)
        )
        return {source: Box(start, stop)}

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        source = self.source(node)
        reach, held = self._reach(node, box, graph), self.needs(node, box, graph)[source]
        before = tuple(h - r for h, r in zip(held.start, reach.start, strict=True))
        after = tuple(r - h for h, r in zip(held.stop, reach.stop, strict=True))
        x = values[source]
        if min(before) < 0 or min(after) < 0:
            x = x.new_full((*x.shape[: -graph.rank], *reach.shape), self.outside)
            return self.apply(node, x, (0,) * graph.rank, values, graph)
        # An axis that is padded by the same amount at both ends is left to the operator.
        both = tuple(a if a == b else 0 for a, b in zip(before, after, strict=True))
        before = tuple(a - p for a, p in zip(before, both, strict=True))
        after = tuple(a - p for a, p in zip(after, both, strict=True))
        if any(before) or any(after):
            x = _padded(x, before, after, self.outside)
        return self.apply(node, x, both, values, graph)

    def workspace(self, node: Node, box: Box, graph: Graph, itemsize: int) -> int:
        # A part of what is held, or a padded one, is copied for the kernel.
        source = self.source(node)
        return itemsize * graph.width(source) * self.needs(node, box, graph)[source].size


def _padded(x: Tensor, before: Shape, after: Shape, value: float) -> Tensor:
    """F.pad, but each point is written once and the memory layout stays."""
    rank = len(before)
    extents = [a + n + b for a, n, b in zip(before, x.shape[-rank:], after, strict=True)]
    shape = (*x.shape[:-rank], *extents)
    if _channels_last(x):
        layout = {2: torch.channels_last, 3: torch.channels_last_3d}[rank]
        made = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
    else:
        made = x.new_empty(shape)
    for axis, (a, b) in enumerate(zip(before, after, strict=True), start=-rank):
        made.narrow(axis, 0, a).fill_(value)
        made.narrow(axis, made.shape[axis] - b, b).fill_(value)
    inside = Box(before, tuple(a + n for a, n in zip(before, x.shape[-rank:], strict=True)))
    made[inside.index] = x
    return made


class Convolution(Window):
    """Convolution with any stride, padding, dilation and groups."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def check(self, node: Node, graph: Graph) -> None:
        if not node.op.endswith(f"{graph.rank}d"):
            raise unsupported(node, f"the grid has {graph.rank} axes")
        if node.args["weight"].name in graph.shapes:
            raise unsupported(node, "its kernel is computed by the network")

    def source(self, node: Node) -> str:
        return node.args["input"].name

    def geometry(self, node: Node, graph: Graph) -> tuple[Shape, Shape, Shape, Shape]:
        kernel = self._kernel(node, graph)
        dilation = per_axis(node.args["dilation"], graph.rank)
        padding = node.args["padding"]
        if padding == "same":  # an odd point, where there is one, goes to the end
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        elif padding == "valid":
            padding = 0
        return (
            kernel,
            per_axis(node.args["stride"], graph.rank),
            per_axis(padding, graph.rank),
            dilation,
        )

    def apply(self, node: Node, x: Tensor, padding: Shape, values: Values, graph: Graph) -> Tensor:
        _, stride, _, dilation = self.geometry(node, graph)
        weight, bias = (resolve(node.args[k], values) for k in ("weight", "bias"))
        groups = node.args["groups"]
        if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and _ONEDNN:
            # F.conv3d has a kernel of its own, up to four times slower, where channels are few.
            return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[graph.rank]
        return convolve(x, weight, bias, stride, padding, dilation, groups)

    def operations(self, node: Node, graph: Graph) -> float:
        kernel = math.prod(self._kernel(node, graph))
        taps = kernel * graph.width(self.source(node)) // node.args["groups"]
        return 2.0 * taps * graph.width(node.name)

    def workspace(self, node: Node, box: Box, graph: Graph, itemsize: int) -> int:
        # Where channels are few, oneDNN holds the result once more, in single precision.
        few = graph.width(self.source(node)) < 8
        again = 4 * graph.width(node.name) * box.size if few else 0
        return super().workspace(node, box, graph, itemsize) + again

    def _kernel(self, node: Node, graph: Graph) -> Shape:
        return graph.weights[node.args["weight"].name][2:]


class Pool(Window):
    """Largest or mean value of each window."""

    def check(self, node: Node, graph: Graph) -> None:
        if not node.op.endswith(f"{graph.rank}d"):
            raise unsupported(node, f"the grid has {graph.rank} axes")
        if node.op.startswith("avg") and any(per_axis(node.args["padding"], graph.rank)):
            raise unsupported(node, "padded averages have no rule yet")
        if node.op.startswith("avg") and node.args["ceil_mode"]:
            raise unsupported(node, "averages with ceil_mode have no rule yet")

    def geometry(self, node: Node, graph: Graph) -> tuple[Shape, Shape, Shape, Shape]:
        kernel = per_axis(node.args["kernel_size"], graph.rank)
        return (
            kernel,
            per_axis(node.args["stride"] or kernel, graph.rank),
            per_axis(node.args["padding"], graph.rank),
            per_axis(node.args.get("dilation", 1), graph.rank),
        )

    def apply(self, node: Node, x: Tensor, padding: Shape, values: Values, graph: Graph) -> Tensor:
        kernel, stride, _, dilation = self.geometry(node, graph)
        if node.op.startswith("avg"):
            average = {2: F.avg_pool2d, 3: F.avg_pool3d}[graph.rank]
            divisor = node.args["divisor_override"]
            return average(x, kernel, stride, divisor_override=divisor)
        largest = {2: F.max_pool2d, 3: F.max_pool3d}[graph.rank]
        return largest(x, kernel, stride, padding, dilation)

    def operations(self, node: Node, graph: Graph) -> float:
        kernel = math.prod(per_axis(node.args["kernel_size"], graph.rank))
        return float(kernel * graph.width(node.name))

    def workspace(self, node: Node, box: Box, graph: Graph, itemsize: int) -> int:
        # ATen finds the place of each largest value too, as an int64.
        places = 8 * graph.width(node.name) * box.size
        return super().workspace(node, box, graph, itemsize) + places


class Nearest(Rule):
    """Nearest-neighbour resampling: output point i takes input point floor(i · scale)."""

    def _source(self, node: Node, box: Box, graph: Graph) -> list[Tensor]:
        """Index into the input of every output point of `box`, axis by axis."""
        grid, own = graph.grid(node.operands[0]), graph.grid(node.name)
        factors = node.args["scale_factors"] or (None,) * graph.rank
        index = []
        for a, b, n, m, factor in zip(box.start, box.stop, grid, own, factors, strict=True):
            # float32, as ATen computes it: with other factors the rounding decides.
            scale = torch.tensor(n / m if factor is None else 1.0 / factor, dtype=torch.float32)
            index.append((torch.arange(a, b, dtype=torch.float32) * scale).long().clamp_(max=n - 1))
        return index

    def needs(self, node: Node, box: Box, graph: Graph) -> dict[str, Box]:
        index = self._source(node, box, graph)
        return {
            node.operands[0]: Box(
                tuple(int(i[0]) for i in index), tuple(int(i[-1]) + 1 for i in index)
            )
        }

    def evaluate(self, node: Node, box: Box, values: Values, graph: Graph) -> Tensor:
        x = values[node.operands[0]]
        index = self._source(node, box, graph)
        held = tuple(int(i[0]) for i in index)
        grids = graph.grid(node.operands[0]), graph.grid(node.name)
        ratio = [m / n for n, m in zip(*grids, strict=True)]
        if all(r == int(r) for r in ratio):
            # Whole factors: one fast kernel, then the part that was asked for.
            big = F.interpolate(x, scale_factor=tuple(ratio), mode="nearest")
            offset = tuple(h * int(r) for h, r in zip(held, ratio, strict=True))
            return big[box.within(Box(offset, offset)).index]
        for axis, (i, first) in enumerate(zip(index, held, strict=True)):
            x = x.index_select(axis - graph.rank, (i - first).to(x.device))
        return x

    def workspace(self, node: Node, box: Box, graph: Graph, itemsize: int) -> int:
        # Input points at the rim may have results outside of the box.
        rim = math.prod(n + 2 for n in box.shape) - box.size
        return itemsize * graph.width(node.name) * rim + sum(
            itemsize * graph.width(name) * need.size
            for name, need in self.needs(node, box, graph).items()
        )


_POINTWISE = (
    "abs add clamp clamp_max clamp_min div elu exp gelu hardsigmoid hardswish hardtanh "
    "leaky_relu log log_softmax mish mul neg pow prelu relu relu6 rsqrt rsub select selu sigmoid "
    "silu slice softmax softplus sqrt sub tanh"
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE.split(), Pointwise()),
    "cat": Concatenate(),
    "_native_batch_norm_legit_no_training": BatchNorm(),
    **dict.fromkeys(("conv2d", "conv3d"), Convolution()),
    **dict.fromkeys(("max_pool2d", "max_pool3d"), Pool(-math.inf)),
    **dict.fromkeys(("avg_pool2d", "avg_pool3d"), Pool(0.0)),
    **dict.fromkeys(("upsample_nearest2d", "upsample_nearest3d"), Nearest()),
}
