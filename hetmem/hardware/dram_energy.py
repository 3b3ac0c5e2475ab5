"""Energy of a DRAM access by how far the data travels: row, cell, multiplexers, TSV, interposer.

Modelled: dynamic energy per bit along the path (AttAcc!, ASPLOS 2024, after its simulator). Ignored: refresh
and background power. A unit inside the stack pays only the part of the path that its data takes.
"""

from attrs import frozen

from hetmem.hardware.component_energy import ComponentEnergy

_J_PER_BYTE = 8e-12  # one pJ/bit


@frozen
class DramEnergy:
    """Energies along the path of a bit, pJ."""

    row_pj_per_bit: float
    cell_pj_per_bit: float
    bank_group_mux_pj_per_bit: float
    channel_mux_pj_per_bit: float
    tsv_pj_per_bit: float
    interposer_pj_per_bit: float

    def read(self, n_bytes: float) -> ComponentEnergy:
        """Return the energy of ``n_bytes`` that leave the stack over the interposer."""
        bus = (
            self.bank_group_mux_pj_per_bit
            + self.channel_mux_pj_per_bit
            + self.tsv_pj_per_bit
            + self.interposer_pj_per_bit
        )
        return self.inside(n_bytes, bus)

    def path_pj_per_bit(self, mux: bool, channel: bool) -> float:
        """Return the energy of the bus to a unit behind the bank group's ``mux``, or the ``channel``."""
        beyond = self.channel_mux_pj_per_bit + self.tsv_pj_per_bit
        return (self.bank_group_mux_pj_per_bit if mux or channel else 0.0) + (beyond if channel else 0.0)

    def inside(self, n_bytes: float, bus_pj_per_bit: float) -> ComponentEnergy:
        """Return the energy of ``n_bytes`` read from the cells and carried along the path to the unit."""
        return ComponentEnergy(
            dram_row=self.row_pj_per_bit * n_bytes * _J_PER_BYTE,
            dram_cell=self.cell_pj_per_bit * n_bytes * _J_PER_BYTE,
            dram_bus=bus_pj_per_bit * n_bytes * _J_PER_BYTE,
        )
