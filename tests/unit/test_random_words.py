"""Random words from pools: uniform, independent, repeatable."""

import numpy as np
import pytest

from hetmem.model.bits import unpack
from hetmem.model.random_words import RandomWords
from hetmem.rng import stream


def words(seed=1):
    return RandomWords(stream(seed, "test"))


def correlation(a, b):
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_bits_are_even_and_independent_within_and_between_calls():
    source = words()
    calls = np.stack([source.draw((40,)) for _ in range(3000)])  # more than one pool serves
    bits = unpack(calls, 40 * 64).astype(np.float64)
    n = bits.size
    assert bits.mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(n))
    for apart in (1, 64, 65):
        assert abs(correlation(bits[:, :-apart], bits[:, apart:])) < 5 / np.sqrt(n)
    for later in (1, 2, 255):
        assert abs(correlation(bits[:-later], bits[later:])) < 5 / np.sqrt(n)
    sums = bits.sum(axis=1)
    assert sums.var() == pytest.approx(bits.shape[1] / 4, rel=0.15)  # of independent bits


@pytest.mark.parametrize("probability", [0.0, 0.0625, 0.67, 0.9375, 1.0])
def test_bernoulli_has_the_probability_to_its_digits(probability):
    bits = unpack(words().bernoulli(probability, 6, (5000,)), 64 * 5000)
    rounded = round(probability * 64) / 64
    assert bits.mean() == pytest.approx(rounded, abs=5 * np.sqrt(rounded * (1 - rounded) / bits.size))


def test_same_seed_same_words_and_a_large_call_is_served():
    first, second = words(), words()
    for shape in ((3, 4), (100_000,), (2,)):
        assert np.array_equal(first.draw(shape), second.draw(shape))
    assert len(np.unique(first.draw((1 << 17,)))) == 1 << 17
    assert not np.array_equal(words(2).draw((9,)), words().draw((9,)))
