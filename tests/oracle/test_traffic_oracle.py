"""Bytes that each server moves in a step, as traced, against closed forms in the model's dimensions."""

from typing import Any

import pytest

import hetmem
from hetmem.model import ModelSpec

PROMPT, OUTPUT, CHUNK = 48, 3, 16
WORD = 2  # bytes of a weight, an activation, a key or a value


def traced(system: str, model: str, **options: Any) -> Any:
    """Return a list per step of the bytes by server, of one sequence whose prompt comes in three chunks."""
    done = hetmem.simulate(
        system, model=model, workload=hetmem.fixed(PROMPT, OUTPUT, 1), trace=True,
        policies={"batching": "continuous"}, settings={"serving.token_budget": CHUNK, **options.pop("settings", {})},
        **options,
    )  # fmt: skip
    tasks = done.tasks.to_pandas()
    moved = tasks.groupby(["step", "server"])["bytes"].sum()
    steps = sorted(tasks["step"].unique())
    assert len(steps) == PROMPT // CHUNK + OUTPUT - 1
    return [moved[step].to_dict() for step in steps]


def layer_weights(spec: ModelSpec) -> int:
    """Return the bytes of a layer of Llama, by hand."""
    d, kv = spec.d_model, spec.n_kv_heads * spec.head_dim
    return WORD * (d * (d + 2 * kv) + d * d + 3 * d * spec.d_ff + 2 * d)


def kv_bytes(spec: ModelSpec, tokens: int) -> int:
    return WORD * 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * tokens


def activations(spec: ModelSpec, tokens: int) -> int:
    """Return the bytes that the kernels of a layer of Llama read and write besides weights, keys and values."""
    d, kv, ff = spec.d_model, spec.n_kv_heads * spec.head_dim, spec.d_ff
    norms = 2 * 4 * d  # residual and branch in, residual and normalised copy out
    attention = (d + d) + 2 * (d + kv) + 2 * d + (d + d)  # QKV, rotation in place, fused attention, projection
    mlp = (d + 2 * ff) + 3 * ff + (ff + d)
    return WORD * tokens * (norms + attention + mlp)


def test_resident_reads_weights_cache_and_activations() -> None:
    spec = hetmem.load_model("llama3.1-8b")
    steps = traced("resident", "llama3.1-8b", gpus=1)
    for k, moved in enumerate(steps):
        prefill = k < PROMPT // CHUNK
        tokens = CHUNK if prefill else 1
        keys = (k + 1) * CHUNK if prefill else PROMPT + k - PROMPT // CHUNK + 1
        sampled = int(k >= PROMPT // CHUNK - 1)
        d = spec.d_model
        head = WORD * (2 * tokens * d + d + sampled * (d * spec.vocab + d + spec.vocab))  # final norm, logits
        embedding = 2 * WORD * tokens * d
        layers = spec.n_layers * (layer_weights(spec) + activations(spec, tokens))
        expected = layers + kv_bytes(spec, keys) + kv_bytes(spec, tokens) + head + embedding
        assert moved["gpu0.hbm"] == pytest.approx(expected, rel=1e-9)


def test_zero_inference_copies_every_layer_and_the_head_once_a_step() -> None:
    spec = hetmem.load_model("llama2-13b")
    head = WORD * spec.d_model * spec.vocab
    steps = traced("zero-inference", "llama2-13b")
    ahead = 2 * layer_weights(spec)
    for k, moved in enumerate(steps):
        once = spec.n_layers * layer_weights(spec) + head
        # Loads ahead belong to the step that issues them; the first has its own besides.
        assert moved["pcie.h2d"] == once + (ahead if k == 0 else 0)
        assert moved["host"] == moved["pcie.h2d"]


def test_accelerate_copies_what_is_not_resident_and_hands_back_the_logits() -> None:
    spec = hetmem.load_model("llama2-70b")
    steps = traced("accelerate", "llama2-70b", settings={"machine.gpu.capacity_gb": 8.0})
    d, kv = spec.d_model, spec.n_kv_heads * spec.head_dim
    matrices = [WORD * n for n in (d * (d + 2 * kv), d * d, 2 * d * spec.d_ff, d * spec.d_ff)]
    total = spec.n_layers * sum(matrices)
    for k, moved in enumerate(steps):
        assert total - sum(matrices) * 3 < moved["pcie.h2d"] < total
        assert moved["pcie.h2d"] == steps[0]["pcie.h2d"]
        assert moved.get("pcie.d2h", 0) == (WORD * spec.vocab if k >= PROMPT // CHUNK - 1 else 0)


def test_chunked_prefill_on_dimms_reads_what_earlier_chunks_left() -> None:
    spec = hetmem.load_model("llama2-70b")
    steps = traced("ndp-dimm", "llama2-70b", assumptions="as-published", dimm_preset="paper-fit")
    weights = spec.n_layers * layer_weights(spec) + WORD * spec.d_model * spec.vocab
    for k, moved in enumerate(steps[: PROMPT // CHUNK]):
        cached, new = kv_bytes(spec, k * CHUNK), kv_bytes(spec, CHUNK)
        assert moved["pcie.h2d"] == weights + cached
        assert moved["pcie.d2h"] == new
        assert moved["dimm3.dram"] == pytest.approx((weights + cached + new) / 8, rel=1e-6)


def test_decode_on_dimms_reads_weights_and_cache_and_writes_the_new_token() -> None:
    spec = hetmem.load_model("llama2-70b")
    (*_, moved) = traced(
        "ndp-dimm", "llama2-70b", assumptions="fair", dimm_preset="paper-fit",
        settings={"machine.gpu_weight_bytes": WORD * spec.d_model * spec.vocab},
    )  # fmt: skip
    d, kv = spec.d_model, spec.n_kv_heads * spec.head_dim
    off = spec.n_layers * (layer_weights(spec) - WORD * 2 * d)  # norms are the GPU's
    keys = PROMPT + OUTPUT - 1
    assert moved["dimm0.dram"] == pytest.approx((off + kv_bytes(spec, keys) + kv_bytes(spec, 1)) / 8, rel=1e-6)
    # Each layer leaves the GPU after either norm and comes back before the second norm and after the MLP.
    assert moved["pcie.d2h"] == spec.n_layers * WORD * 2 * d
    assert moved["pcie.h2d"] == spec.n_layers * WORD * 2 * d
    assert kv < d


def test_queries_keys_and_values_cross_where_the_gpu_computes_them() -> None:
    spec = hetmem.load_model("llama2-70b")
    (*_, moved) = traced(
        "ndp-dimm", "llama2-70b", assumptions="fair", dimm_preset="paper-fit",
        settings={"machine.gpu.capacity_gb": 200.0},
    )  # fmt: skip
    d, kv = spec.d_model, spec.n_kv_heads * spec.head_dim
    assert moved["pcie.d2h"] == spec.n_layers * WORD * (d + 2 * kv)
    assert moved["pcie.h2d"] == spec.n_layers * WORD * d
    assert moved["dimm0.dram"] == pytest.approx(kv_bytes(spec, PROMPT + OUTPUT) / 8, rel=1e-6)
