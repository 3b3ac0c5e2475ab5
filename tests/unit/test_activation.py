"""Synthetic activity: determinism, packing, and the anchors measured from what is generated."""

import attrs
import numpy as np
import pytest

from hetmem.errors import ConfigError
from hetmem.model.activation import (
    GeneratedActivity,
    NeuronBlock,
    activation_model,
    count_fired,
    next_batch,
)
from hetmem.model.activity_stats import followers, measure, similarity
from hetmem.model.bits import count_in, pack, union, unpack
from hetmem.model.sparsity import block_sparsity, sparsity_anchors


def mlp(model="llama2-70b", n_layers=8, n_neurons=1024, group=1, **changes):
    sparsity = attrs.evolve(block_sparsity(sparsity_anchors(model), "mlp"), **changes)
    return activation_model(NeuronBlock(sparsity, n_layers, n_neurons, group), seed=1)


def tokens(model, n, seed=1, sequence=0):
    source = GeneratedActivity((model,), seed, sequence)
    return np.stack([source.next_token()["mlp"] for _ in range(n)])


def test_same_seed_same_tokens_other_sequence_others():
    model = mlp()
    assert np.array_equal(tokens(model, 40), tokens(model, 40))
    assert not np.array_equal(tokens(model, 40), tokens(model, 40, sequence=1))
    assert not np.array_equal(tokens(model, 40), tokens(model, 40, seed=2))


def test_another_block_shifts_no_draw():
    model = mlp()
    qkv = activation_model(NeuronBlock(block_sparsity(sparsity_anchors("llama2-70b"), "qkv"), 8, 256), seed=1)
    source = GeneratedActivity((qkv, model), 1)
    together = np.stack([source.next_token()["mlp"] for _ in range(40)])
    assert np.array_equal(together, tokens(model, 40))


def test_tokens_are_read_only():
    source = GeneratedActivity((mlp(),), 1)
    with pytest.raises(ValueError, match="read-only"):
        source.next_token()["mlp"][0, 0] = 1


@pytest.mark.parametrize(("n_neurons", "group"), [(1024, 16), (300, 1), (130, 1), (2, 1), (13824, 64)])
def test_no_lane_beyond_the_last_unit_fires(n_neurons, group):
    model = mlp(n_neurons=n_neurons, group=group)
    words = tokens(model, 64)
    assert words.shape == (64, 8, model.block.n_words)
    all_lanes = unpack(words, words.shape[-1] * 64)
    assert not all_lanes[..., model.block.n_units :].any()
    assert all_lanes[..., : model.block.n_units].any()


def test_group_must_divide_the_neurons():
    with pytest.raises(ConfigError, match=r"mlp\.group: 64 does not divide 1000 neurons"):
        mlp(n_neurons=1000, group=64)


def test_pack_and_unpack_are_inverse():
    bits = np.random.default_rng(0).random((3, 128)) < 0.3
    assert np.array_equal(unpack(pack(bits), 128), bits)
    assert pack(bits)[1, 1] >> np.uint64(5) & np.uint64(1) == bits[1, 64 + 5]


def test_counts_are_those_of_the_tokens():
    model = mlp()
    expected = unpack(tokens(model, 37), 1024).sum(axis=0)
    assert np.array_equal(count_fired(GeneratedActivity((model,), 1), 37)["mlp"], expected)


def test_every_unit_fires_at_its_own_frequency():
    model = mlp(n_layers=4, n_neurons=512)
    fired = sum(count_fired(GeneratedActivity((model,), 1, s), 16)["mlp"].astype(int) for s in range(400))
    measured = fired / (400 * 16)
    # a unit's rate varies between sequences by p (1 - p) / (k + 1); four standard errors for 2048 units
    error = np.sqrt(model.frequency * (1 - model.frequency) / 400)
    assert (np.abs(measured - model.frequency) <= 4.5 * error + 0.01).all()


def test_anchors_are_met_together():
    model = mlp(n_layers=16, n_neurons=448)
    found = measure(model, seed=2, n_sequences=300, n_tokens=40)
    misses = found.misses(model.block.sparsity)
    assert abs(misses["adjacent"]) <= 0.03
    assert abs(misses["distant"]) <= 0.05
    assert abs(misses["block_share"]) <= 0.03
    assert abs(misses["model_share"]) <= 0.03
    assert abs(misses["density"]) <= 0.01
    beyond_ten = [value for distance, value in found.similarity.items() if distance > 10]
    assert max(beyond_ten) - min(beyond_ten) < 0.02  # flat


def test_without_rates_of_their_own_sequences_miss_the_similarity_of_distant_tokens():
    wide = mlp(n_layers=8, n_neurons=512, distant=0.30)  # what frequencies alone give, about 0.58
    assert 0.50 < measure(wide, 2, 20, 40).distant < 0.63


def test_linked_units_follow_the_layer_before():
    even = {"layer_densities": (0.18,) * 8}
    assert followers(tokens(mlp(link=1.0, follow=1.0, **even), 64)) > 0.98
    assert followers(tokens(mlp(**even), 64)) > 0.90
    # unlinked units fire together only as often as their frequencies make them: sum p^2 / sum p
    alone = mlp(link=0.0, **even)
    p = alone.frequency[0].astype(float)
    many = [followers(tokens(alone, 16, sequence=s)) for s in range(30)]
    assert np.mean(many) == pytest.approx((p**2).sum() / p.sum(), abs=0.02)


def test_siblings_tell_of_each_other_s_followers():
    model = mlp(layer_densities=(0.18,) * 8)
    fired = unpack(tokens(model, 128), 1024)
    sibling = model.parents[:, 1]
    assert not (sibling == np.arange(1024)).any()
    both = fired[:, 1:] & fired[:, :-1][..., sibling]
    frequencies_alone = (model.frequency**2).sum() / model.frequency.sum()  # 0.48
    assert both.sum() / fired[:, :-1].sum() > frequencies_alone + 0.2


def test_siblings_draw_the_same_bits_again_wherever_both_draw_anew():
    model = mlp(n_layers=60, layer_densities=(0.18,) * 60)
    fired = unpack(tokens(model, 64), 1024)
    both = fired & fired[..., model.parents[:, 1]]
    share = both.sum(axis=(0, 2)) / fired.sum(axis=(0, 2))
    assert share[:10].mean() == pytest.approx(0.886, abs=0.015)  # they part where one of them follows alone
    assert share[30:].mean() == pytest.approx(0.818, abs=0.02)  # and no further with depth


def test_a_unit_that_always_fires_does():
    model = mlp()
    always = model.frequency == 1
    assert always.sum() > 100
    assert unpack(tokens(model, 64), 1024)[:, always].mean() > 0.9995  # 255/256 without a mark for a rate of 1


def test_renewal_lets_the_similarity_fall_on():
    kept, renewed = mlp(layer_densities=(0.1,) * 8), mlp(layer_densities=(0.1,) * 8, renewal=0.02)
    assert similarity(tokens(kept, 256), 128) > similarity(tokens(renewed, 256), 128) + 0.05
    assert similarity(tokens(renewed, 256), 1) == pytest.approx(0.90, abs=0.03)


def test_a_batch_reads_the_union_and_computes_the_sum():
    model = mlp(n_layers=4, n_neurons=300)
    batch = next_batch([GeneratedActivity((model,), 1, sequence) for sequence in range(6)])["mlp"]
    bits = unpack(batch, 300)
    assert batch.shape == (6, 4, model.block.n_words)
    assert np.array_equal(unpack(union(batch), 300), bits.any(axis=0))
    where = np.random.default_rng(0).integers(3, size=(4, model.block.n_words * 64))
    masks = pack(where[None] == np.arange(3)[:, None, None])
    counts = count_in(batch, masks)
    assert counts.shape == (6, 3, 4)
    expected = [[(bits[:, layer] & (where[layer, :300] == j)).sum(axis=1) for layer in range(4)] for j in range(3)]
    assert np.array_equal(counts, np.array(expected).transpose(2, 0, 1))
    assert counts.sum() == bits.sum() > unpack(union(batch), 300).sum()
