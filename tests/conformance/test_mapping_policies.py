"""Every mapping policy conforms; and the role finds what is wrong with one that does not."""

import pytest
from attrs import frozen

from hetmem.errors import UnknownNameError
from hetmem.policy.kernel_mapping import GreedyMapper, Mapping, MappingView, StaticMapper
from hetmem.policy.kernel_search import MAPPERS, STATELESS, MajorMapper, NaiveMapper, OracleMapper, mapper
from hetmem.testing import check_policy, parametrize_with_checks, role_of

SHIPPED = [
    GreedyMapper(),
    GreedyMapper(("fc", "qkv", "attention"), {("fc", "slow"): 2.0}),
    OracleMapper(),
    *(MajorMapper(name) for name in ("attention", "qkv", "fc")),
    NaiveMapper(),
    StaticMapper(0.0, 0.0),
]


@parametrize_with_checks(SHIPPED)
def test_conforms(policy, check):
    check(policy)


def test_no_mapping_policy_is_forgotten():
    made = {name: mapper(name, lambda: role_of(GreedyMapper()).examples()[0][0]) for name in MAPPERS}
    assert {type(policy) for policy in made.values()} == {type(policy) for policy in SHIPPED}
    assert {role_of(policy).name for policy in made.values()} == {"mapping"}
    assert set(STATELESS) < set(made)


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'greedy'"):
        mapper("greedi", lambda: pytest.fail("no view is needed"))


@frozen
class TooMuch:
    """Puts everything on the fast side, whatever its room."""

    def decide(self, view: MappingView) -> Mapping:
        return Mapping(view.attention.parts, view.qkv.parts, view.fc.parts)

    def candidates(self, view: MappingView) -> int:
        return 1


@frozen
class HalfPart(TooMuch):
    """Answers with a fraction of a part."""

    def decide(self, view: MappingView) -> Mapping:
        return Mapping(0.5, 0, 0)


@frozen
class MorePartsThanThereAre(TooMuch):
    """Answers with a number of parts that the sub-layer has not."""

    def decide(self, view: MappingView) -> Mapping:
        return Mapping(0, 0, view.fc.parts + 1)


@frozen
class NoCount(TooMuch):
    """Decides well, but cannot say how much it compared."""

    def decide(self, view: MappingView) -> Mapping:
        return Mapping(0, 0, 0)

    def candidates(self, view: MappingView) -> int:
        return -1


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (TooMuch(), "does not fit in both memories"),
        (HalfPart(), "expected a number of attention parts"),
        (MorePartsThanThereAre(), "7 of 6 fc parts"),
        (NoCount(), "-1 candidates"),
    ],
)
def test_a_policy_that_breaks_the_role_is_found(policy, problem):
    with pytest.raises(AssertionError, match=problem):
        check_policy(policy)
