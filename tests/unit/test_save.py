"""Saved runs: complete, or visibly not."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from hetmem.errors import ConfigError
from hetmem.hardware.machine import Unit
from hetmem.monitor import save as save_module
from hetmem.monitor.energy import account
from hetmem.monitor.save import MANIFEST, SCHEMA_VERSION, check_target, save_tables
from hetmem.monitor.table import Table


def tables():
    steps = Table({"step": "q", "what": "s"})
    for row in ((0, "a"), (1, "b")):
        steps.append(row)
    return {"steps": steps, "energy": account([(Unit("gpu0", "gpu", 1.0, 2.0), 5, 7)], [], 10)}


def test_a_saved_run_is_its_tables_and_a_manifest_with_their_digests(tmp_path):
    import pandas as pd

    where = save_tables(tmp_path / "new" / "run", tables(), {"seed": 3})
    assert sorted(path.name for path in where.iterdir()) == ["energy.parquet", MANIFEST, "steps.parquet"]
    manifest = json.loads((where / MANIFEST).read_text())
    assert (manifest["schema_version"], manifest["seed"]) == (SCHEMA_VERSION, 3)
    assert manifest["hetmem_version"]
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((where / name).read_bytes()).hexdigest() == digest
    assert pd.read_parquet(where / "steps.parquet").values.tolist() == [[0, "a"], [1, "b"]]
    assert pd.read_parquet(where / "energy.parquet")["component"].tolist() == ["gpu"]
    assert list(where.parent.iterdir()) == [where]


def test_the_same_run_is_the_same_bytes(tmp_path):
    first, second = (save_tables(tmp_path / name, tables(), {"seed": 3}) for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_an_empty_directory_is_taken_and_a_full_one_is_left_alone(tmp_path):
    (tmp_path / "empty").mkdir()
    save_tables(tmp_path / "empty", tables(), {})
    before = {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()}
    with pytest.raises(ConfigError, match=r"save: .* exists and is not empty"):
        save_tables(tmp_path / "empty", {}, {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "empty").iterdir()} == before


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_disk_that_fails_leaves_no_directory(tmp_path, monkeypatch, fails_at):
    flushes = []

    def fsync(descriptor):
        flushes.append(descriptor)
        if len(flushes) == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ConfigError, match=r"save: .*run cannot be written: No space left"):
        save_tables(tmp_path / "new" / "run", tables(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("file", "is not a directory"), ("file/x", "cannot be written"), ("file/x/y", "cannot be written"),
        ("x" * 300, "cannot be written"), ("full", "exists and is not empty"),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_is_refused_and_nothing_is_left(tmp_path, target, problem):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full" / "inside").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for refuses in (check_target, lambda path: save_tables(path, tables(), {})):
        with pytest.raises(ConfigError, match=f"save: .* {problem}"):
            refuses(tmp_path / target)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_system_that_takes_no_directories_is_refused():
    with pytest.raises(ConfigError, match=r"save: /proc/foo cannot be written"):
        check_target(Path("/proc/foo"))


def test_checking_a_good_target_leaves_no_trace(tmp_path):
    check_target(tmp_path / "new" / "deep" / "run")
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_process_that_dies_leaves_something_visibly_incomplete(tmp_path, monkeypatch):
    """What is on the disk at any moment before the last: a hidden, partial directory, and nothing under the name."""
    seen = []
    write = save_module._write_parquet

    def watched(table, path):
        write(table, path)
        seen.append(sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()))

    monkeypatch.setattr(save_module, "_write_parquet", watched)
    save_tables(tmp_path / "run", tables(), {})
    assert [len(files) for files in seen] == [1, 2]
    assert all(name.startswith(".run.") and ".partial/" in name for files in seen for name in files)
    assert not any(MANIFEST in name for files in seen for name in files)


def test_what_is_no_table_fails_before_anything_is_written(tmp_path):
    with pytest.raises(AttributeError):
        save_tables(tmp_path / "run", {"odd": object()}, {})
    assert list(tmp_path.iterdir()) == []
