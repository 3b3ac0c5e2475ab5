"""The whole Azure conversation trace with little KV memory: nothing is lost, however often it is preempted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import hetmem
from hetmem.engine.decode_loop import DecodeLoop
from hetmem.engine.running import Sequence

BLOCK = 16


def serve(path: Path, blocks: int) -> hetmem.Run:
    return hetmem.simulate(
        "resident", model="llama3.1-8b", gpu="a100-sxm-80gb", workload=hetmem.from_file(path), max_num_seqs=256,
        kv_blocks=blocks, admission="fcfs",
    )  # fmt: skip


def check(run: hetmem.Run, monkeyed: list[int]) -> None:
    requests = run.requests
    done = requests.column("status") == "done"
    assert len(requests) == 19_366
    order = np.argsort(requests.column("id")[done])
    assert np.all(np.diff(requests.column("admitted_ps")[done][order]) >= 0)  # ids are in the order of arrival
    assert run.counters["preemptions"] == requests.column("preemptions").sum() == len(monkeyed)
    assert set(monkeyed) <= set(requests.column("id").tolist())  # each was finished or dropped afterwards
    kv = run.summary()["kv_blocks"]
    assert kv["allocated"] == kv["freed"] + kv["held"]
    assert kv["held"] == 0
    assert kv["peak"] <= kv["total"]


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids in the order of preemption; each must be first in the queue right after."""
    seen: list[int] = []
    before = DecodeLoop._preempt

    def noted(loop: DecodeLoop, seq: Sequence) -> None:
        count = loop.preemptions
        before(loop, seq)
        if loop.preemptions > count:
            assert loop.intake.first() is seq
            seen.append(seq.id)

    monkeypatch.setattr(DecodeLoop, "_preempt", noted)
    return seen


@pytest.mark.slow
def test_2000_blocks(shared_data: Callable[[str], Path], preempted: list[int]) -> None:
    run = serve(shared_data("traces/azure2023_conv.csv.gz"), 2_000)
    check(run, preempted)
    assert run.summary()["requests"] == {"in": 19_366, "done": 19_366, "dropped": 0}
    assert run.counters["preemptions"] > 0


@pytest.mark.slow
def test_300_blocks_refuse_what_can_never_fit(shared_data: Callable[[str], Path], preempted: list[int]) -> None:
    run = serve(shared_data("traces/azure2023_conv.csv.gz"), 300)
    check(run, preempted)
    prompt, output = (run.requests.column(f"{name}_tokens") for name in ("prompt", "output"))
    refused = -(-prompt // BLOCK) > 300
    outgrow = ~refused & (-(-(prompt + output - 1) // BLOCK) > 300)
    assert (refused.sum(), outgrow.sum()) == (101, 14)
    status = run.requests.column("status")
    assert set(status[refused | outgrow]) == {"dropped: kv-capacity"}
    assert set(status[~refused & ~outgrow]) == {"done"}
    assert run.summary()["refused_on_arrival"] == 101
    assert run.summary()["requests"]["dropped"] == 115
