"""The board as data: memories with compute chips of their own, the link between them, and their paging.

What a user names (``machines.toml``) resolved to numbers. A board has a fast memory, a slow one, or both; who
computes where and what goes over the link is for the system to say.
From: H2M2, arXiv 2504.14893, and the baselines that it compares with.
"""

from typing import Any

from attrs import evolve, field, frozen
from attrs.validators import ge, in_, optional

from hetmem import catalog
from hetmem.catalog import Entry
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError
from hetmem.hardware.kernel_cost import Side, SideMemory
from hetmem.hardware.link import Link, link
from hetmem.hardware.paging import Translation
from hetmem.hardware.systolic import Chip
from hetmem.hardware.values import fraction, not_negative

UNITS = ("matrix", "vector")


@frozen(kw_only=True)
class Abstraction:
    """Which costs of paged memory a run pays; for measuring each by leaving it out.

    Attributes
    ----------
    paged
        Whether memory is paged at all; without, tensors take their exact bytes and nothing below costs.
    translation
        Whether page walks cost time.
    upkeep
        Whether writing page tables costs time.
    migration
        Whether pages that change sides are copied, or arrive at once.
    """

    paged: bool = True
    translation: bool = True
    upkeep: bool = True
    migration: bool = True


@frozen(kw_only=True)
class BoardConfig:
    """A board; parts that it has not are None.

    Attributes
    ----------
    fast, slow
        The memories.
    fast_chip, slow_chip, chips
        The kind of chip that computes on each memory, and how many of it.
    devices
        Fast memories, each with its chips, that share every kernel.
    link
        Between the chips: its one path carries activations and pages, each direction apart.
    paging, abstraction
        The translation law, and which of its costs are paid.
    decision_s_per_candidate
        Seconds that a mapping policy takes for each split that it compares.
    overlap
        Fraction hidden of what computing and moving data up have in common.
    gqa_reuse, gqa_unit
        Whether a key/value head is read once for all its query heads, and which units compute attention then.
    decoder_only
        Whether embedding and output head are left out, in time and in memory.
    base_w
        Watts of everything else; None is not counted.
    """

    fast: SideMemory | None = None
    slow: SideMemory | None = None
    fast_chip: Chip | None = None
    slow_chip: Chip | None = None
    chips: int = field(validator=ge(1))
    devices: int | None = field(default=None, validator=optional(ge(1)))
    link: Link | None = None
    paging: Translation | None = None
    abstraction: Abstraction | None = None
    decision_s_per_candidate: float | None = field(default=None, validator=optional(not_negative))
    overlap: float | None = field(default=None, validator=optional(fraction))
    gqa_reuse: bool
    gqa_unit: str = field(validator=in_(UNITS))
    decoder_only: bool
    base_w: float | None = None

    def side(self, name: str) -> Side:
        """Return the memory ``"fast"`` or ``"slow"`` with its chips.

        Raises
        ------
        ConfigError
            When the board has no such memory.
        """
        memory, chip = (self.part(part, getattr(self, part)) for part in (name, f"{name}_chip"))
        return Side(memory, chip, self.chips)

    @staticmethod
    def part(name: str, value: Any) -> Any:
        """Return ``value``; raise :class:`ConfigError` where the board has no part ``name``."""
        if value is None:
            raise ConfigError(f"machine.{name}", "is missing on this board")
        return value


@frozen(kw_only=True)
class _BoardPreset:
    name: str
    fast: str | None = None
    slow: str | None = None
    chip: str
    computes: tuple[str, ...]
    chips: int
    devices: int | None = None
    link: str | None = None
    paging: str | None = None
    decision_s_per_candidate: float | None = None
    overlap: float | None = None
    gqa_unit: str


def is_board(entry: Entry) -> bool:
    """Return whether a machine preset describes a board."""
    return "fast" in entry.facts or "slow" in entry.facts


def board(entry: Entry, *, sustained: bool, link_efficiency: bool, gqa_reuse: bool, decoder_only: bool) -> BoardConfig:
    """Return the board of a machine preset.

    Parameters
    ----------
    sustained, link_efficiency
        Whether memories and link achieve what is measured, or what is printed.
    gqa_reuse, decoder_only
        See :class:`BoardConfig`.

    Raises
    ------
    UnknownNameError, ConfigError
        When a part is not in the catalogue, or a key is unknown.
    """
    parts = structure(_BoardPreset, entry)

    def side(name: str | None) -> SideMemory | None:
        return None if name is None else SideMemory.from_entry(catalog.entry("sides", name), sustained)

    def chip(name: str) -> Chip | None:
        return Chip.from_entry(catalog.entry("chips", parts.chip)) if name in parts.computes else None

    wire = None if parts.link is None else link(parts.link)
    if wire is not None and wire.peer is not None and not link_efficiency:
        wire = evolve(wire, peer=evolve(wire.peer, gbs=wire.peak_gbs))
    return BoardConfig(
        fast=side(parts.fast), slow=side(parts.slow), fast_chip=chip("fast"), slow_chip=chip("slow"), chips=parts.chips,
        devices=parts.devices, link=wire,
        paging=None if parts.paging is None else Translation.from_entry(catalog.entry("mmus", parts.paging)),
        abstraction=None if parts.paging is None else Abstraction(),
        decision_s_per_candidate=parts.decision_s_per_candidate, overlap=parts.overlap, gqa_reuse=gqa_reuse,
        gqa_unit=parts.gqa_unit, decoder_only=decoder_only,
    )  # fmt: skip
