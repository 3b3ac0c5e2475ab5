"""``papi`` and the systems that it is compared with (ASPLOS 2025, arXiv 2502.15470), as event-driven systems.

Six GPUs whose memory is 30 stacks, and 60 disaggregated stacks for keys and values. FC runs on the GPUs, which then
read the weights as main memory, or inside the stacks that hold them: the same server either way, so never both at
once. Attention always runs in the attention stacks; only Q, K, V and its outputs cross the link. A prompt is
processed on the GPUs and its keys and values are sent. Before each iteration the host decides where FC runs, from the
tokens that the iteration will verify; switching moves nothing, which is checked.
Not modelled: input broadcast and partial sums inside stacks; kernels of a step overlap in no way (as in the paper).
The laws, and what the paper leaves open, are in :mod:`hetmem.system.papi_law`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import frozen

from hetmem.engine.graph import GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.errors import ConservationError, UnsupportedError
from hetmem.hardware.component_energy import COMPONENTS, NO_ENERGY
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine, Memory, Unit
from hetmem.hardware.pim import fc_on_pim
from hetmem.hardware.pim_attention import ContextTotals
from hetmem.hardware.tiled_gpu import flat_fc, link_energy
from hetmem.model import StepShape
from hetmem.monitor.table import Table
from hetmem.policy.reschedule import Oracle, Parallelism, Rescheduler, RescheduleView, Side, Static, Threshold
from hetmem.system import papi_law
from hetmem.system.base import Setup
from hetmem.system.decoder_shape import WORD_BYTES
from hetmem.system.gpu_group import Charges, GpuGroup, charge, legs

HOST, FC_PIM, ATTN_PIM, DOWN, UP = "host", "fc-pim", "attn-pim", "attn-link.down", "attn-link.up"
LINEAR = ("qkv", "proj", "up", "down")
TERMS = {
    "fc_ps": LINEAR, "attention_ps": ("attention",), "transfer_ps": ("send", "receive"), "all_reduce_ps": ("reduce",),
    "elementwise_ps": ("norm", "act"), "decision_ps": ("decide",), "draft_ps": ("draft", "draft.reduce"),
}  # fmt: skip
TWICE = ("norm", "reduce")  # per layer
POLICIES = ("threshold", "oracle", "gpu", "pim")


@frozen(slots=True, eq=False)
class Note:
    """What a plan decided: the registers and the side after it, its charges, and attention's rounds."""

    registers: Parallelism
    side: Side | None
    charges: Charges
    rounds: int


class Papi(GpuGroup):
    """GPUs and stacks that compute FC, whichever is faster, and stacks that compute attention."""

    name = "papi"
    summary = "6 GPUs; FC on them or in 4P1B stacks by RLP x TLP, attention in 1P2B stacks"
    preset = "papi"
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"reschedule": POLICIES}
    memory = FC_PIM
    needs_contexts = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.law = papi_law.machine_of(self.name, self.config)
        self.policy = self._policy()
        self.registers = Parallelism(0)
        self.side: Side | None = None
        self.switches = 0
        self.ran = dict.fromkeys(Side, 0)
        self.iterations = Table(
            {
                "step": "q", "rlp": "q", "tlp": "q", "side": "s", "switched": "q", "rounds": "q",
                **dict.fromkeys(TERMS, "q"), **{f"{name}_fj": "q" for name in COMPONENTS},
            }
        )  # fmt: skip

    def _policy(self) -> Rescheduler:
        chosen = self.setup.policies.get("reschedule", "threshold" if len(self.law.sides) > 1 else None)
        if chosen is None:
            return Static(self.law.sides[0])
        if not isinstance(chosen, str):
            policy: Rescheduler = chosen
            return policy
        if chosen == "oracle":
            return Oracle()
        return self._threshold() if chosen == "threshold" else Static(Side(chosen))

    def _threshold(self) -> Threshold:
        papi = self.config.papi
        assert papi is not None
        alpha = papi_law.calibrated(self.law, self.shape).alpha if papi.alpha is None else papi.alpha
        return Threshold(alpha, papi.hysteresis)

    def decisions(self) -> Mapping[str, Any]:
        if not isinstance(self.policy, Threshold):
            return {}
        papi = self.config.papi
        assert papi is not None
        found = "given" if papi.alpha is not None else str(papi_law.calibrated(self.law, self.shape))
        return {"alpha": self.policy.alpha, "calibration": found}

    def machine(self) -> Machine:
        machine = self.law
        units = (
            *self.gpu_units(),
            Unit(HOST, HOST, None, None),
            Unit(FC_PIM, FC_PIM, None, None, (FC_PIM,)),
            Unit(ATTN_PIM, ATTN_PIM, None, None, (ATTN_PIM,)),
            Unit(DOWN, "attn-link", None, None, (FC_PIM, ATTN_PIM)),
            Unit(UP, "attn-link", None, None, (FC_PIM, ATTN_PIM)),
        )
        weights = int(machine.fc_stacks * machine.fc_stack.capacity_bytes * self.config.gpu_usable)
        keys = machine.attention_stacks * machine.attention_stack.capacity_bytes
        return Machine(units, (Memory(FC_PIM, weights, FC_PIM, None), Memory(ATTN_PIM, keys, ATTN_PIM, None)))

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("weights", FC_PIM, self.held_weight_bytes)

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        return {
            ATTN_PIM: self.model.kv_bytes_per_token(self.precision), FC_PIM: self.draft_kv_bytes_per_token
        }  # fmt: skip

    # -- planning ----------------------------------------------------------------------------------------------

    def plan(self, view: StepView) -> Plan:
        registers = self.registers.after(view.finished, view.joined, view.tlp)
        charges: Charges = {}
        side, rounds = self.side, 0
        if view.prefill is not None:
            charges |= self.prefill_charges(view.prefill) | self._kv_sent(view.prefill)
        if view.decode is not None:
            if registers.rlp != view.decode.sequences:
                raise ConservationError(
                    "requests", f"the scheduler counts {registers.rlp}, {view.decode.sequences} decode"
                )
            side = self.policy.decide(self._view(registers))
            if side not in self.law.sides:
                raise UnsupportedError(self.name, f"FC never runs on {side}")
            charges |= self._fixed(registers.tokens, side) | self._attention(view.contexts, view.tlp)
            charges |= self.draft_charges(view.decode, view.tlp) if view.tlp > 1 else {}
            rounds = self._rounds(view.contexts)
        key = (view.prefill is not None, side if view.decode is not None else None, "draft.reduce" in charges)
        return self.bind(self._template(*key), charges, Note(registers, side, charges, rounds))

    def _view(self, registers: Parallelism) -> RescheduleView:
        times = None
        if not isinstance(self.policy, Threshold | Static):  # an oracle, or a policy of the user's own
            times = {s: papi_law.fc(self.law, self.shape, registers.tokens, s).fc_s for s in Side}
        return RescheduleView(registers, self.side, times)

    def commit(self, plan: Plan) -> None:
        note: Note = plan.note
        switched = self.side is not None and note.side is not self.side
        if switched:
            self._check_nothing_moves(plan, note)
        spent = self.spend(plan, note.charges)
        self._note, self._spent_step, self._switched = note, spent, switched
        self.switches += switched
        self.registers, self.side = note.registers, note.side

    def _check_nothing_moves(self, plan: Plan, note: Note) -> None:
        """Raise unless the links carry the step's activations alone and nothing changes hands in the ledger."""
        template = plan.graph.template
        moved = sum(
            cost.bytes
            for server, slot, cost in zip(template.servers, template.slots, plan.graph.costs, strict=True)
            if server in (DOWN, UP) and slot != "prefill.send"
        )
        columns = self.shape.qkv_columns + self.shape.query_columns
        extra = moved - WORD_BYTES * note.registers.tokens * columns * self.shape.layers
        if extra or plan.allocate or plan.release:
            raise ConservationError(
                "a switch moves nothing", f"{extra} bytes cross the links, {plan.allocate + plan.release} change hands"
            )

    def observe(self, outcome: Any) -> None:
        view, note = outcome.view, self._note
        if view.decode is None or note.side is None:
            return
        self.ran[note.side] += 1
        terms = [sum(self._ticks(note.charges, slot) for slot in slots) for slots in TERMS.values()]
        self.iterations.append(
            (view.order, note.registers.rlp, note.registers.tlp, str(note.side), int(self._switched), note.rounds,
             *terms, *self._spent_step)
        )  # fmt: skip

    def _ticks(self, charges: Charges, slot: str) -> int:
        found = charges.get(slot) or charges.get(f"{slot}.compute")
        if found is None:
            return 0
        return found.cost.ps * len(self.blocks) * (2 if slot in TWICE else 1)

    def counters(self) -> Mapping[str, int]:
        """Return switches and iterations by side."""
        return {"switches": self.switches, **{f"iterations_{side}": n for side, n in self.ran.items()}}

    def tables(self) -> Mapping[str, Table]:
        """Return a row per decode iteration: registers, side, time by term and energy by component."""
        return {"iterations": self.iterations}

    # -- charges -----------------------------------------------------------------------------------------------

    def _fixed(self, tokens: int, side: Side) -> Charges:
        """Return what does not depend on the contexts."""
        key = (tokens, side)
        if key not in self._kept:
            charges = self.around("", tokens) | self._links(tokens)
            if side is Side.GPU:
                charges |= self.linear("", tokens)
            else:
                charges |= self._linear_in_stacks(tokens)
            if self.law.decision_s:
                charges["decide"] = charge(self.law.decision_s, NO_ENERGY)
            self._kept[key] = charges
        return self._kept[key]

    def linear(self, prefix: str, tokens: float) -> Charges:
        if self.law.fc_law == "tile":
            return super().linear(prefix, tokens)
        charges: Charges = {}
        for name, n_bytes in self._matrices().items():
            flat = flat_fc(self.gpu, self.gpus, n_bytes, tokens)
            charges |= legs(f"{prefix}{name}", flat.time_s, flat.memory_s, flat.energy, self.times)
        return charges

    def _matrices(self) -> dict[str, float]:
        """Return the weight bytes of one layer by FC kernel."""
        qkv, projection, feed_forward = self.shape.fc_bytes
        down = feed_forward / (3 if self.shape.gated else 2)
        return {"qkv": qkv, "proj": projection, "up": feed_forward - down, "down": down}

    def _linear_in_stacks(self, tokens: int) -> Charges:
        charges = {}
        for name, n_bytes in self._matrices().items():
            one = fc_on_pim(self.law.fc_stack, self.law.fc_stacks, n_bytes, tokens)
            charges[name] = charge(one.time_s, one.energy, self.times, n_bytes * one.passes)
        return charges

    def _links(self, tokens: int) -> Charges:
        charges = {}
        for slot, columns in (("send", self.shape.qkv_columns), ("receive", self.shape.query_columns)):
            n_bytes = WORD_BYTES * tokens * columns
            seconds = self.law.link.transfer_s(self.gpus, n_bytes)
            charges[slot] = charge(seconds, link_energy(self.gpu, n_bytes), self.times, n_bytes)
        return charges

    def _kv_sent(self, shape: StepShape) -> Charges:
        n_bytes = self.shape.kv_bytes_per_token * shape.tokens
        seconds = self.law.link.transfer_s(self.gpus, n_bytes)
        return {"prefill.send": charge(seconds, link_energy(self.gpu, n_bytes), 1, n_bytes)}

    def _attention(self, contexts: tuple[int, ...], tlp: int) -> Charges:
        seconds = papi_law.attention_s(self.law, self.shape, contexts, tlp) / self.shape.layers
        totals = ContextTotals.of(self.law.attention_stack, contexts)
        energy = papi_law.attention_energy(self.law, self.shape, totals, tlp) * (1 / self.shape.layers)
        read = self.shape.kv_bytes_per_token / self.shape.layers * totals.tokens
        return {"attention": charge(seconds, energy, self.times, read)}

    def _rounds(self, contexts: tuple[int, ...]) -> int:
        law_ = self.law
        heads = self.shape.kv_heads if law_.gqa_reuse else self.shape.heads
        width = law_.attention_stacks * law_.attention_stack.geometry.channels
        return -(-heads * len(contexts) // width)

    # -- graphs ------------------------------------------------------------------------------------------------

    def _template(self, prefill: bool, side: Side | None, drafts: bool) -> Template:
        key = (prefill, side, drafts)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            if prefill:
                at = graph.task(DOWN, "prefill.send", self.lower_prefill(graph, at))
            if side is not None:
                at = self._lower_decode(graph, side, drafts, at)
            self.templates[key] = graph.build()
        return self.templates[key]

    def _lower_decode(self, graph: GraphBuilder, side: Side, drafts: bool, at: int) -> int:
        if self.law.decision_s:
            at = graph.task(HOST, "decide", at)
        if drafts:
            at = self.lower_draft(graph, at)
        for _block in self.blocks:
            at = self._linear(graph, "qkv", side, self.kernel(graph, "norm", at))
            at = graph.task(DOWN, "send", at)
            at = graph.task(UP, "receive", graph.task(ATTN_PIM, "attention", at))
            at = self._reduce(graph, self._linear(graph, "proj", side, at))
            at = self._linear(graph, "up", side, self.kernel(graph, "norm", at))
            at = self._linear(graph, "down", side, self.kernel(graph, "act", at))
            at = self._reduce(graph, at)
        return at

    def _linear(self, graph: GraphBuilder, slot: str, side: Side, at: int) -> int:
        return self.kernel(graph, slot, at) if side is Side.GPU else graph.task(FC_PIM, slot, at)

    def _reduce(self, graph: GraphBuilder, at: int) -> int:
        return graph.task("gpu-link", "reduce", at)

    def floor_s(self, view: StepView) -> float:
        machine = self.law
        inside = machine.fc_stacks * machine.fc_stack.mac_peak_bytes_per_s if Side.PIM in machine.sides else 0.0
        weights = self.shape.weight_bytes / max(inside, self.gpus * self.gpu.memory_bytes_per_s)
        keys = self.kv_read_bytes(view) / (machine.attention_stacks * machine.attention_stack.mac_peak_bytes_per_s)
        return weights + keys if view.prefill is None else weights


class _FcStays(Papi):
    """A machine whose FC has one place, so nothing is decided."""

    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {}


class PapiPimOnly(_FcStays):
    """PAPI whose FC never leaves the stacks."""

    name = "papi-pim-only"
    summary = "PAPI with FC always in its 4P1B stacks"
    preset = "papi-pim-only"


class A100AttAcc(_FcStays):
    """FC on the GPUs, attention in AttAcc's stacks."""

    name = "a100-attacc"
    summary = "6 GPUs with attention in 1P1B stacks"
    preset = "a100-attacc"


class A100HbmPim(_FcStays):
    """FC on the GPUs, attention in Samsung's HBM-PIM."""

    name = "a100-hbm-pim"
    summary = "6 GPUs with attention in 1P2B stacks"
    preset = "a100-hbm-pim"


class AttAccOnly(_FcStays):
    """Everything but norms and all-reduce in AttAcc's stacks."""

    name = "attacc-only"
    summary = "FC and attention in 1P1B stacks; the GPUs keep norms and all-reduce"
    preset = "attacc-only"
