"""The figures of ``hetmem bench``, with the machine's speed taken out; and a step's cost against what it depends on."""

from typing import Any

import pytest

from hetmem.study import bench
from hetmem.testing.sparse_step import SparseSteps

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def bare_s() -> float:
    return bench.bare_timeout_s()


def test_tasks_per_timeout(bare_s: float, benchmark: Any) -> None:
    found = benchmark.pedantic(bench.tasks_per_timeout, (bare_s,), rounds=1)
    benchmark.extra_info.update(found, bare_timeout_us=bare_s * 1e6)
    print(found)
    assert found["event"] < found["evaluator_background"] < found["evaluator"] < found["fixed_order"]


@pytest.mark.parametrize("system", bench.CASES)
def test_timeouts_per_step(system: str, bare_s: float, benchmark: Any) -> None:
    found = benchmark.pedantic(bench.step_cost, (system,), rounds=1)
    benchmark.extra_info.update(timeouts_per_step=found["cpu_s"] / bare_s, events_per_step=found["events"])
    print(system, benchmark.extra_info)


def test_the_cost_of_a_task_hardly_depends_on_the_number_of_layers_and_units(bare_s: float) -> None:
    cases = (SparseSteps(8, 8), SparseSteps(96, 8), SparseSteps(80, 16))
    costs = {case: bench.task_s(case, "evaluator") for case in cases}
    print({f"{case.layers} layers, {case.dimms} DIMMs": cost / bare_s for case, cost in costs.items()})
    assert max(costs.values()) < 2 * min(costs.values())


def test_a_folded_step_costs_the_same_whatever_the_number_of_layers(bare_s: float) -> None:
    costs = {layers: bench.folded_step_s(layers) for layers in (8, 32, 96)}
    print({layers: cost / bare_s for layers, cost in costs.items()})
    assert max(costs.values()) < 1.1 * min(costs.values())


def test_serving_costs_the_same_however_many_requests_come_and_wait(bare_s: float) -> None:
    rate = bench.serve(10_000)["requests_per_s"]
    few, many = (bench.serve(n, rate=bench.LOAD * rate) for n in (10_000, 50_000))
    print(few, many, "timeouts a step:", many["cpu_s"] / many["steps"] / bare_s)
    assert many["cpu_s"] / 50_000 == pytest.approx(few["cpu_s"] / 10_000, rel=0.15)
    assert many["peak_bytes"] < 1.3 * few["peak_bytes"]
    for admission in ("fcfs", "shortest"):
        flooded = bench.serve(10_000, rate=bench.OVERLOAD * rate, admission=admission)
        print(admission, flooded)
        assert flooded["cpu_s"] / flooded["steps"] < 2 * few["cpu_s"] / few["steps"]
