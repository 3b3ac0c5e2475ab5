"""The offloading decisions of LIA, Fiddler and MoE-Lightning: their properties, not their headlines."""

from itertools import product

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmem.errors import ConfigError, UnsupportedError
from hetmem.policy.cgopipe import HrmPolicy, HrmSearch, HrmView, Side, pipeline
from hetmem.policy.fiddler import CpuOrGpu, ExpertView, crossover_tokens, pin_popular
from hetmem.policy.lia import LiaOffload, LiaView, Sublayer

# --- LIA ---

sublayers = st.builds(
    Sublayer,
    cpu_s=st.floats(0, 1),
    gpu_s=st.floats(0, 1),
    operand_bytes=st.integers(0, 10**9),
    input_bytes=st.integers(0, 10**8),
    store_bytes=st.integers(0, 10**8),
)
lia_views = st.builds(
    LiaView,
    sublayers=st.tuples(*[sublayers] * 6),
    residual_bytes=st.integers(0, 10**8),
    link_bytes_per_s=st.floats(1e9, 1e11),
)


@given(lia_views)
def test_lia_takes_the_least_of_all_vectors(view):
    decision = LiaOffload().decide(view)
    assert decision.time_s == min(view.time_s(vector) for vector in product((0, 1), repeat=6))
    assert view.time_s(decision.vector) == decision.time_s
    assert LiaOffload().decide(view) == decision


@given(lia_views)
def test_an_infinitely_fast_link_leaves_each_sublayer_to_the_faster_side(view):
    fast = attrs.evolve(view, link_bytes_per_s=1e30)
    assert LiaOffload().decide(fast).time_s == pytest.approx(sum(min(s.cpu_s, s.gpu_s) for s in view.sublayers))


def test_one_side_moves_no_activations_and_a_mixed_vector_pays_each_crossing():
    view = LiaView(tuple(Sublayer(0, 0, 1000, 10, 100) for _ in range(6)), residual_bytes=1, link_bytes_per_s=1)
    assert view.time_s((1,) * 6) == 0
    assert view.time_s((0,) * 6) == 6 * 1100
    # qk and sv on the CPU: four GPU sublayers, into and out of the CPU; both residuals stay on the GPU.
    assert view.time_s((0, 1, 1, 0, 0, 0)) == 4 * 1100 + 2 * 10
    # fc2 alone on the CPU: its input, the next layer's, and its residual from the projection.
    assert view.time_s((0, 0, 0, 0, 0, 1)) == 5 * 1100 + 2 * 10 + 1


def opt_175b(batch, context, link=25e9):
    """Return the decode view of one OPT-175B layer on an AMX host (20 TFLOPS, 260 GB/s) and a fast GPU."""
    d, kv = 12288, 2 * 12288 * context * batch

    def weights(columns):
        flops, size = 2 * d * columns * batch, 2 * d * columns
        return Sublayer(max(flops / 20e12, size / 260e9), max(flops / 312e12, size / 1.5e12), size, 2 * d * batch)

    attention = Sublayer(max(kv / 0.2e12, kv / 260e9), kv / 1.5e12, kv, 2 * d * batch)
    parts = (attrs.evolve(weights(3 * d), store_bytes=4 * d * batch), attention, attention)
    return LiaView((*parts, weights(d), weights(4 * d), weights(4 * d)), 2 * d * batch, link)


def test_lia_offloads_whole_decode_at_small_batches_and_only_attention_at_large_ones():
    vectors = [LiaOffload().decide(opt_175b(batch, 512)).vector for batch in range(1, 1200)]
    turn = next(i for i, vector in enumerate(vectors) if vector != (1,) * 6)
    assert set(vectors[turn:]) == {(0, 1, 1, 0, 0, 0)}
    assert turn + 1 == pytest.approx(858, rel=0.1)  # the paper's map of OPT-175B


def test_lia_refuses_other_than_six_sublayers_and_a_dead_link():
    with pytest.raises(ConfigError, match="sublayers"):
        LiaView((Sublayer(1, 1),) * 5, 0, 1.0)
    with pytest.raises(ConfigError, match="link_bytes_per_s"):
        LiaView((Sublayer(1, 1),) * 6, 0, 0.0)


# --- Fiddler ---


def experts(tokens, cpu_s_per_token=1e-3, gpu_s=1e-3, load_s=10e-3, pinned=()):
    tokens = np.array(tokens)
    held = np.isin(np.arange(tokens.size), pinned)
    return ExpertView(tokens, cpu_s_per_token * tokens, np.full(tokens.size, gpu_s), load_s, held)


def test_few_tokens_run_on_the_cpu_many_on_the_gpu_and_none_nowhere():
    decision = CpuOrGpu().decide(experts([0, 1, 10, 11, 200]))
    assert decision.on_cpu.tolist() == [False, True, True, False, False]
    assert decision.on_gpu.tolist() == [False, False, False, True, True]
    assert decision.copied.tolist() == [False, False, False, True, True]


def test_the_crossover_is_where_the_decision_turns():
    n = crossover_tokens(lambda n: 1e-3 * n, lambda _: 1e-3, 10e-3, most=64)
    assert n == 11
    turned = CpuOrGpu().decide(experts(range(1, 65)))
    assert int(np.flatnonzero(turned.on_gpu)[0]) + 1 == n
    assert crossover_tokens(lambda _: 0.0, lambda _: 1e-3, 10e-3, most=64) is None


def test_a_pinned_expert_needs_no_copy():
    decision = CpuOrGpu().decide(experts([5, 5], pinned=(1,)))
    assert decision.on_cpu.tolist() == [True, False]
    assert not decision.copied.any()


@given(st.lists(st.integers(0, 100), min_size=1, max_size=16), st.floats(0, 0.1))
def test_each_expert_takes_the_lesser_time(tokens, load_s):
    view = experts(tokens, load_s=load_s)
    decision = CpuOrGpu().decide(view)
    assert (decision.on_cpu | decision.on_gpu).tolist() == [n > 0 for n in tokens]
    assert not (decision.on_cpu & decision.on_gpu).any()
    chosen = np.where(decision.on_cpu, view.cpu_s, view.gpu_s + load_s)
    busy = view.tokens > 0
    assert (chosen[busy] <= np.minimum(view.cpu_s, view.gpu_s + load_s)[busy]).all()


def test_the_most_popular_are_pinned_and_of_equals_the_first():
    assert pin_popular([0.1, 0.4, 0.4, 0.1], 3) == (0, 1, 2)
    with pytest.raises(ConfigError, match="slots"):
        pin_popular([0.5, 0.5], 3)
    with pytest.raises(ConfigError, match="tokens"):
        ExpertView(np.ones(2, int), np.ones(3), np.ones(2), 0.1, np.zeros(2, bool))


# --- MoE-Lightning ---

T4 = Side(flops=65e12, bytes_per_s=320e9, capacity_bytes=16e9)
HOST = Side(flops=1.5e12, bytes_per_s=100e9, capacity_bytes=192e9)


def mixtral(gpu=T4, cpu=HOST, link=12e9, context=128):
    """Return a layer of Mixtral-8x7B: hidden 4096, 8 experts of 3 x 14336 x 4096, 8 KV heads of 128."""
    dense, expert = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024), 2 * 3 * 14336 * 4096
    return HrmView(
        gpu=gpu,
        cpu=cpu,
        link_bytes_per_s=link,
        n_layers=32,
        dense_bytes=dense,
        expert_bytes=8 * expert,
        touched_share=1.0,
        dense_flops=dense,
        expert_flops=2 * expert,
        attention_flops=4 * 4096 * context,
        kv_bytes=2 * 2 * 1024 * context,
        hidden_bytes=2 * 4096,
    )


SEARCH = HrmSearch(max_batch=1024, steps=4)


def test_the_search_takes_the_best_that_fits():
    view = mixtral()
    best = SEARCH.decide(view)
    assert best.fits(view)
    fitting = [p.tokens_per_s(view) for p in SEARCH.candidates() if p.fits(view)]
    assert best.tokens_per_s(view) == max(fitting)
    assert len(fitting) < len(SEARCH.candidates())
    # A T4 computes the FFN but leaves attention to the CPU, with the largest batch: the paper's regime.
    assert (best.gpu_ffn, best.gpu_attention, best.batch) == (True, False, 1024)


@pytest.mark.parametrize("better", ["link", "gpu", "cpu", "memory"])
def test_a_better_machine_is_never_slower(better):
    machines = {
        "link": mixtral(link=24e9),
        "gpu": mixtral(gpu=attrs.evolve(T4, flops=130e12, bytes_per_s=640e9)),
        "cpu": mixtral(cpu=attrs.evolve(HOST, flops=3e12, bytes_per_s=200e9)),
        "memory": mixtral(gpu=attrs.evolve(T4, capacity_bytes=48e9)),
    }
    base, view = mixtral(), machines[better]
    assert SEARCH.decide(view).tokens_per_s(view) >= SEARCH.decide(base).tokens_per_s(base)


def test_memories_hold_every_byte_once():
    view = mixtral()
    weights, kv = view.dense_bytes + view.expert_bytes, view.kv_bytes
    for gpu_ffn in (False, True):
        policy = HrmPolicy(64, 16, True, gpu_ffn, 0.25, 0.5)
        layer = weights if gpu_ffn else view.dense_bytes
        buffers = 2 * 0.75 * layer + 0.5 * 16 * kv + 16 * view.hidden_bytes
        states = 64 * view.hidden_bytes
        held = policy.gpu_bytes(view) + policy.cpu_bytes(view) - buffers - states
        assert held == pytest.approx(32 * (weights + 64 * kv))


def test_each_resource_gets_the_work_that_the_policy_sends_there():
    view = mixtral()
    link, cpu, gpu = HrmPolicy(64, 16, False, True, 0.0, 0.0).times_s(view)
    assert link == pytest.approx((view.dense_bytes + view.expert_bytes + 64 * view.hidden_bytes) / 12e9)
    assert cpu == pytest.approx(64 * view.kv_bytes / 100e9)
    assert gpu == pytest.approx(4 * (view.dense_bytes + view.expert_bytes) / 320e9)
    all_cpu = HrmPolicy(64, 16, False, False, 1.0, 0.0).times_s(view)
    assert all_cpu[0] == pytest.approx(2 * 64 * view.hidden_bytes / 12e9)
    all_gpu = HrmPolicy(64, 16, True, True, 1.0, 1.0).times_s(view)
    assert all_gpu[:2] == (0.0, 0.0)
    half_kv = HrmPolicy(64, 16, True, True, 1.0, 0.5).times_s(view)
    assert half_kv[0] == pytest.approx(32 * view.kv_bytes / 12e9)


def test_a_machine_too_small_is_refused_with_the_bytes():
    with pytest.raises(UnsupportedError, match=r"no policy fits 92\.9 GB of weights into 16\.0 GB of GPU and 20\.0 GB"):
        SEARCH.decide(mixtral(cpu=attrs.evolve(HOST, capacity_bytes=20e9)))


@given(n_layers=st.integers(1, 6), micro=st.integers(2, 6))
def test_the_pipeline_does_every_part_once_and_in_order(n_layers, micro):
    slots = pipeline(n_layers, micro)
    every = [(layer, j) for layer in range(n_layers) for j in range(micro)]
    at = {}
    for part in ("gpu_pre", "cpu_attention", "gpu_post", "page"):
        done = [(getattr(slot, part), i) for i, slot in enumerate(slots) if getattr(slot, part) is not None]
        assert sorted(work for work, _ in done) == every
        at[part] = dict(done)
    for layer, j in every:
        work = (layer, j)
        assert at["gpu_pre"][work] < at["cpu_attention"][work] < at["gpu_post"][work]
        if layer:
            # The layer below must be done; post goes before pre within a slot. The page must have landed.
            assert at["gpu_post"][(layer - 1, j)] <= at["gpu_pre"][work]
            assert at["page"][work] < at["gpu_post"][work]


def test_in_the_steady_state_gpu_cpu_and_link_are_busy_at_once():
    slots = pipeline(4, 3)
    assert slots[5] == slots[5].__class__(gpu_post=(1, 0), gpu_pre=(1, 2), cpu_attention=(1, 1), page=(2, 0))
    full = [s for s in slots if None not in (s.gpu_post, s.gpu_pre, s.cpu_attention, s.page)]
    assert len(full) == 4 * 3 - 2


@pytest.mark.parametrize(("field", "arguments"), [("n_layers", (0, 2)), ("micro_batches", (2, 1))])
def test_a_pipeline_needs_layers_and_two_micro_batches(field, arguments):
    with pytest.raises(ConfigError, match=field):
        pipeline(*arguments)
