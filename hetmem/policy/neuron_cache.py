"""Neuron caches: which neurons of a layer stay in GPU memory from one token to the next.

Modelled: one isolated unit of ``capacity`` neuron slots per layer, asked once per token with the set of
active neurons. Policies: adjacent-token update (M2Cache, arXiv 2410.14740, design section: only the set
difference to the token before is fetched, into the slots vacated), least recently used with a token's set
inserted atomically, least frequently used, the sliding window of LLM in a Flash (arXiv 2312.11514), and least
recently used per single access, which evicts entries that the same token still needs and is here to show
that.

Ignored: what a slot costs to fill, precision of the cached copy, fragmentation; those belong to the system.

Bookkeeping is exact for every policy and every token: ``hits + loads + bypasses`` are the accesses, and the
residents grow by ``loads - evicts``, never above ``capacity``.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from attrs import Factory, define, field, frozen
from numpy.typing import NDArray

from hetmem.errors import ConfigError

Neurons = NDArray[np.int64]
Mask = NDArray[np.bool_]


@frozen(eq=False)
class CacheView:
    """What a cache may know of a token: the layer and its ``active`` neurons in access order."""

    layer: int
    active: Neurons


@frozen(eq=False)
class CacheDecision:
    """What one token does to the unit of one layer; arrays of neuron indices.

    ``hits`` were resident when accessed, ``loads`` were fetched into a slot, ``bypasses`` were fetched and
    used without a slot, ``evicts`` lost their slot (an index may be evicted and loaded again within the token
    only under per-access replacement). ``active`` repeats the view; ``resident`` is the unit afterwards,
    ascending.
    """

    layer: int
    active: Neurons
    hits: Neurons
    loads: Neurons
    bypasses: Neurons
    evicts: Neurons
    resident: Neurons

    @property
    def misses(self) -> int:
        """Neurons fetched: loads and bypasses."""
        return self.loads.size + self.bypasses.size


@define
class _Unit:
    """State of one layer by neuron: residency, last use and number of uses; and the tokens seen.

    A last use is ``token * n_neurons + position within the token``; atomic policies leave the position at 0.
    """

    resident: Mask
    used: NDArray[np.int64]
    uses: NDArray[np.int64]
    token: int = 0


@define(eq=False)
class NeuronCache(ABC):
    """Base of the neuron caches: ``decide`` is repeatable and changes nothing, ``commit`` makes it so.

    Parameters
    ----------
    n_neurons : int
        Neurons of a layer.
    capacity : int
        Slots of the unit of each layer.
    """

    name: ClassVar[str]

    n_neurons: int = field()
    capacity: int = field()
    _units: dict[int, _Unit] = field(init=False, repr=False, default=Factory(dict))

    @n_neurons.validator
    def _check_neurons(self, _: object, value: int) -> None:
        if value < 1:
            raise ConfigError("n_neurons", f"expected at least 1, not {value}")

    @capacity.validator
    def _check_capacity(self, _: object, value: int) -> None:
        if value < 0:
            raise ConfigError("capacity", f"expected 0 or more neurons, not {value}")

    def decide(self, view: CacheView) -> CacheDecision:
        """Return what the token of ``view`` does to its layer's unit.

        Raises
        ------
        ConfigError
            When an active index is repeated or outside the layer.
        """
        active = view.active
        if active.size and (int(active.min()) < 0 or int(active.max()) >= self.n_neurons):
            raise ConfigError("active", f"expected neuron indices below {self.n_neurons}")
        mask = np.zeros(self.n_neurons, dtype=np.bool_)
        mask[active] = True
        if int(np.count_nonzero(mask)) != active.size:
            raise ConfigError("active", "expected each neuron once")
        return self._decide(view, mask, self._unit(view.layer))

    def commit(self, decision: CacheDecision) -> None:
        """Apply ``decision``, made by :meth:`decide` on the present state."""
        unit = self._units.setdefault(decision.layer, self._unit(decision.layer))
        unit.resident[:] = False
        unit.resident[decision.resident] = True
        unit.used[decision.active] = unit.token * self.n_neurons + self._positions(decision.active.size)
        unit.uses[decision.active] += 1
        unit.token += 1

    def resident(self, layer: int) -> Neurons:
        """Return the neurons that the unit of ``layer`` holds, ascending."""
        return np.flatnonzero(self._unit(layer).resident)

    def _unit(self, layer: int) -> _Unit:
        if layer in self._units:
            return self._units[layer]
        n = self.n_neurons
        return _Unit(np.zeros(n, dtype=np.bool_), np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.int64))

    def _positions(self, size: int) -> NDArray[np.int64]:
        """Return where in the token each access stands: one moment for all by default."""
        return np.zeros(size, dtype=np.int64)

    @abstractmethod
    def _decide(self, view: CacheView, mask: Mask, unit: _Unit) -> CacheDecision: ...


@define(eq=False)
class _AtomicCache(NeuronCache):
    """A token's set is inserted as a whole: only idle residents are evicted."""

    @abstractmethod
    def _kept(self, idle: Neurons, unit: _Unit, room: int) -> Neurons:
        """Return those of the ``idle`` residents that stay, at most ``room`` of them."""

    def _decide(self, view: CacheView, mask: Mask, unit: _Unit) -> CacheDecision:
        held = unit.resident
        hits = np.flatnonzero(mask & held)
        missing = view.active[~held[view.active]]
        loads = missing[: max(0, self.capacity - hits.size)]
        idle = np.flatnonzero(held & ~mask)
        kept = self._kept(idle, unit, self.capacity - hits.size - loads.size)
        after = np.zeros(self.n_neurons, dtype=np.bool_)
        for part in (hits, loads, kept):
            after[part] = True
        return CacheDecision(
            layer=view.layer,
            active=view.active,
            hits=hits,
            loads=loads,
            bypasses=missing[loads.size :],
            evicts=idle[~after[idle]],
            resident=np.flatnonzero(after),
        )


def _last(neurons: Neurons, keys: tuple[NDArray[np.int64], ...], count: int) -> Neurons:
    """Return the ``count`` of the highest keys (the last key counts first); the lower index yields."""
    if count >= neurons.size:
        return neurons
    if count <= 0:
        return neurons[:0]
    return neurons[np.lexsort(keys)[neurons.size - count :]]


@define(eq=False)
class AdjacentTokenUpdate(_AtomicCache):
    """M2Cache: the unit holds the last token's set; the set difference overwrites the slots vacated."""

    name: ClassVar[str] = "atu"

    def _kept(self, idle: Neurons, unit: _Unit, room: int) -> Neurons:
        return idle[:0]


@define(eq=False)
class AtomicLru(_AtomicCache):
    """Least recently used, a token's set at once. Ties within a token: the lower index leaves."""

    name: ClassVar[str] = "lru"

    def _kept(self, idle: Neurons, unit: _Unit, room: int) -> Neurons:
        return _last(idle, (unit.used[idle],), room)


@define(eq=False)
class LeastFrequentlyUsed(_AtomicCache):
    """Least often used since the start, absent or not; ties: least recently used, lower index."""

    name: ClassVar[str] = "lfu"

    def _kept(self, idle: Neurons, unit: _Unit, room: int) -> Neurons:
        return _last(idle, (unit.used[idle], unit.uses[idle]), room)


@define(eq=False)
class SlidingWindow(_AtomicCache):
    """LLM in a Flash: the union of the last ``window`` tokens' sets, the oldest out above capacity.

    The window includes the token at hand; ``window=1`` is :class:`AdjacentTokenUpdate`.
    """

    name: ClassVar[str] = "sliding-window"

    window: int = field(default=5)

    @window.validator
    def _check_window(self, _: object, value: int) -> None:
        if value < 1:
            raise ConfigError("window", f"expected at least 1 token, not {value}")

    def _kept(self, idle: Neurons, unit: _Unit, room: int) -> Neurons:
        oldest = (unit.token - self.window + 1) * self.n_neurons
        recent = idle[unit.used[idle] >= oldest]
        return _last(recent, (unit.used[recent],), room)


@define(eq=False)
class PerAccessLru(NeuronCache):
    """Least recently used, one access after the other in the order of ``view.active``.

    At a capacity near the size of the active set it evicts what the same token is about to ask for. Its hit
    ratio depends on the order of access; sources here give neurons in index order.
    """

    name: ClassVar[str] = "lru-per-access"

    def _positions(self, size: int) -> NDArray[np.int64]:
        return np.arange(size, dtype=np.int64)

    def _decide(self, view: CacheView, mask: Mask, unit: _Unit) -> CacheDecision:
        held = np.flatnonzero(unit.resident)
        recency = OrderedDict.fromkeys(held[np.argsort(unit.used[held], kind="stable")].tolist())
        hits, loads, evicts = [], [], []
        for neuron in view.active.tolist():
            if neuron in recency:
                recency.move_to_end(neuron)
                hits.append(neuron)
            elif self.capacity:
                recency[neuron] = None
                loads.append(neuron)
                if len(recency) > self.capacity:
                    evicts.append(recency.popitem(last=False)[0])
        return CacheDecision(
            layer=view.layer,
            active=view.active,
            hits=np.array(hits, dtype=np.int64),
            loads=np.array(loads, dtype=np.int64),
            bypasses=view.active[:0] if self.capacity else view.active,
            evicts=np.array(evicts, dtype=np.int64),
            resident=np.array(sorted(recency), dtype=np.int64),
        )


NEURON_CACHES: dict[str, type[NeuronCache]] = {
    cache.name: cache for cache in (AdjacentTokenUpdate, AtomicLru, PerAccessLru, LeastFrequentlyUsed, SlidingWindow)
}


@frozen
class Replay:
    """Counts of a cache over tokens, in neurons; ``peak_resident`` is the most held after a token."""

    accesses: int
    hits: int
    loads: int
    bypasses: int
    evicts: int
    peak_resident: int

    @property
    def hit_ratio(self) -> float:
        """Hits by accesses; 0 without accesses."""
        return self.hits / self.accesses if self.accesses else 0.0


def replay(cache: NeuronCache, sets: Iterable[Neurons], layer: int = 0, warmup: int = 1) -> Replay:
    """Run ``sets`` through one layer of ``cache`` and count, leaving out the first ``warmup`` tokens.

    One token of warm-up leaves out the compulsory misses of an empty unit and nothing else.
    """
    accesses = hits = loads = bypasses = evicts = peak = 0
    for token, active in enumerate(sets):
        decision = cache.decide(CacheView(layer, active))
        cache.commit(decision)
        peak = max(peak, decision.resident.size)
        if token >= warmup:
            accesses += active.size
            hits += decision.hits.size
            loads += decision.loads.size
            bypasses += decision.bypasses.size
            evicts += decision.evicts.size
    return Replay(accesses, hits, loads, bypasses, evicts, peak)
