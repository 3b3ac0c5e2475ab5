"""On which near-memory unit (DIMM) each cold unit of a layer is kept, so that all finish together.

Window-based remapping is Algorithm 1 of Hermes (HPCA'25, section IV-D), corrected: as printed it compares and
pairs with one index off. Every window of tokens the DIMMs are sorted by the activations they computed; the
most loaded is paired with the least, and so on inward; within a pair the busiest units move to the lighter
DIMM over the link of that pair. The paper gives no rule against overshooting; a unit moves only if it fired
less than the difference of the pair, so that each move lowers the pair's maximum. One pass evens out pairs,
not all DIMMs: that takes windows. Ignored: which links exist; every pair of DIMMs is taken to have one.
"""

import heapq
from typing import Protocol

import numpy as np
from attrs import field, frozen, validators
from numpy.typing import NDArray

from hetmem.errors import ConfigError

NOWHERE = -1
Places = NDArray[np.integer]


@frozen(eq=False)
class BalanceView:
    """One layer at the end of a window; arrays are read-only.

    ``where[unit]`` is the DIMM of each unit, ``NOWHERE`` for one that the balancer must leave alone (kept on
    the GPU); ``activations[unit]`` counts its firings over the last ``tokens`` tokens. ``moves_per_pair`` is
    how many units the link of one pair can carry in the time given, None for any number. ``future[unit]``,
    the firings of the time to come, is for oracles only.
    """

    n_dimms: int
    where: Places
    activations: NDArray[np.integer]
    tokens: int
    moves_per_pair: int | None = None
    future: NDArray[np.integer] | None = None


@frozen(eq=False)
class BalanceDecision:
    """``unit[i]`` moves from DIMM ``source[i]`` to ``target[i]``, in this order."""

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
        after[self.unit] = self.target
        return after


class Balancer(Protocol):
    """The role: rebalance a layer every ``window`` tokens."""

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
        return _decision([])


@frozen
class RoundRobin:
    """Deals the units over the DIMMs in the order of their index, whatever they do."""

    window: int = field(default=5, validator=validators.ge(1))

    def decide(self, view: BalanceView) -> BalanceDecision:
        """Return the moves towards the dealt order, as many as the links can carry."""
        units = np.flatnonzero(view.where != NOWHERE)
        return _towards(view, units, np.arange(len(units)) % view.n_dimms)


@frozen
class WindowRemap:
    """Window-based remapping of Hermes; ``window`` is 5 tokens in the paper."""

    window: int = field(default=5, validator=validators.ge(1))

    def decide(self, view: BalanceView) -> BalanceDecision:
        """Return the moves of one pass over the pairs of DIMMs."""
        units = np.flatnonzero((view.activations > 0) & (view.where != NOWHERE))
        where, activations = view.where[units], view.activations[units].astype(np.int64)
        loads = np.bincount(where, weights=activations, minlength=view.n_dimms).astype(np.int64)
        order = np.argsort(-loads, kind="stable")
        parts = []
        for k in range(view.n_dimms // 2):
            heavy, light = int(order[k]), int(order[view.n_dimms - 1 - k])
            held = np.flatnonzero(where == heavy)
            moved = _halve(activations[held], int(loads[heavy] - loads[light]), view.moves_per_pair)
            parts.append((units[held[moved]], heavy, light))
        return _decision(parts)


@frozen
class OfflineOptimal:
    """Places the units that are going to fire, longest first, links unlimited; the others stay.

    A bound, not a mechanism: it reads the future. Longest-first is within 4/3 of the best placement, and
    within one unit's firings of the mean load.
    """

    window: int = field(default=5, validator=validators.ge(1))

    def decide(self, view: BalanceView) -> BalanceDecision:
        """Return the moves from the present placement to that of the oracle."""
        if view.future is None:
            raise ConfigError("view.future", "the offline-optimal balancer needs the firings of the time to come")
        units = np.flatnonzero(view.where != NOWHERE)
        target = longest_first(view.future[units].astype(np.float64), view.n_dimms)
        moving = view.where[units] != target
        return BalanceDecision(
            units[moving].astype(np.int64),
            view.where[units[moving]].astype(np.int64),
            target[moving].astype(np.int64),
        )


def longest_first(load: NDArray[np.floating], n_bins: int) -> NDArray[np.int64]:
    """Return the bin of each item by longest processing time first (Graham 1969); ties by index."""
    bins = [(0.0, j) for j in range(n_bins)]
    placed = np.empty(len(load), dtype=np.int64)
    for item in np.argsort(-load, kind="stable").tolist():
        total, j = bins[0]
        placed[item] = j
        heapq.heapreplace(bins, (total + float(load[item]), j))
    return placed


def _halve(activations: NDArray[np.int64], gap: int, budget: int | None) -> NDArray[np.int64]:
    """Return which items leave the heavier of two DIMMs that differ by ``gap``, busiest first, in order.

    Item by item: it leaves if it fired less than the gap of that moment, which shrinks by twice its firings.
    """
    most = int(activations.max(initial=0))
    keys = (most - activations).astype(np.uint16 if most < 1 << 16 else np.int64)  # short keys sort by radix
    order = np.argsort(keys, kind="stable")
    ordered = activations[order]
    falling = -ordered
    chosen: list[NDArray[np.int64]] = []
    at, left = 0, len(ordered) if budget is None else budget
    while gap > 0 and left > 0:
        at = max(at, int(np.searchsorted(falling, -gap, side="right")))  # skip what fired as much as the gap or more
        run = ordered[at : at + left]
        if not len(run):
            break
        gaps = gap - 2 * np.concatenate([[0], np.cumsum(run)])
        refused = np.flatnonzero(run >= gaps[:-1])
        taken = int(refused[0]) if len(refused) else len(run)
        chosen.append(order[at : at + taken])
        at, left, gap = at + taken, left - taken, int(gaps[taken])
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)


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


def _decision(parts: list[tuple[NDArray[np.int64], int, int]]) -> BalanceDecision:
    none = np.empty(0, dtype=np.int64)
    return BalanceDecision(
        np.concatenate([units for units, _, _ in parts] or [none]).astype(np.int64),
        np.concatenate([np.full(len(units), source) for units, source, _ in parts] or [none]).astype(np.int64),
        np.concatenate([np.full(len(units), target) for units, _, target in parts] or [none]).astype(np.int64),
    )
