"""GPUs in lockstep under the tile law: what PAPI's and AttAcc's systems have in common.

The tensor-parallel GPUs are alike and wait for one another at every all-reduce, so that one server (``gpus``) stands
for their execution and one for their memory; a pool of stacks is one server too. Every kernel's energy is charged to
the server that does the work and, in the same femtojoules, to the component that spends it. A draft model for
speculative decoding runs on the same GPUs, its weights and its KV cache in their memory.
Not modelled: skew between GPUs, embedding and head (as in AttAcc's tool), idle power.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hetmem import catalog
from hetmem.engine.graph import Cost, GraphBuilder, Template
from hetmem.engine.step import Plan
from hetmem.errors import UnsupportedError
from hetmem.hardware import tiled_gpu as law
from hetmem.hardware.component_energy import COMPONENTS, NO_ENERGY, ComponentEnergy
from hetmem.hardware.machine import Unit
from hetmem.hardware.pim_config import TileConfig
from hetmem.hardware.tiled_gpu import KernelCost, TiledGpu
from hetmem.model import ModelSpec, StepShape
from hetmem.system.base import Setup, System
from hetmem.system.decoder_shape import WORD_BYTES, DecoderShape, FcShares
from hetmem.system.gpu_decoder import attention_kernels, fc_kernels
from hetmem.units import to_fj, to_ps

GPUS, GPU_LINK = "gpus", "gpu-link"
ACTIVATION_FLOPS = {"relu": 1.0, "gelu": 8.0, "silu": 9.0}  # per element, after the AttAcc simulator
ON_CHIP = ("gpu_cache", "gpu_alu")


class Charge(NamedTuple):
    """What a task costs, and its femtojoules by component, in the order of ``COMPONENTS``."""

    cost: Cost
    parts: tuple[int, ...]


Charges = dict[str, Charge]


def charge(seconds: float, energy: ComponentEnergy, times: int = 1, n_bytes: float = 0) -> Charge:
    """Return the charge of ``times`` equal tasks, one after another."""
    parts = tuple(to_fj(getattr(energy, name)) * times for name in COMPONENTS)
    # Work that takes no time, as when overheads are left out, still spends its energy: it needs a tick.
    ticks = max(to_ps(seconds) * times, 1 if any(parts) or n_bytes else 0)
    return Charge(Cost(ticks, sum(parts), round(n_bytes) * times), parts)


def decoder_shape(system: str, model: ModelSpec) -> DecoderShape:
    """Return ``model`` as the closed forms take it.

    Raises
    ------
    UnsupportedError
        For a mixture of experts, or an activation that the laws have no cost of.
    """
    if model.n_experts:
        raise UnsupportedError(system, f"runs dense models only; {model.id} has experts")
    if model.activation not in ACTIVATION_FLOPS:
        raise UnsupportedError(system, f"has no cost of the activation {model.activation!r} of {model.id}")
    return DecoderShape(
        model.n_layers, model.d_model, model.n_heads, model.n_kv_heads, model.head_dim, model.d_ff,
        model.gated_ffn, ACTIVATION_FLOPS[model.activation],
    )  # fmt: skip


class GpuGroup(System):
    """A system of lockstep GPUs; ``memory`` is the server and the memory that holds their weights."""

    memory: str
    drafts = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if (self.precision.weights_bits, self.precision.kv_bits) != (16, 16):
            raise UnsupportedError(self.name, "its laws are for 16-bit weights, keys and values")
        if self.config.tile is None:
            raise UnsupportedError(self.name, "needs GPUs under the tile law")
        if catalog.normalize(self.config.gpu.name) not in map(catalog.normalize, catalog.ids("tiled_gpus")):
            known = ", ".join(catalog.ids("tiled_gpus"))
            raise UnsupportedError(self.name, f"knows no tiles of {self.config.gpu.name}; it has those of {known}")
        self.tile: TileConfig = self.config.tile
        self.gpus = self.config.gpus
        self.shape = decoder_shape(self.name, self.model)
        self.draft = None if setup.draft is None else decoder_shape(self.name, setup.draft)
        self.gpu = TiledGpu.of(
            self.config.gpu, self.config.gpu_link, corrected_energy=self.tile.corrected_energy,
            measured_ring=self.tile.measured_all_reduce,
            compute_efficiency=self.tile.compute_efficiency, memory_efficiency=self.tile.memory_efficiency,
        )  # fmt: skip
        self.blocks = self.layer_blocks()
        self.times = self.blocks[0][1]
        self._spent: dict[str, list[int]] = {}
        self._usage: dict[int, tuple[tuple[str, str, int], ...]] = {}
        self._kept: dict[Any, Charges] = {}

    # -- energy ------------------------------------------------------------------------------------------------

    def spent_fj(self) -> Mapping[str, Mapping[str, int]]:
        """Return the femtojoules committed so far, by server and component."""
        names = [name.replace("_", "-") for name in COMPONENTS]
        return {server: dict(zip(names, parts, strict=True)) for server, parts in self._spent.items()}

    def spend(self, plan: Plan, charges: Mapping[str, Charge]) -> tuple[int, ...]:
        """Book the energy of ``plan``; return it by component."""
        template = plan.graph.template
        if id(template) not in self._usage:  # templates are kept, so that an id is not used twice
            self._usage[id(template)] = tuple(
                (slot, server, 1)
                for slot, server in zip(template.slots, template.servers, strict=True)
                if slot is not None and server is not None
            )
        total = [0] * len(COMPONENTS)
        for slot, server, count in self._usage[id(template)]:
            parts = charges[slot].parts
            spent = self._spent.setdefault(server, [0] * len(COMPONENTS))
            for k, fj in enumerate(parts):
                if fj:
                    spent[k] += fj * count
                    total[k] += fj * count
        return tuple(total)

    # -- kernels -----------------------------------------------------------------------------------------------

    def on_gpus(self, slot: str, kernels: Iterable[KernelCost], *, factor: float = 1.0, times: int = 0) -> Charges:
        """Return the two legs of ``kernels``, one after another on every GPU."""
        kernels = tuple(kernels)
        energy = NO_ENERGY
        for kernel in kernels:
            energy = energy + kernel.energy * self.gpus
        seconds = factor * sum(kernel.time_s for kernel in kernels)
        memory_s = factor * sum(kernel.memory_s for kernel in kernels)
        return legs(slot, seconds, memory_s, energy, times or self.times)

    def linear(self, prefix: str, tokens: float) -> Charges:
        """Return the FC kernels of one layer on the GPUs."""
        fc = fc_kernels(self.gpu, self.gpus, self.shape, tokens, self.tile.whole_columns)
        charges = self.on_gpus(f"{prefix}qkv", (fc.qkv,)) | self.on_gpus(f"{prefix}proj", (fc.projection,))
        return (
            charges
            | self.on_gpus(f"{prefix}up", fc.feed_forward[:-1])
            | self.on_gpus(f"{prefix}down", fc.feed_forward[-1:])
        )

    def around(self, prefix: str, tokens: float) -> Charges:
        """Return norm, activation and all-reduce of one layer."""
        shape, factor = self.shape, self.tile.overheads
        width = FcShares.of(shape, self.gpus, self.tile.whole_columns).feed_forward
        activation = law.activation(self.gpu, tokens, width, shape.gated, shape.activation_flops)
        charges = self.on_gpus(f"{prefix}norm", (law.norm(self.gpu, tokens, shape.hidden),), factor=factor)
        charges |= self.on_gpus(f"{prefix}act", (activation,), factor=factor)
        payload = WORD_BYTES * tokens * shape.hidden
        charges[f"{prefix}reduce"] = charge(
            factor * law.all_reduce_s(self.gpu, self.gpus, payload),
            law.all_reduce_energy(self.gpu, self.gpus, payload), self.times,
            2 * (self.gpus - 1) * payload,  # a ring: each GPU sends 2 (n-1)/n of the payload
        )  # fmt: skip
        return charges

    def attention_on_gpus(self, prefix: str, shape: StepShape) -> Charges:
        """Return score, softmax and context product on the GPUs, all sequences at their mean lengths."""
        n = shape.sequences
        found = attention_kernels(self.gpu, self.gpus, self.shape, n, shape.tokens / n, shape.kv_tokens / n)
        return self.on_gpus(f"{prefix}attention", found)

    def prefill_charges(self, shape: StepShape) -> Charges:
        """Return a prefill on the GPUs, of the target and of the draft model."""
        key = ("prefill", shape)
        if key not in self._kept:
            charges = self.linear("prefill.", shape.tokens) | self.around("prefill.", shape.tokens)
            charges |= self.attention_on_gpus("prefill.", shape)
            if self.draft is not None:
                charges |= self.draft_pass("prefill.draft", shape.tokens, shape, 1)
            self._kept[key] = charges
        return self._kept[key]

    def draft_charges(self, shape: StepShape, tlp: int) -> Charges:
        """Return the drafting of a decode step: ``tlp - 1`` steps of the draft model, one after another."""
        if self.draft is None:
            return {}
        n = shape.sequences
        one = StepShape(tokens=n, sequences=n, kv_tokens=shape.kv_tokens)
        return self.draft_pass("draft", n, one, tlp - 1)

    def draft_pass(self, slot: str, tokens: int, shape: StepShape, times: int) -> Charges:
        """Return ``times`` passes of the whole draft model over ``tokens``."""
        draft, gpu, gpus = self.draft, self.gpu, self.gpus
        assert draft is not None
        n = shape.sequences
        fc = fc_kernels(gpu, gpus, draft, tokens, self.tile.whole_columns)
        norm = law.norm(gpu, tokens, draft.hidden)
        width = FcShares.of(draft, gpus, self.tile.whole_columns).feed_forward
        act = law.activation(gpu, tokens, width, draft.gated, draft.activation_flops)
        kernels = (
            fc.qkv, fc.projection, *fc.feed_forward, norm, act, norm,
            *attention_kernels(gpu, gpus, draft, n, shape.tokens / n, shape.kv_tokens / n),
        )  # fmt: skip
        charges = self.on_gpus(slot, kernels, times=times * draft.layers)
        payload = WORD_BYTES * tokens * draft.hidden
        charges[f"{slot}.reduce"] = charge(
            2 * law.all_reduce_s(gpu, gpus, payload), 2 * law.all_reduce_energy(gpu, gpus, payload),
            times * draft.layers, 4 * (gpus - 1) * payload,
        )  # fmt: skip
        return charges

    # -- graphs ------------------------------------------------------------------------------------------------

    def kernel(self, graph: GraphBuilder, slot: str, after: int) -> int:
        """Add a kernel of all GPUs."""
        return graph.kernel(slot, GPUS, self.memory, after)

    def lower_prefill(self, graph: GraphBuilder, at: int) -> int:
        """Add the layers of a prefill, and the draft model's own."""
        if self.draft is not None:
            at = graph.task(GPU_LINK, "prefill.draft.reduce", self.kernel(graph, "prefill.draft", at))
        for _block in self.blocks:
            for slot in ("norm", "qkv", "attention", "proj"):
                at = self.kernel(graph, f"prefill.{slot}", at)
            at = self.lower_mlp(graph, "prefill.", graph.task(GPU_LINK, "prefill.reduce", at))
        return at

    def lower_mlp(self, graph: GraphBuilder, prefix: str, at: int) -> int:
        """Add norm, feed-forward and all-reduce on the GPUs."""
        for slot in ("norm", "up", "act", "down"):
            at = self.kernel(graph, f"{prefix}{slot}", at)
        return graph.task(GPU_LINK, f"{prefix}reduce", at)

    def lower_draft(self, graph: GraphBuilder, at: int) -> int:
        """Add the drafting of a decode step."""
        return graph.task(GPU_LINK, "draft.reduce", self.kernel(graph, "draft", at))

    def bind(self, template: Template, charges: Mapping[str, Charge], note: Any = None) -> Plan:
        """Return the plan of ``template`` at ``charges``; ``commit`` books their energy."""
        costs = {slot: one.cost for slot, one in charges.items()}
        return Plan(template.bind(costs), note=note)

    # -- memory ------------------------------------------------------------------------------------------------

    @property
    def held_weight_bytes(self) -> int:
        """Weights of the target and of the draft model."""
        drafts = 0 if self.setup.draft is None else self.setup.draft.weight_bytes(self.precision)
        return self.model.weight_bytes(self.precision) + drafts

    @property
    def draft_kv_bytes_per_token(self) -> int:
        """KV bytes of a token of the draft model."""
        return 0 if self.setup.draft is None else self.setup.draft.kv_bytes_per_token(self.precision)

    def gpu_units(self) -> tuple[Unit, ...]:
        """Return the GPUs' execution and the link between them; their memory is the system's own."""
        link = (Unit(GPU_LINK, GPU_LINK, None, None),)
        return (Unit(GPUS, GPUS, None, None, (self.memory,)), *link)


def legs(slot: str, seconds: float, memory_s: float, energy: ComponentEnergy, times: int) -> Charges:
    """Return the compute and the memory leg of a kernel: DRAM's energy goes with the second."""
    on_chip = ComponentEnergy(**{name: getattr(energy, name) for name in ON_CHIP})
    in_dram = energy + on_chip * -1.0
    return {
        f"{slot}.compute": charge(seconds, on_chip, times),
        f"{slot}.memory": charge(memory_s, in_dram, times),
    }
