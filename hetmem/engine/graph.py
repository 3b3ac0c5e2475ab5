"""The task graph of one step: a cached template (who follows whom, on which server) and a step's numbers.

Building a graph costs more than running it, so systems build a :class:`Template` once per shape of step and
bind it to the costs of each step. A *slot* names a cost; tasks that cost the same share a slot.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

from hetmem.errors import ConfigError

Column = NDArray[np.int64]


class Cost(NamedTuple):
    """What a task costs: ticks of service, femtojoules beyond the power states, bytes moved."""

    ps: int
    fj: int = 0
    bytes: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """Return the cost of both, one after the other."""
        return Cost(self.ps + other.ps, self.fj + other.fj, self.bytes + other.bytes)


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


class CostColumns(NamedTuple):
    """What many slots cost, as integer arrays of one item per slot; ``slots`` is the same tuple in every step."""

    slots: tuple[str, ...]
    ps: Column
    fj: Column
    n_bytes: Column


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
    #: By the identities of the slots of columns: those slots, their places, and the places of all others.
    _layouts: dict[tuple[int, ...], tuple[Any, Column, tuple[int, ...]]] = field(factory=dict, init=False, repr=False)

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
        columns: Sequence[CostColumns] = (),
    ) -> "TaskGraph":
        """Return the graph of a step in which each slot costs ``costs[slot]``, or what ``columns`` say.

        Raises
        ------
        ConfigError
            When a slot has no cost, or a handle belongs to a task that is not there.
        """
        for index in (*(publish or ()), *(wait or ())):
            if not 0 <= index < len(self):
                raise ConfigError("graph", f"a handle is at task {index}, but there are {len(self)} tasks")
        places, rest = self._layout(columns)
        try:
            bound = [costs[self.slot_names[place]] for place in rest]  # type: ignore[index]
        except KeyError as missing:
            raise ConfigError("graph", f"slot {missing} has no cost") from None
        if not columns:
            ps, fj, n_bytes = ([0, *map(column, bound)] for column in _COLUMNS)
            return TaskGraph(self, ps, fj, n_bytes, publish or {}, wait or {})
        lists = []
        for which, column in enumerate(_COLUMNS):
            values = np.zeros(len(self.slot_names), dtype=np.int64)
            values[places] = np.concatenate([given[1 + which] for given in columns])
            values[list(rest)] = list(map(column, bound))
            lists.append(values.tolist())
        ps, fj, n_bytes = lists
        return TaskGraph(self, ps, fj, n_bytes, publish or {}, wait or {})

    def _layout(self, columns: Sequence[CostColumns]) -> tuple[Column, tuple[int, ...]]:
        """Return the places of the slots of ``columns``, and those of all others but the first."""
        key = tuple(id(given.slots) for given in columns)
        if key not in self._layouts:
            known = {slot: place for place, slot in enumerate(self.slot_names)}
            found = [slot for given in columns for slot in given.slots]
            unknown = next((slot for slot in found if slot not in known), None)
            if unknown is not None:
                raise ConfigError("graph", f"slot {unknown!r} is in no task")
            places = [known[slot] for slot in found]
            rest = tuple(sorted(set(range(1, len(self.slot_names))).difference(places)))
            slots = [given.slots for given in columns]  # kept, so that their ids cannot be taken by others
            self._layouts[key] = (slots, np.array(places, dtype=np.int64), rest)
        _, places_, rest_ = self._layouts[key]
        return places_, rest_


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

    def plus(self, more: Iterable[tuple[int, Cost]]) -> "TaskGraph":
        """Return a graph of which some slots, given by their places in the template, cost that much more."""
        ps, fj, n_bytes = self.ps.copy(), self.fj.copy(), self.n_bytes.copy()
        for place, cost in more:
            ps[place] += cost.ps
            fj[place] += cost.fj
            n_bytes[place] += cost.bytes
        return TaskGraph(self.template, ps, fj, n_bytes, self.publish, self.wait)

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
