"""From an `nn.Module` to a `Graph`, at the volume's full shape and without allocating it."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from ..errors import UnsupportedOperatorError
from .boxes import Shape
from .graph import Graph, Node, Ref
from .rules import RULES


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
        Example inputs; only their shapes and dtypes matter, so that a one-element tensor
        expanded to the volume's shape does. The last axes but the first two are the grid's.

    Returns
    -------
    graph : Graph
    weights : dict of str to torch.Tensor
        The module's own parameters, buffers and constants, by their names in the graph; not
        copied.

    Raises
    ------
    UnsupportedOperatorError
        If the module is in training mode, cannot be captured, or has an operator without a rule.
    """
    training = [name or type(module).__name__ for name, m in module.named_modules() if m.training]
    if training:
        raise UnsupportedOperatorError(
            f"{training[0]}: in training mode, where dropout and batch statistics differ from tile "
            "to tile; call .eval() on the network first"
        )
    try:
        # Functionalised, so that in-place operators cannot change what was already read; the
        # empty table keeps every operator as large as it was written.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, tuple(args), dict(kwargs or {}), strict=False)
            program = program.run_decompositions({})
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UnsupportedOperatorError(
            f"{type(module).__name__}: torch.export cannot capture it for inputs of shape "
            f"{[tuple(a.shape) for a in (*args, *(kwargs or {}).values())]}: {reason}"
        ) from error

    inputs: list[str] = []
    weights: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(name)
        else:
            weights[name] = _find(program, str(spec.target))
    rank = max(a.ndim for a in (*args, *(kwargs or {}).values())) - 2
    outputs = [spec.arg.name for spec in program.graph_signature.output_specs]

    shapes: dict[str, Shape] = {}
    nodes: dict[str, Node] = {}
    renamed: dict[str, str] = {}  # results that are another tensor under a new name

    def convert(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            return Ref(renamed.get(value.name, value.name))
        if isinstance(value, (list, tuple)):
            return tuple(convert(v) for v in value)
        return value

    for fx in program.graph.nodes:
        if fx.op == "placeholder" and fx.name in inputs:
            shapes[fx.name] = tuple(fx.meta["val"].shape)
        if fx.op != "call_function":
            continue
        where = list(fx.meta.get("nn_module_stack", {}).values())
        path = where[-1][0] if where else ""
        if fx.target is operator.getitem:
            source = convert(fx.args[0]).name
            if fx.args[1] != 0 or source not in nodes:
                raise UnsupportedOperatorError(
                    f"{nodes.get(source, source)}: only the first of its results has a rule"
                )
            renamed[fx.name] = source
            continue
        if not isinstance(fx.target, torch._ops.OpOverload):
            raise UnsupportedOperatorError(f"{fx.target} in submodule {path!r}: no rule for it")
        op, overload = fx.target._schema.name.removeprefix("aten::"), fx.target._overloadname
        if op in _SAME:
            renamed[fx.name] = convert(fx.args[0]).name
            continue
        if op in _CHECKS:
            continue
        bound = dict(zip((a.name for a in fx.target._schema.arguments), fx.args, strict=False))
        bound.update(fx.kwargs)
        arguments = {
            a.name: convert(bound.get(a.name, a.default_value)) for a in fx.target._schema.arguments
        }
        made = fx.meta["val"]
        made = made[0] if isinstance(made, (list, tuple)) else made
        node = Node(
            name=fx.name,
            op=op,
            overload=overload,
            args=arguments,
            operands=tuple(
                dict.fromkeys(n for n in _refs(tuple(arguments.values())) if n not in weights)
            ),
            shape=tuple(made.shape),
            module=path,
        )
        shapes[fx.name] = node.shape
        nodes[fx.name] = node

    names = tuple(renamed.get(name, name) for name in outputs)
    graph = Graph(
        rank,
        tuple(inputs),
        names,
        nodes,
        shapes,
        {name: tuple(value.shape) for name, value in weights.items()},
        structure=program.call_spec.out_spec,
    )
    for node in nodes.values():
        if node.op not in RULES:
            raise UnsupportedOperatorError(
                f"{node}: there is no rule for it yet, so it cannot be evaluated tile by tile"
            )
        RULES[node.op].check(node, graph)
    return graph, weights


# Operators that return their first argument unchanged in eval mode, and those that only check.
_SAME = {"dropout", "feature_dropout", "alpha_dropout", "clone", "alias", "detach", "contiguous"}
_CHECKS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range"}


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, tuple):
        for item in value:
            yield from _refs(item)


def _find(program: torch.export.ExportedProgram, key: str) -> Tensor:
    value = program.state_dict[key] if key in program.state_dict else program.constants[key]
    return value.detach()
