"""M2Cache beside the simulator: the ablation, the limits, the stalls and the carbon; all rows in the slow tier."""

import pytest

from hetmem.policy.preload import slowdown_bound
from hetmem.study import reproduce_m2cache as paper
from hetmem.study.preload_stall import simulated_slowdown
from hetmem.study.reproduce import reproduce

LAYERS = 32
TABLE = {  # rho: slow-down at a fixed fraction of 0, 0.25, 0.5, 0.75, 0.9 with windows 2 and 8
    2: ((2.00, 2.00), (1.72, 1.53), (1.47, 1.28), (1.22, 1.03), (1.09, 1.00)),
    4: ((4.00, 4.00), (3.22, 3.03), (2.47, 2.28), (1.72, 1.53), (1.34, 1.16)),
    10: ((10.0, 10.0), (7.72, 7.53), (5.47, 5.28), (3.22, 3.03), (2.09, 1.91)),
    20: ((20.0, 20.0), (15.2, 15.0), (10.5, 10.3), (5.72, 5.53), (3.34, 3.16)),
}
FRACTIONS = (0, 0.25, 0.5, 0.75, 0.9)


def test_ablation_and_limits():
    rows = {row.quantity: row for row in paper._ablation_rows()}
    assert rows["ablation.base.tokens_per_s"].verdict == "match"
    assert rows["ablation.mp.tokens_per_s"].verdict == "calibrated"
    assert rows["ablation.cache.tokens_per_s"].verdict == "calibrated"
    assert rows["limit.hit-1.tokens_per_s"].as_published == pytest.approx(9.49, rel=0.02)
    assert rows["limit.hit-0.tokens_per_s"].as_published == pytest.approx(3.14, rel=0.02)


def test_speedup_grows_with_the_output():
    short, long = (paper._speedup("llama2-7b", "as-published", output) for output in (64, 128))
    assert short == pytest.approx(10.1, rel=0.05)
    assert long == pytest.approx(10.3, rel=0.05)
    assert long > short


def test_preloading_missing_neurons_takes_about_two_layer_times():
    assert paper._preload_row().as_published == pytest.approx(1.9, abs=0.1)


def stalls(rho, fraction, window, mode):
    return simulated_slowdown(rho, LAYERS, int(LAYERS * fraction), window, mode)


@pytest.mark.parametrize(("rho", "fraction", "window"), [(2, 0.5, 2), (4, 0.75, 4), (10, 0.9, 8)])
def test_interleaved_fixed_layers_reach_the_bound_in_the_simulator(rho, fraction, window):
    bound = slowdown_bound(rho, LAYERS, int(LAYERS * fraction))
    slow = stalls(rho, fraction, window, "interleaved")
    assert slow >= bound * (1 - 1e-9)
    assert slow == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize(("rho", "fraction"), [(2, 0.5), (4, 0.75)])
@pytest.mark.parametrize("window", [1, 4, 8])
def test_contiguous_fixed_layers_stay_above_it(rho, fraction, window):
    assert stalls(rho, fraction, window, "contiguous") >= 1.15 * slowdown_bound(rho, LAYERS, int(LAYERS * fraction))


@pytest.mark.slow
@pytest.mark.parametrize("rho", TABLE)
def test_the_table_of_stalls(rho):
    for fraction, pair in zip(FRACTIONS, TABLE[rho], strict=True):
        for window, expected in zip((2, 8), pair, strict=True):
            slow = stalls(rho, fraction, window, "contiguous")
            assert slow == pytest.approx(expected, rel=0.02), (fraction, window)
            assert slow >= slowdown_bound(rho, LAYERS, int(LAYERS * fraction)) * (1 - 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("window", range(1, 9))
def test_no_window_up_to_eight_helps_contiguous_layers(window):
    for rho, fraction in ((2, 0.5), (4, 0.75)):
        assert stalls(rho, fraction, window, "contiguous") >= 1.15 * slowdown_bound(rho, LAYERS, int(32 * fraction))


@pytest.mark.slow
def test_carbon_ratio_is_the_speed_ratio():
    for row in paper._carbon_rows():
        if row.quantity.startswith("carbon-over-speed"):
            assert row.as_published == pytest.approx(1, rel=0.02)
            assert row.verdict == "match"
        if row.quantity == "ssd.power_saved_w":
            assert row.verdict == "match"


@pytest.mark.slow
def test_every_row_has_a_verdict_and_none_misses():
    rows = reproduce("m2cache")
    assert [row.quantity for row in rows if row.verdict == "miss"] == []
    assert all(row.note for row in rows)
    names = {row.quantity for row in rows}
    for wanted in (
        "zero.7b.tokens_per_s", "zero.70b.tokens_per_s", "speedup.7b", "speedup.13b", "speedup.40b",
        "speedup.7b.out64", "speedup.7b.out128", "speedup.7b.out512", "hit.atu.1", "hit.lru.1.25",
        "hit.lru-per-access.1", "hit.sliding-window.1.2", "stall.2.0.5.2.contiguous", "stall.10.0.9.8.interleaved",
        "carbon-over-speed.mp", "carbon-over-speed.cache",
    ):  # fmt: skip
        assert wanted in names
    large = [row.as_published for row in rows if row.quantity.startswith("m2cache.70b")]
    assert max(large) / min(large) > 10  # a range, not a number
