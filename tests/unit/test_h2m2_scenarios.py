"""The scenario scripts of H2M2, run small: a table on standard output and a picture."""

import struct
from importlib import import_module
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")
SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
LENGTHS = ["--lengths", "512", "1024"]
SMALL = {
    "h2m2_lengths": ["--model", "llama2-70b", "--lengths", "2048", "4096"],
    "h2m2_overheads": [*LENGTHS, "--walkers", "1", "4"],
    "h2m2_sensitivity": [*LENGTHS, "--factors", "1", "2"],
    "h2m2_hbm3e_cxl": ["--model", "opt-30b", "--policies", "greedy", "static"],
    "h2m2_dynamic": ["--systems", "static mapping"],
}
SLOW = ("h2m2_dynamic",)


def test_all_scripts_are_tested() -> None:
    assert {path.stem for path in SCENARIOS.glob("h2m2_*.py")} == set(SMALL)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SMALL])
def test_script_prints_a_table_and_writes_a_picture(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "picture.png"
    import_module(name).main([*SMALL[name], "--out", str(out)])
    printed = capsys.readouterr().out
    assert f"figure: {out}" in printed
    assert "fair" in printed or "as-published" in printed
    header = out.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert min(struct.unpack(">II", header[16:])) > 300
    assert mpl.pyplot.get_fignums() == []


@pytest.mark.parametrize("name", ["h2m2_lengths", "h2m2_overheads", "h2m2_sensitivity"])
def test_script_refuses_what_does_not_fit_with_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "picture.png"
    with pytest.raises(SystemExit) as stopped:
        import_module(name).main(["--lengths", "1", "--out", str(out)])
    assert stopped.value.code == 2
    assert "prompt" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_the_policies_move_to_other_memories_by_the_machine_alone() -> None:
    frame = import_module("h2m2_hbm3e_cxl").table("gpt3-175b", 32, 1024, "fair", ("greedy", "a-major", "naive"))
    for title in ("HBM3 + LPDDR5X", "HBM3e + CXL DDR5"):
        board = frame.loc[title]
        assert board.loc["greedy", "speedup"] >= board.loc["a-major", "speedup"] >= board.loc["naive", "speedup"] > 1
    # 45 GB more of fast memory keep weights that the other board has to evict.
    assert frame.loc[("HBM3e + CXL DDR5", "greedy"), "fc fast"] > frame.loc[("HBM3 + LPDDR5X", "greedy"), "fc fast"]
