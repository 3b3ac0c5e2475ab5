"""Kernel laws against published measurements, on splits that the fit has not seen."""

import pytest

from hetmem.hardware.device import device, peaks
from hetmem.study.calibrate import calibrate
from hetmem.study.kernel_fit import by_size, error, error_of, fit, naive_seconds
from hetmem.study.kernel_table import read

TEN_MICROSECONDS = 1e-5
LINEAR_LIMITS = {"gemm.to_32": (6, 15), "gemm.33_to_256": (10, 25), "gemm.above_256": (8, 20)}
SIBLINGS = ("llama2-7b", "internlm-20b")


def linear_points(shared_data, gpu, model, least_s=TEN_MICROSECONDS):
    table = read(shared_data("kernels/vidur_linear_us.csv.gz"), shared_data("kernels/vidur_models.csv"))
    (points,) = (p for p in table.select([f"gpu={gpu}", f"model={model}"]).points() if p.kernel == "gemm")
    return points.take(points.time_s >= least_s)


@pytest.mark.slow
@pytest.mark.parametrize(("seen", "unseen"), [SIBLINGS, SIBLINGS[::-1]])
@pytest.mark.parametrize(("gpu", "name"), [("a100", "a100-sxm-80gb"), ("h100", "h100-sxm-80gb")])
def test_linear_kernels_of_an_unseen_model(shared_data, gpu, name, seen, unseen):
    limits = peaks(name)
    law = fit(linear_points(shared_data, gpu, seen, least_s=0.0), limits).law
    classes = by_size(linear_points(shared_data, gpu, unseen))
    for label, (median, p90) in LINEAR_LIMITS.items():
        points = classes[label]
        off, naive = error(law, limits, points), error_of(naive_seconds(limits, points), points.time_s)
        assert off.rows > 70
        assert off.median_pct <= median, (label, off)
        assert off.p90_pct <= p90, (label, off)
        assert off.median_pct < naive.median_pct


@pytest.mark.parametrize("name", ["a100-sxm-80gb", "h100-sxm-80gb"])
def test_shipped_linear_law_beats_the_naive_roofline(shared_data, name):
    law, limits = device(name).law("gemm"), peaks(name)
    for model in SIBLINGS:
        for label, points in by_size(linear_points(shared_data, name[:4], model)).items():
            naive = error_of(naive_seconds(limits, points), points.time_s)
            assert error(law, limits, points).median_pct < naive.median_pct, label


def check(found, label, median, p90):
    off, naive = found.held_out[label].law, found.held_out[label].naive
    assert off.median_pct <= median, off
    assert off.p90_pct <= p90, off
    assert off.median_pct < naive.median_pct


def test_decode_attention_of_unseen_batches(shared_data):
    found = calibrate(
        shared_data("kernels/vidur_attn_decode_us.csv"), "a100-sxm-80gb", hold_out=["batch%8=4"], stack="vidur"
    )
    assert found.held_out["decode_attention"].law.rows == 1264
    check(found, "decode_attention.above_32_mib", 8, 18)
    check(found, "decode_attention", 8, 25)


def test_decode_attention_of_unseen_head_counts(shared_data):
    table = shared_data("kernels/aic_attn_decode_bf16_us.csv")
    found = calibrate(table, "a100-sxm-80gb", ["kv_len>=16"], hold_out=["n_kv=1,2,4"])
    assert found.held_out["decode_attention"].law.rows == 3373
    check(found, "decode_attention.above_32_mib", 12, 25)
    check(found, "decode_attention", 12, 30)


def test_prefill_attention_of_unseen_chunks(shared_data):
    table = shared_data("kernels/vidur_attn_prefill_us.csv")
    shapes = shared_data("kernels/vidur_models.csv")
    found = calibrate(table, "a100-sxm-80gb", shapes=shapes, hold_out=["prefill_chunk_size%128=0"])
    assert found.held_out["prefill_attention"].law.rows > 1000
    check(found, "prefill_attention", 22, 45)


def test_gemm_of_another_stack_from_a_part_of_the_shapes(shared_data):
    table = shared_data("kernels/aic_gemm_bf16_us.csv")
    found = calibrate(table, "a100-sxm-80gb", ["n>=1024", "k>=1024"], hold_out=["n!=1536,4096,12288"])
    assert found.held_out["gemm"].law.rows > 3500
    check(found, "gemm", 8, 20)


@pytest.mark.parametrize(
    ("gpu", "name", "median", "p90"), [("rtx4090", "rtx-4090", 4, 10), ("rtxpro6000", "rtx-pro-6000", 7, 15)]
)
def test_shipped_linear_law_inside_vllm(shared_data, gpu, name, median, p90):
    table = read(shared_data("kernels/lss_linear_us.csv.gz"))
    points = table.select([f"gpu={gpu}", "model=llama-3.1-8b", "tp=1"]).points()[0]
    assert (points.kernel, len(points)) == ("gemm", 608)
    off = error(device(name).law("gemm"), peaks(name), points)
    assert off.median_pct <= median
    assert off.p90_pct <= p90


def test_shipped_laws_have_the_error_that_they_state(shared_data):
    """The catalogue's parameters are rounded, and its errors cross-validated: close, not equal."""
    for path, where, name, stack in (
        ("vidur_attn_decode_us.csv", [], "a100-sxm-80gb", "vidur"),
        ("aic_attn_decode_bf16_us.csv", ["kv_len>=16"], "a100-sxm-80gb", "vllm-0.14"),
        ("lss_attn_mixed_us.csv.gz", ["gpu=rtx4090"], "rtx-4090", "vllm-0.19"),
        ("lss_attn_mixed_us.csv.gz", ["gpu=rtxpro6000"], "rtx-pro-6000", "vllm-0.19"),
    ):
        chosen = device(name, stack)
        for points in read(shared_data(f"kernels/{path}")).select(where).points():
            off, stated = error(chosen.law(points.kernel), peaks(name), points), chosen.stated_error(points.kernel)
            assert off.rows == stated.rows
            assert off.median_pct == pytest.approx(stated.median_pct, abs=1.0)
            assert off.p90_pct == pytest.approx(stated.p90_pct, abs=3.0)
