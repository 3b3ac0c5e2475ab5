"""What holds for every kernel law at every size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetmem import catalog
from hetmem.hardware.device import device

GPUS = st.sampled_from(catalog.ids("gpus")).map(device)
SIZE = st.integers(1, 40_000)
HEADS = st.sampled_from([(1, 1), (8, 8), (32, 8), (32, 4), (64, 8), (12, 1)])
HEAD_DIM = st.sampled_from([64, 128, 256])
TOKENS = st.integers(1, 200_000)


def roofline(gpu, flops, moved):
    return max(flops / gpu.spec.peak_flops(), moved / gpu.spec.memory_bytes_per_s)


@given(GPUS, SIZE, SIZE, SIZE)
def test_gemm_is_above_the_roofline(gpu, m, n, k):
    assert gpu.gemm_s(m, n, k) >= roofline(gpu, 2 * m * n * k, 2 * (m * k + k * n + m * n)) * (1 - 1e-12)


@given(GPUS, SIZE, SIZE, SIZE, st.integers(0, 2))
def test_gemm_never_gets_faster_with_size(gpu, m, n, k, axis):
    sizes = [m, n, k]
    larger = [2 * size if i == axis else size for i, size in enumerate(sizes)]
    assert gpu.gemm_s(*larger) >= gpu.gemm_s(*sizes) * (1 - 1e-12)


@given(GPUS, st.integers(1, 2048), HEADS, HEAD_DIM, TOKENS)
def test_decode_attention_is_above_the_roofline(gpu, batch, heads, head_dim, tokens):
    moved = 4 * batch * head_dim * (tokens * heads[1] + heads[0])
    assert gpu.decode_attention_s(batch, *heads, head_dim, tokens) >= roofline(gpu, 0, moved) * (1 - 1e-12)


@given(GPUS, st.integers(1, 16_384), st.integers(0, 100_000), HEADS, HEAD_DIM)
def test_prefill_attention_is_above_the_roofline(gpu, chunk, cached, heads, head_dim):
    flops = 4 * chunk * (cached + chunk / 2) * heads[0] * head_dim
    moved = 4 * head_dim * ((cached + chunk) * heads[1] + chunk * heads[0])
    assert gpu.prefill_attention_s(chunk, cached, *heads, head_dim) >= roofline(gpu, flops, moved) * (1 - 1e-12)


@given(GPUS, st.integers(1, 16_384), st.integers(1, 16_384), HEADS, HEAD_DIM)
def test_every_time_is_finite_and_longer_than_the_launch(gpu, tokens, width, heads, head_dim):
    times = np.array(
        [
            gpu.gemm_s(tokens, width, width),
            gpu.decode_attention_s(tokens, *heads, head_dim, width),
            gpu.prefill_attention_s(tokens, width, *heads, head_dim),
            gpu.layer_elementwise_s(tokens, width, *heads, head_dim, 4 * width),
        ]
    )
    assert np.isfinite(times).all()
    assert (times > 1e-7).all()


@given(GPUS, st.lists(st.integers(1, 4096), min_size=1, max_size=5), HEADS)
def test_arrays_equal_scalars(gpu, batches, heads):
    together = gpu.decode_attention_s(batches, *heads, 128, 1000)
    assert together.tolist() == pytest.approx(
        [gpu.decode_attention_s(b, *heads, 128, 1000) for b in batches], rel=1e-14
    )
