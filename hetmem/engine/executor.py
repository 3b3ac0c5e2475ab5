"""The executor: submits a task when its predecessors are done, for the whole of a run.

A step is done when its foreground tasks are; background work stays queued and may outlive it. Joins are
countdowns and cost no event; a task on a server costs its service and, where the server was idle or its tick
still had other events, one arbitration.
"""

from collections.abc import Callable, Mapping
from typing import Any

import simpy
from attrs import define, field

from hetmem.engine.graph import Cost, TaskGraph, Template
from hetmem.errors import ConfigError, ConservationError, DeadlockError
from hetmem.hardware.clock import COMPLETION, Clock
from hetmem.hardware.server import Server

# A rank orders the tasks of a run: steps by their rank, then tasks by index.
TASKS_PER_STEP = 1 << 24
OnTask = Callable[[int, str, str, int, int, int], None]


@define(slots=True, eq=False)
class Submission:
    """A submitted graph: how many predecessors each task still misses, and the gate it opens at its end."""

    graph: TaskGraph
    rank: int
    gate: simpy.Event
    costs: list[Cost]
    servers: tuple[Server | None, ...]
    missing: list[int]
    foreground_left: int
    left: int
    done: bytearray = field(repr=False)


class Executor:
    """Runs task graphs on the servers of a machine.

    Parameters
    ----------
    env
        The simulation environment.
    servers
        The servers by name.
    on_task
        Called as ``on_task(rank, server, tag, start_ps, end_ps, bytes)`` when a task on a server ends; None
        records nothing.
    """

    def __init__(self, env: Clock, servers: Mapping[str, Server], on_task: OnTask | None = None) -> None:
        self.env, self.servers, self.on_task = env, servers, on_task
        self.outstanding: dict[int, Submission] = {}
        self._resolved: dict[int, tuple[Template, tuple[Server | None, ...]]] = {}
        self._asked_bytes = dict.fromkeys(servers, 0)

    def submit(self, graph: TaskGraph, rank: int) -> simpy.Event:
        """Start ``graph`` now; the returned gate fires when its foreground tasks are done.

        ``rank`` is unique among the submissions of a run and decides ties at a server.

        Raises
        ------
        ConfigError
            When the graph names a server that the machine does not have.
        """
        if rank in self.outstanding:
            raise ConfigError("rank", f"{rank} is in flight already")
        template = graph.template
        missing = list(template.n_preds)
        sub = Submission(
            graph, rank, self.env.event(), graph.costs, self._resolve(template), missing,
            len(graph) - sum(template.background), len(graph), bytearray(len(graph)),
        )  # fmt: skip
        for index, handles in graph.wait.items():
            for handle in handles:
                if handle.landed_ps is None:
                    handle.waiters.append((sub, index))
                    missing[index] += 1
        self.outstanding[rank] = sub
        if sub.foreground_left == 0:
            sub.gate.succeed(self.env.now)
        if sub.left == 0:
            del self.outstanding[rank]
        # Collected first: starting a join finishes it at once and may make later tasks ready.
        self._start([(sub, index) for index in range(len(missing) - 1, -1, -1) if not missing[index]])
        return sub.gate

    def check_drained(self) -> None:
        """Raise if work is outstanding although no event is left, or if bytes went missing.

        Raises
        ------
        DeadlockError
            With a line per task that waits, and what it waits for.
        ConservationError
            When a server has not served the bytes that were submitted to it.
        """
        if self.outstanding:
            raise DeadlockError(
                tuple(
                    line for sub in self.outstanding.values() for line in waiting_lines(sub.graph, sub.rank, sub.done)
                )
            )
        for name, server in self.servers.items():
            if server.bytes != self._asked_bytes[name]:
                raise ConservationError(
                    "bytes in = bytes out", f"{name} was given {self._asked_bytes[name]} and served {server.bytes}"
                )

    def _resolve(self, template: Template) -> tuple[Server | None, ...]:
        known = self._resolved.get(id(template))
        if known is None:
            for name in template.servers:
                if name is not None and name not in self.servers:
                    raise ConfigError("graph", f"the machine has no server {name!r}; it has {', '.join(self.servers)}")
            servers = tuple(None if name is None else self.servers[name] for name in template.servers)
            # The template is kept, so that its id cannot be taken by another.
            known = self._resolved[id(template)] = (template, servers)
        return known[1]

    def _start(self, ready: list[tuple[Any, int]]) -> None:
        """Start the tasks of the stack ``ready`` and whatever becomes ready by joins among them."""
        while ready:
            sub, index = ready.pop()
            server, cost, template = sub.servers[index], sub.costs[index], sub.graph.template
            if server is None or cost.ps == 0:
                if cost.fj or cost.bytes:
                    raise ConservationError(
                        "work takes time at a server",
                        f"{template.tags[index] or 'join'} is no service, but costs {cost}",
                    )
                delay = cost.ps + template.lag_ps[index]
                if delay == 0:
                    self._finish(sub, index, ready)
                else:
                    self._after(delay, sub, index)
            else:
                self._asked_bytes[server.name] += cost.bytes
                server.submit(
                    sub.rank * TASKS_PER_STEP + index, cost.ps, self._served, sub, index,
                    cls=template.classes[index], chunk_ps=template.chunk_ps[index],
                    energy_fj=cost.fj, n_bytes=cost.bytes,
                )  # fmt: skip

    def _after(self, delay_ps: int, sub: Submission, index: int) -> None:
        self.env.call(lambda _event: self._complete(sub, index), self.env.now + delay_ps, COMPLETION)

    def _served(self, sub: Submission, index: int, start_ps: int) -> None:
        template = sub.graph.template
        if self.on_task is not None:
            self.on_task(
                sub.rank, template.servers[index] or "", template.tags[index], start_ps, self.env.now,
                sub.costs[index].bytes,
            )  # fmt: skip
        if lag := template.lag_ps[index]:
            self._after(lag, sub, index)
        else:
            self._complete(sub, index)

    def _complete(self, sub: Submission, index: int) -> None:
        ready: list[tuple[Any, int]] = []
        self._finish(sub, index, ready)
        self._start(ready)

    def _finish(self, sub: Submission, index: int, ready: list[tuple[Any, int]]) -> None:
        """Count ``index`` as done now; push what becomes ready."""
        sub.done[index] = 1
        for successor in sub.graph.template.successors[index]:
            _countdown(sub, successor, ready)
        handle = sub.graph.publish.get(index)
        if handle is not None:
            handle.landed_ps = self.env.now
            for waiter, waiting in handle.waiters:
                _countdown(waiter, waiting, ready)
            handle.waiters.clear()
        sub.left -= 1
        if not sub.graph.template.background[index]:
            sub.foreground_left -= 1
            if sub.foreground_left == 0:
                sub.gate.succeed(self.env.now)
        if sub.left == 0:
            del self.outstanding[sub.rank]


def _countdown(sub: Any, index: int, ready: list[tuple[Any, int]]) -> None:
    sub.missing[index] -= 1
    if sub.missing[index] == 0:
        ready.append((sub, index))


def waiting_lines(graph: TaskGraph, rank: int, done: bytearray) -> list[str]:
    """Return a line for each task of ``graph`` that is not ``done``, with what it waits for."""
    template, lines = graph.template, []
    for index, ended in enumerate(done):
        if ended:
            continue
        what = f"step rank {rank}, task {index} ({template.tags[index] or 'join'})"
        unmet = [pred for pred, after in enumerate(template.successors) if index in after and not done[pred]]
        keys = [repr(h.key) for h in graph.wait.get(index, ()) if h.landed_ps is None]
        if unmet or keys:
            reasons = [f"task {pred} ({template.tags[pred] or 'join'})" for pred in unmet]
            lines.append(f"{what} waits for {', '.join(reasons + [f'handle {key}' for key in keys])}")
        else:
            lines.append(f"{what} waits for service at {template.servers[index]}")
    return lines
