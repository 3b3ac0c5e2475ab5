"""``hermes``: hot neurons on a GPU, cold ones and attention on NDP-DIMMs (Hermes, HPCA'25).

A decoder layer at decode: QKV on the GPU (resident neurons) beside the DIMMs (the others), merged on the DIMMs;
attention on the DIMMs; the dense output projection on the GPU, always resident, while neurons that became hot are
copied there over PCIe and cold ones move from DIMM to DIMM over their links; the MLP like QKV. What goes to the GPU and
comes back pays one hop of synchronisation each way. Copies and moves are background work, of as many bytes as the
projection leaves time for; a layer of the next step waits for its own. Every DIMM keeps a copy of all its
neurons, so leaving the GPU costs nothing; what the first resident set lacks passes the GPU in the prefill anyway.

Ignored: sending partial sums between DIMMs (20 KB a layer); time on the host to predict and map (under 0.1 % in the
paper), accuracy lost to dropped neurons. One DIMM-link port per DIMM: a move holds that of its source.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from hetmem.engine.graph import Cost, CostColumns, GraphBuilder, Handle, Template
from hetmem.engine.step import Plan, StepOutcome, StepView
from hetmem.errors import UnsupportedError
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Unit
from hetmem.model import StepShape, layer_kernels
from hetmem.model.activity_config import BLOCKS
from hetmem.monitor.table import Table
from hetmem.system.base import Setup
from hetmem.system.ndp_base import NdpSystem, is_chunk
from hetmem.system.neuron_placement import (
    ADJUSTERS,
    BALANCERS,
    PARTITIONS,
    PREDICTORS,
    Rates,
    place_neurons,
    policy,
    predictor,
)  # fmt: skip
from hetmem.system.neuron_state import NeuronState, NeuronStep, Work
from hetmem.system.ops import Op
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
from hetmem.units import to_ps

SLACK_SHARE = 1 / 32  # of a DIMM, kept free for neurons that move to it
BACKGROUND_PS = to_ps(20e-6)  # background work lets the foreground pass this often


class Hermes(NdpSystem):
    """Hot and cold neurons over a GPU and NDP-DIMMs."""

    name = "hermes"
    summary = "hot neurons on the GPU, cold ones and attention on NDP-DIMMs, adjusted and rebalanced while decoding"
    has_neurons = True
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "partition": tuple(PARTITIONS), "predictor": tuple(PREDICTORS), "adjustment": tuple(ADJUSTERS),
        "balance": tuple(BALANCERS),
    }  # fmt: skip

    def __init__(self, setup: Setup) -> None:
        require_neurons(self, setup)
        super().__init__(setup)
        if self.config.dimm_link is None:
            raise UnsupportedError(self.name, "needs links between the DIMMs, and the machine has none")
        self.link = self.config.dimm_link.path()
        self.neurons = NeuronModel(setup)
        self.late = self.neurons.config.misses == "late"
        self.rates = {b: self.pool.read_bytes_per_s(n) for b, n in self.neurons.row_bytes.items()}
        n_layers, total = self.model.n_layers, self.model.weight_bytes(self.precision)
        self.dense_bytes = n_layers * (self.group_bytes["proj"] + self.group_bytes["norms"])
        room = self.gpu_room() - self.dense_bytes
        require_room("gpu0", self.dense_bytes, self.gpu_room(), self.config.gpu_usable_bytes)
        self.slack_bytes = int(self.pool.capacity_bytes * SLACK_SHARE)
        self.share_bytes = -(-(total - self.neurons.neuron_bytes) // self.pool.count)
        self.placement = place_neurons(
            policy(setup.policies.get("partition"), PARTITIONS), self.neurons.neurons, self.neurons.unit_bytes,
            self.neurons.config, self._partition_rates(room),
        )  # fmt: skip
        self.hot_bytes = self.neurons.resident_bytes(self.placement)
        self.state = NeuronState(
            self.neurons.neurons, self.neurons.unit_bytes, self.placement, self.pool.count,
            predictor(setup.policies.get("predictor"), self.neurons.neurons, setup.seed),
            policy(setup.policies.get("adjustment"), ADJUSTERS), policy(setup.policies.get("balance"), BALANCERS),
            late=self.late, slack_bytes=self.slack_bytes,
        )  # fmt: skip
        self._landing: dict[int, Handle] = {}
        self._cold_bytes: tuple[int, int] = (-1, 0)

    def _partition_rates(self, room: int) -> Rates:
        read_s, mac_s = 1 / self.weight_rate, self.pool.mac_s(8 / self.precision.weights_bits)
        gpu_rate = self.config.gpu.memory_bytes_per_s * self.ops.law.efficiencies[1]
        return Rates(
            gpu_s_per_byte=1 / gpu_rate,
            dimm_s_per_byte=max(read_s, mac_s) if self.pool.overlapped else read_s + mac_s,
            sync_s=self.config.sync_s, n_dimms=self.pool.count, gpu_bytes=room,
            dimm_bytes=self.pool.capacity_bytes - self.share_bytes - self.slack_bytes,
        )  # fmt: skip

    def resident_bytes(self, layer: int) -> int:
        return self.group_bytes["proj"] + self.group_bytes["norms"] + int(self.hot_bytes[layer])

    def further_units(self) -> tuple[Unit, ...]:
        link = self.config.dimm_link
        assert link is not None
        return tuple(
            Unit(f"dimm{d}.link", "dimm-link", link.idle_w, link.idle_w, (f"dimm{d}",)) for d in range(self.pool.count)
        )

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("weights", "gpu0", self.head_bytes + self.dense_bytes)
        ledger.allocate("hot-neurons", "gpu0", int(self.hot_bytes.sum()))
        held = sum(
            np.bincount(self.placement.home[b].ravel(), minlength=self.pool.count) * self.neurons.unit_bytes[b]
            for b in BLOCKS
        )
        for dimm in range(self.pool.count):
            ledger.allocate("weights", f"dimm{dimm}", self.share_bytes)
            ledger.allocate("neurons", f"dimm{dimm}", int(np.asarray(held)[dimm]))
            ledger.allocate("room for moves", f"dimm{dimm}", self.slack_bytes)
        self.place_buffers(ledger)

    def decisions(self) -> Mapping[str, Any]:
        return {"partition": self.placement.described(), **self.neurons.table_bytes()}

    def tables(self) -> Mapping[str, Table]:
        return {"neurons": self.state.steps, "windows": self.state.windows}

    # -- a step ------------------------------------------------------------------------------------------------

    def plan(self, view: StepView) -> NeuronPlan:
        require_plain_decoding(self, view)
        costs: dict[str, Cost] = {}
        if view.prefill is not None:
            costs |= self.prefill_costs(view.prefill)
        if view.decode is None:
            return NeuronPlan(self._template(True, is_chunk(view.prefill), False, False, False).bind(costs))
        costs |= self._dense_costs(view.decode)
        copy_bytes, link_bytes = self._gap_bytes(view.decode)
        step = self.state.plan(view.order, view.decode.sequences, copy_bytes, link_bytes)
        costs |= self.head_costs(view.decode)
        columns = [*self._copy_costs(step), *self._move_costs(step)]
        for block, tail, work in step.parts():
            columns += self._neuron_costs(block, tail, work, view.decode)
        copies, moves = bool(step.copied_bytes.any()), bool(step.sent_bytes.any())
        template = self._template(view.prefill is not None, is_chunk(view.prefill), True, copies, moves)
        changed = np.flatnonzero(step.copied_bytes.any(axis=1) | step.sent_bytes.any(axis=1)).tolist()
        handles = {layer: Handle((view.order, layer)) for layer in changed}
        publish = {template.names[f"landed.{layer}"]: handle for layer, handle in handles.items()}
        wait = {template.names[f"start.{layer}"]: [handle] for layer, handle in self._landing.items()}
        return NeuronPlan(template.bind(costs, publish, wait, columns), step=step, handles=handles)

    def commit(self, plan: Plan) -> None:
        assert isinstance(plan, NeuronPlan)
        if plan.step is not None:
            self.state.commit(plan.step)
            self._landing |= plan.handles
            self._cold_bytes = plan.step.order, self.neurons.cold_bytes(plan.step)

    def observe(self, outcome: StepOutcome) -> None:
        self._landing = {layer: handle for layer, handle in self._landing.items() if handle.landed_ps is None}
        self.state.advance(outcome.view)

    def _gap_bytes(self, shape: StepShape) -> tuple[float, float]:
        """Return what PCIe and one DIMM-link carry while a projection runs."""
        whole, _ = self.ops.law.legs_s(*self._projection(shape), self.ops.dtype)
        link_s = max(0.0, float(whole) - self.link.latency_s)
        return float(whole) * self.config.prefill_path().gbs * 1e9, link_s * self.link.gbs * 1e9

    def _projection(self, shape: StepShape) -> tuple[float, float]:
        """Return FLOPs and bytes of the projection and the norm after it."""
        parts = [k for k in layer_kernels(self.model, shape, self.precision) if k.name in ("proj", "mlp_norm")]
        return sum(k.flops for k in parts), sum(k.bytes for k in parts)

    def _dense_costs(self, shape: StepShape) -> dict[str, Cost]:
        """Return the costs that all layers have alike."""
        kernels = layer_kernels(self.model, shape, self.precision)
        costs = self.attention_costs("attention", shape)
        costs["proj.compute"], costs["proj.memory"] = self.ops.price(Op("proj", *self._projection(shape), 0))
        costs |= {f"hop{kernel}": self.hop_cost(shape.tokens, kernel[1:]) for kernel in ("", ".qkv", ".attention")}
        norm = sum(k.flops for k in kernels if k.name == "attn_norm") / 2
        widths = {"qkv": self.model.q_width + 2 * self.model.kv_width, "mlp": self.model.d_model}
        for block, width in widths.items():
            adds = (self.pool.count + 1) * width * shape.tokens + (norm if block == "mlp" else 0)
            costs[f"{block}.merge"] = Cost(to_ps(self.pool.mac_s(adds)), self.pool.mac_fj(adds))
        return costs

    def _neuron_costs(self, block: str, tail: str, work: Work, shape: StepShape) -> list[CostColumns]:
        """Return the costs of the computed neurons of all layers, on the GPU and on each DIMM."""
        pool, model = self.pool, self.neurons
        passed = 2 * shape.tokens * self.model.d_model * self.precision.activation_bits / 8
        n_bytes, macs = work.units[:, 1:] * model.unit_bytes[block], work.macs[:, 1:] * model.macs_per_unit[block]
        read_fj, mac_fj = n_bytes * pool.read_fj(1e6) * 1e-6, macs * pool.mac_fj(1e6) * 1e-6
        return [
            *hot_costs(self.ops.law, self.ops.dtype, model, block, tail, work, passed),
            costs_of(self._on_each(f"{block}{tail}.read"), n_bytes / self.rates[block], n_bytes, read_fj),
            costs_of(self._on_each(f"{block}{tail}.mac"), macs / pool.macs_per_s, macs * 0, mac_fj),
        ]

    def _on_each(self, what: str) -> tuple[str, ...]:
        return layer_slots(what, self.model.n_layers, self.pool.count)

    def _copy_costs(self, step: NeuronStep) -> list[CostColumns]:
        """Return the costs of the copies to the GPU: at the ranks they come from, on PCIe, in its memory."""
        if not step.copied_bytes.any():
            return []
        left, total = step.copied_bytes, step.copied_bytes.sum(axis=1)
        pcie, gpu = self.config.pcie.energy_fj(1e6) * 1e-6, self.config.gpu.stream_s(1.0)
        wire, memory = (layer_slots(f"copy@{hop}", len(total)) for hop in ("pcie.h2d", "gpu0.hbm"))
        read_fj = left * self.pool.read_fj(1e6) * 1e-6
        return [
            costs_of(wire, total / (self.config.prefill_path().gbs * 1e9), total, total * pcie),
            costs_of(memory, total * gpu, total),
            costs_of(self._on_each("copy@dimm"), left / self.weight_rate, left, read_fj),
        ]

    def _move_costs(self, step: NeuronStep) -> list[CostColumns]:
        """Return the costs of the moves between DIMMs: read, sent by the port of the source, written."""
        if not step.sent_bytes.any():
            return []
        link = self.config.dimm_link
        assert link is not None
        sent, touched = step.sent_bytes, step.sent_bytes + step.received_bytes
        seconds = np.where(sent > 0, self.link.transfer_s(sent.astype(np.float64)), 0.0)
        read_fj = touched * self.pool.read_fj(1e6) * 1e-6
        return [
            costs_of(self._on_each("move@dimm"), touched / self.weight_rate, touched, read_fj),
            costs_of(self._on_each("move@link"), seconds, sent, sent * link.energy_fj(1e6) * 1e-6),
        ]

    # -- the graph ---------------------------------------------------------------------------------------------

    def _template(self, prefill: bool, chunked: bool, decode: bool, copies: bool, moves: bool) -> Template:
        key: Any = (prefill, chunked, decode, copies, moves)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            if prefill:
                at = self.lower_prefill(graph, at, chunked=chunked)
            if decode:
                for layer in range(self.model.n_layers):
                    at = self._lower_layer(graph, layer, at, copies, moves)
                self.lower_head(graph, self._hop(graph, at, "pcie.h2d"))
            self.templates[key] = graph.build()
        return self.templates[key]

    def _lower_layer(self, graph: GraphBuilder, layer: int, at: int, copies: bool, moves: bool) -> int:
        at = graph.join(at, name=f"start.{layer}")
        at = self._lower_block(graph, layer, "qkv", at)
        at = self._hop(graph, graph.join(self.on_dimms(graph, "attention", at)), "pcie.h2d", ".attention")
        if copies or moves:
            self._lower_background(graph, layer, at, copies, moves)
        at = self._hop(graph, graph.kernel("proj", "gpu0", "gpu0.hbm", at), "pcie.d2h")
        return self._lower_block(graph, layer, "mlp", at)

    def _lower_block(self, graph: GraphBuilder, layer: int, block: str, at: int) -> int:
        """Add the neurons of a block: the GPU's beside the DIMMs', and the merge on the DIMMs."""
        slot, left = f"l{layer}.{block}", ".qkv" if block == "qkv" else ""
        hot = graph.kernel(slot, "gpu0", "gpu0.hbm", self._hop(graph, at, "pcie.h2d"))
        ends = [*self.on_dimms(graph, slot, at, own=True), self._hop(graph, hot, "pcie.d2h", left)]
        if self.late:
            known = graph.join(ends)
            hot = graph.kernel(f"{slot}.late", "gpu0", "gpu0.hbm", known)
            ends = [*self.on_dimms(graph, f"{slot}.late", known, own=True), hot]
        return graph.task("dimm0.core", f"{block}.merge", ends)

    def _lower_background(self, graph: GraphBuilder, layer: int, at: int, copies: bool, moves: bool) -> None:
        """Add what runs behind the projection; the work of a lower class, in pieces that let the foreground pass."""
        ends: list[int] = []

        def leg(server: str, slot: str, tag: str, lag_ps: int = 0) -> None:
            ends.append(graph.task(
                server, slot, at, cls=1, chunk_ps=BACKGROUND_PS, lag_ps=lag_ps, background=True, tag=tag
            ))  # fmt: skip

        if copies:
            tag = f"l{layer}.copy"
            leg("pcie.h2d", f"{tag}@pcie.h2d", tag, to_ps(self.config.prefill_path().latency_s))
            leg("gpu0.hbm", f"{tag}@gpu0.hbm", tag)
            for dimm in range(self.pool.count):
                leg(f"dimm{dimm}.dram", f"{tag}@dimm{dimm}", tag)
        if moves:
            tag = f"l{layer}.move"
            for dimm in range(self.pool.count):
                leg(f"dimm{dimm}.dram", f"{tag}@dimm{dimm}", tag)
                leg(f"dimm{dimm}.link", f"{tag}@link{dimm}", tag)
        graph.join(ends, background=True, name=f"landed.{layer}")

    def _hop(self, graph: GraphBuilder, at: int, wire: str, left: str = "") -> int:
        return graph.task(wire, f"hop{left}", at, lag_ps=to_ps(self.config.sync_s), tag="sync")

    def floor_s(self, view: StepView) -> float:
        floor = 0.0
        if view.decode is not None:
            order, cold = self._cold_bytes
            assert order == view.order
            pool = self.pool.count * self.pool.read_gbs * 1e9
            kv = view.decode.kv_tokens * self.model.kv_bytes_per_token(self.precision)
            dense = self.model.n_layers * self.group_bytes["proj"] + self.head_bytes
            # Cold neurons, attention and the dense matrices take turns; resident neurons hide behind the cold ones.
            floor += (cold + kv) / pool + dense / self.config.gpu.memory_bytes_per_s
        return floor + (self.prefill_floor_s(view.prefill) if view.prefill is not None else 0.0)
