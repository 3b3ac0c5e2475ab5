"""The forms of kernel tables that are known, and how their rows become points of a kernel law.

GEMM and decode attention in shapes (a user's own; ai-dynamo/aiconfigurator); the profiles of
microsoft/vidur and of casys-kaist/LLMServingSim, which name a model and a tensor-parallel degree.
Kernels of one rank, without collectives.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from hetmem.hardware.kernel_law import activation_bytes, add_bytes, norm_bytes, rotary_bytes

if TYPE_CHECKING:
    import pandas as pd

Array: TypeAlias = NDArray[Any]


@frozen(eq=False)
class Points:
    """Measured points of one kernel class, ready to fit.

    ``variables`` are the arguments of the law's ``seconds`` by name, ``time_s`` the measured seconds,
    ``group`` a label per point: cross-validation leaves out whole groups. ``kind`` names the elementwise
    kernel and is empty for the others.
    """

    kernel: str
    kind: str
    variables: Mapping[str, Array]
    time_s: Array
    group: Array

    def __len__(self) -> int:
        return len(self.time_s)

    def take(self, mask: Array) -> "Points":
        """Return the points where ``mask`` is true."""
        chosen = {name: values[mask] for name, values in self.variables.items()}
        return Points(self.kernel, self.kind, chosen, self.time_s[mask], self.group[mask])


@frozen
class Dimensions:
    """What of a model shapes its kernels."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    gated: bool
    vocab: int


Lookup: TypeAlias = Callable[[str], Dimensions]


@frozen
class Form:
    """A table form: the columns it needs, those that hold microseconds, and how its rows become points.

    ``rounds_to_zero``: times are whole microseconds, so that 0 means below half of one.
    """

    name: str
    columns: tuple[str, ...]
    times: tuple[str, ...]
    points: Callable[["pd.DataFrame", Lookup], list[Points]]
    rounds_to_zero: bool = False


def _per_row(frame: "pd.DataFrame", dims: Lookup, names: str) -> list[Array]:
    """Return the named dimensions of every row's model as arrays."""
    models = frame["model"].to_numpy()
    known = {model: dims(model) for model in dict.fromkeys(models)}
    return [np.array([getattr(known[m], name) for m in models], dtype=float) for name in names.split()]


def _heads(frame: "pd.DataFrame", dims: Lookup) -> tuple[Array, Array, Array]:
    """Return query heads and KV heads of one rank, and the head dimension, of every row."""
    q, kv, head_dim = _per_row(frame, dims, "n_heads n_kv_heads head_dim")
    (tp,) = _array(frame, "tp")
    return q / tp, np.maximum(kv / tp, 1.0), head_dim  # a rank holds one KV head at least


def _labels(*columns: Array) -> Array:
    return np.array([":".join(f"{value:g}" for value in row) for row in zip(*columns, strict=True)])


def _gemm(m: Array, n: Array, k: Array, time_us: Array) -> Points:
    return Points("gemm", "", {"m": m, "n": n, "k": k}, time_us / 1e6, _labels(n, k))


def _decode(batch: Array, q: Array, kv: Array, head_dim: Array, tokens: Array, time_us: Array) -> Points:
    variables = {"batch": batch, "q_heads": q, "kv_heads": kv, "head_dim": head_dim, "kv_tokens": tokens}
    heads = _labels(q, kv, head_dim)
    group = heads if len(set(heads)) >= 5 else _labels(tokens)
    return Points("decode_attention", "", variables, time_us / 1e6, group)


def _prefill(chunk: Array, cached: Array, q: Array, kv: Array, head_dim: Array, time_us: Array) -> Points:
    variables = {"chunk": chunk, "cached": cached, "q_heads": q, "kv_heads": kv, "head_dim": head_dim}
    return Points("prefill_attention", "", variables, time_us / 1e6, _labels(chunk))


def _elementwise(kind: str, moved: Array, time_us: Array) -> Points:
    points = Points("elementwise", kind, {"moved_bytes": moved}, time_us / 1e6, _labels(moved))
    return points.take(time_us > 0)  # a rounded 0 carries no information


def _array(frame: "pd.DataFrame", *columns: str) -> list[Array]:
    return [frame[column].to_numpy(dtype=float) for column in columns]


def _own_gemm(frame: "pd.DataFrame", dims: Lookup) -> list[Points]:
    return [_gemm(*_array(frame, "m", "n", "k", "time_us"))]


def _own_decode(frame: "pd.DataFrame", dims: Lookup) -> list[Points]:
    return [_decode(*_array(frame, "batch", "n_q", "n_kv", "head_dim", "kv_len", "time_us"))]


def _vidur_decode(frame: "pd.DataFrame", dims: Lookup) -> list[Points]:
    columns = ("batch", "n_q_head_rank", "n_kv_head_rank", "head_dim", "kv_len", "attn_decode_us")
    seen = frame[frame["attn_decode_us"] > 0]
    return [_decode(*_array(seen, *columns))]


def _vidur_prefill(frame: "pd.DataFrame", dims: Lookup) -> list[Points]:
    frame = frame[frame["attn_prefill_us"] > 0]
    chunk, cached, time_us = _array(frame, "prefill_chunk_size", "kv_cache_size", "attn_prefill_us")
    return [_prefill(chunk, cached, *_heads(frame, dims), time_us)]


def _vidur_linear(frame: "pd.DataFrame", dims: Lookup) -> list[Points]:
    """Weights are split over ``tp``; norms and the residual addition see every feature of every token."""
    m, tp = _array(frame, "tokens", "tp")
    d, heads, kv, hd, ff, gated = _per_row(frame, dims, "d_model n_heads n_kv_heads head_dim d_ff gated")
    shapes = {
        "attn_pre_proj": ((heads + 2 * kv) * hd / tp, d),
        "attn_post_proj": (d, heads * hd / tp),
        "mlp_up_proj": ((1 + gated) * ff / tp, d),
        "mlp_down_proj": (d, ff / tp),
    }
    n, k = (np.concatenate([shape[i] for shape in shapes.values()]) for i in (0, 1))
    time_us = np.concatenate(_array(frame, *shapes))
    found = [_gemm(np.tile(m, len(shapes)), n, k, time_us).take(time_us > 0)]
    norms = np.concatenate(_array(frame, "input_layernorm", "post_attention_layernorm"))
    found.append(_elementwise("norm", np.tile(norm_bytes(m, d, fused_add=False), 2), norms))
    for kind, column, moved in (
        ("rotary", "attn_rope", rotary_bytes(m, heads / tp, kv / tp, hd)),
        ("activation", "mlp_act", activation_bytes(m, ff / tp, gated)),
        ("add", "add", add_bytes(m, d)),
    ):
        found.append(_elementwise(kind, moved, *_array(frame, column)))
    return found


def _lss_linear(frame: "pd.DataFrame", dims: Lookup) -> list[Points]:
    """The norm adds the residual as well. Models with a mixture of experts have no up and down rows."""
    m, tp, time_us = _array(frame, "tokens", "tp", "time_us")
    d, heads, kv, hd, ff, gated = _per_row(frame, dims, "d_model n_heads n_kv_heads head_dim d_ff gated")
    kernel = frame["kernel"].to_numpy()
    shapes = {
        "qkv_proj": ((heads + 2 * kv) * hd / tp, d),
        "o_proj": (d, heads * hd / tp),
        "gate_up_proj": ((1 + gated) * ff / tp, d),
        "down_proj": (d, ff / tp),
    }
    linear = np.isin(kernel, list(shapes))
    is_kernel = [kernel == name for name in shapes]
    n, k = (np.select(is_kernel, [shape[i] for shape in shapes.values()]) for i in (0, 1))
    found = [_gemm(m, n, k, time_us).take(linear)]
    for kind, column, moved in (
        ("norm", "layernorm", norm_bytes(m, d, fused_add=True)),
        ("rotary", "rotary_emb", rotary_bytes(m, heads / tp, kv / tp, hd)),
        ("activation", "act_fn", activation_bytes(m, ff / tp, gated)),
        ("qk_norm", "qk_norm", rotary_bytes(m, heads / tp, kv / tp, hd)),
    ):
        found.append(_elementwise(kind, moved[kernel == column], time_us[kernel == column]))
    return found


def _mixed(
    prefill_s: Array, batch: Array, q: Array, kv: Array, head_dim: Array, tokens: Array, time_us: Array
) -> Points:
    variables = {
        "prefill_s": prefill_s, "batch": batch, "q_heads": q, "kv_heads": kv, "head_dim": head_dim, "kv_tokens": tokens,
    }  # fmt: skip
    return Points("mixed_attention", "", variables, time_us / 1e6, _labels(batch, tokens))


def _lss_attention(frame: "pd.DataFrame", dims: Lookup) -> list[Points]:
    """Rows of pure prefill, of pure decode, and mixed ones whose prefill was measured alone as well."""
    is_prefill, is_decode = frame["n_decode"] == 0, frame["prefill_chunk"] == 0
    decodes, prefills, mixed = frame[is_decode], frame[is_prefill], frame[~is_prefill & ~is_decode]
    batch, kv_tokens, time_us = _array(decodes, "n_decode", "kv_decode", "time_us")
    chunk, cached, prefill_us = _array(prefills, "prefill_chunk", "kv_prefill", "time_us")
    same = ["model", "tp", "prefill_chunk", "kv_prefill"]
    alone = prefills.drop_duplicates(same)[[*same, "time_us"]].rename(columns={"time_us": "alone_us"})
    mixed = mixed.merge(alone, on=same)
    alone_us, n_decode, kv_decode, mixed_us = _array(mixed, "alone_us", "n_decode", "kv_decode", "time_us")
    return [
        _decode(batch, *_heads(decodes, dims), kv_tokens, time_us),
        _prefill(chunk, cached, *_heads(prefills, dims), prefill_us),
        _mixed(alone_us / 1e6, n_decode, *_heads(mixed, dims), kv_decode, mixed_us),
    ]


def _lss_head(frame: "pd.DataFrame", dims: Lookup) -> list[Points]:
    """The output head is one GEMM over the vocabulary; sampler rows are left out."""
    frame = frame[frame["layer"] == "lm_head"]
    m, tp, time_us = _array(frame, "sequences", "tp", "time_us")
    d, vocab = _per_row(frame, dims, "d_model vocab")
    return [_gemm(m, vocab / tp, d, time_us)]


FORMS = (
    Form("GEMM", ("m", "n", "k"), ("time_us",), _own_gemm),
    Form("decode attention", ("batch", "n_q", "n_kv", "head_dim", "kv_len"), ("time_us",), _own_decode),
    Form(
        "vidur linear",
        ("model", "tp", "tokens"),
        (
            "attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "attn_rope", "input_layernorm",
            "post_attention_layernorm", "mlp_act", "add",
        ),
        _vidur_linear,
        rounds_to_zero=True,
    ),
    Form(
        "vidur decode attention",
        ("batch", "n_q_head_rank", "n_kv_head_rank", "head_dim", "kv_len"),
        ("attn_decode_us",),
        _vidur_decode,
        rounds_to_zero=True,
    ),
    Form(
        "vidur prefill attention",
        ("model", "tp", "prefill_chunk_size", "kv_cache_size"),
        ("attn_prefill_us",),
        _vidur_prefill,
        rounds_to_zero=True,
    ),
    Form("LLMServingSim linear", ("model", "tp", "kernel", "tokens"), ("time_us",), _lss_linear),
    Form(
        "LLMServingSim attention",
        ("model", "tp", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode"),
        ("time_us",),
        _lss_attention,
    ),
    Form("LLMServingSim head", ("model", "tp", "layer", "sequences"), ("time_us",), _lss_head),
)  # fmt: skip
