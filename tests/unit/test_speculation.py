"""Speculative decoding: acceptance laws and where tokens go."""

from collections import Counter

import numpy as np
import pytest

from hetmem import rng
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.workload.speculation import (
    AllAccepted,
    Geometric,
    TokenCount,
    lognormal_lengths,
    static_batch,
    verify,
)


@pytest.mark.parametrize(
    ("remaining", "tlp", "accepted", "expected"),
    # steps, drafted, accepted, rejected, discarded, cut, emitted
    [
        (10, 4, 3, (1, 3, 3, 0, 0, 0, 4)),
        (10, 4, 1, (1, 3, 1, 2, 0, 0, 2)),
        (2, 4, 1, (1, 3, 1, 2, 0, 0, 2)),  # the target's own token is the last
        (2, 4, 3, (1, 3, 2, 0, 1, 1, 2)),  # a draft is the last: one draft and the target's own behind it
        (1, 4, 3, (1, 3, 1, 0, 2, 1, 1)),
        (3, 1, 0, (1, 0, 0, 0, 0, 0, 1)),
    ],
)
def test_every_token_of_a_step_has_a_place(remaining, tlp, accepted, expected):
    count = verify(remaining, tlp, accepted)
    assert count == TokenCount(*expected)
    assert count.violations() == ()


@pytest.mark.parametrize("bad", [(0, 4, 1), (5, 4, 4), (5, 4, -1), (5, 0, 0)])
def test_impossible_steps_are_refused(bad):
    with pytest.raises(ConfigError, match="verify"):
        verify(*bad)


def test_violations_are_worded():
    assert len(TokenCount(steps=1, drafted=2, accepted=1, emitted=3).violations()) == 2


def test_geometric_mean_is_met_by_the_draws():
    law, generator = Geometric.of_mean(2.28), rng.stream(1, "acceptance")
    runs = [law.accepted(10**6, generator) for _ in range(20_000)]
    mean = 1 + np.mean(runs)
    assert mean == pytest.approx(2.28, abs=4 * np.std(runs) / np.sqrt(len(runs)))
    shares = Counter(runs)
    assert shares[0] / len(runs) == pytest.approx(1 / 2.28, abs=0.015)


@pytest.mark.parametrize(("mean", "drafts"), [(2.0, 4), (3.5, 3), (1.0, 5), (4.34, 60)])
def test_a_mean_measured_with_few_drafts_is_met_with_as_many(mean, drafts):
    assert Geometric.of_mean(mean, drafts).mean_tokens(drafts + 1) == pytest.approx(mean)


def test_fewer_drafts_emit_fewer_tokens():
    law = Geometric.of_mean(4.0)
    means = [law.mean_tokens(tlp) for tlp in (1, 2, 4, 8, 1000)]
    assert means == sorted(means)
    assert means[0] == 1
    assert means[-1] == pytest.approx(4.0)


@pytest.mark.parametrize(("mean", "drafts"), [(0.9, None), (5.0, 4), (6.0, 4), (float("inf"), None)])
def test_impossible_means_are_refused(mean, drafts):
    with pytest.raises(ConfigError, match="mean_tokens"):
        Geometric.of_mean(mean, drafts)


def test_measured_methods_by_name():
    assert Geometric.of_method("vicuna-7b", "eagle2").probability == pytest.approx(1 - 1 / 4.34)
    with pytest.raises(UnknownNameError, match="vicuna-7b-eagle2"):
        Geometric.of_method("vicuna-7b", "eagle-2x")


def test_all_accepted_draws_nothing():
    generator = np.random.default_rng(3)
    before = generator.bit_generator.state
    assert AllAccepted().accepted(3, generator) == 3
    assert AllAccepted().mean_tokens(4) == 4
    assert generator.bit_generator.state == before


def test_a_zero_probability_accepts_nothing_and_still_draws_once():
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    assert Geometric(0.0).accepted(5, one) == 0
    Geometric(0.5).accepted(5, other)
    assert one.bit_generator.state == other.bit_generator.state


def test_a_static_batch_decays():
    steps = static_batch([40, 40, 40], [1, 3, 6], tlp=2)
    # The first request ends with its prefill; 2 and 5 tokens remain.
    assert [step.contexts for step in steps] == [(41, 41), (43,), (45,)]
    assert [step.finished for step in steps] == [1, 0, 1]
    assert [step.rlp for step in steps] == [2, 1, 1]
    assert steps[-1].tokens == TokenCount(1, 1, 1, 0, 0, 1, 1)


def test_a_batch_of_single_tokens_has_no_iteration():
    assert static_batch([5, 5], [1, 1]) == ()


def test_batches_are_checked():
    with pytest.raises(ConfigError, match="as many prompts"):
        static_batch([1], [1, 2])
    with pytest.raises(ConfigError, match="as many prompts"):
        static_batch([], [])
    with pytest.raises(ConfigError, match="tlp"):
        static_batch([1], [2], tlp=0)
    with pytest.raises(ConfigError, match="random stream"):
        static_batch([1], [9], tlp=2, law=Geometric(0.5))


def test_lengths_have_the_mean_that_was_asked():
    lengths = lognormal_lengths(220, 0.8, 40_000, rng.stream(0, "lengths"))
    assert np.mean(lengths) == pytest.approx(220, rel=0.02)
    assert np.median(lengths) == pytest.approx(220 * np.exp(-0.32), rel=0.03)
    assert min(lengths) >= 1
    assert lognormal_lengths(220, 0.0, 3, rng.stream(0, "x")) == (220, 220, 220)
    with pytest.raises(ConfigError, match="mean > 0"):
        lognormal_lengths(0, 0.5, 3, rng.stream(0, "x"))
