"""The roles that change with parallelism: where FC runs (reschedule), and how long drafts are (speculation)."""

from typing import Any

from hetmem.policy.reschedule import Parallelism, RescheduleView, Side
from hetmem.policy.speculation import SpeculationView
from hetmem.testing.role import Arguments, Role, register_role


def _reschedule_examples() -> list[Arguments]:
    return [
        (RescheduleView(Parallelism(rlp, tlp), side, {Side.GPU: 1.0, Side.PIM: rlp * tlp / 28}),)
        for rlp in (0, 1, 4, 27, 28, 29, 1000)
        for tlp in (1, 4)
        for side in (None, *Side)
    ]


def _check_reschedule(policy: Any, arguments: Arguments, decision: Any) -> None:
    assert isinstance(decision, Side), f"expected a side, not {decision!r}"


def _speculation_examples() -> list[Arguments]:
    return [(SpeculationView(decoding),) for decoding in (0, 1, 2, 7, 64, 1000)]


def _check_speculation(policy: Any, arguments: Arguments, decision: Any) -> None:
    assert isinstance(decision, int), f"expected a number of tokens, not {decision!r}"
    assert not isinstance(decision, bool), f"expected a number of tokens, not {decision!r}"
    assert decision >= 1, f"a step emits at least a token, so it verifies one, not {decision}"


register_role(Role("reschedule", (RescheduleView,), _reschedule_examples, _check_reschedule))
register_role(Role("speculation", (SpeculationView,), _speculation_examples, _check_speculation))
