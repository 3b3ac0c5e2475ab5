"""The neurons of each step: which are active, predicted, cached and fetched, layer by layer.

Sets are drawn for a few layers only and stand for the others in turn: layers are alike in this source. Sequences
of a batch activate independently, and a layer needs the union of their sets; a slot of the batch keeps its walk
when its sequence ends, because the source knows no sequences. The hit ratio is what the cache makes of the sets.
"""

from collections.abc import Iterator

import numpy as np
from attrs import frozen

from hetmem.hardware.neurons import NeuronConfig
from hetmem.model.active_sets import MarkovSwap, Neurons
from hetmem.policy.active_predictor import ActivePredictor, PredictView
from hetmem.policy.neuron_cache import NEURON_CACHES, CacheDecision, CacheView, NeuronCache, SlidingWindow


@frozen(eq=False)
class LayerNeed:
    """What one layer needs of a token: numbers of neurons.

    ``computed`` neurons take part, ``hits`` of them were in the cache and ``fetched`` are copied; ``missed`` are
    active but were not predicted. ``cache`` is what the cache decided, if there is one.
    """

    active: int
    hits: int
    fetched: int
    missed: int
    cache: CacheDecision | None

    @property
    def computed(self) -> int:
        """Neurons that are multiplied: those predicted."""
        return self.hits + self.fetched


def neuron_cache(name: str, config: NeuronConfig, n_neurons: int, n_active: int) -> NeuronCache | None:
    """Return the cache of that name with the configured capacity; None for ``none``."""
    if name == "none":
        return None
    capacity = min(n_neurons, round(config.cache_capacity * n_active))
    if name == SlidingWindow.name:
        return SlidingWindow(n_neurons, capacity, window=config.window)
    return NEURON_CACHES[name](n_neurons, capacity)


class NeuronSets:
    """The sets of a run.

    Parameters
    ----------
    config
        Activity and prediction.
    n_neurons, n_layers
        Of the model.
    cache
        Of the GPU; None where nothing is kept.
    ahead
        Layers ahead at which a layer's set is predicted.
    seed
        Of the run.
    """

    def __init__(
        self, config: NeuronConfig, n_neurons: int, n_layers: int, cache: NeuronCache | None, ahead: int, seed: int
    ) -> None:
        self.walked = min(config.walked_layers, n_layers)
        self.n_neurons, self.ahead, self.seed, self.cache = n_neurons, ahead, seed, cache
        self.source = MarkovSwap(
            n_neurons, max(1, round(config.active_fraction * n_neurons)), config.persistence, config.zipf
        )
        self.predictor = ActivePredictor(seed=seed)
        self.token = 0
        self._walks: list[list[Iterator[Neurons]]] = []
        self._current: list[list[Neurons]] = []

    def need(self, sequences: int) -> tuple[LayerNeed, ...]:
        """Return what each walked layer needs for the next token of ``sequences`` sequences; changes nothing."""
        self._require(sequences)
        return tuple(self._layer_need(layer, sequences) for layer in range(self.walked))

    def commit(self, needs: tuple[LayerNeed, ...]) -> None:
        """Take note that the token of ``needs`` is computed."""
        for need in needs:
            if need.cache is not None and self.cache is not None:
                self.cache.commit(need.cache)
        self.token += 1
        for walks, sets in zip(self._walks, self._current, strict=True):
            sets[:] = [next(walk) for walk in walks]

    def _layer_need(self, layer: int, sequences: int) -> LayerNeed:
        active = self._current[0][layer]
        if sequences > 1:
            mask = np.zeros(self.n_neurons, dtype=np.bool_)
            for slot in range(sequences):
                mask[self._current[slot][layer]] = True
            active = np.flatnonzero(mask)
        found = self.predictor.decide(PredictView(self.token, layer, self.ahead, self.n_neurons, active))
        predicted = found.predicted
        if self.cache is None:
            return LayerNeed(active.size, 0, predicted.size, found.missed.size, None)
        decision = self.cache.decide(CacheView(layer, predicted))
        return LayerNeed(active.size, decision.hits.size, decision.misses, found.missed.size, decision)

    def _require(self, sequences: int) -> None:
        """Start the walks of slots that were not used so far."""
        for slot in range(len(self._walks), sequences):
            # A stream per slot and layer: slots are numbered apart from layers.
            walks = [self.source.walk(self.seed, slot * self.walked + layer) for layer in range(self.walked)]
            self._walks.append(walks)
            self._current.append([next(walk) for walk in walks])
