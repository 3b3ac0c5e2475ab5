"""The decode loop, case by case; a property test compares it with a naive scheduler on random ones."""

import pytest

from hetmem.errors import ConservationError, DeadlockError
from hetmem.model import StepShape
from hetmem.policy.batching import ContinuousBatch, ShortestPromptFirst, StaticBatch
from hetmem.testing import ServingUnderTest


def serve(requests, **options):
    return ServingUnderTest(requests, lambda prefill, decode: 10, **options).run()


def test_a_request_is_a_prefill_and_a_decode_step_per_further_token():
    serving = serve([(5, 7, 3)])
    assert serving.steps == [
        (5, 15, StepShape(tokens=7, sequences=1, attended=28, kv_tokens=7, sampled=1), None, 1, 0),
        (15, 25, None, StepShape(tokens=1, sequences=1, attended=8, kv_tokens=8, sampled=1), 1, 0),
        (25, 35, None, StepShape(tokens=1, sequences=1, attended=9, kv_tokens=9, sampled=1), 1, 0),
    ]
    assert serving.finished == [(0, 5, 5, 15, 35, 0)]
    assert serving.recorder.emitted == 3


def test_a_request_of_one_token_is_a_prefill_alone():
    serving = serve([(0, 4, 1)])
    assert len(serving.steps) == 1
    assert serving.finished == [(0, 0, 0, 10, 10, 0)]


def test_no_request_is_no_step():
    serving = serve([])
    assert (serving.steps, serving.finished, serving.dropped) == ([], [], [])


def test_the_loop_sleeps_until_the_next_arrival():
    serving = serve([(0, 1, 1), (1000, 1, 1), (1000, 1, 1)])
    assert [step.start_ps for step in serving.steps] == [0, 1000]
    assert serving.steps[1].prefill.sequences == 2


def test_requests_that_arrive_during_a_step_join_the_next():
    serving = serve([(0, 1, 3), (4, 1, 1), (10, 1, 1)], batching=ContinuousBatch(4))
    assert [(step.start_ps, step.running) for step in serving.steps] == [(0, 1), (10, 3), (20, 1)]
    assert serving.finished[0] == (1, 4, 10, 20, 20, 0)


def test_a_static_batch_runs_to_its_end():
    serving = serve([(0, 1, 2), (0, 1, 4), (0, 1, 1)], batching=StaticBatch(2))
    assert [(step.running, step.waiting) for step in serving.steps] == [(2, 1), (2, 1), (1, 1), (1, 1), (1, 0)]
    assert [row.id for row in serving.finished] == [0, 1, 2]


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks_beside_decoding():
    serving = serve([(0, 2, 4), (0, 7, 2)], token_budget=4, batching=ContinuousBatch(2))
    assert [(s.prefill and s.prefill.tokens, s.prefill and s.prefill.sampled) for s in serving.steps] == [
        (4, 1), (3, 0), (2, 1), (None, None),
    ]  # fmt: skip
    assert [s.decode and s.decode.tokens for s in serving.steps] == [None, 1, 1, 2]
    # The second prompt: 2 tokens in the first step, 3 behind them, and the last 2 behind those 5.
    assert serving.steps[1].prefill == StepShape(tokens=3, sequences=1, attended=3 + 4 + 5, kv_tokens=5, sampled=0)
    assert serving.steps[2].prefill == StepShape(tokens=2, sequences=1, attended=6 + 7, kv_tokens=7, sampled=1)


def test_the_youngest_makes_room_and_is_recomputed_with_what_it_had_generated():
    serving = serve([(0, 2, 5), (0, 2, 5)], blocks=8, block_tokens=1)
    assert serving.preempted == [1]
    shapes = [(s.prefill and s.prefill.tokens, s.decode and s.decode.tokens) for s in serving.steps]
    # Both decode until 4 + 4 blocks are full; 1 then waits until 0 is done, and prefills 2 + 3 tokens at once.
    assert shapes == [(4, None), (None, 2), (None, 2), (None, 1), (None, 1), (5, None), (None, 1)]
    assert serving.finished == [(0, 0, 0, 10, 50, 0), (1, 0, 0, 10, 70, 1)]
    assert serving.recorder.emitted == 10


def groups(serving):
    """Return (prefill tokens, decode tokens, running, waiting) of each step."""
    return [(s.prefill and s.prefill.tokens, s.decode and s.decode.tokens, s.running, s.waiting) for s in serving.steps]


def test_nobody_is_admitted_in_a_step_that_preempts():
    """The first chunk of 1 would fit at tick 30, in the blocks it has just given up."""
    serving = serve([(0, 2, 6), (0, 2, 6)], blocks=8, block_tokens=1, token_budget=4)
    assert groups(serving)[2:7] == [(None, 2, 2, 0), (None, 1, 1, 1), (None, 1, 1, 1), (None, 1, 1, 1), (4, None, 1, 0)]
    assert serving.preempted == [1]


def test_those_preempted_come_back_in_their_old_order_before_the_others():
    serving = serve([(0, 2, 9), (0, 2, 9), (0, 2, 9), (35, 1, 1)], blocks=12, block_tokens=1)
    assert serving.preempted == [2, 1, 2]
    # 0 finishes alone at 90; then 1 and 2 are recomputed (7 + 5 tokens); 2 goes again and comes back with 3.
    assert groups(serving)[9:] == [
        (12, None, 2, 1), *[(None, 1, 1, 2)] * 3, (7, None, 2, 0), *[(None, 1, 1, 0)] * 4,
    ]  # fmt: skip
    assert [(row.id, row.finish_ps) for row in serving.finished] == [(0, 90), (1, 130), (3, 140), (2, 180)]


def test_a_prefill_in_chunks_may_itself_have_to_go():
    serving = serve([(0, 2, 6), (0, 6, 2)], blocks=7, block_tokens=1, token_budget=3)
    assert groups(serving) == [
        (3, None, 2, 0), (2, 1, 2, 0), (None, 1, 1, 1),  # 3 of 6 are computed, and there is no room for more
        (2, 1, 2, 0), (None, 1, 1, 1), (None, 1, 1, 1),
        (3, None, 1, 0), (3, None, 1, 0), (None, 1, 1, 0),
    ]  # fmt: skip
    assert serving.preempted == [1, 1]
    assert [(row.id, row.preemptions) for row in serving.finished] == [(0, 0), (1, 2)]


def test_a_request_waits_for_blocks_and_the_others_behind_it():
    serving = serve([(0, 6, 2), (0, 6, 1), (0, 1, 1)], blocks=9, block_tokens=1)
    assert groups(serving) == [(6, None, 1, 2), (None, 1, 1, 2), (7, None, 2, 0)]


def test_a_prompt_that_can_never_fit_is_dropped_on_arrival():
    serving = serve([(0, 5, 1), (3, 9, 1), (3, 2, 1)], blocks=2, block_tokens=4)
    assert serving.dropped == [(1, "kv-capacity")]
    assert [row.id for row in serving.finished] == [0, 2]


def test_a_request_that_outgrows_the_whole_cache_is_dropped_when_it_does():
    serving = serve([(0, 2, 50)], blocks=3, block_tokens=2)
    assert serving.dropped == [(0, "kv-capacity")]
    assert len(serving.steps) == 5  # 6 tokens fit, the prompt and four more; the fifth is generated but never cached


def test_the_shortest_prompt_may_go_first():
    serving = serve([(0, 9, 1), (0, 2, 1), (0, 5, 1)], batching=StaticBatch(1), admission=ShortestPromptFirst())
    assert [row.id for row in serving.finished] == [1, 2, 0]


class Never:
    def decide(self, view):
        return 0


def test_a_policy_that_admits_nobody_is_a_deadlock_and_not_silence():
    with pytest.raises(DeadlockError, match="decode loop: 2 requests wait and none can be admitted"):
        serve([(0, 1, 1), (7, 1, 1)], batching=Never())


def test_progress_is_reported_for_every_request():
    serving = ServingUnderTest([(0, 2, 3), (0, 99, 1), (0, 1, 1)], lambda prefill, decode: 1, blocks=8, block_tokens=2)
    seen = []
    serving.loop._progress = lambda done, total: seen.append((done, total))
    serving.run()
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda s: setattr(s.loop.intake, "finished", 0),
            "requests in = done + dropped violated: 2 in, 0 done, 0 dropped",
        ),
        (lambda s: setattr(s.recorder, "emitted", 9), "tokens violated: 9 emitted by the steps, 6 received"),
        (lambda s: setattr(s.loop.kv, "freed", 0), "KV blocks violated: 2 allocated, 0 freed, 0 held"),
        (lambda s: s.loop.kv.take(1), "KV blocks violated: 1 still held at the end"),
    ],
)
def test_a_broken_law_is_found(spoil, says):
    serving = serve([(0, 2, 3), (0, 1, 3)])
    spoil(serving)
    with pytest.raises(ConservationError, match=says.replace("+", r"\+")):
        serving.loop.check_conserved()
