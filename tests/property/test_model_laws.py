"""Laws of the kernels of a step that hold for any shape."""

import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmem.model import (
    FP16,
    INT4,
    INT8,
    Kernel,
    ModelSpec,
    Precision,
    StepShape,
    expected_experts,
    head_kernels,
    layer_kernels,
    load_model,
    model_ids,
    step_totals,
)

SPECS = {model: load_model(model) for model in model_ids()}
specs = st.sampled_from(list(SPECS.values()))
dense = st.sampled_from([spec for spec in SPECS.values() if not spec.n_experts])
experts = st.sampled_from([spec for spec in SPECS.values() if spec.n_experts])
precisions = st.sampled_from([FP16, INT8, INT4, Precision(kv_bits=4, activation_bits=8)])
shapes = st.one_of(
    st.builds(StepShape.decode, st.integers(1, 256), st.integers(0, 10**6), st.integers(1, 8)),
    st.lists(st.integers(1, 5000), min_size=1, max_size=8).map(StepShape.prefill),
)
WORK = ("flops", "kv_read_bytes", "kv_write_bytes", "activation_bytes")


def everything(spec: ModelSpec, shape: StepShape, precision: Precision) -> tuple[Kernel, ...]:
    return layer_kernels(spec, shape, precision) + head_kernels(spec, shape, precision)


@given(specs, shapes, shapes, precisions)
def test_work_of_a_fused_step_is_the_sum_and_weights_are_shared(
    spec: ModelSpec, one: StepShape, two: StepShape, precision: Precision
) -> None:
    parts = (everything(spec, one, precision), everything(spec, two, precision))
    for fused, a, b in zip(everything(spec, one + two, precision), *parts, strict=True):
        assert (fused.name,) * 2 == (a.name, b.name)
        for name in WORK:
            assert getattr(fused, name) == getattr(a, name) + getattr(b, name)
        most = a.weight_bytes + b.weight_bytes
        assert max(a.weight_bytes, b.weight_bytes) * (1 - 1e-12) <= fused.weight_bytes <= most * (1 + 1e-12)


@given(dense, shapes, st.integers(1, 50), precisions)
def test_layers_are_linear_in_tokens(spec: ModelSpec, shape: StepShape, times: int, precision: Precision) -> None:
    many = sum(itertools.repeat(shape, times), StepShape())
    for big, small in zip(layer_kernels(spec, many, precision), layer_kernels(spec, shape, precision), strict=True):
        assert big.weight_bytes == small.weight_bytes
        for name in WORK:
            assert getattr(big, name) == times * getattr(small, name)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 10**5)), min_size=1), st.integers(1, 8))
def test_decode_shapes_add(groups: list[tuple[int, int]], tokens: int) -> None:
    fused = StepShape.decode(sum(b for b, _ in groups), sum(c for _, c in groups), tokens)
    assert sum((StepShape.decode(b, c, tokens) for b, c in groups), StepShape()) == fused


@given(st.integers(0, 10**4), st.integers(1, 8))
def test_decode_attends_as_its_tokens_one_by_one(context: int, tokens: int) -> None:
    shape = StepShape.decode(1, context, tokens)
    one_by_one = [StepShape.decode(1, context + done) for done in range(tokens)]
    assert shape.attended == sum(step.attended for step in one_by_one)
    assert shape.kv_tokens == one_by_one[-1].kv_tokens


@given(st.lists(st.integers(1, 10**4), min_size=1))
def test_a_prompt_attends_to_itself_causally(lengths: list[int]) -> None:
    shape = StepShape.prefill(lengths)
    assert shape.attended == sum(c * (c + 1) // 2 for c in lengths)
    assert shape.kv_tokens == shape.tokens == sum(lengths)
    assert shape.sampled == shape.sequences == len(lengths)


@given(specs, st.lists(st.integers(1, 2000), min_size=1, max_size=6), precisions)
def test_chunks_do_the_work_of_the_whole_prompt(spec: ModelSpec, chunks: list[int], precision: Precision) -> None:
    """All but re-reading: the cached keys once more per chunk, the weights of each chunk's step."""
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    steps = [
        StepShape.prefill([n], [start], sampled=int(start + n == sum(chunks)))
        for n, start in zip(chunks, starts, strict=True)
    ]
    whole = StepShape.prefill([sum(chunks)])
    total = sum(steps, StepShape())
    assert (total.tokens, total.attended, total.sampled) == (whole.tokens, whole.attended, whole.sampled)
    assert total.kv_tokens == whole.kv_tokens + sum(starts)
    parts = [step_totals(spec, step, precision) for step in steps]
    once = step_totals(spec, whole, precision)
    for name in ("flops", "kv_write_bytes", "activation_bytes"):
        assert sum(getattr(part, name) for part in parts) == getattr(once, name)
    assert sum(part.weight_bytes for part in parts) >= once.weight_bytes * (1 - 1e-12)


@given(experts, st.integers(1, 10**6))
def test_expected_experts_are_bounded_and_grow(spec: ModelSpec, tokens: int) -> None:
    loaded = expected_experts(spec, tokens)
    assert spec.experts_per_token <= loaded * (1 + 1e-12)
    assert loaded <= min(spec.n_experts, spec.experts_per_token * tokens)
    assert loaded <= expected_experts(spec, tokens + 1)


@given(st.integers(2, 6), st.integers(1, 3), st.data())
def test_expected_experts_count_all_routings(n: int, tokens: int, data: st.DataObject) -> None:
    """The closed form is the mean over every choice of k of n experts by every token."""
    k = data.draw(st.integers(1, n))
    spec = ModelSpec(
        id="moe", n_layers=1, d_model=8, n_heads=1, n_kv_heads=1, head_dim=8, d_ff=8, gated_ffn=False,
        activation="relu", vocab=8, tied_embeddings=True, max_context=8, n_experts=n, experts_per_token=k,
    )  # fmt: skip
    choices = [set(choice) for choice in itertools.combinations(range(n), k)]
    routings = list(itertools.product(choices, repeat=tokens))
    mean = sum(len(set().union(*routing)) for routing in routings) / len(routings)
    assert expected_experts(spec, tokens) == pytest.approx(mean)


@given(specs, shapes, precisions)
def test_dense_counts_are_whole_numbers(spec: ModelSpec, shape: StepShape, precision: Precision) -> None:
    for kernel in everything(spec, shape, precision):
        assert kernel.bytes >= 0
        assert kernel.flops >= 0
        assert kernel.flops == int(kernel.flops)
        if not spec.n_experts:
            assert kernel.bytes == int(kernel.bytes)


@given(specs, precisions)
def test_values_survive_pickling(spec: ModelSpec, precision: Precision) -> None:
    again, bits = pickle.loads(pickle.dumps((spec, precision)))
    shape = StepShape.decode(2, 20)
    assert (again, bits) == (spec, precision)
    assert (hash(again), hash(bits)) == (hash(spec), hash(precision))
    assert layer_kernels(again, shape, bits) == layer_kernels(spec, shape, precision)
