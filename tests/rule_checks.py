"""Rules against their operators on the whole grid: what the tests of rules share."""

from functools import reduce

import torch
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from torch import nn

from outcrop.graph import RULES, Box, Reduce, capture, tiles

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Apply(nn.Module):
    """A function as a module, with parameters it may use."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(modules)

    def forward(self, *inputs):
        return self.function(*inputs, *self.layers)


def inputs_for(shape, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def check_rule(module, inputs, data, op=None):
    """Evaluate every operator on random boxes of its result and compare with the whole.

    The operands are those of the whole evaluation, cut to the boxes that the rule needs.
    """
    module = module.double().eval()
    with torch.no_grad():
        try:
            expected = module(*inputs)
        except RuntimeError:
            assume(False)  # arguments that the operator itself refuses
    assume(expected.numel() > 0)
    graph, weights = capture(module, inputs)
    assert op is None or op in {node.op for node in graph.nodes.values()}
    whole = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes.values():
        rule = RULES[node.op]

        def on(box, step, node=node, rule=rule):
            values = {name: weights[name] for name in node.weights}
            for name, need in rule.needs(node, box, graph).items():
                assert need in graph.whole(name)
                assert need.size > 0
                layout = graph.layouts[name]
                values[name] = layout.cut(whole[name], layout.whole, need).clone()
            with torch.inference_mode():
                return step(node, box, values, graph)

        layout = graph.layouts[node.name]
        whole[node.name] = on(layout.whole, rule.evaluate)
        assert whole[node.name].shape == layout.shape
        start = tuple(data.draw(st.integers(0, n - 1)) for n in layout.grid)
        ends = zip(start, layout.grid, strict=True)
        stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in ends)
        box = Box(start, stop)
        cut = layout.cut(whole[node.name], layout.whole, box)
        spared = rule.spared(node, graph)
        assert spared is None or spared in node.operands
        for step in (rule.evaluate, rule.overwrite)[: 1 if spared is None else 2]:
            found = on(box, step)
            assert list(found.shape) == layout.local(box)
            torch.testing.assert_close(found, cut, rtol=1e-12, atol=1e-12, equal_nan=True)
        if isinstance(rule, Reduce):
            check_reduce(rule, node, whole, graph, data)
        form = layout.to_store(cut, box)
        assert form.shape[-graph.rank :] == box.shape
        torch.testing.assert_close(
            layout.from_store(form, box), cut, rtol=0, atol=0, equal_nan=True
        )
    (name,) = graph.outputs
    torch.testing.assert_close(whole[name], expected, rtol=1e-10, atol=1e-10, equal_nan=True)
    return graph


def check_reduce(rule, node, whole, graph, data):
    """States of tiles, merged, give what the whole gives."""
    layout = graph.layouts[node.operands[0]]
    tile = tuple(data.draw(st.integers(1, n)) for n in layout.grid)
    x = whole[node.operands[0]]
    states = [rule.state(node, layout.cut(x, layout.whole, t)) for t in tiles(layout.whole, tile)]
    merged = reduce(rule.merge, states)
    found = rule.result(node, merged, whole[node.name].dtype)
    torch.testing.assert_close(found, whole[node.name], rtol=1e-10, atol=1e-12)


def grids(rank, least=1, most=13):
    return st.tuples(*[st.integers(least, most)] * rank)
