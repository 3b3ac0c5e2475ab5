"""The evaluator: runs task graphs as the executor does, to the tick, without an event per task.

Servers are lanes (:mod:`hetmem.hardware.lane`). Tasks are taken in the order of (ready tick, rank) from one heap
that lives as long as the run, and each is given its start and end at once; joins, delays and lags resolve at ticks
known ahead. Nothing is decided at or after the next event of anybody else (an arrival, a gate), because its control
may submit work, so several steps in flight and work that outlives its step are exact. A lane whose queue of other
classes may bring forth an end has a *wake* in the heap, before the tasks of its tick.

A graph whose tasks come in the order of its template takes a shorter way
(:mod:`hetmem.engine.straight_line`), if nothing else is under way.
"""

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

import simpy

from hetmem.engine.executor import TASKS_PER_STEP, OnTask
from hetmem.engine.graph import Handle, TaskGraph, Template
from hetmem.engine.program import (
    GATE,
    LAST,
    METERED,
    ORDERED,
    PUBLISHED,
    QUEUED,
    TOLD,
    WATCHED,
    Program,
    program,
)
from hetmem.engine.submission import Submission, waits
from hetmem.errors import ConfigError, ConservationError, DeadlockError
from hetmem.hardware.clock import ARBITRATION, COMPLETION, NEVER, Clock
from hetmem.hardware.lane import Lane

_AFTER_ALL = NEVER - 1  # the tick of wakes that wait until nothing else can happen


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
    overlapping
        Whether the gate of one graph may open while another, submitted before, is under way: then the energy of each
        task counts from its end; else that of a foreground task from its submission, which no gate can tell apart.
    """

    def __init__(
        self, env: Clock, servers: Mapping[str, Lane], on_task: OnTask | None = None, overlapping: bool = False
    ) -> None:
        self.env, self.servers, self.on_task, self.overlapping = env, servers, on_task, overlapping
        self._tracing = on_task is not None
        self.outstanding: dict[int, Submission] = {}
        self._programs: dict[int, Program] = {}
        # Tasks as (ready tick, key of the first, submission, tasks) and wakes as (tick, key below 0, lane, ()).
        self._heap: list[tuple[int, int, Any, Sequence[int]]] = []
        self._unstarted: list[Submission] = []
        self._timers: set[tuple[int, float]] = set()
        self._resting: set[int] = set()  # lanes with a wake after all else
        self._in_foreground = 0  # submissions whose gate is to open
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
        ps, lanes = prog.account(graph)
        apart = self._tracing or not prog.joined.isdisjoint(graph.publish)
        sub = Submission(
            graph, rank, rank * TASKS_PER_STEP, simpy.Event(self.env), prog, ps, lanes, prog.kinds_of(graph.publish),
            {} if apart else prog.barriers, {} if apart or not prog.joined.isdisjoint(graph.wait) else prog.forks,
            prog.gates, prog.lasts, now,
        )  # fmt: skip
        if prog.lasts:
            self.outstanding[rank] = sub
        if prog.gates:
            self._in_foreground += 1
        else:
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
            due = {(sub.rank, task) for _, key, sub, tasks in self._heap if key >= 0 for task in tasks}
            raise DeadlockError(
                waits(self.outstanding.values(), due, self.servers.values(), self._horizon, self.env.now)
            )
        for name, lane in self.servers.items():
            if lane.served_ps != lane.asked_ps:
                raise ConservationError("service", f"{name} was asked for {lane.asked_ps} ps, served {lane.served_ps}")

    # -- submission ----------------------------------------------------------------------------------------------

    def _program(self, template: Template) -> Program:
        known = self._programs.get(id(template))
        if known is None:  # a program keeps its template, so that the id cannot be taken by another
            known = self._programs[id(template)] = program(template, self.servers, self.overlapping)
        return known

    def _begin(self, sub: Submission) -> None:
        """Start the tasks of a graph one by one, those first that wait for nothing."""
        now, template = self.env.now, sub.graph.template
        sub.ps = sub.program.expand(sub.ps)
        if self.on_task is not None:
            sub.costs = sub.graph.costs
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
        for index in [index for index in sub.program.roots if not missing[index]]:
            self._start(sub, index)

    # -- time ----------------------------------------------------------------------------------------------------

    def _call(self, tick: int, phase: float) -> None:
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

    def _in_order(self, sub: Submission) -> bool:
        """Work ``sub`` out at once if its template allows it; it is the only work there is."""
        end = sub.program.in_order(self.env.now, sub.ps, self.env.next_ps)
        if end < 0:
            return False
        del self.outstanding[sub.rank]
        self._open(sub.gate, end)
        self._horizon = max(self._horizon, end)
        return True

    def _open(self, gate: simpy.Event, tick: int) -> None:
        self._in_foreground -= 1
        self.env.trigger(gate, tick)
        self._gates_until = max(self._gates_until, tick)

    def _advance(self, decided: int) -> None:
        """Take tasks and wakes up to the next event of anybody else; all before the tick ``decided`` is known."""
        env, heap = self.env, self._heap
        limit = env.next_ps
        until = max(limit, decided)
        while heap:
            tick, key, sub, tasks = heap[0]
            # A tick's wakes come before its control, its tasks after it.
            if tick >= until and not (key < 0 and tick == limit):
                break
            heappop(heap)
            if key < 0:
                told = self._wake(sub, tick)
            elif len(tasks) == 1:
                told = (
                    self._queue_up(sub, tasks[0], tick)
                    if sub.kinds[tasks[0]] & QUEUED
                    else self._serve(sub, tasks, tick, until)
                )
            elif heap and heap[0][0] == tick and heap[0][1] < sub.key + tasks[-1]:
                for task in tasks:  # others of this tick come between them
                    heappush(heap, (tick, sub.key + task, sub, (task,)))
                continue
            elif id(tasks) in sub.barriers:
                told = self._serve_barrier(sub, tasks, tick, until)
            elif id(tasks) in sub.forks:
                told = self._serve_fork(sub, tasks, tick, until)
            else:
                told = self._serve(sub, tasks, tick, until)
            if told:
                limit = env.next_ps
                until = max(limit, decided)
        if self._tracing:
            self._report(env.now)
        if heap and heap[0][0] == _AFTER_ALL:
            self._call(limit, ARBITRATION)  # to go on if that event brings nothing
        elif heap:
            tick, key = heap[0][:2]
            self._call(max(tick, env.now), COMPLETION if key < 0 else ARBITRATION)
        elif self._horizon > max(env.now, self._gates_until):
            self._call(self._horizon, ARBITRATION)  # the clock runs to the end of all work

    def _serve(self, sub: Submission, tasks: Sequence[int], tick: int, until: int) -> bool:
        """Give tasks of class 0, ready at ``tick``, their places at their lanes.

        What follows the last of them may be served as well as long as it is ready before ``until``.
        """
        told = False
        lanes, ps, kinds, last = sub.lanes, sub.ps, sub.kinds, tasks[-1]
        single = self._in_foreground == 1
        for task in tasks:
            lane, lasts = lanes[task], ps[task]
            if lane.queue and lane.advance(tick):
                told = True
            start = lane.free_ps
            if start > tick:
                lane.delay(tick)
            else:
                start = tick
            lane.free_ps = end = start + lasts
            lane.served_ps += lasts
            if kinds[task] & METERED:
                lane.spend(end, sub.graph.fj[sub.graph.template.slot_index[task]])
            if self._tracing:
                self._note(sub, task, start, end)
            if told:
                until = 0
            if self._done(sub, task, end, until if task == last else 0, until if single else 0):
                told = True
        return told

    def _serve_barrier(self, sub: Submission, tasks: Sequence[int], tick: int, until: int) -> bool:
        """Do the same for tasks that the same tasks wait for: for those, the one that ends last stands for all."""
        latest, told = 0, False
        lanes, pick, _ = sub.barriers[id(tasks)]
        # A service is written out here, there and in a chain: a call would cost as much as what it does.
        for lane, lasts in zip(lanes, pick(sub.ps)):  # noqa: B905 - as long as each other, and the innermost loop
            if lane.queue and lane.advance(tick):
                told = True
            end = tick + lasts
            if lane.free_ps > tick:
                lane.delay(tick)
                end = lane.free_ps + lasts
            lane.free_ps = end
            lane.served_ps += lasts
            if end > latest:
                latest = end
        for follower in sub.program.successors[tasks[0]]:
            sub.missing[follower] -= len(tasks) - 1
        if told:
            until = 0
        return self._done(sub, tasks[0], latest, until, until if self._in_foreground == 1 else 0) or told

    def _serve_fork(self, sub: Submission, tasks: Sequence[int], tick: int, until: int) -> bool:
        """Do the same for tasks of which most begin chains with the same successors: the last chain stands for all."""
        fork, told = sub.forks[id(tasks)], False
        lanes, ps, missing = sub.lanes, sub.ps, sub.missing
        ordered_until = until if self._in_foreground == 1 else 0
        n = last = latest = 0
        for first, second in fork.chains:
            lane, lasts = lanes[first], ps[first]
            if lane.queue and lane.advance(tick):
                told, ordered_until = True, 0
            start = lane.free_ps
            if start > tick:
                lane.delay(tick)
            else:
                start = tick
            lane.free_ps = end = start + lasts
            lane.served_ps += lasts
            if second >= 0:
                lane = lanes[second]
                if lane is None or lane.mixed or end >= ordered_until:
                    if self._done(sub, first, end):
                        told, ordered_until = True, 0
                    continue
                missing[second] = 0
                lasts, start = ps[second], lane.free_ps
                if start > end:
                    lane.delay(end)
                else:
                    start = end
                lane.free_ps = end = start + lasts
                lane.served_ps += lasts
            n += 1
            if end > latest:
                latest, last = end, first if second < 0 else second
        if n:
            for follower in sub.program.successors[last]:
                missing[follower] -= n - 1
            told = self._done(sub, last, latest, 0, ordered_until) or told
        return self._serve(sub, fork.rest, tick, 0 if told else until) or told if fork.rest else told

    def _queue_up(self, sub: Submission, task: int, tick: int) -> bool:
        """Put a task of another class, ready at ``tick``, in the queue of its lane."""
        template, lane = sub.graph.template, sub.lanes[task]
        cls, chunk = template.classes[task], template.chunk_ps[task]
        lane.queue_up([cls, tick, sub.key + task, sub.ps[task], chunk, sub, task, -1])
        lane.watched += bool(sub.kinds[task] & WATCHED)
        self._watch(lane)
        return True

    def _queued_ended(self, sub: Submission, task: int, start: int, end: int) -> bool:
        lane = sub.lanes[task]
        lane.watched -= bool(sub.kinds[task] & WATCHED)
        if sub.kinds[task] & METERED:
            lane.spend(end, sub.graph.fj[sub.graph.template.slot_index[task]])
        if self._tracing:
            self._note(sub, task, start, end)
        return self._done(sub, task, end)

    def _note(self, sub: Submission, task: int, start: int, end: int) -> None:
        template = sub.graph.template
        row = (template.servers[task], template.tags[task], start, end, sub.costs[task].bytes)
        heappush(self._rows, (end, sub.key + task, sub.rank, *row))

    def _watch(self, lane: Lane) -> None:
        """See to it that a wake comes no later than the next end of the lane's queue, if that end matters.

        Where it does not, the queue is advanced when somebody comes or asks, or when all else is done.
        """
        if not lane.queue:
            return
        tick = lane.earliest_end() if lane.watched else _AFTER_ALL
        if lane.wake_ps < 0 or tick < lane.wake_ps:
            lane.wake_ps = tick
            if tick < _AFTER_ALL:
                heappush(self._heap, (tick, lane.number - len(self.servers), lane, ()))
            elif lane.number not in self._resting:
                self._resting.add(lane.number)
                heappush(self._heap, (tick, lane.number - len(self.servers), lane, ()))

    def _wake(self, lane: Lane, tick: int) -> bool:
        if tick == _AFTER_ALL:
            self._resting.discard(lane.number)
        if tick != lane.wake_ps:
            return False  # another wake has come before it
        lane.wake_ps = -1
        lane.advance(tick)
        self._watch(lane)
        return True

    # -- the graph -----------------------------------------------------------------------------------------------

    def _start(self, sub: Submission, task: int) -> None:
        """Put a task that waits for nothing more in its place, or resolve it if it is no service."""
        tick = sub.ready[task]
        if sub.lanes[task] is None:
            self._done(sub, task, tick + sub.ps[task])
        else:
            heappush(self._heap, (tick, sub.key + task, sub, (task,)))

    def _done(self, sub: Submission, task: int, tick: int, until: int = 0, ordered_until: int = 0) -> bool:
        """Count a task as done, its lag after ``tick``, and all joins and delays that it resolves.

        Tasks that become ready together go into the heap together. One that is ready before ``until`` and before all
        in the heap is served at once; so is one that is ready before ``ordered_until`` at a lane where the graph sets
        the order. Return whether anybody else may have been told.
        """
        missing, ready, lanes, kinds, ps = sub.missing, sub.ready, sub.lanes, sub.kinds, sub.ps
        successors, lag_ps, heap, key = sub.program.successors, sub.program.lag_ps, self._heap, sub.key
        resolved: list[int] = []
        told = False
        while True:
            if lag_ps[task]:
                tick += lag_ps[task]
            followers = successors[task]
            if len(followers) == 1 and not kinds[task] & TOLD:  # the most common case, without lists
                task = followers[0]
                if tick > ready[task]:
                    ready[task] = tick
                else:
                    tick = ready[task]
                missing[task] -= 1
                if not missing[task]:
                    lane = lanes[task]
                    if lane is None:
                        tick += ps[task]
                        continue
                    if not kinds[task] & ~ORDERED and (
                        (tick < ordered_until and kinds[task] and not lane.mixed)
                        or (tick < until and not (lane.queue or resolved) and (not heap or heap[0][0] > tick))
                    ):  # nothing comes before it: it is served here and now
                        start = lane.free_ps
                        if start > tick:
                            lane.delay(tick)
                        else:
                            start = tick
                        lane.free_ps = tick = start + ps[task]
                        lane.served_ps += ps[task]
                        if self._tracing:
                            self._note(sub, task, start, tick)
                        continue
                    heappush(heap, (tick, key + task, sub, followers))
                if not resolved:
                    return told
                task = resolved.pop()
                tick = ready[task] + ps[task]
                continue
            together = []
            for follower in followers:
                if tick > ready[follower]:
                    ready[follower] = tick
                left = missing[follower] - 1
                missing[follower] = left
                if left:
                    continue
                if lanes[follower] is None:
                    resolved.append(follower)
                elif ready[follower] == tick and not kinds[follower] & QUEUED:
                    together.append(follower)
                else:
                    heappush(heap, (ready[follower], key + follower, sub, (follower,)))
            if together:
                whole = len(together) == len(followers)
                heappush(heap, (tick, key + together[0], sub, followers if whole else together))
            if kinds[task] & TOLD:
                told, until, ordered_until = True, 0, 0
                self._count(sub, kinds[task], tick)
                if kinds[task] & PUBLISHED:
                    self._land(sub.graph.publish[task], tick)
            if not resolved:
                return told
            task = resolved.pop()
            tick = ready[task] + ps[task]

    def _land(self, handle: Handle, tick: int) -> None:
        handle.landed_ps = tick
        waiters: list[tuple[Any, int]] = list(handle.waiters)
        handle.waiters.clear()
        for sub, task in waiters:
            if tick > sub.ready[task]:
                sub.ready[task] = tick
            sub.missing[task] -= 1
            if not sub.missing[task]:
                self._start(sub, task)

    def _count(self, sub: Submission, kind: int, tick: int) -> None:
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
        if on_task is not None:
            for lane in self.servers.values():
                lane.advance(now)
        while on_task is not None and self._rows and self._rows[0][0] <= now:
            on_task(*heappop(self._rows)[2:])
