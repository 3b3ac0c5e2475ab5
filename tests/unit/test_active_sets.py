"""Active sets: constant size, exact overlap, refusal of what cannot be, streams by layer."""

from itertools import islice

import numpy as np
import pytest

from hetmem.errors import ConfigError
from hetmem.model.active_sets import MarkovSwap, overlaps


def test_sets_are_sorted_distinct_and_of_constant_size():
    source = MarkovSwap(n_neurons=200, n_active=60)
    for active in islice(source.walk(seed=1), 30):
        assert active.size == np.unique(active).size == 60
        assert (np.diff(active) > 0).all()
        assert active[0] >= 0
        assert active[-1] < 200


def test_consecutive_sets_overlap_by_exactly_the_persistence():
    source = MarkovSwap(n_neurons=1000, n_active=300, persistence=0.73)
    shared = overlaps(list(islice(source.walk(seed=3), 20)))
    assert (shared == 219 / 300).all()
    assert source.overlap == pytest.approx(219 / 300)


def test_popular_neurons_join_more_often_and_uniform_ones_do_not():
    def joins(zipf):
        counts = np.zeros(100)
        before = None
        for active in islice(MarkovSwap(100, 10, persistence=0.5, zipf=zipf).walk(seed=2), 2000):
            if before is not None:
                counts[np.setdiff1d(active, before)] += 1
            before = active
        return counts

    skewed, even = joins(1.0), joins(0.0)
    assert skewed[:10].sum() > 3 * skewed[-10:].sum()
    assert even[:50].sum() == pytest.approx(even[50:].sum(), rel=0.05)


def test_a_layer_does_not_shift_the_draws_of_another():
    source = MarkovSwap(100, 20)
    alone = [a.tolist() for a in islice(source.walk(seed=5, layer=3), 4)]
    for layer in range(3):
        next(source.walk(seed=5, layer=layer))
    assert [a.tolist() for a in islice(source.walk(seed=5, layer=3), 4)] == alone
    assert [a.tolist() for a in islice(source.walk(seed=5, layer=2), 4)] != alone


def test_a_dense_layer_never_changes():
    first, second = islice(MarkovSwap(8, 8, persistence=1.0).walk(seed=0), 2)
    assert first.tolist() == second.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("n_active", {"n_neurons": 10, "n_active": 0}),
        ("n_active", {"n_neurons": 10, "n_active": 11}),
        ("persistence", {"n_neurons": 10, "n_active": 5, "persistence": 1.1}),
        ("persistence", {"n_neurons": 10, "n_active": 9, "persistence": 0.5}),
        ("zipf", {"n_neurons": 10, "n_active": 5, "zipf": -1.0}),
    ],
)
def test_what_cannot_be_is_refused_by_name(field, arguments):
    with pytest.raises(ConfigError, match=field):
        MarkovSwap(**arguments)


def test_overlap_of_empty_sets_is_zero():
    empty = np.array([], dtype=np.int64)
    assert overlaps([empty, empty]).tolist() == [0.0]
