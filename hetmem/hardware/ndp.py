"""DIMMs with a near-data processing core: the time of a matrix-vector product on one of them.

The core sits in the DIMM's centre buffer, reads all ranks, and multiplies with bit-serial units, each of which
handles ``lanes`` FP16 values and takes ``cycles_per_step`` cycles for a step (Hermes, HPCA'25, section IV). The
paper gives neither the cycles nor how many ranks are read in parallel, nor whether reading and multiplying
overlap, so all three are parameters of a preset. Not modelled: the 256 KB buffer's misses, host accesses
that close rows.
"""

from functools import cached_property

from attrs import field, frozen
from attrs.validators import ge, gt

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.hardware.dram import DramDevice, memory
from hetmem.units import to_fj

PRESETS = ("paper-fit", "datasheet")


@frozen(kw_only=True)
class NdpDimms:
    """A pool of equal NDP-DIMMs.

    Attributes
    ----------
    count, capacity_bytes
        DIMMs, and the bytes of each.
    read_gbs
        GB/s that a core reads from its ranks.
    device
        The DRAM whose sustained efficiency and energy apply.
    sustained
        Whether ``read_gbs`` is a peak, to be multiplied by the device's efficiency, or what is achieved already.
    multipliers, lanes, cycles_per_step, clock_ghz
        The bit-serial multipliers of a core.
    overlapped
        Whether reading and multiplying overlap or follow each other.
    core_w, mac_pj, buffer_pj_per_byte, dimm_idle_w
        Static watts of a core, energy of a multiply-accumulate and of a buffered byte, watts of an idle DIMM.
    """

    name: str
    count: int = field(validator=ge(1))
    capacity_bytes: int = field(validator=gt(0))
    read_gbs: float = field(validator=gt(0))
    device: str
    sustained: bool = False
    multipliers: int = field(validator=ge(1))
    lanes: int = field(validator=ge(1))
    cycles_per_step: float = field(validator=gt(0))
    clock_ghz: float = field(validator=gt(0))
    overlapped: bool
    core_w: float = field(validator=ge(0))
    mac_pj: float = field(validator=ge(0))
    buffer_pj_per_byte: float = field(validator=ge(0))
    dimm_idle_w: float = field(validator=ge(0))

    @property
    def macs_per_s(self) -> float:
        """Multiply-accumulates per second of one core."""
        return self.multipliers * self.lanes * self.clock_ghz * 1e9 / self.cycles_per_step

    @cached_property
    def dram(self) -> DramDevice:
        """The ranks that the core reads, each by itself."""
        return memory(self.device).per_rank()

    def read_bytes_per_s(self, chunk_bytes: float | None = None) -> float:
        """Return the bytes per second that one core reads in chunks of ``chunk_bytes`` (None: a stream)."""
        achieved = 1.0 if self.sustained else self.dram.efficiency(chunk_bytes)
        return self.read_gbs * 1e9 * achieved

    def write_bytes_per_s(self, chunk_bytes: float | None = None) -> float:
        """Return the bytes per second that reach one DIMM's ranks in chunks of ``chunk_bytes`` (None: a stream)."""
        achieved = 1.0 if self.sustained else self.dram.efficiency(chunk_bytes, write_fraction=1.0)
        return self.read_gbs * 1e9 * achieved

    def mac_s(self, macs: float) -> float:
        """Return the seconds that one core needs for ``macs`` multiply-accumulates."""
        return macs / self.macs_per_s

    def read_fj(self, n_bytes: float) -> int:
        """Return the femtojoules to read ``n_bytes`` as a stream into the buffer."""
        return self._access_fj(n_bytes, 0.0)

    def write_fj(self, n_bytes: float) -> int:
        """Return the femtojoules to write ``n_bytes`` as a stream out of the buffer."""
        return self._access_fj(n_bytes, 1.0)

    @cached_property
    def access_counted(self) -> bool:
        """Whether the energy of the DRAM itself is known; otherwise an access costs that of the buffer only."""
        return self.dram.energy_j(1.0) is not None

    def _access_fj(self, n_bytes: float, write_fraction: float) -> int:
        ranks_j = self.dram.energy_j(n_bytes, write_fraction=write_fraction) if self.access_counted else None
        return to_fj((ranks_j or 0.0) + n_bytes * self.buffer_pj_per_byte * 1e-12)

    def mac_fj(self, macs: float) -> int:
        """Return the femtojoules of ``macs`` multiply-accumulates."""
        return to_fj(macs * self.mac_pj * 1e-12)


def ndp_dimms(preset: str) -> NdpDimms:
    """Return the catalogue's NDP-DIMMs under ``preset``, one of :data:`PRESETS`.

    Raises
    ------
    UnknownNameError
        When there is no such preset.
    """
    return structure(NdpDimms, catalog.entry("ndp", preset))
