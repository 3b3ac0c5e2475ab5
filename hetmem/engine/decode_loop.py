"""The decode loop: a process that owns the requests and turns them into token-step requests.

Each iteration lets the decoding sequences grow by a token, continues and admits prefills within the token
budget, and preempts the youngest sequence, to be recomputed or swapped out, when the KV cache is full: the
scheduling of vLLM (SOSP'23, section 4.5), first come first served unless the admission policy says otherwise.
With pipeline stages there is a loop per stage, each with sequences of its own; they share the queue and the cache.
Not modelled: beam search.
"""

from collections.abc import Callable, Generator
from typing import Protocol

import simpy

from hetmem.engine.intake import Admission, Intake
from hetmem.engine.kv_cache import KvCache
from hetmem.engine.prefix_cache import PrefixCache
from hetmem.engine.running import RunningSet, Sequence
from hetmem.engine.scheduler import DecodeGroup, Scheduler
from hetmem.engine.speculative import Speculation, SpeculativeSet
from hetmem.engine.step import StepOutcome
from hetmem.engine.swap import SwapSpace
from hetmem.errors import ConservationError
from hetmem.hardware.clock import Clock
from hetmem.model import StepShape
from hetmem.monitor.recorder import Recorder
from hetmem.monitor.table import Table
from hetmem.policy.batching import BatchView
from hetmem.workload import RequestTable

NO_KV = "kv-capacity"


class Batching(Protocol):
    """How many waiting sequences may join now."""

    def decide(self, view: BatchView) -> int: ...


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
    speculation
        How drafts are verified; None decodes a token per sequence and step.
    with_contexts
        Whether the system asks for the context of each sequence.
    swap
        Where preempted sequences go; None recomputes them.
    prefixes
        The prompts' blocks that are known; None reuses none.
    beside
        Another loop of the run, to share its queue.
    """

    def __init__(
        self, env: Clock, scheduler: Scheduler, kv: KvCache, recorder: Recorder,
        requests: RequestTable, batching: Batching, admission: Admission, token_budget: int | None = None,
        progress: Callable[[int, int], None] | None = None, speculation: Speculation | None = None,
        with_contexts: bool = False, *, swap: SwapSpace | None = None,
        prefixes: PrefixCache | None = None, beside: "DecodeLoop | None" = None,
    ) -> None:  # fmt: skip
        self.env, self.scheduler, self.kv, self.recorder = env, scheduler, kv, recorder
        self.batching, self.swap, self.prefixes = batching, swap, prefixes
        self.token_budget, self._progress = token_budget, progress
        self.intake: Intake = Intake(env, requests, admission) if beside is None else beside.intake
        self.running = (
            RunningSet(kv.block_tokens) if speculation is None else SpeculativeSet(kv.block_tokens, speculation)
        )
        self._with_contexts, self._ended, self._joined = with_contexts, 0, 0
        self.process = env.process(self._run())

    @property
    def finished(self) -> int:
        """Requests served so far, by all loops of the run."""
        return self.intake.finished

    @property
    def delivered(self) -> int:
        """Tokens of finished requests."""
        return self.intake.delivered

    @property
    def dropped(self) -> int:
        """Requests given up so far."""
        return self.intake.dropped

    @property
    def preemptions(self) -> int:
        """Preemptions so far."""
        return self.intake.preemptions

    def _run(self) -> Generator[simpy.Event, StepOutcome, None]:
        intake = self.intake
        while True:
            intake.receive(self._refused)
            decode, prefills = self._schedule()
            if decode is None and not prefills:
                if intake.done:
                    return
                yield intake.idle()
                continue
            moves = None if self.swap is None else self.swap.moves()
            intake.steps_in_flight += 1
            outcome = yield self.scheduler.request(
                _prefill_shape(prefills), decode, intake.running, len(intake), self._group(), moves
            )
            intake.steps_in_flight -= 1
            self._advance(decode, prefills, outcome)
            intake.wake()

    def _group(self) -> DecodeGroup:
        running, ended, joined = self.running, self._ended, self._joined
        self._ended = self._joined = 0
        return DecodeGroup(running.tlp, running.contexts() if self._with_contexts else (), ended, joined)

    def _refused(self, seq: Sequence) -> bool:
        """Drop a request whose prompt can never fit."""
        if self.kv.blocks_for(seq.prompt) <= self.kv.total:
            return False
        self.intake.refused += 1
        self._drop(seq)
        return True

    def _schedule(self) -> tuple[StepShape | None, list[tuple[Sequence, int]]]:
        """Return the decode group and the prefill chunks of the next step; their KV blocks are taken."""
        running, kv, preempted = self.running, self.kv, self.preemptions
        running.begin()
        while not self._has_room(running.blocks_needed()):
            self._preempt(running.youngest())
        kv.take(running.reserve())
        decode, budget = running.shape(), self.token_budget
        left = 1 << 62 if budget is None else budget - running.decoding * running.tlp
        chunks: list[tuple[Sequence, int]] = []
        # One at most: the last admitted, where the budget cut its prompt short. So it is the youngest, too.
        for seq in list(running.prefilling.values()):
            n = min(seq.known - seq.computed, left)
            if self._grow(seq, n):
                self._computes(seq, n)
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
        if not self._has_room(need):
            return False
        self.kv.take(need)
        seq.blocks += need
        return True

    def _has_room(self, blocks: int) -> bool:
        """Return whether ``blocks`` are free, known prefixes that nobody uses given up if need be."""
        if blocks > self.kv.free and self.prefixes is not None:
            self.prefixes.make_room(blocks)
        return blocks <= self.kv.free

    def _computes(self, seq: Sequence, n: int) -> None:
        if self.prefixes is not None:
            self.prefixes.computed(seq, seq.computed + n)

    def _admit(self, chunks: list[tuple[Sequence, int]], left: int) -> None:
        intake, prefixes = self.intake, self.prefixes
        joining = self.batching.decide(BatchView(len(self.running), len(intake)))
        while joining > 0 and left > 0 and (seq := intake.first()) is not None:
            if prefixes is not None and not seq.swapped:
                prefixes.attach(seq)
            n = min(seq.known - seq.computed, left)
            if not self._grow(seq, n):
                if prefixes is not None and not seq.swapped:
                    prefixes.detach(seq)
                    seq.computed = 0
                break
            intake.admit_first()
            intake.running += 1
            if seq.swapped and self.swap is not None:
                self.swap.load(seq.swapped)
                seq.swapped = 0
            if seq.admitted_ps < 0:
                seq.admitted_ps = self.env.now
                if prefixes is not None:
                    prefixes.admitted(seq)
            self.running.admit(seq)
            self._computes(seq, n)
            chunks.append((seq, n))
            left -= n
            joining -= 1

    def _preempt(self, seq: Sequence) -> None:
        """Take everything from ``seq`` and put it at the head of the queue, or drop it if it outgrew the cache."""
        self._joined -= seq.joined >= 0
        self.running.remove(seq)
        outgrown = self.kv.blocks_for(seq.known - 1 + self.running.tlp) > self.kv.total
        if not outgrown and self.swap is not None and self.swap.store(self.kv.blocks_for(seq.computed)):
            seq.swapped = self.kv.blocks_for(seq.computed)
        else:
            seq.computed = 0
        self._leave(seq)
        if outgrown:
            self._drop(seq)
        else:
            self.intake.put_back(seq)

    def _leave(self, seq: Sequence) -> None:
        """Take its blocks from a sequence that runs no more."""
        self.intake.running -= 1
        if self.prefixes is not None:
            self.prefixes.detach(seq)
        self.kv.give(seq.blocks)
        seq.blocks = 0

    def _advance(self, decode: StepShape | None, chunks: list[tuple[Sequence, int]], outcome: StepOutcome) -> None:
        """Account for what the step computed: tokens, first tokens, finished requests."""
        now, emitted = outcome.end_ps, 0
        if decode is not None:
            for seq in self.running.advance():
                self._ended += 1
                self._finish(seq, now)
            emitted = self.running.emitted
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
                self._joined += 1
                self.running.start_decoding(seq)
        self.recorder.step(
            outcome, sum(n for _, n in chunks), 0 if decode is None else decode.sequences, emitted, self.kv.used
        )  # fmt: skip

    def _finish(self, seq: Sequence, now: int) -> None:
        self._leave(seq)
        self.intake.finished += 1
        self.intake.delivered += seq.output
        self.intake.generated += seq.generated
        self.recorder.finished(seq, now)
        self._report()

    def _drop(self, seq: Sequence) -> None:
        self.intake.dropped += 1
        self.intake.generated += seq.generated
        self.recorder.dropped(seq.id, seq.arrival_ps, seq.prompt, seq.output, NO_KV, seq.preemptions)
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self.finished + self.dropped, len(self.intake.requests))

    def tables(self) -> dict[str, Table]:
        """Return where speculated tokens went, a row per request; empty with plain decoding."""
        return {"speculation": self.running.table} if isinstance(self.running, SpeculativeSet) else {}

    def check_conserved(self) -> None:
        """Raise unless every request is accounted for and the KV cache holds nothing but known prefixes.

        Raises
        ------
        ConservationError
            Naming the law that is broken.
        """
        self.intake.check_conserved(self.recorder.emitted)
        self.kv.check_conserved()
        if self.prefixes is not None:
            self.prefixes.check_conserved()
        elif self.kv.used:
            raise ConservationError("KV blocks", f"{self.kv.used} still held at the end")
        if self.swap is not None and self.swap.held:
            raise ConservationError("KV blocks", f"{self.swap.held} still swapped out at the end")
        if isinstance(self.running, SpeculativeSet):
            self.running.check_conserved()


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
