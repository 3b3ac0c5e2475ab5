"""Streaming: each tier runs ahead as far as its buffer allows, across the step's end too."""

import pytest

import hetmem
from hetmem.engine.executor import Executor
from hetmem.engine.graph import Cost, GraphBuilder
from hetmem.errors import CapacityError
from hetmem.hardware.clock import Clock
from hetmem.hardware.server import Server
from hetmem.system.stream import Path, Stage, reach, stream


def test_reach_adds_the_depths_from_the_gpu_on():
    assert reach((3, 2), 41) == [5, 2]
    assert reach((2,), 41) == [2]
    assert reach((3, 2), 3) == [2, 2]


@pytest.mark.parametrize("durations", [(10, 3, 20), (10, 3, 4), (3, 10, 4), (7, 7, 7)])
@pytest.mark.parametrize("depths", [(0, 0), (0, 2), (1, 1), (3, 2), (2, 0)])
def test_starts_follow_the_recursion_over_buffers(durations, depths):
    """A copy starts when its source, its server and a buffer are there; a far buffer is free once copied on."""
    n = 12
    far_ps, near_ps, kernel_ps = durations
    graph = GraphBuilder()
    stream(graph, [Stage("k", "w")] * n, [Path(("far",), 0), Path(("near",), 0)], depths, graph.join())
    env, seen = Clock(), {"far": [], "near": [], "gpu0": [], "gpu0.hbm": []}
    executor = Executor(
        env, {name: Server(env, name) for name in seen},
        lambda rank, server, tag, start_ps, end_ps, n_bytes: seen[server].append(start_ps),
    )  # fmt: skip
    costs = {"w@far": Cost(far_ps), "w@near": Cost(near_ps), "k.compute": Cost(kernel_ps), "k.memory": Cost(1)}
    executor.submit(graph.build().bind(costs), 0)
    env.run()
    far, near, kernel = [], [], []  # ends
    for i in range(n):
        free = near[i - depths[0] - 1] if i > depths[0] else 0
        far.append(max(free, far[-1] if far else 0) + far_ps)
        free = kernel[i - depths[1] - 1] if i > depths[1] else 0
        near.append(max(free, near[-1] if near else 0, far[i]) + near_ps)
        kernel.append(max(near[i], kernel[-1] if kernel else 0) + kernel_ps)
    assert seen["far"] == [end - far_ps for end in far]
    assert seen["near"] == [end - near_ps for end in near]
    assert seen["gpu0"] == [end - kernel_ps for end in kernel]


FROM_SSD = {"machine.host.capacity_bytes": 20_000_000_000}


def test_the_ssd_runs_ahead_over_the_end_of_a_step():
    done = hetmem.simulate("zero-inference", model="opt-13b", workload=hetmem.fixed(16, 4, 1), trace=True,
                           settings=FROM_SSD)  # fmt: skip
    spec = hetmem.load_model("opt-13b")
    tasks = done.tasks.to_pandas()
    loads = tasks[tasks["server"].isin(["ssd", "pcie.h2d"])].groupby(["step", "server"]).size().unstack()
    stages = spec.n_layers + 1
    # The first step loads all its stages and those ahead of the second; each later one as many as it has.
    assert loads["ssd"].tolist()[0] == stages + 5
    assert loads["pcie.h2d"].tolist()[0] == stages + 2
    assert loads["ssd"].tolist()[1] == loads["pcie.h2d"].tolist()[1] == stages


def test_the_buffer_in_host_memory_holds_the_stages_ahead_and_the_one_that_is_copied_on():
    with pytest.raises(CapacityError, match=r"host: 8\.15 GB asked"):
        hetmem.simulate("zero-inference", model="opt-66b", workload=hetmem.fixed(16, 2, 1),
                        settings={"machine.host.capacity_bytes": 7_000_000_000})  # fmt: skip
