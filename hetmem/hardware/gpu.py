"""GPUs as their datasheets describe them: peaks, capacity, links, power states.

How long kernels take is a matter of the software stack as well: :mod:`hetmem.hardware.device`. Not modelled:
clocks that fall under a power cap, ECC, and memory beside weights, KV and activations.
"""

import math
from typing import Any

from attrs import field, frozen
from attrs.validators import ge, gt

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError
from hetmem.hardware.roofline import Array, KernelTime, fraction, roofline
from hetmem.units import to_fj

DTYPES = ("fp16", "bf16", "int8")
MEMORY_POWER = 0.7  # share of a board's dynamic power that saturated memory alone draws (assumed; nothing published)


def _became(group: str) -> dict[str, str]:
    """Return the note of a name that a machine has looked up already, which settings refuse."""
    return {
        "instead": f"is looked up before settings apply; set the fields of {group}, or ask for another card with --gpu"
    }


@frozen(kw_only=True)
class GpuSpec:
    """One GPU.

    While a kernel runs the board draws ``context_w`` and, of what is left to ``tdp_w``, the larger of the utilisation
    of its units and :data:`MEMORY_POWER` times that of its memory.

    Attributes
    ----------
    fp16_tflops, int8_tops : float
        Dense peaks. Where the tensor or FP16 units are missing, those of the units that do run such a model.
    memory_gbs, capacity_gb : float
        Memory: datasheet bandwidth, and capacity in 1e9 bytes.
    tdp_w, idle_w, context_w : float
        Board power: busy, bare idle, and idle with a live context.
    host_link, peer_link : str
        Ids of the links to the host and between GPUs (PCIe where there is no NVLink).
    stream_efficiency : float
        Achieved fraction of the bandwidth for a plain stream.
    """

    name: str
    fp16_tflops: float = field(validator=gt(0))
    int8_tops: float = field(validator=gt(0))
    memory_gbs: float = field(validator=gt(0))
    capacity_gb: float = field(validator=gt(0))
    tdp_w: float = field(validator=gt(0))
    idle_w: float = field(validator=ge(0))
    context_w: float = field(validator=ge(0))
    host_link: str = field(metadata=_became("machine.pcie"))
    peer_link: str = field(metadata=_became("machine.gpu_link"))
    stream_efficiency: float = fraction()

    def __attrs_post_init__(self) -> None:
        if not self.idle_w <= self.context_w <= self.tdp_w:
            raise ValueError("idle_w, context_w and tdp_w must rise")

    @property
    def capacity_bytes(self) -> int:
        """Memory in bytes."""
        return round(self.capacity_gb * 1e9)

    @property
    def memory_bytes_per_s(self) -> float:
        """Peak memory bandwidth in bytes per second."""
        return self.memory_gbs * 1e9

    def peak_flops(self, dtype: str = "fp16") -> float:
        """Return the dense peak in operations per second for ``dtype`` "fp16", "bf16" or "int8"."""
        if dtype not in DTYPES:
            raise ConfigError("dtype", f"expected one of {', '.join(DTYPES)}, not {dtype!r}")
        return (self.int8_tops if dtype == "int8" else self.fp16_tflops) * 1e12

    def roofline_s(self, flops: float | Array, n_bytes: float | Array, dtype: str = "fp16") -> KernelTime:
        """Return seconds of a kernel, and of its memory leg, at the peaks: the slower of the two, no launch."""
        return roofline(
            flops,
            n_bytes,
            peak_flops=self.peak_flops(dtype),
            peak_gbs=self.memory_gbs,
            compute_efficiency=1.0,
            memory_efficiency=1.0,
            launch_s=0.0,
            smooth_q=math.inf,
        )

    def work_fj(self, flops: float, n_bytes: float, dtype: str = "fp16") -> int:
        """Return the femtojoules of work above the power of a live context; how fast it is done does not matter."""
        busy_s = max(flops / self.peak_flops(dtype), MEMORY_POWER * n_bytes / self.memory_bytes_per_s)
        return to_fj((self.tdp_w - self.context_w) * busy_s)

    def stream_s(self, n_bytes: Any) -> Any:
        """Return the seconds to stream ``n_bytes`` from the GPU's memory, no kernel around it."""
        return n_bytes / (self.memory_bytes_per_s * self.stream_efficiency)


def gpu(name: str) -> GpuSpec:
    """Return the catalogue's GPU ``name``; matching ignores case and punctuation.

    Raises
    ------
    UnknownNameError, ConfigError
        When there is no such GPU, or its entry cannot be used.
    """
    return structure(GpuSpec, catalog.entry("gpus", name))
