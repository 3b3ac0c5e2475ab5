"""The offline partition: who wins, the node limit, capacities, and refusals."""

import attrs
import numpy as np
import pytest

from hetmem.errors import CapacityError, ConfigError
from hetmem.policy.partition import (
    GPU,
    OfflinePartition,
    PartitionView,
    SolverError,
    frequency_groups,
    placed_value,
    pool_value,
    spread_over_dimms,
)


def instance(seed=0, n_blocks=4, per_block=20, gpu_share=0.3, n_dimms=4, gpu_speed=10.0):
    rng = np.random.default_rng(seed)
    n = n_blocks * per_block
    size = rng.integers(50, 150, n) * 1000
    return PartitionView(
        block=np.repeat(np.arange(n_blocks), per_block),
        frequency=rng.random(n) ** 3,
        size_bytes=size,
        gpu_s=size / (gpu_speed * 1e9),
        dimm_s=size / 1e9,
        sync_s=1e-5,
        n_dimms=n_dimms,
        gpu_bytes=int(size.sum() * gpu_share),
        dimm_bytes=int(size.sum() / n_dimms * 1.1),
    )


@pytest.mark.parametrize("gpu_speed", [0.5, 2.0, 10.0])
def test_milp_is_never_worse_than_greedy_and_says_who_won(gpu_speed):
    view = instance(gpu_speed=gpu_speed)
    found = OfflinePartition(relative_gap=1e-3).decide(view)
    assert found.value_s <= found.greedy_s
    assert found.value_s == pool_value(view, found.on_gpu)
    assert found.value_s >= found.bound_s * (1 - 1e-6)
    assert (found.method, found.status) == ("milp", "optimal")
    assert found.gap <= 1e-3
    assert view.size_bytes[found.on_gpu].sum() <= view.gpu_bytes
    greedy = OfflinePartition("greedy").decide(view)
    assert (greedy.method, greedy.value_s) == ("greedy", found.greedy_s)


def test_greedy_is_beaten_where_it_can_be():
    found = [OfflinePartition().decide(instance(seed, gpu_speed=0.5, n_dimms=2)) for seed in range(5)]
    assert any(one.value_s < one.greedy_s * (1 - 1e-3) for one in found)


def test_node_limit_is_honoured_and_the_value_repeats():
    view = instance(seed=3, per_block=25, gpu_speed=0.7)
    policy = OfflinePartition(node_limit=1, relative_gap=0.0)
    first, second = policy.decide(view), policy.decide(view)
    assert first.status == "node limit"
    assert first.gap > 0
    assert first.value_s == second.value_s
    assert first.value_s <= first.greedy_s
    assert first.value_s >= OfflinePartition(node_limit=200).decide(view).bound_s * (1 - 1e-6)


def test_times_of_microseconds_and_of_seconds_give_the_same_partition():
    view = instance(seed=5, gpu_speed=2.0)
    slow = attrs.evolve(view, gpu_s=view.gpu_s * 1e4, dimm_s=view.dimm_s * 1e4, sync_s=view.sync_s * 1e4)
    assert OfflinePartition().decide(slow).value_s == pytest.approx(
        OfflinePartition().decide(view).value_s * 1e4, rel=1e-3
    )


def test_every_group_has_one_place_and_every_dimm_room():
    view = instance(n_dimms=3)
    found = OfflinePartition().decide(view)
    places = found.places()
    assert set(places.tolist()) <= {GPU, 0, 1, 2}
    assert (found.dimm >= 0).all()  # the copy of a group on the GPU has a DIMM too
    held = np.bincount(found.dimm, view.size_bytes, 3)
    assert (held <= view.dimm_bytes).all()
    assert found.spread_s == placed_value(view, places) >= found.value_s


def test_longest_first_levels_each_block():
    view = attrs.evolve(instance(per_block=200, n_dimms=4), sync_s=0.0)
    dimm = spread_over_dimms(view, np.zeros(800, bool))
    assert placed_value(view, dimm) == pytest.approx(pool_value(view, np.zeros(800, bool)), rel=0.01)


def test_no_room_on_the_gpu_leaves_all_on_the_dimms():
    assert (OfflinePartition().decide(attrs.evolve(instance(), gpu_bytes=0)).places() != GPU).all()


def test_groups_are_of_like_frequency():
    frequency = np.random.default_rng(1).random(64)
    groups = frequency_groups(frequency, 16)
    assert sorted(groups.ravel().tolist()) == list(range(64))
    assert frequency[groups[0]].min() >= frequency[groups[1]].max()
    with pytest.raises(ConfigError, match="size: 10 does not divide 64"):
        frequency_groups(frequency, 10)


def test_bad_views_are_refused():
    view = instance()
    with pytest.raises(CapacityError, match="dimms"):
        attrs.evolve(view, dimm_bytes=1000)
    with pytest.raises(ConfigError, match="gpu_s: expected 80 groups, not 79"):
        attrs.evolve(view, gpu_s=view.gpu_s[1:])
    packed = attrs.evolve(view, size_bytes=np.full(80, 100_000), n_dimms=3, dimm_bytes=2_690_000)
    with pytest.raises(CapacityError, match="dimm: "):
        spread_over_dimms(packed, np.zeros(80, bool))  # 26 groups a DIMM make 78


def test_solver_error_names_its_status():
    assert str(SolverError(2, "infeasible")) == "partition: the solver ended with status 2: infeasible"
