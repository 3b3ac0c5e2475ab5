"""The repeated layers of a template: tasks that come again and again in the same pattern."""

from collections import Counter
from typing import Any, NamedTuple

from hetmem.engine.graph import Template

_CANDIDATES = 16  # periods that are tried


class Repeat(NamedTuple):
    """Tasks that come ``times`` over, ``period`` at a time, from task ``start`` on."""

    start: int
    period: int
    times: int

    @property
    def tasks(self) -> int:
        """How many tasks that are."""
        return self.period * self.times

    @property
    def end(self) -> int:
        """The task after the last of them."""
        return self.start + self.tasks


def longest_repeat(template: Template, at_least: int) -> Repeat | None:
    """Return the repetition of ``at_least`` so many times that covers most tasks; None if there is none.

    Repeated tasks have the same server, slot and lag, and predecessors at the same distances, at most a period;
    only the last of them have successors beyond.
    """
    n = len(template)
    preds: list[list[int]] = [[] for _ in range(n)]
    for task, successors in enumerate(template.successors):
        for successor in successors:
            preds[successor].append(successor - task)
    looks = list(zip(template.servers, template.slot_index, template.lag_ps, map(tuple, preds), strict=True))
    last: dict[Any, int] = {}
    gaps: Counter[int] = Counter()
    for task, look in enumerate(looks):
        if look in last:
            gaps[task - last[look]] += 1
        last[look] = task
    common = [gap for gap, _ in gaps.most_common(_CANDIDATES)]
    best: Repeat | None = None
    for period in sorted({gap * several for gap in common for several in (1, 2)}):
        near = [bool(distances) and max(distances) <= period for *_, distances in looks]
        run = 0
        for task in range(n):
            if near[task] and task + period < n and looks[task] == looks[task + period]:
                run += 1
                continue
            found = Repeat(task - run, period, run // period + 1)
            if found.times >= at_least and (best is None or found.tasks > best.tasks) and _closed(template, found):
                best = found
            run = 0
    return best


def _closed(template: Template, found: Repeat) -> bool:
    inner = template.successors[found.start : found.end - found.period]
    return all(successor < found.end for successors in inner for successor in successors)
