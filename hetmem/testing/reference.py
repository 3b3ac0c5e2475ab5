"""A second engine of task graphs, short enough to be believed, which shares no code with the first.

:class:`ReferenceExecutor` is a heap of (tick, number, action) and a loop: do all that happens at a tick, then let each
free server take the least (class, ready tick, rank, task) of its queue. No SimPy, no wake events, no countdowns: a
task looks at its predecessors and handles whenever another is done. Slow; for comparisons only.
"""

from collections.abc import Callable, Generator, Iterable
from heapq import heappop, heappush
from typing import Any

import simpy
from attrs import define, field

from hetmem.engine.evaluator import Evaluator
from hetmem.engine.executor import Executor
from hetmem.engine.graph import Handle, TaskGraph

#: What a loop yields: ticks to sleep, or (graph, rank) to run until its gate opens.
Request = int | tuple[TaskGraph, int]
Loop = Generator[Request, int, None]


def drive(executor: Executor | Evaluator, loop: Loop, gates: dict[int, int]) -> Generator[simpy.Event, Any, None]:
    """Run ``loop`` on ``executor``, as a SimPy process; ``gates`` receives the tick of each rank's gate."""
    now: int | None = None
    while True:
        try:
            request = loop.send(now)  # type: ignore[arg-type]  # a generator is started with None
        except StopIteration:
            return
        if isinstance(request, int):
            yield executor.env.timeout(request)
        else:
            yield executor.submit(*request)
            gates[request[1]] = executor.env.now
        now = executor.env.now


@define(eq=False)
class _Queue:
    name: str
    waiting: list[list[Any]] = field(factory=list)
    free: bool = True
    busy_ps: int = 0
    wait_ps: int = 0
    jobs: int = 0


class ReferenceExecutor:
    """Runs loops that submit task graphs and wait for their gates.

    Parameters
    ----------
    servers
        Names.

    Attributes
    ----------
    log : list of (rank, server, tag, start_ps, end_ps, bytes)
        A row per task on a server, as the executor reports them.
    gates : dict of int to int
        The tick at which the graph of each rank was done.
    now : int
        The last tick at which something happened.
    """

    def __init__(self, servers: Iterable[str]) -> None:
        self.servers = {name: _Queue(name) for name in servers}
        self.log: list[tuple[int, str, str, int, int, int]] = []
        self.gates: dict[int, int] = {}
        self.unfinished: set[tuple[int, int]] = set()
        self.now = self._count = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._landed: dict[int, Handle] = {}  # by id; kept, so that no id is taken by another
        self._blocked: list[Callable[[], None]] = []

    def run(self, loops: Iterable[Loop]) -> None:
        """Run ``loops`` until nothing is left to happen; what can never run stays in ``unfinished``."""
        for loop in loops:
            self._at(0, lambda loop=loop: self._resume(loop, None))  # type: ignore[misc]
        while self._heap:
            self.now = self._heap[0][0]
            while self._heap and self._heap[0][0] == self.now:
                heappop(self._heap)[2]()
            for queue in self.servers.values():
                if queue.free and queue.waiting:
                    self._serve(queue)

    def _at(self, delay: int, action: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._heap, (self.now + delay, self._count, action))

    def _resume(self, loop: Loop, value: int | None) -> None:
        try:
            request = loop.send(value)  # type: ignore[arg-type]  # a generator is started with None
        except StopIteration:
            return
        if isinstance(request, int):
            self._at(request, lambda: self._resume(loop, self.now))
        else:
            self._submit(*request, lambda: self._resume(loop, self.now))

    def _submit(self, graph: TaskGraph, rank: int, opened: Callable[[], None]) -> None:
        template = graph.template
        preds: list[list[int]] = [[] for _ in template.servers]
        for pred, successors in enumerate(template.successors):
            for successor in successors:
                preds[successor].append(pred)
        done: set[int] = set()
        foreground = {i for i, background in enumerate(template.background) if not background}
        self.unfinished |= {(rank, i) for i in range(len(preds))}

        def finish(i: int) -> None:
            done.add(i)
            self.unfinished.discard((rank, i))
            if i in graph.publish:
                handle = graph.publish[i]
                self._landed[id(handle)] = handle
            open_gate()
            blocked, self._blocked = self._blocked, []
            for start in blocked:
                start()

        def open_gate() -> None:
            if foreground <= done and rank not in self.gates:
                self.gates[rank] = self.now
                self._at(0, opened)

        def start(i: int) -> None:
            handles = graph.wait.get(i, ())
            if any(pred not in done for pred in preds[i]) or any(id(h) not in self._landed for h in handles):
                self._blocked.append(lambda: start(i))
                return
            name, ps, lag = template.servers[i], graph.costs[i].ps, template.lag_ps[i]
            if name is None or ps == 0:
                self._at(ps + lag, lambda: finish(i))
                return

            def served(start_ps: int) -> None:
                self.log.append((rank, name, template.tags[i], start_ps, self.now, graph.costs[i].bytes))
                self._at(lag, lambda: finish(i))

            entry = [template.classes[i], self.now, rank, i, ps, template.chunk_ps[i] or ps, None, served]
            self.servers[name].waiting.append(entry)

        open_gate()
        for i in range(len(preds)):
            start(i)

    def _serve(self, queue: _Queue) -> None:
        entry = min(queue.waiting, key=lambda e: tuple(e[:4]))
        queue.waiting.remove(entry)
        queue.free = False
        if entry[6] is None:
            entry[6] = self.now
            queue.jobs += 1
            queue.wait_ps += self.now - entry[1]
        part = min(entry[4], entry[5])

        def ended() -> None:
            queue.free = True
            queue.busy_ps += part
            entry[4] -= part
            if entry[4]:
                queue.waiting.append(entry)
            else:
                entry[7](entry[6])

        self._at(part, ended)
