"""What a run costs the planet and its owner: carbon of energy and of making, dollars, and wear of the SSD.

The devices are those of the machine that was simulated: what a system leaves out draws no power and counts for
nothing here either. Processors count whole; memory and storage by the share of their capacity that the run held at
most. Capital is that of whole devices. Links are part of the boards. A device without a footprint or a price makes
the figure unknown, with the reason.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen, validators

from hetmem.errors import ConfigError
from hetmem.hardware.board import BoardConfig
from hetmem.hardware.config import MachineConfig
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine
from hetmem.monitor import carbon, cost

NO_FIGURE = "no footprint is published"


@frozen(kw_only=True)
class Accounting:
    """By what energy and devices are turned into carbon and dollars.

    Attributes
    ----------
    grid
        An energy source or region of the catalogue (``coal``, ``usa-2023``), a number in g/kWh, or the path of a
        CSV file ``hour,g_per_kwh``.
    pue
        Energy of the facility over that of the machine.
    embodied_years, capital_years
        Lifetimes over which making and price are spread.
    usd_per_kwh
        Tariff.
    endurance_tbw_per_tb
        Terabytes that may be written per terabyte of an SSD.
    owned
        Devices, by catalogue id, whose making and price are already accounted for.
    """

    grid: str
    pue: float = field(validator=validators.ge(1))
    embodied_years: float = field(validator=validators.gt(0))
    capital_years: float = field(validator=validators.gt(0))
    usd_per_kwh: float = field(validator=validators.ge(0))
    endurance_tbw_per_tb: float = field(validator=validators.gt(0))
    owned: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        intensity(self.grid)


def accounting(grid: str | None = None) -> Accounting:
    """Return the catalogue's defaults, on another ``grid`` if given."""
    made, paid = carbon.defaults(), cost.defaults()
    return Accounting(
        grid=made.grid if grid is None else grid,
        pue=made.pue,
        embodied_years=made.embodied_years,
        capital_years=paid.capital_years,
        usd_per_kwh=paid.usd_per_kwh,
        endurance_tbw_per_tb=paid.endurance_tbw_per_tb,
    )


def intensity(name: str) -> carbon.Intensity:
    """Return the grid intensity called ``name``; see :class:`Accounting`.

    Raises
    ------
    UnknownNameError, ConfigError
        When there is no such grid or file, or a number is negative.
    """
    try:
        g_per_kwh = float(name)
    except ValueError:
        return carbon.read_intensity(Path(name)) if name.lower().endswith(".csv") else carbon.grid(name)
    if not 0 <= g_per_kwh < math.inf:
        raise ConfigError("grid", f"expected 0 or more g/kWh, not {name}")
    return carbon.ConstantIntensity(g_per_kwh)


@frozen
class Device:
    """A device of a machine: its catalogue id, how many, and the share of it that the run held."""

    name: str
    kind: str
    count: int = 1
    gb: float = 0.0
    share: float = 1.0


def inventory(machine: Machine, config: MachineConfig | BoardConfig, ledger: Ledger) -> tuple[Device, ...]:
    """Return the devices behind the components of a machine, as they were used."""
    found: dict[str, Device] = {}
    for unit in machine.units:
        if len(unit.ends) < 2 and unit.component not in found:  # a link has two ends
            found[unit.component] = _device(unit.component, machine, config, ledger)
    for memory in machine.memories:
        if memory.component not in found:
            found[memory.component] = _device(memory.component, machine, config, ledger)
    return tuple(found.values())


def _device(component: str, machine: Machine, config: MachineConfig | BoardConfig, ledger: Ledger) -> Device:
    memories = [memory for memory in machine.memories if memory.component == component]
    gb = sum(memory.capacity_bytes for memory in memories) / 1e9
    held = sum(ledger.peak_bytes(memory.name) for memory in memories) / 1e9
    share = min(1.0, held / gb) if gb else 1.0  # more is held only where capacity is not enforced
    if isinstance(config, BoardConfig):
        return Device(component, "other", max(1, len(memories)), gb, share)
    if component == "gpu":
        return Device(config.gpu.name, "processor", config.gpus, config.gpu.capacity_gb)
    if component == "cpu" and config.cpu is not None:
        return Device(config.cpu.name, "processor")
    if component == "host-dram":
        return Device(component, "ddr", 1, gb, share)
    if component == "ssd" and config.ssd is not None:
        return Device(config.ssd.name, "ssd", 1, config.ssd.capacity_gb, share)
    return Device(component, "other", max(1, len(memories)), gb, share)


def parts(devices: Iterable[Device], owned: Sequence[str] = ()) -> list[carbon.Part]:
    """Return the devices as embodied carbon sees them."""
    found = []
    for device in devices:
        mine = device.name in owned
        if device.kind == "processor":
            found += [carbon.processor_part(device.name, device.gb, owned=mine)] * device.count
        elif device.kind in ("ddr", "ssd"):
            found.append(carbon.memory_part(device.name, device.kind, device.gb, device.share, mine))
        else:
            found.append(carbon.Part(device.name, None, device.share, mine, NO_FIGURE))
    return found


def purchases(devices: Iterable[Device], owned: Sequence[str] = ()) -> list[cost.Purchase]:
    """Return the devices that have to be paid for."""
    found = []
    for device in devices:
        if device.name in owned:
            continue
        name = f"memory-{device.kind}" if device.kind in ("ddr", "ssd") else device.name
        found += [cost.purchase(name, device.gb)] * device.count
    return found


@frozen
class Footprint:
    """Carbon, cost and wear of a run.

    Attributes
    ----------
    operational_g
        Grams of CO2 equivalent of the energy that could be counted.
    embodied
        Grams of making, a low and a high, by part.
    cost
        Dollars of capital and of energy.
    ssd
        Bytes read and written and the share of the rated endurance; None without an SSD.
    """

    operational_g: float
    embodied: carbon.Embodied
    cost: cost.Cost
    ssd: Mapping[str, float] | None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Why a figure is null, a line for each device."""
        embodied = (f"embodied carbon of {line}" for line in self.embodied.unknown)
        return (*embodied, *(f"price of {line}" for line in self.cost.unknown))

    def per_token(self, tokens: int) -> dict[str, Any]:
        """Return the columns of a comparison."""
        grams = self.embodied.total
        capital, energy = self.cost.per_mtoken(tokens)
        return {
            "carbon_operational_g_per_token": self.operational_g / tokens,
            "carbon_embodied_g_per_token": (
                None if grams is None else {"low": grams.low / tokens, "high": grams.high / tokens}
            ),
            "cost_usd_per_mtoken": {"capital": capital, "energy": energy},
            "ssd": None if self.ssd is None else dict(self.ssd),
            "unknown": list(dict.fromkeys(self.unknown)),
        }


def footprint(
    devices: Sequence[Device], spells: Iterable[carbon.Spell], elapsed_s: float, by: Accounting,
    ssd_bytes: tuple[int, int] | None = None,
) -> Footprint:  # fmt: skip
    """Return the footprint of a run of ``elapsed_s`` that drew ``spells``.

    Parameters
    ----------
    ssd_bytes
        Bytes read from and written to the SSD; None without one.
    """
    drawn = list(spells)
    wear = None
    for device in devices:
        if device.kind == "ssd" and ssd_bytes is not None:
            read, written = ssd_bytes
            share = cost.ssd_wear(written, round(device.gb * 1e9), by.endurance_tbw_per_tb).endurance_share
            wear = {"read_bytes": read, "written_bytes": written, "endurance_share": share}
    return Footprint(
        operational_g=carbon.operational_g(drawn, intensity(by.grid), by.pue),
        embodied=carbon.embodied_g(parts(devices, by.owned), elapsed_s, by.embodied_years),
        cost=cost.run_cost(
            purchases(devices, by.owned), math.fsum(s.joules for s in drawn), elapsed_s, by.pue, by.usd_per_kwh,
            by.capital_years,
        ),
        ssd=wear,
    )  # fmt: skip
