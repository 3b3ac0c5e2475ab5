"""A template compiled to straight-line Python: each task's end as a sum or a maximum of the ends before it.

That holds while every lane serves its tasks in the order of the template: a task is ready no earlier than the one
before it at its lane. Where the graph itself says so (the one before is among the task's ancestors, or is ready
whenever they are) nothing is left to verify, and where the lane is free by then, nothing to wait for; elsewhere the
code verifies and gives up. Equal expressions are computed once, so that devices that work in step cost one line.

Layers that are alike are a loop. A layer turns the state that the one before leaves (the ends that it waits for and
the ticks at which lanes are free) into the next by sums, maxima and comparisons of differences: started later, it
does the same later. So once a layer leaves the state that it found, but for a shift, all layers after it do too, and
the shift is multiplied.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from hetmem.engine.graph import Template
from hetmem.engine.repeat import Repeat, longest_repeat

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


def ancestors(template: Template) -> list[int]:
    """Return the tasks that each task follows, if only through others, as the bits of an integer."""
    found = [0] * len(template)
    for task, successors in enumerate(template.successors):
        for successor in successors:
            found[successor] |= found[task] | 1 << task
    return found


#: The first layers of a repetition are written out: what is known of the next one reaches back no further.
PEELED = 2


class _Lane:
    """What is known of a lane while code is written: its last task, and the names of its free tick and its waits."""

    def __init__(self, number: int) -> None:
        self.number = number
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
        self._values = 0
        names = dict.fromkeys(name for name in template.servers if name is not None)
        self.lanes = {name: _Lane(number) for number, name in enumerate(names)}
        self.preds: list[list[int]] = [[] for _ in range(len(template))]
        for pred, successors in enumerate(template.successors):
            for successor in successors:
                self.preds[successor].append(pred)
        self.ancestors = ancestors(template)
        self.ends: dict[int, str] = {}
        self.ready: dict[int, str] = {}
        self.lasts = [task for task, successors in enumerate(template.successors) if not successors]

    def source(self) -> str:
        """Return the source of a function ``line``."""
        repeat = longest_repeat(self.template, PEELED + 2)
        n = len(self.template)
        first, after = (n, n) if repeat is None else (repeat.start + PEELED * repeat.period, repeat.end)
        for task in range(first):
            self._task(task)
        ends = [self.ends[task] for task in self.lasts if task < first]  # now: a loop gives its names to other layers
        loop = None if repeat is None else _Loop(self, repeat)
        before, self.lines = self.lines, []
        for task in range(after, n):
            self._task(task)
        ends += [self.ends[task] for task in self.lasts if task >= after]
        if loop is not None and loop.lasts:
            ends.append(loop.LATEST)
        end = self._latest(ends) if ends else "now"
        lanes = self.lanes.values()
        free = "".join(f"{lane.free}, " for lane in lanes)
        served = "".join(self._value(_sum(lane.served)) + ", " for lane in lanes)
        waits = "".join(self._value(_sum(lane.waits)) + ", " for lane in lanes)
        slots = "".join(f"d{place}, " for place in range(len(self.template.slot_names)))
        entry = "".join(f"f{number}, " for number in range(len(self.lanes)))
        head = ["def line(now, ps, free):", f"({slots}) = ps", *([f"({entry}) = free"] if entry else [])]
        tail = [*self.lines, f"return {end}, ({free}), ({served}), ({waits})"]
        return "\n ".join([*head, *before, *([] if loop is None else loop.lines(tail)), *tail])

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
        self.ready[task] = ready
        self.ends[task] = self._value(f"{end}+{lag}") if lag else end

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
            self.known[expression] = name = f"v{self._values}"
            self._values += 1
            self.lines.append(f"{name} = {expression}")
        return self.known[expression]

    def written_apart(self, tasks: range) -> list[str]:
        """Return the lines of ``tasks``, which use nothing computed before but ends, ready ticks and free ticks."""
        before, known = self.lines, self.known
        self.lines, self.known = [], {}
        for task in tasks:
            self._task(task)
        lines, self.lines, self.known = self.lines, before, known
        return lines


class _Loop:
    """The loop over the layers of a repetition but the first, which the writer has written.

    Its state: ``e<k>`` and ``r<k>``, the end of the k-th task of the layer before and the tick at which it was ready;
    ``c<n>``, the tick at which lane n is free. It counts the waits at each lane, ``w<n>``, and the latest end.
    """

    LATEST = "latest"

    def __init__(self, writer: _Writer, repeat: Repeat) -> None:
        period, first = repeat.period, repeat.start + PEELED * repeat.period
        self.times = repeat.times - PEELED
        initial: dict[str, str] = {}
        final: dict[str, str] = {}
        for k in range(period):
            for kind, ticks in (("e", writer.ends), ("r", writer.ready)):
                initial[f"{kind}{k}"], ticks[first - period + k] = ticks[first - period + k], f"{kind}{k}"
        used = {writer.template.servers[task] for task in range(first, first + period)}
        lanes = [lane for name, lane in writer.lanes.items() if name in used]
        outside = [(lane.served, lane.waits) for lane in lanes]
        for lane in lanes:
            initial[f"c{lane.number}"], lane.free = lane.free, f"c{lane.number}"
            lane.served, lane.waits = [], []
        self.body = writer.written_apart(range(first, first + period))
        self.waits = {f"w{lane.number}": _sum(lane.waits) for lane in lanes if lane.waits}
        for lane, (served, waits) in zip(lanes, outside, strict=True):
            final[f"c{lane.number}"], lane.free = lane.free, f"c{lane.number}"
            lane.served = served + lane.served * self.times
            lane.waits = [*waits, f"w{lane.number}"] if lane.waits else waits
            lane.last += period * (self.times - 1)
        for k in range(period):  # what comes after waits for the last layer
            for kind, ticks in (("e", writer.ends), ("r", writer.ready)):
                final[f"{kind}{k}"], ticks[repeat.end - period + k] = ticks[first + k], f"{kind}{k}"
        self.initial, self.final = initial, final
        lasts = {(task - first) % period for task in writer.lasts if first <= task < repeat.end}
        self.lasts = [f"e{k}" for k in sorted(lasts)]

    def lines(self, tail: list[str]) -> list[str]:
        """Return the code, which keeps of the state what its body and the ``tail`` read."""
        state = set(re.findall(r"\b[erc]\d+\b", " ".join([*self.body, *tail, *self.lasts, *self.waits.values()])))
        while more := {self.final[name] for name in state} & set(self.initial) - state:
            state |= more
        kept = sorted(state)
        base, names = kept[0], "".join(f"{name}, " for name in kept)
        latest = [f"{self.LATEST} = max({self.LATEST}, {', '.join(self.lasts)})"] if self.lasts else []
        multiplied = [
            f"shift = ({base}-old)*left",
            *(f"{name} += shift" for name in kept),
            *(f"{wait} += x{wait}*left" for wait in self.waits),
            *latest,
            "break",
        ]
        body = [
            *self.body,
            *(f"x{wait} = {ticks}" for wait, ticks in self.waits.items()),
            *(f"{wait} += x{wait}" for wait in self.waits),
            f"old = {base}",
            f"({names}) = ({''.join(f'{self.final[name]}, ' for name in kept)})",
            *latest,
            f"state = ({''.join(f'{name}-{base}, ' for name in kept[1:])})",
            "if state == last:",
            *(f" {line}" for line in multiplied),
            "last = state",
        ]
        return [
            *(f"{name} = {self.initial[name]}" for name in kept),
            *(f"{wait} = 0" for wait in self.waits),
            f"{self.LATEST} = now",
            "last = None",
            f"for left in range({self.times - 1}, -1, -1):",
            *(f" {line}" for line in body),
        ]


def _sum(terms: list[str]) -> str:
    """Return the sum of ``terms``, equal ones counted."""
    if not terms:
        return "0"
    counts: dict[str, int] = {}
    for term in terms:
        counts[term] = counts.get(term, 0) + 1
    # In brackets and by a call: a chain of thousands of operators is too deep for the compiler.
    return f"sum(({', '.join(term if n == 1 else f'{n}*({term})' for term, n in counts.items())},))"
