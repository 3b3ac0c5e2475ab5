"""Every policy that comes with hetmem conforms; and the suite finds what is wrong with policies that do not."""

import random

import attrs
import numpy as np
import pytest
from attrs import define, field, frozen

from hetmem.errors import ConfigError, UnknownNameError
from hetmem.policy.batching import BatchView, ContinuousBatch, FirstComeFirstServed, ShortestPromptFirst, StaticBatch
from hetmem.policy.reschedule import Oracle, Static, Threshold
from hetmem.policy.speculation import FixedLength, LevelTokens
from hetmem.study.scenario import POLICIES
from hetmem.testing import Role, check_policy, checks_for, parametrize_with_checks, register_role, role_of, roles
from hetmem.testing import role as role_module
from hetmem.testing.conformance import snapshot

SHIPPED = [StaticBatch(1), StaticBatch(7), ContinuousBatch(1), ContinuousBatch(31), FirstComeFirstServed(),
           ShortestPromptFirst(), FixedLength(1), FixedLength(4), LevelTokens(16, 8)]  # fmt: skip


@parametrize_with_checks(SHIPPED)
def test_conforms(policy, check):
    check(policy)


@parametrize_with_checks([Threshold(28), Threshold(28, 3), Static("gpu"), Oracle()], "reschedule")
def test_rescheduling_conforms(policy, check):
    check(policy)


def test_no_policy_of_any_role_is_forgotten():
    named = {cls for role in POLICIES.values() for cls in role.values()}
    assert named == {type(policy) for policy in SHIPPED}
    assert set(POLICIES) <= set(roles())
    for name, policies in POLICIES.items():
        assert all(role_of(policy).name == name for policy in SHIPPED if type(policy) in policies.values())


def test_the_names_of_the_checks_are_those_of_the_tests():
    names = [check.__name__ for check in checks_for(ShortestPromptFirst())]
    assert names[0] == "check_constructor"
    assert names[-1] == "keys_are_distinct"
    assert all(check.__doc__ for check in checks_for(ShortestPromptFirst()))


# -- policies that break one rule each -------------------------------------------------------------------------------


@frozen
class Good:
    size: int

    def decide(self, view: BatchView) -> int:
        return max(0, min(self.size - view.running, view.waiting))


class Rounds:
    """Its constructor changes its argument."""

    def __init__(self, size: int) -> None:
        self.size = size + 1

    def decide(self, view: BatchView) -> int:
        return Good(self.size).decide(view)


class Hides:
    """Its constructor stores its argument under another name."""

    def __init__(self, size: int) -> None:
        self._size = size

    def decide(self, view: BatchView) -> int:
        return Good(self._size).decide(view)


class TakesAnything:
    def __init__(self, **options: int) -> None:
        self.options = options

    def decide(self, view: BatchView) -> int:
        return Good(4).decide(view)


@define
class Remembers:
    """It changes with every call."""

    size: int
    calls: int = 0

    def decide(self, view: BatchView) -> int:
        self.calls += 1
        return Good(self.size).decide(view)


class Drifts:
    """Its decisions depend on what was asked before, out of sight of the policy's own fields."""

    seen: int = 0

    def decide(self, view: BatchView) -> int:
        Drifts.seen = (Drifts.seen + 1) % 3
        return min(view.waiting, 1 + Drifts.seen)


class Meddles:
    """It writes into its view."""

    def decide(self, view: BatchView) -> int:
        object.__setattr__(view, "waiting", view.waiting + 1)
        return view.waiting - 1


class Gambles:
    def decide(self, view: BatchView) -> int:
        return min(view.waiting, 1 + int(random.random() * 4))


class GamblesWithNumpy:
    def decide(self, view: BatchView) -> int:
        return min(view.waiting, 1 + int(np.random.rand() * 4))


class Crowds:
    size = 4

    def decide(self, view: BatchView) -> int:
        return view.waiting


class Invents:
    def decide(self, view: BatchView) -> int:
        return view.waiting + 1


class Starves:
    def decide(self, view: BatchView) -> int:
        return 0


class Vague:
    def decide(self, view: BatchView) -> int:
        return view.waiting > 0


class Fractional:
    def decide(self, view: BatchView) -> int:
        return view.waiting / 2


class Unpicklable:
    def __init__(self) -> None:
        self.rule = lambda view: view.waiting

    def decide(self, view: BatchView) -> int:
        return self.rule(view)


class ForgetsWhenPickled:
    def __init__(self, size: int = 4) -> None:
        self.size = size

    def __setstate__(self, state):
        self.size = 1

    def decide(self, view: BatchView) -> int:
        return Good(self.size).decide(view)


class Ties:
    def decide(self, prompt_tokens: int, arrival: int) -> tuple[int, int]:
        return (prompt_tokens, 0)


class Jumps:
    def decide(self, prompt_tokens: int, arrival: int) -> tuple[int, int]:
        return (-prompt_tokens, arrival)


class KeyIsNoPair:
    def decide(self, prompt_tokens: int, arrival: int) -> tuple[int, int]:
        return prompt_tokens * 1000 + arrival


class KeyIsNotWhole:
    def decide(self, prompt_tokens: int, arrival: int) -> tuple[int, int]:
        return (prompt_tokens / 2, arrival)


class Foresees:
    def decide(self, prompt_tokens: int, output_tokens: int) -> tuple[int, int]:
        return (output_tokens, 0)


BROKEN = [
    (Rounds(4), "check_constructor", "size=5 was stored as 6"),
    (Hides(4), "check_constructor", "'size' is not stored under its name"),
    (TakesAnything(size=4), "check_constructor", "hides names"),
    (Remembers(4), "check_pure", "decide changed the policy"),
    (Drifts(), "check_repeatable", "depend on what was asked before"),
    (Meddles(), "check_pure", "decide changed its view"),
    (Gambles(), "check_draws_nothing", "draws from a global random state"),
    (GamblesWithNumpy(), "check_draws_nothing", "draws from a global random state"),
    (Crowds(), "check_decisions", "1 run and 4 join, but 4|1 run and 7 join, but 4|0 run and 7 join, but 4"),
    (Invents(), "check_decisions", "1 of 0 waiting sequences cannot join"),
    (Starves(), "check_decisions", "nothing would ever run"),
    (Vague(), "check_decisions", "expected a number of sequences, not False"),
    (Fractional(), "check_decisions", "expected a number of sequences, not 0.0"),
    (Unpicklable(), "check_picklable", "cannot be pickled"),
    (ForgetsWhenPickled(), "check_picklable", "is another one after pickling"),
    (Ties(), "keys_are_distinct", "share a place in the queue"),
    (Jumps(), "check_decisions", "would pass requests that were preempted"),
    (KeyIsNoPair(), "check_decisions", "expected a pair of integers"),
    (KeyIsNotWhole(), "check_decisions", "expected a pair of integers"),
    (Foresees(), "check_sees_no_future", "sees 'output_tokens'"),
]


@pytest.mark.parametrize(("policy", "check", "says"), BROKEN, ids=[type(row[0]).__name__ for row in BROKEN])
def test_a_policy_that_breaks_a_rule_is_found(policy, check, says):
    found = {c.__name__: c for c in checks_for(policy)}
    with pytest.raises(AssertionError, match=f"{type(policy).__name__}.* fails {check}: .*({says})"):
        found[check](policy)
    with pytest.raises(AssertionError):
        check_policy(policy)


def test_the_rules_leave_the_good_ones_alone():
    check_policy(Good(4))
    check_policy(Good(4), role="batching")


# -- roles -----------------------------------------------------------------------------------------------------------


class Untyped:
    def decide(self, view):
        return min(4, view.waiting) if view.running == 0 else 0


def test_the_role_is_told_by_the_parameters_or_by_name():
    assert role_of(Good(1)).name == "batching"
    assert role_of(Ties()).name == "admission"
    with pytest.raises(ConfigError, match=r"decide fits the role none of batching, admission.*say which with role="):
        role_of(Untyped())
    check_policy(Untyped(), role="batching")
    with pytest.raises(UnknownNameError, match="unknown role 'baching'; did you mean 'batching'"):
        check_policy(Untyped(), role="baching")
    with pytest.raises(ConfigError, match="no method decide"):
        role_of(object())


def test_an_annotation_that_cannot_be_resolved_asks_for_the_role():
    class Local:
        def decide(self, view: "NowhereToBeFound") -> int:  # noqa: F821
            return view.waiting

    with pytest.raises(ConfigError, match="say which with role="):
        role_of(Local())


@frozen
class EvictionView:
    """A view with all that a snapshot must see: arrays, mappings, sets."""

    held: dict = field(factory=dict)
    ages: np.ndarray = field(factory=lambda: np.zeros(0, np.int64), eq=attrs.cmp_using(eq=np.array_equal))
    pinned: frozenset = frozenset()
    need: int = 0


@frozen
class EvictOldest:
    def decide(self, view: EvictionView) -> tuple[str, ...]:
        order = sorted(zip(view.ages.tolist(), view.held, strict=True), reverse=True)
        return tuple(page for _, page in order if page not in view.pinned)[: view.need]


@frozen
class EvictsByHash:
    def decide(self, view: EvictionView) -> tuple[str, ...]:
        view.ages[:1] += 1
        return ()


@pytest.fixture
def eviction():
    def examples():
        return [
            (EvictionView(),),
            (EvictionView({"a": 1, "b": 2, "c": 3}, np.array([5, 9, 2]), frozenset("b"), 2),),
        ]

    def invariant(policy, arguments, decision):
        assert len(decision) == arguments[0].need, "evicts too few"

    role = Role("eviction", (EvictionView,), examples, invariant)
    register_role(role)
    yield role
    del role_module._ROLES["eviction"]


def test_a_new_role_is_checked_like_the_others(eviction):
    assert "eviction" in roles()
    assert EvictOldest().decide(eviction.examples()[1][0]) == ("a", "c")
    check_policy(EvictOldest())
    with pytest.raises(AssertionError, match="decide changed its view"):
        check_policy(EvictsByHash())
    with pytest.raises(ConfigError, match="'eviction' is registered already"):
        register_role(eviction)


@pytest.mark.parametrize(
    "view", [{"remaining_tokens": 3}, [{7: {"output": 1}}], EvictionView({"output_length": 2}), Hides(3)]
)
def test_a_role_whose_views_tell_the_future_is_found(view):
    role = Role("oracle", (EvictionView,), lambda: [(view,)], lambda *_: None)
    register_role(role)
    try:
        check = next(c for c in checks_for(Starves(), "oracle") if c.__name__ == "check_sees_no_future")
        if isinstance(view, Hides):
            check(Starves())  # sees nothing that is not known
        else:
            with pytest.raises(AssertionError, match="which is not known before a request has ended"):
                check(Starves())
    finally:
        del role_module._ROLES["oracle"]


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a = [1, {2, 3}]


class OneSlot(Slotted):
    __slots__ = "c"


def test_snapshots_compare_by_content():
    assert snapshot(Slotted()) == snapshot(Slotted())
    changed = Slotted()
    changed.a[1].add(4)
    assert snapshot(changed) != snapshot(Slotted())
    single = OneSlot()
    single.c = 3
    assert snapshot(single) != snapshot(OneSlot())
    assert snapshot(np.arange(3)) != snapshot(np.arange(3.0))
    assert snapshot([1]) != snapshot((1,))
    assert snapshot(1) != snapshot(True)
    assert snapshot(1.0) != snapshot(1)
    assert snapshot({"a": 1}) != snapshot({"a": 2})
