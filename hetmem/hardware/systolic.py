"""A chip of systolic matrix units and vector units: how long it computes.

Modelled: weight-stationary matrix units. A tile of weights is loaded into the array, then one row of
activations per cycle streams through it; a tile therefore takes ``T(B) = B + overhead`` cycles for ``B``
rows, ``overhead`` being the part of the weight load that streaming does not hide. Vector units multiply a
matrix with one vector at a fixed rate.
Input rows stay in one half of the scratchpad while the other half is filled; rows that do not fit make the
weights pass again.
Ignored: pipeline fill and drain between tiles beyond the overhead, bank conflicts of the scratchpad, and the
special function units, whose work (softmax, normalisation) streaming hides. Memory time is not here: a kernel
takes the longer of the two (double buffering).
From: H2M2, arXiv 2504.14893, hardware configuration table; the law is affine in ``B`` by assumption, its
one constant derived from the published GPT3-175B averages. Error: within 3 % of those averages.
"""

from attrs import field, frozen

from hetmem.catalog import Entry
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError
from hetmem.hardware.values import not_negative, positive, whole


@frozen
class MatrixUnit:
    """The weight-stationary systolic arrays of a chip, one per core.

    Attributes
    ----------
    rows, columns
        Size of one array, in multipliers: inputs by outputs.
    cores
        Arrays that work side by side.
    clock_hz
        Cycles per second.
    tile_overhead_cycles
        Cycles of a tile's weight load that are not hidden.
    """

    rows: int = field(validator=whole)
    columns: int = field(validator=whole)
    cores: int = field(validator=whole)
    clock_hz: float = field(validator=positive)
    tile_overhead_cycles: float = field(validator=not_negative)

    @property
    def tile_weights(self) -> int:
        """Return the weights of one tile."""
        return self.rows * self.columns

    @property
    def peak_macs_per_s(self) -> float:
        """Return the multiply-accumulates per second with every multiplier busy."""
        return self.tile_weights * self.cores * self.clock_hz

    def tiles(self, inputs: int, outputs: int) -> int:
        """Return the tiles that a weight matrix of ``inputs`` by ``outputs`` is cut into, edges padded."""
        return -(-inputs // self.rows) * -(-outputs // self.columns)

    def cycles_per_tile(self, batch: float) -> float:
        """Return ``T(B)``: the cycles of one tile with ``batch`` rows of activations."""
        return batch + self.tile_overhead_cycles

    def seconds(self, tiles: float, batch: float, passes: int = 1) -> float:
        """Return the seconds of ``tiles`` tiles over all cores, with ``batch`` rows each.

        Each tile is loaded ``passes`` times, every time for its share of the rows. Fractions of a tile are
        allowed: many heads fuse into one kernel, whose tiles spread over all cores.
        """
        return tiles * passes * self.cycles_per_tile(batch / passes) / (self.cores * self.clock_hz)


@frozen
class VectorUnit:
    """The matrix-vector units of a chip: ``lanes`` dot products of ``width`` per core and cycle."""

    lanes: int = field(validator=whole)
    width: int = field(validator=whole)
    cores: int = field(validator=whole)
    clock_hz: float = field(validator=positive)

    @property
    def peak_macs_per_s(self) -> float:
        """Return the multiply-accumulates per second."""
        return self.lanes * self.width * self.cores * self.clock_hz

    def seconds(self, macs: float) -> float:
        """Return the seconds of ``macs`` multiply-accumulates."""
        return macs / self.peak_macs_per_s


@frozen
class Scratchpad:
    """A core's double-buffered on-chip memory: one of ``buffers`` halves works while another is filled."""

    buffer_bytes: int = field(validator=whole)
    buffers: int = field(validator=whole)

    def passes(self, batch: int, row_bytes: int) -> int:
        """Return how often the weights are streamed for ``batch`` input rows of ``row_bytes`` bytes each.

        The rows of a pass rest in all buffers but the one that weights are being loaded into.

        Raises
        ------
        ConfigError
            When not even one row fits.
        """
        rows = self.buffer_bytes * max(1, self.buffers - 1) // row_bytes
        if rows < 1:
            raise ConfigError("row_bytes", f"a row of {row_bytes} bytes exceeds the scratchpad")
        return -(-batch // rows)


@frozen
class Chip:
    """One accelerator chip: matrix units, vector units and the scratchpad of each core."""

    matrix: MatrixUnit
    vector: VectorUnit
    scratchpad: Scratchpad

    @classmethod
    def from_entry(cls, entry: Entry) -> "Chip":
        """Return the chip of a catalogue entry, such as ``catalog.entry("chips", "h2m2")``.

        Raises
        ------
        ConfigError
            When a key is missing or unknown, or a value is out of range.
        """
        flat = structure(_ChipTable, entry)
        cores, clock_hz = flat.cores, flat.clock_hz
        rows, columns, overhead = flat.array_rows, flat.array_columns, flat.tile_overhead_cycles
        return cls(
            matrix=MatrixUnit(rows, columns, cores, clock_hz, overhead),
            vector=VectorUnit(flat.vector_lanes, flat.vector_width, cores, clock_hz),
            scratchpad=Scratchpad(flat.scratchpad_buffer_bytes, flat.scratchpad_buffers),
        )


@frozen
class _ChipTable:
    name: str
    cores: int = field(validator=whole)
    clock_hz: float = field(validator=positive)
    array_rows: int = field(validator=whole)
    array_columns: int = field(validator=whole)
    tile_overhead_cycles: float = field(validator=not_negative)
    vector_lanes: int = field(validator=whole)
    vector_width: int = field(validator=whole)
    scratchpad_buffer_bytes: int = field(validator=whole)
    scratchpad_buffers: int = field(validator=whole)
