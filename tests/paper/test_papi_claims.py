"""PAPI's published claims against the closed forms.

Lengths are assumed: lognormal with mean 220 and sigma 0.8 out, 40 in.
"""

from statistics import mean

import pytest

from hetmem import rng
from hetmem.system import papi_law as law
from hetmem.system.decoder_shape import DecoderShape
from hetmem.workload.speculation import Geometric, lognormal_lengths, static_batch

SHAPES = {
    "llama-65b": DecoderShape(80, 8192, 64, 64, 128, 22016, True, 9),
    "gpt3-66b": DecoderShape(64, 9216, 72, 72, 128, 4 * 9216, False, 1),
    "gpt3-175b": DecoderShape(96, 12288, 96, 96, 128, 4 * 12288, False, 8),
}
POINTS = [(batch, tlp) for batch in (4, 16, 64) for tlp in (1, 2, 4)]
BASELINES = ("a100-attacc", "a100-hbm-pim", "attacc-only")


@pytest.mark.parametrize(
    ("system", "limit", "alpha"),
    [("papi", True, 28), ("papi", False, 56), ("attacc-only", True, 10), ("attacc-only", False, 18)],
)
@pytest.mark.parametrize("model", SHAPES)
def test_thresholds_of_the_flat_law(system, limit, alpha, model):
    found = law.calibrated(law.papi_machine(system, power_limit=limit, fc_law="flat"), SHAPES[model])
    assert (found.alpha, found.crossings, found.holes) == (alpha, 1, ())


@pytest.mark.parametrize(
    ("model", "limited", "unlimited", "holes"),
    [("gpt3-175b", 36, 64, ()), ("gpt3-66b", 32, 64, ()), ("llama-65b", 52, 68, ((37, 48),))],
)
def test_thresholds_of_the_tile_law(model, limited, unlimited, holes):
    found = law.calibrated(law.papi_machine("papi"), SHAPES[model])
    assert (found.alpha, found.holes) == (limited, holes)
    assert law.calibrated(law.papi_machine("papi", power_limit=False), SHAPES[model]).alpha == unlimited
    assert 11 <= law.calibrated(law.papi_machine("attacc-only"), SHAPES[model]).alpha <= 13


def compare(seeds, **options):
    """Return {(baseline, model, batch, tlp): [(time, energy) ratios over PAPI, one a seed]}."""
    machines = {name: law.papi_machine(name, **options) for name in ("papi", *BASELINES)}
    found = {}
    for seed in seeds:
        for batch, tlp in POINTS:
            outputs = lognormal_lengths(220, 0.8, batch, rng.stream(seed, f"papi.lengths.{batch}"))
            steps = static_batch([40] * batch, outputs, tlp)
            for model, shape in SHAPES.items():
                runs = {name: law.batch_cost(one, shape, steps, 40, batch) for name, one in machines.items()}
                ours = runs.pop("papi")
                for name, run in runs.items():
                    ratio = (run.time_s / ours.time_s, run.energy.total / ours.energy.total)
                    found.setdefault((name, model, batch, tlp), []).append(ratio)
    return found


def mean_of_27(found, baseline, which):
    cells = [mean(ratio[which] for ratio in ratios) for key, ratios in found.items() if key[0] == baseline]
    assert len(cells) == 27
    return mean(cells)


def check(found):
    assert 1.6 <= mean_of_27(found, "a100-attacc", 0) <= 2.0
    assert 2.8 <= mean_of_27(found, "a100-attacc", 1) <= 4.0
    slower = mean_of_27(found, "a100-hbm-pim", 0) / mean_of_27(found, "a100-attacc", 0)
    assert 1.0 < slower < 1.02  # published 1.9 / 1.8: array time alone does not give it
    at = {key: mean(ratio[0] for ratio in ratios) for key, ratios in found.items()}
    for model in SHAPES:
        assert at["attacc-only", model, 4, 1] < at["a100-attacc", model, 4, 1]
        for batch, tlp in POINTS:
            if batch * tlp >= 64:
                assert at["attacc-only", model, batch, tlp] > at["a100-attacc", model, batch, tlp]
            assert min(at[name, model, batch, tlp] for name in BASELINES) > 0.99
        for tlp in (1, 2, 4):
            gains = [at["a100-attacc", model, batch, tlp] for batch in (4, 16, 64)]
            assert gains == sorted(gains, reverse=True)
        for batch in (4, 16, 64):
            gains = [at["a100-attacc", model, batch, tlp] for tlp in (1, 2, 4)]
            assert gains == sorted(gains, reverse=True)


def test_papi_over_its_baselines():
    check(compare(range(1)))


@pytest.mark.slow
def test_papi_over_its_baselines_over_ten_seeds():
    found = compare(range(10))
    check(found)
    # Published 11.1: does not follow from the published parameters, and nothing is tuned towards it.
    assert 1.5 <= mean_of_27(found, "attacc-only", 0) <= 5.0


def test_without_decay_the_gain_shrinks():
    shape, outputs = SHAPES["llama-65b"], lognormal_lengths(220, 0.8, 64, rng.stream(0, "papi.lengths.64"))
    gains = []
    for lengths in (outputs, (round(mean(outputs)),) * 64):
        steps = static_batch([40] * 64, lengths)
        ours, base = (
            law.batch_cost(law.papi_machine(name), shape, steps, 40, 64).time_s for name in ("papi", "a100-attacc")
        )
        gains.append(base / ours)
    assert gains[0] > 1.3
    assert gains[1] < 1.05


def test_fc_of_a_decaying_batch_is_2_9_times_faster():
    steps = static_batch([40] * 4, lognormal_lengths(220, 0.8, 4, rng.stream(0, "papi.lengths.4")), 4)
    four, one = (
        law.batch_cost(law.papi_machine(name), SHAPES["llama-65b"], steps, 40, 4).decode.fc_s
        for name in ("papi-pim-only", "attacc-only")
    )
    assert one / four == pytest.approx(2.9, rel=0.15)


@pytest.mark.parametrize("context", [150, 260, 480, 500])
@pytest.mark.parametrize("limit", [True, False])
def test_attention_on_half_the_units_is_1_7_times_slower(context, limit):
    half, full = (
        law.attention_s(law.papi_machine(name, power_limit=limit), SHAPES["llama-65b"], [context] * 4, 4)
        for name in ("papi", "attacc-only")
    )
    assert half / full == pytest.approx(1.7, rel=0.15)


def test_fair_acceptance_costs_steps():
    law_ = Geometric.of_method("vicuna-7b", "sps")
    outputs = (100,) * 4
    all_kept = static_batch([40] * 4, outputs, 4)
    some_kept = static_batch([40] * 4, outputs, 4, law_, rng.stream(0, "papi.acceptance"))
    machine, shape = law.papi_machine("papi"), SHAPES["llama-65b"]
    slow, fast = (law.batch_cost(machine, shape, steps, 40, 4).time_s for steps in (some_kept, all_kept))
    assert slow > 1.3 * fast


def test_acceptance_catalogue_equals_the_leader_board(shared_data):
    import pandas as pd

    table = pd.read_csv(shared_data("models/specbench_acceptance.csv"))
    table = table[table["device"].str.contains("A100")]
    assert len(table) == 31
    for row in table.itertuples():
        target = row.model.lower().removesuffix("-v1.3")
        method = row.method.lower().replace("[", "-").removesuffix("]")
        law_ = Geometric.of_method(target, method)
        assert 1 / (1 - law_.probability) == pytest.approx(row.mean_accepted_tokens)
