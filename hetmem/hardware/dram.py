"""DRAM: what a channel sustains by chunk size, the latency it adds, and what it costs in joules.

Modelled, by a closed form per channel: data bus, activation rate (tRRD, tFAW, command slots), bank cycle
under a finite queue, the exposed row switch of short chunks, all-bank refresh, the bank-group-first address
map (and, as a measured table, the row-contiguous one), read/write mixes (measured factors), striping over
channels. Not modelled: several chunk streams interleaved line by line in a short queue, per-bank refresh,
the host's core and on-chip network, ECC.

From: the timing presets of Ramulator 2.1 (Luo et al., IEEE CAL 2023) and a closed form fitted on its
saturated runs. Error against 44 of those runs (DDR4-3200, DDR5-4800, LPDDR5-6400, HBM3-6400; one stream of
reads): streams and chunks of 2 KB and more 1.5 % mean, 5.7 % maximum; smaller chunks 2.7 % and 17.5 %
(LPDDR5, 256 B). A FIFO server with :meth:`DramDevice.service_s` followed by
:meth:`DramDevice.added_latency_s` gives the loaded latency of whole chunks of 2 and 8 KB (M/D/1) up to 0.9
of what is sustained: 3 to 6 % mean, HBM3 12 % (always low).
"""

from itertools import pairwise
from typing import Any, TypeAlias, overload

import attrs
import numpy as np
from attrs import field, frozen
from attrs.validators import ge, gt, in_, optional
from numpy.typing import NDArray

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError

Array: TypeAlias = NDArray[Any]

_SHARPNESS = 8  # of the soft maximum of the three limits: chosen with the form, on the simulated runs
_MEASURED_MIX = 0.2  # write share at which the factors were measured
MAPPINGS = ("bgfirst", "rowmajor")


def _count(default: int = 1) -> Any:
    return field(default=default, validator=ge(1))


@frozen(kw_only=True)
class DramDevice:
    """One DRAM channel: timings in clocks, organisation, and energies where they are published.

    Of the activation limits ``rrd_s_ck``, ``faw_ck`` and ``command_ck`` an entry lists those that can
    bind on it; the largest one does. Energies left out are not counted: see :attr:`uncounted`.

    Attributes
    ----------
    tck_ps : int
        Clock period. All ``*_ck`` are in these clocks.
    bl_ck, rcd_ck, rp_ck, cl_ck, rc_ck, rtp_ck, rfc_ck, refi_ck : int
        Burst, activate to read, precharge, read latency, row cycle, read to precharge, refresh, its interval.
    rrd_s_ck, faw_ck : int
        Activate to activate in other bank groups; window of four activates. Per rank.
    command_ck : int
        Slots on the row command bus that one ACT and PRE take.
    transaction_bytes, row_bytes : int
        One burst; one row of a rank (of a pseudo-channel).
    pseudo_channels, bank_groups, banks_per_group, ranks, stack_ids : int
        Organisation. Ranks have activation windows of their own, stack ids have not.
    queue_depth : int
        Transactions that the controller sees at once.
    write_chunk_bytes, write_factor, stream_write_factor
        Efficiency of an 80/20 mix over that of reads: by chunk size, and for a stream that turns per line.
    rowmajor_chunk_bytes, rowmajor_efficiency, rowmajor_stream, rowmajor_stream_write_factor
        Simulated fractions of peak under the row-contiguous map, where there are any.
    read_pj_per_bit, write_pj_per_bit, io_pj_per_bit, activate_nj : float
        Column access, interface, and one activate + precharge of a row.
    active_standby_w, precharge_standby_w, refresh_w : float
        Background power of the channel: rows open, rows closed, refresh.
    """

    name: str
    tck_ps: int = field(validator=gt(0))
    bl_ck: int = field(validator=gt(0))
    rcd_ck: int = field(validator=gt(0))
    rp_ck: int = field(validator=gt(0))
    cl_ck: int = field(validator=gt(0))
    rc_ck: int = field(validator=gt(0))
    rtp_ck: int = field(validator=gt(0))
    rfc_ck: int = field(validator=gt(0))
    refi_ck: int = field(validator=gt(0))
    rrd_s_ck: int = field(default=0, validator=ge(0))
    faw_ck: int = field(default=0, validator=ge(0))
    command_ck: int = field(default=0, validator=ge(0))
    transaction_bytes: int = field(validator=gt(0))
    row_bytes: int = field(validator=gt(0))
    bank_groups: int = field(validator=ge(1))
    banks_per_group: int = field(validator=ge(1))
    pseudo_channels: int = _count()
    ranks: int = _count()
    stack_ids: int = _count()
    queue_depth: int = field(validator=ge(1))
    write_chunk_bytes: tuple[float, ...] = ()
    write_factor: tuple[float, ...] = ()
    stream_write_factor: float | None = None
    rowmajor_chunk_bytes: tuple[float, ...] = ()
    rowmajor_efficiency: tuple[float, ...] = ()
    rowmajor_stream: float | None = None
    rowmajor_stream_write_factor: float | None = None
    read_pj_per_bit: float | None = field(default=None, validator=optional(ge(0)))
    write_pj_per_bit: float | None = field(default=None, validator=optional(ge(0)))
    io_pj_per_bit: float | None = field(default=None, validator=optional(ge(0)))
    activate_nj: float | None = field(default=None, validator=optional(ge(0)))
    active_standby_w: float | None = field(default=None, validator=optional(ge(0)))
    precharge_standby_w: float | None = field(default=None, validator=optional(ge(0)))
    refresh_w: float | None = field(default=None, validator=optional(ge(0)))

    def __attrs_post_init__(self) -> None:
        if self.rfc_ck + self._row_switch_ck >= self.refi_ck:
            raise ValueError("refi_ck must exceed rfc_ck + rp_ck + rcd_ck + rtp_ck")
        if not max(self.rrd_s_ck, self.faw_ck, self.command_ck):
            raise ValueError("one of rrd_s_ck, faw_ck and command_ck is required")
        for xs, ys in (
            (self.write_chunk_bytes, self.write_factor),
            (self.rowmajor_chunk_bytes, self.rowmajor_efficiency),
        ):
            if len(xs) != len(ys) or any(a >= b for a, b in pairwise(xs)):
                raise ValueError("a table needs as many values as chunk sizes, the sizes rising")
        fractions = (*self.write_factor, *self.rowmajor_efficiency)
        singles = (self.stream_write_factor, self.rowmajor_stream, self.rowmajor_stream_write_factor)
        if not all(0 < f <= 1 for f in (*fractions, *(s for s in singles if s is not None))):
            raise ValueError("efficiencies and write factors must lie in (0, 1]")
        if (self.read_pj_per_bit is None) != (self.write_pj_per_bit is None):
            raise ValueError("read_pj_per_bit and write_pj_per_bit come together")

    # ---- time ----

    @property
    def peak_gbs(self) -> float:
        """Peak bandwidth of the channel, GB/s (1e9 bytes per second)."""
        return self.pseudo_channels * self.transaction_bytes / self._ns(self.bl_ck)

    @overload
    def efficiency(
        self,
        chunk_bytes: float | None = None,
        *,
        mapping: str = "bgfirst",
        write_fraction: float = 0.0,
        queue_depth: int | None = None,
    ) -> float: ...
    @overload
    def efficiency(
        self,
        chunk_bytes: Array,
        *,
        mapping: str = "bgfirst",
        write_fraction: float = 0.0,
        queue_depth: int | None = None,
    ) -> Array: ...
    def efficiency(
        self,
        chunk_bytes: float | Array | None = None,
        *,
        mapping: str = "bgfirst",
        write_fraction: float = 0.0,
        queue_depth: int | None = None,
    ) -> float | Array:
        """Return the sustained fraction of :attr:`peak_gbs`, in (0, 1].

        Parameters
        ----------
        chunk_bytes : float, array of any shape, or None
            Bytes read contiguously at each random address; None is one sequential stream. Bytes that
            do not fill a transaction are paid for but not counted.
        mapping : {"bgfirst", "rowmajor"}
            Bank groups below the column (the closed form), or row-contiguous (a table, interpolated
            in the logarithm of the chunk and held beyond its ends; devices without one refuse it).
        write_fraction : float
            Share of the chunks that are writes. The factors were measured at 0.2; other shares scale
            their extra time by ``w (1 - w)``, as often as random neighbours turn the bus round (assumed).
        queue_depth : int, optional
            Transactions in sight of the controller, instead of the device's own number.

        Raises
        ------
        ConfigError
            On a chunk, share, depth or mapping out of range, or without data for this device.
        """
        chunk = None if chunk_bytes is None else np.asarray(chunk_bytes, dtype=float)
        if chunk is not None and not np.all(np.isfinite(chunk) & (chunk > 0)):
            raise ConfigError("chunk_bytes", f"expected positive bytes, not {chunk_bytes!r}")
        if not 0.0 <= write_fraction <= 1.0:
            raise ConfigError("write_fraction", f"expected a share from 0 to 1, not {write_fraction!r}")
        depth = self.queue_depth if queue_depth is None else queue_depth
        if depth < 1:
            raise ConfigError("queue_depth", f"expected at least 1, not {queue_depth!r}")
        if mapping == "bgfirst":
            value = np.asarray(self._refresh_factor()) if chunk is None else self._closed_form(chunk, depth)
        elif mapping == "rowmajor":
            value = self._from_table(chunk)
        else:
            raise ConfigError("mapping", f"expected one of {', '.join(MAPPINGS)}, not {mapping!r}")
        value = value / self._write_penalty(chunk, mapping, write_fraction)
        return float(value) if value.ndim == 0 else value

    def service_s(
        self,
        n_bytes: float,
        chunk_bytes: float | None = None,
        *,
        mapping: str = "bgfirst",
        write_fraction: float = 0.0,
    ) -> float:
        """Return the seconds that ``n_bytes``, in chunks of ``chunk_bytes``, hold the channel."""
        share = self.efficiency(chunk_bytes, mapping=mapping, write_fraction=write_fraction)
        return n_bytes / (self.peak_gbs * 1e9 * share)

    @property
    def idle_latency_s(self) -> float:
        """Seconds of a random read on an idle channel: tRP + tRCD + tCL + burst."""
        return self._ns(self.rp_ck + self.rcd_ck + self.cl_ck + self.bl_ck) * 1e-9

    @property
    def refresh_wait_s(self) -> float:
        """Mean seconds that a random arrival waits for a refresh under way: tRFC² / (2 tREFI)."""
        return self._ns(self.rfc_ck) ** 2 / (2 * self._ns(self.refi_ck)) * 1e-9

    def added_latency_s(self, chunk_bytes: float, *, mapping: str = "bgfirst") -> float:
        """Return the seconds from the end of a chunk's service to its last byte; the channel is free by then.

        An unloaded chunk takes ``C/P + idle_latency_s + refresh_wait_s``, or its service time if that is
        longer. Service, which is what paces the channel, already holds its share of refreshes and row
        switches, so only the rest is added.
        """
        bus_s = chunk_bytes / (self.peak_gbs * 1e9)
        unloaded_s = bus_s + self.idle_latency_s + self.refresh_wait_s
        return max(0.0, unloaded_s - self.service_s(chunk_bytes, chunk_bytes, mapping=mapping))

    def activations(self, chunk_bytes: float) -> float:
        """Return the row activations of one chunk: those that its time and its energy both count."""
        return float(self._activations(self._group_width(np.asarray(chunk_bytes, float)), chunk_bytes))

    def per_rank(self) -> "DramDevice":
        """Return one rank alone: what a core in the buffer chip sees that reads all ranks at once."""
        return attrs.evolve(self, ranks=1)

    # ---- energy ----

    def energy_j(
        self, n_bytes: float, chunk_bytes: float | None = None, *, write_fraction: float = 0.0
    ) -> float | None:
        """Return the joules to move ``n_bytes``, background aside; None without published figures.

        ``chunk_bytes`` None is a stream: one activation per row.
        """
        if self.read_pj_per_bit is None or self.write_pj_per_bit is None:
            return None
        column = (1 - write_fraction) * self.read_pj_per_bit + write_fraction * self.write_pj_per_bit
        if chunk_bytes is None:
            activated = n_bytes / self.row_bytes
        else:
            activated = n_bytes / chunk_bytes * self.activations(chunk_bytes)
        bit_pj = column + (self.io_pj_per_bit or 0.0)
        return 8 * n_bytes * bit_pj * 1e-12 + activated * (self.activate_nj or 0.0) * 1e-9

    def background_w(self, utilization: float) -> float | None:
        """Return the watts of standby and refresh with rows open a share ``utilization`` of the time.

        None without published figures. Active standby all the time over-bills by about a tenth.
        """
        if self.active_standby_w is None:
            return None
        closed_w = self.active_standby_w if self.precharge_standby_w is None else self.precharge_standby_w
        open_w = utilization * self.active_standby_w + (1 - utilization) * closed_w
        return open_w + (self.refresh_w or 0.0)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Parts of the energy that have no published figure here and are left out."""
        parts = {
            "column access": self.read_pj_per_bit,
            "interface": self.io_pj_per_bit,
            "activation": self.activate_nj,
            "standby": self.active_standby_w,
            "refresh": self.refresh_w,
        }
        return tuple(part for part, value in parts.items() if value is None)

    # ---- the closed form ----

    def _ns(self, clocks: float) -> float:
        return clocks * self.tck_ps * 1e-3

    @property
    def _row_switch_ck(self) -> int:
        return self.rp_ck + self.rcd_ck + self.rtp_ck

    def _refresh_factor(self) -> float:
        return 1 - (self.rfc_ck + self._row_switch_ck) / self.refi_ck

    def _group_width(self, chunk: Array) -> Array:
        """Return how many bank groups (over all pseudo-channels) one chunk spreads over."""
        groups = self.pseudo_channels * self.bank_groups
        return np.clip(np.floor(chunk / self.transaction_bytes), 1, groups)

    def _activations(self, width: Array, chunk: float | Array) -> Array:
        return np.asarray(width * np.ceil(chunk / (width * self.row_bytes)))

    def _closed_form(self, useful: Array, depth: int) -> Array:
        """Return the efficiency of random chunks: three limits, a row switch, refresh."""
        chunk = np.ceil(useful / self.transaction_bytes) * self.transaction_bytes
        peak = self.peak_gbs  # bytes per ns
        width = self._group_width(chunk)
        banks = self.pseudo_channels * self.bank_groups * self.banks_per_group * self.ranks * self.stack_ids
        sets = np.maximum(1.0, banks / width)  # bank sets as wide as a chunk
        n_act = self._activations(width, chunk)
        window_ck = max(self.rrd_s_ck, self.faw_ck / 4) / self.ranks  # ranks have windows of their own
        act_ns = self._ns(max(window_ck, self.command_ck * self.pseudo_channels)) / self.pseudo_channels
        queued = 1 + depth * self.transaction_bytes / chunk
        busy_sets = sets * (1 - (1 - 1 / sets) ** queued)  # distinct sets among the queued chunks
        bus = chunk / peak
        activation = n_act * act_ns
        bank_cycle = n_act / width * self._ns(self.rc_ck) / busy_sets
        top = np.maximum(np.maximum(bus, activation), bank_cycle)
        total = sum((limit / top) ** _SHARPNESS for limit in (bus, activation, bank_cycle))
        t = top * total ** (1 / _SHARPNESS)
        # The next chunk may fall into the same bank set: what the queue cannot hide of its row switch shows.
        hidden = np.maximum(0.0, depth * self.transaction_bytes - chunk) / peak
        switch = np.maximum(0.0, self._ns(self._row_switch_ck) - hidden) / sets
        t = t + np.where(chunk <= width * self.row_bytes, switch, 0.0)
        # Refreshes of one rank hold up chunks for the other behind them in the queue.
        refresh = self._refresh_factor() ** (1.5 if self.ranks > 1 else 1.0)
        return np.asarray(refresh * (useful / peak) / t)

    def _from_table(self, chunk: Array | None) -> Array:
        if self.rowmajor_stream is None or not self.rowmajor_chunk_bytes:
            raise ConfigError("mapping", f"'rowmajor' has no measured table for {self.name}; use 'bgfirst'")
        if chunk is None:
            return np.asarray(self.rowmajor_stream)
        sizes = np.log(self.rowmajor_chunk_bytes)
        return np.asarray(np.interp(np.log(chunk), sizes, self.rowmajor_efficiency))

    def _write_penalty(self, chunk: Array | None, mapping: str, write_fraction: float) -> Array:
        """Return the time of the mix over that of reads alone."""
        if write_fraction in (0.0, 1.0):  # one direction: no turn-around
            return np.asarray(1.0)
        factor: Any = None
        if chunk is None:
            rowmajor = mapping == "rowmajor"
            factor = self.rowmajor_stream_write_factor if rowmajor else self.stream_write_factor
        elif mapping == "bgfirst" and self.write_chunk_bytes:
            factor = np.interp(np.log(chunk), np.log(self.write_chunk_bytes), self.write_factor)
        if factor is None:
            what = "streams" if chunk is None else "chunks"
            problem = f"no read/write mix measured for {what}, {mapping}, {self.name}"
            raise ConfigError("write_fraction", problem)
        turns = write_fraction * (1 - write_fraction) / (_MEASURED_MIX * (1 - _MEASURED_MIX))
        return np.asarray(1 + (1 / np.asarray(factor) - 1) * turns)


@frozen(kw_only=True)
class MemorySystem:
    """Equal channels with addresses striped over them every ``interleave_bytes``.

    A channel sees a chunk divided by the channels that it spans: an 8 KB row over eight channels is 1 KB
    on each. ``interleave_bytes`` None keeps every chunk on one channel.
    """

    device: DramDevice
    channels: int = field(default=1, validator=ge(1))
    interleave_bytes: int | None = field(default=None, validator=optional(gt(0)))
    mapping: str = field(default="bgfirst", validator=in_(MAPPINGS))

    @property
    def peak_gbs(self) -> float:
        """Peak bandwidth of all channels, GB/s."""
        return self.channels * self.device.peak_gbs

    def ways(self, chunk_bytes: float) -> int:
        """Return the number of channels that one aligned chunk spans."""
        if self.interleave_bytes is None:
            return 1
        return int(min(self.channels, max(1, np.ceil(chunk_bytes / self.interleave_bytes))))

    def channel_chunk_bytes(self, chunk_bytes: float | None) -> float | None:
        """Return the bytes of one chunk that one channel serves; None (a stream) stays a stream."""
        return None if chunk_bytes is None else chunk_bytes / self.ways(chunk_bytes)

    @overload
    def efficiency(self, chunk_bytes: float | None = None, *, write_fraction: float = 0.0) -> float: ...
    @overload
    def efficiency(self, chunk_bytes: Array, *, write_fraction: float = 0.0) -> Array: ...
    def efficiency(self, chunk_bytes: float | Array | None = None, *, write_fraction: float = 0.0) -> float | Array:
        """Return the sustained fraction of :attr:`peak_gbs` with enough chunks to keep all channels busy."""
        if chunk_bytes is not None and self.interleave_bytes is not None:
            size = np.asarray(chunk_bytes, dtype=float)
            chunk_bytes = size / np.clip(np.ceil(size / self.interleave_bytes), 1, self.channels)
        return self.device.efficiency(chunk_bytes, mapping=self.mapping, write_fraction=write_fraction)

    def service_s(self, n_bytes: float, chunk_bytes: float | None = None, *, write_fraction: float = 0.0) -> float:
        """Return the seconds to move ``n_bytes`` spread evenly over the channels."""
        return n_bytes / (self.peak_gbs * 1e9 * self.efficiency(chunk_bytes, write_fraction=write_fraction))

    def energy_j(
        self, n_bytes: float, chunk_bytes: float | None = None, *, write_fraction: float = 0.0
    ) -> float | None:
        """Return the joules to move ``n_bytes``; None without published figures."""
        share = self.channel_chunk_bytes(chunk_bytes)
        return self.device.energy_j(n_bytes, share, write_fraction=write_fraction)

    def background_w(self, utilization: float) -> float | None:
        """Return the watts of standby and refresh of all channels; None without published figures."""
        watts = self.device.background_w(utilization)
        return None if watts is None else self.channels * watts


def memory(name: str) -> DramDevice:
    """Return the catalogue's DRAM device ``name``, one channel of it.

    >>> round(memory("ddr5-4800").efficiency(8192), 3)
    0.896

    Raises
    ------
    UnknownNameError
        When the catalogue has no such device.
    ConfigError
        When its entry has an unknown key, lacks one, or holds a wrong value.
    """
    return structure(DramDevice, catalog.entry("dram", name))
