"""The firing law: anchors met together in closed form, and anchors that exclude each other refused."""

import csv
import math

import attrs
import numpy as np
import pytest

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.model.rates import QUANTILES, SCALE, rate_table, rungs_of
from hetmem.model.sparsity import block_sparsity, fit_firing_law, neuron_share, sparsity_anchors

MODELS = catalog.ids("sparsity")


@pytest.mark.parametrize("block", ["qkv", "mlp"])
@pytest.mark.parametrize("model", MODELS)
def test_law_meets_shares_and_density_together(model, block):
    wanted = block_sparsity(sparsity_anchors(model), block)
    law = fit_firing_law(wanted, 48)
    frequencies = np.array([law.frequencies(layer, 4096) for layer in range(48)])
    assert frequencies.max() <= 1.0 + 1e-9
    assert (np.diff(frequencies, axis=1) <= 1e-12).all()
    assert frequencies.mean() == pytest.approx(wanted.density, abs=1e-6)
    assert frequencies.mean(axis=1) == pytest.approx(law.densities, abs=1e-6)
    shares = [neuron_share(layer, wanted.held) for layer in frequencies]
    assert np.median(shares) == pytest.approx(wanted.block_share, abs=0.002)
    assert neuron_share(frequencies, wanted.held) == pytest.approx(wanted.model_share, abs=0.002)


@pytest.mark.parametrize("model", MODELS)
def test_law_gives_the_similarity_of_distant_and_adjacent_tokens(model):
    wanted = block_sparsity(sparsity_anchors(model), "mlp")
    law = fit_firing_law(wanted, 48)
    p = np.array([law.frequencies(layer, 4096) for layer in range(48)])
    second_moment = p**2 + p * (1 - p) / (law.concentration + 1)
    distant = second_moment.sum() / p.sum()
    assert distant == pytest.approx(wanted.distant, abs=0.002)
    assert distant + law.persistence * (1 - distant) == pytest.approx(wanted.adjacent, abs=0.002)


def test_published_shares_and_similarities_are_the_catalogue_s(shared_data):
    with shared_data("models/sparsity_published.csv").open() as file:
        rows = {(r["model"], r["activation"], r["quantity"]): r["value"] for r in csv.DictReader(file)}
    share = "share of neurons giving 80% of activations "
    for published, model in (("OPT-30B", "opt-30b"), ("LLaMA2-70B-ReGLU", "llama2-70b")):
        anchors = sparsity_anchors(model)
        activation = "ReLU" if model == "opt-30b" else "ReGLU"
        assert anchors.mlp_held == 0.8
        within, whole = (
            rows[published, activation, share + "within one MLP block"],
            rows[published, activation, share + "across whole model"],
        )
        assert (anchors.mlp_block_share, anchors.mlp_model_share) == (float(within) / 100, float(whole) / 100)
    adjacent = "activated-set similarity of adjacent tokens"
    assert sparsity_anchors("falcon-40b").adjacent_similarity * 100 == float(rows["Falcon-40B", "ReLU", adjacent])
    drift = float(rows["LLaMA2-70B", "ReLU", "initial hot neurons whose activity varies during inference"])
    assert sparsity_anchors("llama2-70b").hot_drift * 100 == drift


def test_opt_s_first_layers_are_almost_silent_without_being_told():
    # PowerInfer: fewer than 1 % of neurons fire in each of the first 24 of OPT-30B's 48 layers
    law = fit_firing_law(block_sparsity(sparsity_anchors("opt-30b"), "mlp"), 48)
    assert sum(density < 0.01 for density in law.densities) >= 18


def test_layer_densities_replace_the_depth_law():
    sparsity = attrs.evolve(block_sparsity(sparsity_anchors("opt-30b"), "mlp"), layer_densities=(0.01, 0.05, 0.2))
    law = fit_firing_law(sparsity, 3)
    assert law.densities == (0.01, 0.05, 0.2)
    assert law.frequencies(1, 1000).mean() == pytest.approx(0.05)
    with pytest.raises(ConfigError, match=r"mlp\.layer_densities: expected 4"):
        fit_firing_law(sparsity, 4)


def test_calibrated_densities_are_feasible():
    for model, qkv, mlp in (("llama2-70b", 0.40, 0.15), ("opt-66b", 0.20, 0.01)):
        anchors = attrs.evolve(sparsity_anchors(model), qkv_density=qkv, mlp_density=mlp)
        for block in ("qkv", "mlp"):
            fit_firing_law(block_sparsity(anchors, block), 64)


def test_rates_known_well_enough_need_no_variation_between_sequences():
    law = fit_firing_law(attrs.evolve(block_sparsity(sparsity_anchors("llama2-13b"), "mlp"), distant=0.3), 40)
    assert math.isinf(law.concentration)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": 0.9, "block_share": 0.2, "model_share": 0.2}, r"mlp\.block_share: 0\.2 cannot be met"),
        ({"model_share": 0.5}, r"mlp\.model_share: 0\.5 is above the share of one block"),
        ({"model_share": 0.001}, r"mlp\.model_share: 0\.001 cannot be met"),
    ],
)
def test_anchors_that_exclude_each_other_are_refused(change, message):
    sparsity = attrs.evolve(block_sparsity(sparsity_anchors("opt-30b"), "mlp"), **change)
    with pytest.raises(ConfigError, match=message):
        fit_firing_law(sparsity, 48)


def test_adjacent_tokens_cannot_be_less_alike_than_distant_ones():
    with pytest.raises(ConfigError, match=r"mlp\.adjacent"):
        attrs.evolve(block_sparsity(sparsity_anchors("opt-30b"), "mlp"), adjacent=0.5)


def test_unknown_model_is_named():
    with pytest.raises(UnknownNameError, match="opt-66b"):
        sparsity_anchors("opt-666b")


@pytest.mark.parametrize("concentration", [0.85, 3.0, 14.0])
def test_rate_table_has_the_moments_of_beta(concentration):
    table = rate_table(concentration)
    p = np.array([0.005, 0.03, 0.2, 0.5, 0.9])
    rates = table.rates[rungs_of(p)] / SCALE
    assert rates.shape == (5, QUANTILES)
    assert rates.mean(axis=1) == pytest.approx(p, rel=0.02)
    exact = p**2 + p * (1 - p) / (concentration + 1)
    assert (rates**2).mean(axis=1) == pytest.approx(exact, rel=0.035)
    assert (np.diff(table.rates.astype(int), axis=1) >= 0).all()


def test_rate_table_agrees_with_scipy_quantiles():
    from scipy.special import betaincinv

    rates = rate_table(2.5).rates[rungs_of(np.array([0.25]))][0] / SCALE
    middle = (np.arange(QUANTILES) + 0.5) / QUANTILES
    assert rates == pytest.approx(betaincinv(2.5 * 0.25, 2.5 * 0.75, middle), abs=0.004)
