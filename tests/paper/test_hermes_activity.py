"""Hermes (HPCA'25) and PowerInfer (SOSP'24): activity, remapping, predictor, partition."""

import numpy as np
import pytest

from hetmem import catalog
from hetmem.model.activation import GeneratedActivity, NeuronBlock, activation_model, count_fired
from hetmem.model.bits import unpack
from hetmem.model.sparsity import block_sparsity, sparsity_anchors
from hetmem.policy.balance import NOWHERE, BalanceView, NoBalance, WindowRemap, dimm_loads
from hetmem.policy.partition import OfflinePartition, PartitionView, frequency_groups
from hetmem.policy.predictor import MODES, PredictionScore, PredictView, StateTable, StateTracker, score
from hetmem.study.hermes_activity import hot_drift, measured_anchors

SHAPES = {  # layers, QKV neurons, MLP neurons
    "opt-13b": (40, 5120, 20480),
    "opt-30b": (48, 7168, 28672),
    "opt-66b": (64, 9216, 36864),
    "llama2-13b": (40, 5120, 13824),
    "llama2-70b": (80, 8192, 28672),
    "falcon-40b": (60, 8192, 32768),
}
MLP_NEURON_BYTES = {"llama2-70b": 3 * 8192 * 2, "opt-66b": 2 * 9216 * 2}


def test_every_model_of_the_catalogue_is_covered():
    assert set(SHAPES) == set(catalog.ids("sparsity"))


@pytest.mark.slow
@pytest.mark.parametrize("block", ["qkv", "mlp"])
@pytest.mark.parametrize("model", SHAPES)
def test_anchors_of_full_models_are_met_together(model, block):
    sparsity = block_sparsity(sparsity_anchors(model), block)
    found = measured_anchors(model, block)
    assert found.adjacent == pytest.approx(sparsity.adjacent, abs=0.03)
    beyond_ten = [value for distance, value in found.similarity.items() if distance > 10]
    assert beyond_ten == pytest.approx([sparsity.distant] * len(beyond_ten), abs=0.05)
    assert found.density == pytest.approx(sparsity.density, rel=0.03)
    assert found.block_share == pytest.approx(sparsity.block_share, abs=0.03)
    assert found.model_share == pytest.approx(sparsity.model_share, abs=0.03)


@pytest.mark.slow
def test_drift_of_the_hot_set_is_less_than_printed_for_rates_stay():
    for model, low in (("opt-66b", 0.42), ("llama2-70b", 0.35)):
        drift = hot_drift(model)
        assert all(low < share < 0.52 for share in drift.values())


def remapping(balancer, model, run_of, moves_per_pair, n_layers=8, windows=16, n_dimms=8):
    """Return max/mean of the cold activations each window met, and the moves made after it.

    The start: neurons ranked by frequency, cut in runs of ``run_of``, the runs dealt to the DIMMs at random;
    the busiest 7 % of neurons are on the GPU. Layers run one after another, so max and mean are summed over
    layers.
    """
    n = SHAPES[model][2]
    built = activation_model(NeuronBlock(block_sparsity(sparsity_anchors(model), "mlp"), n_layers, n), seed=1)
    source, rng = GeneratedActivity((built,), 1), np.random.default_rng(1)
    where = np.empty((n_layers, n), dtype=np.int8)
    for layer, frequency in enumerate(built.frequency):
        runs = frequency_groups(frequency, run_of)
        where[layer, runs] = rng.permutation(np.arange(len(runs)) % n_dimms)[:, None]
    where[built.frequency > np.quantile(built.frequency, 0.93)] = NOWHERE
    met, moved = [], []
    for _ in range(windows):
        fired = count_fired(source, balancer.window)["mlp"]
        loads = np.array([dimm_loads(where[layer], fired[layer], n_dimms) for layer in range(n_layers)])
        met.append(loads.max(axis=1).sum() * n_dimms / loads.sum())
        moves = 0
        for layer in range(n_layers):
            view = BalanceView(n_dimms, where[layer], fired[layer], balancer.window, moves_per_pair)
            decision = balancer.decide(view)
            moves += len(decision.unit)
            where[layer] = decision.apply(where[layer])
        moved.append(moves / n_layers)
    return np.array(met), np.array(moved)


def test_remapping_levels_llama2_70b_within_ten_windows():
    per_gap = 73  # neurons over one link during one projection of 0.14 ms
    met, moved = remapping(WindowRemap(), "llama2-70b", 512, 5 * per_gap)
    still, _ = remapping(NoBalance(), "llama2-70b", 512, 0)
    assert 1.2 <= met[0] <= 2.5
    assert still.min() >= 1.2  # it does not level by itself
    assert met[9:].max() <= 1.10
    bytes_per_token = moved / 5 * MLP_NEURON_BYTES["llama2-70b"]  # of one layer, over all links
    assert bytes_per_token.max() <= 4 * per_gap * MLP_NEURON_BYTES["llama2-70b"]
    assert 0 < bytes_per_token[9:].max() < 0.6e6  # steady state: a twentieth of what the links could carry


def test_more_link_time_levels_sooner():
    met_gap, _ = remapping(WindowRemap(), "llama2-70b", 512, 73, windows=6)
    met_five, _ = remapping(WindowRemap(), "llama2-70b", 512, 365, windows=6)
    assert met_five[1:].sum() < met_gap[1:].sum()


@pytest.mark.slow
def test_opt_66b_stays_at_its_noise_floor():
    limited, _ = remapping(WindowRemap(), "opt-66b", 64, 5 * 123)
    unlimited, _ = remapping(WindowRemap(), "opt-66b", 64, None)
    assert limited[9:].mean() == pytest.approx(unlimited[9:].mean(), abs=0.02)
    assert 1.05 < unlimited[9:].mean() < 1.29


def predictor_scores(model, block, n_tokens=32, group=16):
    n_layers, *neurons = SHAPES[model]
    sparsity = block_sparsity(sparsity_anchors(model), block)
    built = activation_model(NeuronBlock(sparsity, n_layers, neurons[block == "mlp"], group), seed=1)
    source = GeneratedActivity((built,), 3)
    tracker, n = StateTracker(), built.block.n_units
    tracker.start({block: count_fired(source, 128)[block] / 128})
    scores = dict.fromkeys(MODES, PredictionScore())
    for token in range(n_tokens):
        fired = unpack(source.next_token()[block], n)
        for layer in range(n_layers):
            above = fired[layer - 1] if layer else None
            view = PredictView(block, layer, token, tracker.states(block)[layer], built.parents, above)
            for mode in MODES:
                scores[mode] += score(StateTable(mode).decide(view), fired[layer])
        tracker.observe({block: fired})
    return scores


@pytest.mark.parametrize("model", ["llama2-70b", "opt-66b"])
def test_predictor_beats_its_parts_and_predicting_nothing(model):
    scores = predictor_scores(model, "mlp")
    both, token, layer = (scores[mode] for mode in MODES)
    assert both.accuracy > max(token.accuracy, layer.accuracy, both.accuracy_of_nothing)
    assert both.precision > max(token.precision, layer.precision)
    assert both.recall > 0.75


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama2-70b", "opt-66b"])
def test_partition_of_full_model_is_solved_to_proven_optimality(model):
    n_layers, qkv, mlp = SHAPES[model]
    d_kv = {"llama2-70b": 1024, "opt-66b": 9216}[model]
    columns = []
    for block, n, size in (("qkv", qkv, (qkv + 2 * d_kv) * 2), ("mlp", mlp, MLP_NEURON_BYTES[model])):
        built = activation_model(NeuronBlock(block_sparsity(sparsity_anchors(model), block), n_layers, n), seed=1)
        for layer, frequency in enumerate(built.frequency):
            mean = frequency[frequency_groups(frequency, 64)].mean(axis=1)
            index = 2 * layer + (block == "mlp")
            columns.append((np.full(len(mean), index), mean.astype(float), np.full(len(mean), 64 * size)))
    index, frequency, size = (np.concatenate(part) for part in zip(*columns, strict=True))
    view = PartitionView(
        index, frequency, size, size / 936e9, size / 58e9 + size / 2 / 80e9, 1e-5, 8, int(8.5e9), 32 * 10**9
    )
    found = OfflinePartition().decide(view)
    assert len(index) == n_layers * (qkv + mlp) // 64
    assert found.status == "optimal"
    assert found.gap <= 1e-4
    assert found.bound_s * (1 - 1e-6) <= found.value_s <= min(found.greedy_s, found.bound_s * (1 + 1.01e-4))
    assert found.spread_s <= found.value_s * 1.05  # longest first loses little to the pool
