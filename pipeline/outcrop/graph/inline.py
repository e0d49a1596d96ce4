"""Operators that `torch.export` keeps apart, as they ran in a context of their own, put in line."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

_GRADIENTS = torch.ops.higher_order.wrap_with_set_grad_enabled


def inline(module: GraphModule) -> None:
    """Put in line what ran with autocast off, or with gradients switched: here both do nothing.

    Parameters
    ----------
    module : torch.fx.GraphModule
        Changed in place; its outputs keep their names.
    """
    for fx in list(module.graph.nodes):
        if fx.op == "call_function" and (fx.target is _GRADIENTS or _is_autocast_off(fx)):
            _put_in_line(module, fx)
    module.recompile()


def _is_autocast_off(fx: Node) -> bool:
    switches = "wrap_with_autocast" in str(fx.target)
    return switches and fx.args[2] is False  # device, dtype, whether it is on


def _put_in_line(module: GraphModule, fx: Node) -> None:
    graph, at = module.graph, next(i for i, a in enumerate(fx.args) if isinstance(a, Node))
    own, given = fx.args[at], fx.args[at + 1 :]
    assert isinstance(own, Node)
    kept = str(own.target)  # the name under which the module has it
    block = getattr(module, kept)
    inline(block)
    here = dict(zip(block.graph.find_nodes(op="placeholder"), given, strict=True))
    with graph.inserting_before(fx):
        for inner in block.graph.nodes:
            if inner.op == "output":
                results = inner.args[0]
            elif inner.op != "placeholder":
                here[inner] = graph.node_copy(inner, here.__getitem__)
            if inner.op == "get_attr":
                name = f"{kept}_{inner.target}"
                setattr(module, name, getattr(block, inner.target))
                here[inner].target = name
    for user in list(fx.users):  # an element of its results; an output is known by its name
        user.target, user.args = torch.ops.aten.alias.default, (here[results[user.args[1]]],)
    graph.erase_node(fx)
    if not own.users:
        graph.erase_node(own)
