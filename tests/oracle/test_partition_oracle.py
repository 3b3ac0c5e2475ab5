"""The partition against the whole programme of the paper, and that against exhaustive search."""

import itertools

import attrs
import numpy as np
import pytest

from hetmem.policy.partition import GPU, OfflinePartition, PartitionView, full_partition, placed_value


def instance(seed, n, n_blocks, n_dimms):
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 5, n) * 1000
    return PartitionView(
        block=np.sort(np.concatenate([np.arange(n_blocks), rng.integers(n_blocks, size=n - n_blocks)])),
        frequency=rng.random(n),
        size_bytes=size,
        gpu_s=size / 3e9,
        dimm_s=size / 1e9,
        sync_s=2e-7,
        n_dimms=n_dimms,
        gpu_bytes=int(size.sum() * 0.4),
        dimm_bytes=int(size.sum()),
    )


@pytest.mark.parametrize("seed", range(6))
def test_full_programme_equals_exhaustive_search(seed):
    view = instance(seed, 6, 2, 2)
    best = min(
        placed_value(view, np.array(places))
        for places in itertools.product((GPU, 0, 1), repeat=6)
        if view.size_bytes[np.array(places) == GPU].sum() <= view.gpu_bytes
    )
    assert placed_value(view, full_partition(view)) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_pool_then_spread_is_near_the_full_programme(seed):
    view = instance(seed, 24, 2, 2)
    places = full_partition(view)
    assert view.size_bytes[places == GPU].sum() <= view.gpu_bytes
    best, ours = placed_value(view, places), OfflinePartition().decide(view)
    assert ours.value_s <= best * (1 + 1e-4)  # the pool is a relaxation
    assert best * (1 - 1e-6) <= ours.spread_s <= best * 1.12


def test_full_programme_respects_the_room_of_the_dimms():
    view = attrs.evolve(instance(1, 8, 2, 2), size_bytes=np.full(8, 1000), dimm_bytes=4000, gpu_bytes=0)
    assert np.bincount(full_partition(view), minlength=2).tolist() == [4, 4]
