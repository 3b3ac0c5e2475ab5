"""Energy of a run by phase and by hour, noted at the end of every step from counters that units keep anyhow.

A step is ``prefill``, ``decode`` or ``mixed``, and is charged everything that units did since the step before ended,
background work included; ``wait`` is the idle power between steps, and all that happens after the last. Integers
throughout, so the phases add up to the components' total exactly. Within an interval the power is taken as even.
Components are those of the units: what a system books to others in the run's account stays with its server here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from attrs import frozen

from hetmem.monitor.carbon import Spell
from hetmem.monitor.energy import Consumer
from hetmem.monitor.outcome import Outcome
from hetmem.monitor.readings import Readings
from hetmem.units import PS_PER_S, power_fj_per_ps, to_j, to_s

PHASES = ("prefill", "decode", "mixed", "wait")
PS_PER_HOUR = 3600 * PS_PER_S


@frozen
class Meter:
    """A unit and the function that reads the dynamic femtojoules that it spent up to a tick, the present."""

    unit: Consumer
    energy_at: Callable[[int], int]


class PhaseAccount:
    """Splits a run's energy.

    Parameters
    ----------
    meters
        The units, in the order of the readings.
    busy
        Their busy ticks.
    memories
        (component, idle watts) of each part that only draws idle power.
    """

    def __init__(self, meters: Sequence[Meter], busy: Readings, memories: Iterable[tuple[str, float | None]]) -> None:
        self._meters, self._readings = meters, busy
        self._idle: dict[str, int] = {}
        for component, idle_w in (*((m.unit.component, _idle_w(m.unit)) for m in meters), *memories):
            self._idle[component] = self._idle.get(component, 0) + power_fj_per_ps(idle_w or 0.0)
        self._idle_fj_per_ps = sum(self._idle.values())
        self._rates = [_active_fj_per_ps(m.unit) for m in meters]
        self._energy_at = [m.energy_at for m in meters]
        self._busy: Sequence[int] = [0] * len(meters)
        self._dynamic = [0] * len(meters)
        self._work = {phase: [0] * len(meters) for phase in PHASES}
        self._elapsed = dict.fromkeys(PHASES, 0)
        self._hours: dict[int, int] = {}
        self._last_ps = 0

    def step(self, outcome: Outcome) -> None:
        """Charge a step that ended."""
        view = outcome.view
        phase = "decode" if view.prefill is None else "prefill" if view.decode is None else "mixed"
        gap = max(0, outcome.start_ps - self._last_ps)
        self._elapsed["wait"] += gap
        self._charge(phase, outcome.end_ps, gap)

    def close(self, now_ps: int) -> None:
        """Charge what came after the last step."""
        self._charge("wait", now_ps, 0)

    def _charge(self, phase: str, now_ps: int, gap_ps: int) -> None:
        span = now_ps - self._last_ps
        self._elapsed[phase] += span - gap_ps
        total, work = self._idle_fj_per_ps * span, self._work[phase]
        busy, before = self._readings.at(now_ps), self._busy
        for k, energy_at in enumerate(self._energy_at):
            dynamic = energy_at(now_ps)
            fj = self._rates[k] * (busy[k] - before[k]) + dynamic - self._dynamic[k]
            if fj:
                work[k] += fj
                total += fj
            self._dynamic[k] = dynamic
        self._busy = busy
        self._spread(self._last_ps, now_ps, total)
        self._last_ps = now_ps

    def _spread(self, start_ps: int, end_ps: int, fj: int) -> None:
        """Add energy to the hours that it was drawn in; the last takes what rounding leaves."""
        while start_ps // PS_PER_HOUR < (end_ps - 1) // PS_PER_HOUR:
            border = (start_ps // PS_PER_HOUR + 1) * PS_PER_HOUR
            part = fj * (border - start_ps) // (end_ps - start_ps)
            self._add(start_ps // PS_PER_HOUR, part)
            start_ps, fj = border, fj - part
        self._add(start_ps // PS_PER_HOUR, fj)

    def _add(self, hour: int, fj: int) -> None:
        self._hours[hour] = self._hours.get(hour, 0) + fj

    def by_phase(self) -> dict[str, dict[str, int]]:
        """Return femtojoules by phase and component; phases that did not occur are left out."""
        found: dict[str, dict[str, int]] = {}
        for phase, elapsed in self._elapsed.items():
            parts = {component: rate * elapsed for component, rate in self._idle.items()}
            for meter, fj in zip(self._meters, self._work[phase], strict=True):
                parts[meter.unit.component] += fj
            if elapsed or any(parts.values()):
                found[phase] = parts
        return found

    def spells(self) -> tuple[Spell, ...]:
        """Return the energy of each hour."""
        end_s = to_s(self._last_ps)
        return tuple(
            Spell(hour * 3600.0, max(hour * 3600.0, min((hour + 1) * 3600.0, end_s)), to_j(fj))
            for hour, fj in sorted(self._hours.items())
        )


def total_fj(by_phase: Mapping[str, Mapping[str, int]]) -> int:
    """Return the energy of all phases."""
    return sum(sum(parts.values()) for parts in by_phase.values())


def _idle_w(unit: Consumer) -> float | None:
    return None if unit.active_w is None else unit.idle_w


def _active_fj_per_ps(unit: Consumer) -> int:
    if unit.idle_w is None or unit.active_w is None:
        return 0
    return power_fj_per_ps(unit.active_w) - power_fj_per_ps(unit.idle_w)
