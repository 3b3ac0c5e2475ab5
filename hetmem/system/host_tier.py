"""Host DRAM as a tier of the GPUs' memory: the servers between them, and what a copy costs.

Each GPU has a host link of its own; all share the port of the host's memory. Copies are cut-through: the slowest
hop decides, and the link's latency follows. Not modelled: copies in pieces, each with the latency of its own.
"""

from collections.abc import Iterator, Mapping

from attrs import field, frozen

from hetmem.engine.graph import Cost, GraphBuilder, TaskGraph, Template
from hetmem.engine.swap import KvMoves
from hetmem.hardware.config import HostMemory, MachineConfig
from hetmem.hardware.link import LinkPath
from hetmem.hardware.machine import Unit
from hetmem.system.parts import link_units
from hetmem.units import to_fj, to_ps

MEMORY = "host"
DIRECTIONS = {"out": "d2h", "back": "h2d"}


@frozen
class HostTier:
    """Copies between the memories of a machine's GPUs and its host DRAM."""

    config: MachineConfig
    host: HostMemory
    rate: float = field(init=False)
    _templates: dict[tuple[str, ...], Template] = field(factory=dict, init=False, repr=False, eq=False)

    @rate.default
    def _stream(self) -> float:
        return self.host.bytes_per_s()

    def link(self, gpu: int) -> str:
        """Return the name of a GPU's host link."""
        return "pcie" if self.config.gpus == 1 else f"pcie{gpu}"

    def link_units(self) -> tuple[Unit, ...]:
        """Return the servers of all host links."""
        pcie = self.config.pcie
        return tuple(
            unit for gpu in range(self.config.gpus) for unit in link_units(self.link(gpu), pcie, (MEMORY, f"gpu{gpu}"))
        )

    def hops(self, gpu: int, direction: str) -> tuple[str, str, str]:
        """Return the servers that a copy to or from a GPU keeps busy."""
        return (MEMORY, f"{self.link(gpu)}.{direction}", f"gpu{gpu}.hbm")

    def costs(
        self, slot: str, gpu: int, n_bytes: int, link: LinkPath, times: int = 1, direction: str = "h2d"
    ) -> dict[str, Cost]:
        """Return the costs of ``times`` copies of ``n_bytes``, by slot and hop."""
        hops = self.hops(gpu, direction)
        return {f"{slot}@{hop}": self.hop_cost(hop, n_bytes, link, times) for hop in hops}

    def hop_cost(self, hop: str, n_bytes: int, link: LinkPath, times: int = 1) -> Cost:
        """Return what ``times`` copies of ``n_bytes`` cost at one hop; ``link`` is the path of those over PCIe."""
        if hop == MEMORY:
            seconds, fj = n_bytes / self.rate, to_fj(8 * n_bytes * self.host.pj_per_bit * 1e-12 * times)
        elif hop.endswith(".hbm"):
            seconds, fj = self.config.gpu.stream_s(n_bytes), self.config.gpu.work_fj(0, n_bytes) * times
        else:
            seconds, fj = link.transfer_s(n_bytes) - link.latency_s, self.config.pcie.energy_fj(n_bytes) * times
        return Cost(to_ps(seconds) * times, fj, n_bytes * times)

    def swap_graph(self, moves: KvMoves) -> TaskGraph:
        """Return the graph of a step's swap copies, all at once: out and back share nothing but the host's port."""
        copies = list(_copies(moves))
        key = tuple(slot for slot, *_ in copies)
        if key not in self._templates:
            graph = GraphBuilder()
            for slot, gpu, direction, _ in copies:
                lag = to_ps(self.config.pcie.path(direction=direction).latency_s)
                graph.transfer(slot, self.hops(gpu, direction), lag_ps=lag)
            self._templates[key] = graph.build()
        costs: dict[str, Cost] = {}
        for slot, gpu, direction, n_bytes in copies:
            costs |= self.costs(slot, gpu, n_bytes, self.config.pcie.path(direction=direction), direction=direction)
        return self._templates[key].bind(costs)


def _copies(moves: KvMoves) -> Iterator[tuple[str, int, str, int]]:
    """Yield slot, GPU, direction and bytes of each copy."""
    for way, direction in DIRECTIONS.items():
        by_memory: Mapping[str, int] = getattr(moves, way)
        for memory, n_bytes in by_memory.items():
            if n_bytes:
                yield f"swap.{way}.{memory}", int(memory.removeprefix("gpu")), direction, n_bytes
