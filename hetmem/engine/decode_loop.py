"""The decode loop: a process that owns the requests and turns them into token-step requests.

Each iteration lets the decoding sequences grow by a token, continues and admits prefills within the token
budget, and preempts the youngest sequence, to be recomputed, when the KV cache is full: the scheduling of
vLLM (SOSP'23, section 4.5), first come first served unless the admission policy says otherwise.
Not modelled: beam search, sequences that share blocks.
"""

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Protocol

import simpy

from hetmem.engine.kv_cache import KvCache
from hetmem.engine.running import RunningSet, Sequence
from hetmem.engine.scheduler import Scheduler
from hetmem.engine.step import StepOutcome
from hetmem.errors import ConservationError, DeadlockError
from hetmem.hardware.clock import Clock
from hetmem.model import StepShape
from hetmem.monitor.recorder import Recorder
from hetmem.policy.batching import BatchView
from hetmem.workload import RequestTable

NO_KV = "kv-capacity"


class Batching(Protocol):
    """How many waiting sequences may join now."""

    def decide(self, view: BatchView) -> int: ...


class Admission(Protocol):
    """The order in which requests wait."""

    def decide(self, prompt_tokens: int, arrival: int) -> tuple[int, int]: ...


class DecodeLoop:
    """Serves a table of requests to the end.

    Parameters
    ----------
    env, scheduler, kv, recorder
        What it runs on, and what notes the requests and steps.
    requests
        Arrivals and lengths.
    batching, admission
        The policies.
    token_budget
        The most new tokens of a step; None for no limit.
    progress
        Called as ``progress(requests finished or dropped, requests in)``.
    """

    def __init__(
        self, env: Clock, scheduler: Scheduler, kv: KvCache, recorder: Recorder,
        requests: RequestTable, batching: Batching, admission: Admission, token_budget: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:  # fmt: skip
        self.env, self.scheduler, self.kv, self.recorder = env, scheduler, kv, recorder
        self.requests, self.batching, self.admission = requests, batching, admission
        self.token_budget, self._progress = token_budget, progress
        self.running = RunningSet(kv.block_tokens)
        self.preemptions = self.finished = self.dropped = 0
        self._generated = 0  # tokens of the requests that are finished or dropped
        self._waiting: list[tuple[tuple[int, int], int, Sequence]] = []
        self._arrived = 0
        self.process = env.process(self._run())

    def _run(self) -> Generator[simpy.Event, StepOutcome, None]:
        total = len(self.requests)
        while True:
            self._receive()
            decode, prefills = self._schedule()
            if decode is None and not prefills:
                if self._arrived == total and not self.running and not self._waiting:
                    return
                if self._arrived == total:
                    raise DeadlockError((f"decode loop: {len(self._waiting)} requests wait and none can be admitted",))
                yield self.env.timeout(int(self.requests.arrival_ps[self._arrived]) - self.env.now)
                continue
            outcome = yield self.scheduler.request(
                _prefill_shape(prefills), decode, len(self.running), len(self._waiting)
            )
            self._advance(decode, prefills, outcome)

    def _receive(self) -> None:
        """Queue the requests that have arrived by now; refuse those whose prompt can never fit."""
        arrivals, now = self.requests.arrival_ps, self.env.now
        while self._arrived < len(arrivals) and arrivals[self._arrived] <= now:
            k, self._arrived = self._arrived, self._arrived + 1
            seq = Sequence(
                int(self.requests.id[k]), k, int(arrivals[k]),
                int(self.requests.prompt_tokens[k]), int(self.requests.output_tokens[k]),
            )  # fmt: skip
            if self.kv.blocks_for(seq.prompt) > self.kv.total:
                self._drop(seq)
            else:
                heappush(self._waiting, (self.admission.decide(seq.prompt, k), k, seq))

    def _schedule(self) -> tuple[StepShape | None, list[tuple[Sequence, int]]]:
        """Return the decode group and the prefill chunks of the next step; their KV blocks are taken."""
        running, kv, preempted = self.running, self.kv, self.preemptions
        while running.blocks_needed() > kv.free:
            self._preempt(running.youngest())
        kv.take(running.blocks_needed())
        decode = None
        if running.decoding:
            context = running.kv_tokens + running.decoding
            decode = StepShape(
                tokens=running.decoding, sequences=running.decoding, attended=context, kv_tokens=context,
                sampled=running.decoding,
            )  # fmt: skip
        budget = self.token_budget
        left = 1 << 62 if budget is None else budget - running.decoding
        chunks: list[tuple[Sequence, int]] = []
        # One at most: the last admitted, where the budget cut its prompt short. So it is the youngest, too.
        for seq in list(running.prefilling.values()):
            n = min(seq.known - seq.computed, left)
            if self._grow(seq, n):
                chunks.append((seq, n))
                left -= n
            else:
                self._preempt(seq)
        if self.preemptions == preempted:
            self._admit(chunks, left)
        return decode, chunks

    def _grow(self, seq: Sequence, n: int) -> bool:
        """Take the blocks for ``n`` more tokens of ``seq``; False if there are too few."""
        need = self.kv.blocks_for(seq.computed + n) - seq.blocks
        if need > self.kv.free:
            return False
        self.kv.take(need)
        seq.blocks += need
        return True

    def _admit(self, chunks: list[tuple[Sequence, int]], left: int) -> None:
        joining = self.batching.decide(BatchView(len(self.running), len(self._waiting)))
        while joining > 0 and self._waiting and left > 0:
            seq = self._waiting[0][2]
            n = min(seq.known, left)
            if not self._grow(seq, n):
                break
            heappop(self._waiting)
            if seq.admitted_ps < 0:
                seq.admitted_ps = self.env.now
            self.running.admit(seq)
            chunks.append((seq, n))
            left -= n
            joining -= 1

    def _preempt(self, seq: Sequence) -> None:
        """Take everything from ``seq`` and put it at the head of the queue, or drop it if it outgrew the cache."""
        self.running.remove(seq)
        self.kv.give(seq.blocks)
        seq.blocks = seq.computed = 0
        if self.kv.blocks_for(seq.known) > self.kv.total:
            self._drop(seq)
            return
        self.preemptions += 1
        seq.preemptions += 1
        heappush(self._waiting, ((-1, -self.preemptions), seq.arrival, seq))

    def _advance(self, decode: StepShape | None, chunks: list[tuple[Sequence, int]], outcome: StepOutcome) -> None:
        """Account for what the step computed: tokens, first tokens, finished requests."""
        now, emitted = outcome.end_ps, 0
        if decode is not None:
            emitted = decode.sampled
            for seq in self.running.advance():
                self._finish(seq, now)
        for seq, n in chunks:
            seq.computed += n
            if seq.computed < seq.known:
                continue
            emitted += 1
            seq.generated += 1
            if seq.first_token_ps < 0:
                seq.first_token_ps = now
            if seq.generated == seq.output:
                self.running.remove(seq)
                self._finish(seq, now)
            else:
                self.running.start_decoding(seq)
        self.recorder.step(
            outcome, sum(n for _, n in chunks), 0 if decode is None else decode.sequences, emitted, self.kv.used
        )  # fmt: skip

    def _finish(self, seq: Sequence, now: int) -> None:
        self.kv.give(seq.blocks)
        self.finished += 1
        self._generated += seq.generated
        self.recorder.finished(seq, now)
        self._report()

    def _drop(self, seq: Sequence) -> None:
        self.dropped += 1
        self._generated += seq.generated
        self.recorder.dropped(seq.id, seq.arrival_ps, seq.prompt, seq.output, NO_KV)
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self.finished + self.dropped, len(self.requests))

    def check_conserved(self) -> None:
        """Raise unless every request is accounted for and the KV cache is empty.

        Raises
        ------
        ConservationError
            Naming the law that is broken.
        """
        if self.finished + self.dropped != len(self.requests):
            raise ConservationError(
                "requests in = done + dropped",
                f"{len(self.requests)} in, {self.finished} done, {self.dropped} dropped",
            )
        if self._generated != self.recorder.emitted:
            raise ConservationError(
                "tokens", f"{self.recorder.emitted} emitted by the steps, {self._generated} received by the requests"
            )
        self.kv.check_conserved()
        if self.kv.used:
            raise ConservationError("KV blocks", f"{self.kv.used} still held at the end")


def _prefill_shape(chunks: list[tuple[Sequence, int]]) -> StepShape | None:
    if not chunks:
        return None
    return StepShape(
        tokens=sum(n for _, n in chunks),
        sequences=len(chunks),
        attended=sum(n * seq.computed + n * (n + 1) // 2 for seq, n in chunks),
        kv_tokens=sum(seq.computed + n for seq, n in chunks),
        sampled=sum(seq.computed + n == seq.known for seq, n in chunks),
    )
