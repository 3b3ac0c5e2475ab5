"""Laws that must hold for any batch: buckets, rounds, conservation, the scheduler's promise."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from hetmem import rng
from hetmem.hardware import pim_attention as pa
from hetmem.hardware.pim import fc_on_pim, pim_stack
from hetmem.policy.reschedule import Parallelism, RescheduleView, Side, Threshold, calibrate
from hetmem.system import papi_law as law
from hetmem.system.decoder_shape import DecoderShape
from hetmem.workload.speculation import AllAccepted, Geometric, static_batch, total

SHAPE = DecoderShape(80, 8192, 64, 64, 128, 22016, True, 9)
contexts = st.lists(st.integers(1, 3000), min_size=1, max_size=40)
FLAT = {name: law.papi_machine(name, fc_law="flat") for name in ("papi", "papi-pim-only", "a100-hbm-pim")}
ALPHA = law.calibrated(FLAT["papi"], SHAPE).alpha


@given(contexts, st.integers(1, 8), st.sampled_from(["1P1B", "1P2B"]))
def test_attention_time_is_flat_inside_a_bucket(lengths, tlp, units):
    stack = pim_stack(units)
    full = [-(-length // 16) * 16 for length in lengths]
    one, other = (pa.rounds(stack, 60, 64, each) for each in (lengths, full))
    assert pa.pass_clocks(stack, one) == pa.pass_clocks(stack, other)


@given(st.integers(1, 200), st.integers(1, 3000))
def test_attention_time_is_flat_inside_a_round_of_heads(heads, context):
    stack = pim_stack()
    filled = -(-heads // 16) * 16
    assert pa.rounds(stack, 1, heads, [context]) == pa.rounds(stack, 1, filled, [context])


@given(contexts, st.integers(0, 39), st.integers(1, 500))
def test_a_longer_context_is_never_faster(lengths, index, more):
    stack = pim_stack()
    longer = list(lengths)
    longer[index % len(lengths)] += more
    short, long = (pa.pass_clocks(stack, pa.rounds(stack, 4, 64, each)) for each in (lengths, longer))
    assert short <= long


@given(st.integers(1, 64))
def test_fc_in_memory_is_flat_up_to_four_tokens(group):
    stack = pim_stack("4P1B")
    times = {fc_on_pim(stack, 30, 1e11, 4 * (group - 1) + extra).time_s for extra in (1, 2, 3, 4)}
    assert len(times) == 1


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 80)), min_size=1, max_size=20), st.data())
def test_tokens_are_conserved(requests, data):
    tlp = data.draw(st.integers(1, 9))
    law_ = data.draw(st.one_of(st.just(AllAccepted()), st.builds(Geometric, st.floats(0, 0.99))))
    prompts, outputs = zip(*requests, strict=True)
    steps = static_batch(prompts, outputs, tlp, law_, rng.stream(data.draw(st.integers(0, 99)), "spec"))
    count = total([step.tokens for step in steps])
    assert count.violations() == ()
    assert count.emitted == sum(outputs) - len(outputs)  # the prefill emitted one each
    assert count.drafted == sum(step.rlp for step in steps) * (tlp - 1)
    assert sum(step.finished for step in steps) == sum(output > 1 for output in outputs)
    rlp = [step.rlp for step in steps]
    assert rlp == sorted(rlp, reverse=True)


@settings(max_examples=40)
@given(st.integers(1, 100), st.integers(1, 8), st.integers(1, 2000))
def test_papi_is_never_slower_than_either_fixed_side(rlp, tlp, context):
    side = Threshold(ALPHA).decide(RescheduleView(Parallelism(rlp, tlp)))
    papi = law.iteration(FLAT["papi"], SHAPE, [context] * rlp, tlp, side)
    gpu = law.iteration(FLAT["a100-hbm-pim"], SHAPE, [context] * rlp, tlp, Side.GPU)
    pim = law.iteration(FLAT["papi-pim-only"], SHAPE, [context] * rlp, tlp, Side.PIM)
    assert papi.time_s - papi.decision_s <= min(gpu.time_s, pim.time_s) * (1 + 1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_calibration_covers_every_token_count_once(wins):
    found = calibrate(lambda p: 0.0 if wins[p - 1] else 2.0, lambda p: 1.0, upto=len(wins))
    covered = {p for first, last in found.pim_ranges for p in range(first, last + 1)}
    assert covered == {p for p, won in enumerate(wins, 1) if won}
    assert found.alpha == max(covered, default=0)
    assert found.crossings == sum(a != b for a, b in pairwise(wins))
    gaps = {p for first, last in found.holes for p in range(first, last + 1)}
    assert gaps == {p for p in range(1, found.alpha + 1) if p not in covered}
