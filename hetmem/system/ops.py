"""Kernels as a GPU launches them: the model's kernels, fused and priced by the GPU's law.

QK^T, softmax and SV are one launch (fused attention), apart for prefill and for decode, whose times add; all
else of a step runs over its prefill and decode tokens together. Under tensor parallelism each of ``shards``
GPUs does its share of every kernel but the norms; a KV head is not split, so that of more GPUs than KV heads several
read and write the same one.
"""

from collections.abc import Iterable

from attrs import frozen

from hetmem.engine.graph import Cost
from hetmem.hardware.gpu import GpuSpec
from hetmem.model import Kernel, ModelSpec, Precision, StepShape, head_kernels, layer_kernels
from hetmem.units import to_ps

ATTENTION = ("qk", "softmax", "sv")
REPLICATED = ("attn_norm", "mlp_norm", "final_norm", "router", "embedding")


@frozen(slots=True)
class Op:
    """One launch: FLOPs, bytes, and of those the bytes of weights."""

    name: str
    flops: float
    n_bytes: float
    weight_bytes: float


@frozen
class GpuOps:
    """Turns step shapes into priced launches.

    Parameters
    ----------
    model, precision
        What runs.
    law
        The GPU's time as a function of FLOPs and bytes.
    shards
        GPUs that share each kernel.
    """

    model: ModelSpec
    precision: Precision
    law: GpuSpec
    shards: int = 1

    @property
    def dtype(self) -> str:
        """The units that multiply: INT8 only where weights and activations both are."""
        return "int8" if max(self.precision.weights_bits, self.precision.activation_bits) <= 8 else "fp16"

    def layer(self, prefill: StepShape | None, decode: StepShape | None) -> list[Op]:
        """Return the launches of one layer, in order."""
        both = total(prefill, decode)
        ops: list[Op] = []
        for kernel in layer_kernels(self.model, both, self.precision):
            if kernel.name not in ATTENTION:
                ops.append(self._op(kernel.name, (kernel,)))
            elif kernel.name == ATTENTION[0]:
                for phase, shape in (("prefill", prefill), ("decode", decode)):
                    if shape is not None:
                        ops.append(self._op(f"attention.{phase}", attention(self.model, shape, self.precision)))
        return ops

    def head(self, shape: StepShape) -> list[Op]:
        """Return the launches outside the layers that follow them: final norm and logits."""
        return [self._op(k.name, (k,)) for k in head_kernels(self.model, shape, self.precision)]

    def price(self, op: Op, times: int = 1) -> tuple[Cost, Cost]:
        """Return what the compute and the memory leg of ``times`` launches of ``op`` cost."""
        whole, memory = self.law.legs_s(op.flops, op.n_bytes, self.dtype)
        fj = self.law.work_fj(op.flops, op.n_bytes, self.dtype) * times
        return Cost(to_ps(whole) * times, fj), Cost(to_ps(memory) * times, 0, round(op.n_bytes) * times)

    def op(self, kernel: Kernel) -> Op:
        """Return the launch of one kernel by itself."""
        return self._op(kernel.name, (kernel,))

    def _op(self, name: str, kernels: Iterable[Kernel]) -> Op:
        share = 1 if name in REPLICATED else self.shards
        parts = tuple(kernels)
        kv = sum(k.kv_read_bytes + k.kv_write_bytes for k in parts)
        heads = self.model.n_kv_heads
        return Op(
            name,
            sum(k.flops for k in parts) / share,
            (sum(k.bytes for k in parts) - kv) / share + kv * -(-heads // share) / heads,
            sum(k.weight_bytes for k in parts) / share,
        )


def attention(model: ModelSpec, shape: StepShape, precision: Precision) -> tuple[Kernel, ...]:
    """Return the three kernels of one layer's attention."""
    return tuple(k for k in layer_kernels(model, shape, precision) if k.name in ATTENTION)


def total(prefill: StepShape | None, decode: StepShape | None) -> StepShape:
    """Return the shape of both groups of a step together."""
    if prefill is None:
        return decode or StepShape()
    return prefill if decode is None else prefill + decode
