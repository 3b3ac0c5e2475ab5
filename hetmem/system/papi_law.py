"""PAPI and the systems it is compared with, in closed form: an iteration, a prefill, a batch at a time.

Modelled: FC on tensor-parallel GPUs or in PIM stacks, attention in disaggregated PIM stacks, Q, K, V and
outputs over the link between, norms, activation and all-reduce on the GPUs in every system. Kernels follow
one another: nothing overlaps. Ignored: input broadcast and partial sums inside PIM stacks, embedding and
head, KV capacity, kernels on the host other than the scheduling decision. Sources: PAPI (ASPLOS 2025, arXiv
2502.15470) for the systems, the AttAcc simulator for the laws. What the paper leaves open is an option: heads
spread over all attention stacks, every verified token repeats the pass over K and V unless a bank has more
units, and each query head re-reads its KV head unless ``gqa_reuse``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from attrs import evolve, field, frozen, validators

from hetmem.errors import ConfigError, ConservationError, UnknownNameError, UnsupportedError
from hetmem.hardware import pim_attention
from hetmem.hardware.attention_link import AttentionLink
from hetmem.hardware.component_energy import ComponentEnergy
from hetmem.hardware.config import MachineConfig
from hetmem.hardware.config import gpu_machine as preset
from hetmem.hardware.pim import PimStack, fc_on_pim, pim_stack
from hetmem.hardware.pim_attention import ContextTotals
from hetmem.hardware.pim_config import ATTENTION_LAWS, FC_LAWS
from hetmem.hardware.tiled_gpu import TiledGpu, flat_fc, link_energy
from hetmem.policy.reschedule import (
    Calibration,
    Oracle,
    Parallelism,
    Rescheduler,
    RescheduleView,
    Side,
    Static,
    Threshold,
    calibrate,
)
from hetmem.system.decoder_shape import WORD_BYTES, DecoderShape
from hetmem.system.gpu_decoder import attention_kernels, elementwise_kernels, fc_kernels, total_energy
from hetmem.system.iteration_cost import IterationCost
from hetmem.workload.speculation import BatchStep

BOTH = (Side.GPU, Side.PIM)
#: Where FC may run, by system.
SIDES: Mapping[str, tuple[Side, ...]] = {
    "papi": BOTH, "papi-pim-only": (Side.PIM,), "a100-attacc": (Side.GPU,), "a100-hbm-pim": (Side.GPU,),
    "attacc-only": (Side.PIM,),
}  # fmt: skip
FLAT_ATTENTION_UTILISATION = 0.8  # assumed: of the MAC rate, rows and rounds left out


@frozen(cache_hash=True)
class PapiMachine:
    """One of PAPI's systems.

    ``sides`` is where FC may run. ``fc_law`` is ``tile`` or ``flat``, ``attention_law`` ``rounds`` or
    ``flat``. ``overheads`` scales the GPUs' norms, activation and all-reduce, which the results rest on.
    """

    name: str
    gpu: TiledGpu
    gpus: int
    fc_stack: PimStack
    fc_stacks: int
    attention_stack: PimStack
    attention_stacks: int
    sides: tuple[Side, ...]
    decision_s: float
    link: AttentionLink
    fc_law: str = field(default="tile", validator=validators.in_(FC_LAWS))
    attention_law: str = field(default="rounds", validator=validators.in_(ATTENTION_LAWS))
    gqa_reuse: bool = False
    overheads: float = field(default=1.0, validator=validators.ge(0))
    whole_columns: bool = True


def machine_of(name: str, config: MachineConfig) -> PapiMachine:
    """Return the system ``name`` on the machine ``config``, as the laws take it.

    Raises
    ------
    UnknownNameError
        When there is no such system, link or tile geometry.
    UnsupportedError
        When the machine has no stacks for weights or attention.
    """
    if name not in SIDES:
        raise UnknownNameError("system of PAPI", name, tuple(SIDES))
    tile, pim, papi = config.tile, config.pim, config.papi
    if tile is None or pim is None or papi is None:
        raise UnsupportedError(name, "needs GPUs under the tile law with stacks for weights and for attention")
    fc_stack = pim_stack(papi.fc_units, pim.level, pim.power_limit)
    return PapiMachine(
        name=name,
        gpu=TiledGpu.of(
            config.gpu, config.gpu_link, corrected_energy=tile.corrected_energy,
            measured_ring=tile.measured_all_reduce,
            compute_efficiency=tile.compute_efficiency, memory_efficiency=tile.memory_efficiency,
        ),
        gpus=config.gpus,
        fc_stack=evolve(fc_stack, sustained=papi.sustained),
        fc_stacks=papi.fc_stacks,
        attention_stack=pim_stack(pim.units, pim.level, pim.power_limit),
        attention_stacks=pim.stacks,
        sides=SIDES[name],
        decision_s=papi.decision_s,
        link=AttentionLink.named(pim.link, pim.measured_link),
        fc_law=papi.fc_law,
        attention_law=papi.attention_law,
        gqa_reuse=papi.gqa_reuse,
        overheads=tile.overheads,
        whole_columns=tile.whole_columns,
    )  # fmt: skip


def papi_machine(
    name: str = "papi",
    *,
    assumed: str = "as-published",
    power_limit: bool = True,
    link: str = "nvlink3",
    fc_law: str = "tile",
    attention_law: str = "rounds",
    gqa_reuse: bool = False,
    overheads: float = 1.0,
) -> PapiMachine:
    """Return one of ``papi``, ``papi-pim-only``, ``a100-attacc``, ``a100-hbm-pim``, ``attacc-only`` as published.

    Raises
    ------
    UnknownNameError
        When the catalogue has no such system, link or GPU.
    """
    config = preset(name, assumed)
    if config.tile is None or config.pim is None or config.papi is None:
        raise UnsupportedError(name, "is not one of PAPI's systems")
    return machine_of(
        name,
        evolve(
            config,
            tile=evolve(config.tile, overheads=overheads),
            pim=evolve(config.pim, power_limit=power_limit, link=link),
            papi=evolve(config.papi, fc_law=fc_law, attention_law=attention_law, gqa_reuse=gqa_reuse),
        ),
    )


@lru_cache(maxsize=65536)
def fc(machine: PapiMachine, shape: DecoderShape, tokens: int, side: Side) -> IterationCost:
    """Return the FC terms of an iteration of ``tokens``, all layers, on ``side``."""
    if side is Side.PIM:
        passes = [fc_on_pim(machine.fc_stack, machine.fc_stacks, size, tokens) for size in shape.fc_bytes]
        times = [one.time_s for one in passes]
        energy = total_energy(passes)
    elif machine.fc_law == "flat":
        flat = [flat_fc(machine.gpu, machine.gpus, size, tokens) for size in shape.fc_bytes]
        times = [one.time_s for one in flat]
        energy = total_energy(flat)
    else:
        kernels = fc_kernels(machine.gpu, machine.gpus, shape, tokens, whole=machine.whole_columns)
        feed_forward = sum(kernel.time_s for kernel in kernels.feed_forward)
        times = [kernels.qkv.time_s, kernels.projection.time_s, feed_forward]
        energy = kernels.energy(machine.gpus)
    qkv_s, projection_s, feed_forward_s = times
    return IterationCost(qkv_s, projection_s, feed_forward_s, fc_energy=energy).scaled(shape.layers)


@lru_cache(maxsize=65536)
def around(machine: PapiMachine, shape: DecoderShape, tokens: int) -> IterationCost:
    """Return what an iteration of ``tokens`` costs besides FC and attention: GPU kernels, links, decision."""
    kernels = elementwise_kernels(machine.gpu, machine.gpus, shape, tokens, whole=machine.whole_columns)
    down = WORD_BYTES * tokens * shape.qkv_columns
    up = WORD_BYTES * tokens * shape.query_columns
    transfer = machine.link.transfer_s(machine.gpus, down) + machine.link.transfer_s(machine.gpus, up)
    layers = IterationCost(
        activation_s=kernels.activation_s * machine.overheads,
        norm_s=kernels.norm_s * machine.overheads,
        all_reduce_s=kernels.all_reduce_s * machine.overheads,
        transfer_s=transfer,
        elementwise_energy=kernels.energy,
        link_energy=kernels.link_energy + link_energy(machine.gpu, down + up),
    ).scaled(shape.layers)
    return evolve(layers, decision_s=machine.decision_s)


def attention_s(machine: PapiMachine, shape: DecoderShape, contexts: Sequence[int], tlp: int) -> float:
    """Return the attention time of an iteration, all layers, seconds.

    Parameters
    ----------
    contexts
        Tokens of context of each running request, in request order.
    tlp
        Tokens verified per request.
    """
    stack, stacks = machine.attention_stack, machine.attention_stacks
    heads, queries = _placed(machine, shape, tlp)
    passes = pim_attention.passes(stack, queries)
    if machine.attention_law == "flat":
        read_bytes = 2 * WORD_BYTES * heads * shape.head_dim * sum(contexts) * shape.layers
        return read_bytes * passes / (stacks * stack.weight_bytes_per_s * FLAT_ATTENTION_UTILISATION)
    longest = pim_attention.rounds(stack, stacks, heads, contexts)
    return pim_attention.pass_s(stack, longest, shape.head_dim) * passes * shape.layers


def attention_energy(machine: PapiMachine, shape: DecoderShape, totals: ContextTotals, tlp: int) -> ComponentEnergy:
    """Return the attention energy over ``totals``, all layers and stacks, ``tlp`` tokens per request."""
    heads, queries = _placed(machine, shape, tlp)
    one = pim_attention.request_energy(
        machine.attention_stack,
        heads,
        totals,
        queries=queries,
        head_dim=shape.head_dim,
        corrected=machine.gpu.corrected_energy,
    )
    return one * shape.layers


def _placed(machine: PapiMachine, shape: DecoderShape, tlp: int) -> tuple[int, int]:
    """Return the heads that a request places, and the query vectors that each of them serves."""
    if machine.gqa_reuse:
        return shape.kv_heads, tlp * (shape.heads // shape.kv_heads)
    return shape.heads, tlp


def iteration(
    machine: PapiMachine, shape: DecoderShape, contexts: Sequence[int], tlp: int, side: Side
) -> IterationCost:
    """Return the cost of one decode iteration term by term.

    Raises
    ------
    ConfigError
        When nothing runs.
    UnsupportedError
        When the system does not run FC on ``side``.
    """
    if not contexts or tlp < 1:
        raise ConfigError("iteration", f"expected running requests and tlp >= 1, not {len(contexts)} and {tlp}")
    if side not in machine.sides:
        raise UnsupportedError(machine.name, f"FC never runs on {side}")
    tokens = len(contexts) * tlp
    attention = IterationCost(
        attention_s=attention_s(machine, shape, contexts, tlp),
        attention_energy=attention_energy(machine, shape, ContextTotals.of(machine.attention_stack, contexts), tlp),
    )
    return fc(machine, shape, tokens, side) + around(machine, shape, tokens) + attention


def prefill(machine: PapiMachine, shape: DecoderShape, requests: int, prompt: int) -> IterationCost:
    """Return the cost of prefilling ``requests`` prompts on the GPUs and sending K and V to PIM."""
    tokens = requests * prompt
    gpu, gpus = machine.gpu, machine.gpus
    weights = fc(machine, shape, tokens, Side.GPU)
    kernels = elementwise_kernels(gpu, gpus, shape, tokens, whole=machine.whole_columns)
    score, soft, values = attention_kernels(gpu, gpus, shape, requests, prompt, prompt)
    kv_bytes = shape.kv_bytes_per_token * tokens
    rest = IterationCost(
        attention_s=score.time_s + values.time_s,
        softmax_s=soft.time_s,
        activation_s=kernels.activation_s * machine.overheads,
        norm_s=kernels.norm_s * machine.overheads,
        all_reduce_s=kernels.all_reduce_s * machine.overheads,
        attention_energy=total_energy((score, soft, values)) * gpus,
        elementwise_energy=kernels.energy,
        link_energy=kernels.link_energy,
    ).scaled(shape.layers)
    sent = IterationCost(transfer_s=machine.link.transfer_s(gpus, kv_bytes), link_energy=link_energy(gpu, kv_bytes))
    return weights + rest + sent


@lru_cache(maxsize=1024)
def calibrated(machine: PapiMachine, shape: DecoderShape, upto: int = 512) -> Calibration:
    """Calibrate the scheduler's threshold offline: FC alone, on both sides, at 1 to ``upto`` tokens."""
    return calibrate(
        lambda tokens: fc(machine, shape, tokens, Side.PIM).fc_s,
        lambda tokens: fc(machine, shape, tokens, Side.GPU).fc_s,
        upto,
    )


def default_policy(machine: PapiMachine, shape: DecoderShape) -> Rescheduler:
    """Return the policy that the system ships with: the calibrated threshold, or its one side."""
    if len(machine.sides) == 1:
        return Static(machine.sides[0])
    return Threshold(calibrated(machine, shape).alpha)


@frozen
class BatchCost:
    """A whole static batch: prefill and decode costs, and on which side how many iterations ran."""

    prefill: IterationCost
    decode: IterationCost
    iterations: Mapping[Side, int]
    switches: int

    @property
    def time_s(self) -> float:
        """Prefill and decode, seconds."""
        return self.prefill.time_s + self.decode.time_s

    @property
    def energy(self) -> ComponentEnergy:
        """Prefill and decode by component."""
        return self.prefill.energy + self.decode.energy


def batch_cost(
    machine: PapiMachine,
    shape: DecoderShape,
    steps: Sequence[BatchStep],
    prompt: int,
    requests: int,
    policy: Rescheduler | None = None,
) -> BatchCost:
    """Return the cost of ``steps`` after a prefill of ``requests`` prompts of ``prompt`` tokens.

    ``policy`` decides before every iteration from the parallelism that the iterations before it left.
    """
    policy = policy or default_policy(machine, shape)
    registers = Parallelism(steps[0].rlp, steps[0].tlp) if steps else Parallelism(0)
    side: Side | None = None
    switches, attention_time_s = 0, 0.0
    kernels: Counter[tuple[int, Side]] = Counter()
    totals: dict[int, ContextTotals] = {}
    for step in steps:
        if registers.tlp != step.tlp:  # software notified a change
            registers = evolve(registers, tlp=step.tlp)
        if registers.rlp != step.rlp:
            raise ConservationError("requests", f"the scheduler counts {registers.rlp}, the batch runs {step.rlp}")
        chosen = policy.decide(_view(machine, shape, registers, side, told=isinstance(policy, Oracle)))
        switches += side is not None and side is not chosen
        side = chosen
        kernels[registers.tokens, side] += 1
        attention_time_s += attention_s(machine, shape, step.contexts, step.tlp)
        here = ContextTotals.of(machine.attention_stack, step.contexts)
        totals[step.tlp] = totals.get(step.tlp, ContextTotals()) + here
        registers = registers.after(step.finished)
    decode = IterationCost(attention_s=attention_time_s)
    for tlp, sums in totals.items():
        decode = decode + IterationCost(attention_energy=attention_energy(machine, shape, sums, tlp))
    for (tokens, where), count in kernels.items():
        decode = decode + (fc(machine, shape, tokens, where) + around(machine, shape, tokens)).scaled(count)
    return BatchCost(
        prefill=prefill(machine, shape, requests, prompt),
        decode=decode,
        iterations={where: sum(n for (_, ran), n in kernels.items() if ran is where) for where in Side},
        switches=switches,
    )


def _view(
    machine: PapiMachine, shape: DecoderShape, registers: Parallelism, side: Side | None, told: bool
) -> RescheduleView:
    times = {choice: fc(machine, shape, registers.tokens, choice).fc_s for choice in Side} if told else None
    return RescheduleView(registers, side, times)
