"""The roofline of one kernel: its limits by hand."""

import math

import numpy as np
import pytest

from hetmem.errors import ConfigError
from hetmem.hardware.roofline import roofline

UNIT = {
    "peak_flops": 1e12, "peak_gbs": 100.0, "compute_efficiency": 0.5, "memory_efficiency": 0.8,
    "launch_s": 1e-5,
}  # fmt: skip


def test_memory_bound_by_hand() -> None:
    time = roofline(0.0, 8e9, smooth_q=1.4, **UNIT)
    assert time.memory_s == pytest.approx(0.1)
    assert time.total_s == pytest.approx(0.1 + 1e-5)


def test_compute_bound_by_hand() -> None:
    assert roofline(1e12, 0.0, smooth_q=1.4, **UNIT).total_s == pytest.approx(2.0 + 1e-5)


@pytest.mark.parametrize(("q", "factor"), [(1.0, 2.0), (2.0, math.sqrt(2)), (math.inf, 1.0)])
def test_equal_legs_add_or_overlap_by_q(q: float, factor: float) -> None:
    time = roofline(5e10, 8e9, smooth_q=q, **UNIT)
    assert time.total_s == pytest.approx(0.1 * factor + 1e-5)


def test_no_work_is_a_launch() -> None:
    assert roofline(0, 0, smooth_q=2.0, **UNIT) == (1e-5, 0.0)


def test_work_broadcasts() -> None:
    time = roofline(np.array([[1e9], [1e10]]), np.array([1e6, 1e7, 1e8]), smooth_q=1.4, **UNIT)
    assert time.total_s.shape == time.memory_s.shape == (2, 3)
    assert time.total_s[1, 2] == roofline(1e10, 1e8, smooth_q=1.4, **UNIT).total_s


@pytest.mark.parametrize(("flops", "n_bytes", "name"), [(-1, 0, "flops"), (0, -1, "bytes"), (math.nan, 0, "flops")])
def test_bad_work_is_named(flops: float, n_bytes: float, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: "):
        roofline(flops, n_bytes, smooth_q=1.0, **UNIT)
