"""The state-table predictor: published transitions and rule, its variants, and honest scores."""

import math

import numpy as np
import pytest

from hetmem.errors import ConfigError
from hetmem.policy.predictor import (
    HotDrift,
    OraclePredictor,
    PredictionScore,
    PredictView,
    RandomPredictor,
    StateTable,
    StateTracker,
    correlation_table_bytes,
    initial_states,
    score,
    table_bytes,
    updated_states,
)


def view(states, previous=None, parents=None, truth=None, layer=1):
    states = np.array(states, dtype=np.uint8)
    if parents is None:
        parents = np.tile(np.arange(len(states))[:, None], (1, 2))
    return PredictView("mlp", layer, 0, states, np.array(parents), previous, truth)


@pytest.mark.parametrize(("state", "fired", "after"), [(12, True, 15), (7, True, 11), (10, False, 9)])
def test_published_transitions(state, fired, after):
    assert updated_states(np.array([state], np.uint8), np.array([fired]))[0] == after


def test_every_transition():
    for state in range(16):
        up, down = updated_states(np.array([state, state], np.uint8), np.array([True, False]))
        assert (up, down) == (min(15, state + 4), max(0, state - 1))


def test_initial_states_follow_the_published_ends_and_rise_between():
    ends = initial_states(np.array([0.0, 0.019, 0.02, 0.90, 0.901, 1.0]))
    assert ends.tolist() == [0, 0, 1, 14, 15, 15]
    assert (np.diff(initial_states(np.linspace(0, 1, 1001)).astype(int)) >= 0).all()
    assert set(initial_states(np.linspace(0, 1, 1001)).tolist()) == set(range(16))


@pytest.mark.parametrize("fired", [0, 1, 2])
def test_rule_is_exact_for_every_state(fired):
    parents = np.tile([[0, 1]], (16, 1))
    previous = np.zeros(16, bool)
    previous[:fired] = True
    predicted = StateTable().decide(view(range(16), previous, parents))
    assert predicted.tolist() == [state + 6 * fired > 15 for state in range(16)]
    if fired == 0:
        assert not predicted.any()


def test_first_layer_counts_one_firing_and_so_equals_the_token_wise_rule():
    first = view(range(16), previous=None, layer=0)
    assert StateTable().decide(first).tolist() == [state >= 10 for state in range(16)]
    assert np.array_equal(StateTable().decide(first), StateTable("token").decide(first))


def test_layer_wise_rule_needs_one_of_two():
    previous = np.array([True, False, False])
    parents = [[0, 1], [1, 2], [2, 0]]
    assert StateTable("layer").decide(view([15, 15, 0], previous, parents)).tolist() == [True, False, True]


def test_oracle_knows_and_says_when_it_does_not():
    truth = np.array([True, False])
    assert OraclePredictor().decide(view([0, 0], truth=truth)).tolist() == [True, False]
    with pytest.raises(ConfigError, match=r"view\.truth"):
        OraclePredictor().decide(view([0, 0]))


def test_random_predictor_is_repeatable_and_of_the_asked_density():
    policy, one = RandomPredictor(0.3, seed=4), view([0] * 20_000)
    assert np.array_equal(policy.decide(one), policy.decide(one))
    assert not np.array_equal(policy.decide(one), policy.decide(view([0] * 20_000, layer=2)))
    assert policy.decide(one).mean() == pytest.approx(0.3, abs=0.02)


def test_tracker_follows_a_unit_to_hot_and_back():
    tracker = StateTracker()
    tracker.start({"mlp": np.array([[0.05, 0.95]])})
    assert tracker.states("mlp").tolist() == [[1, 15]]
    for _ in range(3):
        tracker.observe({"mlp": np.array([[True, False]])})
    assert tracker.states("mlp").tolist() == [[13, 12]]
    assert tracker.hot("mlp").tolist() == [[True, True]]
    tracker.observe({"mlp": np.array([[False, False]])})
    tracker.observe({"mlp": np.array([[False, False]])})
    assert tracker.hot("mlp").tolist() == [[True, False]]
    with pytest.raises(ValueError, match="read-only"):
        tracker.states("mlp")[0, 0] = 3
    with pytest.raises(ConfigError, match="hot_above"):
        StateTracker(hot_above=16)


def test_hot_set_is_split_at_a_firing_probability_of_a_fifth():
    rng = np.random.default_rng(0)
    p = np.repeat([0.15, 0.25], 500)
    states = np.full(1000, 8, np.uint8)
    for _ in range(400):
        states = updated_states(states, rng.random(1000) < p)
    assert states[:500].mean() < 7.5 < states[500:].mean()


def test_drift_counts_units_that_cooled_once():
    drift = HotDrift(np.array([True, True, True, True, False]))
    drift.observe(np.array([False, True, True, True, True]))
    drift.observe(np.array([True, True, True, False, False]))
    assert drift.share == 0.5
    assert math.isnan(HotDrift(np.zeros(3, bool)).share)


def test_scores_add_and_report_what_predicting_nothing_would_get():
    one = score(np.array([True, True, False, False]), np.array([True, False, True, False]))
    assert one == PredictionScore(1, 1, 1, 1)
    total = one + score(np.zeros(6, bool), np.zeros(6, bool))
    assert (total.total, total.accuracy, total.accuracy_of_nothing) == (10, 0.8, 0.8)
    assert (total.precision, total.recall) == (0.5, 0.5)
    assert math.isnan(score(np.zeros(2, bool), np.zeros(2, bool)).precision)


def test_table_sizes():
    units = 80 * (8192 + 28672)
    assert table_bytes(units) == pytest.approx(1.47e6, rel=0.01)  # LLaMA2-70B and OPT-66B alike
    assert correlation_table_bytes(units, 28672) == 8 * table_bytes(units)
    assert table_bytes(32 * (4096 + 11008)) == pytest.approx(232 * 1024, rel=0.03)  # the paper's 232 KB
