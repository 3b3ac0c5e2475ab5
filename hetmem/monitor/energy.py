"""Energy of a run by component: state power times time, and joules per bit moved.

``idle`` accrues all the time, ``active`` is what a busy unit draws above it, ``dynamic`` is charged per byte
or operation by the timing laws. Inside, everything is an integer number of femtojoules, so that the parts add
up to the total exactly. A component without a figure is listed as not counted, never as zero.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from hetmem.units import power_fj_per_ps, to_j

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("idle", "active", "dynamic")


class Consumer(Protocol):
    """What the account needs to know of a unit."""

    @property
    def component(self) -> str: ...
    @property
    def idle_w(self) -> float | None: ...
    @property
    def active_w(self) -> float | None: ...
    @property
    def dynamic_known(self) -> bool: ...


@frozen
class Energy:
    """Femtojoules by component and part, the components that could not be counted, and the split by phase."""

    by_component: Mapping[str, Mapping[str, int]]
    not_counted: tuple[str, ...]
    by_phase: Mapping[str, Mapping[str, int]] = field(factory=dict)

    @property
    def total_fj(self) -> int:
        """Everything counted."""
        return sum(sum(parts.values()) for parts in self.by_component.values())

    @property
    def total_j(self) -> float:
        """Everything counted, in joules."""
        return to_j(self.total_fj)

    def component_j(self) -> dict[str, float]:
        """Return joules by component."""
        return {name: to_j(sum(parts.values())) for name, parts in self.by_component.items()}

    def phase_j(self) -> dict[str, float]:
        """Return joules by phase: prefill, decode, mixed and wait, as far as they occurred."""
        return {name: to_j(sum(parts.values())) for name, parts in self.by_phase.items()}

    def to_pandas(self) -> "pd.DataFrame":
        """Return a row per component with its parts and total in joules."""
        import pandas as pd

        rows = [
            {
                "component": name,
                **{f"{part}_j": to_j(parts[part]) for part in PARTS},
                "total_j": to_j(sum(parts.values())),
            }
            for name, parts in self.by_component.items()
        ]
        columns = ["component", *(f"{part}_j" for part in PARTS), "total_j"]
        return pd.DataFrame(rows, columns=columns)


def account(
    units: Iterable[tuple[Consumer, int, int]], memories: Iterable[tuple[str, float | None]], elapsed_ps: int,
    split: Iterable[tuple[str, int]] = (),
) -> Energy:  # fmt: skip
    """Return the energy of a run.

    Parameters
    ----------
    units
        (unit, busy ticks, dynamic femtojoules) of each server.
    memories
        (component, idle watts) of each part that only draws idle power.
    elapsed_ps
        Length of the run.
    split
        (component, dynamic femtojoules) of work whose server does not name the component that spends.
    """
    counted: dict[str, dict[str, int]] = {}
    missing: list[str] = []

    def add(component: str, part: str, fj: int) -> None:
        parts = counted.setdefault(component, dict.fromkeys(PARTS, 0))
        parts[part] += fj

    for unit, busy_ps, dynamic_fj in units:
        if dynamic_fj or unit.idle_w is not None:
            add(unit.component, "dynamic", dynamic_fj)
        if not unit.dynamic_known:
            missing.append(f"{unit.component} (dynamic)")
        if unit.idle_w is None or unit.active_w is None:
            missing.append(f"{unit.component} (idle)")
            continue
        idle, active = power_fj_per_ps(unit.idle_w), power_fj_per_ps(unit.active_w)
        add(unit.component, "idle", idle * elapsed_ps)
        add(unit.component, "active", (active - idle) * busy_ps)
    for component, fj in split:
        add(component, "dynamic", fj)
    for component, idle_w in memories:
        if idle_w is None:
            missing.append(component)
        else:
            add(component, "idle", power_fj_per_ps(idle_w) * elapsed_ps)
    return Energy(counted, tuple(dict.fromkeys(missing)))
