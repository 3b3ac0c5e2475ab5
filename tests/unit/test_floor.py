"""The physical floor finds steps that are too fast, and names the worst."""

import pytest

from hetmem.engine.floor import FloorCheck
from hetmem.engine.step import StepOutcome, StepView
from hetmem.errors import ConservationError


def outcome(order, lasted_ps):
    return StepOutcome(StepView(order, 50, None, None, 0, 0), 50, 50 + lasted_ps)


def test_steps_that_respect_their_bound_pass():
    floor = FloorCheck(lambda view: 1e-6)
    for lasted in (1_000_000, 1_000_001, 2_000_000):
        floor.check(outcome(0, lasted))
    floor.raise_if_broken()


def test_the_step_that_is_shortest_of_its_bound_is_named():
    floor = FloorCheck(lambda view: 1e-3)
    for order, lasted in ((3, 999_999_000), (4, 800_000_000), (5, 900_000_000), (6, 1_000_000_000)):
        floor.check(outcome(order, lasted))
    with pytest.raises(ConservationError, match=r"step 4 took 0\.800000 ms, 0\.200000 ms less than its bytes need"):
        floor.raise_if_broken()


def test_a_part_in_a_billion_is_left_to_rounding():
    floor = FloorCheck(lambda view: 1.0)
    floor.check(outcome(0, 10**12 - 1000))
    floor.raise_if_broken()
    floor.check(outcome(1, 10**12 - 2000))
    with pytest.raises(ConservationError, match="step 1"):
        floor.raise_if_broken()


def test_the_bound_may_differ_from_step_to_step():
    floor = FloorCheck(lambda view: view.order * 1e-9)
    floor.check(outcome(1, 1000))
    floor.check(outcome(2, 1999))
    with pytest.raises(ConservationError, match="step 2"):
        floor.raise_if_broken()
