"""Fitting a kernel law to measured points, choosing between laws, and stating the error of the fit.

Least squares on the logarithm of time with a soft-L1 loss, so that a few outliers do not pull the fit. GEMM
points count such that up to 32 tokens, up to 256 and above weigh the same. Every parameter has a weak prior at
a common starting point (a factor of two is one standard deviation, ten per cent that of a point): it decides
only what the points leave open. A class with several laws takes the one with the lowest cross-validated error.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from hetmem.errors import ConfigError
from hetmem.hardware.device import StatedError
from hetmem.hardware.kernel_law import (
    DecodeAttentionLaw,
    ElementwiseLaw,
    MixedAttentionLaw,
    Peaks,
    PrefillAttentionLaw,
    SmoothGemmLaw,
    TiledGemmLaw,
    decode_attention_bytes,
    gemm_bytes,
    prefill_attention_bytes,
)
from hetmem.study.kernel_form import Points

Array: TypeAlias = NDArray[Any]

_FOLDS = 5
_NAIVE_LAUNCH_S = 5e-6
_POINT_SD = 0.1  # of log time: where the loss turns from square to linear
_PRIOR_SD = float(np.log(2.0))


class KernelLaw(Protocol):
    """Any of the laws: seconds from the peaks and the variables of its points."""

    def seconds(self, peaks: Peaks, *variables: Any) -> Any: ...


@frozen
class _Variant:
    """A law to fit: its class, its fixed fields, and (start, lowest, highest) of each free one."""

    law: type[Any]
    free: Mapping[str, tuple[float, float, float]]
    fixed: Mapping[str, Any] = {}

    def make(self, values: Array) -> KernelLaw:
        law: KernelLaw = self.law(**dict(zip(self.free, values.tolist(), strict=True)), **self.fixed)
        return law


_SMOOTH = {
    "launch_us": (5.0, 0.1, 50.0),
    "compute_efficiency": (0.75, 0.05, 1.0),
    "memory_efficiency": (0.85, 0.05, 1.0),
    "sharpness": (1.6, 1.0, 10.0),
}
_TILED = {
    **_SMOOTH,
    "tile_penalty": (0.2, 0.01, 2.0),
    "pipeline_depth": (40.0, 1.0, 1000.0),
    "split_us": (4.0, 0.05, 50.0),
}
_DECODE = {
    "launch_us": (8.0, 0.1, 50.0),
    "copy_us": (3.0, 0.01, 50.0),
    "combine_us": (5.0, 0.01, 50.0),
    "unit_us": (0.01, 1e-5, 1.0),
    "memory_efficiency": (0.85, 0.05, 1.0),
    "processor_gbs": (23.0, 1.0, 300.0),
    "sharpness": (2.5, 1.0, 10.0),
}
_PREFILL = {
    "launch_us": (6.0, 0.1, 50.0),
    "compute_efficiency": (0.6, 0.02, 1.0),
    "wave_us": (3.0, 0.01, 50.0),
    "combine_us": (3.0, 0.01, 50.0),
    "diagonal_work": (1.3, 1.0, 10.0),
}
_WHOLE_KV = {name: limits for name, limits in _PREFILL.items() if name != "combine_us"}
_MIXED = {
    "prefill_share": (1.0, 0.2, 5.0),
    "decode_us": (1.0, 0.001, 50.0),
    "memory_efficiency": (0.5, 0.05, 1.0),
    "serial_us": (5.0, 0.01, 200.0),
}
_ELEMENTWISE = {
    "launch_us": (2.5, 0.1, 50.0),
    "memory_efficiency": (0.7, 0.02, 1.0),
    "cache_efficiency": (1.5, 0.05, 20.0),
    "cache_share": (0.5, 0.05, 1.0),
}
_VARIANTS: Mapping[str, tuple[_Variant, ...]] = {
    "gemm": (_Variant(SmoothGemmLaw, _SMOOTH), _Variant(TiledGemmLaw, _TILED)),
    "decode_attention": (
        _Variant(DecodeAttentionLaw, _DECODE, {"blocks_per_processor": 2}),
        _Variant(DecodeAttentionLaw, _DECODE, {"blocks_per_processor": 1}),
    ),
    "prefill_attention": (
        _Variant(PrefillAttentionLaw, _WHOLE_KV, {"splits_kv": False, "combine_us": 0.0}),
        _Variant(PrefillAttentionLaw, _PREFILL, {"splits_kv": True}),
    ),
    "mixed_attention": (_Variant(MixedAttentionLaw, _MIXED),),
    "elementwise": (_Variant(ElementwiseLaw, _ELEMENTWISE),),
}


@frozen(eq=False)
class Fit:
    """A fitted law of one kernel class.

    ``in_sample`` is its error on the points of the fit, ``cross_validated`` on points left out in turn by
    whole groups; ``at_bound`` names the parameters that ended on a bound: their value is not a measurement.
    """

    kernel: str
    kind: str
    law: KernelLaw
    in_sample: StatedError
    cross_validated: StatedError
    at_bound: tuple[str, ...]


def error(law: KernelLaw, peaks: Peaks, points: Points) -> StatedError:
    """Return the error of ``law`` on ``points``."""
    return error_of(law.seconds(peaks, *points.variables.values()), points.time_s)


def naive_seconds(peaks: Peaks, points: Points) -> Array:
    """Return the baseline that a law must beat: the roofline at the datasheet peaks, plus 5 microseconds."""
    v = points.variables
    flops: Any = 0.0
    if points.kernel == "gemm":
        flops, moved = 2 * v["m"] * v["n"] * v["k"], gemm_bytes(peaks, **v)
    elif points.kernel == "decode_attention":
        moved = decode_attention_bytes(peaks, **v)
    elif points.kernel == "prefill_attention":
        keys = v["cached"] + v["chunk"] / 2
        flops = 4 * v["chunk"] * keys * v["q_heads"] * v["head_dim"]
        moved = prefill_attention_bytes(peaks, **v)
    elif points.kernel == "mixed_attention":  # the prefill as measured alone; the decodes at the datasheet's rate
        decodes = {name: values for name, values in v.items() if name != "prefill_s"}
        moved, flops = decode_attention_bytes(peaks, **decodes), v["prefill_s"] * peaks.flops
    else:
        moved = v["moved_bytes"]
    roof = np.maximum(flops / peaks.flops, moved / peaks.bandwidth_bytes_s)
    return np.asarray(roof + _NAIVE_LAUNCH_S)


def by_size(points: Points) -> dict[str, Points]:
    """Return the points by size class, all of them first: GEMM by tokens, decode attention by MiB of KV."""
    name = label(points.kernel, points.kind)
    classes = {name: points}
    v = points.variables
    if points.kernel == "gemm":
        m = v["m"]
        masks = {"to_32": m <= 32, "33_to_256": (m > 32) & (m <= 256), "above_256": m > 256}
    elif points.kernel == "decode_attention":
        kv_bytes = 4 * v["batch"] * v["kv_tokens"] * v["kv_heads"] * v["head_dim"]
        masks = {"above_32_mib": kv_bytes > 32 * 2**20}
    else:
        masks = {}
    return classes | {f"{name}.{key}": points.take(mask) for key, mask in masks.items() if mask.any()}


def fit(points: Points, peaks: Peaks) -> Fit:
    """Return the law of the points' class that predicts left-out points best, fitted on all of them.

    Raises
    ------
    ConfigError
        When there are fewer points than twice the parameters of the smallest law, or all of one size.
    """
    variants = [v for v in _VARIANTS[points.kernel] if len(points) >= 2 * len(v.free)]
    if not variants:
        least = 2 * min(len(v.free) for v in _VARIANTS[points.kernel])
        raise ConfigError(label(points.kernel, points.kind), f"{len(points)} points; at least {least} are needed")
    if all(len(np.unique(values)) == 1 for values in points.variables.values()):
        raise ConfigError(label(points.kernel, points.kind), "all points have the same size")
    folds = _folds(points)
    left_out = [_predict_left_out(variant, points, peaks, folds) for variant in variants]
    weights = _weights(points)
    scores = [float(np.average(np.abs(np.log(times / points.time_s)), weights=weights)) for times in left_out]
    best = int(np.argmin(scores))
    values = _solve(variants[best], points, peaks)
    law = variants[best].make(values)
    bounds = variants[best].free.items()
    touching = tuple(
        name
        for (name, (_, low, high)), value in zip(bounds, values.tolist(), strict=True)
        if value <= low * 1.001 or value >= high * 0.999
    )
    crossed = error_of(left_out[best], points.time_s)
    return Fit(points.kernel, points.kind, law, error(law, peaks, points), crossed, touching)


def label(kernel: str, kind: str) -> str:
    """Return the name of a kernel class in messages and files."""
    return f"{kernel}.{kind}" if kind else kernel


def error_of(predicted: Array, measured: Array) -> StatedError:
    """Return the error of predicted against measured seconds."""
    off = 100 * np.abs(predicted / measured - 1)
    return StatedError(float(np.median(off)), float(np.percentile(off, 90)), len(off))


def _folds(points: Points) -> Array:
    """Return the fold of each point: groups dealt out in order; single points where there is one group."""
    labels, index = np.unique(points.group, return_inverse=True)
    if len(labels) < 2:
        index = np.arange(len(points))
    return np.asarray(index % _FOLDS)


def _predict_left_out(variant: _Variant, points: Points, peaks: Peaks, folds: Array) -> Array:
    times = np.empty(len(points))
    for fold in np.unique(folds):
        left_out = folds == fold
        law = variant.make(_solve(variant, points.take(~left_out), peaks))
        times[left_out] = law.seconds(peaks, *points.take(left_out).variables.values())
    return times


def _solve(variant: _Variant, points: Points, peaks: Peaks) -> Array:
    """Return the free parameters of the best fit."""
    from scipy.optimize import least_squares

    start, low, high = (np.log([limits[i] for limits in variant.free.values()]) for i in range(3))
    target, weight = np.log(points.time_s), np.sqrt(_weights(points))
    variables = tuple(points.variables.values())

    def residuals(log_values: Array) -> Array:
        values = np.clip(np.exp(log_values), np.exp(low), np.exp(high))  # exp(log(1)) may exceed 1
        off = np.log(variant.make(values).seconds(peaks, *variables)) - target
        return np.concatenate([weight * off, _POINT_SD * (log_values - start) / _PRIOR_SD])

    found = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=_POINT_SD)
    return np.asarray(np.clip(np.exp(found.x), np.exp(low), np.exp(high)))


def _weights(points: Points) -> Array:
    """Return the weight of each point, 1 on average."""
    if points.kernel != "gemm":
        return np.ones(len(points))
    regime = np.digitize(points.variables["m"], [32.5, 256.5])
    counts = np.bincount(regime, minlength=3)
    return np.asarray(len(points) / (np.count_nonzero(counts) * counts[regime]))
