"""The scheduler: a process with a queue of token-step requests.

For each it builds the view, has the system plan, reserves what the plan needs, submits the graph and, when the
gate opens, lets the system observe and hands the outcome back. Several steps may be in flight.
"""

from collections import deque
from collections.abc import Callable, Generator
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import simpy
from attrs import frozen

from hetmem.engine.executor import Executor
from hetmem.engine.step import Plan, StepOutcome, StepView
from hetmem.hardware.clock import Clock
from hetmem.hardware.ledger import Ledger
from hetmem.model import StepShape


class Planner(Protocol):
    """What the scheduler needs of a system."""

    def plan(self, view: StepView) -> Plan:
        """Return the step's plan; pure and repeatable."""

    def commit(self, plan: Plan) -> None:
        """Take note that ``plan`` is on its way."""

    def observe(self, outcome: StepOutcome) -> None:
        """Take note of what happened."""


class DecodeGroup(NamedTuple):
    """The decoding sequences of a step beyond their shape; see :class:`~hetmem.engine.step.StepView`."""

    tlp: int = 1
    contexts: tuple[int, ...] = ()
    finished: int = 0
    joined: int = 0


NO_GROUP = DecodeGroup()


@frozen(slots=True, eq=False)
class StepRequest:
    """A request for one step: the shapes of its groups, and the event that its outcome triggers."""

    prefill: StepShape | None
    decode: StepShape | None
    running: int
    waiting: int
    done: simpy.Event
    group: DecodeGroup


class Scheduler:
    """Serves step requests first come, first served.

    Parameters
    ----------
    env, executor, ledger
        What the steps run on.
    system
        Plans the steps.
    on_step
        Sees every outcome: the check of physical bounds.
    """

    def __init__(
        self, env: Clock, executor: Executor, ledger: Ledger, system: Planner,
        on_step: Callable[[StepOutcome], None],
    ) -> None:  # fmt: skip
        self.env, self.executor, self.ledger, self.system, self.on_step = env, executor, ledger, system, on_step
        self.steps = 0
        self._queue: deque[StepRequest] = deque()
        self._wake: simpy.Event | None = None
        self._busy = dict.fromkeys(executor.servers, 0)
        env.process(self._serve())

    def request(
        self, prefill: StepShape | None, decode: StepShape | None, running: int, waiting: int,
        group: DecodeGroup = NO_GROUP,
    ) -> simpy.Event:  # fmt: skip
        """Queue a step; the returned event fires with its :class:`StepOutcome`."""
        request = StepRequest(prefill, decode, running, waiting, self.env.event(), group)
        self._queue.append(request)
        wake, self._wake = self._wake, None
        if wake is not None:
            wake.succeed()
        return request.done

    def _serve(self) -> Generator[simpy.Event, Any, None]:
        while True:
            while self._queue:
                self._start(self._queue.popleft())
            self._wake = self.env.event()
            yield self._wake

    def _start(self, request: StepRequest) -> None:
        now = self.env.now
        view = StepView(
            self.steps, now, request.prefill, request.decode, request.running, request.waiting, self._load(now),
            *request.group,
        )  # fmt: skip
        self.steps += 1
        plan = self.system.plan(view)
        for owner, memory, n_bytes in plan.allocate:
            self.ledger.allocate(owner, memory, n_bytes)
        self.system.commit(plan)

        def opened(_gate: simpy.Event) -> None:
            for owner, memory, n_bytes in plan.release:
                self.ledger.free(owner, memory, n_bytes)
            outcome = StepOutcome(view, now, self.env.now)
            self.system.observe(outcome)
            self.on_step(outcome)
            request.done.succeed(outcome)

        callbacks = self.executor.submit(plan.graph, view.order).callbacks
        assert callbacks is not None
        callbacks.append(opened)

    def _load(self, now: int) -> MappingProxyType[str, int]:
        load = {}
        for name, server in self.executor.servers.items():
            busy = server.busy_at(now)
            load[name] = busy - self._busy[name]
            self._busy[name] = busy
        return MappingProxyType(load)
