"""The clock: SimPy's environment in integer picoseconds, with the three phases of a tick.

A tick begins with *completions*, joins and delays, goes on with *control* (decode loop, scheduler,
submissions) and ends with *arbitration*, in which free servers choose. Choosing last makes the choice independent
of the order in which the same tick's tasks were submitted. SimPy processes the events of one tick by
priority, so arbitration is an event of lower priority than SimPy's own two.
"""

from collections.abc import Callable

import simpy

# SimPy's URGENT, with which ``run(until)`` stops, is 0, and NORMAL, with which events succeed, is 1.
COMPLETION = 0.5
CONTROL = 1
ARBITRATION = 2
NEVER = 1 << 62


class Clock(simpy.Environment):
    """A SimPy environment whose time is an ``int`` number of picoseconds."""

    _now: int

    @property
    def now(self) -> int:
        """The present tick."""
        return self._now

    def arbitrate(self, event: simpy.Event | None = None) -> simpy.Event:
        """Trigger ``event`` (by default a new one) in the arbitration phase of the present tick."""
        event = self.event() if event is None else event
        event._ok, event._value = True, None
        self.schedule(event, priority=ARBITRATION)  # type: ignore[arg-type]  # SimPy would have its own two
        return event

    @property
    def next_ps(self) -> int:
        """The tick of the next event; :data:`NEVER` when there is none."""
        queue = self._queue
        return int(queue[0][0]) if queue else NEVER

    def trigger(self, event: simpy.Event, tick: int, phase: float = CONTROL) -> None:
        """Trigger ``event``, with its tick as value, in a phase of ``tick``, which is not in the past."""
        event._ok, event._value = True, tick
        self.schedule(event, priority=phase, delay=tick - self._now)  # type: ignore[arg-type]

    def completion(self, delay_ps: int) -> simpy.Event:
        """Return an event of the completion phase, ``delay_ps`` ticks from now; one of ``timeout`` is of control."""
        event = simpy.Event(self)
        self.trigger(event, self.now + delay_ps, COMPLETION)
        return event

    def call(self, callback: Callable[[simpy.Event], None], tick: int, phase: float) -> None:
        """Call ``callback`` in a phase of ``tick``, which is not in the past."""
        event = simpy.Event(self)
        event.callbacks = [callback]
        self.trigger(event, tick, phase)

    @property
    def arbitrates(self) -> bool:
        """Whether nothing but arbitration is left in this tick, so that waiting for it is needless."""
        queue = self._queue
        return not queue or queue[0][0] > self._now or queue[0][1] >= ARBITRATION
