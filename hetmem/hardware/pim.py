"""HBM stacks with processing units (PIM): how many banks, how fast, what fits a die and its power.

Modelled: units written xPyB (x units per y banks), at the bank, at the bank group or on the buffer die; the
all-bank MAC rate with or without the cube's power limit; weight passes that serve as many tokens as a bank
has units; banks given up for the area of the units; the power of a design. Ignored: thermal throttling over
time, input broadcast inside the stack. Sources: PAPI (ASPLOS 2025) for the nPmB designs, AttAcc! (ASPLOS
2024) and its simulator for rates and energies.
"""

import re
from math import ceil

from attrs import field, frozen

from hetmem.catalog import entry
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError
from hetmem.hardware.component_energy import ComponentEnergy
from hetmem.hardware.dram_energy import DramEnergy

WORD_BYTES = 2  # FP16
FITTED_HEAD_DIM = 128  # of the runs behind the row and refresh terms
_PJ = 1e-12


@frozen
class Units:
    """An xPyB arrangement: ``fpus`` processing units for every ``banks`` banks."""

    fpus: int
    banks: int

    @classmethod
    def parse(cls, text: str) -> "Units":
        """Return the arrangement written as ``"4P1B"``.

        Raises
        ------
        ConfigError
            When ``text`` is not of that form.
        """
        match = re.fullmatch(r"([1-9]\d*)P([1-9]\d*)B", text.strip(), re.IGNORECASE)
        if match is None:
            raise ConfigError("units", f"{text!r} is not of the form '4P1B' (units per banks)")
        return cls(int(match[1]), int(match[2]))

    @property
    def per_bank(self) -> float:
        """Units per bank."""
        return self.fpus / self.banks

    @property
    def tokens_per_pass(self) -> int:
        """Tokens served by one pass over the weights: one per unit of a bank, at least one."""
        return max(1, self.fpus // self.banks)

    @property
    def bank_share(self) -> float:
        """Part of the banks that can be read at once: one unit serves its banks in turn."""
        return min(1.0, self.per_bank)

    def __str__(self) -> str:
        return f"{self.fpus}P{self.banks}B"


@frozen
class PimLevel:
    """Where the units sit: banks read per all-bank access and channel, its spacing, and the round costs.

    ``bandwidth_factor`` is the internal over the external bandwidth that power allows; ``*_clocks`` are the
    constants of the attention law of :mod:`hetmem.hardware.pim_attention`.
    """

    name: str
    banks_per_access: int
    spacing_clocks: int
    bandwidth_factor: float
    pair_clocks: float
    odd_clocks: float
    first_clocks: float
    block_clocks: float


@frozen
class StackGeometry:
    """An HBM stack as its units see it; energies in pJ per MAC and per softmax buffer byte."""

    name: str
    channels: int
    banks_per_channel: int
    bank_groups_per_rank: int
    dies: int
    access_bytes: int
    clock_s: float
    external_bytes_per_s: float
    capacity_bytes: int
    bucket_tokens: int
    row_block_tokens: int
    refresh_interval_clocks: int
    refresh_clocks: int
    mac_pj: float
    softmax_buffer_pj_per_byte: float
    dram: DramEnergy

    @classmethod
    def named(cls, name: str = "hbm3-pim") -> "StackGeometry":
        """Return the stack of the catalogue called ``name``.

        Raises
        ------
        UnknownNameError
            When the catalogue has no such stack.
        """
        return structure(cls, entry("pim_stacks", name))

    @property
    def banks_per_die(self) -> int:
        """Banks of a die without units."""
        return self.channels * self.banks_per_channel // self.dies


@frozen(cache_hash=True)
class PimStack:
    """One stack with units: the machine part that FC and attention laws take.

    ``bank_fraction`` is the part of the plain stack's banks that is left beside the units. ``sustained`` weight
    streams also pay for opening rows and refresh, at the rates of the attention law.
    """

    geometry: StackGeometry
    level: PimLevel
    units: Units
    bank_fraction: float = field(default=1.0)
    sustained: bool = False

    @bank_fraction.validator
    def _check_fraction(self, _: object, value: float) -> None:
        if not 0 < value <= 1:
            raise ConfigError("bank_fraction", f"expected a number in (0, 1], not {value!r}")

    @property
    def banks(self) -> int:
        """Banks of the stack."""
        return round(self.geometry.channels * self.geometry.banks_per_channel * self.bank_fraction)

    @property
    def capacity_bytes(self) -> int:
        """Bytes that the stack stores."""
        return int(self.geometry.capacity_bytes * self.bank_fraction)

    @property
    def read_share(self) -> float:
        """Part of a plain stack's banks that is read at once."""
        return self.bank_fraction * self.units.bank_share

    @property
    def mac_peak_bytes_per_s(self) -> float:
        """Bytes/s when every all-bank access follows the last at the least spacing."""
        stack, level = self.geometry, self.level
        access = stack.channels * level.banks_per_access * stack.access_bytes
        return access / (level.spacing_clocks * stack.clock_s) * self.read_share

    @property
    def weight_bytes_per_s(self) -> float:
        """Bytes/s of weights past the units: the MAC peak, or what power allows if that is less."""
        allowed = self.level.bandwidth_factor * self.geometry.external_bytes_per_s * self.read_share
        return min(self.mac_peak_bytes_per_s * (self.stream_share if self.sustained else 1.0), allowed)

    @property
    def stream_share(self) -> float:
        """Part of the MAC peak that a long stream keeps beside row openings and refresh."""
        stack, level = self.geometry, self.level
        block_bytes = 2 * stack.row_block_tokens * FITTED_HEAD_DIM * WORD_BYTES  # K and V
        clocks = block_bytes / (level.banks_per_access * stack.access_bytes) * level.spacing_clocks
        duty = 1 - stack.refresh_clocks / stack.refresh_interval_clocks
        return clocks / (clocks + level.block_clocks) * duty

    @property
    def bus_pj_per_bit(self) -> float:
        """Energy of the path from a bank to its unit."""
        # A unit on the buffer die is behind the channel; a unit at its bank needs no multiplexer.
        alone = self.level.banks_per_access == self.geometry.banks_per_channel
        return self.geometry.dram.path_pj_per_bit(mux=not alone, channel=self.level.banks_per_access == 1)

    def array_energy(self, n_bytes: float) -> ComponentEnergy:
        """Return the energy of reading ``n_bytes`` into the units."""
        return self.geometry.dram.inside(n_bytes, self.bus_pj_per_bit)

    def mac_energy(self, macs: float) -> ComponentEnergy:
        """Return the energy of ``macs`` multiply-accumulates of the units."""
        return ComponentEnergy(pim_mac=_PJ * self.geometry.mac_pj * macs)


def pim_stack(units: str = "1P1B", level: str = "bank", power_limit: bool = True, stack: str = "hbm3-pim") -> PimStack:
    """Return a stack with ``units`` (xPyB) at ``level`` (bank, bank-group or buffer), as many banks as fit.

    Raises
    ------
    ConfigError
        When ``units`` is not of the form xPyB, or too large for the die.
    UnknownNameError
        When the catalogue has no such stack or level.
    """
    # The buffer die's units are held back by the channels, not by power: it has one level for both.
    name = f"{level}-limited" if power_limit and level != "buffer" else level
    check = check_design(units, stack=stack)
    geometry = StackGeometry.named(stack)
    # Units at a bank group or on the buffer die take no area from the banks.
    fraction = check.banks_per_die / geometry.banks_per_die if level == "bank" else 1.0
    return PimStack(geometry, structure(PimLevel, entry("pim_levels", name)), Units.parse(units), fraction)


@frozen
class FcPass:
    """FC on PIM: ``passes`` over the weights, seconds, and energy over all stacks."""

    passes: int
    time_s: float
    energy: ComponentEnergy


def fc_on_pim(stack: PimStack, stacks: int, weight_bytes: float, tokens: int) -> FcPass:
    """Return the cost of ``tokens`` through ``weight_bytes`` spread evenly over ``stacks``.

    A pass serves as many tokens as a bank has units, so the time steps at multiples of that.
    """
    passes = ceil(tokens / stack.units.tokens_per_pass)
    return FcPass(
        passes=passes,
        time_s=weight_bytes * passes / (stacks * stack.weight_bytes_per_s),
        energy=stack.array_energy(weight_bytes * passes) + stack.mac_energy(weight_bytes / WORD_BYTES * tokens),
    )


@frozen
class _DesignRules:
    name: str
    die_area_mm2: float
    bank_area_mm2: float
    fpu_area_mm2: float
    fpu_bytes_per_s: float
    power_budget_w: float
    background_power_w: float


@frozen
class DesignCheck:
    """Whether an xPyB design fits the die and the cube's power budget.

    ``area_limit_banks`` is the real-valued bound that the area law gives, ``banks_per_die`` the whole bank
    groups that it leaves; ``power_w`` is drawn with every bank busy and each row access serving ``reuse``
    tokens.
    """

    units: str
    reuse: int
    area_limit_banks: float
    banks_per_die: int
    banks_per_stack: int
    area_mm2: float
    area_budget_mm2: float
    power_w: float
    power_budget_w: float

    @property
    def fits_power(self) -> bool:
        """Whether the design stays inside the cube's power budget at this reuse."""
        return self.power_w <= self.power_budget_w


def check_design(units: str, reuse: int = 1, stack: str = "hbm3-pim", design: str = "papi") -> DesignCheck:
    """Check an xPyB design against the die's area and the cube's power budget.

    Area: ``m * (units per bank * unit area + bank area) <= die area``, in whole bank groups, never more than
    the plain die. Power: background plus bytes read per second times (DRAM energy over the reuse, plus MAC
    energy). PAPI (ASPLOS 2025), its area and power analysis.

    Raises
    ------
    ConfigError
        When ``units`` or ``reuse`` is malformed, or not one bank group fits.
    """
    if reuse < 1:
        raise ConfigError("reuse", f"expected at least 1 token per row access, not {reuse!r}")
    parsed = Units.parse(units)
    rules = structure(_DesignRules, entry("pim_designs", design))
    geometry = StackGeometry.named(stack)
    bank_mm2 = parsed.per_bank * rules.fpu_area_mm2 + rules.bank_area_mm2
    limit = rules.die_area_mm2 / bank_mm2
    group = geometry.banks_per_die // geometry.bank_groups_per_rank
    banks = min(int(limit // group) * group, geometry.banks_per_die)
    if banks == 0:
        raise ConfigError("units", f"{parsed} leaves {limit:.1f} banks on a die, less than a bank group of {group}")
    dram_pj = 8 * (geometry.dram.row_pj_per_bit + geometry.dram.cell_pj_per_bit)
    rate = banks * geometry.dies * parsed.per_bank * rules.fpu_bytes_per_s
    busy_w = rate * (dram_pj / reuse + geometry.mac_pj / WORD_BYTES) * _PJ
    return DesignCheck(
        units=str(parsed),
        reuse=reuse,
        area_limit_banks=limit,
        banks_per_die=banks,
        banks_per_stack=banks * geometry.dies,
        area_mm2=banks * bank_mm2,
        area_budget_mm2=rules.die_area_mm2,
        power_w=rules.background_power_w + busy_w,
        power_budget_w=rules.power_budget_w,
    )
