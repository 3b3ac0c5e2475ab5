"""``zero-inference``: whole layers streamed in order from DRAM, or from NVMe through it, prefetched.

The GPU does all compute and keeps the KV cache; no weight stays in its memory. Loads run ahead across the
step's end, so that the first layers of a step are on their way while the last of the one before compute
(DeepSpeed ZeRO-Inference, SC'22, arXiv 2207.00032; ZeRO-Infinity, arXiv 2104.07857). Prefetch: two layers from
DRAM to the GPU, three from NVMe to DRAM, beside the one that is in use in each. Not modelled: KV offload,
quantised weights.
"""

from typing import Any

from hetmem.engine.graph import Cost, GraphBuilder, Handle, Template
from hetmem.engine.step import Plan, StepView
from hetmem.errors import ConfigError
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine
from hetmem.system.base import Setup
from hetmem.system.offload import OffloadSystem, ssd_memories, ssd_units
from hetmem.system.stream import Path, Stage, reach, stream
from hetmem.units import to_fj, to_ps

PREFETCH = 2
NVME_PREFETCH = 3
NEXT = {"ready": "next", "staged": "next-staged"}


class ZeroInference(OffloadSystem):
    """All weights streamed for every step."""

    name = "zero-inference"
    summary = "whole layers streamed from DRAM or NVMe every step, prefetched; KV in GPU memory"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        stages = [Stage("layer", "load.layer")] * self.model.n_layers + [Stage("head", "load.head")]
        self.stages = stages
        self.from_ssd = self.total_bytes > self.host.capacity_bytes
        self.depths = (NVME_PREFETCH, PREFETCH) if self.from_ssd else (PREFETCH,)
        self.ahead = reach(self.depths, len(stages))
        if self.from_ssd and self.config.ssd is None:
            raise ConfigError("machine.ssd", f"{self.model.id} exceeds host DRAM and the machine has no SSD")
        self._ahead: dict[tuple[str, int], Handle] = {}

    def machine(self) -> Machine:
        machine = super().machine()
        if not self.from_ssd or self.config.ssd is None:
            return machine
        units = (*machine.units, *ssd_units(self.config.ssd))
        return Machine(units, (*machine.memories, *ssd_memories(self.config.ssd.capacity_bytes)), machine.base_w)

    def place(self, ledger: Ledger) -> None:
        buffer = max(self.layer_bytes, self.head_bytes)
        if self.from_ssd:
            ledger.allocate("weights", "ssd", self.total_bytes)
            ledger.allocate("weight-buffer", "host", (NVME_PREFETCH + 1) * buffer)
        else:
            ledger.allocate("weights", "host", self.total_bytes)
        ledger.allocate("weight-buffer", "gpu0", (PREFETCH + 1) * buffer)

    def kv_bytes_per_token(self) -> dict[str, int]:
        return {"gpu0": self.model.kv_bytes_per_token(self.precision)}

    def plan(self, view: StepView) -> Plan:
        costs = self.step_costs(view)
        path = self.config.pcie.path()
        for slot, n_bytes in (("load.layer", self.layer_bytes), ("load.head", self.head_bytes)):
            costs |= self.copy_costs(slot, n_bytes, path)
            if self.from_ssd:
                costs |= self._read_costs(slot, n_bytes)
        template = self._template(bool(self._ahead))
        issued = {place: Handle((view.order + 1, place)) for place in self._places()}
        publish = {template.names[NEXT[kind] + f".{i}"]: handle for (kind, i), handle in issued.items()}
        wait = {template.names[f"{kind}.{i}"]: [handle] for (kind, i), handle in self._ahead.items()}
        return Plan(template.bind(costs, publish, wait), note=issued)

    def _places(self) -> list[tuple[str, int]]:
        """Return the stages of the next step that a step loads ahead, and how far each comes."""
        ready, staged = self.ahead[-1], self.ahead[0]
        return [("ready", i) for i in range(ready)] + [("staged", i) for i in range(ready, staged)]

    def commit(self, plan: Plan) -> None:
        super().commit(plan)
        self._ahead = plan.note

    def _read_costs(self, slot: str, n_bytes: int) -> dict[str, Cost]:
        ssd = self.config.ssd
        assert ssd is not None
        dram = to_fj(8 * n_bytes * self.host.pj_per_bit * 1e-12)
        return {
            f"{slot}@ssd": Cost(to_ps(ssd.transfer_s(n_bytes)), ssd.energy_fj(n_bytes), n_bytes),
            f"{slot}@host": Cost(to_ps(n_bytes / self.host_rate), dram, n_bytes),
        }

    def _template(self, warm: bool) -> Template:
        key: Any = warm
        if key not in self.templates:
            graph = GraphBuilder()
            paths = [self.copy_path(self.config.pcie.path())]
            if self.from_ssd:
                paths.insert(0, Path(("ssd", "host"), 0))
            stream(graph, self.stages, paths, self.depths, graph.join(), warm=warm, ahead=True)
            self.templates[key] = graph.build()
        return self.templates[key]

    def floor_s(self, view: StepView) -> float:
        # The first layers of a step may have been loaded before it began: by each tier, those that it is ahead.
        rates = [self.config.pcie.peak_gbs * 1e9]
        if self.from_ssd and self.config.ssd is not None:
            rates.insert(0, self.config.ssd.read_gbs * 1e9)
        moved = [(self.model.n_layers - ahead) * self.layer_bytes + self.head_bytes for ahead in self.ahead]
        wires = (n_bytes / rate for n_bytes, rate in zip(moved, rates, strict=True))
        # What is copied is written to the GPU's memory before kernels read it.
        return max(*wires, (moved[-1] + self.read_bytes(view)) / self.config.gpu.memory_bytes_per_s)
