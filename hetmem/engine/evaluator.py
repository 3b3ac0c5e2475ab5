"""The evaluator: runs task graphs as the executor does, to the tick, without an event per task.

Servers are lanes (:mod:`hetmem.hardware.lane`). Tasks are taken in the order of (ready tick, rank) from one heap
that lives as long as the run, and each is given its start and end at once; joins, delays and lags resolve at ticks
known ahead. Nothing is decided at or after the next event of anybody else (an arrival, a gate), because its control
may submit work, so several steps in flight and work that outlives its step are exact. A lane whose queue of other
classes may bring forth an end has a *wake* in the heap, before the tasks of its tick.

A graph whose tasks come in the order of its template takes a shorter way
(:mod:`hetmem.engine.straight_line`), if nothing else is under way.
"""

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from typing import Any

import simpy
from attrs import define, field

from hetmem.engine.executor import TASKS_PER_STEP, OnTask, waiting_lines
from hetmem.engine.graph import Handle, TaskGraph, Template
from hetmem.engine.program import GATE, LAST, QUEUED, Program, program
from hetmem.errors import ConfigError, ConservationError, DeadlockError
from hetmem.hardware.clock import ARBITRATION, COMPLETION, Clock
from hetmem.hardware.lane import Lane


@define(slots=True, eq=False)
class _Submission:
    """A submitted graph. ``missing`` and ``ready`` are empty until its tasks are started one by one."""

    graph: TaskGraph
    rank: int
    key: int
    gate: simpy.Event
    program: Program
    ps: tuple[int, ...]
    lanes: tuple[Lane | None, ...]
    gates_left: int
    lasts_left: int
    gate_ps: int
    missing: list[int] = field(factory=list, repr=False)
    ready: list[int] = field(factory=list, repr=False)


class Evaluator:
    """Runs task graphs on the lanes of a machine; the same interface as :class:`hetmem.engine.executor.Executor`.

    Parameters
    ----------
    env
        The simulation environment.
    servers
        The lanes by name.
    on_task
        Called as ``on_task(rank, server, tag, start_ps, end_ps, bytes)`` for every task on a server, in the order of
        their ends; None records nothing.
    """

    def __init__(self, env: Clock, servers: Mapping[str, Lane], on_task: OnTask | None = None) -> None:
        self.env, self.servers, self.on_task = env, servers, on_task
        self.outstanding: dict[int, _Submission] = {}
        self._programs: dict[int, Program] = {}
        # Tasks as (ready tick, key, submission, index) and wakes as (tick, key below 0, lane, 0).
        self._heap: list[tuple[int, int, Any, int]] = []
        self._unstarted: list[_Submission] = []
        self._timers: set[tuple[int, int]] = set()
        self._horizon = 0  # the last end that is known
        self._gates_until = 0  # the last tick at which a gate opens
        self._rows: list[tuple[Any, ...]] = []
        for lane in servers.values():
            lane.ended = self._queued_ended

    def submit(self, graph: TaskGraph, rank: int) -> simpy.Event:
        """Start ``graph`` now; the returned gate fires when its foreground tasks are done.

        ``rank`` is unique among the submissions of a run and decides ties at a server.

        Raises
        ------
        ConfigError
            When the graph names a server that the machine does not have.
        ConservationError
            When a task costs bytes or energy, but no time at a server.
        """
        if rank in self.outstanding:
            raise ConfigError("rank", f"{rank} is in flight already")
        prog = self._program(graph.template)
        now = self.env.now
        ps, lanes = self._account(prog, graph)
        sub = _Submission(
            graph, rank, rank * TASKS_PER_STEP, simpy.Event(self.env), prog, ps, lanes, prog.gates, prog.lasts, now
        )
        if prog.lasts:
            self.outstanding[rank] = sub
        if not prog.gates:
            self.env.trigger(sub.gate, now)
        landed = all(h.landed(now) for handles in graph.wait.values() for h in handles)
        if prog.plain and landed and lanes is prog.lanes and not graph.publish and self.on_task is None:
            self._unstarted.append(sub)  # it ends after now, and says nothing before: it may wait for arbitration
        else:
            self._begin(sub)
        self._call(now, ARBITRATION)
        return sub.gate

    def check_drained(self) -> None:
        """Raise if work is outstanding although no event is left, or if service went missing.

        Raises
        ------
        DeadlockError
            With a line per task that waits, and what it waits for.
        ConservationError
            When a lane has not served as long as it was asked to.
        """
        self._report(self.env.now)
        if self.outstanding or self._horizon > self.env.now:
            raise DeadlockError(self._waits())
        for name, lane in self.servers.items():
            if lane.served_ps != lane.asked_ps:
                raise ConservationError("service", f"{name} was asked for {lane.asked_ps} ps, served {lane.served_ps}")

    # -- submission ----------------------------------------------------------------------------------------------

    def _program(self, template: Template) -> Program:
        known = self._programs.get(id(template))
        if known is None:  # a program keeps its template, so that the id cannot be taken by another
            known = self._programs[id(template)] = program(template, self.servers)
        return known

    def _account(self, prog: Program, graph: TaskGraph) -> tuple[tuple[int, ...], tuple[Lane | None, ...]]:
        """Count the work at its lanes; return the ticks by slot, and the lanes by task, None where there is no work."""
        ps, fj, n_bytes = zip(*graph.slot_costs, strict=True)
        idle = ps.count(0) > 1  # beside the first, of tasks without a slot
        if idle or prog.free_slots:
            self._refuse_lost(prog, graph)
        energy, moved = any(fj), any(n_bytes)
        for lanes, pick in prog.sums:
            mine = pick(ps)
            total, jobs = sum(mine), len(mine) - mine.count(0)
            spent = sum(pick(fj)) if energy else 0
            carried = sum(pick(n_bytes)) if moved else 0
            for lane in lanes:
                lane.asked_ps += total
                lane.jobs += jobs
                lane.energy_fj += spent
                lane.bytes += carried
        if not idle:
            return ps, prog.lanes
        by_task = prog.expand(ps)
        busy = tuple(lane if ticks else None for lane, ticks in zip(prog.lanes, by_task, strict=True))
        return ps, prog.lanes if busy == prog.lanes else busy

    def _refuse_lost(self, prog: Program, graph: TaskGraph) -> None:
        for index, (lane, cost) in enumerate(zip(prog.lanes, graph.costs, strict=True)):
            if (lane is None or cost.ps == 0) and (cost.fj or cost.bytes):
                tag = graph.template.tags[index] or "join"
                raise ConservationError("work takes time at a server", f"{tag} is no service, but costs {cost}")

    def _begin(self, sub: _Submission) -> None:
        """Start the tasks of a graph one by one, those first that wait for nothing."""
        now, template = self.env.now, sub.graph.template
        sub.ps = tuple(sub.program.expand(sub.ps))
        missing = sub.missing = list(template.n_preds)
        ready = sub.ready = [now] * len(missing)
        for index, handles in sub.graph.wait.items():
            for handle in handles:
                if handle.landed_ps is None:
                    handle.waiters.append((sub, index))
                    missing[index] += 1
                elif handle.landed_ps > ready[index]:
                    ready[index] = handle.landed_ps
        # Collected first: starting a join resolves it at once and may make later tasks ready.
        for index in [index for index, left in enumerate(missing) if not left]:
            self._start(sub, index)

    # -- time ----------------------------------------------------------------------------------------------------

    def _call(self, tick: int, phase: int) -> None:
        if (tick, phase) not in self._timers:
            self._timers.add((tick, phase))
            self.env.call(self._on_arbitration if phase == ARBITRATION else self._on_completion, tick, phase)

    def _on_completion(self, _event: simpy.Event) -> None:
        self._timers.discard((self.env.now, COMPLETION))
        self._advance(self.env.now)

    def _on_arbitration(self, _event: simpy.Event) -> None:
        now = self.env.now
        self._timers.discard((now, ARBITRATION))
        if self._unstarted:
            unstarted, self._unstarted = self._unstarted, []
            if len(unstarted) == 1 and not self._heap and self._in_order(unstarted[0]):
                return
            for sub in unstarted:
                self._begin(sub)
        self._advance(now + 1)

    def _in_order(self, sub: _Submission) -> bool:
        """Work ``sub`` out at once if its template allows it; it is the only work there is."""
        end = sub.program.in_order(self.env.now, sub.ps, self.env.next_ps)
        if end < 0:
            return False
        del self.outstanding[sub.rank]
        self._open(sub.gate, end)
        self._horizon = max(self._horizon, end)
        return True

    def _open(self, gate: simpy.Event, tick: int) -> None:
        self.env.trigger(gate, tick)
        self._gates_until = max(self._gates_until, tick)

    def _advance(self, decided: int) -> None:
        """Take tasks and wakes up to the next event of anybody else; all before the tick ``decided`` is known."""
        env, heap = self.env, self._heap
        limit = env.next_ps
        while heap:
            tick, key, owner, index = heap[0]
            # A tick's wakes come before its control, its tasks after it.
            if tick >= limit and tick >= decided and not (key < 0 and tick == limit):
                break
            heappop(heap)
            if key < 0:
                self._wake(owner, tick)
            else:
                self._serve(owner, index, tick)
            limit = env.next_ps
        if self.on_task is not None:
            self._report(env.now)
        if heap:
            tick, key = heap[0][:2]
            self._call(max(tick, env.now), COMPLETION if key < 0 else ARBITRATION)
        elif self._horizon > (env.now if self.on_task else max(env.now, self._gates_until)):
            self._call(self._horizon, ARBITRATION)  # the clock runs to the end of all work

    def _serve(self, sub: _Submission, index: int, tick: int) -> None:
        """Give the task that is next its place at its lane."""
        lane = sub.lanes[index]
        assert lane is not None
        if sub.program.kinds[index] & QUEUED:
            template = sub.graph.template
            lane.queue_up(
                [template.classes[index], tick, sub.key + index, sub.ps[index], template.chunk_ps[index], sub, index, -1]
            )
            self._watch(lane)
            return
        if lane.queue:
            lane.advance(tick)
        start = tick
        if lane.free_ps > tick:
            lane.delay(tick)
            start = lane.free_ps
        ps = sub.ps[index]
        lane.free_ps = end = start + ps
        lane.served_ps += ps
        self._ended(sub, index, start, end)

    def _queued_ended(self, sub: _Submission, index: int, start: int, end: int) -> None:
        self._ended(sub, index, start, end)

    def _ended(self, sub: _Submission, index: int, start: int, end: int) -> None:
        template = sub.graph.template
        if self.on_task is not None:
            row = (template.servers[index], template.tags[index], start, end, sub.graph.costs[index].bytes)
            heappush(self._rows, (end, sub.key + index, sub.rank, *row))
        self._done(sub, index, end + template.lag_ps[index])

    def _watch(self, lane: Lane) -> None:
        """See to it that a wake comes no later than the next end of the lane's queue."""
        if lane.queue:
            tick = lane.earliest_end()
            if lane.wake_ps < 0 or tick < lane.wake_ps:
                lane.wake_ps = tick
                heappush(self._heap, (tick, lane.number - len(self.servers), lane, 0))

    def _wake(self, lane: Lane, tick: int) -> None:
        if tick == lane.wake_ps:  # else another wake has come before it
            lane.wake_ps = -1
            lane.advance(tick)
            self._watch(lane)

    # -- the graph -----------------------------------------------------------------------------------------------

    def _start(self, sub: _Submission, index: int) -> None:
        """Put a task that waits for nothing more in its place, or resolve it if it is no service."""
        tick = sub.ready[index]
        if sub.lanes[index] is None:
            self._done(sub, index, tick + sub.ps[index] + sub.graph.template.lag_ps[index])
        else:
            heappush(self._heap, (tick, sub.key + index, sub, index))

    def _done(self, sub: _Submission, index: int, tick: int) -> None:
        """Count ``index`` as done at ``tick``, and all joins and delays that it resolves."""
        template, publish, kinds = sub.graph.template, sub.graph.publish, sub.program.kinds
        successors, lag_ps = template.successors, template.lag_ps
        missing, ready, lanes, heap = sub.missing, sub.ready, sub.lanes, self._heap
        resolved: list[int] = []
        while True:
            for successor in successors[index]:
                if tick > ready[successor]:
                    ready[successor] = tick
                left = missing[successor] = missing[successor] - 1
                if not left:
                    if lanes[successor] is None:
                        resolved.append(successor)
                    else:
                        heappush(heap, (ready[successor], sub.key + successor, sub, successor))
            if kinds[index]:
                self._count(sub, kinds[index], tick)
            if publish and index in publish:
                self._land(publish[index], tick)
            if not resolved:
                return
            index = resolved.pop()
            tick = ready[index] + sub.ps[index] + lag_ps[index]

    def _land(self, handle: Handle, tick: int) -> None:
        handle.landed_ps = tick
        waiters: list[tuple[Any, int]] = list(handle.waiters)
        handle.waiters.clear()
        for sub, index in waiters:
            if tick > sub.ready[index]:
                sub.ready[index] = tick
            sub.missing[index] -= 1
            if not sub.missing[index]:
                self._start(sub, index)

    def _count(self, sub: _Submission, kind: int, tick: int) -> None:
        if kind & GATE:
            sub.gates_left -= 1
            sub.gate_ps = max(sub.gate_ps, tick)
            if not sub.gates_left:
                self._open(sub.gate, sub.gate_ps)
        if kind & LAST:
            sub.lasts_left -= 1
            self._horizon = max(self._horizon, tick)
            if not sub.lasts_left:
                del self.outstanding[sub.rank]

    # -- reports -------------------------------------------------------------------------------------------------

    def _report(self, now: int) -> None:
        on_task: Callable[..., None] | None = self.on_task
        while on_task is not None and self._rows and self._rows[0][0] <= now:
            on_task(*heappop(self._rows)[2:])

    def _waits(self) -> tuple[str, ...]:
        """Return a line per task that has not ended, and what it waits for."""
        waiting = {(sub.rank, index) for _, key, sub, index in self._heap if key >= 0}
        waiting |= {(e[5].rank, e[6]) for lane in self.servers.values() for e in lane.queue}
        lines = []
        for sub in self.outstanding.values():
            missing = sub.missing or [0] * len(sub.graph)
            done = bytearray(not left and (sub.rank, i) not in waiting for i, left in enumerate(missing))
            lines += waiting_lines(sub.graph, sub.rank, done)
        if self._horizon > self.env.now:
            lines.append(f"service until tick {self._horizon}")
        return tuple(lines)
