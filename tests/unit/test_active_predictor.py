"""Prediction errors: exact numbers, repeatable, worse further ahead."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmem.errors import ConfigError
from hetmem.policy.active_predictor import ActivePredictor, PredictView


def view(ahead, token=3, layer=7, n=1000, k=300):
    return PredictView(token, layer, ahead, n, np.arange(0, 2 * k, 2))


def test_published_accuracies_and_the_decline_beyond():
    predictor = ActivePredictor()
    assert [predictor.accuracy_at(a) for a in (0, 1, 2)] == [1.0, 1.0, 0.8]
    assert predictor.accuracy_at(4) == pytest.approx(0.8**3)


@given(ahead=st.integers(0, 6), k=st.integers(0, 300))
def test_a_prediction_is_as_large_as_the_set_and_wrong_by_the_accuracy(ahead, k):
    predictor = ActivePredictor()
    seen = view(ahead, k=k)
    found = predictor.decide(seen)
    assert found.predicted.size == k
    assert found.wrong.size == found.missed.size == k - round(predictor.accuracy_at(ahead) * k)
    assert np.union1d(found.correct, found.missed).tolist() == seen.active.tolist()
    assert not np.isin(found.wrong, seen.active).any()


def test_decisions_repeat_and_differ_by_token_layer_and_seed():
    predictor = ActivePredictor()
    base = predictor.decide(view(2)).predicted.tolist()
    assert predictor.decide(view(2)).predicted.tolist() == base
    others = (predictor.decide(view(2, token=4)), predictor.decide(view(2, layer=8)))
    for other in (*others, ActivePredictor(seed=1).decide(view(2))):
        assert other.predicted.tolist() != base


def test_wrong_neurons_are_bounded_by_the_inactive():
    dense = PredictView(0, 0, 5, 10, np.arange(9))
    found = ActivePredictor().decide(dense)
    assert found.wrong.tolist() == [9]
    assert found.missed.size == 1


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("accuracy", lambda: ActivePredictor(accuracy=())),
        ("accuracy", lambda: ActivePredictor(accuracy=(1.2,))),
        ("decline", lambda: ActivePredictor(decline=1.1)),
        ("ahead", lambda: ActivePredictor().accuracy_at(-1)),
    ],
)
def test_bad_configuration_is_refused_by_name(field, make):
    with pytest.raises(ConfigError, match=field):
        make()
