"""From a table to an entry that the catalogue can use."""

import json
import tomllib

import numpy as np
import pytest

from hetmem import catalog
from hetmem.errors import ConfigError, UnknownNameError
from hetmem.hardware.device import device, peaks
from hetmem.hardware.kernel_law import DecodeAttentionLaw, SmoothGemmLaw
from hetmem.study.calibrate import calibrate

GPU = "rtx-3090"
GEMM = SmoothGemmLaw(6.0, 0.7, 0.8, 1.5)
DECODE = DecodeAttentionLaw(9.0, 5.0, 7.0, 0.012, 0.85, 23.0, 3.0, 2)


@pytest.fixture
def gemm_table(tmp_path):
    path = tmp_path / "gemm.csv"
    rows = [(m, n, k) for m in (1, 16, 64, 512, 2048) for n in (2048, 8192) for k in (2048, 8192)]
    times = [1e6 * float(GEMM.seconds(peaks(GPU), *row)) for row in rows]
    lines = [f"{m},{n},{k},{t:.4f}" for (m, n, k), t in zip(rows, times, strict=True)]
    path.write_text("m,n,k,time_us\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def decode_table(tmp_path):
    path = tmp_path / "decode.csv"
    rows = [(b, 32, kv, 128, length) for b in (1, 8, 64) for kv in (4, 32) for length in (128, 1024, 8192)]
    times = [1e6 * float(DECODE.seconds(peaks(GPU), *row)) for row in rows]
    lines = [f"{','.join(map(str, row))},{t:.4f}" for row, t in zip(rows, times, strict=True)]
    path.write_text("batch,n_q,n_kv,head_dim,kv_len,time_us\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def own_catalog(tmp_path, monkeypatch):
    """Return the file of a user's catalogue folder, in force for one test."""
    monkeypatch.setenv("HETMEM_CATALOG", str(tmp_path))
    monkeypatch.setattr(catalog, "_loaded", {})
    return tmp_path / "kernel_laws.toml"


def test_calibrates_with_a_hold_out(gemm_table):
    found = calibrate(gemm_table, "RTX 3090", hold_out=["n=8192"])
    assert (found.device, found.stack, found.form) == (GPU, "user", "GEMM")
    assert found.fitted["gemm"].law.rows == found.held_out["gemm"].law.rows == 10
    assert found.held_out["gemm"].law.median_pct < 3.0 < found.held_out["gemm"].naive.median_pct
    assert found.held_out["gemm.to_32"].law.rows == 4
    assert json.loads(json.dumps(found.as_dict()))["kernels"]["gemm"]["law"] == "SmoothGemmLaw"


def test_written_entry_is_a_stack_of_the_device(gemm_table, decode_table, own_catalog):
    calibrate(gemm_table, GPU, out=own_catalog, stack="mine")
    calibrate(decode_table, GPU, out=own_catalog, stack="mine")
    mine = device(GPU, stack="mine")
    assert {kernel: mine.grade(kernel) for kernel in ("gemm", "decode_attention", "prefill_attention")} == {
        "gemm": "measured", "decode_attention": "measured", "prefill_attention": "derived",
    }  # fmt: skip
    assert mine.gemm_s(64, 8192, 2048) == pytest.approx(float(GEMM.seconds(peaks(GPU), 64, 8192, 2048)), rel=0.03)
    expected = float(DECODE.seconds(peaks(GPU), 8, 32, 4, 128, 1024))
    assert mine.decode_attention_s(8, 32, 4, 128, 1024) == pytest.approx(expected, rel=0.05)
    assert mine.stated_error("gemm").rows == 20
    assert device(GPU).stack != "mine"
    with pytest.raises(UnknownNameError, match="mine"):
        device(GPU, stack="mini")


def test_writing_again_replaces_the_class_and_keeps_the_rest(gemm_table, tmp_path):
    out = tmp_path / "laws.toml"
    out.write_text('["other:stack"]\nlike = "a:b"\nsource = "a \\"quoted\\" one"\ngrade = "assumed"\nlist = [1, 2.5]\n')
    kept = tomllib.loads(out.read_text())["other:stack"]
    calibrate(gemm_table, GPU, out=out, source="first")
    calibrate(gemm_table, GPU, out=out, where=["m>=16"])
    document = tomllib.loads(out.read_text())
    entry = document[f"{GPU}:user"]
    assert document["other:stack"] == kept
    assert set(entry) == {"smooth_gemm", "errors"}
    assert entry["smooth_gemm"]["source"] == "calibrated from gemm.csv, m>=16"
    assert not list(tmp_path.glob(".laws.toml*"))


def test_a_broken_file_is_not_overwritten(gemm_table, tmp_path):
    out = tmp_path / "laws.toml"
    out.write_text("not toml")
    with pytest.raises(ConfigError, match=r"laws\.toml"):
        calibrate(gemm_table, GPU, out=out)
    assert out.read_text() == "not toml"


def test_plot_shows_every_class_and_the_hold_out(gemm_table, tmp_path):
    plot = tmp_path / "fit.svg"
    calibrate(gemm_table, GPU, hold_out=["n=8192"], plot=plot)
    assert plot.read_text().lstrip().startswith("<?xml")


def test_bad_requests_are_refused(gemm_table, tmp_path):
    with pytest.raises(UnknownNameError, match="rtx-3090"):
        calibrate(gemm_table, "rtx-3080")
    with pytest.raises(ConfigError, match="m=7 leaves no row"):
        calibrate(gemm_table, GPU, ["m=7"])
    with pytest.raises(ConfigError, match="m=7 matches no row"):
        calibrate(gemm_table, GPU, hold_out=["m=7"])
    with pytest.raises(ConfigError, match="no row to fit outside the hold-out"):
        calibrate(gemm_table, GPU, hold_out=["m>0"])
    with pytest.raises(ConfigError, match="1 points; at least 8"):
        calibrate(gemm_table, GPU, ["m=1", "n=2048", "k=2048"])


def test_a_bad_row_leaves_no_entry(gemm_table, tmp_path):
    gemm_table.write_text(gemm_table.read_text() + "1,1,1,-5\n")
    out, plot = tmp_path / "laws.toml", tmp_path / "fit.svg"
    with pytest.raises(ConfigError, match=r"row 21 \(line 22\), time_us: must not be negative"):
        calibrate(gemm_table, GPU, out=out, plot=plot)
    assert not out.exists()
    assert not plot.exists()


def test_the_same_table_gives_the_same_entry(gemm_table, tmp_path):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    for out in (first, second):
        calibrate(gemm_table, GPU, out=out)
    assert first.read_bytes() == second.read_bytes()
    assert np.isfinite(tomllib.loads(first.read_text())[f"{GPU}:user"]["smooth_gemm"]["value"]["launch_us"])
