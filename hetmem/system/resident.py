"""``resident``: weights and KV cache in GPU memory, tensor-parallel over the machine's GPUs.

Each GPU does its share of every kernel: heads are split, and where there are more GPUs than KV heads, several hold and
read the same one. An all-reduce follows the output projection and the down projection, and the
shards of the logits are gathered on the first GPU (Megatron-LM, arXiv 1909.08053). Not modelled: sequence parallelism,
overlap of collectives with kernels.
"""

from collections.abc import Mapping
from typing import ClassVar

from hetmem.engine.graph import Cost, GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.errors import UnsupportedError
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.link import Link
from hetmem.hardware.machine import Machine
from hetmem.model import StepShape
from hetmem.system.base import Setup, System
from hetmem.system.ops import GpuOps, Op, total
from hetmem.system.parts import gpu_memories, gpu_units, host_units
from hetmem.units import to_ps

REDUCED = ("proj", "down")  # each shard holds a partial sum after these


class Resident(System):
    """Weights and KV cache in the memory of one or more GPUs."""

    name = "resident"
    summary = "weights and KV in GPU memory, tensor-parallel over the GPUs"
    preset = "resident"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.gpus = self.config.gpus
        if self.model.n_heads % self.gpus:
            problem = f"the {self.model.n_heads} heads of {self.model.id} cannot be split over {self.gpus} GPUs"
            raise UnsupportedError(self.name, problem)
        self.ops = GpuOps(self.model, self.precision, self.config.gpu, self.gpus)

    def machine(self) -> Machine:
        units = (*gpu_units(self.config), *host_units(self.config.cpu, None))
        return Machine(units, gpu_memories(self.config), base_w=self.config.base_w)

    def place(self, ledger: Ledger) -> None:
        shard = -(-self.model.weight_bytes(self.precision) // self.gpus)
        for gpu in range(self.gpus):
            ledger.allocate("weights", f"gpu{gpu}", shard)

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        heads = -(-self.model.n_kv_heads // self.gpus)
        share = -(-self.model.kv_bytes_per_token(self.precision) * heads // self.model.n_kv_heads)
        return {f"gpu{gpu}": share for gpu in range(self.gpus)}

    def plan(self, view: StepView) -> Plan:
        tokens = total(view.prefill, view.decode)
        layer, head = self.ops.layer(view.prefill, view.decode), self.ops.head(tokens)
        blocks = self.layer_blocks()
        costs: dict[str, Cost] = {}
        for op in (*layer, *head):
            costs[f"{op.name}.compute"], costs[f"{op.name}.memory"] = self.ops.price(
                op, blocks[0][1] if op in layer else 1
            )
        if self.gpus > 1:
            costs["allreduce"] = self._allreduce(tokens, blocks[0][1])
            costs["gather"] = self._gather(tokens)
        return Plan(self._template(tuple(layer), tuple(head), blocks).bind(costs))

    def _allreduce(self, tokens: StepShape, times: int) -> Cost:
        n_bytes = tokens.tokens * self.model.d_model * self.precision.activation_bits // 8
        link = self._link()
        seconds = link.allreduce_s(n_bytes, self.gpus)
        wire = 2 * (self.gpus - 1) * n_bytes  # ring: every GPU sends 2 (n-1)/n of the buffer
        return Cost(to_ps(seconds) * times, link.energy_fj(wire) * times, wire * times)

    def _gather(self, tokens: StepShape) -> Cost:
        shard = tokens.sampled * self.model.vocab * self.precision.activation_bits // 8 // self.gpus
        wire = shard * (self.gpus - 1)
        return Cost(to_ps(self._link().transfer_s(wire)), self._link().energy_fj(wire), wire)

    def _link(self) -> Link:
        link = self.config.gpu_link
        assert link is not None  # machines of several GPUs have one
        return link

    def _template(self, layer: tuple[Op, ...], head: tuple[Op, ...], blocks: list[tuple[str, int]]) -> Template:
        key = tuple(op.name for op in layer)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            for _block in blocks:
                at = self._lower(graph, layer, at)
            at = self._lower(graph, head, at)
            if self.gpus > 1:
                graph.task("gpu-link", "gather", at)
            self.templates[key] = graph.build()
        return self.templates[key]

    def _lower(self, graph: GraphBuilder, ops: tuple[Op, ...], at: int) -> int:
        for op in ops:
            legs = [graph.kernel(op.name, f"gpu{gpu}", f"gpu{gpu}.hbm", at) for gpu in range(self.gpus)]
            at = legs[0] if self.gpus == 1 else graph.join(legs)
            if self.gpus > 1 and op.name in REDUCED:
                at = graph.task("gpu-link", "allreduce", at)
        return at

    def floor_s(self, view: StepView) -> float:
        return self.read_bytes(view) / (self.gpus * self.config.gpu.memory_bytes_per_s)
