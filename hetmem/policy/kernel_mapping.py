"""How the sub-layers of a decoder layer are divided over two memories that both compute.

Every sub-layer (attention, QKV projection, FC) is cut into equal parts (heads, or column slices); ``n`` of
its ``N`` parts live and run on the fast side, the others on the slow side, and a barrier ends the sub-layer.
A mapping is the three numbers ``n``. What a split costs is in the view, as one table per sub-layer, so a
policy knows no device: whoever builds the view decides how time is estimated.

Modelled: the runtime greedy of H2M2 (arXiv 2504.14893, Algorithm 1), one sub-layer after another in a fixed
priority, and static splits in the manner of FlexGen. The searches are in :mod:`hetmem.policy.kernel_search`.
Ignored: differences between decoder layers (all are mapped alike) and the cost of moving from one mapping to
the next, which the algorithm ignores too.
"""

from collections.abc import Mapping as Dict
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from attrs import cmp_using, field, frozen

from hetmem.errors import CapacityError, ConfigError

SUBLAYERS = ("attention", "qkv", "fc")  # in the priority order of the greedy
SIDES = ("fast", "slow")

Seconds = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.int64]


def _seconds(values: npt.ArrayLike) -> Seconds:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


def _bytes(values: npt.ArrayLike) -> Bytes:
    array = np.array(values, dtype=np.int64)
    array.setflags(write=False)
    return array


_SAME = cmp_using(eq=np.array_equal)


@frozen
class Tier:
    """One side's memory: its name, and the bytes it has for weights and KV."""

    name: str
    capacity_bytes: int


@frozen
class SplitTable:
    """What each split of one sub-layer costs, for all decoder layers together.

    Every array has ``N + 1`` entries; entry ``n`` is the split with ``n`` of ``N`` parts on the fast side.

    Attributes
    ----------
    fast_s, slow_s
        Seconds until each side has finished its half.
    fast_bytes, slow_bytes
        Bytes of weights or KV that each side holds.
    time_s
        Seconds of each split: the later of the two sides.

    Raises
    ------
    ConfigError
        When arrays differ in length, a value is negative or not finite, or bytes are not monotone in ``n``.
    """

    fast_s: Seconds = field(converter=_seconds, eq=_SAME)
    slow_s: Seconds = field(converter=_seconds, eq=_SAME)
    fast_bytes: Bytes = field(converter=_bytes, eq=_SAME)
    slow_bytes: Bytes = field(converter=_bytes, eq=_SAME)
    time_s: Seconds = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        for name in ("fast_s", "slow_s", "fast_bytes", "slow_bytes"):
            column = getattr(self, name)
            if column.ndim != 1 or column.size != self.fast_s.size or column.size < 2:
                raise ConfigError(name, f"expected {self.fast_s.size} values in one row, at least 2")
        for name in ("fast_s", "slow_s"):
            column = getattr(self, name)
            # By index, in a quarter of the time of min() and max(); NaN is in no order, so it is refused too.
            if not 0 <= column[column.argmin()] <= column[column.argmax()] < np.inf:
                raise ConfigError(name, "expected finite values of at least 0")
        fast, slow = self.fast_bytes, self.slow_bytes
        if np.count_nonzero(fast[1:] < fast[:-1]) or np.count_nonzero(slow[1:] > slow[:-1]):
            raise ConfigError("fast_bytes", "must not fall, nor slow_bytes rise, with n")
        if fast[0] != 0 or slow[-1] != 0:
            raise ConfigError("fast_bytes", "a side without parts must hold no bytes")
        object.__setattr__(self, "time_s", _seconds(np.maximum(self.fast_s, self.slow_s)))

    @property
    def parts(self) -> int:
        """Return ``N``, the number of parts that the sub-layer is cut into."""
        return self.fast_s.size - 1

    def fitting(self, fast_free: int, slow_free: int) -> range:
        """Return the splits that fit so many bytes of the two sides; as bytes are monotone, they are a range."""
        on_slow = int(self.slow_bytes[::-1].searchsorted(slow_free, "right"))
        on_fast = int(self.fast_bytes.searchsorted(fast_free, "right"))
        return range(self.fast_s.size - on_slow, on_fast)


@frozen
class Mapping:
    """The parts of each sub-layer that the fast side holds and computes."""

    attention: int
    qkv: int
    fc: int


@frozen
class MappingView:
    """What a mapping policy may know: a table per sub-layer, and the two memories."""

    attention: SplitTable
    qkv: SplitTable
    fc: SplitTable
    fast: Tier
    slow: Tier

    def table(self, sublayer: str) -> SplitTable:
        """Return the table of one of :data:`SUBLAYERS`."""
        table: SplitTable = getattr(self, sublayer)
        return table

    def time_s(self, mapping: Mapping) -> float:
        """Return the seconds of one iteration under ``mapping``."""
        return float(sum(self.table(name).time_s[getattr(mapping, name)] for name in SUBLAYERS))

    def fast_bytes(self, mapping: Mapping) -> int:
        """Return the bytes that ``mapping`` puts on the fast side."""
        return int(sum(self.table(name).fast_bytes[getattr(mapping, name)] for name in SUBLAYERS))

    def slow_bytes(self, mapping: Mapping) -> int:
        """Return the bytes that ``mapping`` puts on the slow side."""
        return int(sum(self.table(name).slow_bytes[getattr(mapping, name)] for name in SUBLAYERS))

    def fits(self, mapping: Mapping) -> bool:
        """Return whether both memories hold their share."""
        return (
            self.fast_bytes(mapping) <= self.fast.capacity_bytes
            and self.slow_bytes(mapping) <= self.slow.capacity_bytes
        )

    def shares(self, mapping: Mapping) -> dict[str, float]:
        """Return the fraction of each sub-layer that is on the fast side."""
        return {name: getattr(mapping, name) / self.table(name).parts for name in SUBLAYERS}


class KernelMapper(Protocol):
    """A policy that maps kernels: ``decide`` is repeatable and changes nothing."""

    def decide(self, view: MappingView) -> Mapping:
        """Return the mapping for ``view``, or raise :class:`CapacityError` where it finds none."""
        ...

    def candidates(self, view: MappingView) -> int:
        """Return how many splits or mappings it compares for ``view``, which decides how long it takes."""
        ...


def _check_order(instance: Any, attribute: Any, order: tuple[str, ...]) -> None:
    if sorted(order) != sorted(SUBLAYERS):
        raise ConfigError("order", f"expected each of {', '.join(SUBLAYERS)} once, not {order!r}")


def _check_alpha(instance: Any, attribute: Any, alpha: Dict[tuple[str, str], float]) -> None:
    for key, value in alpha.items():
        if key not in {(sublayer, side) for sublayer in SUBLAYERS for side in SIDES}:
            raise ConfigError("alpha", f"unknown (sub-layer, side) {key!r}")
        if not 0 < value < float("inf"):
            raise ConfigError(f"alpha[{key[0]}, {key[1]}]", f"expected a positive factor, not {value!r}")


@frozen
class GreedyMapper:
    """The runtime greedy: one sub-layer after another takes the split that finishes first.

    H2M2, arXiv 2504.14893, Algorithm 1. Among the splits that fit what the sub-layers before left of both
    memories, the one whose later side finishes first; of equals, the fewest parts on the fast side. It never
    reconsiders, so it may find no place where another order of choices would.

    Attributes
    ----------
    order
        The sub-layers by priority.
    alpha
        Factor by (sub-layer, side) on the times of the view; 1 where absent. The values of the paper are not
        published, so times come from the view's device model and these are for experiments.
    """

    order: tuple[str, ...] = field(default=SUBLAYERS, converter=tuple, validator=_check_order)
    alpha: Dict[tuple[str, str], float] = field(factory=dict, validator=_check_alpha)

    def decide(self, view: MappingView) -> Mapping:
        """Return the greedy mapping; raise :class:`CapacityError` where a sub-layer finds no place."""
        fast_free, slow_free = view.fast.capacity_bytes, view.slow.capacity_bytes
        chosen: dict[str, int] = {}
        for name in self.order:
            table = view.table(name)
            fits = table.fitting(fast_free, slow_free)
            if not fits:
                raise self._overfull(view, name, chosen, fast_free, slow_free)
            n = fits[int(self._time_s(name, table)[fits.start : fits.stop].argmin())]
            chosen[name] = n
            fast_free -= int(table.fast_bytes[n])
            slow_free -= int(table.slow_bytes[n])
        return Mapping(**chosen)

    def _time_s(self, name: str, table: SplitTable) -> Seconds:
        if not self.alpha:
            return table.time_s
        fast, slow = (self.alpha.get((name, side), 1.0) for side in SIDES)
        return np.maximum(table.fast_s * fast, table.slow_s * slow)

    def candidates(self, view: MappingView) -> int:
        """Return the splits of all sub-layers: each is looked at once."""
        return sum(view.table(name).parts + 1 for name in self.order)

    @staticmethod
    def _overfull(
        view: MappingView, name: str, chosen: dict[str, int], fast_free: int, slow_free: int
    ) -> CapacityError:
        # With as much as fits on the fast side, the rest is what the slow side cannot take.
        table = view.table(name)
        most = int(np.flatnonzero(table.fast_bytes <= fast_free)[-1])
        held = tuple((done, int(view.table(done).slow_bytes[n])) for done, n in chosen.items())
        asked, capacity = int(table.slow_bytes[most]), view.slow.capacity_bytes
        return CapacityError(view.slow.name, asked, slow_free, capacity, held)


def _check_fraction(instance: Any, attribute: Any, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(attribute.name, f"expected a fraction from 0 to 1, not {value!r}")


def parts_of(fraction: float, parts: int) -> int:
    """Return the number of ``parts`` nearest to ``fraction`` of them, halves upwards."""
    return int(fraction * parts + 0.5)


@frozen
class StaticMapper:
    """One fraction for all weights and one for all KV, fixed for the whole run.

    The placement by data type of FlexGen (ICML 2023, section 4), with KV and weights over two memories.
    :func:`hetmem.policy.kernel_search.fastest_static` and
    :func:`~hetmem.policy.kernel_search.kv_first_static` choose the fractions.
    """

    weights: float = field(validator=_check_fraction)
    kv: float = field(validator=_check_fraction)

    def decide(self, view: MappingView) -> Mapping:
        """Return the fixed split in parts; raise :class:`CapacityError` where a memory cannot hold it."""
        mapping = Mapping(
            attention=parts_of(self.kv, view.attention.parts),
            qkv=parts_of(self.weights, view.qkv.parts),
            fc=parts_of(self.weights, view.fc.parts),
        )
        for tier, asked in ((view.fast, view.fast_bytes(mapping)), (view.slow, view.slow_bytes(mapping))):
            if asked > tier.capacity_bytes:
                raise CapacityError(tier.name, asked, tier.capacity_bytes, tier.capacity_bytes, ())
        return mapping

    def candidates(self, view: MappingView) -> int:
        """Return 0: its fractions were chosen before the run."""
        return 0
