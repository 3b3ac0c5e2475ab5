"""Batching and admission policies whose answers are checked as they are given: a user's object may answer anything."""

from numbers import Integral
from typing import Any

from attrs import frozen

from hetmem.errors import ConfigError
from hetmem.policy.batching import BatchView


def require_policy(role: str, chosen: Any) -> None:
    """Refuse an object that is no policy.

    Raises
    ------
    ConfigError
        Naming the role.
    """
    if isinstance(chosen, type):
        raise ConfigError(f"policies.{role}", f"expected an object, not the class {chosen.__name__}")
    if not callable(getattr(chosen, "decide", None)):
        raise ConfigError(f"policies.{role}", f"expected a name or an object with decide(), not {chosen!r}")


@frozen
class CheckedBatching:
    """A batching policy that must answer a whole number of sequences, at least none."""

    policy: Any

    def decide(self, view: BatchView) -> int:
        """Return the policy's answer.

        Raises
        ------
        ConfigError
            When it is no such number, naming policy and role.
        """
        answer = self.policy.decide(view)
        if not _is_whole(answer) or answer < 0:
            raise _bad_answer("batching", self.policy, "a whole number of sequences, at least 0", answer)
        return int(answer)


@frozen
class CheckedAdmission:
    """An admission policy that must answer a pair of whole numbers, the sort key of a request."""

    policy: Any

    def decide(self, prompt_tokens: int, arrival: int) -> tuple[int, int]:
        """Return the policy's answer.

        Raises
        ------
        ConfigError
            When it is no such pair, naming policy and role.
        """
        answer = self.policy.decide(prompt_tokens, arrival)
        if not isinstance(answer, tuple) or len(answer) != 2 or not all(_is_whole(part) for part in answer):
            raise _bad_answer("admission", self.policy, "a pair of whole numbers", answer)
        return int(answer[0]), int(answer[1])


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _bad_answer(role: str, policy: Any, expected: str, answer: Any) -> ConfigError:
    return ConfigError(f"policies.{role}", f"{type(policy).__name__}.decide returned {answer!r}; expected {expected}")
