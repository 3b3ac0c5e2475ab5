"""``ndp-dimm``: a GPU and DIMMs with compute, without activation sparsity (Hermes-base, HPCA'25).

Fully connected kernels run on the GPU where their weights are resident, else on the DIMMs, over which they are
spread evenly; attention and the KV cache are on the DIMMs; norms run on the GPU. Prefill and machine are those of
:mod:`hetmem.system.ndp_base`.
"""

from collections.abc import Iterator
from typing import Any

from hetmem.engine.graph import Cost, GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.hardware.ledger import Ledger
from hetmem.model import StepShape, layer_kernels
from hetmem.system.base import Setup
from hetmem.system.ndp_base import NdpSystem, is_chunk
from hetmem.system.ops import ATTENTION
from hetmem.system.residency import FULLY_CONNECTED, LayerKind, fill, kinds
from hetmem.units import to_ps

GPU_KERNELS = ("attn_norm", "mlp_norm")


class NdpDimm(NdpSystem):
    """Dense inference on a GPU and NDP-DIMMs."""

    name = "ndp-dimm"
    summary = "GPU + NDP-DIMMs without sparsity: resident kernels on the GPU, the others and attention on the DIMMs"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.on_gpu = fill(self.model.n_layers, self.group_bytes, self.gpu_room())
        self.gpu_bytes = self.head_bytes + sum(map(self.resident_bytes, range(self.model.n_layers)))
        self.kinds = kinds(self.on_gpu, setup.unroll_layers)

    def resident_bytes(self, layer: int) -> int:
        return sum(self.group_bytes[group] for group in self.on_gpu[layer])

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("weights", "gpu0", self.gpu_bytes)
        share = -(-self.model.weight_bytes(self.precision) // self.pool.count)
        for dimm in range(self.pool.count):
            ledger.allocate("weights", f"dimm{dimm}", share)
        self.place_buffers(ledger)

    def plan(self, view: StepView) -> Plan:
        costs: dict[str, Cost] = {}
        key = (view.prefill is not None, is_chunk(view.prefill), view.decode is not None)
        if view.prefill is not None:
            costs |= self.prefill_costs(view.prefill)
        if view.decode is not None:
            for kind in self.kinds:
                costs |= self._decode_costs(kind, view.decode)
            costs |= self.head_costs(view.decode)
        return Plan(self._template(*key).bind(costs))

    def _decode_costs(self, kind: LayerKind, shape: StepShape) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        kernels = layer_kernels(self.model, shape, self.precision)
        for name, place in self._placed(kind):
            parts = [k for k in kernels if k.name == name]
            slot = f"{kind.label}.{name}"
            costs[f"{slot}.sync"] = self.hop_cost(shape.tokens, name, kind.count)
            if place == "gpu":
                op = self.ops.launch(parts[0], shape)
                costs[f"{slot}.compute"], costs[f"{slot}.memory"] = self.ops.price(op, kind.count)
            elif name == "attention":
                costs |= self.attention_costs(slot, shape, kind.count)
            else:
                costs |= self.dimm_costs(slot, parts, self.weight_rate, kind.count)
        return costs

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
        side, left = "gpu", ""
        for name, place in (*self._placed(kind), ("", "gpu")):
            if place != side:
                wire = "pcie.d2h" if side == "gpu" else "pcie.h2d"
                lag = to_ps(self.config.sync_s) * kind.count
                at = graph.task(wire, f"{kind.label}.{left}.sync", at, lag_ps=lag, tag="sync")
                side = place
            left = name
            if not name:
                continue
            slot = f"{kind.label}.{name}"
            on_gpu = place == "gpu"
            at = graph.kernel(slot, "gpu0", "gpu0.hbm", at) if on_gpu else graph.join(self.on_dimms(graph, slot, at))
        return at

    def _template(self, prefill: bool, chunked: bool, decode: bool) -> Template:
        key: Any = (prefill, chunked, decode)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            if prefill:
                at = self.lower_prefill(graph, at, chunked=chunked)
            if decode:
                for kind in self.kinds:
                    at = self._lower_layer(graph, kind, at)
                self.lower_head(graph, at)
            self.templates[key] = graph.build()
        return self.templates[key]

    def floor_s(self, view: StepView) -> float:
        gpu = self.config.gpu.memory_bytes_per_s
        pool = self.pool.count * self.pool.read_gbs * 1e9
        floor = 0.0
        if view.decode is not None:
            read = self.gpu_bytes - self.head_bytes
            # Resident and other layers take turns, so the two sides add; of experts only the chosen are sure.
            chosen = self.active_weight_bytes / (self.layer_bytes * self.model.n_layers)
            off = self.model.n_layers * self.layer_bytes - read
            kv = view.decode.kv_tokens * self.model.kv_bytes_per_token(self.precision)
            floor += min(1.0, chosen) * (read / gpu + off / pool) + kv / pool + self.head_bytes / gpu
        return floor + (self.prefill_floor_s(view.prefill) if view.prefill is not None else 0.0)
