"""From an `nn.Module` to a `Graph`, at the volume's full shape and without allocating it."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind

from ..errors import ArgumentError, UnsupportedOperatorError
from ..heap import collected_later
from .build import Builder
from .call import Call
from .flattened import Turned, lower
from .fuse import fuse
from .graph import Graph, Ref
from .layout import Layout
from .polyphase import polyphase
from .program import CHECKS, SAME, export
from .propagate import ancestors
from .tables import spread_tables


@collected_later()
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
        If the module is in training mode, scripted, draws random numbers, or cannot be captured.
    ArgumentError
        If it has no weights yet.
    """
    training = [name or type(module).__name__ for name, m in module.named_modules() if m.training]
    if training:
        raise UnsupportedOperatorError(
            f"{training[0]}: in training mode, where dropout and batch statistics differ from tile "
            "to tile; call .eval() on the network first"
        )
    scripted = [
        name or type(module).__name__
        for name, m in module.named_modules()
        if isinstance(m, torch.jit.ScriptModule)
    ]
    if scripted:
        raise UnsupportedOperatorError(
            f"{scripted[0]}: scripted or traced, so that torch.export cannot see its operators; "
            "use the nn.Module that it was made from"
        )
    own = (*module.named_parameters(), *module.named_buffers())
    if (empty := next((name for name, value in own if value.is_meta), None)) is not None:
        raise ArgumentError(f"module: {empty} has no values (it is on 'meta'); load weights first")
    given = [*args, *(kwargs or {}).values()]
    program = export(module, tuple(args), dict(kwargs or {}))
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
    # What does not depend on the input, such as weights of losses, goes out as it is.
    fixed = [a.name for a in leaves if isinstance(a, Ref) and a.name in weights]
    leaves = [weights[a.name] if isinstance(a, Ref) and a.name in weights else a for a in leaves]
    names = tuple(leaf.name for leaf in leaves if isinstance(leaf, Ref))
    if fixed and not names:
        raise UnsupportedOperatorError(
            f"{type(module).__name__}: returns {fixed[0]}, which does not depend on its input"
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
    graph, weights = polyphase(spread_tables(graph), weights)
    kinds = {**graph.kinds, **_own_kinds(graph, weights, builder)}
    return fuse(replace(graph, kinds=kinds)), weights


def _own_kinds(graph: Graph, weights: Mapping[str, Tensor], builder: Builder) -> dict[str, str]:
    """Dtypes of weights that no operator in the precision of the computation takes."""
    cast = {key for node in graph.nodes.values() if node.dtype is None for key in node.weights}
    kinds = {
        key: builder.kind_of(value.dtype)
        for key, value in weights.items()
        if value.is_complex() or (key not in cast and value.is_floating_point())
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


def _build(
    program: torch.export.ExportedProgram, builder: Builder, inputs: set[str]
) -> dict[str, Ref]:
    """Add every operator of the program; return where each of its values is in the graph."""
    refs = {name: Ref(name) for name in builder.weights}
    several: dict[str, torch.fx.Node] = {}
    turned: dict[str, Turned] = {}

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
        place = f"in submodule {path!r}" if path else "in the forward"
        target = source.target
        if not isinstance(target, torch._ops.OpOverload):
            if "autocast" in str(target):
                raise UnsupportedOperatorError(
                    f"autocast {place}: cannot be evaluated by tiles; take it out and pass "
                    "precision (--precision)"
                )
            raise UnsupportedOperatorError(
                f"{target} {place}: control flow cannot be evaluated by tiles"
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
                f"operator {op} {place}: draws random numbers, so that no two "
                "evaluations agree; is dropout active? Call it with training=self.training"
            )
        if op in CHECKS:
            continue
        if op in SAME or "dropout" in op:
            refs[fx.name] = convert(source.args[0])
            continue
        if fx is source and (len(target._schema.returns) > 1 or _gives_list(target)):
            several[fx.name] = fx
            continue
        made = fx.meta["val"]
        if not isinstance(made, Tensor) or not all(isinstance(n, int) for n in made.shape):
            raise UnsupportedOperatorError(
                f"operator {op} {place}: its result has a size or is a number that "
                "depends on the values, which no tile knows; use masks of the volume's shape"
            )
        if op == "as_strided" and not source.args[0].meta["val"].is_contiguous():
            raise UnsupportedOperatorError(
                f"operator as_strided {place}: of a tensor that is not contiguous, "
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
        counted = call.makes_floats()
        refs[fx.name] = lower(call, turned)
        if counted:
            refs[fx.name] = call.in_precision(refs[fx.name])
        if changed is not None:
            refs[changed.name] = refs[fx.name]  # what reads it from here on sees the change
    return refs


def _gives_list(target: torch._ops.OpOverload) -> bool:
    return str(target._schema.returns[0].type).startswith("List")


def _find(program: torch.export.ExportedProgram, key: str) -> Tensor:
    value = program.state_dict[key] if key in program.state_dict else program.constants[key]
    return value.detach()
