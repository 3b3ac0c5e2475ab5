"""The DRAM law: limits that can be worked out by hand, its tables, its striping, and what it refuses."""

import attrs
import numpy as np
import pytest

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.dram import DramDevice, MemorySystem, memory

PEAKS = {
    "ddr4-3200": 25.6, "ddr5-4800": 19.23, "ddr5-5600": 22.41, "lpddr5-6400": 12.8, "hbm2-2400": 38.4,
    "hbm3-6400": 51.2, "gddr6-14000": 28.07, "ndp-dimm-hermes": 25.6,
}  # fmt: skip


@pytest.mark.parametrize(("name", "peak"), PEAKS.items())
def test_peak_is_bytes_of_a_burst_over_its_time(name: str, peak: float) -> None:
    assert memory(name).peak_gbs == pytest.approx(peak, rel=1e-3)


def test_names_ignore_case_and_punctuation_and_typos_are_suggested() -> None:
    assert memory("DDR5 4800") == memory("ddr5-4800")
    with pytest.raises(UnknownNameError, match="did you mean 'ddr5-4800'"):
        memory("ddr5-480")


def test_a_stream_loses_refresh_alone() -> None:
    ddr4 = memory("ddr4-3200")
    assert ddr4.efficiency() == pytest.approx(1 - (576 + 22 + 22 + 12) / 12480)
    assert ddr4.efficiency(None) == ddr4.efficiency()


def test_small_random_reads_run_at_the_activation_rate() -> None:
    """One 64 B read per activation; a quarter of tFAW apart on one rank, less refresh."""
    ddr5 = memory("ddr5-4800")
    per_activation_ns = 48 / 4 * 0.416
    limit = 64 / per_activation_ns / ddr5.peak_gbs
    assert ddr5.efficiency(64) == pytest.approx(limit * ddr5.efficiency(), rel=0.01)


def test_a_second_rank_doubles_the_activation_rate() -> None:
    one = memory("ddr5-4800")
    two = attrs.evolve(one, ranks=2)
    assert two.efficiency(64) > 1.4 * one.efficiency(64)
    assert two.per_rank() == one


def test_bytes_that_do_not_fill_a_transaction_are_paid_for() -> None:
    ddr4 = memory("ddr4-3200")
    assert ddr4.efficiency(32) == pytest.approx(ddr4.efficiency(64) / 2)
    assert ddr4.efficiency(65) == pytest.approx(ddr4.efficiency(128) * 65 / 128)


def test_a_deeper_queue_hides_more() -> None:
    hbm = memory("hbm3-6400")
    assert hbm.efficiency(4096, queue_depth=16) < hbm.efficiency(4096) < hbm.efficiency(4096, queue_depth=512)


def test_activations_count_rows_touched_in_every_bank_group() -> None:
    ddr4 = memory("ddr4-3200")
    assert ddr4.activations(64) == 1
    assert ddr4.activations(8192) == 4  # spread over four bank groups
    assert ddr4.activations(4 * 8192) == 4
    assert ddr4.activations(4 * 8192 + 64) == 8


def test_idle_latency_and_refresh_wait_by_hand() -> None:
    ddr4 = memory("ddr4-3200")
    assert ddr4.idle_latency_s == pytest.approx((22 + 22 + 22 + 4) * 0.625e-9)
    assert ddr4.refresh_wait_s == pytest.approx(360e-9**2 / (2 * 7800e-9))


def test_an_unloaded_chunk_takes_the_longer_of_its_path_and_its_service() -> None:
    ddr4 = memory("ddr4-3200")
    path = 2048 / 25.6e9 + ddr4.idle_latency_s + ddr4.refresh_wait_s
    assert ddr4.service_s(2048, 2048) + ddr4.added_latency_s(2048) == pytest.approx(path)
    assert ddr4.added_latency_s(1 << 20) == 0.0


def test_service_is_bytes_over_peak_and_efficiency() -> None:
    ddr4 = memory("ddr4-3200")
    assert ddr4.service_s(1e6, 512) == pytest.approx(1e6 / (25.6e9 * ddr4.efficiency(512)))


def test_row_contiguous_map_is_a_table_between_and_beyond_its_points() -> None:
    ddr4 = memory("ddr4-3200")
    assert ddr4.efficiency(mapping="rowmajor") == 0.536
    assert ddr4.efficiency(512, mapping="rowmajor") == 0.904
    assert 0.752 < ddr4.efficiency(1024, mapping="rowmajor") < 0.904
    assert ddr4.efficiency(1 << 20, mapping="rowmajor") == 0.535
    with pytest.raises(ConfigError, match=r"rowmajor.*no measured table for hbm2-2400"):
        memory("hbm2-2400").efficiency(64, mapping="rowmajor")


def test_writes_slow_by_the_turn_arounds_and_most_in_equal_shares() -> None:
    hbm = memory("hbm3-6400")
    assert hbm.efficiency(write_fraction=0.2) == pytest.approx(hbm.efficiency() * 0.789)
    shares = [hbm.efficiency(2048, write_fraction=w) for w in (0.0, 0.1, 0.2, 0.5)]
    assert shares == sorted(shares, reverse=True)
    assert hbm.efficiency(2048, write_fraction=0.8) == pytest.approx(hbm.efficiency(2048, write_fraction=0.2))
    assert hbm.efficiency(2048, write_fraction=1.0) == hbm.efficiency(2048)
    with pytest.raises(ConfigError, match="no read/write mix measured for chunks, rowmajor"):
        hbm.efficiency(2048, mapping="rowmajor", write_fraction=0.2)


def test_arrays_keep_their_shape() -> None:
    sizes = np.array([[64, 512], [2048, 8192]])
    values = memory("ddr5-4800").efficiency(sizes, write_fraction=0.1)
    assert values.shape == (2, 2)
    assert values[1, 0] == memory("ddr5-4800").efficiency(2048, write_fraction=0.1)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"chunk_bytes": 0}, "chunk_bytes"),
        ({"chunk_bytes": -64.0}, "chunk_bytes"),
        ({"chunk_bytes": float("nan")}, "chunk_bytes"),
        ({"chunk_bytes": np.array([64.0, 0.0])}, "chunk_bytes"),
        ({"mapping": "mop4"}, "mapping"),
        ({"write_fraction": 1.5}, "write_fraction"),
        ({"queue_depth": 0}, "queue_depth"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        memory("ddr4-3200").efficiency(**arguments)  # type: ignore[call-overload]


def test_energy_adds_columns_interface_and_activations() -> None:
    hbm = memory("hbm2-2400")
    bits = 8e6
    expected = bits * (1.57 + 0.8) * 1e-12 + 1e6 / 64 * 0.83e-9 * hbm.activations(64) / 1
    assert hbm.energy_j(1e6, 64) == pytest.approx(expected)
    assert hbm.energy_j(1e6, write_fraction=1.0) == pytest.approx(bits * 2.89e-12 + 1e6 / 1024 * 0.83e-9)


def test_background_follows_open_rows() -> None:
    ddr4 = memory("ddr4-3200")
    assert ddr4.background_w(1.0) == pytest.approx(0.976 + 0.170)
    assert ddr4.background_w(0.0) == pytest.approx(0.710 + 0.170)
    assert memory("gddr6-14000").background_w(0.5) is None
    assert "standby" in memory("gddr6-14000").uncounted
    assert memory("hbm2-2400").uncounted == ()


def test_without_published_energy_there_is_none() -> None:
    bare = attrs.evolve(memory("ddr4-3200"), read_pj_per_bit=None, write_pj_per_bit=None)
    assert bare.energy_j(1.0) is None


def test_striping_divides_the_chunk_that_a_channel_sees() -> None:
    hbm = memory("hbm3-6400")
    system = MemorySystem(device=hbm, channels=64, interleave_bytes=256)
    assert system.peak_gbs == pytest.approx(64 * 51.2)
    assert system.ways(8192) == 32
    assert system.efficiency(8192) == hbm.efficiency(256)
    assert system.efficiency(64) == hbm.efficiency(64)
    assert system.efficiency() == hbm.efficiency()
    assert system.service_s(1e9, 8192) == pytest.approx(1e9 / (64 * 51.2e9 * hbm.efficiency(256)))
    sizes = np.array([64.0, 8192.0])
    assert system.efficiency(sizes).tolist() == [system.efficiency(64), system.efficiency(8192)]


def test_eight_ddr5_channels_serve_an_8_kb_row_as_1_kb_each() -> None:
    ddr5 = memory("ddr5-4800")
    assert MemorySystem(device=ddr5, channels=8, interleave_bytes=64).efficiency(8192) == ddr5.efficiency(1024)
    assert MemorySystem(device=ddr5, channels=8).efficiency(8192) == ddr5.efficiency(8192)


def test_a_system_sums_the_power_and_energy_of_its_channels() -> None:
    ddr4 = memory("ddr4-3200")
    system = MemorySystem(device=ddr4, channels=4, interleave_bytes=64)
    assert system.background_w(1.0) == pytest.approx(4 * 1.146)
    assert system.energy_j(1e6, 256) == ddr4.energy_j(1e6, 64)
    assert MemorySystem(device=memory("lpddr5-6400"), channels=2).background_w(1.0) is None


def test_the_mapping_is_a_field_of_the_system() -> None:
    ddr4 = memory("ddr4-3200")
    assert MemorySystem(device=ddr4, channels=2, mapping="rowmajor").efficiency() == 0.536
    with pytest.raises(ValueError, match="mapping"):
        MemorySystem(device=ddr4, mapping="mop4")


ENTRY = """
[mine]
source = "a datasheet"
grade = "published"
tck_ps = 625
bl_ck = 4
rcd_ck = 22
rp_ck = 22
cl_ck = 22
rc_ck = 74
rtp_ck = 12
rfc_ck = 576
refi_ck = 12480
rrd_s_ck = 4
faw_ck = 34
transaction_bytes = 64
row_bytes = 8192
bank_groups = 4
banks_per_group = 4
queue_depth = 32
"""


def device_of(text: str) -> DramDevice:
    from hetmem.catalog.structure import structure

    return structure(DramDevice, catalog.parse("dram", text, "test")["mine"])


def test_a_device_takes_one_entry() -> None:
    assert device_of(ENTRY).peak_gbs == pytest.approx(25.6)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("rc_ck = 74", "rc_cks = 74", "dram.mine.rc_cks: unknown key; did you mean 'rc_ck'"),
        ("rc_ck = 74", "rc_ck = 74.5", "dram.mine.rc_ck: expected an integer, not 74.5"),
        ("rc_ck = 74", 'rc_ck = "74"', "dram.mine.rc_ck: expected an integer, not '74'"),
        ("rc_ck = 74", "rc_ck = true", "dram.mine.rc_ck: expected an integer, not True"),
        ("rc_ck = 74", "", "rc_ck"),
        ("rc_ck = 74", "rc_ck = 0", "rc_ck"),
        ("refi_ck = 12480", "refi_ck = 600", "refi_ck must exceed"),
        ("rrd_s_ck = 4\nfaw_ck = 34", "", "one of rrd_s_ck, faw_ck and command_ck"),
        ("queue_depth = 32", "queue_depth = 32\nwrite_factor = [0.9]", "as many values as chunk sizes"),
        ("queue_depth = 32", "queue_depth = 32\nstream_write_factor = 1.2", r"must lie in \(0, 1\]"),
        ("queue_depth = 32", "queue_depth = 32\nread_pj_per_bit = 5", "come together"),
    ],
)
def test_bad_entries_name_the_key(old: str, new: str, problem: str) -> None:
    assert old in ENTRY
    with pytest.raises(Exception, match=problem) as caught:
        device_of(ENTRY.replace(old, new))
    assert "dram.mine" in str(caught.value)
