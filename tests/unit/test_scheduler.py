"""The scheduler: what a system is shown, asked and told, and when."""

import pytest

from hetmem.engine.executor import Executor
from hetmem.engine.graph import Cost, GraphBuilder
from hetmem.engine.scheduler import Scheduler
from hetmem.engine.step import Plan, StepOutcome, StepView
from hetmem.errors import CapacityError, ConfigError
from hetmem.hardware.clock import Clock
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.server import Server
from hetmem.model import StepShape

DECODE = StepShape.decode(2, 30)


class Recording:
    """A system that copies a page while it computes, and writes down what it is told."""

    def __init__(self, ledger, **plan):
        graph = GraphBuilder()
        graph.task("gpu", "step")
        graph.task("link", "copy")
        self.template, self.ledger, self.plan_options, self.log = graph.build(), ledger, plan, []

    def plan(self, view):
        self.log.append(("plan", view.order, view.now_ps, dict(view.load)))
        return Plan(self.template.bind({"step": Cost(10), "copy": Cost(4)}), **self.plan_options)

    def commit(self, plan):
        self.log.append(("commit", self.ledger.used_bytes("hbm")))

    def observe(self, outcome):
        self.log.append(("observe", outcome.view.order, outcome.end_ps, self.ledger.used_bytes("hbm")))


@pytest.fixture
def parts():
    env, ledger = Clock(), Ledger({"hbm": 100})
    executor = Executor(env, {name: Server(env, name) for name in ("gpu", "link")})
    return env, executor, ledger


def test_a_step_is_planned_reserved_committed_run_released_and_observed(parts):
    env, executor, ledger = parts
    ledger.allocate("page", "hbm", 60)
    system = Recording(ledger, allocate=(("page", "hbm", 40),), release=(("page", "hbm", 60),))
    seen = []
    scheduler = Scheduler(env, executor, ledger, system, seen.append)
    done = scheduler.request(None, DECODE, 2, 5)
    env.run()
    view = StepView(0, 0, None, DECODE, 2, 5, {"gpu": 0, "link": 0})
    assert done.value == StepOutcome(view, 0, 10)
    assert seen == [done.value]
    assert system.log == [("plan", 0, 0, {"gpu": 0, "link": 0}), ("commit", 100), ("observe", 0, 10, 40)]


def test_the_load_is_what_each_server_was_busy_since_the_view_before(parts):
    env, executor, ledger = parts
    system = Recording(ledger)
    scheduler = Scheduler(env, executor, ledger, system, lambda outcome: None)

    def loop():
        yield env.timeout(3)
        yield scheduler.request(None, DECODE, 1, 0)
        yield env.timeout(100)
        yield scheduler.request(None, DECODE, 1, 0)
        scheduler.request(None, DECODE, 1, 0)  # two in flight
        yield env.timeout(5)
        yield scheduler.request(None, DECODE, 1, 0)

    env.process(loop())
    env.run()
    plans = [row[1:] for row in system.log if row[0] == "plan"]
    assert plans == [
        (0, 3, {"gpu": 0, "link": 0}),
        (1, 113, {"gpu": 10, "link": 4}),
        (2, 123, {"gpu": 10, "link": 4}),
        (3, 128, {"gpu": 5, "link": 4}),
    ]
    assert scheduler.steps == 4


def test_several_steps_are_in_flight_and_served_in_the_order_of_their_requests(parts):
    env, executor, ledger = parts
    system = Recording(ledger)
    scheduler = Scheduler(env, executor, ledger, system, lambda outcome: None)
    gates = [scheduler.request(None, DECODE, 1, 0) for _ in range(3)]
    env.run()
    assert [gate.value.view.order for gate in gates] == [0, 1, 2]
    assert [gate.value.end_ps for gate in gates] == [10, 20, 30]
    assert [row[:2] for row in system.log if row[0] == "plan"] == [("plan", 0), ("plan", 1), ("plan", 2)]


def test_a_view_cannot_be_written_to(parts):
    env, executor, ledger = parts
    views = []
    system = Recording(ledger)
    scheduler = Scheduler(env, executor, ledger, system, lambda outcome: views.append(outcome.view))
    scheduler.request(None, DECODE, 1, 0)
    env.run()
    with pytest.raises(TypeError):
        views[0].load["gpu"] = 1
    with pytest.raises(AttributeError):
        views[0].running = 9
    assert not any("output" in name for name in StepView.__slots__)


def test_a_plan_that_does_not_fit_leaves_the_simulation_as_what_it_is(parts):
    env, executor, ledger = parts
    system = Recording(ledger, allocate=(("page", "hbm", 101),))
    Scheduler(env, executor, ledger, system, lambda outcome: None).request(None, DECODE, 1, 0)
    with pytest.raises(CapacityError) as caught:
        env.run()
    assert caught.value.args == ("hbm", 101, 100, 100, ())


def test_a_plan_for_a_server_that_is_not_there_names_it(parts):
    env, executor, ledger = parts
    system = Recording(ledger)
    graph = GraphBuilder()
    graph.task("npu", "step")
    system.template = graph.build()
    Scheduler(env, executor, ledger, system, lambda outcome: None).request(None, DECODE, 1, 0)
    with pytest.raises(ConfigError, match="the machine has no server 'npu'"):
        env.run()
