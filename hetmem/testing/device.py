"""A device under test: servers on a clock of their own, and the proof that a gate is tight.

A test that only checks that something has ended by a tick passes for a device that is too fast. Here the clock is
stopped before the events of the tick, where the end must not have been seen, and again after them, where it must.
"""

from collections.abc import Callable
from typing import Any

import simpy

from hetmem.engine.executor import Executor
from hetmem.engine.graph import TaskGraph
from hetmem.hardware.clock import Clock
from hetmem.hardware.server import Server


class DeviceUnderTest:
    """Servers, an executor and what has been seen to end.

    >>> dut = DeviceUnderTest("hbm")
    >>> dut.submit("first", "hbm", 10)
    >>> dut.submit("second", "hbm", 5)
    >>> dut.assert_completes_exactly(10, "first")
    >>> dut.assert_completes_exactly(15, "second")

    Parameters
    ----------
    servers
        Their names.

    Attributes
    ----------
    env, servers, executor
        The clock, the servers by name, and an executor on them.
    seen : dict of str to int
        The tick at which each named piece of work ended.
    """

    def __init__(self, *servers: str) -> None:
        self.env = Clock()
        self.servers = {name: Server(self.env, name) for name in servers}
        self.executor = Executor(self.env, self.servers)
        self.seen: dict[str, int] = {}
        self._ranks = 0
        self._names: set[str] = set()

    def submit(
        self, name: str, server: str, dur_ps: int, *, at_ps: int | None = None, cls: int = 0, chunk_ps: int = 0,
        energy_fj: int = 0, n_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Submit a job of ``dur_ps`` to ``server``, now or at the tick ``at_ps``; ties go to the first call."""
        rank = self._ranks

        def done(_owner: Any, _index: int, _start_ps: int) -> None:
            self.seen[name] = self.env.now

        def go() -> None:
            self.servers[server].submit(
                rank, dur_ps, done, None, 0, cls=cls, chunk_ps=chunk_ps, energy_fj=energy_fj, n_bytes=n_bytes
            )

        self._claim(name)
        self._at(at_ps, go)

    def submit_graph(self, name: str, graph: TaskGraph, *, at_ps: int | None = None) -> None:
        """Submit ``graph``, now or at the tick ``at_ps``; it ends when its foreground tasks have."""
        rank = self._ranks

        def go() -> None:
            self._watch(name, self.executor.submit(graph, rank))

        self._claim(name)
        self._at(at_ps, go)

    def watch(self, name: str, event: simpy.Event) -> None:
        """Note when ``event`` fires, under ``name``."""
        self._claim(name)
        self._watch(name, event)

    def run(self, until_ps: int | None = None) -> None:
        """Run to the end, or until just before the events of tick ``until_ps``."""
        if until_ps is None or until_ps > self.env.now:
            self.env.run(until=until_ps)

    def assert_completes_exactly(self, at_ps: int, name: str) -> None:
        """Assert that ``name`` ends at the tick ``at_ps``: not one earlier, not one later.

        Ask in the order of time: the clock cannot go back.

        Raises
        ------
        AssertionError
            Saying when it ended, or that it had not.
        """
        assert name in self._names, f"nothing is called {name!r}; there are {', '.join(sorted(self._names)) or 'none'}"
        assert at_ps >= self.env.now, f"the clock is at tick {self.env.now} already, past {at_ps}"
        self.run(at_ps)
        assert name not in self.seen, f"{name} ended at tick {self.seen[name]}, not at {at_ps}"
        self.run(at_ps + 1)
        assert name in self.seen, f"{name} had not ended at tick {at_ps}"

    def _claim(self, name: str) -> None:
        if name in self._names:
            raise ValueError(f"{name!r} is the name of other work already")
        self._names.add(name)
        self._ranks += 1

    def _watch(self, name: str, event: simpy.Event) -> None:
        def fired(_event: simpy.Event) -> None:
            self.seen[name] = self.env.now

        assert event.callbacks is not None, f"{name} has fired already"
        event.callbacks.append(fired)

    def _at(self, at_ps: int | None, go: Callable[[], None]) -> None:
        if at_ps is None or at_ps == self.env.now:
            go()
            return
        callbacks = self.env.timeout(at_ps - self.env.now).callbacks
        assert callbacks is not None
        callbacks.append(lambda _event: go())
