"""Sweeps: the same bytes from every executor, nothing lost, nothing run twice, failures kept apart."""

import fcntl
import json
import subprocess
import sys
from concurrent.futures import Future

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hetmem
from hetmem.cli import main
from hetmem.errors import ConfigError
from hetmem.monitor.save import MANIFEST
from hetmem.study import dataset
from hetmem.study.executors import DaskExecutor, Executor, ProcessExecutor, SerialExecutor
from hetmem.study.metrics import METRICS, Metric, metric, register
from hetmem.study.point import grid
from hetmem.study.store import Store
from hetmem.study.sweep import run_point, sweep

BASE = {"system": "ndp-dimm", "model": "opt-6.7b", "prompt": 8, "output": 2}
POINTS = grid({"machine.dimm.count": [1, 4, 8], "batch": [1, 2], "assumptions": ["fair", "as-published"]}, BASE)
REFUSED = {**BASE, "model": "llama2-70b", "dimms": 1}


class Counting(SerialExecutor):
    """Runs in this process, counts what was run, and plants errors by the number of the call."""

    def __init__(self, fail=(), stop_at=None):
        self.calls, self.fail, self.stop_at = 0, set(fail), stop_at

    def submit(self, function, /, *args):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        if self.calls in self.fail:
            future = Future()
            future.set_exception(ZeroDivisionError("planted"))
            return future
        return super().submit(function, *args)


class Backwards(Executor):
    """Runs what it was given last first, when it has four tasks or is asked to close."""

    width = 2

    def __init__(self):
        self.held = []

    def submit(self, function, /, *args):
        future = Future()
        self.held.append((future, function, args))
        if len(self.held) == 4:
            while self.held:
                future_, function_, args_ = self.held.pop()
                future_.set_result(function_(*args_))
        return future


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Return the sweep of POINTS in one process."""
    return sweep(POINTS, tmp_path_factory.mktemp("reference"), executor=SerialExecutor())


def test_rows_are_what_simulate_gives(reference):
    frame = reference.to_pandas()
    assert (reference.done, reference.refused, reference.failed, reference.found) == (12, 0, 0, 0)
    assert frame["identity"].tolist() == sorted(frame["identity"])
    assert frame.groupby(["machine.dimm.count", "batch", "assumptions"]).size().tolist() == [1] * 12
    row = frame[(frame["machine.dimm.count"] == 4) & (frame["batch"] == 2) & (frame["assumptions"] == "fair")].iloc[0]
    run = hetmem.simulate("ndp-dimm", model="opt-6.7b", workload=hetmem.fixed(8, 2, 2), dimms=4)
    summary = run.summary()
    assert row["tokens_per_s"] == summary["tokens_per_s"]
    assert row["latency_s_p99"] == summary["latency_s"]["p99"]
    assert row["power_w"] == run.energy.total_j / run.elapsed_s
    assert dict(row["time_share"]) == summary["time_share"]
    assert sum(dict(row["energy_j"]).values()) == pytest.approx(run.energy.total_j, rel=1e-12)
    assert (row["requests_in"], row["requests_done"], row["output_tokens"]) == (2, 2, 4)
    assert row["steps"] == len(run.steps)


def test_same_bytes_in_any_order(reference, tmp_path):
    for name, points, executor in (
        ("reversed", POINTS[::-1], SerialExecutor()),
        ("backwards", POINTS[5:] + POINTS[:5], Backwards()),
        ("respelled", [{**p, "dimms": p["machine.dimm.count"]} for p in POINTS], SerialExecutor()),
    ):
        found = sweep(points, tmp_path / name, executor=executor)
        assert found.dataset.read_bytes() == reference.dataset.read_bytes()


def test_same_bytes_from_two_processes(reference, tmp_path):
    with ProcessExecutor(2) as executor:
        found = sweep(POINTS, tmp_path / "pool", executor=executor)
    assert found.dataset.read_bytes() == reference.dataset.read_bytes()
    for point in reference.points:
        one, other = (s.directory / "points" / point.identity / MANIFEST for s in (reference, found))
        assert one.read_bytes() == other.read_bytes()


def test_same_bytes_from_dask(reference, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="inproc://"
        ) as cluster,
        distributed.Client(cluster) as client,
        DaskExecutor(client) as executor,
    ):
        assert executor.width == 2
        found = sweep(POINTS, tmp_path / "dask", executor=executor)
    assert found.dataset.read_bytes() == reference.dataset.read_bytes()


def test_finished_points_are_not_run_again(reference, tmp_path):
    half = sweep(POINTS[:6], tmp_path, executor=SerialExecutor())
    stamps = {p.identity: (tmp_path / "points" / p.identity / MANIFEST).stat().st_mtime_ns for p in half.points}
    counting = Counting()
    found = sweep(POINTS, tmp_path, executor=counting)
    assert (counting.calls, found.found) == (6, 6)
    assert found.dataset.read_bytes() == reference.dataset.read_bytes()
    for identity, stamp in stamps.items():
        assert (tmp_path / "points" / identity / MANIFEST).stat().st_mtime_ns == stamp


@pytest.mark.parametrize("stop_at", range(1, 13))
def test_an_interrupted_sweep_goes_on_where_it_stopped(reference, tmp_path, stop_at):
    with pytest.raises(KeyboardInterrupt):
        sweep(POINTS, tmp_path, executor=Counting(stop_at=stop_at))
    assert not (tmp_path / dataset.DATASET).exists()
    assert len(list((tmp_path / "points").iterdir())) == stop_at - 1
    rest = Counting()
    found = sweep(POINTS, tmp_path, executor=rest)
    assert rest.calls == len(POINTS) - stop_at + 1
    assert found.dataset.read_bytes() == reference.dataset.read_bytes()


def test_a_point_that_a_worker_finds_finished_is_left_alone(tmp_path):
    found = sweep(POINTS[:1], tmp_path, executor=SerialExecutor())
    path = tmp_path / "points" / found.points[0].identity / MANIFEST
    before = path.stat().st_mtime_ns
    run_point(found.points[0].values, found.points[0].identity, str(tmp_path), False)
    assert path.stat().st_mtime_ns == before


def test_two_that_finish_the_same_point_leave_the_first(tmp_path):
    store = Store(tmp_path)
    store.finish("ab", {}, {"who": 1})
    store.finish("ab", {}, {"who": 2})
    assert store.manifest("ab")["who"] == 1
    assert [path.name for path in (tmp_path / "points").iterdir()] == ["ab"]


def test_failures_are_recorded_and_retried_on_request(reference, tmp_path):
    found = sweep(POINTS, tmp_path, executor=Counting(fail={2, 5}))
    assert (found.done, found.failed) == (10, 2)
    frame = found.to_pandas().set_index("identity")
    records = sorted((tmp_path / "failed").glob("*.json"))
    assert [path.stem for path in records] == sorted(frame.index[frame["status"] == "failed"])
    record = json.loads(records[0].read_text())
    assert record["error"] == "ZeroDivisionError: planted"
    assert record["traceback"].splitlines()[-1] == "ZeroDivisionError: planted"
    assert record["point"].keys() == POINTS[0].keys()
    failed = frame.loc[record["identity"]]
    assert (failed["reason"], failed["system"]) == ("ZeroDivisionError: planted", "ndp-dimm")
    assert pd.isna(failed["tokens_per_s"])

    untouched = Counting()
    again = sweep(POINTS, tmp_path, executor=untouched)
    assert (untouched.calls, again.failed, again.found) == (0, 2, 10)
    assert again.dataset.read_bytes() == found.dataset.read_bytes()

    retried = Counting()
    healed = sweep(POINTS, tmp_path, executor=retried, retry_failed=True)
    assert (retried.calls, healed.failed) == (2, 0)
    assert list((tmp_path / "failed").iterdir()) == []
    assert healed.dataset.read_bytes() == reference.dataset.read_bytes()


def test_an_error_in_a_worker_keeps_its_traceback(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,in_tokens,out_tokens\n0,8,2\n")

    class Spoiling(ProcessExecutor):
        def submit(self, function, /, *args):
            trace.write_text("arrival_s,in_tokens,out_tokens\n0,9,2\n")
            return super().submit(function, *args)

    points = [{"system": "resident", "model": "opt-6.7b", "workload": str(trace)}]
    with Spoiling(1) as executor:
        found = sweep(points, tmp_path / "out", executor=executor)
    (path,) = (tmp_path / "out" / "failed").glob("*.json")
    record = json.loads(path.read_text())
    assert found.failed == 1
    assert "its version, catalogue or files differ" in record["error"]
    assert "in run_point" in record["traceback"]
    assert list((tmp_path / "out" / "points").iterdir()) == []


def test_a_system_that_refuses_is_a_result(tmp_path):
    counting = Counting()
    found = sweep([REFUSED, POINTS[0]], tmp_path, executor=counting)
    frame = found.to_pandas()
    assert (found.done, found.refused, found.failed) == (1, 1, 0)
    (row,) = frame[frame["status"] == "refused"].to_dict("records")
    assert "GB asked" in row["reason"]
    assert (row["model"], row["dimms"]) == ("llama2-70b", 1)
    assert sweep([REFUSED, POINTS[0]], tmp_path, executor=counting).found == 2
    assert counting.calls == 2


def test_tables_are_kept_on_request(tmp_path):
    found = sweep(POINTS[:1], tmp_path, executor=SerialExecutor(), tables=True)
    folder = tmp_path / "points" / found.points[0].identity
    names = {path.name for path in folder.iterdir()}
    assert names >= {MANIFEST, "steps.parquet", "requests.parquet", "utilization.parquet", "energy.parquet"}
    assert len(pq.read_table(folder / "steps.parquet")) == found.to_pandas()["steps"].iloc[0]


def test_progress_counts_up(tmp_path):
    seen = []
    sweep(POINTS[:3], tmp_path, executor=SerialExecutor(), report=seen.append)
    sweep(POINTS[:5], tmp_path, executor=Counting(fail={1}), report=seen.append)
    assert [(now.done, now.total, now.found, now.failed) for now in seen] == [
        (0, 3, 0, 0), (1, 3, 0, 0), (2, 3, 0, 0), (3, 3, 0, 0), (3, 5, 3, 0), (4, 5, 3, seen[5].failed), (5, 5, 3, 1),
    ]  # fmt: skip


def test_one_sweep_at_a_time(tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another sweep is writing"):
            sweep(POINTS[:1], tmp_path, executor=SerialExecutor())
    assert sweep(POINTS[:1], tmp_path, executor=SerialExecutor()).done == 1


def test_what_a_killed_sweep_left_is_cleared(tmp_path):
    (tmp_path / "points" / ".ab.x.partial").mkdir(parents=True)
    (tmp_path / "points" / ".ab.x.partial" / "steps.parquet").touch()
    (tmp_path / ".dataset.parquet.y.partial").touch()
    sweep(POINTS[:1], tmp_path, executor=SerialExecutor())
    assert list(tmp_path.rglob("*.partial")) == []


def test_bad_points_are_refused_before_anything_runs(tmp_path):
    counting = Counting()
    with pytest.raises(ConfigError, match="points: there are none"):
        sweep([], tmp_path / "out", executor=counting)
    with pytest.raises(hetmem.HetmemError, match=r"point 2 \(batch=0"):
        sweep([POINTS[0], {**POINTS[0], "batch": 0}], tmp_path / "out", executor=counting)
    assert counting.calls == 0
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out: .* cannot be written"):
        sweep(POINTS[:1], tmp_path / "file", executor=SerialExecutor())


def test_workers_without_the_folder_are_noticed(tmp_path):
    class Elsewhere(SerialExecutor):
        def submit(self, function, /, values, identity, directory, tables):
            return super().submit(function, values, identity, str(tmp_path / "elsewhere"), tables)

    with pytest.raises(ConfigError, match="shared folder"):
        sweep(POINTS[:1], tmp_path / "out", executor=Elsewhere())


def test_workers_that_give_up_are_noticed(tmp_path):
    class GivingUp(SerialExecutor):
        def submit(self, function, /, *args):
            future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with pytest.raises(ConfigError, match="start the sweep again"):
        sweep(POINTS[:1], tmp_path, executor=GivingUp())


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(
        "import hetmem\n"
        "from hetmem.study.executors import ProcessExecutor\n"
        f"points = [{POINTS[0]!r}]\n"
        f"with ProcessExecutor(1) as executor: hetmem.sweep(points, {str(tmp_path / 'out')!r}, executor=executor)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "must do so under if __name__ == '__main__':" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "out" / "failed").iterdir()) == []


def test_types_do_not_depend_on_the_values():
    row = {"identity": "a", "status": "failed", "reason": "x", "rate": None, "batch": 1, "bound": None,
           "tokens_per_s": None, "time_share": None, "some.path": None}  # fmt: skip
    schema = dataset.as_table([row]).schema
    kinds = {name: schema.field(name).type for name in row}
    assert kinds["rate"] == kinds["tokens_per_s"] == pa.float64()
    assert (kinds["batch"], kinds["bound"]) == (pa.int64(), pa.string())
    assert kinds["time_share"] == pa.map_(pa.string(), pa.float64())
    assert schema.metadata[b"hetmem_version"].decode() == hetmem.__version__


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ([1, None], pa.int64(), [1, None]),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([True, False], pa.bool_(), [True, False]),
        (["a", None], pa.string(), ["a", None]),
        ([1, "a"], pa.string(), ["1", "a"]),
        ([[1, 2], None], pa.string(), ["[1, 2]", None]),
        ([None, None], pa.string(), [None, None]),
    ],
)
def test_columns_of_settings(values, kind, kept):
    column = dataset.as_table([{"some.path": value} for value in values])["some.path"]
    assert (column.type, column.to_pylist()) == (kind, kept)


def test_a_metric_of_ones_own_is_a_column(tmp_path, monkeypatch):
    monkeypatch.setattr("hetmem.study.metrics.METRICS", METRICS)
    register(Metric("jobs_per_step", "jobs per step", "min", lambda run, _: run.counters["tasks"] / len(run.steps)))
    try:
        frame = sweep(POINTS[:1], tmp_path, executor=SerialExecutor()).to_pandas()
        assert frame["jobs_per_step"].iloc[0] > 1
        with pytest.raises(ConfigError, match="registered already"):
            register(metric("jobs_per_step"))
    finally:
        del METRICS["jobs_per_step"]


def test_excess_is_relative_and_knows_the_direction():
    assert metric("power_w").excess(110.0, 100.0) == pytest.approx(0.1)
    assert metric("power_w").excess(90.0, 100.0) < 0
    assert metric("tokens_per_s").excess(90.0, 100.0) == pytest.approx(0.1)
    assert metric("power_w").excess(3.0, 0.0) == 3.0
    with pytest.raises(hetmem.HetmemError, match="did you mean 'power_w'"):
        metric("power")


def call(capsys, *words):
    with pytest.raises(SystemExit) as done:
        main(words)
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


QUICK = ("--model", "opt-6.7b", "--prompt", "8", "--output", "2")
HERE = ("--workers", "0")


def test_the_command_runs_a_grid_and_goes_on(reference, tmp_path, capsys):
    words = ("sweep", "ndp-dimm", *QUICK, *HERE, "--grid", "machine.dimm.count=1,4,8", "batch=1,2",
             "--grid", "assumptions=fair,as-published", "--out", str(tmp_path))  # fmt: skip
    status, out, err = call(capsys, *words)
    assert (status, err) == (0, "")
    assert "12 of 12 points have a result\n" in out
    assert str(tmp_path / dataset.DATASET) in out
    assert (tmp_path / dataset.DATASET).read_bytes() == reference.dataset.read_bytes()
    status, out, _ = call(capsys, *words, "--json")
    assert status == 0
    assert json.loads(out)["points"] == {"asked": 12, "found": 12, "done": 12, "refused": 0, "failed": 0}


def test_the_command_reads_points_over_its_options(tmp_path, capsys):
    (tmp_path / "points.csv").write_text("machine.dimm.count,batch\n4,\n8,2\n")
    status, _, _ = call(
        capsys, "sweep", "ndp-dimm", *QUICK, *HERE, "--batch", "3", "--set", "serving.block_tokens=8", "--policy",
        "admission=shortest", "--points", str(tmp_path / "points.csv"), "--out", str(tmp_path / "out"),
    )  # fmt: skip
    frame = pd.read_parquet(tmp_path / "out" / dataset.DATASET).sort_values("machine.dimm.count")
    assert status == 0
    assert frame["batch"].tolist() == [3, 2]
    assert frame["serving.block_tokens"].tolist() == [8, 8]
    assert frame["policy.admission"].tolist() == ["shortest", "shortest"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "grid: expected --grid or --points"),
        (("--grid", "batch=1", "--points", "x.csv"), "grid: expected --grid or --points"),
        (("--grid", "bacth=1"), "did you mean 'batch'"),
        (("--grid", "batch=1", "--workers", "-1"), "workers: expected at least 1"),
        (("--grid", "batch=1", "--workers", "2", "--dask", "tcp://x:1"), "workers: is for local processes"),
        (("--points", "no.csv"), "no.csv cannot be read"),
    ],
)
def test_the_command_refuses(tmp_path, capsys, words, problem):
    status, out, err = call(capsys, "sweep", "ndp-dimm", *QUICK, "--out", str(tmp_path / "out"), *words)
    assert (status, out) == (2, "")
    assert problem in err
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_failed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hetmem.study.executors.SerialExecutor", lambda: Counting(fail={1}))
    words = ("sweep", "ndp-dimm", *QUICK, *HERE, "--grid", "dimms=4,8", "--out", str(tmp_path))
    status, out, _ = call(capsys, *words)
    assert status == 1
    assert "1 of 2 points have a result" in out
    assert "ZeroDivisionError: planted" in out
    monkeypatch.undo()
    status, out, _ = call(capsys, *words, "--retry-failed")
    assert (status, "2 of 2 points have a result, 1 of them before" in out) == (0, True)


def test_progress_goes_to_a_terminal_only(tmp_path, monkeypatch, capsys):
    from hetmem import progress
    from hetmem.study.sweep import Progress

    class Terminal:
        def __init__(self, stream):
            self.stream = stream

        def isatty(self):
            return True

        def __getattr__(self, name):
            return getattr(self.stream, name)

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", Terminal(sys.stderr))
    with progress.points() as report:
        for done in range(5):
            report(Progress(done, 4, 0, 1))
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err
    assert "1 failed" in err
    assert "points/s" in err
