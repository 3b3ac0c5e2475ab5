"""The executors: equal answers, and workers that die."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hetmem.errors import ConfigError
from hetmem.study.executors import DEATHS, DaskExecutor, ProcessExecutor, SerialExecutor, WorkerDiedError


def double(x):
    return 2 * x


def fail(text):
    raise ValueError(text)


def die_the_first(times, folder):
    """Take the worker down until ``times`` attempts were made; then return how many there were."""
    attempts = len(list(Path(folder).iterdir()))
    (Path(folder) / str(attempts)).touch()
    if attempts < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempts + 1


def wait_for(folder, name):
    Path(folder, f"{name}.{os.getpid()}").touch()
    deadline = time.monotonic() + 30
    while not Path(folder, "go").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return name


def started(folder, *names, timeout_s=30.0):
    """Return the process that runs each of ``names``, once all have started."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = {path.stem: int(path.suffix[1:]) for path in Path(folder).glob("*.*")}
        if found.keys() >= set(names):
            return found
        time.sleep(0.01)
    raise AssertionError(f"{names} have not all started")


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_serial_runs_at_once_and_keeps_errors():
    with SerialExecutor() as executor:
        assert executor.width == 1
        assert executor.submit(double, 4).result(timeout=0) == 8
        assert isinstance(executor.submit(fail, "no").exception(timeout=0), ValueError)


def test_serial_lets_an_interrupt_through():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), SerialExecutor() as executor:
        executor.submit(interrupt)


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused(workers):
    with pytest.raises(ConfigError, match="workers: expected at least 1"):
        ProcessExecutor(workers)


def test_processes_answer_and_survive_deaths(tmp_path):
    for name in ("once", "always"):
        (tmp_path / name).mkdir()
    with ProcessExecutor(2) as executor:
        assert executor.width == 2
        always = executor.submit(die_the_first, 99, str(tmp_path / "always"))
        once = executor.submit(die_the_first, 1, str(tmp_path / "once"))
        answers = [executor.submit(double, k) for k in range(6)]
        bad = executor.submit(fail, "planted")
        assert [answer.result() for answer in answers] == [2 * k for k in range(6)]
        assert once.result() == 2
        error = bad.exception()
        assert isinstance(error, ValueError)
        assert "in fail" in str(error.__cause__)  # the traceback of the worker
        assert isinstance(always.exception(), WorkerDiedError)
        assert str(always.exception()) == f"{DEATHS} workers died while they ran this"
    assert len(list((tmp_path / "always").iterdir())) == DEATHS
    assert multiprocessing.active_children() == []


def test_a_worker_killed_from_outside_costs_only_a_repeat(tmp_path):
    with ProcessExecutor(2) as executor:
        futures = [executor.submit(wait_for, str(tmp_path), name) for name in ("a", "b")]
        pids = started(tmp_path, "a", "b")
        os.kill(pids["a"], signal.SIGKILL)
        assert until(lambda: len(list(tmp_path.glob("a.*"))) == 2)
        (tmp_path / "go").touch()
        assert [future.result() for future in futures] == ["a", "b"]
    assert len(list(tmp_path.glob("b.*"))) == 1


def test_leaving_by_an_exception_ends_the_workers(tmp_path):
    futures = []

    def interrupted():
        with ProcessExecutor(1) as executor:
            futures.extend(executor.submit(wait_for, str(tmp_path), name) for name in ("a", "b"))
            started(tmp_path, "a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(future.done() for future in futures)
    assert list(tmp_path.glob("b.*")) == []
    assert multiprocessing.active_children() == []


def test_workers_end_with_a_killed_parent(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_executors import wait_for\n"
        "from hetmem.study.executors import ProcessExecutor\n"
        "if __name__ == '__main__':\n"
        "    with ProcessExecutor(1) as executor: executor.submit(wait_for, sys.argv[2], 'a').result()\n"
    )
    (tmp_path / "parent.py").write_text(script)
    folder = tmp_path / "seen"
    folder.mkdir()
    words = [sys.executable, str(tmp_path / "parent.py"), str(Path(__file__).parent), str(folder)]
    with subprocess.Popen(words) as parent:
        pid = started(folder, "a")["a"]
        parent.kill()
    assert until(lambda: gone(pid))


def test_no_scheduler_is_said():
    pytest.importorskip("distributed")
    import hetmem.study.executors as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CONNECT_S", 0.5)
        with pytest.raises(ConfigError, match=r"dask: no scheduler answers at tcp://127\.0\.0\.1:9"):
            DaskExecutor.connect("tcp://127.0.0.1:9")


def test_missing_dask_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'hetmem\[dask\]'"):
        DaskExecutor.connect("tcp://127.0.0.1:9")
