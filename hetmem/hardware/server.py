"""A server: one unit that serves one task at a time, as a SimPy process with its own queue.

A free server chooses in the arbitration phase of a tick (:mod:`hetmem.hardware.clock`): the least (class, ready
tick, rank) of all tasks that are ready.
"""

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any

import simpy

from hetmem.hardware.clock import Clock

Done = Callable[[Any, int, int], None]


class Server:
    """One unit with a queue: FIFO by ready tick within a class, lower classes first, never preempted.

    A task with ``chunk_ps`` is served in chunks: at each boundary a task of a higher class passes, and the
    remainder keeps its place. Busy and waiting ticks, jobs, bytes and femtojoules are counted on change.

    Parameters
    ----------
    env
        The simulation environment.
    name
        The scope under which tables and errors know the server.
    """

    __slots__ = ("_done_busy_ps", "_started_ps", "_wake", "bytes", "energy_fj", "env", "jobs", "name",
                 "queue", "serving", "wait_ps")  # fmt: skip

    def __init__(self, env: Clock, name: str) -> None:
        self.env, self.name = env, name
        self.queue: list[list[Any]] = []
        self.serving = False
        self.jobs = self.bytes = self.energy_fj = 0
        self.wait_ps: int = 0
        self._done_busy_ps = self._started_ps = 0
        self._wake: simpy.Event | None = None
        env.process(self._serve())

    def submit(
        self, rank: int, dur_ps: int, done: Done, owner: Any, index: int, *,
        cls: int = 0, chunk_ps: int = 0, energy_fj: int = 0, n_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Queue a task that is ready now; ``done(owner, index, start_ps)`` is called when its service ends.

        ``rank`` is unique among the tasks of a run and breaks ties; ``dur_ps`` is at least one tick.
        """
        entry = [cls, self.env.now, rank, dur_ps, chunk_ps, done, owner, index, -1, energy_fj, n_bytes]
        heappush(self.queue, entry)
        wake, self._wake = self._wake, None  # forgotten first: it must not fire twice
        if wake is not None:
            self.env.arbitrate(wake)

    def busy_at(self, tick: int) -> int:
        """Return the ticks this server has been busy up to ``tick``, which is not in the future."""
        busy: int = self._done_busy_ps + (tick - self._started_ps if self.serving else 0)
        return busy

    def energy_at(self, _tick: int) -> int:
        """Return the femtojoules of the work that has ended by the given tick, which is the present."""
        spent: int = self.energy_fj
        return spent

    def wait_at(self, tick: int) -> int:
        """Return the ticks that tasks have waited here before their first service, up to ``tick``."""
        return self.wait_ps + sum(tick - int(entry[1]) for entry in self.queue if entry[8] < 0)

    def _serve(self) -> Generator[simpy.Event, Any, None]:
        env, queue = self.env, self.queue
        while True:
            if not queue:
                self._wake = env.event()
                yield self._wake
            elif not env.arbitrates:
                yield env.arbitrate()
            entry = heappop(queue)
            now = env.now
            if entry[8] < 0:
                entry[8] = now
                self.wait_ps += now - entry[1]
                self.jobs += 1
            left, chunk = entry[3], entry[4]
            part = chunk if 0 < chunk < left else left
            self.serving, self._started_ps = True, now
            yield env.completion(part)
            self.serving = False
            self._done_busy_ps += part
            if part < left:
                entry[3] = left - part
                heappush(queue, entry)
            else:
                self.energy_fj += entry[9]
                self.bytes += entry[10]
                entry[5](entry[6], entry[7], entry[8])
