"""Active-neuron sets of constant size, token by token: Markov swap with Zipf popularity.

Modelled: top-k activation. Every token of a layer fires exactly ``n_active`` neurons; between consecutive
tokens a fixed number of them, chosen uniformly, is replaced by neurons that were not active, drawn without
replacement in proportion to ``rank ** -zipf``. The neuron index is the popularity rank, so no decision of a
cache may use it except to break ties. The overlap of consecutive sets is therefore exact; what any cache
makes of it is not an input here.

Ignored: correlation between layers, drift of popularity within a request, set sizes that vary from token to
token. Synthetic: no per-neuron trace of M2Cache (arXiv 2410.14740) is published; it states only that
consecutive tokens share almost 80 % of their active neurons.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from hetmem import rng
from hetmem.errors import ConfigError

Neurons = NDArray[np.int64]


@frozen
class MarkovSwap:
    """A source of active sets: ``walk(seed, layer)`` yields one sorted array of neuron indices per token.

    Parameters
    ----------
    n_neurons : int
        Neurons of a layer.
    n_active : int
        Neurons that a token activates, 1 to ``n_neurons``.
    persistence : float
        Fraction of a set that stays active at the next token; the number replaced is rounded to the nearest.
    zipf : float
        Exponent of the popularity by which replacements (and the first set) are drawn; 0 is uniform.

    Raises
    ------
    ConfigError
        When a value is out of range, or when more neurons must be replaced than are inactive: a set of
        constant size with active fraction ``a`` overlaps its successor by at least ``(2a - 1) / a``.
    """

    n_neurons: int
    n_active: int
    persistence: float = field(default=0.8)
    zipf: float = field(default=0.8)

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.n_active <= self.n_neurons:
            raise ConfigError("n_active", f"expected 1 to n_neurons ({self.n_neurons}), not {self.n_active}")
        if not 0 <= self.persistence <= 1:
            raise ConfigError("persistence", f"expected a fraction from 0 to 1, not {self.persistence}")
        if not 0 <= self.zipf < float("inf"):
            raise ConfigError("zipf", f"expected a finite exponent of 0 or more, not {self.zipf}")
        if self.n_replaced > self.n_neurons - self.n_active:
            least = (2 * self.n_active - self.n_neurons) / self.n_active
            raise ConfigError(
                "persistence",
                f"{self.n_active} of {self.n_neurons} neurons active overlap by at least {least:.3f}, "
                f"not {self.persistence}",
            )

    @property
    def n_replaced(self) -> int:
        """Neurons replaced between consecutive tokens."""
        return self.n_active - round(self.persistence * self.n_active)

    @property
    def overlap(self) -> float:
        """Exact overlap of consecutive sets, as a fraction of the set: ``persistence`` after rounding."""
        return 1 - self.n_replaced / self.n_active

    def walk(self, seed: int, layer: int = 0) -> Iterator[Neurons]:
        """Yield the active set of token 0, 1, 2, … of ``layer``: ``n_active`` ascending indices, endless.

        The stream depends on ``seed`` and ``layer`` alone, so layers may be walked in any order.
        """
        source = rng.stream(seed, f"active-sets.layer{layer}")
        # Smallest of exponential races with rates rank**-zipf = successive draws without replacement.
        slowness = np.arange(1, self.n_neurons + 1, dtype=np.float64) ** self.zipf

        def draw(candidates: Neurons, count: int) -> Neurons:
            if count == len(candidates):
                return candidates
            arrival = source.standard_exponential(len(candidates)) * slowness[candidates]
            return candidates[np.argpartition(arrival, count)[:count]]

        active = np.zeros(self.n_neurons, dtype=np.bool_)
        active[draw(np.arange(self.n_neurons), self.n_active)] = True
        while True:
            current = np.flatnonzero(active)
            yield current
            leaving = source.permutation(self.n_active)[: self.n_replaced]
            joining = draw(np.flatnonzero(~active), self.n_replaced)
            active[current[leaving]] = False
            active[joining] = True


def overlaps(sets: list[Neurons]) -> NDArray[np.float64]:
    """Return ``|S_t & S_(t-1)| / |S_t|`` for every token but the first; an empty set overlaps nothing (0)."""
    shared = [
        np.intersect1d(now, before, assume_unique=True).size / now.size if now.size else 0.0
        for before, now in itertools.pairwise(sets)
    ]
    return np.array(shared, dtype=np.float64)
