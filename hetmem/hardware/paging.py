"""Paged memory: a flat page table per side, pages allocated on demand, and what translation costs.

Modelled: every tensor has a range of virtual pages reserved for its largest size; physical pages (frames) are
given to its first bytes as it grows and taken from its end as it shrinks, so virtual addresses stay. One
tensor per layer, sub-layer and side, filled part by part; the last page of each is what fragmentation wastes.
The table is flat: an entry per virtual page of the logical space. Translation is a cost law: a sweep over
more pages than the TLB holds misses on each of them, walkers overlap the misses, and the time adds to that of
the memory.
Ignored: associativity of the TLB, the TLB's hit time, caching of table entries, and physical placement
(frames are interchangeable, as pages of 2 MiB interleave over all channels).
From: H2M2, arXiv 2504.14893, memory abstraction; page walkers per side are not published.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen

from hetmem.catalog import Entry
from hetmem.catalog.structure import structure
from hetmem.errors import CapacityError, ConfigError
from hetmem.hardware.values import not_negative, positive, whole

#: A whole number, or an array of them.
Count = TypeVar("Count", int, npt.NDArray[np.int64])


@frozen
class Translation:
    """What address translation costs on one side.

    Attributes
    ----------
    page_bytes
        Size of a page.
    entry_bytes
        Size of an entry of the flat page table.
    logical_bytes
        The logical space that one table covers.
    tlb_entries
        Pages that the TLB knows.
    miss_s
        Seconds of one page walk.
    walkers
        Page walks that overlap.
    update_s
        Seconds to write one table entry and drop it from the TLB.
    """

    page_bytes: int = field(validator=whole)
    entry_bytes: int = field(validator=whole)
    logical_bytes: int = field(validator=whole)
    tlb_entries: int = field(validator=whole)
    miss_s: float = field(validator=positive)
    walkers: int = field(validator=whole)
    update_s: float = field(validator=not_negative)
    name: str = field(default="paging", kw_only=True)

    @classmethod
    def from_entry(cls, entry: Entry) -> "Translation":
        """Return the law of a catalogue entry, such as ``catalog.entry("mmus", "h2m2")``.

        Raises
        ------
        ConfigError
            When a key is missing or unknown, or a value is out of range.
        """
        return structure(cls, entry)

    @property
    def reach_bytes(self) -> int:
        """Return the bytes that the TLB covers."""
        return self.tlb_entries * self.page_bytes

    @property
    def table_bytes(self) -> int:
        """Return the size of the flat page table."""
        return self.entry_bytes * self.logical_pages

    @property
    def logical_pages(self) -> int:
        """Return the virtual pages of the logical space."""
        return self.logical_bytes // self.page_bytes

    def pages(self, tensor_bytes: Count) -> Count:
        """Return the pages that a tensor of ``tensor_bytes`` bytes occupies; of several, each its own."""
        return -(-tensor_bytes // self.page_bytes)

    def thrashes(self, cycle_pages: int) -> bool:
        """Return whether each page of a cycle over ``cycle_pages`` misses.

        Least recently used replacement under a cyclic sweep: all or nothing.
        """
        return cycle_pages > self.tlb_entries

    def misses(self, swept_pages: int, cycle_pages: int) -> int:
        """Return the misses of one sweep over ``swept_pages`` in a cycle that visits ``cycle_pages`` in all."""
        return swept_pages if self.thrashes(cycle_pages) else 0

    def walk_s(self, misses: int) -> float:
        """Return the seconds that ``misses`` page walks add to a memory's time."""
        return misses * self.miss_s / self.walkers


@define
class _Region:
    first: int  # virtual page of the first tensor
    count: int  # tensors of equal size
    span: int  # virtual pages reserved for each
    used: int = 0  # pages mapped of each
    tensor_bytes: int = 0


class PageTable:
    """The pages of one side: who holds which, and which frame stands behind each virtual page.

    Mutable bookkeeping without time. Tensors come in groups, one tensor per decoder layer, all of one size.

    Parameters
    ----------
    memory
        Name of the memory, for errors.
    capacity_bytes
        Physical bytes; what is short of a page is not used.
    translation
        Page size and logical space.
    """

    def __init__(self, memory: str, capacity_bytes: int, translation: Translation) -> None:
        self.memory = memory
        self.translation = translation
        self.frames = capacity_bytes // translation.page_bytes
        self._entries = np.full(translation.logical_pages, -1, dtype=np.int64)
        self._free = np.arange(self.frames - 1, -1, -1, dtype=np.int64)  # a stack; its top is the end
        self._n_free = self.frames
        self._regions: dict[str, _Region] = {}
        self._next_page = 0

    def reserve(self, group: str, count: int, max_tensor_bytes: int) -> None:
        """Reserve virtual pages for ``count`` tensors of up to ``max_tensor_bytes``; no frame is used yet.

        Raises
        ------
        ConfigError
            When ``group`` is already there, or the logical space is exhausted.
        """
        if group in self._regions:
            raise ConfigError(group, f"already has pages on {self.memory}")
        span = self.translation.pages(max_tensor_bytes)
        if self._next_page + count * span > self._entries.size:
            raise ConfigError(group, f"exceeds the logical space of {self.memory}'s page table")
        self._regions[group] = _Region(self._next_page, count, span)
        self._next_page += count * span

    def growth(self, group: str, tensor_bytes: int) -> int:
        """Return the pages that :meth:`resize` would allocate (negative: free), changing nothing."""
        region = self._regions[group]
        return (self.translation.pages(tensor_bytes) - region.used) * region.count

    def resize(self, group: str, tensor_bytes: int) -> int:
        """Give every tensor of ``group`` ``tensor_bytes`` bytes; return the table entries written.

        Raises
        ------
        CapacityError
            When there are not enough frames; nothing is changed then.
        ConfigError
            When a tensor outgrows its reservation.
        """
        region = self._regions[group]
        wanted = self.translation.pages(tensor_bytes)
        if wanted > region.span:
            raise ConfigError(group, f"{tensor_bytes} bytes exceed the {region.span} pages of a tensor")
        growth = self.growth(group, tensor_bytes)
        if growth > self._n_free:
            page = self.translation.page_bytes
            held = tuple((name, r.used * r.count * page) for name, r in self._regions.items() if r.used)
            raise CapacityError(self.memory, growth * page, self._n_free * page, self.frames * page, held)
        if growth:
            block = self._entries[region.first : region.first + region.count * region.span]
            pages = block.reshape(region.count, region.span)
            if growth > 0:
                taken = self._free[self._n_free - growth : self._n_free][::-1]
                pages[:, region.used : wanted] = taken.reshape(region.count, -1)
            else:
                self._free[self._n_free : self._n_free - growth] = pages[:, wanted : region.used].ravel()[::-1]
                pages[:, wanted : region.used] = -1
            self._n_free -= growth
        region.used, region.tensor_bytes = wanted, tensor_bytes
        return abs(growth)

    def frame(self, group: str, index: int, offset: int) -> int:
        """Return the frame behind byte ``offset`` of tensor ``index``; -1 where no page is mapped."""
        region = self._regions[group]
        page = offset // self.translation.page_bytes
        if not 0 <= index < region.count or not 0 <= page < region.span:
            raise ConfigError(group, f"tensor {index}, byte {offset} is outside the reservation")
        return int(self._entries[region.first + index * region.span + page])

    def pages(self, group: str) -> int:
        """Return the pages that ``group`` holds."""
        return self._regions[group].used * self._regions[group].count

    @property
    def held_pages(self) -> int:
        """Return the pages of all groups."""
        return self.frames - self._n_free

    @property
    def held_bytes(self) -> int:
        """Return the bytes that the tensors themselves need."""
        return sum(region.tensor_bytes * region.count for region in self._regions.values())

    @property
    def waste_bytes(self) -> int:
        """Return the internal fragmentation: bytes of held pages that no tensor needs."""
        return self.held_pages * self.translation.page_bytes - self.held_bytes
