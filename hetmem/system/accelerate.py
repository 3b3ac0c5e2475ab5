"""``accelerate``: layers that fit stay in GPU memory; each of the others is copied when it is needed.

Hugging Face Accelerate's ``device_map`` offload: a hook copies a layer's weights in, the layer runs, the
weights are dropped; nothing overlaps, and the copies come from pageable memory. Host memory only, no host
compute.
"""

from hetmem.engine.graph import GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.link import LinkPath
from hetmem.system.base import Setup
from hetmem.system.offload import OffloadSystem

BUFFERS = 1


class Accelerate(OffloadSystem):
    """What fits is resident, the rest is copied in step."""

    name = "accelerate"
    summary = "layers that fit in GPU memory stay; the others are copied when needed, nothing overlaps"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        room = self.weight_room_bytes(BUFFERS) - (self.total_bytes - self.layer_bytes * self.model.n_layers)
        self.resident = max(0, min(self.model.n_layers, room // self.layer_bytes))
        self.offloaded = self.model.n_layers - self.resident

    @property
    def path(self) -> LinkPath:
        """The path that the copies take."""
        return self.config.pcie.path(pinned=not self.config.pageable_copies)

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("weights", "gpu0", self.total_bytes - self.offloaded * self.layer_bytes)
        ledger.allocate("weight-buffer", "gpu0", BUFFERS * self.layer_bytes)
        ledger.allocate("weights", "host", self.offloaded * self.layer_bytes)

    def kv_bytes_per_token(self) -> dict[str, int]:
        return {"gpu0": self.model.kv_bytes_per_token(self.precision)}

    def plan(self, view: StepView) -> Plan:
        resident, offloaded = self._blocks()
        layer = self.ops.layer(view.prefill, view.decode)
        costs = self.step_costs(view)
        for _, count in resident[:1]:
            costs |= self.stage_costs("resident", layer, count)
        for _, count in offloaded[:1]:
            costs |= self.stage_costs("offloaded", layer, count)
            costs |= self.copy_costs("load.layer", self.layer_bytes, self.path, count)
        return Plan(self._template(resident, offloaded).bind(costs))

    def _blocks(self) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        return self.layer_blocks(0, self.resident), self.layer_blocks(self.resident, self.offloaded)

    def _template(self, resident: list[tuple[str, int]], offloaded: list[tuple[str, int]]) -> Template:
        if "step" not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            for _block in resident:
                at = graph.kernel("resident", "gpu0", "gpu0.hbm", at)
            path = self.copy_path(self.path)
            for _, count in offloaded:
                at = graph.transfer("load.layer", path.hops, at, lag_ps=path.lag_ps * count)
                at = graph.kernel("offloaded", "gpu0", "gpu0.hbm", at)
            graph.kernel("head", "gpu0", "gpu0.hbm", at)
            self.templates["step"] = graph.build()
        return self.templates["step"]

    def floor_s(self, view: StepView) -> float:
        moved = self.offloaded * self.layer_bytes
        return moved / (self.config.pcie.peak_gbs * 1e9)
