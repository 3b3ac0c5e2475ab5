"""One server: order, classes, chunks, and counters at every tick."""

import pytest

from hetmem.engine.graph import GraphBuilder
from hetmem.hardware.clock import Clock
from hetmem.hardware.server import Server
from hetmem.testing import DeviceUnderTest


def test_a_gate_is_tight():
    dut = DeviceUnderTest("hbm")
    dut.submit("burst", "hbm", 100, at_ps=7)
    dut.assert_completes_exactly(107, "burst")


@pytest.mark.parametrize("wrong", [106, 108])
def test_a_gate_that_is_off_by_one_tick_is_found(wrong):
    dut = DeviceUnderTest("hbm")
    dut.submit("burst", "hbm", 100, at_ps=7)
    with pytest.raises(AssertionError, match=r"burst (ended at tick 107, not at 108|had not ended at tick 106)"):
        dut.assert_completes_exactly(wrong, "burst")


def test_the_test_device_says_what_is_wrong_with_the_question():
    dut = DeviceUnderTest("hbm")
    dut.submit("a", "hbm", 5)
    dut.watch("alarm", dut.env.timeout(3))
    with pytest.raises(ValueError, match="'a' is the name of other work already"):
        dut.submit("a", "hbm", 5)
    with pytest.raises(AssertionError, match="nothing is called 'b'; there are a, alarm"):
        dut.assert_completes_exactly(5, "b")
    dut.assert_completes_exactly(3, "alarm")
    dut.run()
    assert dut.seen == {"a": 5, "alarm": 3}
    with pytest.raises(AssertionError, match="the clock is at tick 5 already, past 4"):
        dut.assert_completes_exactly(4, "a")


def test_work_that_takes_no_time_ends_at_tick_zero():
    graph = GraphBuilder()
    graph.join()
    dut = DeviceUnderTest()
    dut.submit_graph("nothing", graph.build().bind({}))
    dut.assert_completes_exactly(0, "nothing")


def test_first_come_first_served_within_a_class():
    dut = DeviceUnderTest("hbm")
    dut.submit("first", "hbm", 10)
    dut.submit("third", "hbm", 10, at_ps=2)
    dut.submit("second", "hbm", 10, at_ps=1)
    for tick, name in ((10, "first"), (20, "second"), (30, "third")):
        dut.assert_completes_exactly(tick, name)


def test_a_lower_class_number_goes_first_but_does_not_preempt():
    dut = DeviceUnderTest("link")
    dut.submit("serving", "link", 10, cls=2)
    dut.submit("background", "link", 10, at_ps=1, cls=1)
    dut.submit("urgent", "link", 10, at_ps=9, cls=0)
    for tick, name in ((10, "serving"), (20, "urgent"), (30, "background")):
        dut.assert_completes_exactly(tick, name)


def test_what_becomes_ready_as_the_server_frees_is_considered():
    """The choice comes last in a tick: the urgent job of tick 10 passes those that waited."""
    dut = DeviceUnderTest("link")
    dut.submit("serving", "link", 10)
    dut.submit("waiting", "link", 10, at_ps=1, cls=1)
    dut.submit("urgent", "link", 10, at_ps=10, cls=0)
    dut.assert_completes_exactly(20, "urgent")
    dut.assert_completes_exactly(30, "waiting")


def test_a_higher_class_passes_at_a_chunk_boundary_and_the_rest_keeps_its_place():
    dut = DeviceUnderTest("link")
    dut.submit("bulk", "link", 10, cls=1, chunk_ps=4)
    dut.submit("later bulk", "link", 5, at_ps=1, cls=1, chunk_ps=4)
    dut.submit("urgent", "link", 3, at_ps=2)
    dut.assert_completes_exactly(4 + 3, "urgent")
    dut.assert_completes_exactly(4 + 3 + 6, "bulk")
    dut.assert_completes_exactly(4 + 3 + 6 + 5, "later bulk")


@pytest.mark.parametrize("chunk", [0, 1, 9, 10, 11])
def test_the_size_of_a_chunk_does_not_change_how_long_work_takes(chunk):
    dut = DeviceUnderTest("link")
    dut.submit("bulk", "link", 10, chunk_ps=chunk)
    dut.assert_completes_exactly(10, "bulk")


def test_counters_at_every_tick():
    dut = DeviceUnderTest("hbm")
    server = dut.servers["hbm"]
    dut.submit("first", "hbm", 10, at_ps=5, energy_fj=7, n_bytes=64)
    dut.submit("second", "hbm", 4, at_ps=8, energy_fj=2, n_bytes=32)
    seen = []
    for tick in (5, 6, 9, 15, 16, 19, 20, 30):
        dut.run(tick)
        seen.append((server.busy_at(tick), server.wait_at(tick), server.jobs, server.bytes, server.energy_fj))
    assert seen == [
        (0, 0, 0, 0, 0),  # before the events of tick 5
        (1, 0, 1, 0, 0),
        (4, 1, 1, 0, 0),
        (10, 7, 1, 0, 0),  # before the events of tick 15: the first is about to end, the second has waited since 8
        (11, 7, 2, 64, 7),
        (14, 7, 2, 64, 7),
        (14, 7, 2, 96, 9),
        (14, 7, 2, 96, 9),
    ]


def test_chunked_work_counts_as_one_job_that_waited_once():
    dut = DeviceUnderTest("link")
    server = dut.servers["link"]
    dut.submit("bulk", "link", 10, cls=1, chunk_ps=4, n_bytes=100)
    dut.submit("urgent", "link", 3, at_ps=2)
    dut.run(6)
    assert (server.busy_at(6), server.wait_at(6), server.jobs, server.bytes) == (6, 2, 2, 0)
    dut.run()
    assert (server.busy_at(99), server.wait_at(99), server.jobs, server.bytes) == (13, 2, 2, 100)


def test_a_server_that_is_submitted_to_before_the_clock_starts_serves_by_rank():
    env, seen = Clock(), []
    server = Server(env, "s")
    for rank in (2, 0, 1):
        server.submit(rank, 5, lambda owner, index, start: seen.append((owner, start)), rank, 0)
    env.run()
    assert seen == [(0, 0), (1, 5), (2, 10)]


def test_an_error_of_the_one_who_waits_leaves_the_simulation():
    env = Clock()

    def fails(owner, index, start):
        raise LookupError(owner, index)

    Server(env, "s").submit(0, 5, fails, "owner", 3)
    with pytest.raises(LookupError) as caught:
        env.run()
    assert caught.value.args == ("owner", 3)
