"""The closed form of a decode iteration over two memories with compute, and over the baselines' memories.

Every sub-layer of a decoder layer takes the longer of its two halves, each half the longer of its memory time
and its compute time, and the sub-layers follow one another: ``t = sum over sub-layers of max(fast, slow)``.
Weights are multiplied by the matrix units with the tile law of :mod:`hetmem.hardware.systolic`; attention is
a product of one vector per head with its KV, on the vector units or on the matrix units.
Mapping policies estimate with it (:func:`mapping_view`), and an event-driven run in which nothing contends
must give the same times.
Modelled: bytes over bandwidth, the tile law, re-reading of KV by query heads, passes of weights past a full
scratchpad, rounding to pages and page walks where a :class:`~hetmem.hardware.paging.Translation` is given.
Ignored: activations (about 1 MB per sub-layer), access latency, links, migration, prefill.
From: the mechanism of H2M2, arXiv 2504.14893; the formula is ours. Error: see
``tests/paper/test_h2m2_closed_form.py``.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import evolve, field, frozen

from hetmem.catalog import Entry
from hetmem.catalog.structure import structure
from hetmem.errors import CapacityError, ConfigError
from hetmem.hardware.dram import memory
from hetmem.hardware.paging import Count, Translation
from hetmem.hardware.systolic import Chip
from hetmem.hardware.values import fraction, not_negative, positive, whole
from hetmem.policy.kernel_mapping import SUBLAYERS, Mapping, MappingView, SplitTable, Tier

Seconds = npt.NDArray[np.float64]
Parts = npt.NDArray[np.int64]


@frozen
class SideMemory:
    """The memory of one side.

    Attributes
    ----------
    capacity_bytes, bandwidth_bytes_per_s
        Size, and peak rate.
    latency_s
        Seconds until the first byte of a kernel's stream.
    efficiency
        Fraction of the peak that a stream sustains.
    pj_per_bit
        Energy of a bit moved; None where no figure is known.
    """

    name: str
    capacity_bytes: int = field(validator=whole)
    bandwidth_bytes_per_s: float = field(validator=positive)
    latency_s: float = field(validator=not_negative)
    efficiency: float = field(default=1.0, validator=[positive, fraction])
    pj_per_bit: float | None = None

    @classmethod
    def from_entry(cls, entry: Entry, sustained: bool = False) -> "SideMemory":
        """Return the memory of a catalogue entry, such as ``catalog.entry("sides", "hbm3")``.

        With ``sustained`` a stream gets what the entry's DRAM device sustains, not the peak.

        Raises
        ------
        ConfigError
            When a key is missing or unknown, or a value is out of range.
        """
        flat = structure(_SideTable, entry)
        device = memory(flat.device)
        joules = device.energy_j(1.0)
        return cls(
            flat.name, flat.capacity_bytes, flat.bandwidth_bytes_per_s, flat.latency_s,
            efficiency=device.efficiency() if sustained else 1.0,
            pj_per_bit=None if joules is None else joules * 1e12 / 8,
        )  # fmt: skip

    @property
    def rate_bytes_per_s(self) -> float:
        """Return the bytes per second that a stream achieves."""
        return self.bandwidth_bytes_per_s * self.efficiency

    @property
    def tier(self) -> Tier:
        """Return the memory as a policy sees it."""
        return Tier(self.name, self.capacity_bytes)


@frozen
class _SideTable:
    name: str
    capacity_bytes: int
    bandwidth_bytes_per_s: float
    latency_s: float
    device: str


@frozen
class Side:
    """One memory and the ``chips`` that compute on it."""

    memory: SideMemory
    chip: Chip
    chips: int = field(default=1, validator=whole)


def _check_unit(instance: Any, attribute: Any, value: Any) -> None:
    if value not in ("vector", "matrix"):
        raise ConfigError(attribute.name, f"expected 'vector' or 'matrix', not {value!r}")


@frozen
class DecodeWork:
    """What one decode iteration has to read and multiply.

    Attributes
    ----------
    layers
        Decoder layers, all alike.
    heads, kv_heads
        Query heads, and the key/value heads that they share.
    head_dim
        Elements of a head.
    qkv_weights, fc_weights
        Weights per layer: of the Q, K and V projections; of the output projection and feed-forward network.
    batch
        Requests, each with one new token.
    context_tokens
        Tokens in the KV cache, summed over the requests.
    weight_bits, kv_bits
        Bits per element.
    qkv_row_bytes, fc_row_bytes
        Bytes of the widest input row of the two, which decides how often weights pass the scratchpad.
    gqa_reuse
        Whether a key/value head is read once for all its query heads; otherwise once for each of them.
    attention_unit
        ``"vector"`` or ``"matrix"``: the units that compute attention.
    """

    layers: int = field(validator=whole)
    heads: int = field(validator=whole)
    kv_heads: int = field(validator=whole)
    head_dim: int = field(validator=whole)
    qkv_weights: int = field(validator=whole)
    fc_weights: int = field(validator=whole)
    batch: int = field(validator=whole)
    context_tokens: int = field(validator=not_negative)
    weight_bits: int = field(default=8, validator=whole)
    kv_bits: int = field(default=8, validator=whole)
    qkv_row_bytes: int = field(default=1, validator=whole)
    fc_row_bytes: int = field(default=1, validator=whole)
    gqa_reuse: bool = False
    attention_unit: str = field(default="vector", validator=_check_unit)

    def __attrs_post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError("kv_heads", f"{self.heads} query heads cannot share {self.kv_heads} evenly")

    @property
    def group(self) -> int:
        """Return the query heads per key/value head."""
        return self.heads // self.kv_heads

    @property
    def kv_reads(self) -> int:
        """Return how often an iteration reads each byte of KV."""
        return 1 if self.gqa_reuse else self.group

    def parts(self, sublayer: str) -> int:
        """Return the equal parts of ``sublayer``: key/value heads, or column slices for ``fc``."""
        return self.heads if sublayer == "fc" else self.kv_heads

    def layer_elements(self, sublayer: str) -> int:
        """Return the weights or KV elements that one layer of ``sublayer`` holds."""
        if sublayer == "attention":
            return 2 * self.kv_heads * self.head_dim * self.context_tokens
        return self.qkv_weights if sublayer == "qkv" else self.fc_weights

    def stored_bytes(self, sublayer: str, elements: Count) -> Count:
        """Return the whole bytes that ``elements`` weights or KV elements of ``sublayer`` take."""
        bits = self.kv_bits if sublayer == "attention" else self.weight_bits
        return -(-elements * bits // 8)

    def layer_bytes(self, sublayer: str) -> int:
        """Return the bytes that one layer of ``sublayer`` holds."""
        return self.stored_bytes(sublayer, self.layer_elements(sublayer))

    def reads(self, sublayer: str, chip: Chip) -> int:
        """Return how often an iteration reads each byte: weights stream past the rows in the scratchpad."""
        if sublayer == "attention":
            return self.kv_reads
        row_bytes = self.qkv_row_bytes if sublayer == "qkv" else self.fc_row_bytes
        return chip.scratchpad.passes(self.batch, row_bytes)

    @property
    def footprint_bytes(self) -> int:
        """Return the bytes of all weights and KV."""
        return self.layers * sum(self.layer_bytes(name) for name in SUBLAYERS)

    @property
    def moved_bytes(self) -> int:
        """Return the bytes that an iteration reads, re-reads included."""
        weights = self.layer_bytes("qkv") + self.layer_bytes("fc")
        return self.layers * (weights + self.layer_bytes("attention") * self.kv_reads)


def half_elements(work: DecodeWork, sublayer: str, fast_parts: Count) -> tuple[Count, Count]:
    """Return the elements of one layer of ``sublayer`` on the fast and on the slow side.

    Of a layer that does not divide evenly the slow side holds the rest, so that nothing is lost.
    """
    elements = work.layer_elements(sublayer)
    fast = elements * fast_parts // work.parts(sublayer)
    return fast, elements - fast


def element_compute_s(work: DecodeWork, sublayer: str, chip: Chip, rows: float = 1.0) -> float:
    """Return the seconds that a chip computes on one weight or KV element.

    ``rows`` is the new tokens that each key of attention meets on average: one in decode.
    """
    matrix = chip.matrix
    if sublayer != "attention":
        return matrix.seconds(1 / matrix.tile_weights, work.batch, work.reads(sublayer, chip))
    if work.attention_unit == "vector":
        return chip.vector.seconds(work.group * rows)
    # KV stays in the array, the query heads that share a read stream through it.
    streamed = rows * work.group / work.kv_reads
    return matrix.seconds(work.kv_reads / matrix.tile_weights, streamed)


def half_kernel_s(work: DecodeWork, sublayer: str, elements: Parts, stored: Parts, side: Side) -> Seconds:
    """Return the seconds that ``elements`` of a layer, ``stored`` bytes of them, take on ``side``, all layers."""
    memory_s = stored * work.reads(sublayer, side.chip) / side.memory.rate_bytes_per_s
    compute_s = elements / side.chips * element_compute_s(work, sublayer, side.chip)
    return work.layers * np.maximum(memory_s, compute_s)


def split_table(
    work: DecodeWork, sublayer: str, fast: Side, slow: Side, paging: Translation | None = None
) -> SplitTable:
    """Return what each split of ``sublayer`` costs; that of weights does not depend on the context.

    With ``paging``, tensors occupy whole pages (one tensor per layer and side).
    """

    halves = np.array(half_elements(work, sublayer, np.arange(work.parts(sublayer) + 1)))
    held = work.stored_bytes(sublayer, halves)
    fast_s, slow_s = (
        half_kernel_s(work, sublayer, elements, stored, side)
        for elements, stored, side in zip(halves, held, (fast, slow), strict=True)
    )
    if paging is not None:
        held = paging.pages(held) * paging.page_bytes
    return SplitTable(fast_s, slow_s, *(work.layers * held))


def mapping_view(work: DecodeWork, fast: Side, slow: Side, paging: Translation | None = None) -> MappingView:
    """Return what a mapping policy may know of ``work`` on two sides."""
    attention, qkv, fc = (split_table(work, name, fast, slow, paging) for name in SUBLAYERS)
    return MappingView(attention, qkv, fc, fast.memory.tier, slow.memory.tier)


def tensor_bytes(work: DecodeWork, mapping: Mapping) -> dict[str, tuple[int, int]]:
    """Return for each sub-layer the bytes of its tensor in one layer on the fast and on the slow side."""
    sizes = {}
    for name in SUBLAYERS:
        fast, slow = half_elements(work, name, getattr(mapping, name))
        sizes[name] = (work.stored_bytes(name, fast), work.stored_bytes(name, slow))
    return sizes


def read_bytes(work: DecodeWork, mapping: Mapping) -> tuple[int, int]:
    """Return the bytes that an iteration reads from the fast and from the slow memory, re-reads of KV included."""
    sizes = tensor_bytes(work, mapping)
    reads = {"attention": work.kv_reads, "qkv": 1, "fc": 1}
    fast, slow = (work.layers * sum(sizes[name][side] * reads[name] for name in SUBLAYERS) for side in (0, 1))
    return fast, slow


def migrated_bytes(work: DecodeWork, before: Mapping, after: Mapping) -> tuple[int, int]:
    """Return the bytes that go to the fast and to the slow side when ``after`` replaces ``before``.

    ``work`` is the iteration just done: what it appends is written where ``after`` wants it, not moved.
    """
    old, new = tensor_bytes(work, before), tensor_bytes(work, after)
    changes = [work.layers * (new[name][0] - old[name][0]) for name in SUBLAYERS]
    return sum(c for c in changes if c > 0), sum(-c for c in changes if c < 0)


def iteration_s(work: DecodeWork, fast: Side, slow: Side, mapping: Mapping, paging: Translation | None = None) -> float:
    """Return the seconds of one decode iteration under ``mapping``.

    With ``paging``, page walks add to the time of each memory. Query heads that re-read KV do so one after
    another, so only the first reading misses.
    """
    sizes = tensor_bytes(work, mapping)
    pages = {
        name: [0 if paging is None else work.layers * paging.pages(size) for size in sizes[name]] for name in SUBLAYERS
    }
    total_s = 0.0
    for name in SUBLAYERS:
        halves = []
        for index, side in enumerate((fast, slow)):
            elements = half_elements(work, name, getattr(mapping, name))[index]
            read = work.layers * sizes[name][index] * work.reads(name, side.chip)
            memory_s = read / side.memory.rate_bytes_per_s
            if paging is not None:
                cycle = sum(counts[index] for counts in pages.values())
                memory_s += paging.walk_s(paging.misses(pages[name][index], cycle))
            compute_s = elements / side.chips * element_compute_s(work, name, side.chip)
            halves.append(max(memory_s, work.layers * compute_s))
        total_s += max(halves)
    return total_s


def single_memory_s(work: DecodeWork, side: Side) -> float:
    """Return the seconds of one decode iteration with everything in one memory (LPDDR with both chips).

    Raises
    ------
    CapacityError
        When the memory cannot hold weights and KV.
    """
    _check_holds(work, side.memory)
    return _bandwidth_bound_s(work, side)


def _bandwidth_bound_s(work: DecodeWork, side: Side) -> float:
    seconds = 0.0
    for name in SUBLAYERS:
        elements, stored = (np.array(n) for n in (work.layer_elements(name), work.layer_bytes(name)))
        seconds += float(half_kernel_s(work, name, elements, stored, side))
    return seconds


def _check_holds(work: DecodeWork, memory: SideMemory) -> None:
    if work.footprint_bytes > memory.capacity_bytes:
        free = memory.capacity_bytes
        raise CapacityError(memory.name, work.footprint_bytes, free, free, ())


def hierarchical_s(work: DecodeWork, upper: Side, lower: SideMemory, overlap: float = 0.0) -> float:
    """Return the seconds of one decode iteration with ``upper`` as a strict level above ``lower``.

    All chips compute on the upper memory; what does not fit there is fetched once per iteration. A fraction
    ``overlap`` of what computing and fetching have in common is hidden.

    Raises
    ------
    ConfigError
        When ``overlap`` is not from 0 to 1.
    CapacityError
        When the lower memory cannot hold what the upper does not.
    """
    if not 0 <= overlap <= 1:
        raise ConfigError("overlap", f"expected a fraction from 0 to 1, not {overlap!r}")
    _check_holds(work, evolve(lower, capacity_bytes=lower.capacity_bytes + upper.memory.capacity_bytes))
    compute_s = _bandwidth_bound_s(work, upper)
    fetch_s = max(0, work.footprint_bytes - upper.memory.capacity_bytes) / lower.rate_bytes_per_s
    return compute_s + fetch_s - overlap * min(compute_s, fetch_s)
