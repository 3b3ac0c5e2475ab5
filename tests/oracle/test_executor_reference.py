"""The executor against an independent engine, to the tick; and what it says when work can never run."""

import itertools

import pytest

from hetmem.engine.executor import Executor
from hetmem.engine.graph import Cost, GraphBuilder, Handle
from hetmem.errors import DeadlockError
from hetmem.hardware import clock
from hetmem.hardware.clock import Clock
from hetmem.hardware.server import Server
from hetmem.testing import RandomLoops, ReferenceExecutor, drive

SEEDS_AT_ONCE = 80


def run_executor(case, order=None, observed=True):
    """Return (log, gates, (busy, wait, jobs, bytes) by server, end) of the SimPy executor."""
    env = Clock()
    servers = {name: Server(env, name) for name in case.servers}
    log, gates = [], {}
    executor = Executor(env, servers, (lambda *row: log.append(row)) if observed else None)
    loops = case.loops()
    for k in order(len(loops)) if order else range(len(loops)):
        env.process(drive(executor, loops[k], gates))
    env.run()
    executor.check_drained()
    counters = {
        name: (server.busy_at(env.now), server.wait_at(env.now), server.jobs, server.bytes)
        for name, server in servers.items()
    }
    return sorted(log), gates, counters, env.now


def run_reference(case):
    reference = ReferenceExecutor(case.servers)
    reference.run(case.loops())
    assert not reference.unfinished
    moved = dict.fromkeys(case.servers, 0)
    for _, server, _, _, _, n_bytes in reference.log:
        moved[server] += n_bytes
    counters = {name: (q.busy_ps, q.wait_ps, q.jobs, moved[name]) for name, q in reference.servers.items()}
    return sorted(reference.log), reference.gates, counters, reference.now


@pytest.mark.parametrize("first", range(0, 240, SEEDS_AT_ONCE))
def test_logs_gates_and_counters_agree_on_random_graphs(first):
    for seed in range(first, first + SEEDS_AT_ONCE):
        case = RandomLoops(seed)
        assert run_executor(case) == run_reference(case), f"differs: RandomLoops({seed})"


def test_the_oracle_finds_ties_broken_by_submission_order(monkeypatch):
    """Guards the oracle: with servers that choose before the tick's submissions are complete, it must object."""
    monkeypatch.setattr(clock, "ARBITRATION", 1)
    cases = [RandomLoops(seed) for seed in range(40)]
    assert any(run_executor(case) != run_reference(case) for case in cases)


@pytest.mark.slow
def test_logs_gates_and_counters_agree_on_thousands_of_random_graphs():
    for seed in range(10_000, 13_000):
        case = RandomLoops(seed)
        assert run_executor(case) == run_reference(case), f"differs: RandomLoops({seed})"


def test_the_random_graphs_use_everything():
    """Guards the oracle: what is never generated is never compared."""
    seen = set()
    for seed in range(60):
        case = RandomLoops(seed)
        for loop in case.loops():
            now = None
            while True:
                try:
                    request = loop.send(now)
                except StopIteration:
                    break
                now = 0
                if isinstance(request, int):
                    continue
                template, graph = request[0].template, request[0]
                seen |= {"background"} if any(template.background) else set()
                seen |= {"chunks"} if any(template.chunk_ps) else set()
                seen |= {"lags"} if any(template.lag_ps) else set()
                seen |= {"classes"} if len(set(template.classes)) == 3 else set()
                seen |= {"waits"} if graph.wait else set()
                seen |= {"several handles"} if any(len(handles) > 1 for handles in graph.wait.values()) else set()
                kinds = {(name is None, cost.ps > 0) for name, cost in zip(template.servers, graph.costs, strict=True)}
                seen |= {"all kinds"} if len(kinds) == 4 else set()
        seen.add(f"{len(case.loops())} loops")
    assert seen == {
        "background", "chunks", "lags", "classes", "waits", "several handles", "all kinds",
        "1 loops", "2 loops", "3 loops",
    }  # fmt: skip


def test_the_order_of_submission_changes_nothing():
    differs = 0
    for seed in range(40):
        case = RandomLoops(seed)
        expected = run_executor(case)
        differs += len(case.loops()) > 1
        for order in itertools.permutations(range(len(case.loops()))):
            assert run_executor(case, lambda n, order=order: order) == expected, f"RandomLoops({seed}), {order}"
    assert differs > 15


def test_observing_changes_nothing():
    for seed in range(30):
        assert run_executor(RandomLoops(seed), observed=False)[1:] == run_executor(RandomLoops(seed))[1:]


# -- deadlock --------------------------------------------------------------------------------------------------------


def machine(*names):
    env = Clock()
    return env, Executor(env, {name: Server(env, name) for name in names})


def waiting_graph(slot, wait, publish=None):
    graph = GraphBuilder()
    first = graph.task("gpu", slot, tag=slot)
    graph.task("gpu", "after", first, tag=f"after {slot}")
    costs = {slot: Cost(5), "after": Cost(1)}
    return graph.build().bind(costs, {first: publish} if publish else None, {first: wait})


def test_a_handle_that_never_lands_is_reported_with_its_key():
    env, executor = machine("gpu")
    gate = executor.submit(waiting_graph("layer 3", [Handle(("weights", 3))]), 7)
    env.run()
    assert not gate.triggered
    with pytest.raises(DeadlockError) as caught:
        executor.check_drained()
    lines = str(caught.value).splitlines()
    assert lines[0] == "deadlock: no event is left, but work is outstanding"
    assert lines[1:] == [
        "step rank 7, task 0 (layer 3) waits for handle ('weights', 3)",
        "step rank 7, task 1 (after layer 3) waits for task 0 (layer 3)",
    ]


def test_two_steps_that_wait_for_each_other_are_both_reported():
    env, executor = machine("gpu")
    a, b = Handle("a"), Handle("b")
    executor.submit(waiting_graph("first", [b], a), 0)
    executor.submit(waiting_graph("second", [a], b), 1)
    env.run()
    with pytest.raises(DeadlockError) as caught:
        executor.check_drained()
    assert "task 0 (first) waits for handle 'b'" in str(caught.value)
    assert "task 0 (second) waits for handle 'a'" in str(caught.value)


def test_the_reference_finds_the_same_deadlock():
    a, b = Handle("a"), Handle("b")

    def loop(graph, rank):
        yield graph, rank

    reference = ReferenceExecutor(["gpu"])
    graphs = (waiting_graph("first", [b], a), waiting_graph("second", [a], b))
    reference.run([loop(graph, rank) for rank, graph in enumerate(graphs)])
    assert reference.unfinished == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert reference.gates == {}


def test_background_work_that_never_runs_is_no_silence_either():
    env, executor = machine("gpu")
    graph = GraphBuilder()
    graph.task("gpu", "step", tag="step")
    late = graph.task("gpu", "copy", background=True, tag="copy")
    gate = executor.submit(graph.build().bind({"step": Cost(5), "copy": Cost(5)}, None, {late: [Handle("page")]}), 0)
    env.run()
    assert gate.triggered
    with pytest.raises(DeadlockError, match=r"task 1 \(copy\) waits for handle 'page'"):
        executor.check_drained()


def test_work_in_service_is_not_drained():
    env, executor = machine("gpu")
    graph = GraphBuilder()
    graph.task("gpu", "step", tag="step")
    executor.submit(graph.build().bind({"step": Cost(5)}), 0)
    env.run(until=3)
    with pytest.raises(DeadlockError, match=r"task 0 \(step\) waits for service at gpu"):
        executor.check_drained()
