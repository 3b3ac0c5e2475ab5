"""Tensor parallelism: heads are split over the GPUs, a KV head is not."""

from fractions import Fraction

import pytest

import hetmem
from hetmem.errors import UnsupportedError
from hetmem.model import FP16, StepShape, layer_kernels
from hetmem.model.kernels import attention_kernel
from hetmem.system.ops import GpuOps


def test_gpus_share_kv_heads_when_there_are_more_of_them():
    """Eight KV heads over sixteen GPUs, one each, so that every head is there twice."""
    spec = hetmem.load_model("llama2-70b")
    shape = StepShape.decode(4, 4000)
    kv = attention_kernel(spec, shape, FP16).kv_read_bytes
    for gpus, share in {1: Fraction(1), 4: Fraction(1, 4), 8: Fraction(1, 8), 16: Fraction(1, 8)}.items():
        ops = {op.name: op for op in GpuOps(spec, FP16, None, gpus).layer(None, shape)}
        whole = attention_kernel(spec, shape, FP16).activation_bytes
        assert ops["attention.decode"].n_bytes == pytest.approx(float(kv * share) + whole / gpus, rel=1e-12)
        (qkv,) = (k for k in layer_kernels(spec, shape, FP16) if k.name == "qkv")
        stream = 4 * spec.d_model * 2  # of the four tokens, which every GPU reads whole
        rest = (qkv.bytes - stream - qkv.kv_write_bytes) / gpus + stream
        assert ops["qkv"].n_bytes == pytest.approx(rest + float(qkv.kv_write_bytes * share), rel=1e-12)


@pytest.mark.parametrize(("gpus", "share"), [(2, Fraction(1, 2)), (8, Fraction(1, 8)), (16, Fraction(1, 8))])
def test_capacity_holds_whole_kv_heads(gpus, share):
    spec = hetmem.load_model("llama2-70b")
    done = hetmem.simulate("resident", model="llama2-70b", workload=hetmem.fixed(16, 2, 1), gpus=gpus,
                           settings={"serving.kv_share": 1.0})  # fmt: skip
    per_gpu = spec.kv_bytes_per_token(FP16) * share
    weights = -(-spec.weight_bytes(FP16) // gpus)
    usable = 0.9 * 80e9
    tokens = done.counters["kv_blocks_total"] * 16
    assert tokens * per_gpu <= usable - weights < (tokens + 16) * per_gpu


def test_a_gpu_count_that_does_not_divide_the_heads_is_refused():
    with pytest.raises(UnsupportedError, match="64 heads of llama2-70b cannot be split over 3 GPUs"):
        hetmem.simulate("resident", model="llama2-70b", workload=hetmem.fixed(16, 2, 1), gpus=3)
