"""Energy of a piece of work split by the component that spends it.

Modelled: dynamic energy, a share per component. Ignored: static and idle power (the server's states own
those).
"""

from math import fsum

from attrs import asdict, fields, frozen


@frozen
class ComponentEnergy:
    """Dynamic energy by component, joules.

    ``dram_row`` is activation and precharge, ``dram_cell`` the column access, ``dram_bus`` everything from
    the bank's edge to the reader (multiplexers, TSV, interposer, buffer die), ``sram`` the buffers of a PIM
    unit or of its buffer die, ``pim_mac`` its arithmetic, ``gpu_cache`` L2, L1 and registers, ``gpu_alu`` the
    GPU's arithmetic, ``link`` what crosses between devices.
    """

    dram_row: float = 0.0
    dram_cell: float = 0.0
    dram_bus: float = 0.0
    sram: float = 0.0
    pim_mac: float = 0.0
    gpu_cache: float = 0.0
    gpu_alu: float = 0.0
    link: float = 0.0

    def __add__(self, other: "ComponentEnergy") -> "ComponentEnergy":
        return ComponentEnergy(*(getattr(self, name) + getattr(other, name) for name in COMPONENTS))

    def __mul__(self, factor: float) -> "ComponentEnergy":
        return ComponentEnergy(*(getattr(self, name) * factor for name in COMPONENTS))

    __rmul__ = __mul__

    @property
    def total(self) -> float:
        """Sum over the components, joules."""
        return fsum(self.by_component().values())

    @property
    def dram(self) -> float:
        """DRAM's part: rows, cells and buses, joules."""
        return self.dram_row + self.dram_cell + self.dram_bus

    def by_component(self) -> dict[str, float]:
        """Return the components by name, joules."""
        return asdict(self)


NO_ENERGY = ComponentEnergy()
COMPONENTS = tuple(field.name for field in fields(ComponentEnergy))
