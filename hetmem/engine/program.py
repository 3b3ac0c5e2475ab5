"""A program: a template made ready for the evaluator, once per run: its lanes, its sums by lane, its straight line."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter, mul
from typing import Any, NamedTuple

from attrs import Factory, define, field

from hetmem.engine.graph import Cost, TaskGraph, Template
from hetmem.engine.straight_line import StraightLine, ancestors, straight_line
from hetmem.errors import ConfigError, ConservationError
from hetmem.hardware.lane import Lane

#: What kind of task one is, as bits: the gate or the end of the graph waits for it itself (not for one that follows
#: it), it is of a class other than 0, it publishes a handle, its end matters to a server or a gate, its energy counts
#: when it ends, or the graph sets the order of all the tasks at its server.
GATE, LAST, QUEUED, PUBLISHED, WATCHED, METERED, ORDERED = 1, 2, 4, 8, 16, 32, 64
TOLD = GATE | LAST | PUBLISHED

#: Submissions of a template before it is compiled: about as long as compiling takes, the other way takes for these.
COMPILE_AFTER = 40
#: The most submissions for which a straight line that did not fit is left alone.
MOST_SKIPPED = 64

_WATCHING = bytes(kind | WATCHED if kind & QUEUED else kind for kind in range(256))

Picker = Callable[[Sequence[Any]], Sequence[Any]]
Adder = Callable[[Sequence[int]], int]
Barrier = tuple[list[Lane], Picker, tuple[int, ...]]


class Fork(NamedTuple):
    """Tasks that become ready together: most begin chains of one or two for which the same tasks wait.

    A chain is (first, second), or (first, -1); the second is at a lane where the graph sets the order.
    """

    chains: tuple[tuple[int, int], ...]
    rest: tuple[int, ...]


@define(eq=False)
class Program:
    """A template on the lanes of a machine.

    Attributes
    ----------
    successors, lag_ps : tuple
        Of the template, at hand.
    lanes : tuple of (Lane or None)
        By task.
    roots : tuple of int
        Tasks without predecessors.
    expand : callable
        Spreads a sequence by slot over the tasks.
    kinds : bytes
        By task: bits of :data:`GATE`, :data:`LAST`, :data:`ORDERED` and :data:`QUEUED`; with the last, of
        :data:`WATCHED`.
    gates, lasts : int
        Tasks of the first two kinds.
    barriers : dict of int to (lanes, picker, tasks)
        By the id of an item of ``successors`` whose tasks all have the same successors, no lag and no kind: their
        lanes, what picks their items out of a sequence by task, and they themselves.
    forks : dict of int to Fork
        By the id of an item of ``successors``.
    joined : set of int
        The tasks of all barriers and chains.
    sums : list of (lanes, adder, number)
        What adds over the tasks of a lane, given by slot, and how many those are; lanes with the same slots together.
    metered : list of (lane, adder)
        The same of the tasks of each lane whose energy counts when they end.
    free_slots : set of int
        Places of the slots of tasks without a server.
    served : tuple of (tuple of int)
        By place of a slot: the tasks at servers that cost it.
    plain : bool
        Whether all tasks are in the foreground and of class 0, none is metered, and one at least is on a server.
    """

    template: Template
    successors: tuple[tuple[int, ...], ...]
    lag_ps: tuple[int, ...]
    lanes: tuple[Lane | None, ...]
    roots: tuple[int, ...]
    expand: Picker
    kinds: bytes
    gates: int
    lasts: int
    barriers: dict[int, Barrier]
    forks: dict[int, Fork]
    joined: frozenset[int]
    sums: list[tuple[list[Lane], Adder, int]]
    metered: list[tuple[Lane, Adder]]
    free_slots: frozenset[int]
    served: tuple[tuple[int, ...], ...]
    plain: bool
    _line: StraightLine | None = field(default=None, init=False)
    _uses: int = field(default=0, init=False)
    _skip: int = field(default=0, init=False)
    _misses: int = field(default=0, init=False)
    _line_lanes: tuple[Lane, ...] = field(
        default=Factory(lambda self: tuple(dict.fromkeys(x for x in self.lanes if x is not None)), takes_self=True),
        init=False,
    )

    def account(self, graph: TaskGraph) -> tuple[Sequence[int], Sequence[Lane | None]]:
        """Count a graph's work at its lanes; return the ticks by slot, and the lanes by task, None without work.

        Raises
        ------
        ConservationError
            When a task costs bytes or energy, but no time at a server.
        """
        ps, fj, n_bytes = graph.ps, graph.fj, graph.n_bytes
        # The first place is of tasks without a slot, which are mostly joins.
        idle = [place for place, ticks in enumerate(ps) if not ticks] if ps.count(0) > 1 or self.served[0] else []
        for place in (*idle, *self.free_slots):
            if fj[place] or n_bytes[place]:
                raise _lost(graph, place)
        energy, moved = any(fj), any(n_bytes)
        no_work = [not ticks for ticks in ps] if idle else []
        for lanes, add, jobs in self.sums:
            total = add(ps)
            if idle:
                jobs -= add(no_work)
            spent = add(fj) if energy else 0
            carried = add(n_bytes) if moved else 0
            for lane in lanes:
                lane.asked_ps += total
                lane.jobs += jobs
                lane.energy_fj += spent
                lane.bytes += carried
        if energy:
            for lane, add in self.metered:
                lane.pending_fj += add(fj)
        without_work = [task for place in idle for task in self.served[place]]
        if not without_work:
            return ps, self.lanes
        busy = list(self.lanes)
        for task in without_work:
            busy[task] = None
        return ps, busy

    def kinds_of(self, published: Collection[int]) -> bytes | bytearray:
        """Return :attr:`kinds`, those of the ``published`` tasks marked, and whatever may lead to them watched."""
        if not published:
            return self.kinds
        kinds = bytearray(self.kinds.translate(_WATCHING))
        for task in published:
            kinds[task] |= PUBLISHED
        return kinds

    def in_order(self, now: int, ps: Sequence[int], latest: int) -> int:
        """Work the whole graph out in the order of its tasks, if that is the order in which they are ready.

        Parameters
        ----------
        now
            The tick of its submission; nothing else is under way.
        ps
            Ticks of service by slot.
        latest
            The last tick at which it may end.

        Returns
        -------
        int
            The tick at which it ends, or -1 if nothing was done because the order is another, it ends too late, or
            the template has not been used often enough to be compiled.
        """
        self._uses += 1
        if self._uses <= COMPILE_AFTER:
            return -1
        if self._skip:
            self._skip -= 1
            return -1
        if self._line is None:
            self._line = straight_line(self.template)
        lanes = self._line_lanes
        done = self._line(now, ps, [lane.free_ps for lane in lanes])
        if done is None or done[0] > latest:
            self._misses += 1
            self._skip = min(1 << self._misses, MOST_SKIPPED)
            return -1
        self._misses = 0
        end, free, served, waited = done
        for lane, free_ps, served_ps, wait_ps in zip(lanes, free, served, waited, strict=True):
            lane.free_ps = free_ps
            lane.served_ps += served_ps
            lane.wait_ps += wait_ps
        return end


def _lost(graph: TaskGraph, place: int) -> ConservationError:
    """Return the error of a slot that costs bytes or energy, but serves a task that takes no time at a server."""
    template, cost = graph.template, Cost(graph.ps[place], graph.fj[place], graph.n_bytes[place])
    tasks = [task for task, slot in enumerate(template.slot_index) if slot == place]
    lost = next(task for task in tasks if not cost.ps or template.servers[task] is None)
    problem = f"{template.tags[lost] or 'join'} is no service, but costs {cost}"
    return ConservationError("work takes time at a server", problem)


def program(template: Template, lanes: Mapping[str, Lane], overlapping: bool = False) -> Program:
    """Return ``template`` on ``lanes``.

    Background tasks are metered; if graphs are ``overlapping``, all are, for the gate of one opens while another is
    under way.

    Raises
    ------
    ConfigError
        When the template names a server that is not there.
    """
    for name in template.servers:
        if name is not None and name not in lanes:
            raise ConfigError("graph", f"the machine has no server {name!r}; it has {', '.join(lanes)}")
    kinds = _kinds(template, overlapping)
    for name in _mixed(template):
        lanes[name].mixed = True
    barriers, forks = _barriers(template, kinds, lanes), _forks(template, kinds)
    return Program(
        template,
        template.successors,
        template.lag_ps,
        tuple(None if name is None else lanes[name] for name in template.servers),
        tuple(task for task, preds in enumerate(template.n_preds) if not preds),
        picker(template.slot_index),
        kinds,
        sum(bool(kind & GATE) for kind in kinds),
        sum(bool(kind & LAST) for kind in kinds),
        barriers,
        forks,
        frozenset(task for *_, tasks in barriers.values() for task in tasks)
        | {task for fork in forks.values() for chain in fork.chains for task in chain},
        _sums(template, lanes),
        [(lane, add) for group, add, _ in _sums(template, lanes, kinds) for lane in group],
        frozenset(s for name, s in zip(template.servers, template.slot_index, strict=True) if name is None and s),
        _served(template),
        not (overlapping or any(template.background) or any(template.classes)) and any(template.servers),
    )


def picker(places: Sequence[int]) -> Picker:
    """Return the function that gives the items of a sequence at ``places``."""
    if not places:
        return lambda items: ()
    if len(places) == 1:
        return lambda items: (items[places[0]],)
    return itemgetter(*places)


def _kinds(template: Template, overlapping: bool) -> bytes:
    kinds, background = bytearray(len(template)), template.background
    matters = bytearray(len(template))  # whether the end of a task matters to a server or a gate
    for task in reversed(range(len(template))):
        successors = template.successors[task]
        matters[task] = not background[task] or any(
            matters[successor] or template.servers[successor] is not None for successor in successors
        )
        if not background[task] and all(background[successor] for successor in successors):
            kinds[task] |= GATE
        if not successors:
            kinds[task] |= LAST
        if (background[task] or overlapping) and template.servers[task] is not None:
            kinds[task] |= METERED
        if template.classes[task] and template.servers[task] is not None:
            kinds[task] |= QUEUED | (WATCHED if matters[task] else 0)
    for tasks in _ordered(template):
        for task in tasks:
            kinds[task] |= ORDERED
    return bytes(kinds)


def _served(template: Template) -> tuple[tuple[int, ...], ...]:
    found: list[list[int]] = [[] for _ in template.slot_names]
    for task, (name, place) in enumerate(zip(template.servers, template.slot_index, strict=True)):
        if name is not None:
            found[place].append(task)
    return tuple(map(tuple, found))


def _mixed(template: Template) -> set[str]:
    """Return the servers at which the template has work of other classes, or in the background."""
    tasks = zip(template.servers, template.classes, template.background, strict=True)
    return {name for name, cls, background in tasks if name is not None and (cls or background)}


def _ordered(template: Template) -> Iterator[list[int]]:
    """Yield the tasks of each server at which each follows the one before, if only through others."""
    mixed, before = _mixed(template), ancestors(template)
    tasks: dict[str, list[int]] = {}
    for task, name in enumerate(template.servers):
        if name is not None and name not in mixed:
            tasks.setdefault(name, []).append(task)
    for mine in tasks.values():
        if all(before[task] >> last & 1 for last, task in pairwise(mine)):
            yield mine


def _barriers(template: Template, kinds: Sequence[int], lanes: Mapping[str, Lane]) -> dict[int, Barrier]:
    barriers: dict[int, Barrier] = {}
    for tasks in template.successors:
        names = [name for task in tasks if (name := template.servers[task]) is not None]
        plain = len(names) == len(tasks) > 1 and not any(
            template.lag_ps[task] or kinds[task] & ~ORDERED for task in tasks
        )
        if plain and len({template.successors[task] for task in tasks}) == 1:
            barriers[id(tasks)] = ([lanes[name] for name in names], picker(tasks), tasks)
    return barriers


def _forks(template: Template, kinds: Sequence[int]) -> dict[int, Fork]:
    servers, successors = template.servers, template.successors

    def plain(task: int) -> bool:
        return servers[task] is not None and not template.lag_ps[task] and not kinds[task] & ~ORDERED

    forks: dict[int, Fork] = {}
    for tasks in successors:
        if len(tasks) < 3 or any(servers[task] is None for task in tasks):
            continue
        by_end: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for task in filter(plain, tasks):
            after = successors[task]
            second = after[0] if len(after) == 1 else -1
            if second >= 0 and plain(second) and kinds[second] & ORDERED and template.n_preds[second] == 1:
                by_end.setdefault(successors[second], []).append((task, second))
            else:
                by_end.setdefault(after, []).append((task, -1))
        chains = max(by_end.values(), key=len, default=[])
        begun = {first for first, _ in chains}
        rest = tuple(task for task in tasks if task not in begun)
        # Each at a lane of its own, so that the order in which they are served does not matter.
        used = [servers[task] for task in (*begun, *(second for _, second in chains if second >= 0), *rest)]
        if len(chains) > 2 and len(set(used)) == len(used):
            forks[id(tasks)] = Fork(tuple(chains), rest)
    return forks


def adder(places: Sequence[int]) -> Adder:
    """Return the function that adds the items of a sequence at ``places``; equal ones are counted."""
    counts = Counter(places)
    pick = picker([place for place, times in counts.items() if times == 1])
    several = {place: times for place, times in counts.items() if times > 1}
    if not several:
        return lambda items: sum(pick(items))
    pick_several, times = picker(tuple(several)), tuple(several.values())
    return lambda items: sum(pick(items)) + sum(map(mul, pick_several(items), times))


def _sums(
    template: Template, lanes: Mapping[str, Lane], kinds: bytes | None = None
) -> list[tuple[list[Lane], Adder, int]]:
    """Return the sums over the tasks of each lane; of those that are metered if ``kinds`` are given."""
    places: dict[str, list[int]] = {}
    for task, (name, place) in enumerate(zip(template.servers, template.slot_index, strict=True)):
        if name is not None and (kinds is None or kinds[task] & METERED):
            places.setdefault(name, []).append(place)
    alike: dict[tuple[int, ...], list[Lane]] = {}
    for name, used in places.items():
        alike.setdefault(tuple(used), []).append(lanes[name])
    return [(group, adder(used), len(used)) for used, group in alike.items()]
