"""A GPU with the kernel laws of one software stack: seconds for GEMM, attention and elementwise kernels.

The datasheet gives the peaks, a calibration the rest. A calibration belongs to a GPU *and* a stack. A kernel
class that a stack has not measured, or a GPU that nobody has, takes the parameters of its nearest relative
with its own peaks; its grade is then ``derived`` or ``assumed`` and its stated error that of such a transfer.
"""

from typing import Any

import numpy as np
from attrs import field, frozen
from attrs.validators import ge, gt

from hetmem import catalog
from hetmem.catalog.structure import structure
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.gpu import GpuSpec, gpu
from hetmem.hardware.kernel_law import (
    DecodeAttentionLaw,
    ElementwiseLaw,
    GemmLaw,
    MixedAttentionLaw,
    Number,
    Peaks,
    PrefillAttentionLaw,
    SmoothGemmLaw,
    TiledGemmLaw,
    activation_bytes,
    add_bytes,
    norm_bytes,
    rotary_bytes,
)

_ELEMENT_BYTES = {"fp16": 2.0, "bf16": 2.0, "int8": 1.0}
KERNELS = ("gemm", "decode_attention", "prefill_attention", "mixed_attention", "elementwise")


@frozen
class StatedError:
    """|predicted / measured - 1| in per cent over ``rows`` points: median and 90th percentile."""

    median_pct: float
    p90_pct: float
    rows: int


@frozen(kw_only=True)
class KernelLaws:
    """The calibration of a GPU and a stack; ``name`` is ``GPU:stack``.

    Attributes
    ----------
    smooth_gemm, tiled_gemm : law or None
        At most one of them.
    decode_attention, prefill_attention, mixed_attention : law or None
    elementwise : dict of law
        By kernel: ``norm``, ``rotary``, ``activation``; ``add`` where the norm does not add the residual,
        ``qk_norm`` where queries and keys are normalised.
    like : str
        The calibration that lends the classes this one lacks.
    errors, transfer_errors : dict of StatedError
        By class: cross-validated on this GPU, and of these parameters on other GPUs or stacks.
    """

    name: str
    smooth_gemm: SmoothGemmLaw | None = None
    tiled_gemm: TiledGemmLaw | None = None
    decode_attention: DecodeAttentionLaw | None = None
    prefill_attention: PrefillAttentionLaw | None = None
    mixed_attention: MixedAttentionLaw | None = None
    elementwise: dict[str, ElementwiseLaw] = field(factory=dict)
    like: str = ""
    errors: dict[str, StatedError] = field(factory=dict)
    transfer_errors: dict[str, StatedError] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if self.smooth_gemm and self.tiled_gemm:
            raise ValueError("smooth_gemm and tiled_gemm exclude each other")

    @property
    def gpu(self) -> str:
        """Id of the GPU that was measured."""
        return self.name.partition(":")[0]

    @property
    def stack(self) -> str:
        """Name of the software stack that was measured."""
        return self.name.partition(":")[2]

    def law(self, kernel: str) -> Any:
        """Return the law of one of :data:`KERNELS`; None or empty where it was not measured."""
        return self.smooth_gemm or self.tiled_gemm if kernel == "gemm" else getattr(self, kernel)


@frozen(kw_only=True)
class _Processors:
    """What the laws need of a GPU beyond its peaks: SMs, last-level cache, and its default calibration."""

    name: str
    processors: int = field(validator=gt(0))
    l2_mib: float = field(validator=ge(0.0))
    laws: str
    relation: str = field()

    @relation.validator
    def _known(self, _: Any, value: str) -> None:
        if value not in catalog.GRADES:
            raise ValueError(f"'relation' must be one of {', '.join(catalog.GRADES)}")


@frozen
class _Source:
    """Where the law of one class comes from."""

    laws: KernelLaws
    grade: str
    error: StatedError | None


@frozen(slots=False)
class Device:
    """A GPU and a software stack; made by :func:`device`.

    ``spec`` is the datasheet entry, ``stack`` the software of the calibration. Times are those of one kernel
    alone, in seconds; arguments are scalars or arrays and broadcast; the result is a float or an array.
    """

    spec: GpuSpec
    stack: str
    _processors: _Processors
    _sources: dict[str, _Source]
    _laws: dict[str, Any] = field(factory=dict, init=False, repr=False, eq=False)

    @property
    def name(self) -> str:
        """Id of the GPU."""
        return self.spec.name

    def peaks(self, dtype: str = "fp16") -> Peaks:
        """Return the datasheet peaks for ``dtype``.

        Raises
        ------
        ConfigError
            When the data type is unknown.
        """
        return _peaks(self.spec, self._processors, dtype)

    def law(self, kernel: str) -> Any:
        """Return the law of one of :data:`KERNELS`; of elementwise kernels a dict by kernel."""
        if kernel not in self._laws:
            self._laws[kernel] = self._source(kernel).laws.law(kernel)
        return self._laws[kernel]

    def grade(self, kernel: str) -> str:
        """Return ``measured``, ``derived`` or ``assumed`` for a kernel class."""
        return self._source(kernel).grade

    def stated_error(self, kernel: str) -> StatedError | None:
        """Return the error of a kernel class: cross-validated if measured here, else that of a transfer."""
        return self._source(kernel).error

    def gemm_s(self, m: Number, n: Number, k: Number, dtype: str = "fp16") -> Number:
        """Return seconds of a linear kernel of ``m`` tokens, ``n`` outputs and ``k`` inputs."""
        law: GemmLaw = self.law("gemm")
        return _result(law.seconds(self.peaks(dtype), *_sizes(m=m, n=n, k=k)))

    def decode_attention_s(
        self,
        batch: Number,
        q_heads: Number,
        kv_heads: Number,
        head_dim: Number,
        kv_tokens: Number,
        dtype: str = "fp16",
    ) -> Number:
        """Return seconds of decode attention: ``batch`` sequences of ``kv_tokens`` each, one new token."""
        law: DecodeAttentionLaw = self.law("decode_attention")
        sizes = _sizes(batch=batch, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, kv_tokens=kv_tokens)
        return _result(law.seconds(self.peaks(dtype), *sizes))

    def prefill_attention_s(
        self,
        chunk: Number,
        cached: Number,
        q_heads: Number,
        kv_heads: Number,
        head_dim: Number,
        dtype: str = "fp16",
    ) -> Number:
        """Return seconds of causal attention of ``chunk`` new tokens of a sequence after ``cached`` ones."""
        law: PrefillAttentionLaw = self.law("prefill_attention")
        (past,) = _sizes(0, cached=cached)
        new, q, kv, dim = _sizes(chunk=chunk, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim)
        return _result(law.seconds(self.peaks(dtype), new, past, q, kv, dim))

    def layer_elementwise_s(
        self,
        tokens: Number,
        d_model: Number,
        q_heads: Number,
        kv_heads: Number,
        head_dim: Number,
        d_ff: Number,
        gated: bool = True,
        qk_norm: bool = False,
    ) -> Number:
        """Return seconds of the elementwise kernels of an FP16 layer; heads and ``d_ff`` are one GPU's.

        Two norms (and two residual additions where the stack does not fuse them), the rotation of queries
        and keys, the activation; with ``qk_norm`` the norm of queries and keys, timed as a rotation where the
        stack has not measured it.
        """
        laws: dict[str, ElementwiseLaw] = self.law("elementwise")
        peaks = self.peaks()
        m, d, q, kv, hd, ff = _sizes(
            tokens=tokens, d_model=d_model, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, d_ff=d_ff
        )
        fused = "add" not in laws
        heads = rotary_bytes(m, q, kv, hd)
        total = 2 * laws["norm"].seconds(peaks, norm_bytes(m, d, fused_add=fused))
        total = total + laws["rotary"].seconds(peaks, heads)
        total = total + laws["activation"].seconds(peaks, activation_bytes(m, ff, gated))
        if not fused:
            total = total + 2 * laws["add"].seconds(peaks, add_bytes(m, d))
        if qk_norm:
            total = total + laws.get("qk_norm", laws["rotary"]).seconds(peaks, heads)
        return _result(total)

    def _source(self, kernel: str) -> _Source:
        if kernel not in self._sources:
            raise UnknownNameError("kernel class", kernel, KERNELS)
        return self._sources[kernel]


def peaks(name: str, dtype: str = "fp16") -> Peaks:
    """Return the datasheet peaks of the GPU ``name``; errors as :func:`device`."""
    spec = gpu(name)
    return _peaks(spec, structure(_Processors, catalog.entry("processors", spec.name)), dtype)


def _peaks(spec: GpuSpec, processors: _Processors, dtype: str) -> Peaks:
    return Peaks(
        spec.peak_flops(dtype),
        spec.memory_bytes_per_s,
        processors.processors,
        processors.l2_mib * 2**20,
        _ELEMENT_BYTES[dtype],
    )


def device(name: str, stack: str | None = None) -> Device:
    """Return the GPU ``name`` with the kernel laws of ``stack`` (None: the GPU's default).

    Raises
    ------
    UnknownNameError
        When the catalogue has no such GPU, or no such stack for it; it suggests the nearest.
    ConfigError
        When an entry cannot be used.
    """
    spec = gpu(name)
    processors = structure(_Processors, catalog.entry("processors", spec.name))
    default = _laws(processors.laws)
    chosen = default
    if stack is not None and catalog.normalize(stack) != catalog.normalize(default.stack):
        own = tuple(law.partition(":")[2] for law in catalog.ids("kernel_laws") if law.startswith(f"{spec.name}:"))
        try:
            chosen = _laws(f"{spec.name}:{stack}")
        except UnknownNameError:
            raise UnknownNameError("stack", stack, tuple(dict.fromkeys((default.stack, *own)))) from None
    sources = {kernel: _find(kernel, spec.name, chosen, processors) for kernel in KERNELS}
    return Device(spec, chosen.stack, processors, sources)


def _laws(name: str) -> KernelLaws:
    return structure(KernelLaws, catalog.entry("kernel_laws", name))


def _find(kernel: str, gpu_id: str, laws: KernelLaws, processors: _Processors) -> _Source:
    """Return the first calibration with a law for ``kernel``: the given one, then those that it is like."""
    seen = [laws]
    while not seen[-1].law(kernel):
        lender = seen[-1].like or processors.laws
        if lender in [each.name for each in seen]:
            raise ConfigError(f"kernel_laws.{laws.name}", f"no law for {kernel}, here or in what it is like")
        seen.append(_laws(lender))
    found = seen[-1]
    if found is laws and found.gpu == gpu_id:
        return _Source(found, "measured", _worst(found.errors, kernel))
    grade = "derived" if processors.relation == "measured" else processors.relation
    return _Source(found, grade, _worst(found.transfer_errors, kernel))


def _worst(errors: dict[str, StatedError], kernel: str) -> StatedError | None:
    """Return the error of a class; of elementwise kernels that of the worst one."""
    known = [error for label, error in errors.items() if label.partition(".")[0] == kernel]
    return max(known, key=lambda error: error.median_pct, default=None)


def _sizes(least: int = 1, /, **sizes: Number) -> list[Any]:
    arrays = []
    for name, value in sizes.items():
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or not np.all(np.isfinite(array) & (array >= least)):
            raise ConfigError(name, f"expected numbers of at least {least}, not {value!r}")
        arrays.append(array)
    return arrays


def _result(seconds: Any) -> Number:
    return float(seconds) if np.ndim(seconds) == 0 else seconds
