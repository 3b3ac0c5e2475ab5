"""AttAcc's pair in closed form: overlap rules, options, capacity."""

import pytest

from hetmem.errors import ConfigError
from hetmem.hardware.pim import pim_stack
from hetmem.hardware.tiled_gpu import TiledGpu
from hetmem.system import attacc_law as law
from hetmem.system.decoder_shape import DecoderShape

GPT = DecoderShape(96, 12288, 96, 96, 128, 4 * 12288, False, 8)
GPU, STACK = TiledGpu.named(), pim_stack()


def machine(**options):
    return law.AttAccMachine(GPU, stack=STACK, **options)


def test_options_that_need_pim_are_refused_without():
    for option in ("pipelining", "co_processing"):
        with pytest.raises(ConfigError, match=f"{option}: needs a PIM stack"):
            law.AttAccMachine(GPU, **{option: True})


def test_pipelining_leaves_one_heads_share_when_attention_is_longer():
    naive, piped = (law.decode(machine(pipelining=on), GPT, 256, 4096) for on in (False, True))
    assert naive.attention_s > naive.qkv_s + naive.projection_s
    assert piped.qkv_s == pytest.approx(naive.qkv_s * 8 / 96)
    assert piped.projection_s == pytest.approx(naive.projection_s * 8 / 96)
    assert piped.transfer_s == naive.transfer_s


def test_pipelining_hides_attention_behind_longer_fc():
    naive, piped = (law.decode(machine(pipelining=on), GPT, 1, 128) for on in (False, True))
    gone = (naive.qkv_s - piped.qkv_s) + (naive.projection_s - piped.projection_s)
    assert naive.attention_s * 88 / 96 < gone < naive.attention_s * 1.5  # softmax is part of what is hidden
    assert (naive.qkv_s - piped.qkv_s) == pytest.approx(0.75 * gone)


def test_transfers_longer_than_attention_and_fc_stay_visible():
    slow = law.AttAccMachine(TiledGpu(**{**_fields(GPU), "link_bytes_per_s": 2e8}), stack=STACK)
    naive = law.decode(slow, GPT, 4, 32)
    moved = 4 * 12288 / 8 * 4 * 2 / 1e8 * 96
    assert naive.transfer_s < moved
    piped = law.decode(law.AttAccMachine(slow.gpu, stack=STACK, pipelining=True), GPT, 4, 32)
    assert piped.transfer_s == pytest.approx(naive.transfer_s)
    assert piped.qkv_s == pytest.approx(naive.qkv_s * 8 / 96)


def _fields(gpu):
    import attrs

    return {field.name: getattr(gpu, field.name) for field in attrs.fields(TiledGpu)}


def test_co_processing_divides_a_memory_bound_feed_forward_by_one_plus_the_bandwidth_factor():
    plain, shared = (law.decode(machine(co_processing=on), GPT, 1, 128) for on in (False, True))
    assert shared.feed_forward_s == pytest.approx(plain.feed_forward_s / (1 + 9))
    assert shared.energy_j == plain.energy_j


def test_co_processing_of_a_compute_bound_feed_forward_adds_the_units_flops():
    plain, shared = (law.decode(machine(co_processing=on), GPT, 1024, 128) for on in (False, True))
    assert shared.feed_forward_s == pytest.approx(plain.feed_forward_s * 312 / (312 + 9 * 3.352))


def test_attention_energy_falls_on_pim_and_fc_does_not_change():
    gpu = law.decode(law.AttAccMachine(GPU), GPT, 16, 2048)
    pim = law.decode(machine(), GPT, 16, 2048)
    assert pim.fc_energy == gpu.fc_energy
    assert pim.attention_energy.total < 0.3 * gpu.attention_energy.total


@pytest.mark.parametrize(
    ("devices", "tokens", "batch"),
    [("gpu", 256, 280), ("pim", 256, 849), ("gpu", 4096, 17), ("pim", 4096, 53)],
)
def test_largest_batches(devices, tokens, batch):
    one = law.AttAccMachine(GPU) if devices == "gpu" else machine()
    assert law.largest_batch(one, GPT, tokens) == batch


def test_published_batches_exceed_the_capacity():
    weights, request = GPT.weight_bytes, GPT.kv_bytes_per_token * 4096
    for one, batch, gib in ((law.AttAccMachine(GPU), 18, 640), (machine(), 54, 1280)):
        assert one.capacity_bytes == gib * 2**30
        assert weights + batch * request > one.capacity_bytes


def test_bad_iterations_are_refused():
    with pytest.raises(ConfigError, match="batch and context"):
        law.decode(machine(), GPT, 0, 10)
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        law.decode_mean(machine(), GPT, 1, 10, 1)
