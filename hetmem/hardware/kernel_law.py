"""Kernel laws: how long one GPU kernel takes, from its shape and the GPU's datasheet.

Modelled: launch overhead; achieved share of the tensor and memory peaks; the imperfect overlap of the two;
output tiles that fill the processors (SMs) in whole waves, with split-K; attention units that each stream
their KV at the rate of one processor, KV splits that fill the GPU and the pass that combines them;
activations that stay in L2. Ignored: clocks and power capping, concurrent kernels, weights left in L2 by
an earlier call.

From: the roofline (Williams et al., CACM 2009) with a smooth maximum; tile and wave quantisation as in
NVIDIA's "Matrix Multiplication Background User's Guide"; work partition and KV splitting of
FlashAttention-2 (Dao 2023) and Flash-Decoding as published in Dao-AILab/flash-attention
(``num_splits_heuristic``, block sizes by head dimension). Parameters come from measurements
(:mod:`hetmem.study.calibrate`); the catalogue states the error of each calibration beside it. Efficiencies
relate to the datasheet peaks in :class:`Peaks`, so a law moves to another GPU with that GPU's peaks. Every
law but the elementwise one is at or above the roofline.
"""

import math
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from attrs import field, frozen
from attrs.validators import and_, ge, gt, in_, le
from numpy.typing import NDArray

from hetmem.hardware.roofline import roofline, smooth_max

Array: TypeAlias = NDArray[Any]
Number: TypeAlias = Any  # a scalar or an array; arguments broadcast

_US, _G = 1e-6, 1e9
_TILES = np.array([(64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128)], dtype=float)
_SPLIT_K = np.array([1.0, 2.0, 4.0, 8.0])
_ROWS = 64  # of the smallest tile
_FULL_TILE = 128 * 128  # outputs at which a tile reaches the compute efficiency
_QUERY_TILE = 64  # query rows of an attention tile
_SPLIT_BLOCK = 128  # key rows that a KV split is counted in
_MAX_SPLITS = 128
_SPLIT_SLOTS = 2  # blocks per processor that the split heuristic plans for, whatever is resident

_SHARE = and_(gt(0.0), le(1.0))
_POSITIVE = gt(0.0)
_TIME = ge(0.0)


@frozen(cache_hash=True)  # a key of remembered times
class Peaks:
    """Datasheet figures that the laws scale.

    ``flops`` is FLOP/s of the data type, ``bandwidth_bytes_s`` that of the device memory, ``processors``
    the number of SMs, ``l2_bytes`` the last-level cache, ``element_bytes`` the size of one element of the
    data type.
    """

    flops: float = field(validator=_POSITIVE)
    bandwidth_bytes_s: float = field(validator=_POSITIVE)
    processors: int = field(validator=gt(0))
    l2_bytes: float = field(validator=_TIME)
    element_bytes: float = field(default=2.0, validator=_POSITIVE)


def gemm_bytes(peaks: Peaks, m: Number, n: Number, k: Number) -> Number:
    """Return the bytes that a product of ``m x k`` and ``k x n`` must move once."""
    m, n, k = _floats(m, n, k)
    return peaks.element_bytes * (k * n + m * k + m * n)


def decode_attention_bytes(
    peaks: Peaks, batch: Number, q_heads: Number, kv_heads: Number, head_dim: Number, kv_tokens: Number
) -> Number:
    """Return the bytes of KV, query and output that one decode-attention kernel moves."""
    batch, q_heads, kv_heads, head_dim, kv_tokens = _floats(batch, q_heads, kv_heads, head_dim, kv_tokens)
    return 2 * peaks.element_bytes * batch * head_dim * (kv_tokens * kv_heads + q_heads)


def prefill_attention_bytes(
    peaks: Peaks, chunk: Number, cached: Number, q_heads: Number, kv_heads: Number, head_dim: Number
) -> Number:
    """Return the bytes of KV, queries and outputs that one prefill-attention kernel moves once."""
    chunk, cached, q_heads, kv_heads, head_dim = _floats(chunk, cached, q_heads, kv_heads, head_dim)
    return 2 * peaks.element_bytes * head_dim * ((cached + chunk) * kv_heads + chunk * q_heads)


def norm_bytes(tokens: Number, d_model: Number, *, fused_add: bool) -> Number:
    """Return FP16 bytes of a normalisation; one that adds the residual reads and writes that too."""
    tokens, d_model = _floats(tokens, d_model)
    return (8 if fused_add else 4) * tokens * d_model


def add_bytes(tokens: Number, d_model: Number) -> Number:
    """Return FP16 bytes of a residual addition: two read, one written."""
    tokens, d_model = _floats(tokens, d_model)
    return 6 * tokens * d_model


def rotary_bytes(tokens: Number, q_heads: Number, kv_heads: Number, head_dim: Number) -> Number:
    """Return FP16 bytes of rotating queries and keys in place."""
    tokens, q_heads, kv_heads, head_dim = _floats(tokens, q_heads, kv_heads, head_dim)
    return 4 * tokens * (q_heads + kv_heads) * head_dim


def activation_bytes(tokens: Number, d_ff: Number, gated: Number) -> Number:
    """Return FP16 bytes of the FFN's activation; a gated one reads two inputs."""
    tokens, d_ff, gated = _floats(tokens, d_ff, gated)
    return (4 + 2 * gated) * tokens * d_ff


@frozen
class SmoothGemmLaw:
    """Launch plus a smooth maximum (``sharpness``-norm) of compute and memory time: four parameters.

    A sharpness near 1 adds the two times, a large one overlaps them fully.
    """

    launch_us: float = field(validator=_TIME)
    compute_efficiency: float = field(validator=_SHARE)
    memory_efficiency: float = field(validator=_SHARE)
    sharpness: float = field(validator=ge(1.0))

    def seconds(self, peaks: Peaks, m: Number, n: Number, k: Number) -> Number:
        """Return seconds for ``m`` tokens, ``n`` outputs and ``k`` inputs (broadcast)."""
        m, n, k = _floats(m, n, k)
        return self.grouped_s(peaks, m, n, k, gemm_bytes(peaks, m, n, k), 1.0)

    def grouped_s(self, peaks: Peaks, m: Number, n: Number, k: Number, moved_bytes: Number, groups: Number) -> Number:
        """Return seconds of ``groups`` such products in one launch, which move ``moved_bytes`` together."""
        return self.shapeless_s(peaks, 2 * m * n * k * groups, moved_bytes)

    def shapeless_s(self, peaks: Peaks, flops: Number, moved_bytes: Number) -> Number:
        """Return seconds of linear work of which only operations and bytes are known."""
        return _shapeless_s(self, peaks, flops, moved_bytes)


@frozen(cache_hash=True)
class TiledGemmLaw:
    """The smooth law with compute time in whole waves of output tiles: seven parameters.

    The library is taken to choose the fastest of six tile shapes and four split-K factors. A tile smaller
    than 128 x 128 reaches ``(its size / 128^2) ** tile_penalty`` of the compute efficiency; filling its
    pipeline costs ``pipeline_depth`` elements of K; splitting K costs ``split_us``.
    """

    launch_us: float = field(validator=_TIME)
    compute_efficiency: float = field(validator=_SHARE)
    memory_efficiency: float = field(validator=_SHARE)
    sharpness: float = field(validator=ge(1.0))
    tile_penalty: float = field(validator=_TIME)
    pipeline_depth: float = field(validator=_TIME)
    split_us: float = field(validator=_TIME)

    def seconds(self, peaks: Peaks, m: Number, n: Number, k: Number) -> Number:
        """Return seconds for ``m`` tokens, ``n`` outputs and ``k`` inputs (broadcast)."""
        m, n, k = _floats(m, n, k)
        return self.grouped_s(peaks, m, n, k, gemm_bytes(peaks, m, n, k), 1.0)

    def grouped_s(self, peaks: Peaks, m: Number, n: Number, k: Number, moved_bytes: Number, groups: Number) -> Number:
        """Return seconds of ``groups`` such products in one launch, which move ``moved_bytes`` together.

        The tiles of all groups share the waves.
        """
        # Tiles have 64 rows, or a multiple: all numbers of tokens that fill as many take the same time.
        tokens = _ceil(m / _ROWS) * _ROWS
        arrays = any(isinstance(size, np.ndarray) for size in (m, n, k, groups))
        compute = (_waves_s if arrays else _waves_of_one_s)(self, peaks, tokens, n, k, groups)
        memory = moved_bytes / (self.memory_efficiency * peaks.bandwidth_bytes_s)
        return self.launch_us * _US + smooth_max(compute, memory, self.sharpness)

    def shapeless_s(self, peaks: Peaks, flops: Number, moved_bytes: Number) -> Number:
        """Return seconds of linear work of which only operations and bytes are known: no tiles, no waves."""
        return _shapeless_s(self, peaks, flops, moved_bytes)


def _waves_s(law: TiledGemmLaw, peaks: Peaks, m: Number, n: Number, k: Number, groups: Number) -> Number:
    """Return the seconds that the waves of tiles take, with the fastest tile shape and split."""
    axes = (1,) * np.broadcast(m, n, k).ndim
    rows, columns = (_TILES[:, i].reshape(-1, 1, *axes) for i in (0, 1))
    splits = _SPLIT_K.reshape(1, -1, *axes)
    waves = np.ceil(np.ceil(m / rows) * np.ceil(n / columns) * splits * groups / peaks.processors)
    rate = law.compute_efficiency * np.minimum(1.0, rows * columns / _FULL_TILE) ** law.tile_penalty
    # all processors of a wave take the time of one tile, whether they have one or not
    tile_flops = 2 * rows * columns * (k / splits + law.pipeline_depth)
    tile = tile_flops / (peaks.flops / peaks.processors * rate)
    return np.min(waves * tile + law.split_us * _US * (splits > 1), axis=(0, 1))


_waves_of_one_s = lru_cache(maxsize=65536)(_waves_s)


GemmLaw: TypeAlias = SmoothGemmLaw | TiledGemmLaw


def _shapeless_s(law: GemmLaw, peaks: Peaks, flops: Number, moved_bytes: Number) -> Number:
    return roofline(
        flops, moved_bytes, peak_flops=peaks.flops, peak_gbs=peaks.bandwidth_bytes_s * 1e-9,
        compute_efficiency=law.compute_efficiency, memory_efficiency=law.memory_efficiency,
        launch_s=law.launch_us * _US, smooth_q=law.sharpness,
    ).total_s  # fmt: skip


@frozen
class DecodeAttentionLaw:
    """One query per sequence over its KV: a smooth maximum of bandwidth and of the slowest processor.

    A unit is one KV head of one sequence. A grouped-query kernel splits the KV of a unit until the GPU is
    full; a multi-head kernel does not. Units run in waves of ``processors x blocks_per_processor``, and
    the blocks resident on a processor share its ``processor_gbs``: few heads with a long context are bound
    by that and not by the memory. ``copy_us`` is the regrouping of queries when batch and KV heads both
    exceed one, ``combine_us`` the pass over split results, ``unit_us`` the cost of scheduling a unit.
    """

    launch_us: float = field(validator=_TIME)
    copy_us: float = field(validator=_TIME)
    combine_us: float = field(validator=_TIME)
    unit_us: float = field(validator=_TIME)
    memory_efficiency: float = field(validator=_SHARE)
    processor_gbs: float = field(validator=_POSITIVE)
    sharpness: float = field(validator=ge(1.0))
    blocks_per_processor: int = field(validator=in_((1, 2)))

    def seconds(
        self,
        peaks: Peaks,
        batch: Number,
        q_heads: Number,
        kv_heads: Number,
        head_dim: Number,
        kv_tokens: Number,
    ) -> Number:
        """Return seconds for ``batch`` sequences of ``kv_tokens`` each (broadcast; heads of one GPU)."""
        batch, q_heads, kv_heads, head_dim, kv_tokens = _floats(batch, q_heads, kv_heads, head_dim, kv_tokens)
        rows = _choose(head_dim <= 64, 256.0, _choose(head_dim <= 128, 128.0, 64.0))  # KV rows of a block
        units, blocks = batch * kv_heads, _ceil(kv_tokens / rows)
        grouped = q_heads > kv_heads
        splits = _choose(grouped, _splits(units, blocks, _SPLIT_SLOTS * peaks.processors), 1.0)
        waves, resident = _occupancy(units * splits, peaks.processors, self.blocks_per_processor)
        streamed = _ceil(blocks / splits) * rows * 2 * peaks.element_bytes * head_dim
        serial = waves * resident * streamed / (self.processor_gbs * _G)
        moved = decode_attention_bytes(peaks, batch, q_heads, kv_heads, head_dim, kv_tokens)
        memory = moved / (self.memory_efficiency * peaks.bandwidth_bytes_s)
        overhead_us = (
            self.launch_us
            + self.copy_us * (grouped & (batch > 1) & (kv_heads > 1))
            + self.combine_us * (splits > 1)
            + self.unit_us * units
        )
        return overhead_us * _US + smooth_max(memory, serial, self.sharpness)


@frozen
class PrefillAttentionLaw:
    """A chunk of queries over cached and own keys: tiles of 64 queries, one per processor, in whole waves.

    A tile's time is the keys that it sees at ``compute_efficiency`` of one processor's peak; the last wave
    ends with the tile that sees most. ``wave_us`` is the start of a tile, ``combine_us`` the pass over KV
    splits where the kernel splits (``splits_kv``), ``diagonal_work`` the work on the chunk's own keys over
    that of an exact causal triangle (1: masked blocks are skipped; 2: none is; above: masking is slow as
    well).
    """

    launch_us: float = field(validator=_TIME)
    compute_efficiency: float = field(validator=_SHARE)
    wave_us: float = field(validator=_TIME)
    combine_us: float = field(validator=_TIME)
    diagonal_work: float = field(validator=ge(1.0))
    splits_kv: bool

    def seconds(
        self, peaks: Peaks, chunk: Number, cached: Number, q_heads: Number, kv_heads: Number, head_dim: Number
    ) -> Number:
        """Return seconds for ``chunk`` new tokens of one sequence after ``cached`` ones (broadcast)."""
        chunk, cached, q_heads, kv_heads, head_dim = _floats(chunk, cached, q_heads, kv_heads, head_dim)
        tiles, keys = q_heads * _ceil(chunk / _QUERY_TILE), cached + chunk
        splits: Number = 1.0
        if self.splits_kv:
            splits = _splits(tiles, _ceil(keys / _SPLIT_BLOCK), _SPLIT_SLOTS * peaks.processors)
        waves, _ = _occupancy(tiles * splits, peaks.processors, 1)
        mean_own = _least(chunk, (chunk + _QUERY_TILE) / 2)  # own keys that a tile sees, on average
        seen = waves * (cached + self.diagonal_work * mean_own) + self.diagonal_work * (chunk - mean_own)
        rate = self.compute_efficiency * peaks.flops / peaks.processors
        compute = 4 * _QUERY_TILE * head_dim * seen / splits / rate
        moved = prefill_attention_bytes(peaks, chunk, cached, q_heads, kv_heads, head_dim)
        overhead_us = self.launch_us + self.wave_us * waves + self.combine_us * (splits > 1)
        return overhead_us * _US + _most(compute, moved / peaks.bandwidth_bytes_s)


@frozen
class MixedAttentionLaw:
    """One kernel over a prefill chunk and decodes together: slower than the two alone, one after the other.

    ``prefill_share`` of the time of the prefill alone, ``decode_us`` per decoding sequence, their KV at
    ``memory_efficiency``, and ``serial_us`` per 1000 tokens of a sequence's KV, which such a kernel does not split.
    """

    prefill_share: float = field(validator=_POSITIVE)
    decode_us: float = field(validator=_TIME)
    memory_efficiency: float = field(validator=_SHARE)
    serial_us: float = field(validator=_TIME)

    def seconds(
        self, peaks: Peaks, prefill_s: Number, batch: Number, q_heads: Number, kv_heads: Number, head_dim: Number,
        kv_tokens: Number,
    ) -> Number:  # fmt: skip
        """Return seconds with ``batch`` decodes of ``kv_tokens`` each beside a prefill of ``prefill_s`` alone."""
        moved = decode_attention_bytes(peaks, batch, q_heads, kv_heads, head_dim, kv_tokens)
        streamed = moved / (self.memory_efficiency * peaks.bandwidth_bytes_s)
        late = (self.decode_us * batch + self.serial_us * kv_tokens / 1000) * _US
        return self.prefill_share * prefill_s + late + streamed


@frozen
class ElementwiseLaw:
    """Launch plus bytes: up to ``cache_share`` of L2 at the cache's rate, the rest at the memory's.

    ``cache_efficiency`` is relative to the memory bandwidth and exceeds 1 where the cache is faster: the
    activations were written by the kernel before. Kernels that read twice show as a low efficiency.
    """

    launch_us: float = field(validator=_TIME)
    memory_efficiency: float = field(validator=_SHARE)
    cache_efficiency: float = field(validator=_POSITIVE)
    cache_share: float = field(validator=and_(_TIME, le(1.0)))

    def seconds(self, peaks: Peaks, moved_bytes: Number) -> Number:
        """Return seconds for ``moved_bytes`` read and written."""
        (moved,) = _floats(moved_bytes)
        warm = _least(moved, self.cache_share * peaks.l2_bytes)
        weighted = warm / self.cache_efficiency + (moved - warm) / self.memory_efficiency
        return self.launch_us * _US + weighted / peaks.bandwidth_bytes_s


# One formula serves arrays and single kernels: a step prices ten of them, and numpy costs 2 us an operation.


def _floats(*values: Number) -> tuple[Any, ...]:
    """Return floats if every value is a scalar, else arrays of floats."""
    for value in values:
        if not isinstance(value, (float, int)):  # a union of types would be slower
            return tuple(np.asarray(value, dtype=float) for value in values)
    return tuple(map(float, values))


def _ceil(value: Number) -> Number:
    return np.ceil(value) if isinstance(value, np.ndarray) else float(math.ceil(value))


def _least(a: Number, b: Number) -> Number:
    return np.minimum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else min(a, b)


def _most(a: Number, b: Number) -> Number:
    return np.maximum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else max(a, b)


def _choose(condition: Number, yes: Number, no: Number) -> Number:
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    return yes if condition else no


def _occupancy(blocks: Number, processors: int, per_processor: int) -> tuple[Number, Number]:
    """Return the waves that ``blocks`` take and the blocks that share a processor in one."""
    resident = _least(float(per_processor), _ceil(blocks / processors))
    return _ceil(blocks / (processors * per_processor)), resident


def _splits(units: Number, blocks: Number, slots: int) -> Number:
    """Return the KV splits per unit, element by element."""
    if not isinstance(units, np.ndarray) and not isinstance(blocks, np.ndarray):
        return float(_split(units, blocks, slots))
    units, blocks = np.broadcast_arrays(units, blocks)
    pairs = zip(units.ravel().tolist(), blocks.ravel().tolist(), strict=True)
    return np.array([_split(u, b, slots) for u, b in pairs], dtype=float).reshape(units.shape)


@lru_cache(maxsize=65536)
def _split(units: float, blocks: float, slots: int) -> int:
    """Return the fewest splits within 15 % of the best fill of ``slots``; 1 when units fill 80 % alone."""
    if units >= 0.8 * slots:
        return 1
    best, found = 0.0, []
    longest = 0
    for splits in range(1, int(min(_MAX_SPLITS, slots, blocks)) + 1):
        share = -(-int(blocks) // splits)
        if share == longest:  # one more split that shortens nobody's share
            continue
        longest = share
        waves = units * splits / slots
        fill = waves / math.ceil(waves)
        found.append((splits, fill))
        best = max(best, fill)
    return next((splits for splits, fill in found if fill >= 0.85 * best), 1)
