"""Readings of the servers' busy ticks, taken once per tick for all who ask.

Busy ticks up to a tick are a function of the tick, so the recorder, the energy account and the scheduler can share
one reading at the end of a step.
"""

from collections.abc import Callable, Mapping, Sequence


class Readings:
    """The busy ticks of all servers.

    Parameters
    ----------
    busy_at
        For each server, the function that gives its busy ticks up to a tick.
    """

    def __init__(self, busy_at: Mapping[str, Callable[[int], int]]) -> None:
        self.names = tuple(busy_at)
        self._functions = tuple(busy_at.values())
        self._tick = -1
        self._read: Sequence[int] = ()

    def at(self, tick: int) -> Sequence[int]:
        """Return the busy ticks of each server up to ``tick``, which is the present; not to be changed."""
        if tick != self._tick:
            self._tick, self._read = tick, [busy_at(tick) for busy_at in self._functions]
        return self._read
