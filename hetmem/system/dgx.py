"""``dgx`` and ``dgx-attacc``: AttAcc's own pair (ASPLOS 2024), as event-driven systems.

Eight GPUs in lockstep, alone or with an AttAcc device each: stacks that hold keys and values and attend to them.
Head-level pipelining is a fork: the first head's share passes through QKV, link, attention, link and projection in
turn; the rest of the heads keeps GPUs, link and stacks busy at the same time. Feed-forward co-processing keeps both
sides busy for the time that their joint rate gives. Without pipelining, transfers still overlap with attention, as in
AttAcc's tool.
Not modelled: the placement of the co-processed weights, the transfer of keys and values after a prefill (as in that
tool). The laws and their errors against the tool's rows are those of :mod:`hetmem.system.attacc_law`.
"""

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from hetmem.engine.graph import GraphBuilder, Template
from hetmem.engine.step import Plan, StepView
from hetmem.errors import UnsupportedError
from hetmem.hardware.component_energy import NO_ENERGY, ComponentEnergy
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.machine import Machine, Memory, Unit
from hetmem.hardware.tiled_gpu import link_energy
from hetmem.model import StepShape
from hetmem.system import attacc_law
from hetmem.system.attacc_law import AttAccMachine
from hetmem.system.base import Setup
from hetmem.system.decoder_shape import WORD_BYTES
from hetmem.system.gpu_decoder import fc_kernels
from hetmem.system.gpu_group import GPU_LINK, Charges, GpuGroup, charge, legs
from hetmem.units import to_ps

MEMORY, ATTACC, LINK = "gpus.hbm", "attacc", "x2g"


@frozen(slots=True, eq=False)
class Note:
    """The charges of a plan."""

    charges: Charges


class Dgx(GpuGroup):
    """Eight GPUs and nothing else."""

    name = "dgx"
    summary = "8 GPUs, 5 HBM3 stacks each, by AttAcc's tile law"
    preset = "dgx"
    memory = MEMORY

    def machine(self) -> Machine:
        units = (*self.gpu_units(), Unit(MEMORY, MEMORY, None, None, (MEMORY,)))
        return Machine(units, (Memory(MEMORY, self.gpus * self.config.gpu_usable_bytes, MEMORY, None),))

    def place(self, ledger: Ledger) -> None:
        ledger.allocate("weights", MEMORY, self.held_weight_bytes)

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        return {MEMORY: self.model.kv_bytes_per_token(self.precision) + self.draft_kv_bytes_per_token}

    def plan(self, view: StepView) -> Plan:
        charges: Charges = {}
        if view.prefill is not None:
            charges |= self.prefill_charges(view.prefill)
        if view.decode is not None:
            charges |= self.decode_charges(view, view.decode)
            charges |= self.draft_charges(view.decode, view.tlp) if view.tlp > 1 else {}
        key = (view.prefill is not None, view.decode is not None, "draft.reduce" in charges)
        return self.bind(self._template(*key), charges, Note(charges))

    def commit(self, plan: Plan) -> None:
        note: Any = plan.note
        self.spend(plan, note.charges)

    def decode_charges(self, view: StepView, shape: StepShape) -> Charges:
        """Return what a decode step costs."""
        return self._fixed(shape.tokens) | self.attention_on_gpus("", _first_context(shape, view.tlp))

    def _fixed(self, tokens: int) -> Charges:
        if tokens not in self._kept:
            self._kept[tokens] = self.linear("", tokens) | self.around("", tokens)
        return self._kept[tokens]

    def _template(self, prefill: bool, decode: bool, drafts: bool) -> Template:
        key = (prefill, decode, drafts)
        if key not in self.templates:
            graph = GraphBuilder()
            at = graph.join()
            if prefill:
                at = self.lower_prefill(graph, at)
            if drafts:
                at = self.lower_draft(graph, at)
            for _block in self.blocks if decode else ():
                at = self.lower_attention(graph, self.kernel(graph, "norm", at))
                at = self.lower_feed_forward(graph, graph.task(GPU_LINK, "reduce", at))
            self.templates[key] = graph.build()
        return self.templates[key]

    def lower_attention(self, graph: GraphBuilder, at: int) -> int:
        """Add QKV, attention and projection of a decode layer."""
        for slot in ("qkv", "attention", "proj"):
            at = self.kernel(graph, slot, at)
        return at

    def lower_feed_forward(self, graph: GraphBuilder, at: int) -> int:
        """Add norm, feed-forward and all-reduce of a decode layer."""
        return self.lower_mlp(graph, "", at)

    def floor_s(self, view: StepView) -> float:
        read = self.shape.weight_bytes + self.kv_read_bytes(view)
        return read / (self.gpus * self.gpu.memory_bytes_per_s)


class DgxAttAcc(Dgx):
    """Eight GPUs with an AttAcc device each."""

    name = "dgx-attacc"
    summary = "8 GPUs with an AttAcc device each: attention in 40 stacks, head-level pipelining, co-processing"
    preset = "dgx-attacc"
    needs_contexts = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        pim, attacc = self.config.pim, self.config.attacc
        if pim is None or attacc is None:
            raise UnsupportedError(self.name, "needs AttAcc devices, and the machine has none")
        if pim.stacks % self.gpus:
            raise UnsupportedError(self.name, f"{pim.stacks} stacks do not divide over {self.gpus} devices")
        self.law: AttAccMachine = attacc_law.machine_of(self.gpu, self.gpus, self.tile, pim, attacc)
        self.options = attacc

    def machine(self) -> Machine:
        held = self.gpus * self.config.gpu_usable_bytes
        stacks = self.law.capacity_bytes - self.gpus * self.gpu.capacity_bytes
        pooled = self.options.pooled_kv
        memories = [Memory(MEMORY, held + stacks if pooled else held, MEMORY, None)]
        if not pooled:
            memories.append(Memory(ATTACC, stacks, ATTACC, None))
        at_stacks = () if pooled else (ATTACC,)
        units = (
            *self.gpu_units(), Unit(MEMORY, MEMORY, None, None, (MEMORY,)), Unit(ATTACC, ATTACC, None, None, at_stacks),
            Unit(LINK, LINK, None, None, (MEMORY, *at_stacks)),
        )  # fmt: skip
        return Machine(units, tuple(memories))

    def kv_bytes_per_token(self) -> Mapping[str, int]:
        own, draft = self.model.kv_bytes_per_token(self.precision), self.draft_kv_bytes_per_token
        return {MEMORY: own + draft} if self.options.pooled_kv else {ATTACC: own, MEMORY: draft}

    def decode_charges(self, view: StepView, shape: StepShape) -> Charges:
        charges = dict(self._fixed(shape.tokens))
        times, law = self.times, self.law
        found = attacc_law.attention(law, self.shape, view.contexts, view.tlp)
        fc = fc_kernels(self.gpu, self.gpus, self.shape, shape.tokens, law.whole_columns)
        moved = [WORD_BYTES * shape.tokens * n for n in (self.shape.qkv_columns, self.shape.query_columns)]
        down_s, up_s = (law.transfer_s(n_bytes) for n_bytes in moved)
        first = self.gpus / self.shape.heads  # one head's share of a device's heads cannot be hidden
        rest = 1 - first
        # Softmax that the tool hides takes its time from whatever else the rest of the heads keeps busy.
        hidden = found.softmax_s if self.options.softmax_hidden else 0.0
        busy = found.array_s + (0.0 if self.options.softmax_hidden else found.softmax_s)
        linear_s = fc.qkv.time_s + fc.projection.time_s
        energy = link_energy(self.gpu, sum(moved))
        charges |= {
            "send": charge(first * down_s, energy * (first / 2), times, first * moved[0]),
            "receive": charge(first * up_s, energy * (first / 2), times, first * moved[1]),
            "link.rest": charge(
                rest * max(0.0, down_s + up_s - hidden), energy * rest, times, rest * sum(moved)
            ),
            "attention.rest": charge(rest * busy, found.energy * rest, times),
            "attention.last": charge(first * busy, found.energy * first, times),
        }  # fmt: skip
        if law.pipelining:
            for slot, kernel in (("qkv", fc.qkv), ("proj", fc.projection)):
                charges |= self._legs(slot, first * kernel.time_s, first * kernel.memory_s, kernel.energy * first)
            left = rest * max(0.0, linear_s - hidden)
            memory_s = left / linear_s * (fc.qkv.memory_s + fc.projection.memory_s)
            charges |= self._legs("linear.rest", left, memory_s, (fc.qkv.energy + fc.projection.energy) * rest)
        return charges

    def _legs(self, slot: str, seconds: float, memory_s: float, energy: ComponentEnergy) -> Charges:
        """Return a kernel's legs on all GPUs; ``energy`` is that of one."""
        return legs(slot, seconds, memory_s, energy * self.gpus, self.times)

    def _fixed(self, tokens: int) -> Charges:
        key = ("fixed", tokens)
        if key not in self._kept:
            charges = dict(super()._fixed(tokens))
            if self.law.co_processing:
                charges |= self._co_processed(tokens)
            self._kept[key] = charges
        return self._kept[key]

    def _co_processed(self, tokens: int) -> Charges:
        """Return the feed-forward with a part of its weights streamed by the PIM units."""
        fc = fc_kernels(self.gpu, self.gpus, self.shape, tokens, self.law.whole_columns)
        charges: Charges = {}
        for slot, kernels in (("up", fc.feed_forward[:-1]), ("down", fc.feed_forward[-1:])):
            seconds = sum(attacc_law.co_processed_s(self.law, tokens, kernel) for kernel in kernels)
            left = seconds / sum(kernel.time_s for kernel in kernels)
            memory_s = sum(kernel.memory_s for kernel in kernels) * left
            energy = NO_ENERGY
            for kernel in kernels:
                energy = energy + kernel.energy
            charges |= self._legs(slot, seconds, memory_s, energy)
            charges[f"{slot}.stacks"] = charge(seconds, NO_ENERGY, self.times)
        return charges

    def lower_attention(self, graph: GraphBuilder, at: int) -> int:
        lag_ps = to_ps(self.law.latency_s) * self.times
        at = graph.task(LINK, "send", self.kernel(graph, "qkv", at), lag_ps=lag_ps)
        forks = [graph.task(LINK, "link.rest", at), graph.task(ATTACC, "attention.rest", at)]
        if self.law.pipelining:
            forks.append(self.kernel(graph, "linear.rest", at))
        at = graph.task(ATTACC, "attention.last", graph.join(forks))
        return self.kernel(graph, "proj", graph.task(LINK, "receive", at, lag_ps=lag_ps))

    def lower_feed_forward(self, graph: GraphBuilder, at: int) -> int:
        if not self.law.co_processing:
            return self.lower_mlp(graph, "", at)
        for slot in ("norm", "up", "act", "down"):
            sides = [self.kernel(graph, slot, at)]
            if slot in ("up", "down"):
                sides.append(graph.task(ATTACC, f"{slot}.stacks", at))
            at = graph.join(sides)
        return graph.task(GPU_LINK, "reduce", at)

    def floor_s(self, view: StepView) -> float:
        law = self.law
        assert law.stack is not None
        stacks = self.gpus * law.stacks_per_device * law.stack.mac_peak_bytes_per_s
        gpus = self.gpus * self.gpu.memory_bytes_per_s
        weights = self.shape.weight_bytes / (gpus + stacks if law.co_processing else gpus)
        keys = self.kv_read_bytes(view) / stacks
        # Pipelining hides the attention of all heads but one behind the linear kernels.
        return max(weights, keys) if view.prefill is None else weights


def _first_context(shape: StepShape, tlp: int) -> StepShape:
    """Return the shape with the contexts of the first verified tokens, as the closed form counts them."""
    kv_tokens = shape.kv_tokens - shape.sequences * (tlp - 1)
    return StepShape(tokens=shape.tokens, sequences=shape.sequences, kv_tokens=kv_tokens)
