"""``multi-hbm``: several devices, each an HBM with a compute chip, that share every kernel.

The many-HBM reference of H2M2 (arXiv 2504.14893), which charges communication as profiled on A100s: tensor
parallelism with two all-reduces per layer, after attention's output projection and after the feed-forward network
(Megatron-LM, arXiv 1909.08053), both charged at the layer's end. Not modelled: overlap of communication with compute.
"""

from collections.abc import Mapping

from hetmem.engine.graph import Cost, GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine, Memory, Unit
from hetmem.system.base import Setup
from hetmem.system.sided import HEAD, Phase, SidedSystem
from hetmem.units import to_ps

REDUCTIONS = 2  # per layer


class MultiHbm(SidedSystem):
    """Tensor parallelism over HBM devices."""

    name = "multi-hbm"
    summary = "weights and KV spread over HBM devices with a chip each, tensor-parallel"
    preset = "multi-hbm"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.devices: int = self.board.part("devices", self.board.devices)
        self.side = self.board.side("fast")
        self.names = tuple(f"hbm{device}" for device in range(self.devices))

    def machine(self) -> Machine:
        units = [unit for name in self.names for unit in self.side_units(name, "fast")]
        if self.devices > 1:
            units.append(Unit("link", "link", self.link.idle_w, self.link.idle_w, self.names))
        memories = tuple(Memory(name, self.side.memory.capacity_bytes, "fast-memory", None) for name in self.names)
        return Machine(tuple(units), memories, base_w=self.board.base_w)

    def place(self, ledger: Ledger) -> None:
        shard = -(-(self.shape.footprint_bytes + self.outer_bytes) // self.devices)
        for name in self.names:
            ledger.allocate("weights", name, shard)

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        share = -(-self.model.kv_bytes_per_token(self.precision) // self.devices)
        return dict.fromkeys(self.names, share)

    def plan(self, view: StepView) -> Plan:
        phases, blocks = self.phases(view), self.layer_blocks()
        costs: dict[str, Cost] = {}
        for phase in phases:
            part = self.whole(phase, self.side, self.devices)
            if phase.name == "qkv":
                part = part._replace(n_bytes=part.n_bytes + -(-self.written_bytes(view) // self.devices))
            costs |= self.legs(phase.name, part, self.side, blocks[0][1])
        costs |= self.legs(HEAD, self.head(view, self.side, self.devices), self.side, 1)
        costs["allreduce"] = self._allreduce(view, blocks[0][1])
        return Plan(self._template(phases, len(blocks)).bind(costs))

    def _allreduce(self, view: StepView, layers: int) -> Cost:
        if self.devices == 1:
            return Cost(0)
        n_bytes = self.activation_bytes(view)
        wire = 2 * (self.devices - 1) * n_bytes  # ring: every device sends 2 (n-1)/n of the buffer
        times = REDUCTIONS * layers
        seconds = self.link.allreduce_s(n_bytes, self.devices)
        return Cost(to_ps(seconds) * times, self.link.energy_fj(wire) * times, wire * times)

    def _template(self, phases: tuple[Phase, ...], blocks: int) -> Template:
        key = tuple(phase.name for phase in phases)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            for _ in range(blocks):
                for name in key:
                    at = self._lower(graph, name, at)
                if self.devices > 1:
                    at = graph.task("link", "allreduce", at)
            self._lower(graph, HEAD, at)
            self.templates[key] = graph.build()
        return self.templates[key]

    def _lower(self, graph: GraphBuilder, slot: str, at: int) -> int:
        legs = [graph.kernel(slot, f"{name}.chip", f"{name}.memory", at) for name in self.names]
        return graph.join(legs)

    def floor_s(self, view: StepView) -> float:
        return self.held(view).footprint_bytes / (self.devices * self.side.memory.bandwidth_bytes_per_s)
