"""Sweeps that lose their workers or are killed: nothing finished is lost, nothing is run twice, the bytes are the same.

Each sweep runs as a user's would: the command line in a process of its own, or a Dask cluster of processes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hetmem.monitor.save import MANIFEST
from hetmem.study.executors import DaskExecutor, SerialExecutor
from hetmem.study.point import grid
from hetmem.study.sweep import sweep

BASE = {"system": "ndp-dimm", "model": "llama2-13b", "prompt": 32, "output": 24, "assumptions": "fair"}
CHOICES = {"dimms": [4, 8, 12, 16], "batch": [1, 2, 3, 4, 5, 6]}
POINTS = grid(CHOICES, BASE)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return sweep(POINTS, tmp_path_factory.mktemp("reference"), executor=SerialExecutor())


def command(out, *where):
    words = ["--model", "llama2-13b", "--prompt", "32", "--output", "24", "--out", str(out), *where]
    grids = [word for key, values in CHOICES.items() for word in ("--grid", f"{key}={','.join(map(str, values))}")]
    return [sys.executable, "-m", "hetmem.cli", "sweep", "ndp-dimm", *words, *grids]


def stamps(out):
    """Return when each finished point was written; a directory that has no name yet is not one."""
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(out).glob(f"points/[!.]*/{MANIFEST}")}


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_and_started_again(reference, tmp_path, seed):
    moments = random.Random(seed)
    out = tmp_path / "out"
    seen = {}
    kills = 0
    for _ in range(60):
        with subprocess.Popen(command(out, "--workers", "2"), stdout=subprocess.DEVNULL) as running:
            # Some die before the first point, some in the middle of one; each goes on a little further.
            goal = len(seen) + moments.choice((0, 1, 8))
            deadline = time.monotonic() + 60
            while running.poll() is None and len(stamps(out)) < goal and time.monotonic() < deadline:
                time.sleep(0.005)
            try:
                running.wait(moments.uniform(0.0, 0.4))
            except subprocess.TimeoutExpired:
                os.kill(running.pid, signal.SIGKILL)
                kills += 1
        now = stamps(out)
        assert {identity: now[identity] for identity in seen} == seen  # none lost, none written again
        seen = now
        if running.returncode == 0:
            break
    assert running.returncode == 0
    assert kills >= 3
    assert (out / "dataset.parquet").read_bytes() == reference.dataset.read_bytes()
    assert list(out.rglob("*.partial")) == []


def test_a_worker_killed_in_the_middle_of_a_local_sweep(reference, tmp_path):
    psutil = pytest.importorskip("psutil")
    out = tmp_path / "out"
    with subprocess.Popen(command(out, "--workers", "2"), stdout=subprocess.DEVNULL) as running:
        while len(stamps(out)) < 5 and running.poll() is None:
            time.sleep(0.005)
        workers = [p for p in psutil.Process(running.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        workers[0].kill()
        before = stamps(out)
    after = stamps(out)
    assert running.returncode == 0
    assert len(workers) == 2
    assert len(before) < len(POINTS)
    assert {identity: after[identity] for identity in before} == before
    assert (out / "dataset.parquet").read_bytes() == reference.dataset.read_bytes()


def test_a_dask_worker_killed_in_the_middle(reference, tmp_path):
    distributed = pytest.importorskip("distributed")
    out = tmp_path / "out"
    killed = []

    def kill_one(client):
        while len(stamps(out)) < 5:
            time.sleep(0.005)
        pid = next(iter(client.run(os.getpid).values()))
        before = stamps(out)
        os.kill(pid, signal.SIGKILL)
        killed.append((pid, before))

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        DaskExecutor.connect(cluster.scheduler_address) as executor,
        distributed.Client(cluster) as client,
    ):
        assert executor.width == 2
        killer = threading.Thread(target=kill_one, args=(client,))
        killer.start()
        found = sweep(POINTS, out, executor=executor)
        killer.join()
    ((_, before),) = killed
    after = stamps(out)
    assert 5 <= len(before) < len(POINTS)
    assert {identity: after[identity] for identity in before} == before
    assert (found.done, found.failed) == (len(POINTS), 0)
    assert found.dataset.read_bytes() == reference.dataset.read_bytes()


@pytest.fixture
def cluster(tmp_path):
    """Start a scheduler and two workers, each a process of its own; return the scheduler's address and process."""
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    cli = [sys.executable, "-m"]
    commands = [
        [*cli, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        *2 * [[*cli, "distributed.cli.dask_worker", "--nthreads", "1", "--no-dashboard", "--no-nanny"]],
    ]
    running = [
        subprocess.Popen([*words, "--scheduler-file", str(file)], cwd=tmp_path, stderr=subprocess.DEVNULL)
        for words in commands
    ]
    try:
        deadline = time.monotonic() + 30
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield json.loads(file.read_text())["address"], running[0]
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(20)


def test_the_command_on_a_dask_cluster(reference, tmp_path, cluster):
    out = tmp_path / "out"
    address, _ = cluster
    done = subprocess.run(command(out, "--dask", address), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(POINTS)} of {len(POINTS)} points have a result" in done.stdout
    assert (out / "dataset.parquet").read_bytes() == reference.dataset.read_bytes()


def test_a_lost_scheduler_ends_the_sweep_and_loses_nothing(reference, tmp_path, cluster):
    out = tmp_path / "out"
    address, scheduler = cluster
    with subprocess.Popen(command(out, "--dask", address), stderr=subprocess.PIPE, text=True) as running:
        while len(stamps(out)) < 3 and running.poll() is None:
            time.sleep(0.005)
        scheduler.kill()
        _, err = running.communicate(timeout=120)
    before = stamps(out)
    assert running.returncode == 2
    assert "hetmem: executor: the workers gave the points up; start the sweep again to go on" in err.splitlines()
    assert 3 <= len(before) < len(POINTS)
    found = sweep(POINTS, out, executor=SerialExecutor())
    after = stamps(out)
    assert {identity: after[identity] for identity in before} == before
    assert found.dataset.read_bytes() == reference.dataset.read_bytes()
