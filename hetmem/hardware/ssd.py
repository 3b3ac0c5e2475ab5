"""NVMe SSDs: the time of many requests of one size at a queue depth.

Two limits: the bandwidth and, with few requests under way, their latency. Ignored: the controller's request rate,
garbage collection, the write cache and its exhaustion, the file system, and a mixture of reads and writes. Bandwidth is
a datasheet figure; the latency is assumed (40 to 80 us for 4 KB at depth one is usual) and no measured sweep backs the
law between the limits.
"""

import math

from attrs import field, frozen
from attrs.validators import ge, gt, optional

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError
from hetmem.units import to_fj

DEFAULT_QUEUE_DEPTH = 32  # what one thread of an asynchronous reader keeps under way (assumed)


@frozen(kw_only=True)
class Ssd:
    """One SSD: ``*_gbs`` in GB/s, ``latency_s`` of one small request, ``capacity_gb`` in 1e9 bytes."""

    name: str
    read_gbs: float = field(validator=gt(0))
    write_gbs: float = field(validator=gt(0))
    latency_s: float = field(validator=ge(0))
    pj_per_bit: float = field(validator=ge(0))
    idle_w: float | None = field(default=None, validator=optional(ge(0)))
    capacity_gb: float = field(validator=gt(0))

    @property
    def capacity_bytes(self) -> int:
        """Capacity in bytes."""
        return round(self.capacity_gb * 1e9)

    def transfer_s(
        self,
        n_bytes: float,
        request_bytes: float | None = None,
        *,
        queue_depth: int | None = None,
        write: bool = False,
    ) -> float:
        """Return the seconds to move ``n_bytes`` in requests of ``request_bytes``.

        Parameters
        ----------
        n_bytes : float
            Bytes in all; the last request may be partly filled and takes as long as a full one.
        request_bytes : float, optional
            Bytes of each request at a random address; None is one sequential transfer.
        queue_depth : int, optional
            Requests under way at once, 32 unless said.
        write : bool
            Write instead of read.

        Raises
        ------
        ConfigError
            On negative bytes, or a request size or queue depth that is not positive.
        """
        if not (math.isfinite(n_bytes) and n_bytes >= 0):
            raise ConfigError("n_bytes", f"expected zero or more, not {n_bytes!r}")
        if n_bytes == 0:
            return 0.0
        rate = (self.write_gbs if write else self.read_gbs) * 1e9
        if request_bytes is None:
            return self.latency_s + n_bytes / rate
        if not (math.isfinite(request_bytes) and request_bytes > 0):
            raise ConfigError("request_bytes", f"expected positive bytes, not {request_bytes!r}")
        depth = DEFAULT_QUEUE_DEPTH if queue_depth is None else queue_depth
        if depth < 1:
            raise ConfigError("queue_depth", f"expected at least 1, not {queue_depth!r}")
        n = math.ceil(n_bytes / request_bytes)
        alone_s = request_bytes / rate
        paced_s = self.latency_s + n * alone_s
        rounds_s = math.ceil(n / depth) * (self.latency_s + alone_s)  # each slot waits for its own request
        return max(paced_s, rounds_s)

    def energy_fj(self, n_bytes: float) -> int:
        """Return the femtojoules to move ``n_bytes``."""
        return to_fj(8 * n_bytes * self.pj_per_bit * 1e-12)


def ssd(name: str) -> Ssd:
    """Return the catalogue's SSD ``name``; see :func:`hetmem.hardware.dram.memory` for the errors."""
    return structure(Ssd, catalog.entry("ssds", name))
