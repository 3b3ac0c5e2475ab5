"""The conformance suite: what holds for every policy, whatever its role, and what its role adds.

A policy is pure: ``decide`` maps a frozen view to a decision, is repeatable, changes neither, draws from no global
random state and cannot see the future. It is made of arguments that it stores as they were given, so that it can be
printed, compared and sent to another process. After scikit-learn's ``check_estimator`` (Buitinck et al. 2013).
"""

import copy
import inspect
import pickle
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from hetmem.testing.role import Arguments, Check, Role, role_of

if TYPE_CHECKING:
    import pytest

#: Names that no view may have: they would tell how long a request is going to run.
FUTURE = (
    "output",
    "output_tokens",
    "output_length",
    "true_output_tokens",
    "remaining",
    "remaining_tokens",
    "finish_ps",
)


def check_policy(policy: Any, role: str | None = None) -> None:
    """Run every check of the suite on ``policy``.

    Parameters
    ----------
    policy
        An object with a method ``decide``.
    role
        The name of its role; by default told from the types of ``decide``'s parameters.

    Raises
    ------
    AssertionError
        For the first check that fails, naming the policy, the check and what was seen.
    ConfigError, UnknownNameError
        When the role is not known.
    """
    for check in checks_for(policy, role):
        check(policy)


def checks_for(policy: Any, role: str | None = None) -> tuple[Check, ...]:
    """Return the checks that apply to ``policy``; each takes the policy and raises AssertionError when it fails."""
    found = role_of(policy, role)
    common = (
        check_constructor, check_picklable, check_sees_no_future, check_repeatable, check_pure, check_draws_nothing,
        check_decisions,
    )  # fmt: skip
    return (*(_named(check, found) for check in common), *(_named(check) for check in found.checks))


def parametrize_with_checks(policies: Sequence[Any], role: str | None = None) -> "pytest.MarkDecorator":
    """Return a decorator that calls a test with each (``policy``, ``check``) of ``policies``.

    >>> @parametrize_with_checks([StickyWindow(window=5)])       # doctest: +SKIP
    ... def test_conforms(policy, check):
    ...     check(policy)
    """
    import pytest

    cases = [
        pytest.param(policy, check, id=f"{policy!r}-{check.__name__}")
        for policy in policies
        for check in checks_for(policy, role)
    ]
    return pytest.mark.parametrize(("policy", "check"), cases)


def check_constructor(role: Role, policy: Any) -> None:
    """The constructor stores its arguments unmodified, under their own names."""
    cls = type(policy)
    given = {}
    for parameter in inspect.signature(cls).parameters.values():
        assert parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD), f"*{parameter.name} hides names"
        assert hasattr(policy, parameter.name), f"the argument {parameter.name!r} is not stored under its name"
        given[parameter.name] = getattr(policy, parameter.name)
    rebuilt = cls(**given)
    for name, value in given.items():
        stored = getattr(rebuilt, name)
        assert stored is value or (type(stored) is type(value) and snapshot(stored) == snapshot(value)), (
            f"the argument {name}={value!r} was stored as {stored!r}"
        )


def check_picklable(role: Role, policy: Any) -> None:
    """The policy survives pickling and decides the same afterwards."""
    try:
        twin = pickle.loads(pickle.dumps(policy))
    except Exception as error:
        raise AssertionError(f"cannot be pickled: {error}") from error
    assert snapshot(twin) == snapshot(policy), "is another one after pickling"
    assert _decisions(twin, role.examples()) == _decisions(policy, role.examples()), "decides otherwise after pickling"


def check_sees_no_future(role: Role, policy: Any) -> None:
    """Neither the views nor the parameters of ``decide`` tell the true output length."""
    parameters = list(inspect.signature(policy.decide).parameters)
    for arguments in role.examples():
        for name in (*parameters, *_names(arguments)):
            assert name.lower() not in FUTURE, f"sees {name!r}, which is not known before a request has ended"


def check_repeatable(role: Role, policy: Any) -> None:
    """Equal views get equal decisions, in any order of asking."""
    forward = _decisions(policy, role.examples())
    backward = _decisions(policy, list(role.examples())[::-1])[::-1]
    assert forward == backward, "the decisions depend on what was asked before"
    assert forward == _decisions(copy.deepcopy(policy), role.examples()), "a copy decides otherwise"


def check_pure(role: Role, policy: Any) -> None:
    """``decide`` changes neither the view nor the policy."""
    before = snapshot(policy)
    for arguments in role.examples():
        seen = snapshot(arguments)
        policy.decide(*arguments)
        assert snapshot(arguments) == seen, "decide changed its view"
        assert snapshot(policy) == before, "decide changed the policy"


def check_draws_nothing(role: Role, policy: Any) -> None:
    """``decide`` neither uses nor moves the global random states."""
    states = random.getstate(), np.random.get_state()
    try:
        found = []
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)
            fresh = snapshot((random.getstate(), np.random.get_state()))
            found.append(_decisions(policy, role.examples()))
            now = snapshot((random.getstate(), np.random.get_state()))
            assert now == fresh, "draws from a global random state"
        assert found[0] == found[1], "depends on a global random state"
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def check_decisions(role: Role, policy: Any) -> None:
    """Every decision keeps the contract of the role."""
    for arguments in role.examples():
        try:
            role.invariant(policy, arguments, policy.decide(*arguments))
        except AssertionError as error:
            raise AssertionError(f"{error} [asked {', '.join(map(repr, arguments))}]") from error


def snapshot(value: Any) -> Any:
    """Return what ``value`` holds as nested tuples that compare by content, whatever it is made of."""
    if isinstance(value, np.ndarray):
        return ("ndarray", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, Mapping):
        return ("mapping", tuple((snapshot(k), snapshot(v)) for k, v in value.items()))
    if isinstance(value, set | frozenset):
        return ("set", tuple(sorted(repr(snapshot(item)) for item in value)))
    if isinstance(value, list | tuple):
        return (type(value).__name__, tuple(snapshot(item) for item in value))
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | type):
        return (type(value).__name__, repr(value))
    return (type(value).__qualname__, tuple((name, snapshot(held)) for name, held in _fields(value)))


def _fields(value: Any) -> list[tuple[str, Any]]:
    if attrs.has(type(value)):
        return [(field.name, getattr(value, field.name)) for field in attrs.fields(type(value))]
    slots = [name for cls in type(value).__mro__ for name in _slots(cls) if hasattr(value, name)]
    return [*((name, getattr(value, name)) for name in slots), *getattr(value, "__dict__", {}).items()]


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _names(value: Any) -> Iterable[str]:
    """Yield every field name and text key inside ``value``."""
    if isinstance(value, Mapping):
        for key, held in value.items():
            if isinstance(key, str):
                yield key
            yield from _names(held)
    elif isinstance(value, list | tuple | set | frozenset):
        for held in value:
            yield from _names(held)
    elif not isinstance(value, np.ndarray | bool | int | float | complex | str | bytes | type | None):
        for name, held in _fields(value):
            yield name
            yield from _names(held)


def _decisions(policy: Any, examples: Iterable[Arguments]) -> list[Any]:
    return [snapshot(policy.decide(*arguments)) for arguments in examples]


def _named(check: Any, role: Role | None = None) -> Check:
    """Return ``check`` bound to ``role``, with its own name, and with the policy in its errors."""

    def run(policy: Any) -> None:
        try:
            bound(policy)
        except AssertionError as error:
            raise AssertionError(f"{policy!r} fails {run.__name__}: {error}") from error

    bound = check if role is None else partial(check, role)
    run.__name__ = check.__name__.removeprefix("_")
    run.__doc__ = check.__doc__
    return run
