"""Plans drawn at random: any that is valid must give the same volume."""

from hypothesis import strategies as st

from outcrop.graph import RULES, Box, Reduce
from outcrop.graph.propagate import ancestors
from outcrop.planner import Plan, Stage

PLACES = ("device", "disk")


def must_store(graph):
    """Tensors that no plan can do without."""
    forced = set()
    for node in graph.nodes.values():
        if isinstance(RULES[node.op], Reduce):
            forced.add(node.name)
        if node.op in ("whole", "on_grid"):
            forced.update(n for n in node.operands if n in graph.nodes)
        for name in node.operands:
            if graph.layouts[name].is_fixed and not graph.layouts[node.name].is_fixed:
                forced.update({name} & graph.nodes.keys())
    return forced


def draw_plan(graph, data, dtype="float64"):
    """Draw what is stored, where, and the tiles of every stage."""
    stored = must_store(graph)
    for name in graph.nodes:
        if graph.nodes[name].dtype is None and data.draw(st.integers(0, 3)) == 0:
            stored.add(name)
    outputs = [n for n in dict.fromkeys(graph.outputs) if n in graph.nodes]
    stages = []
    for name in graph.nodes:
        if name not in stored and name not in outputs:
            continue
        reduce = isinstance(RULES[graph.nodes[name].op], Reduce)
        target = graph.nodes[name].operands[0] if reduce else name
        given = stored if reduce else stored - {name}
        nodes = () if reduce and target in stored else ancestors(graph, [target], given)
        read = {o for n in nodes for o in graph.nodes[n].operands} - set(nodes)
        if reduce and not nodes:
            read.add(target)
        grid = graph.grid(target)
        stages.append(
            Stage(
                outputs=() if reduce else (name,),
                inputs=tuple(sorted(read)),
                nodes=nodes,
                domain=Box.whole(grid),
                # At most six along each axis: single points of an image are thousands of tiles.
                tile=tuple(data.draw(st.integers(-(-n // 6), n)) for n in grid),
                operations=1.0,
                overhead=1.0,
                tile_bytes=1,
                reduces=(name,) if reduce else (),
            )
        )
    return Plan(
        stages=tuple(stages),
        places={
            n: data.draw(st.sampled_from(PLACES)) for n in graph.nodes if n in stored - set(outputs)
        },
        stored_bytes=dict.fromkeys(stored, 1),
        weight_bytes=1,
        peak_memory=1,
        memory=1,
        dtype=dtype,
        graph=graph.digest(),
    )
