"""What systems on a board of memories with compute chips share: the work of a step, and what a half of it costs.

A decoder layer is a sequence of phases: ``qkv`` (Q, K and V projections), ``attention.prefill`` and
``attention.decode`` (of the two groups of a step), and ``fc`` (output projection and feed-forward network). A
phase, or a part of it, is a compute leg on a chip and a memory leg that start together; the later ends it.
Modelled: the tile law with all new tokens of the step as rows; prompt attention on the matrix units, half of its
products skipped by causality; re-reading of KV by query heads; writes of new keys and values, with the phase
that makes them; memory energy per bit; the output head, where the machine counts it, in full on one side.
Ignored: norms, softmax and activation functions (the special function units keep up), activations in memory,
mixtures of experts. Matrix units are as fast for 16 bits as for 8.
From: H2M2, arXiv 2504.14893; prefill is ours.
"""

from functools import cached_property
from typing import ClassVar, NamedTuple

from attrs import Factory, evolve, field, frozen

from hetmem.engine.graph import Cost
from hetmem.engine.step import StepView
from hetmem.errors import UnsupportedError
from hetmem.hardware.kernel_cost import (
    DecodeWork,
    Side,
    SideMemory,
    element_compute_s,
)
from hetmem.hardware.link import Link, LinkPath
from hetmem.hardware.machine import Unit
from hetmem.model import StepShape
from hetmem.system.base import Setup, System
from hetmem.system.ops import make_room, total
from hetmem.units import to_fj, to_ps

HEAD = "head"
FC_GROUPS = ("proj", "up", "down")


class Part(NamedTuple):
    """One side's part of a phase in one layer: seconds of compute, and bytes read and written."""

    compute_s: float
    n_bytes: int


@frozen
class Phase:
    """A phase of a decoder layer.

    Attributes
    ----------
    name, work
        Its name, and the work it belongs to.
    rows
        New tokens per key of attention.
    sublayer
        The sub-layer whose split divides it.
    """

    name: str
    work: DecodeWork
    rows: float = 1.0
    sublayer: str = field(init=False, default=Factory(lambda self: self.name.partition(".")[0], takes_self=True))


class SidedSystem(System):
    """A system whose memories have compute chips."""

    has_gpus: ClassVar[bool] = False

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if self.model.n_experts:
            raise UnsupportedError(self.name, f"{self.model.id} is a mixture of experts, which it does not split")
        self._sized: dict[tuple[int, int], DecodeWork] = {}

    @cached_property
    def shape(self) -> DecodeWork:
        """The model's work for one sequence without context."""
        model, bits, grouped = self.model, self.precision, self.model.n_heads > self.model.n_kv_heads
        params = model.layer_params
        reuse = self.board.gqa_reuse and grouped
        widest = max(model.q_width, model.d_model, model.d_ff)
        return DecodeWork(
            layers=model.n_layers, heads=model.n_heads, kv_heads=model.n_kv_heads, head_dim=model.head_dim,
            qkv_weights=params["qkv"], fc_weights=sum(params[group] for group in FC_GROUPS),
            batch=1, context_tokens=0, weight_bits=bits.weights_bits, kv_bits=bits.kv_bits,
            qkv_row_bytes=max(1, model.d_model * bits.activation_bits // 8),
            fc_row_bytes=max(1, widest * bits.activation_bits // 8),
            gqa_reuse=reuse, attention_unit=self.board.gqa_unit if reuse else "vector",
        )  # fmt: skip

    def sized(self, batch: int, context_tokens: int) -> DecodeWork:
        """Return the model's work for a batch and its context; a step asks for the same several times."""
        key = batch, context_tokens
        if key not in self._sized:
            make_room(self._sized)
            self._sized[key] = evolve(self.shape, batch=batch, context_tokens=context_tokens)
        return self._sized[key]

    def held(self, view: StepView) -> DecodeWork:
        """Return the work of one decode iteration over everything that the step's sequences hold."""
        both = total(view.prefill, view.decode)
        return self.sized(max(1, both.sequences), both.kv_tokens)

    def longest_work(self) -> DecodeWork:
        """Return the work of one decode iteration with the largest batch at its longest."""
        batch = self.setup.batch
        return self.sized(batch, batch * self.setup.longest)

    def phases(self, view: StepView) -> tuple[Phase, ...]:
        """Return the phases of one layer, in order."""
        gemm = self.sized(max(1, total(view.prefill, view.decode).tokens), 0)
        groups = []
        for name, group in (("attention.prefill", view.prefill), ("attention.decode", view.decode)):
            if group is not None and group.kv_tokens:
                work = self.sized(max(1, group.sequences), group.kv_tokens)
                if name == "attention.prefill":
                    work = evolve(work, attention_unit="matrix")
                groups.append(Phase(name, work, group.attended / group.kv_tokens))
        return (Phase("qkv", gemm), *groups, Phase("fc", gemm))

    def whole(self, phase: Phase, side: Side, shards: int = 1) -> Part:
        """Return the share of one of ``shards`` equal sides that do all of ``phase`` together."""
        return self.part(phase, -(-phase.work.layer_elements(phase.sublayer) // shards), side)

    @staticmethod
    def part(phase: Phase, elements: int, side: Side) -> Part:
        """Return the part of ``phase`` that ``elements`` of its weights or KV elements are."""
        work, name = phase.work, phase.sublayer
        compute_s = elements / side.chips * element_compute_s(work, name, side.chip, phase.rows)
        return Part(compute_s, work.stored_bytes(name, elements) * work.reads(name, side.chip))

    def written_bytes(self, view: StepView) -> int:
        """Return the bytes of the new keys and values of one layer."""
        tokens = total(view.prefill, view.decode).tokens
        return -(-tokens * 2 * self.model.kv_width * self.precision.kv_bits // 8)

    def activation_bytes(self, view: StepView) -> int:
        """Return the bytes of the residual stream of a step's new tokens."""
        return -(-total(view.prefill, view.decode).tokens * self.model.d_model * self.precision.activation_bits // 8)

    @property
    def outer_bytes(self) -> int:
        """Bytes of embedding, final norm and head; none where the machine has decoder layers only."""
        return 0 if self.board.decoder_only else sum(self.model.outer_bytes(self.precision).values())

    def head(self, view: StepView, side: Side, shards: int = 1) -> Part:
        """Return a shard of the output head; nothing where the machine has decoder layers only."""
        sampled = total(view.prefill, view.decode).sampled
        if self.board.decoder_only or not sampled:
            return Part(0.0, 0)
        weights = -(-self.model.vocab * self.model.d_model // shards)
        return self.part(Phase("fc", self.sized(sampled, 0)), weights, side)

    def legs(self, slot: str, part: Part, side: Side, layers: int) -> dict[str, Cost]:
        """Return the costs of the legs ``slot.compute`` and ``slot.memory`` of ``layers`` layers."""
        return {
            f"{slot}.compute": Cost(to_ps(part.compute_s) * layers),
            f"{slot}.memory": self.stream(part.n_bytes, side.memory, layers),
        }

    @staticmethod
    def stream(n_bytes: int, memory: SideMemory, times: int = 1) -> Cost:
        """Return the cost of ``times`` streams of ``n_bytes`` at a memory, latency of the first byte included."""
        if not n_bytes:
            return Cost(0)
        joules = 8 * n_bytes * (memory.pj_per_bit or 0.0) * 1e-12
        seconds = n_bytes / memory.rate_bytes_per_s + memory.latency_s
        return Cost(to_ps(seconds) * times, to_fj(joules) * times, n_bytes * times)

    def over_link(self, n_bytes: int, times: int = 1) -> Cost:
        """Return the cost of ``times`` transfers of ``n_bytes`` over the link, its latency aside."""
        if not n_bytes:
            return Cost(0)
        fj = self.link.energy_fj(n_bytes)
        return Cost(to_ps(n_bytes / (self.link_path.gbs * 1e9)) * times, fj * times, n_bytes * times)

    @cached_property
    def link(self) -> Link:
        """The link between the chips."""
        link: Link = self.board.part("link", self.board.link)
        return link

    @cached_property
    def link_path(self) -> LinkPath:
        """Rate and latency of the link."""
        return self.link.path()

    def side_units(self, name: str, side: str) -> tuple[Unit, ...]:
        """Return the servers of memory ``name`` of a side and of the chips on it; their power is not published."""
        energy = None if self.board.side(side).memory.pj_per_bit is None else 0.0
        return (
            Unit(f"{name}.memory", f"{side}-memory", energy, energy, (name,)),
            Unit(f"{name}.chip", "chips", None, None, (name,)),
        )


def survivors(view: StepView) -> int:
    """Return the tokens of the step's sequences that were in the KV cache before it."""
    shapes: list[StepShape] = [shape for shape in (view.prefill, view.decode) if shape is not None]
    return sum(shape.kv_tokens - shape.tokens for shape in shapes)
