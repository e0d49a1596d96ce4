"""Reading ahead and writing behind: a thread beside the one that computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class SideThread:
    """Runs functions one after the other beside the computation, on a GPU on a stream of its own.

    A function sees all that was computed before it was submitted; its result may be used at once.
    A context manager, which closes it.

    Parameters
    ----------
    device : torch.device or str
        Where the computation runs.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.pool = ThreadPoolExecutor(1, "outcrop")
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Begin `function(*args)`; its result or error is the future's."""
        if self.stream is None:
            return self.pool.submit(function, *args)
        consumer = torch.cuda.current_stream(self.device)
        return self.pool.submit(self._on_stream, consumer, consumer.record_event(), function, args)

    def _on_stream(
        self,
        consumer: torch.cuda.Stream,
        computed: torch.cuda.Event,
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> Any:
        assert self.stream is not None
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(computed)
            result = function(*args)
            self.stream.synchronize()
        for leaf in pytree.tree_leaves(result):
            # Freed while the consumer's kernels still read it, it must not be handed out again.
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                leaf.record_stream(consumer)
        return result

    def __enter__(self) -> SideThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what has begun, drop what has not."""
        self.pool.shutdown(cancel_futures=True)
