"""The SSD law: each of its limits by hand."""

import pytest

from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.ssd import Ssd, ssd

DISK = Ssd(name="d", read_gbs=1.0, write_gbs=0.5, latency_s=1e-4, pj_per_bit=1.0, capacity_gb=1.0)


def test_sequential_is_latency_and_bandwidth() -> None:
    assert DISK.transfer_s(1e9) == pytest.approx(1.0001)
    assert DISK.transfer_s(1e9, write=True) == pytest.approx(2.0001)


def test_many_requests_under_way_run_at_bandwidth() -> None:
    assert DISK.transfer_s(1e9, 1e6) == pytest.approx(1.0, rel=0.01)
    assert DISK.transfer_s(4096 * 10_000, 4096, queue_depth=1000) == pytest.approx(4096e-5, rel=0.01)


def test_one_request_at_a_time_pays_every_latency() -> None:
    assert DISK.transfer_s(1000 * 4096, 4096, queue_depth=1) == pytest.approx(1000 * (1e-4 + 4096e-9))


def test_one_request_is_its_latency_and_its_bytes() -> None:
    assert DISK.transfer_s(1e6, 1e6) == pytest.approx(1e-4 + 1e-3)


def test_nothing_takes_no_time() -> None:
    assert DISK.transfer_s(0) == 0.0


def test_a_partly_filled_request_counts_whole() -> None:
    assert DISK.transfer_s(1.5e6, 1e6) == DISK.transfer_s(2e6, 1e6)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((-1,), "n_bytes"),
        ((float("inf"),), "n_bytes"),
        ((1, 0), "request_bytes"),
        ((1, float("nan")), "request_bytes"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[float, ...], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        DISK.transfer_s(*arguments)


def test_bad_depth_is_named() -> None:
    with pytest.raises(ConfigError, match="queue_depth"):
        DISK.transfer_s(1, 1, queue_depth=0)


def test_catalogue() -> None:
    assert ssd("Samsung 990 Pro").read_gbs == 7.45
    assert ssd("samsung-990-pro").energy_fj(1) == 8 * 102_000
    with pytest.raises(UnknownNameError):
        ssd("floppy")
