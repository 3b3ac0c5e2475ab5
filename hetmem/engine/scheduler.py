"""The scheduler: a process with a queue of token-step requests.

For each it builds the view, has the system plan, reserves what the plan needs, submits the graph and, when the
gate opens, lets the system observe and hands the outcome back. Several steps may be in flight. What a step waits
for comes first: the engine's own work on the host, and copies to and from the swap space.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

import simpy
from attrs import frozen

from hetmem.engine.evaluator import Evaluator
from hetmem.engine.executor import Executor
from hetmem.engine.graph import Cost, GraphBuilder, TaskGraph
from hetmem.engine.step import Load, Plan, StepOutcome, StepView
from hetmem.engine.swap import KvMoves
from hetmem.hardware.clock import Clock
from hetmem.hardware.ledger import Ledger
from hetmem.model import StepShape
from hetmem.monitor.readings import Readings

ENGINE = "host.engine"  # apart from "host", the port of the host's memory


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
    moves: KvMoves | None


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
    host_step_ps
        The engine's own work per step, on the server :data:`ENGINE`; 0 is none.
    swap_graph
        Gives the graph of the copies before a step.
    busy
        The busy ticks of the executor's servers, where others read them too.
    """

    def __init__(
        self, env: Clock, executor: Executor | Evaluator, ledger: Ledger, system: Planner,
        on_step: Callable[[StepOutcome], None], host_step_ps: int = 0,
        swap_graph: Callable[[KvMoves], TaskGraph] | None = None, busy: Readings | None = None,
    ) -> None:  # fmt: skip
        self.env, self.executor, self.ledger, self.system, self.on_step = env, executor, ledger, system, on_step
        self.steps = 0
        self._swap_graph = swap_graph
        self._engine: TaskGraph | None = None
        if host_step_ps:
            graph = GraphBuilder()
            graph.task(ENGINE, "engine")
            self._engine = graph.build().bind({"engine": Cost(host_step_ps)})
        self._queue: deque[StepRequest] = deque()
        self._wake: simpy.Event | None = None
        self._readings = busy or Readings({name: server.busy_at for name, server in executor.servers.items()})
        self._busy: Sequence[int] = [0] * len(self._readings.names)
        env.process(self._serve())

    def request(
        self, prefill: StepShape | None, decode: StepShape | None, running: int, waiting: int,
        group: DecodeGroup = NO_GROUP, moves: KvMoves | None = None,
    ) -> simpy.Event:  # fmt: skip
        """Queue a step, with the copies to make before it; the returned event fires with its :class:`StepOutcome`."""
        request = StepRequest(prefill, decode, running, waiting, self.env.event(), group, moves)
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
        order, start = self.steps, self.env.now
        self.steps += 1
        if self._engine is None and request.moves is None:
            self._run(request, order, start)
            return
        first = [] if self._engine is None else [self._engine]
        if request.moves is not None and self._swap_graph is not None:
            first.append(self._swap_graph(request.moves))

        def go_on(_gate: simpy.Event | None = None) -> None:
            if first:
                _when(self.executor.submit(first.pop(0), order), go_on)
            else:
                self._run(request, order, start)

        go_on()

    def _run(self, request: StepRequest, order: int, start: int) -> None:
        now = self.env.now
        view = StepView(
            order, now, request.prefill, request.decode, request.running, request.waiting, self._load(now),
            *request.group,
        )  # fmt: skip
        plan = self.system.plan(view)
        for owner, memory, n_bytes in plan.allocate:
            self.ledger.allocate(owner, memory, n_bytes)
        self.system.commit(plan)

        def opened(_gate: simpy.Event) -> None:
            for owner, memory, n_bytes in plan.release:
                self.ledger.free(owner, memory, n_bytes)
            outcome = StepOutcome(view, start, self.env.now)
            self.system.observe(outcome)
            self.on_step(outcome)
            request.done.succeed(outcome)

        _when(self.executor.submit(plan.graph, view.order), opened)

    def _load(self, now: int) -> Load:
        before, self._busy = self._busy, self._readings.at(now)
        return Load(self._readings.names, before, self._busy)


def _when(event: simpy.Event, call: Callable[[simpy.Event], None]) -> None:
    callbacks = event.callbacks
    assert callbacks is not None
    callbacks.append(call)
