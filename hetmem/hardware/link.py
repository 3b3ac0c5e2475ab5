"""Links: the time of one transfer by direction and path, and what it costs in joules.

A transfer takes a fixed latency and its bytes over the achieved rate. PCIe has a rate per direction and per
path: pinned memory goes by DMA, pageable memory through a staging buffer in two stages, slower per byte at
first (two slopes). Peer links (NVLink, DIMM-link) have one path, the same both ways. The two directions are
separate servers in a machine; ignored is that some hosts slow one direction down while both are busy (11 of
24.8 GB/s host to device was measured on one A100 box), and everything below a packet.

Errors of the transfer time against a size sweep on PCIe 3 x16 (Quadro RTX 6000, 4 KiB to 1 MiB, the sweep
that the constants were fitted to): pinned 0.9 and 0.2 % median, 11 and 2 % maximum; pageable 0.7 and 0.4 %,
4 and 1.5 %. The other links have no sweep: their rate is measured where the grade says so, their latency is
not.
"""

from typing import Any, TypeAlias, overload

import numpy as np
from attrs import field, frozen
from attrs.validators import ge, gt, optional
from numpy.typing import NDArray

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError
from hetmem.hardware.collective import RingProtocol, allreduce_s
from hetmem.units import to_fj

Array: TypeAlias = NDArray[Any]

DIRECTIONS = ("h2d", "d2h")


@frozen(kw_only=True)
class LinkPath:
    """One direction of one path: ``latency_s + bytes / gbs``, the first ``knee_bytes`` at ``near_gbs``."""

    latency_s: float = field(validator=ge(0))
    gbs: float = field(validator=gt(0))
    knee_bytes: float | None = field(default=None, validator=optional(gt(0)))
    near_gbs: float | None = field(default=None, validator=optional(gt(0)))

    def __attrs_post_init__(self) -> None:
        if (self.knee_bytes is None) != (self.near_gbs is None):
            raise ValueError("knee_bytes and near_gbs come together")

    @overload
    def transfer_s(self, n_bytes: float) -> float: ...
    @overload
    def transfer_s(self, n_bytes: Array) -> Array: ...
    def transfer_s(self, n_bytes: float | Array) -> float | Array:
        """Return the seconds of one transfer, latency included."""
        size = np.asarray(n_bytes, dtype=float)
        if not np.all(np.isfinite(size) & (size >= 0)):
            raise ConfigError("bytes", f"expected zero or more, not {n_bytes!r}")
        t = self.latency_s + size / (self.gbs * 1e9)
        if self.knee_bytes is not None and self.near_gbs is not None:
            t = t + np.minimum(size, self.knee_bytes) * (1 / self.near_gbs - 1 / self.gbs) * 1e-9
        return float(t) if np.ndim(t) == 0 else t


@frozen(kw_only=True)
class Link:
    """One link of a machine, with a peak and an achieved rate per direction and path.

    Attributes
    ----------
    peak_gbs : float
        What the standard allows in one direction, GB/s; no transfer is faster.
    peer : LinkPath, optional
        The one path of a link between equals.
    h2d_pinned, d2h_pinned, h2d_pageable, d2h_pageable : LinkPath, optional
        The paths of a link between a host and a device.
    allreduce : tuple of RingProtocol
        Collectives between GPUs on this link; none if empty.
    pj_per_bit, idle_w : float
        Energy of a bit moved; power while the machine is on.
    """

    name: str
    peak_gbs: float = field(validator=gt(0))
    peer: LinkPath | None = None
    h2d_pinned: LinkPath | None = None
    d2h_pinned: LinkPath | None = None
    h2d_pageable: LinkPath | None = None
    d2h_pageable: LinkPath | None = None
    allreduce: tuple[RingProtocol, ...] = ()
    pj_per_bit: float = field(validator=ge(0))
    idle_w: float | None = field(default=None, validator=optional(ge(0)))

    def __attrs_post_init__(self) -> None:
        paths = (self.peer, self.h2d_pinned, self.d2h_pinned, self.h2d_pageable, self.d2h_pageable)
        if not any(paths):
            raise ValueError("a link needs a path: 'peer', or 'h2d_pinned' and 'd2h_pinned'")
        if any(p is not None and max(p.gbs, p.near_gbs or 0.0) > self.peak_gbs for p in paths):
            raise ValueError("a path is faster than peak_gbs")
        if any(protocol.bus_gbs > self.peak_gbs for protocol in self.allreduce):
            raise ValueError("a ring protocol is faster than peak_gbs")

    def path(self, *, pinned: bool = True, direction: str = "h2d") -> LinkPath:
        """Return the constants of one direction and path.

        Raises
        ------
        ConfigError
            On a direction other than "h2d" and "d2h", or a path that the link has not.
        """
        if direction not in DIRECTIONS:
            raise ConfigError("direction", f"expected one of {', '.join(DIRECTIONS)}, not {direction!r}")
        kind = "pinned" if pinned else "pageable"
        found: LinkPath | None = getattr(self, f"{direction}_{kind}")
        if found is None and pinned:
            found = self.peer
        if found is None:
            raise ConfigError("pinned", f"{self.name} has no {kind} path")
        return found

    @overload
    def transfer_s(self, bytes: float, pinned: bool = True, direction: str = "h2d") -> float: ...
    @overload
    def transfer_s(self, bytes: Array, pinned: bool = True, direction: str = "h2d") -> Array: ...
    def transfer_s(self, bytes: float | Array, pinned: bool = True, direction: str = "h2d") -> float | Array:
        """Return the seconds of one transfer of ``bytes``, its latency included.

        Parameters
        ----------
        bytes : float or array
            Bytes of the transfer; the result has the same shape.
        pinned : bool
            From pinned memory; False goes through the staging copies of pageable memory.
        direction : {"h2d", "d2h"}
            Host to device or back; the same on links between equals.

        Raises
        ------
        ConfigError
            On negative bytes, an unknown direction or a path that the link has not.
        """
        return self.path(pinned=pinned, direction=direction).transfer_s(bytes)

    @overload
    def allreduce_s(self, bytes: float, gpus: int) -> float: ...
    @overload
    def allreduce_s(self, bytes: Array, gpus: int | Array) -> Array: ...
    def allreduce_s(self, bytes: float | Array, gpus: int | Array) -> float | Array:
        """Return the seconds of one all-reduce of ``bytes`` per GPU over ``gpus`` on this link.

        Raises
        ------
        ConfigError
            On negative bytes, fewer than one GPU, or a link that carries no collectives.
        """
        if not self.allreduce:
            raise ConfigError("allreduce", f"{self.name} carries no collectives between GPUs")
        return allreduce_s(self.allreduce, bytes, gpus)

    def energy_fj(self, n_bytes: float) -> int:
        """Return the femtojoules to move ``n_bytes``."""
        return to_fj(8 * n_bytes * self.pj_per_bit * 1e-12)


def link(name: str) -> Link:
    """Return the catalogue's link ``name``.

    >>> round(link("pcie4-x16").transfer_s(1e9), 4)
    0.0403

    Raises
    ------
    UnknownNameError, ConfigError
        When there is no such link, or its entry cannot be used.
    """
    return structure(Link, catalog.entry("links", name))
