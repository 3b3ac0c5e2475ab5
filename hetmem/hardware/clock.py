"""The clock: SimPy's environment in integer picoseconds, with the three phases of a tick.

A tick begins with *completions*, joins and delays, goes on with *control* (decode loop, scheduler,
submissions) and ends with *arbitration*, in which free servers choose. Choosing last makes the choice independent
of the order in which the same tick's tasks were submitted. SimPy processes the events of one tick by
priority, so arbitration is an event of lower priority than SimPy's own two.
"""

from typing import Any, cast

import simpy

ARBITRATION = 2  # SimPy's URGENT is 0 and NORMAL is 1


class Clock(simpy.Environment):
    """A SimPy environment whose time is an ``int`` number of picoseconds."""

    @property
    def now(self) -> int:
        """The present tick."""
        return cast(int, self._now)

    def arbitrate(self, event: simpy.Event | None = None) -> simpy.Event:
        """Trigger ``event`` (by default a new one) in the arbitration phase of the present tick."""
        event = self.event() if event is None else event
        event._ok, event._value = True, None
        self.schedule(event, priority=cast(Any, ARBITRATION))
        return event

    @property
    def arbitrates(self) -> bool:
        """Whether nothing but arbitration is left in this tick, so that waiting for it is needless."""
        queue = self._queue
        return not queue or queue[0][0] > self._now or queue[0][1] >= ARBITRATION
