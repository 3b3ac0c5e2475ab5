"""Speed and memory of a long serving run: the whole Azure conversation trace on one GPU."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.bench

SCRIPT = """
import json, resource, sys, time
import hetmem
from hetmem.workload import from_file
start = time.process_time()
run = hetmem.simulate("resident", model="llama3.1-8b", workload=from_file(sys.argv[1]), requests=int(sys.argv[2]),
                      batch=256, gpu="a100-sxm-80gb", gpus=1)
cpu_s = time.process_time() - start
row = run.summary()
print(json.dumps({"requests": row["requests"], "steps": run.counters["steps"], "cpu_s": cpu_s,
                  "us_per_step": cpu_s / run.counters["steps"] * 1e6,
                  "events_per_step": run.counters["events"] / run.counters["steps"],
                  "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def _serve(trace: Path, requests: int) -> dict[str, Any]:
    words = [sys.executable, "-c", SCRIPT, str(trace), str(requests)]
    result: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    print(result)
    return result


def test_the_whole_azure_trace_needs_hardly_more_memory_than_its_head(shared_data: Callable[[str], Path]) -> None:
    trace = shared_data("traces/azure2023_conv.csv.gz")
    head, whole = _serve(trace, 2_000), _serve(trace, 19_366)
    assert whole["requests"] == {"in": 19_366, "done": 19_366, "dropped": 0}
    assert whole["peak_bytes"] < 1.5 * head["peak_bytes"]
