"""Fixed layers and the FIFO ring."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmem.errors import ConfigError
from hetmem.policy.layer_cache import LayerCache, LayerView, fixed_layers


@given(n_layers=st.integers(1, 96), data=st.data(), mode=st.sampled_from(["contiguous", "interleaved"]))
def test_exactly_n_distinct_layers_are_fixed(n_layers, data, mode):
    n_fixed = data.draw(st.integers(0, n_layers))
    layers = fixed_layers(n_layers, n_fixed, mode)
    assert len(layers) == n_fixed
    assert list(layers) == sorted(set(layers))
    assert all(0 <= layer < n_layers for layer in layers)


@given(n_layers=st.integers(1, 96), data=st.data())
def test_interleaved_layers_are_evenly_spread_and_start_with_the_first(n_layers, data):
    n_fixed = data.draw(st.integers(1, n_layers))
    layers = fixed_layers(n_layers, n_fixed, "interleaved")
    assert layers[0] == 0
    gaps = [b - a for a, b in zip(layers, (*layers[1:], n_layers), strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_contiguous_layers_are_the_first():
    assert fixed_layers(8, 3, "contiguous") == (0, 1, 2)
    assert fixed_layers(8, 4, "interleaved") == (0, 2, 4, 6)


def test_the_ring_overwrites_what_came_first_and_never_a_fixed_layer():
    cache = LayerCache(n_layers=6, n_fixed=2, ring_slots=2)
    for wanted in ((0, 1), (2, 3)):
        cache.commit(cache.decide(LayerView(wanted)))
    decision = cache.decide(LayerView((2, 4, 0)))
    assert (decision.hits, decision.loads, decision.evicts, decision.ring) == ((2, 0), (4,), (2,), (3, 4))


def test_a_cycle_longer_than_the_ring_never_hits():
    cache = LayerCache(n_layers=8, n_fixed=0, ring_slots=4)
    for _ in range(3):
        for layer in range(8):
            decision = cache.decide(LayerView((layer,)))
            assert decision.loads == (layer,)
            cache.commit(decision)


def test_a_ring_for_all_the_rest_reads_each_layer_once():
    cache = LayerCache(n_layers=8, n_fixed=3, ring_slots=5, mode="interleaved")
    loads = []
    for _ in range(3):
        decision = cache.decide(LayerView(tuple(range(8))))
        assert decision == cache.decide(LayerView(tuple(range(8))))
        cache.commit(decision)
        loads.append(len(decision.loads))
    assert loads == [5, 0, 0]


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("n_fixed", lambda: fixed_layers(4, 5, "contiguous")),
        ("mode", lambda: fixed_layers(4, 2, "random")),
        ("ring_slots", lambda: LayerCache(4, 2, 0)),
        ("ring_slots", lambda: LayerCache(4, 4, -1)),
        ("wanted", lambda: LayerCache(4, 4, 0).decide(LayerView((4,)))),
    ],
)
def test_what_cannot_be_is_refused_by_name(field, make):
    with pytest.raises(ConfigError, match=field):
        make()
