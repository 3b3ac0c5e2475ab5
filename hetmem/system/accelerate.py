"""``accelerate``: weights that fit stay in GPU memory; each of the others is copied when it is needed.

Hugging Face Accelerate's ``device_map`` offload: a hook copies a module's weights in, the module runs, the
weights are dropped; nothing overlaps, and the copies come from pageable memory. Host memory only, no host
compute. Placement is by matrix, in layer order, after embedding, head and norms. The model's output, the logits, is
handed back to the host, where its input came from.
"""

from hetmem.engine.graph import GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.link import LinkPath
from hetmem.system.base import Setup
from hetmem.system.offload import OffloadSystem
from hetmem.system.ops import total
from hetmem.system.residency import LayerKind, fill, kinds

BUFFERS = 1


class Accelerate(OffloadSystem):
    """What fits is resident, the rest is copied in step."""

    name = "accelerate"
    summary = "weights that fit in GPU memory stay; the others are copied when needed, nothing overlaps"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.group_bytes = self.model.layer_bytes(self.precision)
        outer = self.total_bytes - self.model.n_layers * (self.layer_bytes - self.group_bytes["norms"])
        layers = fill(self.model.n_layers, self.group_bytes, self.weight_room_bytes(BUFFERS) - outer)
        self.kinds = kinds(layers, setup.unroll_layers)
        self.moved_bytes = sum(self._missing(kind) * kind.count for kind in self.kinds)

    def path(self, direction: str) -> LinkPath:
        """Return the path that the copies take."""
        return self.config.pcie.path(pinned=not self.config.pageable_copies, direction=direction)

    def _missing(self, kind: LayerKind) -> int:
        """Return the bytes of one layer of ``kind`` that are copied."""
        return sum(n for group, n in self.group_bytes.items() if group != "norms" and group not in kind.resident)

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("weights", "gpu0", self.total_bytes - self.moved_bytes)
        ledger.allocate("weight-buffer", "gpu0", BUFFERS * self.layer_bytes)
        ledger.allocate("weights", "host", self.moved_bytes)

    def kv_bytes_per_token(self) -> dict[str, int]:
        return {"gpu0": self.model.kv_bytes_per_token(self.precision)}

    def plan(self, view: StepView) -> Plan:
        layer = self.ops.layer(view.prefill, view.decode)
        costs = self.step_costs(view)
        for kind in self.kinds:
            costs |= self.stage_costs(kind.label, layer, kind.count)
            costs |= self.copy_costs(f"load.{kind.label}", self._missing(kind), self.path("h2d"), kind.count)
        logits = total(view.prefill, view.decode).sampled * self.model.vocab * self.precision.activation_bits // 8
        costs |= self.copy_costs("logits", logits, self.path("d2h"), direction="d2h")
        return Plan(self._template().bind(costs))

    def _template(self) -> Template:
        if "step" not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            path = self.copy_path(self.path("h2d"))
            for kind in self.kinds:
                if self._missing(kind):
                    lag = path.lag_ps * kind.count
                    at = graph.transfer(f"load.{kind.label}", path.hops, at, lag_ps=lag)
                at = graph.kernel(kind.label, "gpu0", "gpu0.hbm", at)
            at = graph.kernel("head", "gpu0", "gpu0.hbm", at)
            back = self.copy_path(self.path("d2h"), "d2h")
            graph.transfer("logits", back.hops, at, lag_ps=back.lag_ps)
            self.templates["step"] = graph.build()
        return self.templates["step"]

    def floor_s(self, view: StepView) -> float:
        # Copies and kernels take turns.
        copied_s = self.moved_bytes / (self.config.pcie.peak_gbs * 1e9)
        return copied_s + self.read_bytes(view) / self.config.gpu.memory_bytes_per_s
