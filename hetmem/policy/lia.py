"""LIA: which of a layer's six sublayers run on the CPU, by exhaustive search over a six-bit vector.

Modelled: the offloading decision of LIA (ISCA 2025). Weights and KV cache lie in host memory. A sublayer
costs ``load + compute + store``: on the GPU it first copies its weights or KV over the link; inputs and
residuals cross when they were produced on the other side; what must be kept (new keys and values) goes back
to the host. The same vector holds for every layer, so the first sublayer follows the sixth of the layer
before.

Ignored, as in the decision it models: overlap of transfers with compute, and prefetch of the next layer.
"""

from itertools import product

from attrs import field, frozen, validators

from hetmem.errors import ConfigError

SUBLAYERS = ("qkv", "qk", "sv", "proj", "fc1", "fc2")
Vector = tuple[int, ...]

#: The sublayer beside whose input (qkv) or output (proj) the residual lies that is added after proj and fc2.
RESIDUAL_AT = {
    SUBLAYERS.index("proj"): SUBLAYERS.index("qkv"),
    SUBLAYERS.index("fc2"): SUBLAYERS.index("proj"),
}


@frozen
class Sublayer:
    """One sublayer's compute time on either side, and the bytes that may have to move.

    Parameters
    ----------
    cpu_s, gpu_s : float
        Compute time where everything is at hand.
    operand_bytes : int
        Weights or KV, held by the host; copied when the GPU computes.
    input_bytes : int
        What the sublayer before hands over; copied when that ran on the other side.
    store_bytes : int
        Results that must end in host memory; copied when the GPU computes.
    """

    cpu_s: float = field(validator=validators.ge(0))
    gpu_s: float = field(validator=validators.ge(0))
    operand_bytes: int = field(default=0, validator=validators.ge(0))
    input_bytes: int = field(default=0, validator=validators.ge(0))
    store_bytes: int = field(default=0, validator=validators.ge(0))


@frozen
class LiaView:
    """The six sublayers in the order of :data:`SUBLAYERS`, the residual's bytes, and the host-GPU link."""

    sublayers: tuple[Sublayer, ...]
    residual_bytes: int
    link_bytes_per_s: float

    def __attrs_post_init__(self) -> None:
        if len(self.sublayers) != len(SUBLAYERS):
            raise ConfigError("sublayers", f"expected {len(SUBLAYERS)}, not {len(self.sublayers)}")
        if not self.link_bytes_per_s > 0:
            raise ConfigError("link_bytes_per_s", f"expected a positive rate, not {self.link_bytes_per_s}")

    def time_s(self, vector: Vector) -> float:
        """Return the time of one layer under ``vector`` (1 = CPU)."""
        moved, compute_s = 0, 0.0
        for i, (sublayer, on_cpu) in enumerate(zip(self.sublayers, vector, strict=True)):
            compute_s += sublayer.cpu_s if on_cpu else sublayer.gpu_s
            if not on_cpu:
                moved += sublayer.operand_bytes + sublayer.store_bytes
            if on_cpu != vector[i - 1]:
                moved += sublayer.input_bytes
            if i in RESIDUAL_AT and on_cpu != vector[RESIDUAL_AT[i]]:
                moved += self.residual_bytes
        return compute_s + moved / self.link_bytes_per_s


@frozen
class LiaDecision:
    """The chosen vector (1 = CPU) and the time of one layer under it."""

    vector: Vector
    time_s: float


@frozen
class LiaOffload:
    """The least of the 64 vectors; of equals the lower binary number, so the GPU before the CPU."""

    def decide(self, view: LiaView) -> LiaDecision:
        """Return the vector of least time."""
        timed = ((view.time_s(vector), vector) for vector in product((0, 1), repeat=len(SUBLAYERS)))
        time_s, vector = min(timed)
        return LiaDecision(vector, time_s)
