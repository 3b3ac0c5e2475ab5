"""Kernels as a GPU launches them: the model's kernels, fused, given their shapes and priced by the GPU's law.

QK^T, softmax and SV are one launch (fused attention). A step with prefill chunks and decodes launches attention for
each apart, and their times add (``sum``), or once for all together (``mixed``), as engines do whose backend takes
ragged batches; all else of a step runs over its prefill and decode tokens together. Under tensor parallelism each
of ``shards`` GPUs does its share of every kernel but the norms.

A law is asked for equal sequences: decodes have their mean context, prefill chunks their mean length and the cached
tokens that give the step's number of attended keys. Not modelled: the longest sequence of a ragged batch finishing
last, sampling.
"""

from collections.abc import Iterable
from functools import cached_property

from attrs import define, field, frozen

from hetmem.engine.graph import FREE, Cost
from hetmem.errors import ConfigError
from hetmem.hardware.gpu_law import Call, DecodeAttention, Elementwise, Gemm, GpuLaw, MixedAttention, PrefillAttention
from hetmem.model import Kernel, ModelSpec, Precision, StepShape, expected_experts, head_kernels, layer_kernels
from hetmem.model.kernels import ATTENTION as ATTENTION
from hetmem.model.kernels import attention_kernel
from hetmem.units import to_ps

REPLICATED = ("attn_norm", "mlp_norm", "final_norm", "router", "embedding")
COMPOSITIONS = ("sum", "mixed")
_ELEMENTWISE = {
    "attn_norm": "norm", "mlp_norm": "norm", "final_norm": "norm", "embedding": "norm", "act": "activation",
    "rope": "rotary",
}  # fmt: skip
KEPT = 4096  # sizes of a step whose launches and prices are remembered


@define(eq=False)
class Op:
    """One launch: FLOPs, bytes, of those the bytes of weights, and its shape where that is known.

    The launches of equal steps are the same objects, so that their prices are found by identity.
    """

    name: str
    flops: float
    n_bytes: float
    weight_bytes: float
    call: Call | None = None


@frozen(slots=False, eq=False)
class GpuOps:
    """Turns step shapes into priced launches.

    Parameters
    ----------
    model, precision
        What runs.
    law
        The GPU's kernel times.
    shards
        GPUs that share each kernel.
    attention
        One of :data:`COMPOSITIONS`: how attention of prefill and decode in one step is launched.
    """

    model: ModelSpec
    precision: Precision
    law: GpuLaw
    shards: int = 1
    attention: str = field(default="sum")
    _around: dict[int, tuple[list[Op], list[Op]]] = field(factory=dict, init=False, repr=False)
    _outer: dict[int, list[Op]] = field(factory=dict, init=False, repr=False)
    _logits: dict[int, Op] = field(factory=dict, init=False, repr=False)
    _prices: dict[tuple[Op, int], tuple[Cost, Cost]] = field(factory=dict, init=False, repr=False)

    @attention.validator
    def _known(self, _: object, value: str) -> None:
        if value not in COMPOSITIONS:
            raise ConfigError("attention", f"expected one of {', '.join(COMPOSITIONS)}, not {value!r}")

    @cached_property
    def dtype(self) -> str:
        """The units that multiply: INT8 only where weights and activations both are."""
        return "int8" if max(self.precision.weights_bits, self.precision.activation_bits) <= 8 else "fp16"

    @property
    def q_heads(self) -> int:
        """Query heads of one GPU."""
        return -(-self.model.n_heads // self.shards)

    @property
    def kv_heads(self) -> int:
        """KV heads of one GPU, at least one: with more GPUs than heads, several hold the same."""
        return -(-self.model.n_kv_heads // self.shards)

    def layer(self, prefill: StepShape | None, decode: StepShape | None) -> list[Op]:
        """Return the launches of one layer, in order."""
        both = total(prefill, decode)
        if both.tokens not in self._around:  # all but attention depends on the number of tokens alone
            make_room(self._around)
            kernels = layer_kernels(self.model, StepShape(tokens=both.tokens), self.precision)
            at = next(k for k, kernel in enumerate(kernels) if kernel.name in ATTENTION)
            ops = [self.launch(k, both) for k in kernels if k.name not in ATTENTION]
            self._around[both.tokens] = (ops[:at], ops[at:])
        before, after = self._around[both.tokens]
        return [*before, *self.attention_launches(prefill, decode), *after]

    def head(self, shape: StepShape) -> list[Op]:
        """Return the launches outside the layers: embedding, final norm and logits."""
        if shape.tokens not in self._outer:
            make_room(self._outer)
            size = StepShape(tokens=shape.tokens)
            *outer, _ = head_kernels(self.model, size, self.precision)
            self._outer[shape.tokens] = [self.launch(k, size) for k in outer]
        return [*self._outer[shape.tokens], self.logits(shape.sampled)]

    def logits(self, sampled: int) -> Op:
        """Return the launch of the language-model head; it depends on the number of sampled tokens alone."""
        if sampled not in self._logits:
            make_room(self._logits)
            size = StepShape(sampled=sampled)
            kernel = head_kernels(self.model, size, self.precision)[-1]
            self._logits[sampled] = self.launch(kernel, size)
        return self._logits[sampled]

    def launch(self, kernel: Kernel, shape: StepShape) -> Op:
        """Return the launch of ``kernel`` for a step of ``shape``, on one GPU."""
        name, n_bytes, weights = kernel.name, kernel.bytes, kernel.weight_bytes
        share = 1 if name in REPLICATED else self.shards
        call, whole, kv = self._call(name, shape), 0.0, kernel.kv_read_bytes + kernel.kv_write_bytes
        if isinstance(call, Gemm):  # every GPU reads or writes the whole residual stream of the tokens
            width = self.precision.activation_bits / 8
            whole = min(call.m * call.groups * self.model.d_model * width, n_bytes)
        return Op(name, kernel.flops / share, self._per_gpu(n_bytes - whole, kv, share) + whole, weights / share, call)

    def _per_gpu(self, n_bytes: float, kv: float, share: int) -> float:
        """Return what one of ``share`` GPUs moves; a KV head is not split, so several may move the same one."""
        heads = self.model.n_kv_heads
        return (n_bytes - kv) / share + kv * -(-heads // share) / heads

    def price(self, op: Op, times: int = 1) -> tuple[Cost, Cost]:
        """Return what the compute and the memory leg of ``times`` launches of ``op`` cost."""
        # Attention hardly ever has the same size twice.
        lasting = isinstance(op.call, Gemm | Elementwise)
        priced = self._prices.get((op, times)) if lasting else None
        if priced is None:
            whole, memory = self.law.legs_s(op.flops, op.n_bytes, self.dtype, op.call)
            fj = self.law.spec.work_fj(op.flops, op.n_bytes, self.dtype) * times
            n_bytes = round(op.n_bytes) * times
            # A kernel that leaves the memory alone moves its bytes all the same: one tick, so that they count.
            memory_ps = max(to_ps(memory) * times, 1 if n_bytes else 0)
            priced = Cost(to_ps(whole) * times, fj), Cost(memory_ps, 0, n_bytes)
            if lasting:
                make_room(self._prices, 16 * KEPT)
                self._prices[op, times] = priced
        return priced

    def price_run(self, ops: Iterable[Op], times: int = 1) -> tuple[Cost, Cost]:
        """Return what the legs of launches in a row cost together, each of them ``times`` over."""
        legs = FREE, FREE
        for op in ops:
            compute, memory = self.price(op, times)
            legs = legs[0].plus(compute), legs[1].plus(memory)
        return legs

    def op(self, kernel: Kernel) -> Op:
        """Return the launch of one kernel by itself, its shape unknown: linear work without tiles."""
        return Op(kernel.name, kernel.flops, kernel.bytes, kernel.weight_bytes)

    def attention_launches(self, prefill: StepShape | None, decode: StepShape | None) -> list[Op]:
        """Return the launches of one layer's attention; unlike the others they depend on contexts."""
        if prefill is not None and decode is not None and self.attention == "mixed":
            call = MixedAttention(self._chunks(prefill), self._decodes(decode))
            return [self._attend("attention.mixed", prefill + decode, call)]
        ops = []
        if prefill is not None:
            ops.append(self._attend("attention.prefill", prefill, self._chunks(prefill)))
        if decode is not None:
            ops.append(self._attend("attention.decode", decode, self._decodes(decode)))
        return ops

    def _attend(self, name: str, shape: StepShape, call: Call) -> Op:
        key_flops, key_bytes, token_bytes = self._attention_rates
        n_bytes = key_bytes * shape.kv_tokens + token_bytes * shape.tokens
        return Op(name, key_flops * shape.attended, n_bytes, 0.0, call)

    @cached_property
    def _attention_rates(self) -> tuple[float, float, float]:
        """FLOPs per attended key, bytes per cached key and bytes per new token of one layer on one GPU."""
        parts = (StepShape(attended=1), StepShape(kv_tokens=1), StepShape(tokens=1))
        keys, cached, new = (attention_kernel(self.model, part, self.precision) for part in parts)
        kv = cached.kv_read_bytes
        return keys.flops / self.shards, self._per_gpu(kv, kv, self.shards), self._per_gpu(new.bytes, 0.0, self.shards)

    def _decodes(self, shape: StepShape) -> DecodeAttention:
        # Several new tokens of a sequence are more queries per KV head.
        queries = self.q_heads * shape.tokens / shape.sequences
        return DecodeAttention(
            float(shape.sequences), queries, float(self.kv_heads), float(self.model.head_dim),
            shape.kv_tokens / shape.sequences, self.precision.kv_bits / 8,
        )  # fmt: skip

    def _chunks(self, shape: StepShape) -> PrefillAttention:
        chunk = shape.tokens / shape.sequences
        cached = max(0.0, shape.attended / shape.tokens - (chunk + 1) / 2)
        heads = (float(self.q_heads), float(self.kv_heads), float(self.model.head_dim))
        return PrefillAttention(shape.sequences, chunk, cached, *heads)

    def _call(self, name: str, shape: StepShape) -> Call | None:
        """Return the shape of a kernel that is not attention; None where it has none."""
        spec, shards, tokens = self.model, self.shards, float(shape.tokens)
        if name in _ELEMENTWISE:
            adds = 0
            if name in ("attn_norm", "mlp_norm"):
                adds = 2 if spec.parallel_attn_mlp else 1
            return Elementwise(_ELEMENTWISE[name], adds, tokens * spec.d_model)
        q, kv = self.q_heads * spec.head_dim, self.kv_heads * spec.head_dim
        m, experts = tokens, 1.0
        n: float
        k: float
        if spec.n_experts and name in ("up", "down"):
            experts = max(1.0, expected_experts(spec, shape.tokens))
            m = tokens * spec.mlp_uses / experts
        match name:
            case "qkv":
                n, k = q + 2 * kv, spec.d_model
            case "proj":
                n, k = spec.d_model, q
            case "router":
                n, k = spec.n_experts, spec.d_model
            case "up":
                n, k = spec.up_width / shards, spec.d_model
            case "down":
                n, k = spec.d_model, spec.d_ff / shards
            case "lm_head":
                m, n, k = float(shape.sampled), spec.vocab / shards, spec.d_model
            case _:
                return None
        return Gemm(m, float(n), float(k), experts)


def total(prefill: StepShape | None, decode: StepShape | None) -> StepShape:
    """Return the shape of both groups of a step together."""
    if prefill is None:
        return decode or StepShape()
    return prefill if decode is None else prefill + decode


def make_room(kept: dict, most: int = KEPT) -> None:  # type: ignore[type-arg]
    """Forget everything once ``most`` are kept: sizes come back within a phase of a run, or not at all."""
    if len(kept) >= most:
        kept.clear()
