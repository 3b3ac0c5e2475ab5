"""Figures about M2Cache that need no simulator: cache policies, preload stalls, storage layouts."""

from functools import cache as memoize
from itertools import islice

import numpy as np
import pytest

from hetmem.model.active_sets import MarkovSwap, overlaps
from hetmem.policy.layer_cache import fixed_layers
from hetmem.policy.neuron_cache import AdjacentTokenUpdate, AtomicLru, PerAccessLru, SlidingWindow, replay
from hetmem.policy.precision_split import PrecisionSplit, stored_ratio
from hetmem.policy.preload import slowdown_bound
from hetmem.testing.preload_oracle import preload_slowdown

N = 11008  # neurons of a LLaMA-2-7B layer
DENSITIES = (0.1, 0.3)


@memoize
def sets(density, tokens=200):
    source = MarkovSwap(N, round(density * N))
    return tuple(islice(source.walk(seed=0), tokens))


def slots(density, times):
    return round(times * round(density * N))


@pytest.mark.parametrize("density", [*DENSITIES, 0.7])
def test_adjacent_token_update_hits_the_mean_overlap_exactly(density):
    counts = replay(AdjacentTokenUpdate(N, slots(density, 1)), sets(density))
    assert counts.hit_ratio == pytest.approx(np.mean(overlaps(list(sets(density)))), abs=1e-12)
    assert counts.hit_ratio == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize("density", DENSITIES)
def test_atomic_lru_of_one_set_is_adjacent_token_update(density):
    atu, lru = (replay(c(N, slots(density, 1)), sets(density)) for c in (AdjacentTokenUpdate, AtomicLru))
    assert lru == atu


@pytest.mark.parametrize(
    ("density", "times", "expected"),
    [
        *((0.1, times, hit) for times, hit in ((1.25, 0.82), (1.5, 0.83), (2, 0.85), (3, 0.88))),
        *((0.3, times, hit) for times, hit in ((1.25, 0.83), (1.5, 0.86), (2, 0.91), (3, 0.97))),
    ],
)
def test_atomic_lru_with_more_room(density, times, expected):
    assert replay(AtomicLru(N, slots(density, times)), sets(density)).hit_ratio == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("density", DENSITIES)
def test_per_access_lru_collapses_in_index_order(density):
    counts = replay(PerAccessLru(N, slots(density, 1)), sets(density, 60))
    assert counts.hit_ratio <= 0.8 - 0.2


@pytest.mark.parametrize(
    ("density", "window", "expected"), [(0.1, 2, 0.82), (0.3, 2, 0.83), (0.1, 5, 0.84), (0.3, 5, 0.88)]
)
def test_sliding_window(density, window, expected):
    counts = replay(SlidingWindow(N, N, window=window), sets(density))
    assert counts.hit_ratio == pytest.approx(expected, abs=0.01)
    assert counts.peak_resident / slots(density, 1) == pytest.approx({2: 1.2, 5: 1.7}[window], abs=0.08)


STALLS = {  # rho: slow-down at (fixed fraction, window 2 / 8)
    2: ((2.00, 2.00), (1.72, 1.53), (1.47, 1.28), (1.22, 1.03), (1.09, 1.00)),
    4: ((4.00, 4.00), (3.22, 3.03), (2.47, 2.28), (1.72, 1.53), (1.34, 1.16)),
    10: ((10.0, 10.0), (7.72, 7.53), (5.47, 5.28), (3.22, 3.03), (2.09, 1.91)),
    20: ((20.0, 20.0), (15.2, 15.0), (10.5, 10.3), (5.72, 5.53), (3.34, 3.16)),
}


@pytest.mark.parametrize("rho", STALLS)
def test_contiguous_fixed_layers_leave_the_ssd_idle(rho):
    for fraction, expected in zip((0, 0.25, 0.5, 0.75, 0.9), STALLS[rho], strict=True):
        fixed = fixed_layers(32, int(32 * fraction), "contiguous")
        found = [preload_slowdown(rho, 32, fixed, window) for window in (2, 8)]
        assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("rho", "fraction", "window"), [(2, 0.5, 2), (4, 0.75, 4), (10, 0.9, 8)])
def test_interleaved_fixed_layers_reach_the_bound(rho, fraction, window):
    n_fixed = int(32 * fraction)
    slow = preload_slowdown(rho, 32, fixed_layers(32, n_fixed, "interleaved"), window)
    assert slow == pytest.approx(slowdown_bound(rho, 32, n_fixed), rel=0.01)


@pytest.mark.parametrize(("rho", "fraction"), [(2, 0.5), (4, 0.75)])
@pytest.mark.parametrize("window", range(1, 9))
def test_contiguous_stays_above_the_bound(rho, fraction, window):
    n_fixed = int(32 * fraction)
    slow = preload_slowdown(rho, 32, fixed_layers(32, n_fixed, "contiguous"), window)
    assert slow >= 1.15 * slowdown_bound(rho, 32, n_fixed)


def test_the_example_mix_halves_the_bytes_and_three_copies_take_seven_quarters():
    split = PrecisionSplit()
    assert split.mean_ratio == 0.5
    assert stored_ratio("multi_copy", split) == 1.75
    assert stored_ratio("static_mixed", split) == 0.5
