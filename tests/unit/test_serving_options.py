"""Options of serving and parallelism: what each does to a run, and how wrong ones are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hetmem
from hetmem.cli import main
from hetmem.errors import ConfigError, HetmemError, UnknownNameError, UnsupportedError
from hetmem.study.scenario import Scenario, scenario
from hetmem.units import to_ps


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty requests in two seconds, with a column that nobody reads."""
    path = tmp_path_factory.mktemp("trace") / "requests.csv"
    lines = [f"{k * 0.1:.1f},{100 + 53 * k % 400},{20 + 7 * k % 90},x{k}" for k in range(20)]
    path.write_text("\n".join(["arrival_s,in_tokens,out_tokens,remark", *lines]) + "\n")
    return path


def run(trace: Path, **options: Any) -> hetmem.Run:
    given = {"model": "llama3.1-8b", "gpu": "a100-sxm-80gb", "max_num_seqs": 8, **options}
    return hetmem.simulate("resident", workload=hetmem.from_file(trace), **given)


def asked(**options: Any) -> Scenario:
    return scenario("resident", **{"model": "llama3.1-8b", "workload_": hetmem.fixed(8, 2, 1), **options})


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(words)
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


@pytest.mark.parametrize(
    ("options", "gpus", "stages"),
    [
        ({}, 2, 1), ({"gpus": 4}, 4, 1), ({"tp": 4}, 4, 1), ({"pp": 2}, 2, 2), ({"tp": 2, "pp": 3}, 6, 3),
        ({"gpus": 8, "pp": 2}, 8, 2), ({"gpus": 8, "tp": 2}, 8, 4), ({"gpus": 6, "tp": 2, "pp": 3}, 6, 3),
        ({"gpu": "rtx-4090"}, 1, 1), ({"gpu": "rtx-4090", "model": "llama2-13b"}, 2, 1),
        ({"gpu": "rtx-4090", "model": "llama2-70b"}, 2, 1),
    ],
)  # fmt: skip
def test_gpus_are_shards_times_stages(options: dict[str, Any], gpus: int, stages: int) -> None:
    machine = asked(**options).configuration().machine
    assert (machine.gpus, machine.stages, machine.shards) == (gpus, stages, gpus // stages)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"gpus": 8, "tp": 2, "pp": 2}, ConfigError, r"gpus: 8 GPUs are not tp 2 x pp 2"),
        ({"gpus": 3, "pp": 2}, ConfigError, "3 GPUs are not pp 2"),
        ({"pp": 0}, ConfigError, "pp: expected a whole number of at least 1, not 0"),
        ({"kv_blocks": 1.5}, ConfigError, "kv_blocks: expected a whole number"),
        ({"preempt": "swop"}, UnknownNameError, "did you mean 'swap'"),
        ({"attention": "mixt"}, UnknownNameError, "did you mean 'mixed'"),
        ({"swap_to": "host"}, ConfigError, "swap_to: goes with preempt = swap"),
        ({"host_step_us": -1}, ConfigError, "host_step_us: expected microseconds"),
        ({"batch": 4, "max_num_seqs": 8}, ConfigError, "another name of batch, which is 4, not 8"),
        ({"admission": "fcfs", "policies": {"admission": "shortest"}}, ConfigError, "the policy is shortest"),
        ({"stack": "vidor", "gpu": "a100-sxm-80gb"}, UnknownNameError, "did you mean 'vidur'"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(options: dict[str, Any], error: type[HetmemError], says: str) -> None:
    with pytest.raises(error, match=says):
        asked(**options).configuration()


@pytest.mark.parametrize(
    ("system", "options", "says"),
    [
        ("accelerate", {"pp": 2}, "accelerate: has no pipeline stages|accelerate: runs on one GPU"),
        ("ndp-dimm", {"preempt": "swap"}, "no memory 'host' to swap keys and values to; it has none"),
        ("resident", {"preempt": "swap", "swap_to": "attic"}, "no memory 'attic' .* it has host"),
        ("resident", {"kv_memory": "attic"}, "in GPU memory or in host, not in attic"),
        ("zero-inference", {"kv_memory": "host"}, "places its KV cache itself"),
        ("resident", {"pp": 64}, "llama3.1-8b has 32 layers, too few for 64 pipeline stages"),
    ],
)
def test_what_a_system_cannot_do_it_refuses(trace: Path, system: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        hetmem.simulate(system, model="llama3.1-8b", workload=hetmem.from_file(trace), **options)


def test_host_time_comes_before_every_step_exactly(trace: Path) -> None:
    """A closed batch: the same steps, each longer by the host's time."""
    given = {"model": "llama3.1-8b", "gpu": "a100-sxm-80gb", "workload": hetmem.fixed(64, 9, 3)}
    without, host = (hetmem.simulate("resident", **given, host_step_us=us) for us in (0, 137.5))
    steps = without.counters["steps"]
    assert host.counters["steps"] == steps
    assert host.elapsed_ps - without.elapsed_ps == steps * to_ps(137.5e-6) == host.busy_ps["host.engine"]
    assert host.busy_ps["gpu0"] == without.busy_ps["gpu0"]


def test_attention_is_composed_as_asked_and_named(trace: Path) -> None:
    apart, together = (run(trace, attention=how) for how in ("sum", "mixed"))
    assert (apart.summary()["attention"], together.summary()["attention"]) == ("sum", "mixed")
    assert together.makespan_s != apart.makespan_s
    # Without a step that has both, there is nothing to compose.
    alone = [
        hetmem.simulate("resident", model="opt-13b", workload=hetmem.fixed(64, 9, 3), attention=how).elapsed_ps
        for how in ("sum", "mixed")
    ]
    assert alone[0] == alone[1]


def test_a_stack_is_chosen_and_named(trace: Path) -> None:
    runs = {stack: run(trace, stack=stack) for stack in (None, "vidur", "vllm-0.14", "ideal")}
    assert [one.summary()["stack"] for one in runs.values()] == ["vidur", "vidur", "vllm-0.14", "ideal"]
    assert runs[None].elapsed_ps == runs["vidur"].elapsed_ps
    assert runs["ideal"].makespan_s < min(runs["vidur"].makespan_s, runs["vllm-0.14"].makespan_s)


def test_swapped_sequences_are_not_computed_again(trace: Path) -> None:
    prompts = sum(100 + 53 * k % 400 for k in range(20))
    recompute, swap = (run(trace, kv_blocks=60, preempt=how) for how in ("recompute", "swap"))
    assert recompute.counters["preemptions"] > 0
    assert swap.counters["preemptions"] > 0
    assert swap.counters["kv_blocks_swapped_out"] == swap.counters["kv_blocks_swapped_back"] > 0
    computed = {name: int(one.steps.column("prefill_tokens").sum()) for name, one in (("r", recompute), ("s", swap))}
    assert computed["r"] > prompts
    # What comes back computes the one token that was about to be, or goes on with its prompt.
    assert prompts <= computed["s"] <= prompts + swap.counters["preemptions"]
    moved = swap.counters["kv_blocks_swapped_out"] * 16 * 131_072
    pcie = swap.energy.by_component["pcie"]["dynamic"] / (2 * 8 * moved)
    assert pcie == pytest.approx(hetmem.link("pcie4-x16").pj_per_bit * 1e3, rel=1e-6)
    for one in (recompute, swap):
        assert one.summary()["requests"] == {"in": 20, "done": 20, "dropped": 0}


def test_swap_falls_back_to_recomputing_when_the_space_is_full(trace: Path) -> None:
    small = {"machine.host.capacity_bytes": 10 * 16 * 131_072}
    full = run(trace, kv_blocks=60, preempt="swap", settings=small)
    assert full.summary()["requests"]["done"] == 20
    assert (
        full.steps.column("prefill_tokens").sum()
        > run(trace, kv_blocks=60, preempt="swap").steps.column("prefill_tokens").sum()
    )


def test_the_kv_cache_can_be_in_host_dram(trace: Path) -> None:
    near, far = run(trace), run(trace, kv_memory="host")
    assert far.summary()["kv_blocks"]["total"] == int(256e9 * 0.9) // (16 * 131_072)
    assert near.makespan_s < far.makespan_s
    assert far.busy_ps["pcie.h2d"] > far.busy_ps["gpu0.hbm"]
    assert far.summary()["requests"]["done"] == 20


def test_stages_overlap_and_leave_bubbles(trace: Path) -> None:
    one, two = run(trace), run(trace, pp=2)
    assert two.summary()["batch"]["max"] <= 8
    assert two.output_tokens == one.output_tokens
    starts, ends = (two.steps.column(name) for name in ("start_ps", "end_ps"))
    assert np.any(np.sort(starts)[1:] < np.sort(ends)[:-1])  # steps of two loops are in flight together
    busy = [two.busy_ps[f"gpu{gpu}"] / two.elapsed_ps for gpu in (0, 1)]
    assert all(0.3 < share < 1 for share in busy)
    # A single sequence cannot be in two stages at once: all of the time that one stage works, the other waits.
    lone = hetmem.simulate("resident", model="llama3.1-8b", workload=hetmem.fixed(64, 9, 1), pp=2)
    assert sum(lone.busy_ps[name] for name in ("gpu0", "gpu1", "stage-link0")) == lone.elapsed_ps


def test_a_batch_is_shared_out_over_the_stages() -> None:
    given = {"model": "llama3.1-8b", "workload": hetmem.fixed(64, 9, 5), "pp": 3}
    steps = hetmem.simulate("resident", **given).steps
    assert sorted(set(steps.column("decode_sequences").tolist())) == [0, 1, 2]
    assert hetmem.simulate("resident", **given).elapsed_ps == hetmem.simulate("resident", **given).elapsed_ps


def test_unrolling_shows_kernels_and_changes_no_tick(trace: Path) -> None:
    plain, traced = (
        hetmem.simulate(
            "resident", model="llama3.1-8b", workload=hetmem.from_file(trace), batch=8, trace=True, tp=2,
            settings={"serving.unroll_layers": unrolled},
        )
        for unrolled in (False, True)
    )  # fmt: skip
    assert (plain.elapsed_ps, plain.busy_ps) == (traced.elapsed_ps, traced.busy_ps)
    assert plain.energy.by_component == traced.energy.by_component
    assert {"qkv", "attention.decode", "lm_head"} <= set(traced.tasks.column("task"))
    assert {"attn_norm..proj", "mlp_norm..down"} <= set(plain.tasks.column("task"))


def test_run_json_says_how_requests_were_served(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "run", "resident", "--model", "llama3.1-8b", "--gpu", "rtx-4090", "--workload", str(trace), "--max-num-seqs",
        "256", "--token-budget", "256", "--kv-blocks", "30", "--block-size", "16", "--preempt", "swap", "--swap-to",
        "host", "--admission", "shortest", "--host-step-us", "50", "--attention", "mixed", "--tp", "1", "--pp", "1",
        "--json",
    ]  # fmt: skip
    status, out, err = call(capsys, *words)
    assert (status, err) == (0, "")
    (row,) = json.loads(out)["rows"]
    assert row["kv_blocks"].keys() == {"total", "peak", "allocated", "freed", "held"}
    assert row["kv_blocks"]["total"] == 30
    assert row["kv_blocks"]["allocated"] == row["kv_blocks"]["freed"] + row["kv_blocks"]["held"]
    assert row["batch"].keys() == {"mean", "max"}
    assert row["refused_on_arrival"] == sum(100 + 53 * k % 400 > 30 * 16 for k in range(20)) == 1
    assert row["output_tokens_per_s"] == row["tokens_per_s"]
    assert row["requests"]["in"] == row["requests"]["done"] + row["requests"]["dropped"] == 20
    assert (row["attention"], row["stack"]) == ("mixed", "vllm-0.19")
    assert row["preemptions"] > 0
    # The same by the Python names.
    same = hetmem.simulate(
        "resident", model="llama3.1-8b", gpu="rtx-4090", workload=str(trace), max_num_seqs=256, token_budget=256,
        kv_blocks=30, block_size=16, preempt="swap", swap_to="host", admission="shortest", host_step_us=50,
        attention="mixed", tp=1, pp=1,
    )  # fmt: skip
    assert json.loads(json.dumps(same.summary())) == row


def test_prompts_beyond_the_pool_are_refused_on_arrival(trace: Path) -> None:
    few = run(trace, kv_blocks=20)
    over = sum(100 + 53 * k % 400 > 320 for k in range(20))
    assert few.summary()["refused_on_arrival"] == over > 0
    assert few.summary()["requests"]["dropped"] >= over


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("m,n,k\n1,2,3\n", "columns fit no known form; the nearest, GEMM, also needs: time_us"),
        ("m,n,k,time_us\n16,64,64,5\n16,64,128,-2\n", r"row 2 (line 3), time_us: must not be negative, not '-2'"),
        ("m,n,k,time_us\n16,64,64,nan\n", "row 1 (line 2), time_us: must be a number, not 'nan'"),
        ("m,n,k,time_us\n16,64,64,5\n", "gemm: 1 points; at least 8 are needed"),
    ],
)
def test_calibrating_a_bad_table_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, says: str
) -> None:
    (tmp_path / "t.csv").write_text(table)
    words = ["calibrate", str(tmp_path / "t.csv"), "--device", "rtx-4090", "--out", str(tmp_path / "o.toml")]
    status, out, err = call(capsys, *words)
    assert (status, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "o.toml").exists()


def test_calibrating_recovers_the_law_behind_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hetmem.hardware.device import peaks
    from hetmem.hardware.kernel_law import SmoothGemmLaw

    law = SmoothGemmLaw(launch_us=6.0, compute_efficiency=0.7, memory_efficiency=0.8, sharpness=1.5)
    lines = ["m,n,k,time_us"]
    for m in (1, 16, 64, 256, 1024, 4096):
        for n, k in ((1024, 4096), (4096, 4096), (8192, 4096), (4096, 16384)):
            lines.append(f"{m},{n},{k},{law.seconds(peaks('l40s'), m, n, k) * 1e6:.6f}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    words = [
        "calibrate", str(tmp_path / "t.csv"), "--device", "l40s", "--hold-out", "m=64", "--plot",
        str(tmp_path / "p.png"), "--out", str(tmp_path / "kernel_laws.toml"), "--json",
    ]  # fmt: skip
    status, out, _ = call(capsys, *words)
    found = json.loads(out)
    assert status == 0
    assert found["kernels"]["gemm"]["law"] == "SmoothGemmLaw"
    assert found["held_out"]["gemm"]["law"]["median_pct"] < 1
    assert (tmp_path / "p.png").exists()
    assert "l40s:user" in (tmp_path / "kernel_laws.toml").read_text()
