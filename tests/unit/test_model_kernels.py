"""Kernels of a step against hand-counted work and against formulas of measured kernels."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from hetmem.errors import ConfigError
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

MATMULS = {"qkv", "proj", "up", "down", "router"}


def by_name(kernels: tuple[Kernel, ...]) -> dict[str, Kernel]:
    named = {kernel.name: kernel for kernel in kernels}
    assert len(named) == len(kernels)
    return named


@pytest.mark.parametrize(
    ("model", "order"),
    [
        ("llama2-70b", "attn_norm qkv rope qk softmax sv proj mlp_norm up act down"),
        ("opt-13b", "attn_norm qkv qk softmax sv proj mlp_norm up act down"),
        ("falcon-40b", "attn_norm qkv rope qk softmax sv proj up act down"),
        ("mixtral-8x7b", "attn_norm qkv rope qk softmax sv proj mlp_norm router up act down"),
    ],
)
def test_kernels_in_execution_order(model: str, order: str) -> None:
    spec = load_model(model)
    for shape in (StepShape.decode(4, 400), StepShape.prefill([7]), StepShape()):
        assert " ".join(kernel.name for kernel in layer_kernels(spec, shape)) == order
        assert [kernel.name for kernel in head_kernels(spec, shape)] == ["embedding", "final_norm", "lm_head"]


def test_one_layer_by_hand() -> None:
    """Llama-2-70B, two sequences with 9 and 19 tokens cached, FP16."""
    named = by_name(layer_kernels(load_model("llama2-70b"), StepShape.decode(2, 28)))
    assert named["qkv"] == Kernel(
        "qkv", 2 * 2 * 8192 * 10240, 2 * 8192 * 10240, 0, 2 * 2 * 2 * 1024, 2 * 2 * (8192 + 8192)
    )
    assert named["qk"] == Kernel("qk", 2 * 30 * 8192, 0, 2 * 30 * 1024, 0, 2 * 2 * 8192)
    assert named["softmax"] == Kernel("softmax", 5 * 30 * 64, 0, 0, 0, 0)
    assert named["sv"] == Kernel("sv", 2 * 30 * 8192, 0, 2 * 30 * 1024, 0, 2 * 2 * 8192)
    assert named["proj"] == Kernel("proj", 2 * 2 * 8192 * 8192, 2 * 8192 * 8192, 0, 0, 2 * 2 * 2 * 8192)
    assert named["up"] == Kernel("up", 2 * 2 * 8192 * 57344, 2 * 8192 * 57344, 0, 0, 2 * 2 * (8192 + 57344))
    assert named["act"] == Kernel("act", 2 * 5 * 28672, 0, 0, 0, 2 * 2 * 3 * 28672)
    assert named["down"] == Kernel("down", 2 * 2 * 8192 * 28672, 2 * 8192 * 28672, 0, 0, 2 * 2 * (8192 + 28672))
    # RMS norm and residual addition: 4 + 1 FLOPs; two operands in, two out.
    norm = Kernel("mlp_norm", 2 * 5 * 8192, 2 * 8192, 0, 0, 2 * 2 * 4 * 8192)
    assert named["mlp_norm"] == norm
    assert named["rope"] == Kernel("rope", 2 * 3 * 9216, 0, 0, 0, 2 * 2 * 2 * 9216)


def test_parallel_layer_has_one_norm_stage_over_both_norms() -> None:
    """Falcon-40B: residual and two branches in; their sum and two normalised copies out."""
    named = by_name(layer_kernels(load_model("falcon-40b"), StepShape.decode(1, 9)))
    assert named["attn_norm"] == Kernel("attn_norm", 2 * 8192 + 2 * 7 * 8192, 2 * 2 * 2 * 8192, 0, 0, 2 * 6 * 8192)


def test_query_and_key_norms_are_part_of_rope() -> None:
    rope = by_name(layer_kernels(load_model("qwen3-8b"), StepShape.decode(1, 9)))["rope"]
    assert rope == Kernel("rope", (3 + 4) * 40 * 128, 2 * 2 * 128, 0, 0, 2 * 2 * 40 * 128)


def test_outside_the_layers_by_hand() -> None:
    shape = StepShape.prefill([5, 3])
    embedding, norm, head = head_kernels(load_model("llama2-70b"), shape)
    assert embedding == Kernel("embedding", 0, 2 * 8 * 8192, 0, 0, 2 * 8 * 8192)
    assert norm == Kernel("final_norm", 8 * 4 * 8192, 2 * 8192, 0, 0, 2 * 2 * 8 * 8192)
    assert head == Kernel("lm_head", 2 * 2 * 8192 * 32000, 2 * 8192 * 32000, 0, 0, 2 * 2 * (8192 + 32000))
    learned = head_kernels(load_model("opt-13b"), shape)[0]
    assert learned == Kernel("embedding", 8 * 5120, 2 * 2 * 8 * 5120, 0, 0, 2 * 8 * 5120)


def test_a_chunk_that_completes_no_prompt_needs_no_logits() -> None:
    spec = load_model("llama2-70b")
    head = head_kernels(spec, StepShape.prefill([512], [0], sampled=0))[2]
    assert (head.flops, head.bytes) == (0, 0)


def test_a_step_of_no_tokens_is_no_work() -> None:
    for model in ("llama2-70b", "mixtral-8x7b", "opt-13b"):
        total = step_totals(load_model(model), StepShape())
        assert (total.flops, total.bytes) == (0, 0)


@pytest.mark.parametrize("model", model_ids())
def test_matrix_work_of_a_decode_step_is_two_flops_per_active_parameter(model: str) -> None:
    spec, batch = load_model(model), 4
    shape = StepShape.decode(batch, batch * 100)
    named = by_name(layer_kernels(spec, shape))
    linear = sum(named[name].flops for name in MATMULS & named.keys())
    flops = spec.n_layers * linear + head_kernels(spec, shape)[2].flops
    # The head multiplies, tied or not; embedding rows are looked up, norms and biases are not products.
    lookup = 0 if spec.tied_embeddings else spec.vocab * spec.d_model
    vectors = (spec.learned_positions * spec.d_model + spec.n_layers * spec.layer_params["norms"]
               + spec.norm_params + spec.n_layers * _bias_params(spec))  # fmt: skip
    assert flops == 2 * batch * (spec.params_active - lookup - vectors)
    assert 2 * batch * spec.params_active * 0.9 < flops <= 2 * batch * spec.params_active
    attention = named["qk"].flops + named["sv"].flops
    assert attention == 4 * spec.n_heads * spec.head_dim * batch * 101


def _bias_params(spec: ModelSpec) -> int:
    widths = {
        "qkv": (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim,
        "proj": spec.d_model,
        "up": spec.d_ff * (2 if spec.gated_ffn else 1),
        "down": spec.d_model,
    }
    return sum(widths[group] for group in spec.biases)


@pytest.mark.parametrize("precision", [FP16, INT8, INT4])
@pytest.mark.parametrize("model", model_ids())
def test_a_step_reads_every_weight_once(model: str, precision: Precision) -> None:
    """Tied head included; embedding rows by token; experts all loaded by very many tokens."""
    spec = load_model(model)
    shape = StepShape.prefill([100_000])
    layer = sum(kernel.weight_bytes for kernel in layer_kernels(spec, shape, precision))
    assert layer == sum(spec.layer_bytes(precision).values())
    assert type(layer) is int or spec.n_experts
    _, norm, head = head_kernels(spec, shape, precision)
    assert norm.weight_bytes == spec.outer_bytes(precision)["final_norm"]
    assert head.weight_bytes == spec.vocab * spec.d_model * precision.weights_bits // 8


@pytest.mark.parametrize("model", model_ids())
def test_the_cache_is_written_and_read_whole(model: str) -> None:
    spec, precision = load_model(model), Precision(kv_bits=8)
    per_token = spec.kv_bytes_per_token(precision)
    total = step_totals(spec, StepShape.decode(3, 300), precision)
    assert total.kv_write_bytes == 3 * per_token
    assert total.kv_read_bytes == 303 * per_token


def test_step_totals_add_layers_and_head() -> None:
    spec, shape = load_model("falcon-40b"), StepShape.decode(2, 50)
    layer, head = layer_kernels(spec, shape), head_kernels(spec, shape)
    total = step_totals(spec, shape)
    assert total.name == "step"
    assert total.flops == 60 * sum(k.flops for k in layer) + sum(k.flops for k in head)
    assert total.bytes == 60 * sum(k.bytes for k in layer) + sum(k.bytes for k in head)


def test_speculative_tokens_share_the_cache_read() -> None:
    spec = load_model("llama2-70b")
    one, four = StepShape.decode(2, 200), StepShape.decode(2, 200, tokens_per_sequence=4)
    assert four == StepShape(8, 2, 2 * (101 + 102 + 103 + 104), 208, 8)
    qk_one, qk_four = (by_name(layer_kernels(spec, shape))["qk"] for shape in (one, four))
    assert qk_four.kv_read_bytes / qk_one.kv_read_bytes == pytest.approx(208 / 202)
    assert qk_four.flops / qk_one.flops == pytest.approx(820 / 202)


def test_grouped_queries_read_each_kv_head_once() -> None:
    """Reading 8 KV heads for 64 query heads: eight times the FLOPs per byte of multi-head attention."""
    shape = StepShape.decode(1, 10_000)
    grouped = by_name(layer_kernels(load_model("llama2-70b"), shape))["qk"]
    multi = by_name(layer_kernels(load_model("llama-65b"), shape))["qk"]
    assert grouped.flops == multi.flops
    assert multi.kv_read_bytes == 8 * grouped.kv_read_bytes


def test_expected_experts() -> None:
    mixtral, qwen = load_model("mixtral-8x7b"), load_model("qwen3-30b-a3b")
    assert expected_experts(load_model("opt-13b"), 5) == 0
    assert [expected_experts(mixtral, tokens) for tokens in (0, 1, 2)] == [0, 2, 3.5]
    assert expected_experts(qwen, 16) == pytest.approx(128 * (1 - (15 / 16) ** 16))


def test_expert_weights_follow_the_distinct_experts_and_flops_the_tokens() -> None:
    spec = load_model("mixtral-8x7b")
    two = by_name(layer_kernels(spec, StepShape.decode(2, 20)))["up"]
    expert = 2 * 4096 * 2 * 14336
    assert two.weight_bytes == 3.5 * expert
    assert two.flops == 2 * 2 * 2 * 4096 * 2 * 14336
    assert two.activation_bytes == 2 * 2 * 2 * (4096 + 2 * 14336)


def test_intensity() -> None:
    assert Kernel("k", 12, 1, 2, 3, 0).arithmetic_intensity == 2
    assert math.isinf(Kernel("k", 12, 0, 0, 0, 0).arithmetic_intensity)


def test_narrow_activations_stay_exact() -> None:
    spec = load_model("llama2-70b")
    narrow = Precision(activation_bits=4)
    named = by_name(layer_kernels(spec, StepShape.decode(1, 9), narrow))
    assert named["proj"].activation_bytes == 8192


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: StepShape(tokens=-1), "StepShape: expected counts of at least 0"),
        (lambda: StepShape.decode(-2, 5), "StepShape: expected counts of at least 0"),
        (lambda: StepShape.prefill([4, 4], [1]), "StepShape.prefill.cached: expected 2 numbers, not 1"),
    ],
)
def test_bad_shapes_are_refused(build: Callable[[], StepShape], names: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(names)


def test_shapes_of_measured_linear_kernels(shared_data: Callable[[str], Path]) -> None:
    """``2*(K*N + M*K + M*N)`` bytes of profiled linear kernels, and those of fused decode attention."""
    with shared_data("kernels/vidur_models.csv").open(newline="") as file:
        rows = {row["hf"]: row for row in csv.DictReader(file)}
    m = 16
    for hf, model in (
        ("meta-llama/Llama-2-7b-hf", "llama2-7b"),
        ("meta-llama/Llama-2-70b-hf", "llama2-70b"),
        ("meta-llama/Meta-Llama-3-8B", "llama3.1-8b"),
    ):
        row = rows[hf]
        d, heads, kv_heads, d_ff = (int(row[key]) for key in ("d_model", "n_head", "n_kv_head", "d_ff"))
        hd = d // heads
        named = by_name(layer_kernels(load_model(model), StepShape.decode(m, m * 100)))
        for name, k, n in (
            ("qkv", d, (heads + 2 * kv_heads) * hd),
            ("proj", d, d),
            ("up", d, 2 * d_ff),
            ("down", d_ff, d),
        ):
            assert named[name].flops == 2 * m * n * k
            assert named[name].bytes == 2 * (k * n + m * k + m * n)
        attention = named["qk"].bytes + named["softmax"].bytes + named["sv"].bytes
        assert attention == 4 * m * 101 * kv_heads * hd + 4 * m * heads * hd
