"""The catalogue of hardware: complete, sourced, and without a number that does nothing."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.cpu import cpu
from hetmem.hardware.dram import MAPPINGS, memory
from hetmem.hardware.gpu import GpuSpec, gpu
from hetmem.hardware.gpu_law import IDEAL, Gemm, gpu_law
from hetmem.hardware.kernel_cost import SideMemory
from hetmem.hardware.link import DIRECTIONS, link
from hetmem.hardware.paging import Translation
from hetmem.hardware.ssd import ssd
from hetmem.hardware.systolic import Chip

GPUS = [
    "m40", "p40", "v100", "t4", "rtx-3090", "rtx-4090", "a40", "a6000", "a100-sxm-40gb", "a100-pcie-80gb",
    "a100-sxm-80gb", "a100a", "l4", "l40s", "h100-sxm-80gb", "h200-sxm", "rtx-pro-6000",
]  # fmt: skip


def test_every_gpu_is_there() -> None:
    assert list(catalog.ids("gpus")) == GPUS


@pytest.mark.parametrize("name", GPUS)
def test_links_of_a_gpu_exist_and_reduce(name: str) -> None:
    card = gpu(name)
    assert link(card.host_link).h2d_pinned is not None
    assert link(card.peer_link).allreduce


@pytest.mark.parametrize("name", GPUS)
def test_no_kernel_beats_the_peaks(name: str) -> None:
    card = gpu(name)
    for flops, moved in ((1e12, 1e6), (1e9, 1e9), (1e12, 1e10)):
        bound = max(flops / card.peak_flops(), moved / card.memory_bytes_per_s)
        assert gpu_law(card).legs_s(flops, moved)[0] > bound
        assert gpu_law(card, IDEAL).legs_s(flops, moved)[0] == pytest.approx(bound)
        assert gpu_law(card).legs_s(flops, moved)[1] <= card.stream_s(moved)


def test_figures_of_the_cards_that_the_studies_use() -> None:
    assert (gpu("rtx-4090").memory_gbs, gpu("rtx-4090").capacity_bytes) == (1008.0, 24_000_000_000)
    assert gpu("a100-sxm-80gb").memory_gbs == 2039.0
    assert gpu("m40").peak_flops() == 6.8e12
    assert gpu("A100 SXM 80GB") == gpu("a100-sxm-80gb")


def test_int8_runs_at_its_own_peak() -> None:
    card = gpu("a100-sxm-80gb")
    assert card.peak_flops("int8") == 2 * card.peak_flops("bf16")
    law = gpu_law(card)
    assert law.legs_s(1e13, 1.0, "int8")[0] < law.legs_s(1e13, 1.0)[0]
    assert card.roofline_s(1e13, 1.0, "int8").total_s == pytest.approx(card.roofline_s(1e13, 1.0).total_s / 2)
    with pytest.raises(ConfigError, match="dtype: expected one of fp16, bf16, int8, not 'fp64'"):
        card.peak_flops("fp64")


def test_weight_stream_of_the_measured_a100() -> None:
    """Measured: 32 to 64 MB of weights at 1360 GB/s, 256 to 512 MB at 1657 (launch included)."""
    card = gpu("a100-sxm-80gb")
    for size, gbs in ((48e6, 1360), (384e6, 1657)):
        call = Gemm(16, size / 2 / 4096, 4096)
        seconds, _ = gpu_law(card).legs_s(16 * size, size, call=call)
        assert size / seconds * 1e-9 == pytest.approx(gbs, rel=0.08)


def test_bad_power_order_is_refused() -> None:
    with (
        catalog.patched("gpus", "t4", "idle_w", 100.0),
        pytest.raises(ConfigError, match="idle_w, context_w"),
    ):
        gpu("t4")


def test_bad_efficiency_is_refused() -> None:
    with (
        catalog.patched("gpus", "t4", "stream_efficiency", 1.2),
        pytest.raises(ConfigError, match=r"\(0, 1\]"),
    ):
        gpu("t4")


def test_unknown_names_are_suggested() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'rtx-4090'"):
        gpu("rtx-4080")
    with pytest.raises(UnknownNameError, match="cpu"):
        cpu("z80")


def test_host_processor_is_a_roofline_of_its_own_memory() -> None:
    host = cpu("i9-13900k")
    assert host.legs_s(0.0, 76.16e9).memory_s == pytest.approx(1.0)
    with catalog.patched("cpus", "i9-13900k", "active_w", 1.0), pytest.raises(ConfigError, match="active_w"):
        cpu("i9-13900k")


def outputs_of_memory(name: str) -> Any:
    device = memory(name)
    sizes = [64 * 2**i for i in range(13)]
    got: list[Any] = [
        device.idle_latency_s,
        device.refresh_wait_s,
        device.background_w(0.5),
        device.energy_j(1e6),
    ]
    for each in (device, device.per_rank()):
        got += [each.efficiency(size, write_fraction=w) for size in sizes for w in (0.0, 0.2)]
        got += [
            each.efficiency(write_fraction=0.2),
            each.energy_j(1e6, 64, write_fraction=0.5),
            each.peak_gbs,
        ]
    if device.rowmajor_stream is not None:
        got += [device.efficiency(size, mapping=MAPPINGS[1]) for size in (None, 96, 512, 700, 3000, 10_000, 1 << 20)]
        got += [device.efficiency(mapping=MAPPINGS[1], write_fraction=0.2)]
    return got


def outputs_of_link(name: str) -> Any:
    found = link(name)
    sizes = (1e3, 1e4, 1e9)
    if found.peer is None:
        got = [found.transfer_s(s, p, d) for s in sizes for p in (True, False) for d in DIRECTIONS]
    else:
        got = [found.transfer_s(s) for s in sizes]
    if found.allreduce:
        got += [found.allreduce_s(s, n) for s in sizes for n in (2, 8)]
    return [*got, found.energy_fj(1e6), found.idle_w, 1e6 / found.peak_gbs]


def outputs_of_ssd(name: str) -> Any:
    disk = ssd(name)
    got = [disk.transfer_s(1e8, 4096, queue_depth=q, write=w) for q in (1, 4096) for w in (False, True)]
    got += [disk.transfer_s(1e9, write=w) for w in (False, True)]
    return [*got, disk.energy_fj(1e6), disk.idle_w, disk.capacity_bytes]


def outputs_of_gpu(name: str) -> Any:
    card = gpu(name)
    got = [card.roofline_s(1e12, 1e9, t) for t in ("fp16", "int8")]
    return [*got, card.stream_s(1e9), card.capacity_bytes, card.idle_w, card.context_w, card.tdp_w]


def outputs_of_cpu(name: str) -> Any:
    host = cpu(name)
    return [host.legs_s(1e12, 4e11), host.legs_s(1e12, 1e9, vectors=True), host.idle_w, host.active_w]


def outputs_of_side(name: str) -> Any:
    return [SideMemory.from_entry(catalog.entry("sides", name), sustained) for sustained in (False, True)]


OUTPUTS: dict[str, Callable[[str], Any]] = {
    "dram": outputs_of_memory, "links": outputs_of_link, "ssds": outputs_of_ssd, "gpus": outputs_of_gpu,
    "cpus": outputs_of_cpu, "sides": outputs_of_side,
    "chips": lambda name: Chip.from_entry(catalog.entry("chips", name)),
    "mmus": lambda name: Translation.from_entry(catalog.entry("mmus", name)),
}  # fmt: skip


def numbers(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield, for each number inside ``value``, copies of ``value`` with it a tenth larger and smaller."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from (tuple({**value, key: new} for new in news) for news in numbers(part))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from (tuple([*value[:i], new, *value[i + 1 :]] for new in news) for news in numbers(part))
    elif isinstance(value, int):
        step = max(1, round(value / 10))
        yield value + step, value - step
    elif isinstance(value, float):
        yield value * 1.1, value * 0.9


def outputs_with(kind: str, name: str, key: str, value: Any) -> Any:
    """Return the outputs with one value replaced, None where it is out of range."""
    with catalog.patched(kind, name, key, value):
        try:
            return OUTPUTS[kind](name)
        except ConfigError:
            return None


@pytest.mark.parametrize("kind", OUTPUTS)
def test_no_number_is_inert(kind: str) -> None:
    for name in catalog.ids(kind):
        before = OUTPUTS[kind](name)
        for key, fact in catalog.entry(kind, name).facts.items():
            for news in numbers(fact.value):
                after = [outputs_with(kind, name, key, new) for new in news]
                assert any(each not in (None, before) for each in after), f"{kind}.{name}.{key} changes nothing"


@pytest.mark.parametrize("kind", OUTPUTS)
def test_every_number_has_a_source_of_its_own_kind(kind: str) -> None:
    for name in catalog.ids(kind):
        for key, fact in catalog.entry(kind, name).facts.items():
            assert fact.source.strip(), (kind, name, key)
            assert "shared" not in fact.source, (kind, name, key)
            assert "/work" not in fact.source, (kind, name, key)


def test_a_gpu_refuses_unknown_keys() -> None:
    entry = catalog.entry("gpus", "t4")
    extra = catalog.Entry("gpus", "t4", {**entry.facts, "bandwith": catalog.Fact(1.0, "s", "assumed")})
    from hetmem.catalog.structure import structure

    with pytest.raises(ConfigError, match=r"gpus\.t4\.bandwith: unknown key"):
        structure(GpuSpec, extra)
