"""The decode loop against a naive scheduler that keeps every token and every block of every sequence.

The reference follows vLLM's published rules (SOSP'23, section 4.5, with chunked prefill): walk the running sequences
in the order of admission, give each its tokens within the budget, take blocks one by one from a free list, preempt the
last admitted when none is left, admit from the head of the queue only when nothing was preempted. It shares nothing
with the decode loop: no counters, no residues, no heap.
"""

import random
from collections import Counter
from itertools import pairwise

import pytest
from attrs import define, field
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hetmem.model import StepShape
from hetmem.policy.batching import (
    BatchView,
    ContinuousBatch,
    FirstComeFirstServed,
    ShortestPromptFirst,
    StaticBatch,
)
from hetmem.testing import ServingUnderTest


def step_ps(prefill, decode):
    """Return how long a step takes: any function of its shape that tells shapes apart."""
    ticks = 3
    for weight, shape in ((2, prefill), (1, decode)):
        if shape is not None:
            ticks += weight * (shape.tokens + 2 * shape.attended + 3 * shape.kv_tokens + 5 * shape.sampled)
    return ticks


# -- the reference ---------------------------------------------------------------------------------------------------


@define(eq=False)
class Tracked:
    id: int
    arrival: int
    prompt: int
    output: int
    tokens: list = field(factory=list)  # every token whose value is known: "p" of the prompt, "g" generated
    cached: int = 0  # tokens whose keys and values are in the cache
    blocks: list = field(factory=list)
    admitted: int = -1
    first: int = -1
    preemptions: int = 0
    decodes: bool = False

    @property
    def generated(self):
        return self.tokens.count("g")


def naive(requests, total_blocks, block_tokens, budget, batching, key):
    """Return (steps, finished, dropped, preempted ids in order) of the reference."""
    free = list(range(total_blocks))
    coming = [Tracked(i, *row, tokens=["p"] * row[1]) for i, row in enumerate(requests)]
    waiting, running, now = [], [], 0
    steps, finished, dropped, preempted = [], [], [], []

    def grow(seq, tokens, running):
        """Take blocks until ``tokens`` more fit; the victims are taken off ``running``; False if ``seq`` went too."""
        lost = []
        while len(seq.blocks) * block_tokens < seq.cached + tokens:
            if free:
                seq.blocks.append(free.pop())
                continue
            victim = running.pop()
            free.extend(victim.blocks)
            victim.blocks, victim.cached, victim.decodes = [], 0, False
            lost.append(victim)
            if victim is seq:
                break
        return lost

    while True:
        while coming and coming[0].arrival <= now:
            seq = coming.pop(0)
            if -(-seq.prompt // block_tokens) > total_blocks:
                dropped.append(seq.id)
            else:
                waiting.append(seq)
                waiting.sort(key=lambda s: (-1, 0) if s.preemptions else key(s.prompt, s.id))
        left = float("inf") if budget is None else budget
        scheduled, lost = [], []
        index = 0
        while index < len(running) and left > 0:
            seq = running[index]
            tokens = min(len(seq.tokens) - seq.cached, left)
            gone = grow(seq, tokens, running)
            lost += gone
            if seq in gone:
                break
            scheduled.append((seq, tokens))
            left -= tokens
            index += 1
        any_preempted = False
        for seq in lost:
            if -(-len(seq.tokens) // block_tokens) > total_blocks:
                dropped.append(seq.id)
            else:
                any_preempted = True
                seq.preemptions += 1
                preempted.append(seq.id)
                waiting.insert(0, seq)
        if not any_preempted:
            joining = batching.decide(BatchView(len(running), len(waiting)))
            while joining and waiting and left > 0:
                seq = waiting[0]
                tokens = min(len(seq.tokens), left)
                if -(-tokens // block_tokens) > len(free):
                    break
                waiting.pop(0)
                seq.admitted = now if seq.admitted < 0 else seq.admitted
                running.append(seq)
                grow(seq, tokens, running)
                scheduled.append((seq, tokens))
                left -= tokens
                joining -= 1
        if not scheduled:
            if not coming:
                assert not running
                assert not waiting
                return steps, finished, dropped, preempted
            now = coming[0].arrival
            continue
        # A sequence decodes once it has generated a token since it was last admitted; until then it is in prefill.
        groups = {True: [], False: []}
        for seq, tokens in scheduled:
            groups[seq.decodes].append((seq, tokens))
        shapes = {}
        for decodes, group in groups.items():
            shapes[decodes] = None if not group else StepShape(
                tokens=sum(n for _, n in group),
                sequences=len(group),
                attended=sum(position for seq, n in group for position in range(seq.cached + 1, seq.cached + n + 1)),
                kv_tokens=sum(seq.cached + n for seq, n in group),
                sampled=sum(seq.cached + n == len(seq.tokens) for seq, n in group),
            )  # fmt: skip
        assert budget is None or sum(n for _, n in scheduled) <= budget
        start, now = now, now + step_ps(shapes[False], shapes[True])
        steps.append((start, now, shapes[False], shapes[True], len(running), len(waiting)))
        for seq, n in scheduled:
            seq.cached += n
            if seq.cached == len(seq.tokens):
                seq.tokens.append("g")
                seq.decodes = True
                seq.first = now if seq.first < 0 else seq.first
            if seq.generated == seq.output:
                running.remove(seq)
                free.extend(seq.blocks)
                finished.append((seq.id, seq.arrival, seq.admitted, seq.first, now, seq.preemptions))


# -- the decode loop -------------------------------------------------------------------------------------------------


def simulated(requests, total_blocks, block_tokens, budget, batching, admission):
    serving = ServingUnderTest(
        requests, step_ps, blocks=total_blocks, block_tokens=block_tokens, token_budget=budget, batching=batching,
        admission=admission,
    ).run()  # fmt: skip
    assert serving.loop.kv.total == total_blocks
    assert serving.ledger.used_bytes("hbm") == 0
    assert {reason for _, reason in serving.dropped} <= {"kv-capacity"}
    return serving


@st.composite
def cases(draw):
    block_tokens = draw(st.integers(1, 5))
    total_blocks = draw(st.integers(1, 14))
    request = st.tuples(st.integers(0, 400), st.integers(1, 20), st.integers(1, 15))
    requests = sorted(draw(st.lists(request, min_size=1, max_size=8)), key=lambda row: row[0])
    budget = draw(st.one_of(st.none(), st.integers(1, 24)))
    kind = draw(st.sampled_from((StaticBatch, ContinuousBatch)))
    admission = draw(st.sampled_from((FirstComeFirstServed(), ShortestPromptFirst())))
    return requests, total_blocks, block_tokens, budget, kind(draw(st.integers(1, 6))), admission


def assert_same(case):
    requests, total_blocks, block_tokens, budget, batching, admission = case
    steps, finished, dropped, preempted = naive(
        requests, total_blocks, block_tokens, budget, batching, admission.decide
    )
    got = simulated(*case)
    assert got.steps == steps
    assert got.preempted == preempted
    assert sorted(got.finished, key=lambda row: (row[4], row[0])) == sorted(finished, key=lambda row: (row[4], row[0]))
    assert [number for number, _ in got.dropped] == dropped
    return steps, dropped, preempted


@settings(max_examples=300, deadline=None)
@given(cases())
@example(([(0, 1, 9)] * 4, 6, 1, None, ContinuousBatch(4), FirstComeFirstServed()))
@example(([(0, 3, 12), (0, 1, 12), (9, 2, 9)], 4, 4, 2, ContinuousBatch(3), ShortestPromptFirst()))
def test_the_decode_loop_schedules_as_the_reference(case):
    assert_same(case)


def longer_case(seed):
    """Return a case with more requests than hypothesis draws, from tight caches to roomy ones."""
    rng = random.Random(seed)
    block_tokens, total_blocks = rng.randint(1, 6), rng.randint(1, 30)
    spread, prompt, output = rng.choice((1, 300, 3000)), rng.choice((4, 40)), rng.choice((3, 30))
    requests = sorted(
        ((rng.randint(0, spread), rng.randint(1, prompt), rng.randint(1, output)) for _ in range(rng.randint(1, 25))),
        key=lambda row: row[0],
    )
    batching = rng.choice((StaticBatch, ContinuousBatch))(rng.randint(1, 12))
    admission = rng.choice((FirstComeFirstServed(), ShortestPromptFirst()))
    budget = rng.choice((None, rng.randint(1, 10), rng.randint(5, 60)))
    return requests, total_blocks, block_tokens, budget, batching, admission


def test_longer_runs_schedule_as_the_reference():
    seen = Counter()
    for seed in range(150):
        steps, dropped, preempted = assert_same(longer_case(seed))
        seen["dropped"] += bool(dropped)
        seen["preempted often"] += len(preempted) > 3
        seen["prefill in chunks"] += any(step[2] and step[2].sampled < step[2].sequences for step in steps)
        seen["prefill beside decode"] += any(step[2] and step[3] for step in steps)
    # Guards the oracle: what never happens is never compared.
    assert min(seen[what] for what in ("dropped", "preempted often", "prefill in chunks", "prefill beside decode")) > 10


@pytest.mark.slow
def test_thousands_of_longer_runs_schedule_as_the_reference():
    for seed in range(1000, 6000):
        assert_same(longer_case(seed))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_every_request_is_accounted_for_and_caused(case):
    requests, total_blocks, block_tokens, _, batching, _ = case
    serving = simulated(*case)
    steps, finished, recorder = serving.steps, serving.finished, serving.recorder
    dropped = [number for number, _ in serving.dropped]
    assert sorted([row[0] for row in finished] + dropped) == list(range(len(requests)))
    for number, arrival, admitted, first, finish, _ in finished:
        assert arrival == requests[number][0]
        assert arrival <= admitted < first <= finish
        assert (first == finish) == (requests[number][2] == 1)
    for number in dropped:
        assert -(-(requests[number][1] + requests[number][2] - 1) // block_tokens) > total_blocks
    assert all(a[1] <= b[0] for a, b in pairwise(steps))
    assert all(shape is None or shape.tokens > 0 for step in steps for shape in step[2:4])
    assert max(recorder.steps.column("kv_blocks"), default=0) <= total_blocks
    assert max(recorder.steps.column("running"), default=0) <= batching.size
    assert recorder.steps.column("emitted_tokens").sum() == recorder.emitted


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(2, 50))
def test_a_wider_cache_and_no_budget_never_preempt(case, slack):
    requests, _, block_tokens, _, batching, admission = case
    enough = sum(-(-(prompt + output) // block_tokens) for _, prompt, output in requests) + slack
    serving = simulated(requests, enough, block_tokens, None, batching, admission)
    assert (len(serving.finished), serving.dropped, serving.preempted) == (len(requests), [], [])
