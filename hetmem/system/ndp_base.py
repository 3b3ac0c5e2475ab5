"""What the systems of one GPU and NDP-DIMMs share: their machine, work spread over DIMMs, and the prefill.

Attention and the KV cache are on the DIMMs, every DIMM holding an even share. A prompt is processed on the GPU,
its weights streamed layer by layer. Keys and values that a layer needs from earlier chunks are copied to the GPU like
its weights, and those that it leaves are copied back while the next layers compute. Where a layer's data passes from
one side to the other, the host synchronises, which takes one hop.
Not modelled: softmax and activation functions on the DIMMs (their units work while the multipliers do), host
accesses to the DIMMs.
"""

from abc import abstractmethod
from collections.abc import Mapping

from hetmem.engine.graph import Cost, GraphBuilder
from hetmem.errors import UnsupportedError
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine, Unit
from hetmem.model import Kernel, StepShape, layer_kernels
from hetmem.system.base import Setup, System
from hetmem.system.ops import ATTENTION, GpuOps
from hetmem.system.parts import dimm_memories, dimm_units, gpu_memories, gpu_units, host_units, link_units
from hetmem.system.residency import beside_stream
from hetmem.system.stream import Path, Stage, stream
from hetmem.units import to_ps

PREFETCH = 1


class NdpSystem(System):
    """One GPU, and DIMMs with compute."""

    preset = "ndp"
    has_dimms = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if self.config.gpus != 1:
            raise UnsupportedError(self.name, f"runs on one GPU, not {self.config.gpus}")
        if self.config.dimm is None:
            raise UnsupportedError(self.name, "needs NDP-DIMMs, and the machine has none")
        self.pool = self.config.dimm
        # Weights are read as a stream, keys and values of a head in the blocks of the paged cache.
        kv_chunk = setup.kv_block_tokens * self.model.head_dim * self.precision.kv_bits / 8
        self.weight_rate, self.kv_rate = self.pool.read_bytes_per_s(), self.pool.read_bytes_per_s(kv_chunk)
        # A decode step appends a token to each head, a prefill whole blocks.
        self.kv_write_rate = self.pool.write_bytes_per_s(kv_chunk / setup.kv_block_tokens)
        self.block_write_rate = self.pool.write_bytes_per_s(kv_chunk)
        self.ops = GpuOps(self.model, self.precision, self.config.gpu_law)
        self.group_bytes = self.model.layer_bytes(self.precision)
        self.layer_bytes = sum(self.group_bytes.values())

    @abstractmethod
    def resident_bytes(self, layer: int) -> int:
        """Return the weights of ``layer`` that stay in GPU memory."""

    def gpu_room(self) -> int:
        """Return the GPU memory that resident weights of layers may take, beside head and stream buffers."""
        return beside_stream(self.config, self.head_bytes, sum(self.buffer_bytes().values()))

    def buffer_bytes(self) -> Mapping[str, int]:
        """Return the GPU memory through which a prefill streams, for a layer in use and one ahead, by what passes.

        The keys and values are those of the step's new tokens, and of the one sequence whose prompt an earlier step
        began.
        """
        tokens = min(self.setup.kv_tokens, self.setup.step_tokens + self.setup.longest)
        kv_bytes = -(-tokens * self.model.kv_bytes_per_token(self.precision) // self.model.n_layers)
        return {"weight-buffer": (PREFETCH + 1) * self.layer_bytes, "kv-buffer": (PREFETCH + 1) * kv_bytes}

    def place_buffers(self, ledger: Ledger) -> None:
        """Allocate the buffers of a prefill in GPU memory."""
        for owner, need in self.buffer_bytes().items():
            ledger.allocate(owner, "gpu0", need)

    def further_units(self) -> tuple[Unit, ...]:
        """Return servers beside GPU, host link and DIMMs."""
        return ()

    def machine(self) -> Machine:
        config = self.config
        ends = ("gpu0", *(f"dimm{d}" for d in range(self.pool.count)))
        units = (
            *gpu_units(config), *link_units("pcie", config.pcie, ends), *host_units(config.cpu, None),
            *dimm_units(self.pool), *self.further_units(),
        )  # fmt: skip
        return Machine(units, (*gpu_memories(config), *dimm_memories(self.pool)), base_w=config.base_w)

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        share = -(-self.model.kv_bytes_per_token(self.precision) // self.pool.count)
        return {f"dimm{dimm}": share for dimm in range(self.pool.count)}

    # -- decode ------------------------------------------------------------------------------------------------

    def dimm_costs(
        self, slot: str, parts: list[Kernel], rate: float, times: int = 1, written: float = 0.0
    ) -> dict[str, Cost]:
        """Return what one DIMM's even share of a kernel costs, at its ranks and in its core.

        Of ``written`` bytes of new keys and values, too, each DIMM's ranks take their share.
        """
        pool, share = self.pool, written / self.pool.count
        n_bytes = sum(k.weight_bytes + k.kv_read_bytes for k in parts) / pool.count
        macs = sum(k.flops for k in parts if k.name != "softmax") / 2 / pool.count
        seconds, fj = n_bytes / rate + share / self.kv_write_rate, pool.read_fj(n_bytes) + pool.write_fj(share)
        return {
            f"{slot}.read": Cost(to_ps(seconds) * times, fj * times, round(n_bytes + share) * times),
            f"{slot}.mac": Cost(to_ps(pool.mac_s(macs)) * times, pool.mac_fj(macs) * times),
        }

    def attention_costs(self, slot: str, shape: StepShape, times: int = 1) -> dict[str, Cost]:
        """Return what attention of a decode step costs one DIMM, the writes of the new keys and values included."""
        kernels = layer_kernels(self.model, shape, self.precision)
        parts = [k for k in kernels if k.name in ATTENTION]
        return self.dimm_costs(slot, parts, self.kv_rate, times, sum(k.kv_write_bytes for k in kernels))

    def output_width(self, kernel: str) -> int:
        """Return the channels of a token that ``kernel`` hands on: to the attention, queries, keys and values."""
        model = self.model
        widths = {"qkv": model.q_width + 2 * model.kv_width, "attention": model.q_width,
                  "up": model.mlp_uses * model.d_ff}  # fmt: skip
        return widths.get(kernel, model.d_model)

    def hop_cost(self, tokens: int, kernel: str = "", times: int = 1) -> Cost:
        """Return the cost of handing what ``kernel`` leaves of a step's tokens to the other side."""
        n_bytes = tokens * self.output_width(kernel) * self.precision.activation_bits // 8
        seconds = n_bytes / (self.config.prefill_path().gbs * 1e9)
        return Cost(to_ps(seconds) * times, self.config.pcie.energy_fj(n_bytes) * times, n_bytes * times)

    def on_dimms(self, graph: GraphBuilder, slot: str, at: int, *, own: bool = False) -> list[int]:
        """Add a kernel that every DIMM does its share of: read and multiply, together or one after the other.

        The shares cost the same, or, with ``own``, each what its slots ``slot + ".read<dimm>"`` say.
        """
        ends = []
        for dimm in range(self.pool.count):
            tail = str(dimm) if own else ""
            read = graph.task(f"dimm{dimm}.dram", f"{slot}.read{tail}", at, tag=slot)
            after = at if self.pool.overlapped else read
            mac = graph.task(f"dimm{dimm}.core", f"{slot}.mac{tail}", after, tag=slot)
            ends += [read, mac] if self.pool.overlapped else [mac]
        return ends

    # -- prefill -----------------------------------------------------------------------------------------------

    def missing_bytes(self, layer: int) -> int:
        """Return the weights of ``layer`` that a prefill copies."""
        return self.layer_bytes - (0 if self.config.prefill_streams_all else self.resident_bytes(layer))

    def prefill_costs(self, shape: StepShape) -> dict[str, Cost]:
        """Return the costs of a prefill of ``shape``."""
        costs: dict[str, Cost] = {}
        stages = {"prefill.layer": self.ops.layer(shape, None), "prefill.head": self.ops.head(shape)}
        for slot, ops in stages.items():
            compute, memory = zip(*(self.ops.price(op) for op in ops), strict=True)
            costs[f"{slot}.compute"] = Cost(sum(c.ps for c in compute), sum(c.fj for c in compute))
            costs[f"{slot}.memory"] = Cost(sum(c.ps for c in memory), 0, sum(c.bytes for c in memory))
        loads = {_load_slot(n_bytes): n_bytes for n_bytes in map(self.missing_bytes, range(self.model.n_layers))}
        loads["load.head"] = self.head_bytes
        for slot, n_bytes in loads.items():
            costs |= self.prefill_copy_costs(slot, n_bytes, self.weight_rate)
        per_token = self.model.kv_bytes_per_token(self.precision) / self.model.n_layers
        costs |= self.prefill_copy_costs("kv.read", round(_cached(shape) * per_token), self.kv_rate)
        written = round(shape.tokens * per_token)
        return costs | self.prefill_copy_costs("kv.write", written, self.block_write_rate, "d2h")

    def prefill_copy_costs(self, slot: str, n_bytes: int, rate: float, direction: str = "h2d") -> dict[str, Cost]:
        """Return the costs of one copy between GPU and DIMMs, of which each moves ``rate`` bytes per second."""
        gpu, wire, gbs = self.config.gpu, self.config.pcie, self.config.prefill_path(direction).gbs
        share = n_bytes / self.pool.count
        fj = (self.pool.read_fj if direction == "h2d" else self.pool.write_fj)(share)
        rank = Cost(to_ps(share / rate), fj, round(share))
        return {
            f"{slot}@pcie.{direction}": Cost(to_ps(n_bytes / (gbs * 1e9)), wire.energy_fj(n_bytes), n_bytes),
            f"{slot}@gpu0.hbm": Cost(to_ps(gpu.stream_s(n_bytes)), gpu.work_fj(0, n_bytes), n_bytes),
            **{f"{slot}@dimm{dimm}.dram": rank for dimm in range(self.pool.count)},
        }

    def lower_prefill(self, graph: GraphBuilder, at: int, *, chunked: bool) -> int:
        """Add a prefill: weights streamed, keys and values written back, those of earlier chunks read."""
        reads = "kv.read" if chunked else None
        missing = map(self.missing_bytes, range(self.model.n_layers))
        stages = [
            Stage("prefill.layer", _load_slot(n_bytes) if n_bytes else None, reads, "kv.write") for n_bytes in missing
        ]
        stages.append(Stage("prefill.head", "load.head" if self.config.prefill_streams_all else None))
        load, store = self._prefill_path("h2d"), self._prefill_path("d2h")
        return stream(graph, stages, [load], [PREFETCH], at, kv=(load, store))

    def _prefill_path(self, direction: str) -> Path:
        ranks = (f"dimm{d}.dram" for d in range(self.pool.count))
        return Path((*ranks, f"pcie.{direction}", "gpu0.hbm"), to_ps(self.config.prefill_path(direction).latency_s))

    def lower_head(self, graph: GraphBuilder, at: int) -> int:
        """Add what follows the layers of a decode step, on the GPU."""
        for op in self.ops.head(StepShape()):
            at = graph.kernel(op.name, "gpu0", "gpu0.hbm", at)
        return at

    def head_costs(self, shape: StepShape) -> dict[str, Cost]:
        """Return the costs of what follows the layers."""
        costs: dict[str, Cost] = {}
        for op in self.ops.head(shape):
            costs[f"{op.name}.compute"], costs[f"{op.name}.memory"] = self.ops.price(op)
        return costs

    def prefill_floor_s(self, shape: StepShape) -> float:
        """Return the least seconds that a prefill takes: its copies each way, and what its kernels read."""
        per_token = self.model.kv_bytes_per_token(self.precision)
        wire = max(self.config.pcie.peak_gbs, self.config.prefill_gbs or 0.0) * 1e9
        copied = sum(map(self.missing_bytes, range(self.model.n_layers))) + _cached(shape) * per_token
        read = self.active_weight_bytes + shape.kv_tokens * per_token + (self.head_bytes if shape.sampled else 0)
        return max(copied / wire, shape.tokens * per_token / wire, read / self.config.gpu.memory_bytes_per_s)


def is_chunk(shape: StepShape | None) -> bool:
    """Return whether a prefill attends to keys that are in the cache already."""
    return shape is not None and _cached(shape) > 0


def _cached(shape: StepShape) -> int:
    return shape.kv_tokens - shape.tokens


def _load_slot(n_bytes: int) -> str:
    return f"load.{n_bytes}"
