"""``lia``: each of a layer's six sublayers on the CPU or on the GPU, by exhaustive search (LIA, ISCA 2025).

Weights and KV cache lie in host memory; what a sublayer needs on the other side is copied when it is needed,
nothing overlaps. The vector is chosen for every step from its shape (:mod:`hetmem.policy.lia`). The head stays in
GPU memory. Products with one vector run at the host's vector rate where it has one: attention of a decode step,
and every kernel of a single token.
Not modelled: layers kept in GPU memory, CXL memory, overlap of the copies of one sublayer with another.
"""

from typing import Any

from hetmem.engine.graph import Cost, GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.hardware.ledger import Ledger
from hetmem.model import Kernel, StepShape, layer_kernels
from hetmem.policy.lia import RESIDUAL_AT, SUBLAYERS, LiaOffload, LiaView, Sublayer, Vector
from hetmem.system.base import Setup
from hetmem.system.host_compute import HostComputeSystem
from hetmem.system.ops import total

#: The sublayer that each kernel belongs to.
OF = {
    "attn_norm": "qkv", "qkv": "qkv", "rope": "qkv", "qk": "qk", "softmax": "qk", "sv": "sv", "proj": "proj",
    "mlp_norm": "fc1", "router": "fc1", "up": "fc1", "act": "fc1", "down": "fc2",
}  # fmt: skip
ATTENTION = ("qk", "sv")


class Lia(HostComputeSystem):
    """CPU and GPU share a layer by sublayers."""

    name = "lia"
    summary = "each of six sublayers of a layer on CPU or GPU, the least of 64 choices; weights and KV in host memory"
    preset = "lia"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.policy = LiaOffload()
        self.outer_bytes = sum(self.model.outer_bytes(self.precision).values())

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("head and embedding", "gpu0", self.outer_bytes)
        kv = self.setup.kv_tokens * self.model.kv_bytes_per_token(self.precision) // self.model.n_layers
        ledger.allocate("buffer", "gpu0", max(self.layer_bytes, kv))
        ledger.allocate("weights", "host", self.model.n_layers * self.layer_bytes)

    def kv_bytes_per_token(self) -> dict[str, int]:
        return {"host": self.model.kv_bytes_per_token(self.precision)}

    def sublayers(self, view: StepView) -> LiaView:
        """Return the six sublayers of one layer of a step, as the policy sees them."""
        shapes = [shape for shape in (view.prefill, view.decode) if shape is not None]
        whole = total(view.prefill, view.decode)
        parts = {name: self._parts(name, shapes, whole) for name in SUBLAYERS}
        hidden = whole.tokens * self.hidden_bytes
        act = self.precision.activation_bits
        queries = whole.tokens * self.model.q_width * act // 8
        inputs = {
            "qkv": hidden, "qk": queries, "sv": whole.attended * self.model.n_heads * act // 8,
            "proj": queries, "fc1": hidden,
            "fc2": whole.tokens * self.model.mlp_uses * self.model.d_ff * act // 8,
        }  # fmt: skip
        found = []
        for name, kernels in parts.items():
            flops, n_bytes = sum(k.flops for k, _ in kernels), sum(k.bytes for k, _ in kernels)
            assert n_bytes > 0 or not flops
            found.append(
                Sublayer(
                    cpu_s=sum(self.cpu_s(k.flops, k.bytes, vectors=vectors) for k, vectors in kernels),
                    gpu_s=sum(self.ops.law.legs_s(k.flops, k.bytes, self.ops.dtype)[0] for k, _ in kernels),
                    operand_bytes=round(sum(k.weight_bytes + k.kv_read_bytes for k, _ in kernels)),
                    input_bytes=inputs[name],
                    store_bytes=round(sum(k.kv_write_bytes for k, _ in kernels)),
                )
            )
        return LiaView(tuple(found), hidden, self.config.pcie.path().gbs * 1e9)

    def _parts(self, name: str, shapes: list[StepShape], whole: StepShape) -> list[tuple[Kernel, bool]]:
        """Return the kernels of a sublayer, and whether they multiply with single vectors."""
        found = []
        for shape in shapes if name in ATTENTION else [whole]:
            alone = shape.tokens == (shape.sequences if name in ATTENTION else 1)
            found += [
                (k, alone)
                for k in layer_kernels(self.model, shape, self.precision)
                if OF[k.name] == name and k.bytes + k.flops
            ]
        return found

    def plan(self, view: StepView) -> Plan:
        seen = self.sublayers(view)
        vector = self.policy.decide(seen).vector
        whole = total(view.prefill, view.decode)
        shapes = [shape for shape in (view.prefill, view.decode) if shape is not None]
        times = self.layer_blocks()[0][1]
        costs = self.stage_costs("head", self.ops.head(whole))
        for i, (name, sub) in enumerate(zip(SUBLAYERS, seen.sublayers, strict=True)):
            kernels = [k for k, _ in self._parts(name, shapes, whole)]
            costs |= self._sublayer_costs(i, name, sub, kernels, vector, times)
        for direction in ("h2d", "d2h"):
            costs |= self.moved_costs(f"residual.{direction}", seen.residual_bytes, times, direction)
        if vector not in self.templates:
            self.templates[vector] = self._template(vector)
        return Plan(self.templates[vector].bind(costs))

    def _sublayer_costs(
        self, i: int, name: str, sub: Sublayer, kernels: list[Kernel], vector: Vector, times: int
    ) -> dict[str, Cost]:
        if vector[i]:
            costs = self.host_costs(name, sub.cpu_s, sum(k.bytes for k in kernels), times)
        else:
            costs = self.stage_costs(name, [self.ops.op(k) for k in kernels], times)
        costs |= self.moved_costs(f"load.{name}", sub.operand_bytes, times)
        costs |= self.moved_costs(f"input.{name}", sub.input_bytes, times, "d2h" if vector[i] else "h2d")
        return costs | self.moved_costs(f"store.{name}", sub.store_bytes, times, "d2h")

    def _template(self, vector: Vector) -> Template:
        graph = GraphBuilder()
        at = graph.join()
        for _block in self.layer_blocks():
            for i, name in enumerate(SUBLAYERS):
                at = self._sublayer(graph, i, name, vector, at)
        graph.kernel("head", "gpu0", "gpu0.hbm", at)
        return graph.build()

    def _sublayer(self, graph: GraphBuilder, i: int, name: str, vector: Vector, at: int) -> int:
        on_cpu, side = vector[i], "d2h" if vector[i] else "h2d"
        if on_cpu != vector[i - 1]:
            at = self._copy(graph, f"input.{name}", side, at)
        if not on_cpu:
            at = self._copy(graph, f"load.{name}", "h2d", at)
        at = graph.kernel(name, "cpu", "host", at) if on_cpu else graph.kernel(name, "gpu0", "gpu0.hbm", at)
        if i in RESIDUAL_AT and on_cpu != vector[RESIDUAL_AT[i]]:
            at = self._copy(graph, f"residual.{side}", side, at)
        return at if on_cpu else self._copy(graph, f"store.{name}", "d2h", at)

    def _copy(self, graph: GraphBuilder, slot: str, direction: str, at: int) -> int:
        path = self.copy_path(self.config.pcie.path(direction=direction), direction)
        times = self.layer_blocks()[0][1]
        return graph.transfer(slot, path.hops, at, lag_ps=path.lag_ps * times if self._moves(slot) else 0)

    @staticmethod
    def _moves(slot: str) -> bool:
        """Return whether a copy ever has bytes: only new keys and values are stored, and scores have no weights."""
        kind, _, name = slot.partition(".")
        return kind != "store" or name == "qkv"

    def decisions(self) -> dict[str, Any]:
        shape = StepShape.decode(self.setup.batch, self.setup.batch * (self.setup.longest - 1))
        seen = self.sublayers(StepView(0, 0, None, shape, self.setup.batch, 0))
        return {"decode_vector": list(self.policy.decide(seen).vector)}

    def floor_s(self, view: StepView) -> float:
        read = self.active_weight_bytes + self.kv_read_bytes(view)
        # Each byte is read by the CPU or copied over the link; the faster of the two bounds both together.
        return max(0, read) / (self.cpu.memory_bytes_per_s + self.config.pcie.peak_gbs * 1e9)
