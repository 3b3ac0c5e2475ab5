"""Carbon of a run: operational from joules and grid intensity, embodied from footprints, time and capacity.

Modelled: ``operational = energy x PUE x intensity`` with a constant or hourly intensity (ACT, ISCA 2022;
M2Cache, arXiv 2410.14740); ``embodied = footprint x capacity share x time / lifetime``, as a range, because
published footprints of one part differ by up to ten times. Chips follow ACT's ``(CI_fab EPA + GPA + MPA) /
yield`` per area.

Ignored: transport, cooling plant, end of life; racks, boards and power supplies of parts other than GPUs. A
part without a footprint makes the total unknown, with the reason: a sum that leaves parts out is not a low
bound that anyone reads as such.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from attrs import field, frozen, validators

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError, UnknownNameError

J_PER_KWH = 3.6e6
S_PER_YEAR = 365 * 86400.0


@frozen
class Range:
    """A low and a high of one quantity, in the unit of its name."""

    low: float
    high: float

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.low <= self.high < math.inf:
            raise ConfigError("range", f"expected 0 <= low <= high, not {self.low} and {self.high}")

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def scaled(self, factor: float) -> "Range":
        """Return both ends times ``factor``."""
        return Range(self.low * factor, self.high * factor)


# --- operational ---


class Intensity(Protocol):
    """Grid intensity over the time of a run."""

    def mean_g_per_kwh(self, start_s: float, end_s: float) -> float:
        """Return the mean intensity between two times since the start of the run."""


@frozen
class ConstantIntensity:
    """One intensity for all time."""

    g_per_kwh: float = field(validator=validators.ge(0))

    def mean_g_per_kwh(self, start_s: float, end_s: float) -> float:
        return self.g_per_kwh


@frozen
class HourlyIntensity:
    """An intensity per hour, from the start of the run; the series repeats (24 for a day)."""

    g_per_kwh: tuple[float, ...]

    def __attrs_post_init__(self) -> None:
        if not self.g_per_kwh or not all(0 <= g < math.inf for g in self.g_per_kwh):
            raise ConfigError("g_per_kwh", "expected at least one hour, each a number of 0 or more")

    def mean_g_per_kwh(self, start_s: float, end_s: float) -> float:
        first, last = start_s / 3600, end_s / 3600
        if last <= first:
            return self.g_per_kwh[int(first) % len(self.g_per_kwh)]
        return (self._until(last) - self._until(first)) / (last - first)

    def _until(self, hours: float) -> float:
        """Return the integral from 0 to ``hours``."""
        whole = int(hours)
        rounds, rest = divmod(whole, len(self.g_per_kwh))
        done = rounds * math.fsum(self.g_per_kwh) + math.fsum(self.g_per_kwh[:rest])
        return done + (hours - whole) * self.g_per_kwh[rest]


def read_intensity(path: Path) -> HourlyIntensity:
    """Read a CSV file with the columns ``hour,g_per_kwh``; hours count from 0 without gaps.

    Raises
    ------
    ConfigError
        When the file cannot be read, or a line is not the next hour with a number of 0 or more.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from None
    if not lines or [name.strip() for name in lines[0].split(",")] != ["hour", "g_per_kwh"]:
        raise ConfigError(f"{path}:1", "expected the header 'hour,g_per_kwh'")
    values: list[float] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            hour, g_per_kwh = (float(cell) for cell in line.split(","))
        except ValueError:
            raise ConfigError(f"{path}:{number}", f"expected two numbers, not {line!r}") from None
        if hour != len(values) or not 0 <= g_per_kwh < math.inf:
            raise ConfigError(f"{path}:{number}", f"expected hour {len(values)} and 0 or more g/kWh, not {line!r}")
        values.append(g_per_kwh)
    if not values:
        raise ConfigError(str(path), "has no hours")
    return HourlyIntensity(tuple(values))


@frozen
class _Grid:
    name: str
    g_per_kwh: float


def grids() -> tuple[str, ...]:
    """Return the names of the energy sources and regions that have an intensity."""
    return _names("grid-")


def grid(name: str) -> ConstantIntensity:
    """Return the intensity of an energy source (``coal``) or a region and year (``usa-2023``).

    Raises
    ------
    UnknownNameError
        When there is none of that name.
    """
    return ConstantIntensity(structure(_Grid, _entry("grid-", "grid", name)).g_per_kwh)


@frozen
class Spell:
    """Energy drawn at even power between two times since the start of the run."""

    start_s: float
    end_s: float
    joules: float

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.start_s <= self.end_s:
            raise ConfigError("spell", f"expected 0 <= start <= end, not {self.start_s} and {self.end_s}")


def operational_g(spells: Iterable[Spell], intensity: Intensity, pue: float) -> float:
    """Return grams of CO2 equivalent emitted for the energy of ``spells``, the facility's overhead included.

    Raises
    ------
    ConfigError
        When the PUE is below 1.
    """
    if not pue >= 1:
        raise ConfigError("pue", f"expected at least 1, not {pue}")
    return math.fsum(s.joules / J_PER_KWH * pue * intensity.mean_g_per_kwh(s.start_s, s.end_s) for s in spells)


# --- embodied ---


@frozen
class Part:
    """A device as embodied carbon sees it.

    Parameters
    ----------
    name : str
        Name in tables.
    footprint_kg : Range or None
        Of the whole device; None where no source gives one.
    share : float
        Share of its capacity that this run occupies.
    owned : bool
        Its making is already accounted for (M2Cache's case of an old GPU): it counts as 0.
    reason : str
        Why the footprint is not known; required where it is None.
    """

    name: str
    footprint_kg: Range | None
    share: float = field(default=1.0, validator=(validators.ge(0), validators.le(1)))
    owned: bool = False
    reason: str = ""

    def __attrs_post_init__(self) -> None:
        if self.footprint_kg is None and not self.reason:
            raise ConfigError(f"{self.name}.reason", "a part without a footprint must say why")


@frozen
class Embodied:
    """Embodied grams by part, ``total`` of all parts or None, and ``unknown``: why, a line per part."""

    by_part: tuple[tuple[str, Range | None], ...]
    total: Range | None
    unknown: tuple[str, ...]


def embodied_g(parts: Sequence[Part], elapsed_s: float, lifetime_years: float) -> Embodied:
    """Return grams of CO2 equivalent of making ``parts``, for ``elapsed_s`` of their lifetime.

    Raises
    ------
    ConfigError
        When the lifetime is not positive or the time negative.
    """
    if not lifetime_years > 0:
        raise ConfigError("lifetime_years", f"expected a positive time, not {lifetime_years}")
    if not elapsed_s >= 0:
        raise ConfigError("elapsed_s", f"expected 0 or more, not {elapsed_s}")
    time_share = elapsed_s / (lifetime_years * S_PER_YEAR)
    by_part: list[tuple[str, Range | None]] = []
    total, unknown = Range(0.0, 0.0), []
    for part in parts:
        grams: Range | None = None
        if part.owned:
            grams = Range(0.0, 0.0)
        elif part.footprint_kg is not None:
            grams = part.footprint_kg.scaled(1000 * part.share * time_share)
        if grams is None:
            unknown.append(f"{part.name}: {part.reason}")
        else:
            total += grams
        by_part.append((part.name, grams))
    return Embodied(tuple(by_part), None if unknown else total, tuple(unknown))


@frozen
class _Memory:
    name: str
    low_kg_per_gb: float
    high_kg_per_gb: float


@frozen
class _Logic:
    name: str
    materials_g_per_cm2: float
    yield_fraction: float
    package_g: float
    low_fab_grid: str
    high_fab_grid: str
    underestimate: float


@frozen
class _Node:
    name: str
    energy_kwh_per_cm2: float
    low_gas_g_per_cm2: float
    high_gas_g_per_cm2: float


@frozen
class _Die:
    name: str
    areas_mm2: tuple[float, ...]
    nodes: tuple[str, ...]
    memory: str | None = None
    board: str | None = None
    low_kg: float | None = None


@frozen
class _Board:
    name: str
    high_kg: float


@frozen
class Defaults:
    """Default grid, PUE and lifetime of hardware; every one may be overridden by a run."""

    name: str
    grid: str
    pue: float
    embodied_years: float


def defaults() -> Defaults:
    """Return the defaults of the catalogue."""
    return structure(Defaults, catalog.entry("carbon", "defaults"))


def memory_kg(kind: str, gb: float) -> Range:
    """Return the footprint of ``gb`` (1e9 bytes) of memory or storage: ``ddr``, ``hbm3``, ``ssd``, …

    Raises
    ------
    UnknownNameError
        When no source gives that kind.
    """
    found = structure(_Memory, _entry("memory-", "memory footprint", kind))
    return Range(found.low_kg_per_gb, found.high_kg_per_gb).scaled(gb)


def die_kg(area_mm2: float, node: str, fab_g_per_kwh: float, gas: float = 0.5) -> float:
    """Return ACT's footprint of one die without its package.

    Parameters
    ----------
    area_mm2 : float
        Of the die.
    node : str
        Process, e.g. ``7nm``.
    fab_g_per_kwh : float
        Grid intensity at the fab.
    gas : float
        Between the gas emissions at 99 % (0) and 95 % (1) abatement.
    """
    logic = structure(_Logic, catalog.entry("carbon", "logic"))
    process = structure(_Node, _entry("node-", "process node", node))
    gas_g = process.low_gas_g_per_cm2 + gas * (process.high_gas_g_per_cm2 - process.low_gas_g_per_cm2)
    per_cm2 = fab_g_per_kwh * process.energy_kwh_per_cm2 + gas_g + logic.materials_g_per_cm2
    return area_mm2 / 100 * per_cm2 / logic.yield_fraction / 1000


def processor_kg(device: str, memory_gb: float = 0.0) -> Range:
    """Return the footprint of a GPU with ``memory_gb`` of its own memory, or of a host processor.

    Low: the chips and packages alone, cleaner fab, less gas. High: dirtier fab, more gas, ACT's known
    underestimate of big dies; for a board at least what a source assigns to a whole one.

    A source's own figure widens the range where it is lower.

    Raises
    ------
    UnknownNameError
        When the catalogue has no die of ``device``.
    ConfigError
        When memory is given for a processor that has none on its package or board.
    """
    die = structure(_Die, _entry("die-", "die", device))
    logic = structure(_Logic, catalog.entry("carbon", "logic"))
    low_fab, high_fab = grid(logic.low_fab_grid).g_per_kwh, grid(logic.high_fab_grid).g_per_kwh
    chips = list(zip(die.areas_mm2, die.nodes, strict=True))
    low = math.fsum(die_kg(area, node, low_fab, gas=0.0) for area, node in chips)
    high = math.fsum(die_kg(area, node, high_fab, gas=1.0) for area, node in chips) * logic.underestimate
    total = Range(low, high) + Range(logic.package_g / 1000, logic.package_g / 1000)
    if memory_gb and die.memory is None:
        raise ConfigError("memory_gb", f"{device} has no memory of its own")
    if die.memory is not None:
        total += memory_kg(die.memory, memory_gb)
    if die.board is not None:
        board = structure(_Board, catalog.entry("carbon", f"board-{die.board}"))
        total = Range(total.low, max(total.high, board.high_kg))
    return total if die.low_kg is None else Range(min(total.low, die.low_kg), total.high)


def processor_part(device: str, memory_gb: float = 0.0, share: float = 1.0, owned: bool = False) -> Part:
    """Return ``device`` as a :class:`Part`, with the reason where the catalogue has no die of it."""
    try:
        return Part(device, processor_kg(device, memory_gb), share, owned)
    except UnknownNameError:
        return Part(device, None, share, owned, "no die area or footprint is published")


def memory_part(name: str, kind: str, gb: float, share: float = 1.0, owned: bool = False) -> Part:
    """Return ``gb`` of memory or storage as a :class:`Part`, with the reason where no source gives it."""
    try:
        return Part(name, memory_kg(kind, gb), share, owned)
    except UnknownNameError:
        return Part(name, None, share, owned, f"no footprint of {kind} is published")


def _names(prefix: str) -> tuple[str, ...]:
    return tuple(id.removeprefix(prefix) for id in catalog.ids("carbon") if id.startswith(prefix))


def _entry(prefix: str, kind: str, name: str) -> catalog.Entry:
    try:
        return catalog.entry("carbon", prefix + name)
    except UnknownNameError:
        raise UnknownNameError(kind, name, _names(prefix)) from None
