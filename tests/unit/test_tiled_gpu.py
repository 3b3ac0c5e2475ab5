"""The GPU tile law against values worked out by hand and against a search without shortcuts."""

from itertools import product
from math import ceil

import pytest

from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware import tiled_gpu as law
from hetmem.hardware.tiled_gpu import TiledGpu

GPU = TiledGpu.named("a100a")


def searched(m, n, k, ops):
    """The tile and off-chip bytes by trying every blocking."""
    traffic = lambda a, b: 2 * ops * (ceil(n / b) * m * k + ceil(m / a) * n * k + m * n)  # noqa: E731
    best = None
    for a, b in product(GPU.law.tiles, repeat=2):
        a, b = min(a, m), min(b, n)
        if 2 * ((a + b) * 32 + a * b) > GPU.l1_bytes:
            continue
        blocks = ops * ceil(m / a) * ceil(n / b)
        score = traffic(a, b) / (blocks / (ceil(blocks / 108) * 108)) ** 2
        if best is None or score < best[0]:
            best = (score, a, b, blocks)
    _, tm, tn, blocks = best
    rows = [*(i * tm for i in range(1, ceil(m / tm))), m]
    columns = [*(j * tn for j in range(1, ceil(n / tn))), n]
    fits = [(a, b) for a, b in product(rows, columns) if 2 * ((a + b) * k / 64 + a * b) <= GPU.l2_bytes]
    return blocks, min(traffic(a, b) for a, b in [*fits, (tm, tn)])


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 4608, 12288), (64, 12288, 1536), (64, 2730.67, 8192), (1024, 6144, 12288), (8192, 12288, 12288)],
)
def test_gemm_equals_the_search_without_shortcuts(m, n, k):
    blocks, off_chip = searched(m, n, k, 1)
    use = blocks / (ceil(blocks / 108) * 108)
    cost = law.gemm(GPU, m, n, k)
    assert cost.memory_s == pytest.approx(off_chip / (3352e9 * 0.85 * use), rel=1e-12)
    assert cost.compute_s == pytest.approx(2 * m * n * k / (312e12 * 0.8 * use), rel=1e-12)
    assert cost.energy.dram == pytest.approx(28.72e-12 * off_chip)


def test_twelve_heads_fill_a_ninth_of_the_machine_and_cost_what_48_do():
    one = law.gemm(GPU, 1, 1024, 128, ops=12, batched=True)
    four = law.gemm(GPU, 1, 1024, 128, ops=48, batched=True)
    assert law.wave_utilisation(GPU, 12) == pytest.approx(1 / 9)
    assert one.time_s == pytest.approx(four.time_s)


def test_fixed_kernels_cost_22_microseconds_a_layer():
    act = law.activation(GPU, 1, 6144, False, 8)
    norm = law.norm(GPU, 1, 12288)
    assert (act.fixed_s, norm.fixed_s) == (8.29e-6, 6.87e-6)
    assert act.time_s + 2 * norm.time_s == pytest.approx(22.0e-6, rel=0.01)


def test_a_large_activation_runs_as_one_block():
    act = law.activation(GPU, 8192, 6144, False, 8)
    assert act.compute_bound
    assert act.time_s == pytest.approx(8 * 8192 * 6144 / (312e12 * 0.8 / 108))


def test_all_reduce_is_latency_at_decode_and_bandwidth_at_prefill():
    small = 2 * 8192
    assert law.all_reduce_s(GPU, 6, small) == pytest.approx(5 * (6.06e-6 + 0.009e-9 * small / 6))
    assert law.all_reduce_s(GPU, 6, small) == pytest.approx(30e-6, rel=0.02)
    assert law.all_reduce_s(GPU, 1, small) == 0
    large = 1e11
    assert law.all_reduce_s(GPU, 6, large) == pytest.approx(5 * max(6.06e-6 + 0.009e-9 * large / 6, large / 6 / 300e9))


def test_all_reduce_energy_counts_every_gpu_and_none_when_alone():
    assert law.all_reduce_energy(GPU, 8, 1000).link == pytest.approx(8 * 1000 * 10.4e-12)
    assert law.all_reduce_energy(GPU, 1, 1000).total == 0


def test_the_flat_roofline_bends_at_88_tokens():
    below, above = (law.flat_fc(GPU, 6, 1e11, tokens) for tokens in (87, 88))
    assert not below.compute_bound
    assert above.compute_bound
    assert below.time_s == pytest.approx(1e11 / (6 * 3352e9 * 0.85))


def test_flat_energy_at_one_token_is_33_picojoules_a_weight_byte():
    assert law.flat_fc(GPU, 6, 1e12, 1).energy.total == pytest.approx(33, rel=0.02)


def test_corrected_energy_charges_registers_by_byte_and_head():
    corrected = TiledGpu.named("a100a", corrected_energy=True)
    plain, fixed = (law.gemm(gpu, 1, 100, 128, ops=12, batched=True).energy for gpu in (GPU, corrected))
    registers = 0.0675e-12 * 3 * 100 * 128
    assert fixed.gpu_cache - plain.gpu_cache == pytest.approx(registers * (2 * 12 - 1))
    assert fixed.dram == plain.dram


def test_efficiency_can_be_replaced_and_is_checked():
    faster = GPU.with_efficiency(memory=1.0)
    assert faster.effective_bytes_per_s == 3352e9
    assert faster.effective_flops == GPU.effective_flops
    with pytest.raises(ConfigError, match=r"a100a\.compute"):
        GPU.with_efficiency(compute=1.2)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ConfigError, match="sizes must be positive"):
        law.gemm(GPU, *sizes)


def test_an_unknown_gpu_is_refused():
    with pytest.raises(UnknownNameError, match="a100a"):
        TiledGpu.named("a100x")
