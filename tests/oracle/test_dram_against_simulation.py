"""The DRAM law against runs of a cycle-accurate simulator, its timings against that one's presets."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hetmem import catalog
from hetmem.hardware.dram import memory
from hetmem.rng import stream

Rows = list[dict[str, str]]
VARIANTS = ("-q32", "-q64", "-q128", "-pb", "-fix", "-1R", "-2R", "-1rank")
DEVICES = ("DDR4-3200", "DDR5-4800", "LPDDR5-6400", "HBM3-6400")


def read(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def is_plain_read(row: dict[str, str]) -> bool:
    return (row["mapping"], row["streams"], float(row["write_frac"]), row["refresh"]) == (
        "bgfirst",
        "1",
        0.0,
        "ref",
    )


def chunk_of(row: dict[str, str]) -> float | None:
    return float(row["chunk_bytes"]) or None


@pytest.fixture(scope="module")
def sustained(shared_data: Callable[[str], Path]) -> Rows:
    return read(shared_data("dram/sustained.csv"))


@pytest.fixture(scope="module")
def loaded(shared_data: Callable[[str], Path]) -> Rows:
    return read(shared_data("dram/latency_load.csv"))


@pytest.mark.parametrize(
    ("small", "n", "mean_pct", "max_pct"),
    [(False, 24, 2.5, 8.0), (True, 20, 5.0, 20.0)],
    ids=["large", "small"],
)
def test_efficiency_of_reads(sustained: Rows, small: bool, n: int, mean_pct: float, max_pct: float) -> None:
    rows = [row for row in sustained if is_plain_read(row) and (0 < float(row["chunk_bytes"]) < 2048) == small]
    measured = np.array([float(row["frac_peak"]) for row in rows])
    law = np.array([memory(row["device"]).efficiency(chunk_of(row)) for row in rows])
    errors, constant = (np.abs(guess / measured - 1) * 100 for guess in (law, np.full(len(rows), 0.9)))
    name = "chunks under 2 KB" if small else "streams and chunks of 2 KB and more"
    print(f"{name}: law {errors.mean():.1f} % mean, {errors.max():.1f} % max;", end=" ")
    print(f"constant 0.9: {constant.mean():.1f} %, {constant.max():.1f} %")
    assert len(rows) == n
    assert errors.mean() <= mean_pct
    assert errors.max() <= max_pct
    assert errors.mean() < constant.mean()


@pytest.mark.parametrize("device", DEVICES)
def test_stream_efficiency_is_refresh_alone(sustained: Rows, device: str) -> None:
    (row,) = (r for r in sustained if is_plain_read(r) and r["device"] == device and chunk_of(r) is None)
    assert memory(device).efficiency() == pytest.approx(float(row["frac_peak"]), rel=0.01)


@pytest.mark.parametrize("device", DEVICES)
def test_idle_latency(loaded: Rows, device: str) -> None:
    (row,) = (r for r in loaded if r["device"] == device and float(r["load_frac"]) == -1)
    assert memory(device).idle_latency_s * 1e9 == pytest.approx(float(row["mean_latency_ns"]), rel=0.10)


def test_read_write_mixes_reproduce_the_simulated_ones(sustained: Rows) -> None:
    reads = {(r["device"], r["chunk_bytes"]): float(r["frac_peak"]) for r in sustained if is_plain_read(r)}
    mixes = [r for r in sustained if float(r["write_frac"]) == 0.2 and r["mapping"] == "bgfirst"]
    assert len(mixes) == 20
    for row in mixes:
        device = memory(row["device"])
        factor = device.efficiency(chunk_of(row), write_fraction=0.2) / device.efficiency(chunk_of(row))
        assert factor == pytest.approx(float(row["frac_peak"]) / reads[row["device"], row["chunk_bytes"]], rel=0.002)


def test_row_contiguous_map_reproduces_the_table(sustained: Rows) -> None:
    rows = [r for r in sustained if r["mapping"] == "rowmajor" and r["streams"] == "1"]
    assert len(rows) == 28
    for row in rows:
        value = memory(row["device"]).efficiency(
            chunk_of(row), mapping="rowmajor", write_fraction=float(row["write_frac"])
        )
        assert value == pytest.approx(float(row["frac_peak"]), rel=0.003)


def mean_wait(service: float, load: float, name: str) -> float:
    """Return the mean wait of a FIFO server with Poisson arrivals, by the Lindley recursion."""
    gaps = stream(7, name).exponential(service / load, 400_000)
    walk = np.cumsum(service - gaps)
    return float(np.mean(walk - np.minimum.accumulate(np.minimum(walk, 0.0))))


@pytest.mark.parametrize("device", DEVICES)
def test_fifo_channel_gives_the_loaded_latency(loaded: Rows, device: str) -> None:
    channel, errors = memory(device), []
    for row in loaded:
        size = float(row["chunk_bytes"])
        if row["device"] != device or size < 2048:
            continue
        load = float(row["achieved_gbs"]) / (channel.peak_gbs * channel.efficiency(size))
        if load > 0.9:
            continue
        service_s = channel.service_s(size, size)
        wait_s = mean_wait(service_s, load, f"{device}.{size}.{row['offered_gbs']}")
        latency_s = wait_s + service_s + channel.added_latency_s(size)
        errors.append(latency_s * 1e9 / float(row["chunk_latency_ns"]) - 1)
    magnitude = np.abs(errors)
    print(f"{device}: {magnitude.mean() * 100:.1f} % mean, {magnitude.max() * 100:.0f} % max,", end=" ")
    print(f"bias {np.mean(errors) * 100:+.1f} %")
    assert len(errors) >= 10
    assert magnitude.mean() <= (0.15 if device.startswith("HBM3") else 0.08)


@pytest.mark.parametrize(("chunk", "pj_per_bit"), [(None, 13.8), (64, 21.3)])
def test_ddr4_energy_at_seventy_percent(chunk: float | None, pj_per_bit: float) -> None:
    channel, load = memory("ddr4-3200"), 0.7
    moved = 1e9
    moving, background = channel.energy_j(moved, chunk), channel.background_w(load)
    assert moving is not None
    assert background is not None
    total_j = moving + background * moved / (load * channel.peak_gbs * 1e9)
    assert total_j / (8 * moved) * 1e12 == pytest.approx(pj_per_bit, rel=0.10)


def test_every_device_has_the_timings_of_its_preset(shared_data: Callable[[str], Path]) -> None:
    presets = json.loads(shared_data("dram/timings.json").read_text(encoding="utf-8"))
    plain = {name.removesuffix("x").lower(): entry for name, entry in presets.items() if not name.endswith(VARIANTS)}
    assert sorted(plain) == sorted(catalog.ids("dram"))
    for name, preset in plain.items():
        device, timing, organisation = memory(name), preset["timd"], preset["orgd"]

        def clocks(*keys: str, timing: dict[str, int] = timing) -> int:
            return next(timing[key] for key in keys if key in timing)

        assert device.tck_ps == timing["tCK_ps"], name
        assert device.bl_ck == clocks("nBL", "nBL_min"), name
        assert device.rcd_ck == clocks("nRCD", "nRCDRD"), name
        assert device.rtp_ck == clocks("nRTP", "nRTPL"), name
        assert device.rfc_ck == clocks("nRFCab", "nRFC") if name.startswith("gddr6") else clocks("nRFC"), name
        for key in ("RP", "CL", "RC", "REFI"):
            assert getattr(device, f"{key.lower()}_ck") == timing[f"n{key}"], (name, key)
        for ours, theirs in (("rrd_s_ck", "nRRDS"), ("faw_ck", "nFAW")):
            assert getattr(device, ours) in (0, timing[theirs]), (name, ours)
        width = organisation["channel_width"] // 8
        assert device.transaction_bytes == width * preset["prefetch"], name
        assert device.row_bytes == width * organisation["column"], name
        assert device.bank_groups == organisation["bankgroup"], name
        assert device.banks_per_group == organisation["bank"], name
        assert device.ranks == organisation.get("rank", 1), name
        assert device.stack_ids == organisation.get("sid", 1), name
        assert device.pseudo_channels == organisation.get("pseudochannel", 1), name
        assert device.queue_depth == preset["kw"].get("read_buffer_size", 32), name


def test_an_activation_limit_left_out_would_not_bind(shared_data: Callable[[str], Path]) -> None:
    presets = json.loads(shared_data("dram/timings.json").read_text(encoding="utf-8"))
    for name in catalog.ids("dram"):
        key = next(k for k in presets if k.removesuffix("x").lower() == name)
        device, timing = memory(name), presets[key]["timd"]
        listed = max(device.rrd_s_ck, device.faw_ck / 4) / device.ranks
        listed = max(listed, device.command_ck * device.pseudo_channels)
        assert max(timing["nRRDS"], timing["nFAW"] / 4) / device.ranks <= listed, name
