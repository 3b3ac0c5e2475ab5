"""Attention inside PIM stacks: rounds, buckets, refresh, levels, commands."""

import pytest

from hetmem.errors import ConfigError
from hetmem.hardware import pim_attention as pa
from hetmem.hardware.pim import pim_stack

STACK = pim_stack()


@pytest.mark.parametrize(
    ("heads", "contexts", "expected"),
    [
        (16, [100], (100,)),
        (17, [100], (100, 100)),
        (8, [10, 500], (500,)),
        (8, [10, 20, 500], (20, 500)),
        (12, [10, 20, 500], (20, 500, 500)),  # 16 per round: the second request's heads span both
        (40, [7], (7, 7, 7)),
    ],
)
def test_heads_fill_rounds_in_request_order(heads, contexts, expected):
    assert pa.rounds(STACK, 1, heads, contexts) == expected


def test_rounds_are_those_of_the_busiest_stack():
    # 64 heads of 4 requests on 60 stacks: 5 at most on one, in one round.
    assert len(pa.rounds(STACK, 60, 64, [150] * 4)) == 1
    assert len(pa.rounds(STACK, 60, 64, [150] * 16)) == 2


def test_no_request_no_round():
    assert pa.rounds(STACK, 60, 64, []) == ()
    assert pa.pass_s(STACK, ()) == 0


def test_an_empty_context_is_refused():
    with pytest.raises(ConfigError, match="at least one token"):
        pa.rounds(STACK, 60, 64, [3, 0])


@pytest.mark.parametrize(
    ("limit", "rounds", "context", "clocks"),
    # by hand: 4 MACs x spacing x buckets, 124 (132) a pair, 84 (88) an odd round, -3
    [
        (True, 1, 160, 24 * 10 + 84 - 3),
        (True, 2, 160, 2 * 24 * 10 + 124 - 3),
        (True, 3, 160, 3 * 24 * 10 + 124 + 84 - 3),
        (False, 1, 160, 16 * 10 + 88 - 3),
        (True, 1, 257, 24 * 17 + 84 - 3 + 88.5),
    ],
)
def test_clocks_of_short_passes(limit, rounds, context, clocks):
    stack = pim_stack(power_limit=limit)
    assert pa.pass_clocks(stack, (context,) * rounds) == clocks


@pytest.mark.parametrize(
    ("rounds", "bare", "refreshes"),
    [
        (11, 4925, 0),
        (23, 10277, 2),
        (30, 13377, 2),
        (22, 9809, 2),  # below two intervals, but the first refresh carries it over the second
        (34, 15161, 3),
    ],
)
def test_a_refresh_lengthens_a_pass_and_may_meet_another(rounds, bare, refreshes):
    assert pa.pass_clocks(STACK, (256,) * rounds) == bare + 444 * refreshes


def test_a_round_lasts_as_long_as_its_longest_context():
    assert pa.pass_clocks(STACK, (16, 160)) == 24 * (1 + 10) + 124 - 3


def test_half_the_units_double_the_mac_term_alone():
    # LLaMA-65B, batch 4: PAPI reports 1.7.
    slow = pim_stack("1P2B")
    for context, ratio in ((150, 1.75), (260, 1.71), (480, 1.81)):
        assert pa.pass_s(slow, (context,)) / pa.pass_s(STACK, (context,)) == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize(("level", "factor"), [("bank", 1), ("bank-group", 4)])
def test_fewer_banks_per_access_need_more_accesses(level, factor):
    assert pa.macs_per_bucket(pim_stack(level=level), 128) == 4 * factor


def test_macs_follow_the_head_dimension():
    assert [pa.macs_per_bucket(STACK, dim) for dim in (64, 128, 160)] == [2, 4, 5]


def test_passes_per_verified_token():
    assert [pa.passes(STACK, n) for n in (1, 2, 4)] == [1, 2, 4]
    assert [pa.passes(pim_stack("4P1B"), n) for n in (1, 4, 5)] == [1, 1, 2]


def test_commands_of_one_round():
    commands = pa.stack_commands(STACK, heads=3, context=528)
    assert commands == pa.AttentionCommands(4 * 33 * 3, 8 * 3 * 3, 8 * 3 * 5, 8 * 3)


def test_an_even_number_of_rounds_replays_macs_for_empty_channels():
    assert pa.stack_commands(STACK, heads=20, context=16).mac == 4 * 20 + 16 + 2 * 12
    assert pa.stack_commands(STACK, heads=32, context=16).mac == 4 * 32 + 16
    assert pa.stack_commands(STACK, heads=40, context=16).mac == 4 * 40 + 16


def test_corrected_energy_charges_moves_by_the_bit_and_both_products():
    totals = pa.ContextTotals.of(STACK, [100, 300])
    plain = pa.request_energy(STACK, 64, totals)
    corrected = pa.request_energy(STACK, 64, totals, corrected=True)
    assert corrected.dram_bus == pytest.approx(8 * plain.dram_bus)
    assert corrected.dram_row == plain.dram_row
    score = 64 * 400 * 128 * 0.32e-12
    assert corrected.pim_mac - plain.pim_mac == pytest.approx(score)


def test_queries_repeat_the_arrays_unless_units_share_them():
    totals = pa.ContextTotals.of(STACK, [100])
    one, four = (pa.request_energy(STACK, 64, totals, queries=n) for n in (1, 4))
    assert four.total == pytest.approx(4 * one.total)
    wide = pim_stack("4P1B")
    one, four = (pa.request_energy(wide, 64, totals, queries=n) for n in (1, 4))
    assert four.dram == pytest.approx(one.dram)
    assert four.pim_mac == pytest.approx(4 * one.pim_mac)


def test_totals_add_up():
    together = pa.ContextTotals.of(STACK, [100, 300])
    assert together == pa.ContextTotals.of(STACK, [100]) + pa.ContextTotals.of(STACK, [300])
    assert together == pa.ContextTotals(2, 400, 7 + 19, 1 + 2)
