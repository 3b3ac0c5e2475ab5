"""``powerinfer``: hot neurons on the GPU, cold ones on the host's processor (PowerInfer, SOSP'24).

As Hermes (HPCA'25) sets it up for comparison, there called Hermes-host: all weights are in host DRAM, the hot ones also
on the GPU, which the offline partition decides; the processor computes the cold neurons beside the GPU, and attention,
for it holds the keys and values; the output projection is resident. What goes to the GPU and comes back pays one hop
each way. A prompt is processed on the GPU, its weights streamed. Neurons do not change place while decoding unless the
adjustment role says so. Ignored: trained predictors, which would take memory and time of the GPU.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hetmem.engine.graph import Cost, CostColumns, GraphBuilder, Template
from hetmem.engine.step import Plan, StepOutcome, StepView
from hetmem.errors import UnsupportedError
from hetmem.hardware.ledger import Ledger
from hetmem.model import StepShape, layer_kernels
from hetmem.monitor.table import Table
from hetmem.policy.adjustment import NoAdjustment
from hetmem.system.base import Setup
from hetmem.system.neuron_placement import PARTITIONS, PREDICTORS, Rates, place_neurons, policy, predictor
from hetmem.system.neuron_state import NeuronState, Work
from hetmem.system.offload import OffloadSystem
from hetmem.system.ops import ATTENTION, Op
from hetmem.system.residency import beside_stream
from hetmem.system.sparse import (
    NeuronModel,
    NeuronPlan,
    costs_of,
    hot_costs,
    layer_slots,
    require_neurons,
    require_plain_decoding,
    require_room,
)
from hetmem.system.stream import Stage, stream
from hetmem.units import to_ps

PREFETCH = 1
ATTENTION_LEGS = (("attention.compute",), ("attention.memory",))


class PowerInfer(OffloadSystem):
    """Hot and cold neurons over a GPU and the host's processor."""

    name = "powerinfer"
    summary = "hot neurons on the GPU, cold ones and attention on the host's processor"
    has_neurons = True
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "partition": tuple(PARTITIONS), "predictor": tuple(PREDICTORS),
    }  # fmt: skip

    def __init__(self, setup: Setup) -> None:
        require_neurons(self, setup)
        super().__init__(setup)
        if self.host_cpu is None:
            raise UnsupportedError(self.name, "needs a host processor, and the machine has none")
        self.cpu = self.host_cpu
        self.neurons = NeuronModel(setup)
        self.late = self.neurons.config.misses == "late"
        groups = self.model.layer_bytes(self.precision)
        self.dense_layer_bytes = groups["proj"] + groups["norms"]
        room = beside_stream(self.config, self.head_bytes, (PREFETCH + 1) * self.layer_bytes)
        dense = self.model.n_layers * self.dense_layer_bytes
        require_room("gpu0", dense, room, self.config.gpu_usable_bytes)
        gpu_rate = self.config.gpu.memory_bytes_per_s * self.ops.law.efficiencies[1]
        self.placement = place_neurons(
            policy(setup.policies.get("partition"), PARTITIONS), self.neurons.neurons, self.neurons.unit_bytes,
            self.neurons.config,
            Rates(
                gpu_s_per_byte=1 / gpu_rate, dimm_s_per_byte=1e-9 * self._cpu_s(np.zeros(1), np.full(1, 1e9))[0][0],
                sync_s=self.config.sync_s, n_dimms=1, gpu_bytes=room - dense, dimm_bytes=self.host.capacity_bytes,
            ),
        )  # fmt: skip
        self.hot_bytes = self.neurons.resident_bytes(self.placement)
        self.state = NeuronState(
            self.neurons.neurons, self.neurons.unit_bytes, self.placement, 1,
            predictor(setup.policies.get("predictor"), self.neurons.neurons, setup.seed), NoAdjustment(), None,
            late=self.late, slack_bytes=0,
        )  # fmt: skip
        self._cold_bytes: tuple[int, int] = (-1, 0)

    def _cpu_s(self, flops: Any, n_bytes: Any) -> tuple[Any, Any]:
        """Return seconds of a kernel on the processor and of its memory leg; nothing where there is no work."""
        if self.config.cpu_gbs is not None:
            seconds = n_bytes / (self.config.cpu_gbs * 1e9)
            return seconds, seconds
        legs = self.cpu.legs_s(flops, n_bytes)
        return legs.total_s * (n_bytes > 0), legs.memory_s

    def place(self, ledger: Ledger) -> None:
        dense = self.head_bytes + self.model.n_layers * self.dense_layer_bytes
        ledger.allocate("weights", "gpu0", dense)
        ledger.allocate("hot-neurons", "gpu0", int(self.hot_bytes.sum()))
        ledger.allocate("weights", "host", self.total_bytes)

    def kv_bytes_per_token(self) -> dict[str, int]:
        return {"host": self.model.kv_bytes_per_token(self.precision)}

    def decisions(self) -> Mapping[str, Any]:
        return {"partition": self.placement.described(), **self.neurons.table_bytes()}

    def tables(self) -> Mapping[str, Table]:
        return {"neurons": self.state.steps}

    def missing_bytes(self, layer: int) -> int:
        """Return the weights of ``layer`` that a prefill copies."""
        held = 0 if self.config.prefill_streams_all else self.dense_layer_bytes + int(self.hot_bytes[layer])
        return self.layer_bytes - held

    # -- a step ------------------------------------------------------------------------------------------------

    def plan(self, view: StepView) -> NeuronPlan:
        require_plain_decoding(self, view)
        costs: dict[str, Cost] = {}
        if view.prefill is not None:
            costs |= self._prefill_costs(view.prefill)
        if view.decode is None:
            return NeuronPlan(self._template(True, False).bind(costs))
        costs |= self._dense_costs(view.decode)
        step = self.state.plan(view.order, view.decode.sequences, 0.0, 0.0)
        columns = self._attention_costs(view.decode)
        for block, tail, work in step.parts():
            columns += self._neuron_costs(block, tail, work, view.decode)
        return NeuronPlan(self._template(view.prefill is not None, True).bind(costs, columns=columns), step=step)

    def commit(self, plan: Plan) -> None:
        assert isinstance(plan, NeuronPlan)
        if plan.step is not None:
            self.state.commit(plan.step)
            self._cold_bytes = plan.step.order, self.neurons.cold_bytes(plan.step)

    def observe(self, outcome: StepOutcome) -> None:
        self.state.advance(outcome.view)

    def _dense_costs(self, shape: StepShape) -> dict[str, Cost]:
        """Return the costs that all layers have alike, and those of the head."""
        kernels = layer_kernels(self.model, shape, self.precision)
        parts = [k for k in kernels if k.name in ("proj", "attn_norm", "mlp_norm")]
        op = Op("proj", sum(k.flops for k in parts), sum(k.bytes for k in parts), 0)
        costs: dict[str, Cost] = {}
        costs["proj.compute"], costs["proj.memory"] = self.ops.price(op)
        handed = shape.tokens * self.model.d_model * self.precision.activation_bits // 8
        costs["hop"] = self.hop_cost("pcie.h2d", handed, self.config.prefill_path())
        return costs | self.stage_costs("head", self.ops.head(shape))

    def _attention_costs(self, shape: StepShape) -> list[CostColumns]:
        kernels = [k for k in layer_kernels(self.model, shape, self.precision) if k.name in ATTENTION]
        n_bytes = sum(k.kv_read_bytes for k in kernels)
        whole, memory = self._cpu_s(np.array([sum(k.flops for k in kernels)]), np.array([float(n_bytes)]))
        return self._on_cpu(ATTENTION_LEGS, whole, memory, np.array([n_bytes]))

    def _neuron_costs(self, block: str, tail: str, work: Work, shape: StepShape) -> list[CostColumns]:
        model = self.neurons
        passed = 2 * shape.tokens * self.model.d_model * self.precision.activation_bits / 8
        legs = tuple(layer_slots(f"{block}{tail}.cpu.{leg}", self.model.n_layers) for leg in ("compute", "memory"))
        n_bytes = (work.units[:, 1] * model.unit_bytes[block]).astype(np.float64)
        whole, leg = self._cpu_s(2.0 * work.macs[:, 1] * model.macs_per_unit[block], n_bytes)
        hot = hot_costs(self.ops.law, self.ops.dtype, model, block, tail, work, passed)
        return [*hot, *self._on_cpu(legs, whole, leg, n_bytes)]

    def _on_cpu(self, legs: tuple[tuple[str, ...], ...], whole: Any, memory: Any, n_bytes: Any) -> list[CostColumns]:
        compute, read = legs
        fj = n_bytes * 8 * self.host.pj_per_bit * 1e3
        return [costs_of(compute, whole, n_bytes * 0), costs_of(read, memory, n_bytes, fj)]

    def _prefill_costs(self, shape: StepShape) -> dict[str, Cost]:
        path = self.config.prefill_path()
        costs = self.stage_costs("prefill.layer", self.ops.layer(shape, None))
        costs |= self.stage_costs("prefill.head", self.ops.head(shape))
        for layer in range(self.model.n_layers):
            costs |= self.copy_costs(f"load.{self.missing_bytes(layer)}", self.missing_bytes(layer), path)
        costs |= self.copy_costs("load.head", self.head_bytes, path)
        written = shape.tokens * self.model.kv_bytes_per_token(self.precision)
        return costs | self.copy_costs("kv.write", written, self.config.prefill_path("d2h"), direction="d2h")

    # -- the graph ---------------------------------------------------------------------------------------------

    def _template(self, prefill: bool, decode: bool) -> Template:
        key: Any = (prefill, decode)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            if prefill:
                missing = map(self.missing_bytes, range(self.model.n_layers))
                stages = [Stage("prefill.layer", f"load.{n_bytes}" if n_bytes else None) for n_bytes in missing]
                stages.append(Stage("prefill.head", "load.head" if self.config.prefill_streams_all else None))
                path, back = (
                    self.copy_path(self.config.prefill_path()),
                    self.copy_path(self.config.prefill_path("d2h"), "d2h"),
                )
                at = stream(graph, stages, [path], [PREFETCH], at)
                at = graph.transfer("kv.write", back.hops, at, lag_ps=back.lag_ps)
            if decode:
                for layer in range(self.model.n_layers):
                    at = self._lower_layer(graph, layer, at)
                graph.kernel("head", "gpu0", "gpu0.hbm", self._hop(graph, at, "pcie.h2d"))
            self.templates[key] = graph.build()
        return self.templates[key]

    def _lower_layer(self, graph: GraphBuilder, layer: int, at: int) -> int:
        at = self._lower_block(graph, f"l{layer}.qkv", at)
        at = self._hop(graph, graph.kernel("attention", "cpu", "host", at), "pcie.h2d")
        at = self._hop(graph, graph.kernel("proj", "gpu0", "gpu0.hbm", at), "pcie.d2h")
        return self._lower_block(graph, f"l{layer}.mlp", at)

    def _lower_block(self, graph: GraphBuilder, slot: str, at: int) -> int:
        hot = graph.kernel(slot, "gpu0", "gpu0.hbm", self._hop(graph, at, "pcie.h2d"))
        ends = [graph.kernel(f"{slot}.cpu", "cpu", "host", at), self._hop(graph, hot, "pcie.d2h")]
        if self.late:
            known = graph.join(ends)
            ends = [
                graph.kernel(f"{slot}.late.cpu", "cpu", "host", known),
                graph.kernel(f"{slot}.late", "gpu0", "gpu0.hbm", known),
            ]
        return graph.join(ends)

    def _hop(self, graph: GraphBuilder, at: int, wire: str) -> int:
        return graph.task(wire, "hop", at, lag_ps=to_ps(self.config.sync_s), tag="sync")

    def floor_s(self, view: StepView) -> float:
        floor = 0.0
        if view.decode is not None:
            order, cold = self._cold_bytes
            assert order == view.order
            kv = view.decode.kv_tokens * self.model.kv_bytes_per_token(self.precision)
            rate = (self.config.cpu_gbs or self.cpu.memory_gbs) * 1e9
            dense = self.head_bytes + self.model.n_layers * self.dense_layer_bytes
            floor += (cold + kv) / rate + dense / self.config.gpu.memory_bytes_per_s
        if view.prefill is not None:
            moved = sum(map(self.missing_bytes, range(self.model.n_layers)))
            floor += moved / (max(self.config.pcie.peak_gbs, self.config.prefill_gbs or 0.0) * 1e9)
        return floor
