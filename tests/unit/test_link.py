"""Links and collectives: hand-worked times, and what they refuse."""

import numpy as np
import pytest

from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.collective import RingProtocol, allreduce_s
from hetmem.hardware.link import Link, LinkPath, link

NAMES = ("pcie3-x16", "pcie4-x16", "pcie5-x16", "nvlink2", "nvlink3", "nvlink4")


def test_affine_by_hand() -> None:
    pcie = link("pcie4-x16")
    assert pcie.transfer_s(0) == pytest.approx(6.5e-6)
    assert pcie.transfer_s(24.8e9) == pytest.approx(1 + 6.5e-6)
    assert pcie.transfer_s(1e6, True, "d2h") == pcie.transfer_s(1e6)


def test_two_slopes_meet_at_the_knee() -> None:
    path = LinkPath(latency_s=1.0, gbs=2.0, knee_bytes=1e9, near_gbs=1.0)
    assert path.transfer_s(0.5e9) == pytest.approx(1.5)
    assert path.transfer_s(1e9) == pytest.approx(2.0)
    assert path.transfer_s(3e9) == pytest.approx(3.0)


@pytest.mark.parametrize("name", NAMES)
def test_every_link_transfers_and_reduces(name: str) -> None:
    found = link(name)
    assert found.transfer_s(1e9) > 1 / found.peak_gbs
    assert found.allreduce_s(1e6, 4) > 0


@pytest.mark.parametrize("name", ["pcie3-x16", "pcie4-x16", "pcie5-x16"])
@pytest.mark.parametrize("direction", ["h2d", "d2h"])
def test_pageable_is_slower(name: str, direction: str) -> None:
    size = np.array([1e5, 1e7, 1e9])
    found = link(name)
    assert np.all(found.transfer_s(size, False, direction) > found.transfer_s(size, True, direction))


def test_generations_rise() -> None:
    for family in (("pcie3-x16", "pcie4-x16", "pcie5-x16"), ("nvlink2", "nvlink3", "nvlink4")):
        slow, middle, fast = (link(name).transfer_s(1e9) for name in family)
        assert slow > middle > fast


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: link("pcie4-x16").transfer_s(-1), "bytes: expected zero or more"),
        (lambda: link("pcie4-x16").transfer_s(np.array([1.0, -1.0])), "bytes"),
        (lambda: link("pcie4-x16").transfer_s(float("nan")), "bytes"),
        (
            lambda: link("pcie4-x16").transfer_s(1, direction="up"),
            "direction: expected one of h2d, d2h, not 'up'",
        ),
        (lambda: link("nvlink3").transfer_s(1, pinned=False), "nvlink3 has no pageable path"),
        (lambda: link("nvlink3").allreduce_s(-1, 2), "bytes"),
        (lambda: link("nvlink3").allreduce_s(1, 0), "gpus"),
        (lambda: link("nvlink3").allreduce_s(1, 1.5), "gpus"),
        (lambda: link("dimm-link").allreduce_s(1, 2), "dimm-link carries no collectives"),
    ],
)
def test_bad_arguments_are_named(call: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        call()  # type: ignore[operator]


def test_unknown_link_is_suggested() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'pcie4-x16'"):
        link("pcie4-x8")


def test_a_link_needs_a_path_no_faster_than_its_peak() -> None:
    path = LinkPath(latency_s=0.0, gbs=2.0)
    with pytest.raises(ValueError, match="needs a path"):
        Link(name="x", peak_gbs=1.0, pj_per_bit=1.0)
    with pytest.raises(ValueError, match="faster than peak_gbs"):
        Link(name="x", peak_gbs=1.0, pj_per_bit=1.0, peer=path)
    ring = RingProtocol(start_s=0.0, bus_gbs=3.0)
    with pytest.raises(ValueError, match="ring protocol is faster"):
        Link(name="x", peak_gbs=2.0, pj_per_bit=1.0, peer=path, allreduce=(ring,))
    with pytest.raises(ValueError, match="come together"):
        LinkPath(latency_s=0.0, gbs=1.0, knee_bytes=1.0)


def test_energy_is_per_bit() -> None:
    assert link("dimm-link").energy_fj(1000) == 8 * 1170 * 1000


def test_ring_by_hand() -> None:
    """Four GPUs, 4 GB: six steps, 6 GB over each link."""
    short = RingProtocol(start_s=1.0, step_s=0.1, bus_gbs=1.0)
    long = RingProtocol(start_s=5.0, bus_gbs=3.0)
    assert allreduce_s((short,), 4e9, 4) == pytest.approx(1.0 + 0.6 + 6.0)
    assert allreduce_s((short, long), 4e9, 4) == pytest.approx(5.0 + 2.0)
    assert allreduce_s((short, long), 1e6, 4) == pytest.approx(1.6 + 1.5e-3)


def test_one_gpu_and_no_bytes_take_no_time() -> None:
    assert link("nvlink3").allreduce_s(1e6, 1) == 0
    assert link("nvlink3").allreduce_s(0, 8) == 0


def test_floors_of_the_published_collectives() -> None:
    """10, 14 and 21 us for short messages on 2, 4 and 8 GPUs."""
    assert link("nvlink3").allreduce_s(512, np.array([2, 4, 8])) * 1e6 == pytest.approx([10, 14, 21], rel=0.12)
