"""What `torch.export` makes of a module, and what it does not see: who shares memory with whom."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..errors import UnsupportedOperatorError
from .inline import inline
from .known import knowing
from .lower import LOWER, RECURRENT
from .rules import RULES

# Operators that return their first argument unchanged, and those that only check.
SAME = {"clone", "alias", "detach", "contiguous", "lift_fresh_copy", "lift_fresh", "resolve_conj"}
CHECKS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range"}

# Operators without a rule that torch itself writes as some that have one.
_WRITTEN_OUT = (
    "addmm atleast_1d atleast_2d atleast_3d baddbmm binary_cross_entropy "
    "binary_cross_entropy_with_logits broadcast_tensors channel_shuffle column_stack concat "
    "concatenate cosine_similarity cumulative_trapezoid diff dstack fft_fftshift "
    "fft_ifftshift fliplr flipud float_power frobenius_norm gradient hstack huber_loss inner "
    "isclose kl_div kron l1_loss linalg_matmul linalg_matrix_norm linalg_matrix_power "
    "linalg_multi_dot linalg_norm linalg_vecdot mse_loss nanmean one_hot outer "
    "pairwise_distance pixel_shuffle pixel_unshuffle renorm repeat_interleave rot90 row_stack "
    "smooth_l1_loss trapezoid trapz tril triu vstack"
)
# Operators whose results torch takes for new tensors, though some are views, or writes back
# wrongly.
_OF_EITHER_KIND = {
    f"aten::{op}"
    for op in (
        "einsum",
        "meshgrid",
        "unfold",
        "unsafe_chunk",
        "unsafe_split",
        "unsafe_split_with_sizes",
    )
}
_MAYBE_VIEWS = {
    f"aten::{op}"
    for op in (
        "contiguous",
        "dropout",
        "feature_dropout",
        "alpha_dropout",
        "feature_alpha_dropout",
        "einsum",
        "meshgrid",
        "broadcast_tensors",
        "positive",
        "flatten",
        "reshape",
        "reshape_as",
        "to",
        "type_as",
        "expand_as",
        "view_as",
        "ravel",
        "chunk",
        "tensor_split",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "pad",
        "clone",
    )
}
_NUMBERS = {torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default}
_DATA: Any = Tensor.data
_TALKATIVE = ("fx.experimental.symbolic_shapes", "_subclasses.fake_tensor")
_TRACING = threading.RLock()  # the process has one error stream


def export(
    module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> torch.export.ExportedProgram:
    """Return the operators that a forward calls, for tensors that lie as the given ones do.

    Raises
    ------
    UnsupportedOperatorError
        If the module cannot be captured; the first line of torch's reason is in it.
    """
    try:
        # Operators stay as large as they were written. Tracing anew, which takes longer than the
        # export, is for what needs it.
        # Without gradients, so that a forward that does without them too has nothing to switch.
        with (
            warnings.catch_warnings(action="ignore"),
            torch.no_grad(),
            _quiet(),
            _swiftly(),
            _in_one_step(),
            _kept(module),
        ):
            program = _traced(module, args, kwargs)
            _check_constants(program)
            inline(program.graph_module)
            calls = [fx for fx in program.graph.nodes if fx.op == "call_function"]
            if all(_is_known(fx) and _can_replace(fx) for fx in calls):
                return program
            _check_changes(calls)
            _leave_out_dropout(program.graph_module)
            return program.run_decompositions(dict(_decompositions()))
    except UnsupportedOperatorError:
        raise
    except Exception as error:
        raise UnsupportedOperatorError(
            f"{type(module).__name__}: torch.export cannot capture it for inputs of shape "
            f"{[tuple(a.shape) for a in (*args, *kwargs.values())]}: {_reason(error)}"
        ) from error


def _traced(
    module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> torch.export.ExportedProgram:
    """Trace a module; once more, evaluating what it knows, if numbers are taken from tensors."""
    given = _imagined(args, kwargs)

    def trace() -> torch.export.ExportedProgram:
        with _quiet(), _Detaching():
            return torch.export.export(module, *given, strict=False)

    program, failure = None, None
    try:
        program = trace()
    except Exception as error:
        failure = error
    if program is None or any(fx.target in _NUMBERS for fx in program.graph.nodes):
        with contextlib.suppress(Exception), knowing(module):
            return trace()
    if program is None:
        assert failure is not None
        raise failure
    return program


class _Detaching(TorchFunctionMode):
    """`x.data`, which the trace would not see, as `x.detach()`; a weight's is set in place."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func == _DATA.__get__:
            return args[0].detach()
        if func == _DATA.__set__:
            x, value = args
            if _memory(x) == _memory(value):  # x.data *= y
                return None
            if not isinstance(x, nn.Parameter) or x.shape != value.shape:
                raise UnsupportedOperatorError(
                    "the forward sets .data of a tensor, which torch.export does not see; "
                    "take the new tensor itself"
                )
            x.detach().copy_(value)
            return None
        return func(*args, **(kwargs or {}))


def _memory(x: Tensor) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    return x.untyped_storage()._cdata, int(x.storage_offset()), tuple(x.shape), x.stride()


def _imagined(
    args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return tensors without memory that lie as the given ones do: views or copies depend on it."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):

        def imagine(x: Tensor) -> Tensor:
            if 0 in x.stride():  # an example of one element
                return torch.empty(x.shape, dtype=x.dtype, device=x.device)
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)

        return tuple(map(imagine, args)), {name: imagine(x) for name, x in kwargs.items()}


@contextlib.contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Take back what a forward sets anew on modules, such as a mask: it has no values here."""

    def tables() -> Iterator[dict[str, Any]]:
        for each in module.modules():
            yield from (vars(each), each._buffers, each._parameters, each._modules)

    before = [(table, dict(table)) for table in tables()]
    try:
        yield
    finally:
        for table, own in before:
            for name in table.keys() - own.keys():
                del table[name]
            table.update({k: own[k] for k, v in table.items() if isinstance(v, FakeTensor)})


@contextlib.contextmanager
def _swiftly() -> Iterator[None]:
    """Leave out what torch does for readers of its graphs: a quarter of the time that it takes."""
    config, traces = torch.fx.config, "do_not_emit_stack_traces"
    before = getattr(config, traces, None)
    try:
        if before is not None:  # not in all versions
            setattr(config, traces, True)
        with _use_lazy_graph_module(True):
            yield
    finally:
        if before is not None:
            setattr(config, traces, before)


@contextlib.contextmanager
def _in_one_step() -> Iterator[None]:
    """Tell the shapes of recurrent layers from one step: torch goes through all, 15 ms each."""

    def shortened(steps: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(steps)
        def layer(x: Tensor, hx: Any, *rest: Any) -> Any:
            along = 1 if rest[-1] else 0  # batch_first
            out, *states = steps(x.narrow(along, 0, 1), hx, *rest)
            out = out.transpose(0, along)
            out = out.new_empty((x.shape[along], *out.shape[1:]))
            return out.transpose(0, along), *states

        return layer

    key = torch._C.DispatchKey.CompositeImplicitAutograd
    places: list[tuple[Any, Any]] = []  # torch looks in either
    for op in (getattr(torch.ops.aten, name).input for name in RECURRENT):
        places += (op.py_kernels, key), (torch._decomp.decomposition_table, op)
    written = [(table, at, table[at]) for table, at in places if at in table]
    try:
        for table, at, steps in written:
            table[at] = shortened(steps)
        yield
    finally:
        for table, at, steps in written:
            table[at] = steps


def _leave_out_dropout(module: torch.fx.GraphModule) -> None:
    """Let what dropout that does nothing returns be its argument, as it is: torch takes a copy."""
    for fx in list(module.graph.nodes):
        idle = fx.target == torch.ops.aten.dropout.default and fx.args[2:] == (False,)
        if idle and all(user.op != "output" for user in fx.users):
            fx.replace_all_uses_with(fx.args[0])
            module.graph.erase_node(fx)
    module.recompile()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing what it traced before an error, which says where that is."""
    loggers = [logging.getLogger(f"torch.{name}") for name in _TALKATIVE]
    held = io.StringIO()
    with _TRACING:
        levels = [log.level for log in loggers]
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        try:
            with contextlib.redirect_stderr(held):
                yield
        except Exception:
            held = io.StringIO()
            raise
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
            if text := held.getvalue():
                sys.stderr.write(text)


def _undecided() -> type[Exception]:
    """Torch's error for a decision by values: imported late, as it takes half a second."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return GuardOnDataDependentSymNode


def _reason(error: Exception) -> str:
    text = str(error).strip()
    if not isinstance(error, _undecided()):
        return text.split("\n")[0]
    lines = re.findall(r'File "(.+)", line (\d+)', text)
    where = "at {}:{}".format(*lines[-1]) if lines else "somewhere"
    return (
        f"{where} it takes a number or a decision from the values of a tensor, such as float(x) or "
        "if x > 0, which no tile knows; keep it a tensor, as torch.where does"
    )


@functools.cache
def _decompositions() -> dict[Any, Any]:
    names = {f"aten::{name}" for name in _WRITTEN_OUT.split()}
    every = {
        **torch.export.default_decompositions(),
        **torch._decomp.get_decompositions([torch.ops.aten.addmm]),
    }
    return {op: how for op, how in every.items() if op._schema.name in names}


def _is_known(fx: torch.fx.Node) -> bool:
    """Whether there is a rule for a call as it was written."""
    if not isinstance(fx.target, torch._ops.OpOverload):
        # An element of several results, or a step of torch.vmap, of which torch makes operators.
        return not str(getattr(fx.target, "__module__", "")).startswith("torch._functorch")
    op = fx.target._schema.name.removeprefix("aten::")
    op = op.removesuffix("_") if fx.target._schema.is_mutable else op
    if not fx.all_input_nodes:  # a constant
        return True
    return op in RULES or op in LOWER or op in SAME or op in CHECKS or "dropout" in op


def _can_replace(fx: torch.fx.Node) -> bool:
    """Whether a call changes nothing in place, or what nobody else can see.

    Then it is as good as the operator that makes a new tensor, if what comes after reads that.
    """
    target = fx.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return True
    changed = fx.args[0] if fx.args else None
    own = target._schema.arguments[0].alias_info
    others = [a.alias_info for a in target._schema.arguments[1:]]
    if own is None or not own.is_write or any(a is not None and a.is_write for a in others):
        return False
    if not isinstance(changed, torch.fx.Node) or changed.op != "call_function":
        return False
    readers = [user for user in changed.users if user is not fx]
    return not _is_view(changed) and not any(map(_is_view, readers))


def _check_constants(program: torch.export.ExportedProgram) -> None:
    """Refuse what torch takes for a constant though it depends on the input."""
    for value in (*program.constants.values(), *program.state_dict.values()):
        if isinstance(value, FakeTensor):
            raise UnsupportedOperatorError(
                "the forward hides from torch.export where a tensor comes from, by out_dims of "
                "torch.vmap; move them after it"
            )


def _check_changes(calls: list[torch.fx.Node]) -> None:
    """Refuse changes in place of memory that other tensors may share, or not: torch knows neither.

    That is of what an operator of either kind took or returned, after it.
    """
    memory: dict[torch.fx.Node, torch.fx.Node] = {}  # by the tensor that it was made for
    shared: dict[torch.fx.Node, str] = {}
    for fx in calls:
        taken = fx.all_input_nodes
        schema = fx.target._schema if isinstance(fx.target, torch._ops.OpOverload) else None
        name = "" if schema is None else schema.name
        changes = schema is not None and schema.is_mutable
        if taken and (changes or name in _OF_EITHER_KIND or _is_view(fx)):
            memory[fx] = memory.get(taken[0], taken[0])
        # An einsum of several tensors multiplies them, into memory of its own.
        product = name == "aten::einsum" and len(tree_leaves(fx.args[1])) > 1
        if name in _OF_EITHER_KIND and not product:
            shared.update({memory.get(x, x): name for x in taken})
        elif changes and taken and memory[fx] in shared:
            op, other = (n.removeprefix("aten::") for n in (name, shared[memory[fx]]))
            raise UnsupportedOperatorError(
                f"operator {op}: changes in place what {other} took or returned, which may be in "
                "one memory; call the one that returns a new tensor"
            )


def _is_view(fx: torch.fx.Node) -> bool:
    """Whether what a call returns may share memory with what it takes."""
    if not isinstance(fx.target, torch._ops.OpOverload):
        return fx.op == "call_function"  # an element of several results
    schema = fx.target._schema
    # Composite operators may return their argument without saying so in the schema.
    maybe = schema.name in _MAYBE_VIEWS
    return maybe or (not schema.is_mutable and any(r.alias_info for r in schema.returns))
