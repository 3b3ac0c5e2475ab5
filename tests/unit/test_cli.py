"""The command line: its JSON contract, its errors and its exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hetmem.cli import main
from hetmem.errors import ConservationError, DeadlockError, HetmemError
from hetmem.study.scenario import DEFAULT_BATCH, DEFAULT_REQUESTS
from hetmem.system import SYSTEMS

ROW_KEYS = {
    "system", "assumptions", "dimm_preset", "model", "workload", "tokens_per_s", "carbon_operational_g_per_token",
    "carbon_embodied_g_per_token", "cost_usd_per_mtoken", "energy_per_token_j", "ttft_s",
    "tpot_s", "latency_s", "time_share", "bound", "requests", "refused",
}  # fmt: skip
QUICK = ["--model", "opt-6.7b", "--prompt", "32", "--output", "4", "--batch", "2"]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Return status, standard output and standard error of ``hetmem`` with ``words``."""
    with pytest.raises(SystemExit) as done:
        main(words)
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def test_run_json_is_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "run", "resident", *QUICK, "--json")
    result = json.loads(out)
    assert (status, err) == (0, "")
    assert {"schema_version", "hetmem_version", "seed", "rows"} <= result.keys()
    (row,) = result["rows"]
    assert row.keys() >= ROW_KEYS
    assert (row["system"], row["assumptions"], row["dimm_preset"], row["refused"]) == ("resident", "fair", None, None)
    for name in ("ttft_s", "tpot_s", "latency_s"):
        assert row[name].keys() == {"mean", "p50", "p90", "p99"}
    assert row["requests"] == {"in": 2, "done": 2, "dropped": 0}
    assert row["bound"] == max(row["time_share"], key=row["time_share"].get)
    # Two requests of 4 tokens each, in the time until the later one ends.
    assert row["tokens_per_s"] == pytest.approx(8 / row["latency_s"]["p99"], rel=1e-6)


def test_carbon_and_cost_are_in_the_row_and_follow_the_grid(capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for grid in ("hydro", "48"):
        _, out, _ = call(capsys, "run", "zero-inference", *QUICK, "--carbon-grid", grid, "--json")
        rows += json.loads(out)["rows"]
    low, double = rows
    assert double["carbon_operational_g_per_token"] == pytest.approx(2 * low["carbon_operational_g_per_token"])
    for row in rows:
        assert row.keys() >= ROW_KEYS | {"energy_phase_j", "ssd", "unknown"}
        assert row["carbon_embodied_g_per_token"].keys() == {"low", "high"}
        assert row["cost_usd_per_mtoken"].keys() == {"capital", "energy"}
    _, out, _ = call(capsys, "run", "zero-inference", *QUICK)
    assert "CO2 mg/token" in out
    assert "$/Mtoken" in out
    facility = ("--set", "accounting.pue=2.4", "--carbon-grid", "hydro", "--json")
    _, out, _ = call(capsys, "run", "zero-inference", *QUICK, *facility)
    assert json.loads(out)["rows"][0]["carbon_operational_g_per_token"] == pytest.approx(
        2 * low["carbon_operational_g_per_token"]
    )


def test_a_machine_is_chosen_by_name_and_a_wrong_grid_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("run", "zero-inference", "--model", "opt-6.7b", "--prompt", "8", "--output", "2", "--json")
    _, out, _ = call(capsys, *command, "--machine", "m2cache")
    (row,) = json.loads(out)["rows"]
    assert row["time_share"].keys() >= {"pcie.h2d", "cpu"}
    status, _, err = call(capsys, *command, "--machine", "m2cash")
    assert (status, "did you mean 'm2cache'?" in err) == (2, True)
    status, _, err = call(capsys, *command, "--carbon-grid", "coall")
    assert (status, "did you mean 'coal'?" in err) == (2, True)


def test_show_carbon_lists_sources(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "show", "carbon")
    assert status == 0
    for expected in ("grid-coal", "memory-hbm3", "die-m40", "published", "LLMCarbon", "usd_per_gb"):
        assert expected in out


def test_compare_runs_every_system_under_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "compare", *QUICK, "--json")
    rows = json.loads(out)["rows"]
    asked = {(row["system"], row["assumptions"], row["dimm_preset"]) for row in rows}
    expected = {
        (system.name, assumed, preset)
        for system in SYSTEMS
        for assumed in ("as-published", "fair")
        for preset in (("paper-fit", "datasheet") if system.has_dimms else (None,))
    }
    assert status == 0
    assert asked == expected
    for row in rows:
        assert row.keys() >= ROW_KEYS
        assert (row["refused"] is None) == (row["tokens_per_s"] is not None)


def test_a_role_that_no_system_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "compare", "resident", "flexgen", *QUICK, "--policy", "reschedule=threshold")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "unknown policy role of resident 'reschedule'" in err


def test_a_system_that_does_not_fit_stays_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "resident", "accelerate", "--model", "opt-30b", "--gpu", "rtx-4090", "--gpus", "1"]
    status, out, _ = call(capsys, *words, "--prompt", "16", "--output", "2", "--assumptions", "fair", "--json")
    refused, done = json.loads(out)["rows"]
    assert status == 0
    assert "59.95 GB asked" in refused["refused"]
    assert refused["tokens_per_s"] is None
    assert refused["requests"] is None
    assert done["tokens_per_s"] > 0


def test_the_table_names_what_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "run", "ndp-dimm", *QUICK)
    assert status == 0
    assert "datasheet" in out
    assert "energy of ndp-dimm does not count: base" in out
    assert "base: the rest of the node" in out


BAD = [
    (["run", "residnt"], "unknown system 'residnt'; did you mean 'resident'?"),
    (["run", "resident", "--model", "lama2-70b"], "unknown model 'lama2-70b'; did you mean 'llama2-70b'?"),
    (["run", "resident", "--gpu", "rtx4091"], "unknown gpu 'rtx4091'; did you mean 'rtx-4090'?"),
    (["run", "resident", "--workload", "chatt"], "unknown workload 'chatt'; did you mean 'chat'?"),
    (["run", "resident", "--rate", "-1"], "rate: expected requests per second above 0, not -1.0"),
    (["run", "resident", "--batch", "0"], "batch: expected a whole number of at least 1, not 0"),
    (["run", "resident", "--seed", "-3"], "seed: expected a whole number of at least 0, not -3"),
    (["run", "resident", "--prompt", "5"], "output: --prompt and --output go together"),
    (["run", "resident", "--dimms", "4"], "dimms: resident has no NDP-DIMMs"),
    (["run", "resident", "--policy", "batching=statc"], "unknown batching policy 'statc'; did you mean 'static'?"),
    (["run", "resident", "--policy", "batch"], "policy: expected ROLE=NAME, not 'batch'"),
    (["run", "resident", "--set", "machine.gpu.tdp=3"], "machine.gpu.tdp: unknown field 'tdp'; did you mean 'tdp_w'?"),
    (["run", "resident", "--set", "machine.gpu.tdp_w=abc"], "machine.gpu.tdp_w: 'abc' is not a quantity"),
    (["run", "resident", "--set", "machine.gpu=h100"], "machine.gpu: is a group; set one of its fields"),
    (["run", "resident", "--set", "machine.gpu.host_link=foo"], "machine.gpu.host_link: is looked up before settings"),
    (["run", "zero-inference", *QUICK, "--set", "machine.pcie.h2d_pinned.gbs=1e-7"], "more than the 106 days"),
    (["run", "zero-inference", *QUICK, "--set", "machine.gpu.memory_gbs=1e-300"], "more than a floating-point number"),
    (["run", "resident", "--dimm-preset", "datasheet"], "dimm-preset: resident has no NDP-DIMMs"),
    (
        ["run", "resident", "--model", "llama2-7b", "--prompt", "5000", "--output", "10"],
        "resident: every request exceeds the context of llama2-7b, 4096 tokens; --truncate cuts requests",
    ),
    (
        ["run", "resident", "--model", "llama2-7b", "--prompt", "10", "--output", "1000000"],
        "resident: every request exceeds the context of llama2-7b, 4096 tokens; --truncate cuts requests",
    ),
    (["run", "resident", "--policy", "attention=cpu"], "unknown policy role of resident 'attention'"),
    (["run", "resident", "--bacth", "3"], "Unknown option: --bacth"),
    (["reproduce", "hermes-baseline"], "unknown reproduction 'hermes-baseline'; did you mean 'hermes-baselines'?"),
    (["show", "rtx-409"], "unknown name 'rtx-409'; did you mean 'rtx-4090'?"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_status_two(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    extra = ["--save", str(tmp_path / "out")] if words[0] == "run" else []
    status, out, err = call(capsys, *words, *extra)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_several_configuration_errors_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "ndp-dimm", "--set", "machine.dimm.cuont=3", "--set", "machine.gpu.tdp_w=abc"]
    status, _, err = call(capsys, *words)
    assert status == 2
    assert [line.split(": ")[1] for line in err.splitlines()] == ["machine.dimm.cuont", "machine.gpu.tdp_w"]


def test_a_model_that_does_not_fit_says_what_was_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = call(
        capsys, "run", "resident", "--gpu", "rtx-4090", "--gpus", "1", "--save", str(tmp_path / "x")
    )
    assert (status, out) == (2, "")
    assert "gpu0: 137.95 GB asked, 21.60 GB free of 21.60 GB usable of 24.00 GB" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_compare_fails_when_every_system_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "compare", "resident", "--gpu", "t4", "--gpus", "1", "--json")
    assert status == 2
    assert all(row["refused"] for row in json.loads(out)["rows"])


def test_a_malformed_trace_line_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,in_tokens,out_tokens\n0.0,10,5\n0.5,ten,5\n")
    status, _, err = call(capsys, "run", "resident", "--workload", str(trace))
    assert status == 2
    assert "line 3: '0.5,ten,5'" in err
    assert len(err.splitlines()) == 1


def test_a_trace_with_arrivals_is_served_continuously(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,in_tokens,out_tokens\n0.0,10,5\n0.5,20,5\n9.5,20,5000\n")
    status, out, _ = call(capsys, "run", "resident", "--model", "opt-6.7b", "--workload", str(trace), "--json")
    (row,) = json.loads(out)["rows"]
    assert status == 0
    assert row["requests"] == {"in": 3, "done": 2, "dropped": 1}  # 5,020 tokens exceed OPT's context


def test_a_saved_run_is_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "run"
    assert call(capsys, "run", "resident", *QUICK, "--save", str(target))[0] == 0
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["summary"]["system"] == "resident"
    assert set(manifest["sha256"]) == {path.name for path in target.iterdir()} - {"manifest.json"}
    status, _, err = call(capsys, "run", "resident", *QUICK, "--save", str(target))
    assert status == 2
    assert "exists and is not empty" in err


@pytest.mark.parametrize("target", ["/proc/foo", "{file}", "{file}/x"])
def test_a_bad_place_to_save_is_refused_before_anything_runs(
    target: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("hetmem.study.compare.compare", lambda *_, **__: pytest.fail("it ran"))
    status, out, err = call(capsys, "run", "resident", *QUICK, "--save", target.format(file=tmp_path / "file"))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("hetmem: save: ")


@pytest.mark.parametrize("error", [ConservationError("tokens", "1 in, 0 out"), DeadlockError(("a waits",))])
def test_a_broken_law_is_a_bug_and_status_three(
    error: HetmemError, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("hetmem.study.compare.compare", broken)
    status, out, err = call(capsys, "run", "resident", *QUICK)
    assert (status, out) == (3, "")
    assert err.splitlines()[0] == f"hetmem: {error}".splitlines()[0]
    assert err.splitlines()[-1] == "hetmem: this is a bug in hetmem or in a policy, please report it"


@pytest.mark.parametrize(
    "what", ["systems", "models", "devices", "machines", "workloads", "policies", "assumptions", "reproductions"]
)
def test_lists(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "list", what, "--json")
    assert status == 0
    assert json.loads(out)[what]
    status, out, _ = call(capsys, "list", what)
    assert status == 0
    assert out.strip()


def test_devices_are_listed_with_what_they_peak_at_and_hold(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["device"]: row for row in json.loads(call(capsys, "list", "devices", "--json")[1])["devices"]}
    assert list(rows["rtx-4090"].values())[1:] == ["gpus", 165.2, 1008.0, 24.0]
    # One channel of DDR5: 64 bytes in eight clocks of 416 ps.
    assert list(rows["ddr5-4800"].values())[1:] == ["dram", None, round(64 / (8 * 0.416), 3), None]
    assert all(row["peak GB/s"] for row in rows.values() if row["kind"] in ("gpus", "cpus", "dram", "links", "ssds"))


def test_a_system_and_its_machine_of_the_same_name_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    (system,) = json.loads(call(capsys, "show", "resident", "--json")[1])
    assert (system["kind"], system["machine"]["id"]) == ("system", "resident")
    assert call(capsys, "show", "resident")[1].count("resident (machines)") == 1


def test_a_table_of_refusals_says_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "resident", "--gpu", "t4", "--gpus", "1", "--batch", "3", "--assumptions", "fair"]
    status, out, _ = call(capsys, *words)
    assert status == 2
    assert "static batches of 3" in out


def test_help_gives_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(call(capsys, "run", "--help")[1].replace("│", " ").split())
    assert f"By default {DEFAULT_BATCH}, and 1 with --prompt and --output" in text
    assert f"By default {DEFAULT_REQUESTS} of a workload by name" in text


@pytest.mark.parametrize("name", ["rtx-4090", "DDR5 4800", "resident", "fair", "llama2-70b", "chat", "paper-fit"])
def test_show_gives_source_and_grade(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "show", name, "--json")
    assert status == 0
    for entry in json.loads(out):
        for fact in entry.get("facts", entry.get("machine", {}).get("facts", {})).values():
            assert fact["source"]
            assert fact["grade"] in ("published", "measured", "derived", "assumed")
    assert call(capsys, "show", name)[0] == 0


def _json_of_compare(hash_seed: str) -> bytes:
    words = [sys.executable, "-m", "hetmem.cli", "compare", *QUICK, "--json", "--seed", "7"]
    done = subprocess.run(words, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, check=True)
    return done.stdout


def test_compare_is_the_same_bytes_under_any_hash_seed() -> None:
    first = _json_of_compare("1")
    assert first == _json_of_compare("1") == _json_of_compare("4242")
    assert json.loads(first)["seed"] == 7


QUESTIONS = ["--help", "--version", "rnu", "run --help", "sweep --help", "run resident --bacth 3"]


@pytest.mark.parametrize("words", QUESTIONS)
def test_help_and_mistakes_load_no_simulator(words: str) -> None:
    code = f"""
import contextlib, sys
from hetmem.cli import main
with contextlib.suppress(SystemExit):
    main({words.split()})
print([m for m in ("numpy", "simpy", "hetmem.system") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_import_loads_only_the_first_four_libraries() -> None:
    heavy = ("scipy", "pandas", "pyarrow", "matplotlib", "rich", "cyclopts")
    code = f"import hetmem, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
