"""Every neuron cache keeps exact books on any sequence of active sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmem.policy.neuron_cache import (
    NEURON_CACHES,
    AdjacentTokenUpdate,
    AtomicLru,
    CacheView,
    PerAccessLru,
    replay,
)

N = 24
tokens = st.lists(st.lists(st.integers(0, N - 1), unique=True, max_size=N), min_size=1, max_size=12)


def arrays(sets):
    return [np.array(active, dtype=np.int64) for active in sets]


@pytest.mark.parametrize("cache", NEURON_CACHES.values(), ids=lambda c: c.name)
@given(sets=tokens, capacity=st.integers(0, N))
def test_books_balance(cache, sets, capacity):
    unit = cache(N, capacity)
    for active in arrays(sets):
        before = unit.resident(0)
        decision = unit.decide(CacheView(0, active))
        again = unit.decide(CacheView(0, active))
        unit.commit(decision)
        after = unit.resident(0)
        assert decision.hits.size + decision.misses == active.size
        accessed = np.concatenate([decision.hits, decision.loads, decision.bypasses])
        assert sorted(accessed.tolist()) == sorted(active.tolist())
        assert after.size == before.size + decision.loads.size - decision.evicts.size
        assert after.size <= capacity
        assert after.tolist() == decision.resident.tolist() == again.resident.tolist()
        assert set(decision.hits.tolist()) <= set(before.tolist())
        assert set(after.tolist()) <= set(before.tolist()) | set(active.tolist())


@given(sets=tokens)
def test_adjacent_token_update_is_the_intersection_with_the_token_before(sets):
    unit = AdjacentTokenUpdate(N, N)
    before: set[int] = set()
    for active in arrays(sets):
        decision = unit.decide(CacheView(0, active))
        assert set(decision.hits.tolist()) == before & set(active.tolist())
        unit.commit(decision)
        before = set(active.tolist())


@given(sets=tokens, small=st.integers(0, N), more=st.integers(0, N))
def test_more_room_never_costs_lru_hits(sets, small, more):
    # LRU has the inclusion property per access; with distinct accesses per token it shows in the totals.
    hits = [replay(PerAccessLru(N, min(N, c)), arrays(sets), warmup=0).hits for c in (small, small + more)]
    assert hits[0] <= hits[1]


@given(sets=tokens)
def test_with_room_for_all_neurons_lru_misses_each_once(sets):
    counts = replay(AtomicLru(N, N), arrays(sets), warmup=0)
    assert counts.loads == len({neuron for active in sets for neuron in active})
    assert counts.evicts == counts.bypasses == 0
