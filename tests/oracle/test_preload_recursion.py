"""The preload recursion against its closed-form bound, and against the policy that it stands in for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmem.policy.layer_cache import fixed_layers
from hetmem.policy.preload import LayersAhead, PreloadView, slowdown_bound
from hetmem.testing.preload_oracle import preload_slowdown

L = 32


@given(
    rho=st.floats(0.1, 20),
    n_fixed=st.integers(0, L),
    window=st.integers(0, L - 1),
    mode=st.sampled_from(["contiguous", "interleaved"]),
)
def test_no_window_beats_the_bandwidth(rho, n_fixed, window, mode):
    slow = preload_slowdown(rho, L, fixed_layers(L, n_fixed, mode), window)
    assert slow >= slowdown_bound(rho, L, n_fixed) - 1e-9


def test_everything_fixed_costs_nothing_and_nothing_fixed_costs_the_ssd():
    assert preload_slowdown(20, L, range(L), 2) == 1
    assert preload_slowdown(4, L, (), 1) == pytest.approx(4, abs=1e-9)


def test_without_a_window_read_and_compute_are_in_series():
    assert preload_slowdown(2, L, (), 0) == 3


@pytest.mark.parametrize("window", [0, 1, 2, 5])
def test_the_policy_asks_for_every_position_once_and_in_time(window):
    asked = [p for now in range(50) for p in LayersAhead(window).decide(PreloadView(now))]
    assert asked == list(range(50 + window))
    for now in range(50):
        assert max(LayersAhead(window).decide(PreloadView(now))) == now + window


def test_a_negative_window_is_refused():
    with pytest.raises(ValueError, match="window"):
        LayersAhead(-1)
