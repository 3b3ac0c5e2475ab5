"""Timeline of a traced run in Chrome's JSON trace format, which ui.perfetto.dev and chrome://tracing open.

One track per server slot: the spans of a track are disjoint or nested (a chunked task encloses the tasks that pass
it), and a span that would cross another goes to a further slot of its server. Spans are written as begin and end
events, parents before children.

The format counts microseconds and its viewers keep whole nanoseconds. A time of ``n`` ps is written as ``n // 1000`` ns
with three decimals of a microsecond: one viewer nanosecond is 1000 ticks, rounded down. Rounding down keeps the order
of times, so that spans which nest in ticks nest in the viewer. The ticks themselves are in a span's arguments.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from hetmem._version import __version__
from hetmem.monitor.table import Table

PS_PER_NS = 1000
SCALING = "ts is in microseconds of simulated time; 1 us = 1,000,000 ps, rounded down to whole ns; exact ticks in args"

_PID = 1
_STEP_TRACK = "steps"


def write_timeline(path: str | Path, tasks: Table, *, steps: Table | None = None, servers: Sequence[str] = ()) -> Path:
    """Write the tasks of a run as a timeline and return its path; the file appears when it is complete.

    Parameters
    ----------
    path
        The file to write, replaced if it exists; its folder is made.
    tasks
        The ``tasks`` table of a traced run.
    steps
        The ``steps`` table, for a track of steps above the servers.
    servers
        Names in the order in which their tracks appear, such as ``run.busy_ps``; others follow by first task.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            _write(file, tasks, steps, servers)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _write(file: TextIO, tasks: Table, steps: Table | None, servers: Sequence[str]) -> None:
    about = {"producer": f"hetmem {__version__}", "scaling": SCALING}
    file.write(f'{{"displayTimeUnit":"ns","otherData":{json.dumps(about)},"traceEvents":[\n')
    file.write(_metadata("process_name", 0, {"name": "hetmem"}))
    tracks = 0
    if steps is not None:
        tracks = _write_server(file, _STEP_TRACK, _step_spans(steps), tracks)
    columns = {name: tasks.column(name) for name in tasks.columns}
    present = dict.fromkeys(columns["server"].tolist())
    for server in dict.fromkeys([*(name for name in servers if name in present), *present]):
        tracks = _write_server(file, server, _task_spans(columns, server), tracks)
    file.write("\n]}\n")


# A span: start and end in ticks, name, and arguments as the inside of a JSON object.
_Span = tuple[int, int, str, str]


def _task_spans(columns: dict[str, Any], server: str) -> Iterator[_Span]:
    """Give the spans of one server by start, the longer first where several start together."""
    mine = np.flatnonzero(columns["server"] == server)
    starts, ends = columns["start_ps"][mine], columns["end_ps"][mine]
    order = mine[np.lexsort((-ends, starts))]
    names = {word: json.dumps(word) for word in dict.fromkeys(columns["task"].tolist())}
    for row in order.tolist():
        args = f'"step":{columns["step"][row]},"bytes":{columns["bytes"][row]}'
        yield int(columns["start_ps"][row]), int(columns["end_ps"][row]), names[columns["task"][row]], args


def _step_spans(steps: Table) -> Iterator[_Span]:
    columns = {name: steps.column(name) for name in steps.columns}
    order = np.lexsort((-columns["end_ps"], columns["start_ps"]))
    shown = [name for name in columns if name not in ("start_ps", "end_ps")]
    for row in order.tolist():
        kinds = [
            kind
            for kind, column in (("prefill", "prefill_tokens"), ("decode", "decode_sequences"))
            if columns[column][row]
        ]
        args = ",".join(f'"{name}":{columns[name][row]}' for name in shown)
        yield int(columns["start_ps"][row]), int(columns["end_ps"][row]), f'"{" + ".join(kinds)}"', args


def _write_server(file: TextIO, server: str, spans: Iterator[_Span], tracks: int) -> int:
    """Write the spans of one server, given by start, on as many tracks as it takes; return the tracks so far."""
    slots: list[list[int]] = []  # per slot the ends of its open spans, innermost last
    for start, end, name, args in spans:
        for slot, ends in enumerate(slots):
            _close(file, ends, start, tracks + slot)
        fitting = (slot for slot, ends in enumerate(slots) if not ends or end <= ends[-1])
        chosen = next(fitting, len(slots))
        track = tracks + chosen
        if chosen == len(slots):
            slots.append([])
            label = server if chosen == 0 else f"{server} #{chosen + 1}"
            file.write(",\n" + _metadata("thread_name", track, {"name": label}))
            file.write(",\n" + _metadata("thread_sort_index", track, {"sort_index": track}))
        slots[chosen].append(end)
        file.write(
            f',\n{{"ph":"B","pid":{_PID},"tid":{track},"ts":{_microseconds(start)},"name":{name},'
            f'"args":{{{args},"start_ps":{start},"end_ps":{end}}}}}'
        )
    for slot, ends in enumerate(slots):
        _close(file, ends, max(ends, default=0), tracks + slot)
    return tracks + len(slots)


def _close(file: TextIO, ends: list[int], now: int, track: int) -> None:
    """End the open spans of a slot that are over by ``now``, innermost first."""
    while ends and ends[-1] <= now:
        file.write(f',\n{{"ph":"E","pid":{_PID},"tid":{track},"ts":{_microseconds(ends.pop())}}}')


def _microseconds(ps: int) -> str:
    """Return ticks in microseconds, rounded down to three decimals; as text, because a float would round again."""
    ns = ps // PS_PER_NS
    return f"{ns // 1000}.{ns % 1000:03d}"


def _metadata(kind: str, track: int, args: dict[str, Any]) -> str:
    return json.dumps({"ph": "M", "pid": _PID, "tid": track, "name": kind, "args": args}, separators=(",", ":"))
