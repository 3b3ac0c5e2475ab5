"""The shape of a decoder-only transformer: dimensions, parameters, footprints.

Modelled: token embedding (learned positions too), ``n_layers`` equal layers (norms, QKV, output projection,
router, MLP or experts, biases where a family has them), a final norm and the output head.
Ignored: buffers that are not parameters (rotary tables, masks), relative-position parameters, scales and zero
points of quantised tensors, and layers that differ from each other.
Layout of the tensors: Vaswani et al. 2017 (arXiv 1706.03762); grouped-query attention, Ainslie et al. 2023
(arXiv 2305.13245); gated MLP, Shazeer 2020 (arXiv 2002.05202); mixture of experts, Jiang et al. 2024
(arXiv 2401.04088).
"""

from typing import Any

import attrs
from attrs import field, frozen

from hetmem.errors import ConfigError, UnknownNameError

ACTIVATIONS = ("relu", "gelu", "silu")
NORMS = ("rms", "layer")
BIASED = ("qkv", "proj", "up", "down")


def _check_bits(instance: "Precision", attribute: "attrs.Attribute[int]", value: int) -> None:
    if type(value) is not int or not 1 <= value <= 64:
        raise ConfigError(f"precision.{attribute.name}", f"expected an integer from 1 to 64, not {value!r}")


@frozen(kw_only=True, cache_hash=True)
class Precision:
    """Bits per value of each operand of the model.

    ``weights_bits`` holds for every parameter, norms and embedding included: an int4 footprint is a little
    below that of a checkpoint which keeps those in 16 bits. Presets ``int8`` and ``int4`` are weight-only.

    Raises
    ------
    ConfigError
        When a number of bits is not an integer from 1 to 64.
    """

    weights_bits: int = field(default=16, validator=_check_bits)
    kv_bits: int = field(default=16, validator=_check_bits)
    activation_bits: int = field(default=16, validator=_check_bits)

    @classmethod
    def named(cls, name: str) -> "Precision":
        """Return the preset ``name`` of :data:`PRECISIONS`.

        Raises
        ------
        UnknownNameError
            When there is no such preset.
        """
        if name not in PRECISIONS:
            raise UnknownNameError("precision", name, tuple(PRECISIONS))
        return PRECISIONS[name]


FP16 = Precision()
INT8 = Precision(weights_bits=8)
INT4 = Precision(weights_bits=4)
PRECISIONS = {"fp16": FP16, "int8": INT8, "int4": INT4}


def stored_bytes(values: int, bits: int) -> int:
    """Return the whole bytes that ``values`` values of ``bits`` bits take."""
    return -(-values * bits // 8)


def _problem(spec: "ModelSpec", name: str, problem: str) -> ConfigError:
    return ConfigError(f"{spec.id}.{name}", problem)


def _positive(spec: "ModelSpec", attribute: "attrs.Attribute[int]", value: int) -> None:
    if type(value) is not int or value < 1:
        raise _problem(spec, attribute.name, f"expected a positive integer, not {value!r}")


def _not_negative(spec: "ModelSpec", attribute: "attrs.Attribute[int]", value: int) -> None:
    if type(value) is not int or value < 0:
        raise _problem(spec, attribute.name, f"expected an integer of at least 0, not {value!r}")


def _flag(spec: "ModelSpec", attribute: "attrs.Attribute[bool]", value: bool) -> None:
    if type(value) is not bool:
        raise _problem(spec, attribute.name, f"expected true or false, not {value!r}")


def _one_of(*known: str) -> Any:
    def check(spec: "ModelSpec", attribute: "attrs.Attribute[str]", value: str) -> None:
        if value not in known:
            raise _problem(spec, attribute.name, f"expected one of {', '.join(known)}, not {value!r}")

    return check


def _group_names(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _linear_groups(spec: "ModelSpec", attribute: "attrs.Attribute[tuple[str, ...]]", value: Any) -> None:
    if not isinstance(value, tuple) or any(value.count(group) > 1 or group not in BIASED for group in value):
        raise _problem(spec, attribute.name, f"expected a list of {', '.join(BIASED)}, not {value!r}")


@frozen(kw_only=True, cache_hash=True)
class ModelSpec:
    """Dimensions of one model; every count is exact.

    Parameters
    ----------
    id
        Name in tables and errors.
    n_layers, d_model, n_heads, n_kv_heads, head_dim
        Layers, width of the residual stream, query heads, key/value heads, channels per head.
    d_ff, gated_ffn, activation
        Channels of the MLP (of one expert), whether a gate matrix multiplies them, and :data:`ACTIVATIONS`.
    vocab, tied_embeddings, max_context
        Rows of the embedding, whether the head shares it, and the longest sequence in tokens.
    n_experts, experts_per_token
        0 and 0 for a dense model.
    parallel_attn_mlp
        The MLP reads the layer's input, not the attention's output (Falcon).
    norm, norms_per_layer, qk_norm
        :data:`NORMS` (a layer norm has a shift besides its scale), how many per layer, and whether query and
        key heads are normalised too (Qwen3).
    biases
        The linear groups, out of :data:`BIASED`, that have a bias.
    rotary, learned_positions
        Whether queries and keys are rotated, and the rows of a learned position table (0: none).

    Raises
    ------
    ConfigError
        When a field is out of range or contradicts another; it names the field.
    """

    id: str
    n_layers: int = field(validator=_positive)
    d_model: int = field(validator=_positive)
    n_heads: int = field(validator=_positive)
    n_kv_heads: int = field(validator=_positive)
    head_dim: int = field(validator=_positive)
    d_ff: int = field(validator=_positive)
    gated_ffn: bool = field(validator=_flag)
    activation: str = field(validator=_one_of(*ACTIVATIONS))
    vocab: int = field(validator=_positive)
    tied_embeddings: bool = field(validator=_flag)
    max_context: int = field(validator=_positive)
    n_experts: int = field(default=0, validator=_not_negative)
    experts_per_token: int = field(default=0, validator=_not_negative)
    parallel_attn_mlp: bool = field(default=False, validator=_flag)
    norm: str = field(default="rms", validator=_one_of(*NORMS))
    norms_per_layer: int = field(default=2, validator=_positive)
    qk_norm: bool = field(default=False, validator=_flag)
    biases: tuple[str, ...] = field(default=(), converter=_group_names, validator=_linear_groups)
    rotary: bool = field(default=True, validator=_flag)
    learned_positions: int = field(default=0, validator=_not_negative)

    def __attrs_post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            problem = f"{self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            raise _problem(self, "n_heads", problem)
        if self.rotary and self.head_dim % 2:
            raise _problem(self, "head_dim", f"rotary embedding needs an even number, not {self.head_dim}")
        if (self.experts_per_token > 0) != (self.n_experts > 0) or self.experts_per_token > self.n_experts:
            problem = f"expected 1 to n_experts {self.n_experts} (0 if dense), not {self.experts_per_token}"
            raise _problem(self, "experts_per_token", problem)
        if self.norms_per_layer != 2 and not (self.norms_per_layer == 1 and self.parallel_attn_mlp):
            problem = f"expected 2 (or 1 with parallel_attn_mlp), not {self.norms_per_layer}"
            raise _problem(self, "norms_per_layer", problem)
        if self.learned_positions and self.learned_positions < self.max_context:
            problem = f"{self.learned_positions} rows are fewer than max_context {self.max_context}"
            raise _problem(self, "learned_positions", problem)

    @property
    def q_width(self) -> int:
        """Channels of all query heads."""
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Channels of all key heads (as many as of all value heads)."""
        return self.n_kv_heads * self.head_dim

    @property
    def up_width(self) -> int:
        """Output channels of the up projection of one MLP or expert, gate included."""
        return (2 if self.gated_ffn else 1) * self.d_ff

    @property
    def mlp_copies(self) -> int:
        """MLPs that a layer stores: its experts, or one."""
        return self.n_experts or 1

    @property
    def mlp_uses(self) -> int:
        """MLPs that a token passes in a layer: its chosen experts, or one."""
        return self.experts_per_token or 1

    @property
    def norm_params(self) -> int:
        """Parameters of one norm over the residual stream."""
        return (2 if self.norm == "layer" else 1) * self.d_model

    @property
    def qk_norm_params(self) -> int:
        """Parameters of the norms of query and key heads of one layer."""
        return 2 * self.head_dim if self.qk_norm else 0

    @property
    def layer_params(self) -> dict[str, int]:
        """Parameters of one layer by tensor group: qkv, proj, up (gate and up), down, router, norms.

        ``up`` and ``down`` count all experts.
        """

        def linear(group: str, inputs: int, outputs: int) -> int:
            return (inputs + (group in self.biases)) * outputs

        return {
            "qkv": linear("qkv", self.d_model, self.q_width + 2 * self.kv_width),
            "proj": linear("proj", self.q_width, self.d_model),
            "up": self.mlp_copies * linear("up", self.d_model, self.up_width),
            "down": self.mlp_copies * linear("down", self.d_ff, self.d_model),
            "router": self.n_experts * self.d_model,
            "norms": self.norms_per_layer * self.norm_params + self.qk_norm_params,
        }

    @property
    def outer_params(self) -> dict[str, int]:
        """Parameters outside the layers: embedding (and learned positions), final_norm, head (0 if tied)."""
        return {
            "embedding": (self.vocab + self.learned_positions) * self.d_model,
            "final_norm": self.norm_params,
            "head": 0 if self.tied_embeddings else self.vocab * self.d_model,
        }

    @property
    def params(self) -> int:
        """All parameters; a tied head is counted once."""
        return self.n_layers * sum(self.layer_params.values()) + sum(self.outer_params.values())

    @property
    def params_active(self) -> int:
        """Parameters that one token uses: all but the experts it is not routed to."""
        layer = self.layer_params
        idle = (layer["up"] + layer["down"]) // self.mlp_copies * (self.mlp_copies - self.mlp_uses)
        return self.params - self.n_layers * idle

    def layer_bytes(self, precision: Precision = FP16) -> dict[str, int]:
        """Return the weight bytes of one layer by the groups of :attr:`layer_params`."""
        return {group: stored_bytes(n, precision.weights_bits) for group, n in self.layer_params.items()}

    def outer_bytes(self, precision: Precision = FP16) -> dict[str, int]:
        """Return the weight bytes outside the layers by the groups of :attr:`outer_params`."""
        return {group: stored_bytes(n, precision.weights_bits) for group, n in self.outer_params.items()}

    def weight_bytes(self, precision: Precision = FP16) -> int:
        """Return the weight bytes of the whole model."""
        layer, outer = self.layer_bytes(precision), self.outer_bytes(precision)
        return self.n_layers * sum(layer.values()) + sum(outer.values())

    def kv_bytes_per_token(self, precision: Precision = FP16) -> int:
        """Return the bytes of keys and values that one token leaves in the caches of all layers."""
        return stored_bytes(2 * self.n_layers * self.kv_width, precision.kv_bits)
