"""On which near-memory unit (DIMM) each cold unit of a layer is kept, so that all finish together.

Window-based remapping is Algorithm 1 of Hermes (HPCA'25, section IV-D), corrected: as printed it compares and
pairs with one index off. Every window of tokens the DIMMs are sorted by the activations they computed; the
most loaded is paired with the least, and so on inward; within a pair the busiest units move to the lighter
DIMM over the link of that pair. The paper gives no rule against overshooting; a unit moves only if it fired
less than the difference of the pair, so that each move lowers the pair's maximum. One pass evens out pairs,
not all DIMMs: that takes windows. Ignored: which links exist; every pair of DIMMs is taken to have one.
"""

import heapq
from collections.abc import Callable
from typing import Protocol

import numpy as np
from attrs import evolve, field, frozen, validators
from numpy.typing import NDArray

from hetmem.errors import ConfigError
from hetmem.model.bits import LANES, Words, count_in, pack, unpack

NOWHERE = -1
_NONE = np.empty(0, dtype=np.int64)
Places = NDArray[np.integer]
Counts = NDArray[np.int64]


@frozen(eq=False)
class BalanceView:
    """Layers at the end of a window; arrays are read-only.

    A system shows all layers of a block at once; a view may also be of one layer, without the axis of layers.
    ``where[layer, unit]`` is the DIMM of each unit, ``NOWHERE`` for one that the balancer must leave alone (kept
    on the GPU); ``activations[layer, unit]`` counts how often it was computed in the last ``tokens`` tokens.
    ``moves_per_pair`` is how many units the link of one pair can carry for one layer in the time given, None for
    any number. ``future[layer, unit]``, the firings of the time to come, is for oracles only.
    """

    n_dimms: int
    where: Places
    activations: NDArray[np.integer]
    tokens: int
    moves_per_pair: int | None = None
    future: NDArray[np.integer] | None = None


@frozen(eq=False)
class BalanceDecision:
    """``unit[i]`` moves from DIMM ``source[i]`` to ``target[i]``, in this order.

    Units are numbered through all layers of the view, those of one layer after those of the one before.
    """

    unit: NDArray[np.int64]
    source: NDArray[np.int64]
    target: NDArray[np.int64]

    @property
    def moves(self) -> list[tuple[int, int, int]]:
        """The moves as ``(unit, source, target)``."""
        return list(zip(self.unit.tolist(), self.source.tolist(), self.target.tolist(), strict=True))

    def apply(self, where: Places) -> Places:
        """Return ``where`` after the moves."""
        after = where.copy()
        after.flat[self.unit] = self.target
        return after


class Balancer(Protocol):
    """The role: rebalance the layers every ``window`` tokens."""

    @property
    def window(self) -> int:
        """Tokens between two decisions."""

    def decide(self, view: BalanceView) -> BalanceDecision:
        """Return the moves."""


def dimm_loads(where: Places, activations: NDArray[np.integer], n_dimms: int) -> NDArray[np.int64]:
    """Return the activations per DIMM."""
    placed = where != NOWHERE
    return np.bincount(where[placed], weights=activations[placed], minlength=n_dimms).astype(np.int64)


def imbalance(loads: NDArray[np.integer]) -> float:
    """Return the largest load over the mean: 1 is perfect; 1 too where there is no load."""
    total = int(loads.sum())
    return float(loads.max()) * len(loads) / total if total else 1.0


@frozen
class NoBalance:
    """Leaves every unit where the offline partition put it."""

    window: int = field(default=5, validator=validators.ge(1))

    def decide(self, view: BalanceView) -> BalanceDecision:
        """Return no moves."""
        return BalanceDecision(_NONE, _NONE, _NONE)


@frozen
class RoundRobin:
    """Deals the units over the DIMMs in the order of their index, whatever they do."""

    window: int = field(default=5, validator=validators.ge(1))

    def decide(self, view: BalanceView) -> BalanceDecision:
        """Return the moves towards the dealt order, as many as the links can carry."""
        return _layer_by_layer(view, _deal)


@frozen
class WindowRemap:
    """Window-based remapping of Hermes; ``window`` is 5 tokens in the paper."""

    window: int = field(default=5, validator=validators.ge(1))

    def decide(self, view: BalanceView) -> BalanceDecision:
        """Return the moves of one pass over the pairs of DIMMs of every layer."""
        where, activations = np.atleast_2d(view.where), np.atleast_2d(view.activations)
        levels = np.arange(int(activations.max(initial=0)), 0, -1)  # busiest first
        fired = np.stack([pack(activations == level) for level in levels] or [pack(activations > 0)])
        held = np.stack([pack(where == dimm) for dimm in range(view.n_dimms)])
        counts = np.stack([count_in(words, held) for words in fired], axis=-1)[..., : len(levels)]
        loads = counts @ levels
        order, layers = np.argsort(-loads, axis=0, kind="stable"), np.arange(loads.shape[1])
        pairs = view.n_dimms // 2
        heavy, light = order[:pairs], order[::-1][:pairs]
        budget = where.shape[1] if view.moves_per_pair is None else view.moves_per_pair
        taken = _halve(counts[heavy, layers], levels, loads[heavy, layers] - loads[light, layers], budget)
        layer, pair, level = np.nonzero(taken.transpose(1, 0, 2))
        if not len(layer):
            return BalanceDecision(_NONE, _NONE, _NONE)
        source = heavy[pair, layer]
        row, unit = _first(fired[level, layer] & held[source, layer], taken[pair, layer, level])
        return BalanceDecision(layer[row] * where.shape[1] + unit, source[row], light[pair, layer][row])


@frozen
class OfflineOptimal:
    """Places the units that are going to fire, longest first, links unlimited; the others stay.

    A comparison, not a mechanism: it reads the future. Longest-first is within 4/3 of the best placement, and
    within one unit's firings of the mean load. What it levels is what fires; DIMMs compute what is predicted, so
    with another predictor than the oracle it is no bound.
    """

    window: int = field(default=5, validator=validators.ge(1))

    def decide(self, view: BalanceView) -> BalanceDecision:
        """Return the moves from the present placement to that of the oracle."""
        if view.future is None:
            raise ConfigError("view.future", "the offline-optimal balancer needs the firings of the time to come")
        return _layer_by_layer(view, _level)


def longest_first(load: NDArray[np.floating], n_bins: int) -> NDArray[np.int64]:
    """Return the bin of each item by longest processing time first (Graham 1969); ties by index."""
    bins = [(0.0, j) for j in range(n_bins)]
    placed = np.empty(len(load), dtype=np.int64)
    for item in np.argsort(-load, kind="stable").tolist():
        total, j = bins[0]
        placed[item] = j
        heapq.heapreplace(bins, (total + float(load[item]), j))
    return placed


def _halve(counts: Counts, levels: Counts, gap: Counts, budget: int) -> Counts:
    """Return how many units leave the heavier of two DIMMs that differ by ``gap``, ``[..., level]``.

    ``counts[..., level]`` units of it fired ``levels[level]`` times, falling. One by one, busiest first, a unit leaves
    if it fired less than the gap of that moment, which shrinks by twice its firings: so of those that fired ``a``
    times, the first ``(gap - a) / 2a``, rounded up.
    """
    taken = np.zeros_like(counts)
    left = np.full(gap.shape, budget)
    for k, level in enumerate(levels.tolist()):
        most = np.maximum(0, -((level - gap) // (2 * level)))
        taken[..., k] = np.minimum(np.minimum(counts[..., k], most), left)
        gap = gap - 2 * level * taken[..., k]
        left -= taken[..., k]
    return taken


def _first(rows: Words, n: Counts) -> tuple[Counts, Counts]:
    """Return row and place of the first ``n[row]`` bits that are set in each row of packed bits."""
    held = np.bitwise_count(rows)
    before = np.cumsum(held, axis=1, dtype=np.int64) - held
    row, word = np.nonzero((held > 0) & (before < n[:, None]))
    at, lane = np.nonzero(unpack(rows[row, word][:, None], LANES))
    first = np.searchsorted(at, np.arange(len(row)))
    rank = before[row, word][at] + np.arange(len(at)) - first[at]
    kept = rank < n[row[at]]
    return row[at][kept], (word[at] * LANES + lane)[kept]


def _layer_by_layer(view: BalanceView, decide: Callable[[BalanceView], BalanceDecision]) -> BalanceDecision:
    """Return the decisions on each layer by itself, together."""
    if view.where.ndim == 1:
        return decide(view)
    n_layers, n = view.where.shape
    future = [None] * n_layers if view.future is None else view.future
    parts = [
        decide(evolve(view, where=view.where[k], activations=view.activations[k], future=future[k]))
        for k in range(n_layers)
    ]
    return BalanceDecision(
        np.concatenate([part.unit + k * n for k, part in enumerate(parts)]),
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.target for part in parts]),
    )


def _deal(view: BalanceView) -> BalanceDecision:
    units = np.flatnonzero(view.where != NOWHERE)
    return _towards(view, units, np.arange(len(units)) % view.n_dimms)


def _level(view: BalanceView) -> BalanceDecision:
    assert view.future is not None
    units = np.flatnonzero(view.where != NOWHERE)
    target = longest_first(view.future[units].astype(np.float64), view.n_dimms)
    moving = view.where[units] != target
    return BalanceDecision(
        units[moving].astype(np.int64),
        view.where[units[moving]].astype(np.int64),
        target[moving].astype(np.int64),
    )


def _towards(view: BalanceView, units: NDArray[np.int64], target: NDArray[np.int64]) -> BalanceDecision:
    """Return the moves of ``units`` to ``target`` that the links between each two DIMMs can carry."""
    source = view.where[units].astype(np.int64)
    moving = source != target
    units, source, target = units[moving], source[moving], target[moving]
    if view.moves_per_pair is not None and len(units):
        pair = np.minimum(source, target) * view.n_dimms + np.maximum(source, target)
        by_pair = np.argsort(pair, kind="stable")
        first = np.searchsorted(pair[by_pair], pair[by_pair], side="left")
        within = np.empty(len(pair), dtype=np.int64)
        within[by_pair] = np.arange(len(pair)) - first  # how many of the same pair come before
        kept = within < view.moves_per_pair
        units, source, target = units[kept], source[kept], target[kept]
    return BalanceDecision(units.astype(np.int64), source, target.astype(np.int64))
