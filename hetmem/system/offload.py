"""What systems that keep weights outside the GPU share: where the bytes are, and what a copy of them costs.

The head is a stage of its own after the layers. Of the input embedding only the rows of the step's tokens are
read, which is neglected.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from attrs import evolve

from hetmem.engine.graph import Cost, TaskGraph, Template
from hetmem.engine.step import Plan, StepView
from hetmem.engine.swap import KvMoves
from hetmem.errors import CapacityError, UnsupportedError
from hetmem.hardware.config import HostMemory
from hetmem.hardware.cpu import CpuSpec
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.link import LinkPath
from hetmem.hardware.machine import Machine, Memory, Unit
from hetmem.hardware.ssd import Ssd
from hetmem.system.base import Setup, System
from hetmem.system.host_tier import MEMORY, HostTier
from hetmem.system.ops import GpuOps, Op, total
from hetmem.system.parts import gpu_memories, gpu_units, host_memories, host_units
from hetmem.system.stream import Path
from hetmem.units import to_ps


class OffloadSystem(System):
    """One GPU whose weights, or some of them, live in host DRAM."""

    preset = "offload"
    #: Slots, up to a point, whose tasks at the SSD write to it; all others read.
    ssd_writes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if self.config.gpus != 1:
            raise UnsupportedError(self.name, f"runs on one GPU, not {self.config.gpus}")
        if self.config.host is None:
            raise UnsupportedError(self.name, "needs host DRAM, and the machine has none")
        self.host: HostMemory = self.config.host
        self.tier = HostTier(self.config, self.host)
        self.host_rate = self.tier.rate
        self.ops = GpuOps(self.model, self.precision, self.config.gpu_law, attention=setup.attention)
        self.layer_bytes = sum(self.model.layer_bytes(self.precision).values())
        self.total_bytes = self.model.weight_bytes(self.precision)
        self.ssd_bytes = {"ssd_bytes_read": 0, "ssd_bytes_written": 0}
        self._ssd_tasks: dict[int, tuple[Template, list[tuple[int, str]]]] = {}

    def machine(self) -> Machine:
        config = self.config
        units = (
            *gpu_units(config), *self.tier.link_units(),
            *host_units(config.cpu, config.host),
        )  # fmt: skip
        return Machine(units, (*gpu_memories(config), *host_memories(config.host)), base_w=config.base_w)

    @cached_property
    def host_cpu(self) -> CpuSpec | None:
        """The host processor, which reads the machine's memory no faster than either of the two allows."""
        cpu = self.config.cpu
        return None if cpu is None else evolve(cpu, memory_gbs=min(cpu.memory_gbs, self.host.system.peak_gbs))

    def commit(self, plan: Plan) -> None:
        """Count what the SSD will read and write."""
        template = plan.graph.template
        if id(template) not in self._ssd_tasks:
            tasks = [
                (k, "ssd_bytes_written" if template.tags[k].split(".")[0] in self.ssd_writes else "ssd_bytes_read")
                for k, server in enumerate(template.servers)
                if server == "ssd"
            ]
            self._ssd_tasks[id(template)] = (template, tasks)  # kept, so that its id cannot be taken by another
        for k, what in self._ssd_tasks[id(template)][1]:
            self.ssd_bytes[what] += plan.graph.costs[k].bytes

    def counters(self) -> Mapping[str, int]:
        return self.ssd_bytes

    def kv_need_bytes(self) -> int:
        """Return the bytes that must find room for the largest batch at its longest to fit the KV cache."""
        return self.setup.kv_tokens * self.model.kv_bytes_per_token(self.precision)

    def weight_room_bytes(self, buffers: int) -> int:
        """Return the GPU memory left for resident weights beside the KV cache and ``buffers`` layers."""
        free = self.config.gpu_usable_bytes - self.kv_need_bytes() - buffers * self.layer_bytes
        limit = self.config.gpu_weight_bytes
        return max(0, free if limit is None else min(free, int(limit)))

    def swap_memories(self) -> tuple[str, ...]:
        return (MEMORY,) if set(self.kv_bytes_per_token()) == {"gpu0"} else ()

    def swap_graph(self, moves: KvMoves) -> TaskGraph:
        return self.tier.swap_graph(moves)

    def copy_costs(
        self, slot: str, n_bytes: int, link: LinkPath, times: int = 1, direction: str = "h2d"
    ) -> dict[str, Cost]:
        """Return the costs of ``times`` copies of ``n_bytes`` between host DRAM and the GPU."""
        return self.tier.costs(slot, 0, n_bytes, link, times, direction)

    def hop_cost(self, hop: str, n_bytes: int, link: LinkPath, times: int = 1) -> Cost:
        """Return what ``times`` copies of ``n_bytes`` cost at one hop; ``link`` is the path of those over PCIe."""
        return self.tier.hop_cost(hop, n_bytes, link, times)

    def copy_path(self, link: LinkPath, direction: str = "h2d") -> Path:
        """Return the hops of such a copy."""
        return Path(self.tier.hops(0, direction), to_ps(link.latency_s))

    def stage_costs(self, slot: str, ops: list[Op], times: int = 1) -> dict[str, Cost]:
        """Return the costs of a stage: all its launches, one after the other, ``times`` over."""
        compute, memory = self.ops.price_run(ops, times)
        return {f"{slot}.compute": compute, f"{slot}.memory": memory}

    def step_costs(self, view: StepView) -> dict[str, Cost]:
        """Return the costs of the stages ``layer`` and ``head`` of a step."""
        layer = self.ops.layer(view.prefill, view.decode)
        head = self.ops.head(total(view.prefill, view.decode))
        return self.stage_costs("layer", layer) | self.stage_costs("head", head)


def require_room(ledger: Ledger, memory: str, asked: int) -> None:
    """Raise :class:`CapacityError` unless ``asked`` bytes are free in ``memory``."""
    free = ledger.free_bytes(memory)
    if asked > free:
        held = tuple((owner, n) for name, owner, n in ledger.holdings() if name == memory)
        raise CapacityError(memory, asked, free, ledger.capacities[memory], held)


def ssd_units(ssd: Ssd) -> tuple[Unit, ...]:
    """Return the SSD's server."""
    return (Unit("ssd", "ssd", ssd.idle_w, ssd.idle_w, ("ssd",)),)


def ssd_memories(n_bytes: int) -> tuple[Memory, ...]:
    """Return the SSD as a memory of ``n_bytes``; its power is its server's."""
    return (Memory("ssd", n_bytes, "ssd"),)
