"""The tile law, vector units and scratchpad of a systolic chip."""

import pytest
from attrs import evolve

from hetmem import catalog
from hetmem.catalog import Entry, Fact
from hetmem.errors import ConfigError
from hetmem.hardware.systolic import Chip, MatrixUnit, Scratchpad, VectorUnit

CHIP = Chip.from_entry(catalog.entry("chips", "h2m2"))


def entry_with(**changes):
    facts = dict(catalog.entry("chips", "h2m2").facts)
    for key, value in changes.items():
        if value is None:
            del facts[key]
        else:
            facts[key] = Fact(value, "a test", "assumed")
    return Entry("chips", "h2m2", facts)


def test_peak_rates_are_those_of_the_published_chip():
    assert 2 * CHIP.matrix.peak_macs_per_s == pytest.approx(131e12, rel=1e-3)
    assert CHIP.vector.peak_macs_per_s == pytest.approx(16.4e12, rel=2e-3)


@pytest.mark.parametrize(("batch", "gbs"), [(16, 565), (32, 496), (64, 400), (128, 287), (256, 184)])
def test_weight_streaming_rate_falls_with_the_batch(batch, gbs):
    weights = 10**9  # of one byte
    seconds = CHIP.matrix.seconds(weights / CHIP.matrix.tile_weights, batch)
    assert weights / seconds / 1e9 == pytest.approx(gbs, abs=1)


def test_one_tile_takes_its_rows_and_the_overhead():
    unit = MatrixUnit(rows=8, columns=4, cores=1, clock_hz=2.0, tile_overhead_cycles=5)
    assert unit.cycles_per_tile(3) == 8
    assert unit.seconds(tiles=1, batch=3) == 4.0
    assert evolve(unit, cores=4).seconds(tiles=4, batch=3) == 4.0
    assert unit.tiles(inputs=16, outputs=8) == 4
    assert unit.tiles(inputs=17, outputs=1) == 3


def test_every_pass_pays_the_overhead_and_streams_its_share_of_the_rows():
    unit = MatrixUnit(rows=8, columns=4, cores=1, clock_hz=1.0, tile_overhead_cycles=5)
    assert unit.seconds(tiles=2, batch=30, passes=3) == 2 * (30 + 3 * 5)


def test_vector_unit_is_a_rate():
    assert VectorUnit(lanes=2, width=8, cores=3, clock_hz=10.0).seconds(macs=960) == 2.0


def test_scratchpad_passes_follow_the_rows_that_fit():
    pad = Scratchpad(buffer_bytes=1000, buffers=2)
    assert [pad.passes(batch, row_bytes=100) for batch in (1, 10, 11, 20, 21)] == [1, 1, 2, 2, 3]
    assert Scratchpad(buffer_bytes=1000, buffers=3).passes(20, row_bytes=100) == 1
    with pytest.raises(ConfigError, match="row of 1001 bytes"):
        pad.passes(1, row_bytes=1001)


def test_decode_batches_of_the_paper_need_one_pass():
    widest_input = {32: 4 * 12288, 64: 4 * 8192, 128: 28672}
    assert {CHIP.scratchpad.passes(batch, row) for batch, row in widest_input.items()} == {1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array_row": 128}, r"chips.h2m2.array_row: unknown key; did you mean 'array_rows'\?"),
        ({"cores": None}, "chips.h2m2.cores: required, but missing"),
        ({"cores": 2.5}, "chips.h2m2.cores: expected an integer, not 2.5"),
        ({"cores": 0}, "chips.h2m2.cores: expected a whole number of at least 1, not 0"),
        ({"cores": True}, "chips.h2m2.cores: expected an integer"),
        ({"clock_hz": 0}, "chips.h2m2.clock_hz: expected a positive number, not 0"),
        ({"clock_hz": "1 GHz"}, "chips.h2m2.clock_hz: expected a finite number, not '1 GHz'"),
        ({"tile_overhead_cycles": -1}, "chips.h2m2.tile_overhead_cycles: expected a number of at least 0"),
    ],
)
def test_bad_chip_names_its_key(change, message):
    with pytest.raises(ConfigError, match=message):
        Chip.from_entry(entry_with(**change))
