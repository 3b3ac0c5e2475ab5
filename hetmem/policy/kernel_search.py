"""Searches over kernel mappings: the exhaustive oracle, the majors, whole sub-layers, and static fractions.

All of them look through a set of splits per sub-layer for the mapping of least time that both memories hold;
they differ in the set. H2M2 (arXiv 2504.14893) compares its greedy with these. Reading of the paper's
X-major: the fast memory takes as much of X as fits, the other two are searched in what remains (the reading
that gives the published order; balancing X first would make A-major the greedy itself).
Of mappings of equal time the first in the order (attention, qkv, fc) wins, so an answer is repeatable.
"""

from collections.abc import Callable
from collections.abc import Mapping as Dict
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from hetmem.errors import CapacityError, ConfigError, UnknownNameError
from hetmem.policy.kernel_mapping import (
    SUBLAYERS,
    GreedyMapper,
    KernelMapper,
    Mapping,
    MappingView,
    StaticMapper,
    parts_of,
)

Splits = npt.NDArray[np.int64]


def fastest(view: MappingView, splits: Dict[str, Splits]) -> Mapping:
    """Return the mapping of least time among ``splits`` that fits both memories.

    Parameters
    ----------
    view
        Tables and memories.
    splits
        For each sub-layer the splits to consider, ascending.

    Raises
    ------
    CapacityError
        When no combination fits; it names the least that the slow memory would have to hold.
    """
    qkv, fc = splits["qkv"], splits["fc"]
    pair_s = view.qkv.time_s[qkv][:, None] + view.fc.time_s[fc]
    pair_fast = view.qkv.fast_bytes[qkv][:, None] + view.fc.fast_bytes[fc]
    pair_slow = view.qkv.slow_bytes[qkv][:, None] + view.fc.slow_bytes[fc]
    least_pair_s = pair_s.min()
    best_s, best = np.inf, None
    for a in splits["attention"]:  # one plane of the cube at a time: memory stays quadratic
        attention_s = view.attention.time_s[a]
        if attention_s + least_pair_s >= best_s:
            continue
        fits = pair_fast <= view.fast.capacity_bytes - view.attention.fast_bytes[a]
        fits &= pair_slow <= view.slow.capacity_bytes - view.attention.slow_bytes[a]
        plane = np.where(fits, pair_s, np.inf)
        at = int(np.argmin(plane))
        total_s = attention_s + plane.flat[at]
        if total_s < best_s:
            q, f = divmod(at, fc.size)
            best_s, best = total_s, Mapping(int(a), int(qkv[q]), int(fc[f]))
    if best is None:
        raise _overfull(view, splits["attention"], pair_fast, pair_slow)
    return best


def _overfull(view: MappingView, attention: Splits, pair_fast: Splits, pair_slow: Splits) -> CapacityError:
    needs = []
    for a in attention:
        room = pair_fast <= view.fast.capacity_bytes - view.attention.fast_bytes[a]
        if room.any():
            needs.append(int(pair_slow[room].min() + view.attention.slow_bytes[a]))
    if needs:
        capacity = view.slow.capacity_bytes
        return CapacityError(view.slow.name, min(needs), capacity, capacity, ())
    asked = int(pair_fast.min() + view.attention.fast_bytes[attention].min())
    return CapacityError(view.fast.name, asked, view.fast.capacity_bytes, view.fast.capacity_bytes, ())


def _all_splits(view: MappingView) -> dict[str, Splits]:
    return {name: np.arange(view.table(name).parts + 1) for name in SUBLAYERS}


@frozen
class OracleMapper:
    """The best mapping there is, by looking at all ``(N + 1)^3``."""

    def decide(self, view: MappingView) -> Mapping:
        """Return the mapping of least time; raise :class:`CapacityError` where none fits."""
        return fastest(view, _all_splits(view))

    def candidates(self, view: MappingView) -> int:
        """Return the number of all mappings."""
        return prod(view.table(name).parts + 1 for name in SUBLAYERS)


def _check_sublayer(instance: Any, attribute: Any, value: str) -> None:
    if value not in SUBLAYERS:
        raise ConfigError("sublayer", f"expected one of {', '.join(SUBLAYERS)}, not {value!r}")


@frozen
class MajorMapper:
    """One sub-layer first: the fast memory takes all of it that fits, the others share the rest optimally."""

    sublayer: str = field(validator=_check_sublayer)

    def decide(self, view: MappingView) -> Mapping:
        """Return the mapping; raise :class:`CapacityError` where it finds none."""
        most = np.flatnonzero(view.table(self.sublayer).fast_bytes <= view.fast.capacity_bytes)[-1:]
        return fastest(view, {**_all_splits(view), self.sublayer: most})

    def candidates(self, view: MappingView) -> int:
        """Return the mappings of the two other sub-layers."""
        others = (name for name in SUBLAYERS if name != self.sublayer)
        return int(prod(view.table(name).parts + 1 for name in others))


@frozen
class NaiveMapper:
    """Whole sub-layers: each runs on one side or on the other, the best of the eight choices."""

    def decide(self, view: MappingView) -> Mapping:
        """Return the mapping; raise :class:`CapacityError` where none of the eight fits."""
        return fastest(view, {name: np.array([0, view.table(name).parts]) for name in SUBLAYERS})

    def candidates(self, view: MappingView) -> int:
        """Return the eight choices."""
        return 1 << len(SUBLAYERS)


def _static_grid(view: MappingView) -> tuple[list[float], Splits, Splits]:
    steps = max(view.qkv.parts, view.fc.parts)  # the finest cut of any weights
    fractions = [step / steps for step in range(steps + 1)]
    qkv = np.array([parts_of(fraction, view.qkv.parts) for fraction in fractions])
    fc = np.array([parts_of(fraction, view.fc.parts) for fraction in fractions])
    return fractions, qkv, fc


def _static_fits(view: MappingView, qkv: Splits, fc: Splits) -> npt.NDArray[np.bool_]:
    """Return whether weights fraction ``i`` and KV split ``j`` fit both memories, as a matrix."""
    fast = view.qkv.fast_bytes[qkv] + view.fc.fast_bytes[fc]
    slow = view.qkv.slow_bytes[qkv] + view.fc.slow_bytes[fc]
    fits: npt.NDArray[np.bool_] = fast[:, None] + view.attention.fast_bytes <= view.fast.capacity_bytes
    fits &= slow[:, None] + view.attention.slow_bytes <= view.slow.capacity_bytes
    if not fits.any():
        raise _overfull(view, np.arange(view.attention.parts + 1), fast, slow)
    return fits


def fastest_static(view: MappingView) -> StaticMapper:
    """Return the fixed fractions of weights and of KV that minimise the time of ``view``.

    Give the view of the longest sequences: what fits there fits wherever there is less KV.

    Raises
    ------
    CapacityError
        When no pair of fractions fits.
    """
    fractions, qkv, fc = _static_grid(view)
    time_s = (view.qkv.time_s[qkv] + view.fc.time_s[fc])[:, None] + view.attention.time_s
    at = int(np.argmin(np.where(_static_fits(view, qkv, fc), time_s, np.inf)))
    weights, kv = divmod(at, view.attention.parts + 1)
    return StaticMapper(fractions[weights], kv / view.attention.parts)


def kv_first_static(view: MappingView) -> StaticMapper:
    """Return the fixed fractions that put all KV on the fast side that fits, then all weights that fit.

    Give the view of the longest sequences, as for :func:`fastest_static`.

    Raises
    ------
    CapacityError
        When no pair of fractions fits.
    """
    fractions, qkv, fc = _static_grid(view)
    fits = _static_fits(view, qkv, fc)
    kv = int(np.flatnonzero(fits.any(axis=0))[-1])
    weights = int(np.flatnonzero(fits[:, kv])[-1])
    return StaticMapper(fractions[weights], kv / view.attention.parts)


STATELESS: Dict[str, Callable[[], KernelMapper]] = {
    "greedy": GreedyMapper,
    "oracle": OracleMapper,
    "a-major": lambda: MajorMapper("attention"),
    "q-major": lambda: MajorMapper("qkv"),
    "f-major": lambda: MajorMapper("fc"),
    "naive": NaiveMapper,
}
FITTED: Dict[str, Callable[[MappingView], KernelMapper]] = {
    "static": fastest_static,
    "static-kv-first": kv_first_static,
}
#: Every mapping policy by name, the default first.
MAPPERS = (*STATELESS, *FITTED)


def mapper(name: str, longest: Callable[[], MappingView]) -> KernelMapper:
    """Return the mapping policy ``name`` of :data:`MAPPERS`.

    ``longest`` gives the view of the longest sequences, by which static fractions are chosen.

    Raises
    ------
    UnknownNameError
        When there is no such policy.
    CapacityError
        When no static fractions fit.
    """
    if name in STATELESS:
        return STATELESS[name]()
    if name in FITTED:
        return FITTED[name](longest())
    raise UnknownNameError("mapping policy", name, MAPPERS)
