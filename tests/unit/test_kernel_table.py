"""Reading measured kernel tables: forms, selection, and the refusal of bad rows."""

import gzip

import numpy as np
import pytest

from hetmem.errors import ConfigError
from hetmem.study.kernel_table import read

GEMM = "m,n,k,time_us\n1,4096,4096,20.5\n2,4096,4096,20.6\n"
DECODE = "batch,n_q,n_kv,head_dim,kv_len,time_us\n4,32,8,128,1024,19.0\n"
VIDUR_COLUMNS = (
    "gpu,model,tp,tokens,attn_pre_proj,attn_post_proj,mlp_up_proj,mlp_down_proj,attn_rope,input_layernorm,"
    "post_attention_layernorm,mlp_act,add,emb\n"
)
SHAPES = "model,n_head,n_kv_head,d_model,d_ff,gated\ntoy,8,2,1024,4096,1\n"


@pytest.fixture
def table(tmp_path):
    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_gemm_table(table):
    found = read(table(GEMM))
    (points,) = found.points()
    assert found.form == "GEMM"
    assert points.kernel == "gemm"
    np.testing.assert_array_equal(points.variables["m"], [1, 2])
    np.testing.assert_allclose(points.time_s, [20.5e-6, 20.6e-6])


def test_decode_table_with_extra_columns_and_gzip(tmp_path):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(DECODE.replace("batch,", "note,batch,").replace("4,32", "x,4,32").encode()))
    (points,) = read(path).points()
    assert points.kernel == "decode_attention"
    assert [v[0] for v in points.variables.values()] == [4, 32, 8, 128, 1024]


def test_vidur_shapes_follow_the_model_and_the_tensor_parallel_degree(table):
    row = "a100,toy,2,16,11,12,13,14,0,5,6,7,8,9\n"
    found = read(table(VIDUR_COLUMNS + row), table(SHAPES, "shapes.csv"))
    gemm, *others = found.points()
    assert list(zip(*(gemm.variables[v].tolist() for v in "mnk"), gemm.time_s * 1e6, strict=True)) == [
        (16, (8 + 2 * 2) * 128 / 2, 1024, pytest.approx(11)),
        (16, 1024, 512, pytest.approx(12)),
        (16, 4096, 1024, pytest.approx(13)),
        (16, 1024, 2048, pytest.approx(14)),
    ]
    kinds = {points.kind: points.variables["moved_bytes"].tolist() for points in others}
    # the rotation of 0 us rounds away
    assert kinds == {"norm": [4 * 16 * 1024] * 2, "activation": [6 * 16 * 2048], "add": [6 * 16 * 1024]}


def test_model_catalogue_supplies_shapes_also_of_a_tuned_variant(table):
    text = "gpu,model,tp,kernel,tokens,time_us\n" + "".join(
        f"x,{model},1,o_proj,8,30\n" for model in ("llama-3.1-8b", "llama3.1-8b-instruct-2407")
    )
    (points,) = read(table(text)).points()
    assert points.variables["k"].tolist() == [4096, 4096]


def test_mixed_attention_rows_are_left_out(table):
    text = (
        "gpu,model,tp,prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"
        "x,toy,1,64,0,0,0,10\nx,toy,1,0,0,4,128,11\nx,toy,1,64,128,4,128,40\n"
    )
    decode, prefill = read(table(text), table(SHAPES, "shapes.csv")).points()
    assert (decode.kernel, decode.time_s * 1e6) == ("decode_attention", pytest.approx([11]))
    assert (prefill.kernel, prefill.time_s * 1e6) == ("prefill_attention", pytest.approx([10]))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("3,4096,4096,-1.0", "must not be negative, not '-1.0'"),
        ("3,4096,4096,nan", "must be a number, not 'nan'"),
        ("3,4096,4096,inf", "must be a number, not 'inf'"),
        ("3,4096,4096,", "must be a number, not ''"),
        ("3,4096,4096,fast", "must be a number, not 'fast'"),
        ("3,4096,4096,0", "must be positive, not '0'"),
    ],
)
def test_bad_time_is_refused_with_its_row(table, row, reason):
    path = table(GEMM + row + "\n4,4096,4096,21\n")
    with pytest.raises(ConfigError) as refused:
        read(path)
    assert str(refused.value) == f"{path}: row 3 (line 4), time_us: {reason}"


@pytest.mark.parametrize(
    ("row", "where"), [("0,4096,4096,1", "m"), ("1,4096.5,4096,1", "n"), ("1,4096,-2,1", "k"), ("1,x,4096,1", "n")]
)
def test_bad_size_is_refused_with_its_row(table, row, where):
    with pytest.raises(ConfigError, match=rf"row 3 \(line 4\), {where}: must "):
        read(table(GEMM + row + "\n"))


def test_missing_columns_are_named(table):
    with pytest.raises(ConfigError, match=r"nearest, GEMM, also needs: k$"):
        read(table("m,n,time_us\n1,2,3\n"))
    with pytest.raises(ConfigError, match=r"nearest, decode attention, also needs: head_dim$"):
        read(table("batch,n_q,n_kv,kv_len,time_us\n1,2,3,4,5\n"))


@pytest.mark.parametrize(
    ("text", "reason"), [("", "cannot be read"), ("m,n,k,time_us\n", "no rows"), ('m,n\n1,2,3\n4,5,6,"', "cannot be")]
)
def test_empty_or_broken_file_is_refused(table, text, reason):
    with pytest.raises(ConfigError, match=reason):
        read(table(text))


def test_absent_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "none.csv")


def test_empty_model_and_unknown_model_are_refused(table):
    head = "gpu,model,tp,kernel,tokens,time_us\n"
    with pytest.raises(ConfigError, match=r"row 1 \(line 2\), model: is empty"):
        read(table(head + "x,,1,o_proj,8,30\n"))
    with pytest.raises(ConfigError, match=r"unknown model 'zzz'.*shapes file"):
        read(table(head + "x,zzz,1,o_proj,8,30\n")).points()


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ("n_head\n8\n", "needs the column 'model'"),
        ("model,n_head,n_kv_head,d_ff,gated\ntoy,8,8,64,1\n", "d_model: required"),
        ("model,n_head,n_kv_head,d_model,d_ff,gated\ntoy,8,8,big,64,1\n", "d_model: must be a whole number"),
    ],
)
def test_bad_shapes_file_is_refused(table, shapes, reason):
    path = table("gpu,model,tp,kernel,tokens,time_us\nx,toy,1,o_proj,8,30\n")
    with pytest.raises(ConfigError, match=reason):
        read(path, table(shapes, "shapes.csv"))


def test_rows_of_two_gpus_must_be_told_apart(table):
    path = table("gpu,m,n,k,time_us\na,1,8,8,5\nb,1,8,8,6\n")
    with pytest.raises(ConfigError, match=r"several GPUs \(a, b\): select one, gpu=a"):
        read(path).points()
    (points,) = read(path).select(["gpu=b"]).points()
    assert points.time_s * 1e6 == pytest.approx([6])


@pytest.mark.parametrize(
    ("clause", "rows"),
    [
        ("m=2", [2]),
        ("m=1,3", [1, 3]),
        ("m!=1,3", [2, 4]),
        ("m>2", [3, 4]),
        ("m>=2", [2, 3, 4]),
        ("m<2", [1]),
        ("m <= 2", [1, 2]),
        ("m%2=1", [1, 3]),
        ("gpu=a", [1, 2]),
        ("gpu!=a", [3, 4]),
    ],
)
def test_conditions(table, clause, rows):
    path = table("gpu,m,n,k,time_us\n" + "".join(f"{'aabb'[i - 1]},{i},8,8,5\n" for i in range(1, 5)))
    found = read(path)
    assert found.select([clause]).frame["m"].tolist() == rows
    assert found.select([clause], keep=False).frame["m"].tolist() == [m for m in range(1, 5) if m not in rows]


@pytest.mark.parametrize(
    ("clause", "reason"),
    [("m", "not a condition"), ("z=1", "no column 'z'"), ("m=one", "finds text"), ("gpu>1", "finds text")],
)
def test_bad_conditions_are_refused(table, clause, reason):
    with pytest.raises(ConfigError, match=reason):
        read(table("gpu,m,n,k,time_us\na,1,8,8,5\n")).select([clause])
