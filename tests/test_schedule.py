"""Tiles run in an order in which all that each reads is written before, whoever is slow."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outcrop.engine.schedule import Schedule
from outcrop.engine.tile import StageRunner
from outcrop.graph import Box, capture
from outcrop.planner import Plan, Stage
from random_plans import draw_plan
from test_exact import RandomNetwork, recipes


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.data(), st.sampled_from([2, 3]), recipes, st.tuples(*[st.integers(4, 13)] * 3), st.randoms()
)
def test_no_tile_reads_what_is_not_written(data, rank, recipe, shape, random):
    network = RandomNetwork(rank, recipe).double().eval()
    graph, weights = capture(network, [torch.zeros(1, 1, *shape[:rank], dtype=torch.float64)])
    plan = draw_plan(graph, data)
    runners = [StageRunner(graph, stage, weights, {}) for stage in plan.stages]
    every = [(i, n) for i, stage in enumerate(plan.stages) for n in range(stage.count)]
    # Any beginning of an undisturbed run.
    finished = every[: data.draw(st.integers(0, len(every)))]
    schedule = Schedule(plan, lambda i, tile: runners[i].reads(tile), finished)
    written = {
        name: torch.zeros(graph.grid(name), dtype=torch.bool)
        for stage in plan.stages
        for name in stage.outputs
    }
    boxes = [list(stage.tiles()) for stage in plan.stages]
    globals_, spent = set(), set()

    def write(i, n):
        for name in plan.stages[i].outputs:
            written[name][boxes[i][n].slices] = True

    def complete(i):
        schedule.merge(i)
        globals_.update(plan.stages[i].reduces)
        spent.update(schedule.spent(i))

    for i, n in finished:
        write(i, n)
    for i in range(len(plan.stages)):
        if schedule.is_written(i):
            complete(i)
    running, ran = [], []
    while True:
        found = schedule.take() if len(running) < 5 else None
        if found is not None:
            i, n, box = found
            assert box == boxes[i][n]
            for name, read in runners[i].reads(box).items():
                assert name not in spent
                if name in written:
                    assert written[name][read.slices].all()
                elif name in graph.nodes:
                    assert name in globals_
            running.append((i, n))
            continue
        if not running:
            break
        i, n = running.pop(random.randrange(len(running)))
        ran.append((i, n))
        write(i, n)
        schedule.write(i, n)
        if schedule.is_written(i):
            complete(i)
    assert sorted([*finished, *ran]) == every
    stored = {name for stage in plan.stages for name in (*stage.outputs, *stage.reduces)}
    assert spent >= stored


def two_stages(graph, first, last):
    usual = {"domain": Box.whole((8, 4)), "tile": (2, 4), "reduces": ()}
    usual |= {"operations": 1.0, "overhead": 1.0, "tile_bytes": 1}
    stages = (
        Stage(outputs=(first,), inputs=tuple(graph.inputs), nodes=(first,), **usual),
        Stage(outputs=(last,), inputs=(first,), nodes=(last,), **usual),
    )
    return Plan(stages, {first: "disk"}, {first: 1}, 1, 1, 1, "float32", graph.digest())


def test_stages_overlap():
    """A tile of the second stage waits for its neighbours alone, not for the whole first stage."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Conv2d(1, 1, 1))
    graph, weights = capture(network.eval(), [torch.zeros(1, 1, 8, 4)])
    first, last = graph.nodes
    plan = two_stages(graph, first, last)
    runners = [StageRunner(graph, stage, weights, {}) for stage in plan.stages]
    schedule = Schedule(plan, lambda i, tile: runners[i].reads(tile))
    taken = [schedule.take() for _ in range(4)]
    assert [(i, n) for i, n, _ in taken] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert schedule.take() is None
    schedule.write(0, 1)
    assert schedule.take() is None  # the first one needs tile 0
    schedule.write(0, 0)
    assert schedule.take()[:2] == (1, 0)
    assert schedule.take()[:2] == (1, 1)
    assert schedule.take() is None
