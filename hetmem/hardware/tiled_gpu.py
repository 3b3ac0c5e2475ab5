"""A GPU by its tiles: GEMMs cut into thread blocks, waves of blocks over the SMs, tiles re-read from DRAM.

Modelled: the tile that minimises traffic over squared utilisation, wave quantisation on the compute and the
memory leg, off-chip traffic under the L2's capacity, activation and norm kernels with a fixed cost, the ring
all-reduce with its latency per hop, and the dynamic energy of each. Ignored: kernel overlap, L2 bandwidth,
clocks and static power. Source: the cost model of the AttAcc simulator (AttAcc!, ASPLOS 2024); it reproduces
that tool's GPU rows to the last digits (tests/paper/test_attacc_reference.py).
"""

from functools import lru_cache
from math import ceil

import numpy as np
from attrs import evolve, field, frozen, validators

from hetmem.catalog import entry
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError
from hetmem.hardware.collective import RingProtocol, allreduce_s
from hetmem.hardware.component_energy import ComponentEnergy
from hetmem.hardware.dram_energy import DramEnergy
from hetmem.hardware.gpu import GpuSpec, gpu
from hetmem.hardware.link import Link, link
from hetmem.hardware.pim import StackGeometry

WORD_BYTES = 2  # FP16
_PJ = 1e-12


@frozen
class TileLaw:
    """Constants of the law that no single GPU owns: utilisation caps, tile sizes, kernel costs, energies.

    ``all_reduce_hop_s`` is the latency of one hop; the ``*_s_per_byte`` of activation and norm hold at
    ``reference_bytes_per_s`` of memory bandwidth, that of the all-reduce at
    ``all_reduce_reference_bytes_per_s``.
    """

    name: str
    compute_utilisation: float
    memory_utilisation: float
    tiles: tuple[int, ...]
    tile_depth: int
    l2_depth_fraction: float
    l1_tile: int
    reference_bytes_per_s: float
    activation_s: float
    activation_s_per_byte: float
    norm_s: float
    norm_s_per_byte: float
    all_reduce_hop_s: float
    all_reduce_s_per_byte: float
    all_reduce_reference_bytes_per_s: float
    l2_pj_per_byte: float
    l1_pj_per_byte: float
    register_pj_per_byte: float
    mac_pj: float
    link_pj_per_byte: float


@frozen
class TileGeometry:
    """What the tile law needs of a GPU beside its rates: SMs, and bytes of L1 of each and of L2."""

    name: str
    sms: int = field(validator=validators.gt(0))
    l1_bytes: int = field(validator=validators.gt(0))
    l2_bytes: int = field(validator=validators.gt(0))


@frozen(cache_hash=True)
class TiledGpu:
    """One GPU under the tile law.

    ``flops`` is the dense FP16 peak, ``link_bytes_per_s`` counts both directions; ``corrected_energy``
    charges registers by the byte and for every head, which the AttAcc simulator does not; ``ring`` is a measured
    all-reduce in place of that tool's.
    """

    name: str
    flops: float
    sms: int
    memory_bytes_per_s: float
    l1_bytes: int
    l2_bytes: int
    link_bytes_per_s: float
    capacity_bytes: int
    law: TileLaw
    dram: DramEnergy
    corrected_energy: bool = False
    ring: tuple[RingProtocol, ...] = ()

    @classmethod
    def of(
        cls, card: GpuSpec, peer: Link | None, *, corrected_energy: bool = False, measured_ring: bool = False,
        compute_efficiency: float | None = None, memory_efficiency: float | None = None,
    ) -> "TiledGpu":  # fmt: skip
        """Return ``card`` under the tile law, at its own rates; None for ``peer`` takes its own link.

        Efficiencies that are None are the utilisation caps of the AttAcc simulator.

        ``measured_ring`` takes the link's measured all-reduce instead of the AttAcc simulator's.

        Raises
        ------
        UnknownNameError
            When the catalogue has no tile geometry of the GPU.
        """
        peer = peer or link(card.peer_link)
        geometry = structure(TileGeometry, entry("tiled_gpus", card.name))
        law = structure(TileLaw, entry("tile_law", "attacc"))
        return cls(
            name=card.name,
            flops=card.fp16_tflops * 1e12,
            sms=geometry.sms,
            memory_bytes_per_s=card.memory_bytes_per_s,
            l1_bytes=geometry.l1_bytes,
            l2_bytes=geometry.l2_bytes,
            link_bytes_per_s=2e9 * peer.peak_gbs,
            capacity_bytes=card.capacity_bytes,
            law=evolve(
                law,
                compute_utilisation=compute_efficiency or law.compute_utilisation,
                memory_utilisation=memory_efficiency or law.memory_utilisation,
            ),
            dram=StackGeometry.named().dram,
            corrected_energy=corrected_energy,
            ring=peer.allreduce if measured_ring else (),
        )

    @classmethod
    def named(cls, name: str = "a100a", corrected_energy: bool = False) -> "TiledGpu":
        """Return the GPU of the catalogue called ``name``, with the utilisation caps of the AttAcc simulator.

        Raises
        ------
        UnknownNameError
            When the catalogue has no such GPU.
        """
        return cls.of(gpu(name), None, corrected_energy=corrected_energy)

    @property
    def effective_flops(self) -> float:
        """FLOP/s at the compute utilisation cap."""
        return self.flops * self.law.compute_utilisation

    @property
    def effective_bytes_per_s(self) -> float:
        """Bytes/s of off-chip memory at the utilisation cap."""
        return self.memory_bytes_per_s * self.law.memory_utilisation

    def with_efficiency(self, memory: float | None = None, compute: float | None = None) -> "TiledGpu":
        """Return the GPU with other utilisation caps, each in (0, 1]; ``None`` keeps the law's.

        Raises
        ------
        ConfigError
            When a cap is outside (0, 1].
        """
        for cap, value in (("memory", memory), ("compute", compute)):
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{self.name}.{cap}", f"a utilisation lies in (0, 1], not {value!r}")
        return evolve(
            self,
            law=evolve(
                self.law,
                memory_utilisation=memory or self.law.memory_utilisation,
                compute_utilisation=compute or self.law.compute_utilisation,
            ),
        )


def caps() -> tuple[float, float]:
    """Return the utilisation caps of the AttAcc simulator: of compute, and of memory."""
    law = structure(TileLaw, entry("tile_law", "attacc"))
    return law.compute_utilisation, law.memory_utilisation


@frozen
class KernelCost:
    """Time and energy of one kernel on one GPU; ``compute_s`` and ``memory_s`` are its two legs.

    ``fixed_s`` is what the kernel costs besides its memory leg. ``time_s`` is what the law charges.
    """

    compute_s: float
    memory_s: float
    energy: ComponentEnergy
    fixed_s: float = 0.0

    @property
    def time_s(self) -> float:
        """The longer of the legs, seconds."""
        return max(self.compute_s, self.memory_s + self.fixed_s)

    @property
    def compute_bound(self) -> bool:
        """Whether the compute leg is strictly the longer one."""
        return self.compute_s > self.memory_s + self.fixed_s


def gemm(gpu: TiledGpu, m: float, n: float, k: float, ops: float = 1, batched: bool = False) -> KernelCost:
    """Return the cost of ``ops`` products of (m, k) by (k, n), FP16, on one GPU.

    ``batched`` products (attention: one per head and request) occupy one thread block each; others are cut
    into tiles. Sizes may be fractions where a width does not divide by the GPUs.
    """
    if min(m, n, k, ops) <= 0:
        raise ConfigError("gemm", f"sizes must be positive, not {(m, n, k, ops)}")
    return _gemm(gpu, m, n, k, ops, batched)


@lru_cache(maxsize=65536)
def _gemm(gpu: TiledGpu, m: float, n: float, k: float, ops: float, batched: bool) -> KernelCost:
    law = gpu.law
    tile = _best_tile(gpu, m, n, k, ops, batched)
    use = wave_utilisation(gpu, _blocks(m, n, ops, tile, batched))
    off_chip = _off_chip_bytes(gpu, m, n, k, ops, tile)
    macs = m * n * k * ops
    operands = 3 * (WORD_BYTES * macs if gpu.corrected_energy else m * n * k)
    energy = gpu.dram.read(off_chip) + ComponentEnergy(
        gpu_cache=_PJ
        * (
            law.l2_pj_per_byte * _traffic(m, n, k, ops, *tile)
            + law.l1_pj_per_byte * _traffic(m, n, k, ops, law.l1_tile, law.l1_tile)
            + law.register_pj_per_byte * operands
        ),
        gpu_alu=_PJ * law.mac_pj * macs,
    )
    return KernelCost(
        compute_s=2 * macs / (gpu.effective_flops * use),
        memory_s=off_chip / (gpu.effective_bytes_per_s * use),
        energy=energy,
    )


def wave_utilisation(gpu: TiledGpu, blocks: float) -> float:
    """Return the part of the SMs that ``blocks`` equal thread blocks keep busy over their waves."""
    return blocks / (ceil(blocks / gpu.sms) * gpu.sms)


def _blocks(m: float, n: float, ops: float, tile: tuple[float, float], batched: bool) -> float:
    return ops if batched else ops * ceil(m / tile[0]) * ceil(n / tile[1])


def _traffic(m: float, n: float, k: float, ops: float, a: float, b: float) -> float:
    return WORD_BYTES * ops * (ceil(n / b) * m * k + ceil(m / a) * n * k + m * n)


def _best_tile(gpu: TiledGpu, m: float, n: float, k: float, ops: float, batched: bool) -> tuple[float, float]:
    law = gpu.law
    best, found = float("inf"), (float(law.tiles[0]), float(law.tiles[0]))
    for a in _clamped(law.tiles, m):
        for b in _clamped(law.tiles, n):
            if WORD_BYTES * ((a + b) * law.tile_depth + a * b) > gpu.l1_bytes:
                continue
            use = wave_utilisation(gpu, _blocks(m, n, ops, (a, b), batched))
            score = _traffic(m, n, k, ops, a, b) / use**2
            if score < best:  # strictly: the first minimum, in the order of the sizes, is kept
                best, found = score, (a, b)
    return found


def _clamped(sizes: tuple[int, ...], limit: float) -> list[float]:
    # Sizes beyond the matrix all clamp to its edge: one of them is enough.
    return [*(size for size in sizes if size < limit), *([limit] if sizes[-1] >= limit else [])]


def _off_chip_bytes(gpu: TiledGpu, m: float, n: float, k: float, ops: float, tile: tuple[float, float]) -> float:
    """Return the least traffic over blockings by whole tiles, or a whole edge, that fit the L2."""
    depth = k * gpu.law.l2_depth_fraction
    room = gpu.l2_bytes / WORD_BYTES
    if (m + n) * depth + m * n <= room:
        return _traffic(m, n, k, ops, m, n)
    rows = np.append(np.arange(1, ceil(m / tile[0])) * tile[0], m)
    # For given rows the traffic falls as the columns grow, so the most columns that fit are the best.
    widest = np.minimum((room - rows * depth) / (depth + rows), n)
    columns = np.where(widest >= n, n, np.floor(widest / tile[1]) * tile[1])
    fits = columns >= min(tile[1], n)
    rows, columns = np.append(rows[fits], tile[0]), np.append(columns[fits], tile[1])
    reads = np.ceil(n / columns) * m * k + np.ceil(m / rows) * n * k + m * n
    return float(WORD_BYTES * ops * reads.min())


def softmax(gpu: TiledGpu, rows: float, columns: float, ops: float) -> KernelCost:
    """Return the cost of softmax over ``ops`` matrices of ``rows`` by ``columns``: five FLOP an element."""
    elements = rows * columns * ops
    use = wave_utilisation(gpu, ops)
    n_bytes, flops = 2 * WORD_BYTES * elements, 5 * elements
    return KernelCost(
        compute_s=flops / (gpu.effective_flops * use),
        memory_s=n_bytes / (gpu.effective_bytes_per_s * use),
        energy=_elementwise_energy(gpu, n_bytes, flops),
    )


def activation(gpu: TiledGpu, tokens: float, columns: float, gated: bool, flops_per_element: float) -> KernelCost:
    """Return the cost of the activation between the feed-forward's matrices, ``columns`` wide on this GPU."""
    elements = tokens * columns
    return _fixed_cost_kernel(
        gpu,
        n_bytes=(3 if gated else 2) * elements * WORD_BYTES,
        flops=flops_per_element * elements,
        fixed_s=gpu.law.activation_s,
        s_per_byte=gpu.law.activation_s_per_byte,
    )


def norm(gpu: TiledGpu, tokens: float, hidden: float) -> KernelCost:
    """Return the cost of one layer norm with its residual; every GPU does the whole width."""
    elements = tokens * hidden
    return _fixed_cost_kernel(
        gpu,
        n_bytes=3 * elements * WORD_BYTES,
        flops=5 * elements,
        fixed_s=gpu.law.norm_s,
        s_per_byte=gpu.law.norm_s_per_byte,
    )


def _fixed_cost_kernel(gpu: TiledGpu, n_bytes: float, flops: float, fixed_s: float, s_per_byte: float) -> KernelCost:
    return KernelCost(
        compute_s=flops / (gpu.effective_flops / gpu.sms),  # such a kernel runs as a single block
        memory_s=s_per_byte * gpu.law.reference_bytes_per_s / gpu.memory_bytes_per_s * n_bytes,
        energy=_elementwise_energy(gpu, n_bytes, flops),
        fixed_s=fixed_s,
    )


def _elementwise_energy(gpu: TiledGpu, n_bytes: float, flops: float) -> ComponentEnergy:
    law = gpu.law
    cache = law.l2_pj_per_byte + law.l1_pj_per_byte + law.register_pj_per_byte
    return gpu.dram.read(n_bytes) + ComponentEnergy(
        gpu_cache=_PJ * cache * n_bytes, gpu_alu=_PJ * law.mac_pj * flops / 2
    )


def all_reduce_s(gpu: TiledGpu, devices: int, payload_bytes: float) -> float:
    """Return the seconds of one all-reduce of ``payload_bytes`` over ``devices`` GPUs."""
    if gpu.ring:
        return float(allreduce_s(gpu.ring, payload_bytes, devices))
    law = gpu.law
    share = payload_bytes / devices
    scaled = law.all_reduce_s_per_byte * law.all_reduce_reference_bytes_per_s / gpu.link_bytes_per_s
    return (devices - 1) * max(law.all_reduce_hop_s + scaled * share, share / (gpu.link_bytes_per_s / 2))


def all_reduce_energy(gpu: TiledGpu, devices: int, payload_bytes: float) -> ComponentEnergy:
    """Return the energy of one all-reduce, all GPUs together."""
    return link_energy(gpu, payload_bytes) * (devices if devices > 1 else 0)


def link_energy(gpu: TiledGpu, n_bytes: float) -> ComponentEnergy:
    """Return the energy of ``n_bytes`` over the GPU's links."""
    return ComponentEnergy(link=_PJ * gpu.law.link_pj_per_byte * n_bytes)


def flat_fc(gpu: TiledGpu, devices: int, weight_bytes: float, tokens: float) -> KernelCost:
    """Return the flat roofline of weight products of ``tokens`` over ``devices`` GPUs, energy of all.

    Perfect tiles: every weight crosses DRAM and L2 once, L1 once per ``l1_tile`` tokens; activations are
    free.
    """
    law = gpu.law
    macs = weight_bytes / WORD_BYTES * tokens
    passes = ceil(tokens / law.l1_tile)
    operands = 3 * macs * (WORD_BYTES if gpu.corrected_energy else 1)
    cache = (law.l2_pj_per_byte + law.l1_pj_per_byte * passes) * weight_bytes + law.register_pj_per_byte * operands
    return KernelCost(
        compute_s=2 * macs / (devices * gpu.effective_flops),
        memory_s=weight_bytes / (devices * gpu.effective_bytes_per_s),
        energy=gpu.dram.read(weight_bytes) + ComponentEnergy(gpu_cache=_PJ * cache, gpu_alu=_PJ * law.mac_pj * macs),
    )
