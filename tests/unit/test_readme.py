"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hetmem import catalog
from hetmem.cli import main
from hetmem.hardware.dram import memory

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_dram_entry_works_as_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    (entry,) = _blocks("toml")
    (tmp_path / "dram.toml").write_text(entry, encoding="utf-8")
    (command,) = re.findall(r"HETMEM_CATALOG=\S+ hetmem (.*)", README)
    words = [
        sys.executable,
        "-m",
        "hetmem.cli",
        *command.split(),
        "--model",
        "opt-6.7b",
        "--prompt",
        "8",
        "--output",
        "2",
    ]
    done = subprocess.run(words, env={"HETMEM_CATALOG": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "zero-inference" in done.stdout


def test_the_dram_entry_has_only_keys_that_the_law_uses() -> None:
    (entry,) = _blocks("toml")
    ((name, parsed),) = catalog.parse("dram", entry, "README").items()
    known = {key for device in catalog.ids("dram") for key in catalog.entry("dram", device).facts}
    assert name not in catalog.ids("dram")
    assert set(parsed.facts) <= known
    assert memory("ddr5-4800").peak_gbs > 0


def test_the_python_example_runs(tmp_path: Path) -> None:
    example = _blocks("python")[0]
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_both_queries_give_the_best_batch_of_each_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    (sweep,) = re.findall(r"^hetmem (sweep .*)", README, re.MULTILINE)
    (sql,), (_, query) = _blocks("sql"), _blocks("python")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main(sweep.replace("--workers 2", "--workers 0").split())
    assert not done.value.code
    names: dict[str, Any] = {}
    exec(compile(query, "README.md", "exec"), names)
    found = names["best"][["machine.dimm.count", "batch", "tokens_per_s"]].to_records(index=False).tolist()
    assert [row[0] for row in found] == [4, 8, 16]
    assert duckdb.sql(sql).fetchall() == found
    everything = duckdb.sql("SELECT count(*), max(power_w), sum(time_share['gpu0']) FROM 'out/sweep/dataset.parquet'")
    count, most, shares = everything.fetchall()[0]
    assert (count, most > 335, shares > 0) == (18, True, True)


@pytest.mark.slow
@pytest.mark.parametrize("command", [line.split("#")[0] for k in (2, 3) for line in _blocks("sh")[k].splitlines()])
def test_the_shell_examples_run(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shlex

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main(shlex.split(command)[1:])
    assert not done.value.code
