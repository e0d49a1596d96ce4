"""From an `nn.Module` to a `Graph`, at the volume's full shape and without allocating it."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

from ..errors import UnsupportedOperatorError
from .build import Builder
from .fuse import fuse
from .graph import Graph, Ref
from .layout import Layout
from .lower import LOWER, Call
from .polyphase import polyphase
from .propagate import ancestors
from .rules import RULES

_TRACING = threading.RLock()  # the process has one error stream


def capture(
    module: nn.Module,
    args: Sequence[Tensor],
    kwargs: Mapping[str, Tensor] | None = None,
) -> tuple[Graph, dict[str, Tensor]]:
    """Capture a module's forward pass as operators on grids.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode.
    args, kwargs : tensors
        Example inputs; only their shapes, strides and dtypes matter. A one-element tensor expanded
        to the volume's shape stands for a contiguous one. The last axes but the first two are the
        grid's.

    Returns
    -------
    graph : Graph
    weights : dict of str to torch.Tensor
        The module's own parameters, buffers and constants, by their names in the graph; not
        copied, but for kernels that were taken apart.

    Raises
    ------
    UnsupportedOperatorError
        If the module is in training mode, draws random numbers, or cannot be captured.
    """
    training = [name or type(module).__name__ for name, m in module.named_modules() if m.training]
    if training:
        raise UnsupportedOperatorError(
            f"{training[0]}: in training mode, where dropout and batch statistics differ from tile "
            "to tile; call .eval() on the network first"
        )
    given = [*args, *(kwargs or {}).values()]
    program = _export(module, tuple(args), dict(kwargs or {}))
    inputs: list[str] = []
    weights: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(spec.arg.name)
        elif spec.target is not None:
            weights[spec.arg.name] = _find(program, spec.target)

    builder = Builder(max(a.ndim for a in given) - 2, precision_of(module, given), weights)
    refs = _build(program, builder, set(inputs))

    leaves = []
    for out in program.graph_signature.output_specs:
        if out.kind is OutputKind.USER_OUTPUT:
            name = getattr(out.arg, "name", None)
            leaves.append(getattr(out.arg, "value", None) if name not in refs else refs[name])
    # What was taken whole and is as large as the volume goes out like any other output.
    volumes = {builder.layouts[name].grid for name in inputs}
    leaves = [
        Ref(builder.image(leaf.name))
        if isinstance(leaf, Ref)
        and leaf.name in builder.layouts
        and builder.layouts[leaf.name].shape[2:] in volumes
        else leaf
        for leaf in leaves
    ]
    names = tuple(leaf.name for leaf in leaves if isinstance(leaf, Ref))
    for name in names:
        if name in weights:
            raise UnsupportedOperatorError(
                f"{type(module).__name__}: returns {name}, which does not depend on its input"
            )
    graph = replace(builder.graph, inputs=tuple(inputs))
    used = ancestors(graph, names, ())
    nodes = {name: graph.nodes[name] for name in used}
    kept = {name for node in nodes.values() for name in node.weights}
    weights = {name: value for name, value in builder.weights.items() if name in kept}
    graph = replace(
        graph,
        outputs=names,
        nodes=nodes,
        layouts={n: graph.layouts[n] for n in (*inputs, *used)},
        weights={name: tuple(value.shape) for name, value in weights.items()},
        structure=(program.call_spec.out_spec, tuple(leaves)),
    )
    graph, weights = polyphase(graph, weights)
    kinds = {**graph.kinds, **_own_kinds(graph, weights, builder)}
    return fuse(replace(graph, kinds=kinds)), weights


def _own_kinds(graph: Graph, weights: Mapping[str, Tensor], builder: Builder) -> dict[str, str]:
    """Dtypes of weights that no operator in the precision of the computation takes."""
    cast = {key for node in graph.nodes.values() if node.dtype is None for key in node.weights}
    kinds = {
        key: builder.kind_of(value.dtype)
        for key, value in weights.items()
        if key not in cast and value.is_floating_point()
    }
    return {key: kind for key, kind in kinds.items() if kind is not None}


def precision_of(module: nn.Module, given: Iterable[Tensor]) -> torch.dtype:
    """Return the dtype of a module's arithmetic: of its first input that is no integer, or its own.

    Parameters
    ----------
    module : torch.nn.Module
    given : iterable of torch.Tensor
        Its inputs.
    """
    every = (*given, *module.parameters(), *module.buffers())
    return next((a.dtype for a in every if a.is_floating_point()), torch.float32)


def _export(
    module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> torch.export.ExportedProgram:
    try:
        # Operators stay as large as they were written. Tracing anew, which takes longer than the
        # export, is for what needs it.
        # Without gradients, so that a forward that does without them too has nothing to switch.
        with warnings.catch_warnings(), torch.no_grad(), _quiet():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, *_imagined(args, kwargs), strict=False)
            table = _decompositions()
            calls = [fx for fx in program.graph.nodes if fx.op == "call_function"]
            if all(fx.target not in table and _is_known(fx) and _can_replace(fx) for fx in calls):
                return program
            for fx in calls:
                _check_change(fx)
            _leave_out_dropout(program.graph_module)
            return program.run_decompositions(table)
    except UnsupportedOperatorError:
        raise
    except Exception as error:
        raise UnsupportedOperatorError(
            f"{type(module).__name__}: torch.export cannot capture it for inputs of shape "
            f"{[tuple(a.shape) for a in (*args, *kwargs.values())]}: {_reason(error)}"
        ) from error


def _imagined(
    args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return tensors without memory that lie as the given ones do: views or copies depend on it."""
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):

        def imagine(x: Tensor) -> Tensor:
            made = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            if 0 in x.stride():
                return made
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)

        return tuple(map(imagine, args)), {name: imagine(x) for name, x in kwargs.items()}


def _leave_out_dropout(module: torch.fx.GraphModule) -> None:
    """Let what dropout that does nothing returns be its argument, as it is: torch takes a copy."""
    for fx in list(module.graph.nodes):
        idle = fx.target == torch.ops.aten.dropout.default and not fx.args[2]
        if idle and all(user.op != "output" for user in fx.users):
            fx.replace_all_uses_with(fx.args[0])
            module.graph.erase_node(fx)
    module.recompile()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing what it traced before a decision: the error says where that is."""
    log, held = logging.getLogger("torch.fx.experimental.symbolic_shapes"), io.StringIO()
    with _TRACING:
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            with contextlib.redirect_stderr(held):
                yield
        except GuardOnDataDependentSymNode:
            held = io.StringIO()
            raise
        finally:
            log.setLevel(level)
            if text := held.getvalue():
                sys.stderr.write(text)


def _reason(error: Exception) -> str:
    text = str(error).strip()
    if not isinstance(error, GuardOnDataDependentSymNode):
        return text.split("\n")[0]
    lines = re.findall(r'File "(.+)", line (\d+)', text)
    where = "at {}:{}".format(*lines[-1]) if lines else "somewhere"
    return (
        f"{where} it takes a number or a decision from the values of a tensor, such as float(x) or "
        "if x > 0, which no tile knows; keep it a tensor, as torch.where does"
    )


def _decompositions() -> dict[Any, Any]:
    """Operators that torch itself writes as views, permutations and products."""
    aten = torch.ops.aten
    return torch._decomp.get_decompositions(
        [aten.pixel_shuffle, aten.pixel_unshuffle, aten.addmm, aten.baddbmm, aten.channel_shuffle]
    )


def _is_known(fx: torch.fx.Node) -> bool:
    """Whether there is a rule for a call as it was written."""
    if not isinstance(fx.target, torch._ops.OpOverload):
        return True  # an element of several results
    op = fx.target._schema.name.removeprefix("aten::")
    op = op.removesuffix("_") if fx.target._schema.is_mutable else op
    return op in RULES or op in LOWER or op in _SAME or op in _CHECKS or "dropout" in op


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


def _check_change(fx: torch.fx.Node) -> None:
    """Refuse a change in place of what may be a view, or not, and torch knows neither."""
    target = fx.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return
    changed = fx.args[0] if fx.args else None
    if isinstance(changed, torch.fx.Node) and changed.target is operator.getitem:
        changed = changed.args[0]
    source = getattr(changed, "target", None)
    if isinstance(source, torch._ops.OpOverload) and source._schema.name in _OF_EITHER_KIND:
        names = [op._schema.name.removeprefix("aten::") for op in (target, source)]
        raise UnsupportedOperatorError(
            f"operator {names[0]}: changes in place what {names[1]} returned, which may be a view "
            "of its operand; call the one that returns a new tensor"
        )


def _is_view(fx: torch.fx.Node) -> bool:
    """Whether what a call returns may share memory with what it takes."""
    if not isinstance(fx.target, torch._ops.OpOverload):
        return fx.op == "call_function"  # an element of several results
    schema = fx.target._schema
    # Composite operators may return their argument without saying so in the schema.
    maybe = schema.name in _MAYBE_VIEWS
    return maybe or (not schema.is_mutable and any(r.alias_info for r in schema.returns))


def _build(
    program: torch.export.ExportedProgram, builder: Builder, inputs: set[str]
) -> dict[str, Ref]:
    """Add every operator of the program; return where each of its values is in the graph."""
    refs = {name: Ref(name) for name in builder.weights}
    several: dict[str, torch.fx.Node] = {}

    def convert(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return refs[value.name]
        if isinstance(value, (list, tuple)):
            return tuple(convert(v) for v in value)
        return value

    for fx in program.graph.nodes:
        if fx.op == "placeholder" and fx.name in inputs:
            shape = tuple(fx.meta["val"].shape)
            image = len(shape) == builder.rank + 2
            builder.layouts[fx.name] = (Layout.image if image else Layout.fixed)(
                shape, builder.rank
            )
            refs[fx.name] = Ref(fx.name)
            kind = builder.kind_of(fx.meta["val"].dtype)
            if kind is not None:
                builder.kinds[fx.name] = kind
        if fx.op != "call_function":
            continue
        result, source = None, fx
        if fx.target is operator.getitem:
            source, result = several[fx.args[0].name], fx.args[1]
        where = list(source.meta.get("nn_module_stack", {}).values())
        path = where[-1][0] if where else ""
        target = source.target
        if not isinstance(target, torch._ops.OpOverload):
            if "autocast" in str(target):
                raise UnsupportedOperatorError(
                    f"autocast in submodule {path!r}: cannot be evaluated by tiles; take it out of "
                    "the forward and pass precision (--precision)"
                )
            raise UnsupportedOperatorError(
                f"{target} in submodule {path!r}: control flow cannot be evaluated by tiles"
            )
        space, _, op = target._schema.name.partition("::")
        op = op if space == "aten" else target._schema.name
        changed = fx.args[0] if target._schema.is_mutable else None
        op = op.removesuffix("_") if changed is not None else op
        bound = {a.name: a.default_value for a in target._schema.arguments}
        bound.update(zip(bound, source.args, strict=False))
        bound.update(source.kwargs)
        active = bound.get("train", bound.get("training", bound.get("dropout_p", True)))
        if torch.Tag.nondeterministic_seeded in target.tags and active:
            raise UnsupportedOperatorError(
                f"operator {op} in submodule {path!r}: draws random numbers, so that no two "
                "evaluations agree; is dropout active? Call it with training=self.training"
            )
        if op in _CHECKS:
            continue
        if op in _SAME or "dropout" in op:
            refs[fx.name] = convert(source.args[0])
            continue
        if fx is source and (len(target._schema.returns) > 1 or _gives_list(target)):
            several[fx.name] = fx
            continue
        made = fx.meta["val"]
        if not isinstance(made, Tensor) or not all(isinstance(n, int) for n in made.shape):
            raise UnsupportedOperatorError(
                f"operator {op} in submodule {path!r}: its result has a size or is a number that "
                "depends on the values, which no tile knows; use masks of the volume's shape"
            )
        if op == "as_strided" and not source.args[0].meta["val"].is_contiguous():
            raise UnsupportedOperatorError(
                f"operator as_strided in submodule {path!r}: of a tensor that is not contiguous, "
                "what it gives depends on the order in memory; call .contiguous() before"
            )
        call = Call(
            builder,
            fx.name,
            op,
            target._overloadname,
            {key: convert(value) for key, value in bound.items()},
            tuple(made.shape),
            path,
            result,
            made.dtype,
        )
        refs[fx.name] = LOWER.get(op, Call.plain)(call)
        if changed is not None:
            refs[changed.name] = refs[fx.name]  # what reads it from here on sees the change
    return refs


# Operators that return their first argument unchanged, and those that only check.
_SAME = {"clone", "alias", "detach", "contiguous", "lift_fresh_copy", "lift_fresh"}
_OF_EITHER_KIND = {"aten::einsum", "aten::meshgrid"}
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
_CHECKS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range"}


def _gives_list(target: torch._ops.OpOverload) -> bool:
    return str(target._schema.returns[0].type).startswith("List")


def _find(program: torch.export.ExportedProgram, key: str) -> Tensor:
    value = program.state_dict[key] if key in program.state_dict else program.constants[key]
    return value.detach()
