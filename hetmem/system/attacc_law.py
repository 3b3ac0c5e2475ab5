"""AttAcc's own pair in closed form: DGX (GPUs alone) and DGX with AttAcc devices, an iteration at a time.

Modelled: all requests at one context; attention on the GPUs, or on PIM with transfers overlapped by the
tool's rules; head-level pipelining of QKV and projection with attention; feed-forward co-processing by the
PIM devices. Ignored: as the tool does, KV transfer after prefill and softmax time on the buffer die; capacity
is the caller's. Source: AttAcc! (ASPLOS 2024) and the cost model of its simulator; errors against that tool's
rows are in tests/paper/test_attacc_reference.py. Differences on purpose: attention time comes from the cycle
law instead of a table of Ramulator2 runs.
"""

from collections.abc import Iterable, Sequence
from math import ceil

from attrs import evolve, field, frozen

from hetmem.errors import ConfigError
from hetmem.hardware import pim_attention
from hetmem.hardware.attention_link import AttentionLink
from hetmem.hardware.component_energy import ComponentEnergy
from hetmem.hardware.pim import PimStack, pim_stack
from hetmem.hardware.pim_attention import ContextTotals
from hetmem.hardware.pim_config import AttAccConfig, PimConfig, TileConfig
from hetmem.hardware.tiled_gpu import KernelCost, TiledGpu, link_energy
from hetmem.system.decoder_shape import WORD_BYTES, DecoderShape
from hetmem.system.gpu_decoder import attention_kernels, elementwise_kernels, fc_kernels, total_energy
from hetmem.system.iteration_cost import IterationCost, mean


@frozen
class AttAccMachine:
    """GPUs with, or without, an AttAcc device each.

    ``pipelining`` overlaps QKV and projection with attention head by head; ``co_processing`` lets the PIM
    units take part of the feed-forward; ``whole_columns`` rounds the columns per GPU up, which the tool does
    not. ``link`` goes to the devices; None takes half of what the GPU's links carry both ways.
    """

    gpu: TiledGpu
    gpus: int = 8
    stack: PimStack | None = None
    stacks_per_device: int = 5
    pipelining: bool = field(default=False)
    co_processing: bool = field(default=False)
    whole_columns: bool = False
    link: AttentionLink | None = None

    @pipelining.validator
    @co_processing.validator
    def _needs_pim(self, attribute: object, value: bool) -> None:
        if value and self.stack is None:
            raise ConfigError(getattr(attribute, "name", "option"), "needs a PIM stack; the machine has GPUs alone")

    @property
    def needed_stack(self) -> PimStack:
        """The stack of the devices, which the caller knows to be there."""
        if self.stack is None:
            raise ConfigError("stack", "the machine has GPUs alone")
        return self.stack

    def transfer_s(self, n_bytes: float) -> float:
        """Return the seconds that ``n_bytes`` keep the links to the devices busy, one direction."""
        if self.link is None:
            return n_bytes / (self.gpus * self.gpu.link_bytes_per_s / 2)
        return self.link.transfer_s(self.gpus, n_bytes) - self.link.latency_s

    @property
    def latency_s(self) -> float:
        """Latency of a transfer, which the first head cannot hide."""
        return 0.0 if self.link is None else self.link.latency_s

    @property
    def capacity_bytes(self) -> int:
        """Memory of the GPUs and of the AttAcc devices together."""
        devices = 0 if self.stack is None else self.gpus * self.stacks_per_device * self.stack.capacity_bytes
        return self.gpus * self.gpu.capacity_bytes + devices


def decode(machine: AttAccMachine, shape: DecoderShape, batch: int, context: int) -> IterationCost:
    """Return the cost of one decode iteration of ``batch`` requests with ``context`` tokens each.

    Raises
    ------
    ConfigError
        When ``batch`` or ``context`` is not positive.
    """
    if batch < 1 or context < 1:
        raise ConfigError("decode", f"batch and context must be positive, not {batch} and {context}")
    gpu, gpus = machine.gpu, machine.gpus
    fc = fc_kernels(gpu, gpus, shape, batch, machine.whole_columns)
    rest = elementwise_kernels(gpu, gpus, shape, batch, machine.whole_columns)
    layer = IterationCost(
        qkv_s=fc.qkv.time_s,
        projection_s=fc.projection.time_s,
        feed_forward_s=sum(kernel.time_s for kernel in fc.feed_forward),
        activation_s=rest.activation_s,
        norm_s=rest.norm_s,
        all_reduce_s=rest.all_reduce_s,
        fc_energy=fc.energy(gpus),
        elementwise_energy=rest.energy,
        link_energy=rest.link_energy,
    )
    if machine.stack is None:
        score, soft, values = attention_kernels(gpu, gpus, shape, batch, 1, context)
        layer = evolve(
            layer,
            attention_s=score.time_s + values.time_s,
            softmax_s=soft.time_s,
            attention_energy=total_energy((score, soft, values)) * gpus,
        )
    else:
        layer = _on_pim(machine, shape, batch, context, layer)
        if machine.co_processing:
            shared = [co_processed_s(machine, batch, kernel) for kernel in fc.feed_forward]
            layer = evolve(layer, feed_forward_s=sum(shared))
    return layer.scaled(shape.layers)


def _on_pim(
    machine: AttAccMachine, shape: DecoderShape, batch: int, context: int, layer: IterationCost
) -> IterationCost:
    found = attention(machine, shape, (context,) * batch)
    moved = (shape.qkv_columns + shape.query_columns) * batch * WORD_BYTES
    qkv, projection, transfer = _overlap(
        machine, shape, layer.qkv_s, layer.projection_s, found.array_s + found.softmax_s, machine.transfer_s(moved)
    )
    return evolve(
        layer,
        qkv_s=qkv,
        projection_s=projection,
        attention_s=found.array_s,
        transfer_s=transfer + 2 * machine.latency_s,
        attention_energy=found.energy,
        link_energy=layer.link_energy + link_energy(machine.gpu, moved),
    )


def _overlap(
    machine: AttAccMachine,
    shape: DecoderShape,
    qkv: float,
    projection: float,
    attention: float,
    transfer: float,
) -> tuple[float, float, float]:
    """Return what QKV, projection and transfers add after overlap; one head's share cannot be hidden."""
    first = machine.gpus / shape.heads
    # "Naive" already overlaps the transfers with attention.
    hidden = transfer * first if attention > transfer else transfer - attention * (1 - first)
    if not machine.pipelining:
        return qkv, projection, hidden
    fc = qkv + projection
    if attention > fc:
        return qkv * first, projection * first, hidden
    if fc > transfer:
        spare = attention * (1 - first)
        return qkv - 0.75 * spare, projection - 0.25 * spare, transfer * first
    return qkv * first, projection * first, transfer - attention * (1 - first)


def co_processed_s(machine: AttAccMachine, tokens: int, kernel: KernelCost) -> float:
    """Return a feed-forward kernel's seconds when the PIM units stream a part of its weights."""
    stack = machine.needed_stack
    factor = stack.level.bandwidth_factor * stack.read_share
    if kernel.compute_bound:
        flops = machine.gpu.flops
        return kernel.time_s * flops / (flops + factor * machine.gpu.memory_bytes_per_s)
    return kernel.time_s * tokens / (tokens + factor)


@frozen
class StackAttention:
    """One layer's attention in the stacks: seconds in the arrays and of softmax, and energy of all devices."""

    array_s: float
    softmax_s: float
    energy: ComponentEnergy


def attention(machine: AttAccMachine, shape: DecoderShape, contexts: Sequence[int], tlp: int = 1) -> StackAttention:
    """Return one layer's attention of requests with ``contexts``, ``tlp`` tokens each.

    The tool's traces hold equal contexts; the commands of unequal ones are those of their means.
    """
    stack, stacks = machine.needed_stack, machine.gpus * machine.stacks_per_device
    requests, corrected = len(contexts), machine.gpu.corrected_energy
    longest = pim_attention.rounds(stack, stacks, shape.heads, contexts)
    passes = pim_attention.passes(stack, tlp)
    elements = shape.heads / machine.gpus * sum(contexts) * tlp  # of each device
    on_stack = ceil(shape.heads / machine.gpus * requests / machine.stacks_per_device)
    totals = ContextTotals.of(stack, contexts)
    commands = pim_attention.mean_commands(
        stack, on_stack, totals.buckets / requests, totals.blocks / requests, shape.head_dim
    )
    per_stack = pim_attention.array_energy(stack, commands)
    per_stack = per_stack + pim_attention.buffer_energy(stack, commands, corrected)
    # The tool charges the score product's MACs alone.
    macs = elements * shape.head_dim * (2 if corrected else 1)
    per_device = stack.mac_energy(macs) + pim_attention.softmax_energy(stack, elements)
    return StackAttention(
        array_s=pim_attention.pass_s(stack, longest, shape.head_dim) * passes,
        softmax_s=pim_attention.softmax_s(stack, elements / machine.stacks_per_device),
        energy=(per_stack * (machine.stacks_per_device * passes) + per_device) * machine.gpus,
    )


def machine_of(gpu: TiledGpu, gpus: int, tile: TileConfig, pim: PimConfig, attacc: AttAccConfig) -> AttAccMachine:
    """Return the machine of a configuration, as the laws take it."""
    return AttAccMachine(
        gpu=gpu,
        gpus=gpus,
        stack=pim_stack(pim.units, pim.level, pim.power_limit),
        stacks_per_device=pim.stacks // gpus,
        pipelining=attacc.pipelining,
        co_processing=attacc.co_processing,
        whole_columns=tile.whole_columns,
        link=AttentionLink.named(pim.link, pim.measured_link),
    )


def decode_mean(machine: AttAccMachine, shape: DecoderShape, batch: int, prompt: int, output: int) -> IterationCost:
    """Return the mean decode iteration of ``batch`` requests: the prefill makes the first token.

    Raises
    ------
    ConfigError
        When ``output`` leaves no decode iteration.
    """
    if output < 2:
        raise ConfigError("output", f"expected at least 2 tokens, the first is the prefill's, not {output}")
    return mean(_stages(machine, shape, batch, prompt, output))


def _stages(
    machine: AttAccMachine, shape: DecoderShape, batch: int, prompt: int, output: int
) -> Iterable[IterationCost]:
    for stage in range(1, output):
        yield decode(machine, shape, batch, prompt + stage)


def prefill(machine: AttAccMachine, shape: DecoderShape, batch: int, prompt: int) -> IterationCost:
    """Return the cost of the prefill of ``batch`` prompts on the GPUs; KV transfer to PIM is left out."""
    gpu, gpus, tokens = machine.gpu, machine.gpus, batch * prompt
    fc = fc_kernels(gpu, gpus, shape, tokens, machine.whole_columns)
    rest = elementwise_kernels(gpu, gpus, shape, tokens, machine.whole_columns)
    score, soft, values = attention_kernels(gpu, gpus, shape, batch, prompt, prompt)
    return IterationCost(
        qkv_s=fc.qkv.time_s,
        projection_s=fc.projection.time_s,
        feed_forward_s=sum(kernel.time_s for kernel in fc.feed_forward),
        attention_s=score.time_s + values.time_s,
        softmax_s=soft.time_s,
        activation_s=rest.activation_s,
        norm_s=rest.norm_s,
        all_reduce_s=rest.all_reduce_s,
        fc_energy=fc.energy(gpus),
        attention_energy=total_energy((score, soft, values)) * gpus,
        elementwise_energy=rest.energy,
        link_energy=rest.link_energy,
    ).scaled(shape.layers)


def largest_batch(machine: AttAccMachine, shape: DecoderShape, tokens: int) -> int:
    """Return how many requests of ``tokens`` (prompt and output) fit beside the weights."""
    free = machine.capacity_bytes - shape.weight_bytes
    return max(0, int(free // (shape.kv_bytes_per_token * tokens)))
