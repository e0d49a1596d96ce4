"""What kernels take beside operands and result is what their rules say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from outcrop.engine.memory import highest_resident, reset_highest_resident, resident
from outcrop.graph import RULES, capture

SHAPE = (1, 16, 64, 64, 64)
CASES = {
    "sort": lambda x: torch.sort(x, dim=1)[0],
    "sort, indices": lambda x: torch.sort(x, dim=1)[1],
    "softmax": lambda x: x.softmax(1),
    "softmax, last": lambda x: x.movedim(1, -1).softmax(-1),
    "log_softmax": lambda x: x.log_softmax(1),
    "log_sigmoid": F.logsigmoid,
    "isfinite": torch.isfinite,
    "isinf": torch.isinf,
    "cumsum": lambda x: x.cumsum(1),
    "gelu": F.gelu,
    "logsumexp": lambda x: x.logsumexp(1),
    "max": lambda x: x.max(1)[0],
    "max, indices": lambda x: x.max(1)[1],
    "kthvalue": lambda x: x.kthvalue(2, 1)[0],
    "cummax": lambda x: x.cummax(1)[0],
}
NO_RULE = ("kthvalue", "cummax")


class Only(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_workspace_is_what_kernels_take():
    """In a process of its own, which returns to the system all memory that is freed."""
    command = [sys.executable, str(Path(__file__))]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 * len(CASES)
    slack = 2**20
    for line in lines:
        name, _, said, taken = line.split("\t")
        assert int(taken) <= int(said) + slack, line
        # Nothing is known of what an operator without a rule copies.
        assert name in NO_RULE or int(said) <= 2 * int(taken) + slack, line


def main():
    torch.set_num_threads(1)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for name, function in CASES.items():
            x = torch.randn(SHAPE, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
            graph, _ = capture(Only(function).eval(), [x])
            values, taken = {graph.inputs[0]: x}, 0
            for node in graph.nodes.values():
                box, rule = graph.whole(node.name), RULES[node.op]
                said = rule.workspace(node, box, graph, dtype.itemsize)
                rule.evaluate(node, box, values, graph)
                reset_highest_resident()
                before = resident()
                y = values[node.name] = rule.evaluate(node, box, values, graph)
                own = 0 if rule.is_view(node, graph) else y.numel() * y.element_size()
                taken = highest_resident() - before - own
            print(name, dtype, said, taken, sep="\t")


if __name__ == "__main__":
    main()
