"""``ndp-dimm``: a GPU and DIMMs with compute, without activation sparsity (Hermes-base, HPCA'25).

Fully connected kernels run on the GPU where their weights are resident, else on the DIMMs, over which they are
spread evenly; attention and the KV cache are on the DIMMs; norms run on the GPU. Where a layer's data passes
from one side to the other, the host synchronises, which takes one hop. A prompt is processed on the GPU, its
weights streamed, and its keys and values are written back to the DIMMs.
Not modelled: softmax and activation functions on the DIMMs (their units work while the multipliers do), host
accesses to the DIMMs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from hetmem.engine.graph import Cost, GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.errors import UnsupportedError
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine
from hetmem.model import Kernel, StepShape, layer_kernels
from hetmem.system.base import Setup, System
from hetmem.system.ops import ATTENTION, GpuOps
from hetmem.system.parts import dimm_memories, dimm_units, gpu_memories, gpu_units, host_units, link_units
from hetmem.system.residency import FULLY_CONNECTED, LayerKind, fill, kinds
from hetmem.system.stream import Path, Stage, stream
from hetmem.units import to_ps

PREFETCH = 1
GPU_KERNELS = ("attn_norm", "mlp_norm")


class NdpDimm(System):
    """Dense inference on a GPU and NDP-DIMMs."""

    name = "ndp-dimm"
    summary = "GPU + NDP-DIMMs without sparsity: resident kernels on the GPU, the others and attention on the DIMMs"
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
        self.on_gpu = fill(self.model.n_layers, self.group_bytes, self._room())
        self.gpu_bytes = self.head_bytes + sum(self.group_bytes[g] for layer in self.on_gpu for g in layer)
        self.kinds = kinds(self.on_gpu, setup.unroll_layers)

    def _buffers(self) -> int:
        return (PREFETCH + 1) * self.layer_bytes

    def _room(self) -> int:
        """Return the GPU memory that resident kernels may take."""
        limit = self.config.gpu_weight_bytes
        usable = self.config.gpu_usable_bytes
        return (usable - self._buffers() if limit is None else min(usable, int(limit))) - self.head_bytes

    def machine(self) -> Machine:
        config = self.config
        ends = ("gpu0", *(f"dimm{d}" for d in range(self.pool.count)))
        units = (
            *gpu_units(config), *link_units("pcie", config.pcie, ends), *host_units(config.cpu, None),
            *dimm_units(self.pool),
        )  # fmt: skip
        return Machine(units, (*gpu_memories(config), *dimm_memories(self.pool)), base_w=config.base_w)

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("weights", "gpu0", self.gpu_bytes)
        share = -(-self.model.weight_bytes(self.precision) // self.pool.count)
        for dimm in range(self.pool.count):
            ledger.allocate("weights", f"dimm{dimm}", share)

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        share = -(-self.model.kv_bytes_per_token(self.precision) // self.pool.count)
        return {f"dimm{dimm}": share for dimm in range(self.pool.count)}

    def plan(self, view: StepView) -> Plan:
        costs: dict[str, Cost] = {}
        key = (view.prefill is not None, view.decode is not None)
        if view.prefill is not None:
            costs |= self._prefill_costs(view.prefill)
        if view.decode is not None:
            for kind in self.kinds:
                costs |= self._decode_costs(kind, view.decode)
            for op in self.ops.head(view.decode):
                costs[f"{op.name}.compute"], costs[f"{op.name}.memory"] = self.ops.price(op)
        return Plan(self._template(*key).bind(costs))

    # -- decode ------------------------------------------------------------------------------------------------

    def _decode_costs(self, kind: LayerKind, shape: StepShape) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        kernels = layer_kernels(self.model, shape, self.precision)
        for name, place in self._placed(kind):
            parts = [k for k in kernels if (k.name in ATTENTION if name == "attention" else k.name == name)]
            slot = f"{kind.label}.{name}"
            if place == "gpu":
                op = self.ops.launch(name, parts, shape)
                costs[f"{slot}.compute"], costs[f"{slot}.memory"] = self.ops.price(op, kind.count)
            else:
                rate = self.kv_rate if name == "attention" else self.weight_rate
                costs |= self._dimm_costs(slot, parts, rate, kind.count)
        costs[f"{kind.label}.sync"] = self._hop(shape.tokens, kind.count)
        return costs

    def _dimm_costs(self, slot: str, parts: list[Kernel], rate: float, times: int) -> dict[str, Cost]:
        """Return what one DIMM's even share of a kernel costs, at its ranks and in its core."""
        pool = self.pool
        n_bytes = sum(k.weight_bytes + k.kv_read_bytes for k in parts) / pool.count
        macs = sum(k.flops for k in parts if k.name != "softmax") / 2 / pool.count
        return {
            f"{slot}.read": Cost(to_ps(n_bytes / rate) * times, pool.read_fj(n_bytes) * times, round(n_bytes) * times),
            f"{slot}.mac": Cost(to_ps(pool.mac_s(macs)) * times, pool.mac_fj(macs) * times),
        }

    def _hop(self, tokens: int, times: int) -> Cost:
        """Return the cost of handing the activations of a step to the other side."""
        n_bytes = tokens * self.model.d_model * self.precision.activation_bits // 8
        seconds = n_bytes / (self.config.prefill_path().gbs * 1e9)
        return Cost(to_ps(seconds) * times, self.config.pcie.energy_fj(n_bytes) * times, n_bytes * times)

    def _placed(self, kind: LayerKind) -> Iterator[tuple[str, str]]:
        """Yield the kernels of a layer, attention as one, and the side each runs on."""
        for kernel in layer_kernels(self.model, StepShape(), self.precision):
            if kernel.name in GPU_KERNELS:
                yield kernel.name, "gpu"
            elif kernel.name in FULLY_CONNECTED:
                yield kernel.name, "gpu" if kernel.name in kind.resident else "dimm"
            elif kernel.name == ATTENTION[0]:
                yield "attention", "dimm"

    def _lower_layer(self, graph: GraphBuilder, kind: LayerKind, at: int) -> int:
        side = "gpu"
        for name, place in (*self._placed(kind), ("", "gpu")):
            if place != side:
                wire = "pcie.d2h" if side == "gpu" else "pcie.h2d"
                lag = to_ps(self.config.sync_s) * kind.count
                at = graph.task(wire, f"{kind.label}.sync", at, lag_ps=lag, tag="sync")
                side = place
            if not name:
                continue
            slot = f"{kind.label}.{name}"
            at = graph.kernel(slot, "gpu0", "gpu0.hbm", at) if place == "gpu" else self._on_dimms(graph, slot, at)
        return at

    def _on_dimms(self, graph: GraphBuilder, slot: str, at: int) -> int:
        """Add a kernel that every DIMM does its share of: read and multiply, together or one after the other."""
        ends = []
        for dimm in range(self.pool.count):
            read = graph.task(f"dimm{dimm}.dram", f"{slot}.read", at, tag=slot)
            mac = graph.task(f"dimm{dimm}.core", f"{slot}.mac", at if self.pool.overlapped else read, tag=slot)
            ends += [read, mac] if self.pool.overlapped else [mac]
        return graph.join(ends)

    # -- prefill -----------------------------------------------------------------------------------------------

    def _streams(self, layer: int) -> bool:
        """Return whether a prefill copies weights of ``layer``."""
        return self.config.prefill_streams_all or self._missing_bytes(self.on_gpu[layer]) > 0

    def _missing_bytes(self, resident: frozenset[str]) -> int:
        if self.config.prefill_streams_all:
            return self.layer_bytes
        return self.layer_bytes - sum(self.group_bytes[group] for group in resident)

    def _prefill_costs(self, shape: StepShape) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        stages = {"prefill.layer": self.ops.layer(shape, None), "prefill.head": self.ops.head(shape)}
        for slot, ops in stages.items():
            compute, memory = zip(*(self.ops.price(op) for op in ops), strict=True)
            costs[f"{slot}.compute"] = Cost(sum(c.ps for c in compute))
            costs[f"{slot}.memory"] = Cost(sum(c.ps for c in memory), 0, sum(c.bytes for c in memory))
        loads = {self._load_slot(resident): self._missing_bytes(resident) for resident in self.on_gpu}
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

    def _load_slot(self, resident: frozenset[str]) -> str:
        return f"load.{'+'.join(sorted(resident)) or 'all'}"

    def _prefill(self, graph: GraphBuilder, at: int) -> int:
        stages = [
            Stage("prefill.layer", self._load_slot(self.on_gpu[layer]) if self._streams(layer) else None)
            for layer in range(self.model.n_layers)
        ]
        stages.append(Stage("prefill.head", "load.head" if self.config.prefill_streams_all else None))
        ranks = (f"dimm{d}.dram" for d in range(self.pool.count))
        path = Path((*ranks, "pcie.h2d", "gpu0.hbm"), to_ps(self.config.prefill_path().latency_s))
        at = stream(graph, stages, [path], PREFETCH, at, warm=0, ahead=0)
        return graph.task("pcie.d2h", "kv.write", at)

    def _template(self, prefill: bool, decode: bool) -> Template:
        key: Any = (prefill, decode)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            if prefill:
                at = self._prefill(graph, at)
            if decode:
                for kind in self.kinds:
                    at = self._lower_layer(graph, kind, at)
                for op in self.ops.head(StepShape()):
                    at = graph.kernel(op.name, "gpu0", "gpu0.hbm", at)
            self.templates[key] = graph.build()
        return self.templates[key]

    def floor_s(self, view: StepView) -> float:
        gpu = self.config.gpu.memory_bytes_per_s
        pool = self.pool.count * self.pool.read_gbs * 1e9
        floor = 0.0
        if view.decode is not None:
            read = sum(self.group_bytes[g] for layer in self.on_gpu for g in layer)
            # Resident and other layers take turns, so the two sides add; of experts only the chosen are sure.
            chosen = (self.active_weight_bytes - self.head_bytes) / (self.layer_bytes * self.model.n_layers)
            off = self.model.n_layers * self.layer_bytes - read
            kv = view.decode.kv_tokens * self.model.kv_bytes_per_token(self.precision)
            floor += min(1.0, chosen) * (read / gpu + off / pool) + kv / pool
        if view.prefill is not None:
            moved = sum(self._missing_bytes(resident) for resident in self.on_gpu)
            floor += moved / (max(self.config.pcie.peak_gbs, self.config.prefill_gbs or 0.0) * 1e9)
        return floor
