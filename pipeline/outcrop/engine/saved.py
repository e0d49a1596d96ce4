"""`offload`: where autograd keeps what it saves for backward."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from ..errors import ArgumentError
from ..graph.boxes import Box
from .disk import ScratchFile, scratch_folder
from .lean import LeanConvolutions
from .memory import keep_freed_memory
from .threads import SideThread
from .tiled_stores import TileFormat

_SMALL = 2**20  # what takes less stays where it is
_PENDING = 2**25  # bytes on their way out, or one tensor
_PAGE = 4096


@contextlib.contextmanager
def offload(
    mode: str, path: str | os.PathLike[str] | None = None, compression: bool = False
) -> Iterator[None]:
    """Keep the activations that autograd saves inside the block where `mode` says.

    Gradients are what they would be without, unless compressed: to the last bit, but in "disk" for
    convolutions on a CPU whose float32 input has channels first and takes 32 MiB or more, which go
    by slabs and are rounded in another order. Backward may run inside the block or after it, and
    more than once with ``retain_graph``. A tensor that several operators save is kept once;
    parameters, buffers and tensors below 1 MiB stay where they are. Each is freed with the graph
    that saved it. What `torch.compile` has compiled runs uncompiled in "disk".

    Parameters
    ----------
    mode : {"device", "cpu", "disk"}
        "device" leaves them where they are. "cpu" moves those of a GPU to pinned host memory, on
        a side stream, and fetches one ahead in backward. "disk" writes them to a file while the
        computation goes on, at most 32 MiB (or one tensor) behind, and maps them in backward.
    path : path-like, optional
        Folder for "disk"; the system's folder for temporary files unless given. The file has no
        name: nothing stays behind, whatever ends the process.
    compression : bool
        Keep floating-point activations at 8 bits a value. Lossy: see `outcrop.engine.compress`;
        gradients are then approximate.

    Raises
    ------
    ArgumentError
        If `mode` is none of these or `path` is not a folder.
    OutcropError
        If the disk is full.
    """
    if mode == "none":
        raise ArgumentError(
            "offload mode 'none': what is not saved is computed again, which is up to the module; "
            "wrap its parts in torch.utils.checkpoint.checkpoint"
        )
    if mode not in ("device", "cpu", "disk"):
        raise ArgumentError(f"offload mode {mode!r}: choose device, cpu or disk")
    if mode == "device" and not compression:
        yield
        return
    folder = scratch_folder("offload path", path)
    file = ScratchFile(folder / f"outcrop-{uuid.uuid4().hex}") if mode == "disk" else None
    if file is not None:
        keep_freed_memory(2**22)
    saver = _Saver(mode, _Arena(file) if file else None, compression)
    hook = register_module_forward_pre_hook(saver.protect)
    lean = contextlib.nullcontext() if file is None else LeanConvolutions()
    completed = False
    try:
        with saved_tensors_hooks(saver.pack, saver.unpack), lean:
            yield
        completed = True
    finally:
        hook.remove()
        saver.finish(wait=completed)


class _Arena:
    """Room in a scratch file that is taken and given back; equal sizes are used again."""

    def __init__(self, file: ScratchFile) -> None:
        self.file, self.end = file, 0
        self.free: dict[int, list[int]] = {}

    def take(self, size: int) -> int:
        if self.free.get(size):
            return self.free[size].pop()
        self.file.reserve(self.end, size)
        self.end += size
        return self.end - size

    def give_back(self, start: int, size: int) -> None:
        self.free.setdefault(size, []).append(start)


class _OnDisk:
    """Bytes in the arena, mapped when they are read."""

    def __init__(self, arena: _Arena, size: int, device: torch.device) -> None:
        room = -(-size // _PAGE) * _PAGE
        self.file, self.size, self.device = arena.file, size, device
        self.start = arena.take(room)
        weakref.finalize(self, arena.give_back, self.start, room).atexit = False

    def write(self, data: Tensor) -> None:
        self.file.write(self.start, data.cpu())

    def expect(self) -> None:
        self.file.expect(self.start, self.size)

    def read(self) -> Tensor:
        return self.file.map(self.start, self.size, room=self).to(self.device)


class _Pinned:
    """A GPU's bytes in pinned host memory."""

    def __init__(self, reader: SideThread, size: int, device: torch.device) -> None:
        self.reader, self.device = reader, device
        self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self.ahead: Future[Tensor] | None = None

    def write(self, data: Tensor) -> None:
        self.memory.copy_(data, non_blocking=True)  # the side thread waits for it

    def expect(self) -> None:
        if self.ahead is None:
            self.ahead = self.reader.submit(partial(self.memory.to, self.device, non_blocking=True))

    def read(self) -> Tensor:
        self.expect()
        assert self.ahead is not None
        copied, self.ahead = self.ahead, None
        return copied.result()


class _InPlace:
    """Compressed bytes where they were made."""

    def write(self, data: Tensor) -> None:
        self.data = data

    def expect(self) -> None:
        pass

    def read(self) -> Tensor:
        return self.data


class _Watched:
    """A tensor that must not change any more, as autograd itself demands."""

    def __init__(self, tensor: Tensor) -> None:
        # The tensor itself may be an operator's result, and would keep that operator alive.
        self.tensor, self.version = tensor.detach(), tensor._version

    def check(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that backward needs was modified by "
                "an in-place operation after it was saved; use the operation's other form"
            )
        return self.tensor


class _Piece:
    """Bytes that one or several operators saved, here until they are written."""

    def __init__(
        self,
        place: _OnDisk | _Pinned | _InPlace,
        data: Tensor,
        origin: _Watched,
        thread: SideThread,
    ) -> None:
        self.place, self.size = place, data.nbytes
        self.data: Tensor | None = data
        self.origin: _Watched | None = origin
        self.error: RuntimeError | None = None
        self.before: Callable[[], _Piece | None] = lambda: None  # the piece made before this one
        self.written = thread.submit(place.write, data)

    def settle(self) -> None:
        """Let go of the original. Called between operators: none is changing it now."""
        self.written.result()
        try:
            assert self.origin is not None
            self.origin.check()
        except RuntimeError as error:
            self.error = error
        self.origin = self.data = None

    def load(self) -> Tensor:
        """Return the bytes, and let the system fetch those that backward will need next."""
        if self.error is not None:
            raise self.error
        following = self.before()
        if following is not None and following.data is None:
            following.place.expect()
        if self.data is None:
            return self.place.read()
        assert self.origin is not None
        self.origin.check()
        return self.data


@dataclass
class _View:
    """How a saved tensor lies in a piece."""

    piece: _Piece
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def load(self) -> Tensor:
        data = self.piece.load()
        whole = data[: data.numel() // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        return whole.as_strided(self.size, self.stride, self.offset)


@dataclass
class _Compressed:
    """A saved tensor that is compressed in a piece."""

    piece: _Piece
    dtype: torch.dtype
    size: torch.Size
    layout: torch.memory_format
    format: TileFormat

    def load(self) -> Tensor:
        grid = tuple(self.size[len(self.size) - self.format.rank :])
        data = self.piece.load()
        value = self.format.unpack(data, grid, Box.whole(grid), data.device)
        return value.to(self.dtype).contiguous(memory_format=self.layout)


class _Saver:
    """The two hooks, and what they share."""

    def __init__(self, mode: str, arena: _Arena | None, compression: bool) -> None:
        self.mode, self.arena, self.compression = mode, arena, compression
        self.lock = threading.RLock()  # autograd runs each device's operators in its own thread
        self.threads: dict[torch.device, tuple[SideThread, SideThread]] = {}
        self.modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.weights: set[StorageWeakRef] = set()
        self.pieces: weakref.WeakValueDictionary[Any, _Piece] = weakref.WeakValueDictionary()
        self.pending: deque[_Piece] = deque()
        self.held = 0
        self.latest: Callable[[], _Piece | None] = lambda: None

    def protect(self, module: nn.Module, _: Any) -> None:
        """Note the parameters and buffers of a module that is about to run."""
        if module not in self.modules:
            self.modules.update(module.modules())
            for own in chain(module.parameters(), module.buffers()):
                if not is_lazy(own):
                    self.weights.add(StorageWeakRef(own.untyped_storage()))

    def pack(self, tensor: Tensor) -> _Watched | _View | _Compressed:
        with self.lock, self._naming_refusal(), torch._C.DisableTorchFunctionSubclass():
            self._settle(_PENDING)
            if self._stays(tensor):
                return _Watched(tensor)
            if self.compression and tensor.is_floating_point():
                return self._compress(tensor)
            storage, item = tensor.untyped_storage(), tensor.element_size()
            first = tensor.storage_offset() * item
            reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            span = first, first + (reach + 1) * item
            if span[1] - span[0] >= storage.nbytes() / 2:
                span = 0, storage.nbytes()
            data = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            data.set_(storage, span[0], (span[1] - span[0],))  # type: ignore[call-overload]
            piece = self._piece(tensor, span, lambda: data)
            offset = (first - span[0]) // item
            return _View(piece, tensor.dtype, tensor.shape, tensor.stride(), offset)

    def unpack(self, saved: _Watched | _View | _Compressed) -> Tensor:
        with self.lock, self._naming_refusal():
            self._settle(_PENDING)
            return saved.check() if isinstance(saved, _Watched) else saved.load()

    def finish(self, wait: bool) -> None:
        """No more is saved; what is saved stays readable."""
        with self.lock, self._naming_refusal():
            try:
                if wait:
                    self._settle(-1)
            finally:
                for writer, _ in self.threads.values():
                    writer.close()
                self.pending.clear()  # a piece that is not written keeps its original

    def _stays(self, tensor: Tensor) -> bool:
        # Subclasses that Python alone sees, as MetaTensor, are plain memory; DTensor is none.
        plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
        if not plain or isinstance(tensor, nn.Parameter):
            return True
        if tensor.layout != torch.strided or tensor.is_nested:
            return True
        if tensor.device.type not in ("cpu", "cuda") or tensor.is_conj() or tensor.is_neg():
            return True
        storage = tensor.untyped_storage()
        lossy = self.compression and tensor.is_floating_point()
        moves = self.mode == "disk" or (self.mode == "cpu" and tensor.is_cuda)
        return (
            not (moves or lossy)
            or storage.nbytes() < _SMALL
            or tensor.numel() == 0
            or isinstance(tensor._base, nn.Parameter)
            or StorageWeakRef(storage) in self.weights
        )

    def _compress(self, tensor: Tensor) -> _Compressed:
        rank = min(3, max(1, tensor.ndim - 2))
        form = TileFormat(tuple(tensor.shape), rank, tensor.dtype, compression=True)
        what = tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
        piece = self._piece(tensor, what, lambda: form.pack(tensor.detach()))
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
        if layout is None or not tensor.is_contiguous(memory_format=layout):
            layout = torch.contiguous_format
        return _Compressed(piece, tensor.dtype, tensor.shape, layout, form)

    def _piece(self, tensor: Tensor, what: Any, make: Callable[[], Tensor]) -> _Piece:
        """Return the piece that holds this part of a tensor's storage, as it is now."""
        key = (StorageWeakRef(tensor.untyped_storage()), tensor._version, what)
        piece = self.pieces.get(key)
        if piece is not None:
            return piece
        data, device = make(), tensor.device
        if device not in self.threads:
            self.threads[device] = SideThread(device), SideThread(device)
        writer, reader = self.threads[device]
        place: _OnDisk | _Pinned | _InPlace
        if self.arena is not None:
            place = _OnDisk(self.arena, data.nbytes, device)
        elif self.mode == "cpu" and tensor.is_cuda:
            place = _Pinned(reader, data.nbytes, device)
        else:
            place = _InPlace()
        self._settle(max(0, _PENDING - data.nbytes))
        piece = self.pieces[key] = _Piece(place, data, _Watched(tensor), writer)
        piece.before, self.latest = self.latest, weakref.ref(piece)
        self.pending.append(piece)
        self.held += piece.size
        return piece

    def _settle(self, limit: int) -> None:
        """Let go of what is written; wait until at most `limit` bytes are not."""
        while self.pending and (self.pending[0].written.done() or self.held > limit):
            piece = self.pending.popleft()
            self.held -= piece.size
            piece.settle()

    @contextlib.contextmanager
    def _naming_refusal(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            from ..storage import naming_refusal

            assert self.arena is not None
            then = "choose another path (--activations-path)"
            with naming_refusal(self.arena.file.path.parent, then):
                raise error
