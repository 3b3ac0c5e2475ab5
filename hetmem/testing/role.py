"""Roles of policies, as the conformance suite knows them.

A role says what calls of ``decide`` look like and what must hold of every answer. To put a new role under test,
register one::

    register_role(Role(
        name="eviction",
        takes=(EvictionView,),                             # types of decide's parameters, to recognise the role by
        examples=lambda: [(EvictionView(...),), ...],      # fresh arguments; include an empty one and a tight one
        invariant=check_eviction,                          # (policy, arguments, decision) -> None, or raises
        checks=(evicts_no_page_in_use,),                   # optional: (policy) -> None, or raises
    ))

The checks that hold for every policy, whatever its role, are in :mod:`hetmem.testing.conformance`.
"""

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from hetmem.errors import ConfigError, UnknownNameError
from hetmem.policy.batching import BatchView

Arguments = tuple[Any, ...]
Check = Callable[[Any], None]

# The decode loop puts preempted requests before all others with keys below this one.
LEAST_KEY = (0, 0)


@frozen
class Role:
    """What a role asks of its policies.

    Attributes
    ----------
    name
        As in ``--policy ROLE=NAME``.
    takes
        Types of the parameters of ``decide``.
    examples
        Returns arguments for several calls of ``decide``, made anew each time.
    invariant
        Raises AssertionError when a decision breaks the contract of the role: work placed twice or not at all,
        more than fits, no progress.
    checks
        Further checks of a policy of this role.
    """

    name: str
    takes: tuple[type, ...]
    examples: Callable[[], Sequence[Arguments]]
    invariant: Callable[[Any, Arguments, Any], None]
    checks: tuple[Check, ...] = ()


def register_role(role: Role) -> None:
    """Make ``role`` known to the suite.

    Raises
    ------
    ConfigError
        When a role of that name is known already.
    """
    if role.name in _ROLES:
        raise ConfigError("role", f"{role.name!r} is registered already")
    _ROLES[role.name] = role


def roles() -> tuple[str, ...]:
    """Return the names of the known roles."""
    return tuple(_ROLES)


def role_of(policy: Any, name: str | None = None) -> Role:
    """Return the role called ``name``, by default the one whose parameter types ``policy.decide`` has.

    Raises
    ------
    UnknownNameError
        When there is no such role.
    ConfigError
        When the types fit none or several; name the role then.
    """
    if name is not None:
        if name not in _ROLES:
            raise UnknownNameError("role", name, roles())
        return _ROLES[name]
    decide = getattr(type(policy), "decide", None)
    if decide is None:
        raise ConfigError(type(policy).__name__, "is no policy: it has no method decide")
    try:
        hints = typing.get_type_hints(decide)
    except NameError:  # an annotation that names something local to a function
        hints = {}
    takes = tuple(hints.get(parameter) for parameter in list(inspect.signature(decide).parameters)[1:])
    fitting = [role for role in _ROLES.values() if role.takes == takes]
    if len(fitting) != 1:
        found = " and ".join(role.name for role in fitting) or f"none of {', '.join(roles())}"
        raise ConfigError(type(policy).__name__, f"decide fits the role {found}; say which with role=")
    return fitting[0]


def _batching_examples() -> list[Arguments]:
    counts = (0, 1, 2, 3, 7, 31, 1000)
    return [(BatchView(running, waiting),) for running in counts for waiting in counts]


def _check_batching(policy: Any, arguments: Arguments, decision: Any) -> None:
    view: BatchView = arguments[0]
    assert isinstance(decision, int), f"expected a number of sequences, not {decision!r}"
    assert not isinstance(decision, bool), f"expected a number of sequences, not {decision!r}"
    assert 0 <= decision <= view.waiting, f"{decision} of {view.waiting} waiting sequences cannot join"
    size = getattr(policy, "size", None)
    if size is not None and decision:
        assert view.running + decision <= size, f"{view.running} run and {decision} join, but {size} is the most"
    if view.running == 0 and view.waiting:
        assert decision, "nothing runs and none may join: nothing would ever run"


def _admission_examples() -> list[Arguments]:
    return [(prompt, arrival) for arrival, prompt in enumerate((5, 1, 5, 4096, 17, 1, 131072, 5))]


def _check_admission(policy: Any, arguments: Arguments, decision: Any) -> None:
    assert isinstance(decision, tuple), f"expected a pair of integers, not {decision!r}"
    assert [type(part) for part in decision] == [int, int], f"expected a pair of integers, not {decision!r}"
    assert decision >= LEAST_KEY, f"{decision} would pass requests that were preempted; {LEAST_KEY} is the least"


def _keys_are_distinct(policy: Any) -> None:
    """Every request has a place of its own in the queue."""
    keys = [policy.decide(*arguments) for arguments in _admission_examples()]
    assert len(set(keys)) == len(keys), f"requests share a place in the queue: {keys}"


_ROLES: dict[str, Role] = {}
register_role(Role("batching", (BatchView,), _batching_examples, _check_batching))
register_role(Role("admission", (int, int), _admission_examples, _check_admission, (_keys_are_distinct,)))
