"""The intake: requests as they arrive, those that wait, and the account of those that came in.

One intake serves all decode loops of a run: with pipeline stages several have steps in flight over disjoint
sequences, and a loop without work sleeps until a request arrives or another loop's step ends.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol

import simpy

from hetmem.engine.running import Sequence
from hetmem.errors import ConservationError, DeadlockError
from hetmem.hardware.clock import NEVER, Clock
from hetmem.workload import RequestTable


class Admission(Protocol):
    """The order in which requests wait."""

    def decide(self, prompt_tokens: int, arrival: int) -> tuple[int, int]: ...


class Intake:
    """Requests in, waiting, finished and dropped.

    Parameters
    ----------
    env, requests, admission
        The clock, what arrives, and the order in which it waits.

    Attributes
    ----------
    finished, dropped, refused, preemptions : int
        Requests served, given up (``refused`` of them on arrival), and the times that one was preempted.
    generated, delivered : int
        Tokens of the requests that are finished or dropped, and of those that are finished.
    steps_in_flight, running : int
        Of all loops together.
    """

    def __init__(self, env: Clock, requests: RequestTable, admission: Admission) -> None:
        self.env, self.requests, self.admission = env, requests, admission
        self.finished = self.dropped = self.refused = self.preemptions = self.generated = self.delivered = 0
        self.steps_in_flight = self.running = 0
        self._waiting: list[tuple[tuple[int, int], int, Sequence]] = []
        self._arrived = 0
        self._next_ps = 0
        self._sleepers: list[simpy.Event] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def done(self) -> bool:
        """Whether every request is finished or dropped."""
        return self.finished + self.dropped == len(self.requests)

    def receive(self, refused: Callable[[Sequence], bool]) -> None:
        """Queue the requests that have arrived by now, but for those that are ``refused``."""
        now = self.env.now
        if now < self._next_ps:
            return
        arrivals, hashes = self.requests.arrival_ps, self.requests.prefix_blocks
        while self._arrived < len(arrivals) and arrivals[self._arrived] <= now:
            k, self._arrived = self._arrived, self._arrived + 1
            seq = Sequence(
                int(self.requests.id[k]), k, int(arrivals[k]),
                int(self.requests.prompt_tokens[k]), int(self.requests.output_tokens[k]),
            )  # fmt: skip
            if hashes is not None:
                seq.prefix = hashes[k]
            if not refused(seq):
                heappush(self._waiting, (self.admission.decide(seq.prompt, k), k, seq))
        self._next_ps = int(arrivals[self._arrived]) if self._arrived < len(arrivals) else NEVER

    def first(self) -> Sequence | None:
        """Return the sequence that is admitted next."""
        return self._waiting[0][2] if self._waiting else None

    def admit_first(self) -> None:
        """Take the first sequence out of the queue."""
        heappop(self._waiting)

    def put_back(self, seq: Sequence) -> None:
        """Put a preempted sequence at the head of the queue."""
        self.preemptions += 1
        seq.preemptions += 1
        heappush(self._waiting, ((-1, -self.preemptions), seq.arrival, seq))

    def idle(self) -> simpy.Event:
        """Return the event at which there may be work again.

        Raises
        ------
        DeadlockError
            When there will be none.
        """
        gaps: list[simpy.Event] = []
        if self._arrived < len(self.requests):
            gaps.append(self.env.timeout(int(self.requests.arrival_ps[self._arrived]) - self.env.now))
        if self.steps_in_flight:
            gaps.append(self.env.event())
            self._sleepers.append(gaps[-1])
        if not gaps:
            raise DeadlockError((f"decode loop: {len(self)} requests wait and none can be admitted",))
        return gaps[0] if len(gaps) == 1 else self.env.any_of(gaps)

    def wake(self) -> None:
        """Let the loops look that had nothing to do."""
        sleepers, self._sleepers = self._sleepers, []
        for event in sleepers:
            event.succeed()

    def check_conserved(self, emitted: int) -> None:
        """Raise :class:`ConservationError` unless every request and every token emitted is accounted for."""
        if not self.done:
            raise ConservationError(
                "requests in = done + dropped",
                f"{len(self.requests)} in, {self.finished} done, {self.dropped} dropped",
            )
        if self.generated != emitted:
            raise ConservationError(
                "tokens", f"{emitted} emitted by the steps, {self.generated} received by the requests"
            )
