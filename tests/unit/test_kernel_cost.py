"""The closed form of an iteration, against numbers worked out by hand."""

import pytest
from attrs import evolve

from hetmem import catalog
from hetmem.catalog import Entry, Fact
from hetmem.errors import CapacityError, ConfigError
from hetmem.hardware.kernel_cost import (
    DecodeWork,
    Side,
    SideMemory,
    hierarchical_s,
    iteration_s,
    mapping_view,
    migrated_bytes,
    read_bytes,
    single_memory_s,
    tensor_bytes,
)
from hetmem.hardware.paging import Translation
from hetmem.hardware.systolic import Chip, MatrixUnit, Scratchpad, VectorUnit
from hetmem.policy.kernel_mapping import Mapping

# Round numbers: a tile of 10 weights takes batch + 1 cycles, a vector unit does 100 products a second.
CHIP = Chip(
    MatrixUnit(rows=5, columns=2, cores=1, clock_hz=1.0, tile_overhead_cycles=1),
    VectorUnit(lanes=10, width=10, cores=1, clock_hz=1.0),
    Scratchpad(buffer_bytes=1000, buffers=2),
)
FAST = Side(SideMemory("HBM", capacity_bytes=1000, bandwidth_bytes_per_s=50.0, latency_s=0.0), CHIP)
SLOW = Side(SideMemory("LPDDR", capacity_bytes=5000, bandwidth_bytes_per_s=10.0, latency_s=0.0), CHIP)
WORK = DecodeWork(
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=5,
    qkv_weights=40,
    fc_weights=200,
    batch=3,
    context_tokens=10,
)


def test_footprint_and_reads():
    assert WORK.layer_bytes("attention") == 2 * 2 * 5 * 10
    assert WORK.footprint_bytes == 2 * (40 + 200 + 200)
    assert WORK.moved_bytes == 2 * (40 + 200 + 2 * 200)
    assert evolve(WORK, gqa_reuse=True).moved_bytes == WORK.footprint_bytes
    assert evolve(WORK, weight_bits=16).footprint_bytes == 2 * (80 + 400 + 200)


def test_half_kernels_take_the_longer_of_memory_and_compute():
    # QKV, 1 of 2 parts: 2 layers x 20 weights = 4 tiles x 4 cycles = 16 s against .8 s and 4 s of memory.
    # Attention, all fast: 2 x 200 x 2 reads / 50 = 16 s against 800 products / 100 = 8 s.
    # FC, 3 of 4 slices: 30 tiles x 4 = 120 s on the fast side.
    mapping = Mapping(attention=2, qkv=1, fc=3)
    assert iteration_s(WORK, FAST, SLOW, mapping) == pytest.approx(16 + 16 + 120)
    view = mapping_view(WORK, FAST, SLOW)
    assert view.time_s(mapping) == pytest.approx(152)
    assert (view.attention.parts, view.qkv.parts, view.fc.parts) == (2, 2, 4)


def test_reuse_reads_once_and_computes_as_much():
    mapping = Mapping(attention=2, qkv=1, fc=3)
    reuse = evolve(WORK, gqa_reuse=True)  # 8 s of memory, still 8 s of products
    assert iteration_s(reuse, FAST, SLOW, mapping) == pytest.approx(16 + 8 + 120)
    matrix = evolve(reuse, attention_unit="matrix")  # 40 tiles, two query heads stream through each: x 3 cycles
    assert iteration_s(matrix, FAST, SLOW, mapping) == pytest.approx(16 + 120 + 120)
    apart = evolve(WORK, attention_unit="matrix")  # 40 tiles twice, one query head each: x 2 cycles
    assert iteration_s(apart, FAST, SLOW, mapping) == pytest.approx(16 + 160 + 120)


def test_single_memory_shares_its_bandwidth_between_chips():
    # With two chips QKV takes 16, FC 80 s of compute; attention 800 bytes / 10 = 80 s of memory.
    assert single_memory_s(WORK, evolve(SLOW, chips=2)) == pytest.approx(16 + 80 + 80)
    with pytest.raises(CapacityError, match="LPDDR"):
        single_memory_s(evolve(WORK, context_tokens=1000), SLOW)


@pytest.mark.parametrize(("overlap", "expected"), [(0.0, 142.0), (0.5, 127.0), (1.0, 112.0)])
def test_hierarchical_fetches_what_does_not_fit(overlap, expected):
    upper = evolve(FAST, chips=2, memory=evolve(FAST.memory, capacity_bytes=580))
    # 16 + 16 + 80 s on the upper level, and 300 bytes / 10 from below.
    assert hierarchical_s(WORK, upper, SLOW.memory, overlap) == pytest.approx(expected)


def test_hierarchical_without_overflow_is_the_upper_memory_alone():
    upper = evolve(FAST, chips=2)
    assert hierarchical_s(WORK, upper, SLOW.memory) == single_memory_s(WORK, upper)


def test_hierarchical_refuses_bad_overlap_and_overflow():
    with pytest.raises(ConfigError, match=r"overlap: expected a fraction from 0 to 1, not 1\.5"):
        hierarchical_s(WORK, FAST, SLOW.memory, overlap=1.5)
    with pytest.raises(CapacityError):
        hierarchical_s(evolve(WORK, context_tokens=1000), FAST, SLOW.memory)


def test_every_byte_is_on_one_side():
    odd = evolve(WORK, qkv_weights=41, fc_weights=203)
    for mapping in (Mapping(0, 0, 0), Mapping(1, 1, 3), Mapping(2, 2, 4)):
        sizes = tensor_bytes(odd, mapping)
        assert {name: sum(pair) for name, pair in sizes.items()} == {"attention": 200, "qkv": 41, "fc": 203}
        assert sum(read_bytes(odd, mapping)) == odd.moved_bytes
        view = mapping_view(odd, FAST, SLOW)
        assert view.fast_bytes(mapping) + view.slow_bytes(mapping) == odd.footprint_bytes


def test_migration_is_the_difference_of_two_mappings():
    assert migrated_bytes(WORK, Mapping(2, 1, 0), Mapping(1, 2, 0)) == (2 * 20, 2 * 100)
    assert migrated_bytes(WORK, Mapping(1, 1, 1), Mapping(1, 1, 1)) == (0, 0)


PAGING = Translation(
    page_bytes=30, entry_bytes=8, logical_bytes=3000, tlb_entries=2, miss_s=6.0, walkers=2, update_s=0.0
)


def test_pages_round_up_what_each_layer_holds():
    view = mapping_view(WORK, FAST, SLOW, PAGING)
    assert view.qkv.fast_bytes.tolist() == [0, 2 * 30, 2 * 60]
    assert view.attention.slow_bytes.tolist() == [2 * 210, 2 * 120, 0]


def test_page_walks_lengthen_memory_and_hide_behind_compute():
    mapping = Mapping(attention=2, qkv=1, fc=3)
    # Attention: 14 pages of 3 s after 16 s of memory. QKV and FC hide their 2 and 10 pages behind compute.
    assert iteration_s(WORK, FAST, SLOW, mapping, PAGING) == pytest.approx(16 + 58 + 120)
    warm = evolve(PAGING, tlb_entries=1000)
    assert iteration_s(WORK, FAST, SLOW, mapping, warm) == iteration_s(WORK, FAST, SLOW, mapping)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "kv_heads: 4 query heads cannot share 3 evenly"),
        ({"layers": 0}, "layers: expected a whole number of at least 1, not 0"),
        ({"context_tokens": -1}, "context_tokens: expected a number of at least 0"),
        ({"attention_unit": "tensor"}, "attention_unit: expected 'vector' or 'matrix', not 'tensor'"),
    ],
)
def test_bad_work_names_its_field(change, message):
    with pytest.raises(ConfigError, match=message):
        evolve(WORK, **change)


def test_a_memory_of_the_catalogue_carries_its_id():
    hbm = SideMemory.from_entry(catalog.entry("sides", "hbm3"))
    assert (hbm.name, hbm.capacity_bytes, hbm.bandwidth_bytes_per_s) == ("hbm3", 96 * 10**9, 3e12)
    facts = {**catalog.entry("sides", "hbm3").facts, "latency": Fact(1.0, "a test", "assumed")}
    with pytest.raises(ConfigError, match=r"sides.hbm3.latency: unknown key; did you mean 'latency_s'\?"):
        SideMemory.from_entry(Entry("sides", "hbm3", facts))
