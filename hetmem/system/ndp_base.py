"""What the systems of one GPU and NDP-DIMMs share: their machine, work spread over DIMMs, and the prefill.

Attention and the KV cache are on the DIMMs, every DIMM holding an even share. A prompt is processed on the GPU,
its weights streamed layer by layer, and its keys and values are written back to the DIMMs. Where a layer's data
passes from one side to the other, the host synchronises, which takes one hop.
Not modelled: softmax and activation functions on the DIMMs (their units work while the multipliers do), host
accesses to the DIMMs.
"""

from abc import abstractmethod
from collections.abc import Mapping

from hetmem.engine.graph import Cost, GraphBuilder
from hetmem.errors import UnsupportedError
from hetmem.hardware.machine import Machine, Unit
from hetmem.model import Kernel, StepShape
from hetmem.system.base import Setup, System
from hetmem.system.ops import GpuOps
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
        self.ops = GpuOps(self.model, self.precision, self.config.gpu_law)
        self.group_bytes = self.model.layer_bytes(self.precision)
        self.layer_bytes = sum(self.group_bytes.values())

    @abstractmethod
    def resident_bytes(self, layer: int) -> int:
        """Return the weights of ``layer`` that stay in GPU memory."""

    def gpu_room(self) -> int:
        """Return the GPU memory that resident weights of layers may take, beside head and stream buffers."""
        return beside_stream(self.config, self.layer_bytes, self.head_bytes, PREFETCH + 1)

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

    def dimm_costs(self, slot: str, parts: list[Kernel], rate: float, times: int = 1) -> dict[str, Cost]:
        """Return what one DIMM's even share of a kernel costs, at its ranks and in its core."""
        pool = self.pool
        n_bytes = sum(k.weight_bytes + k.kv_read_bytes for k in parts) / pool.count
        macs = sum(k.flops for k in parts if k.name != "softmax") / 2 / pool.count
        return {
            f"{slot}.read": Cost(to_ps(n_bytes / rate) * times, pool.read_fj(n_bytes) * times, round(n_bytes) * times),
            f"{slot}.mac": Cost(to_ps(pool.mac_s(macs)) * times, pool.mac_fj(macs) * times),
        }

    def hop_cost(self, tokens: int, times: int = 1) -> Cost:
        """Return the cost of handing the activations of a step to the other side."""
        n_bytes = tokens * self.model.d_model * self.precision.activation_bits // 8
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
            costs[f"{slot}.compute"] = Cost(sum(c.ps for c in compute))
            costs[f"{slot}.memory"] = Cost(sum(c.ps for c in memory), 0, sum(c.bytes for c in memory))
        loads = {_load_slot(n_bytes): n_bytes for n_bytes in map(self.missing_bytes, range(self.model.n_layers))}
        loads["load.head"] = self.head_bytes
        for slot, n_bytes in loads.items():
            per_dimm = n_bytes / self.pool.count
            fj = self.config.pcie.energy_fj(n_bytes)
            costs[f"{slot}@pcie.h2d"] = Cost(to_ps(n_bytes / (self.config.prefill_path().gbs * 1e9)), fj, n_bytes)
            costs[f"{slot}@gpu0.hbm"] = Cost(to_ps(self.config.gpu.stream_s(n_bytes)), 0, n_bytes)
            for dimm in range(self.pool.count):
                costs[f"{slot}@dimm{dimm}.dram"] = Cost(
                    to_ps(per_dimm / self.weight_rate), self.pool.read_fj(per_dimm), round(per_dimm)
                )
        written = shape.tokens * self.model.kv_bytes_per_token(self.precision)
        wire = self.config.pcie.energy_fj(written)
        costs["kv.write"] = Cost(to_ps(self.config.prefill_path("d2h").transfer_s(written)), wire, written)
        return costs

    def lower_prefill(self, graph: GraphBuilder, at: int) -> int:
        """Add a prefill: weights streamed, keys and values written back."""
        missing = map(self.missing_bytes, range(self.model.n_layers))
        stages = [Stage("prefill.layer", _load_slot(n_bytes) if n_bytes else None) for n_bytes in missing]
        stages.append(Stage("prefill.head", "load.head" if self.config.prefill_streams_all else None))
        ranks = (f"dimm{d}.dram" for d in range(self.pool.count))
        path = Path((*ranks, "pcie.h2d", "gpu0.hbm"), to_ps(self.config.prefill_path().latency_s))
        at = stream(graph, stages, [path], PREFETCH, at, warm=0, ahead=0)
        return graph.task("pcie.d2h", "kv.write", at)

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

    def prefill_floor_s(self) -> float:
        """Return the least seconds that the copies of a prefill take."""
        moved = sum(map(self.missing_bytes, range(self.model.n_layers)))
        return moved / (max(self.config.pcie.peak_gbs, self.config.prefill_gbs or 0.0) * 1e9)


def _load_slot(n_bytes: int) -> str:
    return f"load.{n_bytes}"
