"""The task graph of one step: a cached template (who follows whom, on which server) and a step's numbers.

Building a graph costs more than running it, so systems build a :class:`Template` once per shape of step and
bind it to the costs of each step. A *slot* names a cost; tasks that cost the same share a slot.
"""

from collections.abc import Hashable, Iterable, Mapping
from operator import itemgetter
from typing import NamedTuple

from attrs import define, field, frozen

from hetmem.errors import ConfigError


class Cost(NamedTuple):
    """What a task costs: ticks of service, femtojoules beyond the power states, bytes moved."""

    ps: int
    fj: int = 0
    bytes: int = 0


FREE = Cost(0)
_COLUMNS = tuple(map(itemgetter, range(3)))


@define(slots=True, eq=False)
class Handle:
    """What outlives a step and may be waited for by a later one: a preloaded layer, a migrated page.

    It belongs to the system that made it; it has landed when ``landed_ps`` is a tick not after now.
    """

    key: Hashable
    landed_ps: int | None = None
    waiters: list[tuple[object, int]] = field(factory=list, repr=False)

    def landed(self, now_ps: int) -> bool:
        """Return whether it has landed at ``now_ps``."""
        return self.landed_ps is not None and self.landed_ps <= now_ps


@frozen(slots=True, eq=False)
class Template:
    """The unchanging part of a task graph; every field is a tuple with one item per task.

    ``servers`` is None for a join (no cost) or a delay (a cost without a server). ``lag_ps`` passes after the
    service without holding the server. A step does not wait for its ``background`` tasks. ``names`` gives the
    index of the tasks that were named, for publishing and waiting.
    """

    servers: tuple[str | None, ...]
    slots: tuple[str | None, ...]
    successors: tuple[tuple[int, ...], ...]
    n_preds: tuple[int, ...]
    classes: tuple[int, ...]
    chunk_ps: tuple[int, ...]
    lag_ps: tuple[int, ...]
    background: tuple[bool, ...]
    tags: tuple[str, ...]
    names: Mapping[str, int]
    #: The different slots, after None for tasks that cost nothing, and the place among them of each task's.
    slot_names: tuple[str | None, ...] = field(init=False, repr=False)
    slot_index: tuple[int, ...] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        places: dict[str | None, int] = {None: 0}
        index = tuple(places.setdefault(slot, len(places)) for slot in self.slots)
        object.__setattr__(self, "slot_names", tuple(places))
        object.__setattr__(self, "slot_index", index)

    def __len__(self) -> int:
        return len(self.servers)

    def bind(
        self,
        costs: Mapping[str, Cost],
        publish: Mapping[int, Handle] | None = None,
        wait: Mapping[int, list[Handle]] | None = None,
    ) -> "TaskGraph":
        """Return the graph of a step in which each slot costs ``costs[slot]``.

        Raises
        ------
        ConfigError
            When a slot has no cost, or a handle belongs to a task that is not there.
        """
        try:
            bound = [FREE, *[costs[slot] for slot in self.slot_names[1:]]]  # type: ignore[index]
        except KeyError as missing:
            raise ConfigError("graph", f"slot {missing} has no cost") from None
        for index in (*(publish or ()), *(wait or ())):
            if not 0 <= index < len(self):
                raise ConfigError("graph", f"a handle is at task {index}, but there are {len(self)} tasks")
        ps, fj, n_bytes = (list(map(column, bound)) for column in _COLUMNS)
        return TaskGraph(self, ps, fj, n_bytes, publish or {}, wait or {})


@frozen(slots=True, eq=False)
class TaskGraph:
    """One step's work: a template, what each of its slots costs, and the handles it publishes and waits for."""

    template: Template
    ps: list[int]
    fj: list[int]
    n_bytes: list[int]
    publish: Mapping[int, Handle] = field(factory=dict)
    wait: Mapping[int, list[Handle]] = field(factory=dict)

    def __len__(self) -> int:
        return len(self.template)

    @property
    def costs(self) -> list[Cost]:
        """The cost of each task."""
        by_slot = list(map(Cost, self.ps, self.fj, self.n_bytes))
        return [by_slot[place] for place in self.template.slot_index]


class GraphBuilder:
    """Builds a :class:`Template`, task by task, in an order in which predecessors come first."""

    def __init__(self) -> None:
        self._rows: list[tuple[str | None, str | None, int, int, int, bool, str]] = []
        self._successors: list[list[int]] = []
        self._n_preds: list[int] = []
        self._names: dict[str, int] = {}

    def task(
        self, server: str | None, slot: str | None, after: int | Iterable[int] = (), *, cls: int = 0,
        chunk_ps: int = 0, lag_ps: int = 0, background: bool = False, tag: str = "", name: str | None = None,
    ) -> int:  # fmt: skip
        """Add a task that costs ``slot`` on ``server`` once all of ``after`` are done; return its index.

        Raises
        ------
        ConfigError
            When a predecessor is not there yet, the name is taken or the class is negative.
        """
        if cls < 0:
            raise ConfigError("graph", f"a class is 0, the first to be served, or more, not {cls}")
        index = len(self._rows)
        preds = (after,) if isinstance(after, int) else tuple(after)
        for pred in preds:
            if not 0 <= pred < index:
                raise ConfigError("graph", f"task {index} ({tag or slot or 'join'}) cannot follow task {pred}")
        if name in self._names:
            raise ConfigError("graph", f"the name {name!r} is taken by task {self._names[name]}")
        self._rows.append((server, slot, cls, chunk_ps, lag_ps, background, tag or slot or ""))
        self._successors.append([])
        self._n_preds.append(len(preds))
        for pred in preds:
            self._successors[pred].append(index)
        if name is not None:
            self._names[name] = index
        return index

    def join(self, after: int | Iterable[int] = (), *, background: bool = False, name: str | None = None) -> int:
        """Add a task without work that is done when all of ``after`` are."""
        return self.task(None, None, after, background=background, name=name)

    def kernel(self, slot: str, compute: str, memory: str, after: int | Iterable[int] = ()) -> int:
        """Add a kernel: a compute leg and a memory leg that start together and are joined.

        Their slots are ``slot + ".compute"`` and ``slot + ".memory"``. The compute leg lasts the kernel's
        unloaded time, so the memory leg shows only where others use the memory too.
        """
        legs = [
            self.task(compute, f"{slot}.compute", after, tag=slot),
            self.task(memory, f"{slot}.memory", after, tag=slot),
        ]
        return self.join(legs)

    def transfer(
        self, slot: str, hops: Iterable[str], after: int | Iterable[int] = (), *, lag_ps: int = 0, cls: int = 0,
        chunk_ps: int = 0, background: bool = False, name: str | None = None,
    ) -> int:  # fmt: skip
        """Add a cut-through transfer: a leg per hop, all started together, joined; the slowest decides.

        The slot of a hop is ``slot + "@" + hop``; ``lag_ps``, the fixed latency of the path, follows each leg.
        """
        legs = [
            self.task(
                hop, f"{slot}@{hop}", after, lag_ps=lag_ps, cls=cls, chunk_ps=chunk_ps, background=background,
                tag=slot,
            )
            for hop in hops
        ]  # fmt: skip
        return self.join(legs, background=background, name=name)

    def build(self) -> Template:
        """Return the finished template."""
        columns = tuple(zip(*self._rows, strict=True)) if self._rows else ((),) * 7
        servers, slots, classes, chunk_ps, lag_ps, background, tags = columns
        return Template(
            servers, slots, tuple(map(tuple, self._successors)), tuple(self._n_preds),
            classes, chunk_ps, lag_ps, background, tags, dict(self._names),
        )  # fmt: skip
