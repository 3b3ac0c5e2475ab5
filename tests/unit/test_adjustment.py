"""Hot/cold adjustment: who is copied over whom."""

import numpy as np

from hetmem.policy.adjustment import AdjustmentView, HotColdAdjustment, NoAdjustment


def view(states, resident, free=0, copies=10):
    return AdjustmentView(np.array(states, np.uint8), np.array(resident, bool), free, copies)


def test_hottest_go_over_the_coldest():
    decision = HotColdAdjustment().decide(view([15, 11, 12, 3, 9, 14], [0, 0, 0, 1, 1, 1]))
    assert decision.copied.tolist() == [0, 2]  # 11 would have to replace 14
    assert decision.evicted.tolist() == [3, 4]


def test_free_slots_come_first_and_need_no_victim():
    decision = HotColdAdjustment().decide(view([15, 11, 12, 3], [0, 0, 0, 1], free=2))
    assert decision.copied.tolist() == [0, 2, 1]
    assert decision.evicted.tolist() == [3]


def test_budget_bounds_the_copies():
    assert HotColdAdjustment().decide(view([15, 14, 13, 0, 0], [0, 0, 0, 1, 1], copies=1)).copied.tolist() == [0]
    assert HotColdAdjustment().decide(view([15, 14, 0], [0, 0, 1], copies=0)).copied.tolist() == []


def test_equals_do_not_replace_each_other_and_warm_is_not_hot():
    assert HotColdAdjustment().decide(view([12, 12], [0, 1])).copied.tolist() == []
    assert HotColdAdjustment().decide(view([10, 0], [0, 1])).copied.tolist() == []
    assert HotColdAdjustment(hot_above=9).decide(view([10, 0], [0, 1])).copied.tolist() == [0]


def test_more_newcomers_than_residents():
    decision = HotColdAdjustment().decide(view([15, 14, 13, 0], [0, 0, 0, 1]))
    assert (decision.copied.tolist(), decision.evicted.tolist()) == ([0], [3])


def test_no_adjustment_copies_nothing():
    decision = NoAdjustment().decide(view([15, 0], [0, 1]))
    assert decision.apply(np.array([False, True])).tolist() == [False, True]
