"""How a sweep of 200 points scales from one process to two.

Wall time says so on a machine with nothing else to do. The processor time of the busiest worker and of the parent,
over that of a sweep with one worker, says the same on any machine: it is what the sweep would take with a core each.
"""

import multiprocessing
import resource
import time
from pathlib import Path

import pytest

from hetmem.study.executors import ProcessExecutor
from hetmem.study.point import grid
from hetmem.study.sweep import sweep

pytestmark = pytest.mark.bench
POINTS = grid(
    {"dimms": list(range(8, 28)), "batch": [1, 2, 3, 4, 5], "assumptions": ["fair", "as-published"]},
    {"system": "ndp-dimm", "model": "llama2-70b", "prompt": 128, "output": 480},
)


def _parent_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _timed(workers: int, out: Path) -> dict[str, float]:
    psutil = pytest.importorskip("psutil")
    parent_s, start = _parent_s(), time.perf_counter()
    with ProcessExecutor(workers) as executor:
        found = sweep(POINTS, out, executor=executor)
        times = [psutil.Process(child.pid).cpu_times() for child in multiprocessing.active_children()]
        wall_s = time.perf_counter() - start
    busy = [one.user + one.system for one in times]
    assert (found.done, len(busy)) == (len(POINTS), workers)
    figures = {"wall_s": wall_s, "workers_cpu_s": sum(busy), "longest_cpu_s": max(busy)}
    figures["parent_cpu_s"] = _parent_s() - parent_s
    print(workers, figures)
    return figures


def test_two_processes_take_at_most_six_tenths_of_the_time_of_one(tmp_path: Path) -> None:
    one, two = _timed(1, tmp_path / "one"), _timed(2, tmp_path / "two")
    path = "dataset.parquet"
    assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    assert one["workers_cpu_s"] >= 0.2 * len(POINTS)
    print("wall ratio", two["wall_s"] / one["wall_s"])
    ratio = (two["longest_cpu_s"] + two["parent_cpu_s"]) / (one["longest_cpu_s"] + one["parent_cpu_s"])
    assert ratio <= 0.6, ratio
    print("processor time ratio", ratio)
