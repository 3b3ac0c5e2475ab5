"""Arrival processes: the moments of the gaps, the seed, and what is refused."""

import numpy as np
import pytest

from hetmem.errors import ConfigError
from hetmem.units import PS_PER_S
from hetmem.workload import arrival_times_ps, fixed


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_gaps_have_the_mean_and_the_coefficient_of_variation_asked_for(cv):
    gaps_s = np.diff(arrival_times_ps(200_001, 8.0, seed=3, cv=cv)) / PS_PER_S
    assert gaps_s.mean() == pytest.approx(1 / 8, rel=0.02)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.02)


def test_a_poisson_process_counts_with_variance_equal_to_its_mean():
    times_s = arrival_times_ps(100_000, 20.0, seed=5) / PS_PER_S
    counts = np.bincount(times_s.astype(int))[:-1]
    assert counts.mean() == pytest.approx(20.0, rel=0.02)
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.08)
    gaps_s = np.diff(times_s)
    assert np.mean(gaps_s > 2 / 20) == pytest.approx(np.exp(-2), abs=0.005)  # the tail of an exponential


def test_no_variation_is_a_metronome():
    assert arrival_times_ps(3, 4.0, seed=0, cv=0).tolist() == [
        PS_PER_S // 4,
        PS_PER_S // 2,
        3 * PS_PER_S // 4,
    ]


def test_the_seed_decides_and_longer_draws_begin_with_shorter_ones():
    short, long = arrival_times_ps(10, 2.0, seed=1), arrival_times_ps(100, 2.0, seed=1)
    assert short.tolist() == long[:10].tolist()
    assert arrival_times_ps(10, 2.0, seed=2).tolist() != short.tolist()
    # twice the rate: the same stream in half the time, up to the rounding of each gap
    assert np.abs(2 * arrival_times_ps(10, 4.0, seed=1) - short).max() <= 20


@pytest.mark.parametrize("rate", [0, -1, -0.5, float("nan"), float("inf"), True, "4"])
def test_a_rate_that_is_not_above_zero_names_its_field(rate):
    message = r"^rate: expected a number of requests per second above zero, not "
    with pytest.raises(ConfigError, match=message):
        arrival_times_ps(3, rate, seed=0)
    with pytest.raises(ConfigError, match=message):
        fixed(1, 1, 1).requests(max_context=None, rate=rate, seed=0)


@pytest.mark.parametrize("cv", [-0.1, float("nan"), float("inf"), "1"])
def test_a_negative_variation_names_its_field(cv):
    with pytest.raises(ConfigError, match=r"^cv: "):
        arrival_times_ps(3, 1.0, seed=0, cv=cv)


def test_a_rate_that_outlasts_the_clock_is_refused():
    with pytest.raises(ConfigError, match=r"^rate: 3 requests at 1e-09 per second take longer than"):
        arrival_times_ps(3, 1e-9, seed=0)


def test_a_workload_with_a_rate_arrives_over_time_and_without_one_at_the_start():
    batch = fixed(1, 1, 5)
    assert batch.requests(max_context=None, seed=4).arrival_ps.tolist() == [0] * 5
    spread = batch.requests(max_context=None, rate=2.0, cv=2.0, seed=4)
    assert spread.arrival_ps.tolist() == arrival_times_ps(5, 2.0, seed=4, cv=2.0).tolist()
