"""The machine as data: the parts a user names, resolved to numbers under an assumption set.

A preset (``machines.toml``) says which parts; the catalogue gives their numbers; an assumption set
(``assumptions.toml``) says which rates a run believes: the ones a paper printed, or the measured ones, the same
for every system.
"""

from functools import cached_property
from typing import Any

from attrs import evolve, field, frozen
from attrs.validators import and_, deep_mapping, ge, gt, in_, le, optional

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError
from hetmem.hardware.board import BoardConfig, board, is_board
from hetmem.hardware.cpu import CpuSpec, cpu
from hetmem.hardware.dram import MAPPINGS, MemorySystem, memory
from hetmem.hardware.gpu import GpuSpec, gpu
from hetmem.hardware.gpu_law import IDEAL, GpuLaw, gpu_law
from hetmem.hardware.link import Link, LinkPath, link
from hetmem.hardware.ndp import NdpDimms, ndp_dimms
from hetmem.hardware.neurons import NeuronConfig, neurons
from hetmem.hardware.pim_config import AttAccConfig, PapiConfig, PimConfig, TileConfig
from hetmem.hardware.ssd import Ssd, ssd
from hetmem.hardware.tiled_gpu import caps

ASSUMPTIONS = ("as-published", "fair")


@frozen(kw_only=True)
class Assumptions:
    """Which rates a run believes.

    Attributes
    ----------
    stream_gbs, pageable_gbs, prefill_gbs, link_peak_gbs
        What the host link achieves from pinned memory, from pageable memory and while a prompt is processed,
        and its nominal rate; None where the link's own measured rates hold.
    pageable_copies
        Whether a system that copies from pageable memory is charged for it.
    ideal_gpu
        Whether GPU kernels run at peak rates, the slower of compute and memory, with no launch overhead.
    gpu_bandwidth_gbs, gpu_fp16_tflops
        What is printed for a GPU, by GPU id, in place of its datasheet's figures.
    gpu_weight_bytes
        GPU memory that weights may take, by GPU id, where a paper says so.
    gpu_usable, gpu_usable_of
        Fraction of GPU memory that weights, buffers and KV cache may take; of some GPUs another, by GPU id.
    dram_efficiency
        Whether DRAM outside the GPU is charged with its sustained efficiency.
    prefill_streams_all
        Whether a prefill streams resident weights too.
    flexgen_resident
        Whether FlexGen may keep weights in GPU memory.
    link_efficiency
        Whether links between chips are charged with what such links achieve.
    gqa_reuse
        Whether a board's chips read a key/value head once for all its query heads.
    decoder_only
        Whether a board computes decoder layers only, without embedding and head.
    ssd_read_gbs
        What reading whole layers from the SSD achieves; None where the SSD's own rate holds.
    static_power
        Whether every part draws its full power all the time, and moving a bit costs nothing beside.
    neurons_published
        Whether neuron offloading takes the rates and the composition that its paper implies.
    attacc_accounting
        Whether GPUs with PIM stacks follow the accounts of AttAcc's simulator; measured efficiencies otherwise.
    cpu_gbs
        Bytes per second, in GB/s, at which the host's processor computes; None where its own law holds.
    deja_vu_communication
        The share of its time that Deja Vu spends on copies, all else being computation; nothing of it is resident
        then, and a batch shares all its neurons. None where its kernels, memory and batch are modelled.
    """

    name: str
    stream_gbs: float | None = field(default=None, validator=optional(gt(0)))
    pageable_gbs: float | None = field(default=None, validator=optional(gt(0)))
    prefill_gbs: float | None = field(default=None, validator=optional(gt(0)))
    link_peak_gbs: float | None = field(default=None, validator=optional(gt(0)))
    pageable_copies: bool
    ideal_gpu: bool
    gpu_bandwidth_gbs: dict[str, float] = field(factory=dict)
    gpu_fp16_tflops: dict[str, float] = field(factory=dict)
    gpu_weight_bytes: dict[str, float] = field(factory=dict)
    gpu_usable: float = field(validator=[gt(0)])
    gpu_usable_of: dict[str, float] = field(factory=dict, validator=deep_mapping(value_validator=and_(gt(0), le(1))))
    dram_efficiency: bool
    prefill_streams_all: bool
    flexgen_resident: bool
    link_efficiency: bool
    gqa_reuse: bool
    decoder_only: bool
    ssd_read_gbs: float | None = field(default=None, validator=optional(gt(0)))
    static_power: bool = False
    neurons_published: bool = False
    attacc_accounting: bool
    cpu_gbs: float | None = field(default=None, validator=optional(gt(0)))
    deja_vu_communication: float | None = field(default=None, validator=optional(gt(0)))


@frozen(kw_only=True)
class HostMemory:
    """The host's DRAM: ``channels`` of a catalogue device, striped, with ``capacity_bytes`` in all.

    ``dimm_idle_w`` is drawn by each DIMM of ``dimm_bytes``; ``pj_per_bit`` is charged per bit moved.
    """

    device: str
    channels: int = field(validator=ge(1))
    capacity_bytes: int = field(validator=gt(0))
    interleave_bytes: int = field(validator=gt(0))
    mapping: str = field(default="bgfirst", validator=in_(MAPPINGS))
    sustained: bool = True
    dimm_bytes: int = field(validator=gt(0))
    dimm_idle_w: float = field(validator=ge(0))
    pj_per_bit: float = field(validator=ge(0))

    @property
    def system(self) -> MemorySystem:
        """The channels together."""
        return MemorySystem(
            device=memory(self.device), channels=self.channels, interleave_bytes=self.interleave_bytes,
            mapping=self.mapping,
        )  # fmt: skip

    def bytes_per_s(self, chunk_bytes: float | None = None) -> float:
        """Return what a stream, or chunks of ``chunk_bytes``, achieve."""
        achieved = self.system.efficiency(chunk_bytes) if self.sustained else 1.0
        return self.system.peak_gbs * 1e9 * achieved

    @property
    def idle_w(self) -> float:
        """Watts of all DIMMs while nothing is accessed."""
        return self.dimm_idle_w * self.capacity_bytes / self.dimm_bytes


@frozen(kw_only=True)
class MachineConfig:
    """A machine: GPUs and what is around them. Parts that a system does not need are None.

    Attributes
    ----------
    gpu, gpus, gpu_link
        The GPU, how many, and the link between them (None for a single one).
    stack
        The software stack whose kernel times hold (None: the GPU's default), or ``ideal``: kernels at peak rates,
        the slower of compute and memory, with no launch overhead.
    stages
        Pipeline stages; the GPUs of a stage share its layers by tensor parallelism.
    gpu_usable, gpu_weight_bytes
        Fraction of GPU memory in use, and the bytes of it that weights may take (None: what is left).
    live_context
        Whether an idle GPU holds a live context, which draws more than a bare one.
    pcie, prefill_gbs, pageable_copies
        The host link; its rate while weights are streamed for a prefill (None: its pinned rate); whether
        pageable copies are charged.
    host, cpu, ssd, dimm
        Host DRAM and processor, SSD, NDP-DIMMs.
    neurons
        Parameters of systems that offload single neurons.
    tile, pim, papi, attacc
        The GPUs' tile law, the attention stacks, and the options of PAPI's and AttAcc's systems.
    sync_s
        One hop of a host-issued synchronisation between GPU and DIMMs.
    dimm_link
        The links between NDP-DIMMs; each DIMM has the port of one.
    prefill_streams_all, flexgen_resident, cpu_gbs, deja_vu_communication
        See :class:`Assumptions`.
    base_w
        Watts of everything else in the node; None is not counted.
    """

    gpu: GpuSpec
    stack: str | None = None
    gpus: int = field(default=1, validator=ge(1))
    stages: int = field(default=1, validator=ge(1))
    gpu_link: Link | None = None
    gpu_usable: float = field(validator=gt(0))
    gpu_weight_bytes: float | None = field(default=None, validator=optional(gt(0)))
    live_context: bool = True
    pcie: Link
    prefill_gbs: float | None = field(default=None, validator=optional(gt(0)))
    pageable_copies: bool
    host: HostMemory | None = None
    cpu: CpuSpec | None = None
    ssd: Ssd | None = None
    dimm: NdpDimms | None = None
    neurons: NeuronConfig | None = None
    tile: TileConfig | None = None
    pim: PimConfig | None = None
    papi: PapiConfig | None = None
    attacc: AttAccConfig | None = None
    dimm_link: Link | None = None
    sync_s: float = field(default=0.0, validator=ge(0))
    prefill_streams_all: bool
    flexgen_resident: bool
    cpu_gbs: float | None = field(default=None, validator=optional(gt(0)))
    deja_vu_communication: float | None = field(default=None, validator=optional([gt(0), le(1)]))
    base_w: float | None = field(default=None, validator=optional(ge(0)))

    def __attrs_post_init__(self) -> None:
        if self.gpu_usable > 1:
            raise ValueError(f"gpu_usable must be at most 1, not {self.gpu_usable}")
        if self.gpus > 1 and self.gpu_link is None:
            raise ValueError("gpus must be 1 on a machine without gpu_link; ask for them with --gpus")
        if self.gpus % self.stages:
            raise ValueError(f"{self.gpus} GPUs cannot be shared by {self.stages} stages alike")

    @cached_property
    def gpu_law(self) -> GpuLaw:
        """The times of GPU kernels."""
        return gpu_law(self.gpu, self.stack)

    @property
    def shards(self) -> int:
        """GPUs that share a layer: the degree of tensor parallelism."""
        return self.gpus // self.stages

    @property
    def gpu_usable_bytes(self) -> int:
        """GPU memory of one GPU that weights, buffers and KV cache may take together."""
        return int(self.gpu.capacity_bytes * self.gpu_usable)

    def prefill_path(self, direction: str = "h2d") -> LinkPath:
        """Return the path by which weights are streamed, and keys and values written, for a prefill."""
        path = self.pcie.path(direction=direction)
        return path if self.prefill_gbs is None else evolve(path, gbs=self.prefill_gbs)


@frozen(kw_only=True)
class MachinePreset:
    """Which parts a machine has, by their names in the catalogue."""

    name: str
    gpu: str
    gpus: int
    cpu: str | None = None
    ssd: str | None = None
    dimm: bool = False
    dimm_link: str | None = None
    host_on_request: bool = False
    host_device: str | None = None
    host_channels: int = 1
    host_capacity_bytes: int = 0
    host_interleave_bytes: int = 64
    host_dimm_bytes: int = 0
    host_dimm_idle_w: float = 0.0
    host_pj_per_bit: float = 0.0
    sync_s: float = 0.0
    base_w: float | None = None
    neurons: str | None = None
    published: str = ASSUMPTIONS[0]
    gpu_usable: float | None = field(default=None, validator=optional([gt(0), le(1)]))
    tiled: bool = False
    fc_units: str | None = None
    fc_stacks: int = 0
    attention_units: str | None = None
    attention_stacks: int = 0
    attention_link: str | None = None
    decision_s: float = 0.0
    pipelining: bool = False
    co_processing: bool = False


def assumptions(name: str) -> Assumptions:
    """Return the assumption set ``name``: one of :data:`ASSUMPTIONS`, or what stands for the first on a machine."""
    return structure(Assumptions, catalog.whole(catalog.entry("assumptions", name)))


def machine(
    preset: str, assumed: str = "fair", *, gpu_id: str | None = None, gpus: int | None = None,
    dimms: int | None = None, multipliers: int | None = None, dimm_preset: str = "datasheet", stack: str | None = None,
    stages: int = 1, host: bool = False,
) -> MachineConfig | BoardConfig:  # fmt: skip
    """Return the machine of ``preset`` under the assumption set ``assumed``: GPUs and what is around, or a board.

    Parameters
    ----------
    gpu_id, gpus
        Another GPU, and another number of them.
    dimms, multipliers
        Another number of NDP-DIMMs, and of multipliers on each.
    dimm_preset
        ``"datasheet"`` or ``"paper-fit"``.
    stack
        The software stack whose kernel times hold, where the assumption set has no say in it.
    stages
        Pipeline stages that the GPUs form.
    host
        Whether host DRAM takes part, in a machine that has it on request.

    Raises
    ------
    UnknownNameError, ConfigError
        When a part is not in the catalogue, or the machine has no such part.
    """
    entry = catalog.entry("machines", preset)
    if is_board(entry):
        belief = assumptions(assumed)
        absent = {"gpu": gpu_id, "gpus": gpus, "stack": stack, "dimms": dimms, "multipliers": multipliers}
        for name, value in absent.items():
            if value is not None:
                raise ConfigError(name, f"machine {preset} has none")
        belief = assumptions(assumed)
        return board(
            entry, sustained=belief.dram_efficiency, link_efficiency=belief.link_efficiency,
            gqa_reuse=belief.gqa_reuse, decoder_only=belief.decoder_only,
        )  # fmt: skip
    return gpu_machine(
        preset, assumed, gpu_id=gpu_id, gpus=gpus, dimms=dimms, multipliers=multipliers, dimm_preset=dimm_preset,
        stack=stack, stages=stages, host=host,
    )  # fmt: skip


def gpu_machine(
    preset: str, assumed: str = "fair", *, gpu_id: str | None = None, gpus: int | None = None,
    dimms: int | None = None, multipliers: int | None = None, dimm_preset: str = "datasheet", stack: str | None = None,
    stages: int = 1, host: bool = False,
) -> MachineConfig:  # fmt: skip
    """Return the machine of a ``preset`` with GPUs; arguments and errors as of :func:`machine`."""
    parts = structure(MachinePreset, catalog.entry("machines", preset))
    belief = assumptions(parts.published if assumed == ASSUMPTIONS[0] else assumed)
    card = gpu(gpu_id or parts.gpu)
    if not parts.tiled:
        card = _believed_gpu(card, belief)
    ndp = _believed_dimms(ndp_dimms(dimm_preset), belief, dimms, multipliers) if parts.dimm else None
    if ndp is None and (dimms is not None or multipliers is not None):
        raise ConfigError("dimms" if dimms is not None else "multipliers", f"machine {preset} has no NDP-DIMMs")
    dram = None
    if parts.host_device is not None and (host or not parts.host_on_request):
        dram = HostMemory(
            device=parts.host_device, channels=parts.host_channels, capacity_bytes=parts.host_capacity_bytes,
            interleave_bytes=parts.host_interleave_bytes, sustained=belief.dram_efficiency,
            dimm_bytes=parts.host_dimm_bytes, dimm_idle_w=parts.host_dimm_idle_w,
            pj_per_bit=parts.host_pj_per_bit,
        )  # fmt: skip
    if stack is not None:
        gpu_law(card, stack)  # refused here if unknown, also where the assumption set has the say
    several = (parts.gpus if gpus is None else gpus) > 1
    built = MachineConfig(
        gpu=card,
        stack=IDEAL if belief.ideal_gpu else stack,
        stages=stages,
        gpus=parts.gpus if gpus is None else gpus,
        gpu_link=_between_gpus(link(card.peer_link)) if several else None,
        gpu_usable=_usable(card, belief) if parts.gpu_usable is None else parts.gpu_usable,
        gpu_weight_bytes=belief.gpu_weight_bytes.get(card.name),
        pcie=_believed_link(link(card.host_link), belief),
        prefill_gbs=belief.prefill_gbs,
        pageable_copies=belief.pageable_copies,
        host=dram,
        cpu=None if parts.cpu is None else cpu(parts.cpu),
        ssd=None if parts.ssd is None else _believed_ssd(ssd(parts.ssd), belief),
        dimm=ndp,
        neurons=None if parts.neurons is None else neurons(parts.neurons, published=belief.neurons_published),
        **(_pim_parts(parts, belief, card, stack) if parts.tiled else {}),
        dimm_link=None if parts.dimm_link is None else link(parts.dimm_link),
        sync_s=parts.sync_s,
        prefill_streams_all=belief.prefill_streams_all,
        flexgen_resident=belief.flexgen_resident,
        cpu_gbs=belief.cpu_gbs,
        deja_vu_communication=belief.deja_vu_communication,
        base_w=parts.base_w,
    )
    return _static(built) if belief.static_power else built


def _static(config: MachineConfig) -> MachineConfig:
    """Return the machine with every part at its full power all the time, whatever it does."""
    cpu, host, ssd = config.cpu, config.host, config.ssd
    return evolve(
        config,
        gpu=evolve(config.gpu, context_w=config.gpu.tdp_w),
        pcie=evolve(config.pcie, pj_per_bit=0.0),
        cpu=None if cpu is None else evolve(cpu, idle_w=cpu.active_w),
        host=None if host is None else evolve(host, pj_per_bit=0.0),
        ssd=None if ssd is None else evolve(ssd, pj_per_bit=0.0),
    )


def _believed_ssd(found: Ssd, belief: Assumptions) -> Ssd:
    return found if belief.ssd_read_gbs is None else evolve(found, read_gbs=belief.ssd_read_gbs)


def _pim_parts(parts: MachinePreset, belief: Assumptions, card: GpuSpec, stack: str | None) -> dict[str, Any]:
    """Return the groups of a machine under the tile law."""
    own = belief.attacc_accounting
    compute, memory = caps() if own else gpu_law(card, stack).efficiencies
    groups: dict[str, Any] = {
        "tile": TileConfig(
            corrected_energy=not own,
            measured_all_reduce=not own,
            whole_columns=parts.fc_units is not None or not own,
            compute_efficiency=compute,
            memory_efficiency=memory,
        )
    }
    if parts.attention_units is not None and parts.attention_link is not None:
        groups["pim"] = PimConfig(
            units=parts.attention_units, stacks=parts.attention_stacks, link=parts.attention_link, measured_link=not own
        )
    if parts.fc_units is not None:
        groups["papi"] = PapiConfig(
            fc_units=parts.fc_units, fc_stacks=parts.fc_stacks, sustained=not own, decision_s=parts.decision_s
        )
    elif "pim" in groups:
        groups["attacc"] = AttAccConfig(
            pipelining=parts.pipelining, co_processing=parts.co_processing, softmax_hidden=own
        )
    return groups


def _usable(card: GpuSpec, belief: Assumptions) -> float:
    return belief.gpu_usable_of.get(card.name, belief.gpu_usable)


def _believed_gpu(card: GpuSpec, belief: Assumptions) -> GpuSpec:
    return evolve(
        card,
        memory_gbs=belief.gpu_bandwidth_gbs.get(card.name, card.memory_gbs),
        fp16_tflops=belief.gpu_fp16_tflops.get(card.name, card.fp16_tflops),
        stream_efficiency=1.0 if belief.ideal_gpu else card.stream_efficiency,
    )


def _between_gpus(found: Link) -> Link:
    """Return the link as one between equals: without a link of their own, GPUs share the host's pinned path."""
    if found.peer is not None:
        return found
    return evolve(found, peer=found.path(), h2d_pinned=None, d2h_pinned=None, h2d_pageable=None, d2h_pageable=None)


def _believed_link(found: Link, belief: Assumptions) -> Link:
    if belief.stream_gbs is None or found.h2d_pinned is None:
        return found
    pinned = LinkPath(latency_s=found.h2d_pinned.latency_s, gbs=belief.stream_gbs)
    pageable = LinkPath(latency_s=found.h2d_pinned.latency_s, gbs=belief.pageable_gbs or belief.stream_gbs)
    try:
        return evolve(
            found, peak_gbs=belief.link_peak_gbs or found.peak_gbs, h2d_pinned=pinned, d2h_pinned=pinned,
            h2d_pageable=pageable, d2h_pageable=pageable,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"assumptions.{belief.name}", f"on {found.name}: {error}") from None


def _believed_dimms(pool: NdpDimms, belief: Assumptions, count: int | None, multipliers: int | None) -> NdpDimms:
    return evolve(
        pool,
        count=pool.count if count is None else count,
        multipliers=pool.multipliers if multipliers is None else multipliers,
        sustained=pool.sustained or not belief.dram_efficiency,
    )
