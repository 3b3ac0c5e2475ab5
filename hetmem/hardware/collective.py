"""All-reduce between GPUs: a ring over the link, with the faster of a short- and a long-message protocol.

A ring moves ``2 (n-1)/n`` of the message over every link, in ``2 (n-1)`` steps. Collective libraries send
short messages by a protocol with little latency and little bandwidth, long ones the other way round, and
pick the faster; the time is the smaller of two affine laws. Ignored: trees and in-switch reduction, the
plateau between the protocols, several nodes, interference with compute.

Fitted on the even rows of a table of NCCL all-reduce on A100 NVLink (2, 4, 8 GPUs; 512 B to 512 MiB) and
tested on the odd ones: median error 7 %, 90th percentile 15 %, maximum 40 % at the change of protocol (1
MiB on two GPUs).
"""

from typing import Any, TypeAlias

import numpy as np
from attrs import field, frozen
from attrs.validators import ge, gt
from numpy.typing import NDArray

from hetmem.errors import ConfigError

Array: TypeAlias = NDArray[Any]


@frozen(kw_only=True)
class RingProtocol:
    """One protocol: ``start_s + step_s`` per ring step, and ``bus_gbs`` over each link, one direction."""

    start_s: float = field(validator=ge(0))
    step_s: float = field(default=0.0, validator=ge(0))
    bus_gbs: float = field(validator=gt(0))


def allreduce_s(protocols: tuple[RingProtocol, ...], n_bytes: float | Array, gpus: int | Array) -> float | Array:
    """Return the seconds to sum ``n_bytes`` per GPU over ``gpus`` by the fastest protocol; one takes none.

    Raises
    ------
    ConfigError
        On negative bytes or fewer than one GPU.
    """
    size, n = np.asarray(n_bytes, dtype=float), np.asarray(gpus, dtype=float)
    if not np.all(np.isfinite(size) & (size >= 0)):
        raise ConfigError("bytes", f"expected zero or more, not {n_bytes!r}")
    if not np.all(np.isfinite(n) & (n >= 1) & (n == np.floor(n))):
        raise ConfigError("gpus", f"expected a whole number from 1, not {gpus!r}")
    steps = 2 * (n - 1)
    crossing_gb = steps / n * size * 1e-9
    times = [p.start_s + p.step_s * steps + crossing_gb / p.bus_gbs for p in protocols]
    t = np.where((n == 1) | (size == 0), 0.0, np.min(np.broadcast_arrays(*times), axis=0))
    return float(t) if t.ndim == 0 else t
