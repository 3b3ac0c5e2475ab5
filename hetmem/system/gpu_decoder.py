"""A decoder layer on tensor-parallel GPUs under the tile law: FC, attention, norms, all-reduce.

Times are per layer, energies per layer and over all GPUs. See :mod:`hetmem.hardware.tiled_gpu` for the law.
"""

from collections.abc import Sequence

from attrs import frozen

from hetmem.hardware import tiled_gpu as law
from hetmem.hardware.component_energy import ComponentEnergy
from hetmem.hardware.pim import FcPass
from hetmem.hardware.tiled_gpu import KernelCost, TiledGpu
from hetmem.system.decoder_shape import WORD_BYTES, DecoderShape, FcShares


@frozen
class FcKernels:
    """The FC kernels of one layer on each GPU; a gated feed-forward has two first matrices."""

    qkv: KernelCost
    projection: KernelCost
    feed_forward: tuple[KernelCost, ...]

    @property
    def time_s(self) -> float:
        """All FC of the layer, seconds."""
        return self.qkv.time_s + self.projection.time_s + sum(kernel.time_s for kernel in self.feed_forward)

    def energy(self, gpus: int) -> ComponentEnergy:
        """Return the energy of all FC of the layer over ``gpus``."""
        total = self.qkv.energy + self.projection.energy
        for kernel in self.feed_forward:
            total = total + kernel.energy
        return total * gpus


@frozen
class ElementwiseKernels:
    """Activation, both norms and both all-reduces of one layer: seconds, and energy over all GPUs."""

    activation_s: float
    norm_s: float
    all_reduce_s: float
    energy: ComponentEnergy
    link_energy: ComponentEnergy


def fc_kernels(gpu: TiledGpu, gpus: int, shape: DecoderShape, tokens: float, whole: bool) -> FcKernels:
    """Return the FC kernels of ``tokens`` with matrices split over ``gpus``; ``whole`` rounds columns up."""
    share = FcShares.of(shape, gpus, whole)
    up = law.gemm(gpu, tokens, share.feed_forward, shape.hidden)
    down = law.gemm(gpu, tokens, shape.hidden, share.feed_forward)
    return FcKernels(
        qkv=law.gemm(gpu, tokens, share.qkv, shape.hidden),
        projection=law.gemm(gpu, tokens, shape.hidden, share.projection),
        feed_forward=(up, up, down) if shape.gated else (up, down),
    )


def attention_kernels(
    gpu: TiledGpu, gpus: int, shape: DecoderShape, requests: int, queries: float, context: float
) -> tuple[KernelCost, KernelCost, KernelCost]:
    """Return score, softmax and context products of one layer on each GPU for equal contexts."""
    heads = shape.heads / gpus * requests
    score = law.gemm(gpu, queries, context, shape.head_dim, ops=heads, batched=True)
    values = law.gemm(gpu, queries, shape.head_dim, context, ops=heads, batched=True)
    return score, law.softmax(gpu, queries, context, heads), values


def elementwise_kernels(
    gpu: TiledGpu, gpus: int, shape: DecoderShape, tokens: float, whole: bool
) -> ElementwiseKernels:
    """Return activation, norms and all-reduces of ``tokens``."""
    width = FcShares.of(shape, gpus, whole).feed_forward
    activation = law.activation(gpu, tokens, width, shape.gated, shape.activation_flops)
    norm = law.norm(gpu, tokens, shape.hidden)
    payload = WORD_BYTES * tokens * shape.hidden
    return ElementwiseKernels(
        activation_s=activation.time_s,
        norm_s=2 * norm.time_s,
        all_reduce_s=2 * law.all_reduce_s(gpu, gpus, payload),
        energy=(activation.energy + 2 * norm.energy) * gpus,
        link_energy=2 * law.all_reduce_energy(gpu, gpus, payload),
    )


def total_energy(kernels: Sequence[KernelCost | FcPass]) -> ComponentEnergy:
    """Return the sum of the kernels' energies."""
    total = ComponentEnergy()
    for kernel in kernels:
        total = total + kernel.energy
    return total
