"""A measured vLLM run replayed: nothing fitted on it, and its capacity swept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hetmem
from hetmem.study.reference_data import read as read_rows
from hetmem.study.reproduce import reproduce
from hetmem.study.reproduce_serving import REQUESTS, SET_UP


@pytest.fixture(autouse=True)
def data(shared_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    path = shared_data(REQUESTS)
    monkeypatch.setenv("HETMEM_SHARED_DATA", str(path.parents[1]))
    return path


def replay(path: Path, **changed: Any) -> hetmem.Run:
    return hetmem.simulate("resident", workload=hetmem.from_file(path), **{**SET_UP, **changed})


def test_the_measured_run_is_met_without_fitting(data: Path) -> None:
    rows = read_rows(REQUESTS)
    queued, first, last, out = (
        np.array([float(row[name]) for row in rows])
        for name in ("queued_s", "first_token_s", "last_token_s", "out_tokens")
    )
    run = replay(data)
    ours = {name: values.mean() for name, values in run.latencies_s().items()}
    assert ours["tpot_s"] == pytest.approx(((last - first) / (out - 1)).mean(), rel=0.10)
    assert run.makespan_s == pytest.approx(last.max(), rel=0.10)
    assert ours["latency_s"] == pytest.approx((last - queued).mean(), rel=0.12)
    assert ours["ttft_s"] == pytest.approx((first - queued).mean(), rel=0.25)
    full = run.steps.column("running") >= 124
    assert 10.5 <= run.steps.column("start_ps")[full].min() * 1e-12 <= 13.5
    assert 44 <= run.steps.column("end_ps")[full].max() * 1e-12 <= 54
    assert run.summary()["batch"]["max"] == 128
    assert run.counters["preemptions"] == 0
    assert run.steps.column("prefill_tokens").sum() == sum(int(row["in_tokens"]) for row in rows)
    assert (run.steps.column("prefill_tokens") + run.steps.column("decode_sequences")).max() <= 2048


@pytest.mark.slow
def test_capacity_only_ever_costs_time(data: Path) -> None:
    def figures(run: hetmem.Run) -> tuple[float, float, int]:
        return float(run.latencies_s()["ttft_s"].mean()), run.makespan_s, run.counters["preemptions"]

    ample, least = (replay(data, kv_blocks=blocks) for blocks in (35_913, 12_000))
    for name in ample.requests.columns:
        assert np.array_equal(ample.requests.column(name), least.requests.column(name))
    assert ample.elapsed_ps == least.elapsed_ps
    swept = [figures(least)] + [figures(replay(data, kv_blocks=blocks)) for blocks in (10_000, 9_000, 7_000, 5_000)]
    ttft, makespan, preemptions = zip(*swept, strict=True)
    assert list(ttft) == sorted(ttft)
    assert list(makespan) == sorted(makespan)
    assert preemptions[0] == 0
    assert preemptions[2] > 0


@pytest.mark.slow
def test_every_gated_row_of_the_reproduction_holds(data: Path, tmp_path: Path) -> None:
    from hetmem.study.reproduce import draw

    rows = {row.quantity: row for row in reproduce("serving")}
    assert not [row.quantity for row in rows.values() if row.verdict == "miss"]
    assert {row.verdict for row in rows.values() if row.tolerance is not None} == {"match"}
    for metric in ("ttft_s", "tpot_s", "latency_s"):
        for statistic in ("mean", "p50", "p90", "p99"):
            assert rows[f"{metric}.{statistic}"].paper is not None
            # What the replay leaves out can only add time; the naive roofline leaves out more.
            naive, host = (rows[f"{name}{metric}.{statistic}"].fair for name in ("roofline.", "host-1ms."))
            assert naive < rows[f"{metric}.{statistic}"].fair < host
    for gpu in ("a100-sxm-80gb", "h100-sxm-80gb"):
        for size in ("to_32", "33_to_256", "above_256"):
            assert f"kernel.{gpu}.linear_{size}.p90_pct" in rows
    draw("serving", tmp_path / "serving.png")
    assert (tmp_path / "serving.png").stat().st_size > 10_000
