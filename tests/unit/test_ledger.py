"""Bytes by owner and memory."""

import pytest

from hetmem.errors import CapacityError, ConservationError
from hetmem.hardware.ledger import Ledger


@pytest.fixture
def ledger():
    ledger = Ledger({"hbm": 100, "host": 1000})
    ledger.allocate("weights", "hbm", 60)
    return ledger


def test_bytes_are_counted_by_owner_and_memory(ledger):
    ledger.allocate("kv", "hbm", 10)
    ledger.allocate("kv", "hbm", 20)
    ledger.allocate("kv", "host", 5)
    assert (ledger.held_bytes("kv", "hbm"), ledger.held_bytes("kv", "host")) == (30, 5)
    assert (ledger.used_bytes("hbm"), ledger.free_bytes("hbm")) == (90, 10)
    assert ledger.holdings() == [("hbm", "weights", 60), ("hbm", "kv", 30), ("host", "kv", 5)]
    assert ledger.held_bytes("nobody", "hbm") == 0


def test_what_does_not_fit_changes_nothing_and_says_who_is_in_the_way(ledger):
    with pytest.raises(CapacityError) as caught:
        ledger.allocate("kv", "hbm", 41)
    error = caught.value
    assert (error.memory, error.asked, error.free, error.capacity, error.held) == (
        "hbm", 41, 40, 100, (("weights", 60),),
    )  # fmt: skip
    assert ledger.used_bytes("hbm") == ledger.peak_bytes("hbm") == 60
    ledger.allocate("kv", "hbm", 40)
    assert ledger.free_bytes("hbm") == 0


def test_the_peak_outlasts_what_is_freed(ledger):
    ledger.allocate("kv", "hbm", 30)
    ledger.free("kv", "hbm", 30)
    ledger.allocate("kv", "hbm", 10)
    assert (ledger.peak_bytes("hbm"), ledger.used_bytes("hbm")) == (90, 70)


def test_freeing_more_than_is_held_is_a_broken_law(ledger):
    with pytest.raises(ConservationError, match="weights gives up 61 bytes in hbm but holds 60"):
        ledger.free("weights", "hbm", 61)
    with pytest.raises(ConservationError, match="kv gives up 1 bytes in hbm but holds 0"):
        ledger.free("kv", "hbm", 1)
    assert ledger.holdings() == [("hbm", "weights", 60)]
    ledger.free("weights", "hbm", 60)
    assert ledger.holdings() == []


def test_a_move_keeps_the_sum(ledger):
    ledger.move("weights", "hbm", "host", 25)
    assert ledger.holdings() == [("hbm", "weights", 35), ("host", "weights", 25)]


def test_a_move_that_fails_changes_nothing():
    ledger = Ledger({"hbm": 100, "host": 10})
    ledger.allocate("page", "hbm", 50)
    with pytest.raises(CapacityError, match="host"):
        ledger.move("page", "hbm", "host", 11)
    with pytest.raises(ConservationError, match="gives up 51 bytes in hbm but holds 50"):
        ledger.move("page", "hbm", "host", 51)
    with pytest.raises(ConservationError, match="gives up 1 bytes in host but holds 0"):
        ledger.move("page", "host", "hbm", 1)
    assert ledger.holdings() == [("hbm", "page", 50)]
    assert ledger.peak_bytes("host") == 0
