"""Which units move to the GPU while the projection runs: online hot/cold adjustment.

Hermes (HPCA'25, section IV-C): near-memory units hold every weight, so a unit goes to the GPU by a copy and
leaves it by being overwritten. A unit that is hot (state above 10) and not resident is copied over PCIe
during the dense projection, when the DIMMs are idle, over the resident unit of lowest state. The projection
bounds the bytes. A copy is made only where the newcomer's state is above that of the unit it replaces: the
paper does not say, and without it equals would replace each other at every token. Ignored: units of different
size in one layer; a slot holds any unit of its layer.
"""

from typing import Protocol

import numpy as np
from attrs import field, frozen, validators
from numpy.typing import NDArray

_NEVER = np.uint8(16)  # above every state
_NONE = np.empty(0, dtype=np.int64)


@frozen(eq=False)
class AdjustmentView:
    """Layers before their projection; arrays are read-only.

    A system shows all layers of a block at once; a view may also be of one layer, without the axis of layers.
    ``states[layer, unit]`` are the predictor's (0 to 15), ``resident[layer, unit]`` says what the GPU holds,
    ``free_slots[layer]`` how many more units of a layer fit there, ``max_copies[layer]`` how many units PCIe can
    carry during its projection; a number stands for all layers.
    """

    states: NDArray[np.uint8]
    resident: NDArray[np.bool_]
    free_slots: int | NDArray[np.integer]
    max_copies: int | NDArray[np.integer]


@frozen(eq=False)
class AdjustmentDecision:
    """Units copied to the GPU, layer by layer, hottest first, and residents overwritten, coldest first.

    Units are numbered through all layers of the view, those of one layer after those of the one before. The first
    newcomers of a layer, as many as are more than its residents overwritten, take free slots.
    """

    copied: NDArray[np.int64]
    evicted: NDArray[np.int64]

    def apply(self, resident: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return what is resident after the copies."""
        after = resident.copy()
        after.flat[self.evicted] = False
        after.flat[self.copied] = True
        return after


class Adjuster(Protocol):
    """The role: what to copy to the GPU behind the projection of each layer."""

    def decide(self, view: AdjustmentView) -> AdjustmentDecision:
        """Return the copies and evictions."""


@frozen
class NoAdjustment:
    """Keeps the offline partition."""

    def decide(self, view: AdjustmentView) -> AdjustmentDecision:
        """Return nothing to copy."""
        return AdjustmentDecision(_NONE, _NONE)


@frozen
class HotColdAdjustment:
    """Copies the hottest cold units over the coldest residents; a unit is hot above state ``hot_above``."""

    hot_above: int = field(default=10, validator=[validators.ge(0), validators.le(15)])

    def decide(self, view: AdjustmentView) -> AdjustmentDecision:
        """Return the copies and the residents they overwrite; ties go by index."""
        states, resident = np.atleast_2d(view.states), np.atleast_2d(view.resident)
        waiting = (states > self.hot_above) & ~resident
        free, most = (np.broadcast_to(number, len(states)) for number in (view.free_slots, view.max_copies))
        # Few layers have anything to gain: a free slot, or a unit that waits and is hotter than a resident.
        hottest = (states * waiting).max(axis=1, initial=0)
        coldest = (states | ~resident * _NEVER).min(axis=1, initial=_NEVER)
        gaining = waiting.any(axis=1) & (most > 0) & ((free > 0) | (hottest > coldest))
        copied, evicted = [_NONE], [_NONE]
        for layer in np.flatnonzero(gaining).tolist():
            parts = _swaps(states[layer], waiting[layer], resident[layer], int(free[layer]), int(most[layer]))
            for chosen, units in zip((copied, evicted), parts, strict=True):
                chosen.append(units + layer * states.shape[1])
        return AdjustmentDecision(np.concatenate(copied), np.concatenate(evicted))


def _swaps(
    states: NDArray[np.uint8], waiting: NDArray[np.bool_], resident: NDArray[np.bool_], free_slots: int, most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the copies and evictions of one layer, at most ``most``."""
    candidates = np.flatnonzero(waiting)
    hottest = candidates[np.argsort(np.uint8(15) - states[candidates], kind="stable")][:most]
    free = min(free_slots, len(hottest))
    residents = np.flatnonzero(resident)
    coldest = residents[np.argsort(states[residents], kind="stable")][: len(hottest) - free]
    contenders = hottest[free : free + len(coldest)]
    # states of newcomers fall and those of victims rise along the ranks, so the gains form a prefix
    gains = int(np.count_nonzero(states[contenders] > states[coldest]))
    return hottest[: free + gains], coldest[:gains]
