"""The public face of the kernel laws: names, stacks, grades, shapes, refusals."""

import numpy as np
import pytest

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.device import KERNELS, KernelLaws, StatedError, device, peaks
from hetmem.hardware.kernel_law import SmoothGemmLaw, TiledGemmLaw


@pytest.mark.parametrize("name", catalog.ids("gpus"))
def test_every_gpu_has_every_kernel(name):
    gpu = device(name)
    assert gpu.name == name
    for kernel in KERNELS:
        assert gpu.law(kernel)
        if kernel != "mixed_attention":  # measured on one GPU alone, so that its transfer has no known error
            assert gpu.stated_error(kernel).median_pct > 0
    decode = gpu.gemm_s(1, 4096, 4096)
    assert 2 * 4096**2 / gpu.spec.memory_bytes_per_s < decode < gpu.gemm_s(4096, 4096, 4096)
    assert gpu.decode_attention_s(8, 32, 8, 128, 1024) < gpu.decode_attention_s(8, 32, 8, 128, 8192)
    assert gpu.prefill_attention_s(512, 0, 32, 8, 128) < gpu.prefill_attention_s(512, 8192, 32, 8, 128)
    assert gpu.layer_elementwise_s(1, 4096, 32, 8, 128, 14336) < gpu.layer_elementwise_s(2048, 4096, 32, 8, 128, 14336)


def test_measured_devices_are_named_so():
    measured = [name for name in catalog.ids("gpus") if device(name).grade("gemm") == "measured"]
    assert measured == ["rtx-4090", "a100-sxm-80gb", "h100-sxm-80gb", "rtx-pro-6000"]


def test_a_stack_is_chosen_by_name():
    vidur, aic = device("a100-sxm-80gb"), device("A100 SXM 80GB", stack="vllm-0.14")
    assert (vidur.stack, aic.stack) == ("vidur", "vllm-0.14")
    assert vidur.gemm_s(64, 4096, 4096) != aic.gemm_s(64, 4096, 4096)
    assert device("a100-sxm-80gb", stack="vidur") == vidur
    assert [aic.grade(kernel) for kernel in KERNELS] == ["measured", "measured", "derived", "derived", "derived"]


def test_a_derived_law_states_a_wider_error():
    measured, derived, assumed = device("rtx-4090"), device("l40s"), device("t4")
    assert {derived.grade(kernel) for kernel in KERNELS} == {"derived"}
    assert {assumed.grade(kernel) for kernel in KERNELS} == {"assumed"}
    assert derived.stated_error("mixed_attention") is None
    for kernel in set(KERNELS) - {"mixed_attention"}:
        assert derived.law(kernel) == measured.law(kernel)
        assert derived.stated_error(kernel).p90_pct > measured.stated_error(kernel).p90_pct
    assert derived.gemm_s(2048, 8192, 8192) < measured.gemm_s(2048, 8192, 8192)  # its own peaks


def test_scalars_give_floats_and_arrays_broadcast():
    gpu = device("a100-sxm-80gb")
    assert type(gpu.gemm_s(1, 4096, 4096)) is float
    table = gpu.gemm_s(np.array([[1], [64]]), [1024, 4096, 8192], 4096)
    assert table.shape == (2, 3)
    assert table[1, 2] == gpu.gemm_s(64, 8192, 4096)
    decode = gpu.decode_attention_s([1, 8], 32, 8, 128, 1024)
    assert decode.tolist() == [gpu.decode_attention_s(b, 32, 8, 128, 1024) for b in (1, 8)]
    prefill = gpu.prefill_attention_s(512, [0, 1024], 32, 8, 128)
    assert prefill.tolist() == [gpu.prefill_attention_s(512, c, 32, 8, 128) for c in (0, 1024)]
    layer = gpu.layer_elementwise_s([1, 512], 4096, 32, 8, 128, 14336)
    assert layer.tolist() == [gpu.layer_elementwise_s(m, 4096, 32, 8, 128, 14336) for m in (1, 512)]


def test_data_types_change_bytes_and_peak():
    gpu = device("h100-sxm-80gb")
    assert gpu.gemm_s(1, 8192, 8192, dtype="bf16") == gpu.gemm_s(1, 8192, 8192)
    assert gpu.gemm_s(1, 8192, 8192, dtype="int8") < 0.7 * gpu.gemm_s(1, 8192, 8192)
    assert gpu.gemm_s(8192, 8192, 8192, dtype="int8") < 0.7 * gpu.gemm_s(8192, 8192, 8192)


def test_norms_of_queries_and_keys_cost_extra():
    for name in ("rtx-pro-6000", "rtx-4090"):
        sizes = (256, 4096, 32, 8, 128, 14336)
        assert device(name).layer_elementwise_s(*sizes, qk_norm=True) > device(name).layer_elementwise_s(*sizes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda gpu: gpu.gemm_s(0, 4096, 4096), "m: expected numbers of at least 1, not 0"),
        (lambda gpu: gpu.gemm_s(1, [4096, float("nan")], 4096), "n: expected"),
        (lambda gpu: gpu.gemm_s("1", 4096, 4096), "m: expected"),
        (lambda gpu: gpu.prefill_attention_s(16, -1, 32, 8, 128), "cached: expected numbers of at least 0"),
        (lambda gpu: gpu.decode_attention_s(1, 32, 8, 128, True), "kv_tokens: expected"),
        (lambda gpu: gpu.gemm_s(1, 1, 1, dtype="fp3"), "dtype: expected one of"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call(device("t4"))


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="a100-sxm-80gb"):
        device("a100-sxm-80g")
    with pytest.raises(UnknownNameError, match=r"vllm-0.14"):
        device("a100-sxm-80gb", stack="vllm-0.15")
    with pytest.raises(UnknownNameError, match="unknown kernel class 'gem'"):
        device("t4").law("gem")


def test_peaks_follow_the_datasheet():
    assert peaks("a100-sxm-80gb").flops == 312e12
    assert (peaks("h100-sxm-80gb").processors, peaks("rtx-pro-6000").processors) == (132, 188)


def test_one_gemm_law_per_calibration():
    with pytest.raises(ValueError, match="exclude"):
        KernelLaws(
            name="a:b",
            smooth_gemm=SmoothGemmLaw(5.0, 0.7, 0.8, 1.5),
            tiled_gemm=TiledGemmLaw(3.0, 0.8, 0.9, 2.5, 0.2, 60.0, 4.0),
        )


def test_laws_that_lend_in_a_circle_are_refused():
    with (
        catalog.patched("kernel_laws", "h100-sxm-80gb:vidur", "like", "h100-sxm-80gb:vidur"),
        pytest.raises(ConfigError, match="no law for decode_attention"),
    ):
        device("h100-sxm-80gb")


def test_stated_errors_are_plausible():
    for name in catalog.ids("kernel_laws"):
        for error in catalog.entry("kernel_laws", name)["errors"].values():
            assert StatedError(**error).median_pct < error["p90_pct"] < 50
