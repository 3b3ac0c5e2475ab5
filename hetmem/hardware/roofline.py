"""The roofline of one kernel: launch overhead, achieved peaks, smooth maximum of compute and memory time.

``t = t0 + ((F / (ec * peak))**q + (B / (em * bw))**q) ** (1/q)``. A small ``q`` says that compute and
memory time overlap poorly and nearly add; a large one is the classic hard maximum. The form follows
measurements of linear kernels on A100, H100, RTX 4090 and RTX PRO 6000, where one set of constants per GPU
and software stack predicts an unseen model with a median error of 4 % (up to 32 tokens) to 9 % (33 to 256
tokens). Ignored: tile and wave quantisation, caches (weights that fit in a large L2 are read faster than
DRAM allows when a benchmark repeats one kernel), and occupancy; attention kernels with few heads need more
than this.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from attrs import field
from numpy.typing import NDArray

from hetmem.errors import ConfigError

Array: TypeAlias = NDArray[Any]


def fraction() -> Any:
    """Return an attrs field that holds an achieved fraction of a peak, in (0, 1]."""

    def check(_: object, attribute: Any, value: float) -> None:
        if not 0 < value <= 1:
            raise ValueError(f"{attribute.name!r} must lie in (0, 1]: {value}")

    return field(validator=check)


class KernelTime(NamedTuple):
    """Seconds of a kernel alone, launch included, and of its memory leg: floats, or arrays if the work is."""

    total_s: Any
    memory_s: Any


def smooth_max(a: float | Array, b: float | Array, q: float) -> Any:
    """Return the ``q``-norm of two times of zero or more, scaled so that no power overflows.

    ``q`` of 1 adds them, infinity is the hard maximum.
    """
    longer: Any
    shorter: Any
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        longer, shorter = np.maximum(a, b), np.minimum(a, b)
        ratio = np.divide(shorter, longer, out=np.zeros_like(longer), where=longer > 0)
    else:  # a step prices some ten kernels one by one, and scalars are thirty times cheaper without numpy
        longer, shorter = (a, b) if a > b else (b, a)
        ratio = shorter / longer if longer else 0.0
    return longer * (1 + ratio**q) ** (1 / q)


def roofline(
    flops: float | Array,
    n_bytes: float | Array,
    *,
    peak_flops: float,
    peak_gbs: float,
    compute_efficiency: float,
    memory_efficiency: float,
    launch_s: float,
    smooth_q: float,
) -> KernelTime:
    """Return the time of kernels of ``flops`` operations that move ``n_bytes``; the two broadcast.

    Parameters
    ----------
    flops, n_bytes : float or array
        Operations and bytes, zero or more.
    peak_flops, peak_gbs : float
        Datasheet peaks: operations per second, GB/s.
    compute_efficiency, memory_efficiency : float
        Achieved fractions of the peaks.
    launch_s : float
        Fixed time of a kernel.
    smooth_q : float
        Exponent of the smooth maximum, at least 1; infinity is the hard maximum.

    Raises
    ------
    ConfigError
        On negative or non-finite work.
    """
    compute_s = flops / (compute_efficiency * peak_flops)
    memory_s = n_bytes / (memory_efficiency * peak_gbs * 1e9)
    if isinstance(compute_s, np.ndarray) or isinstance(memory_s, np.ndarray):
        valid = bool(np.all(np.isfinite(compute_s) & (compute_s >= 0) & np.isfinite(memory_s) & (memory_s >= 0)))
        compute_s, memory_s = np.broadcast_arrays(compute_s, memory_s)
    else:
        valid = 0 <= compute_s < math.inf and 0 <= memory_s < math.inf
    if not valid:
        named = "flops" if not np.all(np.isfinite(flops) & (np.asarray(flops) >= 0)) else "bytes"
        raise ConfigError(named, "expected finite numbers, zero or more")
    return KernelTime(launch_s + smooth_max(compute_s, memory_s, smooth_q), memory_s)
