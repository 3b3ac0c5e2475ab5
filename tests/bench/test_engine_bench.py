"""The engine's cost in units of a bare SimPy timeout, so that the figure means the same on any machine."""

import time
from typing import Any

import pytest
import simpy

import hetmem

pytestmark = pytest.mark.bench

CASES = {
    "resident": {"model": "llama3.1-8b", "gpu": "a100-sxm-80gb", "gpus": 1},
    "zero-inference": {"model": "llama2-7b"},
    "accelerate": {"model": "opt-30b"},
    "flexgen": {"model": "opt-30b"},
    "ndp-dimm": {"model": "llama2-70b"},
}


def bare_timeout_s(n: int = 200_000) -> float:
    """Return the CPU-seconds of one timeout of a lone process, best of five."""
    best = 9.0
    for _ in range(5):
        env = simpy.Environment()

        def process(env: simpy.Environment = env) -> Any:
            for _ in range(n):
                yield env.timeout(1)

        env.process(process())
        start = time.process_time()
        env.run()
        best = min(best, (time.process_time() - start) / n)
    return best


@pytest.mark.parametrize("system", CASES)
def test_a_decode_step(system: str, benchmark: Any) -> None:
    def run() -> hetmem.Run:
        return hetmem.simulate(system, workload=hetmem.fixed(64, 200, 4), **CASES[system])

    done = benchmark(run)
    steps, bare = done.counters["steps"], bare_timeout_s()
    benchmark.extra_info["events_per_step"] = done.counters["events"] / steps
    benchmark.extra_info["bare_timeout_us"] = bare * 1e6
    if benchmark.stats is not None:
        benchmark.extra_info["bare_timeouts_per_step"] = benchmark.stats.stats.min / steps / bare
    print(system, benchmark.extra_info)
