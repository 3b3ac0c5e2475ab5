"""The scenario scripts, run small: a table on standard output and a picture."""

import struct
from importlib import import_module
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")
SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
SMALL = {
    "compare_chat": ["resident", "ndp-dimm", "--model", "opt-13b", "--workload", "lengths.csv", "--requests", "2"],
    "batch_sweep": ["--systems", "resident", "ndp-dimm", "--batches", "2", "1", "--output", "2"],
    "dimm_count": ["--dimms", "4", "16", "8", "--batch", "2", "--output", "2"],
    "attacc_breakdown": ["--model", "gpt3-175b", "--batches", "1", "2", "--output", "3"],
    "papi_decay": ["--model", "llama-7b", "--batches", "4", "2", "--mean", "8"],
    "papi_gains": ["--models", "llama-65b", "--batches", "4", "--tlps", "4", "2", "--baselines", "attacc-only"],
    "fixed_layers": ["--cases", "2:0.5", "4:0.75", "--windows", "1", "2", "--layers", "8"],
    "old_hardware": ["--model", "opt-6.7b", "--demands", "0.01", "1", "--requests", "2"],
    "hermes_throughput": ["--model", "opt-13b", "--prompt", "8", "--output", "2"],
    "hermes_ablation": ["--model", "opt-13b", "--output", "2"],
    "hermes_balance": ["--model", "opt-13b", "--layers", "8", "--group", "16", "--output", "12"],
    "hermes_breakdown": ["--model", "opt-13b", "--prompt", "8", "--output", "2"],
}
PRINTED = {
    "hermes_throughput": ("hermes", "powerinfer", "deja-vu", "as-published", "fair", "paper-fit"),
    "hermes_ablation": ("random", "token-adjustment", "full", "speedup", "as-published", "paper-fit"),
    "hermes_balance": ("window", "round-robin", "offline-optimal", "MB moved per layer and token"),
    "hermes_breakdown": ("prefill", "decode", "dimm0.link", "as-published", "fair", "datasheet"),
    "attacc_breakdown": ("dgx", "naive", "pipelined", "full", "iteration (ms)"),
    "papi_decay": ("static, decaying", "continuous", "static, equal outputs", "gain in energy"),
    "papi_gains": ("alpha", "attacc-only energy"),
    "fixed_layers": ("contiguous", "interleaved", "bound", "2:0.5"),
    "old_hardware": ("m40, owned", "rtx-3090", "h100-sxm-80gb", "coal", "hydro", "emits less at"),
}
USUAL = ("ndp-dimm", "as-published", "fair", "datasheet")
WRONG = {"fixed_layers": (["--cases", "2"], "expected RHO:FRACTION such as 2:0.5, not '2'")}


def test_all_scripts_are_tested():
    others = set(SCENARIOS.glob("h2m2_*.py"))  # test_h2m2_scenarios.py has them
    assert {path.stem for path in set(SCENARIOS.glob("[!_]*.py")) - others} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_script_prints_a_table_and_writes_a_picture(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("lengths.csv").write_text("in_tokens,out_tokens\n64,3\n32,5\n")
    out = tmp_path / "deep" / "picture.png"
    import_module(name).main([*SMALL[name], "--out", str(out)])
    printed = capsys.readouterr().out
    assert f"figure: {out}" in printed
    for expected in PRINTED.get(name, USUAL):
        assert expected in printed
    header = out.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", header[16:])
    assert width > 800
    assert height > 300
    assert mpl.pyplot.get_fignums() == []


@pytest.mark.parametrize("name", SMALL)
def test_script_refuses_bad_input_with_one_line_and_writes_nothing(name, tmp_path, capsys):
    out = tmp_path / "picture.png"
    wrong, said = WRONG.get(name, (["--model", "opt-13"], "did you mean 'opt-13b'?"))
    with pytest.raises(SystemExit) as stopped:
        import_module(name).main([*wrong, "--out", str(out)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_batch_table_has_a_column_per_batch_and_names_refusals():
    module = import_module("batch_sweep")
    import hetmem
    from hetmem.study.compare import compare

    def at(batch):
        return compare(["resident"], model="llama2-70b", workload=hetmem.fixed(128, 2, batch), assumptions=["fair"])

    results = {1: at(1), 512: at(512)}
    frame = module.table(results)
    assert list(frame.columns) == ["batch 1", "batch 512"]
    cells = frame.loc[("resident", "fair", "-")].tolist()
    assert cells == [f"{results[1].rows[0]['tokens_per_s']:.4g}", "refused"]


def test_dimm_table_gives_the_speed_up_over_the_fewest_that_hold_the_model():
    module = import_module("dimm_count")
    import hetmem
    from hetmem.study.compare import compare

    def at(dimms):
        return compare(["ndp-dimm"], model="llama2-70b", workload=hetmem.fixed(64, 2, 1), dimms=dimms,
                       assumptions=["fair"], dimm_presets=["datasheet"])  # fmt: skip

    frame = module.table({count: at(count) for count in (2, 8, 16)})
    assert frame["dimms"].tolist() == [2, 8, 16]
    assert frame["bound"][0].startswith("refused: ")
    assert frame["speedup"].isna().tolist() == [True, False, False]
    assert frame["speedup"][1] == 1.0
    assert frame["speedup"][2] == pytest.approx(frame["tokens_per_s"][2] / frame["tokens_per_s"][1])
