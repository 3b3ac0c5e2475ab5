"""A machine: the named servers and memories of one system, checked before time zero.

A :class:`Machine` is data. :meth:`Machine.elaborate` builds the servers and the ledger in a SimPy environment, and
:meth:`Machine.lanes` the lanes that stand for the servers; what is inconsistent is refused by
:meth:`Machine.check`, with the name of the part.
"""

from collections import Counter
from collections.abc import Iterable

from attrs import field, frozen

from hetmem.errors import ConfigError
from hetmem.hardware.clock import Clock
from hetmem.hardware.lane import Lane
from hetmem.hardware.ledger import Ledger
from hetmem.hardware.server import Server


@frozen
class Unit:
    """A server and its power states.

    ``component`` is the row of the energy table that it belongs to. ``idle_w`` accrues all the time and
    ``active_w - idle_w`` while the server is busy; None where no figure is known, and the component is then
    listed as not counted, as it is where ``dynamic_known`` says that the work has no complete figure. ``ends`` names
    the memories that a link or a memory port serves.
    """

    name: str
    component: str
    idle_w: float | None = 0.0
    active_w: float | None = 0.0
    ends: tuple[str, ...] = ()
    dynamic_known: bool = True


@frozen
class Memory:
    """A memory: what the ledger knows it by, its capacity, and the power it draws whatever happens."""

    name: str
    capacity_bytes: int
    component: str
    idle_w: float | None = 0.0


@frozen
class Machine:
    """The parts of one system."""

    units: tuple[Unit, ...]
    memories: tuple[Memory, ...]
    base_w: float | None = field(default=0.0)

    def elaborate(self, env: Clock, enforced: bool = True) -> tuple[dict[str, Server], Ledger]:
        """Return the running servers and the empty ledger, whose capacities may be left unenforced.

        Raises
        ------
        ConfigError
            What :meth:`check` raises.
        """
        self.check()
        return {unit.name: Server(env, unit.name) for unit in self.units}, self._ledger(enforced)

    def lanes(self, enforced: bool = True) -> tuple[dict[str, Lane], Ledger]:
        """Return the lanes that stand for the servers, and the same ledger; raise the same."""
        self.check()
        return {unit.name: Lane(unit.name, number) for number, unit in enumerate(self.units)}, self._ledger(enforced)

    def _ledger(self, enforced: bool) -> Ledger:
        return Ledger({memory.name: memory.capacity_bytes for memory in self.memories}, enforced)

    def check(self) -> None:
        """Refuse a machine that contradicts itself.

        Raises
        ------
        ConfigError
            For a name used twice, a memory that no unit serves, a unit that serves an unknown memory, or a
            capacity that is not positive.
        """
        _refuse_twice("machine.units", (unit.name for unit in self.units))
        _refuse_twice("machine.memories", (memory.name for memory in self.memories))
        known = {memory.name for memory in self.memories}
        for unit in self.units:
            for end in unit.ends:
                if end not in known:
                    raise ConfigError(f"machine.{unit.name}", f"is connected to unknown memory {end!r}")
        served = {end for unit in self.units for end in unit.ends}
        for memory in self.memories:
            if memory.name not in served:
                raise ConfigError(f"machine.{memory.name}", "is connected to no unit")
            if memory.capacity_bytes <= 0:
                raise ConfigError(f"machine.{memory.name}", f"capacity must be positive, not {memory.capacity_bytes}")


def _refuse_twice(path: str, names: Iterable[str]) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ConfigError(path, f"{twice[0]!r} is there twice")
