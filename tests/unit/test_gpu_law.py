"""How a run prices GPU kernels: by the device's calibrated laws at their shapes, and never otherwise."""

from typing import Any

import pytest
from attrs import evolve

from hetmem.errors import ConfigError
from hetmem.hardware.device import device
from hetmem.hardware.gpu import gpu
from hetmem.hardware.gpu_law import IDEAL, Elementwise, Gemm, gpu_law
from hetmem.model import FP16, INT8, StepShape, expected_experts, load_model
from hetmem.system.ops import GpuOps, Op

DECODE = StepShape.decode(48, 48 * 900)
PREFILL = StepShape.prefill([700, 300], [0, 512])


def ops(model: str = "llama3.1-8b", name: str = "rtx-pro-6000", stack: str | None = None, **given: Any) -> GpuOps:
    return GpuOps(load_model(model), given.pop("precision", FP16), gpu_law(gpu(name), stack), **given)


def seconds(found: GpuOps, op: Op) -> float:
    return found.price(op)[0].ps * 1e-12


def by_name(found: GpuOps, prefill: StepShape | None, decode: StepShape | None) -> dict[str, Op]:
    return {op.name: op for op in found.layer(prefill, decode)}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_layer_costs_what_the_device_says(shards: int) -> None:
    found, card = ops(shards=shards), device("rtx-pro-6000")
    layer = by_name(found, PREFILL, DECODE)
    tokens, q, kv = 1048, 32 // shards, 8 // shards
    gemms = {
        "qkv": (128 * (q + 2 * kv), 4096), "proj": (4096, 128 * q), "up": (28_672 // shards, 4096),
        "down": (4096, 14_336 // shards),
    }  # fmt: skip
    for name, (n, k) in gemms.items():
        assert seconds(found, layer[name]) == pytest.approx(card.gemm_s(tokens, n, k), rel=1e-6), name
    decode = card.decode_attention_s(48, q, kv, 128, DECODE.kv_tokens / 48)
    assert seconds(found, layer["attention.decode"]) == pytest.approx(decode, rel=1e-6)
    # Two chunks are two of their mean length, after cached tokens that give the same number of attended keys.
    attended = PREFILL.attended / PREFILL.tokens
    prefill = 2 * card.prefill_attention_s(500, attended - 501 / 2, q, kv, 128)
    assert seconds(found, layer["attention.prefill"]) == pytest.approx(prefill, rel=1e-6)
    elementwise = sum(seconds(found, layer[name]) for name in ("attn_norm", "rope", "mlp_norm", "act"))
    assert elementwise == pytest.approx(
        card.layer_elementwise_s(tokens, 4096, q, kv, 128, 14_336 // shards), rel=1e-4
    )  # the norm's weights are read as well


def test_a_stack_that_adds_residuals_apart_pays_for_it() -> None:
    found, card = ops(name="a100-sxm-80gb"), device("a100-sxm-80gb")
    layer = by_name(found, None, DECODE)
    ours = sum(seconds(found, layer[name]) for name in ("attn_norm", "rope", "mlp_norm", "act"))
    assert ours == pytest.approx(card.layer_elementwise_s(48, 4096, 32, 8, 128, 14_336), rel=1e-3)


def test_experts_share_a_launch_and_its_waves() -> None:
    found, spec = ops("mixtral-8x7b"), load_model("mixtral-8x7b")
    up = by_name(found, None, DECODE)["up"]
    assert isinstance(up.call, Gemm)
    experts = expected_experts(spec, 48)
    assert up.call.groups == experts
    assert up.call.m * experts == pytest.approx(48 * 2)
    alone = device("rtx-pro-6000").gemm_s(up.call.m, 28_672, 4096)
    assert alone < seconds(found, up) < experts * alone


def test_many_decodes_beside_a_prefill_are_slower_in_one_kernel() -> None:
    """Measured: the sum of the parts over one kernel for all is 0.54 with 64 decodes, 0.24 with one long one."""
    found, mixed = ops(name="rtx-4090"), ops(name="rtx-4090", attention="mixed")
    for decode in (StepShape.decode(64, 64 * 2048), StepShape.decode(1, 16_384)):
        parts = by_name(found, PREFILL, decode)
        (both,) = (op for op in mixed.layer(PREFILL, decode) if op.name == "attention.mixed")
        apart = sum(seconds(found, parts[f"attention.{phase}"]) for phase in ("prefill", "decode"))
        assert seconds(mixed, both) > 1.5 * apart
        assert both.flops == sum(parts[f"attention.{phase}"].flops for phase in ("prefill", "decode"))
    assert [op.name for op in mixed.layer(PREFILL, None)] == [op.name for op in found.layer(PREFILL, None)]
    with pytest.raises(ConfigError, match="expected one of sum, mixed, not 'both'"):
        ops(attention="both")


def test_cached_values_of_eight_bits_are_half_the_bytes() -> None:
    wide, narrow = (
        by_name(ops(precision=p), None, DECODE)["attention.decode"] for p in (FP16, evolve(FP16, kv_bits=8))
    )
    assert narrow.n_bytes < 0.52 * wide.n_bytes
    assert seconds(ops(), narrow) < seconds(ops(), wide)


def test_weights_of_eight_bits_are_read_in_half_the_time() -> None:
    wide, narrow = (by_name(ops(precision=p), None, StepShape.decode(1, 1))["up"] for p in (FP16, INT8))
    assert narrow.weight_bytes == wide.weight_bytes / 2
    assert 0.5 < seconds(ops(), narrow) / seconds(ops(), wide) < 0.6


@pytest.mark.parametrize("stack", [None, IDEAL])
@pytest.mark.parametrize("model", ["llama3.1-8b", "opt-13b", "falcon-40b", "qwen3-30b-a3b", "gpt3-175b"])
def test_no_launch_beats_the_bytes_it_must_move_from_memory(model: str, stack: str | None) -> None:
    found = ops(model, "h100-sxm-80gb", stack)
    bandwidth = found.law.spec.memory_bytes_per_s
    for op in (*found.layer(PREFILL, DECODE), *found.head(PREFILL + DECODE)):
        whole, memory = found.price(op)
        assert memory.ps <= whole.ps
        assert memory.bytes == round(op.n_bytes)
        assert whole.ps * 1e-12 >= op.weight_bytes / bandwidth * (1 - 1e-9), op.name


def test_what_has_no_work_takes_no_time() -> None:
    found = ops()
    head = {op.name: op for op in found.head(StepShape(tokens=100))}
    assert found.price(head["lm_head"]) == ((0, 0, 0), (0, 0, 0))
    assert found.price(head["final_norm"])[0].ps > 0


def test_linear_work_of_unknown_shape_is_smooth_and_above_the_roofline() -> None:
    card, law = gpu("a100-sxm-80gb"), gpu_law(gpu("a100-sxm-80gb"))
    for flops, moved in ((1e12, 1e6), (1e9, 1e9)):
        whole, memory = law.legs_s(flops, moved)
        assert card.roofline_s(flops, moved).total_s < whole < 3 * card.roofline_s(flops, moved).total_s
        assert memory <= whole
    moved = 1e5  # what the cache holds
    whole, memory = law.legs_s(0.0, moved, call=Elementwise("activation"))
    assert memory == min(whole, card.stream_s(moved))


def test_the_same_step_has_the_same_launches() -> None:
    found = ops()
    first, again = (found.layer(None, DECODE)[0] for _ in range(2))
    assert first is again
    assert found.price(first) is found.price(again)
