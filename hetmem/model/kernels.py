"""The LLM as work: kernels of one step with their FLOPs and bytes by operand.

A step computes ``tokens`` new tokens of some sequences; decode, prefill, chunked prefill, speculative
verification and mixtures of them differ only in their :class:`StepShape`.

Conventions. Two FLOPs per multiply-accumulate; an elementwise exponential, division or comparison is one.
``bytes`` is the least memory traffic: each operand once per kernel. Attention is fused (Dao et al. 2022,
arXiv 2205.14135): scores stay on the chip, and each sequence's keys and values are read once per KV head,
however many query heads and new tokens share them. New keys and values are written to the cache by ``qkv``;
rotation happens in place. A norm of a layer includes the residual addition before it (that of the first
layer, which has none, stands for the one before the final norm).
Routing of experts: each token picks its experts uniformly and independently of the other tokens, so that T
tokens load ``E * (1 - (1 - k/E)**T)`` distinct experts on average; skewed routers load fewer.

Ignored: FLOPs of biases, top-k selection and weighted sum of experts, sampling, tables of sines and cosines,
and traffic that a cache too small for the operands of one kernel would add.
"""

from collections.abc import Sequence
from functools import lru_cache

from attrs import asdict, frozen

from hetmem.errors import ConfigError
from hetmem.model.spec import FP16, ModelSpec, Precision, stored_bytes

ATTENTION = ("qk", "softmax", "sv")
_ACTIVATION_FLOPS = {"relu": 1, "silu": 4, "gelu": 5}  # x/(1+exp(-x)); 0.5*x*(1+erf(x/sqrt 2))
_NORM_FLOPS = {"rms": 4, "layer": 7}  # square, sum, scale, weight; mean, centre and shift besides
_ROPE_FLOPS = 3  # two products and a sum per channel
_SOFTMAX_FLOPS = 5  # maximum, difference, exponential, sum, quotient per score


@frozen
class Kernel:
    """Work of one kernel: FLOPs, and bytes by operand.

    Integers, except where an expected number of experts or a width below one byte enters.
    """

    name: str
    flops: float
    weight_bytes: float
    kv_read_bytes: float
    kv_write_bytes: float
    activation_bytes: float

    @property
    def bytes(self) -> float:
        """Memory traffic of all operands."""
        return self.weight_bytes + self.kv_read_bytes + self.kv_write_bytes + self.activation_bytes

    @property
    def arithmetic_intensity(self) -> float:
        """FLOPs per byte; infinite for a kernel that touches no memory."""
        return self.flops / self.bytes if self.bytes else float("inf")


@frozen
class StepShape:
    """How much one step computes, summed over its sequences; shapes add.

    Parameters
    ----------
    tokens
        New tokens computed.
    sequences
        Sequences that take part.
    attended
        Sum over new tokens of the keys each attends to, its own included.
    kv_tokens
        Keys in the caches after the step, which attention reads once per sequence.
    sampled
        Tokens that need logits.

    Raises
    ------
    ConfigError
        When a count is negative.
    """

    tokens: int = 0
    sequences: int = 0
    attended: int = 0
    kv_tokens: int = 0
    sampled: int = 0

    def __attrs_post_init__(self) -> None:
        if min(self.tokens, self.sequences, self.attended, self.kv_tokens, self.sampled) < 0:
            raise ConfigError("StepShape", f"expected counts of at least 0, not {self}")

    @classmethod
    def decode(cls, batch: int, total_context: int, tokens_per_sequence: int = 1) -> "StepShape":
        """Return the shape of a decode step of ``batch`` sequences.

        Parameters
        ----------
        batch
            Sequences.
        total_context
            Sum of the tokens that they hold in the cache *before* the step.
        tokens_per_sequence
            New tokens of each: 1, or the drafts and the bonus token of speculative verification.
        """
        new = batch * tokens_per_sequence
        return cls(
            new,
            batch,
            total_context * tokens_per_sequence + new * (tokens_per_sequence + 1) // 2,
            total_context + new,
            new,
        )

    @classmethod
    def prefill(
        cls, lengths: Sequence[int], cached: Sequence[int] | None = None, sampled: int | None = None
    ) -> "StepShape":
        """Return the shape of a step that prefills one prompt, or chunk of it, per sequence.

        Parameters
        ----------
        lengths
            New tokens of each sequence.
        cached
            Tokens of each that the cache holds already (default: none).
        sampled
            Sequences whose prompt this step completes (default: all).

        Raises
        ------
        ConfigError
            When ``cached`` has another length than ``lengths``.
        """
        held = [0] * len(lengths) if cached is None else cached
        if len(held) != len(lengths):
            raise ConfigError("StepShape.prefill.cached", f"expected {len(lengths)} numbers, not {len(held)}")
        return cls(
            sum(lengths),
            len(lengths),
            sum(n * c + n * (n + 1) // 2 for n, c in zip(lengths, held, strict=True)),
            sum(lengths) + sum(held),
            len(lengths) if sampled is None else sampled,
        )

    def __add__(self, other: "StepShape") -> "StepShape":
        """Return the shape of both steps fused into one."""
        return StepShape(
            self.tokens + other.tokens,
            self.sequences + other.sequences,
            self.attended + other.attended,
            self.kv_tokens + other.kv_tokens,
            self.sampled + other.sampled,
        )


@frozen
class _Rates:
    """A kernel of a layer as multiples of the step's counts."""

    name: str
    token_flops: int = 0
    key_flops: int = 0  # per attended key
    weight_bytes: int = 0
    expert_bytes: int = 0  # per expert loaded
    kv_read_bytes: float = 0  # per key in the caches
    kv_write_bytes: float = 0  # per token
    activation_bytes: float = 0  # per token


def _width_bytes(bits: int) -> float:
    """Return the bytes of one value, an integer where it is one, so that products stay exact."""
    return bits // 8 if bits % 8 == 0 else bits / 8


@lru_cache(maxsize=256)
def _layer_rates(spec: ModelSpec, precision: Precision) -> tuple[_Rates, ...]:
    """Return the kernels of one layer, in execution order."""
    d, q, kv, d_ff, up = spec.d_model, spec.q_width, spec.kv_width, spec.d_ff, spec.up_width
    act, cache, uses = _width_bytes(precision.activation_bits), _width_bytes(precision.kv_bits), spec.mlp_uses
    norm_flops = _NORM_FLOPS[spec.norm] * d
    norm_bytes = stored_bytes(spec.norm_params, precision.weights_bits)
    weights = spec.layer_bytes(precision)

    def norm(name: str, branches: int, norms: int) -> _Rates:
        # Reads the residual and the branches added to it; writes their sum and the normalised copies.
        return _Rates(
            name,
            token_flops=branches * d + norms * norm_flops,
            weight_bytes=norms * norm_bytes,
            activation_bytes=(2 + branches + norms) * d * act,
        )

    def mlp(name: str, inputs: int, outputs: int) -> _Rates:
        stored = weights[name]
        if spec.n_experts:
            experts = stored_bytes(spec.layer_params[name] // spec.n_experts, precision.weights_bits)
            stored = 0
        else:
            experts = 0
        return _Rates(
            name,
            token_flops=2 * uses * inputs * outputs,
            weight_bytes=stored,
            expert_bytes=experts,
            activation_bytes=uses * (inputs + outputs) * act,
        )

    kernels = [
        norm("attn_norm", 2, spec.norms_per_layer) if spec.parallel_attn_mlp else norm("attn_norm", 1, 1),
        _Rates(
            "qkv",
            token_flops=2 * d * (q + 2 * kv),
            weight_bytes=weights["qkv"],
            kv_write_bytes=2 * kv * cache,
            activation_bytes=(d + q) * act,
        ),
    ]
    if spec.rotary or spec.qk_norm:
        per_channel = _ROPE_FLOPS * spec.rotary + _NORM_FLOPS["rms"] * spec.qk_norm
        kernels.append(
            _Rates(
                "rope",
                token_flops=per_channel * (q + kv),
                weight_bytes=stored_bytes(spec.qk_norm_params, precision.weights_bits),
                activation_bytes=2 * (q + kv) * act,
            )
        )
    kernels += [
        _Rates("qk", key_flops=2 * q, kv_read_bytes=kv * cache, activation_bytes=q * act),
        _Rates("softmax", key_flops=_SOFTMAX_FLOPS * spec.n_heads),
        _Rates("sv", key_flops=2 * q, kv_read_bytes=kv * cache, activation_bytes=q * act),
        _Rates("proj", token_flops=2 * q * d, weight_bytes=weights["proj"], activation_bytes=(q + d) * act),
    ]
    if not spec.parallel_attn_mlp:
        kernels.append(norm("mlp_norm", 1, 1))
    if spec.n_experts:
        kernels.append(
            _Rates(
                "router",
                token_flops=2 * d * spec.n_experts,
                weight_bytes=weights["router"],
                activation_bytes=(d + spec.n_experts) * act,
            )
        )
    kernels += [
        mlp("up", d, up),
        _Rates(
            "act",
            token_flops=uses * d_ff * (_ACTIVATION_FLOPS[spec.activation] + spec.gated_ffn),
            activation_bytes=uses * (up + d_ff) * act,
        ),
        mlp("down", d_ff, d),
    ]
    return tuple(kernels)


def expected_experts(spec: ModelSpec, tokens: int) -> float:
    """Return the expected number of distinct experts that ``tokens`` tokens load in one layer; 0 if dense.

    ``E * (1 - (1 - k/E)**T)``: uniform routing, independent between tokens (see the module).
    """
    if not spec.n_experts:
        return 0
    missed = (1.0 - spec.experts_per_token / spec.n_experts) ** tokens
    # Rounding of the power must not leave the bounds that hold for any routing.
    return min(spec.n_experts * (1.0 - missed), spec.experts_per_token * tokens)


def layer_kernels(spec: ModelSpec, shape: StepShape, precision: Precision = FP16) -> tuple[Kernel, ...]:
    """Return the kernels of *one* layer for a step of ``shape``, in execution order.

    ``attn_norm qkv [rope] qk softmax sv proj [mlp_norm] [router] up act down``: which of the bracketed ones
    there are depends on the model alone, never on the shape. With ``parallel_attn_mlp`` there is no
    ``mlp_norm``, and ``up`` depends on ``attn_norm`` only. A step of no tokens has the same kernels, without
    work.
    """
    return _kernels(spec, shape, _layer_rates(spec, precision))


def attention_kernel(spec: ModelSpec, shape: StepShape, precision: Precision = FP16) -> Kernel:
    """Return ``qk``, ``softmax`` and ``sv`` of one layer as the one kernel that they are when fused."""
    return _kernels(spec, shape, (_attention_rates(spec, precision),))[0]


@lru_cache(maxsize=256)
def _attention_rates(spec: ModelSpec, precision: Precision) -> _Rates:
    parts = [asdict(rates) for rates in _layer_rates(spec, precision) if rates.name in ATTENTION]
    return _Rates("attention", **{what: sum(part[what] for part in parts) for what in parts[0] if what != "name"})


def _kernels(spec: ModelSpec, shape: StepShape, each: tuple[_Rates, ...]) -> tuple[Kernel, ...]:
    tokens, attended, keys = shape.tokens, shape.attended, shape.kv_tokens
    experts, loaded = expected_experts(spec, tokens), 1 if tokens else 0
    return tuple(
        [
            Kernel(
                rates.name,
                rates.token_flops * tokens + rates.key_flops * attended,
                rates.weight_bytes * loaded + rates.expert_bytes * experts,
                rates.kv_read_bytes * keys,
                rates.kv_write_bytes * tokens,
                rates.activation_bytes * tokens,
            )
            for rates in each
        ]
    )


def head_kernels(spec: ModelSpec, shape: StepShape, precision: Precision = FP16) -> tuple[Kernel, ...]:
    """Return the kernels outside the layers: ``embedding`` before them, ``final_norm`` and ``lm_head`` after.

    The embedding reads one row per token (and one of the learned positions), the head the whole matrix, also
    when it is tied. Without sampled tokens the head has no work.
    """
    tokens, sampled, d = shape.tokens, shape.sampled, spec.d_model
    act = _width_bytes(precision.activation_bits)
    rows = 2 if spec.learned_positions else 1
    return (
        Kernel(
            "embedding",
            (rows - 1) * tokens * d,
            stored_bytes(rows * tokens * d, precision.weights_bits),
            0,
            0,
            tokens * d * act,
        ),
        Kernel(
            "final_norm",
            _NORM_FLOPS[spec.norm] * d * tokens,
            stored_bytes(spec.norm_params, precision.weights_bits) if tokens else 0,
            0,
            0,
            2 * tokens * d * act,
        ),
        Kernel(
            "lm_head",
            2 * sampled * d * spec.vocab,
            stored_bytes(spec.vocab * d, precision.weights_bits) if sampled else 0,
            0,
            0,
            sampled * (d + spec.vocab) * act,
        ),
    )


def step_totals(spec: ModelSpec, shape: StepShape, precision: Precision = FP16) -> Kernel:
    """Return the work of a whole step, all layers and the kernels outside them, as one kernel ``step``."""
    parts = [(spec.n_layers, kernel) for kernel in layer_kernels(spec, shape, precision)]
    parts += [(1, kernel) for kernel in head_kernels(spec, shape, precision)]
    return Kernel(
        "step",
        sum(times * kernel.flops for times, kernel in parts),
        sum(times * kernel.weight_bytes for times, kernel in parts),
        sum(times * kernel.kv_read_bytes for times, kernel in parts),
        sum(times * kernel.kv_write_bytes for times, kernel in parts),
        sum(times * kernel.activation_bytes for times, kernel in parts),
    )
