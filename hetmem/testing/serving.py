"""Serving under test: the real decode loop, scheduler and KV cache on one server whose steps last as long as you say.

For schedulers, batching and admission policies, and for whatever else decides who runs: no model, no machine.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from hetmem.engine.decode_loop import Batching, DecodeLoop
from hetmem.engine.executor import Executor
from hetmem.engine.graph import Cost, GraphBuilder
from hetmem.engine.intake import Admission
from hetmem.engine.kv_cache import KvCache
from hetmem.engine.running import Sequence
from hetmem.engine.scheduler import Scheduler
from hetmem.engine.step import Plan, StepOutcome, StepView
from hetmem.hardware.clock import Clock
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.server import Server
from hetmem.model import StepShape
from hetmem.monitor.readings import Readings
from hetmem.monitor.recorder import Recorder
from hetmem.policy.batching import ContinuousBatch, FirstComeFirstServed
from hetmem.workload import RequestTable

SERVER = "gpu"
MEMORY = "hbm"


class Step(NamedTuple):
    """One step: when it ran, the shapes of its two groups, and the sequences that ran and waited."""

    start_ps: int
    end_ps: int
    prefill: StepShape | None
    decode: StepShape | None
    running: int
    waiting: int


class Served(NamedTuple):
    """One finished request."""

    id: int
    arrival_ps: int
    admitted_ps: int
    first_token_ps: int
    finish_ps: int
    preemptions: int


class ServingUnderTest:
    """Serves requests to the end and keeps what happened.

    Parameters
    ----------
    requests
        (arrival tick, prompt tokens, output tokens) of each; its place is its id.
    step_ps
        The ticks of a step, a function of its prefill and decode shapes (None where it has none).
    blocks, block_tokens
        The KV cache.
    token_budget, batching, admission
        As for the decode loop.

    Attributes
    ----------
    steps : list of Step
        In the order in which they ran.
    preempted : list of int
        Ids, in the order of preemption.
    loop, recorder, ledger, env
        The parts, for what else a test may ask.
    """

    def __init__(
        self, requests: Iterable[tuple[int, int, int]], step_ps: Callable[[StepShape | None, StepShape | None], int],
        *, blocks: int = 1 << 20, block_tokens: int = 16, token_budget: int | None = None,
        batching: Batching | None = None, admission: Admission | None = None,
    ) -> None:  # fmt: skip
        graph = GraphBuilder()
        graph.task(SERVER, "step")
        self._template, self._step_ps = graph.build(), step_ps
        self.steps: list[Step] = []
        self.preempted: list[int] = []
        self.env = Clock()
        servers = {SERVER: Server(self.env, SERVER)}
        self.ledger = Ledger({MEMORY: blocks * block_tokens})
        self.recorder = Recorder(Readings({SERVER: servers[SERVER].busy_at}))
        self.executor = Executor(self.env, servers)
        self.scheduler = Scheduler(self.env, self.executor, self.ledger, self, lambda outcome: None)
        rows = list(requests)
        arrival, prompt, output = ([row[i] for row in rows] for i in range(3))
        self.loop = _Loop(
            self.env, self.scheduler, KvCache(self.ledger, block_tokens, {MEMORY: 1}, 1.0), self.recorder,
            RequestTable.build(arrival, prompt, output), batching or ContinuousBatch(1 << 20),
            admission or FirstComeFirstServed(), token_budget,
        )  # fmt: skip
        self.loop.preempted = self.preempted

    def run(self) -> "ServingUnderTest":
        """Serve all, check what a run checks at its end, and return this object."""
        self.env.run()
        self.executor.check_drained()
        self.loop.check_conserved()
        return self

    @property
    def finished(self) -> list[Served]:
        """The requests that were served, in the order in which they finished."""
        return [Served(*row[:6]) for row in self._rows() if row[6] == "done"]

    @property
    def dropped(self) -> list[tuple[int, str]]:
        """Id and reason of the requests that were not, in the order in which they were dropped."""
        return [(row[0], row[6].removeprefix("dropped: ")) for row in self._rows() if row[6] != "done"]

    def _rows(self) -> list[tuple[int, int, int, int, int, int, str]]:
        columns = (*Served._fields, "status")
        return list(zip(*(self.recorder.requests.column(name).tolist() for name in columns), strict=True))

    def plan(self, view: StepView) -> Plan:
        """Return a step of one task."""
        return Plan(self._template.bind({"step": Cost(self._step_ps(view.prefill, view.decode))}))

    def commit(self, plan: Plan) -> None:
        """Do nothing: this system has no state."""

    def observe(self, outcome: StepOutcome) -> None:
        """Keep the step."""
        view = outcome.view
        self.steps.append(Step(outcome.start_ps, outcome.end_ps, view.prefill, view.decode, view.running, view.waiting))


class _Loop(DecodeLoop):
    """A decode loop that notes whom it preempts."""

    preempted: list[int]

    def _preempt(self, seq: Sequence) -> None:
        before = self.preemptions
        super()._preempt(seq)
        if self.preemptions > before:
            self.preempted.append(seq.id)
