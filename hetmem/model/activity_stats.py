"""Measure activity as the published studies describe it, so that any source can be set beside them.

Similarity at distance ``d`` is ``|A_t and A_t+d| / |A_t|``, summed over tokens and layers before dividing.
"""

from collections.abc import Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from hetmem.model.activation import ActivationModel, GeneratedActivity
from hetmem.model.bits import Words, unpack
from hetmem.model.sparsity import BlockSparsity, neuron_share


def fired_units(words: Words) -> int:
    """Return how many units fire in packed activity of any shape."""
    return int(np.bitwise_count(words).sum(dtype=np.int64))


def similarity(tokens: Words, distance: int) -> float:
    """Return ``|A_t and A_t+distance| / |A_t|`` of packed ``[token, ...]``; NaN where nothing fires."""
    fired = fired_units(tokens[:-distance])
    return fired_units(tokens[:-distance] & tokens[distance:]) / fired if fired else float("nan")


def followers(words: Words) -> float:
    """Return P(unit fires | the unit of the same index one layer before fires) of ``[..., layer, word]``."""
    leaders = fired_units(words[..., :-1, :])
    return fired_units(words[..., :-1, :] & words[..., 1:, :]) / leaders if leaders else float("nan")


@frozen
class MeasuredSparsity:
    """What :func:`measure` found; fields as in :class:`~hetmem.model.sparsity.BlockSparsity`.

    ``similarity`` maps distance to similarity, ``followers`` is P(follower | followed one layer before).
    """

    density: float
    block_share: float
    model_share: float
    similarity: dict[int, float]
    followers: float

    @property
    def adjacent(self) -> float:
        return self.similarity[1]

    @property
    def distant(self) -> float:
        """The mean similarity at the measured distances beyond 10."""
        return float(np.mean([value for distance, value in self.similarity.items() if distance > 10]))

    def misses(self, target: BlockSparsity) -> dict[str, float]:
        """Return measured minus wanted for each anchor that ``target`` imposes."""
        keys = ("density", "block_share", "model_share", "adjacent", "distant")
        return {key: getattr(self, key) - getattr(target, key) for key in keys}


def measure(
    model: ActivationModel,
    seed: int,
    n_sequences: int,
    n_tokens: int,
    distances: Sequence[int] = (1, 2, 4, 8, 12, 16, 24, 32),
) -> MeasuredSparsity:
    """Generate sequences of ``model`` and return what they show.

    Firing frequencies, and so the shares, are those over all sequences; ``n_sequences`` must be in the
    hundreds, because each has rates of its own. ``n_tokens`` must exceed the largest distance.
    """
    block = model.block
    counts: NDArray[np.int64] = np.zeros((block.n_layers, block.n_units), dtype=np.int64)
    common, fired = dict.fromkeys(distances, 0), dict.fromkeys(distances, 0)
    led = leaders = 0
    for sequence in range(n_sequences):
        source = GeneratedActivity((model,), seed, sequence)
        tokens = np.stack([source.next_token()[block.name] for _ in range(n_tokens)])
        for token in tokens:
            counts += unpack(token, block.n_units)
        for distance in distances:
            common[distance] += fired_units(tokens[:-distance] & tokens[distance:])
            fired[distance] += fired_units(tokens[:-distance])
        led += fired_units(tokens[:, :-1] & tokens[:, 1:])
        leaders += fired_units(tokens[:, :-1])
    frequency = counts / (n_sequences * n_tokens)
    held = block.sparsity.held
    return MeasuredSparsity(
        float(frequency.mean()),
        float(np.median([neuron_share(layer, held) for layer in frequency])),
        neuron_share(frequency, held),
        {distance: common[distance] / fired[distance] for distance in distances},
        led / leaders if leaders else float("nan"),
    )
