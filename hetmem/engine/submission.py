"""A submission: a graph under way on the evaluator, and what it waits for if it gets stuck."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import simpy
from attrs import define, field

from hetmem.engine.executor import waiting_lines
from hetmem.engine.graph import Cost, TaskGraph
from hetmem.engine.program import Barrier, Fork, Program
from hetmem.hardware.lane import Lane


@define(slots=True, eq=False)
class Submission:
    """A submitted graph. ``missing`` and ``ready`` are empty until its tasks are started one by one."""

    graph: TaskGraph
    rank: int
    key: int
    gate: simpy.Event
    program: Program
    ps: Sequence[int]
    lanes: Sequence[Any]  # a lane, or None where there is no service
    kinds: bytes | bytearray
    barriers: Mapping[int, Barrier]
    forks: Mapping[int, Fork]
    gates_left: int
    lasts_left: int
    gate_ps: int
    missing: list[int] = field(factory=list, repr=False)
    ready: list[int] = field(factory=list, repr=False)
    costs: list[Cost] = field(factory=list, repr=False)  # by task, if tasks are reported


def waits(
    outstanding: Iterable[Submission], due: set[tuple[int, int]], lanes: Iterable[Lane], horizon_ps: int, now_ps: int
) -> tuple[str, ...]:
    """Return a line per task that has not ended, and what it waits for.

    ``due`` holds (rank, task) of those that are ready and not yet at a lane; service is known up to ``horizon_ps``.
    """
    waiting = due | {(entry[5].rank, entry[6]) for lane in lanes for entry in lane.queue}
    lines = []
    for sub in outstanding:
        missing = sub.missing or [0] * len(sub.graph)
        done = bytearray(not left and (sub.rank, i) not in waiting for i, left in enumerate(missing))
        lines += waiting_lines(sub.graph, sub.rank, done)
    if horizon_ps > now_ps:
        lines.append(f"service until tick {horizon_ps}")
    return tuple(lines)
