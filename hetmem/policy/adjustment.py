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


@frozen(eq=False)
class AdjustmentView:
    """One layer before its projection; arrays are read-only.

    ``states[unit]`` are the predictor's (0 to 15), ``resident[unit]`` says what the GPU holds, ``free_slots``
    how many more units of this layer fit there, ``max_copies`` how many units PCIe can carry during the
    projection.
    """

    states: NDArray[np.uint8]
    resident: NDArray[np.bool_]
    free_slots: int
    max_copies: int


@frozen(eq=False)
class AdjustmentDecision:
    """Units copied to the GPU, hottest first, and residents overwritten, coldest first.

    The first ``len(copied) - len(evicted)`` newcomers take free slots.
    """

    copied: NDArray[np.int64]
    evicted: NDArray[np.int64]

    def apply(self, resident: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return what is resident after the copies."""
        after = resident.copy()
        after[self.evicted] = False
        after[self.copied] = True
        return after


class Adjuster(Protocol):
    """The role: what to copy to the GPU behind the projection of a layer."""

    def decide(self, view: AdjustmentView) -> AdjustmentDecision:
        """Return the copies and evictions."""


@frozen
class NoAdjustment:
    """Keeps the offline partition."""

    def decide(self, view: AdjustmentView) -> AdjustmentDecision:
        """Return nothing to copy."""
        none = np.empty(0, dtype=np.int64)
        return AdjustmentDecision(none, none)


@frozen
class HotColdAdjustment:
    """Copies the hottest cold units over the coldest residents; a unit is hot above state ``hot_above``."""

    hot_above: int = field(default=10, validator=[validators.ge(0), validators.le(15)])

    def decide(self, view: AdjustmentView) -> AdjustmentDecision:
        """Return the copies and the residents they overwrite; ties go by index."""
        waiting = np.flatnonzero((view.states > self.hot_above) & ~view.resident)
        hottest = waiting[np.argsort(np.uint8(15) - view.states[waiting], kind="stable")][: view.max_copies]
        free = min(view.free_slots, len(hottest))
        residents = np.flatnonzero(view.resident)
        coldest = residents[np.argsort(view.states[residents], kind="stable")][: len(hottest) - free]
        contenders = hottest[free : free + len(coldest)]
        # states of newcomers fall and those of victims rise along the ranks, so the gains form a prefix
        gains = int(np.count_nonzero(view.states[contenders] > view.states[coldest]))
        return AdjustmentDecision(hottest[: free + gains], coldest[:gains])
