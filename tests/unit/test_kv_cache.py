"""Blocks of the KV cache and the bytes behind them."""

import pytest

from hetmem.engine.kv_cache import OWNER, KvCache
from hetmem.errors import CapacityError, ConservationError
from hetmem.hardware.ledger import Ledger


def test_the_cache_takes_its_share_of_what_is_free():
    ledger = Ledger({"hbm": 1000})
    ledger.allocate("weights", "hbm", 200)
    kv = KvCache(ledger, 4, {"hbm": 5}, share=0.5)
    assert (kv.total, kv.free, kv.block_bytes) == (20, 20, {"hbm": 20})


def test_the_memory_with_the_least_room_for_blocks_decides():
    ledger = Ledger({"dimm0": 1000, "dimm1": 400, "gpu": 10})
    kv = KvCache(ledger, 1, {"dimm0": 10, "dimm1": 5, "gpu": 0}, share=1.0)
    assert kv.total == 80
    assert "gpu" not in kv.block_bytes


def test_blocks_are_rounded_up():
    kv = KvCache(Ledger({"hbm": 100}), 4, {"hbm": 1}, 1.0)
    assert [kv.blocks_for(tokens) for tokens in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


def test_taking_and_giving_keeps_the_ledger_in_step():
    ledger = Ledger({"a": 100, "b": 50})
    kv = KvCache(ledger, 2, {"a": 2, "b": 1}, 1.0)
    kv.take(3)
    kv.take(0)
    kv.take(2)
    assert (ledger.held_bytes(OWNER, "a"), ledger.held_bytes(OWNER, "b")) == (20, 10)
    kv.give(4)
    kv.give(0)
    assert (kv.used, kv.free, kv.peak, kv.allocated, kv.freed) == (1, kv.total - 1, 5, 5, 4)
    assert (ledger.held_bytes(OWNER, "a"), ledger.held_bytes(OWNER, "b")) == (4, 2)
    kv.check_conserved()


def test_blocks_that_were_asked_for_need_not_fit_the_share():
    ledger = Ledger({"hbm": 100})
    assert KvCache(ledger, 1, {"hbm": 1}, 0.1, blocks=100).total == 100
    with pytest.raises(CapacityError) as caught:
        KvCache(ledger, 1, {"hbm": 1}, 0.1, blocks=101)
    assert (caught.value.memory, caught.value.asked, caught.value.free) == ("hbm", 101, 100)


def test_blocks_that_were_asked_for_fit_every_memory_or_are_refused_at_once():
    """The memory with the smaller share is not always the one with the smaller room: shares are rounded."""
    ledger = Ledger({"a": 110, "b": 100})
    with pytest.raises(CapacityError, match="b: "):
        KvCache(ledger, 1, {"a": 10, "b": 10}, 0.9, blocks=11)


def test_a_cache_without_room_for_a_block_says_who_holds_the_memory():
    ledger = Ledger({"hbm": 100})
    ledger.allocate("weights", "hbm", 95)
    with pytest.raises(CapacityError) as caught:
        KvCache(ledger, 16, {"hbm": 1}, 0.9)
    assert caught.value.args == ("hbm", 16, 5, 100, (("weights", 95),))


def test_a_lost_block_is_found():
    kv = KvCache(Ledger({"hbm": 100}), 1, {"hbm": 1}, 1.0)
    kv.take(3)
    kv.freed += 1
    with pytest.raises(ConservationError, match="KV blocks violated: 3 allocated, 1 freed, 3 held"):
        kv.check_conserved()
