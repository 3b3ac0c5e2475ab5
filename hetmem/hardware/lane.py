"""A lane: a server that is worked out instead of simulated, by the tick at which it is free next.

Work of class 0 is never passed at a server, so in the order of (ready tick, rank) it starts at the later of its
ready tick and the tick at which the server is free. Work of other classes waits in a queue that is advanced only
when its outcome matters: when work of class 0 comes, when it may have ended, or when somebody asks.
Equal to :class:`hetmem.hardware.server.Server` to the tick; the caller keeps time and order
(:mod:`hetmem.engine.evaluator`).
"""

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Ended = Callable[[Any, int, int, int], bool]


class Lane:
    """One unit: FIFO by ready tick within a class, lower classes first, never preempted but between chunks.

    ``jobs``, ``bytes`` and ``energy_fj`` count work when it is handed in; those of a server process are the same
    whenever nothing is under way.

    Parameters
    ----------
    name
        The scope under which tables and errors know it.
    number
        Its place among the lanes of the machine.

    Attributes
    ----------
    free_ps : int
        The tick at which all work that was given a start is done.
    served_ps : int
        Ticks of service of all work that was given a start.
    asked_ps : int
        Ticks of service of all work that was handed in.
    wake_ps : int
        The tick at which the evaluator looks at the queue again; -1 for none.
    watched : int
        Queued work of which the evaluator wants to know the end when it comes.
    mixed : bool
        Whether some template has work of other classes, or in the background, here.
    """

    __slots__ = (
        "_spent", "_starts", "asked_ps", "bytes", "ended", "energy_fj", "free_ps", "jobs", "mixed", "name", "number",
        "pending_fj", "queue", "served_ps", "wait_ps", "wake_ps", "watched",
    )  # fmt: skip

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.free_ps = self.served_ps = self.asked_ps = self.wait_ps = 0
        self.jobs = self.bytes = self.energy_fj = self.watched = 0
        self.wake_ps = -1
        self.mixed = False
        #: Work of other classes, as [class, ready tick, key, ticks left, chunk, owner, index, first start or -1].
        self.queue: list[list[Any]] = []
        #: Called as ``ended(owner, index, start_ps, end_ps)`` when work of the queue is given its end; returns whether
        #: it told anybody.
        self.ended: Ended = _nobody
        self._starts: deque[int] = deque()
        #: Femtojoules of metered work handed in, less those of such work known to have ended by the last query.
        self.pending_fj = 0
        self._spent: deque[tuple[int, int]] = deque()

    def delay(self, ready_ps: int) -> None:
        """Note that work of class 0, ready at ``ready_ps``, waits until the lane is free."""
        starts = self._starts
        while starts and starts[0] <= ready_ps:
            starts.popleft()
        starts.append(self.free_ps)
        self.wait_ps += self.free_ps - ready_ps

    def queue_up(self, entry: list[Any]) -> None:
        """Queue work of another class, in the order of its ready ticks."""
        self.advance(entry[1])
        heappush(self.queue, entry)

    def advance(self, tick: int) -> bool:
        """Start the queued work that starts before ``tick``, by when all work of class 0 ready before is known.

        Return whether an end was told to anybody but the evaluator.
        """
        queue, told = self.queue, False
        while queue:
            entry = queue[0]
            ready, left, chunk = entry[1], entry[3], entry[4]
            start = self.free_ps if self.free_ps > ready else ready
            if start >= tick:
                break
            if entry[7] < 0:
                entry[7] = start
                self.wait_ps += start - ready
            if chunk and start + left > tick:
                part = -(-(tick - start) // chunk) * chunk  # to the first boundary at which others may pass
                if part < left:
                    self.served_ps += part
                    self.free_ps = start + part
                    entry[3] = left - part
                    continue
            self.served_ps += left
            self.free_ps = start + left
            heappop(queue)
            if self.ended(entry[5], entry[6], entry[7], self.free_ps):
                told = True
        return told

    def earliest_end(self) -> int:
        """Return a tick before which no queued work ends."""
        head = self.queue[0]
        start: int = self.free_ps if self.free_ps > head[1] else head[1]
        return start + int(head[3])

    def busy_at(self, tick: int) -> int:
        """Return the ticks this lane has been busy up to ``tick``, which is the present."""
        if self.queue:
            self.advance(tick)
        # What was given a start was ready by now: after now the lane is busy without a gap until it is free.
        return self.served_ps - (self.free_ps - tick) if self.free_ps > tick else self.served_ps

    def wait_at(self, tick: int) -> int:
        """Return the ticks that tasks have waited here before their first service, up to ``tick``, the present."""
        self.advance(tick)
        ahead = sum(start - tick for start in self._starts if start > tick)
        return self.wait_ps - ahead + sum(tick - int(entry[1]) for entry in self.queue if entry[7] < 0)

    def spend(self, end_ps: int, energy_fj: int) -> None:
        """Note that metered work ends at ``end_ps``; ends come in order."""
        self._spent.append((end_ps, energy_fj))

    def energy_at(self, tick: int) -> int:
        """Return the femtojoules of the work that has ended by ``tick``, the present.

        Work that is not metered counts from its submission: its step's gate, before which nobody asks, is no earlier.
        """
        if self.queue:
            self.advance(tick)
        while self._spent and self._spent[0][0] <= tick:
            self.pending_fj -= self._spent.popleft()[1]
        return self.energy_fj - self.pending_fj


def _nobody(_owner: Any, _index: int, _start_ps: int, _end_ps: int) -> bool:
    raise AssertionError("a lane with a queue has an evaluator")
