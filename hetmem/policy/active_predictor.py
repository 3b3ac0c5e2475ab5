"""Prediction of active neurons some layers ahead: how much of the set is right, and which neurons are wrong.

Modelled: a low-rank predictor per layer that returns as many neurons as are active (top-k; Deja Vu, ICML
2023; M2Cache, arXiv 2410.14740). M2Cache states about 100 % accuracy one layer ahead, 80 % two ahead and less
beyond; the decline beyond is assumed to go on by the same factor.

This is a model of a predictor's *errors*, not a predictor: the view carries the true set, which a machine
would see only in its layer input. Wrong neurons are drawn uniformly from those that are not active.

Ignored: the predictor's own time and memory (the system's affair), and that errors concentrate on low scores.
"""

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from hetmem import rng
from hetmem.errors import ConfigError

Neurons = NDArray[np.int64]


@frozen(eq=False)
class PredictView:
    """What is to be predicted, ``ahead`` layers ahead: ``active`` (ascending) of ``n_neurons``."""

    token: int
    layer: int
    ahead: int
    n_neurons: int
    active: Neurons


@frozen(eq=False)
class Prediction:
    """Split: ``correct`` is active, ``wrong`` is not; ``missed`` is active, not predicted."""

    correct: Neurons
    wrong: Neurons
    missed: Neurons

    @property
    def predicted(self) -> Neurons:
        """The predicted set, ascending."""
        if not self.wrong.size:
            return self.correct
        return np.sort(np.concatenate([self.correct, self.wrong]))  # disjoint


@frozen
class ActivePredictor:
    """Top-k prediction whose accuracy falls with the layers ahead.

    Parameters
    ----------
    accuracy : tuple of float
        Fraction of the predicted set that is active, one, two, … layers ahead.
    decline : float
        Factor per further layer beyond ``accuracy``.
    seed : int
        Errors at a (token, layer, ahead) depend on this and on nothing that was decided before.
    """

    accuracy: tuple[float, ...] = field(default=(1.0, 0.8))
    decline: float = 0.8
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        if not self.accuracy or not all(0 <= a <= 1 for a in self.accuracy):
            raise ConfigError("accuracy", f"expected fractions from 0 to 1, at least one, not {self.accuracy}")
        if not 0 <= self.decline <= 1:
            raise ConfigError("decline", f"expected a fraction from 0 to 1, not {self.decline}")

    def accuracy_at(self, ahead: int) -> float:
        """Return the accuracy ``ahead`` layers ahead; 0 ahead is the layer itself and certain.

        Raises
        ------
        ConfigError
            When ``ahead`` is negative.
        """
        if ahead < 0:
            raise ConfigError("ahead", f"expected 0 or more layers, not {ahead}")
        if ahead == 0:
            return 1.0
        known = len(self.accuracy)
        return self.accuracy[min(ahead, known) - 1] * self.decline ** max(0, ahead - known)

    def decide(self, view: PredictView) -> Prediction:
        """Return the prediction; its number of wrong neurons is exact, as far as enough are inactive."""
        k = view.active.size
        n_wrong = min(k - round(self.accuracy_at(view.ahead) * k), view.n_neurons - k)
        if n_wrong == 0:
            return Prediction(view.active, view.active[:0], view.active[:0])
        source = rng.stream(self.seed, f"predictor.token{view.token}.layer{view.layer}.ahead{view.ahead}")
        right = np.ones(k, dtype=np.bool_)
        right[source.permutation(k)[:n_wrong]] = False
        idle = np.ones(view.n_neurons, dtype=np.bool_)
        idle[view.active] = False
        wrong = source.permutation(np.flatnonzero(idle))[:n_wrong]
        return Prediction(view.active[right], np.sort(wrong), view.active[~right])
