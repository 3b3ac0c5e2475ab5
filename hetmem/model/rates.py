"""Firing rates of one sequence around the frequencies of the corpus: ``q ~ Beta(k p, k (1 - p))``.

A sequence has millions of neurons, so its rates are looked up: the Beta distributions of a ladder of
frequencies are cut into cells of equal probability, and each cell holds its mean. The mean rate of a
frequency is therefore exact, and the second moment low by the spread inside a cell.
"""

import math

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

QUANTILES = 4096
SCALE = 1 << 16  # rates are stored as 16-bit fractions
_RUNGS_PER_OCTAVE = 24
_OCTAVES = 16  # frequencies below 2**-16 are taken for 2**-16
_GRID = np.linspace(-16.0, 16.0, 2049)  # log-odds of the rate at which a distribution is integrated


@frozen(eq=False)
class RateTable:
    """``rates[rung, quantile]``, 16-bit fractions, for the frequencies of a ladder of ``rungs``."""

    rates: NDArray[np.uint16]

    def draw(self, rungs: NDArray[np.uint16], quantiles: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Return the rates of neurons on the given rungs at the given quantiles of their distributions."""
        return np.asarray(self.rates.reshape(-1)[rungs * np.uint32(QUANTILES) + quantiles])


def rungs_of(frequencies: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Return the rung of each frequency (0 to 1): the nearest in logarithm, off by 1.5 % at most."""
    steps = np.log2(np.maximum(frequencies, 2.0**-_OCTAVES)) + _OCTAVES
    return np.asarray(np.rint(steps * _RUNGS_PER_OCTAVE), dtype=np.uint16)


def rate_table(concentration: float) -> RateTable:
    """Return the table for the concentration ``k``; an infinite one makes all sequences alike."""
    frequencies = 2.0 ** (np.arange(_OCTAVES * _RUNGS_PER_OCTAVE + 1) / _RUNGS_PER_OCTAVE - _OCTAVES)
    if math.isinf(concentration):
        means = np.repeat(frequencies[:, None], QUANTILES, axis=1)
    else:
        means = np.array([_cell_means(float(p), concentration) for p in frequencies[:-1]] + [np.ones(QUANTILES)])
    return RateTable(np.minimum(np.rint(means * SCALE), SCALE - 1).astype(np.uint16))


def _cell_means(p: float, concentration: float) -> NDArray[np.float64]:
    """Return the means of the ``QUANTILES`` equally probable cells of Beta(k p, k (1 - p)), lowest first."""
    a, b = concentration * p, concentration * (1.0 - p)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    rate = 1.0 / (1.0 + np.exp(-_GRID))
    # density in log-odds is q^a (1 - q)^b / B(a, b); the tails beyond the grid are in closed form
    density = np.exp(-a * np.logaddexp(0.0, -_GRID) - b * np.logaddexp(0.0, _GRID) - log_beta)
    mass = (density[1:] + density[:-1]) / 2 * np.diff(_GRID)
    below = min(1.0, math.exp(a * _GRID[0] - log_beta) / a)
    above = min(1.0, math.exp(-b * _GRID[-1] - log_beta) / b)
    weights = np.concatenate([[below], mass, [above]])
    values = np.concatenate([[0.0], (rate[1:] + rate[:-1]) / 2, [1.0]])
    weights /= weights.sum()
    reached = np.concatenate([[0.0], np.cumsum(weights)])
    carried = np.concatenate([[0.0], np.cumsum(weights * values)])
    edges = np.arange(QUANTILES + 1) / QUANTILES
    means = np.diff(np.interp(edges, reached, carried / carried[-1] * p)) * QUANTILES
    return np.asarray(np.clip(means, 0.0, 1.0))
