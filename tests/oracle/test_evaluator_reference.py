"""The evaluator against the event-driven executor, to the tick: logs, gates, counters at any time, and deadlocks."""

import random
import sys

import pytest

from hetmem.engine import program
from hetmem.engine.evaluator import Evaluator
from hetmem.engine.executor import Executor
from hetmem.engine.graph import Cost, GraphBuilder, Handle
from hetmem.engine.repeat import longest_repeat
from hetmem.engine.straight_line import PEELED, straight_line
from hetmem.errors import ConfigError, ConservationError, DeadlockError
from hetmem.hardware.clock import Clock
from hetmem.hardware.lane import Lane
from hetmem.hardware.server import Server
from hetmem.testing import RandomLoops, drive
from hetmem.testing.sparse_step import SparseSteps

SEEDS_AT_ONCE = 100
ENGINES = ("event", "evaluator")


def machine(engine, names, on_task=None, overlapping=False):
    env = Clock()
    if engine == "event":
        servers = {name: Server(env, name) for name in names}
        return env, servers, Executor(env, servers, on_task)
    lanes = {name: Lane(name, number) for number, name in enumerate(names)}
    return env, lanes, Evaluator(env, lanes, on_task, overlapping)


def probe(env, servers, seed, samples):
    """Look at every server at random ticks, in the control phase, as views and tables do."""
    rng = random.Random(seed)
    for _ in range(40):
        yield env.timeout(rng.randint(1, 9))
        samples.append((env.now, *((server.busy_at(env.now), server.wait_at(env.now)) for server in servers.values())))


def metered(loop, env, servers, samples):
    """Pass ``loop`` on; read the energy of every server at each gate."""
    now = None
    while True:
        try:
            now = yield loop.send(now)
        except StopIteration:
            return
        samples.append((now, *(server.energy_at(env.now) for server in servers.values())))


def run(engine, case, observed=True, probed=False, overlapping=None):
    """Return (log, gates, counters, samples, end)."""
    log, gates, samples = [], {}, []
    loops = case.loops()
    on_task = (lambda *row: log.append(row)) if observed else None
    overlapping = len(loops) > 1 and not probed if overlapping is None else overlapping
    env, servers, executor = machine(engine, case.servers, on_task, overlapping)
    if not probed:
        loops = [metered(loop, env, servers, samples) for loop in loops]
    for loop in loops:
        env.process(drive(executor, loop, gates))
    if probed:
        env.process(probe(env, servers, case.seed, samples))
    env.run()
    executor.check_drained()
    end = env.now
    counters = {
        name: (server.busy_at(end), server.wait_at(end), server.jobs, server.bytes, server.energy_fj)
        for name, server in servers.items()
    }
    return log, gates, counters, samples, end


def same(case):
    """Assert that the engines agree on ``case``, whether observed or not."""
    log, *rest = run("event", case)
    other_log, *other = run("evaluator", case)
    assert other == rest, case
    assert sorted(other_log) == sorted(log), case
    assert [row[4] for row in other_log] == [row[4] for row in log], f"not in the order of ends: {case}"
    assert run("evaluator", case, observed=False)[1:] == (*rest,), case
    gates, counters, _, end = rest  # all but energy, of which less is known, also without metering each task
    _, *other, _, last = run("evaluator", case, observed=False, overlapping=False)
    assert (*other, last) == (gates, counters, end), case


def all_the_same(seeds):
    for seed in range(seeds):
        same(RandomLoops(seed))


@pytest.mark.parametrize("first", range(0, 400, SEEDS_AT_ONCE))
def test_logs_gates_and_counters_agree_on_random_graphs(first):
    for seed in range(first, first + SEEDS_AT_ONCE):
        same(RandomLoops(seed))


@pytest.mark.slow
def test_logs_gates_and_counters_agree_on_thousands_of_random_graphs():
    for seed in range(20_000, 24_000):
        same(RandomLoops(seed))


def test_counters_agree_at_any_tick():
    compared = 0
    for seed in range(150):
        expected = run("event", RandomLoops(seed), probed=True)
        found = run("evaluator", RandomLoops(seed), probed=True)
        assert found[1:] == expected[1:], seed
        compared += sum(busy > 0 and wait > 0 for row in found[3] for busy, wait in row[1:])
    assert compared > 1000


def test_the_oracle_finds_queued_work_that_ends_unseen(monkeypatch):
    """Guards the oracle: an evaluator that looks at a queue a tick late must be found out."""
    earliest = Lane.earliest_end
    monkeypatch.setattr(Lane, "earliest_end", lambda lane: earliest(lane) + 1)
    with pytest.raises(AssertionError):
        all_the_same(40)


def test_the_oracle_finds_decisions_made_before_their_time(monkeypatch):
    """Guards the oracle: an evaluator that passes the next arrival must be found out."""
    advance = Evaluator._advance
    monkeypatch.setattr(Evaluator, "_advance", lambda self, decided: advance(self, decided + 10))
    with pytest.raises(AssertionError):
        all_the_same(40)


def test_a_task_without_a_slot_is_no_service_even_at_a_server():
    graph = GraphBuilder()
    graph.task("gpu", "long")
    graph.task("link", "short", graph.task("gpu", None))
    template = graph.build()

    class Steps:
        servers, seed = ("gpu", "link"), 0

        def loops(self):
            return [((template.bind({"long": Cost(10), "short": Cost(5)}), step) for step in range(3))]

    same(Steps())


def test_a_fork_whose_chains_wait_for_handles():
    """The second task of a chain waits for a copy that another step has left behind."""
    graph = GraphBuilder()
    graph.task("gpu", "first")
    copy = graph.task("x", "copy", cls=1, background=True)
    before = graph.build()
    graph = GraphBuilder()
    root = graph.task("gpu", "first")
    seconds = [graph.task(f"d{k}", "second", graph.task(f"l{k}", "first", root)) for k in range(3)]
    graph.task("gpu", "first", seconds)
    forked = graph.build()
    costs = {"first": Cost(1), "second": Cost(3), "copy": Cost(20)}

    class Waiting:
        servers, seed = ("gpu", "x", *(f"{kind}{k}" for kind in "ld" for k in range(3))), 0

        def __init__(self, pause):
            self.pause = pause

        def loops(self):
            def loop():
                landing = Handle("copy")
                yield before.bind(costs, {copy: landing}), 0
                if self.pause:
                    yield self.pause
                yield forked.bind(costs, None, {seconds[1]: [landing]}), 1

            return [loop()]

    for pause in (0, 12, 30):  # before it has begun, while it is under way, and afterwards
        same(Waiting(pause))


# -- steps of the same template: the compiled way --------------------------------------------------------------------


class Repeated:
    """A loop that submits one random template again and again, its costs drawn anew; background in some."""

    def __init__(self, seed, steps=12, background=False, jitter=40):
        self.seed, self.steps, self.background, self.jitter = seed, steps, background, jitter
        rng = random.Random(seed)
        self.servers = tuple(f"s{i}" for i in range(rng.randint(1, 5)))
        graph = GraphBuilder()
        for index in range(rng.randint(2, 40)):
            after = rng.sample(range(index), min(index, rng.choice([0, 1, 1, 1, 2, 4])))
            kind = rng.random()
            if kind < 0.15:
                graph.join(after)
            elif kind < 0.25:
                graph.task(None, f"t{rng.randrange(9)}", after, lag_ps=rng.choice([0, 3]))
            else:
                graph.task(rng.choice(self.servers), f"t{rng.randrange(9)}", after, lag_ps=rng.choice([0, 0, 2]))
        if background:
            graph.task(self.servers[0], "copy", cls=1, background=True, chunk_ps=4)
        self.template = graph.build()

    def loops(self):
        def loop():
            rng = random.Random(self.seed + 1)
            for step in range(self.steps):
                moved = 0 if rng.random() < 0.1 else 1
                costs = {
                    slot: Cost(rng.randint(1, self.jitter) * (slot != "t0" or moved), 0, 0)
                    if slot == "t0" or any(
                        name is None and used == slot
                        for name, used in zip(self.template.servers, self.template.slots, strict=True)
                    )
                    else Cost(rng.randint(1, self.jitter), rng.randint(0, 5), rng.randint(0, 5))
                    for slot in self.template.slot_names if slot
                }  # fmt: skip
                yield self.template.bind(costs), step
                if rng.random() < 0.3:
                    yield rng.randint(1, 30)

        return [loop()]


def test_repeated_templates_agree_compiled_or_not(monkeypatch):
    monkeypatch.setattr(program, "COMPILE_AFTER", 1)
    taken = {True: 0, False: 0}
    in_order = program.Program.in_order

    def counted(self, *args):
        end = in_order(self, *args)
        taken[end >= 0] += 1
        return end

    monkeypatch.setattr(program.Program, "in_order", counted)
    for seed in range(100):
        for case in (Repeated(seed), Repeated(seed, background=True), Repeated(seed, jitter=2)):
            same(case)
    assert taken[True] > 300
    assert taken[False] > 300


class Layered(Repeated):
    """The same with layers: tasks that wait for others of their layer and of the one before, all layers alike."""

    def __init__(self, seed, layers=None):
        super().__init__(seed)
        rng = random.Random(seed)
        layers = rng.randint(3, 30) if layers is None else layers
        period, graph = rng.randint(1, 12), GraphBuilder()
        body = []
        for k in range(period):
            distances = {rng.randint(1, period) for _ in range(rng.choice([1, 1, 2, 3]))}
            server = rng.choice([*self.servers, None]) if k else self.servers[0]
            body.append((server, f"t{rng.randrange(9)}", sorted(distances), rng.choice([0, 0, 2])))
        for k in range(rng.randint(period, period + 3)):
            graph.task(rng.choice(self.servers), f"p{k}", range(max(0, k - rng.randint(0, 2)), k))
        start = k + 1
        for index in range(start, start + layers * period):
            server, slot, distances, lag = body[(index - start) % period]
            graph.task(server, slot, sorted(index - d for d in distances), lag_ps=lag)
        for k in range(rng.randint(0, 3)):
            graph.task(rng.choice(self.servers), f"q{k}", index - rng.randint(0, period - 1))
        self.template = graph.build()


def test_layers_fold_to_the_tick(monkeypatch):
    monkeypatch.setattr(program, "COMPILE_AFTER", 0)
    taken = {True: 0, False: 0}
    in_order = program.Program.in_order

    def counted(self, *args):
        end = in_order(self, *args)
        taken[end >= 0] += longest_repeat(self.template, PEELED + 2) is not None
        return end

    monkeypatch.setattr(program.Program, "in_order", counted)
    for seed in range(300):
        same(Layered(seed))
    assert taken[True] > 500


def test_what_ends_in_an_early_layer_may_be_the_last_to_end(monkeypatch):
    """A late start holds up a branch that ends in the second layer; the layers after it know nothing of it."""
    monkeypatch.setattr(program, "COMPILE_AFTER", 0)
    graph = GraphBuilder()
    for slot in ("short", "short", "short", "long"):
        at = graph.task(None, slot) + 1
    for _ in range(6):
        graph.join(at - 3)
        graph.join(at - 1)
        graph.task("s", "work", at - 2)
        at = graph.task("s", "work", at + 2) + 1
    template = graph.build()
    assert longest_repeat(template, PEELED + 2) is not None

    class Once:
        servers, seed = ("s",), 0

        def loops(self):
            return [iter_of(template.bind({"short": Cost(1), "long": Cost(1000), "work": Cost(2)}))]

    def iter_of(bound):
        yield bound, 0

    same(Once())


def test_a_folded_step_passes_few_layers(monkeypatch):
    """Once a layer leaves the state that it found, the rest is multiplied: that the code runs shows in its lines."""
    for layers in (8, 96, 10_000):
        graph = GraphBuilder()
        at = graph.task("gpu", "first")
        for _ in range(layers):
            at = graph.join([graph.task(f"d{d}", "read", at) for d in range(4)])
        line, lanes = straight_line(graph.build()), 5
        passed = []

        def count(frame, event, _arg, code=line.__code__, passed=passed):
            if frame.f_code is code:
                passed.append(event)
                return count
            return None

        sys.settrace(count)
        try:
            end = line(0, [0, 3, 5], [0, 7, 0, 0, 0][:lanes])[0]
        finally:
            sys.settrace(None)
        assert end == 7 + layers * 5
        assert len(passed) < 150


def test_a_compiled_step_ends_before_an_arrival_or_is_left(monkeypatch):
    """Another loop's step comes in the middle of one that is compiled."""
    monkeypatch.setattr(program, "COMPILE_AFTER", 0)
    graph = GraphBuilder()
    graph.task("s", "b", graph.task("s", "a"))
    template = graph.build()

    def steps(rank, pause):
        for step in range(8):
            yield pause
            yield template.bind({"a": Cost(5), "b": Cost(7)}), step * 2 + rank

    class Two:
        servers = ("s",)
        seed = 0

        def loops(self):
            return [steps(0, 3), steps(1, 11)]

    same(Two())


def test_the_step_of_a_sparse_model_agrees():
    for copies in (True, False):
        case = SparseSteps(layers=6, dimms=4, copies=copies)

        class Once:
            servers, seed = case.servers, 0

            def __init__(self, case):
                self.case = case

            def loops(self):
                return [self.case.loop(5)]

        same(Once(case))


def test_devices_in_step_cost_one_line(monkeypatch):
    """Equal expressions are written once: the code of a barrier does not grow with the devices behind it."""

    def lines(devices):
        graph = GraphBuilder()
        at = graph.join(graph.join([graph.task(f"d{d}", "first") for d in range(devices)]))
        for _ in range(20):
            at = graph.join([graph.task(f"d{d}", "read", at) for d in range(devices)])
        from hetmem.engine.straight_line import _Writer

        assert straight_line(graph.build())(0, [0, 3, 5], [0] * devices)[0] == 3 + 20 * 5
        return _Writer(graph.build()).source().count("\n")

    # At the first barrier the devices may be free at different ticks: a start, an end and a wait for each; and the
    # tick at which each is free is carried from layer to layer.
    assert lines(16) - lines(2) == 14 * 5


# -- errors ----------------------------------------------------------------------------------------------------------


def waiting_graph(slot, wait, publish=None):
    graph = GraphBuilder()
    first = graph.task("gpu", slot, tag=slot)
    graph.task("gpu", "after", first, tag=f"after {slot}")
    costs = {slot: Cost(5), "after": Cost(1)}
    return graph.build().bind(costs, {first: publish} if publish else None, {first: wait})


def lines_of(engine, submit):
    env, _, executor = machine(engine, ["gpu"])
    submit(executor)
    env.run()
    with pytest.raises(DeadlockError) as caught:
        executor.check_drained()
    return str(caught.value)


def test_deadlocks_are_told_in_the_same_words():
    def never(executor):
        executor.submit(waiting_graph("layer 3", [Handle(("weights", 3))]), 7)

    def each_other(executor):
        a, b = Handle("a"), Handle("b")
        executor.submit(waiting_graph("first", [b], a), 0)
        executor.submit(waiting_graph("second", [a], b), 1)

    def background(executor):
        graph = GraphBuilder()
        graph.task("gpu", "step", tag="step")
        late = graph.task("gpu", "copy", background=True, tag="copy")
        executor.submit(graph.build().bind({"step": Cost(5), "copy": Cost(5)}, None, {late: [Handle("page")]}), 0)

    for submit in (never, each_other, background):
        assert lines_of("evaluator", submit) == lines_of("event", submit)


def test_work_under_way_is_not_drained():
    env, _, executor = machine("evaluator", ["gpu"])
    graph = GraphBuilder()
    graph.task("gpu", "step", tag="step")
    executor.submit(graph.build().bind({"step": Cost(5)}), 0)
    env.run(until=3)
    with pytest.raises(DeadlockError, match="service until tick 5"):
        executor.check_drained()


@pytest.mark.parametrize("cost", [Cost(0, 1, 0), Cost(0, 0, 1)])
@pytest.mark.parametrize("server", ["gpu", None])
def test_bytes_and_energy_of_work_without_length_are_not_lost_in_silence(cost, server):
    graph = GraphBuilder()
    graph.task(server, "odd")
    with pytest.raises(ConservationError, match="odd is no service, but costs"):
        machine("evaluator", ["gpu"])[2].submit(graph.build().bind({"odd": cost}), 0)


def test_ranks_and_servers_are_checked():
    env, _, evaluator = machine("evaluator", ["gpu", "link"])
    graph = GraphBuilder()
    graph.task("gpu", "a")
    template = graph.build()
    evaluator.submit(template.bind({"a": Cost(5)}), 3)
    with pytest.raises(ConfigError, match="rank: 3 is in flight already"):
        evaluator.submit(template.bind({"a": Cost(5)}), 3)
    env.run()
    evaluator.submit(template.bind({"a": Cost(5)}), 3)
    other = GraphBuilder()
    other.task("gpu0", "a")
    with pytest.raises(ConfigError, match="the machine has no server 'gpu0'; it has gpu, link"):
        evaluator.submit(other.build().bind({"a": Cost(5)}), 4)


def test_service_that_goes_missing_is_found():
    env, lanes, evaluator = machine("evaluator", ["gpu"])
    graph = GraphBuilder()
    graph.task("gpu", "a")
    evaluator.submit(graph.build().bind({"a": Cost(5)}), 3)
    env.run()
    lanes["gpu"].served_ps -= 1
    with pytest.raises(ConservationError, match="gpu was asked for 5 ps, served 4"):
        evaluator.check_drained()


# -- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("layers", [1, 8])
def test_a_step_takes_two_events_whatever_its_size(layers, compiled, monkeypatch):
    """The arbitration of its submission and its gate; the process that drives it begins and ends with one."""
    monkeypatch.setattr(program, "COMPILE_AFTER", 0 if compiled else 1000)
    env, _, evaluator = machine("evaluator", SparseSteps(layers, 2).servers)
    env.process(drive(evaluator, SparseSteps(layers, 2, copies=False).loop(10), {}))
    env.run()
    assert next(env._eid) == 2 * 10 + 2
