"""What one GPU kernel costs in a run: its unloaded time, and how long it keeps the memory busy.

Under a calibration (:mod:`hetmem.hardware.device`) a kernel is priced by the law of its class at its shape;
linear work whose shape is not known, such as the hot neurons of a layer, by the law of linear kernels without
tiles. The ideal GPU is the naive roofline: the slower of compute and memory at the datasheet's peaks, no launch
overhead. The memory leg is the kernel's bytes at the rate of a plain stream, never longer than the kernel itself
(activations that stay in the cache need no memory).
"""

from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from attrs import evolve, frozen

from hetmem.hardware.device import Device, device
from hetmem.hardware.gpu import GpuSpec
from hetmem.hardware.kernel_law import Peaks, add_bytes

IDEAL = "ideal"  # in place of a software stack: the naive roofline


class Gemm(NamedTuple):
    """``groups`` products of ``m`` tokens, ``n`` outputs and ``k`` inputs in one launch."""

    m: float
    n: float
    k: float
    groups: float = 1.0


class DecodeAttention(NamedTuple):
    """One query per sequence over ``kv_tokens`` each; ``element_bytes`` is the width of the cached values."""

    batch: float
    q_heads: float
    kv_heads: float
    head_dim: float
    kv_tokens: float
    element_bytes: float


class PrefillAttention(NamedTuple):
    """``launches`` of a chunk of ``chunk`` new tokens after ``cached`` ones."""

    launches: int
    chunk: float
    cached: float
    q_heads: float
    kv_heads: float
    head_dim: float


class MixedAttention(NamedTuple):
    """Both in one launch: the chunks of a step and its decodes."""

    prefill: PrefillAttention
    decode: DecodeAttention


class Elementwise(NamedTuple):
    """A kernel of ``kind``; a norm holds ``adds`` residual additions of ``values`` values, which a stack may split."""

    kind: str
    adds: int = 0
    values: float = 0.0


Call: TypeAlias = Gemm | DecodeAttention | PrefillAttention | MixedAttention | Elementwise


@frozen(slots=False, eq=False)
class GpuLaw:
    """The times of one GPU's kernels.

    Parameters
    ----------
    spec
        The GPU, as the run believes it.
    calibration
        Its kernel laws; None for the ideal GPU.
    """

    spec: GpuSpec
    calibration: Device | None

    @property
    def stack(self) -> str:
        """The software stack of the calibration, or ``ideal``."""
        return IDEAL if self.calibration is None else self.calibration.stack

    @property
    def efficiencies(self) -> tuple[float, float]:
        """Achieved fractions of the peaks in linear kernels: of compute, and of memory, at most that of a stream."""
        if self.calibration is None:
            return 1.0, 1.0
        law = self.calibration.law("gemm")
        return law.compute_efficiency, min(law.memory_efficiency, self.spec.stream_efficiency)

    def legs_s(self, flops: Any, n_bytes: Any, dtype: str = "fp16", call: Call | None = None) -> tuple[Any, Any]:
        """Return the seconds of a kernel alone, and of its memory leg.

        Parameters
        ----------
        flops, n_bytes
            Its operations and bytes; without either it takes no time. Arrays, of kernels of unknown shape.
        dtype
            The units that multiply.
        call
            Its shape; None for linear work of unknown shape.
        """
        if self.calibration is None:
            return self.spec.roofline_s(flops, n_bytes, dtype)
        peaks = self._peaks[dtype]
        if isinstance(n_bytes, np.ndarray):
            whole = self.calibration.law("gemm").shapeless_s(peaks, flops, n_bytes) * ((flops > 0) | (n_bytes > 0))
            return whole, np.minimum(whole, self.spec.stream_s(n_bytes))
        if not flops and not n_bytes:
            return 0.0, 0.0
        if call is None:
            whole = self.calibration.law("gemm").shapeless_s(peaks, flops, n_bytes)
        else:
            whole = self._seconds(self.calibration, peaks, n_bytes, call)
        return whole, min(whole, self.spec.stream_s(n_bytes))

    @cached_property
    def _peaks(self) -> dict[str, Peaks]:
        assert self.calibration is not None
        return {dtype: self.calibration.peaks(dtype) for dtype in ("fp16", "int8")}

    def _seconds(self, laws: Device, peaks: Peaks, n_bytes: float, call: Call) -> float:
        seconds: float
        match call:
            case Gemm():
                seconds = laws.law("gemm").grouped_s(peaks, call.m, call.n, call.k, n_bytes, call.groups)
            case DecodeAttention():
                seconds = laws.law("decode_attention").seconds(self._cache(peaks, call), *call[:5])
            case PrefillAttention():
                seconds = call.launches * laws.law("prefill_attention").seconds(peaks, *call[1:])
            case MixedAttention():
                alone = self._seconds(laws, peaks, 0.0, call.prefill)
                seconds = laws.law("mixed_attention").seconds(self._cache(peaks, call.decode), alone, *call.decode[:5])
            case Elementwise():
                seconds = self._elementwise(laws, peaks, n_bytes, call)
        return float(seconds)

    def _cache(self, peaks: Peaks, call: DecodeAttention) -> Peaks:
        """Return the peaks with the width of the cached values."""
        return peaks if call.element_bytes == peaks.element_bytes else evolve(peaks, element_bytes=call.element_bytes)

    def _elementwise(self, laws: Device, peaks: Peaks, n_bytes: float, call: Elementwise) -> float:
        known = laws.law("elementwise")
        if not call.adds or "add" not in known:
            return float(known.get(call.kind, known["rotary"]).seconds(peaks, n_bytes))
        # The sum that a fused norm writes as well is read and written by an addition of its own.
        fused = 4 * call.values * call.adds
        add = known["add"].seconds(peaks, add_bytes(1.0, call.values))
        return float(known[call.kind].seconds(peaks, n_bytes - fused) + call.adds * add)


def gpu_law(spec: GpuSpec, stack: str | None = None) -> GpuLaw:
    """Return the law of ``spec`` under a software stack (None: the GPU's default), or the ideal one.

    Raises
    ------
    UnknownNameError
        When the GPU has no calibration of that name.
    """
    if stack == IDEAL:
        return GpuLaw(spec, None)
    return GpuLaw(spec, evolve(device(spec.name, stack), spec=spec))
