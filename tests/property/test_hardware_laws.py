"""Properties of the timing laws over all devices and sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmem import catalog
from hetmem.hardware.dram import MAPPINGS, MemorySystem, memory
from hetmem.hardware.gpu import gpu
from hetmem.hardware.gpu_law import gpu_law
from hetmem.hardware.link import link
from hetmem.hardware.ssd import ssd

DRAMS = {name: memory(name) for name in catalog.ids("dram")}
LINKS = {name: link(name) for name in catalog.ids("links")}
SSDS = {name: ssd(name) for name in catalog.ids("ssds")}
GPUS = {name: gpu(name) for name in catalog.ids("gpus")}
sizes = st.integers(1, 1 << 24)
shares = st.floats(0, 1)


@given(name=st.sampled_from(sorted(DRAMS)), size=sizes, share=shares, depth=st.integers(1, 512))
def test_efficiency_is_a_fraction(name: str, size: int, share: float, depth: int) -> None:
    value = DRAMS[name].efficiency(size, write_fraction=share, queue_depth=depth)
    assert isinstance(value, float)
    assert 0 < value <= 1


@given(name=st.sampled_from(sorted(DRAMS)), sizes=st.lists(sizes, min_size=1, max_size=8), share=shares)
def test_arrays_equal_scalars(name: str, sizes: list[int], share: float) -> None:
    device = DRAMS[name]
    together = device.efficiency(np.array(sizes), write_fraction=share)
    # numpy's power may differ in the last place between a scalar and a vector
    assert together == pytest.approx([device.efficiency(s, write_fraction=share) for s in sizes], rel=1e-14)


@given(name=st.sampled_from(sorted(DRAMS)), size=sizes)
def test_a_random_chunk_is_never_better_than_a_stream(name: str, size: int) -> None:
    assert DRAMS[name].efficiency(size) <= DRAMS[name].efficiency()


@given(
    name=st.sampled_from(sorted(DRAMS)),
    size=sizes,
    depths=st.tuples(st.integers(1, 512), st.integers(1, 512)),
)
def test_a_deeper_queue_never_hurts(name: str, size: int, depths: tuple[int, int]) -> None:
    low, high = sorted(depths)
    device = DRAMS[name]
    assert device.efficiency(size, queue_depth=low) <= device.efficiency(size, queue_depth=high) * (1 + 1e-12)


@given(name=st.sampled_from(sorted(DRAMS)), power=st.integers(14, 24))
def test_large_aligned_chunks_approach_a_stream(name: str, power: int) -> None:
    device = DRAMS[name]
    assert device.efficiency(1 << power) <= device.efficiency(1 << (power + 1)) * (1 + 1e-4)
    assert device.efficiency(1 << 24) >= 0.95 * device.efficiency()


@given(name=st.sampled_from(sorted(DRAMS)), size=sizes, share=st.floats(0, 0.5))
def test_more_writes_never_help_up_to_half(name: str, size: int, share: float) -> None:
    device = DRAMS[name]
    assert device.efficiency(size, write_fraction=0.5) <= device.efficiency(size, write_fraction=share) * (1 + 1e-12)


@given(name=st.sampled_from(["ddr4-3200", "ddr5-4800", "lpddr5-6400", "hbm3-6400"]), size=sizes)
def test_row_contiguous_table_is_a_fraction(name: str, size: int) -> None:
    assert 0 < DRAMS[name].efficiency(size, mapping=MAPPINGS[1]) <= 1


@given(
    name=st.sampled_from(sorted(DRAMS)),
    size=sizes,
    channels=st.integers(1, 64),
    stripe=st.sampled_from([64, 256, 4096]),
)
def test_a_striped_chunk_is_spread_whole(name: str, size: int, channels: int, stripe: int) -> None:
    system = MemorySystem(device=DRAMS[name], channels=channels, interleave_bytes=stripe)
    share = system.channel_chunk_bytes(size)
    assert share is not None
    assert share * system.ways(size) == pytest.approx(size)
    assert 1 <= system.ways(size) <= channels
    assert system.efficiency(size) == pytest.approx(DRAMS[name].efficiency(share))


@given(name=st.sampled_from(sorted(DRAMS)), size=sizes)
def test_energy_of_random_chunks_is_at_least_that_of_a_stream(name: str, size: int) -> None:
    device = DRAMS[name]
    stream, chunks = device.energy_j(size), device.energy_j(size, size)
    assert stream is not None
    assert chunks is not None
    assert chunks >= stream * (1 - 1e-12)


@given(name=st.sampled_from(sorted(LINKS)), pair=st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)))
def test_transfers_are_monotone_and_below_the_peak(name: str, pair: tuple[int, int]) -> None:
    low, high = sorted(pair)
    found = LINKS[name]
    assert found.transfer_s(low) <= found.transfer_s(high)
    assert found.transfer_s(high) >= high / (found.peak_gbs * 1e9)


@given(
    name=st.sampled_from(sorted(n for n, found in LINKS.items() if found.allreduce)),
    size=st.integers(0, 1 << 36), gpus=st.integers(1, 64),
)  # fmt: skip
def test_allreduce_is_monotone_and_moves_its_bytes(name: str, size: int, gpus: int) -> None:
    found = LINKS[name]
    seconds = found.allreduce_s(size, gpus)
    assert seconds <= found.allreduce_s(size + 1024, gpus)
    assert seconds <= found.allreduce_s(size, gpus + 1)
    assert seconds >= 2 * (gpus - 1) / gpus * size / (found.peak_gbs * 1e9)


@given(
    name=st.sampled_from(sorted(SSDS)), n=st.integers(1, 10_000), size=st.integers(512, 1 << 20),
    depth=st.integers(1, 512), write=st.booleans(),
)  # fmt: skip
def test_ssd_is_monotone_and_within_its_limits(name: str, n: int, size: int, depth: int, write: bool) -> None:
    disk = SSDS[name]
    seconds = disk.transfer_s(n * size, size, queue_depth=depth, write=write)
    rate = disk.write_gbs if write else disk.read_gbs
    assert seconds >= n * size / (rate * 1e9)
    assert seconds <= disk.transfer_s((n + 1) * size, size, queue_depth=depth, write=write)
    assert seconds >= disk.transfer_s(n * size, size, queue_depth=depth + 1, write=write)


@given(name=st.sampled_from(sorted(GPUS)), flops=st.floats(0, 1e16), moved=st.floats(0, 1e12))
def test_a_kernel_takes_between_the_longer_leg_and_their_sum(name: str, flops: float, moved: float) -> None:
    card = GPUS[name]
    law = gpu_law(card)
    gemm, (total, memory_s) = law.calibration.law("gemm"), law.legs_s(flops, moved)
    if not flops and not moved:
        assert (total, memory_s) == (0.0, 0.0)
        return
    compute_s = flops / (gemm.compute_efficiency * card.peak_flops())
    stream_s = moved / (gemm.memory_efficiency * card.memory_bytes_per_s)
    assert total >= max(compute_s, stream_s)
    assert total <= gemm.launch_us * 1e-6 + (compute_s + stream_s) * (1 + 1e-12)
    assert memory_s == min(total, card.stream_s(moved))
