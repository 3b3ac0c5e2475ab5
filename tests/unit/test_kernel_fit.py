"""Fits recover what made the points, choose the law that made them, and refuse too few."""

import numpy as np
import pytest

from hetmem.errors import ConfigError
from hetmem.hardware.kernel_law import (
    DecodeAttentionLaw,
    ElementwiseLaw,
    Peaks,
    PrefillAttentionLaw,
    SmoothGemmLaw,
    TiledGemmLaw,
)
from hetmem.study.kernel_fit import by_size, error, fit, naive_seconds
from hetmem.study.kernel_form import Points

PEAKS = Peaks(312e12, 2.039e12, 108, 40 * 2**20)
SMOOTH = SmoothGemmLaw(6.0, 0.7, 0.8, 1.5)
TILED = TiledGemmLaw(3.0, 0.8, 0.9, 2.5, 0.2, 60.0, 4.0)
DECODE = DecodeAttentionLaw(9.0, 5.0, 7.0, 0.012, 0.85, 23.0, 3.0, 2)
WHOLE = PrefillAttentionLaw(4.0, 0.6, 2.0, 0.0, 1.1, False)
SPLIT = PrefillAttentionLaw(9.0, 0.5, 2.0, 4.0, 2.5, True)
ELEMENTWISE = ElementwiseLaw(2.0, 0.8, 2.5, 0.5)


def grid(**axes):
    mesh = np.meshgrid(*(np.asarray(axis, dtype=float) for axis in axes.values()), indexing="ij")
    return {name: values.ravel() for name, values in zip(axes, mesh, strict=True)}


SIZES = {
    "gemm": grid(m=[1, 8, 32, 64, 128, 256, 512, 1024, 4096], n=[1024, 5120, 22016], k=[1024, 4096, 11008]),
    "decode_attention": grid(
        batch=[1, 3, 8, 28, 64, 200], q_heads=[8, 32], kv_heads=[4, 8], head_dim=[128], kv_tokens=[64, 512, 2048, 8192]
    ),
    "prefill_attention": grid(
        chunk=[32, 128, 500, 2048], cached=[0, 256, 4096], q_heads=[16, 32], kv_heads=[8], head_dim=[128]
    ),
    "elementwise": grid(moved_bytes=np.geomspace(1e4, 4e8, 30)),
}


def points_of(law, kernel, noise=0.0):
    sizes = SIZES[kernel]
    times = law.seconds(PEAKS, *sizes.values())
    times = times * np.exp(np.random.default_rng(7).normal(0, noise, times.shape))
    group = np.array([str(i % 9) for i in range(len(times))])
    return Points(kernel, "", sizes, times, group)


@pytest.mark.parametrize(
    ("law", "kernel"),
    [
        (SMOOTH, "gemm"),
        (TILED, "gemm"),
        (DECODE, "decode_attention"),
        (WHOLE, "prefill_attention"),
        (SPLIT, "prefill_attention"),
        (ELEMENTWISE, "elementwise"),
    ],
)
def test_recovers_the_law_that_made_the_points(law, kernel):
    found = fit(points_of(law, kernel), PEAKS)
    assert type(found.law) is type(law)
    assert found.in_sample.p90_pct < 2.0
    assert found.cross_validated.p90_pct < 3.0
    if isinstance(law, PrefillAttentionLaw):
        assert found.law.splits_kv == law.splits_kv


def test_parameters_are_those_of_the_maker():
    found = fit(points_of(SMOOTH, "gemm"), PEAKS).law
    assert found.launch_us == pytest.approx(6.0, rel=0.05)
    assert found.compute_efficiency == pytest.approx(0.7, rel=0.05)
    assert found.memory_efficiency == pytest.approx(0.8, rel=0.05)


def test_noise_shows_in_the_cross_validated_error_and_outliers_do_not_pull():
    noisy = points_of(SMOOTH, "gemm", noise=0.05)
    found = fit(noisy, PEAKS)
    assert 2.0 < found.cross_validated.median_pct < 6.0
    assert found.cross_validated.rows == len(noisy)
    noisy.time_s[::20] *= 5.0
    pulled = fit(noisy, PEAKS)
    assert error(pulled.law, PEAKS, points_of(SMOOTH, "gemm")).median_pct < 5.0


def test_a_parameter_on_its_bound_is_reported():
    beyond = points_of(SmoothGemmLaw(6.0, 0.7, 1.0, 1.5), "gemm")
    faster = Points("gemm", "", beyond.variables, beyond.time_s * 0.8, beyond.group)
    assert "memory_efficiency" in fit(faster, PEAKS).at_bound


@pytest.mark.parametrize(("kernel", "least"), [("gemm", 8), ("decode_attention", 14), ("elementwise", 8)])
def test_too_few_points_are_refused(kernel, least):
    law = {"gemm": SMOOTH, "decode_attention": DECODE, "elementwise": ELEMENTWISE}[kernel]
    points = points_of(law, kernel)
    one = points.take(np.arange(len(points)) == 0)
    with pytest.raises(ConfigError, match=f"{kernel}: 1 points; at least {least} are needed"):
        fit(one, PEAKS)


def test_points_of_one_size_are_refused():
    same = Points("gemm", "", {v: np.full(20, 64.0) for v in "mnk"}, np.full(20, 1e-5), np.array(["a"] * 20))
    with pytest.raises(ConfigError, match="same size"):
        fit(same, PEAKS)


def test_few_points_take_the_smaller_law():
    points = points_of(SMOOTH, "gemm")
    few = points.take(np.arange(len(points)) % 8 == 0)
    assert len(few) < 14
    found = fit(few, PEAKS).law
    assert isinstance(found, SmoothGemmLaw)
    assert error(found, PEAKS, points).median_pct < 5.0


def test_size_classes_and_the_naive_roofline():
    gemm = by_size(points_of(SMOOTH, "gemm"))
    assert {name: len(part) for name, part in gemm.items()} == {
        "gemm": 81, "gemm.to_32": 27, "gemm.33_to_256": 27, "gemm.above_256": 27,
    }  # fmt: skip
    large = by_size(points_of(DECODE, "decode_attention"))["decode_attention.above_32_mib"].variables
    assert (4 * large["batch"] * large["kv_tokens"] * large["kv_heads"] * 128 > 2**25).all()
    one = gemm["gemm"].take(np.arange(81) == 80)
    m, n, k = 4096, 22016, 11008
    assert naive_seconds(PEAKS, one)[0] == pytest.approx(2 * m * n * k / 312e12 + 5e-6)
