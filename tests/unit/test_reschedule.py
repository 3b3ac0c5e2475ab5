"""Rescheduling policies and the offline calibration, without a simulator."""

import pytest

from hetmem.errors import ConfigError
from hetmem.policy.reschedule import (
    Oracle,
    Parallelism,
    RescheduleView,
    Side,
    Static,
    Threshold,
    arithmetic_intensity,
    calibrate,
)


def view(tokens, side=None, fc_s=None):
    return RescheduleView(Parallelism(tokens), side, fc_s)


def test_a_tie_stays_in_memory():
    policy = Threshold(28)
    assert policy.decide(view(28)) is Side.PIM
    assert policy.decide(view(29)) is Side.GPU


def test_the_scheduler_switches_when_the_estimate_crosses_the_threshold():
    policy, registers, side, trace = Threshold(28), Parallelism(16, 4), None, []
    for finished in (6, 0, 3, 1, 5, 1):
        side = policy.decide(RescheduleView(registers, side))
        trace.append((registers.tokens, side.value))
        registers = registers.after(finished)
    assert trace == [(64, "gpu"), (40, "gpu"), (40, "gpu"), (28, "pim"), (24, "pim"), (4, "pim")]
    assert registers.rlp == 0


def test_token_parallelism_is_a_register_that_software_rewrites():
    registers = Parallelism(8, 4).after(finished=2, admitted=1)
    assert registers == Parallelism(7, 4)
    assert registers.after(0, tlp=2) == Parallelism(7, 2)


def test_more_requests_cannot_finish_than_run():
    with pytest.raises(ConfigError, match="3 of 2 running"):
        Parallelism(2).after(3)


def test_hysteresis_keeps_the_side_near_the_threshold():
    policy = Threshold(28, hysteresis=4)
    assert [policy.decide(view(n, Side.PIM)) for n in (28, 32, 33)] == [Side.PIM, Side.PIM, Side.GPU]
    assert [policy.decide(view(n, Side.GPU)) for n in (28, 25, 24)] == [Side.GPU, Side.GPU, Side.PIM]
    assert policy.decide(view(29)) is Side.GPU  # no side yet: the plain rule


def test_static_mapping_ignores_the_view():
    assert Static("gpu").decide(view(1)) is Side.GPU
    assert Static(Side.PIM).decide(view(10**6)) is Side.PIM
    with pytest.raises(ValueError, match="dpu"):
        Static("dpu")


def test_the_oracle_takes_the_faster_side_and_needs_the_times():
    assert Oracle().decide(view(1, fc_s={Side.GPU: 2.0, Side.PIM: 2.0})) is Side.PIM
    assert Oracle().decide(view(1, fc_s={Side.GPU: 1.9, Side.PIM: 2.0})) is Side.GPU
    with pytest.raises(ConfigError, match="oracle"):
        Oracle().decide(view(1))


@pytest.mark.parametrize("bad", [{"alpha": -1}, {"alpha": 1, "hysteresis": -1}])
def test_thresholds_are_not_negative(bad):
    with pytest.raises(ValueError, match="must be >= 0"):
        Threshold(**bad)


def test_intensity_is_about_the_token_count():
    # PAPI's example: OPT-30B (7168) at batch 4, 8 tokens each.
    assert arithmetic_intensity(32, 7168) == pytest.approx(31.7, abs=0.05)


def test_calibration_finds_the_last_win():
    found = calibrate(lambda p: float(-(-p // 4)), lambda p: 7.94, upto=100)
    assert (found.alpha, found.crossings, found.holes, found.bounded) == (28, 1, (), True)
    assert str(found) == "alpha 28"


def test_calibration_reports_a_hole():
    memory_wins = {*range(3, 8), 10, 11}
    found = calibrate(lambda p: 0.0 if p in memory_wins else 2.0, lambda p: 1.0, upto=20)
    assert found.alpha == 11
    assert found.pim_ranges == ((3, 7), (10, 11))
    assert found.holes == ((1, 2), (8, 9))
    assert found.crossings == 4
    assert str(found) == "alpha 11; 4 crossings, the GPUs are faster at 1-2, 8-9"


def test_calibration_without_a_crossing_says_so():
    never = calibrate(lambda p: 2.0, lambda p: 1.0, upto=5)
    assert (never.alpha, never.crossings, never.holes, never.bounded) == (0, 0, (), True)
    always = calibrate(lambda p: 1.0, lambda p: 1.0, upto=5)
    assert (always.alpha, always.crossings, always.bounded) == (5, 0, False)
    assert "at least 5" in str(always)
    with pytest.raises(ConfigError, match="upto"):
        calibrate(lambda p: 1.0, lambda p: 1.0, upto=0)
