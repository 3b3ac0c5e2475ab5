"""Host processors: the roofline of kernels that run beside the GPU, and power.

Modelled as one unit with a vector peak and the bandwidth of its own memory. Ignored: NUMA between sockets,
caches, and cores taken by the host's other work. The efficiencies are assumed, as the catalogue says.
"""

from attrs import field, frozen
from attrs.validators import ge, gt, optional

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.hardware.roofline import Array, KernelTime, fraction, roofline


@frozen(kw_only=True)
class CpuSpec:
    """One host processor.

    Attributes
    ----------
    fp32_tflops, memory_gbs : float
        Peak, and bandwidth of the memory attached to it.
    vector_tflops : float or None
        Peak for products of a matrix with one vector, where matrix units do not reach them.
    idle_w, active_w : float
        Package power, idle and busy.
    compute_efficiency, memory_efficiency, launch_s, smooth_q : float
        Constants of :func:`hetmem.hardware.roofline.roofline`.
    """

    name: str
    fp32_tflops: float = field(validator=gt(0))
    vector_tflops: float | None = field(default=None, validator=optional(gt(0)))
    memory_gbs: float = field(validator=gt(0))
    idle_w: float = field(validator=ge(0))
    active_w: float = field(validator=ge(0))
    compute_efficiency: float = fraction()
    memory_efficiency: float = fraction()
    launch_s: float = field(validator=ge(0))
    smooth_q: float = field(validator=ge(1))

    def __attrs_post_init__(self) -> None:
        if self.idle_w > self.active_w:
            raise ValueError("active_w must be at least idle_w")

    @property
    def memory_bytes_per_s(self) -> float:
        """Peak memory bandwidth in bytes per second."""
        return self.memory_gbs * 1e9

    def legs_s(self, flops: float | Array, n_bytes: float | Array, *, vectors: bool = False) -> KernelTime:
        """Return seconds of a kernel alone, fork and join included, and of its memory leg.

        ``vectors`` says that it multiplies matrices with single vectors.
        """
        peak = self.vector_tflops if vectors and self.vector_tflops is not None else self.fp32_tflops
        return roofline(
            flops,
            n_bytes,
            peak_flops=peak * 1e12,
            peak_gbs=self.memory_gbs,
            compute_efficiency=self.compute_efficiency,
            memory_efficiency=self.memory_efficiency,
            launch_s=self.launch_s,
            smooth_q=self.smooth_q,
        )


def cpu(name: str) -> CpuSpec:
    """Return the catalogue's host processor ``name``.

    Raises
    ------
    UnknownNameError, ConfigError
        When there is no such processor, or its entry cannot be used.
    """
    return structure(CpuSpec, catalog.entry("cpus", name))
