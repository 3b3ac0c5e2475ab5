"""One GPU and a host processor that computes too: what its kernels cost."""

from hetmem.engine.graph import FREE, Cost
from hetmem.errors import ConfigError
from hetmem.hardware.cpu import CpuSpec
from hetmem.system.base import Setup
from hetmem.system.offload import OffloadSystem
from hetmem.units import to_fj, to_ps


class HostComputeSystem(OffloadSystem):
    """An offloading system whose host processor runs some of the kernels."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if self.host_cpu is None:
            raise ConfigError("machine.cpu", f"{self.name} computes on the host, and the machine has no CPU")
        self.cpu: CpuSpec = self.host_cpu
        self.hidden_bytes = self.model.d_model * self.precision.activation_bits // 8

    def cpu_s(self, flops: float, n_bytes: float, *, vectors: bool = False) -> float:
        """Return the seconds of one kernel on the host; nothing takes no time."""
        return float(self.cpu.legs_s(flops, n_bytes, vectors=vectors).total_s) if flops or n_bytes else 0.0

    def host_costs(self, slot: str, seconds: float, n_bytes: float, times: int = 1) -> dict[str, Cost]:
        """Return the costs of ``times`` kernels of ``seconds`` each that read ``n_bytes`` of host DRAM each."""
        if not seconds:
            return {f"{slot}.compute": FREE, f"{slot}.memory": FREE}
        moved = round(n_bytes) * times
        dram = Cost(to_ps(n_bytes / self.host_rate) * times, to_fj(8 * moved * self.host.pj_per_bit * 1e-12), moved)
        return {f"{slot}.compute": Cost(to_ps(seconds) * times), f"{slot}.memory": dram if moved else FREE}

    def moved_costs(self, slot: str, n_bytes: float, times: int = 1, direction: str = "h2d") -> dict[str, Cost]:
        """Return the costs of ``times`` pinned copies of ``n_bytes`` between host DRAM and the GPU."""
        whole = round(n_bytes)
        costs = self.copy_costs(slot, whole, self.config.pcie.path(direction=direction), times, direction)
        return costs if whole else dict.fromkeys(costs, FREE)
