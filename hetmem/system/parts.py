"""The servers and memories that systems are put together from, with their power.

A GPU is two servers: its execution (``gpu0``), busy for as long as a kernel lasts, and its memory
(``gpu0.hbm``), which kernels and copies share. Board power goes with the first: that of a live context while it is
busy, and what the work draws above that is charged to the work.
"""

from hetmem.hardware.config import HostMemory, MachineConfig
from hetmem.hardware.cpu import CpuSpec
from hetmem.hardware.link import Link
from hetmem.hardware.machine import Memory, Unit
from hetmem.hardware.ndp import NdpDimms


def gpu_units(config: MachineConfig) -> tuple[Unit, ...]:
    """Return the servers of all GPUs, and the links within and between stages where there are several."""
    card, units = config.gpu, []
    idle_w = card.context_w if config.live_context else card.idle_w
    for gpu in range(config.gpus):
        units += [
            Unit(f"gpu{gpu}", "gpu", idle_w, card.context_w, (f"gpu{gpu}",)),
            Unit(f"gpu{gpu}.hbm", "gpu", 0.0, 0.0, (f"gpu{gpu}",)),
        ]
    link = config.gpu_link
    if link is not None and config.shards > 1:
        for stage in range(config.stages):
            ends = tuple(f"gpu{stage * config.shards + g}" for g in range(config.shards))
            units.append(Unit(gpu_link(config, stage), "gpu-link", link.idle_w, link.idle_w, ends))
    if link is not None:
        for stage in range(config.stages - 1):
            ends = tuple(f"gpu{stage * config.shards + g}" for g in range(2 * config.shards))
            units.append(Unit(stage_link(stage), "stage-link", link.idle_w, link.idle_w, ends))
    return tuple(units)


def gpu_link(config: MachineConfig, stage: int) -> str:
    """Return the name of the link among the GPUs of a pipeline stage."""
    return "gpu-link" if config.stages == 1 else f"gpu-link{stage}"


def stage_link(stage: int) -> str:
    """Return the name of the link from a pipeline stage to the next."""
    return f"stage-link{stage}"


def gpu_memories(config: MachineConfig) -> tuple[Memory, ...]:
    """Return the memory of each GPU; its power is the board's."""
    return tuple(Memory(f"gpu{gpu}", config.gpu_usable_bytes, "gpu") for gpu in range(config.gpus))


def link_units(name: str, link: Link, ends: tuple[str, ...]) -> tuple[Unit, Unit]:
    """Return the two directions of a link between host and device; its idle power is counted once."""
    return (Unit(f"{name}.h2d", name, link.idle_w, link.idle_w, ends), Unit(f"{name}.d2h", name, 0.0, 0.0, ends))


def host_units(cpu: CpuSpec | None, host: HostMemory | None) -> tuple[Unit, ...]:
    """Return the host processor and the port of its memory."""
    ends = () if host is None else ("host",)
    units = [] if cpu is None else [Unit("cpu", "cpu", cpu.idle_w, cpu.active_w, ends)]
    if host is not None:
        units.append(Unit("host", "host-dram", 0.0, 0.0, ends))
    return tuple(units)


def host_memories(host: HostMemory | None) -> tuple[Memory, ...]:
    """Return the host's DRAM."""
    return () if host is None else (Memory("host", host.capacity_bytes, "host-dram", host.idle_w),)


def dimm_units(pool: NdpDimms) -> tuple[Unit, ...]:
    """Return the ranks (``dimm0.dram``) and the core (``dimm0.core``) of each DIMM."""
    units = []
    for dimm in range(pool.count):
        ends = (f"dimm{dimm}",)
        units += [
            Unit(f"dimm{dimm}.dram", "ndp-dimm", 0.0, 0.0, ends, pool.access_counted),
            Unit(f"dimm{dimm}.core", "ndp-core", pool.core_w, pool.core_w, ends),
        ]
    return tuple(units)


def dimm_memories(pool: NdpDimms) -> tuple[Memory, ...]:
    """Return the memory of each DIMM."""
    return tuple(Memory(f"dimm{d}", pool.capacity_bytes, "ndp-dimm", pool.dimm_idle_w) for d in range(pool.count))
