"""The simulator's own cost, in units of a bare SimPy timeout, so that a figure means the same on any machine."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import simpy

from hetmem.engine.evaluator import Evaluator
from hetmem.engine.executor import Executor
from hetmem.engine.graph import TaskGraph
from hetmem.engine.program import COMPILE_AFTER
from hetmem.hardware.clock import Clock
from hetmem.hardware.lane import Lane
from hetmem.hardware.server import Server
from hetmem.study.simulate import simulate
from hetmem.testing.sparse_step import SparseSteps
from hetmem.workload import fixed

TIMEOUTS = 200_000
REPEATS, TASK_REPEATS = 3, 10
#: The runs whose steps are counted, by name: system, model, sequences and further options.
CASES: dict[str, dict[str, Any]] = {
    "resident": {"model": "llama3.1-8b", "gpu": "a100-sxm-80gb", "gpus": 1},
    "zero-inference": {"model": "llama2-7b"},
    "accelerate": {"model": "opt-30b"},
    "flexgen": {"model": "opt-30b"},
    "ndp-dimm": {"model": "llama2-70b"},
    "papi": {"model": "llama-65b"},
    "h2m2": {"model": "gpt3-175b"},
    "hermes": {"model": "llama2-70b", "sequences": 1, "settings": {"activity.group": 1}},
    "hermes, groups of 16": {"model": "llama2-70b", "sequences": 1, "settings": {"activity.group": 16}},
}
PROMPT, SEQUENCES = 64, 4
#: The steps between the two are counted: by then templates are compiled and what is remembered is there.
STEPS, FEWER_STEPS = 300, 100
#: Requests that are served, by load: as a share of the machine's capacity.
LOAD, OVERLOAD = 0.8, 1.5
SERVED, FULLY_SERVED, OVERLOADED = (10_000,), (10_000, 100_000, 1_000_000), 10_000
SERVING = {"model": "llama3.1-8b", "workload": "chat", "gpu": "a100-sxm-80gb", "gpus": 1, "batch": 128,
           "policies": {"batching": "continuous"}}  # fmt: skip
_SERVE = """
import json, sys, time
import numpy as np
from hetmem import simulate
from hetmem.study.bench import SERVING, peak_bytes
asked = json.loads(sys.argv[1])
simulate("resident", **SERVING | asked | {"requests": 1})
start = time.process_time()
run = simulate("resident", **SERVING | asked)
cpu_s = time.process_time() - start
finish_s = np.sort(run.requests.column("finish_ps")) * 1e-12
tenth = len(finish_s) // 10
steps = run.counters["steps"]
print(json.dumps({
    "cpu_s": cpu_s, "steps": steps, "tokens": run.output_tokens,
    "mean_batch": int(run.steps.column("decode_sequences").sum()) / steps,
    "requests_per_s": (len(finish_s) - 2 * tenth) / (finish_s[-1 - tenth] - finish_s[tenth]),
    "peak_bytes": peak_bytes(),
}))
"""


def peak_bytes() -> int:
    """Return the most memory that this process has held; of Linux its own figure, which starts anew with a program."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bare_timeout_s(n: int = TIMEOUTS) -> float:
    """Return the CPU-seconds of one timeout of a lone process, best of five."""
    return min(_bare(n) for _ in range(5))


def _bare(n: int) -> float:
    env = simpy.Environment()

    def process() -> Iterator[simpy.Event]:
        for _ in range(n):
            yield env.timeout(1)

    env.process(process())  # type: ignore[arg-type]  # simpy wants a generator type
    start = time.process_time()
    env.run()
    return (time.process_time() - start) / n


def bench(full: bool = False) -> dict[str, Any]:
    """Return the figures; with ``full``, of up to a million requests.

    ``bare_timeout_us``; ``tasks_per_timeout`` by way of running a graph; ``timeouts_per_step``, ``steps_per_cpu_s``
    and ``events_per_step`` by system; the cost of a step against layers (those of a folding step, and of one that
    cannot fold), units and requests; the same under overload, by admission policy; ``peak_bytes``.
    """
    bare_s = bare_timeout_s()
    steps = {name: step_cost(name) for name in CASES}
    served, overloaded = serve_all(full)

    def by_requests(figure: Callable[[dict[str, Any]], float]) -> dict[int, float]:
        return {n: figure(run) for n, run in served.items()}

    return {
        "bare_timeout_us": bare_s * 1e6,
        "tasks_per_timeout": tasks_per_timeout(bare_s),
        "timeouts_per_step": {name: cost["cpu_s"] / bare_s for name, cost in steps.items()},
        "steps_per_cpu_s": {name: 1 / cost["cpu_s"] for name, cost in steps.items()},
        "events_per_step": {name: cost["events"] for name, cost in steps.items()},
        "timeouts_per_step_by_layers_folded": {n: folded_step_s(n) / bare_s for n in (8, 32, 96)},
        "timeouts_per_step_by_layers": {n: _step_s(SparseSteps(layers=n)) / bare_s for n in (8, 32, 96)},
        "timeouts_per_step_by_units": {n: _step_s(SparseSteps(dimms=n)) / bare_s for n in (4, 8, 16)},
        "timeouts_per_step_by_requests": by_requests(lambda run: run["cpu_s"] / run["steps"] / bare_s),
        "steps_per_cpu_s_by_requests": by_requests(lambda run: run["steps"] / run["cpu_s"]),
        "cpu_us_per_request_by_requests": {n: run["cpu_s"] / n * 1e6 for n, run in served.items()},
        "mean_batch_by_requests": by_requests(lambda run: run["mean_batch"]),
        "tokens_per_cpu_s_by_requests": by_requests(lambda run: run["tokens"] / run["cpu_s"]),
        "timeouts_per_step_overloaded": {
            admission: run["cpu_s"] / run["steps"] / bare_s for admission, run in overloaded.items()
        },
        "peak_bytes": by_requests(lambda run: run["peak_bytes"]),
    }


def serve_all(full: bool) -> tuple[dict[int, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Serve chats at :data:`LOAD` of the capacity, by number of requests, and at :data:`OVERLOAD`, by admission.

    The capacity is what is completed in a second when all requests are there from the start, the first and the last
    tenth left out.
    """
    rate = serve(SERVED[0])["requests_per_s"]
    served = {n: serve(n, rate=LOAD * rate) for n in (FULLY_SERVED if full else SERVED)}
    admissions = ("fcfs", "shortest")
    return served, {name: serve(OVERLOADED, rate=OVERLOAD * rate, admission=name) for name in admissions}


def tasks_per_timeout(bare_s: float) -> dict[str, float]:
    """Return the tasks that are run in the time of a bare timeout: a Hermes-like step of 80 layers and 8 DIMMs."""
    background, plain = SparseSteps(), SparseSteps(copies=False)
    return {
        "event": bare_s / task_s(background, "event", steps=3),
        "evaluator_background": bare_s / task_s(background, "evaluator"),
        "evaluator": bare_s / task_s(plain, "evaluator"),
        "fixed_order": bare_s / task_s(plain, "evaluator", skipped=COMPILE_AFTER + 1),
    }


def task_s(case: SparseSteps, engine: str, steps: int = 10, skipped: int = 1) -> float:
    """Return the CPU-seconds of a task in ``steps`` steps whose graphs are given, after ``skipped`` others; best."""
    return min(_task_s(case, engine, steps, skipped) for _ in range(TASK_REPEATS))


def _task_s(case: SparseSteps, engine: str, steps: int, skipped: int) -> float:
    env = Clock()
    servers: Mapping[str, Any]
    executor: Executor | Evaluator
    if engine == "event":
        servers = {name: Server(env, name) for name in case.servers}
        executor = Executor(env, servers)
    else:
        servers = {name: Lane(name, number) for number, name in enumerate(case.servers)}
        executor = Evaluator(env, servers)
    few = list(case.graphs(min(steps, 10)))
    graphs: list[TaskGraph] = [few[k % len(few)] for k in range(skipped + steps)]
    begun: list[tuple[float, int]] = []

    def loop() -> Iterator[simpy.Event]:
        for rank, graph in enumerate(graphs):
            if rank == skipped:
                begun.append((time.process_time(), sum(server.jobs for server in servers.values())))
            yield executor.submit(graph, rank)

    env.process(loop())  # type: ignore[arg-type]  # simpy wants a generator type
    env.run()
    executor.check_drained()
    cpu_s = time.process_time() - begun[0][0]
    jobs: int = sum(server.jobs for server in servers.values()) - begun[0][1]
    return cpu_s / jobs


def _step_s(case: SparseSteps, **how: int) -> float:
    """Return the CPU-seconds of a step."""
    tasks = sum(server is not None for server in case.template().servers)
    return task_s(case, "evaluator", **how) * tasks


def folded_step_s(layers: int) -> float:
    """Return the CPU-seconds of a step whose layers are alike, compiled."""
    return _step_s(SparseSteps(layers=layers, copies=False, alike=True), steps=200, skipped=COMPILE_AFTER + 1)


def step_cost(name: str) -> dict[str, float]:
    """Return CPU-seconds and events of a decode step: the difference between a long run and a short one."""
    options = dict(CASES[name])
    system, sequences = name.partition(",")[0], options.pop("sequences", SEQUENCES)
    runs = {}
    for steps in (FEWER_STEPS, STEPS):
        best = float("inf")
        for _ in range(REPEATS):
            start = time.process_time()
            run = simulate(system, workload=fixed(PROMPT, steps, sequences), **options)
            best = min(best, time.process_time() - start)
        runs[steps] = (best, run.counters["events"], run.counters["steps"])
    (short_s, short_events, short), (long_s, long_events, long) = runs[FEWER_STEPS], runs[STEPS]
    return {"cpu_s": (long_s - short_s) / (long - short), "events": (long_events - short_events) / (long - short)}


def serve(requests: int, **asked: Any) -> dict[str, Any]:
    """Return time, steps, tokens, rate and peak memory of serving ``requests`` chats, in a process of its own."""
    words = [sys.executable, "-c", _SERVE, json.dumps({"requests": requests} | asked)]
    result: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return result
