"""A first-come, first-served server against queueing theory: to the tick where theory is exact."""

import math

import numpy as np
import pytest

from hetmem.engine.graph import Cost, GraphBuilder
from hetmem.errors import ConfigError
from hetmem.hardware.clock import Clock
from hetmem.hardware.server import Server
from hetmem.rng import stream
from hetmem.testing import DeviceUnderTest
from hetmem.testing.queueing import (
    erlang_c,
    lindley_waits_ps,
    md1_wait,
    mg1_wait,
    mm1_wait,
    mmc_wait,
    time_integral_of_number,
)

SERVICE_PS = 1000


def poisson_jobs(n, load, seed, exponential=True):
    """Return integer arrivals and services; many arrivals fall on the tick of another event."""
    rng = stream(seed, f"test.queue.{load}")
    arrival = np.cumsum(np.rint(rng.exponential(SERVICE_PS / load, n)).astype(np.int64))
    service = rng.exponential(SERVICE_PS, n) if exponential else np.full(n, SERVICE_PS)
    return arrival, np.maximum(1, np.rint(service)).astype(np.int64)


def served(arrival, service, chunk_ps=0):
    """Run the jobs through a Server; return it, the clock, and the ticks at which each started and ended."""
    env = Clock()
    server = Server(env, "server")
    starts, ends = [0] * len(arrival), [0] * len(arrival)

    def done(_owner, index, start_ps):
        starts[index], ends[index] = start_ps, env.now

    def source():
        for index, (tick, dur) in enumerate(zip(arrival.tolist(), service.tolist(), strict=True)):
            if tick > env.now:
                yield env.timeout(tick - env.now)
            server.submit(index, dur, done, None, index, chunk_ps=chunk_ps)

    env.process(source())
    env.run()
    return server, env, np.asarray(starts), np.asarray(ends)


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
def test_a_fifo_server_equals_lindley_on_fifty_thousand_jobs(load):
    arrival, service = poisson_jobs(50_000, load, seed=1)
    server, env, starts, ends = served(arrival, service)
    waits = lindley_waits_ps(arrival, service)
    assert np.array_equal(starts - arrival, waits)
    assert np.array_equal(ends, arrival + waits + service)
    assert (server.jobs, server.wait_at(env.now), server.busy_at(env.now)) == (50_000, waits.sum(), service.sum())
    # Little's law: the jobs present over time, seen from outside, are the sojourns that the server counted.
    assert time_integral_of_number(arrival, ends) == server.wait_at(env.now) + server.busy_at(env.now)


def test_jobs_that_arrive_together_are_served_by_rank():
    arrival, service = np.zeros(50, np.int64), np.arange(1, 51)
    _, _, starts, _ = served(arrival, service)
    assert np.array_equal(starts, lindley_waits_ps(arrival, service))


def test_chunks_change_nothing_within_a_class():
    arrival, service = poisson_jobs(2000, 0.9, seed=3)
    _, _, starts, ends = served(arrival, service)
    _, _, chunked_starts, chunked_ends = served(arrival, service, chunk_ps=170)
    assert np.array_equal(chunked_starts, starts)
    assert np.array_equal(chunked_ends, ends)


@pytest.mark.parametrize(("exponential", "theory"), [(True, mm1_wait), (False, md1_wait)])
def test_the_mean_wait_agrees_with_theory_over_twenty_seeds(exponential, theory):
    load = 0.6
    means = []
    for seed in range(20):
        arrival, service = poisson_jobs(20_000, load, seed, exponential)
        means.append(lindley_waits_ps(arrival, service).mean() / SERVICE_PS)
    error = abs(np.mean(means) - theory(load))
    assert error < 3 * np.std(means, ddof=1) / math.sqrt(len(means))
    assert error < 0.03 * theory(load)


def test_formulas_against_values_known_by_hand():
    assert mm1_wait(0.5) == 1.0
    assert md1_wait(0.5) == 0.5
    assert mg1_wait(0.5, 4.0) == 2.5
    assert mmc_wait(0.5, 1) == pytest.approx(mm1_wait(0.5), rel=1e-12)
    assert erlang_c(0.5, 2) == pytest.approx(1 / 3, rel=1e-12)  # 2 rho^2 / (1 + rho)
    assert mmc_wait(0.5, 2) == pytest.approx(1 / 3, rel=1e-12)
    assert erlang_c(0.0, 3) == 0.0


def test_two_servers_with_one_queue_agree_with_erlang():
    # Jobs of one queue, each to the server that is free first: exact for the multi-server Lindley recursion.
    load, waits = 0.6, []
    for seed in range(20):
        arrival, service = poisson_jobs(20_000, 2 * load, seed)
        free, total = [0, 0], 0
        for tick, dur in zip(arrival.tolist(), service.tolist(), strict=True):
            first = free.index(min(free))
            start = max(tick, free[first])
            free[first] = start + dur
            total += start - tick
        waits.append(total / len(arrival) / SERVICE_PS)
    assert abs(np.mean(waits) - mmc_wait(load, 2)) < 3 * np.std(waits, ddof=1) / math.sqrt(len(waits))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mm1_wait(1.0), "load: expected at least 0 and below 1"),
        (lambda: mg1_wait(0.5, -1), "service_scv: expected at least 0"),
        (lambda: erlang_c(0.5, 0), "servers: expected at least 1"),
        (lambda: lindley_waits_ps([0, 1], [1]), "expected equal lengths"),
        (lambda: lindley_waits_ps([1, 0], [1, 1]), "never fall"),
        (lambda: time_integral_of_number([5], [4]), "more departures than arrivals by tick 4"),
        (lambda: time_integral_of_number([1, 2], [4]), "1 jobs never leave"),
    ],
)
def test_impossible_questions_are_refused(call, says):
    with pytest.raises(ConfigError, match=says):
        call()


def test_an_empty_queue_has_no_waits():
    assert len(lindley_waits_ps([], [])) == 0
    assert time_integral_of_number([], []) == 0


@pytest.mark.parametrize(("first", "second"), [(30, 70), (70, 30), (50, 50)])
def test_a_fork_over_two_hops_completes_with_the_slower(first, second):
    graph = GraphBuilder()
    graph.transfer("copy", ("link", "hbm"), lag_ps=7)
    costs = {"copy@link": Cost(first), "copy@hbm": Cost(second)}
    dut = DeviceUnderTest("link", "hbm")
    dut.submit_graph("copy", graph.build().bind(costs), at_ps=5)
    dut.assert_completes_exactly(5 + max(first, second) + 7, "copy")


def test_a_fork_waits_for_the_hop_that_is_taken():
    graph = GraphBuilder()
    graph.transfer("copy", ("link", "hbm"))
    dut = DeviceUnderTest("link", "hbm")
    dut.submit("other", "hbm", 90)
    dut.submit_graph("copy", graph.build().bind({"copy@link": Cost(50), "copy@hbm": Cost(20)}), at_ps=1)
    dut.assert_completes_exactly(90, "other")
    dut.assert_completes_exactly(110, "copy")
