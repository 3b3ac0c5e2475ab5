"""A template compiled to straight-line Python: each task's end as a sum or a maximum of the ends before it.

That holds while every lane serves its tasks in the order of the template: a task is ready no earlier than the one
before it at its lane. Where the graph itself says so (the one before is among the task's ancestors, or is ready
whenever they are) nothing is left to verify, and where the lane is free by then, nothing to wait for; elsewhere the
code verifies and gives up. Equal expressions are computed once, so that devices that work in step cost one line.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hetmem.engine.graph import Template

#: Given (now, ticks by slot, free tick by lane): None if a lane would not serve in order, else (end, free by lane,
#: served by lane, waited by lane); lanes in the order of their first tasks.
StraightLine = Callable[[int, Sequence[int], Sequence[int]], tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None]  # fmt: skip  # noqa: E501


def straight_line(template: Template) -> StraightLine:
    """Return the compiled form of ``template``, whose tasks are all in the foreground and of class 0.

    The ticks of every task on a server must be positive when it is called.
    """
    scope: dict[str, Any] = {}
    exec(compile(_Writer(template).source(), "<straight line>", "exec"), scope)
    line: StraightLine = scope["line"]
    return line


class _Lane:
    """What is known of a lane while code is written: its last task, and the names of its free tick and its waits."""

    def __init__(self, number: int) -> None:
        self.free = f"f{number}"
        self.last = -1
        self.served: list[str] = []
        self.waits: list[str] = []


class _Writer:
    """Writes the code of one template."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.lines: list[str] = []
        self.known: dict[str, str] = {}
        names = dict.fromkeys(name for name in template.servers if name is not None)
        self.lanes = {name: _Lane(number) for number, name in enumerate(names)}
        n = len(template)
        self.preds: list[list[int]] = [[] for _ in range(n)]
        for pred, successors in enumerate(template.successors):
            for successor in successors:
                self.preds[successor].append(pred)
        # The ancestors of each task as the bits of an integer, and so of those whose ends make it ready.
        self.ancestors = [0] * n
        for task in range(n):
            for pred in self.preds[task]:
                self.ancestors[task] |= self.ancestors[pred] | 1 << pred
        self.ends: list[str] = []
        self.ready: list[str] = []

    def source(self) -> str:
        """Return the source of a function ``line``."""
        for task in range(len(self.template)):
            self._task(task)
        lasts = [self.ends[task] for task, successors in enumerate(self.template.successors) if not successors]
        end = self._latest(lasts) if lasts else "now"
        lanes = self.lanes.values()
        free = "".join(f"{lane.free}, " for lane in lanes)
        served = "".join(self._value(_sum(lane.served)) + ", " for lane in lanes)
        waits = "".join(self._value(_sum(lane.waits)) + ", " for lane in lanes)
        slots = "".join(f"d{place}, " for place in range(len(self.template.slot_names)))
        entry = "".join(f"f{number}, " for number in range(len(self.lanes)))
        head = ["def line(now, ps, free):", f"({slots}) = ps", *([f"({entry}) = free"] if entry else [])]
        return "\n ".join([*head, *self.lines, f"return {end}, ({free}), ({served}), ({waits})"])

    def _task(self, task: int) -> None:
        template = self.template
        ready = self._latest([self.ends[pred] for pred in self._needed(task)]) if self.preds[task] else "now"
        place, name, lag = template.slot_index[task], template.servers[task], template.lag_ps[task]
        end = ready
        if name is None:
            end = self._value(f"{ready}+d{place}") if place else ready
        else:
            lane = self.lanes[name]
            start = self._start(task, lane, ready)
            end = lane.free = self._value(f"{start}+d{place}")
            lane.last = task
            lane.served.append(f"d{place}")
        self.ready.append(ready)
        self.ends.append(self._value(f"{end}+{lag}") if lag else end)

    def _start(self, task: int, lane: _Lane, ready: str) -> str:
        """Return the name of the tick at which ``task`` starts at ``lane``; verify the order if need be."""
        last = lane.last
        if last >= 0 and self.ancestors[task] >> last & 1:
            return ready
        if last >= 0 and not self._never_before(task, last):
            self.lines.append(f"if {ready} < {self.ready[last]}: return None")
        start = self._value(f"{lane.free} if {lane.free} > {ready} else {ready}")
        if start != ready:
            lane.waits.append(f"{start}-{ready}")
        return start

    def _never_before(self, task: int, last: int) -> bool:
        """Return whether ``task`` is ready no earlier than ``last`` whatever the numbers."""
        waited = self.ancestors[task] | sum(1 << pred for pred in self.preds[task])
        return all(waited >> pred & 1 for pred in self.preds[last])

    def _needed(self, task: int) -> list[int]:
        """Return the predecessors that are not ancestors of another."""
        preds = self.preds[task]
        return [p for p in preds if not any(self.ancestors[other] >> p & 1 for other in preds)]

    def _latest(self, ends: list[str]) -> str:
        names = list(dict.fromkeys(ends))
        if len(names) == 1:
            return names[0]
        if len(names) == 2:
            a, b = names
            return self._value(f"{a} if {a} > {b} else {b}")
        return self._value(f"max({', '.join(names)})")

    def _value(self, expression: str) -> str:
        """Return the name of the value of ``expression``, computed once."""
        if expression not in self.known:
            self.known[expression] = name = f"v{len(self.known)}"
            self.lines.append(f"{name} = {expression}")
        return self.known[expression]


def _sum(terms: list[str]) -> str:
    """Return the sum of ``terms``, equal ones counted."""
    if not terms:
        return "0"
    counts: dict[str, int] = {}
    for term in terms:
        counts[term] = counts.get(term, 0) + 1
    # In brackets and by a call: a chain of thousands of operators is too deep for the compiler.
    return f"sum(({', '.join(term if n == 1 else f'{n}*({term})' for term, n in counts.items())},))"
