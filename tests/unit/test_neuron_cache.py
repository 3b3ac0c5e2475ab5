"""Neuron caches on short sequences whose answer can be seen."""

import pickle

import numpy as np
import pytest

from hetmem.errors import ConfigError
from hetmem.policy.neuron_cache import (
    NEURON_CACHES,
    AdjacentTokenUpdate,
    AtomicLru,
    CacheView,
    LeastFrequentlyUsed,
    PerAccessLru,
    Replay,
    SlidingWindow,
    replay,
)


def ids(*neurons):
    return np.array(neurons, dtype=np.int64)


def run(cache, *sets, layer=0):
    decision = None
    for active in sets:
        decision = cache.decide(CacheView(layer, ids(*active)))
        cache.commit(decision)
    return decision


def test_adjacent_token_update_fetches_the_set_difference_into_the_vacated_slots():
    decision = run(AdjacentTokenUpdate(10, 3), (1, 2, 3), (2, 3, 4))
    assert (decision.hits.tolist(), decision.loads.tolist(), decision.evicts.tolist()) == ([2, 3], [4], [1])
    assert decision.resident.tolist() == [2, 3, 4]


def test_adjacent_token_update_forgets_what_the_last_token_did_not_use_even_with_room():
    assert run(AdjacentTokenUpdate(10, 8), (1, 2), (3,)).resident.tolist() == [3]


def test_what_exceeds_the_unit_is_used_without_a_slot():
    decision = run(AtomicLru(10, 2), (1, 2, 3))
    assert decision.loads.tolist() == [1, 2]
    assert decision.bypasses.tolist() == [3]
    assert decision.misses == 3
    assert decision.resident.tolist() == [1, 2]


def test_lru_evicts_the_token_longest_ago_and_of_one_token_the_lower_index():
    cache = AtomicLru(10, 4)
    assert run(cache, (5, 6), (1, 2), (3,)).evicts.tolist() == [5]
    assert cache.resident(0).tolist() == [1, 2, 3, 6]


def test_lru_never_evicts_what_the_token_uses():
    decision = run(AtomicLru(10, 3), (1, 2, 3), (1, 4, 5))
    assert decision.hits.tolist() == [1]
    assert decision.evicts.tolist() == [2, 3]


def test_lfu_keeps_the_frequent_over_the_recent():
    decision = run(LeastFrequentlyUsed(10, 2), (1,), (1,), (2,), (3,))
    assert decision.resident.tolist() == [1, 3]
    assert decision.evicts.tolist() == [2]


def test_lfu_remembers_uses_of_the_absent():
    # 4 is used three times but without a slot twice over; when back, it outlives 5.
    cache = LeastFrequentlyUsed(10, 1)
    run(cache, (4,), (4,), (5,), (4,))
    assert cache.resident(0).tolist() == [4]
    wide = LeastFrequentlyUsed(10, 2)
    assert run(wide, (4,), (4,), (5,), (6,)).resident.tolist() == [4, 6]


def test_sliding_window_holds_the_union_of_the_last_tokens():
    cache = SlidingWindow(10, 10, window=2)
    assert run(cache, (1, 2), (3,)).resident.tolist() == [1, 2, 3]
    assert run(cache, (4,)).resident.tolist() == [3, 4]
    assert run(cache, (5,)).evicts.tolist() == [3]


def test_sliding_window_drops_the_oldest_where_the_unit_is_smaller():
    assert run(SlidingWindow(10, 3, window=5), (1,), (2,), (3,), (4,)).resident.tolist() == [2, 3, 4]


def test_sliding_window_of_one_is_adjacent_token_update():
    rng = np.random.default_rng(0)
    window, atu = SlidingWindow(50, 20, window=1), AdjacentTokenUpdate(50, 20)
    for _ in range(30):
        active = np.sort(rng.permutation(50)[:15])
        for cache in (window, atu):
            cache.commit(cache.decide(CacheView(0, active)))
        assert window.resident(0).tolist() == atu.resident(0).tolist()


def test_per_access_lru_evicts_what_the_same_token_still_needs():
    cache = PerAccessLru(10, 3)
    run(cache, (1, 2, 3))
    decision = run(cache, (0, 1, 2))
    # 0 evicts 1, then 1 evicts 2, then 2 evicts 3: no hit, although two of three were there.
    assert decision.hits.size == 0
    assert decision.evicts.tolist() == [1, 2, 3]
    assert decision.resident.tolist() == [0, 1, 2]


def test_per_access_lru_depends_on_the_order_of_access():
    cache = PerAccessLru(10, 3)
    run(cache, (1, 2, 3))
    assert cache.decide(CacheView(0, ids(1, 2, 0))).hits.tolist() == [1, 2]


@pytest.mark.parametrize("cache", NEURON_CACHES.values(), ids=lambda c: c.name)
def test_without_slots_everything_is_fetched_and_nothing_kept(cache):
    decision = run(cache(10, 0), (1, 2), (1, 2))
    assert decision.hits.size == decision.loads.size == decision.resident.size == 0
    assert decision.bypasses.tolist() == [1, 2]


@pytest.mark.parametrize("cache", NEURON_CACHES.values(), ids=lambda c: c.name)
def test_layers_are_isolated_and_decisions_change_nothing(cache):
    unit = cache(10, 4)
    run(unit, (1, 2), layer=0)
    view = CacheView(1, ids(1, 2))
    first, second = unit.decide(view), unit.decide(view)
    assert first.hits.size == second.hits.size == 0
    assert unit.resident(1).size == 0
    assert unit.resident(0).tolist() == [1, 2]
    assert (unit.n_neurons, unit.capacity) == (10, 4)


@pytest.mark.parametrize("cache", NEURON_CACHES.values(), ids=lambda c: c.name)
def test_state_survives_pickling(cache):
    unit = cache(10, 4)
    run(unit, (1, 2, 3), (2, 3, 4))
    assert pickle.loads(pickle.dumps(unit)).resident(0).tolist() == unit.resident(0).tolist()


@pytest.mark.parametrize("active", [(0, 10), (-1, 2), (3, 3)])
def test_a_bad_view_is_refused(active):
    with pytest.raises(ConfigError, match="active"):
        AtomicLru(10, 4).decide(CacheView(0, ids(*active)))


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("n_neurons", lambda: AtomicLru(0, 1)),
        ("capacity", lambda: AtomicLru(10, -1)),
        ("window", lambda: SlidingWindow(10, 5, window=0)),
    ],
)
def test_bad_configuration_is_refused_by_name(field, make):
    with pytest.raises(ConfigError, match=field):
        make()


def test_replay_counts_after_the_warm_up():
    counts = replay(AdjacentTokenUpdate(10, 3), [ids(1, 2, 3), ids(2, 3, 4), ids(4, 5, 6)])
    assert counts == Replay(accesses=6, hits=3, loads=3, bypasses=0, evicts=3, peak_resident=3)
    assert counts.hit_ratio == 0.5
    assert replay(AtomicLru(10, 3), []).hit_ratio == 0.0
