"""The cost law of address translation and the page table's bookkeeping."""

import numpy as np
import pytest
from attrs import evolve

from hetmem import catalog
from hetmem.errors import CapacityError, ConfigError
from hetmem.hardware.paging import PageTable, Translation

LAW = Translation.from_entry(catalog.entry("mmus", "h2m2"))
SMALL = Translation(
    page_bytes=10, entry_bytes=8, logical_bytes=1000, tlb_entries=4, miss_s=3.0, walkers=2, update_s=1.0
)


def test_a_terabyte_needs_four_megabytes_of_table():
    assert LAW.logical_bytes == 2**40
    assert LAW.logical_pages == 524_288
    assert LAW.table_bytes == 4 * 2**20


def test_tlb_reach():
    assert LAW.reach_bytes == 4 * 2**30


def test_one_walker_walks_two_megabytes_per_miss_time():
    pages = 1000
    one = evolve(LAW, walkers=1)
    assert pages * LAW.page_bytes / one.walk_s(pages) == pytest.approx(7e12, rel=0.01)
    assert evolve(LAW, walkers=4).walk_s(pages) == one.walk_s(pages) / 4


def test_a_cycle_within_reach_misses_nothing_and_one_beyond_it_everything():
    assert SMALL.misses(swept_pages=3, cycle_pages=4) == 0
    assert SMALL.misses(swept_pages=3, cycle_pages=5) == 3


def test_pages_round_up_per_tensor():
    assert SMALL.pages(np.array([0, 1, 10, 11, 20])).tolist() == [0, 1, 1, 2, 2]


def make_table(capacity_bytes=200):
    table = PageTable("HBM", capacity_bytes, SMALL)
    table.reserve("kv", count=3, max_tensor_bytes=40)
    table.reserve("fc", count=2, max_tensor_bytes=50)
    return table


def test_reserving_uses_no_page():
    table = make_table()
    assert (table.held_pages, table.held_bytes, table.waste_bytes) == (0, 0, 0)
    assert table.frame("kv", 2, 39) == -1


def test_growth_allocates_on_demand_and_keeps_what_is_mapped():
    table = make_table()
    assert table.resize("kv", 5) == 3
    before = [table.frame("kv", i, 0) for i in range(3)]
    assert table.resize("kv", 9) == 0  # within the last page
    assert table.resize("kv", 11) == 3
    assert [table.frame("kv", i, 0) for i in range(3)] == before
    assert table.frame("kv", 1, 19) >= 0
    assert table.frame("kv", 1, 20) == -1
    assert table.held_bytes == 33
    assert table.waste_bytes == 60 - 33


def test_shrinking_frees_from_the_end_and_frames_are_used_again():
    table = make_table(capacity_bytes=60)
    table.resize("kv", 20)
    with pytest.raises(CapacityError) as error:
        table.resize("fc", 1)
    assert str(error.value).startswith("HBM: 0.00 GB asked")
    assert error.value.args == ("HBM", 20, 0, 60, (("kv", 60),))
    assert table.pages("fc") == 0  # nothing changed
    assert table.resize("kv", 10) == 3
    assert table.resize("fc", 10) == 2
    assert (table.pages("kv"), table.pages("fc"), table.held_pages) == (3, 2, 5)


def test_growth_foretells_what_resize_does():
    table = make_table()
    for size in (5, 25, 40, 12, 0):
        foretold = table.growth("kv", size)
        before = table.held_pages
        assert table.resize("kv", size) == abs(foretold)
        assert table.held_pages - before == foretold


def test_capacity_is_counted_in_whole_pages():
    assert PageTable("HBM", 199, SMALL).frames == 19


def test_what_was_not_reserved_is_refused():
    table = make_table()
    with pytest.raises(ConfigError, match="kv: already has pages on HBM"):
        table.reserve("kv", 1, 1)
    with pytest.raises(ConfigError, match="kv: 41 bytes exceed the 4 pages of a tensor"):
        table.resize("kv", 41)
    with pytest.raises(ConfigError, match="logical space of HBM's page table"):
        table.reserve("more", 100, 10)
    with pytest.raises(ConfigError, match="tensor 3, byte 0 is outside"):
        table.frame("kv", 3, 0)
