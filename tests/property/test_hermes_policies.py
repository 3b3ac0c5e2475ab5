"""What the Hermes policies hold for any input."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hetmem.policy.adjustment import AdjustmentView, HotColdAdjustment
from hetmem.policy.balance import (
    NOWHERE,
    BalanceView,
    OfflineOptimal,
    RoundRobin,
    WindowRemap,
    dimm_loads,
    imbalance,
)
from hetmem.policy.partition import GPU, OfflinePartition, PartitionView
from hetmem.policy.predictor import PredictView, RandomPredictor, StateTable


@st.composite
def balance_views(draw):
    n_dimms, n = draw(st.integers(1, 6)), draw(st.integers(0, 40))
    where = draw(st.lists(st.integers(NOWHERE, n_dimms - 1), min_size=n, max_size=n))
    fired = draw(st.lists(st.integers(0, draw(st.sampled_from([1, 5, 80]))), min_size=n, max_size=n))
    counts = np.array(fired, dtype=np.int64)
    budget = draw(st.none() | st.integers(0, 10))
    return BalanceView(n_dimms, np.array(where, dtype=np.int64), counts, 5, budget, counts)


def remap_unit_by_unit(view):
    """The corrected algorithm as the paper words it: one unit at a time."""
    loads = [0] * view.n_dimms
    for unit, place in enumerate(view.where.tolist()):
        if place != NOWHERE:
            loads[place] += int(view.activations[unit])
    order, moves = sorted(range(view.n_dimms), key=lambda j: -loads[j]), []
    for k in range(view.n_dimms // 2):
        heavy, light, done = order[k], order[-1 - k], 0
        held = [u for u, place in enumerate(view.where.tolist()) if place == heavy]
        for unit in sorted(held, key=lambda u: -view.activations[u]):
            if loads[heavy] <= loads[light] or (view.moves_per_pair is not None and done >= view.moves_per_pair):
                break
            if 0 < view.activations[unit] < loads[heavy] - loads[light]:
                loads[heavy] -= int(view.activations[unit])
                loads[light] += int(view.activations[unit])
                done += 1
                moves.append((unit, heavy, light))
    return moves


@given(balance_views())
def test_remap_equals_the_algorithm_unit_by_unit(view):
    assert WindowRemap().decide(view).moves == remap_unit_by_unit(view)


@given(balance_views())
def test_remap_never_raises_the_maximum_of_a_pair(view):
    before = dimm_loads(view.where, view.activations, view.n_dimms)
    decision = WindowRemap().decide(view)
    after = dimm_loads(decision.apply(view.where), view.activations, view.n_dimms)
    assert after.sum() == before.sum()
    for heavy, light in {move[1:] for move in decision.moves}:
        assert max(after[heavy], after[light]) < before[heavy]
        assert min(after[heavy], after[light]) > before[light]
    assert imbalance(after) <= imbalance(before)


@given(balance_views(), st.sampled_from([WindowRemap(), RoundRobin(), OfflineOptimal()]))
def test_balancers_move_each_unit_once_from_where_it_is_and_repeat_themselves(view, policy):
    where = view.where.copy()
    decision = policy.decide(view)
    assert np.array_equal(where, view.where)
    assert decision.moves == policy.decide(view).moves
    assert len(np.unique(decision.unit)) == len(decision.unit)
    assert np.array_equal(where[decision.unit], decision.source)
    assert (decision.source != NOWHERE).all()
    after = decision.apply(where)
    assert np.array_equal(after == NOWHERE, where == NOWHERE)
    if view.moves_per_pair is not None and not isinstance(policy, OfflineOptimal):
        links = [tuple(sorted(move[1:])) for move in decision.moves]
        assert all(links.count(link) <= view.moves_per_pair for link in links)


@given(st.data())
def test_adjustment_swaps_within_budget_and_never_for_a_colder_unit(data):
    n = data.draw(st.integers(0, 30))
    states = np.array(data.draw(st.lists(st.integers(0, 15), min_size=n, max_size=n)), dtype=np.uint8)
    resident = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool)
    view = AdjustmentView(states, resident, data.draw(st.integers(0, 5)), data.draw(st.integers(0, 10)))
    decision = HotColdAdjustment().decide(view)
    copied, evicted = decision.copied, decision.evicted
    assert len(copied) <= view.max_copies
    assert len(copied) - len(evicted) <= view.free_slots
    assert not resident[copied].any()
    assert resident[evicted].all()
    assert (states[copied] > 10).all()
    after = decision.apply(resident)
    assert after.sum() == resident.sum() + len(copied) - len(evicted)
    if len(evicted):
        assert states[copied].min() > states[evicted].max() or view.free_slots
        assert states[evicted].max() <= states[after & resident].min(initial=15)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 3, None]))
def test_layers_together_are_decided_as_each_alone(seed, most):
    rng = np.random.default_rng(seed)
    shape = n_layers, n = int(rng.integers(1, 5)), int(rng.integers(1, 150))
    states, fired, resident = (
        rng.integers(0, 16, shape, dtype=np.uint8),
        rng.random(shape) < 0.3,
        rng.random(shape) < 0.2,
    )
    above = np.concatenate([np.zeros_like(fired[:1]), fired[:-1]])
    for parents in (rng.integers(0, n, (n, 2)), rng.integers(0, n, (*shape, 2)), np.stack([np.arange(n)] * 2, axis=1)):
        for policy in (StateTable(), StateTable("layer"), RandomPredictor(0.4)):
            together = policy.decide(PredictView("mlp", 0, 1, states, parents, above))
            for k in range(n_layers):
                own, seen = parents if parents.ndim == 2 else parents[k], above[k] if k else None
                assert np.array_equal(policy.decide(PredictView("mlp", k, 1, states[k], own, seen)), together[k])
    free, copies = rng.integers(0, 3, n_layers), rng.integers(0, 9, n_layers)
    together = HotColdAdjustment().decide(AdjustmentView(states, resident, free, copies))
    alone = [
        HotColdAdjustment().decide(AdjustmentView(*view)) for view in zip(states, resident, free, copies, strict=True)
    ]
    for part in ("copied", "evicted"):
        assert getattr(together, part).tolist() == [
            unit + k * n for k, one in enumerate(alone) for unit in getattr(one, part).tolist()
        ]
    counts, where = rng.integers(0, 6, shape), rng.integers(NOWHERE, 5, shape)
    for policy in (WindowRemap(), RoundRobin(), OfflineOptimal()):
        together = policy.decide(BalanceView(5, where, counts, 5, most, counts))
        alone = [policy.decide(BalanceView(5, where[k], counts[k], 5, most, counts[k])) for k in range(n_layers)]
        assert together.moves == [(unit + k * n, *ends) for k, one in enumerate(alone) for unit, *ends in one.moves]


@st.composite
def partition_views(draw):
    n, n_blocks, n_dimms = draw(st.integers(3, 24)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    size = rng.integers(1, 9, n) * 100
    return PartitionView(
        np.sort(np.concatenate([np.arange(n_blocks), rng.integers(n_blocks, size=n - n_blocks)])),
        rng.random(n) * (rng.random(n) < 0.8),
        size,
        size / draw(st.sampled_from([0.3e9, 1e9, 9e9])),
        size / 1e9,
        draw(st.sampled_from([0.0, 1e-7])),
        n_dimms,
        int(size.sum() * draw(st.floats(0, 1.2))),
        int(size.sum() / n_dimms) + 900,
    )


@settings(max_examples=30, deadline=None)
@given(partition_views())
def test_partition_places_everything_once_within_capacity_and_beats_greedy(view):
    found = OfflinePartition().decide(view)
    assert found.value_s <= found.greedy_s
    assert found.spread_s >= found.value_s * (1 - 1e-12)
    assert view.size_bytes[found.on_gpu].sum() <= view.gpu_bytes
    assert ((found.dimm >= 0) & (found.dimm < view.n_dimms)).all()
    assert (np.bincount(found.dimm, view.size_bytes, view.n_dimms) <= view.dimm_bytes).all()
    assert np.array_equal(found.places() == GPU, found.on_gpu)
