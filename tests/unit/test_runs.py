"""Whole runs: the same each time, however fine the trace, at a known number of events, and lawful."""

import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest

import hetmem
from hetmem.errors import ConservationError
from hetmem.hardware.lane import Lane
from hetmem.model import FP16, StepShape, head_kernels, layer_kernels
from hetmem.monitor.recorder import Recorder
from hetmem.study import simulate as simulate_module
from hetmem.system.resident import Resident
from hetmem.workload import fixed

SMALL = fixed(40, 8, 3)
CASES = {
    "resident": {"model": "llama2-13b"},
    "accelerate": {"model": "opt-30b"},
    "zero-inference": {"model": "opt-13b"},
    "ndp-dimm": {"model": "llama2-70b"},
}


def run(system, **options):
    return hetmem.simulate(system, **{"workload": SMALL, **CASES[system], **options})


def tables(done):
    found = {name: getattr(done, name).to_arrow() for name in ("requests", "steps", "utilization")}
    if done.tasks is not None:
        found["tasks"] = done.tasks.to_arrow()
    return found, dict(done.counters), done.energy.by_component, dict(done.busy_ps), done.summary()


# -- determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", CASES)
def test_the_same_scenario_gives_the_same_tables(system):
    options = {"workload": fixed(40, 6, 5), "rate": 50.0, "trace": True, "seed": 5}
    assert tables(run(system, **options)) == tables(run(system, **options))


def test_the_seed_alone_decides_which_requests_are_drawn():
    first, again, other = (tables(run("resident", workload="chat", requests=1, seed=seed))[0] for seed in (1, 1, 2))
    assert first == again
    assert first["requests"] != other["requests"]


def test_a_saved_run_has_the_same_bytes_under_another_hash_seed(tmp_path):
    options = {"model": "llama2-70b", "workload": "chat", "requests": 3, "rate": 9.0, "trace": True, "seed": 3}
    hetmem.simulate("resident", **options).save(tmp_path / "here")
    code = "import sys, hetmem; hetmem.simulate('resident', **eval(sys.argv[1])).save(sys.argv[2])"
    own = os.environ.get("PYTHONHASHSEED", "random")
    environment = {**os.environ, "PYTHONHASHSEED": "77" if own != "77" else "78"}
    subprocess.run([sys.executable, "-c", code, repr(options), str(tmp_path / "there")], env=environment, check=True)
    files = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert files == ["energy.parquet", "manifest.json", "requests.parquet", "steps.parquet", "tasks.parquet",
                     "utilization.parquet"]  # fmt: skip
    for name in files:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


@pytest.mark.parametrize("system", CASES)
def test_tracing_changes_nothing(system):
    plain, traced = run(system), run(system, trace=True)
    found, *rest = tables(traced)
    assert len(found.pop("tasks")) == traced.counters["tasks"]
    assert [found, *rest] == list(tables(plain))


# -- folding and events ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assumptions", ["fair", "as-published"])
@pytest.mark.parametrize("system", ["resident", "accelerate", "ndp-dimm"])
def test_a_task_per_layer_gives_the_ticks_of_one_for_all_alike(system, assumptions):
    folded = run(system, assumptions=assumptions)
    unrolled = run(system, assumptions=assumptions, settings={"serving.unroll_layers": True})
    assert unrolled.counters["tasks"] > 1.5 * folded.counters["tasks"]
    assert unrolled.steps.to_arrow() == folded.steps.to_arrow()
    assert unrolled.requests.to_arrow() == folded.requests.to_arrow()
    assert unrolled.utilization.to_arrow() == folded.utilization.to_arrow()
    assert unrolled.energy == folded.energy


def decode_step(system, **options):
    """Return (events, tasks) of one decode step: the difference a further output token makes."""
    options = {"engine": "event"} | options
    shorter, longer = (run(system, workload=fixed(16, n, 1), **options).counters for n in (5, 6))
    assert longer["steps"] == shorter["steps"] + 1
    return longer["events"] - shorter["events"], longer["tasks"] - shorter["tasks"]


CONTROL = 3  # the gate, the outcome, and the scheduler's wake


@pytest.mark.parametrize("system", ["resident", "accelerate", "ndp-dimm"])
def test_the_evaluator_takes_an_arbitration_for_all_tasks_of_a_step(system):
    events, tasks = decode_step(system, engine="auto")
    assert events == 1 + CONTROL
    assert tasks > 10


@pytest.mark.parametrize("unroll", [False, True])
def test_the_events_of_a_decode_step_of_resident(unroll):
    """Two services and a wake of the memory for a task of kernels; the GPU itself is woken once.

    Folded, the layers are one such task and the head is another; unrolled, each kernel of each layer is.
    """
    model = hetmem.load_model("llama2-13b")
    layer, head = (
        layer_kernels(model, StepShape.decode(1, 20), FP16),
        head_kernels(model, StepShape.decode(1, 20), FP16),
    )
    attention = sum(kernel.name in ("qk", "softmax", "sv") for kernel in layer)  # one launch
    kernels = (len(layer) - attention + 1) * model.n_layers + len(head) if unroll else 2
    events, tasks = decode_step("resident", gpus=1, settings={"serving.unroll_layers": unroll})
    assert (events, tasks) == (3 * kernels + 1 + CONTROL, 2 * kernels)


@pytest.mark.parametrize("dimms", [8, 16])
def test_the_events_of_a_decode_step_of_ndp_dimm(dimms):
    """A service for every task, a wake for every server that was idle, a lag for every hop."""
    done = run("ndp-dimm", workload=fixed(16, 6, 1), trace=True, dimms=dimms).tasks.to_pandas()
    last = done[done["step"] == done["step"].max()].sort_values("start_ps", kind="stable")
    kinds = [
        "hop" if server.startswith("pcie") else "dimm" if server.startswith("dimm") else "gpu"
        for server in last.drop_duplicates(["start_ps", "task"])["server"]
    ]
    assert {*kinds} == {"hop", "dimm", "gpu"}
    served = {"hop": 1, "gpu": 2, "dimm": 2 * dimms}
    events, tasks = decode_step("ndp-dimm", dimms=dimms)
    assert tasks == len(last) == sum(served[kind] for kind in kinds)
    # Of a kernel that follows another on the same side, the server that ended last is still awake.
    awake = sum(before == kind and kind != "hop" for before, kind in pairwise(["", *kinds]))
    assert events == 2 * tasks - awake + kinds.count("hop") + CONTROL


# -- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", CASES)
def test_every_run_conserves(system):
    done = run(system, workload=fixed(40, 6, 5), rate=3.0)
    emitted = sum(done.steps.column("emitted_tokens"))
    assert sum(done.requests.column("output_tokens")) == done.output_tokens == emitted
    assert done.counters["kv_blocks_allocated"] == done.counters["kv_blocks_freed"]
    assert done.counters["kv_blocks_held"] == 0
    ends_with_the_last_step = done.elapsed_ps == done.steps.column("end_ps")[-1]
    for name, busy in done.busy_ps.items():
        within_steps = done.utilization.column(name).sum()
        assert within_steps <= busy <= done.elapsed_ps
        assert within_steps == busy or not ends_with_the_last_step
    arrival, admitted, first, finish = (
        done.requests.column(name) for name in ("arrival_ps", "admitted_ps", "first_token_ps", "finish_ps")
    )
    assert (arrival <= admitted).all()
    assert (admitted < first).all()
    assert (first <= finish).all()


def test_a_step_that_beats_its_bytes_is_found_at_the_end(monkeypatch):
    monkeypatch.setattr(Resident, "floor_s", lambda self, view: 10.0)
    with pytest.raises(ConservationError, match="physical lower bound violated: step"):
        run("resident")


def test_tokens_that_nobody_receives_are_found(monkeypatch):
    step = Recorder.step
    monkeypatch.setattr(
        Recorder,
        "step",
        lambda self, outcome, prefill, n, emitted, kv: step(self, outcome, prefill, n, emitted + 1, kv),
    )
    with pytest.raises(ConservationError, match="tokens violated"):
        run("resident")


def test_a_server_that_is_busier_than_time_allows_is_found(monkeypatch):
    monkeypatch.setattr(Lane, "busy_at", lambda self, tick: tick + 1)
    with pytest.raises(ConservationError, match=r"busy \+ idle = elapsed violated: gpu0 was busy"):
        run("resident")


def test_bytes_that_no_server_served_are_found(monkeypatch):
    elaborate = simulate_module.Executor.check_drained

    def tampered(executor):
        executor.servers["gpu0.hbm"].bytes -= 1
        elaborate(executor)

    monkeypatch.setattr(simulate_module.Executor, "check_drained", tampered)
    with pytest.raises(ConservationError, match=r"bytes in = bytes out violated: gpu0\.hbm"):
        run("resident", engine="event")


def test_a_comparison_is_the_same_over_several_processes() -> None:
    asked: dict[str, Any] = {"model": "opt-6.7b", "workload": hetmem.fixed(32, 4, 2), "assumptions": "fair"}
    systems = ["resident", "ndp-dimm", "m2cache"]
    reported: list[float] = []
    one = hetmem.compare(systems, **asked)
    two = hetmem.compare(systems, **asked, workers=2, report=lambda _, done, n: reported.append(done / n))
    assert two.as_json() == one.as_json()
    assert [run and run.steps.to_arrow() for run in two.runs] == [run and run.steps.to_arrow() for run in one.runs]
    assert reported == sorted(reported)
    assert reported[-1] == 1.0
