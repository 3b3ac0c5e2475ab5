"""The executor: joins, delays, handles, gates, and exactly how many events it schedules."""

import pytest

from hetmem.engine.executor import Executor
from hetmem.engine.graph import Cost, GraphBuilder, Handle
from hetmem.errors import ConfigError, ConservationError
from hetmem.hardware.clock import Clock
from hetmem.hardware.server import Server
from hetmem.testing import DeviceUnderTest


def bound(build, costs, **handles):
    graph = GraphBuilder()
    build(graph)
    return graph.build().bind({slot: Cost(ps) for slot, ps in costs.items()}, **handles)


def run(graph, *servers, at_ps=0):
    dut = DeviceUnderTest(*servers)
    dut.submit_graph("step", graph, at_ps=at_ps)
    dut.run()
    dut.executor.check_drained()
    return dut


def test_a_chain_takes_the_sum_and_a_fork_the_longest():
    def build(graph):
        start = graph.task("gpu", "a")
        ends = [graph.task("gpu", "b", start), graph.task("link", "c", start), graph.task(None, "delay", start)]
        graph.task("gpu", "d", ends)

    dut = DeviceUnderTest("gpu", "link")
    dut.submit_graph("step", bound(build, {"a": 3, "b": 4, "c": 9, "delay": 7, "d": 2}), at_ps=10)
    dut.assert_completes_exactly(10 + 3 + 9 + 2, "step")


def test_a_lag_passes_after_service_and_does_not_hold_the_server():
    def build(graph):
        graph.task("link", "a", lag_ps=100)
        graph.task("link", "b")

    dut = DeviceUnderTest("link")
    dut.submit_graph("step", bound(build, {"a": 5, "b": 7}))
    dut.assert_completes_exactly(105, "step")
    assert dut.servers["link"].busy_at(105) == 12


def test_work_without_length_is_a_join_that_may_lag_and_is_no_job():
    def build(graph):
        graph.task("gpu", "nothing", graph.task("gpu", "nothing", lag_ps=4))

    dut = run(bound(build, {"nothing": 0}), "gpu", at_ps=6)
    assert dut.seen == {"step": 10}
    assert dut.servers["gpu"].jobs == 0


@pytest.mark.parametrize("cost", [Cost(0, 1, 0), Cost(0, 0, 1)])
def test_bytes_and_energy_of_work_without_length_are_not_lost_in_silence(cost):
    graph = GraphBuilder()
    graph.task("gpu", "odd")
    dut = DeviceUnderTest("gpu")
    with pytest.raises(ConservationError, match="odd is no service, but costs"):
        dut.submit_graph("step", graph.build().bind({"odd": cost}))


def test_a_graph_without_tasks_is_done_at_once():
    dut = run(bound(lambda graph: None, {}), at_ps=7)
    assert dut.seen == {"step": 7}
    assert dut.executor.outstanding == {}


def test_the_gate_opens_without_waiting_for_background_work():
    def build(graph):
        graph.task("gpu", "a")
        graph.task("link", "copy", background=True)

    dut = run(bound(build, {"a": 5, "copy": 50}), "gpu", "link")
    assert dut.seen == {"step": 5}
    assert dut.env.now == 50


def test_a_graph_of_background_work_alone_is_done_when_submitted():
    dut = run(bound(lambda graph: graph.task("link", "copy", background=True), {"copy": 50}), "link", at_ps=3)
    assert dut.seen == {"step": 3}
    assert dut.env.now == 53


def test_background_work_outlives_its_step_and_competes_with_the_next():
    def first(graph):
        graph.task("link", "copy", background=True)
        graph.join()

    dut = DeviceUnderTest("link")
    dut.submit_graph("first", bound(first, {"copy": 50}))
    dut.submit_graph("second", bound(lambda graph: graph.task("link", "a"), {"a": 5}), at_ps=10)
    dut.assert_completes_exactly(0, "first")
    dut.assert_completes_exactly(55, "second")


def test_a_task_waits_for_a_handle_of_an_earlier_step():
    page = Handle("page")
    dut = DeviceUnderTest("gpu", "link")
    dut.submit_graph("first", bound(lambda g: g.task("link", "copy", background=True), {"copy": 50}, publish={0: page}))
    dut.submit_graph("second", bound(lambda g: g.task("gpu", "a"), {"a": 5}, wait={0: [page]}), at_ps=10)
    dut.assert_completes_exactly(55, "second")
    assert page.landed_ps == 50
    assert page.waiters == []
    dut.submit_graph("third", bound(lambda g: g.task("gpu", "a"), {"a": 5}, wait={0: [page, page]}))
    dut.assert_completes_exactly(dut.env.now + 5, "third")


def test_a_handle_may_be_published_and_waited_for_within_one_step():
    page = Handle("page")

    def build(graph):
        graph.task("link", "copy")
        graph.task("gpu", "a")

    dut = DeviceUnderTest("gpu", "link")
    dut.submit_graph("step", bound(build, {"copy": 8, "a": 2}, publish={0: page}, wait={1: [page]}))
    dut.assert_completes_exactly(10, "step")


def test_ties_at_a_server_go_by_rank_and_then_by_task():
    log = []
    env = Clock()
    executor = Executor(env, {"gpu": Server(env, "gpu")}, lambda *row: log.append((row[0], row[2], row[3])))

    def build(graph):
        graph.task("gpu", "a")
        graph.task("gpu", "b")

    for rank in (9, 2):
        executor.submit(bound(build, {"a": 1, "b": 1}), rank)
    env.run()
    assert log == [(2, "a", 0), (2, "b", 1), (9, "a", 2), (9, "b", 3)]


def test_a_server_that_the_machine_lacks_is_refused_with_those_it_has():
    dut = DeviceUnderTest("gpu", "link")
    with pytest.raises(ConfigError, match="graph: the machine has no server 'gpu0'; it has gpu, link"):
        dut.submit_graph("step", bound(lambda g: g.task("gpu0", "a"), {"a": 5}))


def test_a_rank_in_flight_cannot_be_taken_again():
    env = Clock()
    executor = Executor(env, {"gpu": Server(env, "gpu")})
    graph = bound(lambda g: g.task("gpu", "a"), {"a": 5})
    executor.submit(graph, 3)
    with pytest.raises(ConfigError, match="rank: 3 is in flight already"):
        executor.submit(graph, 3)
    env.run()
    executor.submit(graph, 3)
    env.run()
    assert env.now == 10


def test_what_was_served_is_what_was_submitted():
    graph = GraphBuilder()
    graph.task("gpu", "a")
    dut = run(graph.build().bind({"a": Cost(5, 70, 64)}), "gpu")
    server = dut.servers["gpu"]
    assert (server.jobs, server.energy_fj, server.bytes) == (1, 70, 64)
    server.bytes -= 1
    with pytest.raises(ConservationError, match="bytes in = bytes out violated: gpu was given 64 and served 63"):
        dut.executor.check_drained()


# -- the number of events --------------------------------------------------------------------------------------------


def counted(graph, *servers):
    """Return the events that ``graph`` schedules on idle servers, their start aside."""
    env = Clock()
    executor = Executor(env, {name: Server(env, name) for name in servers})
    env.run()
    before = next(env._eid) + 1
    executor.submit(graph, 0)
    env.run()
    return next(env._eid) - before


GATE = 1


def test_joins_cost_no_event_but_the_gate():
    def build(graph):
        for _ in range(10):
            graph.join(range(len(graph.build())))

    assert counted(bound(build, {})) == GATE


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_chain_on_one_server_costs_an_event_per_task_and_one_to_wake_it(n):
    def build(graph):
        at = graph.join()
        for _ in range(n):
            at = graph.task("gpu", "a", at)

    assert counted(bound(build, {"a": 5}), "gpu") == n + 1 + GATE


def test_a_chain_over_two_servers_wakes_one_per_task():
    def build(graph):
        at = graph.join()
        for i in range(6):
            at = graph.task(("gpu", "link")[i % 2], "a", at)

    assert counted(bound(build, {"a": 5}), "gpu", "link") == 6 * 2 + GATE


@pytest.mark.parametrize("memory_ps", [1, 4, 5])
def test_a_kernel_costs_three_events(memory_ps):
    """Two services and one wake of the memory; the compute server is still awake, after the first kernel."""

    def build(graph):
        at = graph.join()
        for _ in range(7):
            at = graph.kernel("k", "gpu", "hbm", at)

    assert counted(bound(build, {"k.compute": 5, "k.memory": memory_ps}), "gpu", "hbm") == 3 * 7 + 1 + GATE


def test_a_fork_to_sixteen_units_costs_two_events_each():
    units = [f"unit{i}" for i in range(16)]

    def build(graph):
        graph.join([graph.task(unit, "a") for unit in units])

    assert counted(bound(build, {"a": 5}), *units) == 2 * 16 + GATE


def test_a_lag_and_a_delay_cost_an_event_each():
    def build(graph):
        graph.task(None, "delay", graph.task("link", "a", lag_ps=3))

    assert counted(bound(build, {"a": 5, "delay": 2}), "link") == 2 + 1 + 1 + GATE


def test_a_chunk_costs_an_event():
    assert counted(bound(lambda g: g.task("link", "a", chunk_ps=3), {"a": 10}), "link") == 4 + 1 + GATE
