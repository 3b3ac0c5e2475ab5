"""The few numbers of a decoder that the closed-form laws of the GPU and PIM systems need."""

from math import ceil

from attrs import field, frozen, validators

from hetmem.errors import ConfigError

WORD_BYTES = 2  # FP16


@frozen
class DecoderShape:
    """A decoder in plain numbers.

    ``ff`` is the feed-forward's width; it may be a fraction, as in AttAcc's LLaMA (8/3 of ``hidden``).
    ``gated`` feed-forwards have three matrices. ``activation_flops`` are FLOP per element: 8 GELU, 1 ReLU, 9
    gated SiLU.
    """

    layers: int = field(validator=validators.gt(0))
    hidden: int = field(validator=validators.gt(0))
    heads: int = field(validator=validators.gt(0))
    kv_heads: int = field(validator=validators.gt(0))
    head_dim: int = field(validator=validators.gt(0))
    ff: float = field(validator=validators.gt(0))
    gated: bool
    activation_flops: float

    def __attrs_post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError("kv_heads", f"{self.kv_heads} does not divide {self.heads} heads")

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V of one token over all layers, bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * WORD_BYTES

    @property
    def query_columns(self) -> int:
        """Width of all query heads, which is also what the projection takes."""
        return self.heads * self.head_dim

    @property
    def qkv_columns(self) -> int:
        """Columns of the fused QKV matrix."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def fc_bytes(self) -> tuple[float, float, float]:
        """Weight bytes of one layer: QKV, projection, feed-forward."""
        row = WORD_BYTES * self.hidden
        return row * self.qkv_columns, row * self.query_columns, row * self.ff * (3 if self.gated else 2)

    @property
    def weight_bytes(self) -> float:
        """Weight bytes of all layers."""
        return self.layers * sum(self.fc_bytes)


@frozen
class FcShares:
    """Columns (rows, for the second matrix of a pair) that one of ``devices`` holds."""

    qkv: float
    projection: float
    feed_forward: float

    @classmethod
    def of(cls, shape: DecoderShape, devices: int, whole: bool) -> "FcShares":
        """Return the widths per device; ``whole`` rounds them up, otherwise fractions are kept."""
        widths = (shape.qkv_columns, shape.query_columns, shape.ff)
        return cls(*(ceil(width / devices) if whole else width / devices for width in widths))
