"""Fourier transforms of all axes, as two that leave an axis each."""

from __future__ import annotations

from collections.abc import Callable

from .call import Call
from .graph import Ref


def _fourier(call: Call) -> Ref:
    """First over all dimensions but one, then over that one; the other way round to go back.

    Both are evaluated by tiles: slabs across the one dimension, and columns along it.
    """
    x, given, s = (call.args[key] for key in ("self", "dim", "s"))
    layout = call.builder.layouts.get(x.name)
    if layout is None:
        return call.plain()
    own, kind = list(layout.shape), call.op.removeprefix("fft_").rstrip("2n")
    if given is None:
        given = range(-len(s), 0) if s else range(len(own))
    dims = [d % len(own) for d in given]
    real = dims[-1] if "r" in kind else None  # from real values, or to them
    spread = [{a for a in axes if layout.grid[a] > 1} for axes in layout.dims]
    apart = next((d for d in sorted(dims) if spread[d] and d != real), None)
    if apart is None or any(spread[d] for d in range(len(own)) if d not in dims):
        return call.plain()
    most, back = [d for d in dims if d != apart], kind.startswith("i")
    if not any(spread[d] for d in most):
        return call.plain()

    def transform(x: Ref, op: str, over: list[int]) -> Ref:
        extents = {d: call.shape[d] for d in over}
        own[:] = [extents.get(d, n) for d, n in enumerate(own)]
        if op == "fft_rfftn":
            extents[over[-1]] = s[-1] if s and s[-1] >= 0 else layout.shape[over[-1]]
        args = {"self": x, "s": tuple(extents.values()), "dim": tuple(over)}
        args["norm"] = call.args["norm"]
        dtype = call.dtype if op == "fft_irfftn" else call.dtype.to_complex()
        return call.add(op, args, tuple(own), dtype=dtype)

    if back:
        return transform(transform(x, "fft_ifftn", [apart]), f"fft_{kind}n", most)
    return transform(transform(x, f"fft_{kind}n", most), "fft_fftn", [apart])


FOURIER: dict[str, Callable[[Call], Ref]] = dict.fromkeys(
    [f"fft_{kind}{n}" for kind in ("fft", "ifft", "rfft", "irfft") for n in "2n"], _fourier
)
