"""Balancers: the corrected remapping on worked examples, and the policies it is compared with."""

import numpy as np
import pytest

from hetmem.errors import ConfigError
from hetmem.policy.balance import (
    NOWHERE,
    BalanceView,
    NoBalance,
    OfflineOptimal,
    RoundRobin,
    WindowRemap,
    dimm_loads,
    imbalance,
)


def view(where, activations, n_dimms, budget=None, future=None):
    return BalanceView(n_dimms, np.array(where), np.array(activations), 5, budget, future)


def test_busiest_units_of_the_heavy_dimm_move_to_the_light_one():
    decision = WindowRemap().decide(view([0, 0, 0, 0, 1], [5, 4, 2, 1, 1], 2))
    # 12 against 1: the 5 goes (7:6); no unit that is left may pass a gap of 1
    assert decision.moves == [(0, 0, 1)]


def test_a_unit_that_fired_as_much_as_the_gap_stays():
    assert WindowRemap().decide(view([0, 1], [3, 0], 2)).moves == []
    assert WindowRemap().decide(view([0, 0, 1], [3, 1, 1], 2)).moves == [(1, 0, 1)]


def test_pairs_are_heaviest_with_lightest_and_inward():
    where, activations = [0] * 4 + [1] * 3 + [2] * 2 + [3] * 1, [5] * 10
    moves = WindowRemap().decide(view(where, activations, 4)).moves
    assert {(source, target) for _, source, target in moves} == {(0, 3)}
    assert len(moves) == 1  # 20:5 -> 15:10, then the gap is 5 and a unit of 5 may not pass
    assert {m[1:] for m in WindowRemap().decide(view([0] * 6 + [1] * 5 + [2] * 2 + [3], [5] * 14, 4)).moves} == {
        (0, 3),
        (1, 2),
    }


def test_budget_is_per_pair():
    where = [0] * 40 + [1] * 30 + [2] * 4 + [3] * 2
    moves = WindowRemap().decide(view(where, [1] * 76, 4, budget=3)).moves
    assert [m[1:] for m in moves] == [(0, 3)] * 3 + [(1, 2)] * 3


def test_units_on_the_gpu_are_left_alone():
    decision = WindowRemap().decide(view([NOWHERE, 0, 0, 1], [5, 4, 1, 1], 2))
    assert NOWHERE not in decision.source
    assert 0 not in decision.unit


def test_one_overloaded_dimm_takes_three_windows_to_level():
    # eight DIMMs, static activity, one with 2.2 times the mean: 2.2 -> 1.44 -> 1.15 -> 1.003
    rng = np.random.default_rng(0)
    activations = rng.integers(1, 6, 28_672)
    share = np.array([2.2] + [5.8 / 7] * 7) / 8
    where = np.searchsorted(np.cumsum(share)[:-1], (np.cumsum(activations) - 1) / activations.sum(), side="right")
    seen = []
    for _ in range(4):
        seen.append(imbalance(dimm_loads(where, activations, 8)))
        decision = WindowRemap().decide(BalanceView(8, where, activations, 5))
        where = decision.apply(where)
    assert seen[0] == pytest.approx(2.20, abs=0.01)
    assert seen[1] == pytest.approx((2.2 + 5.8 / 7) / 2, abs=0.08)
    assert seen[2] == pytest.approx(1.15, abs=0.04)
    assert seen[3] == pytest.approx(1.003, abs=0.02)


def test_comparison_policies():
    where, activations = np.array([0, 0, 0, NOWHERE, 1, 1]), np.array([9, 1, 1, 5, 1, 1])
    still = BalanceView(2, where, activations, 5, None, activations)
    assert NoBalance().decide(still).moves == []
    dealt = RoundRobin().decide(still).apply(where)
    assert dealt.tolist() == [0, 1, 0, NOWHERE, 1, 0]
    assert RoundRobin().decide(BalanceView(2, dealt, activations, 5)).moves == []
    best = OfflineOptimal().decide(still).apply(where)
    assert dimm_loads(best, activations, 2).tolist() == [9, 4]
    with pytest.raises(ConfigError, match=r"view\.future"):
        OfflineOptimal().decide(view([0, 1], [1, 1], 2))


def test_round_robin_keeps_to_the_links_and_arrives():
    where = np.zeros(40, dtype=np.int64)
    windows = 0
    while True:
        decision = RoundRobin().decide(BalanceView(4, where, np.ones(40, int), 5, 2))
        if not len(decision.unit):
            break
        assert np.unique(decision.target, return_counts=True)[1].max() <= 2
        where, windows = decision.apply(where), windows + 1
    assert windows == 5  # ten units over each link, two at a time
    assert where.tolist() == [i % 4 for i in range(40)]


def test_no_load_is_balanced():
    assert imbalance(np.zeros(4, np.int64)) == 1.0
