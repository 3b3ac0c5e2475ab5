"""What flows between decode loop, scheduler and system: a token-step request, its view, plan and outcome."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from attrs import field, frozen

from hetmem.engine.graph import TaskGraph
from hetmem.model import StepShape


class Load(Mapping[str, int]):
    """The ticks that each server was busy between two readings; taken apart only if somebody asks.

    Parameters
    ----------
    names, before, now
        The servers, and the busy ticks of each at the two readings.
    """

    __slots__ = ("_before", "_names", "_now")

    def __init__(self, names: Sequence[str], before: Sequence[int], now: Sequence[int]) -> None:
        self._names, self._before, self._now = names, before, now

    def __getitem__(self, name: str) -> int:
        if name not in self._names:
            raise KeyError(name)
        place = self._names.index(name)
        return self._now[place] - self._before[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Load({dict(self)})"


@frozen(slots=True)
class StepView:
    """What a system and its policies may know when they plan a step. No true output length is in it.

    ``order`` numbers the steps of the run; ``prefill`` and ``decode`` are the shapes of the two groups, None
    where the step has none; ``running`` and ``waiting`` count sequences; ``load`` gives the ticks that each
    server was busy since the view before, an empty mapping at first. ``tlp`` tokens of each decoding sequence
    are verified in the step; ``contexts`` gives, where the system asks for it, the tokens that the first of them
    attends to, in the order of admission; ``finished`` and ``joined`` count the sequences that left decoding at
    their end, and that entered it (less those preempted), since the view before.
    """

    order: int
    now_ps: int
    prefill: StepShape | None
    decode: StepShape | None
    running: int
    waiting: int
    load: Mapping[str, int] = field(factory=lambda: MappingProxyType({}))
    tlp: int = 1
    contexts: tuple[int, ...] = ()
    finished: int = 0
    joined: int = 0


@frozen(slots=True, eq=False)
class Plan:
    """What a system decided: the graph to run and the bytes that change hands.

    ``allocate`` is reserved when the plan is committed, destinations of copies included; ``release`` is given
    back when the step is observed. Both hold (owner, memory, bytes). ``note`` is the system's own.
    """

    graph: TaskGraph
    allocate: tuple[tuple[str, str, int], ...] = ()
    release: tuple[tuple[str, str, int], ...] = ()
    note: Any = None


@frozen(slots=True)
class StepOutcome:
    """What happened: the view that was planned for, and the ticks between which the step ran."""

    view: StepView
    start_ps: int
    end_ps: int
